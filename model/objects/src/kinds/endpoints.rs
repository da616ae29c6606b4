//! `Endpoints`: the addresses behind a service, as older clients read them.

use super::check::Checks;
use super::column::{AGE, Column, NAME, items, number, text};
use super::fill::{each, set};
use super::{BASE, Kind};
use crate::status::StatusCause;
use crate::{meta, names};
use serde_json::{Value, json};

/// `v1 Endpoints`.
pub static ENDPOINTS: Kind = Kind {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    storage: "core/endpoints",
    deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    columns: &[
        NAME,
        Column::text("Endpoints", "Addresses and ports.", |v, _| json!(endpoints(v))),
        AGE,
    ],
    default,
    validate,
    create_on_update: true,
    ..BASE
};

fn endpoints(object: &Value) -> String {
    const SHOWN: usize = 3;
    if items(object, "/subsets").is_empty() {
        return "<none>".to_owned();
    }
    let mut all = Vec::new();
    for subset in items(object, "/subsets") {
        let addresses = items(subset, "/addresses").iter().map(|a| text(a, "/ip"));
        if items(subset, "/ports").is_empty() {
            all.extend(addresses.map(str::to_owned));
            continue;
        }
        for port in items(subset, "/ports") {
            let port = number(port, "/port");
            all.extend(addresses.clone().map(|ip| {
                if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
            }));
        }
    }
    let more = all.len().saturating_sub(SHOWN);
    let text = all[..all.len() - more].join(",");
    if more > 0 { format!("{text} + {more} more...") } else { text }
}

fn default(endpoints: &mut Value) {
    let Some(endpoints) = endpoints.as_object_mut() else { return };
    for subset in each(endpoints, "subsets") {
        for port in each(subset, "ports") {
            set(port, "protocol", json!("TCP"));
        }
    }
}

fn validate(new: &Value, _: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    for (i, subset) in items(new, "/subsets").iter().enumerate() {
        let (ready, waiting) = (items(subset, "/addresses"), items(subset, "/notReadyAddresses"));
        if ready.is_empty() && waiting.is_empty() {
            let detail = "must specify `addresses` or `notReadyAddresses`";
            checks.required(&format!("subsets[{i}]"), detail);
        }
        for (field, list) in [("addresses", ready), ("notReadyAddresses", waiting)] {
            for (j, address) in list.iter().enumerate() {
                let at = |part: &str| format!("subsets[{i}].{field}[{j}].{part}");
                if meta::is_the_apis_own(new) {
                    checks.address(&at("ip"), text(address, "/ip"));
                } else {
                    checks.endpoint_address(&at("ip"), text(address, "/ip"));
                }
                let host = text(address, "/hostname");
                if !host.is_empty() {
                    checks.invalid_all(&at("hostname"), host, names::dns_label(host));
                }
            }
        }
        let ports = items(subset, "/ports");
        for (j, port) in ports.iter().enumerate() {
            let at = |field: &str| format!("subsets[{i}].ports[{j}].{field}");
            match text(port, "/name") {
                "" if ports.len() > 1 => checks.required(&at("name"), ""),
                "" => {}
                name => checks.invalid_all(&at("name"), name, names::dns_label(name)),
            }
            checks.port(&at("port"), number(port, "/port"));
            checks.one_of(&at("protocol"), port.get("protocol"), &["SCTP", "TCP", "UDP"]);
        }
    }
    checks.causes()
}
