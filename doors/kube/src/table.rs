//! Tables for people (`meta/v1.Table`) and objects reduced to their metadata.

use crate::call::Call;
use crate::catalog::value;
use crate::negotiate::Form;
use crate::resources::list_meta;
use dhow_clock::SharedClock;
use dhow_objects::kinds::Kind;
use dhow_state::{List, Object};
use jiff::Timestamp;
use serde_json::{Value, json};

/// What each row carries of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata (the default).
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// As `includeObject` says.
    pub fn of(call: &Call) -> Self {
        match call.query.get("includeObject") {
            Some("None") => Self::None,
            Some("Object") => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// The `apiVersion` of tables and reduced objects.
pub fn meta_version(beta: bool) -> &'static str {
    if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
}

/// An object reduced to its metadata.
pub fn metadata(object: &Value, beta: bool) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": meta_version(beta),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// Now, as cells show ages.
pub fn now(clock: &SharedClock) -> Timestamp {
    let since_epoch = clock.now();
    // Half a billion years fit; a clock beyond that shows 1970.
    i64::try_from(since_epoch.as_millis())
        .ok()
        .and_then(|milliseconds| Timestamp::from_millisecond(milliseconds).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// `columnDefinitions` of a kind.
pub fn columns(kind: &Kind) -> Value {
    kind.columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect()
}

/// The row of an object.
pub fn row(kind: &Kind, object: &Value, include: Include, beta: bool, now: Timestamp) -> Value {
    let cells: Vec<Value> = kind.columns.iter().map(|column| (column.cell)(object, now)).collect();
    let mut row = json!({ "cells": cells });
    match include {
        Include::None => {}
        Include::Metadata => row["object"] = metadata(object, beta),
        Include::Object => row["object"] = object.clone(),
    }
    row
}

fn table(form: Form, meta: Value, kind: &Kind, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": meta_version(form.beta),
        "metadata": meta,
        "columnDefinitions": columns(kind),
        "rows": rows,
    })
}

/// A table of one object.
pub fn one(call: &Call, form: Form, object: &Object) -> Value {
    let meta = json!({ "resourceVersion": object.revision.to_string() });
    let row =
        row(object.kind, value(object), Include::of(call), form.beta, now(&call.door.config.clock));
    table(form, meta, object.kind, vec![row])
}

/// A table of a list.
pub fn many(call: &Call, form: Form, kind: &Kind, list: &List) -> Value {
    let (include, now) = (Include::of(call), now(&call.door.config.clock));
    let rows =
        list.items.iter().map(|object| row(kind, value(object), include, form.beta, now)).collect();
    table(form, list_meta(list), kind, rows)
}

/// A table of the Scale of an object, with upstream's columns.
pub fn scale(call: &Call, form: Form, scale: &Object) -> Value {
    let value = value(scale);
    let now = now(&call.door.config.clock);
    let age = value
        .pointer("/metadata/creationTimestamp")
        .and_then(Value::as_str)
        .and_then(|stamp| stamp.parse::<Timestamp>().ok())
        .map_or_else(
            || "<unknown>".to_owned(),
            |made| dhow_objects::time::human(now.duration_since(made)),
        );
    let count = |pointer: &str| value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let column = |name: &str, kind: &str, format: &str| json!({"name": name, "type": kind, "format": format, "description": "", "priority": 0});
    json!({
        "kind": "Table",
        "apiVersion": meta_version(form.beta),
        "metadata": { "resourceVersion": scale.revision.to_string() },
        "columnDefinitions": [
            column("Name", "string", "name"),
            column("Desired", "integer", ""),
            column("Available", "integer", ""),
            column("Age", "string", ""),
        ],
        "rows": [{
            "cells": [scale.name, count("/spec/replicas"), count("/status/replicas"), age],
            "object": metadata(value, form.beta),
        }],
    })
}
