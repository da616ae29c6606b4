//! The reconcile driver and its loops: signal and period, retry, status; calls the planners.
//!
//! A loop waits for changes in its views, turns them into keys, and reconciles each key: it hands a
//! snapshot to a pure planner and writes what the planner says. A view holds what a write returned
//! by the time the write returns, so a loop never acts on its own past. Nothing ticks: a loop with
//! nothing to do sleeps until a view changes or a planner's own moment comes.

mod daemonsets;
mod deployments;
mod driver;
mod endpoints;
mod garbage;
mod mirror;
mod namespaces;
mod nodes;
mod owners;
mod pod_garbage;
mod replicasets;
mod scheduling;
mod taints;
mod tokens;

use dhow_clock::SharedClock;
use dhow_objects::kinds::Kind;
use dhow_state::{Actor, State, View};
use dhow_workloads::Note;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    Event, EventSource, Node, ObjectReference, Pod, ReplicationController, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use tokio::task::JoinSet;

/// The running loops. Dropping it stops them.
#[derive(Debug)]
pub struct Loops {
    tasks: JoinSet<()>,
}

impl Loops {
    /// Stops all loops and waits for them.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}

/// What every loop holds.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) state: State,
    pub(crate) clock: SharedClock,
}

/// Starts every loop on the current runtime.
pub fn start(state: &State, clock: &SharedClock) -> Loops {
    use dhow_objects::kinds;
    let context = Context { state: state.clone(), clock: clock.clone() };
    let pods: View<Pod> = state.view(&kinds::POD);
    let sets: View<ReplicaSet> = state.view(&kinds::REPLICA_SET);
    let deployments: View<Deployment> = state.view(&kinds::DEPLOYMENT);
    let services: View<Service> = state.view(&kinds::SERVICE);
    let nodes: View<Node> = state.view(&kinds::NODE);
    let mut tasks = JoinSet::new();
    tasks.spawn(scheduling::run(context.clone(), pods.clone(), nodes.clone()));
    tasks.spawn(replicasets::run(context.clone(), sets.clone(), pods.clone()));
    let controllers: View<ReplicationController> = state.view(&kinds::REPLICATION_CONTROLLER);
    tasks.spawn(replicasets::run(context.clone(), controllers, pods.clone()));
    let daemons: View<DaemonSet> = state.view(&kinds::DAEMON_SET);
    let revisions = state.view::<ControllerRevision>(&kinds::CONTROLLER_REVISION).reader();
    let daemons = daemonsets::run(context.clone(), daemons, revisions, pods.clone(), nodes.clone());
    tasks.spawn(daemons);
    tasks.spawn(deployments::run(context.clone(), deployments, sets, pods.clone()));
    tasks.spawn(mirror::run(context.clone(), services.clone()));
    tasks.spawn(endpoints::run(context.clone(), services, pods.clone()));
    tasks.spawn(namespaces::run(context.clone(), pods.clone()));
    tasks.spawn(tokens::run(context.clone()));
    tasks.spawn(taints::run(context.clone(), nodes.clone(), pods.clone()));
    tasks.spawn(pod_garbage::run(context.clone(), nodes.clone(), pods.clone()));
    tasks.spawn(nodes::run(context.clone(), nodes, pods.reader()));
    tasks.spawn(garbage::run(context));
    Loops { tasks }
}

impl Context {
    /// The time as objects carry it, in whole seconds.
    pub(crate) fn now(&self) -> Time {
        let seconds = i64::try_from(self.clock.now().as_secs()).unwrap_or(i64::MAX);
        Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap_or_default())
    }

    /// A loop as it writes: the platform, with the loop's own field manager and the revision that
    /// made it act.
    pub(crate) fn actor(manager: &str, because: u64) -> Actor {
        Actor { manager: manager.to_owned(), because, ..dhow_state::platform() }
    }

    /// Records an event about an object. A failure to do so is logged and nothing more: events
    /// explain the work, they are not the work.
    pub(crate) async fn note(
        &self,
        component: &str,
        kind: &'static Kind,
        metadata: &ObjectMeta,
        note: &Note,
    ) {
        let because = note.because.as_ref();
        let annotations =
            because.map(|reason| [(dhow_reason::ANNOTATION.to_owned(), reason.to_json())].into());
        let api_version = match kind.group {
            "" => kind.version.to_owned(),
            group => format!("{group}/{}", kind.version),
        };
        let now = self.now();
        let event = Event {
            metadata: ObjectMeta {
                namespace: metadata.namespace.clone(),
                annotations,
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(api_version),
                kind: Some(kind.kind.to_owned()),
                name: metadata.name.clone(),
                namespace: metadata.namespace.clone(),
                uid: metadata.uid.clone(),
                resource_version: metadata.resource_version.clone(),
                field_path: None,
            },
            reason: Some(note.reason.to_owned()),
            message: Some(note.message.clone()),
            type_: Some(note.kind.to_owned()),
            source: Some(EventSource { component: Some(component.to_owned()), host: None }),
            reporting_component: Some(component.to_owned()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        if let Err(refusal) = self.state.record_event(&Self::actor(component, 0), event).await {
            tracing::debug!(%refusal, "event not recorded");
        }
    }
}
