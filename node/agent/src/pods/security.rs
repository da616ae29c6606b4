//! A container's identity and rights: users, groups, capabilities, seccomp.

use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::BTreeSet;

/// All capabilities that Linux has.
pub const ALL_CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "SYSLOG",
    "WAKE_ALARM",
];

/// The result of merging the pod's and the container's security contexts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// User number; the image's user when absent.
    pub uid: Option<u32>,
    /// Group number.
    pub gid: Option<u32>,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Leave out the groups that the image has the user in.
    pub no_image_groups: bool,
    /// Refuse to run as root.
    pub must_not_be_root: bool,
    /// Capability names without `CAP_`.
    pub capabilities: Vec<String>,
    /// Forbid gaining privileges by exec.
    pub no_new_privileges: bool,
    /// Apply the default seccomp profile.
    pub seccomp: bool,
    /// All devices and capabilities.
    pub privileged: bool,
    /// Mount the root read-only.
    pub read_only: bool,
}

fn number(value: Option<i64>) -> Option<u32> {
    value.and_then(|v| u32::try_from(v).ok())
}

/// Merges the contexts of a pod and one of its containers.
///
/// # Errors
/// A text that names what is not implemented or contradicts itself.
pub fn identity(pod: &Pod, container: &Container) -> Result<Identity, String> {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged.unwrap_or(false);
    let profile = own.seccomp_profile.or(of_pod.seccomp_profile);
    let seccomp = match profile.as_ref().map(|p| p.type_.as_str()) {
        None | Some("RuntimeDefault") => !privileged,
        Some("Unconfined") => false,
        Some(other) => {
            return Err(format!(
                "seccomp profile type {other} is not implemented by this version of dhow"
            ));
        }
    };
    // What would keep a container apart, or is promised to it, is never left out in silence.
    let unknown = |what: &str| Err(format!("{what} is not implemented by this version of dhow"));
    if pod.spec.as_ref().and_then(|s| s.host_users) == Some(false) {
        return unknown("a user namespace (hostUsers: false)");
    }
    if pod.spec.as_ref().is_some_and(|s| s.resource_claims.iter().flatten().next().is_some()) {
        return unknown("the allocation of devices (resourceClaims)");
    }
    let armour = own.app_armor_profile.or(of_pod.app_armor_profile);
    if let Some(profile) = armour.filter(|profile| profile.type_ != "Unconfined") {
        return unknown(&format!("AppArmor profile type {}", profile.type_));
    }
    let mut groups: BTreeSet<u32> =
        of_pod.supplemental_groups.iter().flatten().filter_map(|g| number(Some(*g))).collect();
    groups.extend(number(of_pod.fs_group));
    let must_not_be_root = own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false);
    let uid = number(own.run_as_user.or(of_pod.run_as_user));
    if must_not_be_root && uid == Some(0) {
        return Err("container's runAsUser breaks non-root policy".into());
    }
    let (add, drop) = own.capabilities.map(|c| (c.add, c.drop)).unwrap_or_default();
    Ok(Identity {
        uid,
        gid: number(own.run_as_group.or(of_pod.run_as_group)),
        groups: groups.into_iter().collect(),
        no_image_groups: of_pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        must_not_be_root,
        capabilities: capabilities(privileged, &add.unwrap_or_default(), &drop.unwrap_or_default()),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        seccomp,
        privileged,
        read_only: own.read_only_root_filesystem.unwrap_or(false),
    })
}

fn capabilities(privileged: bool, add: &[String], drop: &[String]) -> Vec<String> {
    let plain = |name: &String| {
        let name = name.to_uppercase();
        name.strip_prefix("CAP_").map_or(name.clone(), str::to_owned)
    };
    let add: Vec<String> = add.iter().map(plain).collect();
    let drop: Vec<String> = drop.iter().map(plain).collect();
    let every = |list: &[String]| list.iter().any(|c| c == "ALL");
    let base: &[&str] = match (privileged || every(&add), every(&drop)) {
        (true, _) => &ALL_CAPABILITIES,
        (false, true) => &[],
        (false, false) => &dhow_runtime::DEFAULT_CAPABILITIES,
    };
    let mut set: BTreeSet<String> = base.iter().map(|c| (*c).to_owned()).collect();
    set.extend(add.into_iter().filter(|c| c != "ALL"));
    if !privileged {
        for name in &drop {
            set.remove(name);
        }
    }
    set.into_iter().collect()
}

/// The number of a signal by name (`SIGTERM`, `TERM`, `SIGRTMIN+3`) or number.
pub fn signal(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = short.strip_prefix("RTMIN") {
        return Some(34 + rest.strip_prefix('+').map_or(Some(0), |n| n.parse().ok())?);
    }
    if let Some(rest) = short.strip_prefix("RTMAX") {
        return Some(64 - rest.strip_prefix('-').map_or(Some(0), |n| n.parse().ok())?);
    }
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let index = NAMES.iter().position(|n| *n == short)?;
    i32::try_from(index + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(pod: serde_json::Value, own: serde_json::Value) -> Result<Identity, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}}))
        .unwrap();
        identity(&pod, &pod.spec.as_ref().unwrap().containers[0])
    }

    #[test]
    fn the_containers_context_wins_over_the_pods() {
        let found = merged(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 9, "supplementalGroups": [7]}),
            json!({"runAsUser": 5, "allowPrivilegeEscalation": false}),
        )
        .unwrap();
        assert_eq!((found.uid, found.gid, found.groups), (Some(5), Some(2), vec![7, 9]));
        assert!(found.no_new_privileges && found.seccomp && !found.no_image_groups);
        let strict = merged(json!({"supplementalGroupsPolicy": "Strict"}), json!({})).unwrap();
        assert!(strict.no_image_groups);
        assert_eq!(found.capabilities.len(), 14);
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let caps = |add: serde_json::Value, drop: serde_json::Value| {
            merged(json!({}), json!({"capabilities": {"add": add, "drop": drop}}))
                .unwrap()
                .capabilities
        };
        assert_eq!(caps(json!(["NET_ADMIN"]), json!(["ALL"])), ["NET_ADMIN"]);
        assert_eq!(caps(json!(["ALL"]), json!(["KILL"])).len(), 40);
        assert!(!caps(json!([]), json!(["CAP_CHOWN"])).contains(&"CHOWN".to_owned()));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(merged(json!({"runAsNonRoot": true}), json!({"runAsUser": 0})).is_err());
    }

    #[test]
    fn what_would_confine_a_container_and_is_not_implemented_is_refused() {
        assert!(merged(json!({}), json!({"seccompProfile": {"type": "Localhost"}})).is_err());
        let armour = |kind: &str| json!({"appArmorProfile": {"type": kind}});
        assert!(merged(armour("RuntimeDefault"), json!({})).is_err());
        assert!(merged(json!({}), armour("Localhost")).is_err());
        assert!(merged(armour("Localhost"), armour("Unconfined")).is_ok());
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {}, "spec": {"hostUsers": false, "containers": [{"name": "c"}]}}),
        )
        .unwrap();
        let refusal = identity(&pod, &pod.spec.as_ref().unwrap().containers[0]).unwrap_err();
        assert!(refusal.contains("hostUsers"), "{refusal}");
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "resourceClaims": [{"name": "gpu"}], "containers": [{"name": "c"}]}}))
        .unwrap();
        let refusal = identity(&pod, &pod.spec.as_ref().unwrap().containers[0]).unwrap_err();
        assert!(refusal.contains("resourceClaims"), "{refusal}");
    }

    #[test]
    fn signals_by_name_and_number() {
        for (name, number) in
            [("SIGTERM", 15), ("usr1", 10), ("9", 9), ("SIGRTMIN+3", 37), ("SYS", 31)]
        {
            assert_eq!(signal(name), Some(number), "{name}");
        }
        assert_eq!(signal("SIGNOPE"), None);
    }
}
