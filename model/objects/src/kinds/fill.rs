//! Filling in what was left out: helpers of the defaults.

use serde_json::{Map, Value, json};

/// The object at a pointer, made with all its parents when missing or null. `None` when something
/// else stands in the way.
pub(crate) fn object_at<'a>(
    value: &'a mut Value,
    path: &[&str],
) -> Option<&'a mut Map<String, Value>> {
    let mut at = value;
    for step in path {
        at = at.as_object_mut()?.entry(*step).or_insert(Value::Null);
        if at.is_null() {
            *at = json!({});
        }
    }
    at.as_object_mut()
}

/// Sets a field that is missing, null, or the empty string.
pub(crate) fn set(object: &mut Map<String, Value>, field: &str, default: Value) {
    let empty = match object.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(_) => false,
    };
    if empty {
        object.insert(field.to_owned(), default);
    }
}

/// Sets a field that is missing, null, or zero.
pub(crate) fn set_number(object: &mut Map<String, Value>, field: &str, default: i64) {
    if object.get(field).and_then(Value::as_i64).is_none_or(|n| n == 0)
        && object.get(field).is_none_or(|v| v.is_null() || v.is_number())
    {
        object.insert(field.to_owned(), json!(default));
    }
}

/// The objects of a list field.
pub(crate) fn each<'a>(
    object: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    object
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}
