//! What is seen of one pod: its sandbox, its volumes and every instance of its containers.
//!
//! Everything that decides about a pod reads this and the pod itself, and nothing else. It can be
//! built anew at any time from the runtime's records, whose labels carry what is needed.

use crate::probes::{Kind, ProbeState};
use crate::time::{self, At, Moment};
use dhow_reason::Reason;
use dhow_runtime::{ContainerState, Phase};
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, EphemeralContainer, Pod, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// Label keys of the runtime's records.
pub mod label {
    /// The pod's namespace.
    pub const NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// The pod's name.
    pub const POD: &str = "io.kubernetes.pod.name";
    /// The pod's uid.
    pub const UID: &str = "io.kubernetes.pod.uid";
    /// The container's name.
    pub const CONTAINER: &str = "io.kubernetes.container.name";
    /// How often the container was restarted before.
    pub const ATTEMPT: &str = "io.kubernetes.container.restartCount";
    /// What the container was started from: changes when it has to be started anew.
    pub const HASH: &str = "io.kubernetes.container.hash";
    /// Milliseconds to wait before the next start after this instance ends.
    pub const BACKOFF: &str = "dev.dhow.backoff";
    /// Identifier of the image.
    pub const IMAGE_ID: &str = "dev.dhow.image.id";
    /// The image as the pod names it.
    pub const IMAGE: &str = "dev.dhow.image";
    /// Signal number that asks the container to end.
    pub const STOP_SIGNAL: &str = "dev.dhow.stop-signal";
    /// Requests and limits that the container has, as JSON.
    pub const RESOURCES: &str = "dev.dhow.resources";
}

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next.
    Init,
    /// An init container that keeps running (`restartPolicy: Always`).
    Sidecar,
    /// An ordinary container.
    Main,
    /// Added to a running pod to look into it.
    Ephemeral,
}

/// All containers of a pod in the order of their start.
pub fn containers(pod: &Pod) -> Vec<(Role, Cow<'_, Container>)> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut all = Vec::new();
    for c in spec.init_containers.iter().flatten() {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        all.push((if sidecar { Role::Sidecar } else { Role::Init }, Cow::Borrowed(c)));
    }
    all.extend(spec.containers.iter().map(|c| (Role::Main, Cow::Borrowed(c))));
    for c in spec.ephemeral_containers.iter().flatten() {
        all.push((Role::Ephemeral, Cow::Owned(plain(c))));
    }
    all
}

/// An ephemeral container as an ordinary one.
fn plain(c: &EphemeralContainer) -> Container {
    let c = c.clone();
    Container {
        args: c.args,
        command: c.command,
        env: c.env,
        env_from: c.env_from,
        image: c.image,
        image_pull_policy: c.image_pull_policy,
        name: c.name,
        security_context: c.security_context,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path,
        termination_message_policy: c.termination_message_policy,
        tty: c.tty,
        volume_mounts: c.volume_mounts,
        working_dir: c.working_dir,
        ..Container::default()
    }
}

/// Path of a container inside the pod, as events carry it.
pub fn field_path(role: Role, name: &str) -> String {
    match role {
        Role::Init | Role::Sidecar => format!("spec.initContainers{{{name}}}"),
        Role::Main => format!("spec.containers{{{name}}}"),
        Role::Ephemeral => format!("spec.ephemeralContainers{{{name}}}"),
    }
}

/// Something that failed and is tried again later.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failure {
    /// Upstream's waiting reason.
    pub reason: String,
    /// What went wrong.
    pub message: String,
    /// When to try again.
    pub retry_at: Moment,
    /// How often in a row.
    pub times: u32,
}

/// First and longest pause between attempts at something that fails.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// See [`BACKOFF_FIRST`].
pub const BACKOFF_MOST: Duration = Duration::from_secs(300);
/// A container that ran this long starts with a clean slate.
pub const BACKOFF_RESET: Duration = Duration::from_secs(600);

/// The pause after `times` failures in a row: 10 s, 20 s, ... 5 min.
pub fn pause(times: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << times.saturating_sub(1).min(5)).min(BACKOFF_MOST)
}

/// A step that is taken once per pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Step<T> {
    /// Not begun.
    #[default]
    Absent,
    /// Under way. After an earlier failure, that failure, so that status keeps telling it.
    Doing(Option<Failure>),
    /// Done.
    Ready(T),
    /// Failed; will be tried again.
    Failed(Failure),
}

impl<T> Step<T> {
    /// What was reached.
    pub fn ready(&self) -> Option<&T> {
        match self {
            Self::Ready(value) => Some(value),
            _ => None,
        }
    }

    /// The newest failure, if it has not succeeded since.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) | Self::Doing(Some(failure)) => Some(failure),
            _ => None,
        }
    }

    /// Marks it as under way, keeping what is known of failures.
    pub fn begin(&mut self) {
        let failure = self.failure().cloned();
        *self = Self::Doing(failure);
    }

    /// Notes a failure; the pause grows with each in a row.
    pub fn fail(&mut self, reason: &str, message: String, now: Moment) {
        let times = self.failure().map_or(0, |f| f.times) + 1;
        *self = Self::Failed(Failure {
            reason: reason.into(),
            message,
            retry_at: now + pause(times),
            times,
        });
    }
}

/// A pod's sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    /// The network namespace; `None` when it is the machine's.
    pub netns: Option<PathBuf>,
    /// The pod's own address; `None` when it has the machine's.
    pub ip: Option<Ipv4Addr>,
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// The signal, 0 for none.
    pub signal: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// The termination message.
    pub message: String,
    /// When.
    pub at: At,
}

/// How far `postStart` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Still to be run.
    Pending,
    /// Runs.
    Running,
    /// Done, or there is none.
    Done,
}

/// A stop that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopping {
    /// When the kernel's own signal is due.
    pub deadline: Moment,
    /// It was sent.
    pub killed: bool,
}

/// One run of one container.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// The runtime's identifier.
    pub id: String,
    /// How often the container was restarted before.
    pub attempt: u32,
    /// What it was started from.
    pub hash: String,
    /// The image as the pod names it.
    pub image: String,
    /// The image's identifier.
    pub image_id: String,
    /// When it started.
    pub started_at: At,
    /// How it ended; `None` while it runs.
    pub ended: Option<Ended>,
    /// Pause before the next start, once it has ended.
    pub backoff: Duration,
    /// `postStart`.
    pub hook: Hook,
    /// A stop that is under way.
    pub stopping: Option<Stopping>,
    /// Why it has to be stopped although the pod goes on: a failed probe or hook. The message and
    /// the grace that the probe asked for.
    pub condemned: Option<(String, Option<Duration>)>,
    /// Its probes.
    pub probes: BTreeMap<Kind, ProbeState>,
    /// The runtime has a record of it.
    pub recorded: bool,
    /// Signal number that asks it to end.
    pub stop_signal: i32,
    /// The requests and limits that it has; `None` when nobody knows (a run that has ended, or
    /// one of an older agent).
    pub resources: Option<ResourceRequirements>,
}

impl Instance {
    /// It runs.
    pub fn running(&self) -> bool {
        self.ended.is_none()
    }

    /// Its start is complete: the hook is done and the startup probe, if any, has succeeded.
    pub fn started(&self) -> bool {
        self.running()
            && self.hook == Hook::Done
            && self.probes.get(&Kind::Startup).is_none_or(|p| p.passed)
    }

    /// Started, and the readiness probe, if any, says so.
    pub fn ready(&self) -> bool {
        self.started() && self.probes.get(&Kind::Readiness).is_none_or(|p| p.passed)
    }

    /// When it may be started again after its end. The first restart is immediate; then the pause
    /// doubles until an instance has run long enough.
    pub fn restart_at(&self) -> Moment {
        let Some(ended) = &self.ended else { return Moment::PAST };
        if self.ran_long(ended) {
            return ended.at.moment;
        }
        ended.at.moment + self.backoff
    }

    fn ran_long(&self, ended: &Ended) -> bool {
        ended.at.moment.since(self.started_at.moment) >= BACKOFF_RESET
    }

    /// The pause that the next instance carries.
    pub fn next_backoff(&self) -> Duration {
        let Some(ended) = &self.ended else { return Duration::ZERO };
        if self.backoff.is_zero() || self.ran_long(ended) {
            BACKOFF_FIRST
        } else {
            (self.backoff * 2).min(BACKOFF_MOST)
        }
    }
}

/// Everything about one container of a pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Track {
    /// Its runs, oldest first.
    pub instances: Vec<Instance>,
    /// A start is under way.
    pub starting: bool,
    /// The newest start failed before there was an instance.
    pub failure: Option<Failure>,
    /// The back-off before this attempt was told as an event.
    pub told: u32,
    /// A change of its limits: under way, or how it failed.
    pub resize: Step<()>,
}

impl Track {
    /// The newest run.
    pub fn last(&self) -> Option<&Instance> {
        self.instances.last()
    }

    /// The run before the newest.
    pub fn previous(&self) -> Option<&Instance> {
        self.instances.len().checked_sub(2).and_then(|i| self.instances.get(i))
    }

    /// The newest run, if it still runs.
    pub fn running(&self) -> Option<&Instance> {
        self.last().filter(|i| i.running())
    }

    /// The number of the next run.
    pub fn next_attempt(&self) -> u32 {
        self.last().map_or(0, |i| i.attempt + 1)
    }
}

/// Why a resize waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Upstream's word: `Infeasible` or `Deferred`.
    pub word: &'static str,
    /// For people.
    pub message: String,
    /// As data.
    pub reason: Reason,
}

/// What was decided about a pod that counts as failed although its containers have not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The machine does not take it: nothing of it was begun.
    Refused,
    /// It was active for too long. Its containers have their grace period.
    Expired,
    /// It has to go because the machine is short of something: its containers have no grace period.
    Evicted,
}

/// Why a pod counts as failed although its containers have not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What was decided.
    pub decision: Decision,
    /// The word for it in its status.
    pub reason: Cow<'static, str>,
    /// For people.
    pub message: String,
}

/// Everything that is seen of one pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    /// When the agent took the pod up.
    pub start_time: At,
    /// Namespaces, cgroup and network.
    pub sandbox: Step<Net>,
    /// Volumes and the files that the agent writes.
    pub volumes: Step<()>,
    /// By container name.
    pub containers: BTreeMap<String, Track>,
    /// When its grace period is over, counted from when its deletion was heard of: the clock of who
    /// stamped it may be another. Only where the agent began later, it is the stamp's. `None` unless
    /// it is deleted.
    pub deadline: Option<Moment>,
    /// The pod is gone from the store: end it by then.
    pub gone: Option<Moment>,
    /// Why a resize that is asked for waits.
    pub held: Option<Held>,
    /// The pod has failed by what was decided about it, whatever its containers do.
    pub verdict: Option<Verdict>,
    /// The newest status has been stored.
    pub reported: bool,
    /// Nothing of the pod is left on the machine.
    pub torn: bool,
    /// A teardown is under way.
    pub tearing: bool,
    /// A teardown failed; it is tried again then.
    pub tear_failure: Option<Failure>,
    /// The control plane was told that nothing is left, or is being told.
    pub finished: bool,
}

impl Observed {
    /// What is known of one container.
    pub fn track(&self, name: &str) -> Option<&Track> {
        self.containers.get(name)
    }

    /// An instance by the runtime's identifier.
    pub fn instance_mut(&mut self, id: &str) -> Option<&mut Instance> {
        self.containers.values_mut().flat_map(|t| t.instances.iter_mut()).find(|i| i.id == id)
    }

    /// Whether any instance runs or is being started.
    pub fn busy(&self) -> bool {
        self.containers.values().any(|t| t.starting || t.instances.iter().any(Instance::running))
    }
}

/// Rebuilds what was known of a pod from the runtime's records, after a restart of the agent.
/// `now` becomes the start time unless the stored status has one.
pub fn adopt(pod: &Pod, net: Option<Net>, records: Vec<ContainerState>, now: At) -> Observed {
    let status = pod.status.clone().unwrap_or_default();
    let mut seen = Observed {
        start_time: status.start_time.as_ref().map_or(now, |t| now.of_past(time::since_epoch(t))),
        sandbox: net.map_or(Step::Absent, Step::Ready),
        // The stamp already holds the grace period; it is cut to whole seconds.
        deadline: pod.metadata.deletion_timestamp.as_ref().map(|stamp| {
            let stamp = time::since_epoch(stamp) + Duration::from_secs(1);
            now.of(stamp).moment
        }),
        ..Observed::default()
    };
    for record in records {
        let text = |key: &str| record.spec.labels.get(key).cloned().unwrap_or_default();
        let name = text(label::CONTAINER);
        let instance = instance_of(&record, now);
        seen.containers.entry(name).or_default().instances.push(instance);
    }
    for track in seen.containers.values_mut() {
        track.instances.sort_by_key(|i| i.attempt);
    }
    for (role, container) in containers(pod) {
        let list = match role {
            Role::Init | Role::Sidecar => &status.init_container_statuses,
            Role::Main => &status.container_statuses,
            Role::Ephemeral => &status.ephemeral_container_statuses,
        };
        let told = list.iter().flatten().find(|s| s.name == container.name);
        let track = seen.containers.entry(container.name.clone()).or_default();
        if let Some(last) = track.instances.last_mut() {
            if last.running() {
                // What its probes last found holds until they find otherwise: a restart of the
                // agent takes no traffic from a pod.
                let told = told.filter(|s| is_of(s, last));
                let started = told.and_then(|s| s.started) == Some(true);
                let ready = told.is_some_and(|s| s.ready);
                let (since, now) = (last.started_at.moment, now.moment);
                last.probes = ProbeState::resumed(&container, since, now, started, ready);
            }
            continue;
        }
        // The machine lost its records (a reboot): what the store says is all that is left.
        if let Some(instance) = told.and_then(|s| remembered(s, now)) {
            track.instances.push(instance);
        }
    }
    seen
}

/// A run as the runtime recorded it, seen from `now`.
pub fn instance_of(record: &ContainerState, now: At) -> Instance {
    let text = |key: &str| record.spec.labels.get(key).cloned().unwrap_or_default();
    let number = |key: &str| text(key).parse::<u64>().unwrap_or(0);
    let started_at = now.of_past(time::nanos(record.started_at));
    let ended = match (record.phase, &record.exit) {
        (Phase::Running, None) => None,
        (_, Some(exit)) => Some(ended(exit, now)),
        (Phase::Exited, None) => Some(Ended {
            code: 137,
            signal: 0,
            reason: "ContainerStatusUnknown".into(),
            message: "The container ended while nobody watched".into(),
            at: started_at,
        }),
    };
    Instance {
        id: record.spec.id.clone(),
        attempt: u32::try_from(number(label::ATTEMPT)).unwrap_or(0),
        hash: text(label::HASH),
        image: text(label::IMAGE),
        image_id: text(label::IMAGE_ID),
        started_at,
        ended,
        backoff: Duration::from_millis(number(label::BACKOFF)),
        hook: Hook::Done,
        stopping: None,
        condemned: None,
        probes: BTreeMap::new(),
        recorded: true,
        stop_signal: text(label::STOP_SIGNAL).parse().unwrap_or(15),
        resources: serde_json::from_str(&text(label::RESOURCES)).ok(),
    }
}

/// How an exit reads in status, without its message, seen from `now`.
pub fn ended(exit: &dhow_runtime::Exit, now: At) -> Ended {
    let reason = match exit {
        e if e.oom => "OOMKilled",
        e if e.code == 0 => "Completed",
        _ => "Error",
    };
    Ended {
        code: exit.code,
        signal: exit.signal,
        reason: reason.into(),
        message: String::new(),
        at: now.of_past(time::nanos(exit.at)),
    }
}

/// Whether a stored status tells of this run.
fn is_of(status: &ContainerStatus, instance: &Instance) -> bool {
    id_of(status) == instance.id
}

/// The runtime's identifier in a stored status.
fn id_of(status: &ContainerStatus) -> &str {
    status.container_id.as_deref().unwrap_or("").trim_start_matches("dhow://")
}

/// The last run of a container as the stored status tells it.
fn remembered(status: &ContainerStatus, now: At) -> Option<Instance> {
    let state = status.state.as_ref()?;
    let at = |t: Option<&Time>| t.map_or(now, |t| now.of_past(time::since_epoch(t)));
    let (started_at, end) = if let Some(t) = &state.terminated {
        let end = Ended {
            code: t.exit_code,
            signal: t.signal.unwrap_or(0),
            reason: t.reason.clone().unwrap_or_default(),
            message: t.message.clone().unwrap_or_default(),
            at: at(t.finished_at.as_ref()),
        };
        (at(t.started_at.as_ref()), end)
    } else {
        let running = state.running.as_ref();
        // Never started: nothing to remember.
        if running.is_none() && status.container_id.is_none() {
            return None;
        }
        let end = Ended {
            code: 137,
            signal: 0,
            reason: "ContainerStatusUnknown".into(),
            message: "The container could not be located when the machine came back".into(),
            at: now,
        };
        (at(running.and_then(|r| r.started_at.as_ref())), end)
    };
    Some(Instance {
        id: id_of(status).to_owned(),
        attempt: u32::try_from(status.restart_count).unwrap_or(0),
        hash: String::new(),
        image: status.image.clone(),
        image_id: status.image_id.clone(),
        started_at,
        ended: Some(end),
        backoff: Duration::ZERO,
        hook: Hook::Done,
        stopping: None,
        condemned: None,
        probes: BTreeMap::new(),
        recorded: false,
        stop_signal: 15,
        resources: None,
    })
}
