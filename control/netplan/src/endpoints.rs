//! Which endpoints of a service take traffic.

use dhow_intents::Protocol;
use k8s_openapi::api::core::v1::ServiceSpec;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A port of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
}

/// One address of a service with everything that was said about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) node: String,
    pub(crate) hostname: Option<String>,
    pub(crate) ports: Vec<Port>,
}

/// Targets by address, in the order of addresses: stable however slices are cut.
pub(crate) type Targets = BTreeMap<IpAddr, Target>;

pub(crate) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// How ready an endpoint is, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    Ready,
    /// Stops, but still answers: better than nobody.
    Leaving,
    Not,
}

fn grade(endpoint: &Endpoint, publish_all: bool) -> Grade {
    let Some(conditions) = &endpoint.conditions else { return Grade::Ready };
    // What is not said counts as ready and serving (discovery.k8s.io/v1).
    let ready = conditions.ready.unwrap_or(true);
    if ready || publish_all {
        return Grade::Ready;
    }
    let serving = conditions.serving.unwrap_or(ready);
    if serving && conditions.terminating.unwrap_or(false) { Grade::Leaving } else { Grade::Not }
}

fn is_family_wanted(address: IpAddr, spec: &ServiceSpec) -> bool {
    let name = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    spec.ip_families.as_ref().is_none_or(|f| f.is_empty() || f.iter().any(|f| f == name))
}

/// The ready endpoints.
pub(crate) fn ready(spec: &ServiceSpec, slices: &[Arc<EndpointSlice>]) -> Targets {
    ready_and_leaving(spec, slices).0
}

/// The ready endpoints, and those that stop but still answer.
pub(crate) fn ready_and_leaving(
    spec: &ServiceSpec,
    slices: &[Arc<EndpointSlice>],
) -> (Targets, Targets) {
    let publish_all = spec.publish_not_ready_addresses.unwrap_or(false);
    let mut grades: BTreeMap<IpAddr, (Grade, Target)> = BTreeMap::new();
    for slice in slices {
        let ports: Vec<Port> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|p| {
                Some(Port {
                    name: p.name.clone().unwrap_or_default(),
                    protocol: protocol(p.protocol.as_deref())?,
                    number: u16::try_from(p.port?).ok().filter(|n| *n != 0)?,
                })
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            // All addresses of an endpoint are the same endpoint; readers take the first. Names in
            // place of addresses (address type FQDN) carry no traffic.
            let Some(address) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else {
                continue;
            };
            if !is_family_wanted(address, spec) {
                continue;
            }
            let grade = grade(endpoint, publish_all);
            let entry = grades.entry(address).or_insert_with(|| (Grade::Not, Target::default()));
            if grade < entry.0 {
                // A better word about the same address: what was said before is outdated.
                *entry = (grade, Target::default());
            }
            if grade == entry.0 {
                let target = &mut entry.1;
                if target.node.is_empty() {
                    target.node = endpoint.node_name.clone().unwrap_or_default();
                }
                let hostname = || endpoint.hostname.clone().filter(|h| !h.is_empty());
                target.hostname = target.hostname.take().or_else(hostname);
                target.ports.extend(ports.iter().cloned());
            }
        }
    }
    let pick = |wanted: Grade| -> Targets {
        let of_grade = grades.iter().filter(|(_, (grade, _))| *grade == wanted);
        let mut picked: Targets =
            of_grade.map(|(address, (_, target))| (*address, target.clone())).collect();
        for target in picked.values_mut() {
            target.ports.sort();
            target.ports.dedup();
        }
        picked
    };
    (pick(Grade::Ready), pick(Grade::Leaving))
}
