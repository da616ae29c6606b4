//! The wiring of a store that runs alone: members, doors, compaction; from start to stop.

use super::settings::{Settings, Tls};
use super::{certificates, compaction, corruption, snapshot};
use anyhow::{Context, Result, bail};
use dhow_clock::SharedClock;
use dhow_door_etcd::{Door, Security};
use dhow_kv::Kv;
use dhow_kv::admin::{Admin, Member, SharedAdmin};
use dhow_peers::tls::Trust;
use dhow_peers::{Address, Listener, Peers, ask};
use dhow_server::{Cluster, Introduction, Options, Start, Store};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long a member that joins waits to be heard of.
const JOIN: Duration = Duration::from_secs(10);

/// Voters count as healthy that have been heard of for so long, as in etcd.
const SETTLED: Duration = Duration::from_secs(5);

/// How long to wait before looking again whether the others know of this member.
const TOLD: Duration = Duration::from_millis(20);

/// How long requests that are under way may take to end.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs until it is told to stop, or removed from its cluster.
///
/// # Errors
/// What is missing, taken or damaged, and what to do.
pub async fn run(mut settings: Settings) -> Result<()> {
    let clock = dhow_clock::System::shared();
    let mut stop = Stop::new()?;
    let directory = directory(&settings.data_dir);
    let mut fresh = !has_store(&directory);
    tracing::info!(
        name = settings.name,
        data_dir = %settings.data_dir.display(),
        fresh,
        "Initialize and start etcd server"
    );
    private(&settings.data_dir)?;
    if fresh && snapshot::has_etcd(&settings.data_dir) {
        snapshot::take_over(&settings, &directory)?;
        fresh = false;
    }
    if settings.force_new && !fresh {
        snapshot::force_new(&settings, &directory)?;
    }
    match settings.srv.take() {
        Some(srv) if fresh => match stop.or(srv.find(&mut settings)).await {
            Some(found) => found?,
            None => return Ok(()),
        },
        Some(_) => tracing::warn!("--discovery-srv is ignored since cluster already initialized"),
        None => {}
    }
    if !fresh && settings.discovery.is_some() {
        tracing::warn!(
            "discovery token is ignored since cluster already initialized; valid logs are found"
        );
    }
    let client_trust = trust(settings.client_tls.as_ref(), &settings.listen_clients, &clock)?;
    let peer_trust = trust(settings.peer_tls.as_ref(), &settings.listen_peers, &clock)?;

    // The ports before anything that leaves a trace: they are what is taken most often.
    let peers = Peers::new(dhow_peers::Config {
        clock: clock.clone(),
        urls: settings.advertise_peers.clone(),
        trust: peer_trust.clone(),
    });
    for address in &settings.listen_peers {
        peers.listen(listen(address).await?, address.tls)?;
        tracing::info!(%address, "serving peer traffic");
    }
    let mut doors = Vec::new();
    let clients = settings.listen_clients.iter().map(|address| (address, false));
    let pages = settings.listen_metrics.iter().map(|address| (address, true));
    let all: Vec<(&Address, bool)> = clients.chain(pages).collect();
    for (at, (address, pages)) in all.iter().enumerate() {
        // One port can speak both, each client as it likes.
        let same =
            |other: &&(&Address, bool)| (&other.0.place, other.1) == (&address.place, *pages);
        if all[..at].iter().any(|other| same(&other)) {
            continue;
        }
        let secure = all.iter().filter(same).any(|(address, _)| address.tls);
        let plain = all.iter().filter(same).any(|(address, _)| !address.tls);
        let security = match &client_trust {
            _ if !secure => Security::Plain,
            Some(trust) if plain => Security::Either(trust.server()?),
            Some(trust) => Security::Tls(trust.server()?),
            None if *pages => bail!(
                "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url {address}"
            ),
            None => bail!("{address} is https: name a certificate with --cert-file and --key-file"),
        };
        doors.push((*address, listen(address).await?, security, *pages));
    }

    let begin = match (fresh, settings.existing) {
        (false, _) => Start::Existing(None),
        (true, true) => {
            let told = stop.or(introduce(&settings, peer_trust.as_deref(), &clock)).await;
            match told {
                Some(told) => Start::Existing(Some(told?)),
                None => return Ok(()),
            }
        }
        (true, false) => {
            if let Some(discovery) = settings.discovery.take() {
                let Settings { name, advertise_peers: urls, .. } = &settings;
                let id = dhow_server::member_id(urls, discovery.token(), None);
                let found = stop.or(discovery.join(id, name, urls, &clock)).await;
                let Some(found) = found else { return Ok(()) };
                settings.initial = found?;
            }
            settings.check_first()?;
            Start::New
        }
    };
    let store = Store::open(&directory, clock.clone(), options(&settings, begin, &peers)?)?;
    let identity = Admin::identity(&*store);
    let local: Arc<dyn dhow_peers::Local> = store.clone();
    peers.start(identity, Arc::downgrade(&local));
    drop(local);
    tracing::info!(
        local_member_id = format!("{:x}", identity.member_id),
        cluster_id = format!("{:x}", identity.cluster_id),
        local_server_version = dhow_door_etcd::Config::default().server_version,
        "starting etcd server"
    );

    let mut serving = JoinSet::new();
    let end = CancellationToken::new();
    let waited = async {
        tokio::select! {
            () = ready(&*store, &settings, &clock) => {}
            () = clock.sleep(settings.wait_ready) => {
                tracing::warn!("timed out waiting for the ready notification");
            }
        }
    };
    let ready = stop.or(waited).await.is_some();
    let mut compacting = JoinSet::new();
    let checks = settings.checks;
    if ready && checks.initially {
        corruption::initially(&store).await?;
    }
    if ready {
        let (kv, admin): (Kv, SharedAdmin) = (Kv::new(store.clone()), store.clone());
        announce(&settings, identity.cluster_id, identity.member_id);
        if let Some(retention) = settings.retention {
            compacting.spawn(compaction::run(kv.clone(), admin.clone(), clock.clone(), retention));
        }
        compacting.spawn(corruption::run(store.clone(), clock.clone(), checks));
        let door = Door::new(kv, admin, door_config(&settings));
        for (address, listener, security, pages) in doors {
            let traffic = if pages { "metrics" } else { "grpc+http" };
            let secure = !matches!(security, Security::Plain);
            tracing::info!(%address, traffic, secure, "serving client traffic");
            serving.spawn(serve(door.clone(), listener, security, pages, end.clone()));
        }
        tokio::select! {
            reason = stop.told() => {
                tracing::info!(signal = reason, "received signal; shutting down");
            }
            () = store.removed() => {
                tracing::warn!("the member has been permanently removed from the cluster; shutting down");
            }
        }
    }
    compacting.shutdown().await;
    crate::servers::hand_over(&*store, &clock).await;
    end.cancel();
    let drained = async { while serving.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    store.shutdown().await;
    peers.shutdown().await;
    tracing::info!(name = settings.name, "closed etcd server");
    Ok(())
}

/// Where the store lies in a data directory, beside what etcd itself would put there.
pub fn directory(data: &Path) -> PathBuf {
    data.join("member").join("store")
}

/// Whether a store was begun there.
pub fn has_store(directory: &Path) -> bool {
    let holds = |path: &Path| std::fs::read_dir(path).is_ok_and(|mut files| files.next().is_some());
    // A change to a new cluster was interrupted: the old store is put aside, the new one has its
    // name yet to come.
    let between = || {
        let beside = directory.parent().and_then(|parent| std::fs::read_dir(parent).ok());
        let mut names = beside.into_iter().flatten().flatten().map(|entry| entry.file_name());
        holds(&directory.with_file_name("store.new"))
            && names.any(|name| name.to_string_lossy().starts_with("store.before-"))
    };
    holds(directory) || between()
}

/// A data directory is nobody else's.
pub fn private(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the data directory {}", dir.display()))
}

/// The certificates of one kind of connections.
fn trust(tls: Option<&Tls>, listen: &[Address], clock: &SharedClock) -> Result<Option<Arc<Trust>>> {
    let Some(tls) = tls else { return Ok(None) };
    certificates::make(tls, listen, clock.now())?;
    Ok(Some(Trust::new(tls.settings.clone())))
}

async fn listen(address: &Address) -> Result<Listener> {
    address.listen().await.with_context(|| {
        format!("cannot listen on {address}: free it or choose another with --listen-client-urls, --listen-peer-urls or --listen-metrics-urls")
    })
}

fn options(settings: &Settings, start: Start, peers: &Arc<Peers>) -> Result<Options> {
    let mut options = Options {
        quota_bytes: settings.quota,
        // As etcd: half as long again as an election takes, in whole seconds.
        min_lease_ttl: i64::try_from((settings.election * 3 / 2).as_millis().div_ceil(1000))
            .unwrap_or(2),
        // History stays until somebody compacts it.
        retention: None,
        quota_alarm: true,
        compaction_checksums: true,
        cluster: Some(Cluster {
            name: settings.name.clone(),
            peer_urls: settings.advertise_peers.clone(),
            client_urls: settings.advertise_clients.clone(),
            initial: settings.initial.clone(),
            token: settings.token.clone(),
            start,
            heartbeat: settings.heartbeat,
            election: settings.election,
            strict_reconfig_check: settings.strict_reconfig_check,
            settled: SETTLED,
            max_learners: settings.max_learners,
            transport: peers.clone(),
        }),
        log_dir: settings.wal_dir.clone(),
        ..Options::default()
    };
    options.secret = Some(crate::pki::random()?);
    options.token_ttl = settings.token_ttl;
    options.limits.txn_ops = settings.max_txn_ops;
    options.limits.request_bytes = settings.max_request_bytes;
    Ok(options)
}

fn door_config(settings: &Settings) -> dhow_door_etcd::Config {
    let asks_clients = settings.client_tls.as_ref().is_some_and(|tls| tls.settings.demand_client);
    dhow_door_etcd::Config {
        max_request_bytes: settings.max_request_bytes,
        max_txn_ops: settings.max_txn_ops,
        watch_progress_interval: settings.progress,
        election_timeout: settings.election,
        client_cert_auth: asks_clients,
        tokens: settings.tokens.clone(),
        bcrypt_cost: settings.bcrypt_cost,
        max_concurrent_streams: (settings.max_concurrent_streams < u32::MAX)
            .then_some(settings.max_concurrent_streams),
        gateway: settings.gateway,
        slow: settings.slow,
        extensive: settings.extensive,
        ..dhow_door_etcd::Config::default()
    }
}

/// Asks the other members who they are, until this one is among them.
async fn introduce(
    settings: &Settings,
    trust: Option<&Trust>,
    clock: &SharedClock,
) -> Result<Introduction> {
    let others: Vec<Address> = settings
        .initial
        .iter()
        .flat_map(|(_, urls)| urls)
        .filter(|url| !settings.advertise_peers.contains(url))
        .filter_map(|url| url.parse().ok())
        .collect();
    if others.is_empty() {
        bail!("--initial-cluster-state existing needs other members in --initial-cluster");
    }
    let until = clock.monotonic() + JOIN;
    loop {
        let problem = match ask(&others, trust, clock).await {
            Ok(told) if knows(&told.members, settings) => return Ok(told),
            Ok(_) => format!(
                "the cluster does not know a member at {}: add it with member add, and give the same URLs to --initial-advertise-peer-urls",
                settings.advertise_peers.join(",")
            ),
            Err(error) => error.to_string(),
        };
        // A member that was asked may be a moment behind, or still be starting.
        if clock.monotonic() >= until {
            bail!("cannot fetch cluster info from peer urls: {problem}");
        }
        clock.sleep(Duration::from_millis(250)).await;
    }
}

fn knows(members: &[Member], settings: &Settings) -> bool {
    let mut own = settings.advertise_peers.clone();
    own.sort();
    members.iter().any(|member| {
        let mut urls = member.peer_urls.clone();
        urls.sort();
        urls == own
    })
}

/// Completes when the cluster has a leader, and all know of this member's start.
async fn ready(admin: &dyn Admin, settings: &Settings, clock: &SharedClock) {
    let own = admin.identity().member_id;
    loop {
        while admin.pulse().leader == 0 {
            admin.leader_changed(0).await;
        }
        // It is told through the log: whoever sees that has caught up with it.
        let members = admin.members(true).await.unwrap_or_default();
        let is_told = |member: &Member| member.id == own && member.name == settings.name;
        if members.iter().any(is_told) {
            return;
        }
        clock.sleep(TOLD).await;
    }
}

/// What etcd says when it is ready, in the words that programs wait for: those of 3.4, and of 3.5
/// and later.
fn announce(settings: &Settings, cluster: u64, member: u64) {
    tracing::info!(cluster_version = "3.7", "enabled capabilities for version");
    tracing::info!(
        local_member_id = format!("{member:x}"),
        local_member_attributes = format!(
            "{{Name:{} ClientURLs:[{}]}}",
            settings.name,
            settings.advertise_clients.join(" ")
        ),
        cluster_id = format!("{cluster:x}"),
        "published local member to cluster through raft"
    );
    tracing::info!("ready to serve client requests");
}

/// Serves one address until the end.
async fn serve(
    door: Door,
    listener: Listener,
    security: Security,
    pages: bool,
    end: CancellationToken,
) {
    match listener {
        Listener::Tcp(listener) if pages => door.serve_pages(listener, security, end).await,
        Listener::Tcp(listener) => door.serve(listener, security, end).await,
        Listener::Unix(listener) if pages => door.serve_pages_unix(listener, security, end).await,
        Listener::Unix(listener) => door.serve_unix(listener, security, end).await,
    }
}

/// The signals that end the program.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn told(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "terminated",
            _ = self.interrupt.recv() => "interrupt",
        }
    }

    /// The work's outcome, or `None` when the program is to end before.
    async fn or<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            _ = self.told() => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

    /// One request over HTTP/1.1; the answer's status.
    async fn ask(
        mut socket: impl AsyncRead + AsyncWrite + Unpin,
        method: &str,
        path: &str,
        body: &str,
    ) -> u16 {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn where_metrics_are_served_keys_are_not() {
        let store = Store::memory(dhow_clock::System::shared());
        let door = Door::new(Kv::new(store.clone()), store, dhow_door_etcd::Config::default());
        let dir = tempfile::tempdir().unwrap();
        let end = CancellationToken::new();
        let mut serving = JoinSet::new();
        for pages in [true, false] {
            let keys = if pages { 404 } else { 200 };
            let range = ("POST", "/v3/kv/range", r#"{"key":"Zm9v"}"#);
            let metrics = ("GET", "/metrics", "");

            let path = dir.path().join(format!("{pages}"));
            let listener = Listener::Unix(tokio::net::UnixListener::bind(&path).unwrap());
            serving.spawn(serve(door.clone(), listener, Security::Plain, pages, end.clone()));
            for ((method, page, body), status) in [(metrics, 200), (range, keys)] {
                let socket = tokio::net::UnixStream::connect(&path).await.unwrap();
                assert_eq!(ask(socket, method, page, body).await, status, "{page}, {pages}");
            }

            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            serving.spawn(serve(
                door.clone(),
                Listener::Tcp(listener),
                Security::Plain,
                pages,
                end.clone(),
            ));
            for ((method, page, body), status) in [(metrics, 200), (range, keys)] {
                let socket = tokio::net::TcpStream::connect(address).await.unwrap();
                assert_eq!(ask(socket, method, page, body).await, status, "{page}, {pages}");
            }
        }
        end.cancel();
        while serving.join_next().await.is_some() {}
    }
}
