//! Strict reading of JSON: unknown fields, duplicate fields, and values of wrong types, told in the
//! words that clients of Kubernetes know (`fieldValidation=Strict|Warn|Ignore`).

mod read;
mod time;

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::protobuf::scalar;
use super::{Field, FieldType, Type};
use crate::quantity::Quantity;

pub use read::{Read, parse_json, read};

/// What [`check`] found. Paths look like `spec.template.spec.containers[0].image`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Paths of fields that the type does not have.
    pub unknown: Vec<String>,
    /// One message for each value of a wrong type, in the words of Go's JSON decoder. The first one
    /// is what a Go server would answer, with [`cannot_handle`] around it.
    pub wrong: Vec<String>,
}

impl Report {
    /// The warnings that `fieldValidation=Warn` answers, one header each: `unknown field "spec.x"`.
    pub fn warnings(&self, duplicates: &[String]) -> Vec<String> {
        let duplicates = duplicates.iter().map(|path| format!("duplicate field {path:?}"));
        let unknown = self.unknown.iter().map(|path| format!("unknown field {path:?}"));
        duplicates.chain(unknown).collect()
    }

    /// The error that `fieldValidation=Strict` answers (goes into [`cannot_handle`]), when a field
    /// is unknown or stands twice.
    pub fn strict_error(&self, duplicates: &[String]) -> Option<String> {
        let all = self.warnings(duplicates);
        (!all.is_empty()).then(|| format!("strict decoding error: {}", all.join(", ")))
    }
}

/// The message of the 400 with which a body is refused.
///
/// `kind` and `version` are those of the body (`Deployment`, `v1`), `wanted` the kind of the path.
pub fn cannot_handle(kind: &str, version: &str, wanted: &str, error: &str) -> String {
    format!("{kind} in version {version:?} cannot be handled as a {wanted}: {error}")
}

/// Compares an object with its type. Nulls fit everything.
pub fn check(object: &Value, ty: &'static Type) -> Report {
    let mut walk = Walk { report: Report::default(), path: String::new(), fields: Vec::new() };
    match object {
        Value::Object(map) => walk.object(map, ty),
        Value::Null => {}
        other => walk.report.wrong.push(format!(
            "json: cannot unmarshal {} into Go value of type {}",
            json_name(other),
            FieldType::Message(ty).go_type()
        )),
    }
    walk.report
}

/// Removes the fields that the type does not have.
pub fn prune(object: &mut Value, ty: &'static Type) {
    if let Value::Object(map) = object {
        map.retain(|key, _| ty.field(key).is_some());
        for (key, value) in map {
            if let Some(field) = ty.field(key) {
                prune_value(value, &field.ty);
            }
        }
    }
}

fn prune_value(value: &mut Value, ty: &'static FieldType) {
    match (ty, value) {
        (FieldType::Message(ty), value) => prune(value, ty),
        (FieldType::List(item), Value::Array(list)) => {
            list.iter_mut().for_each(|value| prune_value(value, item));
        }
        (FieldType::Map(item), Value::Object(map)) => {
            map.values_mut().for_each(|value| prune_value(value, item));
        }
        _ => {}
    }
}

fn json_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The JSON name after the names of the embedded structs on the way to it, as Go's errors have it.
fn go_path(ty: &'static Type, field: &Field) -> String {
    let inlined = (field.inlined_in != 0)
        .then(|| ty.inlined().iter().find(|i| i.number == field.inlined_in))
        .flatten();
    match inlined.and_then(|i| Some((i.ty, i.ty.field(field.json)?))) {
        Some((inner, field)) => format!("{}.{}", inner.go_name(), go_path(inner, field)),
        None => field.json.to_owned(),
    }
}

struct Walk {
    report: Report,
    /// With indexes and map keys, for unknown fields.
    path: String,
    /// Structs and their fields on the way, for wrong types.
    fields: Vec<(&'static Type, &'static Field)>,
}

impl Walk {
    fn object(&mut self, map: &Map<String, Value>, ty: &'static Type) {
        let length = self.path.len();
        for (key, value) in map {
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(key);
            match ty.field(key) {
                None => self.report.unknown.push(self.path.clone()),
                Some(field) => {
                    self.fields.push((ty, field));
                    self.value(value, &field.ty, &|| field.go_type());
                    self.fields.pop();
                }
            }
            self.path.truncate(length);
        }
    }

    /// `go_type` names the Go type; it is asked only to word a refusal.
    fn value(&mut self, value: &Value, ty: &'static FieldType, go_type: &dyn Fn() -> String) {
        match (ty, value) {
            (_, Value::Null) | (FieldType::Raw | FieldType::FieldsV1, _) => {}
            (FieldType::Bool, Value::Bool(_))
            | (FieldType::String, Value::String(_))
            | (FieldType::Float64, Value::Number(_))
            | (FieldType::IntOrString, Value::String(_)) => {}
            (FieldType::Int32 | FieldType::IntOrString, Value::Number(n)) => {
                if n.as_i64().is_none_or(|n| i32::try_from(n).is_err()) {
                    let go = match ty {
                        FieldType::Int32 => go_type(),
                        _ => "int32".to_owned(),
                    };
                    self.wrong(&format!("number {n}"), &go);
                }
            }
            (FieldType::Int64, Value::Number(n)) => {
                if n.as_i64().is_none() {
                    self.wrong(&format!("number {n}"), &go_type());
                }
            }
            (FieldType::IntOrString, other) => self.wrong(json_name(other), "int32"),
            (FieldType::Bytes, Value::String(text)) => self.base64(text),
            (FieldType::Quantity, value) => {
                if let Err(error) = Quantity::from_json(value) {
                    self.report.wrong.push(error.to_string());
                }
            }
            (FieldType::Time | FieldType::MicroTime, Value::String(text)) => {
                if let Some(error) = time::error(text, matches!(ty, FieldType::MicroTime)) {
                    self.report.wrong.push(error);
                }
            }
            (FieldType::Duration, Value::String(text)) => {
                if scalar::parse_duration(text).is_none() {
                    self.report.wrong.push(format!("time: invalid duration {text:?}"));
                }
            }
            (FieldType::Time | FieldType::MicroTime | FieldType::Duration, other) => {
                self.wrong(json_name(other), "string");
            }
            (FieldType::Message(ty), Value::Object(map)) => self.object(map, ty),
            (FieldType::List(item), Value::Array(list)) => {
                let item_type = || {
                    let list = go_type();
                    let item_type = list.strip_prefix("[]").map(|t| t.trim_start_matches('*'));
                    item_type.map_or_else(|| item.go_type(), str::to_owned)
                };
                let length = self.path.len();
                for (index, value) in list.iter().enumerate() {
                    // Writing to a string does not fail.
                    let _ = write!(self.path, "[{index}]");
                    self.value(value, item, &item_type);
                    self.path.truncate(length);
                }
            }
            (FieldType::Map(item), Value::Object(map)) => {
                let item_type = || {
                    let map = go_type();
                    let value = map.strip_prefix("map[").and_then(|rest| rest.split_once(']'));
                    value.map_or_else(|| item.go_type(), |(_, value)| value.to_owned())
                };
                let length = self.path.len();
                for (key, value) in map {
                    self.path.push('.');
                    self.path.push_str(key);
                    self.value(value, item, &item_type);
                    self.path.truncate(length);
                }
            }
            (_, other) => self.wrong(json_name(other), &go_type()),
        }
    }

    fn base64(&mut self, text: &str) {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        // Go skips line breaks.
        let text: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        if let Err(error) = STANDARD.decode(&text) {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _)
                | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => {
                    text.len() / 4 * 4
                }
            };
            self.report.wrong.push(format!("illegal base64 data at input byte {at}"));
        }
    }

    fn wrong(&mut self, found: &str, go_type: &str) {
        let names: Vec<String> = self.fields.iter().map(|(ty, field)| go_path(ty, field)).collect();
        let in_struct = self.fields.last().map_or("", |(ty, _)| ty.go_name());
        self.report.wrong.push(format!(
            "json: cannot unmarshal {found} into Go struct field {in_struct}.{} of type {go_type}",
            names.join(".")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::schema;
    use serde_json::json;

    fn deployment(spec: Value) -> Report {
        let ty = schema().kind("apps", "v1", "Deployment").unwrap();
        check(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec}), ty)
    }

    #[test]
    fn a_good_object_gives_an_empty_report() {
        let report = deployment(json!({
            "replicas": 3, "paused": null,
            "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
            "template": {"metadata": {"creationTimestamp": null}, "spec": {"containers": [
                {"name": "a", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}},
            ]}},
        }));
        assert_eq!(report, Report::default());
    }

    #[test]
    fn wrong_types_are_told_in_the_words_of_go() {
        for (spec, message) in [
            (
                json!({"replicas": "three"}),
                "string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"replicas": 1.5}),
                "number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"replicas": 3_000_000_000u64}),
                "number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (json!("x"), "string into Go struct field Deployment.spec of type v1.DeploymentSpec"),
            (
                json!({"template": {"spec": {"containers": [{"ports": [{"containerPort": "http"}]}]}}}),
                "string into Go struct field ContainerPort.spec.template.spec.containers.ports.containerPort of type int32",
            ),
            (
                json!({"template": {"spec": {"volumes": [{"emptyDir": 1}]}}}),
                "number into Go struct field Volume.spec.template.spec.volumes.VolumeSource.emptyDir of type v1.EmptyDirVolumeSource",
            ),
            (
                json!({"template": {"spec": {"containers": {}}}}),
                "object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
            (
                json!({"template": {"spec": {"restartPolicy": 1}}}),
                "number into Go struct field PodSpec.spec.template.spec.restartPolicy of type v1.RestartPolicy",
            ),
            (
                json!({"selector": {"matchLabels": {"a": true}}}),
                "bool into Go struct field LabelSelector.spec.selector.matchLabels of type string",
            ),
            (
                json!({"strategy": {"rollingUpdate": {"maxSurge": true}}}),
                "bool into Go struct field RollingUpdateDeployment.spec.strategy.rollingUpdate.maxSurge of type int32",
            ),
        ] {
            assert_eq!(deployment(spec).wrong, [format!("json: cannot unmarshal {message}")]);
        }
        assert_eq!(
            cannot_handle("Deployment", "v1", "Deployment", "x"),
            "Deployment in version \"v1\" cannot be handled as a Deployment: x"
        );
    }

    #[test]
    fn unknown_and_duplicate_fields_are_named_by_path() {
        let report = deployment(json!({
            "foo": 1,
            "template": {"spec": {"containers": [{"name": "a"}, {"imagePullPolicies": "Always"}]}},
        }));
        let (_, duplicates) =
            parse_json(br#"{"spec":{"a":1,"a":2,"b":[{"c":1},{"d":1,"d":{}}]}}"#).unwrap();
        assert_eq!(duplicates, ["spec.a", "spec.b[1].d"]);
        assert_eq!(
            report.strict_error(&duplicates[..1]).unwrap(),
            "strict decoding error: duplicate field \"spec.a\", unknown field \"spec.foo\", \
             unknown field \"spec.template.spec.containers[1].imagePullPolicies\""
        );
        assert_eq!(Report::default().strict_error(&[]), None);
    }

    #[test]
    fn pruning_leaves_maps_and_raw_values_alone() {
        let ty = schema().kind("", "v1", "ConfigMap").unwrap();
        let mut object =
            json!({"data": {"any": "x"}, "dada": {}, "metadata": {"nam": 1, "labels": {"l": "v"}}});
        prune(&mut object, ty);
        assert_eq!(object, json!({"data": {"any": "x"}, "metadata": {"labels": {"l": "v"}}}));
    }

    #[test]
    fn secrets_must_be_base64() {
        let ty = schema().kind("", "v1", "Secret").unwrap();
        let report = check(&json!({"data": {"a": "not base64!"}}), ty);
        assert_eq!(report.wrong, ["illegal base64 data at input byte 3"]);
        assert_eq!(check(&json!({"data": {"a": "aGk="}}), ty), Report::default());
    }
}
