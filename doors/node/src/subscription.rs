//! One subscription: what concerns a machine, merged from views and watches into one stream.
//!
//! Views coalesce: while the machine is busy, a thing that changes ten times is told once, in its
//! newest state.

use crate::door::Compilers;
use dhow_intents::{Change, MachineIntent, NameIntent, Owner};
use dhow_objects::Status;
use dhow_objects::kinds;
use dhow_state::{Key, State, View, Watch, WatchEvent, WatchOptions};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Names the service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The machine does not listen any more.
struct Gone;

pub(crate) struct Subscription {
    state: State,
    node: String,
    compilers: Compilers,
    sender: mpsc::Sender<Change>,
    pods: View<Pod>,
    services: View<Service>,
    slices: View<EndpointSlice>,
    nodes: View<Node>,
    config_maps: Watch,
    secrets: Watch,
    /// Pods that the machine was told of, with their uids.
    told_pods: HashMap<Key, String>,
    /// Names of pods, of all machines, that it was told of.
    told_names: HashMap<Key, NameIntent>,
    /// Services that it was told of, with the owners of their names.
    told_services: HashMap<Key, Vec<Owner>>,
    /// The slices of each service, and the way back.
    of_service: HashMap<Key, BTreeSet<Key>>,
    service_of: BTreeMap<Key, Key>,
    /// The other machines that it was told of.
    told_machines: Vec<MachineIntent>,
    /// The revision of its own node that it was told of.
    told_node: u64,
}

impl Subscription {
    pub(crate) async fn begin(
        state: &State,
        node: String,
        compilers: Compilers,
        sender: mpsc::Sender<Change>,
    ) -> Result<Self, Status> {
        // What exists is read when a pod needs it; only news matters.
        let news = || WatchOptions { revision: Some(state.revision()), ..WatchOptions::default() };
        Ok(Self {
            config_maps: state.watch(&kinds::CONFIG_MAP, None, news()).await?,
            secrets: state.watch(&kinds::SECRET, None, news()).await?,
            pods: state.view(&kinds::POD),
            services: state.view(&kinds::SERVICE),
            slices: state.view(&kinds::ENDPOINT_SLICE),
            nodes: state.view(&kinds::NODE),
            state: state.clone(),
            node,
            compilers,
            sender,
            told_pods: HashMap::new(),
            told_names: HashMap::new(),
            told_services: HashMap::new(),
            of_service: HashMap::new(),
            service_of: BTreeMap::new(),
            told_machines: Vec::new(),
            told_node: 0,
        })
    }

    /// Tells everything that is, then what happens, until the machine or the store is gone.
    pub(crate) async fn run(mut self) {
        if self.tell_everything().await.is_ok() {
            while self.tell_next().await.is_ok() {}
        }
        tracing::debug!(node = self.node, "subscription of a machine ended");
    }

    async fn tell(&self, change: Change) -> Result<(), Gone> {
        self.sender.send(change).await.map_err(|_| Gone)
    }

    async fn tell_everything(&mut self) -> Result<(), Gone> {
        let slices = self.slices.take_changed();
        let mut services: BTreeSet<Key> = self.services.take_changed().into_iter().collect();
        services.extend(self.sort_slices(slices));
        self.tell_services(services).await?;
        let pods = self.pods.take_changed();
        self.tell_pods(pods).await?;
        self.nodes.take_changed();
        self.told_machines = self.machines();
        self.tell(Change::Machines(self.told_machines.clone())).await?;
        self.tell(Change::Synced).await
    }

    async fn tell_next(&mut self) -> Result<(), Gone> {
        tokio::select! {
            () = self.sender.closed() => Err(Gone),
            keys = self.pods.changed() => self.tell_pods(keys).await,
            keys = self.services.changed() => self.tell_services(keys.into_iter().collect()).await,
            keys = self.slices.changed() => {
                let services = self.sort_slices(keys);
                self.tell_services(services).await
            }
            _ = self.nodes.changed() => {
                self.tell_node().await?;
                self.tell_machines().await
            }
            event = self.config_maps.next() => self.tell_news(event, Change::ConfigMap).await,
            event = self.secrets.next() => self.tell_news(event, Change::Secret).await,
        }
    }

    /// The other machines as they are now, in the order of their names.
    fn machines(&self) -> Vec<MachineIntent> {
        let others = self
            .nodes
            .list()
            .into_iter()
            .filter(|node| node.metadata.name.as_ref().is_some_and(|name| *name != self.node));
        // The revision of a node changes with each report of its state; who is where does not.
        let mut machines: Vec<MachineIntent> =
            others.filter_map(|node| (self.compilers.machine)(&node, 0)).collect();
        machines.sort_by(|one, other| one.owner.name.cmp(&other.owner.name));
        machines
    }

    /// The machine's own node, if it has changed.
    async fn tell_node(&mut self) -> Result<(), Gone> {
        match self.nodes.entry(&Key::new("", &self.node)) {
            Some(node) if node.revision != self.told_node => {
                self.told_node = node.revision;
                self.tell(Change::Node(node.object)).await
            }
            _ => Ok(()),
        }
    }

    async fn tell_machines(&mut self) -> Result<(), Gone> {
        let machines = self.machines();
        if machines == self.told_machines {
            return Ok(());
        }
        self.told_machines.clone_from(&machines);
        self.tell(Change::Machines(machines)).await
    }

    async fn tell_news(
        &self,
        event: Option<WatchEvent>,
        change: fn(String, String) -> Change,
    ) -> Result<(), Gone> {
        match event {
            Some(WatchEvent::Added(o) | WatchEvent::Modified(o) | WatchEvent::Deleted(o)) => {
                self.tell(change(o.namespace.clone(), o.name.clone())).await
            }
            Some(WatchEvent::Bookmark { .. }) => Ok(()),
            // The machine subscribes again and is told everything.
            Some(WatchEvent::Error(_)) | None => Err(Gone),
        }
    }

    async fn tell_pods(&mut self, keys: Vec<Key>) -> Result<(), Gone> {
        // First: whether the machine takes them is judged by what it is by now.
        self.tell_node().await?;
        for key in keys {
            self.tell_pod_names(&key).await?;
            let pod = self.pods.get(&key.namespace, &key.name).filter(|pod| {
                pod.spec.as_ref().is_some_and(|s| s.node_name.as_ref() == Some(&self.node))
            });
            let uid = pod.as_ref().map(|p| p.metadata.uid.clone().unwrap_or_default());
            let known = self.told_pods.get(&key);
            if let Some(old) = known.filter(|old| Some(*old) != uid.as_ref()).cloned() {
                self.told_pods.remove(&key);
                let gone = Change::PodGone(key.namespace.clone(), key.name.clone(), old);
                self.tell(gone).await?;
            }
            if let (Some(pod), Some(uid)) = (pod, uid) {
                self.told_pods.insert(key, uid);
                self.tell(Change::Pod(pod)).await?;
            }
        }
        Ok(())
    }

    /// A pod has a name by its address, which pods of all machines may ask for.
    async fn tell_pod_names(&mut self, key: &Key) -> Result<(), Gone> {
        let entry = self.pods.entry(key);
        let compiled = entry.and_then(|e| (self.compilers.pod)(&e.object, e.revision));
        match compiled {
            Some(intent) => {
                let known = self.told_names.get(key);
                if known.is_some_and(|k| k.names == intent.names) {
                    return Ok(());
                }
                self.told_names.insert(key.clone(), intent.clone());
                self.tell(Change::Names(Arc::new(intent))).await
            }
            None => match self.told_names.remove(key) {
                Some(gone) => {
                    let owner = Owner { revision: self.state.revision(), ..gone.owner };
                    self.tell(Change::NamesGone(owner)).await
                }
                None => Ok(()),
            },
        }
    }

    /// Keeps count of which slices belong to which service; returns the services that are concerned.
    fn sort_slices(&mut self, keys: Vec<Key>) -> BTreeSet<Key> {
        let mut concerned = BTreeSet::new();
        for key in keys {
            let slice = self.slices.get(&key.namespace, &key.name);
            let service = slice
                .as_ref()
                .and_then(|s| s.metadata.labels.as_ref()?.get(SERVICE_NAME))
                .map(|name| Key::new(&key.namespace, name));
            let before = match &service {
                Some(service) => self.service_of.insert(key.clone(), service.clone()),
                None => self.service_of.remove(&key),
            };
            if let Some(before) = before
                && Some(&before) != service.as_ref()
            {
                if let Some(slices) = self.of_service.get_mut(&before) {
                    slices.remove(&key);
                    if slices.is_empty() {
                        self.of_service.remove(&before);
                    }
                }
                concerned.insert(before);
            }
            if let Some(service) = service {
                self.of_service.entry(service.clone()).or_default().insert(key);
                concerned.insert(service);
            }
        }
        concerned
    }

    async fn tell_services(&mut self, keys: BTreeSet<Key>) -> Result<(), Gone> {
        for key in keys {
            match self.services.entry(&key) {
                Some(service) => {
                    let mut revision = service.revision;
                    let mut slices: Vec<Arc<EndpointSlice>> = Vec::new();
                    for slice in self.of_service.get(&key).into_iter().flatten() {
                        if let Some(entry) = self.slices.entry(slice) {
                            revision = revision.max(entry.revision);
                            slices.push(entry.object);
                        }
                    }
                    let intent = (self.compilers.service)(&service.object, &slices, revision);
                    let names = (self.compilers.names)(&service.object, &slices, revision);
                    let owners = names.iter().map(|n| n.owner.clone()).collect();
                    let before = self.told_services.insert(key, owners).unwrap_or_default();
                    self.tell(Change::Service(Arc::new(intent))).await?;
                    let still = |owner: &Owner| names.iter().any(|n| same(&n.owner, owner));
                    for owner in before.into_iter().filter(|o| !still(o)) {
                        self.tell(Change::NamesGone(owner)).await?;
                    }
                    for intent in names {
                        self.tell(Change::Names(Arc::new(intent))).await?;
                    }
                }
                None => {
                    let Some(owners) = self.told_services.remove(&key) else { continue };
                    let revision = self.state.revision();
                    for owner in owners {
                        self.tell(Change::NamesGone(Owner { revision, ..owner })).await?;
                    }
                    let Key { namespace, name } = key;
                    let owner = Owner { kind: "svc".into(), namespace, name, revision };
                    self.tell(Change::ServiceGone(owner)).await?;
                }
            }
        }
        Ok(())
    }
}

/// Whether two owners are one object, at whichever revision.
fn same(one: &Owner, other: &Owner) -> bool {
    (&one.kind, &one.namespace, &one.name) == (&other.kind, &other.namespace, &other.name)
}
