//! The Kubernetes API, translated to state and back.
//!
//! Everything between a TLS socket and [`dhow_state::State`]: connections, who asks and whether
//! they may, URLs, bodies, discovery, documents, tables, watches and live streams. It keeps no state
//! of its own but counters.

mod authn;
mod authorize;
mod call;
mod catalog;
pub mod codec;
mod components;
mod discovery;
mod handle;
mod health;
mod metrics;
mod negotiate;
mod openapi;
mod options;
pub mod path;
mod resources;
mod respond;
mod reviews;
mod server;
mod servers;
pub mod stream;
mod table;
mod watch;

pub use server::PeerIdentity;
pub use servers::Servers;

use dhow_clock::SharedClock;
use dhow_intents::Streams;
use dhow_state::State;
use std::sync::Arc;

/// Finds the live streams of the machine with a name; `None` when it is unknown or not connected.
pub type Resolver = Arc<dyn Fn(&str) -> Option<Arc<dyn Streams>> + Send + Sync>;

/// What `/version` tells.
#[derive(Debug, Clone)]
pub struct Version {
    /// For example `v1.37.1+dhow.0.1.0`.
    pub git_version: String,
    /// The commit this was built from; may be empty.
    pub git_commit: String,
    /// RFC 3339; may be empty.
    pub build_date: String,
}

impl Default for Version {
    fn default() -> Self {
        Self {
            git_version: concat!("v1.37.1+dhow.", env!("CARGO_PKG_VERSION")).to_owned(),
            git_commit: String::new(),
            build_date: String::new(),
        }
    }
}

/// What a door is given.
#[derive(Clone)]
pub struct Config {
    /// TLS for [`Door::serve_tls`]: client certificates are asked for and not demanded, HTTP/2 and
    /// HTTP/1.1 are offered.
    pub tls: Arc<rustls::ServerConfig>,
    /// What `/version` tells.
    pub version: Version,
    /// Where live streams come from.
    pub streams: Resolver,
    /// `HOST:PORT` at which clients reach this server; told by `/api`.
    pub service_host: String,
    /// Where streams of other servers' machines go on to; `None` where there are no others.
    pub relay: Option<stream::Relay>,
    /// The platform's servers; `None` where there can be no others.
    pub servers: Option<Arc<dyn Servers>>,
    /// Issuer of service account tokens, as in `dhow_state::Config`.
    pub issuer: String,
    /// Time.
    pub clock: SharedClock,
}

/// The Kubernetes API server.
pub struct Door {
    pub(crate) state: State,
    pub(crate) config: Config,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) discovery: discovery::Documents,
}

impl Door {
    /// A door into `state`.
    pub fn new(state: State, config: Config) -> Arc<Self> {
        let discovery = discovery::Documents::new(&config.service_host);
        Arc::new(Self { state, config, metrics: metrics::Metrics::default(), discovery })
    }
}
