//! The filters: each says why a machine cannot take a pod.

use crate::{Machine, allocatable, host_ports, offers, other_requests, requests};
use dhow_reason::{Code, Reason};
use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};

pub(crate) type Verdict = Result<(), Box<Reason>>;

/// Runs every filter; the first refusal counts.
pub(crate) fn check(pod: &Pod, machine: &Machine) -> Verdict {
    named(pod, machine)?;
    schedulable(pod, machine)?;
    taints(pod, machine)?;
    selector(pod, machine)?;
    ports(pod, machine)?;
    fit(pod, machine)
}

/// Whether a machine takes a daemon's pod, and whether it lets one stay that is there. What it has
/// left does not count: daemons are asked for on every machine that fits.
pub(crate) fn daemon(pod: &Pod, machine: &Machine) -> (bool, bool) {
    if named(pod, machine).is_err() || selector(pod, machine).is_err() {
        return (false, false);
    }
    let taints = machine.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let expels = |effect: &str| {
        let mut all = taints.iter().filter(|t| t.effect == effect);
        all.any(|taint| !tolerations(pod).iter().any(|t| tolerated(t, taint)))
    };
    (!expels("NoSchedule") && !expels("NoExecute"), !expels("NoExecute"))
}

fn object(machine: &Machine) -> String {
    format!("node {}", machine.node.metadata.name.as_deref().unwrap_or_default())
}

pub(crate) fn refuse(code: Code, machine: &Machine) -> Reason {
    Reason::new(code, object(machine))
}

/// A pod that names its machine goes nowhere else.
fn named(pod: &Pod, machine: &Machine) -> Verdict {
    match pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty()) {
        Some(wanted) if machine.node.metadata.name.as_deref() != Some(wanted) => {
            Err(Box::new(refuse(Code::NodeSelectorMismatch, machine).with("wanted", wanted)))
        }
        _ => Ok(()),
    }
}

fn schedulable(pod: &Pod, machine: &Machine) -> Verdict {
    let cordoned = machine.node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
    let tolerates = || {
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        tolerations(pod).iter().any(|t| tolerated(t, &taint))
    };
    if cordoned && !tolerates() {
        return Err(Box::new(refuse(Code::NodeNotReady, machine).with("cordoned", true)));
    }
    Ok(())
}

pub(crate) fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

pub(crate) fn tolerated(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => key.is_empty() || key == taint.key,
        _ => {
            key == taint.key
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
    }
}

pub(crate) fn taints(pod: &Pod, machine: &Machine) -> Verdict {
    let taints = machine.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let hard = |t: &&Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
    match taints
        .iter()
        .filter(hard)
        .find(|taint| !tolerations(pod).iter().any(|t| tolerated(t, taint)))
    {
        Some(taint) => {
            Err(Box::new(refuse(Code::UntoleratedTaint, machine).with("taint", &taint.key)))
        }
        None => Ok(()),
    }
}

pub(crate) fn selector(pod: &Pod, machine: &Machine) -> Verdict {
    let labels = machine.node.metadata.labels.as_ref();
    let spec = pod.spec.as_ref();
    for (key, value) in spec.and_then(|s| s.node_selector.as_ref()).into_iter().flatten() {
        if labels.and_then(|l| l.get(key)) != Some(value) {
            return Err(Box::new(refuse(Code::NodeSelectorMismatch, machine).with(key, value)));
        }
    }
    let required = spec.and_then(|s| {
        s.affinity
            .as_ref()?
            .node_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    match required {
        Some(required) if !required.node_selector_terms.iter().any(|t| term(t, &machine.node)) => {
            Err(Box::new(refuse(Code::NodeSelectorMismatch, machine).with("affinity", "required")))
        }
        _ => Ok(()),
    }
}

/// Whether a node satisfies a selector term. An empty term matches nothing.
fn term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key)).cloned();
    let field = |key: &str| (key == "metadata.name").then(|| node.metadata.name.clone()).flatten();
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|e| requirement(e, label(&e.key)))
        && fields.iter().all(|e| requirement(e, field(&e.key)))
}

fn requirement(rule: &NodeSelectorRequirement, found: Option<String>) -> bool {
    let values = rule.values.as_deref().unwrap_or_default();
    let number = |text: Option<&String>| text.and_then(|t| t.parse::<i64>().ok());
    match rule.operator.as_str() {
        "In" => found.is_some_and(|v| values.contains(&v)),
        "NotIn" => found.is_none_or(|v| !values.contains(&v)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => {
            matches!((number(found.as_ref()), number(values.first())), (Some(a), Some(b)) if a > b)
        }
        "Lt" => {
            matches!((number(found.as_ref()), number(values.first())), (Some(a), Some(b)) if a < b)
        }
        _ => false,
    }
}

/// The sum of the weights of the preferred terms that a node satisfies.
pub(crate) fn preference(pod: &Pod, node: &Node) -> i64 {
    let preferred = pod.spec.as_ref().and_then(|s| {
        s.affinity
            .as_ref()?
            .node_affinity
            .as_ref()?
            .preferred_during_scheduling_ignored_during_execution
            .as_ref()
    });
    preferred
        .into_iter()
        .flatten()
        .filter(|p| term(&p.preference, node))
        .map(|p| i64::from(p.weight))
        .sum()
}

fn ports(pod: &Pod, machine: &Machine) -> Verdict {
    let any = |address: &str| address.is_empty() || address == "0.0.0.0" || address == "::";
    for (protocol, address, port) in host_ports(pod) {
        let taken = machine.usage.host_ports.iter().any(|(p, a, n)| {
            *p == protocol && *n == port && (*a == address || any(a) || any(&address))
        });
        if taken {
            return Err(Box::new(refuse(Code::HostPortTaken, machine).with("port", port)));
        }
    }
    Ok(())
}

fn fit(pod: &Pod, machine: &Machine) -> Verdict {
    let offered = allocatable(&machine.node);
    let used = machine.usage.requested;
    let asked = requests(pod);
    if used.pods + 1 > offered.pods {
        return Err(Box::new(refuse(Code::TooManyPods, machine).with("allowed", offered.pods)));
    }
    let short = |asked: i64, used: i64, offered: i64| asked > 0 && asked + used > offered;
    if short(asked.cpu, used.cpu, offered.cpu) {
        let free = (offered.cpu - used.cpu).max(0);
        return Err(Box::new(
            refuse(Code::InsufficientCpu, machine)
                .with("requested", format!("{}m", asked.cpu))
                .with("free", format!("{free}m")),
        ));
    }
    if short(asked.memory, used.memory, offered.memory) {
        let free = (offered.memory - used.memory).max(0);
        return Err(Box::new(
            refuse(Code::InsufficientMemory, machine)
                .with("requested", asked.memory)
                .with("free", free),
        ));
    }
    for (name, asked) in other_requests(pod) {
        let offered = offers(&machine.node, &name);
        let used = machine.usage.others.get(&name).copied().unwrap_or(0);
        if short(asked, used, offered) {
            return Err(Box::new(
                refuse(Code::InsufficientResource, machine)
                    .with("resource", name)
                    .with("requested", asked)
                    .with("free", (offered - used).max(0)),
            ));
        }
    }
    Ok(())
}
