//! The filters: each says why a machine cannot take a pod.

use crate::Machine;
use dhow_fit::{Misfit, Usage, tolerated, tolerates, tolerations};
use dhow_reason::{Code, Reason};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};

pub(crate) type Verdict = Result<(), Box<Reason>>;

/// The effects of taints that keep a pod from a machine.
const HARD: [&str; 2] = ["NoSchedule", "NoExecute"];

/// Runs every filter for a pod that takes `asked`; the first refusal counts.
pub(crate) fn check(pod: &Pod, asked: &Usage, machine: &Machine) -> Verdict {
    told(dhow_fit::named(pod, &machine.node), machine)?;
    schedulable(pod, machine)?;
    taints(pod, machine)?;
    selector(pod, machine)?;
    told(dhow_fit::ports(asked, &machine.usage), machine)?;
    let shortages = dhow_fit::shortages(asked, &machine.usage, &machine.offered);
    told(shortages.into_iter().next().map_or(Ok(()), Err), machine)
}

/// Whether a machine takes a daemon's pod, and whether it lets one stay that is there. What it has
/// left does not count: daemons are asked for on every machine that fits.
pub(crate) fn daemon(pod: &Pod, node: &Node) -> (bool, bool) {
    if dhow_fit::named(pod, node).is_err() || dhow_fit::selected(pod, node).is_err() {
        return (false, false);
    }
    (tolerates(pod, node, &HARD).is_ok(), tolerates(pod, node, &["NoExecute"]).is_ok())
}

pub(crate) fn refuse(code: Code, machine: &Machine) -> Reason {
    Reason::new(code, object(machine))
}

fn object(machine: &Machine) -> String {
    format!("node {}", machine.name())
}

fn told(fits: Result<(), Misfit>, machine: &Machine) -> Verdict {
    fits.map_err(|misfit| Box::new(misfit.reason(object(machine))))
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

pub(crate) fn taints(pod: &Pod, machine: &Machine) -> Verdict {
    told(tolerates(pod, &machine.node, &HARD), machine)
}

pub(crate) fn selector(pod: &Pod, machine: &Machine) -> Verdict {
    told(dhow_fit::selected(pod, &machine.node), machine)
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
        .filter(|p| dhow_fit::matches(&p.preference, node))
        .map(|p| i64::from(p.weight))
        .sum()
}
