//! Quality-of-service class of pods.

use super::super::column::items;
use crate::quantity::Quantity;
use serde_json::Value;

/// `Guaranteed`, `Burstable` or `BestEffort`, from the containers' requests and limits.
#[must_use]
pub fn qos_class(pod: &Value) -> &'static str {
    let amount = |container: &Value, kind: &str, name: &str| {
        let amount = container.pointer(&format!("/resources/{kind}/{name}"))?;
        Quantity::from_json(amount).ok().filter(|q| !q.is_zero())
    };
    let containers =
        || items(pod, "/spec/containers").iter().chain(items(pod, "/spec/initContainers"));
    let mut any = false;
    let mut guaranteed = true;
    for container in containers() {
        for name in ["cpu", "memory"] {
            let limit = amount(container, "limits", name);
            // Requests that are not given equal the limits.
            let request = amount(container, "requests", name).or(limit);
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
