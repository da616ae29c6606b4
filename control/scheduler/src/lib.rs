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

use dhow_objects::hash::stable;
use dhow_objects::quantity::Quantity;
use dhow_reason::{Code, Reason};
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec};
use std::collections::{BTreeMap, HashMap};
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
    /// Sum of the requests of everything else, by name.
    pub others: BTreeMap<String, i64>,
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
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
}

impl Machine {
    /// A machine without pods.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, usage: Usage::default(), pods: Vec::new() }
    }

    /// Adds a pod that is placed on the machine.
    pub fn add(&mut self, pod: &Arc<Pod>) {
        self.usage.add(pod);
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
pub fn daemon(pod: &Pod, node: &Arc<Node>) -> (bool, bool) {
    filter::daemon(pod, &Machine::new(node.clone()))
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

/// What a pod asks for of one resource: the sum over its containers, or its largest init container
/// if that is more, plus its overhead.
fn request(spec: &PodSpec, name: &str) -> i64 {
    let of = |c: &Container| {
        let resources = c.resources.as_ref();
        amount(resources.and_then(|r| r.requests.as_ref()), name).unwrap_or(0)
    };
    let always = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let sidecars: i64 = inits.iter().filter(always).map(of).sum();
    let main: i64 = spec.containers.iter().map(of).sum();
    let largest = inits.iter().filter(|c| !always(c)).map(of).max().unwrap_or(0);
    let overhead = amount(spec.overhead.as_ref(), name).unwrap_or(0);
    (main + sidecars).max(largest + sidecars) + overhead
}

/// What a pod asks for.
pub fn requests(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    Resources { cpu: request(spec, "cpu"), memory: request(spec, "memory"), pods: 1 }
}

/// What a pod asks for beside processor time and memory: disk, and what vendors name.
pub fn other_requests(pod: &Pod) -> BTreeMap<String, i64> {
    let Some(spec) = &pod.spec else { return BTreeMap::new() };
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let lists = containers.filter_map(|c| c.resources.as_ref()?.requests.as_ref());
    let names =
        lists.flat_map(|list| list.keys()).filter(|name| *name != "cpu" && *name != "memory");
    names.map(|name| (name.clone(), request(spec, name))).collect()
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

/// What a machine offers of one resource.
fn offers(node: &Node, name: &str) -> i64 {
    amount(node.status.as_ref().and_then(|s| s.allocatable.as_ref()), name).unwrap_or(0)
}

/// What a machine offers.
pub fn allocatable(node: &Node) -> Resources {
    let of = |name| offers(node, name);
    Resources { cpu: of("cpu"), memory: of("memory"), pods: of("pods") }
}

impl Usage {
    /// Adds a pod that is placed on the machine.
    pub fn add(&mut self, pod: &Pod) {
        let asked = requests(pod);
        self.requested.cpu += asked.cpu;
        self.requested.memory += asked.memory;
        self.requested.pods += 1;
        for (name, amount) in other_requests(pod) {
            *self.others.entry(name).or_default() += amount;
        }
        self.host_ports.extend(host_ports(pod));
    }
}

/// Decides for one pod. Equal scores go to the machine whose name hashes lowest with the pod's uid,
/// so that the same input gives the same placement, and pods still spread.
pub fn place(pod: &Pod, machines: &[Machine], namespaces: &Namespaces) -> Decision {
    let neighbours = Neighbours::of(pod, machines, namespaces);
    let spread = Spread::of(pod, machines);
    let (mut candidates, mut refusals) = (Vec::new(), Vec::new());
    for machine in machines {
        let allowed = filter::check(pod, machine)
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
        (score(pod, machine) + points, std::cmp::Reverse(tie))
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
