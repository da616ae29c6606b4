//! One service as the kernel will hold it: its chains and the map elements that lead to them.

use crate::Config;
use dhow_intents::{Backend, Owner, Protocol, ServiceIntent, ServicePort};
use dhow_kernel::net::nft;
use dhow_objects::hash::{Stable, stable};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

/// Chain that refuses: TCP by reset, everything else by ICMP.
pub(crate) const REFUSE: &str = "refuse";
/// Bit of the packet mark: came from outside, hide its source if it leaves this machine again.
pub(crate) const OUTSIDE: u32 = 0x4000;

/// A named map of the table that leads to a service's chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Map {
    /// Cluster address, protocol, port.
    ClusterIps,
    /// External address, protocol, port.
    ExternalIps,
    /// Protocol, port on any address of the machine.
    NodePorts,
}

impl Map {
    pub(crate) const ALL: [Self; 3] = [Self::ClusterIps, Self::ExternalIps, Self::NodePorts];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClusterIps => "cluster_ips",
            Self::ExternalIps => "external_ips",
            Self::NodePorts => "node_ports",
        }
    }

    pub(crate) fn key_types(self) -> &'static [nft::Type] {
        match self {
            Self::ClusterIps | Self::ExternalIps => {
                &[nft::Type::Address, nft::Type::Protocol, nft::Type::Port]
            }
            Self::NodePorts => &[nft::Type::Protocol, nft::Type::Port],
        }
    }
}

/// What a chain does, step by step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Marks the packet as coming from outside.
    MarkOutside,
    /// Pods and this machine itself go on in another chain.
    InsidersGo { cluster: (Ipv4Addr, u8), chain: String },
    /// Goes on in another chain.
    Go(String),
    /// Drops.
    Drop,
    /// Picks a backend, all alike.
    Balance { protocol: u8, targets: Vec<SocketAddrV4> },
    /// Picks a backend's chain, all alike, but a client that is in a backend's set goes there.
    Stick(Vec<Sticky>),
    /// Puts the client into a set, or keeps it there for longer.
    Remember(String),
}

/// A backend that remembers its clients: the set of them, and the chain that leads to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Sticky {
    pub(crate) clients: String,
    pub(crate) chain: String,
}

/// A service, identified without its revision.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl From<&Owner> for Key {
    fn from(owner: &Owner) -> Self {
        let Owner { kind, namespace, name, .. } = owner.clone();
        Self { kind, namespace, name }
    }
}

/// A place where flows of a connectionless protocol arrive, and where they may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Door {
    /// Address, `None` for every address of the machine.
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) port: u16,
    pub(crate) protocol: u8,
    pub(crate) targets: Vec<SocketAddrV4>,
}

/// A service as the kernel will hold it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Program {
    /// Steps of each chain.
    pub(crate) chains: BTreeMap<String, Vec<Step>>,
    /// Which chain an element leads to.
    pub(crate) elements: BTreeMap<(Map, Vec<u8>), String>,
    /// Sets that remember clients, with seconds.
    pub(crate) memories: BTreeMap<String, u32>,
    /// Where UDP flows come in.
    pub(crate) doors: Vec<Door>,
}

pub(crate) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn v4(addresses: &[IpAddr]) -> impl Iterator<Item = Ipv4Addr> {
    addresses.iter().filter_map(|a| match a {
        IpAddr::V4(a) => Some(*a),
        IpAddr::V6(_) => None,
    })
}

/// Compiles a service for this machine. IPv6 addresses are left out: the data plane is IPv4.
pub(crate) fn compile(intent: &ServiceIntent, config: &Config) -> Program {
    let mut program = Program::default();
    for port in &intent.ports {
        compile_port(&mut program, intent, port, config);
    }
    program
}

fn compile_port(
    program: &mut Program,
    intent: &ServiceIntent,
    port: &ServicePort,
    config: &Config,
) {
    let Owner { namespace, name, .. } = &intent.owner;
    let protocol = number(port.protocol);
    let tail = format!("{namespace}/{name}/{}/{}", word(port.protocol), port.port);
    let pick = |backends: &[Backend], only_here: bool| -> Vec<SocketAddrV4> {
        let here = |b: &&Backend| !only_here || b.node == config.node_name;
        let v4 = |b: &Backend| match b.address {
            SocketAddr::V4(target) => Some(target),
            SocketAddr::V6(_) => None,
        };
        backends.iter().filter(here).filter_map(v4).collect()
    };
    let all = pick(&port.backends, false);
    let mut local = pick(&port.backends, true);
    if local.is_empty() {
        // Better one that stops than silence, while others are told to send their clients elsewhere.
        local = pick(&port.leaving, true);
    }
    // The address of the machine's own DNS server is never translated: it answers itself.
    let own = |a: &Ipv4Addr| *a != config.dns_ip;
    let cluster: Vec<_> = v4(&intent.cluster_ips).filter(own).collect();
    let external: Vec<_> = v4(&intent.external_ips).filter(own).collect();
    let outside = !external.is_empty() || port.node_port != 0;
    if cluster.is_empty() && !outside {
        return;
    }

    // A backend that remembers has a chain of its own, shared by all who lead there.
    let (mut own_chains, mut memories) = (BTreeMap::new(), BTreeMap::new());
    let mut spread = |targets: &[SocketAddrV4]| -> Step {
        if targets.is_empty() {
            // Backends elsewhere do not count under a local policy; none at all is a refusal.
            return if all.is_empty() { Step::Go(REFUSE.into()) } else { Step::Drop };
        }
        let seconds = intent.affinity_seconds;
        if seconds == 0 {
            return Step::Balance { protocol, targets: targets.to_vec() };
        }
        let sticky = targets.iter().map(|target| {
            let place = format!("{}/{}", target.ip(), target.port());
            // A set's time-out is fixed for its life, so the name carries it.
            let clients = format!("affinity/{tail}/{seconds}/{place}");
            let chain = format!("ep/{tail}/{place}");
            let go = Step::Balance { protocol, targets: vec![*target] };
            own_chains.insert(chain.clone(), vec![Step::Remember(clients.clone()), go]);
            memories.insert(clients.clone(), seconds);
            Sticky { clients, chain }
        });
        Step::Stick(sticky.collect())
    };

    let inner = format!("svc/{tail}");
    let inner_targets = if intent.internal_local { &local } else { &all };
    let inner_step = spread(inner_targets);
    let outer = format!("ext/{tail}");
    let outer_targets = if intent.external_local { &local } else { &all };
    if outside {
        let mut steps = Vec::new();
        if intent.external_local {
            let cidr = config.cluster_cidr;
            let cluster = (cidr.network(), cidr.prefix_len());
            steps.push(Step::InsidersGo { cluster, chain: inner.clone() });
        } else {
            steps.push(Step::MarkOutside);
        }
        if intent.external_local == intent.internal_local {
            steps.push(Step::Go(inner.clone()));
        } else {
            steps.push(spread(outer_targets));
        }
        program.chains.insert(outer.clone(), steps);
    }
    program.chains.insert(inner.clone(), vec![inner_step]);
    program.chains.append(&mut own_chains);
    program.memories.append(&mut memories);

    let mut enter = |map: Map, address: Option<Ipv4Addr>, number: u16, chain: &str| {
        let port = number.to_be_bytes();
        let key = match address {
            Some(address) => nft::key(&[&address.octets(), &[protocol], &port]),
            None => nft::key(&[&[protocol], &port]),
        };
        program.elements.insert((map, key), chain.to_owned());
        if protocol == 17 {
            let targets = if chain == inner { inner_targets } else { outer_targets }.clone();
            program.doors.push(Door { address, port: number, protocol, targets });
        }
    };
    for address in cluster {
        enter(Map::ClusterIps, Some(address), port.port, &inner);
    }
    for address in external {
        enter(Map::ExternalIps, Some(address), port.port, &outer);
    }
    if port.node_port != 0 {
        enter(Map::NodePorts, None, port.node_port, &outer);
    }
}

/// A number that changes when the steps do; kept in the kernel to recognise chains after a restart.
pub(crate) fn fingerprint(steps: &[Step]) -> u64 {
    let mut hasher = Stable::default();
    steps.hash(&mut hasher);
    hasher.finish()
}

/// A short stable number of a text.
pub(crate) fn short_hash(text: &str) -> u32 {
    let value = stable(text.bytes());
    (value ^ (value >> 32)) as u32
}

/// Adds a chain's rules to a transaction.
pub(crate) fn emit(to: &mut nft::Transaction, chain: &str, steps: &[Step], owner: &str) {
    let print = fingerprint(steps);
    for step in steps {
        let mut e = nft::Expressions::new();
        match step {
            Step::MarkOutside => {
                e.mark(OUTSIDE);
            }
            Step::InsidersGo { cluster, chain: inner } => {
                e.source(0).network(0, cluster.0, cluster.1, true).goto(inner);
                to.rule(chain, &e, owner, print);
                e = nft::Expressions::new();
                // RTN_LOCAL: an address of this machine.
                e.source_type(0).equal(0, &2_u32.to_ne_bytes()).goto(inner);
            }
            Step::Go(other) => {
                e.goto(other);
            }
            Step::Drop => {
                e.drop();
            }
            Step::Balance { protocol, targets } => {
                e.only_protocol(*protocol);
                pick(to, &mut e, targets, owner);
                e.translate(0, 1);
            }
            Step::Stick(backends) => {
                for Sticky { clients, chain: other } in backends {
                    e.source(0).contained(clients, 0).goto(other);
                    to.rule(chain, &e, owner, print);
                    e = nft::Expressions::new();
                }
                if let [only] = backends.as_slice() {
                    e.goto(&only.chain);
                } else {
                    let values = backends.iter().map(|b| nft::Value::Goto(b.chain.clone()));
                    let (name, id) = numbered(to, nft::Values::Verdict, values, owner);
                    e.random(0, backends.len() as u32).follow(name, Some(id), 0);
                }
            }
            Step::Remember(clients) => {
                e.source(0).remember(clients, 0);
            }
        }
        to.rule(chain, &e, owner, print);
    }
}

/// The data of a backend in a map: address, port.
pub(crate) fn target_data(target: SocketAddrV4) -> Vec<u8> {
    nft::key(&[&target.ip().octets(), &target.port().to_be_bytes()])
}

/// Loads a backend's address and port into registers 0 and 1.
fn pick(
    to: &mut nft::Transaction,
    e: &mut nft::Expressions,
    targets: &[SocketAddrV4],
    owner: &str,
) {
    if let [only] = targets {
        e.load(0, &only.ip().octets()).load(1, &only.port().to_be_bytes());
        return;
    }
    let types = nft::Values::Data(&[nft::Type::Address, nft::Type::Port]);
    let values = targets.iter().map(|t| nft::Value::Data(target_data(*t)));
    let (name, id) = numbered(to, types, values, owner);
    e.random(0, targets.len() as u32).lookup(name, Some(id), 0, 0);
}

/// An anonymous map from 0, 1, 2... to values.
fn numbered(
    to: &mut nft::Transaction,
    types: nft::Values<'_>,
    values: impl Iterator<Item = nft::Value>,
    owner: &str,
) -> (&'static str, u32) {
    let element = |(index, value)| nft::Element {
        key: (index as u32).to_ne_bytes().to_vec(),
        value,
        comment: owner.to_owned(),
    };
    let elements: Vec<_> = values.enumerate().map(element).collect();
    let set = nft::Set { key: &[nft::Type::Integer], values: types, timeout: None, comment: "" };
    to.anonymous(&set, &elements)
}
