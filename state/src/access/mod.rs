//! Access rules: RBAC, evaluated live from the cache.
//!
//! Follows `k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac`. The rules are decoded once and again
//! only after a role or binding changed.

mod bootstrap;
mod escalation;

use crate::State;
use crate::types::{Result, User};
use dhow_objects::Status;
use dhow_objects::kinds::{self, Kind};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`...; for
    /// paths the method in lower case.
    pub verb: &'a str,
    /// API group, empty for the legacy group.
    pub group: &'a str,
    /// Plural resource name; empty for paths that are no resources.
    pub resource: &'a str,
    /// Subresource, may be empty.
    pub subresource: &'a str,
    /// Namespace, empty for cluster-wide requests.
    pub namespace: &'a str,
    /// Name, empty when the request names no object.
    pub name: &'a str,
    /// The path, for requests that are about no resource.
    pub path: &'a str,
}

/// One rule of a role (`rbac.authorization.k8s.io/v1` PolicyRule).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs, `*` for all.
    pub verbs: Vec<String>,
    /// API groups, `*` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources (`pods`, `pods/log`, `*/scale`), `*` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names of objects; empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths; a final `*` stands for any rest.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|s| s == "*" || s == wanted)
}

impl Rule {
    fn allows(&self, what: &Attributes<'_>) -> bool {
        if !has(&self.verbs, what.verb) {
            return false;
        }
        if what.resource.is_empty() {
            return self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => what.path.starts_with(prefix),
                None => url == what.path,
            });
        }
        has(&self.api_groups, what.group)
            && self.covers_resource(what.resource, what.subresource)
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|n| n == what.name))
    }

    fn covers_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|r| {
            if r == "*" {
                return true;
            }
            match r.split_once('/') {
                None => subresource.is_empty() && r == resource,
                Some((left, right)) => right == subresource && (left == resource || left == "*"),
            }
        })
    }
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Debug, Deserialize)]
struct RoleObject {
    metadata: Metadata,
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

#[derive(Debug, Deserialize)]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Debug, Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Binding {
    metadata: Metadata,
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
    role_ref: RoleRef,
}

impl Binding {
    fn means(&self, user: &User) -> bool {
        self.subjects.iter().flatten().any(|s| match s.kind.as_str() {
            "User" => s.name == "*" || s.name == user.name,
            "Group" => user.groups.contains(&s.name),
            "ServiceAccount" => {
                let namespace =
                    if s.namespace.is_empty() { &self.metadata.namespace } else { &s.namespace };
                user.name
                    .strip_prefix("system:serviceaccount:")
                    .and_then(|rest| rest.split_once(':'))
                    .is_some_and(|(n, name)| n == namespace && name == s.name)
            }
            _ => false,
        })
    }
}

/// All roles and bindings, decoded at one state of the cache.
#[derive(Debug, Default)]
struct Index {
    changed: u64,
    cluster_roles: HashMap<String, Vec<Rule>>,
    roles: HashMap<(String, String), Vec<Rule>>,
    cluster_bindings: Vec<Binding>,
    bindings: HashMap<String, Vec<Binding>>,
}

/// The newest index.
#[derive(Debug, Default)]
pub(crate) struct Access(Mutex<Option<Arc<Index>>>);

static KINDS: [&Kind; 4] =
    [&kinds::CLUSTER_ROLE, &kinds::ROLE, &kinds::CLUSTER_ROLE_BINDING, &kinds::ROLE_BINDING];

impl Index {
    fn rules(&self, binding: &Binding) -> &[Rule] {
        let RoleRef { kind, name } = &binding.role_ref;
        let found = match kind.as_str() {
            "ClusterRole" => self.cluster_roles.get(name),
            _ => self.roles.get(&(binding.metadata.namespace.clone(), name.clone())),
        };
        found.map_or(&[], Vec::as_slice)
    }

    /// Every rule that holds for somebody in a namespace (empty: cluster-wide rules only).
    fn each<'a>(&'a self, user: &'a User, namespace: &str) -> impl Iterator<Item = &'a Rule> {
        let local = self.bindings.get(namespace).map_or(&[][..], Vec::as_slice);
        self.cluster_bindings
            .iter()
            .chain(local)
            .filter(|b| b.means(user))
            .flat_map(|b| self.rules(b))
    }
}

impl State {
    fn access_index(&self) -> Arc<Index> {
        let newest = {
            let inner = self.shared.cache.read();
            KINDS.iter().map(|k| inner.kind(k).changed).max().unwrap_or(0)
        };
        let mut known = self.shared.access.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = known.as_ref().filter(|i| i.changed >= newest) {
            return index.clone();
        }
        let mut index = Index { changed: newest, ..Index::default() };
        let all = |kind| self.shared.cache.peek_all(kind, None);
        for object in all(&kinds::CLUSTER_ROLE) {
            if let Ok(role) = object.decode::<RoleObject>() {
                index.cluster_roles.insert(role.metadata.name, role.rules.unwrap_or_default());
            }
        }
        for object in all(&kinds::ROLE) {
            if let Ok(role) = object.decode::<RoleObject>() {
                let key = (role.metadata.namespace, role.metadata.name);
                index.roles.insert(key, role.rules.unwrap_or_default());
            }
        }
        for object in all(&kinds::CLUSTER_ROLE_BINDING) {
            index.cluster_bindings.extend(object.decode::<Binding>().ok());
        }
        for object in all(&kinds::ROLE_BINDING) {
            if let Ok(binding) = object.decode::<Binding>() {
                index.bindings.entry(object.namespace.clone()).or_default().push(binding);
            }
        }
        let index = Arc::new(index);
        *known = Some(index.clone());
        index
    }

    /// Whether `user` may do `what`.
    ///
    /// # Errors
    /// 403 with upstream's text when not.
    pub fn authorize(&self, user: &User, what: &Attributes<'_>) -> Result<()> {
        if user.groups.iter().any(|g| g == "system:masters")
            || self.access_index().each(user, what.namespace).any(|rule| rule.allows(what))
        {
            return Ok(());
        }
        Err(refusal(user, what))
    }

    /// The rules that hold for `user` in a namespace (`authorization/v1` SelfSubjectRulesReview).
    pub fn rules_of(&self, user: &User, namespace: &str) -> Vec<Rule> {
        if user.groups.iter().any(|g| g == "system:masters") {
            let all = || vec!["*".to_owned()];
            return vec![
                Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
                Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
            ];
        }
        self.access_index().each(user, namespace).cloned().collect()
    }
}

fn refusal(user: &User, what: &Attributes<'_>) -> Status {
    let Attributes { verb, group, resource, subresource, namespace, name, path } = what;
    if resource.is_empty() {
        let message = format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name);
        return Status::new(403, "Forbidden", message);
    }
    let full = if subresource.is_empty() {
        (*resource).to_owned()
    } else {
        format!("{resource}/{subresource}")
    };
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let why = format!(
        "User {:?} cannot {verb} resource {full:?} in API group {group:?} {place}",
        user.name
    );
    Status::forbidden(group, resource, name, &why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(resources: &[&str]) -> Rule {
        Rule {
            verbs: vec!["get".into()],
            api_groups: vec![String::new()],
            resources: resources.iter().map(|r| (*r).to_owned()).collect(),
            ..Rule::default()
        }
    }

    #[test]
    fn a_resource_does_not_cover_its_subresources() {
        let log = Attributes {
            verb: "get",
            resource: "pods",
            subresource: "log",
            ..Attributes::default()
        };
        assert!(!rule(&["pods"]).allows(&log));
        assert!(rule(&["pods/log"]).allows(&log));
        assert!(rule(&["*/log"]).allows(&log));
        assert!(rule(&["*"]).allows(&log));
    }

    #[test]
    fn a_path_may_end_in_a_star() {
        let rule = Rule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/api/*".into()],
            ..Rule::default()
        };
        let path = |path| Attributes { verb: "get", path, ..Attributes::default() };
        assert!(rule.allows(&path("/api/v1")));
        assert!(!rule.allows(&path("/apis")));
    }

    #[test]
    fn the_refusal_is_upstreams() {
        let user = User { name: "x".into(), ..User::default() };
        let what = Attributes {
            verb: "list",
            resource: "pods",
            namespace: "default",
            ..Attributes::default()
        };
        assert_eq!(
            refusal(&user, &what).message,
            "pods is forbidden: User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
    }
}
