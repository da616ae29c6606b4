//! Server-side apply, and who owns which field.
//!
//! Follows the behaviour of `k8s.io/apimachinery/pkg/util/managedfields` and
//! `sigs.k8s.io/structured-merge-diff/v6/merge`. Objects are in the form of their kind's row and
//! complete (see [`crate::kinds::Kind::complete`]); what [`apply`] returns is not yet completed.

mod managers;
mod set;
mod walk;

use crate::schema::Type;
use crate::status::Status;
use managers::{Manager, Operation};
use serde_json::{Value, json};
use set::FieldSet;
use walk::{Comparison, Shape};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The one manager whose applies keep kubectl's annotation up to date.
const KUBECTL: &str = "kubectl";
/// Owner of what was there before anybody's fields were tracked.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Fields that nobody owns.
fn without_identity(set: FieldSet) -> FieldSet {
    let nobodys = FieldSet::from_json(&json!({
        "f:apiVersion": {},
        "f:kind": {},
        "f:metadata": {
            ".": {},
            "f:name": {},
            "f:namespace": {},
            "f:creationTimestamp": {},
            "f:selfLink": {},
            "f:uid": {},
            "f:generation": {},
            "f:managedFields": {},
            "f:resourceVersion": {},
        },
    }));
    set.difference(&nobodys)
}

/// Leaves out what a (sub)resource cannot write.
fn writable(set: FieldSet, subresource: &str, ty: &'static Type) -> FieldSet {
    match subresource {
        "" if ty.field("spec").is_some() => set.without_field("status"),
        "status" => set.without_field("spec"),
        _ => set,
    }
}

fn compare(old: &Value, new: &Value, subresource: &str, ty: &'static Type) -> Comparison {
    let found = walk::compare(old, new, ty);
    Comparison {
        added: writable(found.added, subresource, ty),
        modified: writable(found.modified, subresource, ty),
        removed: writable(found.removed, subresource, ty),
    }
}

fn api_version(object: &Value) -> String {
    object.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn same_but_identity(object: &Value) -> Value {
    json!({
        "apiVersion": object.get("apiVersion"),
        "kind": object.get("kind"),
        "metadata": {},
    })
}

/// Whether two objects differ in more than the times of their `managedFields`.
#[must_use]
pub fn same(a: &Value, b: &Value) -> bool {
    let timeless = |object: &Value| {
        let mut object = object.clone();
        if let Some(Value::Array(entries)) = object.pointer_mut("/metadata/managedFields") {
            for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
                entry.remove("time");
            }
        }
        object
    };
    timeless(a) == timeless(b)
}

/// Records who owns what after a create, update or patch (other than an apply).
///
/// `old` is the object as stored, `None` on create; `new` is complete and about to be stored, and
/// gets its `metadata.managedFields`. `subresource` is empty for the object itself. `now` is RFC
/// 3339. A client may send `managedFields: [{}]` to drop all entries.
pub fn update(
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    subresource: &str,
    now: &str,
    ty: &'static Type,
) {
    let mut entries = if managers::is_reset(new) {
        Vec::new()
    } else {
        let sent = if subresource.is_empty() { managers::decode(new) } else { None };
        match (sent, old) {
            (Some(sent), _) if !sent.is_empty() => sent,
            (_, Some(old)) => managers::decode(old).unwrap_or_default(),
            _ => Vec::new(),
        }
    };
    // Objects whose entries were dropped are not tracked again until somebody applies.
    if entries.is_empty() && old.is_some() {
        managers::encode(new, Vec::new());
        return;
    }
    let after = managers::strip(new);
    let before = old.map_or_else(|| same_but_identity(&after), managers::strip);
    record(&mut entries, &before, &after, manager, subresource, now, ty);
    managers::cap(&mut entries);
    managers::encode(new, entries);
}

/// Gives the manager what changed, and takes it from the others.
fn record(
    entries: &mut Vec<Manager>,
    before: &Value,
    after: &Value,
    manager: &str,
    subresource: &str,
    now: &str,
    ty: &'static Type,
) {
    let Comparison { added, modified, removed } = compare(before, after, subresource, ty);
    let taken = modified.union(&added);
    for entry in entries.iter_mut() {
        entry.fields = entry.fields.difference(&taken).difference(&removed);
    }
    let fields = without_identity(taken);
    if !fields.is_empty() {
        let new = Manager {
            name: manager.to_owned(),
            operation: Operation::Update,
            api_version: api_version(after),
            subresource: subresource.to_owned(),
            time: now.to_owned(),
            fields,
        };
        match entries.iter_mut().find(|e| e.is(&new)) {
            Some(entry) => {
                entry.fields = entry.fields.union(&new.fields);
                entry.time = new.time;
            }
            None => entries.push(new),
        }
    }
    entries.retain(|e| !e.fields.is_empty());
}

/// Applies a configuration on behalf of a manager, and returns the object that results, with its
/// `managedFields`, to be completed and checked.
///
/// `live` is the object as stored, `None` when there is none. With `force` the manager takes
/// fields from others.
///
/// # Errors
/// 409 that names each field that another manager owns; 400 when the configuration does not fit the
/// schema or carries `managedFields`.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    manager: &str,
    force: bool,
    subresource: &str,
    now: &str,
    ty: &'static Type,
) -> Result<Value, Status> {
    if config.pointer("/metadata/managedFields").is_some_and(|m| !m.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let mut config = config.clone();
    walk::canonical(&mut config, ty);
    walk::check(&config, Shape::Struct(ty), &mut Vec::new())
        .map_err(|e| Status::bad_request(format!("{}: {e}", about(&config))))?;
    let mut entries = live.and_then(managers::decode).unwrap_or_default();
    let before = live.map_or_else(|| same_but_identity(&config), managers::strip);
    if entries.is_empty() && live.is_some() {
        let empty = same_but_identity(&before);
        record(&mut entries, &empty, &before, BEFORE_FIRST_APPLY, "", now, ty);
    }

    let merged = walk::merge(&before, &config, ty);
    let named = writable(walk::field_set(&config, ty), subresource, ty);
    let mine = Manager {
        name: manager.to_owned(),
        operation: Operation::Apply,
        api_version: api_version(&config),
        subresource: subresource.to_owned(),
        time: now.to_owned(),
        fields: without_identity(named.clone()),
    };
    let last = entries.iter().position(|e| e.is(&mine)).map(|at| entries.remove(at));
    let mut result = match &last {
        Some(last) => prune(&merged, &last.fields, &named, &entries, ty),
        None => merged,
    };

    let Comparison { added, modified, removed } = compare(&before, &result, subresource, ty);
    let taken = modified.union(&added);
    let conflicts: Vec<(Manager, FieldSet)> = entries
        .iter()
        .map(|e| (e.clone(), e.fields.intersection(&taken)))
        .filter(|(_, fields)| !fields.is_empty())
        .collect();
    let allowed = || manager == KUBECTL && were_mine(&before, &conflicts, ty);
    if !force && !conflicts.is_empty() && !allowed() {
        return Err(managers::conflict(&conflicts));
    }
    for entry in &mut entries {
        entry.fields = entry.fields.difference(&taken).difference(&removed);
    }
    // An apply that changes no object keeps its time, even when it owns other fields now.
    let unchanged = result == before;
    entries.push(match last {
        Some(last) if unchanged => Manager { time: last.time, ..mine },
        _ => mine,
    });
    if manager == KUBECTL {
        keep_last_applied(&mut result, &config);
    }
    managers::encode(&mut result, entries);
    Ok(result)
}

fn about(config: &Value) -> String {
    let meta = |field: &str| {
        config.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).unwrap_or("<unknown>")
    };
    format!(
        "failed to create typed patch object ({}/{}; {}, Kind={})",
        meta("namespace"),
        meta("name"),
        api_version(config),
        config.get("kind").and_then(Value::as_str).unwrap_or_default()
    )
}

/// Takes out what the manager applied last time, does not apply now, and nobody else owns.
fn prune(
    merged: &Value,
    last: &FieldSet,
    mine: &FieldSet,
    others: &[Manager],
    ty: &'static Type,
) -> Value {
    if last.is_empty() {
        return merged.clone();
    }
    let named = |set: &FieldSet| walk::with_named_parents(set, ty);
    let all = |value: &Value| named(&walk::field_set(value, ty));
    let everything = all(merged);
    let pruned = walk::remove(merged, &named(last), ty);
    // What anybody owns comes back, with what it stands in.
    let owned = others.iter().fold(mine.clone(), |all, m| all.union(&m.fields));
    let kept = all(&pruned).union(&named(&owned));
    let pruned = walk::remove(merged, &everything.difference(&kept), ty);
    // What the manager never owned comes back too, such as items that stood in a list of its own.
    let gone = everything.difference(&all(&pruned)).intersection(&named(last));
    walk::remove(merged, &gone, ty)
}

/// Whether all conflicts are about fields that kubectl applied by itself before, as its annotation
/// tells.
fn were_mine(live: &Value, conflicts: &[(Manager, FieldSet)], ty: &'static Type) -> bool {
    let applied = crate::meta::annotation(live, LAST_APPLIED)
        .and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some(applied) = applied else { return false };
    let mut allowed = walk::field_set(&applied, ty);
    // The annotation itself changes with every apply.
    allowed = allowed.union(&FieldSet::from_json(
        &json!({"f:metadata": {"f:annotations": {format!("f:{LAST_APPLIED}"): {}}}}),
    ));
    conflicts.iter().all(|(_, fields)| fields.difference(&allowed).is_empty())
}

/// Brings kubectl's annotation up to date, where there is one.
fn keep_last_applied(object: &mut Value, config: &Value) {
    let annotations = object
        .get_mut("metadata")
        .and_then(|m| m.get_mut("annotations"))
        .and_then(Value::as_object_mut);
    let Some(annotations) = annotations else { return };
    if annotations.get(LAST_APPLIED).and_then(Value::as_str).is_none_or(str::is_empty) {
        return;
    }
    let mut config = config.clone();
    if let Some(own) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        own.remove(LAST_APPLIED);
    }
    annotations.insert(LAST_APPLIED.into(), json!(format!("{config}\n")));
}

#[cfg(test)]
mod tests;
