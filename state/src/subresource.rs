//! What lies below an object with a state of its own: scale, binding, eviction, finalize.

use crate::State;
use crate::codec::text;
use crate::types::{Actor, DeleteOptions, Deleted, Object, Result, WriteOptions};
use crate::write::Aim;
use dhow_objects::kinds::{self, Kind};
use dhow_objects::{Status, meta, time};
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock};

/// The `autoscaling/v1` Scale of an object.
pub(crate) fn scale_of(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    // A ReplicationController's selector is the labels themselves.
    let plain = object["kind"] == "ReplicationController";
    let selector = match &object["spec"]["selector"] {
        labels if plain => json!({"matchLabels": labels}),
        selector => selector.clone(),
    };
    let selector = dhow_objects::selectors::LabelSelector::from_json(&selector)
        .map(|s| s.to_string())
        .unwrap_or_default();
    let replicas = |part: &str| object[part]["replicas"].as_i64();
    // A count that was never set means one; a status that was never written means none.
    let desired = replicas("spec").unwrap_or(1);
    let mut status = json!({"replicas": replicas("status").unwrap_or(0)});
    if !selector.is_empty() {
        status["selector"] = json!(selector);
    }
    let spec = if desired == 0 { json!({}) } else { json!({"replicas": desired}) };
    json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec, "status": status})
}

/// The object with the replicas of a Scale.
pub(crate) fn scaled(kind: &Kind, old: &Value, scale: &Value) -> Result<Value> {
    if kind.subresource("scale").is_none() {
        return Err(Status::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        ));
    }
    let replicas = &scale["spec"]["replicas"];
    let replicas = match replicas.as_i64() {
        Some(n) if (0..=i64::from(i32::MAX)).contains(&n) => n,
        // Written out by clients that leave zeroes away.
        None if replicas.is_null() => 0,
        _ => return Err(bad_replicas(meta::name(old), replicas)),
    };
    let mut new = old.clone();
    new["spec"]["replicas"] = json!(replicas);
    // The preconditions that the Scale carries hold for the object.
    for field in ["resourceVersion", "uid"] {
        match scale["metadata"].get(field) {
            Some(value) => new["metadata"][field] = value.clone(),
            None => new["metadata"][field] = json!(""),
        }
    }
    Ok(new)
}

/// What an applied Scale says of the object itself: the fields that it owns are the object's.
pub(crate) fn applied_scale(kind: &Kind, scale: Value) -> Result<Value> {
    let says = |field: &str| scale.get(field).and_then(Value::as_str).unwrap_or_default();
    if (says("apiVersion"), says("kind")) != ("autoscaling/v1", "Scale") {
        return Err(Status::bad_request(format!(
            "{} in version {:?} cannot be applied as a Scale of autoscaling/v1",
            says("kind"),
            says("apiVersion")
        )));
    }
    let mut object = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.kind,
        "metadata": scale.get("metadata").cloned().unwrap_or(json!({})),
    });
    if let Some(replicas) = scale.pointer("/spec/replicas") {
        if !replicas.as_i64().is_some_and(|n| (0..=i64::from(i32::MAX)).contains(&n)) {
            return Err(bad_replicas(meta::name(&scale), replicas));
        }
        object["spec"] = json!({"replicas": replicas});
    }
    Ok(object)
}

fn bad_replicas(name: &str, replicas: &Value) -> Status {
    let cause = dhow_objects::StatusCause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
        field: "spec.replicas".into(),
    };
    Status::invalid("autoscaling", "Scale", name, vec![cause])
}

/// The Scale of a stored object, as it is served.
pub(crate) fn scale_object(object: &Object) -> Result<Arc<Object>> {
    let scale = scale_of(object.value());
    Ok(Arc::new(Object {
        kind: object.kind,
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        revision: object.revision,
        bytes: serde_json::to_vec(&scale).map_err(Status::internal)?.into(),
        parsed: OnceLock::new(),
    }))
}

impl State {
    /// A subresource that can be read: `status` is the object itself, `scale` its Scale.
    ///
    /// # Errors
    /// 404 when the object or the subresource does not exist.
    pub async fn get_subresource(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        subresource: &str,
    ) -> Result<Arc<Object>> {
        if !subresource.is_empty() && kind.subresource(subresource).is_none() {
            return Err(Status::new(
                404,
                "NotFound",
                "the server could not find the requested resource",
            ));
        }
        let object = self.get(kind, namespace, name).await?;
        if subresource == "scale" { scale_object(&object) } else { Ok(object) }
    }

    /// Binds a pod to the node that a `core/v1` Binding names.
    ///
    /// # Errors
    /// 409 when the pod is bound already, is being deleted, or has another uid; 404.
    pub async fn bind(
        &self,
        actor: &Actor,
        namespace: &str,
        name: &str,
        binding: &Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>> {
        let node = text(binding, "/target/name").to_owned();
        let target_kind = text(binding, "/target/kind");
        if node.is_empty() || !matches!(target_kind, "" | "Node") {
            return Err(Status::bad_request("target.name must name a Node"));
        }
        let conflict = |why: String| Status::conflict("", "pods/binding", name, &why);
        let now = time::format(self.now());
        let make = |old: &Value| {
            let bound = text(old, "/spec/nodeName");
            if !bound.is_empty() {
                return Err(conflict(format!("pod {name} is already assigned to node {bound:?}")));
            }
            if meta::deletion_timestamp(old).is_some() {
                return Err(conflict(format!(
                    "pod {name} is being deleted, cannot be assigned to a host"
                )));
            }
            let mut new = old.clone();
            let uid = meta::uid(binding);
            if !uid.is_empty() {
                new["metadata"]["uid"] = json!(uid);
            }
            new["spec"]["nodeName"] = json!(node);
            for (key, value) in meta::annotations(binding).into_iter().flatten() {
                new["metadata"]["annotations"][key] = value.clone();
            }
            Ok(new)
        };
        let finish = |old: &Value| {
            make(old).map(|mut new| {
            set_condition(&mut new, json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
            new
        })
        };
        let (kind, subresource) = (&kinds::POD, "binding");
        let aim = Aim { actor, kind, namespace, name, subresource, options };
        self.replace(aim, &finish).await
    }

    /// Evicts a pod: a deletion that `policy/v1` Eviction asks for.
    ///
    /// # Errors
    /// As [`State::delete`].
    pub async fn evict(
        &self,
        actor: &Actor,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted> {
        // Disruption budgets are not a kind yet; with them, this refuses with 429.
        self.delete(actor, &kinds::POD, namespace, name, options).await
    }

    /// Replaces a namespace's `spec.finalizers`; a terminating namespace without any goes.
    ///
    /// # Errors
    /// As [`State::update`].
    pub async fn finalize_namespace(
        &self,
        actor: &Actor,
        name: &str,
        value: &Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>> {
        let make = |old: &Value| {
            let mut new = old.clone();
            let finalizers = value.pointer("/spec/finalizers").cloned().unwrap_or(json!([]));
            new["spec"]["finalizers"] = finalizers;
            for field in ["resourceVersion", "uid"] {
                if let Some(given) = value["metadata"].get(field) {
                    new["metadata"][field] = given.clone();
                }
            }
            Ok(new)
        };
        let (kind, namespace, subresource) = (&kinds::NAMESPACE, "", "finalize");
        let aim = Aim { actor, kind, namespace, name, subresource, options };
        self.replace(aim, &make).await
    }
}

/// Sets one entry of `status.conditions`, found by its type.
fn set_condition(object: &mut Value, condition: Value) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    let conditions = &mut object["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(found) => *found = condition,
        None => list.push(condition),
    }
}
