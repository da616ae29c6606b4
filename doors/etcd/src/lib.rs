//! etcd's gRPC services and JSON gateway over the store.
//!
//! [`Door`] answers every RPC of etcd v3 (<https://etcd.io/docs/latest/dev-guide/api_reference_v3/>)
//! over a [`Kv`] and an [`Admin`](dhow_kv::admin::Admin), with etcd's checks, texts and codes. One
//! port speaks gRPC over HTTP/2, with and without TLS, and HTTP/1.1 for the gateway (`/v3/...`),
//! `/health`, `/livez`, `/readyz`, `/version`, `/metrics` and `/debug/vars`.
//!
//! gRPC's framing is done here, on hyper: five bytes before each message and a status at the end
//! need no layers between, and the hot answers are written straight from the store's types.

mod access;
mod auth;
mod authority;
mod body;
mod cluster;
mod convert;
mod dispatch;
mod election;
mod error;
mod gateway;
mod gather;
mod grpc;
mod http1;
mod jwt;
mod keys;
mod lease;
mod lock;
mod maintenance;
mod method;
mod metrics;
mod serve;
mod turn;
mod watch;
mod wire;

pub use jwt::{Jwt, JwtError, Tokens};
pub use serve::Security;

use bytes::Bytes;
use dhow_kv::Kv;
use dhow_kv::admin::{Pulse, SharedAdmin, Version};
use dhow_rpc::etcdserverpb::ResponseHeader;
use metrics::Metrics;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Appends families to `/metrics`, in Prometheus' text format.
pub type ExtraMetrics = Arc<dyn Fn(&mut String) + Send + Sync>;

/// How a [`Door`] behaves.
#[derive(Clone)]
pub struct Config {
    /// The version of etcd that the server says to be, `major.minor.patch`.
    pub server_version: String,
    /// The cluster's version, `major.minor.0`.
    pub cluster_version: String,
    /// The version of what is stored, `major.minor.0`; it is also in snapshots.
    pub storage_version: String,
    /// The largest request that the store takes, in bytes. Messages may be 512 KiB larger, so that
    /// a request which is a little too large gets etcd's own error.
    pub max_request_bytes: usize,
    /// How many guards or steps a list of a transaction may have.
    pub max_txn_ops: usize,
    /// How often a quiet watch that asked for it is told the revision. At least 100 ms.
    pub watch_progress_interval: Duration,
    /// The election timeout: streams that need a leader end after three without one.
    pub election_timeout: Duration,
    /// The common name of a verified client certificate is the user.
    pub client_cert_auth: bool,
    /// What users get when they log in.
    pub tokens: Arc<Tokens>,
    /// Clients may only read keys with these prefixes.
    pub protected: Vec<Bytes>,
    /// The cost of password hashes, 4 to 31.
    pub bcrypt_cost: u32,
    /// How many streams one connection may have at a time; `None` for any number.
    pub max_concurrent_streams: Option<u32>,
    /// Whether the JSON gateway is served.
    pub gateway: bool,
    /// Requests that take this long are told of in the log; `None` for none.
    pub slow: Option<Duration>,
    /// Measure how long calls take.
    pub extensive: bool,
    /// More for `/metrics`.
    pub metrics: Option<ExtraMetrics>,
}

/// What messages may be larger than requests, in bytes.
const OVERHEAD: usize = 512 << 10;

impl Default for Config {
    fn default() -> Self {
        Self {
            server_version: "3.7.3".to_owned(),
            cluster_version: format!("{}.0", Version::NEWEST),
            storage_version: format!("{}.0", Version::NEWEST),
            max_request_bytes: 3 << 19,
            max_txn_ops: 128,
            watch_progress_interval: Duration::from_secs(600),
            election_timeout: Duration::from_secs(1),
            client_cert_auth: false,
            tokens: Arc::default(),
            protected: Vec::new(),
            bcrypt_cost: 10,
            max_concurrent_streams: None,
            gateway: true,
            slow: None,
            extensive: false,
            metrics: None,
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("server_version", &self.server_version)
            .field("max_request_bytes", &self.max_request_bytes)
            .field("max_txn_ops", &self.max_txn_ops)
            .field("watch_progress_interval", &self.watch_progress_interval)
            .field("client_cert_auth", &self.client_cert_auth)
            .field("tokens", &self.tokens)
            .field("protected", &self.protected)
            .finish_non_exhaustive()
    }
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door({:?})", self.0.kv)
    }
}

/// What all services share.
pub(crate) struct Inner {
    pub(crate) kv: Kv,
    pub(crate) admin: SharedAdmin,
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) encoded: watch::Encoded,
    pub(crate) gateway: gateway::Gateway,
    /// Cancelled when streams that need a leader must end, and then replaced.
    pub(crate) leaderless: std::sync::Mutex<CancellationToken>,
    /// Whether somebody looks after the leader.
    pub(crate) following: std::sync::atomic::AtomicBool,
    /// Password hashes that may be computed at the same time.
    pub(crate) hashing: tokio::sync::Semaphore,
}

impl Door {
    /// A door over a store.
    pub fn new(kv: Kv, admin: SharedAdmin, config: Config) -> Self {
        let hashing = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Inner {
            kv,
            admin,
            metrics: Metrics::new(config.extensive),
            config,
            encoded: watch::Encoded::default(),
            gateway: gateway::Gateway::default(),
            leaderless: std::sync::Mutex::default(),
            following: std::sync::atomic::AtomicBool::new(false),
            hashing: tokio::sync::Semaphore::new(hashing),
        }))
    }
}

impl Inner {
    /// The largest message that is read, in bytes.
    pub(crate) fn max_message(&self) -> usize {
        self.config.max_request_bytes + OVERHEAD
    }

    /// A header with this revision.
    pub(crate) fn header_at(&self, revision: i64) -> ResponseHeader {
        let identity = self.admin.identity();
        let Pulse { term, .. } = self.admin.pulse();
        ResponseHeader {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            revision,
            raft_term: term,
        }
    }

    /// A header with the store's revision.
    pub(crate) fn header(&self) -> ResponseHeader {
        self.header_at(self.kv.revision())
    }

    /// How long the server tries before it gives up, as etcd computes it.
    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.config.election_timeout
    }

    /// Cancelled when this member has been without a leader for too long.
    pub(crate) fn leaderless(&self) -> CancellationToken {
        self.leaderless.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
