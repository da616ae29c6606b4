//! `Node`: a machine.

use super::check::Checks;
use super::column::{AGE, Column, NAME, items, text, text_or_none};
use super::fill::set;
use super::prepare::{Generation, Prepare, StatusOnCreate};
use super::{BASE, Kind, PROXY_VERBS, STATUS_VERBS, SelectableField, Subresource};
use crate::status::StatusCause;
use crate::{meta, names};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// `v1 Node`.
pub static NODE: Kind = Kind {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    storage: "core/nodes",
    subresources: &[
        Subresource::new("proxy", "", "NodeProxyOptions", PROXY_VERBS),
        Subresource::new("status", "", "Node", STATUS_VERBS),
    ],
    fields: &[SelectableField {
        label: "spec.unschedulable",
        path: "spec.unschedulable",
        absent: "false",
    }],
    columns: &[
        NAME,
        Column::text("Status", "The status of the node", |v, _| json!(status(v))),
        Column::text("Roles", "The roles of the node", |v, _| json!(roles(v))),
        AGE,
        Column::text("Version", "Kubelet Version reported by the node.", |v, _| {
            json!(text(v, "/status/nodeInfo/kubeletVersion"))
        }),
        Column::text("Internal-IP", "Address inside the cluster.", |v, _| {
            json!(address(v, "InternalIP"))
        })
        .wide(),
        Column::text("External-IP", "Address outside the cluster.", |v, _| {
            json!(address(v, "ExternalIP"))
        })
        .wide(),
        Column::text("OS-Image", "Operating system of the node.", |v, _| {
            or_unknown(v, "/status/nodeInfo/osImage")
        })
        .wide(),
        Column::text("Kernel-Version", "Kernel of the node.", |v, _| json!(kernel(v))).wide(),
        Column::text("Container-Runtime", "Container runtime of the node.", |v, _| {
            or_unknown(v, "/status/nodeInfo/containerRuntimeVersion")
        })
        .wide(),
    ],
    default,
    validate,
    prepare: Prepare {
        status: StatusOnCreate::Keep,
        generation: Generation::None,
        status_writes_metadata: true,
    },
    ..BASE
};

fn or_unknown(node: &Value, pointer: &str) -> Value {
    match text_or_none(node, pointer) {
        Value::String(s) if s == "<none>" => json!("<unknown>"),
        other => other,
    }
}

/// Version and, in parentheses, the architecture.
fn kernel(node: &Value) -> String {
    let version = match text(node, "/status/nodeInfo/kernelVersion") {
        "" => "<unknown>",
        version => version,
    };
    match text(node, "/status/nodeInfo/architecture") {
        "" => version.to_owned(),
        architecture => format!("{version} ({architecture})"),
    }
}

fn status(node: &Value) -> String {
    let ready = items(node, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready");
    let mut words = vec![match ready.map(|c| text(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if node.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true) {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in meta::labels(node).into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/") {
            if !role.is_empty() {
                roles.insert(role);
            }
        } else if key == "kubernetes.io/role" {
            roles.extend(value.as_str().filter(|r| !r.is_empty()));
        }
    }
    if roles.is_empty() {
        return "<none>".to_owned();
    }
    roles.into_iter().collect::<Vec<_>>().join(",")
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    items(node, "/status/addresses")
        .iter()
        .find(|a| text(a, "/type") == kind)
        .map_or("<none>", |a| text(a, "/address"))
}

fn default(node: &mut Value) {
    let Some(status) = node.get_mut("status").and_then(Value::as_object_mut) else { return };
    if let Some(capacity) = status.get("capacity").cloned() {
        set(status, "allocatable", capacity);
    }
}

fn validate(new: &Value, _: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let mut seen = BTreeSet::new();
    for (i, taint) in items(new, "/spec/taints").iter().enumerate() {
        let at = |field: &str| format!("spec.taints[{i}].{field}");
        let (key, value) = (text(taint, "/key"), text(taint, "/value"));
        checks.invalid_all(&at("key"), key, names::qualified(key));
        checks.invalid_all(&at("value"), value, names::label_value(value));
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        checks.one_of(&at("effect"), taint.get("effect"), &effects);
        if !seen.insert((key, text(taint, "/effect"))) {
            checks.duplicate(&format!("spec.taints[{i}]"), taint.clone());
        }
    }
    for field in ["capacity", "allocatable"] {
        let amounts = new.pointer(&format!("/status/{field}")).and_then(Value::as_object);
        for (name, amount) in amounts.into_iter().flatten() {
            checks.quantity(&format!("status.{field}[{name}]"), name, amount);
        }
    }
    checks.causes()
}
