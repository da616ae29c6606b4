//! `Event`: what happened to an object, in the old form (`v1`) and the new (`events.k8s.io/v1`).
//!
//! Both are views of the same stored objects; the stored form is the old one.

use super::check::Checks;
use super::column::{Column, NAME, age, number, text};
use super::{BASE, Kind, SelectableField};
use crate::meta;
use crate::status::StatusCause;
use serde_json::{Map, Value, json};

/// The same path in both views.
macro_rules! same {
    ($($label:literal => $path:literal),* $(,)?) => {
        &[$(SelectableField { label: $label, path: $path, absent: "" }),*]
    };
}

/// `v1 Event`.
pub static EVENT: Kind = Kind {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    storage: "core/events",
    fields: same!(
        "involvedObject.kind" => "involvedObject.kind",
        "involvedObject.namespace" => "involvedObject.namespace",
        "involvedObject.name" => "involvedObject.name",
        "involvedObject.uid" => "involvedObject.uid",
        "involvedObject.apiVersion" => "involvedObject.apiVersion",
        "involvedObject.resourceVersion" => "involvedObject.resourceVersion",
        "involvedObject.fieldPath" => "involvedObject.fieldPath",
        "reason" => "reason",
        "reportingComponent" => "reportingComponent",
        "source" => "source.component",
        "type" => "type",
    ),
    columns: COLUMNS,
    validate,
    create_on_update: true,
    ..BASE
};

/// `events.k8s.io/v1 Event`.
pub static EVENTS_EVENT: Kind = Kind {
    group: "events.k8s.io",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    storage: "core/events",
    from_storage: Some(to_new),
    to_storage: Some(to_old),
    fields: same!(
        "regarding.kind" => "involvedObject.kind",
        "regarding.namespace" => "involvedObject.namespace",
        "regarding.name" => "involvedObject.name",
        "regarding.uid" => "involvedObject.uid",
        "regarding.apiVersion" => "involvedObject.apiVersion",
        "regarding.resourceVersion" => "involvedObject.resourceVersion",
        "regarding.fieldPath" => "involvedObject.fieldPath",
        "reason" => "reason",
        "reportingController" => "reportingComponent",
        "type" => "type",
    ),
    columns: COLUMNS,
    validate,
    create_on_update: true,
    ..BASE
};

/// Names of fields: old, new.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(event: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = event.remove(from) {
        event.insert(to.to_owned(), value);
    }
}

fn to_new(event: &mut Value) {
    let Some(event) = event.as_object_mut() else { return };
    for (old, new) in RENAMED {
        rename(event, old, new);
    }
    event.insert("apiVersion".into(), json!("events.k8s.io/v1"));
}

fn to_old(event: &mut Value) {
    let Some(event) = event.as_object_mut() else { return };
    for (old, new) in RENAMED {
        rename(event, new, old);
    }
    event.insert("apiVersion".into(), json!("v1"));
}

/// A field under its old or its new name.
fn either<'a>(event: &'a Value, old: &str, new: &str) -> &'a str {
    match text(event, old) {
        "" => text(event, new),
        found => found,
    }
}

const COLUMNS: &[Column] = &[
    Column::text("Last Seen", "Time since it was last seen.", |v, now| json!(last_seen(v, now))),
    Column::text("Type", "Normal or Warning.", |v, _| json!(text(v, "/type"))),
    Column::text("Reason", "Why, in one word.", |v, _| json!(text(v, "/reason"))),
    Column::text("Object", "What it is about.", |v, _| json!(object(v))),
    Column::text("Subobject", "Which part of the object it is about.", |v, _| {
        json!(either(v, "/involvedObject/fieldPath", "/regarding/fieldPath"))
    })
    .wide(),
    Column::text("Source", "Who reported it.", |v, _| json!(source(v))).wide(),
    Column::text("Message", "What happened.", |v, _| json!(either(v, "/message", "/note").trim())),
    Column::text("First Seen", "Time since it was first seen.", |v, now| json!(first_seen(v, now)))
        .wide(),
    Column::text("Count", "How often it was seen.", |v, _| json!(count(v))).wide(),
    NAME.wide(),
];

fn first_seen(event: &Value, now: jiff::Timestamp) -> String {
    match either(event, "/firstTimestamp", "/deprecatedFirstTimestamp") {
        "" => age(text(event, "/eventTime"), now),
        first => age(first, now),
    }
}

fn last_seen(event: &Value, now: jiff::Timestamp) -> String {
    if let Some(series) = event.get("series").filter(|s| s.is_object()) {
        return age(text(series, "/lastObservedTime"), now);
    }
    match either(event, "/lastTimestamp", "/deprecatedLastTimestamp") {
        "" => first_seen(event, now),
        last => age(last, now),
    }
}

fn count(event: &Value) -> i64 {
    if event.get("series").is_some_and(Value::is_object) {
        return number(event, "/series/count");
    }
    number(event, "/count").max(number(event, "/deprecatedCount")).max(1)
}

fn object(event: &Value) -> String {
    let kind = either(event, "/involvedObject/kind", "/regarding/kind").to_lowercase();
    match either(event, "/involvedObject/name", "/regarding/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(event: &Value) -> String {
    let component = either(event, "/source/component", "/deprecatedSource/component");
    let host = either(event, "/source/host", "/deprecatedSource/host");
    let (component, host) = if component.is_empty() {
        (
            either(event, "/reportingComponent", "/reportingController"),
            text(event, "/reportingInstance"),
        )
    } else {
        (component, host)
    };
    if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") }
}

/// The name of an event about an object: upstream appends the time in nanoseconds, in
/// hexadecimal.
#[must_use]
pub fn name(about: &Value, now: jiff::Timestamp) -> String {
    format!("{}.{:x}", meta::name(about), now.as_nanosecond())
}

/// Events of cluster-wide objects live in `default`, all others beside their object.
fn validate(new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let old_form = new.get("involvedObject").is_some();
    let about = if old_form { "involvedObject" } else { "regarding" };
    let namespace = text(new, &format!("/{about}/namespace"));
    let fits = match namespace {
        "" => matches!(meta::namespace(new), "default" | "kube-system"),
        namespace => namespace == meta::namespace(new),
    };
    if !fits {
        let path = format!("{about}.namespace");
        checks.invalid(&path, namespace, "does not match event.namespace");
    }
    // Only events that say when they happened follow the rules of the new form.
    if old.is_none() && !old_form {
        for field in ["eventTime", "reportingController", "reportingInstance", "action", "reason"] {
            if text(new, &format!("/{field}")).is_empty() {
                checks.required(field, "");
            }
        }
        checks.one_of("type", new.get("type"), &["Normal", "Warning"]);
    }
    checks.causes()
}
