//! Daemon sets: one pod on every machine that takes it, and the history of their templates.

use crate::Context;
use crate::driver::{Outcome, Queue};
use crate::owners::{Owner, Owners};
use dhow_objects::{Status, kinds};
use dhow_state::{DeleteOptions, Entry, Key, Patch, Reader, View, unless_gone};
use dhow_workloads::daemonset::{self, HASH_LABEL, Setbacks, Site};
use dhow_workloads::{seconds, selects, template_hash};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

const NAME: &str = "daemonset-controller";

pub(crate) async fn run(
    context: Context,
    mut sets: View<DaemonSet>,
    revisions: Reader<ControllerRevision>,
    mut pods: View<Pod>,
    mut nodes: View<Node>,
) {
    let mut queue = Queue::new(NAME, context.clock.clone());
    let mut owners = Owners::default();
    let mut setbacks: HashMap<Key, Setbacks> = HashMap::new();
    loop {
        tokio::select! {
            keys = sets.changed() => keys.into_iter().for_each(|k| queue.add(k)),
            keys = pods.changed() => {
                for key in keys {
                    let selecting = |pod: &Pod| selecting(&sets, &key, pod);
                    for set in owners.concerned(&kinds::DAEMON_SET, &pods, &key, selecting) {
                        queue.add(set);
                    }
                }
            }
            _ = nodes.changed() => sets.entries().into_iter().for_each(|(key, _)| queue.add(key)),
            () = queue.moment() => queue.ripen(),
        }
        while let Some(key) = queue.next() {
            let outcome = match sets.entry(&key) {
                Some(set) => {
                    let setbacks = setbacks.entry(key.clone()).or_default();
                    reconcile(&context, &set, &revisions, &pods, &nodes, setbacks, &key).await
                }
                None => {
                    setbacks.remove(&key);
                    Ok(None)
                }
            };
            queue.done(key, outcome);
        }
    }
}

/// The sets that select a pod which nobody controls.
fn selecting(sets: &View<DaemonSet>, key: &Key, pod: &Pod) -> Vec<Key> {
    let all = sets.list_in(&key.namespace);
    all.iter()
        .filter(|set| selects(Some(&set.spec.selector), pod.metadata.labels.as_ref()))
        .filter_map(|set| Some(Key::new(&key.namespace, set.metadata.name.clone()?)))
        .collect()
}

/// What each machine says to a pod of the set.
fn sites(set: &DaemonSet, nodes: &View<Node>) -> Vec<Site> {
    let mut spec = set.spec.template.spec.clone().unwrap_or_default();
    daemonset::tolerate(&mut spec);
    let pod = Pod { spec: Some(spec), ..Pod::default() };
    let site = |node: &std::sync::Arc<Node>| {
        let (run, stay) = dhow_scheduler::daemon(&pod, node);
        Site { node: node.metadata.name.clone().unwrap_or_default(), run, stay }
    };
    nodes.list().iter().map(site).collect()
}

async fn reconcile(
    context: &Context,
    entry: &Entry<DaemonSet>,
    revisions: &Reader<ControllerRevision>,
    pods: &View<Pod>,
    nodes: &View<Node>,
    setbacks: &mut Setbacks,
    key: &Key,
) -> Outcome {
    let set = &entry.object;
    let now = seconds(&context.now());
    let owner = Owner {
        name: NAME,
        kind: &kinds::DAEMON_SET,
        metadata: &set.metadata,
        because: entry.revision,
    };
    let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = template_hash(&set.spec.template, collisions);
    let sites = sites(set, nodes);
    if set.metadata.deletion_timestamp.is_none() {
        remember(context, set, &hash, revisions, pods, &owner).await?;
    }
    let look = |setbacks: &Setbacks| {
        daemonset::plan(set, &hash, &pods.list_in(&key.namespace), &sites, setbacks, now)
    };
    let plan = look(setbacks);
    for note in &plan.notes {
        context.note(NAME, &kinds::DAEMON_SET, &set.metadata, note).await;
    }
    owner.adopt_and_release(context, &plan.adopt, &plan.release).await?;
    let create: Vec<Pod> = plan
        .create
        .iter()
        .map(|node| {
            let mut pod = daemonset::pod(set, &hash, node);
            pod.metadata.owner_references = Some(vec![owner.reference()]);
            pod
        })
        .collect();
    owner.write_pods(context, &create, &plan.delete).await?;
    plan.failed.iter().for_each(|node| setbacks.note(node, now));
    // What was just written is in the view already.
    let status = look(setbacks).status;
    if set.status.as_ref() != Some(&status) && set.metadata.deletion_timestamp.is_none() {
        let next = DaemonSet { status: Some(status), ..DaemonSet::clone(set) };
        let actor = Context::actor(NAME, entry.revision);
        context.state.update_status_typed(&actor, &kinds::DAEMON_SET, &next).await?;
    }
    Ok(plan.again_at.map(|at| Duration::from_secs(u64::try_from(at - now).unwrap_or(0))))
}

/// Keeps the set's templates as revisions.
async fn remember(
    context: &Context,
    set: &DaemonSet,
    hash: &str,
    revisions: &Reader<ControllerRevision>,
    pods: &View<Pod>,
    owner: &Owner<'_>,
) -> Result<(), Status> {
    let (state, actor) = (&context.state, Context::actor(NAME, owner.because));
    let reference = owner.reference();
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let known = revisions.list_in(namespace);
    let plan = daemonset::history(set, hash, &known, &pods.list_in(namespace));
    let kind = &kinds::CONTROLLER_REVISION;
    if let Some(number) = plan.create {
        let mut template = serde_json::to_value(&set.spec.template).unwrap_or_default();
        template["$patch"] = json!("replace");
        let mut labels =
            set.spec.template.metadata.clone().and_then(|m| m.labels).unwrap_or_default();
        labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
        let revision = json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision",
            "metadata": {
                "name": format!("{}-{hash}", reference.name), "namespace": namespace,
                "labels": labels, "annotations": set.metadata.annotations,
                "ownerReferences": [reference],
            },
            "data": {"spec": {"template": template}},
            "revision": number,
        });
        let options = dhow_state::WriteOptions::default();
        match state.create(&actor, kind, namespace, revision, &options).await {
            // The view is behind, or the name is somebody else's: its number tells the next time.
            Err(refusal) if refusal.reason == "AlreadyExists" => {}
            made => {
                made?;
            }
        }
    }
    let patch = |name: &str, patch: Value| {
        let key = Key::new(namespace, name);
        let actor = actor.clone();
        async move {
            let patch = Patch::Merge(patch);
            state.patch_typed::<ControllerRevision>(&actor, kind, &key, "", patch).await
        }
    };
    if let Some((name, number)) = plan.raise {
        patch(&name, json!({"revision": number})).await?;
    }
    for name in &plan.delete {
        let options = DeleteOptions::default();
        unless_gone(state.delete(&actor, kind, namespace, name, &options).await)?;
    }
    Ok(())
}
