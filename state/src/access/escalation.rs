//! Nobody grants more than they have: roles and bindings are checked against the writer's own rules.
//!
//! Follows `k8s.io/kubernetes/pkg/registry/rbac/*/policybased` and `k8s.io/component-helpers/auth/rbac/validation`:
//! the verbs `escalate` (on roles) and `bind` (on the role that is bound) lift the check.

use super::{Attributes, RoleRef, Rule};
use crate::State;
use crate::types::{Actor, Result};
use dhow_objects::Status;
use dhow_objects::kinds::{self, Kind};
use serde::Deserialize;
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";

fn is_any(kind: &'static Kind, of: [&'static Kind; 2]) -> bool {
    of.iter().any(|k| std::ptr::eq(kind, *k))
}

/// Cuts a rule into rules of one verb on one thing each.
fn cut(rule: &Rule) -> Vec<Rule> {
    let one = |word: &String| vec![word.clone()];
    let mut parts = Vec::new();
    for verb in &rule.verbs {
        for url in &rule.non_resource_urls {
            let urls = one(url);
            parts.push(Rule { verbs: one(verb), non_resource_urls: urls, ..Rule::default() });
        }
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let part = Rule {
                    verbs: one(verb),
                    api_groups: one(group),
                    resources: one(resource),
                    ..Rule::default()
                };
                if rule.resource_names.is_empty() {
                    parts.push(part);
                    continue;
                }
                for name in &rule.resource_names {
                    parts.push(Rule { resource_names: one(name), ..part.clone() });
                }
            }
        }
    }
    parts
}

/// Whether one rule allows all that a part, as [`cut`] makes them, allows.
fn covers(rule: &Rule, part: &Rule) -> bool {
    let within = |have: &[String], want: &[String]| {
        want.iter().all(|w| have.iter().any(|h| h == "*" || h == w))
    };
    if !within(&rule.verbs, &part.verbs) {
        return false;
    }
    if let Some(url) = part.non_resource_urls.first() {
        return rule.non_resource_urls.iter().any(|have| {
            have == url || have.strip_suffix('*').is_some_and(|prefix| url.starts_with(prefix))
        });
    }
    // `*/log` stands for the subresource of every resource.
    let resource = |want: &String| {
        let any = want.split_once('/').map(|(_, sub)| format!("*/{sub}"));
        rule.resources.iter().any(|have| have == "*" || have == want || Some(have) == any.as_ref())
    };
    within(&rule.api_groups, &part.api_groups)
        && part.resources.iter().all(resource)
        && (rule.resource_names.is_empty()
            || (!part.resource_names.is_empty()
                && part.resource_names.iter().all(|n| rule.resource_names.contains(n))))
}

/// A rule as upstream prints it.
fn shown(rule: &Rule) -> String {
    let fields = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.resource_names),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("Verbs", &rule.verbs),
    ];
    let fields = fields.iter().filter(|(_, list)| !list.is_empty());
    let fields: Vec<String> = fields.map(|(name, list)| format!("{name}:{list:?}")).collect();
    format!("{{{}}}", fields.join(", "))
}

fn rules_in(role: &Value) -> Vec<Rule> {
    Vec::<Rule>::deserialize(&role["rules"]).unwrap_or_default()
}

impl State {
    /// Refuses a role or a binding that would give more than its writer has.
    ///
    /// # Errors
    /// 403 that lists what the writer lacks.
    pub(crate) fn may_grant(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<()> {
        let same = |field: &str| old.is_some_and(|old| old[field] == new[field]);
        let allowed = |verb: &str, resource: &str, name: &str| {
            let what = Attributes {
                verb,
                group: GROUP,
                resource,
                namespace,
                name,
                ..Attributes::default()
            };
            self.authorize(&actor.user, &what).is_ok()
        };
        let granted = if is_any(kind, [&kinds::ROLE, &kinds::CLUSTER_ROLE]) {
            if same("rules") || allowed("escalate", kind.plural, name) {
                return Ok(());
            }
            rules_in(new)
        } else if is_any(kind, [&kinds::ROLE_BINDING, &kinds::CLUSTER_ROLE_BINDING]) {
            let Ok(role) = RoleRef::deserialize(&new["roleRef"]) else { return Ok(()) };
            let (role_kind, within) = match role.kind.as_str() {
                "ClusterRole" => (&kinds::CLUSTER_ROLE, ""),
                _ => (&kinds::ROLE, namespace),
            };
            if (same("roleRef") && same("subjects"))
                || allowed("bind", role_kind.plural, &role.name)
            {
                return Ok(());
            }
            match self.shared.cache.peek(role_kind, within, &role.name) {
                Some(found) => rules_in(found.value()),
                // What it would grant one day, nobody knows.
                None => return Err(Status::not_found(GROUP, role_kind.plural, &role.name)),
            }
        } else {
            return Ok(());
        };
        let own = self.rules_of(&actor.user, namespace);
        let lacking =
            granted.iter().flat_map(cut).filter(|part| !own.iter().any(|o| covers(o, part)));
        let lacking: Vec<String> = lacking.map(|part| shown(&part)).collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let groups: Vec<String> = actor.user.groups.iter().map(|g| format!("{g:?}")).collect();
        let why = format!(
            "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            actor.user.name,
            groups.join(" "),
            lacking.join("\n")
        );
        Err(Status::forbidden(kind.group, kind.plural, name, &why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], resources: &[&str], names: &[&str]) -> Rule {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect();
        Rule {
            verbs: words(verbs),
            api_groups: vec![String::new()],
            resources: words(resources),
            resource_names: words(names),
            ..Rule::default()
        }
    }

    fn all_covered(have: &Rule, want: &Rule) -> bool {
        cut(want).iter().all(|part| covers(have, part))
    }

    #[test]
    fn less_is_covered_and_more_is_not() {
        let have = rule(&["get", "list"], &["pods", "pods/log"], &[]);
        assert!(all_covered(&have, &rule(&["get"], &["pods"], &[])));
        assert!(all_covered(&have, &rule(&["list"], &["pods/log"], &["web"])));
        assert!(!all_covered(&have, &rule(&["get", "delete"], &["pods"], &[])));
        assert!(!all_covered(&have, &rule(&["*"], &["pods"], &[])));
        assert!(!all_covered(
            &rule(&["get"], &["pods"], &["web"]),
            &rule(&["get"], &["pods"], &[])
        ));
        assert!(all_covered(&rule(&["*"], &["*/log"], &[]), &rule(&["get"], &["pods/log"], &[])));
    }

    #[test]
    fn a_rule_is_printed_as_upstream_prints_it() {
        assert_eq!(
            shown(&rule(&["get"], &["secrets"], &[])),
            r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#
        );
    }
}
