//! How evenly pods are spread over parts of the platform; follows upstream's plugin for topology
//! spread constraints.

use crate::Machine;
use crate::filter::{self, Verdict, refuse};
use crate::neighbours::{selector, selects};
use dhow_reason::Code;
use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use std::collections::BTreeMap;

/// One constraint, and how many pods there are in each part.
struct Constraint {
    topology: String,
    max_skew: i64,
    /// Whether the pod that is to be placed counts itself.
    own: i64,
    counts: BTreeMap<String, i64>,
    min_domains: usize,
}

impl Constraint {
    /// The fewest pods in a part; none while there are fewer parts than there have to be.
    fn fewest(&self) -> i64 {
        if self.counts.len() < self.min_domains {
            return 0;
        }
        self.counts.values().copied().min().unwrap_or(0)
    }

    fn here(&self, machine: &Machine) -> Option<i64> {
        let value = machine.label(&self.topology)?;
        Some(self.counts.get(value).copied().unwrap_or(0))
    }
}

/// A pod's constraints.
pub(crate) struct Spread {
    /// Those that must hold.
    hard: Vec<Constraint>,
    /// Those that should.
    soft: Vec<Constraint>,
}

fn constraints(pod: &Pod) -> &[TopologySpreadConstraint] {
    let constraints = pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref());
    constraints.unwrap_or_default()
}

/// Whether other pods decide where this one may go.
pub(crate) fn depends_on_others(pod: &Pod) -> bool {
    !constraints(pod).is_empty()
}

impl Spread {
    /// Counts the pods that are there.
    pub(crate) fn of(pod: &Pod, machines: &[Machine]) -> Self {
        let counted = |must: bool| {
            let all = constraints(pod);
            let chosen: Vec<_> =
                all.iter().filter(|c| (c.when_unsatisfiable == "DoNotSchedule") == must).collect();
            let complete = |machine: &&Machine| {
                chosen.iter().all(|c| machine.label(&c.topology_key).is_some())
            };
            let machines: Vec<&Machine> = machines.iter().filter(complete).collect();
            chosen.iter().map(|constraint| count(pod, constraint, &machines)).collect()
        };
        Self { hard: counted(true), soft: counted(false) }
    }

    /// Whether the pod may go to a machine.
    pub(crate) fn check(&self, machine: &Machine) -> Verdict {
        for constraint in &self.hard {
            let refusal = || {
                refuse(Code::TopologySpreadUnmet, machine).with("topology", &constraint.topology)
            };
            let Some(here) = constraint.here(machine) else {
                return Err(Box::new(refusal().with("label", "missing")));
            };
            let skew = here + constraint.own - constraint.fewest();
            if skew > constraint.max_skew {
                let allowed = constraint.max_skew;
                return Err(Box::new(refusal().with("skew", skew).with("allowed", allowed)));
            }
        }
        Ok(())
    }

    /// How many pods are near a machine already that the pod would rather be away from.
    pub(crate) fn crowd(&self, machine: &Machine) -> i64 {
        self.soft.iter().filter_map(|constraint| constraint.here(machine)).sum()
    }
}

/// Counts the pods that a constraint means on the machines that it counts.
fn count(pod: &Pod, constraint: &TopologySpreadConstraint, machines: &[&Machine]) -> Constraint {
    let meant = selector(
        pod,
        constraint.label_selector.as_ref(),
        constraint.match_label_keys.as_deref(),
        None,
    );
    let honored = |policy: Option<&String>, otherwise: &str| {
        policy.map_or(otherwise, String::as_str) == "Honor"
    };
    let by_affinity = honored(constraint.node_affinity_policy.as_ref(), "Honor");
    let by_taints = honored(constraint.node_taints_policy.as_ref(), "Ignore");
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for machine in machines {
        let counts_here = (!by_affinity || filter::selector(pod, machine).is_ok())
            && (!by_taints || filter::taints(pod, machine).is_ok());
        let Some(value) = machine.label(&constraint.topology_key).filter(|_| counts_here) else {
            continue;
        };
        let stays = |there: &Pod| there.metadata.deletion_timestamp.is_none();
        let here = machine.pods.iter().filter(|there| {
            there.metadata.namespace == pod.metadata.namespace
                && stays(there)
                && selects(&meant, there)
        });
        *counts.entry(value.to_owned()).or_default() += i64::try_from(here.count()).unwrap_or(0);
    }
    Constraint {
        topology: constraint.topology_key.clone(),
        max_skew: i64::from(constraint.max_skew),
        own: i64::from(selects(&meant, pod)),
        counts,
        min_domains: usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1),
    }
}
