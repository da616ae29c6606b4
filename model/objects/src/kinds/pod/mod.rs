//! `Pod`: containers that share an address and a fate.

mod columns;
mod container;
pub(super) mod defaults;
mod level;
mod parts;
mod placement;
mod qos;
mod references;
mod restart;
mod security;
pub(super) mod validate;
mod volumes;
pub(super) mod warnings;

pub use qos::qos_class;

use super::prepare::{Generation, Prepare, StatusOnCreate};
use super::{BASE, Kind, PROXY_VERBS, STATUS_VERBS, SelectableField, Subresource};
use serde_json::{Value, json};

/// `v1 Pod`.
pub static POD: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    storage: "core/pods",
    subresources: &[
        Subresource::new("attach", "", "PodAttachOptions", &["create", "get"]),
        Subresource::new("binding", "", "Binding", &["create"]),
        Subresource {
            part: Some(&parts::EPHEMERAL_CONTAINERS),
            ..Subresource::new("ephemeralcontainers", "", "Pod", STATUS_VERBS)
        },
        Subresource::new("eviction", "policy", "Eviction", &["create"]),
        Subresource::new("exec", "", "PodExecOptions", &["create", "get"]),
        Subresource::new("log", "", "Pod", &["get"]),
        Subresource::new("portforward", "", "PodPortForwardOptions", &["create", "get"]),
        Subresource::new("proxy", "", "PodProxyOptions", PROXY_VERBS),
        Subresource {
            part: Some(&parts::RESIZE),
            ..Subresource::new("resize", "", "Pod", STATUS_VERBS)
        },
        Subresource::new("status", "", "Pod", STATUS_VERBS),
    ],
    fields: &[
        field("spec.nodeName", ""),
        field("spec.restartPolicy", ""),
        field("spec.schedulerName", ""),
        field("spec.serviceAccountName", ""),
        field("spec.hostNetwork", "false"),
        field("status.phase", ""),
        field("status.podIP", ""),
        field("status.nominatedNodeName", ""),
    ],
    columns: columns::COLUMNS,
    default: defaults::pod,
    validate: validate::pod,
    warnings: warnings::pod,
    prepare: Prepare {
        status: StatusOnCreate::Reset(first_status),
        generation: Generation::Fields(&["spec"]),
        status_writes_metadata: true,
    },
    graceful: Some(grace),
    ..BASE
};

const fn field(path: &'static str, absent: &'static str) -> SelectableField {
    SelectableField { label: path, path, absent }
}

/// `terminationGracePeriodSeconds`, 30 when the pod does not say. Pods that no node runs end at
/// once; that is `state`'s to decide, which knows the status.
fn grace(pod: &Value) -> i64 {
    pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30)
}

fn first_status(pod: &Value) -> Value {
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    let gates = pod.pointer("/spec/schedulingGates").and_then(Value::as_array);
    if gates.is_some_and(|gates| !gates.is_empty()) {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": null,
        }]);
    }
    status
}
