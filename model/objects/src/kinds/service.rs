//! `Service`: one address for many pods.

use super::column::{AGE, Column, NAME, items, labels, number, text};
use super::fill::{each, object_at, set};
use super::{BASE, Generation, Kind, NameRule, Prepare, STATUS_VERBS, SelectableField};
use super::{StatusOnCreate, Subresource};
use serde_json::{Value, json};

/// `v1 Service`.
pub static SERVICE: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    storage: "core/services",
    name_rule: NameRule::Label,
    subresources: &[Subresource {
        name: "status",
        group: "",
        version: "v1",
        kind: "Service",
        verbs: STATUS_VERBS,
    }],
    fields: &[
        SelectableField { label: "spec.clusterIP", path: "spec.clusterIP", absent: "" },
        SelectableField { label: "spec.type", path: "spec.type", absent: "" },
    ],
    columns: &[
        NAME,
        Column::text("Type", "How the service is exposed.", |v, _| json!(text(v, "/spec/type"))),
        Column::text("Cluster-IP", "Address inside the cluster.", |v, _| json!(cluster_ip(v))),
        Column::text("External-IP", "Addresses outside the cluster.", |v, _| json!(external_ip(v))),
        Column::text("Port(s)", "Ports, with their node ports.", |v, _| json!(ports(v))),
        AGE,
        Column::text("Selector", "Which pods stand behind it.", |v, _| {
            json!(labels(v.pointer("/spec/selector")))
        })
        .wide(),
    ],
    default,
    prepare: Prepare {
        status: StatusOnCreate::Reset(|_| json!({"loadBalancer": {}})),
        generation: Generation::None,
        status_writes_metadata: false,
    },
    ..BASE
};

fn cluster_ip(service: &Value) -> &str {
    let ip = items(service, "/spec/clusterIPs").first().and_then(Value::as_str);
    match ip.unwrap_or_else(|| text(service, "/spec/clusterIP")) {
        "" => "<none>",
        ip => ip,
    }
}

fn external_ip(service: &Value) -> String {
    let given =
        || items(service, "/spec/externalIPs").iter().filter_map(Value::as_str).collect::<Vec<_>>();
    match text(service, "/spec/type") {
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let mut all: Vec<&str> = items(service, "/status/loadBalancer/ingress")
                .iter()
                .map(|i| match text(i, "/ip") {
                    "" => text(i, "/hostname"),
                    ip => ip,
                })
                .filter(|a| !a.is_empty())
                .collect();
            all.extend(given());
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ => {
            let given = given();
            if given.is_empty() { "<none>".to_owned() } else { given.join(",") }
        }
    }
}

fn ports(service: &Value) -> String {
    let all: Vec<String> = items(service, "/spec/ports")
        .iter()
        .map(|p| {
            let (port, protocol) = (number(p, "/port"), text(p, "/protocol"));
            match number(p, "/nodePort") {
                0 => format!("{port}/{protocol}"),
                node_port => format!("{port}:{node_port}/{protocol}"),
            }
        })
        .collect();
    if all.is_empty() { "<none>".to_owned() } else { all.join(",") }
}

/// Three hours.
const AFFINITY_SECONDS: i64 = 10_800;

fn default(service: &mut Value) {
    let Some(spec) = object_at(service, &["spec"]) else { return };
    set(spec, "type", json!("ClusterIP"));
    set(spec, "sessionAffinity", json!("None"));
    if spec["sessionAffinity"] == "None" {
        spec.remove("sessionAffinityConfig");
    }
    for port in each(spec, "ports") {
        set(port, "protocol", json!("TCP"));
        if port.get("targetPort") == Some(&json!(0)) {
            port.remove("targetPort");
        }
        if let Some(number) = port.get("port").cloned() {
            set(port, "targetPort", number);
        }
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    let external = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|a| !a.is_empty());
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external) {
        set(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    if spec["sessionAffinity"] == "ClientIP"
        && let Some(client) = object_at(service, &["spec", "sessionAffinityConfig", "clientIP"])
    {
        set(client, "timeoutSeconds", json!(AFFINITY_SECONDS));
    }
}
