//! Rules of containers: those of pods, of initialization, and ephemeral ones.

use super::super::check::Checks;
use super::super::column::{items, number, text};
use super::{references, restart, security};
use crate::names;
use serde_json::Value;
use std::collections::BTreeSet;

type Volumes<'a> = BTreeSet<&'a str>;

/// Every container of a pod spec.
pub(super) fn all(checks: &mut Checks, path: &str, spec: &Value, volumes: &Volumes) {
    let main = items(spec, "/containers");
    if main.is_empty() {
        checks.required(&format!("{path}.containers"), "");
    }
    let mut seen = BTreeSet::new();
    for (i, c) in main.iter().enumerate() {
        let at = format!("{path}.containers[{i}]");
        common(checks, &at, c, spec, volumes);
        unique(checks, &at, c, &mut seen);
        running(checks, &at, c, spec);
        restart::validate(checks, &at, c);
    }
    host_ports(checks, &format!("{path}.containers"), main);
    for (i, c) in items(spec, "/initContainers").iter().enumerate() {
        let at = format!("{path}.initContainers[{i}]");
        common(checks, &at, c, spec, volumes);
        unique(checks, &at, c, &mut seen);
        restart::validate(checks, &at, c);
        if text(c, "/restartPolicy") == "Always" {
            running(checks, &at, c, spec);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if c.get(field).is_some() {
                checks.forbidden(
                    &format!("{at}.{field}"),
                    "may not be set for init containers without restartPolicy=Always",
                );
            }
        }
    }
    for (i, c) in items(spec, "/ephemeralContainers").iter().enumerate() {
        let at = format!("{path}.ephemeralContainers[{i}]");
        common(checks, &at, c, spec, volumes);
        unique(checks, &at, c, &mut seen);
        let target = text(c, "/targetContainerName");
        let known = |list: &str| items(spec, list).iter().any(|c| text(c, "/name") == target);
        if !target.is_empty() && !known("/containers") && !known("/initContainers") {
            checks.not_found(&format!("{at}.targetContainerName"), target);
        }
        for field in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            if c.get(field).is_some() {
                let detail = "cannot be set for an Ephemeral Container";
                checks.forbidden(&format!("{at}.{field}"), detail);
            }
        }
        if c.get("resources").is_some_and(|r| r.as_object().is_none_or(|r| !r.is_empty())) {
            checks
                .forbidden(&format!("{at}.resources"), "cannot be set for an Ephemeral Container");
        }
        for (j, mount) in items(c, "/volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !text(mount, &format!("/{field}")).is_empty() {
                    let at = format!("{at}.volumeMounts[{j}].{field}");
                    checks.forbidden(&at, "cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}

fn unique<'a>(checks: &mut Checks, at: &str, container: &'a Value, seen: &mut BTreeSet<&'a str>) {
    let name = text(container, "/name");
    if !seen.insert(name) && !name.is_empty() {
        checks.duplicate(&format!("{at}.name"), name);
    }
}

/// Two containers cannot have the same port of the machine.
fn host_ports(checks: &mut Checks, path: &str, containers: &[Value]) {
    let mut seen = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in items(container, "/ports").iter().enumerate() {
            let host = number(port, "/hostPort");
            if host == 0 {
                continue;
            }
            let key = format!("{}/{}/{host}", text(port, "/protocol"), text(port, "/hostIP"));
            if !seen.insert(key.clone()) {
                checks.duplicate(&format!("{path}[{i}].ports[{j}].hostPort"), key);
            }
        }
    }
}

fn common(checks: &mut Checks, at: &str, container: &Value, spec: &Value, volumes: &Volumes) {
    match text(container, "/name") {
        "" => checks.required(&format!("{at}.name"), ""),
        name => checks.invalid_all(&format!("{at}.name"), name, names::dns_label(name)),
    }
    match text(container, "/image") {
        "" => checks.required(&format!("{at}.image"), ""),
        image if image.trim() != image => {
            let told = "must not have leading or trailing whitespace";
            checks.invalid(&format!("{at}.image"), image, told);
        }
        _ => {}
    }
    let mut resized = BTreeSet::new();
    for (i, policy) in items(container, "/resizePolicy").iter().enumerate() {
        let resource = text(policy, "/resourceName");
        if !resized.insert(resource) {
            checks.duplicate(&format!("{at}.resizePolicy[{i}]"), resource);
        }
        let at = |field: &str| format!("{at}.resizePolicy[{i}].{field}");
        checks.one_of(&at("resourceName"), policy.get("resourceName"), &["cpu", "memory"]);
        let known = ["NotRequired", "RestartContainer"];
        checks.one_of(&at("restartPolicy"), policy.get("restartPolicy"), &known);
    }
    checks.one_of(
        &format!("{at}.terminationMessagePolicy"),
        container.get("terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    ports(checks, &format!("{at}.ports"), container);
    env(checks, at, container);
    mounts(checks, &format!("{at}.volumeMounts"), container, volumes);
    checks.one_of(
        &format!("{at}.imagePullPolicy"),
        container.get("imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    if let Some(resources) = container.get("resources") {
        self::resources(checks, &format!("{at}.resources"), resources);
    }
    for (i, claim) in items(container, "/resources/claims").iter().enumerate() {
        let name = text(claim, "/name");
        if !items(spec, "/resourceClaims").iter().any(|claim| text(claim, "/name") == name) {
            checks.not_found(&format!("{at}.resources.claims[{i}]"), name);
        }
    }
    for (i, device) in items(container, "/volumeDevices").iter().enumerate() {
        let name = text(device, "/name");
        if !volumes.contains(name) {
            checks.not_found(&format!("{at}.volumeDevices[{i}].name"), name);
        }
    }
    security::container(checks, &format!("{at}.securityContext"), container, spec);
}

fn ports(checks: &mut Checks, path: &str, container: &Value) {
    let mut seen = BTreeSet::new();
    for (i, port) in items(container, "/ports").iter().enumerate() {
        let at = |field: &str| format!("{path}[{i}].{field}");
        let name = text(port, "/name");
        if !name.is_empty() {
            let wrong = names::port_name(name);
            if !wrong.is_empty() {
                checks.invalid_all(&at("name"), name, wrong);
            } else if !seen.insert(name) {
                checks.duplicate(&at("name"), name);
            }
        }
        match number(port, "/containerPort") {
            0 => checks.required(&at("containerPort"), ""),
            number => checks.port(&at("containerPort"), number),
        }
        match number(port, "/hostPort") {
            0 => {}
            number => checks.port(&at("hostPort"), number),
        }
        checks.one_of(&at("protocol"), port.get("protocol"), &["SCTP", "TCP", "UDP"]);
    }
}

/// What `fieldRef` of an environment variable may name.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn env(checks: &mut Checks, at: &str, container: &Value) {
    for (i, var) in items(container, "/env").iter().enumerate() {
        let here = |field: &str| format!("{at}.env[{i}].{field}");
        match text(var, "/name") {
            "" => checks.required(&here("name"), ""),
            name => checks.invalid_all(&here("name"), name, names::env_name(name)),
        }
        let Some(from) = var.get("valueFrom").and_then(Value::as_object) else { continue };
        match from.len() {
            0 => checks.invalid(&here("valueFrom"), "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"),
            _ if !text(var, "/value").is_empty() => checks.invalid(
                &here("valueFrom"),
                "",
                "may not be specified when `value` is not empty",
            ),
            1 => {}
            _ => checks.invalid(
                &here("valueFrom"),
                "",
                "may not have more than one field specified at a time",
            ),
        }
        for kind in ["configMapKeyRef", "secretKeyRef"] {
            let Some(source) = from.get(kind) else { continue };
            let name = text(source, "/name");
            checks.invalid_all(
                &here(&format!("valueFrom.{kind}.name")),
                name,
                names::dns_subdomain(name),
            );
            let at = here(&format!("valueFrom.{kind}.key"));
            match text(source, "/key") {
                "" => checks.required(&at, ""),
                key => checks.invalid_all(&at, key, names::config_key(key)),
            }
        }
        if let Some(resource) = from.get("resourceFieldRef") {
            references::resource(checks, &here("valueFrom.resourceFieldRef"), resource);
        }
        if let Some(field) = from.get("fieldRef") {
            references::field(checks, &here("valueFrom.fieldRef"), field, ENV_FIELDS);
        }
    }
    for (i, from) in items(container, "/envFrom").iter().enumerate() {
        let prefix = text(from, "/prefix");
        if !prefix.is_empty() {
            let at = format!("{at}.envFrom[{i}].prefix");
            checks.invalid_all(&at, prefix, names::env_name(prefix));
        }
        let sources: Vec<&str> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter(|kind| from.get(*kind).is_some())
            .collect();
        match sources.as_slice() {
            [] => checks.invalid(
                &format!("{at}.envFrom"),
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ),
            [kind] => {
                if text(&from[*kind], "/name").is_empty() {
                    checks.required(&format!("{at}.envFrom[{i}].{kind}.name"), "");
                }
            }
            _ => checks.invalid(
                &format!("{at}.envFrom"),
                "",
                "may not have more than one field specified at a time",
            ),
        }
    }
}

fn mounts(checks: &mut Checks, path: &str, container: &Value, volumes: &Volumes) {
    let mut seen = BTreeSet::new();
    for (i, mount) in items(container, "/volumeMounts").iter().enumerate() {
        let at = |field: &str| format!("{path}[{i}].{field}");
        let (name, target) = (text(mount, "/name"), text(mount, "/mountPath"));
        if name.is_empty() {
            checks.required(&at("name"), "");
        }
        if !volumes.contains(name) {
            checks.not_found(&at("name"), name);
        }
        if target.is_empty() {
            checks.required(&at("mountPath"), "");
        }
        if !seen.insert(target) {
            checks.invalid(&at("mountPath"), target, "must be unique");
        }
        sharing(checks, &at, mount, container);
        let sub = text(mount, "/subPath");
        if sub.starts_with('/') {
            checks.invalid(&format!("{path}.subPath"), sub, "must be a relative path");
        } else if sub.split('/').any(|part| part == "..") {
            checks.invalid(&format!("{path}.subPath"), sub, "must not contain '..'");
        }
        if !sub.is_empty() && !text(mount, "/subPathExpr").is_empty() {
            checks.invalid(
                &at("subPathExpr"),
                text(mount, "/subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            );
        }
    }
}

/// How what is mounted later, and what is mounted below, is seen through a mount.
fn sharing(checks: &mut Checks, at: &dyn Fn(&str) -> String, mount: &Value, container: &Value) {
    let privileged = container.pointer("/securityContext/privileged") == Some(&Value::Bool(true));
    let propagation = text(mount, "/mountPropagation");
    checks.maybe_one_of(
        &at("mountPropagation"),
        mount.get("mountPropagation"),
        &["Bidirectional", "HostToContainer", "None"],
    );
    if propagation == "Bidirectional" && !privileged {
        checks.forbidden(
            &at("mountPropagation"),
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
    let recursive = mount.get("recursiveReadOnly");
    let known = ["Disabled", "Enabled", "IfPossible"];
    checks.maybe_one_of(&at("recursiveReadOnly"), recursive, &known);
    if matches!(text(mount, "/recursiveReadOnly"), "Enabled" | "IfPossible") {
        let at = at("recursiveReadOnly");
        if mount.get("readOnly") != Some(&Value::Bool(true)) {
            checks.forbidden(&at, "may only be specified when readOnly is true");
        }
        if !matches!(propagation, "" | "None") {
            let detail = "may only be specified when mountPropagation is None or not specified";
            checks.forbidden(&at, detail);
        }
    }
}

/// Requests and limits.
pub(super) fn resources(checks: &mut Checks, path: &str, resources: &Value) {
    let empty = serde_json::Map::new();
    let map = |field: &str| resources.get(field).and_then(Value::as_object).unwrap_or(&empty);
    for kind in ["limits", "requests"] {
        for (name, amount) in map(kind) {
            let at = format!("{path}.{kind}[{name}]");
            resource_name(checks, &at, name);
            let Some(amount) = checks.quantity(&at, name, amount) else { continue };
            if kind == "limits" {
                continue;
            }
            let own = name.contains('/') || name.starts_with("hugepages-");
            let limit =
                map("limits").get(name).and_then(|l| crate::quantity::Quantity::from_json(l).ok());
            match limit {
                Some(limit) if own && amount != limit => checks.invalid(
                    &format!("{path}.requests"),
                    amount.to_string(),
                    &format!("must be equal to {name} limit of {limit}"),
                ),
                Some(limit) if amount > limit => checks.invalid(
                    &format!("{path}.requests"),
                    amount.to_string(),
                    &format!("must be less than or equal to {name} limit of {limit}"),
                ),
                None if own => checks.required(
                    &format!("{path}.limits"),
                    "Limit must be set for non overcommitable resources",
                ),
                _ => {}
            }
        }
    }
}

fn resource_name(checks: &mut Checks, at: &str, name: &str) {
    let wrong = names::qualified(name);
    if !wrong.is_empty() {
        checks.invalid_all(at, name, wrong);
    } else if !name.contains('/')
        && !matches!(name, "cpu" | "memory" | "ephemeral-storage")
        && !name.starts_with("hugepages-")
    {
        checks.invalid(at, name, "must be a standard resource type or fully qualified");
        checks.invalid(at, name, "must be a standard resource for containers");
    }
}

/// Probes and hooks of containers that run on.
fn running(checks: &mut Checks, at: &str, container: &Value, spec: &Value) {
    for hook in ["postStart", "preStop"] {
        if let Some(action) = container.pointer(&format!("/lifecycle/{hook}")) {
            let at = format!("{at}.lifecycle.{hook}");
            handler(checks, &at, action);
            let grace = number(spec, "/terminationGracePeriodSeconds");
            let seconds = number(action, "/sleep/seconds");
            if !(0..=grace).contains(&seconds) {
                let detail = format!(
                    "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                );
                checks.invalid(&format!("{at}.sleep"), seconds, &detail);
            }
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(kind) else { continue };
        let at = format!("{at}.{kind}");
        handler(checks, &at, probe);
        for field in [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ] {
            checks.not_negative(&format!("{at}.{field}"), probe.get(field));
        }
        let successes = number(probe, "/successThreshold");
        if kind != "readinessProbe" && successes != 1 {
            checks.invalid(&format!("{at}.successThreshold"), successes, "must be 1");
        }
        let grace = format!("{at}.terminationGracePeriodSeconds");
        match probe.get("terminationGracePeriodSeconds").and_then(Value::as_i64) {
            Some(seconds) if kind == "readinessProbe" => {
                checks.invalid(&grace, seconds, "must not be set for readinessProbes");
            }
            Some(seconds) if seconds <= 0 => {
                checks.invalid(&grace, seconds, "must be greater than 0");
            }
            _ => {}
        }
    }
}

fn handler(checks: &mut Checks, at: &str, handler: &Value) {
    let kinds = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let mut given = kinds.into_iter().filter(|k| handler.get(*k).is_some());
    let Some(kind) = given.next() else {
        checks.required(at, "must specify a handler type");
        return;
    };
    for extra in given {
        checks.forbidden(&format!("{at}.{extra}"), "may not specify more than 1 handler type");
    }
    let action = &handler[kind];
    let at = format!("{at}.{kind}");
    match kind {
        "exec" if items(action, "/command").is_empty() => {
            checks.required(&format!("{at}.command"), "");
        }
        "httpGet" => {
            if text(action, "/path").is_empty() {
                checks.required(&format!("{at}.path"), "");
            }
            checks.port_or_name(&format!("{at}.port"), action.get("port"));
            checks.one_of(&format!("{at}.scheme"), action.get("scheme"), &["HTTP", "HTTPS"]);
            for header in items(action, "/httpHeaders") {
                let name = text(header, "/name");
                checks.invalid_all(&format!("{at}.httpHeaders"), name, names::http_header(name));
            }
        }
        "tcpSocket" => checks.port_or_name(&format!("{at}.port"), action.get("port")),
        "grpc" => checks.port(&format!("{at}.port"), number(action, "/port")),
        _ => {}
    }
}
