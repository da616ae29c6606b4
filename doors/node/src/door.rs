//! The feed of one machine.

use crate::report;
use crate::subscription::Subscription;
use dhow_intents::{Change, Feed, FeedError, MachineIntent, NameIntent, ServiceIntent};
use dhow_objects::kinds::{self, Kind};
use dhow_state::{Actor, Bound, DeleteOptions, Reader, State, TokenRequest, User};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, Node, Pod, PodStatus, Secret, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Turns objects into what a machine's data plane and name server need. The functions live with the
/// planners, which a door may not know; whoever wires the platform hands them in. The number is the
/// newest revision among the objects given.
#[derive(Clone)]
pub struct Compilers {
    /// A service with its endpoint slices, for the data plane.
    pub service: Arc<OfService<ServiceIntent>>,
    /// The names that a service and its endpoint slices give rise to.
    pub names: Arc<OfService<Vec<NameIntent>>>,
    /// The names of a pod; `None` while it has no address.
    pub pod: Arc<OfPod<Option<NameIntent>>>,
    /// A machine as others must know it; `None` while it has no address.
    pub machine: Arc<OfNode<Option<MachineIntent>>>,
}

/// A function of a service and its endpoint slices.
pub type OfService<T> = dyn Fn(&Service, &[Arc<EndpointSlice>], u64) -> T + Send + Sync;
/// A function of a pod.
pub type OfPod<T> = dyn Fn(&Pod, u64) -> T + Send + Sync;
/// A function of a machine.
pub type OfNode<T> = dyn Fn(&Node, u64) -> T + Send + Sync;

/// How many changes may wait for a machine; more are held back here, each thing only in its newest
/// state.
const WAITING: usize = 256;

/// The control plane as one machine sees it. Writes are stamped as that machine's.
pub struct NodeDoor {
    state: State,
    node: String,
    actor: Actor,
    services: Reader<Service>,
    compilers: Compilers,
}

impl std::fmt::Debug for NodeDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeDoor({})", self.node)
    }
}

impl NodeDoor {
    /// A door for the machine `node`.
    pub fn new(state: State, node: impl Into<String>, compilers: Compilers) -> Self {
        let node = node.into();
        let actor = Actor {
            user: User {
                name: format!("system:node:{node}"),
                groups: vec!["system:nodes".into(), "system:authenticated".into()],
                ..User::default()
            },
            manager: "dhow-node".into(),
            because: 0,
        };
        let services = state.view(&kinds::SERVICE).reader();
        Self { state, node, actor, services, compilers }
    }

    async fn read<T: DeserializeOwned>(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<T>>, FeedError> {
        match self.state.get(kind, namespace, name).await {
            Ok(object) => object.decode().map(|o| Some(Arc::new(o))).map_err(refused),
            Err(refusal) if refusal.code == 404 => Ok(None),
            Err(refusal) => Err(refused(refusal)),
        }
    }

    async fn follow(&self) -> Result<mpsc::Receiver<Change>, FeedError> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let subscription =
            Subscription::begin(&self.state, self.node.clone(), self.compilers.clone(), sender)
                .await
                .map_err(refused)?;
        tokio::spawn(subscription.run());
        Ok(receiver)
    }

    async fn token(
        &self,
        pod: &Pod,
        audiences: Vec<String>,
        expiration_seconds: i64,
    ) -> Result<(String, i64), FeedError> {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
        let request = TokenRequest {
            audiences,
            expiration_seconds,
            bound: Some(Bound {
                kind: "Pod".into(),
                name: text(&pod.metadata.name),
                uid: text(&pod.metadata.uid),
            }),
        };
        let namespace = text(&pod.metadata.namespace);
        let account = account.unwrap_or_else(|| "default".into());
        let issued = self.state.issue_token(&namespace, &account, request).await;
        issued.map(|t| (t.token, t.expires)).map_err(refused)
    }

    fn has(&self, namespace: &str, name: &str, uid: &str) -> bool {
        self.state.cached(&kinds::POD, namespace, name).is_some_and(|pod| pod.uid() == uid)
    }

    async fn forget(&self, namespace: &str, name: &str, uid: &str) -> Result<(), FeedError> {
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: Some(uid.to_owned()),
            ..DeleteOptions::default()
        };
        match self.state.delete(&self.actor, &kinds::POD, namespace, name, &options).await {
            Ok(_) => Ok(()),
            // It is gone already, or another pod has the name by now. A conflict can also mean that
            // too many others wrote: then it is still there.
            Err(refusal) if refusal.code == 404 => Ok(()),
            Err(refusal) if refusal.code == 409 && !self.has(namespace, name, uid) => Ok(()),
            Err(refusal) => Err(refused(refusal)),
        }
    }
}

pub(crate) fn refused(status: dhow_objects::Status) -> FeedError {
    match status.code {
        503 => FeedError::Unreachable(status.message),
        _ => FeedError::Refused(Box::new(status)),
    }
}

impl Feed for NodeDoor {
    fn subscribe(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Change>, FeedError>> {
        self.follow().boxed()
    }

    fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> BoxFuture<'_, Result<Option<Arc<ConfigMap>>, FeedError>> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        async move { self.read(&kinds::CONFIG_MAP, &namespace, &name).await }.boxed()
    }

    fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> BoxFuture<'_, Result<Option<Arc<Secret>>, FeedError>> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        async move { self.read(&kinds::SECRET, &namespace, &name).await }.boxed()
    }

    fn namespace(&self, name: &str) -> BoxFuture<'_, Result<Option<Arc<Namespace>>, FeedError>> {
        let name = name.to_owned();
        async move { self.read(&kinds::NAMESPACE, "", &name).await }.boxed()
    }

    fn services(&self, namespace: &str) -> BoxFuture<'_, Result<Vec<Arc<Service>>, FeedError>> {
        let found = self.services.list_in(namespace);
        async move { Ok(found) }.boxed()
    }

    fn service_account_token(
        &self,
        pod: &Pod,
        audiences: Vec<String>,
        expiration_seconds: i64,
    ) -> BoxFuture<'_, Result<(String, i64), FeedError>> {
        let pod = pod.clone();
        async move { self.token(&pod, audiences, expiration_seconds).await }.boxed()
    }

    fn report_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        status: PodStatus,
    ) -> BoxFuture<'_, Result<(), FeedError>> {
        let key = dhow_state::Key::new(namespace, name);
        let uid = uid.to_owned();
        async move { report::pod(&self.state, &self.actor, &key, &uid, &status).await }.boxed()
    }

    fn finish_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> BoxFuture<'_, Result<(), FeedError>> {
        let (namespace, name, uid) = (namespace.to_owned(), name.to_owned(), uid.to_owned());
        async move { self.forget(&namespace, &name, &uid).await }.boxed()
    }

    fn report_node(&self, node: Node) -> BoxFuture<'_, Result<Arc<Node>, FeedError>> {
        async move { report::node(&self.state, &self.actor, &self.node, node).await }.boxed()
    }

    fn renew_lease(&self, lease: Lease) -> BoxFuture<'_, Result<(), FeedError>> {
        async move { report::lease(&self.state, &self.actor, &self.node, &lease).await }.boxed()
    }

    fn record(&self, event: Event) -> BoxFuture<'_, Result<(), FeedError>> {
        async move { self.state.record_event(&self.actor, event).await.map_err(refused) }.boxed()
    }
}
