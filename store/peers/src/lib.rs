//! The members' connections to each other: frames over mutual TLS.
//!
//! [`Peers`] is the [`Transport`] of `store/server` between real machines. Each member connects to
//! each other one, and sends on the connections that it made: one for Raft's messages, and one for
//! snapshots while there are any. A connection begins with the words `dhowpeer` and a frame that
//! tells the version of the protocol, the cluster and both members; the answer lets the caller in
//! or says why not. [`ask`] is the same door for somebody who is to become a member.
//!
//! Nothing here waits for a member that is not there: queues are bounded, the oldest message goes,
//! and a connection is tried again when there is something to send, with pauses that grow.

mod address;
mod frame;
mod hello;
mod lane;
mod remote;
mod serve;
pub mod tls;

pub use address::{Address, BadAddress, Listener, Place};
pub use hello::{Answer, Hello, Purpose, Refusal};

use bytes::{Bytes, BytesMut};
use dhow_clock::SharedClock;
use dhow_kv::admin::{Identity, Member};
use dhow_server::{Introduction, Standing, Store, Transport};
use hello::{PREFACE, VERSION};
use lane::Trouble;
use remote::Peer;
use rustls::pki_types::ServerName;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tls::Trust;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a connection may take until both sides know each other.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// This machine's own member: where messages go, and who answers what callers ask. Nothing of it
/// may block.
pub trait Local: Send + Sync + 'static {
    /// A message from a member.
    fn receive(&self, from: u64, message: Bytes);
    /// Messages to a member were dropped, because it is not reached.
    fn unreachable(&self, to: u64);
    /// The cluster and its members.
    fn introduction(&self) -> Introduction;
    /// What a caller is to this member.
    fn standing(&self, id: u64) -> Standing;
    /// Another member says that this one was removed from the cluster.
    fn expelled(&self);
}

impl Local for Store {
    fn receive(&self, from: u64, message: Bytes) {
        self.receive(from, message);
    }

    fn unreachable(&self, to: u64) {
        self.unreachable(to);
    }

    fn introduction(&self) -> Introduction {
        self.introduction()
    }

    fn standing(&self, id: u64) -> Standing {
        self.standing(id)
    }

    fn expelled(&self) {
        self.expelled();
    }
}

/// How [`Peers`] behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Time for pauses and limits.
    pub clock: SharedClock,
    /// Where the other members reach this one: told to members that do not know it yet.
    pub urls: Vec<String>,
    /// The certificates; needed where an address is https.
    pub trust: Option<Arc<Trust>>,
}

/// A connection, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The members, and the ways to them.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Who was a member when last told.
    members: HashSet<u64>,
    peers: HashMap<u64, Peer>,
    /// The tasks of connections that came in, by member and purpose.
    incoming: HashMap<(u64, u8), AbortHandle>,
    /// The last refusal of each caller, to say it once.
    refused: HashMap<u64, String>,
}

pub(crate) struct Shared {
    config: Config,
    identity: watch::Sender<Option<Identity>>,
    /// Weak, because the store holds its transport.
    local: OnceLock<Weak<dyn Local>>,
    table: Mutex<Table>,
    stop: CancellationToken,
    tracker: TaskTracker,
    /// The store calls from threads of its own.
    runtime: Handle,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("table", &self.table).finish_non_exhaustive()
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member, while there is one.
    fn local(&self) -> Option<Arc<dyn Local>> {
        self.local.get()?.upgrade()
    }

    /// Runs a task until the transport is shut down, or it is aborted.
    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let stop = self.stop.clone();
        let task = async move {
            stop.run_until_cancelled(task).await;
        };
        self.tracker.spawn_on(task, &self.runtime).abort_handle()
    }

    /// Connects to a member at the first of its addresses that answers.
    async fn call(
        &self,
        addresses: &[Address],
        to: u64,
        purpose: Purpose,
    ) -> Result<(Box<dyn Stream>, Address), Trouble> {
        let mut identity = self.identity.subscribe();
        let identity = match identity.wait_for(Option::is_some).await {
            Ok(identity) => identity.unwrap_or_default(),
            Err(_) => return Err(Trouble::Closed),
        };
        let hello = Hello {
            version: VERSION,
            purpose,
            cluster: identity.cluster_id,
            from: identity.member_id,
            to,
            urls: self.config.urls.clone(),
        };
        let mut trouble = Trouble::NoAddress;
        for address in addresses {
            match dial(address, self.config.trust.as_deref(), &self.config.clock, &hello).await {
                Ok((stream, _)) => return Ok((stream, address.clone())),
                // A word from the member itself says more than silence elsewhere.
                Err(_) if matches!(trouble, Trouble::Refused { .. }) => {}
                Err(failed) => trouble = failed,
            }
        }
        Err(trouble)
    }
}

/// Connects, says the first words and hears the answer: what a question was for.
async fn dial(
    address: &Address,
    trust: Option<&Trust>,
    clock: &SharedClock,
    hello: &Hello,
) -> Result<(Box<dyn Stream>, Introduction), Trouble> {
    let talk = async {
        let broken = |source| Trouble::Connect { address: address.clone(), source };
        let socket = address.connect().await.map_err(broken)?;
        let mut stream: Box<dyn Stream> = if address.tls {
            let trusting = |source| Trouble::Trust { address: address.clone(), source };
            let trust = trust.ok_or(tls::Error::NoAuthority).map_err(trusting)?;
            let name = ServerName::try_from(address.host().to_owned())
                .map_err(|_| broken(frame::invalid("no certificate is for such a name".into())))?;
            let connector = TlsConnector::from(trust.client().map_err(trusting)?);
            Box::new(connector.connect(name, socket).await.map_err(broken)?)
        } else {
            Box::new(socket)
        };
        let mut words = BytesMut::from(&PREFACE[..]);
        frame::put(&hello.encode(), &mut words);
        stream.write_all(&words).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let answer = frame::read(&mut stream, hello::MOST).await.map_err(broken)?;
        let answer = answer.ok_or_else(|| broken(std::io::ErrorKind::UnexpectedEof.into()))?;
        match Answer::decode(answer).map_err(broken)? {
            Answer::Refused(why) => Err(Trouble::Refused { address: address.clone(), why }),
            Answer::Welcome { cluster, members, .. } => {
                Ok((stream, Introduction { cluster_id: cluster, members }))
            }
        }
    };
    tokio::select! {
        done = talk => done,
        () = clock.sleep(HANDSHAKE) => Err(Trouble::Silent { address: address.clone() }),
    }
}

/// Why no member told who the members are.
#[derive(Debug, thiserror::Error)]
#[error("no member answers: {}; check that they run and that the addresses are right", .0.join("; "))]
pub struct NoAnswer(pub Vec<String>);

/// Asks one member after the other which cluster theirs is and who its members are. For a member
/// that joins an existing cluster, before it opens its store.
///
/// # Errors
/// [`NoAnswer`], with what each of them did.
pub async fn ask(
    addresses: &[Address],
    trust: Option<&Trust>,
    clock: &SharedClock,
) -> Result<Introduction, NoAnswer> {
    let (version, purpose) = (VERSION, Purpose::Ask);
    let hello = Hello { version, purpose, cluster: 0, from: 0, to: 0, urls: Vec::new() };
    let mut troubles = Vec::new();
    for address in addresses {
        match dial(address, trust, clock, &hello).await {
            Ok((_, introduction)) => return Ok(introduction),
            Err(trouble) => troubles.push(trouble.to_string()),
        }
    }
    Err(NoAnswer(troubles))
}

/// The transport between the members of one cluster, over sockets.
#[derive(Debug)]
pub struct Peers {
    shared: Arc<Shared>,
}

impl Peers {
    /// Nothing listens and nothing is sent before [`Peers::start`]. Call it within a tokio runtime.
    pub fn new(config: Config) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                config,
                identity: watch::Sender::new(None),
                local: OnceLock::new(),
                table: Mutex::default(),
                stop: CancellationToken::new(),
                tracker: TaskTracker::new(),
                runtime: Handle::current(),
            }),
        })
    }

    /// Takes calls at `listener`, by TLS if `tls`. Until [`Peers::start`] they are told to wait.
    ///
    /// # Errors
    /// [`tls::Error`], when TLS is wanted and there are no certificates for it: then nothing listens.
    pub fn listen(&self, listener: Listener, tls: bool) -> Result<(), tls::Error> {
        let tls = match (tls, &self.shared.config.trust) {
            (true, Some(trust)) => Some(TlsAcceptor::from(trust.server()?)),
            (true, None) => return Err(tls::Error::NoTrust),
            (false, _) => None,
        };
        self.shared.spawn(serve::accept(self.shared.clone(), listener, tls));
        Ok(())
    }

    /// Says who this member is, and hands it what comes. A second call changes nothing.
    pub fn start(&self, identity: Identity, local: Weak<dyn Local>) {
        if self.shared.local.set(local).is_ok() {
            let mut table = self.shared.table();
            // Told of before it was known who this one is.
            table.peers.remove(&identity.member_id);
            drop(table);
            self.shared.identity.send_replace(Some(identity));
        }
    }

    /// Ends all connections. Returns when the listeners are closed.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Transport for Peers {
    fn send(&self, to: u64, message: Bytes) {
        if let Some(peer) = self.shared.table().peers.get(&to) {
            peer.send(message);
        }
    }

    fn send_bulk(&self, to: u64, message: Bytes) {
        if let Some(peer) = self.shared.table().peers.get(&to) {
            peer.send_bulk(message);
        }
    }

    fn members(&self, members: &[Member]) {
        let own = self.shared.identity.borrow().map(|identity| identity.member_id);
        let mut table = self.shared.table();
        let table = &mut *table;
        for member in members {
            if Some(member.id) == own {
                continue;
            }
            let addresses = usable(member);
            match table.peers.get_mut(&member.id) {
                Some(peer) => {
                    peer.stranger = false;
                    peer.moved(addresses);
                }
                None => {
                    let peer = Peer::start(&self.shared, member.id, addresses, false);
                    table.peers.insert(member.id, peer);
                }
            }
        }
        let now: HashSet<u64> = members.iter().map(|member| member.id).collect();
        for id in table.members.difference(&now).copied() {
            if let Some(peer) = table.peers.remove(&id) {
                peer.gone();
            }
            for purpose in [Purpose::Messages, Purpose::Bulk] {
                if let Some(task) = table.incoming.remove(&(id, purpose as u8)) {
                    task.abort();
                }
            }
        }
        table.members = now;
    }
}

/// The addresses of a member that can be read; the others are told of.
fn usable(member: &Member) -> Vec<Address> {
    let read = |url: &String| match url.parse() {
        Ok(address) => Some(address),
        Err(error) => {
            tracing::warn!(member = format!("{:x}", member.id), "{error}");
            None
        }
    };
    member.peer_urls.iter().filter_map(read).collect()
}
