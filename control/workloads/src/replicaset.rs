//! Replica sets: as many pods as asked for.

use crate::{Note, available, controller_of, is_active, phase, ready_since, seconds, selects};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use std::cmp::Reverse;
use std::sync::Arc;

/// The pod annotation that makes a pod go earlier (lower) or later when scaling down.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// So many pods at most are made or deleted in one step, as upstream does: whoever asks for a thousand
/// million of them shall not bring down what else runs here.
const BURST: usize = 500;
/// A pod that failed within so many seconds of its making counts against making more at once.
const YOUNG: i64 = 60;
/// So many of them are made good at once, however few are wanted.
const AT_ONCE: usize = 5;

/// What to do for a replica set.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Pods (by name) that match and have no controller: take them.
    pub adopt: Vec<String>,
    /// Pods that are owned but do not match any more: let them go.
    pub release: Vec<String>,
    /// How many pods to make.
    pub create: usize,
    /// Pods to delete, in order.
    pub delete: Vec<String>,
    /// The status as it is now.
    pub status: ReplicaSetStatus,
    /// Look again at this second, because a pod becomes available or may be made then.
    pub again_at: Option<i64>,
}

/// Plans for `set`. `pods` are all pods of its namespace; `now` is in seconds since the epoch.
pub fn plan(set: &ReplicaSet, pods: &[Arc<Pod>], now: i64) -> Plan {
    let spec = set.spec.clone();
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let dying = set.metadata.deletion_timestamp.is_some();
    let (mut adopt, mut release, mut owned) = (Vec::new(), Vec::new(), Vec::new());
    for pod in pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let matches = selects(Some(&spec.selector), pod.metadata.labels.as_ref());
        match controller_of(&pod.metadata) {
            Some(owner) if owner.uid == uid => {
                if matches {
                    owned.push(pod);
                } else {
                    release.push(name);
                }
            }
            None if matches && is_active(pod) && !dying => {
                adopt.push(name);
                owned.push(pod);
            }
            _ => {}
        }
    }
    let mut active: Vec<&Arc<Pod>> = owned.iter().copied().filter(|p| is_active(p)).collect();
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let missing = if dying { 0 } else { wanted.saturating_sub(active.len()) };
    let setbacks = setbacks(&owned, now);
    let create = missing.min(wanted.max(AT_ONCE).saturating_sub(setbacks.len())).min(BURST);
    // Each pod that is made wakes whoever asked for this; where none may be, time does.
    let retry_at = setbacks.first().copied().filter(|_| create < missing);
    let surplus = if dying { 0 } else { active.len().saturating_sub(wanted).min(BURST) };
    active.sort_by_key(|pod| rank(pod));
    let delete =
        active.iter().take(surplus).map(|p| p.metadata.name.clone().unwrap_or_default()).collect();

    let min_ready = i64::from(spec.min_ready_seconds.unwrap_or(0));
    let template_labels =
        spec.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.as_ref());
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX)
    };
    let fully = count(&|p| {
        template_labels.is_none_or(|wanted| {
            wanted.iter().all(|(k, v)| p.metadata.labels.as_ref().and_then(|l| l.get(k)) == Some(v))
        })
    });
    let ripens = active.iter().filter_map(|p| available(p, min_ready, now).err().flatten()).min();
    let again_at = [ripens, retry_at].into_iter().flatten().min();
    let terminating = owned
        .iter()
        .filter(|p| {
            p.metadata.deletion_timestamp.is_some() && !matches!(phase(p), "Succeeded" | "Failed")
        })
        .count();
    let status = ReplicaSetStatus {
        replicas: i32::try_from(active.len()).unwrap_or(i32::MAX),
        fully_labeled_replicas: Some(fully),
        ready_replicas: Some(count(&|p| ready_since(p).is_some())),
        available_replicas: Some(count(&|p| available(p, min_ready, now).is_ok())),
        terminating_replicas: Some(i32::try_from(terminating).unwrap_or(i32::MAX)),
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
    };
    Plan { adopt, release, create, delete, status, again_at }
}

/// When the pods will be forgotten that failed soon after they were made, the earliest first. Upstream
/// makes pods that no machine takes again and again without a pause, and fills the store with them.
fn setbacks(owned: &[&Arc<Pod>], now: i64) -> Vec<i64> {
    let failed = owned.iter().filter(|pod| phase(pod) == "Failed");
    let made = failed.filter_map(|pod| pod.metadata.creation_timestamp.as_ref().map(seconds));
    let mut forgotten: Vec<i64> = made.map(|at| at + YOUNG).filter(|at| *at > now).collect();
    forgotten.sort_unstable();
    forgotten
}

/// The order in which pods are deleted, as upstream's: unassigned, pending, not ready, cheap,
/// lately ready, often restarted, young.
fn rank(pod: &Pod) -> impl Ord + use<> {
    let assigned =
        pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref().is_some_and(|n| !n.is_empty()));
    let progress = match phase(pod) {
        "" | "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let ready = ready_since(pod);
    let cost: i64 = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(DELETION_COST))
        .and_then(|c| c.parse().ok())
        .unwrap_or(0);
    let restarts: i32 = pod
        .status
        .as_ref()
        .and_then(|s| s.container_statuses.as_ref())
        .map_or(0, |all| all.iter().map(|c| c.restart_count).sum());
    let since = ready.flatten().map_or(0, seconds);
    let created = pod.metadata.creation_timestamp.as_ref().map_or(0, seconds);
    (
        assigned,
        progress,
        ready.is_some(),
        cost,
        Reverse(since),
        Reverse(restarts),
        Reverse(created),
        pod.metadata.name.clone(),
    )
}

/// The event for a pod that was made.
pub fn created(name: &str) -> Note {
    let message = format!("Created pod: {name}");
    Note { kind: "Normal", reason: "SuccessfulCreate", message, because: None }
}

/// The event for a pod that was deleted.
pub fn deleted(name: &str) -> Note {
    let message = format!("Deleted pod: {name}");
    Note { kind: "Normal", reason: "SuccessfulDelete", message, because: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::{Value, json};

    fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
        object(json!({
            "metadata": {"name": "web", "uid": "u1", "generation": 2},
            "spec": {
                "replicas": replicas, "minReadySeconds": min_ready,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web", "tier": "x"}}},
            },
        }))
    }

    fn pod(name: &str, owner: Option<&str>, patch: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "labels": {"app": "web"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [], "nodeName": "n1"},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}]},
        });
        if let Some(uid) = owner {
            pod["metadata"]["ownerReferences"] = json!([
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": true}]);
        }
        json_patch_merge(&mut pod, &patch);
        Arc::new(object(pod))
    }

    fn json_patch_merge(into: &mut Value, patch: &Value) {
        match patch.as_object() {
            Some(fields) if into.is_object() => {
                for (key, value) in fields {
                    json_patch_merge(&mut into[key], value);
                }
            }
            _ => *into = patch.clone(),
        }
    }

    #[test]
    fn missing_pods_are_made() {
        let plan = plan(&set(3, 0), &[pod("a", Some("u1"), json!({}))], 0);
        assert_eq!((plan.create, plan.delete.len()), (2, 0));
        assert_eq!(plan.status.observed_generation, Some(2));
    }

    #[test]
    fn what_is_made_at_once_has_a_limit() {
        assert_eq!(plan(&set(i32::MAX, 0), &[], 0).create, BURST);
    }

    #[test]
    fn finished_and_dying_pods_do_not_count() {
        let pods = [
            pod("a", Some("u1"), json!({"status": {"phase": "Failed"}})),
            pod(
                "b",
                Some("u1"),
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:01:00Z"}}),
            ),
        ];
        let plan = plan(&set(1, 0), &pods, 0);
        assert_eq!(plan.create, 1);
        assert_eq!(plan.status.terminating_replicas, Some(1));
    }

    #[test]
    fn pods_that_fail_at_once_are_not_made_without_a_pause() {
        let at = |second: i64| {
            json!({"metadata": {"creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
                   "status": {"phase": "Failed"}})
        };
        let failed: Vec<_> = (0..5).map(|i| pod(&format!("f{i}"), Some("u1"), at(i))).collect();
        let start = 1_767_225_600; // 2026-01-01T00:00:00Z
        assert_eq!(plan(&set(1, 0), &failed[1..], start + 5).create, 1);
        let waits = plan(&set(1, 0), &failed, start + 5);
        assert_eq!((waits.create, waits.again_at), (0, Some(start + YOUNG)));
        assert_eq!(plan(&set(1, 0), &failed, start + YOUNG).create, 1);
        // Those of a set that lost some of many are all made good.
        assert_eq!(plan(&set(9, 0), &failed, start + 5).create, 4);
        assert_eq!(plan(&set(1, 0), &failed, start + 500).create, 1, "one that had run for long");
    }

    #[test]
    fn surplus_goes_unready_first_then_the_youngest() {
        let pods = [
            pod("old", Some("u1"), json!({})),
            pod(
                "young",
                Some("u1"),
                json!({"metadata": {"creationTimestamp": "2026-01-02T00:00:00Z"}}),
            ),
            pod(
                "unready",
                Some("u1"),
                json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
            ),
        ];
        assert_eq!(plan(&set(1, 0), &pods, 0).delete, ["unready", "young"]);
    }

    #[test]
    fn matching_orphans_are_adopted_and_strangers_let_go() {
        let pods = [
            pod("orphan", None, json!({})),
            pod("stranger", Some("u1"), json!({"metadata": {"labels": {"app": "other"}}})),
            pod("foreign", Some("u2"), json!({})),
        ];
        let plan = plan(&set(1, 0), &pods, 0);
        assert_eq!(
            (plan.adopt, plan.release, plan.create),
            (vec!["orphan".into()], vec!["stranger".into()], 0)
        );
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let ready_at = 1_767_225_610; // 2026-01-01T00:00:10Z
        let pods = [pod("a", Some("u1"), json!({}))];
        let early = plan(&set(1, 30), &pods, ready_at + 5);
        assert_eq!(
            (early.status.available_replicas, early.again_at),
            (Some(0), Some(ready_at + 30))
        );
        assert_eq!(plan(&set(1, 30), &pods, ready_at + 30).status.available_replicas, Some(1));
    }

    #[test]
    fn a_dying_set_makes_and_deletes_nothing() {
        let mut dying = set(3, 0);
        dying.metadata = object(
            json!({"name": "web", "uid": "u1", "deletionTimestamp": "2026-01-01T00:00:00Z"}),
        );
        let plan = plan(&dying, &[pod("orphan", None, json!({}))], 0);
        assert_eq!((plan.create, plan.adopt.len()), (0, 0));
    }
}
