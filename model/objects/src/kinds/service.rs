//! `Service`: one address for many pods.

use super::check::Checks;
use super::column::{AGE, Column, NAME, items, labels, number, text};
use super::fill::{each, object_at, set};
use super::{
    BASE, Generation, Kind, NameRule, PROXY_VERBS, Prepare, STATUS_VERBS, SelectableField,
};
use super::{StatusOnCreate, Subresource};
use crate::names;
use crate::status::StatusCause;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// `v1 Service`.
pub static SERVICE: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    storage: "core/services",
    name_rule: NameRule::Label,
    subresources: &[
        Subresource::new("proxy", "", "ServiceProxyOptions", PROXY_VERBS),
        Subresource::new("status", "", "Service", STATUS_VERBS),
    ],
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
    validate,
    prepare: Prepare {
        status: StatusOnCreate::Reset(|_| json!({"loadBalancer": {}})),
        generation: Generation::None,
        status_writes_metadata: false,
    },
    create_on_update: true,
    ..BASE
};

/// Whether clients outside the platform reach a service.
#[must_use]
pub fn is_external_service(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !items(service, "/spec/externalIPs").is_empty(),
        _ => false,
    }
}

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

/// In seconds: the longest affinity.
const DAY: i64 = 86_400;

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
    // The first address also stands alone, under its older name.
    if let Some(ip) = spec.get("clusterIP").cloned().filter(|ip| ip.as_str() != Some(""))
        && !spec.contains_key("clusterIPs")
    {
        spec.insert("clusterIPs".into(), json!([ip]));
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    if spec["sessionAffinity"] == "ClientIP"
        && let Some(client) = object_at(service, &["spec", "sessionAffinityConfig", "clientIP"])
    {
        set(client, "timeoutSeconds", json!(AFFINITY_SECONDS));
    }
    if is_external_service(service)
        && let Some(spec) = object_at(service, &["spec"])
    {
        set(spec, "externalTrafficPolicy", json!("Cluster"));
    }
}

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

fn validate(new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let empty = json!({});
    let spec = new.get("spec").unwrap_or(&empty);
    let kind = text(spec, "/type");
    let headless = text(spec, "/clusterIP") == "None";
    if items(spec, "/ports").is_empty() && !headless && kind != "ExternalName" {
        checks.required("spec.ports", "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => checks.invalid(
            "spec.clusterIPs[0]",
            "None",
            &format!("may not be set to 'None' for {kind} services"),
        ),
        "ExternalName" => {
            if !items(spec, "/clusterIPs").is_empty() || !text(spec, "/clusterIP").is_empty() {
                checks.forbidden("spec.clusterIPs", "may not be set for ExternalName services");
            }
            match text(spec, "/externalName").trim_end_matches('.') {
                "" => checks.required("spec.externalName", ""),
                name => checks.invalid_all("spec.externalName", name, names::dns_subdomain(name)),
            }
        }
        _ => {}
    }
    validate_ports(&mut checks, spec);
    checks.labels("spec.selector", spec.get("selector"));
    checks.one_of("spec.sessionAffinity", spec.get("sessionAffinity"), &["ClientIP", "None"]);
    let longest = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds");
    if let Some(seconds) = longest.and_then(Value::as_i64).filter(|s| !(1..=DAY).contains(s)) {
        checks.invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            seconds,
            &format!("must be greater than 0 and less than {DAY}"),
        );
    }
    validate_addresses(&mut checks, spec);
    checks.one_of("spec.type", spec.get("type"), TYPES);
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "loadBalancerSourceRanges"]
    {
        if kind != "LoadBalancer" && spec.get(field).is_some_and(|value| *value != json!([])) {
            let told = "may only be used when `type` is 'LoadBalancer'";
            checks.forbidden(&format!("spec.{field}"), told);
        }
    }
    let local = kind == "LoadBalancer" && text(spec, "/externalTrafficPolicy") == "Local";
    let health = number(spec, "/healthCheckNodePort");
    if health != 0 && !local {
        checks.invalid(
            "spec.healthCheckNodePort",
            health,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
    checks.maybe_one_of(
        "spec.trafficDistribution",
        spec.get("trafficDistribution"),
        &["PreferClose", "PreferSameZone", "PreferSameNode"],
    );
    let families = items(spec, "/ipFamilies");
    for (i, family) in families.iter().enumerate() {
        if families[..i].contains(family) {
            checks.duplicate(&format!("spec.ipFamilies[{i}]"), family.clone());
        }
    }
    let policies = ["Cluster", "Local"];
    for field in ["externalTrafficPolicy", "internalTrafficPolicy"] {
        checks.maybe_one_of(&format!("spec.{field}"), spec.get(field), &policies);
    }
    if let Some(policy) = spec.get("externalTrafficPolicy")
        && !is_external_service(new)
    {
        let told = "may only be set for externally-accessible services";
        checks.invalid("spec.externalTrafficPolicy", policy.clone(), told);
    }
    for (i, range) in items(spec, "/loadBalancerSourceRanges").iter().enumerate() {
        let range = range.as_str().unwrap_or_default();
        if !is_range(range.trim()) {
            checks.invalid(
                &format!("spec.loadBalancerSourceRanges[{i}]"),
                range,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            );
        }
    }
    let Some(old) = old.and_then(|o| o.get("spec")) else { return checks.causes() };
    let (before, after) = (text(old, "/clusterIP"), text(spec, "/clusterIP"));
    // Types that have an address keep it; the others may gain or lose one.
    if text(old, "/type") != "ExternalName" && kind != "ExternalName" && before != after {
        checks.invalid("spec.clusterIPs[0]", json!([after]), "may not change once set");
    }
    checks.causes()
}

/// Whether a text is a range of addresses, as `10.9.8.0/24`.
fn is_range(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.parse::<u8>().is_ok_and(|length| length <= most)
}

fn validate_ports(checks: &mut Checks, spec: &Value) {
    let ports = items(spec, "/ports");
    let (mut names_seen, mut nodes, mut numbers) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{i}].{field}");
        match text(port, "/name") {
            "" if ports.len() > 1 => checks.required(&at("name"), ""),
            "" => {}
            name => {
                checks.invalid_all(&at("name"), name, names::dns_label(name));
                if !names_seen.insert(name) {
                    checks.duplicate(&at("name"), name);
                }
            }
        }
        checks.port(&at("port"), number(port, "/port"));
        checks.one_of(&at("protocol"), port.get("protocol"), &["SCTP", "TCP", "UDP"]);
        checks.port_or_name(&at("targetPort"), port.get("targetPort"));
        let application = text(port, "/appProtocol");
        if !application.is_empty() {
            checks.invalid_all(&at("appProtocol"), application, names::qualified(application));
        }
        let node_port = number(port, "/nodePort");
        if node_port != 0 {
            if text(spec, "/type") == "ClusterIP" {
                checks.forbidden(&at("nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
            if !nodes.insert((text(port, "/protocol"), node_port)) {
                checks.duplicate(&at("nodePort"), node_port);
            }
        }
        if !numbers.insert((text(port, "/protocol"), number(port, "/port"))) {
            let key = json!({"port": number(port, "/port"), "protocol": text(port, "/protocol")});
            checks.duplicate(&format!("spec.ports[{i}]"), key);
        }
    }
}

fn validate_addresses(checks: &mut Checks, spec: &Value) {
    let given = text(spec, "/clusterIP");
    if !matches!(given, "" | "None") {
        checks.address("spec.clusterIPs[0]", given);
    }
    let first = items(spec, "/clusterIPs").first().and_then(Value::as_str);
    if let Some(first) = first.filter(|f| *f != given) {
        let detail = format!("first value must match `clusterIP` ({given:?})");
        checks.invalid("spec.clusterIPs", json!([first]), &detail);
    }
    for (i, ip) in items(spec, "/externalIPs").iter().filter_map(Value::as_str).enumerate() {
        checks.endpoint_address(&format!("spec.externalIPs[{i}]"), ip);
    }
}
