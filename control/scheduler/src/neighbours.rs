//! Which pods a pod wants near and which far, and which of them want it far; follows upstream's
//! plugin for affinity between pods.

use crate::filter::{Verdict, refuse};
use crate::{Machine, Namespaces};
use dhow_objects::selectors::LabelSelector;
use dhow_reason::Code;
use k8s_openapi::api::core::v1::{Pod, PodAffinity, PodAffinityTerm, PodAntiAffinity};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Written;
use serde_json::json;
use std::collections::{HashMap, HashSet};

/// A part of the platform: a topology key and a value that machines have for it.
type Domain = (String, String);

/// Which pods a selector of `pod` means, with the keys whose values are to be equal to the pod's own
/// or to differ from them. One that cannot be understood means none.
pub(crate) fn selector(
    pod: &Pod,
    written: Option<&Written>,
    equal: Option<&[String]>,
    unequal: Option<&[String]>,
) -> LabelSelector {
    let Some(written) = written else { return LabelSelector::nothing() };
    let mut written = json!(written);
    let own = pod.metadata.labels.as_ref();
    for (operator, keys) in [("In", equal), ("NotIn", unequal)] {
        for key in keys.into_iter().flatten() {
            if let Some(value) = own.and_then(|labels| labels.get(key)) {
                let more = json!({"key": key, "operator": operator, "values": [value]});
                match written["matchExpressions"].as_array_mut() {
                    Some(all) => all.push(more),
                    None => written["matchExpressions"] = json!([more]),
                }
            }
        }
    }
    LabelSelector::from_json(&written).unwrap_or_else(|_| LabelSelector::nothing())
}

/// Whether the selector means a pod, by its labels.
pub(crate) fn selects(selector: &LabelSelector, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.matches_with(|key| labels?.get(key).map(String::as_str))
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// One term of a pod's affinity.
struct Term {
    topology: String,
    pods: LabelSelector,
    /// Names of namespaces, and which others their labels select.
    namespaces: (Vec<String>, LabelSelector),
}

impl Term {
    /// A term of `owner`.
    fn new(owner: &Pod, term: &PodAffinityTerm) -> Self {
        let (equal, unequal) =
            (term.match_label_keys.as_deref(), term.mismatch_label_keys.as_deref());
        let mut names = term.namespaces.clone().unwrap_or_default();
        if names.is_empty() && term.namespace_selector.is_none() {
            names.push(namespace(owner).to_owned());
        }
        Self {
            topology: term.topology_key.clone(),
            pods: selector(owner, term.label_selector.as_ref(), equal, unequal),
            namespaces: (names, selector(owner, term.namespace_selector.as_ref(), None, None)),
        }
    }

    fn matches(&self, pod: &Pod, known: &Namespaces) -> bool {
        let (names, selected) = &self.namespaces;
        let home = namespace(pod);
        let labels = known.get(home);
        let seen = names.iter().any(|name| name == home)
            || selected.matches_with(|key| labels?.get(key).map(String::as_str));
        seen && selects(&self.pods, pod)
    }

    /// The part of the platform that a machine belongs to by this term.
    fn domain(&self, machine: &Machine) -> Option<Domain> {
        Some((self.topology.clone(), machine.label(&self.topology)?.to_owned()))
    }
}

fn near(pod: &Pod) -> Option<&PodAffinity> {
    pod.spec.as_ref()?.affinity.as_ref()?.pod_affinity.as_ref()
}

fn far(pod: &Pod) -> Option<&PodAntiAffinity> {
    pod.spec.as_ref()?.affinity.as_ref()?.pod_anti_affinity.as_ref()
}

/// The terms that must hold.
fn required(owner: &Pod, terms: Option<&Vec<PodAffinityTerm>>) -> Vec<Term> {
    terms.into_iter().flatten().map(|term| Term::new(owner, term)).collect()
}

fn required_far(owner: &Pod) -> Vec<Term> {
    let of = |far: &PodAntiAffinity| {
        required(owner, far.required_during_scheduling_ignored_during_execution.as_ref())
    };
    far(owner).map(of).unwrap_or_default()
}

/// Whether other pods decide where this one may go.
pub(crate) fn depends_on_others(pod: &Pod) -> bool {
    near(pod).is_some() || far(pod).is_some()
}

/// What the pods that are there mean to one that is to be placed.
#[derive(Default)]
pub(crate) struct Neighbours {
    near: Vec<Term>,
    /// Where pods stand that it must be near.
    liked: HashSet<Domain>,
    /// It may be the first of pods that must be near each other.
    first: bool,
    /// Where pods stand that it must be far from.
    disliked: HashSet<Domain>,
    /// Where pods stand that must be far from it.
    repelling: HashSet<Domain>,
    /// How much it would rather be near (or, below zero, far).
    preferred: HashMap<Domain, i64>,
}

impl Neighbours {
    /// Looks at all pods once.
    pub(crate) fn of(pod: &Pod, machines: &[Machine], known: &Namespaces) -> Self {
        let near_terms = near(pod)
            .and_then(|near| near.required_during_scheduling_ignored_during_execution.as_ref());
        let mut all = Self { near: required(pod, near_terms), ..Self::default() };
        let far_terms = required_far(pod);
        let preferred = preferred(pod);
        for machine in machines {
            for there in &machine.pods {
                let stands = |terms: &[Term], matched: &Pod| -> Vec<Domain> {
                    let terms = terms.iter().filter(|term| term.matches(matched, known));
                    terms.filter_map(|term| term.domain(machine)).collect()
                };
                if all.near.iter().all(|term| term.matches(there, known)) {
                    let domains = all.near.iter().filter_map(|term| term.domain(machine));
                    all.liked.extend(domains);
                }
                all.disliked.extend(stands(&far_terms, there));
                if far(there).is_some() {
                    all.repelling.extend(stands(&required_far(there), pod));
                }
                for (term, weight) in &preferred {
                    if term.matches(there, known)
                        && let Some(domain) = term.domain(machine)
                    {
                        *all.preferred.entry(domain).or_default() += weight;
                    }
                }
            }
        }
        all.first = all.liked.is_empty() && all.near.iter().all(|term| term.matches(pod, known));
        all
    }

    /// Whether the pods that are there allow a machine.
    pub(crate) fn check(&self, machine: &Machine) -> Verdict {
        let near = self.near.iter().all(|term| {
            term.domain(machine).is_some_and(|domain| self.first || self.liked.contains(&domain))
        });
        if !near {
            return Err(Box::new(refuse(Code::PodAffinityUnmet, machine)));
        }
        for (whose, domains) in [("own", &self.disliked), ("others", &self.repelling)] {
            let found =
                domains.iter().find(|(key, value)| machine.label(key) == Some(value.as_str()));
            if let Some((key, value)) = found {
                let refusal = refuse(Code::PodAntiAffinityUnmet, machine);
                return Err(Box::new(refusal.with("rule", whose).with(key, value)));
            }
        }
        Ok(())
    }

    /// How much the pod would rather be on a machine.
    pub(crate) fn preference(&self, machine: &Machine) -> i64 {
        let here = |(key, value): &Domain| machine.label(key) == Some(value.as_str());
        self.preferred.iter().filter(|(domain, _)| here(domain)).map(|(_, weight)| weight).sum()
    }
}

/// The terms that should hold, with their weights: those of anti-affinity count against a machine.
fn preferred(pod: &Pod) -> Vec<(Term, i64)> {
    let near =
        near(pod).and_then(|n| n.preferred_during_scheduling_ignored_during_execution.as_ref());
    let far =
        far(pod).and_then(|f| f.preferred_during_scheduling_ignored_during_execution.as_ref());
    let both = [(near, 1), (far, -1)];
    both.into_iter()
        .flat_map(|(terms, sign)| {
            terms.into_iter().flatten().map(move |weighted| {
                (Term::new(pod, &weighted.pod_affinity_term), sign * i64::from(weighted.weight))
            })
        })
        .collect()
}
