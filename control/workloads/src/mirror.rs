//! Mirroring: endpoint slices for `Endpoints` that somebody writes by hand.
//!
//! Follows upstream's endpoint slice mirroring controller. Services without a selector may have
//! `Endpoints` of their owner's making; traffic and names go by slices alone.

use crate::endpoints::{MANAGED_BY, Plan, SERVICE_NAME, same};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::Arc;

/// Our name in [`MANAGED_BY`], upstream's.
pub const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// On `Endpoints` that are made of a service's pods.
const OLD_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// Once held a lease: such `Endpoints` have no addresses.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// What `kubectl apply` remembers is of the original alone.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// More endpoints do not fit into a slice.
const PER_SLICE: usize = 1000;

/// Whether slices stand in for `endpoints`: their service has no selector, and nobody says otherwise.
pub fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let meta = &endpoints.metadata;
    let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key));
    let leader = meta.annotations.as_ref().is_some_and(|all| all.contains_key(LEADER));
    let spec = service.and_then(|service| service.spec.as_ref());
    spec.is_some_and(|spec| spec.selector.as_ref().is_none_or(BTreeMap::is_empty))
        && meta.deletion_timestamp.is_none()
        && label(SKIP).is_none_or(|skip| skip != "true")
        && label(OLD_MANAGED_BY).is_none()
        && !leader
}

/// What becomes of `slices`, which are those that mirror `endpoints`; without any they go.
pub fn plan(endpoints: Option<&Endpoints>, slices: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    let mut free: Vec<&Arc<EndpointSlice>> = slices.iter().collect();
    for wanted in endpoints.map(mirrored).unwrap_or_default() {
        // The type of its addresses is all that a slice cannot change.
        let fits = |slice: &EndpointSlice| slice.address_type == wanted.address_type;
        let best = free.iter().position(|slice| fits(slice) && slice.ports == wanted.ports);
        match best.or_else(|| free.iter().position(|slice| fits(slice))) {
            None => plan.create.push(wanted),
            Some(place) => {
                let slice = free.remove(place);
                let mut next = EndpointSlice { metadata: slice.metadata.clone(), ..wanted.clone() };
                next.metadata.labels = wanted.metadata.labels;
                next.metadata.annotations = wanted.metadata.annotations;
                if !same(&next, slice) || next.metadata.annotations != slice.metadata.annotations {
                    plan.update.push(next);
                }
            }
        }
    }
    plan.delete.extend(free.iter().filter_map(|slice| slice.metadata.name.clone()));
    plan
}

/// The slices that say what `endpoints` say: one for each set of ports and type of address.
fn mirrored(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut slices: Vec<EndpointSlice> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let others = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(others) {
            let six = address.ip.parse::<Ipv6Addr>().is_ok();
            let address_type = if six { "IPv6" } else { "IPv4" };
            let of = |slice: &EndpointSlice| {
                slice.address_type == address_type && slice.ports.as_ref() == Some(&ports)
            };
            let place = slices.iter().position(of).unwrap_or_else(|| {
                slices.push(EndpointSlice {
                    address_type: address_type.to_owned(),
                    metadata: metadata(endpoints),
                    endpoints: Some(Vec::new()),
                    ports: Some(ports.clone()),
                });
                slices.len() - 1
            });
            let all = slices[place].endpoints.get_or_insert_default();
            if all.len() < PER_SLICE {
                all.push(endpoint(address, ready));
            }
        }
    }
    slices
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten();
    ports
        .map(|port| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn metadata(endpoints: &Endpoints) -> ObjectMeta {
    let meta = &endpoints.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: meta.namespace.clone(),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Endpoints".to_owned(),
            name,
            uid: meta.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::{Value, json};

    fn endpoints(labels: Value, subsets: Value) -> Endpoints {
        object(json!({
            "metadata": {
                "name": "db", "namespace": "d", "uid": "e", "labels": labels,
                "annotations": {LAST_APPLIED: "{}", "note": "kept"},
            },
            "subsets": subsets,
        }))
    }

    fn one(ip: &str) -> Value {
        json!([{"addresses": [{"ip": ip}], "ports": [{"port": 5432}]}])
    }

    fn service(spec: Value) -> Service {
        object(json!({"metadata": {"name": "db"}, "spec": spec}))
    }

    /// A slice as the store has it.
    fn stored(slice: &EndpointSlice, name: &str) -> Arc<EndpointSlice> {
        let mut slice = slice.clone();
        slice.metadata.name = Some(name.to_owned());
        Arc::new(slice)
    }

    #[test]
    fn endpoints_of_a_service_without_a_selector_are_mirrored_unless_somebody_says_otherwise() {
        let bare = service(json!({"ports": [{"port": 80}]}));
        let selecting = service(json!({"selector": {"app": "db"}}));
        let plain = endpoints(json!({"tier": "data"}), one("10.0.0.1"));
        assert!(is_mirrored(&plain, Some(&bare)));
        assert!(!is_mirrored(&plain, Some(&selecting)));
        assert!(!is_mirrored(&plain, None));
        let skipped = endpoints(json!({SKIP: "true"}), one("10.0.0.1"));
        assert!(!is_mirrored(&skipped, Some(&bare)));
        let made = endpoints(json!({OLD_MANAGED_BY: "endpoint-controller"}), one("10.0.0.1"));
        assert!(!is_mirrored(&made, Some(&bare)));
    }

    #[test]
    fn each_set_of_ports_and_type_of_address_has_a_slice() {
        let subsets = json!([
            {
                "addresses": [{"ip": "10.0.0.1", "hostname": "one"}, {"ip": "fd00::1"}],
                "notReadyAddresses": [{"ip": "10.0.0.2"}],
                "ports": [{"name": "sql", "port": 5432}],
            },
            {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"name": "sql", "port": 5433}]},
        ]);
        let plan = plan(Some(&endpoints(json!({"tier": "data"}), subsets)), &[]);
        let told: Vec<_> = plan
            .create
            .iter()
            .map(|slice| {
                let port = slice.ports.as_ref().unwrap()[0].port.unwrap();
                let of = |e: &Endpoint| {
                    (e.addresses[0].clone(), e.conditions.as_ref().unwrap().ready.unwrap())
                };
                let all: Vec<_> = slice.endpoints.iter().flatten().map(of).collect();
                (slice.address_type.as_str(), port, all)
            })
            .collect();
        assert_eq!(
            told,
            [
                ("IPv4", 5432, vec![("10.0.0.1".into(), true), ("10.0.0.2".into(), false)]),
                ("IPv6", 5432, vec![("fd00::1".into(), true)]),
                ("IPv4", 5433, vec![("10.0.0.3".into(), true)]),
            ]
        );
        let meta = &plan.create[0].metadata;
        let labels = meta.labels.as_ref().unwrap();
        assert_eq!((labels["tier"].as_str(), labels[SERVICE_NAME].as_str()), ("data", "db"));
        assert_eq!(meta.annotations.as_ref().unwrap().keys().collect::<Vec<_>>(), ["note"]);
        assert_eq!(meta.owner_references.as_ref().unwrap()[0].kind, "Endpoints");
    }

    #[test]
    fn a_slice_follows_its_endpoints_and_goes_with_them() {
        let first = plan(Some(&endpoints(json!({}), one("10.0.0.1"))), &[]).create;
        let known = [stored(&first[0], "db-a")];
        let same = endpoints(json!({}), one("10.0.0.1"));
        assert_eq!(plan(Some(&same), &known), Plan::default());
        let moved = plan(Some(&endpoints(json!({}), one("10.0.0.9"))), &known);
        assert_eq!((moved.create.len(), moved.update.len(), moved.delete.len()), (0, 1, 0));
        assert_eq!(moved.update[0].metadata.name.as_deref(), Some("db-a"));
        assert_eq!(plan(None, &known).delete, ["db-a"]);
    }
}
