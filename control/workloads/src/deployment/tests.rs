//! What a deployment asks for, step by step.

use super::*;
use crate::testing::object;
use serde_json::{Value, json};

fn now() -> Time {
    object(json!("2026-01-01T00:10:00Z"))
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn deployment(replicas: i32, image: &str, patch: &[(&str, Value)]) -> Deployment {
    let mut value = json!({
        "metadata": {"name": "web", "namespace": "d", "uid": "u", "generation": 1},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": template(image),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": 600,
        },
    });
    for (pointer, patch) in patch {
        *value.pointer_mut(pointer).expect("the pointer exists") = patch.clone();
    }
    object(value)
}

fn set(
    name: &str,
    image: &str,
    revision: i64,
    wanted: i32,
    available: i32,
    desired: i32,
) -> Arc<ReplicaSet> {
    let mut template = template(image);
    template["metadata"]["labels"][HASH_LABEL] = json!(name);
    Arc::new(object(json!({
        "metadata": {
            "name": format!("web-{name}"), "uid": format!("rs-{name}"),
            "labels": {"app": "web", HASH_LABEL: name},
            "annotations": {REVISION: revision.to_string(), DESIRED: desired.to_string(), MAXIMUM: (desired + 1).to_string()},
            "creationTimestamp": format!("2026-01-01T00:0{revision}:00Z"),
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u", "controller": true}],
        },
        "spec": {"replicas": wanted, "selector": {"matchLabels": {"app": "web"}}, "template": template},
        "status": {"replicas": wanted, "readyReplicas": available, "availableReplicas": available},
    })))
}

fn sizes(plan: &Plan) -> Vec<(String, i32)> {
    plan.actions
        .iter()
        .filter_map(|a| match a {
            Action::Resize { name, replicas, .. } => Some((name.clone(), *replicas)),
            Action::Create(set) => Some(("new".into(), wanted(set))),
            _ => None,
        })
        .collect()
}

fn condition<'a>(plan: &'a Plan, kind: &str) -> (&'a str, &'a str) {
    let found = plan.status.conditions.iter().flatten().find(|c| c.type_.as_deref() == Some(kind));
    let found = found.expect("the condition is told");
    (found.status.as_deref().unwrap_or_default(), found.reason.as_deref().unwrap_or_default())
}

#[test]
fn the_first_replica_set_takes_the_whole_size() {
    let plan = plan(&deployment(3, "a:1", &[]), &[], &[], &now());
    assert_eq!(sizes(&plan), [("new".into(), 3)]);
    let Action::Create(made) = &plan.actions[0] else { panic!("{:?}", plan.actions) };
    let hash = &made.metadata.labels.as_ref().unwrap()[HASH_LABEL];
    assert_eq!(made.metadata.name.as_deref(), Some(format!("web-{hash}").as_str()));
    assert_eq!(made.metadata.annotations.as_ref().unwrap()[REVISION], "1");
    assert!(plan.notes[0].message.ends_with("from 0 to 3"), "{:?}", plan.notes);
    let progressing = plan
        .status
        .conditions
        .as_ref()
        .unwrap()
        .iter()
        .find(|c| c.type_.as_deref() == Some("Progressing"));
    assert_eq!(progressing.unwrap().reason.as_deref(), Some("NewReplicaSetCreated"));
}

#[test]
fn matching_orphans_are_adopted_but_not_by_one_that_goes() {
    let mut orphan = ReplicaSet::clone(&set("one", "a:1", 1, 3, 3, 3));
    orphan.metadata.owner_references = None;
    let orphan = [Arc::new(orphan)];
    let adopts = |deployment: &Deployment| {
        let plan = plan(deployment, &orphan, &[], &now());
        plan.actions.iter().any(|a| matches!(a, Action::Adopt(_)))
    };
    let mut deployment = deployment(3, "a:1", &[]);
    assert!(adopts(&deployment));
    deployment.metadata.deletion_timestamp = Some(now());
    assert!(!adopts(&deployment));
}

#[test]
fn a_new_template_grows_by_the_surge_and_then_the_old_shrinks() {
    let old = set("one", "a:1", 1, 4, 4, 4);
    let first = plan(&deployment(4, "a:2", &[]), std::slice::from_ref(&old), &[], &now());
    assert_eq!(sizes(&first), [("new".into(), 1)]);
    let young = set("two", "a:2", 2, 1, 0, 4);
    let second = plan(&deployment(4, "a:2", &[]), &[old.clone(), young], &[], &now());
    assert_eq!(sizes(&second), [("web-one".into(), 3)]);
    let young = set("two", "a:2", 2, 4, 4, 4);
    let last =
        plan(&deployment(4, "a:2", &[]), &[set("one", "a:1", 1, 0, 0, 4), young], &[], &now());
    assert!(sizes(&last).iter().all(|(name, _)| name == "web-two"), "{:?}", last.actions);
    let progressing = last
        .status
        .conditions
        .as_ref()
        .unwrap()
        .iter()
        .find(|c| c.type_.as_deref() == Some("Progressing"))
        .unwrap();
    assert_eq!(progressing.reason.as_deref(), Some("NewReplicaSetAvailable"));
}

#[test]
fn going_back_to_an_old_template_renumbers_its_replica_set() {
    let sets = [set("one", "a:1", 1, 0, 0, 3), set("two", "a:2", 2, 3, 3, 3)];
    let plan = plan(&deployment(3, "a:1", &[]), &sets, &[], &now());
    let resized = plan.actions.iter().find_map(|a| match a {
        Action::Resize { name, annotations, .. } if name == "web-one" => Some(annotations),
        _ => None,
    });
    assert_eq!(resized.unwrap()[REVISION], "3");
    assert_eq!(resized.unwrap()[HISTORY], "1");
    assert!(plan.actions.contains(&Action::Revise("3".into())));
}

#[test]
fn scaling_does_not_roll_out() {
    let only = set("one", "a:1", 1, 3, 3, 3);
    let plan = plan(&deployment(5, "a:1", &[]), &[only], &[], &now());
    assert_eq!(sizes(&plan), [("web-one".into(), 5)]);
}

#[test]
fn a_paused_deployment_scales_but_makes_no_new_set() {
    let mut paused = deployment(5, "a:2", &[]);
    paused.spec.paused = Some(true);
    let plan = plan(&paused, &[set("one", "a:1", 1, 3, 3, 3)], &[], &now());
    assert_eq!(sizes(&plan), [("web-one".into(), 5)]);
}

#[test]
fn recreate_waits_until_the_old_pods_are_gone() {
    let recreate = [("/spec/strategy", json!({"type": "Recreate"}))];
    let deployment = deployment(2, "a:2", &recreate);
    let old_pod: Arc<Pod> = Arc::new(object(json!({
        "metadata": {"name": "p", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-one", "uid": "rs-one", "controller": true}]},
        "status": {"phase": "Running"},
    })));
    let sets = [set("one", "a:1", 1, 0, 0, 2), set("two", "a:2", 2, 0, 0, 2)];
    let waiting = plan(&deployment, &sets, &[old_pod], &now());
    assert!(!sizes(&waiting).contains(&("web-two".into(), 2)), "{:?}", waiting.actions);
    // Nothing serves meanwhile, and the deployment says so.
    assert_eq!(condition(&waiting, "Available"), ("False", "MinimumReplicasUnavailable"));
    let free = plan(&deployment, &sets, &[], &now());
    assert!(sizes(&free).contains(&("web-two".into(), 2)), "{:?}", free.actions);
}

#[test]
fn history_beyond_the_limit_is_forgotten_oldest_first() {
    let mut sets: Vec<_> =
        (1..=4).map(|n| set(&format!("s{n}"), &format!("a:{n}"), n, 0, 0, 1)).collect();
    sets.push(set("now", "a:9", 9, 1, 1, 1));
    let plan = plan(&deployment(1, "a:9", &[]), &sets, &[], &now());
    let gone: Vec<_> = plan.actions.iter().filter(|a| matches!(a, Action::Delete(_))).collect();
    assert_eq!(gone, [&Action::Delete("web-s1".into()), &Action::Delete("web-s2".into())]);
}

#[test]
fn a_rollout_that_stands_still_passes_its_deadline() {
    let mut stuck = deployment(1, "a:2", &[]);
    stuck.status = Some(object(json!({
        "replicas": 1, "updatedReplicas": 1,
        "conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
            "lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    })));
    let plan = plan(&stuck, &[set("two", "a:2", 2, 1, 0, 1)], &[], &now());
    // The revision annotation alone is no progress.
    let progressing = plan
        .status
        .conditions
        .as_ref()
        .unwrap()
        .iter()
        .find(|c| c.type_.as_deref() == Some("Progressing"))
        .unwrap();
    assert_eq!(progressing.reason.as_deref(), Some("ProgressDeadlineExceeded"));
}

#[test]
fn the_deadline_starts_anew_when_a_paused_rollout_goes_on() {
    let mut resumed = deployment(1, "a:2", &[]);
    resumed.status = Some(object(json!({
        "replicas": 1, "updatedReplicas": 1,
        "conditions": [{"type": "Progressing", "status": "Unknown", "reason": "DeploymentPaused",
            "lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    })));
    let plan = plan(&resumed, &[set("two", "a:2", 2, 1, 0, 1)], &[], &now());
    assert_eq!(condition(&plan, "Progressing"), ("Unknown", "DeploymentResumed"));
    assert_eq!(plan.again_at, Some(seconds(&now()) + 600));
}
