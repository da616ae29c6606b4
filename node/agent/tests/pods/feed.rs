//! A control plane in memory, as far as one machine sees it.

use dhow_intents::{Change, Feed, FeedError};
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, Node, Pod, PodStatus, Secret, Service, Taint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

#[derive(Default)]
pub struct State {
    pub pods: BTreeMap<String, Pod>,
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    pub secrets: BTreeMap<String, Arc<Secret>>,
    pub services: Vec<Arc<Service>>,
    pub events: Vec<Event>,
    pub node: Option<Arc<Node>>,
    /// What somebody else gave the node.
    pub taints: Option<Vec<Taint>>,
    pub lease: Option<Lease>,
    pub finished: Vec<String>,
    pub reports: usize,
    /// So many ends of pods are still to be refused.
    pub refuse: u32,
    pub tokens: u32,
    pub token_life: i64,
    subscribers: Vec<mpsc::Sender<Change>>,
    revision: u64,
}

pub struct Memory {
    state: Mutex<State>,
    news: watch::Sender<u64>,
}

impl Memory {
    pub fn new() -> Arc<Self> {
        let state = Mutex::new(State { token_life: 3600, ..State::default() });
        Arc::new(Self { state, news: watch::Sender::new(0) })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn tell(&self, state: &mut State, change: &Change) {
        state.subscribers.retain(|s| s.try_send(change.clone()).is_ok());
        state.revision += 1;
        self.news.send_replace(state.revision);
    }

    fn put(&self, state: &mut State, mut pod: Pod) {
        pod.metadata.resource_version = Some((state.revision + 1).to_string());
        state.pods.insert(pod.metadata.name.clone().unwrap(), pod.clone());
        self.tell(state, &Change::Pod(Arc::new(pod)));
    }

    /// Makes a pod, as if bound to this machine.
    pub fn create(&self, pod: serde_json::Value) {
        let mut pod: Pod = serde_json::from_value(pod).unwrap();
        let mut state = self.lock();
        let name = pod.metadata.name.clone().unwrap();
        pod.metadata.namespace = Some("shop".into());
        pod.metadata.uid = Some(format!("uid-{name}-{}", state.revision));
        pod.metadata.generation = Some(1);
        self.put(&mut state, pod);
    }

    pub fn change(&self, name: &str, change: impl FnOnce(&mut Pod)) {
        let mut state = self.lock();
        let mut pod = state.pods[name].clone();
        change(&mut pod);
        self.put(&mut state, pod);
    }

    /// Deletes with a grace period in seconds; 0 forgets the pod at once.
    pub fn delete(&self, name: &str, grace: i64) {
        if grace == 0 {
            let mut state = self.lock();
            let pod = state.pods.remove(name).unwrap();
            let uid = pod.metadata.uid.unwrap();
            self.tell(&mut state, &Change::PodGone("shop".into(), name.into(), uid));
            return;
        }
        self.change(name, |pod| {
            let at = Timestamp::from_second(Timestamp::now().as_second() + grace).unwrap();
            pod.metadata.deletion_timestamp = Some(Time(at));
            pod.metadata.deletion_grace_period_seconds = Some(grace);
        });
    }

    pub fn config_map(&self, name: &str, data: &[(&str, &str)]) {
        let data = data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let map = ConfigMap { data: Some(data), ..ConfigMap::default() };
        let mut state = self.lock();
        state.config_maps.insert(name.into(), Arc::new(map));
        self.tell(&mut state, &Change::ConfigMap("shop".into(), name.into()));
    }

    pub fn secret(&self, name: &str, data: &[(&str, &str)]) {
        let bytes = |v: &str| k8s_openapi::ByteString(v.as_bytes().to_vec());
        let data = data.iter().map(|(k, v)| ((*k).to_owned(), bytes(v))).collect();
        let secret = Secret { data: Some(data), ..Secret::default() };
        let mut state = self.lock();
        state.secrets.insert(name.into(), Arc::new(secret));
        self.tell(&mut state, &Change::Secret("shop".into(), name.into()));
    }

    /// Taints the machine for pods that come.
    pub fn taint(&self, key: &str, effect: &str) {
        let mut state = self.lock();
        let taint = Taint { key: key.into(), effect: effect.into(), ..Taint::default() };
        state.taints = Some(vec![taint]);
        let mut node = Node::clone(state.node.as_ref().unwrap());
        node.spec.get_or_insert_default().taints = state.taints.clone();
        let node = Arc::new(node);
        state.node = Some(node.clone());
        self.tell(&mut state, &Change::Node(node));
    }

    /// News for the network, which change nothing.
    pub fn no_other_machines(&self) {
        let mut state = self.lock();
        self.tell(&mut state, &Change::Machines(Vec::new()));
    }

    /// Ends all subscriptions, as a lost connection does.
    pub fn disconnect(&self) {
        self.lock().subscribers.clear();
    }

    pub fn pod(&self, name: &str) -> Option<Pod> {
        self.lock().pods.get(name).cloned()
    }

    /// Waits until something holds.
    pub async fn until(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let mut news = self.news.subscribe();
        let wait = async {
            while !holds(&self.lock()) {
                news.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), wait).await.is_err() {
            let state = self.lock();
            for pod in state.pods.values() {
                eprintln!("{}", serde_json::to_string_pretty(&pod.status).unwrap());
            }
            for event in &state.events {
                eprintln!("{:?} {:?}", event.reason, event.message);
            }
            drop(state);
            panic!("waited too long for {what}");
        }
    }

    pub async fn until_pod(&self, name: &str, what: &str, holds: impl Fn(&PodStatus) -> bool) {
        let of = |s: &State| s.pods.get(name).and_then(|p| p.status.clone()).unwrap_or_default();
        self.until(what, |s| holds(&of(s))).await;
    }

    pub async fn until_ready(&self, name: &str) {
        self.until_pod(name, "Ready", |s| condition(s, "Ready") == "True").await;
    }

    pub async fn until_event(&self, reason: &str, text: &str) {
        let matches = |e: &Event| {
            e.reason.as_deref() == Some(reason) && e.message.as_deref().unwrap_or("").contains(text)
        };
        self.until(&format!("event {reason} {text}"), |s| s.events.iter().any(matches)).await;
    }

    /// Waits for an event whose reason as data holds this text.
    pub async fn until_reason(&self, text: &str) {
        let matches = |e: &Event| {
            let data = e.metadata.annotations.as_ref().and_then(|a| a.get("dhow.dev/reason"));
            data.is_some_and(|data| data.contains(text))
        };
        self.until(&format!("reason {text}"), |s| s.events.iter().any(matches)).await;
    }
}

pub fn condition(status: &PodStatus, kind: &str) -> String {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == kind);
    found.map_or(String::new(), |c| c.status.clone())
}

impl Feed for Memory {
    fn subscribe(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Change>, FeedError>> {
        Box::pin(async {
            let (sender, receiver) = mpsc::channel(1024);
            let mut state = self.lock();
            if let Some(node) = &state.node {
                sender.try_send(Change::Node(node.clone())).unwrap();
            }
            for pod in state.pods.values() {
                sender.try_send(Change::Pod(Arc::new(pod.clone()))).unwrap();
            }
            sender.try_send(Change::Synced).unwrap();
            state.subscribers.push(sender);
            Ok(receiver)
        })
    }

    fn config_map(
        &self,
        _: &str,
        name: &str,
    ) -> BoxFuture<'_, Result<Option<Arc<ConfigMap>>, FeedError>> {
        let found = self.lock().config_maps.get(name).cloned();
        Box::pin(async { Ok(found) })
    }

    fn secret(&self, _: &str, name: &str) -> BoxFuture<'_, Result<Option<Arc<Secret>>, FeedError>> {
        let found = self.lock().secrets.get(name).cloned();
        Box::pin(async { Ok(found) })
    }

    fn namespace(&self, _: &str) -> BoxFuture<'_, Result<Option<Arc<Namespace>>, FeedError>> {
        Box::pin(async { Ok(None) })
    }

    fn services(&self, _: &str) -> BoxFuture<'_, Result<Vec<Arc<Service>>, FeedError>> {
        let found = self.lock().services.clone();
        Box::pin(async { Ok(found) })
    }

    fn service_account_token(
        &self,
        _: &Pod,
        _: Vec<String>,
        _: i64,
    ) -> BoxFuture<'_, Result<(String, i64), FeedError>> {
        let mut state = self.lock();
        state.tokens += 1;
        let expires = Timestamp::now().as_second() + state.token_life;
        let token = format!("token-{}", state.tokens);
        Box::pin(async move { Ok((token, expires)) })
    }

    fn report_pod(
        &self,
        _: &str,
        name: &str,
        uid: &str,
        status: PodStatus,
    ) -> BoxFuture<'_, Result<(), FeedError>> {
        let mut state = self.lock();
        state.reports += 1;
        let found =
            state.pods.get(name).cloned().filter(|p| p.metadata.uid.as_deref() == Some(uid));
        let result = match found {
            Some(mut pod) => {
                pod.status = Some(status);
                self.put(&mut state, pod);
                Ok(())
            }
            None => {
                Err(FeedError::Refused(Box::new(dhow_objects::Status::not_found("", "pods", name))))
            }
        };
        Box::pin(async { result })
    }

    fn finish_pod(&self, _: &str, name: &str, uid: &str) -> BoxFuture<'_, Result<(), FeedError>> {
        let mut state = self.lock();
        if state.refuse > 0 {
            state.refuse -= 1;
            let broken = dhow_objects::Status::internal("the store is in trouble");
            return Box::pin(async { Err(FeedError::Refused(Box::new(broken))) });
        }
        if state.pods.get(name).is_some_and(|p| p.metadata.uid.as_deref() == Some(uid)) {
            state.pods.remove(name);
            state.finished.push(name.into());
            self.tell(&mut state, &Change::PodGone("shop".into(), name.into(), uid.into()));
        }
        Box::pin(async { Ok(()) })
    }

    fn report_node(&self, node: Node) -> BoxFuture<'_, Result<Arc<Node>, FeedError>> {
        let mut state = self.lock();
        let mut node = node;
        node.spec.get_or_insert_default().taints = state.taints.clone();
        let node = Arc::new(node);
        state.node = Some(node.clone());
        self.tell(&mut state, &Change::Node(node.clone()));
        Box::pin(async { Ok(node) })
    }

    fn renew_lease(&self, lease: Lease) -> BoxFuture<'_, Result<(), FeedError>> {
        let mut state = self.lock();
        state.lease = Some(lease);
        state.revision += 1;
        self.news.send_replace(state.revision);
        Box::pin(async { Ok(()) })
    }

    fn record(&self, event: Event) -> BoxFuture<'_, Result<(), FeedError>> {
        let mut state = self.lock();
        state.events.push(event);
        state.revision += 1;
        self.news.send_replace(state.revision);
        Box::pin(async { Ok(()) })
    }
}
