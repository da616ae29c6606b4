//! `Namespace`: a scope for names.

use super::column::{AGE, Column, NAME, text};
use super::fill::{object_at, set};
use super::prepare::{Generation, Prepare, StatusOnCreate};
use super::{BASE, Kind, NameRule, STATUS_VERBS, SelectableField, Subresource};
use crate::meta;
use serde_json::{Value, json};

/// `v1 Namespace`.
pub static NAMESPACE: Kind = Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    storage: "core/namespaces",
    name_rule: NameRule::Label,
    subresources: &[
        Subresource::new("finalize", "", "Namespace", &["update"]),
        Subresource::new("status", "", "Namespace", STATUS_VERBS),
    ],
    fields: &[
        SelectableField { label: "status.phase", path: "status.phase", absent: "" },
        SelectableField { label: "name", path: "metadata.name", absent: "" },
    ],
    columns: &[
        NAME,
        Column::text("Status", "The status of the namespace", |v, _| {
            json!(text(v, "/status/phase"))
        }),
        AGE,
    ],
    default,
    prepare: Prepare {
        status: StatusOnCreate::Reset(|_| json!({"phase": "Active"})),
        generation: Generation::None,
        status_writes_metadata: false,
    },
    ..BASE
};

fn default(namespace: &mut Value) {
    let name = meta::name(namespace).to_owned();
    if !name.is_empty()
        && let Some(labels) = object_at(namespace, &["metadata", "labels"])
    {
        labels.insert("kubernetes.io/metadata.name".into(), json!(name));
    }
    // A namespace that is on its way out loses its finalizers for good.
    if meta::deletion_timestamp(namespace).is_none()
        && let Some(spec) = object_at(namespace, &["spec"])
    {
        set(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = object_at(namespace, &["status"]) {
        set(status, "phase", json!("Active"));
    }
}
