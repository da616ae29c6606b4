//! Roles and bindings that exist from the first start.
//!
//! A selection of `k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy`. Missing ones are made
//! at each start; present ones are left as they are.

use super::Rule;
use crate::State;
use crate::types::Result;
use dhow_objects::kinds;
use serde_json::{Value, json};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| (*w).to_owned()).collect()
}

fn on(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Rule {
    Rule {
        verbs: words(verbs),
        api_groups: words(groups),
        resources: words(resources),
        ..Rule::default()
    }
}

fn paths(urls: &[&str]) -> Rule {
    Rule { verbs: words(&["get"]), non_resource_urls: words(urls), ..Rule::default() }
}

fn view() -> Vec<Rule> {
    let core = &[
        "bindings",
        "configmaps",
        "endpoints",
        "events",
        "limitranges",
        "namespaces",
        "namespaces/status",
        "persistentvolumeclaims",
        "persistentvolumeclaims/status",
        "pods",
        "pods/log",
        "pods/status",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "replicationcontrollers/status",
        "resourcequotas",
        "resourcequotas/status",
        "serviceaccounts",
        "services",
        "services/status",
    ];
    vec![
        on(READ, &[""], core),
        on(READ, &["discovery.k8s.io"], &["endpointslices"]),
        on(READ, &["events.k8s.io"], &["events"]),
        on(
            READ,
            &["apps"],
            &[
                "controllerrevisions",
                "daemonsets",
                "daemonsets/status",
                "deployments",
                "deployments/scale",
                "deployments/status",
                "replicasets",
                "replicasets/scale",
                "replicasets/status",
                "statefulsets",
                "statefulsets/scale",
                "statefulsets/status",
            ],
        ),
        on(
            READ,
            &["autoscaling"],
            &["horizontalpodautoscalers", "horizontalpodautoscalers/status"],
        ),
        on(READ, &["batch"], &["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
        on(READ, &["policy"], &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
        on(READ, &["networking.k8s.io"], &["ingresses", "ingresses/status", "networkpolicies"]),
        on(READ, &["network.dhow.dev"], &["*"]),
    ]
}

fn edit() -> Vec<Rule> {
    let mut rules = view();
    rules.extend([
        on(
            READ,
            &[""],
            &[
                "pods/attach",
                "pods/exec",
                "pods/portforward",
                "pods/proxy",
                "secrets",
                "services/proxy",
            ],
        ),
        on(&["impersonate"], &[""], &["serviceaccounts"]),
        on(
            WRITE,
            &[""],
            &[
                "pods",
                "pods/attach",
                "pods/exec",
                "pods/portforward",
                "pods/proxy",
                "configmaps",
                "events",
                "persistentvolumeclaims",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "secrets",
                "serviceaccounts",
                "services",
                "services/proxy",
            ],
        ),
        on(&["create"], &[""], &["pods/eviction", "serviceaccounts/token"]),
        on(
            WRITE,
            &["apps"],
            &[
                "daemonsets",
                "deployments",
                "deployments/rollback",
                "deployments/scale",
                "replicasets",
                "replicasets/scale",
                "statefulsets",
                "statefulsets/scale",
            ],
        ),
        on(WRITE, &["autoscaling"], &["horizontalpodautoscalers"]),
        on(WRITE, &["batch"], &["cronjobs", "jobs"]),
        on(WRITE, &["policy"], &["poddisruptionbudgets"]),
        on(WRITE, &["networking.k8s.io"], &["ingresses", "networkpolicies"]),
        on(
            &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            &["coordination.k8s.io"],
            &["leases"],
        ),
        on(WRITE, &["network.dhow.dev"], &["*"]),
    ]);
    rules
}

fn admin() -> Vec<Rule> {
    let mut rules = edit();
    rules.extend([
        on(&["create"], &["authorization.k8s.io"], &["localsubjectaccessreviews"]),
        on(READ, &["rbac.authorization.k8s.io"], &["roles", "rolebindings"]),
        on(WRITE, &["rbac.authorization.k8s.io"], &["roles", "rolebindings"]),
    ]);
    rules
}

fn node() -> Vec<Rule> {
    vec![
        on(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
        on(
            &["create"],
            &["authorization.k8s.io"],
            &["localsubjectaccessreviews", "subjectaccessreviews"],
        ),
        on(
            READ,
            &[""],
            &[
                "services",
                "configmaps",
                "secrets",
                "persistentvolumeclaims",
                "persistentvolumes",
                "namespaces",
            ],
        ),
        on(
            &["create", "get", "list", "watch", "patch", "update", "delete"],
            &[""],
            &["nodes", "pods"],
        ),
        on(&["patch", "update"], &[""], &["nodes/status", "pods/status"]),
        on(&["create", "patch", "update"], &[""], &["events"]),
        on(&["create"], &[""], &["pods/eviction", "serviceaccounts/token"]),
        on(&["get"], &[""], &["endpoints"]),
        on(READ, &["discovery.k8s.io"], &["endpointslices"]),
        on(&["create", "delete", "get", "patch", "update"], &["coordination.k8s.io"], &["leases"]),
        on(&["create", "patch", "update"], &["events.k8s.io"], &["events"]),
    ]
}

fn discovery() -> Vec<Rule> {
    vec![paths(&[
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ])]
}

fn group(name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name})
}

impl State {
    /// Makes the roles and bindings that are missing.
    pub(crate) async fn ensure_roles(&self) -> Result<()> {
        let all = &["*"];
        let everything =
            Rule { verbs: words(all), non_resource_urls: words(all), ..Rule::default() };
        let reviews = on(
            &["create"],
            &["authorization.k8s.io"],
            &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
        );
        let whoami = on(&["create"], &["authentication.k8s.io"], &["selfsubjectreviews"]);
        let info = paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"]);
        let issuer = paths(&[
            "/.well-known/openid-configuration",
            "/.well-known/openid-configuration/",
            "/openid/v1/jwks",
            "/openid/v1/jwks/",
        ]);
        // The last column is the groups that the role is bound to from the start.
        let roles: [(&str, Vec<Rule>, &[&str]); 9] = [
            ("cluster-admin", vec![on(all, all, all), everything], &["system:masters"]),
            ("admin", admin(), &[]),
            ("edit", edit(), &[]),
            ("view", view(), &[]),
            ("system:discovery", discovery(), &["system:authenticated"]),
            ("system:basic-user", vec![reviews, whoami], &["system:authenticated"]),
            (
                "system:public-info-viewer",
                vec![info],
                &["system:authenticated", "system:unauthenticated"],
            ),
            ("system:service-account-issuer-discovery", vec![issuer], &["system:serviceaccounts"]),
            ("system:node", node(), &["system:nodes"]),
        ];
        for (name, rules, groups) in roles {
            let metadata = json!({
                "name": name,
                "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
                "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
            });
            let role = json!({"metadata": metadata, "rules": rules});
            self.ensure(&kinds::CLUSTER_ROLE, "", name, role).await?;
            if groups.is_empty() {
                continue;
            }
            let binding = json!({
                "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
                "subjects": groups.iter().map(|g| group(g)).collect::<Vec<_>>(),
            });
            self.ensure(&kinds::CLUSTER_ROLE_BINDING, "", name, binding).await?;
        }
        Ok(())
    }
}
