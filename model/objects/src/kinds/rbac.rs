//! The kinds of role-based access control: who may do what.

use super::check::Checks;
use super::column::{AGE, Column, NAME, items, text};
use super::fill::{each, object_at, set};
use super::{BASE, Kind, NameRule};
use crate::status::StatusCause;
use crate::{meta, names};
use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";

const CREATED_AT: Column = Column::text("Created At", "When the object was created.", |v, _| {
    json!(text(v, "/metadata/creationTimestamp"))
});

/// `rbac.authorization.k8s.io/v1 Role`.
pub static ROLE: Kind = Kind {
    group: GROUP,
    kind: "Role",
    plural: "roles",
    singular: "role",
    storage: "rbac.authorization.k8s.io/roles",
    name_rule: NameRule::PathSegment,
    columns: &[NAME, CREATED_AT],
    validate: validate_role,
    create_on_update: true,
    ..BASE
};

/// `rbac.authorization.k8s.io/v1 ClusterRole`.
pub static CLUSTER_ROLE: Kind = Kind {
    group: GROUP,
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    namespaced: false,
    storage: "rbac.authorization.k8s.io/clusterroles",
    name_rule: NameRule::PathSegment,
    columns: &[NAME, CREATED_AT],
    validate: validate_role,
    create_on_update: true,
    ..BASE
};

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    Column::text("Role", "The role that is granted.", |v, _| {
        json!(format!("{}/{}", text(v, "/roleRef/kind"), text(v, "/roleRef/name")))
    }),
    AGE,
    Column::text("Users", "Users in the binding.", |v, _| subjects(v, "User")).wide(),
    Column::text("Groups", "Groups in the binding.", |v, _| subjects(v, "Group")).wide(),
    Column::text("ServiceAccounts", "ServiceAccounts in the binding.", |v, _| {
        subjects(v, "ServiceAccount")
    })
    .wide(),
];

/// `rbac.authorization.k8s.io/v1 RoleBinding`.
pub static ROLE_BINDING: Kind = Kind {
    group: GROUP,
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    storage: "rbac.authorization.k8s.io/rolebindings",
    name_rule: NameRule::PathSegment,
    columns: BINDING_COLUMNS,
    default: default_binding,
    validate: validate_binding,
    create_on_update: true,
    ..BASE
};

/// `rbac.authorization.k8s.io/v1 ClusterRoleBinding`.
pub static CLUSTER_ROLE_BINDING: Kind = Kind {
    group: GROUP,
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    namespaced: false,
    storage: "rbac.authorization.k8s.io/clusterrolebindings",
    name_rule: NameRule::PathSegment,
    columns: BINDING_COLUMNS,
    default: default_binding,
    validate: validate_binding,
    create_on_update: true,
    ..BASE
};

fn subjects(binding: &Value, kind: &str) -> Value {
    let all: Vec<String> = items(binding, "/subjects")
        .iter()
        .filter(|s| text(s, "/kind") == kind)
        .map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", text(s, "/namespace"), text(s, "/name")),
            _ => text(s, "/name").to_owned(),
        })
        .collect();
    json!(all.join(", "))
}

fn default_binding(binding: &mut Value) {
    if let Some(role) = object_at(binding, &["roleRef"]) {
        set(role, "apiGroup", json!(GROUP));
    }
    let Some(binding) = binding.as_object_mut() else { return };
    for subject in each(binding, "subjects") {
        if matches!(subject.get("kind").and_then(Value::as_str), Some("User" | "Group")) {
            set(subject, "apiGroup", json!(GROUP));
        }
    }
}

fn validate_role(new: &Value, _: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let namespaced = !meta::namespace(new).is_empty();
    for (i, rule) in items(new, "/rules").iter().enumerate() {
        let at = |field: &str| format!("rules[{i}].{field}");
        if items(rule, "/verbs").is_empty() {
            checks.required(&at("verbs"), "verbs must contain at least one value");
        }
        let urls = items(rule, "/nonResourceURLs");
        if !urls.is_empty() {
            let fields = ["apiGroups", "resources", "resourceNames"];
            if namespaced {
                checks.invalid(
                    &at("nonResourceURLs"),
                    urls,
                    "namespaced rules cannot apply to non-resource URLs",
                );
            } else if fields.iter().any(|f| rule.get(*f).is_some()) {
                checks.invalid(
                    &at("nonResourceURLs"),
                    urls,
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if items(rule, "/apiGroups").is_empty() {
            checks.required(&at("apiGroups"), "resource rules must supply at least one api group");
        }
        if items(rule, "/resources").is_empty() {
            checks.required(&at("resources"), "resource rules must supply at least one resource");
        }
    }
    checks.causes()
}

fn validate_binding(new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let namespaced = !meta::namespace(new).is_empty();
    checks.one_of("roleRef.apiGroup", new.pointer("/roleRef/apiGroup"), &[GROUP]);
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    checks.one_of("roleRef.kind", new.pointer("/roleRef/kind"), kinds);
    match text(new, "/roleRef/name") {
        "" => checks.required("roleRef.name", ""),
        name => checks.invalid_all("roleRef.name", name, names::path_segment(name)),
    }
    for (i, subject) in items(new, "/subjects").iter().enumerate() {
        let at = |field: &str| format!("subjects[{i}].{field}");
        let (name, group) = (text(subject, "/name"), text(subject, "/apiGroup"));
        if name.is_empty() {
            checks.required(&at("name"), "");
        }
        match text(subject, "/kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    checks.invalid_all(&at("name"), name, names::dns_subdomain(name));
                }
                if !group.is_empty() {
                    checks.not_supported(&at("apiGroup"), group, &[""]);
                }
                if text(subject, "/namespace").is_empty() {
                    checks.required(&at("namespace"), "");
                }
            }
            "User" | "Group" if group != GROUP => {
                checks.not_supported(&at("apiGroup"), group, &[GROUP]);
            }
            "User" | "Group" => {}
            other => {
                checks.not_supported(&at("kind"), other, &["ServiceAccount", "User", "Group"]);
            }
        }
    }
    if let Some(old) = old
        && old.get("roleRef") != new.get("roleRef")
    {
        let role = new.get("roleRef").cloned().unwrap_or_default();
        checks.invalid("roleRef", role, "cannot change roleRef");
    }
    checks.causes()
}
