//! Rules of pods and pod templates.

use super::super::check::{Checks, NEGATIVE};
use super::super::column::{items, text};
use super::{container, level, placement, security, volumes};
use crate::names;
use crate::status::StatusCause;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Rules of a pod.
pub(super) fn pod(new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let empty = json!({});
    let new_spec = new.get("spec").unwrap_or(&empty);
    whole(&mut checks, new, new_spec);
    match old {
        None if !items(new_spec, "/ephemeralContainers").is_empty() => {
            checks.forbidden("spec.ephemeralContainers", "cannot be set on create");
        }
        None => {}
        Some(old) => update(&mut checks, new_spec, old.get("spec").unwrap_or(&empty)),
    }
    checks.causes()
}

/// Rules of a pod as it stands, however it came to it.
pub(super) fn whole(checks: &mut Checks, new: &Value, new_spec: &Value) {
    spec(checks, "spec", new_spec);
    checks.not_negative(
        "spec.terminationGracePeriodSeconds",
        new_spec.get("terminationGracePeriodSeconds"),
    );
    if let Some(cost) = crate::meta::annotation(new, "controller.kubernetes.io/pod-deletion-cost")
        && cost.parse::<i32>().is_err()
    {
        let path = "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]";
        checks.invalid(path, cost, "must be a 32bit integer");
    }
}

/// Rules of a pod template at `spec.template`.
pub(in super::super) fn template(checks: &mut Checks, template: Option<&Value>) {
    let empty = json!({});
    let template = template.unwrap_or(&empty);
    checks.labels("spec.template.labels", template.pointer("/metadata/labels"));
    checks.annotations(
        "spec.template.annotations",
        template.pointer("/metadata/annotations"),
        256 * 1024,
    );
    let pod_spec = template.get("spec").unwrap_or(&empty);
    spec(checks, "spec.template.spec", pod_spec);
    if !items(pod_spec, "/ephemeralContainers").is_empty() {
        checks.forbidden(
            "spec.template.spec.ephemeralContainers",
            "ephemeral containers not allowed in pod template",
        );
    }
    let policy = text(pod_spec, "/restartPolicy");
    if policy != "Always" {
        checks.not_supported("spec.template.spec.restartPolicy", policy, &["Always"]);
    }
    if pod_spec.get("activeDeadlineSeconds").is_some() {
        checks.forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        );
    }
}

fn spec(checks: &mut Checks, path: &str, spec: &Value) {
    let at = |field: &str| format!("{path}.{field}");
    let volumes = volumes::all(checks, &at("volumes"), spec);
    container::all(checks, path, spec, &volumes);
    level::validate(checks, path, spec, container::resources);
    checks.one_of(
        &at("restartPolicy"),
        spec.get("restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    checks.one_of(
        &at("dnsPolicy"),
        spec.get("dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    dns(checks, path, spec);
    checks.labels(&at("nodeSelector"), spec.get("nodeSelector"));
    let named = |checks: &mut Checks, field: &str, rule: fn(&str) -> Vec<String>| {
        let name = spec.get(field).and_then(Value::as_str).unwrap_or_default();
        if !name.is_empty() {
            checks.invalid_all(&at(field), name, rule(name));
        }
    };
    named(checks, "serviceAccountName", names::dns_subdomain);
    named(checks, "nodeName", names::dns_subdomain);
    named(checks, "hostname", names::dns_label);
    named(checks, "subdomain", names::dns_label);
    named(checks, "priorityClassName", names::dns_subdomain);
    named(checks, "runtimeClassName", names::dns_subdomain);
    if let Some(seconds) = spec.get("activeDeadlineSeconds").and_then(Value::as_i64)
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        checks.invalid(
            &at("activeDeadlineSeconds"),
            seconds,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    tolerations(checks, &at("tolerations"), spec);
    security::pod(checks, &at("securityContext"), spec);
    for (i, alias) in items(spec, "/hostAliases").iter().enumerate() {
        checks.address(&at(&format!("hostAliases[{i}].ip")), text(alias, "/ip"));
        for (j, name) in items(alias, "/hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            let path = at(&format!("hostAliases[{i}].hostnames[{j}]"));
            checks.invalid_all(&path, name, names::dns_subdomain(name));
        }
    }
    for (i, gate) in items(spec, "/readinessGates").iter().enumerate() {
        let kind = text(gate, "/conditionType");
        let path = at(&format!("readinessGates[{i}].conditionType"));
        checks.invalid_all(&path, kind, names::qualified(kind));
    }
    let mut gates = BTreeSet::new();
    for (i, gate) in items(spec, "/schedulingGates").iter().enumerate() {
        let name = text(gate, "/name");
        let path = at(&format!("schedulingGates[{i}]"));
        checks.invalid_all(&path, name, names::qualified(name));
        if !gates.insert(name) {
            checks.duplicate(&path, name);
        }
    }
    if let Some(os) = spec.get("os") {
        checks.one_of(&at("os.name"), os.get("name"), &["linux", "windows"]);
    }
    checks.maybe_one_of(
        &at("preemptionPolicy"),
        spec.get("preemptionPolicy"),
        &["Never", "PreemptLowerPriority"],
    );
    let is = |field: &str| spec.get(field).and_then(Value::as_bool) == Some(true);
    if is("shareProcessNamespace") && is("hostPID") {
        checks.invalid(
            &at("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    placement::all(checks, path, spec);
}

/// What a resolver takes in: at most so many servers, search domains and bytes of the latter.
const NAME_SERVERS: usize = 3;
const SEARCH_DOMAINS: usize = 32;
const SEARCH_BYTES: usize = 2048;

fn dns(checks: &mut Checks, path: &str, spec: &Value) {
    let at = |field: &str| format!("{path}.dnsConfig{field}");
    let servers = items(spec, "/dnsConfig/nameservers");
    if text(spec, "/dnsPolicy") == "None" {
        if spec.get("dnsConfig").is_none() {
            checks.required(&at(""), "must provide `dnsConfig` when `dnsPolicy` is None");
        } else if servers.is_empty() {
            checks.required(
                &at(".nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
        }
    }
    if servers.len() > NAME_SERVERS {
        let detail = format!("must not have more than {NAME_SERVERS} nameservers");
        checks.invalid(&at(".nameservers"), servers.to_vec(), &detail);
    }
    for (i, server) in servers.iter().enumerate() {
        checks.address(&at(&format!(".nameservers[{i}]")), server.as_str().unwrap_or_default());
    }
    let searches: Vec<&str> =
        items(spec, "/dnsConfig/searches").iter().filter_map(Value::as_str).collect();
    if searches.len() > SEARCH_DOMAINS {
        let detail = format!("must not have more than {SEARCH_DOMAINS} search paths");
        checks.invalid(&at(".searches"), json!(searches), &detail);
    }
    if searches.join(" ").len() > SEARCH_BYTES {
        let detail = format!(
            "must not have more than {SEARCH_BYTES} characters (including spaces) in the search list"
        );
        checks.invalid(&at(".searches"), json!(searches), &detail);
    }
    for (i, domain) in searches.iter().enumerate() {
        // The root alone is a search domain too; underscores are as common as they are wrong.
        let plain = domain.strip_suffix('.').unwrap_or(domain).replace('_', "-");
        if *domain != "." {
            let wrong = names::dns_subdomain(&plain);
            checks.invalid_all(&at(&format!(".searches[{i}]")), domain, wrong);
        }
    }
    for (i, option) in items(spec, "/dnsConfig/options").iter().enumerate() {
        if text(option, "/name").is_empty() {
            checks.required(&at(&format!(".options[{i}]")), "must not be empty");
        }
    }
}

fn tolerations(checks: &mut Checks, path: &str, spec: &Value) {
    for (i, toleration) in items(spec, "/tolerations").iter().enumerate() {
        let at = |field: &str| format!("{path}[{i}].{field}");
        let (key, operator) = (text(toleration, "/key"), text(toleration, "/operator"));
        let (value, effect) = (text(toleration, "/value"), text(toleration, "/effect"));
        if key.is_empty() && operator != "Exists" {
            checks.invalid(&at("operator"), operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"");
        } else if !key.is_empty() {
            checks.invalid_all(&at("key"), key, names::qualified(key));
        }
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            checks.invalid(&at("effect"), effect, detail);
        }
        match operator {
            "" | "Equal" => {
                let wrong = names::label_value(value);
                if !wrong.is_empty() {
                    checks.invalid(&at("operator"), value, &wrong.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                checks.invalid(&at("operator"), value, detail);
            }
            "Exists" => {}
            other => checks.not_supported(&at("operator"), other, &["Equal", "Exists"]),
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        checks.maybe_one_of(&at("effect"), toleration.get("effect"), &effects);
    }
}

/// What may change in a pod that exists: images, the deadline (downwards), more tolerations, fewer
/// scheduling gates.
fn update(checks: &mut Checks, new: &Value, old: &Value) {
    for list in ["containers", "initContainers"] {
        let pointer = format!("/{list}");
        if items(new, &pointer).len() != items(old, &pointer).len() {
            checks
                .forbidden(&format!("spec.{list}"), "pod updates may not add or remove containers");
            return;
        }
    }
    let deadline = |spec: &Value| spec.get("activeDeadlineSeconds").and_then(Value::as_i64);
    match (deadline(new), deadline(old)) {
        (Some(n), _) if n < 0 => checks.invalid("spec.activeDeadlineSeconds", n, NEGATIVE),
        (Some(n), Some(o)) if o < n => checks.invalid(
            "spec.activeDeadlineSeconds",
            n,
            "must be less than or equal to previous value",
        ),
        (None, Some(_)) => checks.invalid(
            "spec.activeDeadlineSeconds",
            Value::Null,
            "must not update from a positive integer to nil value",
        ),
        _ => {}
    }
    let without_seconds = |t: &Value| {
        let mut t = t.clone();
        if let Some(t) = t.as_object_mut() {
            t.remove("tolerationSeconds");
        }
        t
    };
    let kept: Vec<Value> = items(new, "/tolerations").iter().map(without_seconds).collect();
    if items(old, "/tolerations").iter().any(|t| !kept.contains(&without_seconds(t))) {
        checks.forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
    for gate in items(new, "/schedulingGates") {
        if !items(old, "/schedulingGates").contains(gate) {
            checks.forbidden(
                "spec.schedulingGates",
                &format!(
                    "only deletion is allowed, but found new scheduling gate '{}'",
                    text(gate, "/name")
                ),
            );
        }
    }
    let mut same = new.clone();
    for list in ["containers", "initContainers"] {
        let old_containers = items(old, &format!("/{list}"));
        let new_containers = same.get_mut(list).and_then(Value::as_array_mut);
        for (c, o) in new_containers.into_iter().flatten().zip(old_containers) {
            c["image"] = o["image"].clone();
        }
    }
    let mut fields = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    let gated = !items(old, "/schedulingGates").is_empty();
    if gated {
        fields.push("nodeSelector");
    }
    let grace = |spec: &Value| spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace(new) == Some(1) && grace(old).is_some_and(|g| g < 0) {
        fields.push("terminationGracePeriodSeconds");
    }
    if let Some(same) = same.as_object_mut() {
        for field in fields {
            match old.get(field) {
                Some(value) => same.insert(field.to_owned(), value.clone()),
                None => same.remove(field),
            };
        }
    }
    if same != *old {
        let mut changed = Vec::new();
        differences("spec", &same, old, &mut changed);
        checks.forbidden(
            "spec",
            &format!(
                "pod updates may not change fields other than {UPDATABLE}\n{}",
                changed.join("\n")
            ),
        );
    }
}

/// Lists what differs, one line a field.
pub(super) fn differences(path: &str, new: &Value, old: &Value, out: &mut Vec<String>) {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
            for key in keys {
                let null = Value::Null;
                let (n, o) = (new.get(key).unwrap_or(&null), old.get(key).unwrap_or(&null));
                differences(&format!("{path}.{key}"), n, o, out);
            }
        }
        (Value::Array(new), Value::Array(old)) if new.len() == old.len() => {
            for (i, (n, o)) in new.iter().zip(old).enumerate() {
                differences(&format!("{path}[{i}]"), n, o, out);
            }
        }
        (new, old) if new != old => out.push(format!("  {path}: {old} -> {new}")),
        _ => {}
    }
}
