//! Whether a machine can take a pod: the rules that the scheduler and the machine's agent share;
//! pure.
//!
//! The scheduler asks before it binds a pod. The agent asks before it begins one, because a pod may
//! come past the scheduler, and a machine may change. Follows upstream's plugins `NodeResourcesFit`,
//! `NodeAffinity`, `NodeName`, `NodePorts` and `TaintToleration`.

mod labels;
mod taints;
mod usage;

pub use labels::{matches, selected};
pub use taints::{tolerated, tolerates, tolerations};
pub use usage::{Amounts, HostPort, Usage, offered};

use dhow_reason::{Code, Reason};
use k8s_openapi::api::core::v1::{Node, Pod};

/// Why a machine cannot take a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// Too little is left of something. Processor time counts in thousandths of a core.
    Insufficient {
        /// The resource's name.
        resource: String,
        /// What the pod asks for.
        requested: i64,
        /// What the others take.
        used: i64,
        /// What the machine has.
        capacity: i64,
    },
    /// The machine's labels are not what the pod asks for: the label, or what asks for it.
    Labels(String, String),
    /// The pod names another machine.
    Elsewhere(String),
    /// Another pod has this port of the machine.
    Port(i32),
    /// The pod does not tolerate the taint with this key.
    Taint(String),
}

impl Misfit {
    /// The same as data, about a machine or a pod.
    pub fn reason(&self, object: impl Into<String>) -> Reason {
        let object = object.into();
        match self {
            Self::Insufficient { resource, requested, used, capacity } => {
                let free = (capacity - used).max(0);
                match resource.as_str() {
                    "pods" => Reason::new(Code::TooManyPods, object).with("allowed", capacity),
                    "cpu" => Reason::new(Code::InsufficientCpu, object)
                        .with("requested", format!("{requested}m"))
                        .with("free", format!("{free}m")),
                    "memory" => Reason::new(Code::InsufficientMemory, object)
                        .with("requested", requested)
                        .with("free", free),
                    other => Reason::new(Code::InsufficientResource, object)
                        .with("resource", other)
                        .with("requested", requested)
                        .with("free", free),
                }
            }
            Self::Labels(key, value) => {
                Reason::new(Code::NodeSelectorMismatch, object).with(key, value)
            }
            Self::Elsewhere(wanted) => {
                Reason::new(Code::NodeSelectorMismatch, object).with("wanted", wanted)
            }
            Self::Port(port) => Reason::new(Code::HostPortTaken, object).with("port", port),
            Self::Taint(key) => Reason::new(Code::UntoleratedTaint, object).with("taint", key),
        }
    }
}

/// A pod that names its machine goes nowhere else.
///
/// # Errors
/// When it names another.
pub fn named(pod: &Pod, node: &Node) -> Result<(), Misfit> {
    match pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty()) {
        Some(wanted) if node.metadata.name.as_deref() != Some(wanted) => {
            Err(Misfit::Elsewhere(wanted.to_owned()))
        }
        _ => Ok(()),
    }
}

/// Everything that a machine has too little of for a pod that takes `asked`, beside others that take
/// `used`: the number of pods first, then processor time, memory, disk, and what vendors name.
pub fn shortages(asked: &Usage, used: &Usage, offered: &Amounts) -> Vec<Misfit> {
    const FIRST: [&str; 4] = ["pods", "cpu", "memory", "ephemeral-storage"];
    let others = asked.amounts.keys().map(String::as_str).filter(|name| !FIRST.contains(name));
    let of = |amounts: &Amounts, name: &str| amounts.get(name).copied().unwrap_or(0);
    FIRST
        .into_iter()
        .chain(others)
        .filter_map(|resource| {
            let (requested, capacity) = (of(&asked.amounts, resource), of(offered, resource));
            let used = of(&used.amounts, resource);
            (requested > 0 && used.saturating_add(requested) > capacity).then(|| {
                Misfit::Insufficient { resource: resource.to_owned(), requested, used, capacity }
            })
        })
        .collect()
}

/// The ports of the machine that a pod asks for.
///
/// # Errors
/// When another has one of them.
pub fn ports(asked: &Usage, used: &Usage) -> Result<(), Misfit> {
    let clash = |port: &&HostPort| used.host_ports.iter().any(|taken| taken.clashes(port));
    match asked.host_ports.iter().find(clash) {
        Some(port) => Err(Misfit::Port(port.port)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn usage(spec: serde_json::Value) -> Usage {
        Usage::of(&serde_json::from_value(json!({"spec": spec})).unwrap())
    }

    fn container(requests: serde_json::Value) -> serde_json::Value {
        json!({"containers": [{"name": "c", "resources": {"requests": requests}}]})
    }

    fn machine() -> Amounts {
        let node = json!({"status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}}});
        offered(&serde_json::from_value(node).unwrap())
    }

    #[test]
    fn what_is_short_is_told_in_upstreams_order() {
        let asked = usage(container(json!({
            "example.com/sail": "1", "memory": "2Gi", "cpu": "3", "ephemeral-storage": "1",
        })));
        let mut used = Usage::default();
        used.add(&usage(container(json!({"cpu": "500m"}))));
        used.add(&usage(container(json!({}))));
        let all = shortages(&asked, &used, &machine());
        let names: Vec<_> = all.iter().map(|m| m.reason("node a").code).collect();
        let other = Code::InsufficientResource;
        assert_eq!(
            names,
            [Code::TooManyPods, Code::InsufficientCpu, Code::InsufficientMemory, other, other]
        );
        let cpu = Misfit::Insufficient {
            resource: "cpu".into(),
            requested: 3000,
            used: 500,
            capacity: 2000,
        };
        assert_eq!(all[1], cpu);
        assert!(
            shortages(&usage(container(json!({"cpu": "2"}))), &Usage::default(), &machine())
                .is_empty()
        );
    }

    #[test]
    fn sums_beyond_all_measure_fit_nowhere() {
        let much = json!({"requests": {"memory": "9223372036854775807"}});
        let asked = usage(json!({"containers": [
            {"name": "a", "resources": much}, {"name": "b", "resources": much},
        ]}));
        assert_eq!(shortages(&asked, &asked, &machine()).len(), 1);
    }

    #[test]
    fn a_port_is_taken_on_its_address_or_on_all() {
        let port = |address: &str, protocol: &str| {
            usage(json!({"containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 80, "hostIP": address, "protocol": protocol},
            ]}]}))
        };
        assert_eq!(ports(&port("", "TCP"), &port("10.0.0.1", "TCP")), Err(Misfit::Port(80)));
        assert_eq!(
            ports(&port("10.0.0.1", "TCP"), &port("10.0.0.1", "TCP")),
            Err(Misfit::Port(80))
        );
        assert_eq!(ports(&port("10.0.0.1", "TCP"), &port("10.0.0.2", "TCP")), Ok(()));
        assert_eq!(ports(&port("", "UDP"), &port("", "TCP")), Ok(()));
    }

    #[test]
    fn a_pod_goes_to_the_machine_that_it_names() {
        let pod = |name: &str| serde_json::from_value(json!({"spec": {"nodeName": name}})).unwrap();
        let node = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
        assert_eq!(named(&pod("a"), &node), Ok(()));
        assert_eq!(named(&pod(""), &node), Ok(()));
        assert_eq!(named(&pod("b"), &node), Err(Misfit::Elsewhere("b".into())));
    }
}
