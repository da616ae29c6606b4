//! What pods take of a machine, and what it offers.

use dhow_objects::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use std::collections::BTreeMap;

/// Amounts by resource: processor time in thousandths of a core, everything else in its own unit.
pub type Amounts = BTreeMap<String, i64>;

/// A port of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The address that it is on; empty for all.
    pub address: String,
    /// Its number.
    pub port: i32,
}

impl HostPort {
    /// Whether only one pod can have both.
    pub fn clashes(&self, other: &Self) -> bool {
        let any = |address: &str| matches!(address, "" | "0.0.0.0" | "::");
        self.protocol == other.protocol
            && self.port == other.port
            && (self.address == other.address || any(&self.address) || any(&other.address))
    }
}

/// What pods take of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// Sums of requests; `pods` counts them.
    pub amounts: Amounts,
    /// Ports of the machine.
    pub host_ports: Vec<HostPort>,
}

impl Usage {
    /// What one pod takes.
    pub fn of(pod: &Pod) -> Self {
        let mut amounts = Amounts::from([("pods".to_owned(), 1)]);
        let Some(spec) = &pod.spec else { return Self { amounts, host_ports: Vec::new() } };
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let lists = containers.filter_map(|c| c.resources.as_ref()?.requests.as_ref());
        let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
        for name in lists.chain(whole).chain(&spec.overhead).flat_map(|list| list.keys()) {
            if !amounts.contains_key(name) {
                amounts.insert(name.clone(), request(spec, name));
            }
        }
        Self { amounts, host_ports: host_ports(spec) }
    }

    /// Adds what others take.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.amounts {
            match self.amounts.get_mut(name) {
                Some(sum) => *sum = sum.saturating_add(*amount),
                None => drop(self.amounts.insert(name.clone(), *amount)),
            }
        }
        self.host_ports.extend_from_slice(&other.host_ports);
    }

    /// How much of one resource.
    pub fn amount(&self, resource: &str) -> i64 {
        self.amounts.get(resource).copied().unwrap_or(0)
    }
}

/// What a machine offers.
pub fn offered(node: &Node) -> Amounts {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let named = allocatable.into_iter().flatten();
    named.filter_map(|(name, amount)| Some((name.clone(), read(name, amount)?))).collect()
}

fn read(name: &str, amount: &Written) -> Option<i64> {
    let parsed: Quantity = amount.0.parse().ok()?;
    Some(if name == "cpu" { parsed.milli_value() } else { parsed.value() })
}

/// What a pod asks for of one resource, plus its overhead: what is said of the pod as a whole, or else
/// what its containers take.
fn request(spec: &PodSpec, name: &str) -> i64 {
    let in_list = |list: &BTreeMap<String, Written>| read(name, list.get(name)?);
    let whole = spec.resources.as_ref().and_then(|r| in_list(r.requests.as_ref()?));
    let overhead = spec.overhead.as_ref().and_then(in_list).unwrap_or(0);
    whole.unwrap_or_else(|| request_of_containers(spec, name)).saturating_add(overhead)
}

/// The sum over a pod's containers, or the most that it takes while its init containers run, if that
/// is more. Sidecars run on beside all that come after them.
fn request_of_containers(spec: &PodSpec, name: &str) -> i64 {
    let of = |c: &Container| {
        let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
        requests.and_then(|list| read(name, list.get(name)?)).unwrap_or(0)
    };
    let (mut sidecars, mut starting) = (0i64, 0i64);
    for container in spec.init_containers.iter().flatten() {
        let beside = sidecars.saturating_add(of(container));
        starting = starting.max(beside);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = beside;
        }
    }
    let running = spec.containers.iter().map(of).fold(sidecars, i64::saturating_add);
    running.max(starting)
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            Some(HostPort {
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                address: p.host_ip.clone().unwrap_or_default(),
                port: p.host_port.filter(|n| *n > 0)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn amounts(spec: Value) -> Amounts {
        Usage::of(&serde_json::from_value(json!({"spec": spec})).unwrap()).amounts
    }

    fn container(requests: Value, policy: Option<&str>) -> Value {
        json!({"name": "c", "resources": {"requests": requests}, "restartPolicy": policy})
    }

    #[test]
    fn init_containers_count_by_the_most_that_runs_at_a_time() {
        let cpu = |amount: &str, policy| container(json!({"cpu": amount}), policy);
        let main = cpu("1", None);
        let of =
            |inits: Value| amounts(json!({"initContainers": inits, "containers": [main]}))["cpu"];
        assert_eq!(of(json!([cpu("1500m", None)])), 1500);
        assert_eq!(of(json!([cpu("500m", Some("Always"))])), 1500);
        assert_eq!(of(json!([cpu("500m", Some("Always")), cpu("2", None)])), 2500);
        // A sidecar that comes later does not run yet.
        assert_eq!(of(json!([cpu("2", None), cpu("500m", Some("Always"))])), 2000);
    }

    #[test]
    fn what_a_pod_asks_for_as_a_whole_counts_instead_of_its_containers() {
        let found = amounts(json!({
            "resources": {"requests": {"cpu": "1500m"}},
            "containers": [container(json!({"cpu": "1", "memory": "1Mi"}), None)],
            "overhead": {"cpu": "10m"},
        }));
        assert_eq!((found["cpu"], found["memory"]), (1510, 1 << 20));
    }

    #[test]
    fn everything_that_is_named_counts_and_so_does_overhead() {
        let found = amounts(json!({
            "containers": [container(json!({"example.com/sail": "2", "memory": "1Mi"}), None)],
            "overhead": {"memory": "1Mi", "cpu": "10m"},
        }));
        let expected = [("cpu", 10), ("example.com/sail", 2), ("memory", 2 << 20), ("pods", 1)];
        assert_eq!(found, expected.map(|(name, n)| (name.to_owned(), n)).into());
    }
}
