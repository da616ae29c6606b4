//! Rules of what decides where a pod may go: affinity to machines and between pods, and how evenly
//! pods are spread. Follows upstream's `validation.go` of `core`.

use super::super::check::Checks;
use super::super::column::{items, text};
use crate::names;
use serde_json::{Value, json};

pub(super) const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
pub(super) const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Checks a pod's `spec`, which stands at `path`.
pub(super) fn all(checks: &mut Checks, path: &str, spec: &Value) {
    let affinity = |kind: &str| spec.pointer(&format!("/affinity/{kind}"));
    if let Some(nodes) = affinity("nodeAffinity") {
        node_affinity(checks, &format!("{path}.affinity.nodeAffinity"), nodes);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        if let Some(pods) = affinity(kind) {
            pod_affinity(checks, &format!("{path}.affinity.{kind}"), pods);
        }
    }
    for (i, constraint) in items(spec, "/topologySpreadConstraints").iter().enumerate() {
        spread(checks, &format!("{path}.topologySpreadConstraints[{i}]"), constraint);
    }
}

fn node_affinity(checks: &mut Checks, path: &str, affinity: &Value) {
    if let Some(required) = affinity.get(REQUIRED) {
        let path = format!("{path}.{REQUIRED}.nodeSelectorTerms");
        let terms = items(required, "/nodeSelectorTerms");
        if terms.is_empty() {
            checks.required(&path, "must have at least one node selector term");
        }
        for (i, term) in terms.iter().enumerate() {
            node_term(checks, &format!("{path}[{i}]"), term);
        }
    }
    preferred(checks, path, affinity, "preference", node_term);
}

/// A `core/v1.NodeSelectorTerm`.
fn node_term(checks: &mut Checks, path: &str, term: &Value) {
    for (i, rule) in items(term, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let at = format!("{path}.values");
        let values = items(rule, "/values").len();
        match text(rule, "/operator") {
            "In" | "NotIn" if values == 0 => {
                checks.required(&at, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let told = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                checks.forbidden(&at, told);
            }
            "Gt" | "Lt" if values != 1 => {
                checks.required(
                    &at,
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => {
                let path = format!("{path}.operator");
                checks.invalid(&path, other, "not a valid selector operator");
            }
        }
        let key = text(rule, "/key");
        checks.invalid_all(&format!("{path}.key"), key, names::qualified(key));
    }
}

fn pod_affinity(checks: &mut Checks, path: &str, affinity: &Value) {
    for (i, term) in items(affinity, &format!("/{REQUIRED}")).iter().enumerate() {
        pod_term(checks, &format!("{path}.{REQUIRED}[{i}]"), term);
    }
    preferred(checks, path, affinity, "podAffinityTerm", pod_term);
}

/// A `core/v1.PodAffinityTerm`.
fn pod_term(checks: &mut Checks, path: &str, term: &Value) {
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = term.get(field) {
            checks.label_selector(&format!("{path}.{field}"), selector);
        }
    }
    for (i, namespace) in items(term, "/namespaces").iter().enumerate() {
        let name = namespace.as_str().unwrap_or_default();
        let path = format!("{path}.namespaces[{i}]");
        checks.invalid_all(&path, name, names::dns_label(name));
    }
    topology_key(checks, path, term);
}

fn topology_key(checks: &mut Checks, path: &str, term: &Value) {
    let path = format!("{path}.topologyKey");
    match text(term, "/topologyKey") {
        "" => checks.required(&path, "can not be empty"),
        key => checks.invalid_all(&path, key, names::qualified(key)),
    }
}

/// What should hold: terms with weights, each in the field `term`.
fn preferred(
    checks: &mut Checks,
    path: &str,
    affinity: &Value,
    term: &str,
    check: fn(&mut Checks, &str, &Value),
) {
    for (i, wish) in items(affinity, &format!("/{PREFERRED}")).iter().enumerate() {
        let path = format!("{path}.{PREFERRED}[{i}]");
        let weight = wish.get("weight").and_then(Value::as_i64).unwrap_or(0);
        if !(1..=100).contains(&weight) {
            checks.invalid(&format!("{path}.weight"), weight, "must be in the range 1-100");
        }
        check(checks, &format!("{path}.{term}"), wish.get(term).unwrap_or(&Value::Null));
    }
}

/// A `core/v1.TopologySpreadConstraint`.
fn spread(checks: &mut Checks, path: &str, constraint: &Value) {
    let here = |field: &str| format!("{path}.{field}");
    if constraint.get("maxSkew").and_then(Value::as_i64).unwrap_or(0) <= 0 {
        let skew = constraint.get("maxSkew").cloned().unwrap_or(json!(0));
        checks.invalid(&here("maxSkew"), skew, "must be greater than zero");
    }
    topology_key(checks, path, constraint);
    let unsatisfiable = constraint.get("whenUnsatisfiable");
    checks.one_of(&here("whenUnsatisfiable"), unsatisfiable, &["DoNotSchedule", "ScheduleAnyway"]);
    if let Some(fewest) = constraint.get("minDomains").and_then(Value::as_i64) {
        if fewest <= 0 {
            checks.invalid(&here("minDomains"), fewest, "must be greater than zero");
        }
        let when = text(constraint, "/whenUnsatisfiable");
        if when != "DoNotSchedule" {
            let told =
                format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
            checks.invalid(&here("minDomains"), fewest, &told);
        }
    }
    for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
        checks.maybe_one_of(&here(field), constraint.get(field), &["Ignore", "Honor"]);
    }
    if let Some(selector) = constraint.get("labelSelector") {
        checks.label_selector(&here("labelSelector"), selector);
    }
}
