//! Which containers run for which pods: who is told of their exits, and who may connect to them.

use crate::pods::resources::StorageLimits;
use dhow_fit::Usage;
use dhow_runtime::{Exit, ProcessSpec};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// So long after its start the agent may not have heard of a pod that runs here.
const LEARNING: Duration = Duration::from_secs(10);

/// One instance of a container that the runtime knows.
#[derive(Debug)]
pub struct Live {
    /// The runtime's identifier.
    pub id: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The container's name.
    pub container: String,
    /// How often the container was restarted before.
    pub attempt: u32,
    /// What runs in it: further processes take its user, rights and environment.
    pub process: ProcessSpec,
    /// Whether its standard input was kept open.
    pub stdin: bool,
    /// How it ended, once it has.
    pub exit: watch::Sender<Option<Exit>>,
    /// The runtime has said that it runs: before, it need not know of it.
    pub started: AtomicBool,
}

/// A pod as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodEntry {
    /// Its uid.
    pub uid: String,
    /// Its ordinary containers, in order.
    pub containers: Vec<String>,
    /// All its containers.
    pub all: Vec<String>,
    /// The run that counts as the one before, by container, as the status tells it.
    pub previous: BTreeMap<String, u32>,
    /// Why a container waits, as the status tells it.
    pub waiting: BTreeMap<String, String>,
    /// Its network namespace, once there is one; `None` inside when it is the machine's.
    pub netns: Option<Option<std::path::PathBuf>>,
    /// What of the machine is granted to it.
    pub usage: Usage,
    /// Bytes of the disk that it and its parts may take.
    pub storage_limits: StorageLimits,
    /// The higher, the longer it stays when the machine is short of something.
    pub priority: i32,
    /// It has neither ended nor is about to.
    pub active: bool,
}

#[derive(Debug, Default)]
struct Inner {
    instances: HashMap<String, Arc<Live>>,
    pods: HashMap<(String, String), PodEntry>,
}

/// Everything that lives on this machine, by identifier and by pod.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    /// Told when a pod went or has something else of the machine.
    room: watch::Sender<()>,
    /// Told when something is noted of a pod.
    noted: watch::Sender<()>,
    began: Instant,
}

impl Default for Registry {
    fn default() -> Self {
        let (inner, room, noted) = Default::default();
        Self { inner, room, noted, began: Instant::now() }
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held leaves maps that are still whole.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds an instance, before it is started.
    pub fn add(&self, live: Live) -> Arc<Live> {
        let live = Arc::new(live);
        self.lock().instances.insert(live.id.clone(), live.clone());
        live
    }

    /// Forgets an instance.
    pub fn remove(&self, id: &str) {
        self.lock().instances.remove(id);
    }

    /// An instance by identifier.
    pub fn get(&self, id: &str) -> Option<Arc<Live>> {
        self.lock().instances.get(id).cloned()
    }

    /// All that run as far as anybody knows.
    pub fn running(&self) -> Vec<Arc<Live>> {
        let runs = |l: &&Arc<Live>| l.started.load(Ordering::Relaxed) && l.exit.borrow().is_none();
        self.lock().instances.values().filter(runs).cloned().collect()
    }

    /// The newest instance of a pod's container.
    pub fn newest(&self, uid: &str, container: &str) -> Option<Arc<Live>> {
        let inner = self.lock();
        let own = inner.instances.values().filter(|l| l.uid == uid && l.container == container);
        own.max_by_key(|l| l.attempt).cloned()
    }

    /// Notes what is known of a pod; of two with one name the one that was noted last counts.
    pub fn set_pod(&self, namespace: &str, name: &str, entry: PodEntry) {
        let key = (namespace.to_owned(), name.to_owned());
        let now = entry.usage.clone();
        let before = self.lock().pods.insert(key, entry);
        if before.is_some_and(|before| before.usage != now) {
            self.room.send_replace(());
        }
        self.noted.send_replace(());
    }

    /// All pods, by namespace and name.
    pub fn pods(&self) -> Vec<((String, String), PodEntry)> {
        self.lock().pods.iter().map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    /// What of the machine is granted to these pods together.
    pub fn granted(&self, to: impl Fn(&PodEntry) -> bool) -> Usage {
        let mut sum = Usage::default();
        self.lock().pods.values().filter(|pod| to(pod)).for_each(|pod| sum.add(&pod.usage));
        sum
    }

    /// Changes when a pod went or has something else of the machine than before.
    pub fn room(&self) -> watch::Receiver<()> {
        self.room.subscribe()
    }

    /// Forgets a pod, if it still is the one with this uid.
    pub fn remove_pod(&self, namespace: &str, name: &str, uid: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut inner = self.lock();
        if inner.pods.get(&key).is_some_and(|p| p.uid == uid) {
            inner.pods.remove(&key);
            drop(inner);
            self.room.send_replace(());
        }
    }

    /// A pod by name; with a `uid` that is not empty only that one.
    pub fn pod(&self, namespace: &str, name: &str, uid: &str) -> Option<PodEntry> {
        let pod = self.lock().pods.get(&(namespace.to_owned(), name.to_owned())).cloned();
        pod.filter(|pod| uid.is_empty() || pod.uid == uid)
    }

    /// The same for somebody who knows that the pod is here: an agent that has just begun, perhaps
    /// under running pods, is waited for until it knows, too.
    pub async fn expect(&self, namespace: &str, name: &str, uid: &str) -> Option<PodEntry> {
        let mut noted = self.noted.subscribe();
        loop {
            let pod = self.pod(namespace, name, uid);
            let end = self.began + LEARNING;
            if pod.is_some() || tokio::time::timeout_at(end, noted.changed()).await.is_err() {
                return pod;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_a_pod_at_the_start_waits_until_it_is_known() {
        let registry = Registry::default();
        let early = registry.expect("default", "web", "7");
        let mut early = std::pin::pin!(early);
        assert_eq!(futures::future::poll_immediate(&mut early).await, None);
        let pod = |uid: &str| PodEntry { uid: uid.to_owned(), ..PodEntry::default() };
        registry.set_pod("default", "web", pod("6"));
        assert_eq!(futures::future::poll_immediate(&mut early).await, None, "another of its name");
        registry.set_pod("default", "web", pod("7"));
        assert_eq!(early.await, Some(pod("7")));
        assert_eq!(registry.expect("default", "web", "").await, Some(pod("7")));
        assert_eq!(registry.expect("default", "nowhere", "").await, None);
        let late = registry.expect("default", "nowhere", "");
        assert_eq!(futures::future::poll_immediate(late).await, Some(None), "it would be known");
    }
}
