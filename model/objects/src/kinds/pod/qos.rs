//! Quality-of-service class of pods.

use super::super::column::items;
use super::level;
use crate::quantity::Quantity;
use serde_json::Value;

/// `Guaranteed`, `Burstable` or `BestEffort`, from the requests and limits of the pod as a whole, or
/// else of its containers.
#[must_use]
pub fn qos_class(pod: &Value) -> &'static str {
    let amount = |owner: &Value, kind: &str, name: &str| {
        let amount = owner.pointer(&format!("/resources/{kind}/{name}"))?;
        Quantity::from_json(amount).ok().filter(|q| !q.is_zero())
    };
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let owners: Vec<&Value> = if level::is_set(spec) {
        vec![spec]
    } else {
        items(spec, "/containers").iter().chain(items(spec, "/initContainers")).collect()
    };
    let mut any = false;
    let mut guaranteed = true;
    for owner in owners {
        for name in ["cpu", "memory"] {
            let limit = amount(owner, "limits", name);
            // Requests that are not given equal the limits.
            let request = amount(owner, "requests", name).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"},
                          "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        assert_eq!(qos_class(&pod(full)), "Guaranteed");
        assert_eq!(qos_class(&pod(json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), "Guaranteed");
    }
}
