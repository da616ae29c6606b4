//! The kinds of role-based access control: who may do what.

use super::column::{AGE, Column, NAME, items, text};
use super::fill::{each, object_at, set};
use super::{BASE, Kind, NameRule};
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
