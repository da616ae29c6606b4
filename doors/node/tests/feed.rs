//! A machine is told of its own pods, of services and names, and its reports arrive.

use dhow_clock::System;
use dhow_door_node::{Compilers, NodeDoor};
use dhow_intents::{Change, Feed, FeedError, MachineIntent, NameIntent, Owner, ServiceIntent};
use dhow_kv::Kv;
use dhow_objects::kinds;
use dhow_state::{Actor, Config, DeleteOptions, Key, Patch, State, User, WriteOptions};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, PodStatus};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;

async fn state() -> State {
    let kv = Kv::new(dhow_server::Store::memory(System::shared()));
    State::open(kv, System::shared(), Config::for_tests()).await.unwrap()
}

fn owner(name: &Option<String>, revision: u64) -> Owner {
    Owner {
        kind: "svc".into(),
        namespace: "default".into(),
        name: name.clone().unwrap_or_default(),
        revision,
    }
}

fn door(state: &State) -> NodeDoor {
    door_of(state, "one")
}

fn door_of(state: &State, node: &str) -> NodeDoor {
    let compilers = Compilers {
        service: Arc::new(|service, slices, revision| ServiceIntent {
            owner: owner(&service.metadata.name, revision),
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            affinity_seconds: u32::try_from(slices.len()).unwrap(),
            external_local: false,
            internal_local: false,
            ports: Vec::new(),
        }),
        names: Arc::new(|service, _, revision| {
            vec![NameIntent { owner: owner(&service.metadata.name, revision), names: Vec::new() }]
        }),
        pod: Arc::new(|pod, revision| {
            let ip = pod.status.as_ref()?.pod_ip.clone()?;
            let owner = owner(&pod.metadata.name, revision);
            Some(NameIntent { owner, names: vec![(ip, Vec::new())] })
        }),
        machine: Arc::new(|node, revision| {
            let address =
                node.status.as_ref()?.addresses.as_ref()?.first()?.address.parse().ok()?;
            let owner = owner(&node.metadata.name, revision);
            Some(MachineIntent { owner, address, pods: (address, 24) })
        }),
    };
    NodeDoor::new(state.clone(), node, compilers)
}

fn me() -> Actor {
    Actor { user: User { name: "me".into(), ..User::default() }, ..Actor::default() }
}

async fn create(state: &State, kind: &'static dhow_objects::kinds::Kind, value: Value) -> Value {
    let made = state.create(&me(), kind, "default", value, &WriteOptions::default()).await;
    made.unwrap().to_value()
}

async fn bound_pod(state: &State, name: &str, node: &str) -> String {
    let pod = create(
        state,
        &kinds::POD,
        json!({
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "shop:1"}]},
        }),
    )
    .await;
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

async fn next(changes: &mut Receiver<Change>) -> Change {
    tokio::time::timeout(Duration::from_secs(10), changes.recv()).await.unwrap().unwrap()
}

fn short(change: &Change) -> String {
    let pod = |p: &k8s_openapi::api::core::v1::Pod| p.metadata.name.clone().unwrap();
    match change {
        Change::Pod(p) => format!("pod {}", pod(p)),
        Change::PodGone(_, name, _) => format!("pod {name} gone"),
        Change::Service(s) => format!("service {} of {}", s.owner.name, s.affinity_seconds),
        Change::ServiceGone(o) => format!("service {} gone", o.name),
        Change::Names(n) => format!("names {}", n.owner.name),
        Change::NamesGone(o) => format!("names {} gone", o.name),
        Change::ConfigMap(_, name) => format!("config {name}"),
        Change::Secret(_, name) => format!("secret {name}"),
        Change::Machines(all) => {
            let names: Vec<&str> = all.iter().map(|machine| machine.owner.name.as_str()).collect();
            format!("machines {}", names.join(" "))
        }
        Change::Node(node) => format!("node {}", node.metadata.name.clone().unwrap()),
        Change::Synced => "synced".into(),
    }
}

#[tokio::test]
async fn a_machine_is_told_what_is_its_own_and_then_the_news() {
    let state = state().await;
    let door = door(&state);
    let uid = bound_pod(&state, "mine", "one").await;
    bound_pod(&state, "other", "two").await;
    create(
        &state,
        &kinds::SERVICE,
        json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}),
    )
    .await;
    let mut changes = door.subscribe().await.unwrap();
    let mut told = Vec::new();
    while told.last().map(String::as_str) != Some("synced") {
        told.push(short(&next(&mut changes).await));
    }
    assert_eq!(told, ["service web of 0", "names web", "pod mine", "machines ", "synced"]);

    create(&state, &kinds::SECRET, json!({"metadata": {"name": "key"}})).await;
    assert_eq!(short(&next(&mut changes).await), "secret key");
    let slice = json!({
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": [], "ports": [],
    });
    create(&state, &kinds::ENDPOINT_SLICE, slice).await;
    assert_eq!(short(&next(&mut changes).await), "service web of 1");
    assert_eq!(short(&next(&mut changes).await), "names web");
    let options = DeleteOptions::default();
    state.delete(&me(), &kinds::SERVICE, "default", "web", &options).await.unwrap();
    assert_eq!(short(&next(&mut changes).await), "names web gone");
    assert_eq!(short(&next(&mut changes).await), "service web gone");

    // A deletion first asks the machine to end the pod, and then waits for its word.
    state.delete(&me(), &kinds::POD, "default", "mine", &options).await.unwrap();
    let Change::Pod(pod) = next(&mut changes).await else { panic!("the pod, marked") };
    assert!(pod.metadata.deletion_timestamp.is_some());
    door.finish_pod("default", "mine", "another uid").await.unwrap();
    assert!(state.cached(&kinds::POD, "default", "mine").is_some());
    door.finish_pod("default", "mine", &uid).await.unwrap();
    let Change::PodGone(_, _, gone) = next(&mut changes).await else { panic!("the pod's end") };
    assert_eq!(gone, uid);
}

#[tokio::test]
async fn a_machine_knows_itself_before_the_pods_that_were_bound_since() {
    let state = state().await;
    for name in ["one", "two"] {
        let node = json!({"metadata": {"name": name}});
        state.create(&me(), &kinds::NODE, "", node, &WriteOptions::default()).await.unwrap();
    }
    let mut changes = door(&state).subscribe().await.unwrap();
    let mut told = Vec::new();
    while told.last().map(String::as_str) != Some("synced") {
        told.push(short(&next(&mut changes).await));
    }
    assert_eq!(told, ["node one", "machines ", "synced"]);
    let label = |name, value: &str| {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"deck": value}}}));
        let (state, key) = (state.clone(), Key::new("", name));
        async move { state.patch_typed::<Node>(&me(), &kinds::NODE, &key, "", patch).await.unwrap() }
    };
    label("two", "lower").await;
    label("one", "upper").await;
    bound_pod(&state, "mine", "one").await;
    let Change::Node(node) = next(&mut changes).await else { panic!("its own node, and no other") };
    assert_eq!(node.metadata.labels.as_ref().unwrap()["deck"], "upper");
    assert_eq!(short(&next(&mut changes).await), "pod mine");
}

#[tokio::test]
async fn a_status_is_written_only_when_it_changed_and_keeps_what_others_set() {
    let state = state().await;
    let door = door(&state);
    let uid = bound_pod(&state, "mine", "one").await;
    let patch =
        Patch::Merge(json!({"status": {"conditions": [{"type": "Theirs", "status": "True"}]}}));
    let options = WriteOptions::default();
    state.patch(&me(), &kinds::POD, "default", "mine", "status", patch, &options).await.unwrap();
    let status = PodStatus {
        phase: Some("Running".into()),
        pod_ip: Some("10.42.0.7".into()),
        conditions: Some(vec![PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            ..PodCondition::default()
        }]),
        ..PodStatus::default()
    };
    door.report_pod("default", "mine", &uid, status.clone()).await.unwrap();
    let first = state.get(&kinds::POD, "default", "mine").await.unwrap();
    assert_eq!(first.value()["status"]["phase"], "Running");
    assert_eq!(first.value()["status"]["qosClass"], "BestEffort");
    assert_eq!(first.value()["metadata"]["labels"]["app"], "mine");
    let types: Vec<&Value> = first.value()["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["type"])
        .collect();
    assert_eq!(types, ["Ready", "Theirs"]);
    door.report_pod("default", "mine", &uid, status.clone()).await.unwrap();
    let second = state.get(&kinds::POD, "default", "mine").await.unwrap();
    assert_eq!(second.revision, first.revision);
    let refused = door.report_pod("default", "mine", "another uid", status).await.unwrap_err();
    assert!(matches!(refused, FeedError::Refused(status) if status.code == 404));
}

#[tokio::test]
async fn a_machine_registers_once_and_heartbeats_alone_are_no_news() {
    let state = state().await;
    let door = door(&state);
    let node = |beat: &str| -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "one", "labels": {"kubernetes.io/hostname": "one"}},
            "status": {"conditions": [{
                "type": "Ready", "status": "True", "lastHeartbeatTime": beat,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }))
        .unwrap()
    };
    door.report_node(node("2026-01-01T00:00:00Z")).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"unschedulable": true}}));
    let options = WriteOptions::default();
    let (cordoned, _) =
        state.patch(&me(), &kinds::NODE, "", "one", "", patch, &options).await.unwrap();
    let seen = door.report_node(node("2026-01-01T00:05:00Z")).await.unwrap();
    assert_eq!(seen.metadata.resource_version, Some(cordoned.revision.to_string()));
    assert_eq!(seen.spec.as_ref().unwrap().unschedulable, Some(true));
}

#[tokio::test]
async fn a_pod_gets_a_token_that_dies_with_it() {
    let state = state().await;
    let door = door(&state);
    let uid = bound_pod(&state, "mine", "one").await;
    let pod = state.get(&kinds::POD, "default", "mine").await.unwrap().decode().unwrap();
    let (token, expires) = door.service_account_token(&pod, Vec::new(), 3607).await.unwrap();
    assert!(expires > 0);
    let user = state.authenticate_token(&token, &[]).await.unwrap();
    assert_eq!(user.name, "system:serviceaccount:default:default");
    door.finish_pod("default", "mine", &uid).await.unwrap();
    assert_eq!(state.authenticate_token(&token, &[]).await.unwrap_err().code, 401);
}

#[tokio::test]
async fn a_lease_is_made_and_renewed() {
    let state = state().await;
    let door = door(&state);
    for at in ["2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:10.000000Z"] {
        let lease = serde_json::from_value(json!({
            "metadata": {},
            "spec": {"holderIdentity": "one", "leaseDurationSeconds": 40, "renewTime": at},
        }))
        .unwrap();
        door.renew_lease(lease).await.unwrap();
        let read = state.get(&kinds::LEASE, "kube-node-lease", "one").await.unwrap();
        assert_eq!(read.value()["spec"]["renewTime"], at);
    }
}

#[tokio::test]
async fn a_machine_is_told_the_names_of_all_pods_and_only_when_they_change() {
    let state = state().await;
    let door = door(&state);
    bound_pod(&state, "far", "two").await;
    let mut changes = door.subscribe().await.unwrap();
    while short(&next(&mut changes).await) != "synced" {}

    let address = |ip: &str, message: &str| json!({"status": {"podIP": ip, "message": message}});
    let far = Key::new("default", "far");
    for (ip, message) in [("10.0.0.1", "one"), ("10.0.0.1", "two"), ("10.0.0.2", "three")] {
        let patch = Patch::Merge(address(ip, message));
        state.patch_typed::<Pod>(&me(), &kinds::POD, &far, "status", patch).await.unwrap();
        if message == "one" {
            let Change::Names(names) = next(&mut changes).await else { panic!("the pod's name") };
            assert_eq!(names.names[0].0, "10.0.0.1");
        }
    }
    let Change::Names(names) = next(&mut changes).await else { panic!("the pod's new name") };
    assert_eq!(names.names[0].0, "10.0.0.2");

    let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    state.delete(&me(), &kinds::POD, "default", "far", &options).await.unwrap();
    assert_eq!(short(&next(&mut changes).await), "names far gone");
}

#[tokio::test]
async fn a_machine_is_told_of_the_other_machines_when_one_comes_moves_or_goes() {
    let state = state().await;
    let (door, second) = (door(&state), door_of(&state, "two"));
    let node = |name: &str, address: &str, beat: &str| -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "status": {
                "addresses": [{"type": "InternalIP", "address": address}],
                "conditions": [{"type": "Ready", "status": beat}],
            },
        }))
        .unwrap()
    };
    door.report_node(node("one", "10.0.0.1", "True")).await.unwrap();
    second.report_node(node("two", "10.0.0.2", "True")).await.unwrap();
    let mut changes = door.subscribe().await.unwrap();
    assert_eq!(short(&next(&mut changes).await), "node one");
    assert_eq!(short(&next(&mut changes).await), "machines two");
    assert_eq!(short(&next(&mut changes).await), "synced");
    // Its own move is not another's, and what else is reported of others is no news.
    door.report_node(node("one", "10.0.0.9", "True")).await.unwrap();
    assert_eq!(short(&next(&mut changes).await), "node one");
    second.report_node(node("two", "10.0.0.2", "False")).await.unwrap();
    second.report_node(node("two", "10.0.0.3", "False")).await.unwrap();
    let Change::Machines(machines) = next(&mut changes).await else { panic!("a machine moved") };
    assert_eq!(machines[0].address.to_string(), "10.0.0.3");
    let options = DeleteOptions::default();
    state.delete(&me(), &kinds::NODE, "", "two", &options).await.unwrap();
    assert_eq!(short(&next(&mut changes).await), "machines ");
}
