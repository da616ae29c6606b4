//! Sockets: accept, TLS, HTTP/1.1 and HTTP/2 on one port, and an orderly end.

use crate::access::{Call, Connection};
use crate::authority::Lenient;
use crate::gather::Gather;
use crate::turn::{Arrivals, Turns};
use crate::{Door, Inner, grpc, http1};
use dhow_bodies::Upload;
use dhow_clock::BoxFuture;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How long a client may take for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take for a request's header over HTTP/1.1.
const HEADER: Duration = Duration::from_secs(300);
/// How long running requests may take to end after a shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after the kernel refused a connection, which is nearly always a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a client may send on one stream before it is read, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same over all streams of a connection.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How many calls a client may take back before the server has seen them, as it happens when many
/// deadlines pass at once.
const PENDING_RESETS: usize = 1000;
/// How much of a stream's answers is buffered for a connection, in bytes.
const SEND_BUFFER: usize = 1 << 20;

impl Door {
    /// Serves a listener until `stop`: then no more connections are taken, streams end with "server
    /// stopped", and running requests get 5 s. The protocols offered over TLS are HTTP/2 and HTTP/1.1
    /// unless it names others.
    ///
    /// May be called for several listeners.
    pub fn serve(
        &self,
        listener: TcpListener,
        security: impl Into<Security>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(self.0.clone().serve(listener, security.into(), stop, Offer::All))
    }

    /// As [`Door::serve`], on a socket in the file system.
    pub fn serve_unix(
        &self,
        listener: UnixListener,
        security: impl Into<Security>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(self.0.clone().serve(listener, security.into(), stop, Offer::All))
    }

    /// As [`Door::serve`], but only metrics, health and version: for those who watch over the
    /// server and have no business with the keys.
    pub fn serve_pages(
        &self,
        listener: TcpListener,
        security: impl Into<Security>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(self.0.clone().serve(listener, security.into(), stop, Offer::Pages))
    }

    /// As [`Door::serve_pages`], on a socket in the file system.
    pub fn serve_pages_unix(
        &self,
        listener: UnixListener,
        security: impl Into<Security>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(self.0.clone().serve(listener, security.into(), stop, Offer::Pages))
    }
}

/// Whether connections are encrypted.
#[derive(Debug, Clone)]
pub enum Security {
    /// None is.
    Plain,
    /// Every one is.
    Tls(Arc<rustls::ServerConfig>),
    /// As each client likes, which its first byte tells.
    Either(Arc<rustls::ServerConfig>),
}

impl From<Option<Arc<rustls::ServerConfig>>> for Security {
    fn from(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        tls.map_or(Self::Plain, Self::Tls)
    }
}

/// A connection, before anything is known of it.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static {
    /// Whether the client begins with TLS; what it sends stays unread.
    fn begins_tls(&self) -> impl Future<Output = bool> + Send;
}

/// The type of a TLS record with a part of the handshake.
const TLS_HANDSHAKE: u8 = 22;

impl Socket for TcpStream {
    async fn begins_tls(&self) -> bool {
        let mut first = [0];
        matches!(self.peek(&mut first).await, Ok(1)) && first == [TLS_HANDSHAKE]
    }
}

impl Socket for UnixStream {
    // One file cannot be two addresses.
    async fn begins_tls(&self) -> bool {
        true
    }
}

/// Where connections come from.
trait Listener: Send + Sync + 'static {
    type Socket: Socket;

    fn next(&self) -> impl Future<Output = std::io::Result<Self::Socket>> + Send;
}

impl Listener for TcpListener {
    type Socket = TcpStream;

    async fn next(&self) -> std::io::Result<TcpStream> {
        let (socket, _) = self.accept().await?;
        // Answers are small and wait for nothing that could be sent with them.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended before it began");
        }
        Ok(socket)
    }
}

impl Listener for UnixListener {
    type Socket = UnixStream;

    async fn next(&self) -> std::io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// What a port serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offer {
    /// Everything.
    All,
    /// Metrics, health and version.
    Pages,
}

/// The configuration with the protocols of this port.
fn with_protocols(config: Arc<rustls::ServerConfig>) -> Arc<rustls::ServerConfig> {
    if !config.alpn_protocols.is_empty() {
        return config;
    }
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// The subject's common name of the first certificate, if the client proved one.
fn common_name(certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificates?.first()?).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

/// Whether a client begins with TLS; one that says nothing for long has its connection closed then.
async fn begins_tls(socket: &impl Socket) -> bool {
    tokio::time::timeout(HANDSHAKE, socket.begins_tls()).await.unwrap_or(true)
}

impl Inner {
    async fn serve<L: Listener>(
        self: Arc<Self>,
        listener: L,
        security: Security,
        stop: CancellationToken,
        offer: Offer,
    ) {
        // One for all listeners; they end together.
        let follows = !self.following.swap(true, Ordering::SeqCst);
        let follower = follows.then(|| tokio::spawn(self.clone().follow_leader(stop.clone())));
        let (tls, either) = match security {
            Security::Plain => (None, false),
            Security::Tls(config) => (Some(config), false),
            Security::Either(config) => (Some(config), true),
        };
        let tls = tls.map(|config| TlsAcceptor::from(with_protocols(config)));
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.next() => accepted,
            };
            let socket = match accepted {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let watcher = graceful.watcher();
            let (inner, tls, stop) = (self.clone(), tls.clone(), stop.clone());
            tokio::spawn(async move {
                let plain = either && !begins_tls(&socket).await;
                inner.connection(socket, tls.filter(|_| !plain), stop, watcher, offer).await;
            });
        }
        drop(listener);
        if let Some(follower) = follower {
            follower.abort();
            self.following.store(false, Ordering::SeqCst);
        }
        // What is not over by then ends with the process.
        let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    }

    async fn connection<S>(
        self: Arc<Self>,
        socket: S,
        tls: Option<TlsAcceptor>,
        stop: CancellationToken,
        watcher: hyper_util::server::graceful::Watcher,
        offer: Offer,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = tls else {
            let connection = Arc::new(Connection { common_name: None, stop });
            return self.http(socket, connection, watcher, offer).await;
        };
        match tokio::time::timeout(HANDSHAKE, tls.accept(socket)).await {
            Ok(Ok(stream)) => {
                let common_name = common_name(stream.get_ref().1.peer_certificates());
                let connection = Arc::new(Connection { common_name, stop });
                self.http(stream, connection, watcher, offer).await;
            }
            Ok(Err(error)) => tracing::warn!(%error, "rejected connection on client endpoint"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn http<S>(
        self: Arc<Self>,
        socket: S,
        connection: Arc<Connection>,
        watcher: hyper_util::server::graceful::Watcher,
        offer: Offer,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let arrivals = Arrivals::default();
        let mut builder = auto::Builder::new(arrivals.clone());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER).pipeline_flush(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(self.config.max_concurrent_streams)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .auto_date_header(false);
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (inner, connection) = (self.clone(), connection.clone());
            async move {
                let response = if offer == Offer::Pages {
                    Box::pin(http1::page(inner, &Upload::of(request))).await
                } else if grpc::is_grpc(request.headers()) {
                    grpc::answer(inner, Upload::of_calls(request), connection).await
                } else {
                    let call = Call::new(connection);
                    Box::pin(http1::answer(inner, Upload::of(request), call)).await
                };
                Ok::<_, Infallible>(response)
            }
        });
        let socket = Gather::new(Lenient::new(socket));
        let serving = builder.serve_connection(TokioIo::new(socket.clone()), service).into_owned();
        if let Err(error) = Turns::new(watcher.watch(serving), arrivals, socket).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    fn end_leaderless(&self) {
        let mut token = self.leaderless.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *token).cancel();
    }

    /// Counts the changes of leader, and ends the streams that need one when this member has been
    /// without for three election timeouts.
    async fn follow_leader(self: Arc<Self>, stop: CancellationToken) {
        let mut known = self.admin.pulse().leader;
        loop {
            let changed = if known == 0 {
                let patience = 3 * self.config.election_timeout;
                tokio::select! {
                    () = stop.cancelled() => return,
                    leader = self.admin.leader_changed(known) => Some(leader),
                    () = tokio::time::sleep(patience) => None,
                }
            } else {
                tokio::select! {
                    () = stop.cancelled() => return,
                    leader = self.admin.leader_changed(known) => Some(leader),
                }
            };
            let leader = match changed {
                Some(leader) => leader,
                None => {
                    tracing::warn!("streams that need a leader end: there has been none for long");
                    self.end_leaderless();
                    tokio::select! {
                        () = stop.cancelled() => return,
                        leader = self.admin.leader_changed(0) => leader,
                    }
                }
            };
            if leader != known && leader != 0 {
                self.metrics.leader_changes.fetch_add(1, Ordering::Relaxed);
            }
            known = leader;
        }
    }
}
