//! Typed objects over `kv`: optimistic writes, admission, access rules, cause stamp, watch cache.
//!
//! The only way to change an object. A kind is a row of `dhow_objects::kinds`; nothing here knows
//! a kind by name except where Kubernetes itself does (namespaces, pods' graceful deletion...).
//!
//! Objects are stored as the JSON bytes that the API serves, under `/registry/GROUP/PLURAL/NS/NAME`
//! (`/registry/core/...` for the legacy group). A cache that follows the store keeps every object with its served bytes, so that
//! reads copy bytes. Reads are linearizable: they wait until the cache has seen the store's revision.

use bytes::Bytes;
use dhow_clock::SharedClock;
use dhow_kv::Kv;
use dhow_objects::Status;
use dhow_objects::kinds::Kind;
use dhow_objects::selectors::{FieldSelector, LabelSelector};
use serde_json::Value;
use std::sync::Arc;

/// Result of everything here: refusals are Kubernetes `Status` objects.
pub type Result<T> = std::result::Result<T, Status>;

/// One stored object at one revision.
#[derive(Debug)]
pub struct Object {
    /// Its kind.
    pub kind: &'static Kind,
    /// Namespace, empty for cluster-wide kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The revision that wrote it: its `resourceVersion`.
    pub revision: u64,
    /// The JSON that the API serves, with apiVersion, kind and resourceVersion.
    pub bytes: Bytes,
    /// The same, parsed.
    pub value: Value,
}

/// Who asks, as authenticated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User name, for example `kubernetes-admin` or `system:serviceaccount:shop:default`.
    pub name: String,
    /// Uid, may be empty.
    pub uid: String,
    /// Groups, for example `system:masters`.
    pub groups: Vec<String>,
    /// Extra attributes.
    pub extra: Vec<(String, Vec<String>)>,
}

/// Who writes and why; goes into the cause stamp and into managedFields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Actor {
    /// Who asks.
    pub user: User,
    /// Field manager, for example `kubectl-client-side-apply` or `dhow`.
    pub manager: String,
    /// The store revision whose observation led to this write; 0 for people.
    pub because: u64,
}

/// How strict unknown and duplicate fields are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Drop silently.
    Ignore,
    /// Drop and warn (the default).
    #[default]
    Warn,
    /// Refuse.
    Strict,
}

/// Options of a write.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Go through everything but do not store (`dryRun=All`).
    pub dry_run: bool,
    /// Unknown fields.
    pub field_validation: FieldValidation,
    /// Warnings for the caller (`Warning:` headers) are appended here.
    pub warnings: Arc<std::sync::Mutex<Vec<String>>>,
}

/// Options of a read of many.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Labels.
    pub labels: LabelSelector,
    /// Fields.
    pub fields: FieldSelector,
    /// At most so many; 0 for all.
    pub limit: usize,
    /// Where an earlier list stopped.
    pub continue_token: String,
    /// `resourceVersion` as given; `None` for the newest.
    pub revision: Option<u64>,
    /// `resourceVersionMatch` as given.
    pub revision_match: String,
}

/// Objects at one revision.
#[derive(Debug)]
pub struct List {
    /// The list's `resourceVersion`.
    pub revision: u64,
    /// In key order.
    pub items: Vec<Arc<Object>>,
    /// Token for the rest; empty when this is all.
    pub continue_token: String,
    /// How many remain, when known.
    pub remaining: Option<u64>,
}

/// One step of a watch.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    /// The object appeared (or came to match the selectors).
    Added(Arc<Object>),
    /// It changed.
    Modified(Arc<Object>),
    /// It is gone (or ceased to match); the last state, with the deleting revision as
    /// resourceVersion.
    Deleted(Arc<Object>),
    /// Everything up to this revision was delivered. `initial_end` marks the end of the initial
    /// events of a streaming list.
    Bookmark {
        /// The revision.
        revision: u64,
        /// Whether it ends the initial events.
        initial_end: bool,
    },
    /// The watch is over with this refusal (410 when compacted).
    Error(Status),
}

/// Options of a watch.
#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    /// Labels.
    pub labels: LabelSelector,
    /// Fields.
    pub fields: FieldSelector,
    /// Deliver events after this revision; `None` or 0: everything that exists now as Added, then on.
    pub revision: Option<u64>,
    /// Streaming list: initial Added events, then a bookmark with `initial_end`.
    pub send_initial_events: bool,
    /// Send bookmarks now and then.
    pub bookmarks: bool,
}

/// A patch as it came over the wire.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' strategic merge.
    Strategic(Value),
    /// Server-side apply.
    Apply {
        /// The applied configuration.
        value: Value,
        /// Take fields from other managers.
        force: bool,
    },
}

/// How an object is deleted (`meta/v1.DeleteOptions`).
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Grace period in seconds; `None` takes the kind's or the object's.
    pub grace_period_seconds: Option<i64>,
    /// `Background`, `Foreground`, `Orphan`, or empty for the kind's default.
    pub propagation: String,
    /// Only if it has this uid.
    pub uid: Option<String>,
    /// Only if it is at this resourceVersion.
    pub resource_version: Option<String>,
    /// Do not store.
    pub dry_run: bool,
}

/// What a delete did.
#[derive(Debug)]
pub enum Deleted {
    /// It is gone; its last state.
    Gone(Arc<Object>),
    /// It is marked (deletionTimestamp) and waits for finalizers or a graceful end.
    Marked(Arc<Object>),
}

/// A stream of watch events. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    pub(crate) receiver: tokio::sync::mpsc::Receiver<WatchEvent>,
}

impl Watch {
    /// The next event; `None` when the platform shuts down. Cancel safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.receiver.recv().await
    }
}

/// The shared handle. Cheap to clone.
#[derive(Clone)]
pub struct State {}

#[allow(unused_variables, clippy::unused_async)]
impl State {
    /// Opens the state over a store: fills the cache, makes the built-in namespaces.
    pub async fn open(kv: Kv, clock: SharedClock, config: Config) -> Result<Self> {
        panic!("contract")
    }
    /// One object.
    pub async fn get(&self, kind: &'static Kind, namespace: &str, name: &str) -> Result<Arc<Object>> {
        panic!("contract")
    }
    /// Many objects; `namespace` `None` means all namespaces.
    pub async fn list(&self, kind: &'static Kind, namespace: Option<&str>, options: &ListOptions) -> Result<List> {
        panic!("contract")
    }
    /// Follows changes.
    pub async fn watch(&self, kind: &'static Kind, namespace: Option<&str>, options: WatchOptions) -> Result<Watch> {
        panic!("contract")
    }
    /// Makes an object. `value` is what came over the wire, decoded.
    pub async fn create(&self, actor: &Actor, kind: &'static Kind, namespace: &str, value: Value, options: &WriteOptions) -> Result<Arc<Object>> {
        panic!("contract")
    }
    /// Replaces an object, or its `subresource` (`status`, `scale`, ...); "" for the object.
    pub async fn update(&self, actor: &Actor, kind: &'static Kind, namespace: &str, name: &str, subresource: &str, value: Value, options: &WriteOptions) -> Result<Arc<Object>> {
        panic!("contract")
    }
    /// Patches an object or its subresource; retries on conflict when the patch carries no
    /// resourceVersion. The flag says whether it was created (apply).
    pub async fn patch(&self, actor: &Actor, kind: &'static Kind, namespace: &str, name: &str, subresource: &str, patch: Patch, options: &WriteOptions) -> Result<(Arc<Object>, bool)> {
        panic!("contract")
    }
    /// Deletes an object.
    pub async fn delete(&self, actor: &Actor, kind: &'static Kind, namespace: &str, name: &str, options: &DeleteOptions) -> Result<Deleted> {
        panic!("contract")
    }
    /// Deletes what a list would show.
    pub async fn delete_collection(&self, actor: &Actor, kind: &'static Kind, namespace: Option<&str>, list: &ListOptions, options: &DeleteOptions) -> Result<List> {
        panic!("contract")
    }
    /// The cache's revision.
    pub fn revision(&self) -> u64 {
        panic!("contract")
    }
}

/// What the platform is configured with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses for services.
    pub service_cidr: ipnet::Ipv4Net,
    /// First and last port for NodePort services.
    pub node_ports: (u16, u16),
    /// The certificate authority's PEM, published as ConfigMap `kube-root-ca.crt`.
    pub ca_pem: String,
    /// Signs service account tokens: PKCS#8 of an ECDSA P-256 key.
    pub token_key: Vec<u8>,
    /// Issuer of service account tokens.
    pub issuer: String,
}
