//! Resources of a pod as a whole: what they are when only limits are given, and their rules.
//!
//! Follows upstream's `pkg/apis/core/v1/defaults.go` and `validation.go`.

use super::super::check::Checks;
use super::super::column::{items, text};
use crate::quantity::Quantity;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What a pod as a whole can be given.
const RESOURCES: &[&str] = &["cpu", "hugepages-", "memory"];

fn known(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

fn amounts(owner: &Value, kind: &str) -> BTreeMap<String, Quantity> {
    let list = owner.pointer(&format!("/resources/{kind}")).and_then(Value::as_object);
    let read =
        |(name, amount): (&String, &Value)| Some((name.clone(), Quantity::from_json(amount).ok()?));
    list.into_iter().flatten().filter_map(read).collect()
}

/// Whether anything is said of the pod as a whole.
pub(super) fn is_set(spec: &Value) -> bool {
    ["limits", "requests"].iter().any(|kind| !amounts(spec, kind).is_empty())
}

/// What the containers of a pod ask for together: those that run at the same time, and at least
/// what each initialization needs beside the sidecars before it.
fn of_containers(spec: &Value) -> BTreeMap<String, Quantity> {
    let mut lasting: BTreeMap<String, Quantity> = BTreeMap::new();
    let mut most: BTreeMap<String, Quantity> = BTreeMap::new();
    let add = |sum: &mut BTreeMap<String, Quantity>, more: BTreeMap<String, Quantity>| {
        for (name, amount) in more {
            let before = sum.remove(&name);
            sum.insert(name, before.map_or(amount, |before| before + amount));
        }
    };
    for container in items(spec, "/initContainers") {
        let own = amounts(container, "requests");
        if text(container, "/restartPolicy") == "Always" {
            add(&mut lasting, own);
            continue;
        }
        let mut now = lasting.clone();
        add(&mut now, own);
        for (name, amount) in now {
            let most = most.entry(name).or_insert(amount);
            *most = (*most).max(amount);
        }
    }
    for container in items(spec, "/containers") {
        add(&mut lasting, amounts(container, "requests"));
    }
    for (name, amount) in most {
        let sum = lasting.entry(name).or_insert(amount);
        *sum = (*sum).max(amount);
    }
    lasting
}

/// Requests of the pod that are not given: what its containers ask for, or the limit.
pub(super) fn default(spec: &mut Map<String, Value>) {
    let whole = Value::Object(spec.clone());
    if !is_set(&whole) {
        return;
    }
    let Some(resources) = spec.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let limits = resources.get("limits").and_then(Value::as_object).cloned().unwrap_or_default();
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    let Some(requests) = requests.as_object_mut() else { return };
    for (name, amount) in of_containers(&whole).into_iter().filter(|(name, _)| known(name)) {
        requests.entry(name).or_insert_with(|| json!(amount.to_string()));
    }
    for (name, amount) in limits.into_iter().filter(|(name, _)| known(name)) {
        requests.entry(name).or_insert(amount);
    }
}

/// Rules: `check` are those that containers' resources have too.
pub(super) fn validate(
    checks: &mut Checks,
    path: &str,
    spec: &Value,
    check: fn(&mut Checks, &str, &Value),
) {
    let Some(resources) = spec.get("resources") else { return };
    let at = |field: &str| format!("{path}.resources.{field}");
    if !items(resources, "/claims").is_empty() {
        checks.forbidden(&at("claims"), "claims may not be set for Resources at pod-level");
    }
    let (limits, requests) = (amounts(spec, "limits"), amounts(spec, "requests"));
    let foreign = |list: &BTreeMap<String, Quantity>| {
        list.keys().filter(|name| !known(name)).cloned().collect::<Vec<_>>()
    };
    for (kind, list) in [("limits", &limits), ("requests", &requests)] {
        for name in foreign(list) {
            checks.not_supported(&at(&format!("{kind}[{name}]")), name, RESOURCES);
        }
    }
    check(checks, &format!("{path}.resources"), resources);
    let asked = of_containers(spec);
    for (name, amount) in &requests {
        if let Some(sum) = asked.get(name).filter(|sum| *sum > amount) {
            let detail =
                format!("must be greater than or equal to aggregate container requests of {sum}");
            checks.invalid(&at(&format!("requests[{name}]")), amount.to_string(), &detail);
        }
    }
    for list in ["initContainers", "containers"] {
        for (i, container) in items(spec, &format!("/{list}")).iter().enumerate() {
            for (name, own) in amounts(container, "limits") {
                if let Some(most) = limits.get(&name).filter(|most| own > **most) {
                    let detail = format!("must be less than or equal to pod limits of {most}");
                    let at = at(&format!("{list}[{i}][{name}].limits"));
                    checks.invalid(&at, own.to_string(), &detail);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{POD, qos_class};
    use serde_json::{Value, json};

    fn pod(whole: Value, containers: Value, first: Value) -> Value {
        let named = |list: &Value| -> Value {
            let list = list.as_array().unwrap().iter().enumerate();
            list.map(|(i, resources)| {
                let policy = resources.get("sidecar").map(|_| "Always");
                let mut resources = resources.clone();
                resources.as_object_mut().unwrap().remove("sidecar");
                let mut container =
                    json!({"name": format!("c{i}"), "image": "i", "resources": resources});
                if let Some(policy) = policy {
                    container["name"] = json!("side");
                    container["restartPolicy"] = json!(policy);
                }
                container
            })
            .collect()
        };
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
            "resources": whole, "containers": named(&containers)}});
        if first != json!([]) {
            pod["spec"]["initContainers"] = named(&first);
            pod["spec"]["initContainers"][0]["name"] = json!("first");
        }
        POD.complete(&mut pod);
        pod
    }

    /// What upstream's API server fills in, and the class that it sees.
    #[test]
    fn what_a_whole_pod_asks_for_is_filled_in() {
        let limits = |l: Value| json!({"limits": l});
        let requests = |r: Value| json!({"requests": r});
        for (whole, containers, first, wanted, class) in [
            (
                limits(json!({"cpu": "1", "memory": "1Gi"})),
                json!([{}]),
                json!([]),
                json!({"cpu": "1", "memory": "1Gi"}),
                "Guaranteed",
            ),
            (limits(json!({"cpu": "1"})), json!([{}]), json!([]), json!({"cpu": "1"}), "Burstable"),
            (
                requests(json!({"cpu": "1"})),
                json!([{}]),
                json!([]),
                json!({"cpu": "1"}),
                "Burstable",
            ),
            (
                limits(json!({"cpu": "2"})),
                json!([
                    requests(json!({"cpu": "500m"})),
                    requests(json!({"cpu": "300m", "memory": "1Mi"}))
                ]),
                json!([]),
                json!({"cpu": "800m", "memory": "1Mi"}),
                "Burstable",
            ),
            (
                limits(json!({"cpu": "2"})),
                json!([limits(json!({"cpu": "500m"})), {}]),
                json!([]),
                json!({"cpu": "500m"}),
                "Burstable",
            ),
            (
                limits(json!({"cpu": "2", "memory": "1Gi"})),
                json!([requests(json!({"memory": "1Mi"}))]),
                json!([requests(json!({"memory": "20Mi"})), {"requests": {"memory": "5Mi"}, "sidecar": true}]),
                json!({"cpu": "2", "memory": "20Mi"}),
                "Burstable",
            ),
        ] {
            let pod = pod(whole, containers, first);
            assert_eq!(pod["spec"]["resources"]["requests"], wanted);
            assert_eq!(qos_class(&pod), class, "{wanted}");
            assert_eq!(POD.validate_all(&pod, None), []);
        }
        assert_eq!(qos_class(&pod(json!({}), json!([{}]), json!([]))), "BestEffort");
    }

    #[test]
    fn containers_get_no_more_than_their_pod() {
        for (whole, containers, wanted) in [
            (
                json!({"requests": {"cpu": "1"}}),
                json!([{"requests": {"cpu": "600m"}}, {"requests": {"cpu": "600m"}}]),
                "spec.resources.requests[cpu]",
            ),
            (
                json!({"limits": {"memory": "1Gi"}, "requests": {"memory": "1Mi"}}),
                json!([{"limits": {"memory": "2Gi"}, "requests": {"memory": "1Mi"}}]),
                "spec.resources.containers[0][memory].limits",
            ),
            (
                json!({"limits": {"cpu": "1"}}),
                json!([{"limits": {"cpu": "800m"}}, {"limits": {"cpu": "800m"}}]),
                "spec.resources.requests",
            ),
            (
                json!({"limits": {"ephemeral-storage": "1Gi"}}),
                json!([{}]),
                "spec.resources.limits[ephemeral-storage]",
            ),
        ] {
            let told = POD.validate_all(&pod(whole, containers, json!([])), None);
            assert_eq!(told.iter().map(|c| c.field.as_str()).collect::<Vec<_>>(), [wanted]);
        }
    }
}
