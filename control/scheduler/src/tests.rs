//! Where pods go, and why not.

use super::*;
use serde_json::{Value, json};

fn machine(name: &str, patch: &[(&str, Value)]) -> Machine {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"disk": "ssd", "cores": "8"}},
        "spec": {"taints": [], "unschedulable": false},
        "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"}},
    });
    for (pointer, value) in patch {
        *node.pointer_mut(pointer).expect("the pointer exists") = value.clone();
    }
    Machine { node: Arc::new(serde_json::from_value(node).unwrap()), usage: Usage::default() }
}

fn pod(spec: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "p", "namespace": "d", "uid": "u"},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m", "memory": "256Mi"}}}]},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    serde_json::from_value(pod).unwrap()
}

fn codes(decision: &Decision) -> Vec<Code> {
    match decision {
        Decision::Bind(name) => panic!("bound to {name}"),
        Decision::Wait(reason) => reason.causes.iter().map(|c| c.code).collect(),
    }
}

#[test]
fn the_emptier_machine_is_taken() {
    let mut busy = machine("a", &[]);
    busy.usage.add(&pod(json!({})));
    assert_eq!(place(&pod(json!({})), &[busy, machine("b", &[])]), Decision::Bind("b".into()));
}

#[test]
fn every_machine_says_why_not() {
    let mut full = machine("full", &[]);
    for _ in 0..4 {
        full.usage.add(&pod(json!({})));
    }
    let tainted =
        machine("tainted", &[("/spec/taints", json!([{"key": "k", "effect": "NoSchedule"}]))]);
    let cordoned = machine("cordoned", &[("/spec/unschedulable", json!(true))]);
    let decision = place(&pod(json!({})), &[full, tainted, cordoned]);
    assert_eq!(
        codes(&decision),
        [Code::InsufficientCpu, Code::UntoleratedTaint, Code::NodeNotReady]
    );
    let Decision::Wait(reason) = decision else { unreachable!() };
    assert_eq!(
        message(&reason),
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable."
    );
}

#[test]
fn tolerations_open_tainted_machines() {
    let tainted = machine(
        "t",
        &[("/spec/taints", json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]))],
    );
    for toleration in [
        json!({"key": "k", "value": "v"}),
        json!({"key": "k", "operator": "Exists"}),
        json!({"operator": "Exists"}),
    ] {
        let decision =
            place(&pod(json!({"tolerations": [toleration]})), std::slice::from_ref(&tainted));
        assert_eq!(decision, Decision::Bind("t".into()));
    }
}

#[test]
fn selectors_and_affinity_choose_machines() {
    let machines =
        [machine("a", &[]), machine("b", &[("/metadata/labels", json!({"disk": "hdd"}))])];
    assert_eq!(
        place(&pod(json!({"nodeSelector": {"disk": "hdd"}})), &machines),
        Decision::Bind("b".into())
    );
    let affinity = |operator: &str, values: Value| {
        let term =
            json!({"matchExpressions": [{"key": "cores", "operator": operator, "values": values}]});
        pod(
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}),
        )
    };
    assert_eq!(place(&affinity("Gt", json!(["4"])), &machines), Decision::Bind("a".into()));
    assert_eq!(place(&affinity("DoesNotExist", json!([])), &machines), Decision::Bind("b".into()));
    assert_eq!(codes(&place(&affinity("Lt", json!(["4"])), &machines)).len(), 2);
}

#[test]
fn a_host_port_is_taken_once() {
    let wants = pod(
        json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}]}),
    );
    let mut machine = machine("a", &[]);
    machine.usage.add(&wants);
    assert_eq!(codes(&place(&wants, &[machine])), [Code::HostPortTaken]);
}

#[test]
fn init_containers_count_when_they_ask_for_more() {
    let pod = pod(json!({
        "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1500m"}}}],
    }));
    assert_eq!(requests(&pod), Resources { cpu: 1500, memory: 256 << 20, pods: 1 });
}

#[test]
fn no_machine_at_all_is_said_so() {
    let Decision::Wait(reason) = place(&pod(json!({})), &[]) else { panic!() };
    assert_eq!(message(&reason), "0/0 nodes are available: no nodes are registered.");
}
