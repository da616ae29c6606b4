//! Machines: marks those that fell silent or are short of something.
//!
//! A machine renews a lease every ten seconds. When the lease is over, nobody knows how the machine
//! is: its conditions become Unknown, its pods count as not ready, so that no service leads to them,
//! and no new pods go there, until it speaks again and tells how its pods are. Its taints send its
//! pods away when they have tolerated them for long enough: five minutes, unless they say otherwise.
//! A machine that is short of something says so by a condition; its taint keeps further pods away.

use crate::Context;
use dhow_objects::{Status, kinds};
use dhow_reason::{Code, Reason};
use dhow_state::{Key, Patch, Reader, View, unless_gone};
use dhow_workloads::Note;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use serde_json::json;
use std::collections::HashMap;
use std::time::Duration;

const NAME: &str = "node-controller";
const LEASES: &str = "kube-node-lease";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Conditions under which a machine takes no further pods, and the taints that say so.
const PRESSURES: [(&str, &str); 3] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];
/// How long a lease lasts that does not say.
const GRACE: Duration = Duration::from_secs(40);

pub(crate) async fn run(context: Context, mut nodes: View<Node>, pods: Reader<Pod>) {
    let mut leases: View<Lease> = context.state.view(&kinds::LEASE);
    // When each machine was last heard of, by our own clock: a machine's clock may be wrong, and
    // none is late in the first moments after our own start.
    let mut heard: HashMap<String, (Option<String>, Duration)> = HashMap::new();
    loop {
        let now = context.clock.monotonic();
        let mut next: Option<Duration> = None;
        for node in nodes.list() {
            let name = node.metadata.name.clone().unwrap_or_default();
            let lease = leases.get(LEASES, &name);
            let spec = lease.as_ref().and_then(|l| l.spec.as_ref());
            let life = spec
                .and_then(|s| s.lease_duration_seconds)
                .and_then(|s| u64::try_from(s).ok())
                .map_or(GRACE, Duration::from_secs);
            let revision = lease.as_ref().and_then(|l| l.metadata.resource_version.clone());
            let known = heard.entry(name.clone()).or_insert_with(|| (revision.clone(), now));
            if known.0 != revision {
                *known = (revision, now);
            }
            let due = known.1 + life;
            let silent = due <= now;
            if !silent {
                next = Some(next.map_or(due, |n| n.min(due)));
            }
            if let Err(refusal) = judge(&context, &node, &pods, silent).await {
                tracing::warn!(node = name, %refusal, "machine's state not written");
                next = Some(now + Duration::from_secs(1));
            }
        }
        heard.retain(|name, _| nodes.get("", name).is_some());
        let wait = next.map(|at| at.saturating_sub(context.clock.monotonic()));
        tokio::select! {
            _ = nodes.changed() => {}
            _ = leases.changed() => {}
            () = async { match wait {
                Some(wait) => context.clock.sleep(wait).await,
                None => std::future::pending().await,
            } } => {}
        }
    }
}

/// Writes what is known of a machine, if that changed.
async fn judge(
    context: &Context,
    node: &Node,
    pods: &Reader<Pod>,
    silent: bool,
) -> Result<(), Status> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let key = Key::new("", &name);
    let actor = Context::actor(NAME, 0);
    let (has, others): (Vec<_>, Vec<_>) = node
        .spec
        .iter()
        .flat_map(|s| s.taints.iter().flatten())
        .cloned()
        .partition(|t| t.key == UNREACHABLE || PRESSURES.iter().any(|(_, key)| t.key == *key));
    let wanted = wanted(node, silent);
    let same =
        |taint: &Taint, (key, effect): &(&str, &str)| taint.key == *key && taint.effect == *effect;
    let missing = |taint: &&(&str, &str)| !has.iter().any(|t| same(t, taint));
    if has.len() == wanted.len() && !wanted.iter().any(|taint| missing(&taint)) {
        return Ok(());
    }
    let tainted = has.iter().any(|t| t.key == UNREACHABLE);
    if silent && !tainted {
        let conditions: Vec<_> = node
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .map(|c| {
                json!({
                    "type": c.type_, "status": "Unknown", "reason": "NodeStatusUnknown",
                    "message": "Kubelet stopped posting node status.",
                    "lastTransitionTime": context.now(),
                })
            })
            .collect();
        let patch = Patch::Strategic(json!({"status": {"conditions": conditions}}));
        context.state.patch_typed::<Node>(&actor, &kinds::NODE, &key, "status", patch).await?;
        let message = format!("Node {name} status is now: NodeNotReady");
        let because =
            Some(Reason::new(Code::NodeNotReady, format!("node {name}")).with("lease", "over"));
        let note = Note { kind: "Normal", reason: "NodeNotReady", message, because };
        context.note(NAME, &kinds::NODE, &node.metadata, &note).await;
        tracing::warn!(node = name, "machine fell silent");
        // The taint comes last: until it is written, all of this is tried again.
        doubt(context, pods, &name).await?;
    } else if tainted && !silent {
        tracing::info!(node = name, "machine speaks again");
    }
    // One that stays keeps the moment at which it was added.
    let kept = has.iter().filter(|t| wanted.iter().any(|taint| same(t, taint))).cloned();
    let kept: Vec<Taint> = others.into_iter().chain(kept).collect();
    let mut taints = serde_json::to_value(kept).map_err(Status::internal)?;
    if let Some(list) = taints.as_array_mut() {
        for (key, effect) in wanted.iter().filter(missing) {
            list.push(json!({"key": key, "effect": effect, "timeAdded": context.now()}));
        }
    }
    let patch = Patch::Merge(json!({"spec": {"taints": taints}}));
    context.state.patch_typed::<Node>(&actor, &kinds::NODE, &key, "", patch).await?;
    Ok(())
}

/// The taints that follow from how a machine is: key and effect.
fn wanted(node: &Node, silent: bool) -> Vec<(&'static str, &'static str)> {
    if silent {
        return vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")];
    }
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let hold: Vec<&str> =
        conditions.filter(|c| c.status == "True").map(|c| c.type_.as_str()).collect();
    let short = PRESSURES.iter().filter(|(condition, _)| hold.contains(condition));
    short.map(|(_, key)| (*key, "NoSchedule")).collect()
}

/// Marks the pods of a silent machine as not ready.
async fn doubt(context: &Context, pods: &Reader<Pod>, node: &str) -> Result<(), Status> {
    let is_ready = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let bound = |pod: &Pod| pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref() == Some(node));
    for pod in pods.list().iter().filter(|pod| bound(pod) && is_ready(pod)) {
        let key = Key::new(
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        let patch = Patch::Strategic(json!({"status": {"conditions": [{
            "type": "Ready", "status": "False", "reason": "NodeNotReady",
            "message": "Node is not ready.", "lastTransitionTime": context.now(),
        }]}}));
        let actor = Context::actor(NAME, 0);
        let state = &context.state;
        unless_gone(state.patch_typed::<Pod>(&actor, &kinds::POD, &key, "status", patch).await)?;
    }
    Ok(())
}
