//! Services and names: handed to the data plane and the name server in batches, and swept after a
//! restart.

pub mod files;

use crate::events::Level;
use crate::world::World;
use dhow_dataplane::{Disturbance, Watch};
use dhow_intents::{MachineIntent, NameIntent, Owner, ServiceIntent};
use dhow_reason::{Code, Reason};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// News for the network.
#[derive(Debug)]
pub enum News {
    /// A service was compiled.
    Service(Arc<ServiceIntent>),
    /// A service is gone.
    ServiceGone(Owner),
    /// Names were compiled.
    Names(Arc<NameIntent>),
    /// The object behind names is gone.
    NamesGone(Owner),
    /// The other machines.
    Machines(Vec<MachineIntent>),
    /// A new subscription begins.
    Begin,
    /// Everything was named; these pods stay. Answered when stale rules and links are gone.
    Synced(Vec<String>, oneshot::Sender<()>),
}

/// Most news that are taken into one transaction.
const BATCH: usize = 1024;
/// How long other programs' changes may go on before the network is repaired: a firewall is loaded
/// in several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// Pause after the kernel refused.
const AGAIN: Duration = Duration::from_secs(5);

type Key = (String, String, String);

fn key(owner: &Owner) -> Key {
    (owner.kind.clone(), owner.namespace.clone(), owner.name.clone())
}

/// What is to be sent to the data plane: the newest state of each service.
#[derive(Debug, Default)]
struct Pending {
    services: BTreeMap<Key, Result<Arc<ServiceIntent>, Owner>>,
}

impl Pending {
    fn set(&mut self, intent: Arc<ServiceIntent>) {
        self.services.insert(key(&intent.owner), Ok(intent));
    }

    fn gone(&mut self, owner: Owner) {
        self.services.insert(key(&owner), Err(owner));
    }

    fn split(&self) -> (Vec<Arc<ServiceIntent>>, Vec<Owner>) {
        let set = self.services.values().filter_map(|s| s.as_ref().ok().cloned()).collect();
        let gone = self.services.values().filter_map(|s| s.as_ref().err().cloned()).collect();
        (set, gone)
    }
}

/// What is known, and what the current subscription has named of it.
#[derive(Debug, Default)]
struct Known {
    known: BTreeMap<Key, Owner>,
    told: BTreeSet<Key>,
}

impl Known {
    fn set(&mut self, owner: &Owner) {
        self.told.insert(key(owner));
        self.known.insert(key(owner), owner.clone());
    }

    fn gone(&mut self, owner: &Owner) {
        self.told.remove(&key(owner));
        self.known.remove(&key(owner));
    }

    /// Forgets and returns what was not named.
    fn stale(&mut self) -> Vec<Owner> {
        let told = &self.told;
        let stale: Vec<Owner> =
            self.known.iter().filter(|(k, _)| !told.contains(*k)).map(|(_, o)| o.clone()).collect();
        self.known.retain(|k, _| told.contains(k));
        stale
    }
}

/// Hands services and names on until the sender is dropped.
pub async fn run(world: Arc<World>, mut news: mpsc::UnboundedReceiver<News>) {
    let mut pending = Pending::default();
    let mut services = Known::default();
    let mut names = Known::default();
    let mut batch = Vec::new();
    let mut failed = false;
    // The other machines, while the way to one of them is missing; and why it is.
    let mut machines: Option<Vec<MachineIntent>> = None;
    let mut no_way = String::new();
    let mut others: Vec<MachineIntent> = Vec::new();
    let mut watch = match world.dataplane.watch() {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "what other programs change of the pod network is noticed late");
            None
        }
    };
    // What another program changed, while it is not repaired.
    let mut disturbed: Option<Disturbance> = None;
    loop {
        let again = failed || machines.is_some() || disturbed.is_some();
        let received = tokio::select! {
            count = news.recv_many(&mut batch, BATCH) => count,
            change = changed(&mut watch) => {
                world.clock.sleep(SETTLE).await;
                let more = watch.as_mut().and_then(|watch| watch.take().ok().flatten());
                // A repair of what is ours looks at filters too.
                let all = [disturbed.take(), Some(change), more];
                disturbed = all.into_iter().flatten().max();
                machines.get_or_insert_with(|| others.clone());
                usize::MAX
            }
            () = world.clock.sleep(AGAIN), if again => usize::MAX,
        };
        if received == 0 {
            return;
        }
        if let Some(change) = &disturbed {
            match world.dataplane.mend(change).await {
                Ok(()) => {
                    tracing::info!(%change, "another program changed the pod network; it is repaired");
                    disturbed = None;
                }
                Err(error) => {
                    tracing::error!(%change, %error, "another program changed the pod network; it is not repaired yet");
                }
            }
        }
        let mut sync = None;
        for item in batch.drain(..) {
            match item {
                News::Service(intent) => {
                    services.set(&intent.owner);
                    pending.set(intent);
                }
                News::ServiceGone(owner) => {
                    services.gone(&owner);
                    pending.gone(owner);
                }
                News::Names(intent) => {
                    names.set(&intent.owner);
                    world.names.set(intent);
                }
                News::NamesGone(owner) => {
                    names.gone(&owner);
                    world.names.remove(&owner);
                }
                News::Machines(all) => {
                    others.clone_from(&all);
                    machines = Some(all);
                }
                News::Begin => {
                    services.told.clear();
                    names.told.clear();
                }
                News::Synced(pods, done) => {
                    for owner in services.stale() {
                        pending.gone(owner);
                    }
                    for owner in names.stale() {
                        world.names.remove(&owner);
                    }
                    sync = Some((pods, done));
                }
            }
        }
        let (set, gone) = pending.split();
        if !set.is_empty() || !gone.is_empty() {
            match world.dataplane.apply(&set, &gone).await {
                Ok(()) => {
                    pending = Pending::default();
                    failed = false;
                }
                Err(error) => {
                    tracing::error!(%error, services = set.len(), gone = gone.len(), "service rules not applied");
                    if !failed {
                        let object = format!("node {}", world.config.node_name);
                        let reason = Reason::new(Code::RulesRefused, object).with("said", &error);
                        let (event, message) = ("FailedServiceRules", error.to_string());
                        world.events.node(Level::Warning, event, message, Some(&reason));
                    }
                    failed = true;
                }
            }
        }
        if let Some(all) = &machines {
            match world.dataplane.set_machines(all).await {
                Ok(()) => {
                    machines = None;
                    no_way.clear();
                }
                Err(error) => {
                    let error = error.to_string();
                    if error != no_way {
                        tracing::warn!(error, "pods of another machine cannot be reached");
                        let object = format!("node {}", world.config.node_name);
                        let reason =
                            Reason::new(Code::MachineUnreachable, object).with("said", &error);
                        let (event, message) = ("NoRoute", error.clone());
                        world.events.node(Level::Warning, event, message, Some(&reason));
                    }
                    no_way = error;
                }
            }
        }
        if let Some((pods, done)) = sync {
            let known: Vec<Owner> = services.known.values().cloned().collect();
            if let Err(error) = world.dataplane.sweep(&known, &pods).await {
                tracing::error!(%error, "stale rules and links are left");
            }
            let _ = done.send(());
        }
    }
}

/// Waits until another program has changed the pod network; for ever when nobody tells. Nothing is
/// lost when it is given up.
async fn changed(watch: &mut Option<Watch>) -> Disturbance {
    if let Some(following) = watch {
        match following.changed().await {
            Ok(change) => return change,
            Err(error) => {
                tracing::warn!(%error, "what other programs change of the pod network is noticed late");
                *watch = None;
            }
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str, revision: u64) -> Owner {
        Owner { kind: "svc".into(), namespace: "shop".into(), name: name.into(), revision }
    }

    #[test]
    fn what_a_new_subscription_does_not_name_is_stale() {
        let mut known = Known::default();
        known.set(&owner("a", 1));
        known.set(&owner("b", 1));
        known.told.clear();
        known.set(&owner("b", 2));
        assert_eq!(known.stale(), [owner("a", 1)]);
        assert_eq!(known.known.len(), 1);
    }

    #[test]
    fn of_several_states_the_newest_is_sent() {
        let mut pending = Pending::default();
        pending.gone(owner("a", 3));
        pending.gone(owner("a", 4));
        let (set, gone) = pending.split();
        assert_eq!((set.len(), gone), (0, vec![owner("a", 4)]));
    }
}
