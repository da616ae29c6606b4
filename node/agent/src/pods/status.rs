//! What the API is told about a pod. Pure: pod and observation in, `PodStatus` out.
//!
//! Phases, conditions, reasons and messages are upstream's (`pkg/kubelet/kubelet_pods.go`,
//! `pkg/kubelet/status/generate.go`).

use super::diff::{Ending, differs, ending, restarts};
use super::observe::{Decision, Hook, Instance, Observed, Role, Step, Track, containers};
use super::resources;
use crate::time::{At, time};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use std::time::Duration;

/// The status of a pod. `before` is the status that was computed last (or that the store had),
/// from which transition times and the conditions of others are kept.
pub fn status(pod: &Pod, seen: &Observed, before: &PodStatus, host_ip: &str, now: At) -> PodStatus {
    let all = containers(pod);
    let end = ending(pod, seen);
    let initialized = initialized(pod, seen);
    let settled = before.phase.as_deref().filter(|p| matches!(*p, "Succeeded" | "Failed"));
    let refused = match &seen.verdict {
        Some(verdict) => verdict.decision == Decision::Refused,
        None => settled.is_some() && before.container_statuses.is_none(),
    };
    let mut init = Vec::new();
    let mut main = Vec::new();
    let mut ephemeral = Vec::new();
    // Of a pod that was refused there are no containers to tell of.
    for (role, container) in all.iter().filter(|_| !refused) {
        let empty = Track::default();
        let track = seen.track(&container.name).unwrap_or(&empty);
        let held = seen.held.is_some();
        let context = Context { pod, role: *role, ending: end, initialized, held, now };
        let entry = container_status(&context, container, track);
        match role {
            Role::Init | Role::Sidecar => init.push(entry),
            Role::Main => main.push(entry),
            Role::Ephemeral => ephemeral.push(entry),
        }
    }
    let mut phase = phase(seen, &init, &main, initialized, end);
    let (mut reason, mut message) = (None, None);
    if let Some(settled) = settled {
        // A final phase never changes again.
        phase = settled;
        reason.clone_from(&before.reason);
        message.clone_from(&before.message);
    } else if let Some(verdict) = seen.verdict.as_ref().filter(|_| !seen.busy()) {
        // Not before: who sees a final phase gives what the pod has of the machine to others.
        phase = "Failed";
        reason = Some(verdict.reason.clone().into_owned());
        message = Some(verdict.message.clone());
    }
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let ip = match seen.sandbox.ready().and_then(|n| n.ip) {
        Some(ip) => Some(ip.to_string()),
        None if host_network && !host_ip.is_empty() => Some(host_ip.to_owned()),
        // The address is kept for people to see after the pod has ended.
        None => before.pod_ip.clone(),
    };
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        host_ip: (!host_ip.is_empty()).then(|| host_ip.to_owned()),
        host_ips: (!host_ip.is_empty()).then(|| vec![HostIP { ip: host_ip.to_owned() }]),
        pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip: ip,
        start_time: before.start_time.clone().or_else(|| Some(time(seen.start_time.wall))),
        qos_class: Some(resources::qos(pod).to_owned()),
        observed_generation: pod.metadata.generation,
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: (!main.is_empty()).then_some(main),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        ..before.clone()
    };
    status.conditions = Some(conditions(pod, seen, &status, before, initialized, now));
    status
}

/// Whether all init containers have done their part.
fn initialized(pod: &Pod, seen: &Observed) -> bool {
    let all = containers(pod);
    let has_run = |name: &str| seen.track(name).is_some_and(|t| t.last().is_some());
    if all.iter().any(|(role, c)| *role == Role::Main && has_run(&c.name)) {
        return true;
    }
    all.iter().all(|(role, c)| {
        let last = seen.track(&c.name).and_then(Track::last);
        match role {
            Role::Init => last.and_then(|i| i.ended.as_ref()).is_some_and(|e| e.code == 0),
            Role::Sidecar => last.is_some_and(Instance::started),
            Role::Main | Role::Ephemeral => true,
        }
    })
}

struct Context<'a> {
    pod: &'a Pod,
    role: Role,
    ending: Option<Ending>,
    initialized: bool,
    /// A resize waits.
    held: bool,
    now: At,
}

fn container_status(
    context: &Context<'_>,
    container: &Container,
    track: &Track,
) -> ContainerStatus {
    let image = container.image.clone().unwrap_or_default();
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image,
        resources: container.resources.clone().filter(|r| *r != Default::default()),
        ..ContainerStatus::default()
    };
    let Some(last) = track.last() else {
        let waiting_for_init = !context.initialized && context.role == Role::Main;
        let pending = if waiting_for_init || has_inits(context) {
            "PodInitializing"
        } else {
            "ContainerCreating"
        };
        status.started = Some(false);
        status.state = Some(match &track.failure {
            Some(failure) => waiting(&failure.reason, &failure.message),
            None => waiting(pending, ""),
        });
        return status;
    };
    status.image_id.clone_from(&last.image_id);
    status.restart_count = i32::try_from(last.attempt).unwrap_or(i32::MAX);
    if !last.id.is_empty() {
        status.container_id = Some(format!("dhow://{}", last.id));
    }
    status.last_state = track.previous().and_then(terminated);
    if last.running() {
        if let Some(has) = &last.resources {
            // What it has, which a resize may still be about to change.
            status.resources = Some(has.clone()).filter(|r| *r != Default::default());
        }
        let granted = if context.held { last.resources.as_ref() } else { None };
        let granted = granted.or(container.resources.as_ref());
        status.allocated_resources = granted.and_then(|r| r.requests.clone());
        status.started = Some(last.started());
        status.ready = last.ready();
        if last.hook == Hook::Done || context.ending.is_some() {
            let started_at = Some(time(last.started_at.wall));
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at }),
                ..ContainerState::default()
            });
        } else {
            status.state = Some(waiting("ContainerCreating", ""));
        }
        return status;
    }
    status.started = Some(false);
    // A regular init container that succeeded counts as ready.
    status.ready = context.role == Role::Init && last.ended.as_ref().is_some_and(|e| e.code == 0);
    let comes_again =
        context.ending.is_none() && restarts(context.pod, context.role, container, last);
    let start_failed = last.ended.as_ref().filter(|e| e.reason == "StartError");
    status.state = match (comes_again, &track.failure, start_failed) {
        (true, Some(failure), _) => Some(waiting(&failure.reason, &failure.message)),
        (true, None, Some(ended)) => Some(waiting("RunContainerError", &ended.message)),
        (true, None, None) if context.now.moment < last.restart_at() => {
            let meta = &context.pod.metadata;
            Some(waiting(
                "CrashLoopBackOff",
                &format!(
                    "back-off {} restarting failed container={} pod={}_{}({})",
                    go_duration(last.backoff),
                    container.name,
                    meta.name.as_deref().unwrap_or(""),
                    meta.namespace.as_deref().unwrap_or(""),
                    meta.uid.as_deref().unwrap_or(""),
                ),
            ))
        }
        _ => None,
    };
    if status.state.is_some() {
        status.last_state = terminated(last);
    } else {
        status.state = terminated(last);
    }
    status
}

fn has_inits(context: &Context<'_>) -> bool {
    let inits = context.pod.spec.as_ref().and_then(|s| s.init_containers.as_ref());
    inits.is_some_and(|i| !i.is_empty())
}

/// `10s`, `1m20s`, as Go prints durations.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let message = (!message.is_empty()).then(|| message.to_owned());
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(instance: &Instance) -> Option<ContainerState> {
    let ended = instance.ended.as_ref()?;
    let terminated = ContainerStateTerminated {
        container_id: (!instance.id.is_empty()).then(|| format!("dhow://{}", instance.id)),
        exit_code: ended.code,
        finished_at: Some(time(ended.at.wall)),
        message: (!ended.message.is_empty()).then(|| ended.message.clone()),
        reason: (!ended.reason.is_empty()).then(|| ended.reason.clone()),
        signal: (ended.signal != 0).then_some(ended.signal),
        started_at: Some(time(instance.started_at.wall)),
    };
    Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() })
}

fn phase(
    seen: &Observed,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    initialized: bool,
    ending: Option<Ending>,
) -> &'static str {
    let code = |s: &ContainerStatus| {
        s.state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code)
    };
    if !initialized {
        let failed = init.iter().any(|s| code(s).is_some_and(|c| c != 0));
        let over = matches!(ending, Some(Ending::Completed)) || (ending.is_some() && !seen.busy());
        return if failed && over { "Failed" } else { "Pending" };
    }
    let running = main.iter().any(|s| s.state.as_ref().is_some_and(|s| s.running.is_some()));
    let never_ran = main.iter().any(|s| s.container_id.is_none());
    let codes: Vec<i32> = main.iter().filter_map(code).collect();
    if never_ran {
        // Deleted before it ever ran: it will not.
        return if ending.is_some() && !seen.busy() && !codes.is_empty() {
            "Failed"
        } else {
            "Pending"
        };
    }
    // Without an end one of them comes again. Sidecars still have to end before the phase is final.
    if running || codes.len() < main.len() || ending.is_none() || seen.busy() {
        return "Running";
    }
    if codes.iter().all(|c| *c == 0) { "Succeeded" } else { "Failed" }
}

const OWN: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

fn conditions(
    pod: &Pod,
    seen: &Observed,
    status: &PodStatus,
    before: &PodStatus,
    initialized: bool,
    now: At,
) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or("");
    let over = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    let none = || (String::new(), String::new());
    let init_said = if initialized || phase == "Succeeded" {
        let reason = if phase == "Succeeded" { "PodCompleted" } else { "" };
        (true, (reason.to_owned(), String::new()))
    } else {
        let undone = names(status.init_container_statuses.iter().flatten().filter(|s| !s.ready));
        let message = format!("containers with incomplete status: [{undone}]");
        (false, ("ContainersNotInitialized".to_owned(), message))
    };
    let sidecars: Vec<String> = containers(pod)
        .into_iter()
        .filter(|(role, _)| *role == Role::Sidecar)
        .map(|(_, c)| c.name.clone())
        .collect();
    let all = status.container_statuses.iter().flatten();
    let helpers =
        status.init_container_statuses.iter().flatten().filter(|s| sidecars.contains(&s.name));
    let unready = names(all.chain(helpers).filter(|s| !s.ready));
    let ready = match over {
        Some(reason) => (false, (reason.to_owned(), String::new())),
        None if unready.is_empty() && initialized => (true, none()),
        None => {
            let message = format!("containers with unready status: [{unready}]");
            (false, ("ContainersNotReady".to_owned(), message))
        }
    };
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_ref());
    let others = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let closed: Vec<String> = gates
        .into_iter()
        .flatten()
        .filter(|gate| {
            let mut found = others.into_iter().flatten().filter(|c| c.type_ == gate.condition_type);
            !found.any(|c| c.status == "True")
        })
        .map(|gate| {
            format!(
                "corresponding condition of pod readiness gate {:?} does not exist.",
                gate.condition_type
            )
        })
        .collect();
    let pod_ready = if ready.0 && !closed.is_empty() {
        (false, ("ReadinessGatesNotReady".to_owned(), closed.join(", ")))
    } else {
        ready.clone()
    };
    let sandbox = match &seen.sandbox {
        Step::Ready(_) => over.is_none(),
        _ => false,
    };
    let said = [(sandbox, none()), init_said, pod_ready, ready, (true, none())];
    let mut conditions: Vec<PodCondition> = OWN
        .iter()
        .zip(said)
        .map(|(kind, (holds, (reason, message)))| {
            let word = if holds { "True" } else { "False" };
            let known = [before.conditions.as_ref(), others].into_iter().flatten().flatten();
            let same = known.clone().find(|c| c.type_ == *kind && c.status == word);
            PodCondition {
                type_: (*kind).to_owned(),
                status: word.to_owned(),
                last_probe_time: None,
                last_transition_time: same
                    .and_then(|c| c.last_transition_time.clone())
                    .or_else(|| Some(time(now.wall))),
                reason: (!reason.is_empty()).then_some(reason),
                message: (!message.is_empty()).then_some(message),
                observed_generation: pod.metadata.generation,
            }
        })
        .collect();
    // What others say (readiness gates, disruption) is theirs and stays as the store has it.
    let own = |kind: &str| OWN.contains(&kind) || RESIZE.contains(&kind);
    let foreign = others.into_iter().flatten().filter(|c| !own(&c.type_));
    conditions.extend(foreign.cloned());
    conditions.extend(disrupted(pod, seen, &conditions, now));
    let known = [before.conditions.as_ref(), others].into_iter().flatten().flatten();
    conditions.extend(resizing(pod, seen, known.cloned().collect(), now));
    conditions
}

/// What is told of a pod that has to go, unless it is told already.
fn disrupted(pod: &Pod, seen: &Observed, told: &[PodCondition], now: At) -> Option<PodCondition> {
    let kind = "DisruptionTarget";
    let verdict = seen.verdict.as_ref().filter(|v| v.decision == Decision::Evicted)?;
    (!told.iter().any(|c| c.type_ == kind)).then(|| PodCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        last_probe_time: None,
        last_transition_time: Some(time(now.wall)),
        reason: Some("TerminationByKubelet".to_owned()),
        message: Some(verdict.message.clone()),
        observed_generation: pod.metadata.generation,
    })
}

/// Conditions that are there only while a resize is.
const RESIZE: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// What is told of a resize: why it waits, or that it is under way and what is in its way.
fn resizing(pod: &Pod, seen: &Observed, known: Vec<PodCondition>, now: At) -> Option<PodCondition> {
    let all = containers(pod);
    let mut tracks = all.iter().filter_map(|(_, c)| seen.track(&c.name).map(|t| (c, t)));
    let failure = tracks.clone().find_map(|(_, track)| track.resize.failure());
    let (kind, reason, message) = match (&seen.held, failure) {
        (Some(held), _) => (RESIZE[0], held.word, held.message.clone()),
        (None, Some(failure)) => (RESIZE[1], "Error", failure.message.clone()),
        (None, None) if tracks.any(|(c, t)| differs(c, t)) => (RESIZE[1], "", String::new()),
        (None, None) => return None,
    };
    let since = known.into_iter().find(|c| c.type_ == kind).and_then(|c| c.last_transition_time);
    Some(PodCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        last_probe_time: None,
        last_transition_time: since.or_else(|| Some(time(now.wall))),
        reason: (!reason.is_empty()).then(|| reason.to_owned()),
        message: (!message.is_empty()).then_some(message),
        observed_generation: pod.metadata.generation,
    })
}

fn names<'a>(statuses: impl Iterator<Item = &'a ContainerStatus>) -> String {
    statuses.map(|s| s.name.as_str()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
