//! What containers may use: quality of service, limits, preference as out-of-memory victim.

use super::observe::{Role, containers};
use crate::quantity::{millis_of, units, units_of};
use dhow_runtime::Limits;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// What is said of the pod as a whole, when anything is.
fn whole(pod: &Pod) -> Option<&ResourceRequirements> {
    let given = |list: &Option<BTreeMap<String, Quantity>>| {
        list.as_ref().is_some_and(|list| !list.is_empty())
    };
    let resources = pod.spec.as_ref()?.resources.as_ref()?;
    (given(&resources.limits) || given(&resources.requests)).then_some(resources)
}

/// The pod's quality of service class.
pub fn qos(pod: &Pod) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let lasting = || containers(pod).into_iter().filter(|(role, _)| *role != Role::Ephemeral);
    let of: Vec<ResourceRequirements> = match whole(pod) {
        Some(whole) => vec![whole.clone()],
        None => lasting().map(|(_, c)| c.resources.clone().unwrap_or_default()).collect(),
    };
    for of in &of {
        for resource in ["cpu", "memory"] {
            let limit = millis_of(of.limits.as_ref(), resource);
            let request = millis_of(of.requests.as_ref(), resource);
            any |= limit > 0 || request > 0;
            // A request that is not given equals the limit.
            guaranteed &= limit > 0 && (request == 0 || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// The limits of one container.
pub fn limits(container: &Container) -> Limits {
    limits_of(container.resources.as_ref())
}

fn limits_of(of: Option<&ResourceRequirements>) -> Limits {
    let limits = of.and_then(|r| r.limits.as_ref());
    let requests = of.and_then(|r| r.requests.as_ref());
    let cpu_limit_millis = millis_of(limits, "cpu");
    let asked = millis_of(requests, "cpu");
    let named = requests.is_some_and(|r| r.contains_key("cpu"));
    Limits {
        cpu_request_millis: if named { asked } else { cpu_limit_millis },
        cpu_limit_millis,
        memory_limit: units_of(limits, "memory"),
        pids_limit: 0,
    }
}

/// The limits of the whole pod: those that are said of it, or else the sum where every container
/// has one; and `pids` processes, about which pods say nothing.
pub fn pod_limits(pod: &Pod, pids: u64) -> Limits {
    let all: Vec<(Role, Limits)> =
        containers(pod).iter().map(|(role, c)| (*role, limits(c))).collect();
    let kept = |role: &Role| matches!(role, Role::Main | Role::Sidecar);
    let sum = |field: fn(&Limits) -> u64, complete: bool| {
        let lasting = all.iter().filter(|(role, _)| kept(role));
        if complete && lasting.clone().any(|(_, l)| field(l) == 0) {
            return 0;
        }
        let total = lasting.map(|(_, l)| field(l)).fold(0, u64::saturating_add);
        let init = all.iter().filter(|(role, _)| *role == Role::Init);
        if complete && init.clone().any(|(_, l)| field(l) == 0) {
            return 0;
        }
        total.max(init.map(|(_, l)| field(l)).max().unwrap_or(0))
    };
    let said = limits_of(whole(pod));
    let or = |said: u64, sum: u64| if said > 0 { said } else { sum };
    Limits {
        cpu_request_millis: or(said.cpu_request_millis, sum(|l| l.cpu_request_millis, false)),
        cpu_limit_millis: or(said.cpu_limit_millis, sum(|l| l.cpu_limit_millis, true)),
        memory_limit: or(said.memory_limit, sum(|l| l.memory_limit, true)),
        pids_limit: pids,
    }
}

/// What a container has, as its record carries it.
pub fn label(container: &Container) -> String {
    let of = container.resources.clone().unwrap_or_default();
    // A map of strings cannot fail to be written.
    serde_json::to_string(&of).unwrap_or_default()
}

/// Whether two containers get the same of this resource (`cpu` or `memory`).
pub fn same(a: &ResourceRequirements, b: &ResourceRequirements, resource: &str) -> bool {
    let of = |r: &ResourceRequirements| {
        let read = |list: &Option<BTreeMap<String, Quantity>>| match resource {
            "cpu" => millis_of(list.as_ref(), resource),
            _ => units_of(list.as_ref(), resource),
        };
        (read(&r.requests), read(&r.limits))
    };
    of(a) == of(b)
}

/// What a list asks for of processor time or memory; what is not requested is the limit.
fn asked(of: Option<&ResourceRequirements>, name: &str) -> u64 {
    let requests = of.and_then(|r| r.requests.as_ref());
    let named = requests.is_some_and(|r| r.contains_key(name));
    let from = if named { requests } else { of.and_then(|r| r.limits.as_ref()) };
    if name == "memory" { units_of(from, name) } else { millis_of(from, name) }
}

/// Bytes of the disk that a pod and its parts may take, where something is said of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageLimits {
    /// `emptyDir` volumes on the disk.
    pub volumes: Vec<(String, u64)>,
    /// Containers: what they write into their roots, and their logs.
    pub containers: Vec<(String, u64)>,
    /// All of the pod; 0 is no limit.
    pub pod: u64,
}

/// What the pod may take of its machine's disk.
pub fn storage_limits(pod: &Pod) -> StorageLimits {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter_map(|volume| {
        let empty = volume.empty_dir.as_ref()?;
        // In memory the mount itself is of that size.
        let on_disk = empty.medium.as_deref().unwrap_or_default().is_empty();
        let limit = u64::try_from(units(&empty.size_limit.as_ref()?.0)?).ok()?;
        (on_disk && limit > 0).then(|| (volume.name.clone(), limit))
    });
    let of = |container: &Container| {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        units_of(limits, "ephemeral-storage")
    };
    let all = containers(pod);
    let limits = all.iter().map(|(role, c)| (*role, c.name.clone(), of(c)));
    let limited: Vec<_> = limits.filter(|(.., limit)| *limit > 0).collect();
    let lasting = limited.iter().filter(|(role, ..)| matches!(role, Role::Main | Role::Sidecar));
    let sum: u64 = lasting.map(|(.., limit)| limit).sum();
    let first = limited.iter().filter(|(role, ..)| *role == Role::Init);
    StorageLimits {
        volumes: volumes.collect(),
        pod: first.map(|(.., limit)| *limit).fold(sum, u64::max),
        containers: limited.into_iter().map(|(_, name, limit)| (name, limit)).collect(),
    }
}

/// How readily the kernel ends the container when memory runs out, as upstream computes it.
/// `capacity` is the machine's memory in bytes.
pub fn oom_score_adj(pod: &Pod, container: &Container, capacity: u64) -> i32 {
    let critical = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0) >= 2_000_000_000;
    if critical {
        return -997;
    }
    match qos(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            // What the pod has beyond its containers is everybody's in equal parts.
            let lasting = containers(pod);
            let lasting = lasting.iter().filter(|(role, _)| *role != Role::Ephemeral);
            let own = |c: &Container| asked(c.resources.as_ref(), "memory");
            let theirs: u64 = lasting.clone().map(|(_, c)| own(c)).sum();
            let rest = asked(whole(pod), "memory").saturating_sub(theirs);
            let request =
                own(container) + rest / u64::try_from(lasting.count().max(1)).unwrap_or(1);
            let share = u128::from(request) * 1000 / u128::from(capacity.max(1));
            let score = 1000 - i32::try_from(share).unwrap_or(1000);
            score.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [
            {"name": "a", "resources": resources},
        ]}}))
        .unwrap()
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        assert_eq!(qos(&pod(json!({}))), "BestEffort");
        assert_eq!(qos(&pod(json!({"requests": {"cpu": "1m"}}))), "Burstable");
        let full = json!({"cpu": "500m", "memory": "64Mi"});
        assert_eq!(qos(&pod(json!({"limits": full}))), "Guaranteed");
        let pod = pod(json!({"limits": full, "requests": {"cpu": "100m", "memory": "64Mi"}}));
        assert_eq!(qos(&pod), "Burstable");
    }

    #[test]
    fn the_pods_limit_is_open_when_one_container_has_none() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [
            {"name": "a", "resources": {"limits": {"memory": "64Mi", "cpu": "1"}}},
            {"name": "b", "resources": {"limits": {"cpu": "500m"}}},
        ]}}))
        .unwrap();
        let limits = pod_limits(&pod, 99);
        assert_eq!(limits.memory_limit, 0);
        assert_eq!(limits.cpu_limit_millis, 1500);
        assert_eq!(limits.cpu_request_millis, 1500);
    }

    #[test]
    fn what_is_said_of_the_whole_pod_counts() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "resources": {"limits": {"memory": "32Mi", "cpu": "200m"},
                          "requests": {"memory": "16Mi", "cpu": "200m"}},
            "containers": [{"name": "a", "resources": {"requests": {"memory": "8Mi"}}}, {"name": "b"}],
        }}))
        .unwrap();
        let limits = pod_limits(&pod, 99);
        assert_eq!((limits.memory_limit, limits.cpu_limit_millis), (32 << 20, 200));
        assert_eq!(qos(&pod), "Burstable");
        let score =
            |i: usize| oom_score_adj(&pod, &pod.spec.as_ref().unwrap().containers[i], 32 << 20);
        assert_eq!((score(0), score(1)), (1000 - 375, 1000 - 125));
    }

    #[test]
    fn what_a_pod_may_take_of_the_disk_is_found() {
        let of = |storage: &str| json!({"limits": {"ephemeral-storage": storage}});
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "containers": [{"name": "a", "resources": of("1Mi")}, {"name": "b", "resources": of("2Mi")},
                           {"name": "c"}],
            "volumes": [
                {"name": "disk", "emptyDir": {"sizeLimit": "1Ki"}},
                {"name": "memory", "emptyDir": {"sizeLimit": "1Ki", "medium": "Memory"}},
                {"name": "open", "emptyDir": {}},
            ],
        }}))
        .unwrap();
        let found = storage_limits(&pod);
        assert_eq!(found.volumes, [("disk".to_owned(), 1024)]);
        assert_eq!(found.containers, [("a".to_owned(), 1 << 20), ("b".to_owned(), 2 << 20)]);
        assert_eq!(found.pod, 3 << 20);
        assert_eq!(storage_limits(&Pod::default()), StorageLimits::default());
    }

    #[test]
    fn a_larger_request_makes_a_container_a_less_likely_victim() {
        let capacity = 1 << 30;
        let small = pod(json!({"requests": {"memory": "1Mi"}}));
        let large = pod(json!({"requests": {"memory": "512Mi"}}));
        let score = |p: &Pod| oom_score_adj(p, &p.spec.as_ref().unwrap().containers[0], capacity);
        assert_eq!(score(&small), 999);
        assert_eq!(score(&large), 500);
    }
}
