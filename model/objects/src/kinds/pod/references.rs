//! Rules of references to a pod's own fields and resources, in variables and in files.

use super::super::check::Checks;
use super::super::column::text;
use crate::names;
use crate::quantity::Quantity;
use serde_json::Value;

/// A `core/v1.ObjectFieldSelector`; `known` are the fields that need no key.
pub(super) fn field(checks: &mut Checks, at: &str, reference: &Value, known: &[&str]) {
    let path_at = format!("{at}.fieldPath");
    let path = text(reference, "/fieldPath");
    let key = path.strip_suffix("']").and_then(|path| path.split_once("['"));
    match (path, key) {
        ("", _) => checks.required(&path_at, ""),
        (_, Some(("metadata.labels", key))) => {
            checks.invalid_all(at, key, names::qualified(key));
        }
        (_, Some(("metadata.annotations", key))) => {
            checks.invalid_all(at, key, names::qualified(&key.to_lowercase()));
        }
        _ if known.contains(&path) => {}
        _ if FIELDS.contains(&path) => checks.not_supported(&path_at, path, known),
        _ => checks.invalid(
            &path_at,
            path,
            &format!("error converting fieldPath: field label not supported: {path}"),
        ),
    }
}

/// Every field that something may refer to.
const FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.nominatedNodeName",
    "status.podIP",
    "status.podIPs",
];

/// The resources that may be referred to.
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

const BYTES: &[&str] =
    &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// A `core/v1.ResourceFieldSelector`: a resource, and the unit that it is counted in.
pub(super) fn resource(checks: &mut Checks, at: &str, reference: &Value) {
    let resource_at = format!("{at}.resource");
    let resource = text(reference, "/resource");
    let huge = |kind: &str| resource.starts_with(&format!("{kind}.hugepages-"));
    let (units, told) = match resource {
        "" => return checks.required(&resource_at, ""),
        "limits.cpu" | "requests.cpu" => (&["1m", "1"][..], "1m and 1 are supported with the cpu"),
        "limits.memory" | "requests.memory" => (
            BYTES,
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory",
        ),
        name if RESOURCES.contains(&name) => (
            BYTES,
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage",
        ),
        _ if huge("limits") || huge("requests") => (
            BYTES,
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the hugepages",
        ),
        name => return checks.not_supported(&resource_at, name, RESOURCES),
    };
    let divisor = reference.get("divisor").and_then(|d| Quantity::from_json(d).ok());
    let Some(divisor) = divisor.filter(|d| !d.is_zero()) else { return };
    let same = |unit: &&str| Quantity::from_json(&Value::from(*unit)).is_ok_and(|u| u == divisor);
    if !units.iter().any(same) {
        let detail = format!("only divisor's values {told} resource");
        checks.invalid(&format!("{at}.divisor"), resource, &detail);
    }
}
