//! `ComponentStatus`: how the parts of the control plane are. Nothing is stored: each is looked at when
//! it is asked for.

use super::column::{Column, NAME, items, text};
use super::{BASE, Kind};
use serde_json::{Value, json};

/// `v1 ComponentStatus`.
pub static COMPONENT_STATUS: Kind = Kind {
    kind: "ComponentStatus",
    plural: "componentstatuses",
    singular: "componentstatus",
    short_names: &["cs"],
    namespaced: false,
    verbs: &["get", "list"],
    storage: "core/componentstatuses",
    observed: true,
    deprecated: Some("v1 ComponentStatus is deprecated in v1.19+"),
    columns: &[
        NAME,
        Column::text("Status", "Status of the component conditions", |v, _| json!(status(v))),
        Column::text("Message", "Message of the component conditions", |v, _| {
            json!(healthy(v).map_or("", |condition| text(condition, "/message")))
        }),
        Column::text("Error", "Error of the component conditions", |v, _| {
            json!(healthy(v).map_or("", |condition| text(condition, "/error")))
        }),
    ],
    ..BASE
};

fn healthy(object: &Value) -> Option<&Value> {
    items(object, "/conditions").iter().find(|condition| text(condition, "/type") == "Healthy")
}

fn status(object: &Value) -> &'static str {
    match healthy(object).map(|condition| text(condition, "/status")) {
        Some("True") => "Healthy",
        Some(_) => "Unhealthy",
        None => "Unknown",
    }
}
