//! What clients may not set: status on create, spec on status updates, generations.
//!
//! Follows the `PrepareForCreate` and `PrepareForUpdate` strategies of upstream's registries.

use super::Kind;
use serde_json::{Map, Value, json};

/// What becomes of the status that a client sends when it creates an object.
#[derive(Debug, Clone, Copy)]
pub enum StatusOnCreate {
    /// It is kept (nodes register with their status; kinds without a status).
    Keep,
    /// It is replaced.
    Reset(fn(&Value) -> Value),
}

/// What raises `metadata.generation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The kind has none.
    None,
    /// A change of one of these top-level fields.
    Fields(&'static [&'static str]),
}

/// What clients may not set, as flags of a row.
#[derive(Debug, Clone, Copy)]
pub struct Prepare {
    /// Status of new objects.
    pub status: StatusOnCreate,
    /// Generations.
    pub generation: Generation,
    /// Whether a status update may also change labels and annotations (pods and nodes).
    pub status_writes_metadata: bool,
}

pub(crate) fn empty_status(_: &Value) -> Value {
    json!({})
}

impl Prepare {
    /// A kind without status and generation.
    pub const NOTHING: Self = Self {
        status: StatusOnCreate::Keep,
        generation: Generation::None,
        status_writes_metadata: false,
    };

    /// A kind with an empty status at first and generations that follow its spec.
    pub const SPEC_AND_STATUS: Self = Self {
        status: StatusOnCreate::Reset(empty_status),
        generation: Generation::Fields(&["spec"]),
        status_writes_metadata: false,
    };
}

fn metadata(value: &mut Value) -> Option<&mut Map<String, Value>> {
    value.as_object_mut()?.entry("metadata").or_insert_with(|| json!({})).as_object_mut()
}

fn copy_field(to: &mut Value, from: &Value, field: &str) {
    let Some(to) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => {
            to.insert(field.to_owned(), value.clone());
        }
        None => {
            to.remove(field);
        }
    }
}

impl Kind {
    /// Takes out of a new object what clients may not set: to call on create, before defaults.
    pub fn prepare_create(&self, new: &mut Value) {
        if let StatusOnCreate::Reset(make) = self.prepare.status {
            let status = make(new);
            new["status"] = status;
        }
        if let Some(meta) = metadata(new) {
            match self.prepare.generation {
                Generation::None => meta.remove("generation"),
                Generation::Fields(_) => meta.insert("generation".into(), json!(1)),
            };
        }
    }

    /// Keeps the old status and counts the generation: to call on updates of the object itself,
    /// after defaults.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        if self.has_status() {
            copy_field(new, old, "status");
        }
        let generation = old.pointer("/metadata/generation").and_then(Value::as_i64);
        let changed = match self.prepare.generation {
            Generation::None => false,
            Generation::Fields(fields) => fields.iter().any(|f| new.get(*f) != old.get(*f)),
        };
        let Some(meta) = metadata(new) else { return };
        match (self.prepare.generation, generation) {
            (Generation::None, None) => meta.remove("generation"),
            (_, now) => {
                let now = now.unwrap_or(0) + i64::from(changed);
                meta.insert("generation".into(), json!(now))
            }
        };
    }

    /// Counts a generation for an object that was marked as deleted, as upstream does for kinds
    /// that have generations.
    pub fn prepare_delete(&self, marked: &mut Value) {
        if self.prepare.generation != Generation::None {
            let now = marked.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
            marked["metadata"]["generation"] = json!(now + 1);
        }
    }

    /// Freezes everything but the status: to call on updates of the `status` subresource.
    pub fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        let fields: Vec<String> = new
            .as_object()
            .into_iter()
            .flat_map(Map::keys)
            .chain(old.as_object().into_iter().flat_map(Map::keys))
            .filter(|k| !matches!(k.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
            .cloned()
            .collect();
        for field in fields {
            copy_field(new, old, &field);
        }
        let mut keep = vec!["generation", "deletionTimestamp", "deletionGracePeriodSeconds"];
        keep.push("ownerReferences");
        if !self.prepare.status_writes_metadata {
            keep.extend(["labels", "annotations", "finalizers"]);
        }
        if metadata(new).is_some() {
            for field in keep {
                copy_field(&mut new["metadata"], &old["metadata"], field);
            }
        }
    }

    /// Seconds that a deleted object gets to end when the request says nothing; 0 when it goes at
    /// once.
    #[must_use]
    pub fn grace_seconds(&self, object: &Value) -> i64 {
        self.graceful.map_or(0, |seconds| seconds(object))
    }
}
