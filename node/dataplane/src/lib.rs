//! Makes the kernel equal the compiled rules, reads back, reports drift.
//!
//! Each pod hangs on a routed veth pair: the machine's end has a /32 route to the pod, the pod's
//! end a default route by the link-local gateway 169.254.1.1 with a fixed neighbour entry. There is
//! no bridge, so every packet between pods passes the machine's IP layer, where service addresses
//! are translated and policy can see it. Services are nftables maps in one table of our own,
//! programmed over netlink; every rule and element carries its owner.

use dhow_intents::{Owner, ServiceIntent};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::path::Path;

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
    /// No free address is left.
    #[error("no free address is left in {0}")]
    Exhausted(Ipv4Net),
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
pub struct Dataplane {}

#[allow(unused_variables, clippy::unused_async)]
impl Dataplane {
    /// Makes the machine's link, routes, sysctls and empty table, or adopts those that exist.
    pub async fn open(config: Config) -> Result<Self, Error> {
        panic!("contract")
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
        panic!("contract")
    }
    /// Takes a pod's link and address away. Fine if it has none.
    pub async fn detach(&self, id: &str) -> Result<(), Error> {
        panic!("contract")
    }
    /// Forwards a port of the machine's addresses to a pod (`hostPort`).
    pub async fn map_host_port(
        &self,
        id: &str,
        owner: &Owner,
        protocol: dhow_intents::Protocol,
        host_port: u16,
        target: std::net::SocketAddrV4,
    ) -> Result<(), Error> {
        panic!("contract")
    }
    /// Brings service rules in line in one transaction: each `set` replaces that service, each
    /// `gone` (kind, namespace, name compared; revision ignored) removes one. Only differences to
    /// what is programmed are sent. Stale UDP flows to backends that went are forgotten.
    pub async fn apply(&self, set: &[std::sync::Arc<ServiceIntent>], gone: &[Owner]) -> Result<(), Error> {
        panic!("contract")
    }
    /// After a restart: removes the services that are programmed but not among `known`, and links
    /// of pods that are not among `pods` (ids).
    pub async fn sweep(&self, known: &[Owner], pods: &[String]) -> Result<(), Error> {
        panic!("contract")
    }
    /// Removes every link, route, rule and table that `name` made on this machine.
    pub async fn purge(name: &str) -> Result<(), Error> {
        panic!("contract")
    }
}
