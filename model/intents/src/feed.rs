//! The feed: what this machine must do, and where it says what it observed.

use crate::net::{MachineIntent, NameIntent, Owner, ServiceIntent};
use dhow_objects::Status;
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, Node, Pod, PodStatus, Secret, Service,
};
use std::sync::Arc;
use tokio::sync::mpsc;

/// A change of what the machine must do. Each names the whole of the new state of one thing, so
/// applying it twice, or only the newest of several, is right.
#[derive(Debug, Clone)]
pub enum Change {
    /// A pod bound to this machine appeared or changed.
    Pod(Arc<Pod>),
    /// A pod is gone from the store: nothing of it may stay here. Key is namespace, name, uid.
    PodGone(String, String, String),
    /// A service was compiled anew.
    Service(Arc<ServiceIntent>),
    /// A service is gone; the revision in the owner is that of the deletion.
    ServiceGone(Owner),
    /// Names were compiled anew.
    Names(Arc<NameIntent>),
    /// The object behind names is gone.
    NamesGone(Owner),
    /// This machine's own node as the store has it: before any pod that was bound to it since it
    /// changed.
    Node(Arc<Node>),
    /// The other machines: all of them, whenever one comes, moves or goes.
    Machines(Vec<MachineIntent>),
    /// A ConfigMap that some pod may mount changed (namespace, name): re-read it if it is in use.
    ConfigMap(String, String),
    /// A Secret changed, likewise.
    Secret(String, String),
    /// All that existed when the subscription began was delivered; from here on it is news.
    Synced,
}

/// Why the control plane refused or could not be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FeedError {
    /// The API's own refusal.
    #[error("{}", .0.message)]
    Refused(Box<Status>),
    /// The control plane cannot be reached; try again.
    #[error("control plane unreachable: {0}")]
    Unreachable(String),
}

/// The control plane as a machine sees it, limited to the machine's own data.
pub trait Feed: Send + Sync + 'static {
    /// Follows what this machine must do: first everything that exists, then [`Change::Synced`],
    /// then changes. The channel closes when the subscription is lost; subscribe again.
    fn subscribe(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Change>, FeedError>>;
    /// A ConfigMap, `None` when it does not exist.
    fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> BoxFuture<'_, Result<Option<Arc<ConfigMap>>, FeedError>>;
    /// A Secret, `None` when it does not exist.
    fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> BoxFuture<'_, Result<Option<Arc<Secret>>, FeedError>>;
    /// A Namespace, `None` when it does not exist.
    fn namespace(&self, name: &str) -> BoxFuture<'_, Result<Option<Arc<Namespace>>, FeedError>>;
    /// The services of a namespace (for the environment variables of its pods).
    fn services(&self, namespace: &str) -> BoxFuture<'_, Result<Vec<Arc<Service>>, FeedError>>;
    /// A token for a pod's service account, bound to the pod, and its expiry in seconds since the
    /// epoch.
    fn service_account_token(
        &self,
        pod: &Pod,
        audiences: Vec<String>,
        expiration_seconds: i64,
    ) -> BoxFuture<'_, Result<(String, i64), FeedError>>;
    /// Replaces the status of a pod, if it still is the pod with this uid. The implementation
    /// writes nothing when the stored status equals this one.
    fn report_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        status: PodStatus,
    ) -> BoxFuture<'_, Result<(), FeedError>>;
    /// Says that nothing of a deleted pod is left here: the API may forget it now.
    fn finish_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> BoxFuture<'_, Result<(), FeedError>>;
    /// Registers this machine or updates its labels, addresses and status (not its spec, once it
    /// exists).
    fn report_node(&self, node: Node) -> BoxFuture<'_, Result<Arc<Node>, FeedError>>;
    /// Writes the machine's lease.
    fn renew_lease(&self, lease: Lease) -> BoxFuture<'_, Result<(), FeedError>>;
    /// Records an event; equal ones are counted rather than repeated.
    fn record(&self, event: Event) -> BoxFuture<'_, Result<(), FeedError>>;
}
