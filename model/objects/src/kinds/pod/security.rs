//! Rules of what pods and their containers may do, and as whom.

use super::super::check::Checks;
use super::super::column::{items, text};
use crate::names;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The `securityContext` of a container, which stands at `at`.
pub(super) fn container(checks: &mut Checks, at: &str, container: &Value, spec: &Value) {
    let Some(context) = container.get("securityContext") else { return };
    ids(checks, at, context, &["runAsUser", "runAsGroup"]);
    let flag = |field: &str| context.get(field).and_then(Value::as_bool);
    if flag("allowPrivilegeEscalation") == Some(false) && flag("privileged") == Some(true) {
        checks.invalid(
            at,
            context.clone(),
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        );
    }
    let added = items(context, "/capabilities/add");
    if flag("allowPrivilegeEscalation") == Some(false)
        && added.iter().any(|name| name == "CAP_SYS_ADMIN")
    {
        checks.invalid(
            at,
            context.clone(),
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
        );
    }
    if text(context, "/procMount") == "Unmasked" && spec.get("hostUsers") != Some(&json!(false)) {
        let detail = "`hostUsers` must be false to use `Unmasked`";
        checks.invalid(&format!("{at}.procMount"), "Unmasked", detail);
    }
    checks.maybe_one_of(
        &format!("{at}.procMount"),
        context.get("procMount"),
        &["Default", "Unmasked"],
    );
    profiles(checks, at, context);
}

/// What stands in the contexts of pods and of containers alike.
fn profiles(checks: &mut Checks, at: &str, context: &Value) {
    if let Some(profile) = context.get("seccompProfile") {
        seccomp(checks, &format!("{at}.seccompProfile"), profile);
    }
    if let Some(profile) = context.get("appArmorProfile") {
        let known = ["Localhost", "RuntimeDefault", "Unconfined"];
        checks.one_of(&format!("{at}.appArmorProfile.type"), profile.get("type"), &known);
    }
}

/// Numbers of users and groups.
fn ids(checks: &mut Checks, at: &str, context: &Value, fields: &[&str]) {
    for field in fields {
        let id = context.get(*field).and_then(Value::as_i64);
        if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
            let detail = "must be between 0 and 2147483647, inclusive";
            checks.invalid(&format!("{at}.{field}"), id, detail);
        }
    }
}

/// The `securityContext` of a pod, which stands at `at`.
pub(super) fn pod(checks: &mut Checks, at: &str, spec: &Value) {
    let Some(context) = spec.get("securityContext") else { return };
    profiles(checks, at, context);
    ids(checks, at, context, &["runAsUser", "runAsGroup", "fsGroup"]);
    for (field, known) in [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
        ("seLinuxChangePolicy", ["MountOption", "Recursive"]),
    ] {
        checks.maybe_one_of(&format!("{at}.{field}"), context.get(field), &known);
    }
    let mut seen = BTreeSet::new();
    for (i, sysctl) in items(context, "/sysctls").iter().enumerate() {
        let at = format!("{at}.sysctls[{i}].name");
        match text(sysctl, "/name") {
            "" => checks.required(&at, ""),
            name if !names::is_sysctl(name) => checks.invalid(
                &at,
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ),
            name if !seen.insert(name) => checks.duplicate(&at, name),
            _ => {}
        }
    }
}

/// A `core/v1.SeccompProfile`.
fn seccomp(checks: &mut Checks, at: &str, profile: &Value) {
    let file = text(profile, "/localhostProfile");
    match text(profile, "/type") {
        "Localhost" if file.is_empty() => checks.required(
            &format!("{at}.localhostProfile"),
            "must be set when seccomp type is Localhost",
        ),
        "RuntimeDefault" | "Unconfined" if !file.is_empty() => checks.invalid(
            &format!("{at}.localhostProfile"),
            file,
            "can only be set when seccomp type is Localhost",
        ),
        "" => checks.required(&format!("{at}.type"), "type is required when seccompProfile is set"),
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        other => checks.not_supported(
            &format!("{at}.type"),
            other,
            &["Localhost", "RuntimeDefault", "Unconfined"],
        ),
    }
}
