//! Placement: snapshot in, bindings and per-machine reasons out; pure.
//!
//! A pod goes to the machine that passes every filter and scores best. Why the others did not is
//! data ([`Reason`]), so that status, events and `dhow why` tell the same story.

mod filter;
mod stay;

pub use stay::stay;

use dhow_objects::hash::stable;
use dhow_objects::quantity::Quantity;
use dhow_reason::{Code, Reason};
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

/// Processor time in millicores and memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// Millicores.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Pods.
    pub pods: i64,
}

/// What all pods of a machine ask for, and the host ports that they take.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Sum of the requests.
    pub requested: Resources,
    /// `(protocol, host address, port)`.
    pub host_ports: Vec<(String, String, i32)>,
}

/// A machine with what runs on it.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The node.
    pub node: Arc<Node>,
    /// What its pods take.
    pub usage: Usage,
}

/// Whether a node takes the pod of a daemon set, and whether one that is there may stay.
pub fn daemon(pod: &Pod, node: &Arc<Node>) -> (bool, bool) {
    filter::daemon(pod, &Machine { node: node.clone(), usage: Usage::default() })
}

/// Where a pod goes, or why nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// To this machine.
    Bind(String),
    /// Nowhere now; one cause per machine.
    Wait(Box<Reason>),
}

fn amount(
    quantities: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
    name: &str,
) -> Option<i64> {
    let text = &quantities?.get(name)?.0;
    let parsed = Quantity::from_str(text).ok()?;
    Some(if name == "cpu" { parsed.milli_value() } else { parsed.value() })
}

/// What a pod asks for: the sum over its containers, or its largest init container if that is
/// more, plus its overhead.
pub fn requests(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let one = |name: &str| {
        let of = |c: &k8s_openapi::api::core::v1::Container| {
            let resources = c.resources.as_ref();
            amount(resources.and_then(|r| r.requests.as_ref()), name).unwrap_or(0)
        };
        let always = |c: &&k8s_openapi::api::core::v1::Container| {
            c.restart_policy.as_deref() == Some("Always")
        };
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        let sidecars: i64 = inits.iter().filter(always).map(of).sum();
        let main: i64 = spec.containers.iter().map(of).sum();
        let largest = inits.iter().filter(|c| !always(c)).map(of).max().unwrap_or(0);
        let overhead = amount(spec.overhead.as_ref(), name).unwrap_or(0);
        (main + sidecars).max(largest + sidecars) + overhead
    };
    Resources { cpu: one("cpu"), memory: one("memory"), pods: 1 }
}

/// The host ports that a pod takes.
pub fn host_ports(pod: &Pod) -> Vec<(String, String, i32)> {
    let containers = pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
    containers
        .iter()
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|n| *n > 0)?;
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((protocol, p.host_ip.clone().unwrap_or_default(), port))
        })
        .collect()
}

/// What a machine offers.
pub fn allocatable(node: &Node) -> Resources {
    let offered = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let of = |name| amount(offered, name).unwrap_or(0);
    Resources { cpu: of("cpu"), memory: of("memory"), pods: of("pods") }
}

impl Usage {
    /// Adds a pod that is placed on the machine.
    pub fn add(&mut self, pod: &Pod) {
        let asked = requests(pod);
        self.requested.cpu += asked.cpu;
        self.requested.memory += asked.memory;
        self.requested.pods += 1;
        self.host_ports.extend(host_ports(pod));
    }
}

/// Decides for one pod. Equal scores go to the machine whose name hashes lowest with the pod's uid,
/// so that the same input gives the same placement, and pods still spread.
pub fn place(pod: &Pod, machines: &[Machine]) -> Decision {
    let mut best: Option<(i64, u64, &str)> = None;
    let mut refusals = Vec::new();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    for machine in machines {
        let name = machine.node.metadata.name.as_deref().unwrap_or_default();
        match filter::check(pod, machine) {
            Err(reason) => refusals.push(*reason),
            Ok(()) => {
                let tie = stable(name.bytes().chain(uid.bytes()));
                let candidate = (score(pod, machine), tie, name);
                if best.is_none_or(|(points, hash, _)| (candidate.0, hash) > (points, candidate.1))
                {
                    best = Some(candidate);
                }
            }
        }
    }
    if let Some((_, _, name)) = best {
        return Decision::Bind(name.to_owned());
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let mut reason = Reason::new(Code::Unschedulable, format!("pod {namespace}/{name}"))
        .with("machines", machines.len());
    reason.causes = refusals;
    Decision::Wait(Box::new(reason))
}

/// How much of a machine would stay free, in thousandths, plus what the pod prefers.
fn score(pod: &Pod, machine: &Machine) -> i64 {
    let offered = allocatable(&machine.node);
    let asked = requests(pod);
    let free = |offered: i64, used: i64, asked: i64| {
        if offered <= 0 { 0 } else { (offered - used - asked).max(0) * 1000 / offered }
    };
    let used = machine.usage.requested;
    let room = (free(offered.cpu, used.cpu, asked.cpu)
        + free(offered.memory, used.memory, asked.memory))
        / 2;
    let spread = free(offered.pods, used.pods, 1);
    room + spread + filter::preference(pod, &machine.node) * 10
}

/// The decision's text as `kubectl describe` shows it: `0/3 nodes are available: 1 Insufficient
/// cpu, 2 node(s) had untolerated taint(s).`
pub fn message(reason: &Reason) -> String {
    let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
    for cause in &reason.causes {
        let text = match cause.code {
            Code::InsufficientCpu => "Insufficient cpu",
            Code::InsufficientMemory => "Insufficient memory",
            Code::TooManyPods => "Too many pods",
            Code::NodeSelectorMismatch => "node(s) didn't match Pod's node affinity/selector",
            Code::UntoleratedTaint => "node(s) had untolerated taint(s)",
            Code::HostPortTaken => "node(s) didn't have free ports for the requested pod ports",
            Code::NodeNotReady => "node(s) were unschedulable",
            _ => "node(s) were refused",
        };
        *counted.entry(text).or_default() += 1;
    }
    let machines = reason.evidence.get("machines").map_or("0", String::as_str);
    if counted.is_empty() {
        return format!("0/{machines} nodes are available: no nodes are registered.");
    }
    let told: Vec<String> = counted.iter().map(|(text, n)| format!("{n} {text}")).collect();
    format!("0/{machines} nodes are available: {}.", told.join(", "))
}

#[cfg(test)]
mod tests;
