//! The wiring: which parts run in this process, and what each is handed. No logic.

use crate::commands::images::images_dir;
use crate::config::Config;
use crate::kubernetes_service::KubernetesService;
use crate::member::{self, Member};
use crate::pki::{Identity, Pki, SERVER, ServerNames, Shown};
use crate::servers::{self, Present, Server, Servers};
use crate::{chronicle, client, datastore, etcd, files, renewal, runtime, token};
use anyhow::{Context, Result, bail};
use dhow_agent::Agent;
use dhow_clock::SharedClock;
use dhow_dataplane::Dataplane;
use dhow_door_kube::{Door, Version};
use dhow_door_node::{Compilers, NodeDoor, StreamRegistry};
use dhow_images::Images;
use dhow_loops::Loops;
use dhow_names::Names;
use dhow_runtime::Runtime;
use dhow_state::State;
use k8s_openapi::api::core::v1::NodeAddress;
use serde_json::json;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Ports that NodePort services may take.
const NODE_PORTS: (u16, u16) = (30_000, 32_767);

/// The files of the administrator's identity.
pub const ADMIN: &str = "admin";

/// A platform that answers.
pub struct Platform {
    /// The embedded store, unless the data are in an external one.
    member: Option<Member>,
    /// The control loops, where no other server could run them.
    loops: Option<Loops>,
    /// What runs on one server at a time, and what servers know of each other.
    among_servers: JoinSet<()>,
    agent: Arc<Agent>,
    serving: JoinSet<()>,
    stop: CancellationToken,
    clock: SharedClock,
    /// Held for as long as this process runs the data directory.
    _claim: File,
}

impl Platform {
    /// Starts every role over `data`. Returns when the API answers and the agent works. With
    /// `force_new` one of several servers goes on alone, because the others are lost.
    ///
    /// # Errors
    /// What is missing or taken, and what to do.
    pub async fn start(data: &Path, config: Config, claim: File, force_new: bool) -> Result<Self> {
        let clock = dhow_clock::System::shared();
        check_kernel()?;
        // The port before anything that leaves a trace: it is what is taken most often.
        let listener = listen(config.listen).await?;
        let etcd_listener = etcd::listen(&config).await?;
        let peer_listener = member::listen(&config).await?;
        let node_ip = node_ip(&config);
        Dataplane::check(&dataplane_config(&config, node_ip))?;
        let pki = Arc::new(Pki::open(&data.join("pki"), clock.now())?);
        let identity = pki.server(&server_names(&config, node_ip), clock.now())?;
        let shown = Shown::new(&pki, &identity)?;
        let admin = pki.client(ADMIN, "kubernetes-admin", "system:masters", clock.now())?;
        let shown_to_others = Shown::new(&pki, &admin)?;

        let place = member::Place {
            data,
            config: &config,
            pki: &pki,
            address: node_ip,
            listener: peer_listener,
            etcd: etcd_listener.as_ref().and_then(|listener| listener.local_addr().ok()),
            force_new,
        };
        let datastore::Opened { kv, member } = datastore::open(place, &clock).await?;
        let settings = kv.clone();
        // Before anything that only the configuration finds again; and not before it is known that the
        // store may be used.
        config.keep(data)?;
        // The slow starts are independent of each other.
        let (state, node) = tokio::join!(
            State::open(kv.clone(), clock.clone(), state_config(&config, &pki)?),
            open_node(data, &config, node_ip),
        );
        let (state, node) = (state?, node?);
        let api = SocketAddr::from((api_address(&config, node_ip), config.listen.port()));
        let service = KubernetesService::new(state.clone(), config.clone(), api);
        service.ensure().await?;
        if member.as_ref().is_none_or(Member::is_alone) {
            service.publish(&[]).await?;
        }
        let stop = CancellationToken::new();
        let mut among_servers = JoinSet::new();
        let (mut servers, mut loops) = (None, None);
        match &member {
            None => {
                loops = Some(dhow_loops::start(&state, &clock));
                let (stop, clock) = (stop.clone(), clock.clone());
                among_servers.spawn(async move {
                    let nobody = tokio::sync::watch::Sender::<Present>::default();
                    let kept = service.keep(nobody.subscribe(), &clock);
                    stop.run_until_cancelled(kept).await;
                });
            }
            Some(member) => {
                let own = Server { api, version: servers::VERSION.to_owned() };
                let these = Arc::new(Servers {
                    store: member.store.clone(),
                    state: state.clone(),
                    kv,
                    clock: clock.clone(),
                    config: config.clone(),
                    token: token::open(data, &pki)?,
                    pki: pki.clone(),
                    own,
                    service,
                    file: servers::file(data),
                    present: tokio::sync::watch::Sender::default(),
                    several: tokio::sync::Notify::new(),
                });
                among_servers.spawn(these.clone().follow(stop.clone()));
                among_servers.spawn(these.clone().announce(stop.clone()));
                among_servers.spawn(these.clone().lead(stop.clone()));
                servers = Some(these);
            }
        }

        let streams = StreamRegistry::default();
        let images = Images::open(&images_dir(data))?;
        let agent = agent(data, &config, node_ip, &state, node, images, &clock).await?;
        streams.register(&config.name, agent.clone());

        let door = Door::new(
            state.clone(),
            dhow_door_kube::Config {
                tls: pki.server_tls(shown.clone())?,
                version: Version::default(),
                streams: streams.resolver(),
                relay: match &servers {
                    Some(servers) => Some(relay(servers, &pki, shown_to_others.clone())?),
                    None => None,
                },
                servers: servers.map(|servers| servers as Arc<dyn dhow_door_kube::Servers>),
                service_host: format!("{node_ip}:{}", config.listen.port()),
                issuer: issuer(&config),
                clock: clock.clone(),
            },
        );
        let mut serving = JoinSet::new();
        serving.spawn(door.clone().serve_tls(listener, stop.clone()));
        serving.spawn(door.serve_unix(local_socket(data)?, stop.clone()));
        let exports = match &config.datastore {
            Some(datastore) => datastore.exports(),
            None => etcd::exports(etcd_listener.as_ref(), data),
        };
        if let (Some(listener), Some(member)) = (etcd_listener, &member) {
            let store = &member.store;
            serving.spawn(etcd::serve(listener, store, data, &pki, clock.now(), stop.clone())?);
        }
        watch_images(images_dir(data), agent.clone()).context("cannot follow the image store")?;
        write_client_files(data, &config, &pki.authority()?, &admin, &exports)?;
        let (place, of, authority) = (data.to_path_buf(), config.clone(), pki.authority()?);
        let client_files =
            move |admin: &Identity| write_client_files(&place, &of, &authority, admin, &exports);
        let shown = vec![(SERVER, shown), (ADMIN, shown_to_others)];
        let renewed = renewal::run(pki, shown, client_files, clock.clone());
        let chronicle = chronicle::keep(settings, clock.clone());
        let background = async { tokio::join!(renewed, chronicle) };
        let stopped = stop.clone();
        serving.spawn(async move { _ = stopped.run_until_cancelled(background).await });
        tracing::info!(node = config.name, address = %node_ip, api = %config.listen, "platform is up");
        Ok(Self { member, loops, among_servers, agent, serving, stop, clock, _claim: claim })
    }

    /// Runs until told to stop (SIGTERM or SIGINT). Containers go on.
    ///
    /// # Errors
    /// When signals cannot be heard.
    pub async fn run(mut self) -> Result<()> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let removed = async {
            match &self.member {
                Some(member) => member.store.removed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => tracing::info!("platform stops; containers go on"),
            _ = interrupt.recv() => tracing::info!("platform stops; containers go on"),
            () = removed => tracing::warn!(
                "this server was taken out of the platform and stops: 'dhow down --purge' removes what is left"
            ),
        }
        self.stop.cancel();
        self.agent.shutdown().await;
        if let Some(loops) = self.loops {
            loops.shutdown().await;
        }
        // Watches and streams end by the cancellation; whatever is left after that is cut off.
        let drained = async {
            while self.among_servers.join_next().await.is_some() {}
            while self.serving.join_next().await.is_some() {}
        };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), drained).await;
        if let Some(member) = self.member {
            servers::hand_over(&*member.store, &self.clock).await;
            member.shutdown().await;
        }
        Ok(())
    }
}

fn check_kernel() -> Result<()> {
    for missing in dhow_kernel::features::check() {
        let dhow_kernel::features::Missing { feature, consequence, fatal, evidence } = missing;
        if fatal {
            bail!(
                "this kernel lacks {feature} ({evidence}): {consequence}; dhow needs Linux 6.8 or newer with it"
            );
        }
        tracing::warn!(feature, consequence, evidence, "kernel feature missing");
    }
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for the Kubernetes API: free the port or choose another with --listen")
    })
}

/// The socket that is for this machine's root alone.
fn local_socket(data: &Path) -> Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let path = client::socket(data);
    // Left by a process that was killed; the claim on the data directory says that it is gone.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// This machine's address towards others.
fn node_ip(config: &Config) -> Ipv4Addr {
    if let Some(advertise) = config.advertise {
        return advertise;
    }
    if let IpAddr::V4(listen) = config.listen.ip()
        && !listen.is_unspecified()
        && !listen.is_loopback()
    {
        return listen;
    }
    // Connecting a datagram socket sends nothing; it asks the kernel for a route and its source.
    let routed = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    match routed() {
        Ok(IpAddr::V4(address)) if !address.is_unspecified() => address,
        // A machine without a way out: its own link towards the pods serves.
        _ => gateway(config),
    }
}

/// The first address of this machine's pods, which the machine itself holds.
fn gateway(config: &Config) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(config.pod_cidr().network()) + 1)
}

fn server_names(config: &Config, node_ip: Ipv4Addr) -> ServerNames {
    let service = "kubernetes.default";
    let names = [
        "localhost".to_owned(),
        config.name.clone(),
        "kubernetes".to_owned(),
        service.to_owned(),
        format!("{service}.svc"),
        format!("{service}.svc.{}", config.domain),
    ];
    let mut addresses = vec![
        Ipv4Addr::LOCALHOST.into(),
        config.kubernetes_ip().into(),
        gateway(config).into(),
        node_ip.into(),
    ];
    if !config.listen.ip().is_unspecified() {
        addresses.push(config.listen.ip());
    }
    addresses.sort();
    addresses.dedup();
    ServerNames { names: names.to_vec(), addresses }
}

/// Who signs service account tokens.
fn issuer(config: &Config) -> String {
    format!("https://kubernetes.default.svc.{}", config.domain)
}

fn state_config(config: &Config, pki: &Pki) -> Result<dhow_state::Config> {
    Ok(dhow_state::Config {
        service_cidr: config.service_cidr,
        node_ports: NODE_PORTS,
        ca_pem: pki.authority()?,
        token_key: pki.token_key()?,
        issuer: issuer(config),
    })
}

fn dataplane_config(config: &Config, node_ip: Ipv4Addr) -> dhow_dataplane::Config {
    dhow_dataplane::Config {
        name: config.network.clone(),
        pod_cidr: config.pod_cidr(),
        cluster_cidr: config.cluster_cidr,
        service_cidr: config.service_cidr,
        dns_ip: config.dns_ip(),
        node_ip,
        node_name: config.name.clone(),
    }
}

async fn names(config: &Config) -> Result<Names> {
    let listen = SocketAddr::from((config.dns_ip(), 53));
    Names::start(dhow_names::Config {
        domain: config.domain.clone(),
        listen: vec![listen],
        upstreams: resolvers(config.dns_ip()),
        reverse: vec![config.cluster_cidr.to_string(), config.service_cidr.to_string()],
    })
    .await
    .with_context(|| format!("cannot answer names on {listen}"))
}

/// The machine's own resolvers.
fn resolvers(own: Ipv4Addr) -> Vec<SocketAddr> {
    let mut upstreams = dhow_names::ResolvConf::machine().upstreams();
    upstreams.retain(|upstream| upstream.ip() != IpAddr::V4(own));
    upstreams
}

/// Where clients on other machines and pods reach this server's API.
fn api_address(config: &Config, node_ip: Ipv4Addr) -> Ipv4Addr {
    match config.listen.ip() {
        IpAddr::V4(listen) if !listen.is_unspecified() => listen,
        _ => node_ip,
    }
}

/// The way to machines of other servers: machines have their servers' names.
fn relay(
    servers: &Arc<Servers>,
    pki: &Pki,
    shown: Arc<Shown>,
) -> Result<dhow_door_kube::stream::Relay> {
    let servers = servers.clone();
    Ok(dhow_door_kube::stream::Relay {
        server: Arc::new(move |node| servers.present.borrow().get(node).map(|server| server.api)),
        tls: pki.client_tls(shown)?,
    })
}

/// What a machine needs to run containers.
struct NodeParts {
    dataplane: Dataplane,
    runtime: Runtime,
    names: Names,
}

async fn open_node(data: &Path, config: &Config, node_ip: Ipv4Addr) -> Result<NodeParts> {
    let (dataplane, runtime) = tokio::join!(
        Dataplane::open(dataplane_config(config, node_ip)),
        runtime::open(data, config),
    );
    Ok(NodeParts { dataplane: dataplane?, runtime: runtime?, names: names(config).await? })
}

async fn agent(
    data: &Path,
    config: &Config,
    node_ip: Ipv4Addr,
    state: &State,
    node: NodeParts,
    images: Images,
    clock: &SharedClock,
) -> Result<Arc<Agent>> {
    let NodeParts { dataplane, runtime, names } = node;
    let feed = NodeDoor::new(state.clone(), config.name.clone(), compilers(&config.domain));
    let address = |kind: &str, text: String| NodeAddress { type_: kind.to_owned(), address: text };
    let mut settings = dhow_agent::Config::new(
        &config.name,
        &data.join("node"),
        config.pod_cidr(),
        config.dns_ip(),
    );
    settings.addresses =
        vec![address("InternalIP", node_ip.to_string()), address("Hostname", config.name.clone())];
    settings.domain.clone_from(&config.domain);
    settings.api_host = config.kubernetes_ip().to_string();
    Ok(Agent::start(settings, Arc::new(feed), runtime, images, dataplane, names, clock.clone())
        .await?)
}

/// The planners' compilers, which doors may not know.
fn compilers(domain: &str) -> Compilers {
    let (of_services, of_pods) = (domain.to_owned(), domain.to_owned());
    Compilers {
        service: Arc::new(dhow_netplan::compile_service),
        names: Arc::new(move |service, slices, revision| {
            vec![dhow_netplan::compile_names(service, slices, &of_services, revision)]
        }),
        pod: Arc::new(move |pod, revision| dhow_netplan::pod_names(pod, &of_pods, revision)),
        machine: Arc::new(dhow_netplan::compile_machine),
    }
}

/// Tells the agent of images that another process loaded, built or removed. On a thread of its own,
/// which sleeps in the kernel until the image store changes and ends with the process.
fn watch_images(dir: std::path::PathBuf, agent: Arc<Agent>) -> std::io::Result<()> {
    use rustix::fs::inotify;
    let queue = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&queue, &dir, inotify::WatchFlags::MOVED_TO)?;
    let listen = move || {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&queue, &mut buffer);
        while let Ok(event) = events.next() {
            if event.file_name().is_some_and(|name| name.to_bytes() == b"index.json") {
                agent.images_changed();
            }
        }
    };
    std::thread::Builder::new().name("images".into()).stack_size(64 << 10).spawn(listen)?;
    Ok(())
}

/// What clients need: `DATA/kubeconfig` and `DATA/env`.
fn write_client_files(
    data: &Path,
    config: &Config,
    authority: &str,
    admin: &Identity,
    exports: &str,
) -> Result<()> {
    use base64::Engine;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let host = match config.listen.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    let server = format!("https://{}", SocketAddr::new(host, config.listen.port()));
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{"name": "dhow", "cluster": {
            "server": server, "certificate-authority-data": encode(authority)}}],
        "users": [{"name": "kubernetes-admin", "user": {
            "client-certificate-data": encode(&admin.certificate), "client-key-data": encode(&admin.key)}}],
        "contexts": [{"name": "dhow", "context": {"cluster": "dhow", "user": "kubernetes-admin"}}],
        "current-context": "dhow",
    });
    let path = data.join("kubeconfig");
    // Who set a namespace in it, or added another platform, finds that again after a restart.
    if !std::fs::read_to_string(&path).is_ok_and(|known| still_leads_here(&known, &kubeconfig)) {
        files::write(&path, serde_saphyr::to_string(&kubeconfig)?.as_bytes(), 0o600)?;
    }
    let env = format!(
        "export DHOW_DATA_DIR={}\nexport KUBECONFIG={}\n{exports}",
        crate::print::quoted(data),
        crate::print::quoted(&path)
    );
    files::write(&data.join("env"), env.as_bytes(), 0o600)
}

/// Whether a kubeconfig, which people may have changed, has what `wanted` has.
fn still_leads_here(known: &str, wanted: &serde_json::Value) -> bool {
    let Ok(known) = serde_saphyr::from_str::<serde_json::Value>(known) else { return false };
    let entries = |config: &serde_json::Value, of: &str| {
        config[of].as_array().map(Vec::as_slice).unwrap_or_default().to_vec()
    };
    ["clusters", "users"].iter().all(|of| {
        let known = entries(&known, of);
        entries(wanted, of).iter().all(|entry| known.contains(entry))
    }) && entries(&known, "contexts").iter().any(|context| context["name"] == "dhow")
}

/// Unmounts everything below a directory that is about to be removed.
///
/// # Errors
/// When the table of mounts cannot be read or a mount is busy.
pub fn unmount_below(data: &Path) -> Result<()> {
    dhow_kernel::mount::unmount_below(data)
        .with_context(|| format!("cannot unmount below {}", data.display()))
}
