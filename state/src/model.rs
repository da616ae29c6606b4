//! What the generic code asks of `dhow_objects`: which kind a key belongs to, whether selectors hold.

use crate::codec;
use crate::types::{Actor, FieldValidation, Object, Patch, Result, WriteOptions};
use dhow_objects::Status;
use dhow_objects::kinds::{self, Kind};
use dhow_objects::schema::{Type, schema, strict};
use dhow_objects::selectors::{FieldSelector, LabelSelector};
use serde::Deserialize;
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

/// A stored object as `kind` shows it. Always a copy of its own: who parses it pays for it and
/// nobody keeps that in the cache.
pub(crate) fn shown(kind: &'static Kind, object: &Object) -> Arc<Object> {
    let Some(rewrite) = kind.from_storage else { return Arc::new(object.copy()) };
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

/// As much of an object as a label selector asks about.
#[derive(Deserialize)]
struct Labelled {
    metadata: LabelledMeta,
}

#[derive(Deserialize)]
struct LabelledMeta {
    #[serde(default)]
    labels: Option<serde_json::Map<String, Value>>,
}

/// Whether both selectors hold for an object. Parses only what a selector asks about, and keeps
/// nothing: cached objects stay bytes.
pub(crate) fn selects(labels: &LabelSelector, fields: &FieldSelector, object: &Object) -> bool {
    let mut others = false;
    for term in fields.terms() {
        let actual = match term.label.as_str() {
            "metadata.name" => &object.name,
            "metadata.namespace" => &object.namespace,
            _ => {
                others = true;
                continue;
            }
        };
        if (*actual == term.value) == term.negated {
            return false;
        }
    }
    if !labels.is_empty() {
        let parsed = serde_json::from_slice::<Labelled>(&object.bytes).ok();
        if !labels.matches_map(parsed.and_then(|p| p.metadata.labels).as_ref()) {
            return false;
        }
    }
    !others || fields.matches(&object.to_value())
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
            "the store has no space left: free some on the disk of its data directory, or delete objects",
        ),
        // Not carried out: trying again is safe.
        unreachable @ (Error::Unreachable(_) | Error::NoLeader) => {
            Status::unavailable(unreachable.to_string())
        }
        Error::Timeout => Status::new(
            504,
            "Timeout",
            "Timeout: the store did not answer in time, and whether a change was made is not known: more than half of its servers must run and reach each other",
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

/// The new state after a patch that is no apply. Group, version and kind name the type.
pub(crate) fn patch(
    (group, version, kind): (&str, &str, &str),
    old: &Value,
    patch: &Patch,
    options: &WriteOptions,
) -> Result<Value> {
    let ty = schema().kind(group, version, kind);
    let mut new = match patch {
        Patch::Json(patch) => dhow_objects::patch::json(old, patch)?,
        Patch::Merge(patch) => dhow_objects::patch::merge(old, patch),
        Patch::Strategic(patch) => match ty {
            Some(ty) => dhow_objects::patch::strategic(old, patch, ty)?,
            None => {
                return Err(Status::unsupported_media_type(
                    "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
                ));
            }
        },
        Patch::Apply { .. } => return Err(Status::internal("an apply took the way of a patch")),
    };
    if let Some(ty) = ty {
        check_fields(&mut new, kind, version, ty, options)?;
    }
    Ok(new)
}

/// What the door does for whole objects, done for the result of a patch: wrong types are refused,
/// unknown fields refused, told or dropped.
fn check_fields(
    new: &mut Value,
    kind: &str,
    version: &str,
    ty: &'static Type,
    options: &WriteOptions,
) -> Result<()> {
    let report = strict::check(new, ty);
    let refuse =
        |why: &str| Err(Status::bad_request(strict::cannot_handle(kind, version, kind, why)));
    if let Some(wrong) = report.wrong.first() {
        return refuse(wrong);
    }
    match options.field_validation {
        FieldValidation::Strict => {
            if let Some(why) = report.strict_error(&[]) {
                return refuse(&why);
            }
        }
        FieldValidation::Warn => options.warn(report.warnings(&[])),
        FieldValidation::Ignore => {}
    }
    strict::prune(new, ty);
    Ok(())
}

/// The state after an apply, with managedFields; `old` is `None` where there is no object yet.
pub(crate) fn apply(applied: &Applied, old: Option<&Value>, now: &str) -> Result<Value> {
    let ty = applied.kind.schema_type().ok_or_else(|| {
        Status::unsupported_media_type("server-side apply needs a kind with a schema")
    })?;
    let Applied { configuration, manager, subresource, force, .. } = applied;
    dhow_objects::apply::apply(old, configuration, manager, *force, subresource, now, ty)
}

/// Notes in managedFields who owns what changed between two states.
pub(crate) fn own(
    kind: &Kind,
    actor: &Actor,
    subresource: &str,
    old: Option<&Value>,
    new: &mut Value,
    now: &str,
) {
    if let Some(ty) = kind.schema_type() {
        dhow_objects::apply::update(old, new, &actor.manager, subresource, now, ty);
    }
}
