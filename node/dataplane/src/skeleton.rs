//! What every machine's table holds before there is any service: maps, base chains, their rules.

use crate::program::{Map, OUTSIDE, REFUSE};
use crate::{Config, addresses};
use dhow_kernel::net::nft::{Expressions, Hook, Set, Transaction, Type, Values};

/// Pods by their own address twice: a pod that reaches itself through a service.
pub(crate) const HAIRPINS: &str = "hairpins";
/// Protocol and port on the machine to a pod's address and port.
pub(crate) const HOST_PORTS: &str = "host_ports";

const SERVICES: &str = "services";
const NAT: &str = "nat";
/// `NF_IP_PRI_NAT_DST` and `NF_IP_PRI_NAT_SRC`.
const DESTINATION: i32 = -100;
const SOURCE: i32 = 100;
/// Type of an address of this machine.
const LOCAL: [u8; 4] = 2_u32.to_ne_bytes();
/// Bit of the connection status: its destination is translated.
const TRANSLATED: [u8; 4] = 0x20_u32.to_ne_bytes();

/// Adds everything to a transaction. What exists already is kept, but the rules of the base chains
/// are written anew, so that they are those of this version.
pub(crate) fn build(to: &mut Transaction, config: &Config) {
    let owner = format!("node:{}@0", config.node_name);
    let owner = owner.as_str();
    to.table(owner);
    for map in Map::ALL {
        let (key, values) = (map.key_types(), Values::Verdict);
        to.set(map.name(), &Set { key, values, timeout: None, comment: owner });
    }
    to.set(
        HOST_PORTS,
        &Set {
            key: &[Type::Protocol, Type::Port],
            values: Values::Data(&[Type::Address, Type::Port]),
            timeout: None,
            comment: owner,
        },
    );
    to.set(
        HAIRPINS,
        &Set {
            key: &[Type::Address, Type::Address],
            values: Values::None,
            timeout: None,
            comment: owner,
        },
    );
    let hook = |number, priority| Some(Hook { kind: NAT, number, priority });
    let chains = [
        (REFUSE, None),
        (SERVICES, None),
        ("prerouting", hook(0, DESTINATION)),
        ("output", hook(3, DESTINATION)),
        ("postrouting", hook(4, SOURCE)),
    ];
    for (name, hook) in chains {
        to.chain(name, hook, owner).flush_chain(name);
    }
    let rules: [(&str, Vec<Expressions>); 5] = [
        (REFUSE, refuse()),
        (SERVICES, services(config)),
        ("prerouting", prerouting(config)),
        ("output", vec![rule(|e| _ = e.jump(SERVICES))]),
        ("postrouting", postrouting(config)),
    ];
    for (chain, rules) in rules {
        for expressions in &rules {
            to.rule(chain, expressions, owner, 0);
        }
    }
}

fn rule(fill: impl FnOnce(&mut Expressions)) -> Expressions {
    let mut e = Expressions::new();
    fill(&mut e);
    e
}

fn refuse() -> Vec<Expressions> {
    vec![rule(|e| _ = e.only_protocol(6).reset()), rule(|e| _ = e.unreachable())]
}

/// Only the first packet of a connection comes here; the rest follows the connection.
fn services(config: &Config) -> Vec<Expressions> {
    let (network, prefix) = (config.service_cidr.network(), config.service_cidr.prefix_len());
    vec![
        rule(|e| {
            e.destination(0).protocol(1).destination_port(2);
            e.follow(Map::ClusterIps.name(), None, 0);
        }),
        rule(|e| {
            e.destination(0).protocol(1).destination_port(2);
            e.follow(Map::ExternalIps.name(), None, 0);
        }),
        rule(|e| {
            e.destination_type(0).equal(0, &LOCAL).protocol(0).destination_port(1);
            e.follow(Map::NodePorts.name(), None, 0);
        }),
        rule(|e| {
            e.destination_type(0).equal(0, &LOCAL).protocol(0).destination_port(1);
            e.lookup(HOST_PORTS, None, 0, 0).translate(0, 1);
        }),
        // No such service or port: say so at once instead of leaving the client to its time-out.
        rule(|e| {
            e.destination(0).network(0, network, prefix, true);
            e.destination_type(0).differ(0, &LOCAL).goto(REFUSE);
        }),
    ]
}

fn prerouting(config: &Config) -> Vec<Expressions> {
    let cluster = (config.cluster_cidr.network(), config.cluster_cidr.prefix_len());
    let service = (config.service_cidr.network(), config.service_cidr.prefix_len());
    vec![
        // A stranger that routes service addresses through this machine.
        rule(|e| {
            e.destination(0).network(0, service.0, service.1, true);
            e.source(0).network(0, cluster.0, cluster.1, false).mark(OUTSIDE);
        }),
        rule(|e| _ = e.jump(SERVICES)),
        // Pods' links may carry loopback addresses (for `localhost:PORT` of the machine); a pod
        // itself must not reach what listens on the machine's loopback.
        rule(|e| {
            e.destination(0).network(0, [127, 0, 0, 0].into(), 8, true);
            e.input_name(0).equal(0, config.name.as_bytes()).drop();
        }),
    ]
}

fn postrouting(config: &Config) -> Vec<Expressions> {
    let pods = (config.pod_cidr.network(), config.pod_cidr.prefix_len());
    let cluster = (config.cluster_cidr.network(), config.cluster_cidr.prefix_len());
    let machine = addresses::machine(config.pod_cidr).octets();
    vec![
        // From outside to a backend elsewhere: the answer must come back through this machine. A
        // backend here answers through this machine in any case and so sees its real client.
        rule(|e| {
            e.destination(0).network(0, pods.0, pods.1, false);
            e.take_mark(OUTSIDE).masquerade();
        }),
        // A pod that reaches itself: it would take its own answer for a stranger's packet.
        rule(|e| {
            e.source(0).destination(1).contained(HAIRPINS, 0);
            e.connection_status(0).bits(0, TRANSLATED, [0; 4]).differ(0, &[0; 4]);
            e.load(0, &machine).translate_source(0);
        }),
        // The machine's `localhost`, translated to a pod.
        rule(|e| {
            e.source(0).network(0, [127, 0, 0, 0].into(), 8, true);
            e.destination(0).network(0, [127, 0, 0, 0].into(), 8, false);
            e.load(0, &machine).translate_source(0);
        }),
        // Pods to the rest of the world.
        rule(|e| {
            e.source(0).network(0, pods.0, pods.1, true);
            e.destination(0).network(0, cluster.0, cluster.1, false).masquerade();
        }),
    ]
}
