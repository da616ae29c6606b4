//! Makes the kernel equal the compiled rules, reads back, reports drift.
//!
//! Each pod hangs on a routed veth pair: the machine's end has a /32 route to the pod, the pod's
//! end a default route by the link-local gateway 169.254.1.1 with a fixed neighbour entry. There is
//! no bridge, so every packet between pods passes the machine's IP layer, where service addresses
//! are translated and policy can see it. Services are nftables maps in one table of our own,
//! programmed over netlink; every rule and element carries its owner.

mod addresses;
mod bystanders;
mod machines;
mod pods;
mod program;
mod purge;
mod services;
mod skeleton;
mod taken;
mod watch;

use dhow_intents::{MachineIntent, Owner, Protocol, ServiceIntent};
use dhow_kernel::net::nft::{Element, Transaction, Value, key};
use dhow_kernel::net::{Socket, nft};
use ipnet::Ipv4Net;
use rustix::io::Errno;
use services::Services;
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub use services::Drift;
pub use watch::{Disturbance, Watch};

/// Why the data plane failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{what}: {cause}")]
    Kernel {
        /// What was being done, on which object.
        what: String,
        /// What the kernel said.
        cause: String,
    },
    /// The kernel lacks something that is needed.
    #[error("this kernel lacks {feature}, needed for {why}")]
    Missing {
        /// The feature.
        feature: String,
        /// What it is needed for.
        why: String,
    },
    /// Somebody else on this machine has addresses of ours.
    #[error("{used} on link {link} lies in {own}: choose other addresses with {flag}")]
    Taken {
        /// The network that was asked for.
        own: Ipv4Net,
        /// What lies in it.
        used: Ipv4Net,
        /// The other's link.
        link: String,
        /// The flag of `dhow up` that says what to use.
        flag: &'static str,
    },
    /// No free address is left.
    #[error("no free address is left in {0}")]
    Exhausted(Ipv4Net),
}

impl Error {
    fn kernel(what: impl Into<String>, cause: &dhow_kernel::net::Error) -> Self {
        Self::Kernel { what: what.into(), cause: cause.to_string() }
    }
}

/// How this machine's network is laid out.
#[derive(Debug, Clone)]
pub struct Config {
    /// Short name of the platform instance; prefix of links (at most 5 bytes, e.g. `dhow0`) and
    /// name of the nftables table.
    pub name: String,
    /// Addresses of pods of this machine. The first is the machine's own (on link `NAME`).
    pub pod_cidr: Ipv4Net,
    /// Addresses of all pods of the cluster.
    pub cluster_cidr: Ipv4Net,
    /// Addresses of services.
    pub service_cidr: Ipv4Net,
    /// Address of the DNS server: held by the machine's own link.
    pub dns_ip: Ipv4Addr,
    /// The machine's address towards others.
    pub node_ip: Ipv4Addr,
    /// The machine's name, to know which backends are local.
    pub node_name: String,
}

/// The data plane of one machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dataplane {
    engine: Arc<Mutex<Engine>>,
}

/// The state behind a [`Dataplane`]; its calls block for as long as the kernel works.
#[derive(Debug)]
struct Engine {
    config: Config,
    nft: Socket,
    pods: pods::Pods,
    services: Services,
    /// The elements of the map of host ports, by key.
    host_ports: HashMap<Vec<u8>, Element>,
    admitted: bystanders::Admitted,
}

impl Dataplane {
    /// Makes the machine's link, routes, sysctls and empty table, or adopts those that exist: rules
    /// of an earlier process go on working until they are replaced. The network namespace is that
    /// of the calling thread, for good.
    pub async fn open(config: Config) -> Result<Self, Error> {
        // Not on another thread: sockets and settings belong to this thread's network namespace.
        Ok(Self { engine: Arc::new(Mutex::new(Engine::open(config)?)) })
    }

    /// Whether this network can be made here; nothing is changed.
    ///
    /// # Errors
    /// [`Error::Taken`] when it does not exist yet and somebody else has addresses of it.
    pub fn check(config: &Config) -> Result<(), Error> {
        taken::check(config)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let engine = self.engine.clone();
        let task = tokio::task::spawn_blocking(move || {
            work(&mut engine.lock().unwrap_or_else(PoisonError::into_inner))
        });
        task.await.map_err(|e| Error::Kernel {
            what: "change the pod network".into(),
            cause: e.to_string(),
        })?
    }

    /// Gives a pod its link and address; with `wanted` (a pod found running after a restart) that
    /// address. Idempotent by `owner` namespace/name and `id` (the pod's uid).
    pub async fn attach(
        &self,
        id: &str,
        owner: &Owner,
        netns: &Path,
        wanted: Option<Ipv4Addr>,
    ) -> Result<Ipv4Addr, Error> {
        let (id, owner, netns): (_, _, PathBuf) = (id.to_owned(), owner.clone(), netns.into());
        self.run(move |engine| engine.attach(&id, &owner, &netns, wanted)).await
    }

    /// Takes a pod's link and address away, and its host ports. Fine if it has none. The address
    /// leads nowhere when this returns; the link itself is deleted in the background.
    pub async fn detach(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        self.run(move |engine| engine.detach(&id)).await
    }

    /// Forwards a port of the machine's addresses to a pod (`hostPort`). Ends with `detach`.
    pub async fn map_host_port(
        &self,
        id: &str,
        owner: &Owner,
        protocol: Protocol,
        host_port: u16,
        target: SocketAddrV4,
    ) -> Result<(), Error> {
        let (id, owner) = (id.to_owned(), owner.clone());
        self.run(move |e| e.map_host_port(&id, &owner, protocol, host_port, target)).await
    }

    /// Brings service rules in line in one transaction: each `set` replaces that service, each
    /// `gone` (kind, namespace, name compared; revision ignored) removes one. Only differences to
    /// what is programmed are sent. Stale UDP flows to backends that went are forgotten.
    pub async fn apply(&self, set: &[Arc<ServiceIntent>], gone: &[Owner]) -> Result<(), Error> {
        let set = set.to_vec();
        let gone: Vec<_> = gone.iter().map(program::Key::from).collect();
        self.run(move |engine| engine.apply(&set, &gone)).await
    }

    /// Brings the kernel back to what was programmed, after another program changed it.
    pub async fn repair(&self) -> Result<(), Error> {
        self.run(Engine::repair).await
    }

    /// Makes up for what another program did.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn mend(&self, what: &Disturbance) -> Result<(), Error> {
        match what {
            Disturbance::Ours(_) => self.repair().await,
            Disturbance::Filter(_) => self.run(Engine::admit).await,
        }
    }

    /// Begins to follow what other programs change of it, in the calling thread's network
    /// namespace and runtime. After each change [`Self::mend`] is due.
    ///
    /// # Errors
    /// When the kernel does not report changes.
    pub fn watch(&self) -> Result<Watch, Error> {
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = [engine.nft.port(), engine.pods.port()];
        let (admitted, pods) = (engine.admitted.clone(), engine.pods.names());
        Watch::open(watch::Mine::new(&engine.config, ports, admitted, pods))
    }

    /// After a restart: removes the services that are programmed but not among `known`, and links
    /// of pods that are not among `pods` (ids).
    pub async fn sweep(&self, known: &[Owner], pods: &[String]) -> Result<(), Error> {
        let known: HashSet<_> = known.iter().map(program::Key::from).collect();
        let pods: HashSet<String> = pods.iter().cloned().collect();
        self.run(move |engine| engine.sweep(&known, &pods)).await
    }

    /// Leads packets for other machines' pods to those machines: these, and no others. What cannot
    /// be reached by one network with this machine is refused and does not hinder the rest.
    pub async fn set_machines(&self, machines: &[MachineIntent]) -> Result<(), Error> {
        let machines = machines.to_vec();
        self.run(move |engine| machines::set(&engine.config, &machines)).await
    }

    /// Reads the kernel back and lists where it differs from what was programmed, one sentence
    /// each; empty when all is well.
    pub async fn drift(&self) -> Result<Vec<Drift>, Error> {
        self.run(|engine| engine.drift()).await
    }

    /// Removes every link, route, rule and table that `name` made on this machine (in the calling
    /// thread's network namespace), with the routes to other machines' pods in `cluster_cidr`.
    pub async fn purge(name: &str, cluster_cidr: Ipv4Net) -> Result<(), Error> {
        purge::purge(name)?;
        machines::purge(cluster_cidr)
    }
}

impl Engine {
    fn open(config: Config) -> Result<Self, Error> {
        if config.name.is_empty() || config.name.len() > 5 {
            let what = format!("use {:?} as the name of the network", config.name);
            return Err(Error::Kernel { what, cause: "it must have 1 to 5 bytes".into() });
        }
        let wrap = |e| Error::kernel("open the pod network", &e);
        let mut nft = Socket::netfilter().map_err(wrap)?;
        build(&mut nft, &config)?;
        let admitted = bystanders::Admitted::default();
        bystanders::admit(&mut nft, &config, &admitted)?;
        let pods = pods::Pods::open(&config)?;
        let services = Services::adopt(&mut nft, &config).map_err(wrap)?;
        let host_ports = HashMap::new();
        let mut engine = Self { config, nft, pods, services, host_ports, admitted };
        engine.adopt().map_err(wrap)?;
        Ok(engine)
    }

    /// Brings the elements that belong to pods in line with the pods that exist.
    fn adopt(&mut self) -> Result<(), dhow_kernel::net::Error> {
        let table = self.config.name.clone();
        let live: HashMap<Ipv4Addr, &pods::Pod> =
            self.pods.all().values().map(|p| (p.address, p)).collect();
        let mut change = Transaction::new(&table);
        let mut present = HashSet::new();
        for element in self.nft.nft_elements(&table, skeleton::HAIRPINS)? {
            let address = element.key.first_chunk::<4>().map(|b| Ipv4Addr::from(*b));
            match address {
                Some(address) if live.contains_key(&address) => _ = present.insert(address),
                _ => _ = change.delete_elements(skeleton::HAIRPINS, &[element.key]),
            }
        }
        for (address, pod) in live.iter().filter(|(a, _)| !present.contains(*a)) {
            change.elements(skeleton::HAIRPINS, None, &[hairpin(*address, &pod.owner)]);
        }
        let mut standing = HashSet::new();
        for element in self.nft.nft_elements(&table, skeleton::HOST_PORTS)? {
            match pod_of(&element) {
                Some(address) if live.contains_key(&address) => {
                    standing.insert(element.key.clone());
                    self.host_ports.entry(element.key.clone()).or_insert(element);
                }
                _ => _ = change.delete_elements(skeleton::HOST_PORTS, &[element.key]),
            }
        }
        for (_, element) in self.host_ports.iter().filter(|(key, _)| !standing.contains(*key)) {
            change.elements(skeleton::HOST_PORTS, None, std::slice::from_ref(element));
        }
        change.commit(&mut self.nft)
    }

    fn apply(&mut self, set: &[Arc<ServiceIntent>], gone: &[program::Key]) -> Result<(), Error> {
        let Err(error) = self.services.apply(&mut self.nft, &self.config, set, gone) else {
            return Ok(());
        };
        // Most likely another program flushed or changed our table.
        tracing::warn!(%error, "services could not be programmed; reading the table back to repair it");
        self.repair()
    }

    fn admit(&mut self) -> Result<(), Error> {
        bystanders::admit(&mut self.nft, &self.config, &self.admitted)
    }

    fn repair(&mut self) -> Result<(), Error> {
        self.pods.repair(&self.config)?;
        build(&mut self.nft, &self.config)?;
        self.admit()?;
        self.adopt().map_err(|e| Error::kernel("repair what belongs to pods", &e))?;
        self.services.repair(&mut self.nft, &self.config)
    }

    fn attach(
        &mut self,
        id: &str,
        owner: &Owner,
        netns: &Path,
        wanted: Option<Ipv4Addr>,
    ) -> Result<Ipv4Addr, Error> {
        let known = self.pods.all().contains_key(id);
        let (address, _) = self.pods.attach(&self.config, id, owner, netns, wanted)?;
        if !known {
            let mut change = Transaction::new(&self.config.name);
            let element = hairpin(address, &owner.to_string());
            change.elements(skeleton::HAIRPINS, None, &[element]);
            if let Err(error) = change.commit(&mut self.nft)
                && self.repair().is_err()
            {
                // Nothing half made stays.
                let _ = self.pods.detach(id);
                return Err(Error::kernel(format!("attach {owner}"), &error));
            }
        }
        Ok(address)
    }

    fn detach(&mut self, id: &str) -> Result<(), Error> {
        let Some(pod) = self.pods.detach(id)? else { return Ok(()) };
        let mut change = Transaction::new(&self.config.name);
        change.delete_elements(skeleton::HAIRPINS, &[hairpin(pod.address, "").key]);
        let mine = |element: &Element| pod_of(element) == Some(pod.address);
        let ports: Vec<Vec<u8>> =
            self.host_ports.iter().filter(|(_, e)| mine(e)).map(|(k, _)| k.clone()).collect();
        change.delete_elements(skeleton::HOST_PORTS, &ports);
        self.host_ports.retain(|_, element| !mine(element));
        match change.commit(&mut self.nft) {
            Ok(()) => Ok(()),
            // Another program emptied the table: what is to go is gone, the rest comes back.
            Err(error) => {
                self.repair().map_err(|_| Error::kernel(format!("detach {}", pod.owner), &error))
            }
        }
    }

    fn map_host_port(
        &mut self,
        id: &str,
        owner: &Owner,
        protocol: Protocol,
        host_port: u16,
        target: SocketAddrV4,
    ) -> Result<(), Error> {
        let what = format!("map host port {host_port} for {owner}");
        let refuse = |cause: &str| Error::Kernel { what: what.clone(), cause: cause.into() };
        if self.pods.all().get(id).is_none_or(|p| p.address != *target.ip()) {
            return Err(refuse("the pod is not attached with this address"));
        }
        let entry = key(&[&[program::number(protocol)], &host_port.to_be_bytes()]);
        let mut change = Transaction::new(&self.config.name);
        match self.host_ports.get(&entry) {
            Some(holder) if pod_of(holder) != Some(*target.ip()) => {
                return Err(refuse("another pod of this machine has it"));
            }
            Some(_) => {
                change.delete_elements(skeleton::HOST_PORTS, std::slice::from_ref(&entry));
            }
            None => {}
        }
        let element = Element {
            key: entry.clone(),
            value: Value::Data(program::target_data(target)),
            comment: owner.to_string(),
        };
        change.elements(skeleton::HOST_PORTS, None, std::slice::from_ref(&element));
        change.commit(&mut self.nft).map_err(|e| Error::kernel(what.clone(), &e))?;
        self.host_ports.insert(entry, element);
        Ok(())
    }

    fn sweep(
        &mut self,
        known: &HashSet<program::Key>,
        pods: &HashSet<String>,
    ) -> Result<(), Error> {
        let gone: Vec<_> =
            self.services.keys().into_iter().filter(|key| !known.contains(key)).collect();
        self.apply(&[], &gone)?;
        let left: Vec<String> =
            self.pods.all().keys().filter(|id| !pods.contains(*id)).cloned().collect();
        for id in left {
            self.detach(&id)?;
        }
        Ok(())
    }

    fn drift(&mut self) -> Result<Vec<Drift>, Error> {
        self.services.drift(&mut self.nft, &self.config)
    }
}

/// The pod that an element of the map of host ports leads to.
fn pod_of(element: &Element) -> Option<Ipv4Addr> {
    let Value::Data(data) = &element.value else { return None };
    data.first_chunk::<4>().map(|b| Ipv4Addr::from(*b))
}

fn hairpin(address: Ipv4Addr, owner: &str) -> Element {
    let octets = address.octets();
    Element { key: key(&[&octets, &octets]), value: Value::None, comment: owner.to_owned() }
}

/// Makes the table and its base chains, keeping services that are programmed.
fn build(nft: &mut Socket, config: &Config) -> Result<(), Error> {
    let mut change = Transaction::new(&config.name);
    skeleton::build(&mut change, config);
    let error = match change.commit(nft) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    if error.is(Errno::NOENT) || error.is(Errno::OPNOTSUPP) {
        return Err(Error::Missing {
            feature: format!("an nf_tables expression ({error})"),
            why: "services; enable nft nat, numgen, fib, reject, masquerade and conntrack".into(),
        });
    }
    // A table of another version whose maps have other types: begin anew, still in one step.
    tracing::warn!(table = %config.name, %error, "the table of an earlier version is replaced");
    let mut change = nft::Transaction::new(&config.name);
    change.table("").delete_table();
    skeleton::build(&mut change, config);
    change.commit(nft).map_err(|e| Error::kernel(format!("make table {}", config.name), &e))
}
