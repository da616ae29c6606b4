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
    Machine::new(Arc::new(serde_json::from_value(node).unwrap()))
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

fn place(pod: &Pod, machines: &[Machine]) -> Decision {
    super::place(pod, machines, &Namespaces::new())
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
    busy.usage.add(&Usage::of(&pod(json!({}))));
    assert_eq!(place(&pod(json!({})), &[busy, machine("b", &[])]), Decision::Bind("b".into()));
}

#[test]
fn every_machine_says_why_not() {
    let mut full = machine("full", &[]);
    for _ in 0..4 {
        full.usage.add(&Usage::of(&pod(json!({}))));
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
    machine.usage.add(&Usage::of(&wants));
    assert_eq!(codes(&place(&wants, &[machine])), [Code::HostPortTaken]);
}

#[test]
fn no_machine_at_all_is_said_so() {
    let Decision::Wait(reason) = place(&pod(json!({})), &[]) else { panic!() };
    assert_eq!(message(&reason), "0/0 nodes are available: no nodes are registered.");
}

/// A machine in a zone, with pods that have these labels.
fn zoned(name: &str, zone: &str, pods: &[Value]) -> Machine {
    let labels = json!({"kubernetes.io/hostname": name, "zone": zone});
    let mut machine = machine(name, &[("/metadata/labels", labels)]);
    for labels in pods {
        machine.add(&labelled(labels.clone(), json!({})));
    }
    machine
}

/// A pod that takes no room.
fn labelled(labels: Value, spec: Value) -> Arc<Pod> {
    let mut pod = pod(spec);
    pod.metadata.labels = Some(serde_json::from_value(labels).unwrap());
    pod.spec.as_mut().unwrap().containers[0].resources = None;
    Arc::new(pod)
}

fn term(app: &str, topology: &str) -> Value {
    json!({"topologyKey": topology, "labelSelector": {"matchLabels": {"app": app}}})
}

fn near(term: Value) -> Value {
    json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
}

fn far(term: Value) -> Value {
    json!({"affinity": {
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]},
    }})
}

fn told(decision: &Decision) -> String {
    let Decision::Wait(reason) = decision else { panic!("{decision:?}") };
    message(reason)
}

#[test]
fn a_pod_goes_near_those_that_it_must_be_near() {
    let machines = [
        zoned("a", "east", &[]),
        zoned("b", "west", &[json!({"app": "db"})]),
        zoned("c", "west", &[]),
    ];
    let beside = labelled(json!({}), near(term("db", "kubernetes.io/hostname")));
    assert_eq!(place(&beside, &machines), Decision::Bind("b".into()));
    let same_zone = labelled(json!({}), near(term("db", "zone")));
    assert_eq!(place(&same_zone, &machines[..2]), Decision::Bind("b".into()));
    assert_eq!(
        told(&place(&same_zone, &machines[..1])),
        "0/1 nodes are available: 1 node(s) didn't match pod affinity rules."
    );
    // The first of those that want each other near has nobody to be near to.
    let first = labelled(json!({"app": "db"}), near(term("db", "zone")));
    assert_eq!(place(&first, &machines[..1]), Decision::Bind("a".into()));
    let keyless = labelled(json!({"app": "db"}), near(term("db", "rack")));
    assert_eq!(codes(&place(&keyless, &machines[..1])), [Code::PodAffinityUnmet]);
}

#[test]
fn a_pod_stays_far_from_those_that_it_or_they_must_be_far_from() {
    let shy = labelled(json!({"app": "db"}), far(term("db", "kubernetes.io/hostname")));
    let mut machines = [zoned("a", "east", &[json!({"app": "db"})]), zoned("b", "east", &[])];
    assert_eq!(place(&shy, &machines), Decision::Bind("b".into()));
    machines[1].add(&shy);
    assert_eq!(
        told(&place(&shy, &machines)),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
    );
    // One that does not mind is minded.
    let plain = labelled(json!({"app": "db"}), json!({}));
    assert_eq!(
        told(&place(&plain, &machines[1..])),
        "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    // Another namespace's pods are not meant, unless the term says so.
    let mut elsewhere = Pod::clone(&plain);
    elsewhere.metadata.namespace = Some("other".into());
    assert_eq!(place(&elsewhere, &machines[1..]), Decision::Bind("b".into()));
    let mut all = term("db", "zone");
    all["namespaceSelector"] = json!({"matchLabels": {"team": "data"}});
    let mut guarded = [zoned("g", "east", &[])];
    guarded[0].add(&labelled(json!({}), far(all)));
    let known: Namespaces =
        [("other".to_owned(), [("team".to_owned(), "data".to_owned())].into())].into();
    assert_eq!(codes(&super::place(&elsewhere, &guarded, &known)), [Code::PodAntiAffinityUnmet]);
    assert_eq!(place(&elsewhere, &guarded), Decision::Bind("g".into()));
}

#[test]
fn what_a_pod_prefers_outweighs_room() {
    let mut machines =
        [zoned("a", "east", &[json!({"app": "db"})]), zoned("b", "west", &[json!({"app": "web"})])];
    machines[0].usage.amounts.insert("cpu".into(), 1000);
    let weighted = |app| json!([{"weight": 50, "podAffinityTerm": term(app, "zone")}]);
    let prefers = |side: &str, app| {
        let terms = json!({"preferredDuringSchedulingIgnoredDuringExecution": weighted(app)});
        labelled(json!({}), json!({"affinity": {side: terms}}))
    };
    assert_eq!(place(&prefers("podAffinity", "db"), &machines), Decision::Bind("a".into()));
    assert_eq!(place(&prefers("podAntiAffinity", "web"), &machines), Decision::Bind("a".into()));
}

#[test]
fn pods_are_spread_as_evenly_as_they_ask_for() {
    let web = json!({"app": "web"});
    let spread = |when: &str, more: Value| {
        let mut constraint = json!({
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}},
        });
        for (key, value) in more.as_object().unwrap() {
            constraint[key] = value.clone();
        }
        labelled(web.clone(), json!({"topologySpreadConstraints": [constraint]}))
    };
    let machines = [
        zoned("a", "east", std::slice::from_ref(&web)),
        zoned("b", "east", &[]),
        zoned("c", "west", &[]),
    ];
    let hard = spread("DoNotSchedule", json!({}));
    assert_eq!(place(&hard, &machines), Decision::Bind("c".into()));
    let mut cordoned = machines.clone();
    let mut node = Node::clone(&cordoned[2].node);
    node.spec.get_or_insert_default().unschedulable = Some(true);
    cordoned[2].node = Arc::new(node);
    assert_eq!(
        told(&place(&hard, &cordoned)),
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match pod topology spread constraints."
    );
    assert_eq!(
        told(&place(&hard, &[machine("bare", &[])])),
        "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label)."
    );
    // Too few parts count as if there were an empty one.
    let mut even = machines.clone();
    even[2].add(&labelled(web.clone(), json!({})));
    assert!(matches!(place(&hard, &even), Decision::Bind(_)));
    let parts = spread("DoNotSchedule", json!({"minDomains": 3}));
    assert_eq!(codes(&place(&parts, &even)), [Code::TopologySpreadUnmet; 3]);
    // A wish outweighs room and forbids nothing.
    let soft = spread("ScheduleAnyway", json!({}));
    let mut crowded = machines.clone();
    crowded[2].usage.amounts.insert("cpu".into(), 1000);
    assert_eq!(place(&soft, &crowded), Decision::Bind("c".into()));
    assert!(matches!(place(&soft, &cordoned), Decision::Bind(_)));
}

#[test]
fn what_vendors_name_is_counted_like_everything_else() {
    let gpu = json!({"cpu": "2", "memory": "1Gi", "pods": "10", "example.com/gpu": "1"});
    let mut machines = [machine("a", &[]), machine("b", &[("/status/allocatable", gpu)])];
    let resources = json!({"requests": {"example.com/gpu": "1"}});
    let wants = Arc::new(pod(json!({"containers": [{"name": "c", "resources": resources}]})));
    assert_eq!(place(&wants, &machines), Decision::Bind("b".into()));
    machines[1].add(&wants);
    assert_eq!(
        told(&place(&wants, &machines)),
        "0/2 nodes are available: 2 Insufficient example.com/gpu."
    );
}
