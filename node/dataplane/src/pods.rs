//! Pods' links: attach, detach, adopt after a restart.

use crate::addresses::{self, Addresses};
use crate::program::short_hash;
use crate::{Config, Error};
use dhow_intents::Owner;
use dhow_kernel::net::route::{self, Mac};
use dhow_kernel::net::{Batch, Socket, namespace};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Who made our routes (`rtm_protocol`); a number that no routing daemon is assigned.
pub(crate) const PROTOCOL: u8 = 208;
/// What pods believe is their router. Link-local, the same everywhere; never on the wire, because
/// the neighbour entry is fixed.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Link group of links that are about to be deleted (`dhow` in ASCII).
const CONDEMNED: u32 = 0x6468_6f77;
/// Longest alias that the kernel keeps.
const ALIAS: usize = 255;

/// A pod's link.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) address: Ipv4Addr,
    pub(crate) owner: String,
    link: String,
    /// Where its network namespace is; unknown until somebody attaches the pod in this process.
    netns: Option<PathBuf>,
}

/// Names of pods' links that are to be there.
pub(crate) type Names = Arc<Mutex<HashSet<String>>>;

/// The links of the machine's pods.
#[derive(Debug)]
pub(crate) struct Pods {
    socket: Socket,
    addresses: Addresses,
    pods: HashMap<String, Pod>,
    names: Names,
    graves: Arc<Graves>,
}

/// Links that are being deleted in the background: the kernel waits for readers of the old link,
/// which nobody else needs to wait for.
#[derive(Debug)]
struct Graves {
    socket: Mutex<Socket>,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    links: Vec<String>,
    digging: bool,
}

/// Hardware address of the machine's end, or of the pod's end, made from the pod's address.
fn mac(address: Ipv4Addr, pod_end: bool) -> Mac {
    let [a, b, c, d] = address.octets();
    // Locally administered.
    [0x0a, if pod_end { 0x58 } else { 0x59 }, a, b, c, d]
}

fn alias(owner: &str, id: &str) -> String {
    let mut room = ALIAS.saturating_sub(id.len() + 1).min(owner.len());
    while !owner.is_char_boundary(room) {
        room -= 1;
    }
    format!("{} {id}", &owner[..room])
}

/// Whether a link name is that of a pod's link of this platform instance.
pub(crate) fn is_pod_link(instance: &str, link: &str) -> bool {
    link.strip_prefix(instance)
        .is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl Pods {
    /// Makes the machine's own link and adopts pods' links that exist. Called in the machine's
    /// network namespace.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let wrap = |e| Error::kernel("open the pod network", &e);
        let mut socket = route::open().map_err(wrap)?;
        let graves = Graves {
            socket: Mutex::new(route::open().map_err(wrap)?),
            queue: Mutex::new(Queue::default()),
        };
        machine_link(&mut socket, config)?;
        let machine = addresses::machine(config.pod_cidr);
        let mut pods = Self {
            socket,
            addresses: Addresses::new(config.pod_cidr, &[machine, config.dns_ip, config.node_ip]),
            pods: HashMap::new(),
            names: Names::default(),
            graves: Arc::new(graves),
        };
        pods.adopt(config).map_err(|e| Error::kernel("adopt the links of running pods", &e))?;
        Ok(pods)
    }

    fn adopt(&mut self, config: &Config) -> Result<(), dhow_kernel::net::Error> {
        let routes: HashMap<u32, Ipv4Addr> = self
            .socket
            .routes()?
            .into_iter()
            .filter(|r| r.protocol == PROTOCOL && r.destination.1 == 32)
            .map(|r| (r.link, r.destination.0))
            .collect();
        for link in self.socket.links()? {
            if !is_pod_link(&config.name, &link.name) || link.kind != "veth" {
                continue;
            }
            let known = link.alias.rsplit_once(' ').zip(routes.get(&link.index));
            match known {
                Some(((owner, id), address)) if self.addresses.claim(*address) => {
                    let owner = owner.to_owned();
                    let pod = Pod { address: *address, owner, link: link.name, netns: None };
                    self.put(id, pod);
                }
                // Half made when the process died.
                _ => Graves::bury(&self.graves, link.name),
            }
        }
        self.addresses.resume();
        Ok(())
    }

    fn put(&mut self, id: &str, pod: Pod) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.link.clone());
        self.pods.insert(id.to_owned(), pod);
    }

    /// Its link may go now.
    fn take(&mut self, id: &str) -> Option<Pod> {
        let pod = self.pods.remove(id)?;
        self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&pod.link);
        Some(pod)
    }

    /// The names of all links, kept up to date.
    pub(crate) fn names(&self) -> Names {
        self.names.clone()
    }

    /// The port of the socket that links and routes are written by.
    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Brings back the machine's own link, pods' links and the ways to them.
    pub(crate) fn repair(&mut self, config: &Config) -> Result<(), Error> {
        machine_link(&mut self.socket, config)?;
        let wrap = |e| Error::kernel("bring back the routes to pods", &e);
        let routes = self.socket.routes().map_err(wrap)?;
        let led: HashSet<Ipv4Addr> = routes
            .into_iter()
            .filter(|r| r.protocol == PROTOCOL && r.destination.1 == 32)
            .map(|r| r.destination.0)
            .collect();
        let links: HashMap<String, u32> =
            self.socket.links().map_err(wrap)?.into_iter().map(|l| (l.name, l.index)).collect();
        for pod in self.pods.values().filter(|pod| !led.contains(&pod.address)) {
            let Some(index) = links.get(&pod.link) else { continue };
            let mut lead = Batch::new();
            lead.set_neighbour(*index, pod.address, mac(pod.address, true));
            lead.set_route((pod.address, 32), *index, None, None, PROTOCOL);
            self.socket.transact(&lead).map_err(wrap)?;
        }
        let lost: Vec<(String, Pod)> = self
            .pods
            .iter()
            .filter(|(_, pod)| !links.contains_key(&pod.link))
            .map(|(id, pod)| (id.clone(), pod.clone()))
            .collect();
        for (id, pod) in lost {
            // A namespace that is gone took its link along: the pod is about to end.
            let Some(namespace) = pod.netns.as_deref().and_then(|n| namespace::open(n).ok()) else {
                continue;
            };
            let name = alias(&pod.owner, &id);
            if let Err(error) = self.connect(&pod.link, pod.address, &name, &namespace) {
                tracing::warn!(pod = pod.owner, %error, "the link of a pod is not brought back");
                let _ = self.delete_now(&pod.link);
            }
        }
        Ok(())
    }

    /// The pods that have a link, by id.
    pub(crate) fn all(&self) -> &HashMap<String, Pod> {
        &self.pods
    }

    /// Makes a pod's link unless it exists. The boolean is whether it was made.
    pub(crate) fn attach(
        &mut self,
        config: &Config,
        id: &str,
        owner: &Owner,
        netns: &Path,
        wanted: Option<Ipv4Addr>,
    ) -> Result<(Ipv4Addr, bool), Error> {
        let wrap = |e| Error::kernel(format!("attach {owner}"), &e);
        let namespace = namespace::open(netns).map_err(wrap)?;
        let mut wanted = wanted;
        if let Some(pod) = self.pods.get(id).cloned() {
            if self.is_whole(&pod, &namespace).map_err(wrap)? {
                self.put(id, Pod { netns: Some(netns.to_path_buf()), ..pod.clone() });
                return Ok((pod.address, false));
            }
            // The sandbox was made anew: same pod, same address, new link.
            self.delete_now(&pod.link).map_err(wrap)?;
            self.take(id);
            self.addresses.release(pod.address);
            wanted = Some(pod.address);
        }
        let address = match wanted {
            Some(address) if self.addresses.claim(address) => address,
            Some(address) => {
                let cause = "the address is another pod's or not of this machine".to_owned();
                return Err(Error::Kernel { what: format!("give {address} to {owner}"), cause });
            }
            None => self.addresses.allocate().ok_or(Error::Exhausted(config.pod_cidr))?,
        };
        let text = owner.to_string();
        let link = self.free_name(config, id);
        if let Err(error) = self.connect(&link, address, &alias(&text, id), &namespace) {
            // Nothing half made stays.
            let _ = self.delete_now(&link);
            self.addresses.release(address);
            return Err(wrap(error));
        }
        self.put(id, Pod { address, owner: text, link, netns: Some(netns.to_path_buf()) });
        Ok((address, true))
    }

    fn free_name(&self, config: &Config, id: &str) -> String {
        let taken: HashSet<&str> = self.pods.values().map(|p| p.link.as_str()).collect();
        let mut salt = id.to_owned();
        loop {
            let name = format!("{}{:08x}", config.name, short_hash(&salt));
            if !taken.contains(name.as_str()) {
                return name;
            }
            salt.push('+');
        }
    }

    fn connect(
        &mut self,
        link: &str,
        address: Ipv4Addr,
        alias: &str,
        namespace: &OwnedFd,
    ) -> Result<(), dhow_kernel::net::Error> {
        let (here, there) = (mac(address, false), mac(address, true));
        let mut make = Batch::new();
        make.create_veth(link, here, "eth0", there, namespace.as_fd());
        make.dress_link(link, alias, true);
        make.get_link(link);
        let made = match self.socket.transact_link(&make) {
            // A link of an earlier life that is still being deleted, at either end.
            Err(error) if error.is(Errno::EXIST) => {
                self.delete_now(link)?;
                self.graves.dig();
                self.socket.transact_link(&make)?
            }
            other => other?,
        };
        let mut lead = Batch::new();
        lead.set_neighbour(made.index, address, there);
        lead.set_route((address, 32), made.index, None, None, PROTOCOL);
        self.socket.transact(&lead)?;
        namespace::within(namespace, || {
            let mut socket = route::open()?;
            let mut look = Batch::new();
            look.link_up(1);
            look.get_link("eth0");
            let eth0 = socket.transact_link(&look)?;
            let mut dress = Batch::new();
            dress.link_up(eth0.index);
            dress.add_address(eth0.index, address, 32);
            dress.set_neighbour(eth0.index, GATEWAY, here);
            dress.set_route((Ipv4Addr::UNSPECIFIED, 0), eth0.index, Some(GATEWAY), None, PROTOCOL);
            socket.transact(&dress)?;
            Ok(())
        })
    }

    /// Whether the pod's link exists and ends in this namespace.
    fn is_whole(
        &mut self,
        pod: &Pod,
        namespace: &OwnedFd,
    ) -> Result<bool, dhow_kernel::net::Error> {
        if self.socket.link(&pod.link)?.is_none() {
            return Ok(false);
        }
        let wanted = mac(pod.address, true);
        namespace::within(namespace, || {
            Ok(route::open()?.link("eth0")?.is_some_and(|l| l.mac == Some(wanted)))
        })
    }

    /// Forgets a pod: its address leads nowhere at once, its link is deleted in the background.
    pub(crate) fn detach(&mut self, id: &str) -> Result<Option<Pod>, Error> {
        let Some(pod) = self.take(id) else { return Ok(None) };
        let mut batch = Batch::new();
        batch.delete_route((pod.address, 32), PROTOCOL);
        // The route is gone already when the pod's namespace ended before.
        self.socket
            .exchange(&batch, |_| {})
            .map_err(|e| Error::kernel(format!("detach {}", pod.owner), &e))?;
        self.addresses.release(pod.address);
        Graves::bury(&self.graves, pod.link.clone());
        Ok(Some(pod))
    }

    fn delete_now(&mut self, link: &str) -> Result<(), dhow_kernel::net::Error> {
        let mut batch = Batch::new();
        batch.delete_link(link);
        match self.socket.transact(&batch) {
            Err(error) if !error.is(Errno::NODEV) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Graves {
    fn bury(this: &Arc<Self>, link: String) {
        let mut queue = this.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.links.push(link);
        if queue.digging {
            return;
        }
        queue.digging = true;
        drop(queue);
        let graves = this.clone();
        let spawned = std::thread::Builder::new()
            .name("links".into())
            .stack_size(256 << 10)
            .spawn(move || graves.dig());
        if let Err(error) = spawned {
            tracing::warn!(%error, "deleting links in the foreground");
            this.dig();
        }
    }

    /// Deletes what is queued, after whoever does so already.
    fn dig(&self) {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let links = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                if queue.links.is_empty() {
                    queue.digging = false;
                    return;
                }
                std::mem::take(&mut queue.links)
            };
            if let Err(error) = delete_links(&mut socket, &links) {
                tracing::warn!(%error, "links could not be deleted");
            }
        }
    }
}

/// Deletes links at once; those that are gone are fine.
pub(crate) fn delete_links(
    socket: &mut Socket,
    links: &[String],
) -> Result<(), dhow_kernel::net::Error> {
    if links.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    for link in links {
        batch.group_link(link, CONDEMNED);
    }
    batch.delete_group(CONDEMNED);
    let mut failed = None;
    socket.exchange(&batch, |error| {
        if !error.is(Errno::NODEV) {
            failed = Some(error);
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// The machine's own link: a bridge without ports, because not every kernel has dummy links. It
/// holds the machine's pod address and the DNS server's, and gives local processes a route and a
/// source address towards services, so that they reach the output hook and answers come back.
fn machine_link(socket: &mut Socket, config: &Config) -> Result<(), Error> {
    let name = config.name.as_str();
    let wrap = |e| Error::kernel(format!("make link {name}"), &e);
    let machine = addresses::machine(config.pod_cidr);
    let old = socket.link(name).map_err(wrap)?;
    if let Some(link) = &old
        && link.kind != "bridge"
    {
        let cause = format!("a link of this name exists and is a {}", link.kind);
        return Err(Error::Kernel { what: format!("make link {name}"), cause });
    }
    let mut batch = Batch::new();
    if old.is_none() {
        batch.create_bridge(name, mac(machine, false));
    }
    batch.dress_link(name, &format!("node:{}@0", config.node_name), false);
    batch.get_link(name);
    let link = socket.transact_link(&batch).map_err(wrap)?;
    let service = (config.service_cidr.network(), config.service_cidr.prefix_len());
    let mut batch = Batch::new();
    batch.add_address(link.index, machine, 32);
    batch.add_address(link.index, config.dns_ip, 32);
    batch.set_route(service, link.index, None, Some(machine), PROTOCOL);
    socket.transact(&batch).map_err(wrap)?;
    namespace::set("net/ipv4/ip_forward", "1").map_err(wrap)
}
