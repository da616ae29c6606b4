//! `Namespace`: a scope for names.

use super::column::{AGE, Column, NAME, text};
use super::prepare::{Generation, Prepare, StatusOnCreate};
use super::{BASE, Kind, NameRule, STATUS_VERBS, SelectableField, Subresource};
use serde_json::json;

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
        Subresource {
            name: "finalize",
            group: "",
            version: "v1",
            kind: "Namespace",
            verbs: &["update"],
        },
        Subresource {
            name: "status",
            group: "",
            version: "v1",
            kind: "Namespace",
            verbs: STATUS_VERBS,
        },
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
    prepare: Prepare {
        status: StatusOnCreate::Reset(|_| json!({"phase": "Active"})),
        generation: Generation::None,
        status_writes_metadata: false,
    },
    ..BASE
};
