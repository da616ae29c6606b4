//! Endpoints: which addresses stand behind a service.
//!
//! Follows upstream's endpoint slice controller: at most 100 endpoints a slice, one set of ports a
//! slice, conditions `ready`, `serving` and `terminating`; and the older `Endpoints` object beside.

use crate::{phase, ready_since};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as OldPort, EndpointSubset, Endpoints, ObjectReference, Pod,
    Service,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which service a slice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Who keeps a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Our name there, upstream's.
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const PER_SLICE: usize = 100;

/// One pod behind a service.
#[derive(Debug, Clone, PartialEq)]
struct Member {
    endpoint: Endpoint,
    ports: Vec<EndpointPort>,
}

/// Whether `service` selects `pod`.
fn selects(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.as_ref()) else {
        return false;
    };
    !selector.is_empty()
        && selector.iter().all(|(key, value)| {
            pod.metadata.labels.as_ref().and_then(|l| l.get(key)) == Some(value)
        })
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

fn ports_of(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let named = |name: &str, protocol: &str| {
        let containers = pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
        containers
            .iter()
            .flat_map(|c| c.ports.iter().flatten())
            .find(|p| {
                p.name.as_deref() == Some(name)
                    && p.protocol.as_deref().unwrap_or("TCP") == protocol
            })
            .map(|p| p.container_port)
    };
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    ports
        .iter()
        .filter_map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let number = match &port.target_port {
                Some(IntOrString::Int(0)) | None => port.port,
                Some(IntOrString::Int(n)) => *n,
                Some(IntOrString::String(name)) => named(name, protocol)?,
            };
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                protocol: Some(protocol.to_owned()),
                port: Some(number),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn member(service: &Service, pod: &Pod) -> Option<Member> {
    if !selects(service, pod) || matches!(phase(pod), "Succeeded" | "Failed") {
        return None;
    }
    let address = pod.status.as_ref()?.pod_ip.clone().filter(|ip| !ip.is_empty())?;
    let spec = pod.spec.as_ref()?;
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = ready_since(pod).is_some();
    let always = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let hostname = spec
        .hostname
        .clone()
        .filter(|h| !h.is_empty() && spec.subdomain.as_deref() == service.metadata.name.as_deref());
    let endpoint = Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(always || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: spec.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    };
    Some(Member { endpoint, ports: ports_of(service, pod) })
}

/// What the slices of a service should be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Slices to make; their names are generated.
    pub create: Vec<EndpointSlice>,
    /// Slices to bring to this content.
    pub update: Vec<EndpointSlice>,
    /// Names of slices to delete.
    pub delete: Vec<String>,
    /// The `Endpoints` object; `None` when it is as it should be.
    pub endpoints: Option<Endpoints>,
}

/// Plans for a service that has a selector. `slices` are those that we keep for it; `known` is its
/// `Endpoints` object.
pub fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    slices: &[Arc<EndpointSlice>],
    known: Option<&Endpoints>,
) -> Plan {
    let members: Vec<Member> = pods.iter().filter_map(|p| member(service, p)).collect();
    let mut by_ports: BTreeMap<String, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    for member in &members {
        let key = serde_json::to_string(&member.ports).unwrap_or_default();
        let group = by_ports.entry(key).or_insert_with(|| (member.ports.clone(), Vec::new()));
        group.1.push(member.endpoint.clone());
    }
    if by_ports.is_empty() {
        // An empty slice says that the service is known and has nobody behind it.
        by_ports.insert(String::new(), (Vec::new(), Vec::new()));
    }
    let mut plan = Plan::default();
    let mut free: Vec<&Arc<EndpointSlice>> = slices.iter().collect();
    for (ports, endpoints) in by_ports.into_values() {
        // Endpoints stay in the slice that they are in, so that one pod's change is one slice's.
        let address = |e: &Endpoint| e.addresses.first().cloned().unwrap_or_default();
        let mut left: BTreeMap<String, Endpoint> =
            endpoints.into_iter().map(|e| (address(&e), e)).collect();
        let (fitting, others): (Vec<_>, Vec<_>) = free
            .into_iter()
            .partition(|s| s.ports.as_deref().unwrap_or_default() == ports.as_slice());
        free = others;
        let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = fitting
            .into_iter()
            .map(|slice| {
                let stays = slice
                    .endpoints
                    .iter()
                    .flatten()
                    .filter_map(|e| left.remove(&address(e)))
                    .collect();
                (slice.clone(), stays)
            })
            .collect();
        let mut left: Vec<Endpoint> = left.into_values().collect();
        for (_, endpoints) in &mut kept {
            let room = PER_SLICE.saturating_sub(endpoints.len()).min(left.len());
            endpoints.extend(left.drain(..room));
        }
        let mut any = !kept.is_empty();
        for (index, (slice, endpoints)) in kept.into_iter().enumerate() {
            if endpoints.is_empty() && index > 0 {
                plan.delete.push(slice.metadata.name.clone().unwrap_or_default());
                continue;
            }
            let mut wanted = fresh(service, &ports, endpoints);
            let labels = wanted.metadata.labels.take();
            wanted.metadata = slice.metadata.clone();
            wanted.metadata.labels = labels;
            wanted.address_type.clone_from(&slice.address_type);
            if !same(&wanted, &slice) {
                plan.update.push(wanted);
            }
        }
        while !left.is_empty() || !any {
            let rest = left.split_off(left.len().min(PER_SLICE));
            plan.create.push(fresh(service, &ports, left));
            left = rest;
            any = true;
        }
    }
    plan.delete.extend(free.iter().filter_map(|s| s.metadata.name.clone()));
    let endpoints = old_form(service, &members);
    if known.is_none_or(|k| {
        k.subsets != endpoints.subsets || k.metadata.labels != endpoints.metadata.labels
    }) {
        plan.endpoints = Some(endpoints);
    }
    plan
}

/// Whether two slices say the same, in whatever order.
pub(crate) fn same(a: &EndpointSlice, b: &EndpointSlice) -> bool {
    let set = |s: &EndpointSlice| -> BTreeSet<String> {
        s.endpoints.iter().flatten().map(|e| serde_json::to_string(e).unwrap_or_default()).collect()
    };
    a.ports.as_deref().unwrap_or_default() == b.ports.as_deref().unwrap_or_default()
        && a.metadata.labels == b.metadata.labels
        && set(a) == set(b)
}

fn fresh(service: &Service, ports: &[EndpointPort], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    EndpointSlice {
        address_type: "IPv4".into(),
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Service".into(),
                name,
                uid: service.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        endpoints: Some(endpoints),
        ports: Some(ports.to_vec()),
    }
}

fn old_form(service: &Service, members: &[Member]) -> Endpoints {
    let mut by_ports: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    for member in members {
        let conditions = member.endpoint.conditions.clone().unwrap_or_default();
        if conditions.terminating == Some(true) && conditions.ready != Some(true) {
            continue;
        }
        let key = serde_json::to_string(&member.ports).unwrap_or_default();
        let subset = by_ports.entry(key).or_insert_with(|| EndpointSubset {
            ports: Some(
                member
                    .ports
                    .iter()
                    .map(|p| OldPort {
                        name: p.name.clone().filter(|n| !n.is_empty()),
                        port: p.port.unwrap_or(0),
                        protocol: p.protocol.clone(),
                        app_protocol: p.app_protocol.clone(),
                    })
                    .collect(),
            ),
            ..EndpointSubset::default()
        });
        let address = EndpointAddress {
            ip: member.endpoint.addresses.first().cloned().unwrap_or_default(),
            hostname: member.endpoint.hostname.clone(),
            node_name: member.endpoint.node_name.clone(),
            target_ref: member.endpoint.target_ref.clone(),
        };
        let list = if conditions.ready == Some(true) {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(address);
    }
    let mut subsets: Vec<EndpointSubset> = by_ports.into_values().collect();
    for subset in &mut subsets {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
    }
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert("endpoints.kubernetes.io/managed-by".into(), "endpoint-controller".into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::{Value, json};

    fn service(ports: Value) -> Service {
        object(json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ports": ports},
        }))
    }

    fn pod(n: usize, ready: bool, dying: bool) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": format!("p{n}"), "namespace": "d", "uid": format!("u{n}"), "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": format!("10.244.{}.{}", n / 250, n % 250 + 2),
                "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]},
        });
        if dying {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(object(value))
    }

    fn http() -> Value {
        json!([{"port": 80, "targetPort": "http", "protocol": "TCP"}])
    }

    #[test]
    fn pods_become_endpoints_with_their_conditions_and_named_ports() {
        let pods = [pod(1, true, false), pod(2, false, false), pod(3, true, true)];
        let plan = plan(&service(http()), &pods, &[], None);
        let [slice] = &plan.create[..] else { panic!("{plan:?}") };
        assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
        let states: Vec<_> = slice
            .endpoints
            .iter()
            .flatten()
            .map(|e| {
                let c = e.conditions.clone().unwrap();
                (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
            })
            .collect();
        assert_eq!(states, [(true, true, false), (false, false, false), (false, true, true)]);
        let old = &plan.endpoints.unwrap().subsets.unwrap()[0];
        assert_eq!(old.addresses.as_ref().unwrap().len(), 1);
        assert_eq!(old.not_ready_addresses.as_ref().unwrap().len(), 1);
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let service = service(http());
        let pods = [pod(1, true, false)];
        let first = plan(&service, &pods, &[], None);
        let mut slice = first.create[0].clone();
        slice.metadata.name = Some("web-abc".into());
        let again = plan(&service, &pods, &[Arc::new(slice)], first.endpoints.as_ref());
        assert_eq!(again, Plan::default());
    }

    #[test]
    fn a_service_without_pods_has_one_empty_slice() {
        let plan = plan(&service(http()), &[], &[], None);
        assert_eq!(plan.create.len(), 1);
        assert_eq!(plan.create[0].endpoints, Some(vec![]));
    }

    #[test]
    fn many_endpoints_are_spread_over_slices_and_stay_where_they_are() {
        let service = service(http());
        let mut pods: Vec<_> = (0..250).map(|n| pod(n, true, false)).collect();
        let first = plan(&service, &pods, &[], None);
        assert_eq!(first.create.len(), 3);
        let slices: Vec<_> = first
            .create
            .into_iter()
            .enumerate()
            .map(|(n, mut s)| {
                s.metadata.name = Some(format!("web-{n}"));
                Arc::new(s)
            })
            .collect();
        pods[7] = pod(7, false, false);
        let second = plan(&service, &pods, &slices, first.endpoints.as_ref());
        assert_eq!((second.create.len(), second.update.len(), second.delete.len()), (0, 1, 0));
    }
}
