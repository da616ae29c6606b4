//! Storage keys, the stored form of an object, and the bytes that are served.
//!
//! Stored under `/registry/GROUP/PLURAL/[NAMESPACE/]NAME` is the object's JSON in a fixed order:
//! `apiVersion`, `kind`, `metadata` (without `resourceVersion`), the rest, and last the cause stamp under
//! `dhow.dev/cause`. The order makes serving cheap: the resourceVersion is spliced in at an offset
//! that the kind determines, and the stamp is cut off the end; nothing is parsed.

use crate::types::{Actor, Object};
use bytes::Bytes;
use dhow_objects::kinds::Kind;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::OnceLock;

/// Where all objects are.
pub(crate) const ROOT: &str = "/registry/";
const DELETIONS: &str = "/dhow/deletions/";
const CAUSE: &str = "dhow.dev/cause";
const CAUSE_MARK: &[u8] = b",\"dhow.dev/cause\":{";

/// Who wrote an object's newest revision and what they had seen; kept inside the stored value.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cause {
    /// User name.
    pub user: String,
    /// Field manager.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub manager: String,
    /// The revision whose observation led to the write, 0 for people.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub because: u64,
    /// When, in milliseconds since the epoch.
    pub at: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Cause {
    pub(crate) fn new(actor: &Actor, now: std::time::Duration) -> Self {
        Self {
            user: actor.user.name.clone(),
            manager: actor.manager.clone(),
            because: actor.because,
            at: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// The prefix of all objects of a kind.
pub(crate) fn kind_prefix(kind: &Kind) -> String {
    format!("{ROOT}{}/", kind.storage)
}

/// The part of the key below the kind: `NAMESPACE/NAME` or `NAME`.
pub(crate) fn local_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// An object's key.
pub(crate) fn object_key(kind: &Kind, namespace: &str, name: &str) -> Bytes {
    format!("{}{}", kind_prefix(kind), local_key(namespace, name)).into()
}

/// Where the cause of an object's deletion is kept for a while.
/// `local` is the object's key below the root.
pub(crate) fn deletion_key(local: &[u8]) -> Bytes {
    [DELETIONS.as_bytes(), local].concat().into()
}

/// Splits a key into `GROUP/PLURAL` and the part below; `None` when it is no object's key.
pub(crate) fn split_key(key: &[u8]) -> Option<(&str, &str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?;
    let group = rest.find('/')?;
    let plural = group + 1 + rest.get(group + 1..)?.find('/')?;
    Some((&rest[..plural], &rest[plural + 1..]))
}

/// Splits the part below the kind into namespace and name.
pub(crate) fn split_local<'a>(kind: &Kind, local: &'a str) -> (&'a str, &'a str) {
    if kind.namespaced { local.split_once('/').unwrap_or(("", local)) } else { ("", local) }
}

/// What every stored object of a kind starts with, up to the first field of the metadata.
fn opening(kind: &Kind) -> String {
    format!(
        "{{\"apiVersion\":\"{}\",\"kind\":\"{}\",\"metadata\":{{",
        kind.api_version(),
        kind.kind
    )
}

/// The stored form of `value`, which must be an object with metadata.
pub(crate) fn encode(kind: &Kind, value: &Value, cause: Option<&Cause>) -> Vec<u8> {
    let mut out = opening(kind).into_bytes();
    let comma = |out: &mut Vec<u8>| {
        if out.last() != Some(&b'{') {
            out.push(b',');
        }
    };
    // Writing a `Value` whose keys are strings to memory cannot fail.
    let put = |out: &mut Vec<u8>, key: &str, value: &Value| {
        comma(out);
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, value);
    };
    for (key, value) in value["metadata"].as_object().into_iter().flatten() {
        if key != "resourceVersion" {
            put(&mut out, key, value);
        }
    }
    out.push(b'}');
    for (key, value) in value.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | CAUSE) {
            put(&mut out, key, value);
        }
    }
    if let Some(cause) = cause {
        put(&mut out, CAUSE, &serde_json::to_value(cause).unwrap_or_default());
    }
    out.push(b'}');
    out
}

/// Where the stored object ends when the cause stamp is left out (before the closing brace).
fn end_of_object(stored: &[u8]) -> usize {
    // A string cannot contain the mark (its quotes would be escaped) and the stamp is last, so the
    // last occurrence is the stamp. It is short: look at the tail only.
    let from = stored.len().saturating_sub(2048);
    stored[from..]
        .windows(CAUSE_MARK.len())
        .rposition(|w| w == CAUSE_MARK)
        .map_or(stored.len().saturating_sub(1), |at| from + at)
}

/// The cause stamp of a stored value.
pub(crate) fn cause_of(stored: &[u8]) -> Option<Cause> {
    let at = end_of_object(stored);
    let stamp = stored.get(at + CAUSE_MARK.len() - 1..stored.len().checked_sub(1)?)?;
    serde_json::from_slice(stamp).ok()
}

/// The served form of a stored value; revision 0 leaves the resourceVersion out (dry runs).
pub(crate) fn serve(kind: &Kind, stored: &[u8], revision: u64) -> Bytes {
    let opening = opening(kind);
    if !stored.starts_with(opening.as_bytes()) {
        // Written by somebody else's hand: bring it into order once.
        let value: Value = serde_json::from_slice(stored).unwrap_or_default();
        let value = if value.is_object() { value } else { serde_json::json!({"metadata": {}}) };
        return splice(opening.len(), &encode(kind, &value, None), revision);
    }
    splice(opening.len(), stored, revision)
}

fn splice(at: usize, stored: &[u8], revision: u64) -> Bytes {
    let end = end_of_object(stored);
    let mut out = Vec::with_capacity(end + 48);
    out.extend_from_slice(&stored[..at]);
    if revision != 0 {
        out.extend_from_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
        if stored.get(at) != Some(&b'}') {
            out.push(b',');
        }
    }
    out.extend_from_slice(&stored[at..end]);
    out.push(b'}');
    out.into()
}

/// The object as served, from its key and stored value.
pub(crate) fn object(
    kind: &'static Kind,
    namespace: &str,
    name: &str,
    stored: &[u8],
    revision: u64,
) -> Object {
    Object {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        revision,
        bytes: serve(kind, stored, revision),
        parsed: OnceLock::new(),
    }
}

/// The same object with another resourceVersion (a deleted object's last state).
pub(crate) fn with_revision(object: &Object, revision: u64) -> Object {
    let at = opening(object.kind).len();
    let own = format!("\"resourceVersion\":\"{}\"", object.revision).len();
    let mut rest = object.bytes.get(at + own..).unwrap_or_default();
    rest = rest.strip_prefix(b",").unwrap_or(rest);
    let mut stored = object.bytes[..at].to_vec();
    stored.extend_from_slice(rest);
    Object {
        kind: object.kind,
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        revision,
        bytes: splice(at, &stored, revision),
        parsed: OnceLock::new(),
    }
}

/// The string at a JSON pointer, empty when there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> &'static Kind {
        &dhow_objects::kinds::POD
    }

    fn value() -> Value {
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "labels": {"x": "y"}},
               "spec": {"note": ",\"dhow.dev/cause\":{"}})
    }

    #[test]
    fn the_cause_is_stored_and_not_served() {
        let cause = Cause { user: "me".into(), because: 7, at: 1, ..Cause::default() };
        let stored = encode(pod(), &value(), Some(&cause));
        assert_eq!(cause_of(&stored), Some(cause));
        let served: Value = serde_json::from_slice(&serve(pod(), &stored, 12)).unwrap();
        let mut expected = value();
        expected["metadata"]["resourceVersion"] = json!("12");
        assert_eq!(served, expected);
    }

    #[test]
    fn a_value_in_another_order_is_served_all_the_same() {
        let stored = br#"{"spec":{},"metadata":{"resourceVersion":"1","name":"a"}}"#;
        let served: Value = serde_json::from_slice(&serve(pod(), stored, 3)).unwrap();
        assert_eq!(
            served,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "resourceVersion": "3"}, "spec": {}})
        );
    }

    #[test]
    fn a_deleted_object_carries_the_deleting_revision() {
        let stored = encode(pod(), &value(), None);
        let live = object(pod(), "ns", "a", &stored, 12);
        let gone = with_revision(&live, 1300);
        assert_eq!(gone.bytes, serve(pod(), &stored, 1300));
    }

    #[test]
    fn keys_are_upstreams() {
        assert_eq!(object_key(pod(), "ns", "a"), "/registry/core/pods/ns/a");
        assert_eq!(split_key(b"/registry/core/pods/ns/a"), Some(("core/pods", "ns/a")));
        assert_eq!(split_key(b"/other"), None);
    }
}
