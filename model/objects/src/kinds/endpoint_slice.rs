//! `EndpointSlice`: the addresses behind a service.

use super::column::{AGE, Column, NAME, items, number, text};
use super::fill::{each, set};
use super::{BASE, Generation, Kind, Prepare, StatusOnCreate};
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
