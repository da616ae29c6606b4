//! The order of work on a machine; one folder per resource: observe, diff, apply, status.
//!
//! The agent makes the pods of one machine be what the store says. It is level-triggered and may be
//! killed at any instruction: containers outlive it, and what it has to know of them it finds again
//! in the runtime's records, whose labels say which pod and container they belong to.

pub mod env;
pub mod events;
pub mod images;
pub mod network;
pub mod node;
pub mod pods;
pub mod probes;
pub mod quantity;
mod registry;
pub mod streams;
pub mod time;
pub mod volumes;
mod world;

pub use world::Config;

use bytes::Bytes;
use dhow_clock::SharedClock;
use dhow_dataplane::Dataplane;
use dhow_images::Images;
use dhow_intents::streams::Duplex;
use dhow_intents::{
    AttachRequest, Change, ExecRequest, Feed, LogRequest, PodRef, Session, StreamError, Streams,
};
use dhow_names::Names;
use dhow_runtime::{Exit, Runtime};
use events::Recorder;
use futures::future::BoxFuture;
use network::News;
use node::Notice;
use pods::Pods;
use registry::Registry;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio::task::JoinSet;
use world::World;

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory or memory file system could not be made.
    #[error("prepare {path}: {source}; the agent needs root and a writable data directory")]
    Prepare {
        /// Which.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The runtime does not tell what runs.
    #[error(transparent)]
    Runtime(#[from] dhow_runtime::Error),
}

/// Pauses between attempts to follow the control plane.
const FOLLOW_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The agent of one machine.
#[derive(Debug)]
pub struct Agent {
    world: Arc<World>,
    tasks: Mutex<JoinSet<()>>,
    images_changed: Arc<Notify>,
    images_news: mpsc::UnboundedSender<()>,
}

impl Agent {
    /// Takes up what runs on this machine and begins to follow the control plane. It registers the
    /// node and reports in the background.
    ///
    /// # Errors
    /// When the data directory cannot be prepared or the runtime does not answer.
    pub async fn start(
        config: Config,
        feed: Arc<dyn Feed>,
        runtime: Runtime,
        images: Images,
        dataplane: Dataplane,
        names: Names,
        clock: SharedClock,
    ) -> Result<Arc<Self>, Error> {
        let data = config.data_dir.clone();
        let memory = data.join("memory");
        let prepare = |path: &Path| {
            let path = path.display().to_string();
            move |source| Error::Prepare { path, source }
        };
        volumes::apply::make_dir(&data, 0o750).map_err(prepare(&data))?;
        volumes::apply::mount_memory(&memory, 0, 0o755, None).map_err(prepare(&memory))?;
        let (events, deliver) = Recorder::new(feed.clone(), clock.clone(), &config.node_name);
        let facts = node::observe::facts(&data);
        // Before looking at what runs, so that no exit is missed in between.
        let exits = runtime.exits();
        let registry = Registry::default();
        let world = Arc::new(World {
            config,
            feed,
            runtime,
            images,
            dataplane,
            names,
            clock,
            events,
            registry,
            facts,
        });
        let pods = Pods::adopt(world.clone()).await?;
        let images_changed = Arc::new(Notify::new());
        let (images_news, images_told) = mpsc::unbounded_channel();
        let (network, news) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(deliver);
        let (notice, noticed) = mpsc::unbounded_channel();
        tasks.spawn(node::run(world.clone(), images_changed.clone(), notice));
        tasks.spawn(network::run(world.clone(), news));
        tasks.spawn(follow(world.clone(), pods, exits, images_told, noticed, network));
        Ok(Arc::new(Self { world, tasks: Mutex::new(tasks), images_changed, images_news }))
    }

    /// Images were added or removed: pods that wait for one try again at once, and the node's list
    /// is brought up to date.
    pub fn images_changed(&self) {
        self.images_changed.notify_one();
        // Fails only after `shutdown`.
        let _ = self.images_news.send(());
    }

    /// Stops working. Containers, networks and volumes stay as they are; an agent that is started
    /// later takes them up.
    pub async fn shutdown(&self) {
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }

    /// Removes what agents made below `data_dir`: mounts, volumes and logs. For `dhow down --purge`,
    /// after all containers were removed.
    ///
    /// # Errors
    /// What could not be unmounted or removed.
    pub fn purge(data_dir: &Path) -> std::io::Result<()> {
        dhow_kernel::mount::unmount_below(data_dir)?;
        volumes::apply::remove_dir(data_dir)
    }
}

/// Follows the control plane and the runtime until it is dropped.
async fn follow(
    world: Arc<World>,
    mut pods: Pods,
    mut exits: broadcast::Receiver<(String, Exit)>,
    mut images: mpsc::UnboundedReceiver<()>,
    mut noticed: mpsc::UnboundedReceiver<Notice>,
    network: mpsc::UnboundedSender<News>,
) {
    let mut pause = FOLLOW_AGAIN.0;
    let mut reconnections = world.runtime.reconnections();
    let mut room = world.registry.room();
    loop {
        let mut changes = match world.feed.subscribe().await {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(%error, "not following the control plane yet");
                wait(&world, &mut pods, &mut exits, pause).await;
                pause = (pause * 2).min(FOLLOW_AGAIN.1);
                continue;
            }
        };
        pods.begin();
        let _ = network.send(News::Begin);
        loop {
            tokio::select! {
                // Ends of containers first: they are few and others wait for them.
                biased;
                exit = exits.recv() => ended(&mut pods, exit).await,
                Ok(()) = reconnections.changed() => pods.catch_up().await,
                over = pods.next_end() => pods.settle(over).await,
                Ok(()) = room.changed() => pods.admit(),
                Some(()) = images.recv() => pods.images_changed(),
                Some(notice) = noticed.recv() => match notice {
                    Notice::Evict(eviction) => pods.evict(eviction),
                    Notice::ClockSet => pods.clock_set(),
                },
                change = changes.recv() => match change {
                    Some(change) => {
                        pause = FOLLOW_AGAIN.0;
                        take(&mut pods, &network, change).await;
                    }
                    None => break,
                },
            }
        }
        tracing::warn!("the control plane's feed ended; following it anew");
        wait(&world, &mut pods, &mut exits, pause).await;
        pause = (pause * 2).min(FOLLOW_AGAIN.1);
    }
}

/// Waits, but goes on telling pods of their containers' ends.
async fn wait(
    world: &World,
    pods: &mut Pods,
    exits: &mut broadcast::Receiver<(String, Exit)>,
    pause: Duration,
) {
    let over = world.clock.sleep(pause);
    tokio::pin!(over);
    loop {
        tokio::select! {
            exit = exits.recv() => ended(pods, exit).await,
            done = pods.next_end() => pods.settle(done).await,
            () = &mut over => return,
        }
    }
}

async fn ended(pods: &mut Pods, exit: Result<(String, Exit), broadcast::error::RecvError>) {
    match exit {
        Ok((id, exit)) => pods.exited(&id, &exit),
        Err(broadcast::error::RecvError::Lagged(_)) => pods.catch_up().await,
        // The runtime's client is gone: nothing more will come.
        Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
    }
}

async fn take(pods: &mut Pods, network: &mpsc::UnboundedSender<News>, change: Change) {
    // Sending fails only at shutdown.
    let tell = |news| {
        let _ = network.send(news);
    };
    match change {
        Change::Pod(pod) => pods.set(pod).await,
        Change::PodGone(_, _, uid) => pods.gone(&uid).await,
        Change::Node(node) => pods.set_node(node),
        Change::Service(intent) => tell(News::Service(intent)),
        Change::ServiceGone(owner) => tell(News::ServiceGone(owner)),
        Change::Names(intent) => tell(News::Names(intent)),
        Change::NamesGone(owner) => tell(News::NamesGone(owner)),
        Change::Machines(machines) => tell(News::Machines(machines)),
        Change::ConfigMap(namespace, name) => pods.configured(&namespace, false, &name),
        Change::Secret(namespace, name) => pods.configured(&namespace, true, &name),
        Change::Synced => {
            let known = pods.synced().await;
            let (done, swept) = oneshot::channel();
            tell(News::Synced(known, done));
            // Pods that come later must not be swept with those that are gone.
            let _ = swept.await;
            tracing::info!("in step with the control plane");
        }
    }
}

impl Streams for Agent {
    fn logs(
        &self,
        pod: PodRef,
        request: LogRequest,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<Bytes>, StreamError>> {
        Box::pin(async move { streams::open_logs(&self.world, &pod, request).await })
    }

    fn exec(
        &self,
        pod: PodRef,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<Session, StreamError>> {
        Box::pin(async move { streams::exec(&self.world, &pod, request).await })
    }

    fn attach(
        &self,
        pod: PodRef,
        request: AttachRequest,
    ) -> BoxFuture<'_, Result<Session, StreamError>> {
        Box::pin(async move { streams::attach(&self.world, &pod, request).await })
    }

    fn forward(
        &self,
        pod: PodRef,
        port: u16,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, StreamError>> {
        Box::pin(async move { streams::forward(&self.world, &pod, port).await })
    }
}
