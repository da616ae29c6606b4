//! Placement: snapshot in, bindings and per-machine reasons out; pure.
//!
//! A pod goes to the machine that passes every filter and scores best. Why the others did not is
//! data ([`Reason`]), so that status, events and `dhow why` tell the same story.

mod filter;
mod neighbours;
mod spread;
mod stay;

pub use stay::stay;

use neighbours::Neighbours;
use spread::Spread;

use dhow_fit::{Amounts, Usage, offered};
use dhow_objects::hash::stable;
use dhow_reason::{Code, Reason};
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A machine with what runs on it.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The node.
    pub node: Arc<Node>,
    /// What it has in all.
    offered: Amounts,
    /// What its pods take.
    usage: Usage,
    /// Its pods.
    pods: Vec<Arc<Pod>>,
}

impl Machine {
    /// A machine without pods.
    pub fn new(node: Arc<Node>) -> Self {
        Self { offered: offered(&node), node, usage: Usage::default(), pods: Vec::new() }
    }

    /// Adds a pod that is placed on the machine.
    pub fn add(&mut self, pod: &Arc<Pod>) {
        self.usage.add(&Usage::of(pod));
        self.pods.push(pod.clone());
    }

    fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    /// One of the node's labels.
    fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }
}

/// The labels of namespaces, which affinity between pods may select.
pub type Namespaces = HashMap<String, BTreeMap<String, String>>;

/// Whether the pods that are there decide where this one may go, so that each that comes may make
/// the difference.
pub fn depends_on_others(pod: &Pod) -> bool {
    neighbours::depends_on_others(pod) || spread::depends_on_others(pod)
}

/// Whether a node takes the pod of a daemon set, and whether one that is there may stay.
pub fn daemon(pod: &Pod, node: &Node) -> (bool, bool) {
    filter::daemon(pod, node)
}

/// Where a pod goes, or why nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// To this machine.
    Bind(String),
    /// Nowhere now; one cause per machine.
    Wait(Box<Reason>),
}

/// Decides for one pod. Equal scores go to the machine whose name hashes lowest with the pod's uid,
/// so that the same input gives the same placement, and pods still spread.
pub fn place(pod: &Pod, machines: &[Machine], namespaces: &Namespaces) -> Decision {
    let neighbours = Neighbours::of(pod, machines, namespaces);
    let spread = Spread::of(pod, machines);
    let asked = Usage::of(pod);
    let (mut candidates, mut refusals) = (Vec::new(), Vec::new());
    for machine in machines {
        let allowed = filter::check(pod, &asked, machine)
            .and_then(|()| spread.check(machine))
            .and_then(|()| neighbours.check(machine));
        match allowed {
            Err(reason) => refusals.push(*reason),
            Ok(()) => candidates.push(machine),
        }
    }
    let company = evened(candidates.iter().map(|machine| neighbours.preference(machine)));
    let crowd = evened(candidates.iter().map(|machine| -spread.crowd(machine)));
    let points = company.into_iter().zip(crowd).map(|(company, crowd)| company + crowd);
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let best = candidates.iter().zip(points).max_by_key(|(machine, points)| {
        let tie = stable(machine.name().bytes().chain(uid.bytes()));
        (score(pod, &asked, machine) + points, std::cmp::Reverse(tie))
    });
    if let Some((machine, _)) = best {
        return Decision::Bind(machine.name().to_owned());
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let mut reason = Reason::new(Code::Unschedulable, format!("pod {namespace}/{name}"))
        .with("machines", machines.len());
    reason.causes = refusals;
    Decision::Wait(Box::new(reason))
}

/// Puts values between 0 for the least and 1000 for the most; equal ones have no say.
fn evened(values: impl Iterator<Item = i64> + Clone) -> Vec<i64> {
    let (least, most) = (values.clone().min().unwrap_or(0), values.clone().max().unwrap_or(0));
    values.map(|value| (value - least) * 1000 / (most - least).max(1)).collect()
}

/// How much of a machine would stay free, in thousandths, plus what the pod prefers.
fn score(pod: &Pod, asked: &Usage, machine: &Machine) -> i64 {
    let free = |resource: &str| {
        let offered = machine.offered.get(resource).copied().unwrap_or(0);
        let left = offered
            .saturating_sub(machine.usage.amount(resource))
            .saturating_sub(asked.amount(resource));
        left.max(0).saturating_mul(1000) / offered.max(1)
    };
    (free("cpu") + free("memory")) / 2 + free("pods") + filter::preference(pod, &machine.node) * 10
}

/// The decision's text as `kubectl describe` shows it: `0/3 nodes are available: 1 Insufficient
/// cpu, 2 node(s) had untolerated taint(s).`
pub fn message(reason: &Reason) -> String {
    let evidence = |cause: &Reason, name: &str, value: &str| {
        cause.evidence.get(name).is_some_and(|found| found == value)
    };
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    for cause in &reason.causes {
        let named;
        let text = match cause.code {
            Code::InsufficientCpu => "Insufficient cpu",
            Code::InsufficientMemory => "Insufficient memory",
            Code::TooManyPods => "Too many pods",
            Code::NodeSelectorMismatch => "node(s) didn't match Pod's node affinity/selector",
            Code::UntoleratedTaint => "node(s) had untolerated taint(s)",
            Code::HostPortTaken => "node(s) didn't have free ports for the requested pod ports",
            Code::NodeNotReady => "node(s) were unschedulable",
            Code::PodAffinityUnmet => "node(s) didn't match pod affinity rules",
            Code::PodAntiAffinityUnmet if evidence(cause, "rule", "own") => {
                "node(s) didn't match pod anti-affinity rules"
            }
            Code::PodAntiAffinityUnmet => {
                "node(s) didn't satisfy existing pods anti-affinity rules"
            }
            Code::TopologySpreadUnmet if evidence(cause, "label", "missing") => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Code::TopologySpreadUnmet => "node(s) didn't match pod topology spread constraints",
            Code::InsufficientResource => {
                let name = cause.evidence.get("resource").map_or("resources", String::as_str);
                named = format!("Insufficient {name}");
                &named
            }
            _ => "node(s) were refused",
        };
        *counted.entry(text.to_owned()).or_default() += 1;
    }
    let machines = reason.evidence.get("machines").map_or("0", String::as_str);
    if counted.is_empty() {
        return format!("0/{machines} nodes are available: no nodes are registered.");
    }
    let mut told: Vec<String> = counted.iter().map(|(text, n)| format!("{n} {text}")).collect();
    told.sort();
    format!("0/{machines} nodes are available: {}.", told.join(", "))
}

#[cfg(test)]
mod tests;
