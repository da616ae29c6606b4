//! DNS answers, each keeping its source object.
//!
//! A small authoritative server for the cluster's domain and the reverse zones of its networks;
//! everything else is forwarded to the machine's own resolvers.

mod answer;
mod forward;
mod machine;
mod server;
mod zone;

pub use answer::{Authority, Outcome, Pending};
pub use machine::{LookupError, ResolvConf, Resolver, Service};
pub use zone::Zone;

use dhow_intents::{NameIntent, Owner};
use forward::Forwarder;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::task::AbortHandle;

/// What the server answers for, and whom it asks for the rest.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's domain, for example `cluster.local`.
    pub domain: String,
    /// Where to listen (UDP and TCP). An address need not exist yet.
    pub listen: Vec<SocketAddr>,
    /// Resolvers for all other names, tried in order; with none, other names fail (SERVFAIL).
    pub upstreams: Vec<SocketAddr>,
    /// Networks whose reverse names are answered here, for example `10.42.0.0/16`.
    pub reverse: Vec<String>,
}

/// The DNS server of one machine. Cheap to clone; it answers until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Names {
    shared: Arc<Shared>,
    tasks: Arc<Tasks>,
}

/// What all tasks of the server use.
#[derive(Debug)]
struct Shared {
    authority: Authority,
    zone: RwLock<Zone>,
    forwarder: Forwarder,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Tasks {
    handles: Vec<AbortHandle>,
    addresses: Vec<SocketAddr>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for handle in &self.handles {
            handle.abort();
        }
    }
}

impl Shared {
    fn decide(&self, packet: &[u8], udp: bool) -> Outcome {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        self.authority.decide(&zone, packet, udp, turn)
    }
}

impl Names {
    /// Binds and starts to answer.
    ///
    /// # Errors
    /// `InvalidInput` for a domain or network that cannot be one; otherwise why an address could
    /// not be bound, with the address.
    pub async fn start(config: Config) -> Result<Self, io::Error> {
        let mut bound = Vec::new();
        for address in &config.listen {
            let pair = server::bind(*address).map_err(|e| {
                io::Error::new(e.kind(), format!("listen for DNS on {address}: {e}"))
            })?;
            bound.push(pair);
        }
        let addresses =
            bound.iter().map(|(udp, _)| udp.local_addr()).collect::<Result<Vec<_>, _>>()?;
        let own = addresses.iter().map(SocketAddr::ip).filter(|a| !a.is_unspecified()).collect();
        let authority = Authority::new(&config.domain, &config.reverse, own).ok_or_else(|| {
            let what = format!(
                "the cluster domain {:?} or one of the networks {:?} is malformed",
                config.domain, config.reverse
            );
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })?;
        let upstreams: Vec<SocketAddr> =
            config.upstreams.iter().copied().filter(|u| !is_self(u, &addresses)).collect();
        if upstreams.len() < config.upstreams.len() {
            tracing::warn!(
                ?addresses,
                "this DNS server is its own upstream; that entry is left out"
            );
        }
        let shared = Arc::new(Shared {
            authority,
            zone: RwLock::default(),
            forwarder: Forwarder::new(upstreams),
            turn: AtomicUsize::new(0),
        });
        let mut handles = Vec::new();
        for (udp, tcp) in bound {
            let udp = Arc::new(udp);
            handles.push(tokio::spawn(server::serve_udp(shared.clone(), udp)).abort_handle());
            handles.push(tokio::spawn(server::serve_tcp(shared.clone(), tcp)).abort_handle());
        }
        tracing::info!(?addresses, domain = config.domain, "DNS answers");
        Ok(Self { shared, tasks: Arc::new(Tasks { handles, addresses }) })
    }

    /// Where it listens, with the ports that were chosen for port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.tasks.addresses
    }

    /// Replaces all names of the intent's owner (kind, namespace, name; an older revision than the
    /// known one is ignored).
    pub fn set(&self, intent: Arc<NameIntent>) {
        self.shared.zone.write().unwrap_or_else(PoisonError::into_inner).set(&intent);
    }

    /// Forgets all names of an object.
    pub fn remove(&self, owner: &Owner) {
        self.shared.zone.write().unwrap_or_else(PoisonError::into_inner).remove(owner);
    }

    /// Which object answers this name, for `dhow why`.
    pub fn source(&self, name: &str) -> Vec<Owner> {
        self.shared.zone.read().unwrap_or_else(PoisonError::into_inner).sources(name)
    }
}

/// Whether asking this resolver would be asking ourselves.
fn is_self(upstream: &SocketAddr, listen: &[SocketAddr]) -> bool {
    listen.iter().any(|own| {
        own.port() == upstream.port()
            && (own.ip() == upstream.ip()
                // We listen on every address, and only an address of this machine can be bound.
                || own.ip().is_unspecified()
                    && std::net::UdpSocket::bind((upstream.ip(), 0)).is_ok())
    })
}
