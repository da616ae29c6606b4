//! How long a pod that is bound may stay on a machine with taints of effect `NoExecute`.

use dhow_fit::{tolerated, tolerations};
use k8s_openapi::api::core::v1::{Node, Pod};
use std::time::Duration;

/// How long the pod may stay from the moment that it and the taints met; `None`: for ever.
///
/// As upstream's taint eviction: a taint that nothing tolerates ends the stay at once; otherwise the
/// shortest `tolerationSeconds` among the tolerations in use counts.
pub fn stay(pod: &Pod, node: &Node) -> Option<Duration> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let mut shortest: Option<Duration> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let mut used = tolerations(pod).iter().filter(|t| tolerated(t, taint)).peekable();
        if used.peek().is_none() {
            return Some(Duration::ZERO);
        }
        for seconds in used.filter_map(|t| t.toleration_seconds) {
            let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            shortest = Some(shortest.map_or(limit, |s| s.min(limit)));
        }
    }
    shortest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(taints: Value, tolerations: Value) -> Option<u64> {
        let node = serde_json::from_value(json!({"spec": {"taints": taints}})).unwrap();
        let pod =
            serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}}))
                .unwrap();
        stay(&pod, &node).map(|limit| limit.as_secs())
    }

    #[test]
    fn only_taints_that_expel_end_a_stay() {
        let taints = |effect: &str| json!([{"key": "storm", "effect": effect}]);
        assert_eq!(of(json!([]), json!([])), None);
        assert_eq!(of(taints("NoSchedule"), json!([])), None);
        assert_eq!(of(taints("PreferNoSchedule"), json!([])), None);
        assert_eq!(of(taints("NoExecute"), json!([])), Some(0));
    }

    #[test]
    fn the_shortest_toleration_in_use_counts() {
        let taints = json!([
            {"key": "storm", "value": "near", "effect": "NoExecute"},
            {"key": "fog", "effect": "NoExecute"},
        ]);
        let everything = json!({"operator": "Exists"});
        let minute = json!({"key": "storm", "value": "near", "tolerationSeconds": 60});
        let unused = json!({"key": "storm", "value": "far", "tolerationSeconds": 1});
        let past = json!({"key": "fog", "operator": "Exists", "tolerationSeconds": -5});
        assert_eq!(of(taints.clone(), json!([everything])), None);
        assert_eq!(of(taints.clone(), json!([minute])), Some(0), "nothing tolerates the fog");
        assert_eq!(of(taints.clone(), json!([everything, minute, unused])), Some(60));
        assert_eq!(of(taints, json!([everything, minute, past])), Some(0));
    }
}
