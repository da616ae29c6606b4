//! What the generic code asks of `dhow_objects`: which kind a key belongs to, whether selectors hold.

use crate::codec;
use crate::types::{Actor, Object, Patch, Result};
use dhow_objects::kinds::{self, Kind};
use dhow_objects::selectors::{FieldSelector, LabelSelector};
use dhow_objects::{Status, StatusCause};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, OnceLock};

/// The rows that stand for what is stored, by `GROUP/PLURAL`.
static STORED: LazyLock<HashMap<&'static str, &'static Kind>> = LazyLock::new(|| {
    kinds::all().iter().filter(|k| k.from_storage.is_none()).map(|k| (k.storage, *k)).collect()
});

/// The kind under which objects of `kind` are stored: itself, but for a second view of the same
/// objects (`events.k8s.io`).
pub(crate) fn stored_kind(kind: &'static Kind) -> &'static Kind {
    if kind.from_storage.is_none() {
        return kind;
    }
    STORED.get(kind.storage).copied().unwrap_or(kind)
}

/// The kind and the part of the key below it; `None` when it is no object's key.
pub(crate) fn kind_of_key(key: &[u8]) -> Option<(&'static Kind, &str)> {
    let (storage, local) = codec::split_key(key)?;
    Some((STORED.get(storage).copied()?, local))
}

/// A value of `kind` as it is stored.
pub(crate) fn to_stored(kind: &'static Kind, mut value: Value) -> Value {
    if let Some(rewrite) = kind.to_storage {
        rewrite(&mut value);
    }
    value
}

/// A stored object as `kind` shows it.
pub(crate) fn shown(kind: &'static Kind, object: Arc<Object>) -> Arc<Object> {
    let Some(rewrite) = kind.from_storage else { return object };
    let mut value = object.to_value();
    rewrite(&mut value);
    Arc::new(Object {
        kind,
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        revision: object.revision,
        bytes: codec::serve(kind, &codec::encode(kind, &value, None), object.revision),
        parsed: OnceLock::new(),
    })
}

/// Whether both selectors hold for an object. Parses the object only when a selector asks.
pub(crate) fn selects(labels: &LabelSelector, fields: &FieldSelector, object: &Object) -> bool {
    (labels.is_empty() || labels.matches_object(object.value()))
        && (fields.is_empty() || fields.matches(object.value()))
}

/// The refusal for an object that is not there.
pub(crate) fn not_found(kind: &Kind, name: &str) -> Status {
    Status::not_found(kind.group, kind.plural, name)
}

/// A store's error as the API says it.
pub(crate) fn store_error(error: dhow_kv::Error) -> Status {
    use dhow_kv::Error;
    match error {
        Error::Stopped => Status::unavailable("the store has stopped; try again when it is back"),
        Error::TooLarge => Status::new(
            413,
            "RequestEntityTooLarge",
            "Request entity too large: limit is 1.5 MiB per object",
        ),
        Error::NoSpace => Status::new(
            507,
            "InsufficientStorage",
            "the store is full (its quota is used up); delete objects and compact it",
        ),
        other => Status::internal(other),
    }
}

/// Turns a store's answer into ours.
pub(crate) fn stored<T>(answer: std::result::Result<T, dhow_kv::Error>) -> Result<T> {
    answer.map_err(store_error)
}

/// A server-side apply on its way.
pub(crate) struct Applied {
    pub(crate) kind: &'static Kind,
    pub(crate) configuration: Value,
    pub(crate) manager: String,
    pub(crate) subresource: String,
    pub(crate) force: bool,
}

/// The new state after a patch that is no apply. `kind` is `None` for values without a schema of their own.
pub(crate) fn patch(kind: Option<&'static Kind>, old: &Value, patch: &Patch) -> Result<Value> {
    let _ = kind;
    match patch {
        Patch::Merge(patch) => {
            let mut new = old.clone();
            merge(&mut new, patch);
            Ok(new)
        }
        _ => {
            Err(Status::not_implemented("this type of patch is not implemented; use a merge patch"))
        }
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = serde_json::json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// The object that an apply makes where there is none.
pub(crate) fn new_applied(applied: &Applied) -> Result<Value> {
    Ok(applied.configuration.clone())
}

/// The state after an apply, with managedFields.
pub(crate) fn apply(_applied: &Applied, _old: &Value, _now: jiff::Timestamp) -> Result<Value> {
    Err(Status::not_implemented("server-side apply is not implemented; use a merge patch"))
}

/// Notes who owns the fields of a new object made by an apply.
pub(crate) fn own_applied(
    _: &Applied,
    _: Option<&Value>,
    _: &mut Value,
    _: jiff::Timestamp,
) -> Result<()> {
    Ok(())
}

/// Notes who owns what changed between two states.
pub(crate) fn own_update(_: &Actor, _: &str, _: Option<&Value>, _: &mut Value, _: jiff::Timestamp) {
}

/// Everything that is wrong with a new state.
pub(crate) fn rules(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    (kind.validate)(new, old)
}
