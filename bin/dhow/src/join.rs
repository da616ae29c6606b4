//! `dhow join --server`: how a machine becomes a server of a platform that runs.
//!
//! It shows the token, is taken in as a learner, and is told the shared keys and settings. Then it is
//! a platform like the first: [`crate::member`] brings the store up to date. What a refused attempt
//! has made here or there is taken back.

use crate::call::{self, Caller, Failure};
use crate::config::{Config, Flags, Joined, Machine};
use crate::pki::Pki;
use crate::servers::{JoinAnswer, JoinRequest, VERSION};
use crate::token::Token;
use crate::{etcd, member, roles, undo};
use anyhow::{Context, Result, anyhow, bail};
use http::Method;
use serde_json::Value;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

const PATH: &str = "/dhow/v1/join";

/// Pauses while another server joins.
const AGAIN: Duration = Duration::from_millis(500);

/// How often a platform is asked in which another server joins just now.
const TRIES: usize = 20;

/// The settings of `dhow join`.
#[derive(Debug, Clone, clap::Args)]
#[command(
    mut_arg("advertise", |arg| arg.help(
        "This machine's address towards others (default: the one that reaches SERVER)"
    )),
    mut_arg("listen", |arg| arg.help(
        "Where the Kubernetes API listens (default: 0.0.0.0 and the platform's port)"
    )),
    mut_arg("peer_listen", |arg| arg.help(
        "Where the other servers are listened to (default: 0.0.0.0:2380)"
    )),
)]
pub struct Request {
    /// A server of the platform
    #[arg(value_name = "https://SERVER:6443")]
    pub url: String,
    /// The platform's join token, as 'dhow token' tells it on a server
    #[arg(long, env = "DHOW_TOKEN", hide_env_values = true)]
    pub token: String,
    /// Become a server: control plane and a copy of the store
    #[arg(long)]
    pub server: bool,
    /// What is this machine's own
    #[command(flatten)]
    pub machine: Machine,
}

/// Makes this machine a server of the platform, in a data directory that this process has claimed.
///
/// # Errors
/// Who says no, or what is missing. Then everything is as it was before.
pub async fn start(data: &Path, request: &Request, claim: File) -> Result<roles::Platform> {
    if !request.server {
        bail!(
            "a machine that is not a server cannot join yet: add --server to make it one of the servers"
        );
    }
    if let Ok(config) = Config::read(data) {
        match config.joined {
            Some(_) => {
                bail!("{} has joined a platform already: start it with 'dhow up'", data.display())
            }
            None => bail!(
                "{} holds a platform of its own: choose another --data-dir, or 'dhow down --purge' it first",
                data.display()
            ),
        }
    }
    call::place(&request.url)?;
    let token: Token = request.token.parse()?;
    let caller = Caller::with_token(&token.authority, &token.to_string())?;
    let mut flags = Flags { machine: request.machine.clone(), ..Flags::default() };
    // Refuses what no platform would take, and tells the name.
    let config = Config::load(data, &flags)?;
    let port = match config.peer_listen {
        None => member::DEFAULT.port(),
        Some(etcd::Listen::At(address)) => address.port(),
        Some(etcd::Listen::Off) => {
            bail!("--peer-listen off: the other servers must reach this one")
        }
    };
    // Ports that are taken are found out before anybody is told of this machine.
    let wanted = etcd::Listen::At(SocketAddr::from(([0, 0, 0, 0], port)));
    let needed = Config { peer_listen: config.peer_listen.or(Some(wanted)), ..config.clone() };
    drop(member::listen(&needed).await?);
    let own = match config.advertise {
        Some(address) => address,
        None => address_towards(&request.url).await?,
    };
    flags.machine.advertise = Some(own);
    let asked = JoinRequest {
        version: VERSION.to_owned(),
        name: config.name.clone(),
        peer: format!("https://{}", SocketAddr::new(own.into(), port)),
    };
    let answer = ask(&caller, &request.url, &asked).await?;
    let undo = Undo { caller: &caller, url: &request.url, asked: &asked };
    let joined = async {
        flags.cluster_cidr = Some(answer.cluster_cidr);
        flags.service_cidr = Some(answer.service_cidr);
        flags.domain = Some(answer.domain.clone());
        flags.machine.listen.get_or_insert(SocketAddr::from(([0, 0, 0, 0], answer.api_port)));
        let mut config = Config::load(data, &flags)?;
        config.joined = Some(Joined { peers: answer.peers.clone(), pod_cidr: answer.pod_cidr });
        Pki::take_over(&data.join("pki"), &answer.keys)?;
        token.keep(data)?;
        // Last: from here on 'dhow up' goes on where this ends.
        config.keep(data)?;
        roles::Platform::start(data, config, claim, false).await
    };
    match joined.await {
        Ok(platform) => Ok(platform),
        Err(error) => {
            undo.everything(data).await;
            Err(error)
        }
    }
}

/// This machine's address from which a server is reached. Nothing is sent.
async fn address_towards(url: &str) -> Result<Ipv4Addr> {
    let (host, port) = call::place(url)?;
    let unknown = || format!("{url} cannot be reached");
    let mut found = tokio::net::lookup_host((host.as_str(), port)).await.with_context(unknown)?;
    let target =
        found.find(SocketAddr::is_ipv4).ok_or_else(|| anyhow!("{host} has no IPv4 address"))?;
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(target).await.with_context(unknown)?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => bail!("{address} is no IPv4 address: name one with --advertise"),
    }
}

async fn ask(caller: &Caller, url: &str, asked: &JoinRequest) -> Result<JoinAnswer> {
    let body = serde_json::to_value(asked)?;
    for attempt in 1.. {
        let error = match caller.call(url, Method::POST, PATH, &body).await {
            Ok(answer) => {
                return serde_json::from_value(answer).with_context(|| {
                    format!("the answer of {url} is not understood: use the same dhow here")
                });
            }
            Err(error) => error,
        };
        // Several machines may be set up at once; they come one after the other.
        let busy = call::is_refusal(&error, 429);
        if !busy || attempt == TRIES {
            return Err(match error.downcast_ref::<Failure>() {
                Some(Failure::Refused { code: 401, .. }) => anyhow!(
                    "{url} does not know this token: take the one that 'dhow token' tells there now"
                ),
                Some(Failure::Refused { code: 403 | 404, .. }) => anyhow!(
                    "{url} cannot take servers in: its dhow is older, or it is something else"
                ),
                Some(Failure::Stranger { .. }) => anyhow!(
                    "{error}; nothing was sent: take address and token from the same platform"
                ),
                _ => error.context(format!("cannot join the platform at {url}")),
            });
        }
        tokio::time::sleep(AGAIN).await;
    }
    unreachable!("the attempts have no end of their own")
}

/// How to take back what an attempt has made.
struct Undo<'a> {
    caller: &'a Caller,
    url: &'a str,
    asked: &'a JoinRequest,
}

impl Undo<'_> {
    async fn everything(&self, data: &Path) {
        let body = serde_json::to_value(self.asked).unwrap_or(Value::Null);
        if let Err(error) = self.caller.call(self.url, Method::DELETE, PATH, &body).await {
            // What may have a vote in the cluster must keep its store.
            if !member::is_fresh(data) {
                tracing::warn!(
                    "this machine may be a server by now ({error:#}): 'dhow up' goes on, 'dhow down --purge' takes it out again"
                );
                return;
            }
            tracing::warn!(
                "the other servers still wait for this one ({error:#}): 'dhow join' again, or take it out there with 'etcdctl member remove'"
            );
        }
        undo::everything_made(data).await;
    }
}
