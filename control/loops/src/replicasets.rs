//! Replica sets, and replication controllers, which are the same with a selector of equality: makes
//! and deletes pods.

use crate::Context;
use crate::driver::{Outcome, Queue};
use crate::owners::{Owner, Owners};
use dhow_objects::kinds::{self, Kind};
use dhow_state::{Key, View};
use dhow_workloads::replicaset::{self, Plan};
use dhow_workloads::{seconds, selects};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, ReplicationController, ReplicationControllerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::time::Duration;

/// A kind that wants so many pods of one template.
pub(crate) trait Replicated:
    Clone + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The loop's name.
    const NAME: &'static str;
    /// Its row.
    fn kind() -> &'static Kind;
    /// The same as a replica set.
    fn as_set(&self) -> Cow<'_, ReplicaSet>;
    /// The object with another status.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    const NAME: &'static str = "replicaset-controller";

    fn kind() -> &'static Kind {
        &kinds::REPLICA_SET
    }

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

impl Replicated for ReplicationController {
    const NAME: &'static str = "replication-controller";

    fn kind() -> &'static Kind {
        &kinds::REPLICATION_CONTROLLER
    }

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().map(|s| ReplicaSetStatus {
            replicas: s.replicas,
            fully_labeled_replicas: s.fully_labeled_replicas,
            ready_replicas: s.ready_replicas,
            available_replicas: s.available_replicas,
            observed_generation: s.observed_generation,
            ..ReplicaSetStatus::default()
        });
        Cow::Owned(ReplicaSet {
            metadata: self.metadata.clone(),
            spec: ReplicaSetSpec {
                replicas: spec.replicas,
                min_ready_seconds: spec.min_ready_seconds,
                selector: LabelSelector { match_labels: spec.selector, ..LabelSelector::default() },
                template: spec.template,
            },
            status,
        })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let conditions = self.status.as_ref().and_then(|s| s.conditions.clone());
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions,
        };
        Self { status: Some(status), ..self.clone() }
    }
}

pub(crate) async fn run<T: Replicated>(context: Context, mut sets: View<T>, mut pods: View<Pod>) {
    let mut queue = Queue::new(T::NAME, context.clock.clone());
    let mut owners = Owners::default();
    loop {
        tokio::select! {
            keys = sets.changed() => keys.into_iter().for_each(|k| queue.add(k)),
            keys = pods.changed() => {
                for key in keys {
                    let selecting = |pod: &Pod| selecting(&sets, &key, pod);
                    for set in owners.concerned(T::kind(), &pods, &key, selecting) {
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

/// The sets that select a pod which nobody controls.
fn selecting<T: Replicated>(sets: &View<T>, key: &Key, pod: &Pod) -> Vec<Key> {
    let all = sets.list_in(&key.namespace);
    all.iter()
        .map(|set| set.as_set())
        .filter(|set| selects(Some(&set.spec.selector), pod.metadata.labels.as_ref()))
        .filter_map(|set| Some(Key::new(&key.namespace, set.metadata.name.clone()?)))
        .collect()
}

async fn reconcile<T: Replicated>(
    context: &Context,
    sets: &View<T>,
    pods: &View<Pod>,
    key: &Key,
) -> Outcome {
    let Some(entry) = sets.entry(key) else { return Ok(None) };
    let set = entry.object.as_set();
    let now = seconds(&context.now());
    let plan = replicaset::plan(&set, &pods.list_in(&key.namespace), now);
    let owner =
        Owner { name: T::NAME, kind: T::kind(), metadata: &set.metadata, because: entry.revision };
    owner.adopt_and_release(context, &plan.adopt, &plan.release).await?;
    let changed = plan.create + plan.delete.len() + plan.adopt.len() + plan.release.len() > 0;
    owner.write_pods(context, &made(&set, &plan, &owner), &plan.delete).await?;
    // What was just written is in the view already; its status is counted in the next look.
    let status = if changed {
        replicaset::plan(&set, &pods.list_in(&key.namespace), now).status
    } else {
        plan.status
    };
    // Through the object's own words for it: not every kind can say everything.
    let next = entry.object.with_status(status);
    let told = next.as_set().status.clone();
    if set.status != told && set.metadata.deletion_timestamp.is_none() {
        let actor = Context::actor(T::NAME, entry.revision);
        context.state.update_status_typed(&actor, T::kind(), &next).await?;
    }
    Ok(plan.again_at.map(|at| Duration::from_secs(u64::try_from(at - now).unwrap_or(0))))
}

/// The pods that a plan asks for.
fn made(set: &ReplicaSet, plan: &Plan, owner: &Owner<'_>) -> Vec<Pod> {
    let template = set.spec.template.clone().unwrap_or_default();
    let of = template.metadata.unwrap_or_default();
    let owner = owner.reference();
    let pod = Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name)),
            namespace: set.metadata.namespace.clone(),
            labels: of.labels,
            annotations: of.annotations,
            finalizers: of.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    };
    vec![pod; plan.create]
}
