//! Replica sets: makes and deletes pods.

use crate::Context;
use crate::driver::{Outcome, Queue};
use dhow_objects::{Status, kinds};
use dhow_state::{DeleteOptions, Key, Patch, View};
use dhow_workloads::replicaset::{self, Plan};
use dhow_workloads::{controller_of, seconds, selects};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;
use std::collections::HashMap;
use std::time::Duration;

const NAME: &str = "replicaset-controller";
/// Pods of one set that are made or deleted at the same time; the store commits them together.
const ABREAST: usize = 16;

pub(crate) async fn run(context: Context, mut sets: View<ReplicaSet>, mut pods: View<Pod>) {
    let mut queue = Queue::new(NAME, context.clock.clone());
    // Which set a pod was last seen with: a deleted pod's own words are gone.
    let mut owners: HashMap<Key, Key> = HashMap::new();
    loop {
        tokio::select! {
            keys = sets.changed() => keys.into_iter().for_each(|k| queue.add(k)),
            keys = pods.changed() => {
                for key in keys {
                    for set in concerned(&sets, &pods, &key, &mut owners) {
                        queue.add(set);
                    }
                }
            }
            () = queue.moment() => queue.ripen(),
        }
        while let Some(key) = queue.next() {
            let outcome = reconcile(&context, &sets, &pods, &key).await;
            queue.done(key, outcome);
        }
    }
}

/// The sets that a pod's change concerns: its old and its new owner, or all that select it.
fn concerned(
    sets: &View<ReplicaSet>,
    pods: &View<Pod>,
    key: &Key,
    owners: &mut HashMap<Key, Key>,
) -> Vec<Key> {
    let mut found: Vec<Key> = owners.remove(key).into_iter().collect();
    let Some(pod) = pods.get(&key.namespace, &key.name) else { return found };
    match controller_of(&pod.metadata) {
        Some(owner) if owner.kind == "ReplicaSet" => {
            let set = Key::new(&key.namespace, &owner.name);
            owners.insert(key.clone(), set.clone());
            found.push(set);
        }
        Some(_) => {}
        None => found.extend(
            sets.list_in(&key.namespace)
                .iter()
                .filter(|s| selects(Some(&s.spec.selector), pod.metadata.labels.as_ref()))
                .filter_map(|s| Some(Key::new(&key.namespace, s.metadata.name.clone()?))),
        ),
    }
    found
}

async fn reconcile(
    context: &Context,
    sets: &View<ReplicaSet>,
    pods: &View<Pod>,
    key: &Key,
) -> Outcome {
    let Some(entry) = sets.entry(key) else { return Ok(None) };
    let set = entry.object;
    let now = context.now();
    let plan = replicaset::plan(&set, &pods.list_in(&key.namespace), seconds(&now));
    let actor = Context::actor(NAME, entry.revision);
    let owner = owner_of(&set);

    for name in &plan.adopt {
        let patch = json!({"metadata": {"ownerReferences": [owner]}});
        let pod = Key::new(&key.namespace, name);
        context
            .state
            .patch_typed::<Pod>(&actor, &kinds::POD, &pod, "", Patch::Strategic(patch))
            .await?;
    }
    for name in &plan.release {
        let patch =
            json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner.uid}]}});
        let pod = Key::new(&key.namespace, name);
        context
            .state
            .patch_typed::<Pod>(&actor, &kinds::POD, &pod, "", Patch::Strategic(patch))
            .await?;
    }
    let changed = plan.create + plan.delete.len() + plan.adopt.len() + plan.release.len() > 0;
    write_pods(context, &set, &plan, &owner, entry.revision).await?;
    // What was just written is in the view already; its status is counted in the next look.
    let status = if changed {
        replicaset::plan(&set, &pods.list_in(&key.namespace), seconds(&now)).status
    } else {
        plan.status
    };
    if set.status.as_ref() != Some(&status) && set.metadata.deletion_timestamp.is_none() {
        let mut next = ReplicaSet::clone(&set);
        next.status = Some(status);
        context.state.update_status_typed(&actor, &kinds::REPLICA_SET, &next).await?;
    }
    Ok(plan.again_at.map(|at| Duration::from_secs(u64::try_from(at - seconds(&now)).unwrap_or(0))))
}

fn owner_of(set: &ReplicaSet) -> OwnerReference {
    OwnerReference {
        api_version: "apps/v1".into(),
        kind: "ReplicaSet".into(),
        name: set.metadata.name.clone().unwrap_or_default(),
        uid: set.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

async fn write_pods(
    context: &Context,
    set: &ReplicaSet,
    plan: &Plan,
    owner: &OwnerReference,
    because: u64,
) -> Result<(), Status> {
    let actor = &Context::actor(NAME, because);
    let namespace = set.metadata.namespace.clone().unwrap_or_default();
    let template = set.spec.template.clone().unwrap_or_default();
    let of = template.metadata.unwrap_or_default();
    let pod = &Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name)),
            namespace: Some(namespace.clone()),
            labels: of.labels,
            annotations: of.annotations,
            finalizers: of.finalizers,
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    };
    let mut made = Vec::with_capacity(plan.create);
    while made.len() < plan.create {
        let abreast = (plan.create - made.len()).min(ABREAST);
        let batch = (0..abreast).map(|_| context.state.create_typed(actor, &kinds::POD, pod));
        made.extend(join_all(batch.collect::<Vec<_>>()).await);
    }
    let mut failed = None;
    for outcome in made {
        let note = match outcome {
            Ok(pod) => replicaset::created(pod.metadata.name.as_deref().unwrap_or_default()),
            Err(refusal) => {
                let message = format!("Error creating: {refusal}");
                failed = Some(refusal);
                dhow_workloads::Note { kind: "Warning", reason: "FailedCreate", message }
            }
        };
        context.note(NAME, &kinds::REPLICA_SET, &set.metadata, &note).await;
    }
    let options = &DeleteOptions::default();
    let namespace = &namespace;
    let mut gone = Vec::with_capacity(plan.delete.len());
    for names in plan.delete.chunks(ABREAST) {
        let mut batch = Vec::with_capacity(names.len());
        for name in names {
            batch.push(context.state.delete(actor, &kinds::POD, namespace, name, options));
        }
        gone.extend(names.iter().zip(join_all(batch).await));
    }
    for (name, outcome) in gone {
        match outcome {
            Ok(_) => {
                context
                    .note(NAME, &kinds::REPLICA_SET, &set.metadata, &replicaset::deleted(name))
                    .await;
            }
            Err(refusal) if refusal.code == 404 => {}
            Err(refusal) => failed = Some(refusal),
        }
    }
    failed.map_or(Ok(()), Err)
}
