//! Services and names as a machine needs them: compiled, with the object that each exists for.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The object that a kernel object or an answer exists for, and the revision it was compiled from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// Short kind, as it stands in rule comments: `svc`, `pod`, `node`.
    pub kind: String,
    /// Namespace, empty for cluster-wide objects.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The newest store revision that went into the compilation.
    pub revision: u64,
}

impl std::fmt::Display for Owner {
    /// `svc:shop/cart@41`, at most 127 bytes so that it fits a rule comment.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, namespace, name, revision } = self;
        if namespace.is_empty() {
            write!(f, "{kind}:{name}@{revision}")
        } else {
            write!(f, "{kind}:{namespace}/{name}@{revision}")
        }
    }
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// One address behind a service port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Backend {
    /// Where traffic goes.
    pub address: SocketAddr,
    /// The node that the backend runs on, empty if unknown.
    pub node: String,
}

/// One port of a service with its ready backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The port's name, empty for a single unnamed port.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the cluster address.
    pub port: u16,
    /// Port on every machine's addresses, 0 for none.
    pub node_port: u16,
    /// Ready backends in a stable order (when there is none, those that stop but still answer);
    /// empty means connections are refused.
    pub backends: Vec<Backend>,
    /// Backends that stop but still answer, beside ready ones: for machines that have none of
    /// `backends` when only local ones count. Empty without a local policy.
    #[serde(default)]
    pub leaving: Vec<Backend>,
}

/// A service compiled for a machine's data plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceIntent {
    /// The service and the newest revision among it and its endpoint slices.
    pub owner: Owner,
    /// Cluster addresses; empty for headless services and those without an address.
    pub cluster_ips: Vec<IpAddr>,
    /// External addresses and load-balancer addresses.
    pub external_ips: Vec<IpAddr>,
    /// Client-address affinity in seconds, 0 for none.
    pub affinity_seconds: u32,
    /// Only backends of the own machine take outside traffic (`externalTrafficPolicy: Local`).
    pub external_local: bool,
    /// Only backends of the own machine take inside traffic (`internalTrafficPolicy: Local`).
    pub internal_local: bool,
    /// Ports in the order of the service.
    pub ports: Vec<ServicePort>,
}

/// A machine as the other machines must know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineIntent {
    /// The machine's node.
    pub owner: Owner,
    /// Where other machines reach it.
    pub address: Ipv4Addr,
    /// The addresses of its pods: network and length of the prefix.
    pub pods: (Ipv4Addr, u8),
}

/// What a name answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NameRecord {
    /// A or AAAA, by the address's family.
    Address(IpAddr),
    /// SRV: target name and port (priority 0, weight 100).
    Service {
        /// Absolute target name without the final dot.
        target: String,
        /// Port.
        port: u16,
    },
    /// CNAME to an absolute name without the final dot.
    Alias(String),
    /// PTR to an absolute name without the final dot.
    Pointer(String),
}

/// Every name that one object gives rise to. Replacing it replaces all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameIntent {
    /// The object behind the names.
    pub owner: Owner,
    /// Absolute lower-case names without the final dot, each with its records in order. A name with
    /// no records exists but has no data (NOERROR, empty answer).
    pub names: Vec<(String, Vec<NameRecord>)>,
}
