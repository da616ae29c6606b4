//! The pods of this machine: one worker each, level-triggered.
//!
//! [`admission`] is whether a pod may begin, [`observe`] what is seen, [`diff`] what to do next,
//! [`apply`] how it is done, [`status`] what the API is told; [`worker`] turns the wheel.

pub mod admission;
pub mod apply;
pub mod container;
pub mod diff;
pub mod observe;
pub mod reasons;
pub mod resources;
pub mod security;
pub mod status;
pub mod worker;

use crate::events::Level;
use crate::node::Eviction;
use crate::registry::PodEntry;
use crate::volumes;
use crate::world::World;
use admission::Answer;
use dhow_runtime::{ContainerState, Exit, SandboxState};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use observe::{Net, Observed, label};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{self, JoinError, JoinSet};
use worker::{Message, Worker};

/// What a restart of the agent found of one pod.
#[derive(Debug, Default)]
struct Leftover {
    sandbox: Option<SandboxState>,
    containers: Vec<ContainerState>,
}

impl Leftover {
    /// Nothing of the pod is here.
    fn is_empty(&self) -> bool {
        self.sandbox.is_none() && self.containers.is_empty()
    }
}

/// How long a pod is left alone whose worker failed: what made it fail may do so again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// First and longest pause between questions to a runtime that does not answer.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A pod's worker.
struct Worked {
    sender: mpsc::UnboundedSender<Message>,
    /// The pod as it was told last.
    pod: Arc<Pod>,
}

/// What a task of [`Pods`] ended with.
enum Task {
    /// The pod's worker has done its work.
    Done(String),
    /// The pause after a worker's failure is over.
    Paused(String),
}

/// How one of the tasks ended.
pub struct Ended(Result<(task::Id, Task), JoinError>);

/// All workers. Dropping it ends them without touching a container.
pub struct Pods {
    world: Arc<World>,
    workers: HashMap<String, Worked>,
    tasks: JoinSet<Task>,
    /// Whose worker a task is.
    running: HashMap<task::Id, String>,
    leftovers: HashMap<String, Leftover>,
    /// Pods that the current subscription has named.
    told: HashSet<String>,
    /// It has named all that there were: nobody else takes room here.
    in_step: bool,
    /// The machine as the store knows it, once it does.
    node: Option<Arc<Node>>,
    /// Pods of which nothing was begun: the machine has not said yet whether it takes them.
    waiting: HashMap<String, Arc<Pod>>,
}

impl Pods {
    /// Takes up what runs on this machine.
    ///
    /// # Errors
    /// When the runtime cannot tell what runs.
    pub async fn adopt(world: Arc<World>) -> Result<Self, dhow_runtime::Error> {
        let mut leftovers: HashMap<String, Leftover> = HashMap::new();
        for sandbox in world.runtime.sandboxes().await? {
            let uid = sandbox.spec.id.clone();
            leftovers.entry(uid).or_default().sandbox = Some(sandbox);
        }
        for container in world.runtime.containers().await? {
            // Others (the image builder) use the same runtime without these labels.
            let Some(uid) = container.spec.labels.get(label::UID).cloned() else { continue };
            apply::adopt(&world, &container);
            leftovers.entry(uid).or_default().containers.push(container);
        }
        let running =
            leftovers.values().flat_map(|l| &l.containers).filter(|c| c.exit.is_none()).count();
        if !leftovers.is_empty() {
            tracing::info!(pods = leftovers.len(), running, "took up what runs on this machine");
        }
        let (workers, tasks, running, told, waiting) = Default::default();
        let (in_step, node) = (false, None);
        Ok(Self { world, workers, tasks, running, leftovers, told, in_step, node, waiting })
    }

    /// A new subscription begins: what it does not name is gone.
    pub fn begin(&mut self) {
        self.told.clear();
        self.in_step = false;
    }

    /// The machine's own node appeared or changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        self.node = Some(node);
        self.admit();
    }

    /// A pod appeared or changed.
    pub async fn set(&mut self, pod: Arc<Pod>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.told.insert(uid.clone());
        if let Some(worker) = self.workers.get_mut(&uid) {
            worker.pod = pod.clone();
            if worker.sender.send(Message::Pod(pod.clone())).is_ok() {
                return;
            }
        }
        let leftover = match self.leftovers.remove(&uid) {
            Some(leftover) => leftover,
            // Its worker has ended (or failed) before: what it left is taken up, not made twice.
            None if self.workers.contains_key(&uid) => self.look(&uid).await,
            None => Leftover::default(),
        };
        self.take_up(uid, pod, leftover).await;
    }

    /// Has a worker go on with what there is of a pod. One of which there is nothing and that is not
    /// about to end has to be admitted first.
    async fn take_up(&mut self, uid: String, pod: Arc<Pod>, leftover: Leftover) {
        let over = matches!(
            pod.status.as_ref().and_then(|s| s.phase.as_deref()),
            Some("Succeeded" | "Failed")
        );
        if leftover.is_empty() && !over && pod.metadata.deletion_timestamp.is_none() {
            self.waiting.insert(uid, pod);
            self.admit();
            return;
        }
        self.waiting.remove(&uid);
        let seen = self.observed(&pod, leftover).await;
        self.spawn(uid, pod, seen);
    }

    /// Lets pods begin that the machine takes, the oldest first, and tells of those that it does not.
    /// To be asked again when there is other room than before.
    pub fn admit(&mut self) {
        let Some(node) = self.node.clone().filter(|_| self.in_step) else { return };
        let mut waiting: Vec<(String, Arc<Pod>)> = self.waiting.drain().collect();
        waiting.sort_by_key(|(uid, pod)| {
            (pod.metadata.creation_timestamp.as_ref().map(|at| at.0), uid.clone())
        });
        for (uid, pod) in waiting {
            let others = |entry: &PodEntry| entry.uid != uid;
            let used = self.world.registry.granted(others);
            let staying = self.world.registry.granted(|pod| others(pod) && self.stays(pod));
            let mut seen = observe::adopt(&pod, None, Vec::new(), self.world.now());
            match admission::ask(&pod, &node, &used, &staying) {
                Answer::Admitted => {}
                Answer::Later => {
                    self.waiting.insert(uid, pod);
                    continue;
                }
                Answer::Refused(refusal) => {
                    tracing::info!(uid, reason = %refusal.reason, "pod refused");
                    let (word, message) = (&refusal.word, refusal.message.as_str());
                    let because = Some(&refusal.reason);
                    self.world.events.pod(&pod, "", Level::Warning, word, message, because);
                    seen.verdict = Some(refusal.verdict());
                }
            }
            self.spawn(uid, pod, seen);
        }
    }

    /// Whether a pod is to go on here, as far as anybody knows: its worker may not have heard yet.
    fn stays(&self, pod: &PodEntry) -> bool {
        let worker = self.workers.get(&pod.uid).filter(|_| self.told.contains(&pod.uid));
        pod.active && worker.is_some_and(|w| w.pod.metadata.deletion_timestamp.is_none())
    }

    /// Asks the runtime what there is of one pod. That it does not answer does not mean that nothing
    /// runs: it is asked until it does, and without it there is nothing else to do.
    async fn look(&self, uid: &str) -> Leftover {
        let mut pause = ASK_AGAIN.0;
        loop {
            match self.ask(uid).await {
                Ok(leftover) => return leftover,
                Err(error) => {
                    tracing::warn!(uid, %error, "the runtime does not tell what runs of a pod yet");
                }
            }
            self.world.clock.sleep(pause).await;
            pause = (pause * 2).min(ASK_AGAIN.1);
        }
    }

    async fn ask(&self, uid: &str) -> Result<Leftover, dhow_runtime::Error> {
        let lost = |fault: dhow_fault::Injected| dhow_runtime::Error::Launcher(fault.to_string());
        dhow_fault::point("agent::look").map_err(lost)?;
        let runtime = &self.world.runtime;
        let (sandboxes, containers) =
            futures::try_join!(runtime.sandboxes(), runtime.containers())?;
        let own = |c: &ContainerState| c.spec.labels.get(label::UID).is_some_and(|u| u == uid);
        Ok(Leftover {
            sandbox: sandboxes.into_iter().find(|s| s.spec.id == uid),
            containers: containers.into_iter().filter(own).collect(),
        })
    }

    async fn observed(&self, pod: &Pod, leftover: Leftover) -> Observed {
        let mut net = None;
        if let Some(sandbox) = leftover.sandbox {
            let netns = sandbox.netns.clone();
            let ending = pod.metadata.deletion_timestamp.is_some();
            net = match apply::connect(&self.world, pod, sandbox.netns).await {
                Ok(net) => Some(net),
                // One that is to end needs no network any more, but its sandbox has to go.
                Err(_) if ending => Some(Net { netns, ip: None }),
                Err(error) => {
                    tracing::warn!(
                        pod = pod.metadata.name,
                        error,
                        "network of a running pod not taken up"
                    );
                    None
                }
            };
        }
        let now = self.world.now();
        let mut seen = observe::adopt(pod, net, leftover.containers, now);
        for (_, container) in observe::containers(pod) {
            let Some(track) = seen.containers.get_mut(&container.name) else { continue };
            for instance in track.instances.iter_mut().filter(|i| i.recorded) {
                if let Some(ended) = &mut instance.ended {
                    let failed = ended.code != 0;
                    ended.message = container::termination_message(
                        &self.world,
                        pod,
                        &container,
                        instance.attempt,
                        failed,
                    );
                }
            }
        }
        seen
    }

    fn spawn(&mut self, uid: String, pod: Arc<Pod>, seen: Observed) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let worker = Worker::new(self.world.clone(), pod.clone(), seen, inbox);
        // Before the next is admitted: what this one takes is taken.
        worker.note();
        self.workers.insert(uid.clone(), Worked { sender, pod });
        let of = uid.clone();
        let task = self.tasks.spawn(async move {
            worker.run().await;
            Task::Done(uid)
        });
        self.running.insert(task.id(), of);
    }

    /// The next end of a worker; never when there is none. Cancel safe; [`Pods::settle`] acts on it.
    pub async fn next_end(&mut self) -> Ended {
        match self.tasks.join_next_with_id().await {
            Some(ended) => Ended(ended),
            None => std::future::pending().await,
        }
    }

    /// Forgets a worker that has ended, and replaces one that failed.
    pub async fn settle(&mut self, ended: Ended) {
        match ended.0 {
            Ok((task, Task::Done(uid))) => {
                self.running.remove(&task);
                if self.workers.get(&uid).is_some_and(|w| w.sender.is_closed()) {
                    self.workers.remove(&uid);
                }
            }
            Ok((_, Task::Paused(uid))) => self.replace(uid).await,
            Err(error) => {
                let Some(uid) = self.running.remove(&error.id()) else { return };
                if error.is_panic() {
                    tracing::error!(uid, %error, "a pod's worker failed; another takes over");
                    let pause = self.world.clock.sleep(AFTER_FAILURE);
                    self.tasks.spawn(async move {
                        pause.await;
                        Task::Paused(uid)
                    });
                }
            }
        }
    }

    /// Has another worker go on where one has failed.
    async fn replace(&mut self, uid: String) {
        // News of the pod may have brought another one already.
        let Some(worker) = self.workers.get(&uid).filter(|w| w.sender.is_closed()) else { return };
        let pod = worker.pod.clone();
        let leftover = self.look(&uid).await;
        if self.told.contains(&uid) {
            self.take_up(uid, pod, leftover).await;
        } else if !leftover.is_empty() {
            self.remove(uid, leftover);
        } else {
            self.workers.remove(&uid);
        }
    }

    /// A pod is gone from the store.
    pub async fn gone(&mut self, uid: &str) {
        self.told.remove(uid);
        self.waiting.remove(uid);
        let Some(worker) = self.workers.get(uid) else { return };
        if worker.sender.send(Message::Gone).is_ok() {
            return;
        }
        // Its worker failed: what it left is for another.
        let leftover = self.look(uid).await;
        if !leftover.is_empty() {
            self.remove(uid.to_owned(), leftover);
        }
    }

    /// Has a worker take away what is left of a pod that nobody wants.
    fn remove(&mut self, uid: String, leftover: Leftover) {
        let pod = Arc::new(orphan(&uid, &leftover));
        tracing::info!(
            namespace = pod.metadata.namespace,
            pod = pod.metadata.name,
            uid,
            "removing what is left of a pod"
        );
        let netns = leftover.sandbox.and_then(|s| s.netns);
        let now = self.world.now();
        let mut seen =
            observe::adopt(&pod, Some(Net { netns, ip: None }), leftover.containers, now);
        seen.gone = Some(now.moment + std::time::Duration::from_secs(1));
        self.spawn(uid, pod, seen);
    }

    /// Everything that exists was named: what is here and was not is removed. Returns the uids of
    /// the pods that stay.
    pub async fn synced(&mut self) -> Vec<String> {
        let unnamed: Vec<String> =
            self.workers.keys().filter(|u| !self.told.contains(*u)).cloned().collect();
        for uid in unnamed {
            self.gone(&uid).await;
        }
        for (uid, leftover) in std::mem::take(&mut self.leftovers) {
            self.remove(uid, leftover);
        }
        self.waiting.retain(|uid, _| self.told.contains(uid));
        let known: HashSet<String> =
            self.workers.keys().chain(self.waiting.keys()).cloned().collect();
        sweep(&self.world, &known).await;
        self.in_step = true;
        self.admit();
        known.into_iter().collect()
    }

    /// A container ended.
    pub fn exited(&self, id: &str, exit: &dhow_runtime::Exit) {
        let Some(live) = self.world.registry.get(id) else { return };
        live.exit.send_replace(Some(exit.clone()));
        self.tell(&live.uid, Message::Exit(id.to_owned(), exit.clone()));
    }

    fn tell(&self, uid: &str, message: Message) {
        if let Some(worker) = self.workers.get(uid) {
            // One that has ended needs no news.
            let _ = worker.sender.send(message);
        }
    }

    /// Asks the runtime which containers have ended, when some exits may have been missed. Those
    /// that it does not know of any more have ended too.
    pub async fn catch_up(&self) {
        // Before the question: what is started meanwhile is not missed.
        let running = self.world.registry.running();
        match self.world.runtime.containers().await {
            Ok(all) => {
                let known: HashSet<&str> = all.iter().map(|c| c.spec.id.as_str()).collect();
                for live in running.iter().filter(|live| !known.contains(live.id.as_str())) {
                    let now =
                        i128::try_from(self.world.clock.now().as_nanos()).unwrap_or(i128::MAX);
                    let exit = Exit { code: 137, signal: 0, oom: false, at: now };
                    tracing::warn!(container = live.id, "the runtime lost a container");
                    live.exit.send_replace(Some(exit.clone()));
                    self.tell(&live.uid, Message::Lost(live.id.clone(), exit));
                }
                for (id, exit) in all.iter().filter_map(|c| Some((&c.spec.id, c.exit.as_ref()?))) {
                    self.exited(id, exit);
                }
            }
            Err(error) => tracing::warn!(%error, "the runtime does not tell what runs"),
        }
    }

    /// A pod has to go.
    pub fn evict(&self, eviction: Box<Eviction>) {
        let uid = eviction.uid.clone();
        self.tell(&uid, Message::Evict(eviction));
    }

    /// The machine's clock was set.
    pub fn clock_set(&self) {
        self.tell_all(|| Message::ClockSet);
    }

    /// A ConfigMap (or, with `secret`, Secret) changed.
    pub fn configured(&self, namespace: &str, secret: bool, name: &str) {
        // Workers look for themselves whether they use it.
        self.tell_all(|| Message::Config {
            namespace: namespace.to_owned(),
            secret,
            name: name.to_owned(),
        });
    }

    /// There are other images than before.
    pub fn images_changed(&self) {
        self.tell_all(|| Message::Images);
    }

    fn tell_all(&self, message: impl Fn() -> Message) {
        for worker in self.workers.values() {
            let _ = worker.sender.send(message());
        }
    }
}

/// A pod of which only the machine knows.
fn orphan(uid: &str, leftover: &Leftover) -> Pod {
    let of_sandbox = leftover.sandbox.as_ref().map(|s| &s.spec.labels);
    let labels = of_sandbox.or_else(|| leftover.containers.first().map(|c| &c.spec.labels));
    let text = |key: &str| labels.and_then(|l| l.get(key)).cloned();
    Pod {
        metadata: ObjectMeta {
            namespace: text(label::NAMESPACE),
            name: text(label::POD),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec::default()),
        status: None,
    }
}

/// Removes files of pods that nobody knows any more.
async fn sweep(world: &Arc<World>, known: &HashSet<String>) {
    let names = |dir: std::path::PathBuf| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    };
    let root = &world.config.data_dir;
    let mut stale: HashSet<String> = names(root.join("pods")).into_iter().collect();
    stale.extend(names(world.memory_root()));
    for uid in stale.difference(known) {
        if let Err(error) = volumes::release(world, uid).await {
            tracing::warn!(uid, %error, "files of a removed pod are left");
        }
    }
    for name in names(root.join("logs")) {
        let uid = name.rsplit('_').next().unwrap_or("");
        if !known.contains(uid) {
            let _ = volumes::apply::remove_dir(&root.join("logs").join(&name));
        }
    }
}
