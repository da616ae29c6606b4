//! What Go's JSON encoder makes of an object: which zero values it leaves out, which it shows.
//!
//! A client that reads an object back expects the form that a Go server gives it after decoding it
//! into structs: no nulls, no empty optional scalars, and `{}` for structs that are always there.

use serde_json::{Map, Value, json};

use super::protobuf::scalar;
use super::{Field, FieldType, Type};
use crate::quantity::Quantity;

/// Gives an object the form that it would have after a round through Go's structs: nulls and empty
/// optional values go, values that Go always shows come, quantities and times become canonical.
/// Unknown fields stay (see [`super::strict::prune`]), and so do values of wrong types.
pub fn normalise(object: &mut Value, ty: &'static Type) {
    if let Value::Object(map) = object {
        normalise_map(map, ty);
    }
}

fn normalise_map(map: &mut Map<String, Value>, ty: &'static Type) {
    map.retain(|key, value| !value.is_null() || ty.field(key).is_none());
    for (key, value) in map.iter_mut() {
        if let Some(field) = ty.field(key) {
            normalise_value(value, &field.ty);
        }
    }
    finish(map, ty);
}

fn normalise_value(value: &mut Value, ty: &'static FieldType) {
    match (ty, &mut *value) {
        (FieldType::Message(ty), Value::Object(map)) => normalise_map(map, ty),
        (FieldType::List(item), Value::Array(list)) => {
            list.iter_mut().for_each(|value| normalise_value(value, item));
        }
        (FieldType::Map(item), Value::Object(map)) => {
            map.values_mut().for_each(|value| normalise_value(value, item));
        }
        // Go decodes a null item into the zero value.
        (ty, Value::Null) => *value = zero(ty),
        (FieldType::Quantity, _) => {
            if let Ok(quantity) = Quantity::from_json(value) {
                *value = json!(quantity.to_string());
            }
        }
        (FieldType::Time, Value::String(text)) => {
            if let Some(text) = scalar::parse_time(text).and_then(|t| scalar::seconds_text(t.0)) {
                *value = json!(text);
            }
        }
        (FieldType::MicroTime, Value::String(text)) => {
            let parsed = scalar::parse_time(text);
            if let Some(text) = parsed.and_then(|(s, n)| scalar::micros_text(s, n)) {
                *value = json!(text);
            }
        }
        (FieldType::Duration, Value::String(text)) => {
            if let Some(nanos) = scalar::parse_duration(text) {
                *value = json!(scalar::duration_text(nanos));
            }
        }
        _ => {}
    }
}

/// Go's zero value as JSON.
pub(super) fn zero(ty: &'static FieldType) -> Value {
    match ty {
        FieldType::Bool => json!(false),
        FieldType::Int32 | FieldType::Int64 | FieldType::IntOrString => json!(0),
        FieldType::Float64 => json!(0),
        FieldType::String => json!(""),
        FieldType::Quantity => json!("0"),
        FieldType::Duration => json!("0s"),
        FieldType::Bytes
        | FieldType::Time
        | FieldType::MicroTime
        | FieldType::Raw
        | FieldType::FieldsV1
        | FieldType::List(_)
        | FieldType::Map(_) => Value::Null,
        FieldType::Message(ty) => {
            let mut map = Map::new();
            finish(&mut map, ty);
            Value::Object(map)
        }
    }
}

/// Leaves out what Go leaves out, and completes what Go always shows.
pub(super) fn finish(map: &mut Map<String, Value>, ty: &'static Type) {
    for field in ty.fields() {
        // apiVersion and kind travel in the envelope.
        if field.number == 0 && field.inlined_in == 0 {
            continue;
        }
        match map.get(field.json) {
            None if field.pointer => {
                if !field.omitempty {
                    map.insert(field.json.to_owned(), Value::Null);
                }
            }
            None => {
                let zero = zero(&field.ty);
                if !omitted(field, &zero) {
                    map.insert(field.json.to_owned(), zero);
                }
            }
            Some(value) if !field.pointer && omitted(field, value) => {
                map.remove(field.json);
            }
            Some(_) => {}
        }
    }
}

/// Whether Go's encoder leaves out a value that is not behind a pointer.
fn omitted(field: &Field, value: &Value) -> bool {
    match field.ty {
        FieldType::Bool
        | FieldType::Int32
        | FieldType::Int64
        | FieldType::Float64
        | FieldType::String
        | FieldType::Bytes
        | FieldType::List(_)
        | FieldType::Map(_) => {
            field.omitempty
                && match value {
                    Value::Null => true,
                    Value::Bool(b) => !b,
                    Value::Number(n) => n.as_f64() == Some(0.0),
                    Value::String(s) => s.is_empty(),
                    Value::Array(list) => list.is_empty(),
                    Value::Object(map) => map.is_empty(),
                }
        }
        // `omitempty` does not concern structs.
        _ => {
            field.omitzero
                && match value {
                    Value::Null => true,
                    Value::Object(map) => map.is_empty(),
                    _ => false,
                }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::schema;

    fn normal(mut object: Value) -> Value {
        let kind = object["kind"].as_str().unwrap();
        let ty = schema().kind_of(object["apiVersion"].as_str().unwrap(), kind).unwrap();
        normalise(&mut object, ty);
        object
    }

    #[test]
    fn a_deployment_shows_what_go_shows() {
        let object = normal(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "labels": null, "creationTimestamp": null, "namespace": ""},
            "spec": {
                "replicas": 0, "paused": false, "selector": null,
                "template": {"spec": {"containers": [{
                    "name": "c", "ports": [],
                    "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}},
                    "livenessProbe": {"httpGet": {"port": 80}},
                }]}},
            },
        }));
        assert_eq!(
            object,
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "web"},
                "spec": {
                    "replicas": 0, "selector": null, "strategy": {},
                    "template": {"metadata": {}, "spec": {"containers": [{
                        "name": "c",
                        "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}},
                        "livenessProbe": {"httpGet": {"port": 80}},
                    }]}},
                },
                "status": {},
            })
        );
    }

    #[test]
    fn structs_that_are_always_there_come() {
        let object = normal(json!({"apiVersion": "v1", "kind": "Service"}));
        assert_eq!(
            object,
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {}, "spec": {}, "status": {"loadBalancer": {}},
            })
        );
        let event = normal(json!({"apiVersion": "v1", "kind": "Event"}));
        assert_eq!(event["firstTimestamp"], Value::Null);
        assert!(event.get("firstTimestamp").is_some());
    }
}
