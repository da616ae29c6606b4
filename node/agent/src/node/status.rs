//! The node object and its lease. Pure.

use super::observe::{Facts, Pressure};
use crate::time::{micro, time};
use crate::world::Config;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::BTreeMap;
use std::time::Duration;

/// Version of the Kubernetes node API that the agent follows.
pub const KUBELET_VERSION: &str = "v1.37.1";
/// How long a lease lasts.
pub const LEASE_SECONDS: i32 = 40;

/// The node as it is now. `before` is what was reported last, for the times of transitions.
pub fn node(
    config: &Config,
    facts: &Facts,
    pressure: Pressure,
    images: Vec<ContainerImage>,
    before: Option<&Node>,
    now: Duration,
) -> Node {
    let mut labels = config.labels.clone();
    for prefix in ["", "beta."] {
        labels.insert(format!("{prefix}kubernetes.io/arch"), facts.architecture.clone());
        labels.insert(format!("{prefix}kubernetes.io/os"), "linux".to_owned());
    }
    labels.insert("kubernetes.io/hostname".to_owned(), config.node_name.clone());
    let mut addresses = config.addresses.clone();
    if !addresses.iter().any(|a| a.type_ == "Hostname") {
        addresses
            .push(NodeAddress { type_: "Hostname".to_owned(), address: config.node_name.clone() });
    }
    let capacity: BTreeMap<String, Quantity> = [
        ("cpu", (facts.cpu_millis / 1000).to_string()),
        ("memory", format!("{}Ki", facts.memory / 1024)),
        ("ephemeral-storage", format!("{}Ki", facts.storage / 1024)),
        ("pods", config.max_pods.to_string()),
        ("hugepages-1Gi", "0".to_owned()),
        ("hugepages-2Mi", "0".to_owned()),
    ]
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .into();
    let known = before.and_then(|n| n.status.as_ref()).and_then(|s| s.conditions.as_ref());
    let conditions = conditions(pressure, known.map_or(&[][..], Vec::as_slice), now);
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: Some(config.pod_cidr.to_string()),
            pod_cidrs: Some(vec![config.pod_cidr.to_string()]),
            ..NodeSpec::default()
        }),
        status: Some(NodeStatus {
            addresses: Some(addresses),
            allocatable: Some(capacity.clone()),
            capacity: Some(capacity),
            conditions: Some(conditions),
            images: (!images.is_empty()).then_some(images),
            node_info: Some(NodeSystemInfo {
                architecture: facts.architecture.clone(),
                boot_id: facts.boot_id.clone(),
                container_runtime_version: format!("dhow://{}", config.version),
                kernel_version: facts.kernel.clone(),
                kube_proxy_version: String::new(),
                kubelet_version: KUBELET_VERSION.to_owned(),
                machine_id: facts.machine_id.clone(),
                operating_system: "linux".to_owned(),
                os_image: facts.os_image.clone(),
                system_uuid: facts.system_uuid.clone(),
                ..NodeSystemInfo::default()
            }),
            ..NodeStatus::default()
        }),
    }
}

fn conditions(pressure: Pressure, before: &[NodeCondition], now: Duration) -> Vec<NodeCondition> {
    let said = [
        (
            "MemoryPressure",
            pressure.memory,
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        (
            "DiskPressure",
            pressure.disk,
            "KubeletHasDiskPressure",
            "kubelet has disk pressure",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        (
            "PIDPressure",
            pressure.pid,
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        ("Ready", true, "KubeletReady", "kubelet is posting ready status", "", ""),
    ];
    said.into_iter()
        .map(|(kind, holds, reason, message, other_reason, other_message)| {
            let word = if holds { "True" } else { "False" };
            let same = before.iter().find(|c| c.type_ == kind && c.status == word);
            let (reason, message) =
                if holds { (reason, message) } else { (other_reason, other_message) };
            NodeCondition {
                type_: kind.to_owned(),
                status: word.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: Some(time(now)),
                last_transition_time: same
                    .and_then(|c| c.last_transition_time.clone())
                    .or_else(|| Some(time(now))),
            }
        })
        .collect()
}

/// The node's lease. `node` is the stored node, which owns it.
pub fn lease(config: &Config, node: Option<&Node>, now: Duration) -> Lease {
    let uid = node.and_then(|n| n.metadata.uid.clone());
    let owner = uid.map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: config.node_name.clone(),
        uid,
        ..OwnerReference::default()
    });
    Lease {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            namespace: Some("kube-node-lease".to_owned()),
            owner_references: owner.map(|o| vec![o]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(config.node_name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(micro(now)),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config() -> Config {
        Config::new("n1", Path::new("/x"), "10.1.0.0/24".parse().unwrap(), [10, 2, 0, 10].into())
    }

    #[test]
    fn a_node_tells_what_it_has() {
        let facts = Facts {
            cpu_millis: 2000,
            memory: 1 << 30,
            architecture: "amd64".into(),
            ..Facts::default()
        };
        let node =
            node(&config(), &facts, Pressure::default(), Vec::new(), None, Duration::from_secs(5));
        let status = node.status.unwrap();
        assert_eq!(status.capacity.as_ref().unwrap()["memory"].0, "1048576Ki");
        assert_eq!(status.allocatable.unwrap()["cpu"].0, "2");
        assert_eq!(node.metadata.labels.unwrap()["kubernetes.io/hostname"], "n1");
        assert_eq!(status.node_info.unwrap().kubelet_version, "v1.37.1");
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let at = Duration::from_secs;
        let first = conditions(Pressure::default(), &[], at(5));
        let second = conditions(Pressure { disk: true, ..Pressure::default() }, &first, at(9));
        let when = |list: &[NodeCondition], kind: &str| {
            list.iter().find(|c| c.type_ == kind).unwrap().last_transition_time.clone().unwrap()
        };
        assert_eq!(when(&second, "Ready"), time(at(5)));
        assert_eq!(when(&second, "DiskPressure"), time(at(9)));
    }
}
