//! Filling in what was left out: helpers of the defaults, and the normal form of objects.
//!
//! Upstream decodes every object into Go structs and encodes it again, which drops what is empty
//! and makes quantities canonical. [`normalize`] does the same with the schema.

use crate::quantity::Quantity;
use crate::schema::{Field, FieldType, Type};
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

/// Brings an object into the form that upstream serves: no nulls, no empty optional values,
/// canonical quantities. Fields that the schema does not know stay as they are.
pub(crate) fn normalize(value: &mut Value, ty: &'static Type) {
    let Value::Object(object) = value else { return };
    object.retain(|key, value| match ty.field(key) {
        None => !value.is_null(),
        Some(field) => {
            normalize_field(value, &field.ty);
            !drops(field, value)
        }
    });
}

fn normalize_field(value: &mut Value, ty: &FieldType) {
    match (ty, value) {
        (FieldType::Message(ty), value) => normalize(value, ty),
        (FieldType::List(inner), Value::Array(items)) => {
            for item in items {
                normalize_field(item, inner);
            }
        }
        (FieldType::Map(inner), Value::Object(map)) => {
            for item in map.values_mut() {
                if item.is_null() && matches!(inner, FieldType::String | FieldType::Bytes) {
                    *item = json!("");
                }
                normalize_field(item, inner);
            }
        }
        (FieldType::Quantity, value) => {
            if let Ok(quantity) = Quantity::from_json(value) {
                *value = json!(quantity.to_string());
            }
        }
        _ => {}
    }
}

/// Whether Go leaves the value out.
fn drops(field: &Field, value: &Value) -> bool {
    if value.is_null() {
        return true;
    }
    if !field.omitempty {
        return false;
    }
    match (&field.ty, value) {
        (FieldType::List(_), Value::Array(items)) => items.is_empty(),
        (FieldType::Map(_), Value::Object(map)) => map.is_empty(),
        (FieldType::String | FieldType::Bytes, Value::String(s)) => !field.pointer && s.is_empty(),
        (FieldType::Bool, Value::Bool(b)) => !field.pointer && !b,
        (FieldType::Int32 | FieldType::Int64, Value::Number(n)) => {
            !field.pointer && n.as_i64() == Some(0)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::schema;

    #[test]
    fn objects_take_the_form_that_go_gives_them() {
        let ty = schema().kind("", "v1", "Pod").unwrap();
        let mut pod = json!({
            "metadata": {"name": "p", "labels": {}, "annotations": null, "creationTimestamp": null},
            "spec": {
                "hostNetwork": false,
                "terminationGracePeriodSeconds": 0,
                "nodeName": "",
                "containers": [{
                    "name": "a", "args": [], "env": [{"name": "E", "value": ""}],
                    "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}},
                }],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
        });
        normalize(&mut pod, ty);
        assert_eq!(
            pod,
            json!({
                "metadata": {"name": "p"},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "a", "env": [{"name": "E"}],
                        "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}},
                    }],
                    "volumes": [{"name": "v", "emptyDir": {}}],
                },
            })
        );
    }
}
