//! `ConfigMap`: settings as text and bytes.

use super::column::{AGE, Column, NAME, items_in};
use super::{BASE, Kind};
use serde_json::json;

/// `v1 ConfigMap`.
pub static CONFIG_MAP: Kind = Kind {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    storage: "core/configmaps",
    columns: &[
        NAME,
        Column::text("Data", "Number of keys in data and binaryData.", |v, _| {
            json!(items_in(v, "data") + items_in(v, "binaryData"))
        }),
        AGE,
    ],
    ..BASE
};
