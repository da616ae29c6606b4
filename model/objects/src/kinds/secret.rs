//! `Secret`: bytes that only those who need them may read.

use super::column::{AGE, Column, NAME, items_in, text};
use super::fill::{object_at, set};
use super::{BASE, Kind, SelectableField};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

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
        Column::text("Data", "Number of keys in data.", |v, _| json!(items_in(v, "data"))),
        AGE,
    ],
    default,
    ..BASE
};

/// Moves `stringData` into `data`, and makes the secret opaque unless it says what it is.
fn default(secret: &mut Value) {
    let Some(object) = secret.as_object_mut() else { return };
    set(object, "type", json!("Opaque"));
    let Some(Value::Object(text)) = object.remove("stringData") else { return };
    if text.is_empty() {
        return;
    }
    if let Some(data) = object_at(secret, &["data"]) {
        for (key, value) in text {
            if let Some(value) = value.as_str() {
                data.insert(key, json!(STANDARD.encode(value)));
            }
        }
    }
}
