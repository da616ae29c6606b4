//! Taints: sends pods away from machines whose taints of effect `NoExecute` they do not tolerate,
//! at once or when the time that they tolerate them for is over.

use crate::Context;
use crate::driver::{Outcome, Queue};
use dhow_objects::{Status, kinds};
use dhow_reason::{Code, Reason};
use dhow_scheduler::stay;
use dhow_state::{DeleteOptions, Key, Patch, View};
use dhow_workloads::Note;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;
use std::collections::HashMap;
use std::time::Duration;

const NAME: &str = "taint-eviction-controller";

/// When each pod that may stay for a while met the taints, in monotonic time.
type Met = HashMap<Key, Duration>;

pub(crate) async fn run(context: Context, mut nodes: View<Node>, mut pods: View<Pod>) {
    let mut queue = Queue::new(NAME, context.clock.clone());
    let mut met = Met::new();
    loop {
        tokio::select! {
            keys = nodes.changed() => {
                for pod in pods.list() {
                    if keys.iter().any(|node| machine(&pod) == Some(node.name.as_str())) {
                        queue.add(Key::new(
                            pod.metadata.namespace.as_deref().unwrap_or_default(),
                            pod.metadata.name.as_deref().unwrap_or_default(),
                        ));
                    }
                }
            }
            keys = pods.changed() => keys.into_iter().for_each(|key| queue.add(key)),
            () = queue.moment() => queue.ripen(),
        }
        while let Some(key) = queue.next() {
            let outcome = reconcile(&context, &nodes, &pods, &mut met, &key).await;
            queue.done(key, outcome);
        }
    }
}

/// The machine that a pod is bound to.
fn machine(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|name| !name.is_empty())
}

async fn reconcile(
    context: &Context,
    nodes: &View<Node>,
    pods: &View<Pod>,
    met: &mut Met,
    key: &Key,
) -> Outcome {
    let pod = pods.get(&key.namespace, &key.name);
    let pod = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let node = pod.as_ref().and_then(|pod| nodes.get("", machine(pod)?));
    let (Some(pod), Some(node)) = (pod, node) else {
        met.remove(key);
        return Ok(None);
    };
    let Some(limit) = stay(&pod, &node) else {
        met.remove(key);
        return Ok(None);
    };
    let now = context.clock.monotonic();
    let end = *met.entry(key.clone()).or_insert(now) + limit;
    if end > now {
        return Ok(Some(end - now));
    }
    let revision =
        node.metadata.resource_version.as_deref().and_then(|r| r.parse().ok()).unwrap_or(0);
    send_away(context, key, &pod, revision).await?;
    met.remove(key);
    Ok(None)
}

async fn send_away(context: &Context, key: &Key, pod: &Pod, because: u64) -> Result<(), Status> {
    let message = format!("Marking for deletion Pod {key}");
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    let reason = Reason::new(Code::UntoleratedTaint, format!("pod {key}")).with("node", node);
    let note =
        Note { kind: "Normal", reason: "TaintManagerEviction", message, because: Some(reason) };
    context.note(NAME, &kinds::POD, &pod.metadata, &note).await;
    let actor = Context::actor(NAME, because);
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint",
        "lastTransitionTime": context.now(),
    });
    let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    let uid = pod.metadata.uid.clone();
    let options = DeleteOptions { uid, ..DeleteOptions::default() };
    let state = &context.state;
    let gone = |refusal: &Status| refusal.code == 404;
    match state.patch_typed::<Pod>(&actor, &kinds::POD, key, "status", patch).await {
        Err(refusal) if !gone(&refusal) => return Err(refusal),
        _ => {}
    }
    match state.delete(&actor, &kinds::POD, &key.namespace, &key.name, &options).await {
        Err(refusal) if !gone(&refusal) => Err(refusal),
        _ => Ok(()),
    }
}
