//! What a machine observed, written into the objects that it may write.

use crate::door::refused;
use dhow_intents::FeedError;
use dhow_objects::kinds;
use dhow_objects::{Status, meta};
use dhow_state::{Actor, Key, State, WriteOptions};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, PodStatus};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Where the leases of machines are.
const LEASES: &str = "kube-node-lease";

fn to_value<T: Serialize>(object: &T) -> Result<Value, FeedError> {
    serde_json::to_value(object).map_err(|e| refused(Status::internal(e)))
}

/// Replaces a status, but keeps the conditions that others set, and `keep`.
fn merge_status(old: &Value, reported: &Value, keep: &[&str]) -> Value {
    let mut status = reported.clone();
    for field in keep {
        if status.get(*field).is_none()
            && let Some(value) = old["status"].get(*field)
        {
            status[*field] = value.clone();
        }
    }
    let list = |v: &Value| v["conditions"].as_array().cloned().unwrap_or_default();
    let mut conditions = list(&status);
    for condition in list(&old["status"]) {
        if conditions.iter().all(|c| c["type"] != condition["type"]) {
            conditions.push(condition);
        }
    }
    if !conditions.is_empty() {
        status["conditions"] = json!(conditions);
    }
    status
}

pub(crate) async fn pod(
    state: &State,
    actor: &Actor,
    key: &Key,
    uid: &str,
    status: &PodStatus,
) -> Result<(), FeedError> {
    let reported = to_value(status)?;
    let make = |old: &Value| {
        if meta::uid(old) != uid {
            return Err(Status::not_found("", "pods", &key.name));
        }
        let mut new = old.clone();
        new["status"] = merge_status(old, &reported, &["qosClass", "nominatedNodeName"]);
        Ok(new)
    };
    state.modify(actor, &kinds::POD, key, "status", &make).await.map_err(refused)?;
    Ok(())
}

/// The node without the times at which somebody looked, which alone are no news: the lease tells that
/// the machine lives.
fn without_heartbeats(node: &Value) -> Value {
    let mut node = node.clone();
    if let Some(conditions) = node["status"]["conditions"].as_array_mut() {
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            condition.remove("lastHeartbeatTime");
        }
    }
    node
}

pub(crate) async fn node(
    state: &State,
    actor: &Actor,
    name: &str,
    node: Node,
) -> Result<Arc<Node>, FeedError> {
    let mut reported = to_value(&node)?;
    reported["metadata"]["name"] = json!(name);
    let key = Key::new("", name);
    let make = |old: &Value| {
        let mut new = old.clone();
        for field in ["labels", "annotations"] {
            for (key, value) in reported["metadata"][field].as_object().into_iter().flatten() {
                new["metadata"][field][key] = value.clone();
            }
        }
        new["status"] = merge_status(old, &reported["status"], &["daemonEndpoints", "nodeInfo"]);
        let news = without_heartbeats(&new) != without_heartbeats(old);
        Ok(if news { new } else { old.clone() })
    };
    loop {
        match state.modify(actor, &kinds::NODE, &key, "status", &make).await {
            Ok(object) => return object.decode().map(Arc::new).map_err(refused),
            Err(refusal) if refusal.code == 404 => {}
            Err(refusal) => return Err(refused(refusal)),
        }
        let options = WriteOptions::default();
        match state.create(actor, &kinds::NODE, "", reported.clone(), &options).await {
            Ok(object) => return object.decode().map(Arc::new).map_err(refused),
            // Somebody was faster: report into what they made.
            Err(refusal) if refusal.reason == "AlreadyExists" => {}
            Err(refusal) => return Err(refused(refusal)),
        }
    }
}

pub(crate) async fn lease(
    state: &State,
    actor: &Actor,
    name: &str,
    lease: &Lease,
) -> Result<(), FeedError> {
    let mut value = to_value(lease)?;
    value["metadata"]["name"] = json!(name);
    value["metadata"]["namespace"] = json!(LEASES);
    let key = Key::new(LEASES, name);
    let make = |old: &Value| {
        let mut new = old.clone();
        new["spec"] = value["spec"].clone();
        Ok(new)
    };
    match state.modify(actor, &kinds::LEASE, &key, "", &make).await {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.code == 404 => {
            let options = WriteOptions::default();
            let made = state.create(actor, &kinds::LEASE, LEASES, value, &options).await;
            made.map(|_| ()).map_err(refused)
        }
        Err(refusal) => Err(refused(refusal)),
    }
}
