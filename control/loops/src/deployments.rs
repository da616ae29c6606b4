//! Deployments: makes and sizes replica sets.

use crate::Context;
use crate::driver::{Outcome, Queue};
use dhow_objects::{Status, kinds};
use dhow_state::{Actor, DeleteOptions, Key, Patch, View, unless_gone};
use dhow_workloads::deployment::{self, Action};
use dhow_workloads::{controller_of, seconds, selects};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::time::Duration;

const NAME: &str = "deployment-controller";

pub(crate) async fn run(
    context: Context,
    mut deployments: View<Deployment>,
    mut sets: View<ReplicaSet>,
    mut pods: View<Pod>,
) {
    let mut queue = Queue::new(NAME, context.clock.clone());
    loop {
        tokio::select! {
            keys = deployments.changed() => keys.into_iter().for_each(|k| queue.add(k)),
            keys = sets.changed() => {
                for key in keys {
                    for deployment in concerned(&deployments, &sets, &key) {
                        queue.add(deployment);
                    }
                }
            }
            keys = pods.changed() => {
                // Only a deployment that recreates waits for pods themselves, to be gone.
                for key in keys.iter().filter(|k| pods.get(&k.namespace, &k.name).is_none()) {
                    for deployment in deployments.list_in(&key.namespace) {
                        let strategy = deployment.spec.strategy.as_ref().and_then(|s| s.type_.as_deref());
                        if strategy == Some("Recreate") {
                            queue.add(Key::new(&key.namespace, deployment.metadata.name.clone().unwrap_or_default()));
                        }
                    }
                }
            }
            () = queue.moment() => queue.ripen(),
        }
        while let Some(key) = queue.next() {
            let outcome = reconcile(&context, &deployments, &sets, &pods, &key).await;
            queue.done(key, outcome);
        }
    }
}

fn concerned(deployments: &View<Deployment>, sets: &View<ReplicaSet>, key: &Key) -> Vec<Key> {
    let all = deployments.list_in(&key.namespace);
    let name =
        |d: &Deployment| Key::new(&key.namespace, d.metadata.name.clone().unwrap_or_default());
    match sets.get(&key.namespace, &key.name) {
        Some(set) => match controller_of(&set.metadata) {
            Some(owner) if owner.kind == "Deployment" => {
                vec![Key::new(&key.namespace, &owner.name)]
            }
            Some(_) => Vec::new(),
            None => all
                .iter()
                .filter(|d| selects(Some(&d.spec.selector), set.metadata.labels.as_ref()))
                .map(|d| name(d))
                .collect(),
        },
        // Gone: its name begins with its deployment's.
        None => all
            .iter()
            .map(|d| name(d))
            .filter(|d| key.name.starts_with(&format!("{}-", d.name)))
            .collect(),
    }
}

async fn reconcile(
    context: &Context,
    deployments: &View<Deployment>,
    sets: &View<ReplicaSet>,
    pods: &View<Pod>,
    key: &Key,
) -> Outcome {
    let Some(entry) = deployments.entry(key) else { return Ok(None) };
    let deployment = entry.object;
    let now = context.now();
    let plan = deployment::plan(
        &deployment,
        &sets.list_in(&key.namespace),
        &pods.list_in(&key.namespace),
        &now,
    );
    let actor = Context::actor(NAME, entry.revision);
    let mut status = plan.status;
    for action in plan.actions {
        if act(context, &actor, &deployment, action).await? == Done::Collided {
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        }
    }
    for note in &plan.notes {
        context.note(NAME, &kinds::DEPLOYMENT, &deployment.metadata, note).await;
    }
    if deployment.status.as_ref() != Some(&status)
        && deployment.metadata.deletion_timestamp.is_none()
    {
        // The deployment may just have got a new revision annotation: read it again.
        let Some(latest) = deployments.get(&key.namespace, &key.name) else { return Ok(None) };
        let mut next = Deployment::clone(&latest);
        if next.metadata.generation != deployment.metadata.generation {
            return Ok(None);
        }
        next.status = Some(status);
        context.state.update_status_typed(&actor, &kinds::DEPLOYMENT, &next).await?;
    }
    Ok(plan.again_at.map(|at| Duration::from_secs(u64::try_from(at - seconds(&now)).unwrap_or(0))))
}

#[derive(PartialEq, Eq)]
enum Done {
    Fine,
    Collided,
}

async fn act(
    context: &Context,
    actor: &Actor,
    deployment: &Deployment,
    action: Action,
) -> Result<Done, Status> {
    let state = &context.state;
    let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
    let uid = deployment.metadata.uid.clone().unwrap_or_default();
    let set = |name: &str| Key::new(&namespace, name);
    match action {
        Action::Create(made) => {
            match state.create_typed(actor, &kinds::REPLICA_SET, &*made).await {
                Ok(_) => {}
                Err(refusal) if refusal.reason == "AlreadyExists" => {
                    // Another template has the name: the next hash counts the collision in.
                    return Ok(Done::Collided);
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Action::Resize { name, replicas, annotations } => {
            let patch =
                json!({"metadata": {"annotations": annotations}, "spec": {"replicas": replicas}});
            let key = set(&name);
            state
                .patch_typed::<ReplicaSet>(
                    actor,
                    &kinds::REPLICA_SET,
                    &key,
                    "",
                    Patch::Merge(patch),
                )
                .await?;
        }
        Action::Revise(revision) => {
            let patch = json!({"metadata": {"annotations": {deployment::REVISION: revision}}});
            let key = set(deployment.metadata.name.as_deref().unwrap_or_default());
            state
                .patch_typed::<Deployment>(actor, &kinds::DEPLOYMENT, &key, "", Patch::Merge(patch))
                .await?;
        }
        Action::Adopt(name) => {
            let owner = json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "name": deployment.metadata.name,
                "uid": uid, "controller": true, "blockOwnerDeletion": true,
            });
            own(context, actor, &set(&name), owner).await?;
        }
        Action::Release(name) => {
            own(context, actor, &set(&name), json!({"$patch": "delete", "uid": uid})).await?;
        }
        Action::Delete(name) => {
            let options =
                DeleteOptions { propagation: "Background".into(), ..DeleteOptions::default() };
            let kind = &kinds::REPLICA_SET;
            unless_gone(state.delete(actor, kind, &namespace, &name, &options).await)?;
        }
    }
    Ok(Done::Fine)
}

/// Changes the one owner reference of a replica set that `reference` names by its uid.
async fn own(context: &Context, actor: &Actor, set: &Key, reference: Value) -> Result<(), Status> {
    let patch = Patch::Strategic(json!({"metadata": {"ownerReferences": [reference]}}));
    let kind = &kinds::REPLICA_SET;
    context.state.patch_typed::<ReplicaSet>(actor, kind, set, "", patch).await.map(drop)
}
