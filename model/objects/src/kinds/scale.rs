//! The `scale` subresource (`autoscaling/v1 Scale`) of kinds with replicas.

use crate::meta;
use crate::selectors::LabelSelector;
use crate::status::Status;
use serde_json::{Value, json};

/// The scale of an object with `spec.replicas`, as the subresource serves it.
#[must_use]
pub fn scale_of(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.pointer(&format!("/metadata/{field}")) {
            metadata[field] = value.clone();
        }
    }
    let selector = object.pointer("/spec/selector").unwrap_or(&Value::Null);
    let selector = LabelSelector::from_json(selector).map(|s| s.to_string()).unwrap_or_default();
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": number("/spec/replicas")},
        "status": {"replicas": number("/status/replicas"), "selector": selector},
    })
}

/// Puts what a client wrote to the subresource into the object.
///
/// # Errors
/// 422 when the number of replicas is negative, 409 when the scale is that of another state of
/// the object.
pub fn scale_into(
    scale: &Value,
    object: &mut Value,
    group: &str,
    plural: &str,
) -> Result<(), Status> {
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    let name = meta::name(object).to_owned();
    if replicas < 0 || replicas > i64::from(i32::MAX) {
        let mut checks = super::check::Checks::default();
        checks.invalid("spec.replicas", replicas, super::check::NEGATIVE);
        return Err(Status::invalid("autoscaling", "Scale", &name, checks.causes()));
    }
    let given = meta::resource_version(scale);
    if !given.is_empty() && given != meta::resource_version(object) {
        return Err(Status::modified(group, plural, &name));
    }
    if !object["spec"].is_object() {
        object["spec"] = json!({});
    }
    object["spec"]["replicas"] = json!(replicas);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7", "labels": {"a": "b"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}},
            "status": {"replicas": 1},
        });
        let mut scale = scale_of(&object);
        assert_eq!(
            scale["metadata"],
            json!({"name": "web", "namespace": "shop", "resourceVersion": "7"})
        );
        assert_eq!(scale["status"], json!({"replicas": 1, "selector": "app=web"}));
        scale["spec"]["replicas"] = json!(5);
        scale_into(&scale, &mut object, "apps", "deployments").unwrap();
        assert_eq!(object["spec"]["replicas"], 5);
        scale["metadata"]["resourceVersion"] = json!("6");
        assert_eq!(scale_into(&scale, &mut object, "apps", "deployments").unwrap_err().code, 409);
        scale["spec"]["replicas"] = json!(-1);
        assert_eq!(scale_into(&scale, &mut object, "apps", "deployments").unwrap_err().code, 422);
    }
}
