//! Pods that nobody else takes away: those of machines that are gone, and the oldest of very many that
//! have ended. Follows upstream's pod garbage collector.

use crate::Context;
use dhow_objects::kinds;
use dhow_state::{DeleteOptions, Key, View, unless_gone};
use dhow_workloads::phase;
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

const NAME: &str = "pod-garbage-collector";
/// A machine that pods name may be missing for so long: it may have yet to register.
const PATIENCE: Duration = Duration::from_secs(40);
/// So many pods that have ended stay for people to look at.
const KEPT: usize = 12_500;

struct Collector {
    context: Context,
    nodes: View<Node>,
    pods: View<Pod>,
    /// Machines that are not there: since when, in monotonic time.
    missing: HashMap<String, Duration>,
    /// Pods that have ended.
    ended: HashSet<Key>,
}

pub(crate) async fn run(context: Context, nodes: View<Node>, pods: View<Pod>) {
    let (missing, ended) = Default::default();
    let mut collector = Collector { context, nodes, pods, missing, ended };
    loop {
        let clock = collector.context.clock.clone();
        let due = collector.missing.values().min().map(|since| *since + PATIENCE);
        let moment = async {
            match due {
                Some(at) => clock.sleep(at.saturating_sub(clock.monotonic())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            keys = collector.nodes.changed() => {
                for key in keys {
                    collector.hear_of_node(&key.name).await;
                }
            }
            keys = collector.pods.changed() => {
                for key in keys {
                    collector.hear_of_pod(key).await;
                }
                collector.forget_oldest(KEPT).await;
            }
            () = moment => collector.forget_missing().await,
        }
    }
}

/// The machine that a pod is bound to.
fn machine(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|name| !name.is_empty())
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

impl Collector {
    async fn hear_of_node(&mut self, name: &str) {
        if self.nodes.get("", name).is_some() {
            self.missing.remove(name);
            return;
        }
        self.missing.insert(name.to_owned(), self.context.clock.monotonic());
        // Those that wait for its word that they have ended wait in vain.
        self.take_away(name, is_going).await;
    }

    async fn hear_of_pod(&mut self, key: Key) {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else {
            self.ended.remove(&key);
            return;
        };
        if let Some(name) = machine(&pod).filter(|name| self.nodes.get("", name).is_none()) {
            if is_going(&pod) {
                self.end(&pod).await;
            } else {
                let now = self.context.clock.monotonic();
                self.missing.entry(name.to_owned()).or_insert(now);
            }
        }
        match matches!(phase(&pod), "Succeeded" | "Failed") {
            true => self.ended.insert(key),
            false => self.ended.remove(&key),
        };
    }

    /// Takes away the pods of machines that have been missing for too long.
    async fn forget_missing(&mut self) {
        let now = self.context.clock.monotonic();
        let over = self.missing.extract_if(|_, since| *since + PATIENCE <= now);
        let over: Vec<String> = over.map(|(name, _)| name).collect();
        for name in over {
            self.take_away(&name, |_| true).await;
        }
    }

    async fn take_away(&mut self, machine_name: &str, which: fn(&Pod) -> bool) {
        let all = self.pods.list();
        for pod in all.iter().filter(|pod| machine(pod) == Some(machine_name) && which(pod)) {
            self.end(pod).await;
        }
    }

    /// Takes away those that ended first, down to as many as are kept.
    async fn forget_oldest(&mut self, kept: usize) {
        let surplus = self.ended.len().saturating_sub(kept);
        if surplus == 0 {
            return;
        }
        let all = self.ended.iter().filter_map(|key| self.pods.get(&key.namespace, &key.name));
        let mut all: Vec<_> = all.filter(|pod| !is_going(pod)).collect();
        all.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|at| at.0));
        for pod in all.iter().take(surplus) {
            self.end(pod).await;
        }
    }

    async fn end(&mut self, pod: &Pod) {
        let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
        let key = Key::new(namespace.unwrap_or_default(), name.unwrap_or_default());
        let uid = pod.metadata.uid.clone();
        let options =
            DeleteOptions { grace_period_seconds: Some(0), uid, ..DeleteOptions::default() };
        let (state, actor) = (&self.context.state, Context::actor(NAME, 0));
        let gone = state.delete(&actor, &kinds::POD, &key.namespace, &key.name, &options).await;
        match unless_gone(gone) {
            Ok(_) => tracing::info!(%key, node = machine(pod), "pod taken away"),
            Err(refusal) => {
                tracing::warn!(%key, %refusal, "pod not taken away yet");
                if let Some(name) = machine(pod).filter(|name| self.nodes.get("", name).is_none()) {
                    // It is tried again with the machine's other pods.
                    self.missing.insert(name.to_owned(), self.context.clock.monotonic());
                }
            }
        }
    }
}
