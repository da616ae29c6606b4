//! `Secret`: bytes that only those who need them may read.

use super::column::{AGE, Column, NAME, items_in, text};
use super::{BASE, Kind, SelectableField};
use serde_json::json;

/// `v1 Secret`.
pub static SECRET: Kind = Kind {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    storage: "core/secrets",
    fields: &[SelectableField { label: "type", path: "type", absent: "" }],
    columns: &[
        NAME,
        Column::text("Type", "What the secret is for.", |v, _| json!(text(v, "/type"))),
        Column::number("Data", "Number of keys in data.", |v, _| json!(items_in(v, "data"))),
        AGE,
    ],
    ..BASE
};
