//! What goes in and out: objects, users, options, lists, watch events.

use crate::codec;
use bytes::Bytes;
use dhow_objects::Status;
use dhow_objects::kinds::Kind;
use dhow_objects::selectors::{FieldSelector, LabelSelector};
use serde_json::Value;
use std::sync::{Arc, OnceLock, PoisonError};

/// Result of everything here: refusals are Kubernetes `Status` objects.
pub type Result<T> = std::result::Result<T, Status>;

/// What became of something that was done to an object; `None` when it has gone meanwhile, which is
/// no trouble to whoever wanted it gone or has nothing more to do with it.
///
/// # Errors
/// Every other refusal.
pub fn unless_gone<T>(done: Result<T>) -> Result<Option<T>> {
    match done {
        Err(refusal) if refusal.code == 404 => Ok(None),
        done => done.map(Some),
    }
}

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
    pub(crate) parsed: OnceLock<Value>,
}

impl Object {
    /// What is seen at this moment and not stored, of a kind without namespaces.
    pub fn observed(kind: &'static Kind, name: &str, value: Value) -> Self {
        Self {
            kind,
            namespace: String::new(),
            name: name.to_owned(),
            revision: 0,
            bytes: Bytes::from(value.to_string()),
            parsed: OnceLock::from(value),
        }
    }

    /// The same object over the same bytes, not parsed.
    pub(crate) fn copy(&self) -> Self {
        Self {
            kind: self.kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            revision: self.revision,
            bytes: self.bytes.clone(),
            parsed: OnceLock::new(),
        }
    }

    /// The bytes parsed; done at the first call and kept from then on.
    pub fn value(&self) -> &Value {
        self.parsed.get_or_init(|| self.to_value())
    }

    /// The bytes parsed anew, for a caller that wants to change them; nothing is kept.
    pub fn to_value(&self) -> Value {
        match self.parsed.get() {
            Some(value) => value.clone(),
            None => serde_json::from_slice(&self.bytes).unwrap_or_default(),
        }
    }

    /// The bytes as a typed object.
    ///
    /// # Errors
    /// An internal error when the stored object does not have the type's shape.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.bytes).map_err(|error| {
            let Self { kind, namespace, name, .. } = self;
            Status::internal(format!(
                "{} {namespace}/{name} cannot be decoded: {error}",
                kind.plural
            ))
        })
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        codec::text(self.value(), "/metadata/uid")
    }
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

impl WriteOptions {
    /// Tells the caller of something; once, although a write may be tried again.
    pub fn warn(&self, warnings: impl IntoIterator<Item = String>) {
        let mut told = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings {
            if !told.contains(&warning) {
                told.push(warning);
            }
        }
    }
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

impl Config {
    /// For tests: few node ports, so that they run out, and a token key that nobody else has.
    pub fn for_tests() -> Self {
        let random = ring::rand::SystemRandom::new();
        let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let token_key = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random);
        Self {
            service_cidr: ipnet::Ipv4Net::new_assert([10, 96, 0, 0].into(), 24),
            node_ports: (30_000, 30_004),
            ca_pem: "the authority".into(),
            token_key: token_key.map(|key| key.as_ref().to_vec()).unwrap_or_default(),
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
        }
    }
}
