//! Typed access to the metadata of objects (`meta/v1.ObjectMeta`).

use serde_json::{Map, Value};

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// `metadata.name`; empty when missing.
#[must_use]
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// Whether an object tells where the API itself is: only that may be on the loopback, when the API
/// listens nowhere else.
pub(crate) fn is_the_apis_own(object: &Value) -> bool {
    namespace(object) == "default" && name(object) == "kubernetes"
}

/// `metadata.generateName`; empty when missing.
#[must_use]
pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}

/// `metadata.namespace`; empty when missing.
#[must_use]
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// `metadata.uid`; empty when missing.
#[must_use]
pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// `metadata.resourceVersion`; empty when missing.
#[must_use]
pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

/// `metadata.creationTimestamp`, RFC 3339; empty when missing.
#[must_use]
pub fn creation_timestamp(object: &Value) -> &str {
    text(object, "creationTimestamp")
}

/// `metadata.deletionTimestamp`, RFC 3339; `None` while nobody deleted the object.
#[must_use]
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    Some(text(object, "deletionTimestamp")).filter(|t| !t.is_empty())
}

/// `metadata.generation`; 0 when missing.
#[must_use]
pub fn generation(object: &Value) -> i64 {
    object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0)
}

fn map<'a>(object: &'a Value, field: &str) -> Option<&'a Map<String, Value>> {
    object.get("metadata")?.get(field)?.as_object()
}

/// `metadata.labels`.
#[must_use]
pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    map(object, "labels")
}

/// One label.
#[must_use]
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

/// `metadata.annotations`.
#[must_use]
pub fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    map(object, "annotations")
}

/// One annotation.
#[must_use]
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object)?.get(key)?.as_str()
}

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object
        .get("metadata")
        .and_then(|m| m.get(field))
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    list(object, "finalizers").iter().filter_map(Value::as_str)
}

/// One owner reference (`meta/v1.OwnerReference`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerReference<'a> {
    /// `v1` or `GROUP/VERSION` of the owner.
    pub api_version: &'a str,
    /// Kind of the owner.
    pub kind: &'a str,
    /// Name of the owner, in the same namespace or cluster-wide.
    pub name: &'a str,
    /// Uid of the owner.
    pub uid: &'a str,
    /// Whether it is the managing controller.
    pub controller: bool,
    /// Whether a foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

/// `metadata.ownerReferences`.
pub fn owner_references(object: &Value) -> impl Iterator<Item = OwnerReference<'_>> {
    list(object, "ownerReferences").iter().map(|r| {
        let text = |field: &str| r.get(field).and_then(Value::as_str).unwrap_or_default();
        let flag = |field: &str| r.get(field).and_then(Value::as_bool).unwrap_or(false);
        OwnerReference {
            api_version: text("apiVersion"),
            kind: text("kind"),
            name: text("name"),
            uid: text("uid"),
            controller: flag("controller"),
            block_owner_deletion: flag("blockOwnerDeletion"),
        }
    })
}

/// The owner that is the managing controller.
#[must_use]
pub fn controller_of(object: &Value) -> Option<OwnerReference<'_>> {
    owner_references(object).find(|r| r.controller)
}

/// Mutable `metadata`, made when missing. `None` when the object or its metadata is no JSON object.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object
        .as_object_mut()?
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()))
        .as_object_mut()
}
