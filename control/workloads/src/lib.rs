//! Rollout, replicas, endpoints, garbage: pure planning.
//!
//! Each planner takes a snapshot of objects and a time and returns what should be written. Nothing
//! here reads a clock, waits or writes; `control/loops` does.

pub mod daemonset;
pub mod deployment;
pub mod endpoints;
pub mod garbage;
pub mod mirror;
pub mod replicaset;
pub mod rollout;
mod template;

pub use template::template_hash;

use dhow_reason::Reason;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, ObjectMeta, OwnerReference, Time,
};
use std::collections::BTreeMap;

/// An event to record about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// `Normal` or `Warning`.
    pub kind: &'static str,
    /// Upstream's reason, for example `ScalingReplicaSet`.
    pub reason: &'static str,
    /// One line.
    pub message: String,
    /// Of a refusal, a wait or a failure: why, as data.
    pub because: Option<Reason>,
}

/// Whether `selector` selects `labels`. An empty selector selects everything; a missing one
/// nothing.
pub fn selects(
    selector: Option<&LabelSelector>,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let Some(selector) = selector else { return false };
    let value = |key: &str| labels.and_then(|l| l.get(key));
    let equal =
        selector.match_labels.iter().flatten().all(|(key, wanted)| value(key) == Some(wanted));
    equal
        && selector.match_expressions.iter().flatten().all(|rule| {
            let values = rule.values.as_deref().unwrap_or_default();
            let found = value(&rule.key);
            match rule.operator.as_str() {
                "In" => found.is_some_and(|v| values.contains(v)),
                "NotIn" => found.is_none_or(|v| !values.contains(v)),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

/// The owner that controls an object, if one does.
pub fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true))
}

/// Whether a pod's `Ready` condition is true, and since when.
pub fn ready_since(pod: &Pod) -> Option<Option<&Time>> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready")?;
    (ready.status == "True").then_some(ready.last_transition_time.as_ref())
}

/// Seconds since the epoch of a time.
pub fn seconds(time: &Time) -> i64 {
    time.0.as_second()
}

/// Whether a pod has been ready for at least `min_ready` seconds at `now` (seconds since the
/// epoch). Otherwise the second at which it will have been, if it is ready at all.
pub fn available(pod: &Pod, min_ready: i64, now: i64) -> Result<(), Option<i64>> {
    match ready_since(pod) {
        None => Err(None),
        Some(_) if min_ready <= 0 => Ok(()),
        Some(since) => {
            let due = since.map_or(now, seconds) + min_ready;
            if due <= now { Ok(()) } else { Err(Some(due)) }
        }
    }
}

/// The pod's phase, empty when it has none yet.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether a pod counts for its owner: not finished, not being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !matches!(phase(pod), "Succeeded" | "Failed") && pod.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
pub(crate) mod testing {
    //! Objects for tests, written as JSON.

    use serde::de::DeserializeOwned;
    use serde_json::Value;

    /// A typed object of `value`.
    pub fn object<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("test objects are well formed")
    }
}
