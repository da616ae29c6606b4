//! Tables for people (`meta/v1.Table`) and objects reduced to their metadata.

use crate::call::Call;
use crate::negotiate::Form;
use crate::resources::list_meta;
use dhow_clock::SharedClock;
use dhow_objects::kinds::Kind;
use dhow_state::{List, Object};
use jiff::Timestamp;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::sync::Arc;

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
fn meta_version(beta: bool) -> &'static str {
    if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
}

/// An object reduced to its metadata (`meta/v1.PartialObjectMetadata`), which is sent as it stands in
/// the object's bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Partial<'a> {
    kind: &'static str,
    api_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
}

impl<'a> Partial<'a> {
    /// Of metadata alone.
    pub fn new(metadata: Option<&'a RawValue>, beta: bool) -> Self {
        Self { kind: "PartialObjectMetadata", api_version: meta_version(beta), metadata }
    }

    /// Of an object.
    pub fn of(object: &'a Object, beta: bool) -> Self {
        #[derive(Deserialize)]
        struct Head<'a> {
            #[serde(borrow)]
            metadata: &'a RawValue,
        }
        let head = serde_json::from_slice::<Head<'_>>(&object.bytes);
        Self::new(head.ok().map(|head| head.metadata), beta)
    }
}

/// Many of them (`meta/v1.PartialObjectMetadataList`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Partials<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Value,
    items: Vec<Partial<'a>>,
}

impl<'a> Partials<'a> {
    /// Of a list.
    pub fn of(list: &'a List, beta: bool) -> Self {
        Self {
            kind: "PartialObjectMetadataList",
            api_version: meta_version(beta),
            metadata: list_meta(list),
            items: list.items.iter().map(|object| Partial::of(object, beta)).collect(),
        }
    }
}

/// A table, `meta/v1.Table`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Table<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Value,
    column_definitions: Value,
    rows: Vec<Row<'a>>,
}

/// What is shown of one object.
#[derive(Debug, Serialize)]
pub struct Row<'a> {
    cells: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<Shown<'a>>,
}

/// What a row carries of its object.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Shown<'a> {
    Metadata(Partial<'a>),
    Object(&'a RawValue),
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

/// Half of what many objects are made of, and shown in no cell.
const MANAGED_FIELDS: &[&str] = &["metadata", "managedFields"];

/// An object without the field at this path, which is passed over unread.
struct Without(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Without {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Without {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let (first, rest) =
            self.0.split_first().ok_or_else(|| A::Error::custom("an empty path"))?;
        let mut fields = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            let value = match rest {
                _ if key != *first => from.next_value()?,
                [] => {
                    from.next_value::<IgnoredAny>()?;
                    continue;
                }
                rest => from.next_value_seed(Without(rest))?,
            };
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

fn without(path: &'static [&'static str], bytes: &[u8]) -> Value {
    let mut from = serde_json::Deserializer::from_slice(bytes);
    Without(path).deserialize(&mut from).unwrap_or_default()
}

impl<'a> Row<'a> {
    /// The row of an object. It is parsed for its cells alone and not kept: a list of thousands
    /// takes no more memory than what is sent.
    pub fn of(
        kind: &Kind,
        object: &'a Object,
        include: Include,
        beta: bool,
        now: Timestamp,
    ) -> Self {
        let value = without(MANAGED_FIELDS, &object.bytes);
        let cells = kind.columns.iter().map(|column| (column.cell)(&value, now)).collect();
        let shown = match include {
            Include::None => None,
            Include::Metadata => Some(Shown::Metadata(Partial::of(object, beta))),
            Include::Object => serde_json::from_slice(&object.bytes).ok().map(Shown::Object),
        };
        Self { cells, object: shown }
    }

    /// The row of no object, as bookmarks have it.
    pub fn empty(object: Partial<'a>) -> Self {
        Self { cells: Vec::new(), object: Some(Shown::Metadata(object)) }
    }
}

impl<'a> Table<'a> {
    /// A table of rows; `columns` null stands for those of the table before it in a watch.
    pub fn new(metadata: Value, columns: Value, rows: Vec<Row<'a>>, beta: bool) -> Self {
        let api_version = meta_version(beta);
        Self { kind: "Table", api_version, metadata, column_definitions: columns, rows }
    }

    /// A table of one object.
    pub fn one(call: &Call, form: Form, object: &'a Object) -> Self {
        let now = now(&call.door.config.clock);
        let row = Row::of(object.kind, object, Include::of(call), form.beta, now);
        Self::new(revision(object), columns(object.kind), vec![row], form.beta)
    }

    /// A table of a list.
    pub fn many(call: &Call, form: Form, kind: &Kind, list: &'a List) -> Self {
        let (include, now) = (Include::of(call), now(&call.door.config.clock));
        let row = |object: &'a Arc<Object>| Row::of(kind, object, include, form.beta, now);
        let rows = list.items.iter().map(row).collect();
        Self::new(list_meta(list), columns(kind), rows, form.beta)
    }

    /// A table of the Scale of an object, with upstream's columns.
    pub fn scale(call: &Call, form: Form, scale: &'a Object) -> Self {
        let value = scale.to_value();
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
        let columns = json!([
            column("Name", "string", "name"),
            column("Desired", "integer", ""),
            column("Available", "integer", ""),
            column("Age", "string", ""),
        ]);
        let row = Row {
            cells: vec![
                scale.name.as_str().into(),
                count("/spec/replicas").into(),
                count("/status/replicas").into(),
                age.into(),
            ],
            object: Some(Shown::Metadata(Partial::of(scale, form.beta))),
        };
        Self::new(revision(scale), columns, vec![row], form.beta)
    }
}

/// `metadata` of a table of one object.
fn revision(object: &Object) -> Value {
    json!({ "resourceVersion": object.revision.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_objects::kinds;

    #[test]
    fn cells_are_made_of_everything_but_managed_fields() {
        let object = json!({"metadata": {"name": "a", "managedFields": [{"x": [1, {}]}], "labels": {
            "managedFields": "kept"}}, "managedFields": 1, "data": {"metadata": {"managedFields": 2}}});
        let mut expected = object.clone();
        expected["metadata"].as_object_mut().unwrap().remove("managedFields");
        assert_eq!(without(MANAGED_FIELDS, object.to_string().as_bytes()), expected);
    }

    #[test]
    fn a_reduced_object_has_its_metadata_as_it_stands() {
        let metadata = r#"{"resourceVersion":"7","name":"a","labels":{"z":"1","b":"\u00e9"}}"#;
        let kind = kinds::find("", "v1", "configmaps").unwrap();
        let mut object = Object::observed(kind, "a", Value::Null);
        object.bytes = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{metadata},"data":{{}}}}"#
        )
        .into();
        assert_eq!(
            serde_json::to_string(&Partial::of(&object, false)).unwrap(),
            format!(
                r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{metadata}}}"#
            )
        );
        // As a value, too, for YAML.
        assert_eq!(json!(Partial::of(&object, true))["metadata"]["labels"]["b"], "é");
    }
}
