//! DNS answers, each keeping its source object.
//!
//! A small authoritative server for the cluster's domain and the reverse zones of its networks;
//! everything else is forwarded to the machine's own resolvers.

use dhow_intents::{NameIntent, Owner};
use std::net::SocketAddr;
use std::sync::Arc;

/// What the server answers for, and whom it asks for the rest.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's domain, for example `cluster.local`.
    pub domain: String,
    /// Where to listen (UDP and TCP).
    pub listen: Vec<SocketAddr>,
    /// Resolvers for all other names, tried in order; empty answers REFUSED... SERVFAIL.
    pub upstreams: Vec<SocketAddr>,
    /// Networks whose reverse names are answered here.
    pub reverse: Vec<String>,
}

/// The DNS server of one machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Names {}

#[allow(unused_variables, clippy::unused_async)]
impl Names {
    /// Binds and starts to answer.
    pub async fn start(config: Config) -> Result<Self, std::io::Error> {
        panic!("contract")
    }
    /// Replaces all names of the intent's owner (kind, namespace, name; an older revision than the
    /// known one is ignored).
    pub fn set(&self, intent: Arc<NameIntent>) {
        panic!("contract")
    }
    /// Forgets all names of an object.
    pub fn remove(&self, owner: &Owner) {
        panic!("contract")
    }
    /// Which object answers this name, for `dhow why`.
    pub fn source(&self, name: &str) -> Vec<Owner> {
        panic!("contract")
    }
}
