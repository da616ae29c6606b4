//! Scheduling: binds pods to machines.

use crate::Context;
use crate::driver::Queue;
use dhow_clock::SharedClock;
use dhow_objects::hash::stable;
use dhow_objects::{Status, kinds};
use dhow_scheduler::{Decision, Machine, Namespaces, depends_on_others, message, place};
use dhow_state::{Key, Patch, View, WriteOptions};
use dhow_workloads::{Note, phase};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

const NAME: &str = "default-scheduler";

/// Which pod this is, which of its specs, and what others select it by: another one may fit where this
/// one did not, or let another fit.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    uid: Option<String>,
    generation: Option<i64>,
    labels: u64,
}

impl Mark {
    fn of(pod: &Pod) -> Self {
        let labels = pod.metadata.labels.iter().flatten();
        let texts = labels.flat_map(|(key, value)| [key.as_bytes(), &[0], value.as_bytes(), &[0]]);
        Self {
            uid: pod.metadata.uid.clone(),
            generation: pod.metadata.generation,
            labels: stable(texts.flatten().copied()),
        }
    }
}

/// A pod that found no machine.
#[derive(Debug)]
struct Refused {
    mark: Mark,
    /// Each pod that comes to a machine may change that.
    depends_on_others: bool,
}

/// The pods that want a machine, and what was seen of the others.
struct Waiting {
    /// Those to try, now or some time after a binding that failed.
    queue: Queue,
    /// Those that found no machine. They are tried again when there is more room, or another
    /// machine, or when they ask for something else.
    refused: HashMap<Key, Refused>,
    /// Those that take room on a machine.
    bound: HashMap<Key, Mark>,
}

impl Waiting {
    fn new(clock: SharedClock) -> Self {
        Self { queue: Queue::new(NAME, clock), refused: HashMap::new(), bound: HashMap::new() }
    }

    /// Takes note of a pod as it is now; of one that has gone, `None`.
    fn hear(&mut self, key: Key, pod: Option<&Pod>) {
        let now = pod.map(Mark::of);
        if self.refused.get(&key).map(|refused| &refused.mark) != now.as_ref() {
            self.refused.remove(&key);
        }
        let before = self.bound.remove(&key);
        let room = match (pod, now) {
            (Some(pod), Some(_)) if is_pending(pod) => {
                if !self.refused.contains_key(&key) {
                    self.queue.add(key);
                }
                // One of that name was bound, and has gone since.
                before.is_some()
            }
            (Some(pod), Some(now)) if !is_over(pod) => {
                self.refused.remove(&key);
                // It may ask for less than it did, or be another one.
                let changed = before.as_ref().is_some_and(|before| *before != now);
                if is_bound(pod) {
                    if before.is_none() {
                        self.retry(|refused| refused.depends_on_others);
                    }
                    self.bound.insert(key, now);
                }
                changed
            }
            _ => true,
        };
        if room {
            self.retry(|_| true);
        }
    }

    /// Wants those tried again that found no machine.
    fn retry(&mut self, whom: impl Fn(&Refused) -> bool) {
        let again = self.refused.extract_if(|_, refused| whom(refused));
        again.for_each(|(key, _)| self.queue.add(key));
    }

    /// Takes note of how it went: whether the pod is bound.
    fn done(&mut self, key: Key, pod: &Pod, outcome: Result<bool, Status>) {
        if let Ok(false) = outcome {
            let depends_on_others = depends_on_others(pod);
            self.refused.insert(key.clone(), Refused { mark: Mark::of(pod), depends_on_others });
        }
        self.queue.done(key, outcome.map(|_| None));
    }
}

pub(crate) async fn run(context: Context, mut pods: View<Pod>, mut nodes: View<Node>) {
    let mut namespaces: View<Namespace> = context.state.view(&kinds::NAMESPACE);
    let mut waiting = Waiting::new(context.clock.clone());
    loop {
        tokio::select! {
            keys = pods.changed() => {
                for key in keys {
                    let pod = pods.get(&key.namespace, &key.name);
                    waiting.hear(key, pod.as_deref());
                }
            }
            _ = nodes.changed() => waiting.retry(|_| true),
            _ = namespaces.changed() => waiting.retry(|refused| refused.depends_on_others),
            () = waiting.queue.moment() => waiting.queue.ripen(),
        }
        let mut ordered = Vec::new();
        while let Some(key) = waiting.queue.next() {
            match pods.get(&key.namespace, &key.name).filter(|pod| is_pending(pod)) {
                Some(pod) => ordered.push((key, pod)),
                None => waiting.queue.done(key, Ok(None)),
            }
        }
        if ordered.is_empty() {
            continue;
        }
        let mut machines = machines(&pods, &nodes);
        let labels = labels(&namespaces);
        // Higher priority first, then older first.
        ordered.sort_by_key(|(key, pod)| {
            let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            let age = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (std::cmp::Reverse(priority), age, key.clone())
        });
        for (key, pod) in ordered {
            let outcome = bind(&context, &pod, &key, &mut machines, &labels).await;
            waiting.done(key, &pod, outcome);
        }
    }
}

/// Whether the pod has ended for good.
fn is_over(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod has a machine.
fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|name| !name.is_empty())
}

/// Whether the pod is ours to place.
fn is_pending(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    !is_bound(pod)
        && spec.scheduler_name.as_deref().is_none_or(|s| s == NAME)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && pod.metadata.deletion_timestamp.is_none()
        && !is_over(pod)
}

fn machines(pods: &View<Pod>, nodes: &View<Node>) -> Vec<Machine> {
    let mut machines: Vec<Machine> = nodes.list().into_iter().map(Machine::new).collect();
    let names = machines.iter().enumerate();
    let places: HashMap<String, usize> = names
        .filter_map(|(place, machine)| Some((machine.node.metadata.name.clone()?, place)))
        .collect();
    for pod in pods.list().iter().filter(|pod| !is_over(pod)) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
        if let Some(place) = node.and_then(|node| places.get(node)) {
            machines[*place].add(pod);
        }
    }
    machines
}

fn labels(namespaces: &View<Namespace>) -> Namespaces {
    let all = namespaces.list().into_iter();
    all.filter_map(|namespace| {
        let meta = &namespace.metadata;
        Some((meta.name.clone()?, meta.labels.clone().unwrap_or_default()))
    })
    .collect()
}

/// Places one pod; whether it waits no longer.
///
/// # Errors
/// When the store did not take the binding: it is tried again.
async fn bind(
    context: &Context,
    pod: &Arc<Pod>,
    key: &Key,
    machines: &mut [Machine],
    namespaces: &Namespaces,
) -> Result<bool, Status> {
    let decision = place(pod, machines, namespaces);
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
                        machine.add(pod);
                    }
                    let message = format!("Successfully assigned {key} to {node}");
                    // Beside the path: the pod starts meanwhile.
                    let (context, metadata) = (context.clone(), pod.metadata.clone());
                    tokio::spawn(async move {
                        let note =
                            Note { kind: "Normal", reason: "Scheduled", message, because: None };
                        context.note(NAME, &kinds::POD, &metadata, &note).await;
                    });
                    Ok(true)
                }
                // Somebody deleted it.
                Err(refusal) if refusal.code == 404 => Ok(true),
                Err(refusal) => Err(refusal),
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
                let because = Some(*reason);
                let note =
                    Note { kind: "Warning", reason: "FailedScheduling", message: text, because };
                context.note(NAME, &kinds::POD, &pod.metadata, &note).await;
            }
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_clock::System;
    use dhow_fault::Effect;
    use dhow_state::{Actor, Config, State};
    use serde_json::Value;
    use std::time::Duration;

    fn pod(uid: &str, generation: i64, node: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "uid": uid, "generation": generation},
            "spec": {"containers": [], "nodeName": node},
        }))
        .unwrap()
    }

    fn waiting() -> Waiting {
        Waiting::new(System::shared())
    }

    /// The pods to try now.
    fn ready(waiting: &mut Waiting) -> Vec<String> {
        std::iter::from_fn(|| waiting.queue.next()).map(|key| key.name).collect()
    }

    #[test]
    fn a_refused_pod_waits_until_it_is_another_one_or_asks_for_something_else() {
        let (mut waiting, key) = (waiting(), Key::new("d", "web"));
        let mut refuse = |pod: &Pod| {
            waiting.hear(key.clone(), Some(pod));
            let tried = ready(&mut waiting);
            waiting.done(key.clone(), pod, Ok(false));
            tried
        };
        assert_eq!(refuse(&pod("one", 1, None)), ["web"]);
        assert!(refuse(&pod("one", 1, None)).is_empty(), "nothing has changed");
        // Deleted and made again between two looks.
        assert_eq!(refuse(&pod("two", 1, None)), ["web"]);
        // It tolerates more.
        assert_eq!(refuse(&pod("two", 2, None)), ["web"]);
    }

    #[test]
    fn a_bound_pod_that_changes_ends_or_is_remade_makes_room() {
        let (mut waiting, key, small) = (waiting(), Key::new("d", "web"), Key::new("d", "small"));
        let refused = pod("small", 1, None);
        let mut hear = |pod: Option<&Pod>| {
            waiting.done(small.clone(), &refused, Ok(false));
            waiting.hear(key.clone(), pod);
            ready(&mut waiting)
        };
        assert!(hear(Some(&pod("one", 1, Some("a")))).is_empty());
        assert!(hear(Some(&pod("one", 1, Some("a")))).is_empty(), "its status is not its spec");
        assert_eq!(hear(Some(&pod("one", 2, Some("a")))), ["small"]);
        assert_eq!(hear(Some(&pod("two", 2, Some("b")))), ["small"]);
        assert_eq!(hear(Some(&pod("three", 2, None))), ["small", "web"]);
        assert_eq!(hear(None), ["small"]);
    }

    #[test]
    fn a_pod_that_depends_on_others_is_tried_again_with_each_that_comes() {
        let mut waiting = waiting();
        let mut social = pod("social", 1, None);
        let term = json!({"topologyKey": "zone"});
        let near = json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]});
        let affinity = serde_json::from_value(json!({"podAffinity": near})).unwrap();
        social.spec.as_mut().unwrap().affinity = Some(affinity);
        waiting.done(Key::new("d", "social"), &social, Ok(false));
        waiting.done(Key::new("d", "alone"), &pod("alone", 1, None), Ok(false));
        let key = Key::new("d", "web");
        waiting.hear(key.clone(), Some(&pod("one", 1, Some("a"))));
        assert_eq!(ready(&mut waiting), ["social"]);
        waiting.done(Key::new("d", "social"), &social, Ok(false));
        let mut renamed = pod("one", 1, Some("a"));
        renamed.metadata.labels = Some([("app".to_owned(), "db".to_owned())].into());
        waiting.hear(key, Some(&renamed));
        assert_eq!(ready(&mut waiting), ["alone", "social"]);
    }

    #[test]
    fn a_binding_that_failed_is_tried_again_later() {
        let (mut waiting, key, pod) = (waiting(), Key::new("d", "web"), pod("one", 1, None));
        waiting.hear(key.clone(), Some(&pod));
        assert_eq!(ready(&mut waiting), ["web"]);
        waiting.done(key, &pod, Err(Status::conflict("", "pods", "web", "taken")));
        assert!(waiting.refused.is_empty());
        assert!(ready(&mut waiting).is_empty(), "not at once");
    }

    fn me() -> Actor {
        Actor { manager: "tests".into(), ..dhow_state::platform() }
    }

    async fn create(state: &State, kind: &'static kinds::Kind, value: Value) {
        let namespace = if kind.namespaced { "default" } else { "" };
        state.create(&me(), kind, namespace, value, &WriteOptions::default()).await.unwrap();
    }

    async fn until(pods: &mut View<Pod>, name: &str, holds: fn(&Pod) -> bool) {
        let wait = async {
            while !pods.get("default", name).is_some_and(|pod| holds(&pod)) {
                pods.changed().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the scheduler to act");
    }

    fn is_refused(pod: &Pod) -> bool {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "PodScheduled"))
    }

    /// Faults are armed for the whole process: one test.
    #[tokio::test]
    async fn pods_come_to_a_machine_after_a_failure_and_after_a_change() {
        let clock = System::shared();
        let kv = dhow_kv::Kv::new(dhow_server::Store::memory(clock.clone()));
        let state = State::open(kv, clock.clone(), Config::for_tests()).await.unwrap();
        let room = json!({"cpu": "1", "memory": "1Gi", "pods": "10"});
        create(&state, &kinds::NODE, json!({"metadata": {"name": "a"}})).await;
        let status = Patch::Merge(json!({"status": {"allocatable": room, "capacity": room}}));
        let node = Key::new("", "a");
        state.patch_typed::<Node>(&me(), &kinds::NODE, &node, "status", status).await.unwrap();
        let mut pods: View<Pod> = state.view(&kinds::POD);
        let context = Context { state: state.clone(), clock };
        let task = tokio::spawn(run(context, state.view(&kinds::POD), state.view(&kinds::NODE)));
        let pod = |name: &str, cpu: &str| {
            json!({
                "metadata": {"name": name},
                "spec": {"containers": [
                    {"name": "main", "image": "shop:1", "resources": {"requests": {"cpu": cpu}}},
                ]},
            })
        };

        // The write that makes the pod passes; its binding fails twice.
        let effect = Effect::Fail("the disk is on fire".into());
        dhow_fault::arm("state::commit", effect, 1, 2, Duration::from_secs(60));
        create(&state, &kinds::POD, pod("large", "800m")).await;
        until(&mut pods, "large", is_bound).await;
        dhow_fault::disarm("state::commit");

        // A bound pod that asks for less makes room.
        create(&state, &kinds::POD, pod("small", "500m")).await;
        until(&mut pods, "small", is_refused).await;
        let less = json!({"name": "main", "resources": {"requests": {"cpu": "100m"}}});
        let less = Patch::Strategic(json!({"spec": {"containers": [less]}}));
        let key = Key::new("default", "large");
        state.patch_typed::<Pod>(&me(), &kinds::POD, &key, "resize", less).await.unwrap();
        until(&mut pods, "small", is_bound).await;

        // A pod that asks for something else is looked at again.
        let taint = json!({"spec": {"taints": [{"key": "only", "effect": "NoSchedule"}]}});
        let taint = Patch::Merge(taint);
        state.patch_typed::<Node>(&me(), &kinds::NODE, &node, "", taint).await.unwrap();
        create(&state, &kinds::POD, pod("picky", "1m")).await;
        until(&mut pods, "picky", is_refused).await;
        let toleration = json!({"key": "only", "operator": "Exists", "effect": "NoSchedule"});
        let tolerant = json!([{"op": "add", "path": "/spec/tolerations/-", "value": toleration}]);
        let tolerant = Patch::Json(tolerant);
        let key = Key::new("default", "picky");
        state.patch_typed::<Pod>(&me(), &kinds::POD, &key, "", tolerant).await.unwrap();
        until(&mut pods, "picky", is_bound).await;
        task.abort();
    }
}
