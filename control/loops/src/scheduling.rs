//! Scheduling: binds pods to machines.

use crate::Context;
use dhow_objects::kinds;
use dhow_scheduler::{Decision, Machine, Usage, message, place};
use dhow_state::{Key, Patch, View, WriteOptions};
use dhow_workloads::{Note, phase};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const NAME: &str = "default-scheduler";

pub(crate) async fn run(context: Context, mut pods: View<Pod>, mut nodes: View<Node>) {
    // Pods that have not been tried yet, and those that found no machine. The latter are tried again
    // when there is more room, or another machine.
    let mut fresh: BTreeSet<Key> = BTreeSet::new();
    let mut refused: BTreeSet<Key> = BTreeSet::new();
    loop {
        let mut room = false;
        tokio::select! {
            keys = pods.changed() => {
                for key in keys {
                    match pods.get(&key.namespace, &key.name) {
                        Some(pod) if is_pending(&pod) => {
                            if !refused.contains(&key) {
                                fresh.insert(key);
                            }
                        }
                        pod => {
                            fresh.remove(&key);
                            refused.remove(&key);
                            room |= pod.is_none_or(|p| matches!(phase(&p), "Succeeded" | "Failed"));
                        }
                    }
                }
            }
            _ = nodes.changed() => room = true,
        }
        if room {
            fresh.append(&mut refused);
        }
        if fresh.is_empty() {
            continue;
        }
        let mut machines = machines(&pods, &nodes);
        let mut ordered: Vec<(Key, std::sync::Arc<Pod>)> = fresh
            .iter()
            .filter_map(|k| Some((k.clone(), pods.get(&k.namespace, &k.name)?)))
            .collect();
        // Higher priority first, then older first.
        ordered.sort_by_key(|(key, pod)| {
            let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            let age = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (std::cmp::Reverse(priority), age, key.clone())
        });
        for (key, pod) in ordered {
            if !bind(&context, &pod, &key, &mut machines).await {
                refused.insert(key);
            }
        }
        fresh.clear();
    }
}

/// Whether the pod is ours to place.
fn is_pending(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.node_name.as_deref().unwrap_or_default().is_empty()
        && spec.scheduler_name.as_deref().is_none_or(|s| s == NAME)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && pod.metadata.deletion_timestamp.is_none()
        && !matches!(phase(pod), "Succeeded" | "Failed")
}

fn machines(pods: &View<Pod>, nodes: &View<Node>) -> Vec<Machine> {
    let mut usage: BTreeMap<String, Usage> = BTreeMap::new();
    for pod in pods.list() {
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
        if !node.is_empty() && !matches!(phase(&pod), "Succeeded" | "Failed") {
            usage.entry(node).or_default().add(&pod);
        }
    }
    nodes
        .list()
        .into_iter()
        .map(|node| {
            let name = node.metadata.name.clone().unwrap_or_default();
            Machine { usage: usage.remove(&name).unwrap_or_default(), node }
        })
        .collect()
}

/// Places one pod; whether it waits no longer.
async fn bind(context: &Context, pod: &Pod, key: &Key, machines: &mut [Machine]) -> bool {
    let decision = place(pod, machines);
    let revision =
        pod.metadata.resource_version.as_deref().and_then(|r| r.parse().ok()).unwrap_or(0);
    let actor = Context::actor(NAME, revision);
    match decision {
        Decision::Bind(node) => {
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding",
                "metadata": {"name": key.name, "namespace": key.namespace, "uid": pod.metadata.uid},
                "target": {"kind": "Node", "name": node},
            });
            let options = WriteOptions::default();
            match context.state.bind(&actor, &key.namespace, &key.name, &binding, &options).await {
                Ok(_) => {
                    if let Some(machine) =
                        machines.iter_mut().find(|m| m.node.metadata.name.as_ref() == Some(&node))
                    {
                        machine.usage.add(pod);
                    }
                    let message = format!("Successfully assigned {key} to {node}");
                    // Beside the path: the pod starts meanwhile.
                    let (context, metadata) = (context.clone(), pod.metadata.clone());
                    tokio::spawn(async move {
                        let note = Note { kind: "Normal", reason: "Scheduled", message };
                        context.note(NAME, &kinds::POD, &metadata, &note).await;
                    });
                    true
                }
                // Somebody else bound or deleted it, or the view brings it again.
                Err(refusal) => {
                    tracing::debug!(%key, %refusal, "not bound");
                    refusal.code == 404
                }
            }
        }
        Decision::Wait(reason) => {
            let text = message(&reason);
            let known =
                pod.status.as_ref().and_then(|s| s.conditions.as_ref()).into_iter().flatten();
            let told = known
                .filter(|c| c.type_ == "PodScheduled")
                .any(|c| c.message.as_deref() == Some(&text));
            if !told {
                tracing::info!(%key, %reason, "pod waits");
                let condition = json!({
                    "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text,
                    "lastTransitionTime": context.now(),
                });
                let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
                let written = context
                    .state
                    .patch_typed::<Pod>(&actor, &kinds::POD, key, "status", patch)
                    .await;
                if let Err(refusal) = written {
                    tracing::debug!(%key, %refusal, "condition not written");
                }
                let note = Note { kind: "Warning", reason: "FailedScheduling", message: text };
                context.note(NAME, &kinds::POD, &pod.metadata, &note).await;
            }
            false
        }
    }
}
