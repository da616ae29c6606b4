//! One pod's worker: takes news, plans, carries out, reports. It waits for news or for the next due
//! moment, and for nothing else.

mod evict;
mod report;
mod resize;

use super::apply::{self, Order, StartFailure};
use super::container;
use super::diff::{self, Action, plan};
use super::observe::{
    self, Ended, Failure, Hook, Instance, Net, Observed, Role, Step, Stopping, containers,
    field_path,
};
use super::reasons;
use super::resources;
use crate::env::{self, Trouble};
use crate::events::Level;
use crate::images;
use crate::node::Eviction;
use crate::probes::{self, Kind, Outcome, Verdict};
use crate::registry::PodEntry;
use crate::time::{At, Moment};
use crate::volumes;
use crate::world::World;
use dhow_intents::FeedError;
use dhow_reason::{Code, Reason};
use dhow_runtime::Exit;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Pod, PodStatus, ResourceRequirements,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// When to try again after the control plane could not be reached.
const REACH_AGAIN: Duration = Duration::from_secs(1);
/// What a container keeps after its `preStop` hook used up the grace period, as upstream.
const AFTER_HOOK: Duration = Duration::from_secs(2);

/// News for a worker.
#[derive(Debug)]
pub enum Message {
    /// The pod changed.
    Pod(Arc<Pod>),
    /// The pod is gone from the store.
    Gone,
    /// A container ended.
    Exit(String, Exit),
    /// A container ended, and nobody knows how.
    Lost(String, Exit),
    /// A ConfigMap (or Secret) changed.
    Config {
        /// Its namespace.
        namespace: String,
        /// It is a Secret.
        secret: bool,
        /// Its name.
        name: String,
    },
    /// There are other images than before.
    Images,
    /// The machine's clock was set.
    ClockSet,
    /// It has to go, because the machine is short of something.
    Evict(Box<Eviction>),
}

/// How a step ended.
enum Done {
    Sandbox(Result<Net, String>),
    Volumes(Result<volumes::Prepared, Trouble>),
    Started {
        name: String,
        id: String,
        attempt: u32,
        backoff: Duration,
        result: Box<Result<Instance, StartFailure>>,
    },
    Hooked {
        name: String,
        id: String,
        result: Result<(), String>,
    },
    Stopped {
        name: String,
        id: String,
        hooked: bool,
        result: Result<(), String>,
    },
    Killed(Result<(), String>),
    Probed {
        name: String,
        id: String,
        kind: Kind,
        began: Moment,
        outcome: Outcome,
    },
    Resized {
        name: String,
        id: String,
        resources: Box<ResourceRequirements>,
        result: Result<(), String>,
    },
    Reported(Box<PodStatus>, Result<(), FeedError>),
    Torn(Result<(), String>),
    Finished(Result<(), FeedError>),
    Forgotten,
}

/// The worker of one pod.
pub struct Worker {
    world: Arc<World>,
    pod: Arc<Pod>,
    seen: Observed,
    inbox: mpsc::UnboundedReceiver<Message>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    /// The status that was computed last.
    current: PodStatus,
    /// The status that was stored last.
    stored: Option<PodStatus>,
    reporting: bool,
    /// When the status that is to be stored was first seen.
    report_since: Option<Moment>,
    report_again: Option<Moment>,
    /// Exits that came before their start was known to have succeeded.
    early: HashMap<String, Exit>,
    refresh_at: Option<Moment>,
    refresh: bool,
    refreshing: bool,
    finish_at: Option<Moment>,
    /// How often the control plane did not take the pod's end.
    refused: u32,
    /// Containers whose sources changed while they were being started.
    nudged: HashSet<String>,
    /// What is still to be told of its eviction.
    evicted: Option<Eviction>,
    /// Everything is over; the worker may end.
    over: bool,
}

impl Worker {
    /// A worker that goes on from what was observed.
    pub fn new(
        world: Arc<World>,
        pod: Arc<Pod>,
        seen: Observed,
        inbox: mpsc::UnboundedReceiver<Message>,
    ) -> Self {
        let current = pod.status.clone().unwrap_or_default();
        Self {
            world,
            current,
            stored: pod.status.clone(),
            pod,
            seen,
            inbox,
            work: FuturesUnordered::new(),
            reporting: false,
            report_since: None,
            report_again: None,
            early: HashMap::new(),
            refresh_at: None,
            refresh: false,
            refreshing: false,
            finish_at: None,
            refused: 0,
            nudged: HashSet::new(),
            evicted: None,
            over: false,
        }
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("")
    }

    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or("")
    }

    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or("")
    }

    /// Works until nothing of the pod is left.
    pub async fn run(mut self) {
        if let Err(fault) = dhow_fault::point("agent::worker") {
            // Nothing else proves what happens after one.
            panic!("{fault}");
        }
        self.asked();
        let mut room = self.world.registry.room();
        while !self.over {
            let now = self.world.now();
            let next = plan(&self.pod, &self.seen, now.moment);
            let mut again = false;
            for action in next.actions {
                again |= self.begin(action, now.moment);
            }
            if again {
                continue;
            }
            let mut due = next.due;
            let mut at = |moment: Option<Moment>| due = [due, moment].into_iter().flatten().min();
            at(self.refresh_volumes(now.moment));
            at(self.report(now));
            at(self.finish_at.filter(|at| *at > now.moment));
            if self.seen.gone.is_some() && self.seen.torn {
                // Torn down as one that had ended, it kept them for people to read.
                self.remove_logs();
                break;
            }
            let clock = self.world.clock.clone();
            let wait = async move {
                match due {
                    // Timers have a grain: without it the last microseconds would be waited for in
                    // turns.
                    Some(at) => clock.sleep(at.since(now.moment) + Duration::from_millis(1)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.hear(message),
                    None => return,
                },
                Some(done) = self.work.next(), if !self.work.is_empty() => self.settle(done),
                Ok(()) = room.changed(), if self.seen.held.is_some() => self.asked(),
                () = wait => {}
            }
            while let Ok(message) = self.inbox.try_recv() {
                self.hear(message);
            }
        }
        self.world.registry.remove_pod(self.namespace(), self.name(), self.uid());
    }

    /// Tells the registry what there is to connect to, and what of the machine the pod has.
    pub(super) fn note(&self) {
        let all = containers(&self.pod);
        let entry = PodEntry {
            uid: self.uid().to_owned(),
            containers: all
                .iter()
                .filter(|(r, _)| *r == Role::Main)
                .map(|(_, c)| c.name.clone())
                .collect(),
            all: all.iter().map(|(_, c)| c.name.clone()).collect(),
            previous: self.previous(),
            waiting: self.waiting(),
            netns: self.seen.sandbox.ready().map(|n| n.netns.clone()),
            usage: self.granted(),
            storage_limits: resources::storage_limits(&self.pod),
            priority: self.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0),
            active: diff::ending(&self.pod, &self.seen).is_none(),
        };
        self.world.registry.set_pod(self.namespace(), self.name(), entry);
    }

    /// What the status tells of the containers.
    fn told(&self) -> impl Iterator<Item = &ContainerStatus> {
        let status = &self.current;
        let lists = [
            &status.init_container_statuses,
            &status.container_statuses,
            &status.ephemeral_container_statuses,
        ];
        lists.into_iter().flatten().flatten()
    }

    /// The runs that the status calls last: of a container that waits it is its newest.
    fn previous(&self) -> BTreeMap<String, u32> {
        self.told()
            .filter_map(|told| {
                let track = self.seen.track(&told.name)?;
                let waits = told.state.as_ref().is_some_and(|s| s.waiting.is_some());
                let run = if waits { track.last() } else { track.previous() };
                Some((told.name.clone(), run?.attempt))
            })
            .collect()
    }

    /// Why containers wait.
    fn waiting(&self) -> BTreeMap<String, String> {
        self.told()
            .filter_map(|told| {
                let reason = told.state.as_ref()?.waiting.as_ref()?.reason.clone()?;
                Some((told.name.clone(), reason))
            })
            .collect()
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => {
                let (new, old) = (&pod.metadata, &self.pod.metadata);
                let told = new.labels != old.labels || new.annotations != old.annotations;
                self.refresh |= told && volumes::tells_of_itself(&pod);
                let before = std::mem::replace(&mut self.pod, pod);
                self.hear_of_deletion(&before);
                self.tell_again();
                self.try_resize_again(&before);
                self.asked();
                self.note();
            }
            Message::Gone => {
                // Whoever removed it by force does not wait; others had their grace period.
                let soon = self.world.now().moment + Duration::from_secs(1);
                self.seen.gone.get_or_insert(soon);
            }
            Message::Exit(id, exit) => self.exited(&id, exit),
            Message::Lost(id, exit) => {
                self.exited(&id, exit);
                if let Some(ended) = self.seen.instance_mut(&id).and_then(|i| i.ended.as_mut()) {
                    ended.reason = "ContainerStatusUnknown".into();
                    ended.message = "The container could not be located".into();
                }
            }
            Message::Config { namespace, .. } if namespace != self.namespace() => {}
            Message::Config { secret, name, .. } => {
                if volumes::shows(&self.pod, secret, &name) {
                    self.refresh = true;
                    if let Step::Failed(failure) = &mut self.seen.volumes {
                        failure.retry_at = Moment::PAST;
                    }
                }
                let pod = self.pod.clone();
                for (_, container) in containers(&pod) {
                    let (maps, secrets) = env::references(&container);
                    let named = if secret { secrets } else { maps };
                    if named.contains(&name) {
                        self.retry(&container.name, |_| true);
                    }
                }
            }
            // Tokens may have run out by it, or not be valid yet.
            Message::ClockSet => self.refresh = true,
            Message::Evict(eviction) => self.evict(*eviction),
            Message::Images => {
                let names: Vec<String> = self.seen.containers.keys().cloned().collect();
                for name in names {
                    self.retry(&name, |f| images::is_about_image(&f.reason));
                }
            }
        }
    }

    /// Begins the grace period of a pod that was just deleted, or shortens it.
    fn hear_of_deletion(&mut self, before: &Pod) {
        let asked = |pod: &Pod| {
            let meta = &pod.metadata;
            meta.deletion_timestamp.as_ref().map(|_| meta.deletion_grace_period_seconds)
        };
        if asked(&self.pod).is_some() && asked(&self.pod) != asked(before) {
            let by = self.world.now().moment + diff::grace(&self.pod);
            self.seen.deadline = Some(self.seen.deadline.map_or(by, |known| known.min(by)));
        }
    }

    fn retry(&mut self, name: &str, which: impl Fn(&Failure) -> bool) {
        let Some(track) = self.seen.containers.get_mut(name) else { return };
        if track.starting {
            self.nudged.insert(name.to_owned());
        }
        if let Some(failure) = track.failure.as_mut().filter(|f| which(f)) {
            failure.retry_at = Moment::PAST;
        }
    }

    fn container(&self, name: &str) -> Option<(Role, Container)> {
        let all = containers(&self.pod);
        all.into_iter().find(|(_, c)| c.name == name).map(|(role, c)| (role, c.into_owned()))
    }

    fn event(&self, name: &str, level: Level, event: &str, message: impl Into<String>) {
        self.tell(name, level, event, message, None);
    }

    /// Says what is wrong, with the reason as data.
    fn warn(&self, name: &str, event: &str, message: impl Into<String>, reason: &Reason) {
        self.tell(name, Level::Warning, event, message, Some(reason));
    }

    fn tell(
        &self,
        name: &str,
        level: Level,
        event: &str,
        message: impl Into<String>,
        reason: Option<&Reason>,
    ) {
        let field =
            self.container(name).map_or(String::new(), |(role, c)| field_path(role, &c.name));
        self.world.events.pod(&self.pod, &field, level, event, message, reason);
    }

    fn push(&mut self, step: impl Future<Output = Done> + Send + 'static) {
        self.work.push(Box::pin(step));
    }

    fn ip(&self) -> String {
        let net = self.seen.sandbox.ready();
        net.map_or(String::new(), |net| container::pod_ip(&self.world, &self.pod, net))
    }

    /// Begins a step. Returns whether the plan has to be made anew at once.
    fn begin(&mut self, action: Action, now: Moment) -> bool {
        let world = self.world.clone();
        let pod = self.pod.clone();
        match action {
            Action::MakeSandbox => {
                self.seen.sandbox.begin();
                self.push(async move { Done::Sandbox(apply::make_sandbox(&world, &pod).await) });
            }
            Action::PrepareVolumes => {
                self.seen.volumes.begin();
                self.refresh = false;
                self.push(async move { Done::Volumes(volumes::prepare(&world, &pod).await) });
            }
            Action::Start { name, attempt, backoff } => self.start(&name, attempt, backoff),
            Action::TellBackOff { name, .. } => {
                if let Some(track) = self.seen.containers.get_mut(&name) {
                    track.told = track.last().map_or(0, |i| i.attempt + 1);
                }
                let id = self.uid().to_owned();
                let whole = format!("{}_{}({id})", self.name(), self.namespace());
                let message = format!("Back-off restarting failed container {name} in pod {whole}");
                let last = self.seen.track(&name).and_then(|t| t.last());
                let reason = last.map(|last| reasons::crash_loop(&pod, &name, last));
                self.tell(&name, Level::Warning, "BackOff", message, reason.as_ref());
                return true;
            }
            Action::PostStart { name } => {
                let Some((_, container)) = self.container(&name) else { return false };
                let handler = container.lifecycle.as_ref().and_then(|l| l.post_start.clone());
                let ip = self.ip();
                let Some(instance) = self.running(&name) else { return false };
                let Some(handler) = handler else {
                    instance.hook = Hook::Done;
                    return true;
                };
                instance.hook = Hook::Running;
                let id = instance.id.clone();
                self.push(async move {
                    let result = apply::hook(&world, &id, &container, &handler, &ip).await;
                    Done::Hooked { name, id, result }
                });
            }
            Action::Stop { name, grace, message } => self.stop(name, grace, message, now),
            Action::Kill { name } => {
                let Some(instance) = self.running(&name) else { return false };
                if let Some(stopping) = &mut instance.stopping {
                    stopping.killed = true;
                }
                let id = instance.id.clone();
                self.push(async move {
                    Done::Killed(world.runtime.kill(&id, 9, true).await.map_err(|e| e.to_string()))
                });
            }
            Action::Probe { name, kind } => self.probe(name, kind, now),
            Action::Resize { name } => return self.resize(&name),
            Action::Forget { name, id } => {
                let Some(track) = self.seen.containers.get_mut(&name) else { return false };
                let Some(at) = track.instances.iter().position(|i| i.id == id) else {
                    return false;
                };
                let instance = track.instances.remove(at);
                self.push(async move {
                    apply::forget(&world, &pod, &name, &instance).await;
                    Done::Forgotten
                });
            }
            Action::Expire => {
                let message = "Pod was active on the node longer than the specified deadline";
                self.seen.verdict = Some(observe::Verdict {
                    decision: observe::Decision::Expired,
                    reason: "DeadlineExceeded".into(),
                    message: message.to_owned(),
                });
                let reason = reasons::of_pod(Code::DeadlineExceeded, &pod, message);
                self.tell("", Level::Normal, "DeadlineExceeded", message, Some(&reason));
                return true;
            }
            Action::TearDown => {
                self.seen.tearing = true;
                let ids: Vec<String> = self
                    .seen
                    .containers
                    .values()
                    .flat_map(|t| &t.instances)
                    .filter(|i| i.recorded)
                    .map(|i| i.id.clone())
                    .collect();
                let uid = self.uid().to_owned();
                self.push(async move { Done::Torn(apply::tear_down(&world, &uid, &ids).await) });
            }
            Action::Finish => {
                if self.finish_at.is_some_and(|at| now < at) {
                    return false;
                }
                self.seen.finished = true;
                let (namespace, name, uid) =
                    (self.namespace().to_owned(), self.name().to_owned(), self.uid().to_owned());
                self.push(async move {
                    Done::Finished(world.feed.finish_pod(&namespace, &name, &uid).await)
                });
            }
        }
        false
    }

    fn running(&mut self, name: &str) -> Option<&mut Instance> {
        self.seen.containers.get_mut(name)?.instances.last_mut().filter(|i| i.running())
    }

    fn start(&mut self, name: &str, attempt: u32, backoff: Duration) {
        let (Some((role, container)), Some(net)) =
            (self.container(name), self.seen.sandbox.ready().cloned())
        else {
            return;
        };
        let pid_of = self.looks_into(role, name);
        let track = self.seen.containers.entry(name.to_owned()).or_default();
        track.starting = true;
        let missed = track.failure.as_ref().is_some_and(|f| images::is_about_image(&f.reason));
        let order = Order {
            pod: self.pod.clone(),
            role,
            container,
            attempt,
            backoff,
            id: self.world.new_id(),
            net,
            pid_of,
            missed,
        };
        let world = self.world.clone();
        let name = name.to_owned();
        let id = order.id.clone();
        self.push(async move {
            let result = Box::new(apply::start(&world, order).await);
            Done::Started { name, id, attempt, backoff, result }
        });
    }

    /// The container whose process namespace a new one joins: that of `kubectl debug --target`.
    fn looks_into(&self, role: Role, name: &str) -> Option<String> {
        let spec = self.pod.spec.as_ref()?;
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let target = ephemeral
            .filter(|c| role == Role::Ephemeral && c.name == name)
            .find_map(|c| c.target_container_name.clone())
            .filter(|t| !t.is_empty())?;
        self.seen.track(&target).and_then(|t| t.running()).map(|i| i.id.clone())
    }

    fn stop(&mut self, name: String, grace: Duration, message: String, now: Moment) {
        let container = self.container(&name).map(|(_, c)| c);
        let ip = self.ip();
        let Some(instance) = self.running(&name) else { return };
        instance.stopping = Some(Stopping { deadline: now + grace, killed: false });
        let instance = instance.clone();
        self.event(&name, Level::Normal, "Killing", message);
        let world = self.world.clone();
        self.push(async move {
            let (hooked, result) =
                apply::stop(&world, &instance, container.as_ref(), grace, &ip).await;
            Done::Stopped { name, id: instance.id, hooked, result }
        });
    }

    fn probe(&mut self, name: String, kind: Kind, now: Moment) {
        let Some((_, container)) = self.container(&name) else { return };
        let ip = self.ip();
        let world = self.world.clone();
        let Some(instance) = self.running(&name) else { return };
        let (Some(probe), Some(live)) =
            (kind.of(&container).cloned(), world.registry.get(&instance.id))
        else {
            instance.probes.remove(&kind);
            return;
        };
        if let Some(state) = instance.probes.get_mut(&kind) {
            state.running = true;
        }
        let id = instance.id.clone();
        self.push(async move {
            let timeout = probes::diff::timeout(&probe);
            let patience = world.clock.sleep(timeout);
            let outcome = probes::observe::ask(
                &world.runtime,
                &live,
                &container,
                &probe,
                &ip,
                patience,
                timeout,
            )
            .await;
            Done::Probed { name, id, kind, began: now, outcome }
        });
    }

    fn exited(&mut self, id: &str, exit: Exit) {
        let found = self.seen.containers.iter().find_map(|(name, track)| {
            let instance = track.instances.iter().find(|i| i.id == id)?;
            Some((name.clone(), instance.attempt, instance.running()))
        });
        let Some((name, attempt, running)) = found else {
            self.early.insert(id.to_owned(), exit);
            return;
        };
        if !running {
            return;
        }
        let mut ended = observe::ended(&exit, self.world.now());
        if let Some((_, container)) = self.container(&name) {
            let failed = ended.code != 0;
            ended.message =
                container::termination_message(&self.world, &self.pod, &container, attempt, failed);
        }
        tracing::info!(
            namespace = self.namespace(),
            pod = self.name(),
            container = name,
            code = ended.code,
            reason = ended.reason,
            "container ended"
        );
        if let Some(instance) = self.seen.instance_mut(id) {
            instance.ended = Some(ended);
            instance.probes.clear();
        }
    }

    fn settle(&mut self, done: Done) {
        let at = self.world.now();
        let now = at.moment;
        match done {
            Done::Sandbox(Ok(net)) => {
                self.seen.sandbox = Step::Ready(net);
                self.note();
            }
            Done::Sandbox(Err(why)) => {
                let message = format!("Failed to create pod sandbox: {why}");
                let reason = reasons::of_pod(Code::SandboxFailed, &self.pod, &why);
                self.warn("", "FailedCreatePodSandBox", message.clone(), &reason);
                self.seen.sandbox.fail("FailedCreatePodSandBox", message, now);
            }
            Done::Volumes(Ok(prepared)) => {
                self.seen.volumes = Step::Ready(());
                self.refreshing = false;
                self.refresh_at = prepared.refresh_at;
            }
            Done::Volumes(Err(trouble)) => self.volumes_failed(&trouble, now),
            Done::Started { name, id, attempt, backoff, result } => {
                self.started(&name, &id, attempt, backoff, *result, at);
            }
            Done::Hooked { name, id, result } => {
                if let Err(why) = &result {
                    let reason = reasons::of_container(Code::HookFailed, &self.pod, &name, why);
                    let message = format!("PostStartHook failed: {why}");
                    self.warn(&name, "FailedPostStartHook", message, &reason);
                }
                if let Some(instance) = self.seen.instance_mut(&id) {
                    instance.hook = Hook::Done;
                    if result.is_err() {
                        instance.condemned = Some(("FailedPostStartHook".into(), None));
                    }
                }
            }
            Done::Stopped { name, id, hooked, result } => {
                if let Err(why) = result {
                    let (event, code) = match hooked {
                        true => ("FailedPreStopHook", Code::HookFailed),
                        false => ("FailedKillPod", Code::CannotRemove),
                    };
                    let reason = reasons::of_container(code, &self.pod, &name, &why);
                    self.warn(&name, event, why, &reason);
                }
                let stopping = self.seen.instance_mut(&id).and_then(|i| i.stopping.as_mut());
                if let Some(stopping) = stopping.filter(|_| hooked) {
                    stopping.deadline = stopping.deadline.max(now + AFTER_HOOK);
                }
            }
            Done::Killed(Ok(())) | Done::Forgotten => {}
            Done::Killed(Err(error)) => {
                tracing::warn!(
                    namespace = self.namespace(),
                    pod = self.name(),
                    error,
                    "container not killed"
                );
            }
            Done::Probed { name, id, kind, began, outcome } => {
                self.probed(&name, &id, kind, began, outcome, now)
            }
            Done::Resized { name, id, resources, result } => {
                self.resized(&name, &id, *resources, result, now);
            }
            Done::Reported(status, result) => self.reported(*status, result, now),
            Done::Torn(Ok(())) => {
                self.seen.tearing = false;
                self.seen.tear_failure = None;
                self.seen.torn = true;
                for instance in
                    self.seen.containers.values_mut().flat_map(|t| t.instances.iter_mut())
                {
                    instance.recorded = false;
                }
                self.seen.sandbox = Step::Absent;
                self.seen.volumes = Step::Absent;
                self.note();
                tracing::info!(
                    namespace = self.namespace(),
                    pod = self.name(),
                    "pod removed from this machine"
                );
                if self.seen.gone.is_some() || self.pod.metadata.deletion_timestamp.is_some() {
                    self.remove_logs();
                }
            }
            Done::Torn(Err(why)) => {
                self.seen.tearing = false;
                let reason = reasons::of_pod(Code::CannotRemove, &self.pod, &why);
                self.warn("", "FailedKillPod", format!("error killing pod: {why}"), &reason);
                let times = self.seen.tear_failure.as_ref().map_or(0, |f| f.times) + 1;
                let retry_at = now + observe::pause(times);
                self.seen.tear_failure =
                    Some(Failure { reason: "FailedKillPod".into(), message: why, retry_at, times });
            }
            Done::Finished(Err(FeedError::Unreachable(why))) => {
                tracing::debug!(pod = self.name(), why, "end of pod not told yet");
                self.seen.finished = false;
                self.finish_at = Some(now + REACH_AGAIN);
            }
            Done::Finished(Err(error @ FeedError::Refused(_))) => {
                // That it is gone already would be fine: until it is, somebody waits for its end.
                tracing::warn!(
                    namespace = self.namespace(),
                    pod = self.name(),
                    %error,
                    "end of pod refused"
                );
                self.seen.finished = false;
                let wait = REACH_AGAIN.saturating_mul(1 << self.refused.min(8));
                self.refused += 1;
                self.finish_at = Some(now + wait);
            }
            Done::Finished(Ok(())) => {}
        }
    }

    /// Logs go with the pod; those of a pod that only has ended stay for people to read.
    fn remove_logs(&self) {
        let dir = self.world.log_dir(self.namespace(), self.name(), self.uid());
        if let Err(error) = volumes::apply::remove_dir(&dir) {
            tracing::warn!(%error, "logs of a removed pod are left");
        }
    }

    fn volumes_failed(&mut self, trouble: &Trouble, now: Moment) {
        let reason = reasons::volumes(&self.pod, trouble);
        self.warn("", "FailedMount", trouble.to_string(), &reason);
        if std::mem::take(&mut self.refreshing) {
            // The containers run on with what they have.
            self.refresh_at = Some(now + observe::BACKOFF_FIRST);
            return;
        }
        self.seen.volumes.fail("FailedMount", trouble.to_string(), now);
        if self.refresh
            && let Step::Failed(failure) = &mut self.seen.volumes
        {
            // It changed while it was being read.
            failure.retry_at = now;
        }
    }

    fn started(
        &mut self,
        name: &str,
        id: &str,
        attempt: u32,
        backoff: Duration,
        result: Result<Instance, StartFailure>,
        now: At,
    ) {
        let image = self.container(name).and_then(|(_, c)| c.image).unwrap_or_default();
        let early = self.early.remove(id);
        let nudged = self.nudged.remove(name);
        let events = match &result {
            Ok(_) => vec![
                (
                    Level::Normal,
                    "Pulled",
                    format!("Container image {image:?} already present on machine"),
                ),
                (Level::Normal, "Created", format!("Created container: {name}")),
                (Level::Normal, "Started", format!("Started container {name}")),
            ],
            Err(StartFailure::Waiting(reason, message)) => {
                let event = match *reason {
                    "ImagePullBackOff" => (Level::Normal, "BackOff"),
                    "InvalidImageName" => (Level::Warning, "InspectFailed"),
                    "ErrImageNeverPull" => (Level::Warning, "ErrImageNeverPull"),
                    _ => (Level::Warning, "Failed"),
                };
                let text = if *reason == apply::CONFIG_ERROR {
                    format!("Error: {message}")
                } else {
                    message.clone()
                };
                vec![(event.0, event.1, text)]
            }
            Err(StartFailure::Missing(why)) => {
                vec![(Level::Warning, "Failed", format!("Error: {why}"))]
            }
            Err(StartFailure::CannotStart(_, why)) => {
                vec![(Level::Warning, "Failed", format!("Error: {why}"))]
            }
        };
        let failed = result.as_ref().err().zip(self.container(name));
        let reason = failed.map(|(failure, (_, c))| reasons::start(&self.pod, &c, failure));
        for (level, event, message) in events {
            self.tell(name, level, event, message, reason.as_ref());
        }
        let hash = self.container(name).map(|(_, c)| diff::hash(&c)).unwrap_or_default();
        let track = self.seen.containers.entry(name.to_owned()).or_default();
        track.starting = false;
        match result {
            Ok(instance) => {
                track.failure = None;
                track.instances.push(instance);
                tracing::info!(
                    namespace = self.namespace(),
                    pod = self.name(),
                    container = name,
                    attempt,
                    "container started"
                );
            }
            Err(failure @ (StartFailure::Waiting(..) | StartFailure::Missing(_))) => {
                let (reason, message) = match failure {
                    StartFailure::Waiting(reason, message) => (reason, message),
                    StartFailure::Missing(why) | StartFailure::CannotStart(_, why) => {
                        (apply::CONFIG_ERROR, why)
                    }
                };
                let times = track.failure.as_ref().map_or(0, |f| f.times) + 1;
                let pause = if nudged { Duration::ZERO } else { observe::pause(times) };
                let retry_at = now.moment + pause;
                track.failure = Some(Failure { reason: reason.into(), message, retry_at, times });
            }
            Err(StartFailure::CannotStart(image_id, why)) => {
                track.failure = None;
                track.instances.push(Instance {
                    id: id.to_owned(),
                    attempt,
                    hash,
                    image,
                    image_id,
                    started_at: now,
                    ended: Some(Ended {
                        code: 128,
                        signal: 0,
                        reason: "StartError".into(),
                        message: why,
                        at: now,
                    }),
                    backoff,
                    hook: Hook::Done,
                    stopping: None,
                    condemned: None,
                    probes: BTreeMap::new(),
                    recorded: false,
                    stop_signal: 15,
                    resources: None,
                });
            }
        }
        if let Some(exit) = early {
            self.exited(id, exit);
        }
    }

    fn probed(
        &mut self,
        name: &str,
        id: &str,
        kind: Kind,
        began: Moment,
        outcome: Outcome,
        now: Moment,
    ) {
        let Some((_, container)) = self.container(name) else { return };
        let Some(probe) = kind.of(&container).cloned() else { return };
        let Some(instance) = self.seen.instance_mut(id).filter(|i| i.running()) else { return };
        let Some(state) = instance.probes.get_mut(&kind) else { return };
        let counted = state.counts(began);
        let verdict = state.take(kind, &probe, &outcome, began, now);
        if verdict == Verdict::Condemned {
            let grace = probe.termination_grace_period_seconds.map(crate::time::seconds);
            let message =
                format!("Container {name} failed {} probe, will be restarted", kind.word());
            instance.condemned = Some((message, grace));
        }
        // Readiness is asked as soon as the container counts as started.
        if kind == Kind::Startup && verdict == Verdict::Changed {
            for other in instance.probes.values_mut().filter(|p| !p.passed) {
                other.due = other.due.min(now);
                other.counted = other.counted.min(now);
            }
        }
        if let (Outcome::Failure(why), true) = (outcome, counted) {
            let message = format!("{} probe failed: {}", kind.title(), why.trim_end());
            self.warn(name, "Unhealthy", message, &reasons::probe(&self.pod, name, kind, &why));
        }
    }

    /// Brings volumes up to date when what they show has changed or a token ages. Returns when to
    /// look again.
    fn refresh_volumes(&mut self, now: Moment) -> Option<Moment> {
        if self.seen.volumes.ready().is_none()
            || self.refreshing
            || diff::ending(&self.pod, &self.seen).is_some()
        {
            return None;
        }
        if !self.refresh && self.refresh_at.is_none_or(|at| now < at) {
            return self.refresh_at;
        }
        self.refresh = false;
        self.refresh_at = None;
        self.refreshing = true;
        let (world, pod) = (self.world.clone(), self.pod.clone());
        self.push(async move { Done::Volumes(volumes::prepare(&world, &pod).await) });
        None
    }
}
