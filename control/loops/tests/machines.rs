//! What happens to machines that fall silent or are short of something, and to their pods, in virtual
//! time.

use dhow_clock::{BoxFuture, Clock, SharedClock};
use dhow_objects::kinds;
use dhow_state::{Actor, Config, Key, Patch, State, View, WriteOptions};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The runtime's time, which leaps when there is nothing to do.
#[derive(Debug)]
struct Leaping {
    start: Instant,
    drawn: AtomicU64,
}

impl Clock for Leaping {
    fn now(&self) -> Duration {
        Duration::from_secs(1_800_000_000) + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, period: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(period))
    }

    fn random(&self) -> u64 {
        self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

fn me() -> Actor {
    Actor { manager: "tests".into(), ..dhow_state::platform() }
}

async fn create(state: &State, kind: &'static kinds::Kind, namespace: &str, value: Value) {
    state.create(&me(), kind, namespace, value, &WriteOptions::default()).await.unwrap();
}

async fn open(clock: &SharedClock) -> State {
    let kv = dhow_kv::Kv::new(dhow_server::Store::memory(clock.clone()));
    State::open(kv, clock.clone(), Config::for_tests()).await.unwrap()
}

/// A machine with room, that says that it is there.
async fn machine(state: &State, name: &str) {
    let room = json!({"cpu": "1", "memory": "1Gi", "pods": "10"});
    create(state, &kinds::NODE, "", json!({"metadata": {"name": name}})).await;
    let status = Patch::Merge(json!({"status": {"allocatable": room, "capacity": room}}));
    let node = Key::new("", name);
    state.patch_typed::<Node>(&me(), &kinds::NODE, &node, "status", status).await.unwrap();
    let lease = json!({"metadata": {"name": name}, "spec": {"leaseDurationSeconds": 40}});
    create(state, &kinds::LEASE, "kube-node-lease", lease).await;
}

/// Where the pods are that are not going.
fn places(pods: &View<Pod>) -> Vec<String> {
    let list = pods.list();
    let staying = list.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    staying.filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_machine_that_stays_silent_are_made_anew_elsewhere() {
    let clock: SharedClock =
        Arc::new(Leaping { start: Instant::now(), drawn: AtomicU64::default() });
    let state = open(&clock).await;
    for name in ["a", "b"] {
        machine(&state, name).await;
    }
    let loops = dhow_loops::start(&state, &clock);
    let labels = json!({"app": "web"});
    let template = json!({
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "main", "image": "shop:1"}]},
    });
    let spec = json!({"replicas": 1, "selector": {"matchLabels": labels}, "template": template});
    let set = json!({"metadata": {"name": "web"}, "spec": spec});
    create(&state, &kinds::REPLICA_SET, "default", set).await;
    let mut pods: View<Pod> = state.view(&kinds::POD);
    while places(&pods).is_empty() {
        pods.changed().await;
    }
    let first = places(&pods).remove(0);
    let other = if first == "a" { "b" } else { "a" };

    // From now on only the other one speaks.
    let (speaking, beat) = (state.clone(), Key::new("kube-node-lease", other));
    let heart = tokio::spawn(async move {
        for n in 0.. {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let patch = Patch::Merge(json!({"metadata": {"annotations": {"beat": n.to_string()}}}));
            let me = me();
            let done = speaking.patch_typed::<k8s_openapi::api::coordination::v1::Lease>(
                &me,
                &kinds::LEASE,
                &beat,
                "",
                patch,
            );
            done.await.unwrap();
        }
    });
    let silent = Instant::now();
    while places(&pods) != [other] {
        pods.changed().await;
    }
    let took = silent.elapsed().as_secs();
    assert!((335..360).contains(&took), "40 s of silence and 300 s of patience, not {took} s");
    heart.abort();
    loops.shutdown().await;
}

/// A machine that was taken out of the platform and does not come back.
#[tokio::test(start_paused = true)]
async fn pods_of_a_machine_that_is_gone_are_taken_away_after_a_while() {
    let clock: SharedClock =
        Arc::new(Leaping { start: Instant::now(), drawn: AtomicU64::default() });
    let state = open(&clock).await;
    for name in ["here", "gone"] {
        machine(&state, name).await;
    }
    let loops = dhow_loops::start(&state, &clock);
    for (name, node) in [("stays", "here"), ("lost", "gone"), ("going", "gone"), ("odd", "never")] {
        let spec = json!({"nodeName": node, "containers": [{"name": "main", "image": "shop:1"}]});
        create(&state, &kinds::POD, "default", json!({"metadata": {"name": name}, "spec": spec}))
            .await;
    }
    let mut pods: View<Pod> = state.view(&kinds::POD);
    let names = |pods: &View<Pod>| -> Vec<String> {
        pods.list().iter().filter_map(|pod| pod.metadata.name.clone()).collect()
    };
    let options = dhow_state::DeleteOptions::default();
    state.delete(&me(), &kinds::POD, "default", "going", &options).await.unwrap();
    assert_eq!(names(&pods).len(), 4, "its machine still has to end it");
    state.delete(&me(), &kinds::NODE, "", "gone", &options).await.unwrap();
    let gone = Instant::now();
    while names(&pods) != ["lost", "odd", "stays"] {
        pods.changed().await;
    }
    assert!(gone.elapsed() < Duration::from_secs(1), "nobody else will say that it has ended");
    while names(&pods) != ["stays"] {
        pods.changed().await;
    }
    let took = gone.elapsed().as_secs();
    assert!((39..45).contains(&took), "{took} s");
    loops.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_short_of_something_is_tainted_for_as_long_as_it_is() {
    let clock: SharedClock =
        Arc::new(Leaping { start: Instant::now(), drawn: AtomicU64::default() });
    let state = open(&clock).await;
    machine(&state, "a").await;
    let loops = dhow_loops::start(&state, &clock);
    let node = Key::new("", "a");
    let own = Patch::Merge(json!({"spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]}}));
    state.patch_typed::<Node>(&me(), &kinds::NODE, &node, "", own).await.unwrap();
    let mut nodes: View<Node> = state.view(&kinds::NODE);
    for (disk, memory, wanted) in [
        ("True", "False", vec!["mine", "node.kubernetes.io/disk-pressure"]),
        (
            "True",
            "True",
            vec!["mine", "node.kubernetes.io/disk-pressure", "node.kubernetes.io/memory-pressure"],
        ),
        ("False", "True", vec!["mine", "node.kubernetes.io/memory-pressure"]),
        ("False", "Unknown", vec!["mine"]),
    ] {
        let said = json!([
            {"type": "DiskPressure", "status": disk},
            {"type": "MemoryPressure", "status": memory},
        ]);
        let status = Patch::Merge(json!({"status": {"conditions": said}}));
        state.patch_typed::<Node>(&me(), &kinds::NODE, &node, "status", status).await.unwrap();
        let keys = |nodes: &View<Node>| -> Vec<String> {
            let node = nodes.get("", "a").unwrap();
            let taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
            assert!(taints.iter().all(|t| t.effect == "NoSchedule"), "{taints:?}");
            taints.into_iter().map(|t| t.key).collect()
        };
        while keys(&nodes) != wanted {
            nodes.changed().await;
        }
    }
    loops.shutdown().await;
}
