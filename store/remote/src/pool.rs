//! The members of the cluster: which one is asked, with what token, and what follows when it fails.

use crate::errors::{self, Failure};
use crate::options::{ConnectError, Options};
use dhow_clock::{BoxFuture, SharedClock};
use dhow_kv::Error;
use dhow_rpc::etcdserverpb as pb;
use futures::stream::{FuturesUnordered, StreamExt};
use pb::auth_client::AuthClient;
use pb::maintenance_client::MaintenanceClient;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::RwLock;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::Channel;
use tonic::{Response, Status};

/// Messages are as large as etcd makes them.
pub(crate) const ANY_SIZE: usize = i32::MAX as usize;

/// How long the other members may take to tell who they are when one has.
const GRACE: Duration = Duration::from_millis(250);

/// A message with etcd's header.
pub(crate) trait Headed {
    fn header(&self) -> Option<&pb::ResponseHeader>;
}

macro_rules! headed {
    ($($message:ident),*) => {
        $(impl Headed for pb::$message {
            fn header(&self) -> Option<&pb::ResponseHeader> {
                self.header.as_ref()
            }
        })*
    };
}

headed!(
    RangeResponse,
    TxnResponse,
    CompactionResponse,
    LeaseGrantResponse,
    LeaseRevokeResponse,
    LeaseKeepAliveResponse,
    LeaseTimeToLiveResponse,
    LeaseLeasesResponse,
    WatchResponse,
    StatusResponse
);

/// One member.
pub(crate) struct Member {
    pub(crate) url: String,
    pub(crate) channel: Channel,
    /// It has shown that it belongs to the cluster.
    known: AtomicBool,
}

/// A token, and how many there were before it.
type Token = (u64, AsciiMetadataValue);

/// The members of the cluster.
pub(crate) struct Pool {
    members: Vec<Member>,
    /// The one that is asked.
    current: AtomicUsize,
    pub(crate) clock: SharedClock,
    options: Options,
    token: RwLock<Option<Token>>,
    revision: AtomicI64,
    /// The cluster's identifier, once known.
    cluster: AtomicU64,
    /// The last call found nobody.
    down: AtomicBool,
}

/// What a member tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) version: String,
    pub(crate) cluster: u64,
}

impl Pool {
    /// The members that `options` names, and proof that they are one cluster that lets us in.
    pub(crate) async fn open(options: Options, clock: SharedClock) -> Result<Self, ConnectError> {
        let members = options.members()?.into_iter().map(|(url, endpoint)| Member {
            url,
            channel: endpoint.connect_lazy(),
            known: AtomicBool::new(false),
        });
        let pool = Self {
            members: members.collect(),
            current: AtomicUsize::new(0),
            clock,
            options,
            token: RwLock::new(None),
            revision: AtomicI64::new(0),
            cluster: AtomicU64::new(0),
            down: AtomicBool::new(false),
        };
        pool.find_cluster().await?;
        if pool.options.user.is_some() {
            pool.renew(0).await.map_err(|e| match e {
                Failure::Refused(Error::AuthNotEnabled) => ConnectError::Refused(Error::Other(
                    "a user was given, and it does not ask for users: leave the user out".into(),
                )),
                Failure::Refused(e) | Failure::Token(e) | Failure::Unknown(e, _) => {
                    ConnectError::Refused(e)
                }
                Failure::NotSent(why) => ConnectError::Refused(Error::Unreachable(why)),
            })?;
        }
        Ok(pool)
    }

    /// Asks all members who they are.
    async fn find_cluster(&self) -> Result<(), ConnectError> {
        let mut asked: FuturesUnordered<_> = (0..self.members.len())
            .map(|at| async move { (at, self.tell(&self.members[at]).await) })
            .collect();
        let mut first: Option<(usize, Told)> = None;
        let mut failed = Vec::new();
        // One answer is enough; the others get a moment to contradict it.
        let mut grace: BoxFuture<'static, ()> = Box::pin(std::future::pending());
        loop {
            let (at, told) = tokio::select! {
                biased;
                next = asked.next() => match next {
                    Some(next) => next,
                    None => break,
                },
                () = &mut grace => break,
            };
            let member = &self.members[at];
            let told = match told {
                Ok(told) => told,
                Err(status) => {
                    failed.push(connect_error(&member.url, &status));
                    continue;
                }
            };
            if is_older(&told.version, (3, 4, 0)) {
                let (endpoint, version) = (member.url.clone(), told.version);
                return Err(ConnectError::TooOld { endpoint, version });
            }
            if let Some((other, first)) = &first
                && first.cluster != told.cluster
                && first.cluster != 0
                && told.cluster != 0
            {
                let one = self.members[*other].url.clone();
                return Err(ConnectError::TwoClusters { one, other: member.url.clone() });
            }
            member.known.store(true, Ordering::Relaxed);
            if first.is_none() {
                first = Some((at, told));
                grace = self.clock.sleep(GRACE);
            }
        }
        if let Some((at, told)) = first {
            self.current.store(at, Ordering::Relaxed);
            self.cluster.store(told.cluster, Ordering::Relaxed);
            return Ok(());
        }
        // The one whose failure tells most: of all of them, trust is what people get wrong.
        let at = failed
            .iter()
            .position(|e| !matches!(e, ConnectError::Unreachable { .. }))
            .unwrap_or_default();
        Err(failed.swap_remove(at))
    }

    /// What a member tells of itself. Later releases want a user for that as well, and tell nothing
    /// to one that is not root.
    pub(crate) async fn tell(&self, member: &Member) -> Result<Told, Status> {
        let limit = self.options.connect + Duration::from_secs(1);
        let mut renewed = false;
        loop {
            let mut client = MaintenanceClient::new(member.channel.clone());
            let (request, token) = self.request(pb::StatusRequest {}, false).await;
            let answer = tokio::select! {
                answer = client.status(request) => answer,
                () = self.clock.sleep(limit) => {
                    return Err(Status::deadline_exceeded(format!("no answer within {limit:?}")));
                }
            };
            let status = match answer {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let cluster = answer.header.as_ref().map_or(0, |h| h.cluster_id);
                    let told = Told { version: answer.version.clone(), cluster };
                    // Another cluster's revision must not become ours.
                    if self.is_ours(&told) {
                        self.seen(answer.header());
                    }
                    return Ok(told);
                }
                Err(status) => status,
            };
            match errors::of_text(status.message()) {
                Some(Error::PermissionDenied) => {
                    return Ok(Told { version: String::new(), cluster: 0 });
                }
                Some(Error::UserNameEmpty | Error::InvalidToken | Error::AuthOldRevision)
                    if self.has_user() && !renewed =>
                {
                    renewed = true;
                    self.renew_at(member, token).await.map_err(|failure| match failure {
                        Failure::Refused(error)
                        | Failure::Token(error)
                        | Failure::Unknown(error, _) => Status::unauthenticated(error.to_string()),
                        Failure::NotSent(why) => Status::unavailable(why),
                    })?;
                }
                _ => return Err(status),
            }
        }
    }

    /// Whether a member belongs to the cluster, as far as it tells.
    pub(crate) fn is_ours(&self, told: &Told) -> bool {
        told.cluster == self.cluster() || told.cluster == 0 || self.cluster() == 0
    }

    /// The newest revision that any answer has told.
    pub(crate) fn revision(&self) -> i64 {
        self.revision.load(Ordering::Acquire)
    }

    pub(crate) fn cluster(&self) -> u64 {
        self.cluster.load(Ordering::Relaxed)
    }

    /// Remembers the revision of an answer.
    pub(crate) fn seen(&self, header: Option<&pb::ResponseHeader>) {
        if let Some(header) = header {
            self.revision.fetch_max(header.revision, Ordering::AcqRel);
        }
    }

    /// A request as this cluster wants it, and the number of its token. `leader`: refuse it rather
    /// than let it wait for a leader.
    pub(crate) async fn request<T>(&self, message: T, leader: bool) -> (tonic::Request<T>, u64) {
        let mut metadata = MetadataMap::new();
        if leader {
            metadata.insert("hasleader", AsciiMetadataValue::from_static("true"));
        }
        let mut number = 0;
        if let Some((of, token)) = &*self.token.read().await {
            number = *of;
            metadata.insert("token", token.clone());
        }
        (tonic::Request::from_parts(metadata, tonic::Extensions::new(), message), number)
    }

    /// Whether the cluster was told a name and a password.
    pub(crate) fn has_user(&self) -> bool {
        self.options.user.is_some()
    }

    /// Gets a token in place of the one numbered `stale`, unless somebody just did.
    pub(crate) async fn renew(&self, stale: u64) -> Result<(), Failure> {
        self.renew_at(self.member().1, stale).await
    }

    async fn renew_at(&self, member: &Member, stale: u64) -> Result<(), Failure> {
        let Some((name, password)) = &self.options.user else {
            return Err(Failure::Refused(Error::InvalidToken));
        };
        let mut token = self.token.write().await;
        let number = token.as_ref().map_or(0, |t| t.0);
        if number != stale {
            return Ok(());
        }
        let mut client = AuthClient::new(member.channel.clone());
        let message = pb::AuthenticateRequest { name: name.clone(), password: password.clone() };
        let answer = tokio::select! {
            answer = client.authenticate(message) => answer,
            () = self.clock.sleep(self.options.attempt) => {
                return Err(Failure::NotSent("no answer to the password".into()));
            }
        };
        let answer = answer.map_err(|status| errors::classify(&status))?.into_inner();
        let fresh = answer.token.parse().map_err(|_| Failure::Refused(Error::InvalidToken))?;
        *token = Some((number + 1, fresh));
        Ok(())
    }

    /// The member that is asked.
    pub(crate) fn member(&self) -> (usize, &Member) {
        let at = self.current.load(Ordering::Relaxed) % self.members.len();
        (at, &self.members[at])
    }

    /// Goes on with the next member, unless somebody just did.
    pub(crate) fn failed(&self, at: usize, why: &str) {
        if !self.down.swap(true, Ordering::Relaxed) {
            tracing::warn!(member = self.members[at].url, why, "the store's member fails");
        }
        let next = (at + 1) % self.members.len();
        let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A member has answered.
    pub(crate) fn answered(&self, at: usize) {
        if self.down.load(Ordering::Relaxed) && self.down.swap(false, Ordering::Relaxed) {
            tracing::info!(member = self.members[at].url, "the store answers again");
        }
    }

    /// Lets a member show that it belongs to the cluster, once.
    async fn check(&self, member: &Member) -> Result<(), Failure> {
        if member.known.load(Ordering::Relaxed) {
            return Ok(());
        }
        let told = self.tell(member).await.map_err(|s| Failure::NotSent(errors::line(&s)))?;
        if !self.is_ours(&told) {
            tracing::error!(member = member.url, "this member belongs to another etcd cluster");
            return Err(Failure::NotSent(format!("{} belongs to another cluster", member.url)));
        }
        member.known.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// How long to wait before the members are asked once more.
    pub(crate) fn pause(&self, rounds: u32) -> Duration {
        let most = 50u64 << rounds.min(5);
        // Half of it by chance: many clients come back at one time when a member does.
        Duration::from_millis(most / 2 + self.clock.random() % (most / 2 + 1))
    }

    /// Carries out a call. Another member is asked when one fails, as long as it is certain that the
    /// call was not carried out, or when it is one that can be `repeated` without harm.
    pub(crate) async fn call<T, M, A, F>(
        &self,
        repeated: bool,
        message: M,
        ask: A,
    ) -> Result<T, Error>
    where
        T: Headed,
        M: Clone,
        A: Fn(Channel, tonic::Request<M>) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = self.clock.monotonic() + self.options.timeout;
        let (mut tries, mut renewed) = (0, false);
        loop {
            let (at, member) = self.member();
            let left = deadline.saturating_sub(self.clock.monotonic());
            let failure = match self.check(member).await {
                Err(failure) => failure,
                Ok(()) => {
                    let limit = if repeated { left.min(self.options.attempt) } else { left };
                    let (request, token) = self.request(message.clone(), true).await;
                    let answer = tokio::select! {
                        answer = ask(member.channel.clone(), request) => answer,
                        () = self.clock.sleep(limit) => {
                            Err(Status::deadline_exceeded("no answer in time"))
                        }
                    };
                    match answer {
                        Ok(answer) => {
                            let answer = answer.into_inner();
                            self.seen(answer.header());
                            self.answered(at);
                            return Ok(answer);
                        }
                        Err(status) => match errors::classify(&status) {
                            Failure::Token(error) if renewed || self.options.user.is_none() => {
                                return Err(error);
                            }
                            Failure::Token(_) => {
                                renewed = true;
                                match self.renew(token).await {
                                    Ok(()) => continue,
                                    Err(failure) => failure,
                                }
                            }
                            failure => failure,
                        },
                    }
                }
            };
            let error = match failure {
                Failure::Refused(error) | Failure::Token(error) => return Err(error),
                Failure::NotSent(why) => {
                    self.failed(at, &why);
                    Error::Unreachable(format!("{}: {why}", member.url))
                }
                Failure::Unknown(error, why) => {
                    self.failed(at, &why);
                    if !repeated {
                        return Err(error);
                    }
                    error
                }
            };
            tries += 1;
            let round = u32::try_from(tries / self.members.len()).unwrap_or(u32::MAX);
            if tries % self.members.len() == 0 {
                let pause = self.pause(round);
                if self.clock.monotonic() + pause >= deadline {
                    return Err(error);
                }
                self.clock.sleep(pause).await;
            } else if self.clock.monotonic() >= deadline {
                return Err(error);
            }
        }
    }
}

/// How the end of a connection is told by the system, rustls, h2 and hyper.
const CUT: [&str; 4] =
    ["connection closed", "connection reset", "broken pipe", "unexpected end of file"];

/// Why a member cannot be used at all.
fn connect_error(url: &str, status: &Status) -> ConnectError {
    let (endpoint, why) = (url.to_owned(), errors::line(status));
    if let Some(error) = errors::of_text(status.message()) {
        return ConnectError::Refused(error);
    }
    // rustls' words; its types are not in the chain of causes everywhere.
    if let Some(at) = why.find("invalid peer certificate") {
        return ConnectError::Untrusted { endpoint, why: why[at..].to_owned() };
    }
    // With TLS 1.3 a client has shaken hands before it is refused: of the refusal often only the
    // end of the connection arrives, in whose words depends on what was under way.
    let cut = url.starts_with("https")
        && !errors::never_connected(status)
        && CUT.iter().any(|words| why.to_ascii_lowercase().contains(words));
    if let Some(at) = why.find("received fatal alert").or(cut.then_some(0)) {
        return ConnectError::NotTrusted { endpoint, why: why[at..].to_owned() };
    }
    if ["InvalidContentType", "corrupt message", "tls handshake eof"]
        .iter()
        .any(|p| why.contains(p))
    {
        let why = "it does not speak TLS: use http:// if the cluster has none".to_owned();
        return ConnectError::BadEndpoint { endpoint, why };
    }
    ConnectError::Unreachable { endpoint, why }
}

/// Whether a version is older than another. One that cannot be read is not.
pub(crate) fn is_older(version: &str, than: (u32, u32, u32)) -> bool {
    parse(version).is_some_and(|v| v < than)
}

/// `3.4.23` and `3.6.0-rc.1` in numbers.
pub(crate) fn parse(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split('.');
    let mut next = || {
        let part = parts.next()?;
        part.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    Some((next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_is_cut_off_is_still_a_refusal() {
        let kind = |url, error: std::io::Error| {
            let status = Status::from_error(Box::new(error));
            connect_error(url, &status)
        };
        for words in ["Connection reset by peer (os error 104)", "stream closed: Broken pipe"] {
            let told = kind("https://a:1", std::io::Error::other(words));
            assert!(matches!(told, ConnectError::NotTrusted { .. }), "{words}: {told}");
            // Without TLS nobody asks for a certificate.
            let told = kind("http://a:1", std::io::Error::other(words));
            assert!(matches!(told, ConnectError::Unreachable { .. }), "{words}: {told}");
        }
        let told = kind("https://a:1", std::io::Error::other("No route to host"));
        assert!(matches!(told, ConnectError::Unreachable { .. }), "{told}");
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert!(is_older("3.4.9", (3, 4, 10)));
        assert!(!is_older("3.10.0", (3, 4, 25)));
        assert!(!is_older("3.6.0-rc.1", (3, 6, 0)));
        assert!(!is_older("unknown", (9, 9, 9)));
    }
}
