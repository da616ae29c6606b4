//! The pods of this machine: one worker each, level-triggered.
//!
//! [`observe`] is what is seen, [`diff`] what to do next, [`apply`] how it is done, [`status`] what
//! the API is told; [`worker`] turns the wheel.

pub mod apply;
pub mod container;
pub mod diff;
pub mod observe;
pub mod resources;
pub mod security;
pub mod status;
pub mod worker;

use crate::volumes;
use crate::world::World;
use dhow_runtime::{ContainerState, SandboxState};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use observe::{Net, Observed, label};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use worker::{Message, Worker};

/// What a restart of the agent found of one pod.
#[derive(Debug, Default)]
struct Leftover {
    sandbox: Option<SandboxState>,
    containers: Vec<ContainerState>,
}

/// All workers. Dropping it ends them without touching a container.
pub struct Pods {
    world: Arc<World>,
    workers: HashMap<String, mpsc::UnboundedSender<Message>>,
    tasks: JoinSet<String>,
    leftovers: HashMap<String, Leftover>,
    /// Pods that the current subscription has named.
    told: HashSet<String>,
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
        let (workers, tasks, told) = Default::default();
        Ok(Self { world, workers, tasks, leftovers, told })
    }

    /// A new subscription begins: what it does not name is gone.
    pub fn begin(&mut self) {
        self.told.clear();
    }

    /// A pod appeared or changed.
    pub async fn set(&mut self, pod: Arc<Pod>) {
        self.reap();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.told.insert(uid.clone());
        if let Some(sender) = self.workers.get(&uid)
            && sender.send(Message::Pod(pod.clone())).is_ok()
        {
            return;
        }
        let leftover = match self.leftovers.remove(&uid) {
            Some(leftover) => leftover,
            // Its worker has ended (or failed) before: what it left is taken up, not made twice.
            None if self.workers.contains_key(&uid) => self.look(&uid).await,
            None => Leftover::default(),
        };
        let seen = self.observed(&pod, leftover).await;
        self.spawn(uid, pod, seen);
    }

    /// Asks the runtime what there is of one pod.
    async fn look(&self, uid: &str) -> Leftover {
        let runtime = &self.world.runtime;
        let (sandboxes, containers) = futures::join!(runtime.sandboxes(), runtime.containers());
        let own = |c: &ContainerState| c.spec.labels.get(label::UID).is_some_and(|u| u == uid);
        Leftover {
            sandbox: sandboxes.unwrap_or_default().into_iter().find(|s| s.spec.id == uid),
            containers: containers.unwrap_or_default().into_iter().filter(own).collect(),
        }
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
        let now = self.world.clock.now();
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
        let worker = Worker::new(self.world.clone(), pod, seen, inbox);
        self.workers.insert(uid.clone(), sender);
        self.tasks.spawn(async move {
            worker.run().await;
            uid
        });
    }

    /// Forgets workers that have ended.
    fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            match ended {
                Ok(uid) => {
                    if self.workers.get(&uid).is_some_and(mpsc::UnboundedSender::is_closed) {
                        self.workers.remove(&uid);
                    }
                }
                Err(error) if error.is_panic() => tracing::error!(%error, "a pod's worker failed"),
                Err(_) => {}
            }
        }
    }

    /// A pod is gone from the store.
    pub async fn gone(&mut self, uid: &str) {
        self.reap();
        let Some(sender) = self.workers.get(uid) else { return };
        if sender.send(Message::Gone).is_ok() {
            return;
        }
        // Its worker failed: what it left is for another.
        let leftover = self.look(uid).await;
        if leftover.sandbox.is_some() || !leftover.containers.is_empty() {
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
        let now = self.world.clock.now();
        let mut seen =
            observe::adopt(&pod, Some(Net { netns, ip: None }), leftover.containers, now);
        seen.gone = Some(now + std::time::Duration::from_secs(1));
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
        let known: HashSet<String> = self.workers.keys().cloned().collect();
        sweep(&self.world, &known).await;
        known.into_iter().collect()
    }

    /// A container ended.
    pub fn exited(&self, id: &str, exit: &dhow_runtime::Exit) {
        let Some(live) = self.world.registry.get(id) else { return };
        live.exit.send_replace(Some(exit.clone()));
        if let Some(sender) = self.workers.get(&live.uid) {
            let _ = sender.send(Message::Exit(id.to_owned(), exit.clone()));
        }
    }

    /// Asks the runtime which containers have ended, when some exits may have been missed.
    pub async fn catch_up(&self) {
        match self.world.runtime.containers().await {
            Ok(all) => {
                for (id, exit) in all.iter().filter_map(|c| Some((&c.spec.id, c.exit.as_ref()?))) {
                    self.exited(id, exit);
                }
            }
            Err(error) => tracing::warn!(%error, "the runtime does not tell what runs"),
        }
    }

    /// A ConfigMap (or, with `secret`, Secret) changed.
    pub fn configured(&self, namespace: &str, secret: bool, name: &str) {
        // Workers look for themselves whether they use it.
        for sender in self.workers.values() {
            let _ = sender.send(Message::Config {
                namespace: namespace.to_owned(),
                secret,
                name: name.to_owned(),
            });
        }
    }

    /// There are other images than before.
    pub fn images_changed(&self) {
        for sender in self.workers.values() {
            let _ = sender.send(Message::Images);
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
