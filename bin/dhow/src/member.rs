//! The embedded store as a member: alone, or one of several servers that replicate it by Raft.
//!
//! Every server listens for others, over mutual TLS with certificates of the platform's authority.
//! One that is alone sends nothing and needs no time for it. One that has joined begins as a learner
//! and becomes a voter as soon as it has what the leader has; until then it serves nobody.

use crate::config::Config;
use crate::pki::Pki;
use crate::{etcd, pki};
use anyhow::{Context, Result, bail};
use dhow_clock::SharedClock;
use dhow_clock::disk::Real;
use dhow_kv::Error;
use dhow_kv::admin::Admin;
use dhow_peers::tls::{Settings, Trust};
use dhow_peers::{Address, Listener, Peers};
use dhow_server::{Cluster, Introduction, Options, Start, Store};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// The common name of the certificates that servers' stores show to each other. No other
/// certificate of the authority opens these doors.
const PEER: &str = "dhow-peer";

/// Where other servers are listened to when nothing was said.
pub const DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 2380);

/// How long a server that joins waits to be heard, and to hear of the leader.
const JOIN: Duration = Duration::from_secs(10);

/// Pause before the others are asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long a start waits before it says what it waits for.
const PATIENCE: Duration = Duration::from_secs(3);

/// A member's store, and its ways to the others.
pub struct Member {
    /// The store.
    pub store: Arc<Store>,
    /// The connections.
    pub peers: Arc<Peers>,
}

/// What a member is opened with.
pub struct Place<'a> {
    /// The data directory.
    pub data: &'a Path,
    /// The settings.
    pub config: &'a Config,
    /// The certificates.
    pub pki: &'a Pki,
    /// This machine's address towards others.
    pub address: Ipv4Addr,
    /// The port for other servers, if it could be taken.
    pub listener: Option<TcpListener>,
    /// Where etcd's clients reach this server.
    pub etcd: Option<SocketAddr>,
    /// Go on alone: the other servers are lost for good.
    pub force_new: bool,
}

/// Takes the port for other servers. One that nobody asked for by name and that somebody else has is
/// done without, as long as this server is alone.
///
/// # Errors
/// When a port that was asked for, or is needed, is taken.
pub async fn listen(config: &Config) -> Result<Option<TcpListener>> {
    if config.datastore.is_some() {
        return Ok(None);
    }
    let address = match config.peer_listen {
        Some(etcd::Listen::Off) => return Ok(None),
        Some(etcd::Listen::At(address)) => address,
        None => DEFAULT,
    };
    let advice = "free the port or choose another with --peer-listen";
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if config.peer_listen.is_none() && config.joined.is_none() => {
            tracing::warn!(%address, "other servers cannot join, the port is taken: {error}; {advice}");
            Ok(None)
        }
        Err(error) => Err(error)
            .with_context(|| format!("cannot listen on {address} for other servers: {advice}")),
    }
}

fn directory(data: &Path) -> PathBuf {
    data.join("store")
}

/// Whether the data directory holds no store yet.
pub fn is_fresh(data: &Path) -> bool {
    std::fs::read_dir(directory(data)).map_or(true, |mut entries| entries.next().is_none())
}

/// Opens the store. One of several is a voter and knows a leader when this returns.
///
/// # Errors
/// What is damaged or missing, or who cannot be reached, and what to do.
pub async fn open(place: Place<'_>, clock: &SharedClock) -> Result<Member> {
    let Place { data, config, pki, address, listener, etcd, force_new } = place;
    let addresses = [address.into(), IpAddr::V4(Ipv4Addr::LOCALHOST)];
    pki.peer(PEER, &addresses, clock.now())?;
    let keys = data.join("pki");
    let trust = Trust::new(Settings {
        certificate: keys.join("peer.crt"),
        key: keys.join("peer.key"),
        authority: Some(keys.join("ca.crt")),
        demand_client: true,
        allowed_names: vec![PEER.to_owned()],
        only_13: true,
        ..Settings::default()
    });
    let port = listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let url =
        |port: SocketAddr| format!("https://{}", SocketAddr::new(address.into(), port.port()));
    let urls: Vec<String> = port.into_iter().map(url).collect();
    let peers = Peers::new(dhow_peers::Config {
        clock: clock.clone(),
        urls: urls.clone(),
        trust: Some(trust.clone()),
    });
    let listens = listener.is_some();
    if let Some(listener) = listener {
        peers.listen(Listener::Tcp(listener), true)?;
    }
    let fresh = is_fresh(data);
    let start = match &config.joined {
        None if fresh => Start::New,
        Some(joined) if fresh => {
            Start::Existing(Some(introduce(&joined.peers, &urls, &trust, clock).await?))
        }
        _ => Start::Existing(None),
    };
    let transport: Arc<Peers> = peers.clone();
    let mut cluster =
        Cluster::new(&config.name, vec![(config.name.clone(), urls.clone())], transport);
    cluster.client_urls = etcd.into_iter().map(url).collect();
    cluster.token = pki.fingerprint()?;
    cluster.start = start;
    let options =
        Options { secret: Some(pki::random()?), cluster: Some(cluster), ..Options::default() };
    if force_new {
        force(data, clock, &options)?;
    }
    let store = Store::open(&directory(data), clock.clone(), options)?;
    let identity = store.identity();
    let local: Arc<dyn dhow_peers::Local> = store.clone();
    peers.start(identity, Arc::downgrade(&local));
    let member = Member { store, peers };
    let settled = async {
        if member.is_alone() {
            return move_alone(&member.store, &urls).await;
        }
        if !listens {
            bail!(
                "this server is one of several and cannot listen for the others: free port {} or choose another with --peer-listen",
                DEFAULT.port()
            );
        }
        settle(&member.store, fresh, clock).await?;
        warn_moved(&member.store, &urls);
        Ok(())
    };
    if let Err(error) = settled.await {
        member.shutdown().await;
        return Err(error);
    }
    Ok(member)
}

/// Makes this member the only one, with all that it has.
fn force(data: &Path, clock: &SharedClock, options: &Options) -> Result<()> {
    if is_fresh(data) {
        bail!("--force-new-cluster goes on with a store, and {} has none", data.display());
    }
    let mut options = options.clone();
    if let Some(cluster) = &mut options.cluster {
        cluster.start = Start::New;
    }
    let kept = dhow_server::force_new(Real::shared(), &directory(data), clock, &options)
        .context("cannot go on alone")?;
    tracing::warn!(
        revision = kept.revision,
        keys = kept.keys,
        "this server goes on alone, with what it has; 'dhow down --purge' the others before they join anew"
    );
    Ok(())
}

impl Member {
    /// Whether there are no other servers.
    pub fn is_alone(&self) -> bool {
        is_alone(&self.store)
    }

    /// Ends the store and the connections.
    pub async fn shutdown(&self) {
        self.store.shutdown().await;
        self.peers.shutdown().await;
    }
}

/// Whether a store has no other members.
pub fn is_alone(store: &Store) -> bool {
    store.introduction().members.len() == 1
}

/// Asks the servers that are there already, until this one is among them.
async fn introduce(
    others: &[String],
    own: &[String],
    trust: &Trust,
    clock: &SharedClock,
) -> Result<Introduction> {
    let addresses: Vec<Address> = others.iter().filter_map(|url| url.parse().ok()).collect();
    let until = clock.monotonic() + JOIN;
    loop {
        let problem = match dhow_peers::ask(&addresses, Some(trust), clock).await {
            Ok(told) if told.has_run(own) => bail!(
                "this server's store is gone, but the others know it: take it out with 'etcdctl member remove' on one of them, purge here and join anew"
            ),
            Ok(told) if told.members.iter().any(|member| member.peer_urls == own) => {
                return Ok(told);
            }
            Ok(_) => "they do not know this server; purge here and join anew".to_owned(),
            Err(error) => error.to_string(),
        };
        // One that was asked may be a moment behind, or be starting.
        if clock.monotonic() >= until {
            bail!("the servers at {} do not let this one in: {problem}", others.join(", "));
        }
        clock.sleep(AGAIN).await;
    }
}

/// Tells the store where others will find this server, if that has changed while nobody looked.
async fn move_alone(store: &Store, urls: &[String]) -> Result<()> {
    let id = store.identity().member_id;
    let own = store.introduction().members.into_iter().find(|member| member.id == id);
    let moved = own.is_some_and(|own| !own.peer_urls.is_empty() && own.peer_urls != urls);
    if moved && !urls.is_empty() {
        // Nobody needs it before the first one joins; a full disk is no reason not to start.
        if let Err(error) = store.member_update(id, urls.to_vec()).await {
            tracing::warn!(%error, "the address for other servers could not be changed");
        }
    }
    Ok(())
}

fn warn_moved(store: &Store, urls: &[String]) {
    let id = store.identity().member_id;
    let own = store.introduction().members.into_iter().find(|member| member.id == id);
    if let Some(own) = own.filter(|own| own.peer_urls != urls) {
        tracing::warn!(
            known = own.peer_urls.join(","),
            now = urls.join(","),
            "the other servers look for this one at another address: use 'etcdctl member update {id:x} --peer-urls=...' on one of them"
        );
    }
}

/// Waits until this member is a voter and knows a leader. `fresh`: it has joined just now, and
/// somebody waits to be told what is wrong.
async fn settle(store: &Arc<Store>, fresh: bool, clock: &SharedClock) -> Result<()> {
    let admin: &dyn Admin = &**store;
    let led = async {
        while admin.pulse().leader == 0 {
            admin.leader_changed(0).await;
        }
    };
    let gone = store.removed();
    let waited = async {
        clock.sleep(PATIENCE).await;
        tracing::warn!(
            "waiting for the other servers: more than half of all must run and reach each other"
        );
        if fresh {
            clock.sleep(JOIN).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    let removed = "this server was taken out of the cluster: 'dhow down --purge' it, and join anew if it is to come back";
    tokio::select! {
        () = led => {}
        () = gone => bail!(removed),
        () = waited => bail!(
            "no other server reaches this one at its address and port for servers: open the way there, or name another address with --advertise"
        ),
    }
    let mut said = false;
    let until = clock.monotonic() + PATIENCE;
    while admin.pulse().learner {
        match admin.member_promote(admin.identity().member_id).await {
            Ok(_) | Err(Error::NotLearner) => {}
            Err(Error::MemberNotFound | Error::Stopped) => bail!(removed),
            Err(error) => {
                if clock.monotonic() > until && !std::mem::replace(&mut said, true) {
                    tracing::warn!("not yet a voter: {error}");
                }
            }
        }
        // It is told by the others when it has become one, and the next attempt says so too.
        clock.sleep(AGAIN).await;
    }
    Ok(())
}
