//! Columns of the server-side tables that kubectl prints.
//!
//! Follows `k8s.io/kubernetes/pkg/printers/internalversion`, whose names, priorities and cells
//! users compare.

use crate::selectors::LabelSelector;
use crate::{meta, time};
use jiff::Timestamp;
use serde_json::{Value, json};

/// One column.
#[derive(Debug)]
pub struct Column {
    /// Title, as kubectl prints it in capitals.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `boolean`, `date`.
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the column that names the object.
    pub format: &'static str,
    /// One sentence.
    pub description: &'static str,
    /// 0 is always shown; more only with `-o wide`.
    pub priority: i32,
    /// The cell of an object, at a moment.
    pub cell: fn(&Value, Timestamp) -> Value,
}

impl Column {
    /// A column of text that is always shown.
    pub(crate) const fn text(
        name: &'static str,
        description: &'static str,
        cell: fn(&Value, Timestamp) -> Value,
    ) -> Self {
        Self { name, kind: "string", format: "", description, priority: 0, cell }
    }

    /// A column of whole numbers that is always shown.
    pub(crate) const fn number(
        name: &'static str,
        description: &'static str,
        cell: fn(&Value, Timestamp) -> Value,
    ) -> Self {
        Self { name, kind: "integer", format: "", description, priority: 0, cell }
    }

    /// The same column, only with `-o wide`.
    pub(crate) const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }
}

/// The object's name.
pub(crate) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name must be unique within a namespace and cannot be changed.",
    priority: 0,
    cell: |v, _| json!(meta::name(v)),
};

/// Time since creation.
pub(crate) const AGE: Column =
    Column::text("Age", "Time since the object was created, as the server saw it.", |v, now| {
        json!(age(meta::creation_timestamp(v), now))
    });

/// What kinds have that say nothing else.
pub(crate) const NAME_AND_AGE: &[Column] = &[NAME, AGE];

/// The age of a time stamp, or `<unknown>`.
pub(crate) fn age(stamp: &str, now: Timestamp) -> String {
    time::parse(stamp)
        .map_or_else(|| "<unknown>".to_owned(), |t| time::human(now.duration_since(t)))
}

/// Labels as `a=b,c=d`, or `<none>`.
pub(crate) fn labels(value: Option<&Value>) -> String {
    let Some(map) = value.and_then(Value::as_object).filter(|m| !m.is_empty()) else {
        return "<none>".to_owned();
    };
    let mut pairs: Vec<String> =
        map.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    pairs.sort();
    pairs.join(",")
}

/// Text at a path, or `<none>` when it is missing or empty.
pub(crate) fn text_or_none(value: &Value, pointer: &str) -> Value {
    match value.pointer(pointer).and_then(Value::as_str) {
        Some(text) if !text.is_empty() => json!(text),
        _ => json!("<none>"),
    }
}

/// Number at a path, or 0.
pub(crate) fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// Text at a path, or nothing.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Items at a path; a missing list is empty.
pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Cells about the containers of a pod template: names and images.
pub(crate) fn containers(value: &Value, pointer: &str, field: &str) -> Value {
    let all: Vec<&str> = items(value, pointer).iter().map(|c| text(c, field)).collect();
    json!(all.join(","))
}

/// Number of keys of a map field.
pub(crate) fn items_in(value: &Value, field: &str) -> usize {
    value.get(field).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

/// The cell of `spec.selector` (`meta/v1.LabelSelector`).
pub(crate) fn selector(value: &Value) -> Value {
    let selector = value.pointer("/spec/selector").unwrap_or(&Value::Null);
    match LabelSelector::from_json(selector) {
        Ok(s) if s.is_empty() || s.requirements().is_empty() => json!("<none>"),
        Ok(s) => json!(s.to_string()),
        Err(_) => json!("<error>"),
    }
}
