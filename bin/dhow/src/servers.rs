//! The platform's servers: who they are, who is there, who leads; how one comes and goes.
//!
//! Who belongs to the platform is what the store's members say. Who is there is a key below
//! [`PREFIX`] for each server, on a lease of the store that ends when its server does; keeping a
//! lease writes nothing. The control loops run on the server that leads the store: see decision 0019.

use crate::config::Config;
use crate::kubernetes_service::KubernetesService;
use crate::pki::Pki;
use crate::token::Token;
use crate::{files, member};
use anyhow::Result;
use bytes::Bytes;
use dhow_clock::{BoxFuture, SharedClock};
use dhow_kv::admin::{Admin, Member};
use dhow_kv::{Compare, Error, Kv, Op, Order, Range, Span, Target, Txn, WatchEvent, WatchRequest};
use dhow_objects::{Status, kinds};
use dhow_server::Store;
use dhow_state::{DeleteOptions, State, unless_gone};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Where servers say that they are there.
const PREFIX: &str = "/dhow/servers/";

/// Which machine has which pod addresses: a key for each range, with the machine's name. They are
/// claimed here, because two servers may take in one machine each.
const RANGES: &str = "/dhow/pods/";

/// How long a server that says nothing counts as there, in seconds.
const LIFE: i64 = 10;

/// How often a server says that it is there.
const PULSE: Duration = Duration::from_secs(3);

/// Pause after the store did not take something.
const AGAIN: Duration = Duration::from_secs(1);

/// A server as it tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Where its Kubernetes API is reached.
    pub api: SocketAddr,
    /// Its version.
    pub version: String,
}

/// Who is there, by name.
pub type Present = BTreeMap<String, Server>;

/// What a machine says that wants to join, and where it says it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinRequest {
    /// The version of dhow that runs there.
    pub version: String,
    /// The name that it is to have.
    pub name: String,
    /// Where the other servers will reach its store.
    pub peer: String,
}

/// What it is told.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinAnswer {
    /// Settings that all servers share, as in `config.json`.
    pub cluster_cidr: Ipv4Net,
    /// As above.
    pub service_cidr: Ipv4Net,
    /// As above.
    pub domain: String,
    /// The port of the Kubernetes API.
    pub api_port: u16,
    /// The keys that all servers share.
    pub keys: crate::pki::Keys,
    /// Where the stores of the servers are reached.
    pub peers: Vec<String>,
    /// The addresses that the machine may give to its pods.
    pub pod_cidr: Ipv4Net,
}

/// Where a server remembers how the others are reached.
pub fn file(data: &Path) -> PathBuf {
    data.join("servers.json")
}

/// This version of dhow.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The platform's servers as one of them sees and changes them.
pub struct Servers {
    pub(crate) store: Arc<Store>,
    pub(crate) state: State,
    pub(crate) kv: Kv,
    pub(crate) clock: SharedClock,
    pub(crate) config: Config,
    pub(crate) pki: Arc<Pki>,
    pub(crate) token: Token,
    /// This server as it tells of itself.
    pub(crate) own: Server,
    /// The service in front of all of them.
    pub(crate) service: KubernetesService,
    /// The others' addresses are kept here, for `dhow down --purge` of a server that does not run.
    pub(crate) file: PathBuf,
    pub(crate) present: watch::Sender<Present>,
    /// Told when the first other server joins.
    pub(crate) several: Notify,
}

fn conflict(message: String) -> Status {
    Status::new(409, "Conflict", message)
}

fn busy(message: String) -> Status {
    Status::new(429, "TooManyRequests", message)
}

fn understood(request: Value) -> Result<JoinRequest, Status> {
    serde_json::from_value(request).map_err(|error| Status::bad_request(error.to_string()))
}

/// What to tell a person when the store does not take a change of the members.
fn refused(error: Error) -> Status {
    match error {
        Error::TooManyLearners => {
            busy("another server is joining just now: try again when it has".into())
        }
        Error::Unhealthy
        | Error::NotEnoughStarted
        | Error::Timeout
        | Error::NoLeader
        | Error::LeaderChanged => Status::unavailable(format!(
            "the servers cannot agree ({error}): more than half of them must run and reach each other"
        )),
        other => Status::internal(other),
    }
}

impl Servers {
    async fn members(&self) -> Result<Vec<Member>, Status> {
        self.store.members(true).await.map_err(refused)
    }

    /// Whether a machine may become a server as it wants; `Some` when it was taken in before.
    fn check(&self, request: &JoinRequest, members: &[Member]) -> Result<Option<u64>, Status> {
        let JoinRequest { version, name, peer } = request;
        if version != VERSION {
            return Err(conflict(format!(
                "the servers run dhow {VERSION} and this machine has {version}: install {VERSION} here"
            )));
        }
        let own = members.iter().find(|member| member.id == self.store.identity().member_id);
        if own.is_none_or(|own| own.peer_urls.is_empty()) {
            return Err(conflict(format!(
                "server {} does not listen for other servers: start it again with --peer-listen IP:PORT",
                self.config.name
            )));
        }
        if let Some(there) = members.iter().find(|member| member.peer_urls.contains(peer)) {
            if !there.name.is_empty() {
                return Err(conflict(format!(
                    "server {} is there already at {peer}: start it with 'dhow up' on its machine, or take it out first with 'dhow down --purge' there or 'etcdctl member remove {:x}' here",
                    there.name, there.id
                )));
            }
            return Ok(Some(there.id));
        }
        let taken = members.iter().any(|member| member.name == *name)
            || self.state.cached(&kinds::NODE, "", name).is_some();
        if taken {
            return Err(conflict(format!(
                "a machine named {name} is part of the platform already: choose another name with --name"
            )));
        }
        if let Some(learner) = members.iter().find(|member| member.learner) {
            return Err(busy(format!(
                "the server at {} is joining just now: try again when it has, or give it up with 'etcdctl member remove {:x}'",
                learner.peer_urls.join(","),
                learner.id
            )));
        }
        Ok(None)
    }

    async fn take_in(&self, request: Value) -> Result<Value, Status> {
        let request = understood(request)?;
        let members = self.members().await?;
        let members = match self.check(&request, &members)? {
            Some(_) => members,
            None => {
                let added = self.store.member_add(vec![request.peer.clone()], true).await;
                let (added, members) = added.map_err(refused)?;
                tracing::info!(
                    name = request.name,
                    peer = request.peer,
                    member = format!("{:x}", added.id),
                    "a server joins"
                );
                members
            }
        };
        let pod_cidr = self.give_range(&request.name).await?;
        // From now on there are several.
        self.several.notify_one();
        let peers = members.iter().filter(|member| !member.learner);
        let answer = JoinAnswer {
            cluster_cidr: self.config.cluster_cidr,
            service_cidr: self.config.service_cidr,
            domain: self.config.domain.clone(),
            api_port: self.own.api.port(),
            keys: self.pki.keys().map_err(Status::internal)?,
            peers: peers.flat_map(|member| member.peer_urls.clone()).collect(),
            pod_cidr,
        };
        serde_json::to_value(&answer).map_err(Status::internal)
    }

    /// Gives a machine the first range of pod addresses that nobody has; or the one that it has.
    async fn give_range(&self, name: &str) -> Result<Ipv4Net, Status> {
        let claims = self.ranges().await?;
        if let Some((range, _)) = claims.iter().find(|(_, owner)| *owner == name) {
            return Ok(*range);
        }
        // The first machine has never claimed its own.
        let first = Ipv4Net::new_assert(self.config.cluster_cidr.network(), 24);
        let all =
            self.config.cluster_cidr.subnets(24).map_err(|e| Status::internal(e.to_string()))?;
        for range in all.filter(|range| *range != first && !claims.contains_key(range)) {
            let key = Bytes::from(format!("{RANGES}{range}"));
            let absent = Compare {
                span: Span::Key(key.clone()),
                order: Order::Equal,
                target: Target::CreateRevision(0),
            };
            let success = vec![Op::put(key, name.to_owned())];
            let claim = Txn { compare: vec![absent], success, failure: Vec::new() };
            if self.kv.txn(claim).await.map_err(refused)?.succeeded {
                return Ok(range);
            }
        }
        Err(conflict(format!(
            "all of {} is given to machines: there is no range of pod addresses left",
            self.config.cluster_cidr
        )))
    }

    async fn ranges(&self) -> Result<BTreeMap<Ipv4Net, String>, Status> {
        let found = self.kv.range(Range::all(Span::prefix(RANGES))).await.map_err(refused)?;
        let claim = |kv: &dhow_kv::KeyValue| {
            let range = std::str::from_utf8(kv.key.get(RANGES.len()..)?).ok()?.parse().ok()?;
            Some((range, String::from_utf8_lossy(&kv.value).into_owned()))
        };
        Ok(found.kvs.iter().filter_map(claim).collect())
    }

    /// Forgets what was kept for a machine that is gone.
    async fn release(&self, name: &str) -> Result<(), Status> {
        let mut success = vec![Op::delete(format!("{PREFIX}{name}"))];
        let ranges = self.ranges().await?.into_iter().filter(|(_, owner)| owner == name);
        success.extend(ranges.map(|(range, _)| Op::delete(format!("{RANGES}{range}"))));
        self.kv.txn(Txn { success, ..Txn::default() }).await.map_err(refused)?;
        Ok(())
    }

    async fn forget(&self, request: Value) -> Result<Value, Status> {
        let request = understood(request)?;
        let members = self.members().await?;
        let its = |member: &&Member| member.peer_urls.contains(&request.peer);
        if let Some(member) = members.iter().find(its) {
            if !member.learner {
                return Err(conflict(format!("{} is a server by now", request.name)));
            }
            self.store.member_remove(member.id).await.map_err(refused)?;
            self.release(&request.name).await?;
            tracing::info!(name = request.name, "a server gave up joining");
        }
        Ok(json!({}))
    }

    async fn tell(&self) -> Result<Value, Status> {
        // What this server knows: a person wants to see it just when the others do not answer.
        let mut members = self.store.members(false).await.map_err(refused)?;
        members.sort_by(|one, other| one.name.cmp(&other.name));
        let leader = self.store.pulse().leader;
        let own = self.store.identity().member_id;
        let present = self.present.borrow().clone();
        let items: Vec<Value> = members
            .iter()
            .map(|member| {
                let server = match member.id == own {
                    true => Some(&self.own),
                    false => present.get(&member.name),
                };
                let role = match member {
                    member if member.id == leader => "leader",
                    member if member.learner => "learner",
                    _ => "voter",
                };
                json!({
                    "name": member.name, "id": format!("{:x}", member.id), "role": role,
                    "present": server.is_some(), "api": server.map(|server| server.api),
                    "peers": member.peer_urls, "version": server.map(|server| &server.version),
                })
            })
            .collect();
        Ok(json!({"items": items}))
    }

    async fn take_out(&self, name: &str) -> Result<Value, Status> {
        let members = self.members().await?;
        match members.iter().find(|member| member.name == name) {
            Some(member) => {
                self.store.member_remove(member.id).await.map_err(refused)?;
                tracing::info!(name, "a server was taken out of the platform");
            }
            // One that was given up may still be known by its machine.
            None if self.state.cached(&kinds::NODE, "", name).is_some() => {}
            None => {
                let told = format!("there is no server named {name}");
                return Err(Status::new(404, "NotFound", told));
            }
        }
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        let actor = dhow_state::platform();
        unless_gone(self.state.delete(&actor, &kinds::NODE, "", name, &options).await)?;
        // Nobody else would ever say that its pods have ended.
        for pod in self.state.view::<Pod>(&kinds::POD).list() {
            let bound =
                pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(name));
            if let (true, Some(namespace), Some(pod)) =
                (bound, &pod.metadata.namespace, &pod.metadata.name)
            {
                let kind = &kinds::POD;
                unless_gone(self.state.delete(&actor, kind, namespace, pod, &options).await)?;
            }
        }
        // Last: until its pods are forgotten, nobody may have their addresses.
        self.release(name).await?;
        Ok(json!({}))
    }
}

impl dhow_door_kube::Servers for Servers {
    fn knows(&self, token: &str) -> bool {
        self.token.is(token)
    }

    fn join(&self, request: Value) -> BoxFuture<'_, Result<Value, Status>> {
        Box::pin(self.take_in(request))
    }

    fn withdraw(&self, request: Value) -> BoxFuture<'_, Result<Value, Status>> {
        Box::pin(self.forget(request))
    }

    fn list(&self) -> BoxFuture<'_, Result<Value, Status>> {
        Box::pin(self.tell())
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(self.take_out(name))
    }
}

impl Servers {
    /// Says that this server is there, from the moment that there are others, until `stop`; then
    /// that it is not.
    pub async fn announce(self: Arc<Self>, stop: CancellationToken) {
        while member::is_alone(&self.store) {
            tokio::select! {
                () = self.several.notified() => {}
                () = stop.cancelled() => return,
            }
        }
        let mut lease = 0;
        loop {
            let pause = match self.keep(&mut lease).await {
                Ok(()) => PULSE,
                Err(error) => {
                    tracing::debug!(%error, "the others are not told that this server is there");
                    AGAIN
                }
            };
            tokio::select! {
                () = self.clock.sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        // Otherwise they would find out a little later.
        let revoke = self.kv.lease_revoke(lease);
        let _ = tokio::time::timeout(AGAIN, revoke).await;
    }

    async fn keep(&self, lease: &mut i64) -> Result<(), Error> {
        if *lease != 0 && self.kv.lease_keep_alive(*lease).await?.ttl > 0 {
            return Ok(());
        }
        *lease = self.kv.lease_grant(0, LIFE).await?.id;
        let value = serde_json::to_vec(&self.own).unwrap_or_default();
        let put = Op::Put {
            key: format!("{PREFIX}{}", self.config.name).into(),
            value: value.into(),
            lease: *lease,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        self.kv.txn(Txn { success: vec![put], ..Txn::default() }).await?;
        Ok(())
    }

    /// Follows who is there, until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let following = async {
            loop {
                match self.follow_on().await {
                    Ok(()) => {}
                    Err(Error::Stopped) => return,
                    Err(error) => tracing::debug!(%error, "who is there is not known"),
                }
                self.clock.sleep(AGAIN).await;
            }
        };
        stop.run_until_cancelled(following).await;
    }

    async fn follow_on(&self) -> Result<(), Error> {
        let span = Span::prefix(PREFIX);
        let found = self.kv.range(Range { serializable: true, ..Range::all(span.clone()) }).await?;
        let name = |key: &[u8]| {
            String::from_utf8_lossy(key.get(PREFIX.len()..).unwrap_or_default()).into_owned()
        };
        let mut present: Present = found
            .kvs
            .iter()
            .filter_map(|kv| Some((name(&kv.key), serde_json::from_slice(&kv.value).ok()?)))
            .collect();
        let request = WatchRequest { span, start_revision: found.revision + 1, prev_kv: false };
        let mut watcher = self.kv.watch(request)?;
        loop {
            self.know(&present);
            match watcher.next().await {
                Some(WatchEvent::Events { events, .. }) => {
                    for event in events.iter() {
                        let name = name(&event.kv.key);
                        match serde_json::from_slice(&event.kv.value) {
                            Ok(server) if !event.deleted => drop(present.insert(name, server)),
                            _ => drop(present.remove(&name)),
                        }
                    }
                }
                Some(WatchEvent::Progress(_)) => {}
                Some(WatchEvent::Compacted(_)) => return Ok(()),
                None => return Err(Error::Stopped),
            }
        }
    }

    fn know(&self, present: &Present) {
        let others: BTreeMap<&String, SocketAddr> = present
            .iter()
            .filter(|(name, _)| **name != self.config.name)
            .map(|(name, server)| (name, server.api))
            .collect();
        if member::is_alone(&self.store) {
            let _ = std::fs::remove_file(&self.file);
        }
        // When nobody is heard of, the last known addresses are worth more than none.
        if !others.is_empty()
            && let Ok(bytes) = serde_json::to_vec_pretty(&others)
            && std::fs::read(&self.file).map_or(true, |known| known != bytes)
            && let Err(error) = files::write(&self.file, &bytes, 0o600)
        {
            tracing::warn!("{error:#}");
        }
        self.present.send_if_modified(|known| {
            let changed = known != present;
            if changed {
                known.clone_from(present);
            }
            changed
        });
    }

    /// Runs the control loops while this server leads the store, or is alone; until `stop`.
    pub async fn lead(self: Arc<Self>, stop: CancellationToken) {
        let own = self.store.identity().member_id;
        loop {
            let elected = async {
                loop {
                    let leader = self.store.pulse().leader;
                    if leader == own || member::is_alone(&self.store) {
                        return;
                    }
                    self.store.leader_changed(leader).await;
                }
            };
            tokio::select! {
                () = elected => {}
                () = stop.cancelled() => return,
            }
            tracing::info!("this server runs the control loops");
            let loops = dhow_loops::start(&self.state, &self.clock);
            let deposed = async {
                loop {
                    let leader = self.store.pulse().leader;
                    // One that is alone may have no leader while its disk is full. It goes on.
                    if leader != own && !member::is_alone(&self.store) {
                        return;
                    }
                    self.store.leader_changed(leader).await;
                }
            };
            tokio::select! {
                () = deposed => tracing::info!("another server runs the control loops"),
                () = self.service.keep(self.present.subscribe(), &self.clock) => {}
                () = stop.cancelled() => {}
            }
            loops.shutdown().await;
            if stop.is_cancelled() {
                return;
            }
        }
    }
}

/// A leader that stops gives the others a new one before it goes.
pub async fn hand_over(admin: &dyn Admin, clock: &SharedClock) {
    let own = admin.identity().member_id;
    if admin.pulse().leader != own {
        return;
    }
    let Ok(members) = admin.members(false).await else { return };
    for member in members.iter().filter(|m| m.id != own && !m.learner && !m.name.is_empty()) {
        let moved = tokio::select! {
            moved = admin.move_leader(member.id) => moved.is_ok(),
            () = clock.sleep(Duration::from_secs(1)) => false,
        };
        if moved {
            tracing::info!(to = format!("{:x}", member.id), "leadership handed over");
            return;
        }
    }
}
