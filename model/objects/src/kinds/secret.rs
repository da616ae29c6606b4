//! `Secret`: bytes that only those who need them may read.

use super::check::Checks;
use super::column::{AGE, Column, NAME, items_in, text};
use super::config_map::{MOST, frozen};
use super::fill::{object_at, set};
use super::{BASE, Kind, SelectableField};
use crate::status::StatusCause;
use crate::{meta, names};
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
    validate,
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

fn validate(new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let mut size = 0;
    let empty = serde_json::Map::new();
    let data = new.get("data").and_then(Value::as_object).unwrap_or(&empty);
    for (key, value) in data {
        let at = format!("data[{key}]");
        checks.invalid_all(&at, key, names::config_key(key));
        match value.as_str().map(|v| STANDARD.decode(v)) {
            Some(Ok(bytes)) => size += bytes.len(),
            _ => checks.invalid(&at, "<secret contents redacted>", "illegal base64 data"),
        }
    }
    if size > MOST {
        checks.too_long("data", MOST);
    }
    let kind = text(new, "/type");
    let wanted: &[&str] = match kind {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for key in wanted.iter().filter(|key| !data.contains_key(**key)) {
        checks.required(&format!("data[{key}]"), "");
    }
    // What is to hold JSON is found out to be none here, and not where it is used.
    for key in wanted.iter().filter(|_| kind.starts_with("kubernetes.io/docker")) {
        let bytes = data.get(*key).and_then(Value::as_str).and_then(|v| STANDARD.decode(v).ok());
        if let Some(bytes) = bytes
            && let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes)
        {
            let at = format!("data[{key}]");
            checks.invalid(&at, "<secret contents redacted>", &error.to_string());
        }
    }
    let basic = ["username", "password"];
    if kind == "kubernetes.io/basic-auth" && !basic.iter().any(|k| data.contains_key(*k)) {
        for key in basic {
            checks.required(&format!("data[{key}]"), "");
        }
    }
    let account = "kubernetes.io/service-account.name";
    if kind == "kubernetes.io/service-account-token"
        && meta::annotation(new, account).is_none_or(str::is_empty)
    {
        checks.required(&format!("metadata.annotations[{account}]"), "");
    }
    if let Some(old) = old {
        checks.immutable("type", new.get("type"), old.get("type"));
        frozen(&mut checks, new, old, &["data"]);
    }
    checks.causes()
}
