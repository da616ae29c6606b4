//! What to do next for one pod: desired pod and observation in, actions out. Pure.
//!
//! Follows upstream's kubelet (`pkg/kubelet/kuberuntime`, `computePodActions`): init containers in
//! order, sidecars kept running, back-off between restarts, main containers before sidecars at the
//! end. It is asked after every change and names only what is not yet under way; `due` is the next
//! moment at which time alone changes the answer.

use super::observe::{Decision, Hook, Instance, Observed, Role, Step, Track, containers};
use super::resources;
use crate::probes::Kind;
use crate::time::{self, Moment};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::borrow::Cow;
use std::time::Duration;

/// How long the client of a container's streams may take to attach after the container's end.
const CLIENT: Duration = Duration::from_secs(5);

/// One step to take now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make namespaces and cgroup, and attach the network.
    MakeSandbox,
    /// Make volumes and the files that containers see.
    PrepareVolumes,
    /// Start a container.
    Start {
        /// The container.
        name: String,
        /// The number of this run.
        attempt: u32,
        /// The pause that this run carries for the next.
        backoff: Duration,
    },
    /// Tell (once) that a container waits before its next start.
    TellBackOff {
        /// The container.
        name: String,
        /// The pause.
        backoff: Duration,
    },
    /// Run `postStart`.
    PostStart {
        /// The container.
        name: String,
    },
    /// Ask a container to end: `preStop`, then its stop signal.
    Stop {
        /// The container.
        name: String,
        /// Time until it is killed.
        grace: Duration,
        /// Why, as an event tells it.
        message: String,
    },
    /// End a container by force.
    Kill {
        /// The container.
        name: String,
    },
    /// Give a running container the limits that its pod has by now.
    Resize {
        /// The container.
        name: String,
    },
    /// Ask a probe.
    Probe {
        /// The container.
        name: String,
        /// Which.
        kind: Kind,
    },
    /// Forget a run that nobody can ask for any more.
    Forget {
        /// The container.
        name: String,
        /// The run.
        id: String,
    },
    /// The pod was active for longer than it may be.
    Expire,
    /// Remove containers, network, sandbox and volumes.
    TearDown,
    /// Tell the control plane that nothing is left.
    Finish,
}

/// What to do, and when to ask again if nothing happens before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Steps, to be begun at once and concurrently.
    pub actions: Vec<Action>,
    /// When time alone changes the answer.
    pub due: Option<Moment>,
}

impl Plan {
    fn at(&mut self, moment: Moment) {
        self.due = Some(self.due.map_or(moment, |d| d.min(moment)));
    }

    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// Why a pod ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Somebody deleted it, or it is gone from the store; killed by this moment.
    Deleted(Moment),
    /// It was decided so ([`super::observe::Verdict`]), or its phase is final already.
    Failed,
    /// All its containers have ended for good.
    Completed,
}

/// Whether an ended container is started again while its pod goes on.
pub fn restarts(pod: &Pod, role: Role, container: &Container, instance: &Instance) -> bool {
    let Some(ended) = &instance.ended else { return false };
    if role == Role::Init && ended.code == 0 {
        // It has done its part, whatever the rules list.
        return false;
    }
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|c| *c == ended.code);
        if rule.action == "Restart" && listed == (codes.operator == "In") {
            return true;
        }
    }
    let of_pod = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    let policy = container.restart_policy.as_deref().or(of_pod).unwrap_or("Always");
    match role {
        Role::Sidecar => true,
        Role::Ephemeral => false,
        Role::Init => policy != "Never",
        Role::Main => policy == "Always" || (policy == "OnFailure" && ended.code != 0),
    }
}

/// What a container is started from: a change of it means a restart.
pub fn hash(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or("");
    let bytes = container.name.bytes().chain([0]).chain(image.bytes());
    format!("{:016x}", dhow_objects::hash::stable(bytes))
}

/// How long the pod's containers may take to end.
pub fn grace(pod: &Pod) -> Duration {
    let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    time::seconds(pod.metadata.deletion_grace_period_seconds.or(spec).unwrap_or(30))
}

/// Why the pod ends, if it does.
pub fn ending(pod: &Pod, seen: &Observed) -> Option<Ending> {
    let deleted = pod.metadata.deletion_timestamp.as_ref();
    let deleted = deleted.map(|_| seen.deadline.unwrap_or(Moment::PAST));
    match (deleted, seen.gone) {
        (Some(a), Some(b)) => return Some(Ending::Deleted(a.min(b))),
        (Some(at), None) | (None, Some(at)) => return Some(Ending::Deleted(at)),
        (None, None) => {}
    }
    if seen.verdict.is_some() {
        return Some(Ending::Failed);
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(phase, Some("Failed" | "Succeeded")) {
        return Some(Ending::Failed);
    }
    let over = |role, c: &Container| {
        let last = seen.track(&c.name).and_then(Track::last);
        last.is_some_and(|i| !i.running() && !restarts(pod, role, c, i))
    };
    let all = containers(pod);
    let failed = all.iter().any(|(role, c)| {
        let track = seen.track(&c.name);
        let code = track.and_then(Track::last).and_then(|i| i.ended.as_ref()).map_or(0, |e| e.code);
        *role == Role::Init && code != 0 && over(Role::Init, c)
    });
    let mut mains = all.iter().filter(|(role, _)| *role == Role::Main).peekable();
    let completed = mains.peek().is_some() && mains.all(|(_, c)| over(Role::Main, c));
    (failed || completed).then_some(Ending::Completed)
}

/// The next steps of a pod.
pub fn plan(pod: &Pod, seen: &Observed, now: Moment) -> Plan {
    let mut plan = Plan::default();
    let limit = pod.spec.as_ref().and_then(|s| s.active_deadline_seconds).map(time::seconds);
    let ending = ending(pod, seen);
    if let Some(limit) = limit.filter(|_| ending.is_none()) {
        let deadline = seen.start_time.moment + limit;
        if now >= deadline {
            plan.push(Action::Expire);
            return plan;
        }
        plan.at(deadline);
    }
    if let Some(ending) = ending {
        end(pod, seen, now, ending, &mut plan);
        return plan;
    }
    let sandbox = step(&seen.sandbox, Action::MakeSandbox, now, &mut plan);
    let volumes = step(&seen.volumes, Action::PrepareVolumes, now, &mut plan);
    // Containers that already run (after a restart of the agent) are looked after meanwhile.
    if (sandbox && volumes) || seen.busy() {
        go_on(pod, seen, now, sandbox && volumes, &mut plan);
    }
    plan
}

fn step<T>(step: &Step<T>, action: Action, now: Moment, plan: &mut Plan) -> bool {
    match step {
        Step::Ready(_) => return true,
        Step::Doing(_) => {}
        Step::Absent => plan.push(action),
        Step::Failed(failure) if now >= failure.retry_at => plan.push(action),
        Step::Failed(failure) => plan.at(failure.retry_at),
    }
    false
}

fn go_on(pod: &Pod, seen: &Observed, now: Moment, may_start: bool, plan: &mut Plan) {
    let all = containers(pod);
    // Once a main container has run, the init containers had their turn.
    let initialized = all.iter().any(|(role, c)| {
        *role == Role::Main && seen.track(&c.name).is_some_and(|t| t.last().is_some())
    });
    let mut open = may_start;
    let mut init_open = true;
    for (role, container) in &all {
        let empty = Track::default();
        let track = seen.track(&container.name).unwrap_or(&empty);
        let last = track.last();
        match role {
            Role::Init if initialized => continue,
            Role::Init | Role::Sidecar => {
                let may = may_start && (init_open || last.is_some());
                let settled = tend(pod, *role, container, track, now, may, plan);
                if !initialized && !settled {
                    init_open = false;
                    open = false;
                }
            }
            // Each waits until the one before it has started and its hook is done.
            Role::Main => open &= tend(pod, *role, container, track, now, open, plan),
            Role::Ephemeral => {
                tend(pod, *role, container, track, now, may_start, plan);
            }
        }
    }
    resize(&all, seen, now, plan);
}

/// Whether a running container has other requests or limits than its pod asks for.
pub fn differs(container: &Container, track: &Track) -> bool {
    let Some(has) = track.running().and_then(|i| i.resources.as_ref()) else { return false };
    let wanted = container.resources.clone().unwrap_or_default();
    !["cpu", "memory"].iter().all(|resource| resources::same(has, &wanted, resource))
}

/// One at a time: the pod's own limits lie around those of all its containers.
fn resize(all: &[(Role, Cow<'_, Container>)], seen: &Observed, now: Moment, plan: &mut Plan) {
    let busy = seen.containers.values().any(|t| matches!(t.resize, Step::Doing(_)));
    if busy || seen.held.is_some() {
        return;
    }
    for (_, container) in all {
        let Some(track) = seen.track(&container.name).filter(|t| differs(container, t)) else {
            continue;
        };
        let going = track
            .running()
            .is_some_and(|i| i.stopping.is_none() && i.condemned.is_none() && i.hook == Hook::Done);
        if !going {
            continue;
        }
        match &track.resize {
            Step::Failed(failure) if now < failure.retry_at => plan.at(failure.retry_at),
            _ => {
                plan.push(Action::Resize { name: container.name.clone() });
                return;
            }
        }
    }
}

/// Looks after one container. Returns whether the next may be started.
fn tend(
    pod: &Pod,
    role: Role,
    container: &Container,
    track: &Track,
    now: Moment,
    may_start: bool,
    plan: &mut Plan,
) -> bool {
    let name = container.name.clone();
    let keep = track.instances.len().saturating_sub(2);
    for old in track.instances.iter().take(keep).filter(|i| !i.running()) {
        plan.push(Action::Forget { name: name.clone(), id: old.id.clone() });
    }
    if track.starting {
        return false;
    }
    let Some(last) = track.last() else {
        start(track, &name, Duration::ZERO, now, may_start, plan);
        // One that cannot be started does not hold up the main containers behind it.
        return track.failure.is_some() && role == Role::Main;
    };
    if last.running() {
        tend_running(pod, container, last, now, plan);
        return match role {
            Role::Init => false,
            Role::Sidecar => last.started(),
            Role::Main | Role::Ephemeral => last.hook == Hook::Done,
        };
    }
    if !restarts(pod, role, container, last) {
        return true;
    }
    let at = last.restart_at();
    if now < at {
        if track.told <= last.attempt {
            plan.push(Action::TellBackOff { name: name.clone(), backoff: last.backoff });
        }
        plan.at(at);
    } else {
        start(track, &name, last.next_backoff(), now, may_start, plan);
    }
    role == Role::Main
}

fn start(
    track: &Track,
    name: &str,
    backoff: Duration,
    now: Moment,
    may_start: bool,
    plan: &mut Plan,
) {
    if let Some(failure) = &track.failure
        && now < failure.retry_at
    {
        plan.at(failure.retry_at);
        return;
    }
    if may_start {
        plan.push(Action::Start { name: name.to_owned(), attempt: track.next_attempt(), backoff });
    }
}

fn tend_running(pod: &Pod, container: &Container, last: &Instance, now: Moment, plan: &mut Plan) {
    let name = &container.name;
    if let Some(stopping) = &last.stopping {
        kill_when_due(name, stopping.killed, stopping.deadline, now, plan);
        return;
    }
    let changed = !last.hash.is_empty() && last.hash != hash(container);
    if changed {
        let message = format!("Container {name} definition changed, will be restarted");
        plan.push(Action::Stop { name: name.clone(), grace: grace(pod), message });
        return;
    }
    if let Some((message, wanted)) = &last.condemned {
        let grace = wanted.unwrap_or_else(|| grace(pod));
        plan.push(Action::Stop { name: name.clone(), grace, message: message.clone() });
        return;
    }
    match last.hook {
        Hook::Pending => plan.push(Action::PostStart { name: name.clone() }),
        Hook::Running => return,
        Hook::Done => {}
    }
    if last.hook != Hook::Done {
        return;
    }
    let starting = last.probes.get(&Kind::Startup).is_some_and(|p| !p.passed);
    for (kind, probe) in &last.probes {
        let waits = match kind {
            Kind::Startup => probe.passed,
            Kind::Liveness | Kind::Readiness => starting,
        };
        if waits || probe.running {
            continue;
        }
        if now >= probe.due {
            plan.push(Action::Probe { name: name.clone(), kind: *kind });
        } else {
            plan.at(probe.due);
        }
    }
}

fn kill_when_due(name: &str, killed: bool, deadline: Moment, now: Moment, plan: &mut Plan) {
    if killed {
        return;
    }
    if now >= deadline {
        plan.push(Action::Kill { name: name.to_owned() });
    } else {
        plan.at(deadline);
    }
}

/// Until when an ended container is kept for the one client of its streams, which may still be on
/// its way (`kubectl run -i`): its output waits for that client.
fn awaited(pod: &Pod, seen: &Observed) -> Moment {
    let once = containers(pod).into_iter().filter(|(_, c)| c.stdin_once == Some(true));
    let ended = |name: &str| seen.track(name).and_then(Track::last).and_then(|i| i.ended.as_ref());
    once.filter_map(|(_, c)| Some(ended(&c.name)?.at.moment + CLIENT)).max().unwrap_or_default()
}

fn end(pod: &Pod, seen: &Observed, now: Moment, ending: Ending, plan: &mut Plan) {
    // There is no time for a grace period, as upstream has none either.
    let at_once = seen.verdict.as_ref().is_some_and(|v| v.decision == Decision::Evicted);
    let deadline = match ending {
        Ending::Deleted(at) => at,
        Ending::Failed if at_once => now,
        Ending::Failed | Ending::Completed => now + grace(pod),
    };
    let mut roles: Vec<(Role, String)> =
        containers(pod).into_iter().map(|(role, c)| (role, c.name.clone())).collect();
    // What runs but is not in the pod any more (a changed list of ephemeral containers).
    for name in seen.containers.keys() {
        if !roles.iter().any(|(_, n)| n == name) {
            roles.push((Role::Main, name.clone()));
        }
    }
    let alive = |name: &str| seen.track(name).and_then(Track::running);
    let starting = |name: &str| seen.track(name).is_some_and(|t| t.starting);
    let busy = roles
        .iter()
        .any(|(role, name)| *role != Role::Sidecar && (alive(name).is_some() || starting(name)));
    let mut sidecar_taken = false;
    for (role, name) in roles.iter().rev() {
        let Some(instance) = alive(name) else { continue };
        let first = !sidecar_taken;
        sidecar_taken |= *role == Role::Sidecar;
        match &instance.stopping {
            Some(stopping) => {
                let at = match ending {
                    // A shortened grace period holds for stops that were begun before; the two
                    // seconds are what a container keeps after its hook.
                    Ending::Deleted(at) => stopping.deadline.min(at + Duration::from_secs(2)),
                    _ => stopping.deadline,
                };
                kill_when_due(name, stopping.killed, at, now, plan);
            }
            // Sidecars serve the others to the end, and then end last to first.
            None if *role == Role::Sidecar && (busy || !first) && now < deadline => {
                plan.at(deadline)
            }
            None => plan.push(Action::Stop {
                name: name.clone(),
                grace: deadline.since(now),
                message: format!("Stopping container {name}"),
            }),
        }
    }
    if seen.busy()
        || matches!(seen.sandbox, Step::Doing(_))
        || matches!(seen.volumes, Step::Doing(_))
    {
        return;
    }
    let deleted = matches!(ending, Ending::Deleted(_));
    let awaited = awaited(pod, seen);
    if !seen.torn {
        match &seen.tear_failure {
            _ if seen.tearing => {}
            Some(failure) if now < failure.retry_at => plan.at(failure.retry_at),
            _ if !deleted && now < awaited => plan.at(awaited),
            // Until the final status is stored, the records are the only trace of how it ended. The
            // store may be waiting for the room that a pod takes which has to go.
            _ if deleted || seen.reported || at_once => plan.push(Action::TearDown),
            _ => {}
        }
    } else if deleted && !seen.finished {
        plan.push(Action::Finish);
    }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
