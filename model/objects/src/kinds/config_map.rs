//! `ConfigMap`: settings as text and bytes.

use super::check::Checks;
use super::column::{AGE, Column, NAME, items_in};
use super::{BASE, Kind};
use crate::names;
use crate::status::StatusCause;
use serde_json::{Value, json};

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
    validate,
    ..BASE
};

/// Most bytes that a config map or secret may hold.
pub(super) const MOST: usize = 1024 * 1024;

fn validate(new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in new.get(field).and_then(Value::as_object).into_iter().flatten() {
            let at = format!("{field}[{key}]");
            checks.invalid_all(&at, key, names::config_key(key));
            if field == "data" && new.get("binaryData").and_then(|b| b.get(key)).is_some() {
                checks.invalid(&at, key.as_str(), "duplicate of key present in binaryData");
            }
            size += value.as_str().map_or(0, str::len);
        }
    }
    if size > MOST {
        // As clients know it: the size is that of the whole object.
        checks.too_long("[]", MOST);
    }
    if let Some(old) = old {
        frozen(&mut checks, new, old, &["data", "binaryData"]);
    }
    checks.causes()
}

/// What was made immutable stays so.
pub(super) fn frozen(checks: &mut Checks, new: &Value, old: &Value, fields: &[&str]) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    let yes = Some(&Value::Bool(true));
    if old.get("immutable") != yes {
        return;
    }
    if new.get("immutable") != yes {
        checks.forbidden("immutable", DETAIL);
    }
    for field in fields {
        if new.get(field) != old.get(field) {
            checks.forbidden(field, DETAIL);
        }
    }
}
