//! `EndpointSlice`: the addresses behind a service.

use super::check::Checks;
use super::column::{AGE, Column, NAME, items, number, text};
use super::fill::{each, set};
use super::{BASE, Generation, Kind, Prepare, StatusOnCreate};
use crate::status::StatusCause;
use crate::{meta, names};
use serde_json::{Value, json};

/// `discovery.k8s.io/v1 EndpointSlice`.
pub static ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    storage: "discovery.k8s.io/endpointslices",
    columns: &[
        NAME,
        Column::text("AddressType", "Kind of addresses.", |v, _| json!(text(v, "/addressType"))),
        Column::text("Ports", "Ports of every endpoint.", |v, _| json!(ports(v))),
        Column::text("Endpoints", "Addresses.", |v, _| json!(endpoints(v))),
        AGE,
    ],
    default,
    validate,
    prepare: Prepare {
        status: StatusOnCreate::Keep,
        generation: Generation::Fields(&["addressType", "endpoints", "ports"]),
        status_writes_metadata: false,
    },
    ..BASE
};

/// `list` without what does not fit: upstream shows three entries.
fn shortened(all: &[String]) -> String {
    const SHOWN: usize = 3;
    if all.is_empty() {
        return "<unset>".to_owned();
    }
    let more = all.len().saturating_sub(SHOWN);
    let text = all[..all.len() - more].join(",");
    if more > 0 { format!("{text} + {more} more...") } else { text }
}

fn ports(slice: &Value) -> String {
    let all: Vec<String> = items(slice, "/ports")
        .iter()
        .map(|p| match (number(p, "/port"), text(p, "/name")) {
            (0, "") => "*".to_owned(),
            (0, name) => name.to_owned(),
            (port, _) => port.to_string(),
        })
        .collect();
    shortened(&all)
}

fn endpoints(slice: &Value) -> String {
    let all: Vec<String> = items(slice, "/endpoints")
        .iter()
        .flat_map(|e| items(e, "/addresses"))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    shortened(&all)
}

fn default(slice: &mut Value) {
    let Some(slice) = slice.as_object_mut() else { return };
    for port in each(slice, "ports") {
        if !port.contains_key("name") {
            port.insert("name".into(), json!(""));
        }
        set(port, "protocol", json!("TCP"));
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    const MOST: usize = 1000;
    let mut checks = Checks::default();
    let kinds = ["FQDN", "IPv4", "IPv6"];
    checks.one_of("addressType", new.get("addressType"), &kinds);
    let endpoints = items(new, "/endpoints");
    if endpoints.len() > MOST {
        checks.too_many("endpoints", endpoints.len(), MOST);
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let at = format!("endpoints[{i}].addresses");
        let addresses = items(endpoint, "/addresses");
        if addresses.is_empty() {
            checks.required(&at, "must contain at least 1 address");
        }
        for (j, address) in addresses.iter().enumerate() {
            let at = format!("{at}[{j}]");
            let address = address.as_str().unwrap_or_default();
            match text(new, "/addressType") {
                "IPv4" | "IPv6" if address.parse::<std::net::IpAddr>().is_err() => {
                    checks.address(&at, address);
                }
                "IPv4" if address.parse::<std::net::Ipv4Addr>().is_err() => {
                    checks.invalid(&at, address, "must be an IPv4 address");
                }
                "IPv6" if address.parse::<std::net::Ipv6Addr>().is_err() => {
                    checks.invalid(&at, address, "must be an IPv6 address");
                }
                "FQDN" => checks.invalid_all(&at, address, names::dns_subdomain(address)),
                _ if meta::is_the_apis_own(new) => {}
                _ => checks.endpoint_address(&at, address),
            }
        }
        for (field, rule) in [
            ("hostname", names::dns_label as fn(&str) -> Vec<String>),
            ("nodeName", names::dns_subdomain),
        ] {
            if let Some(name) = endpoint.get(field).and_then(Value::as_str) {
                checks.invalid_all(&format!("endpoints[{i}].{field}"), name, rule(name));
            }
        }
    }
    let mut seen = Vec::new();
    for (i, port) in items(new, "/ports").iter().enumerate() {
        let at = |field: &str| format!("ports[{i}].{field}");
        let name = text(port, "/name");
        if !name.is_empty() {
            checks.invalid_all(&at("name"), name, names::dns_label(name));
        }
        if seen.contains(&name) {
            checks.duplicate(&at("name"), name);
        }
        seen.push(name);
        if let Some(number) = port.get("port").and_then(Value::as_i64) {
            checks.port(&at("port"), number);
        }
        checks.one_of(&at("protocol"), port.get("protocol"), &["SCTP", "TCP", "UDP"]);
    }
    if let Some(old) = old {
        checks.immutable("addressType", new.get("addressType"), old.get("addressType"));
    }
    checks.causes()
}
