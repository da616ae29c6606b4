//! Sockets: accept, TLS handshake, HTTP/1.1 and HTTP/2, and an orderly end.

use crate::Door;
use crate::respond::Body;
use dhow_bodies::Upload;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How long a client may take for its TLS handshake or for one request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long running requests may take to end after a shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after the kernel refused a connection, which is nearly always a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection, as the transport proved it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PeerIdentity {
    /// Nothing was proved.
    #[default]
    Nobody,
    /// A client certificate that our authority signed.
    Certificate {
        /// The subject's common name.
        name: String,
        /// The subject's organisations.
        groups: Vec<String>,
    },
    /// Root, over the local socket.
    LocalRoot,
}

impl Door {
    /// Serves the API on a TCP listener until `shutdown` is cancelled, then waits up to 5 s for
    /// running requests.
    pub async fn serve_tls(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let acceptor = TlsAcceptor::from(self.config.tls.clone());
        let connections = Connections::new(self.clone(), shutdown.clone());
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.accept_failed(&error).await;
                    continue;
                }
            };
            // Small frames of watches and terminals must not wait for more bytes.
            let _ = socket.set_nodelay(true);
            // A client whose machine vanished is noticed by the kernel, not by a timer of ours.
            let _ = rustix::net::sockopt::set_socket_keepalive(&socket, true);
            let (connections, acceptor) = (connections.clone(), acceptor.clone());
            tokio::spawn(async move {
                let handshake = tokio::time::timeout(HEADER_TIMEOUT, acceptor.accept(socket));
                match handshake.await {
                    Ok(Ok(stream)) => {
                        let identity = identify(stream.get_ref().1);
                        connections.serve(stream, identity).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
                }
            });
        }
        connections.drain().await;
    }

    /// Serves the API on a local socket until `shutdown` is cancelled. Only root may use it: the
    /// kernel tells who connected.
    pub async fn serve_unix(self: Arc<Self>, listener: UnixListener, shutdown: CancellationToken) {
        let connections = Connections::new(self.clone(), shutdown.clone());
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    self.accept_failed(&error).await;
                    continue;
                }
            };
            let identity = match socket.peer_cred() {
                Ok(peer) if peer.uid() == 0 => PeerIdentity::LocalRoot,
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), "local socket refused a user who is not root");
                    PeerIdentity::Nobody
                }
                Err(error) => {
                    tracing::warn!(%error, "local socket cannot tell who connected");
                    PeerIdentity::Nobody
                }
            };
            let connections = connections.clone();
            tokio::spawn(async move { connections.serve(socket, identity).await });
        }
        connections.drain().await;
    }

    async fn accept_failed(&self, error: &std::io::Error) {
        tracing::warn!(%error, "cannot accept a connection");
        self.config.clock.sleep(ACCEPT_PAUSE).await;
    }
}

/// The client certificate's subject. rustls has verified the chain by now.
fn identify(connection: &rustls::ServerConnection) -> PeerIdentity {
    let Some(certificate) = connection.peer_certificates().and_then(<[_]>::first) else {
        return PeerIdentity::Nobody;
    };
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return PeerIdentity::Nobody;
    };
    let subject = parsed.subject();
    let name = subject.iter_common_name().next().and_then(|cn| cn.as_str().ok()).unwrap_or("");
    if name.is_empty() {
        return PeerIdentity::Nobody;
    }
    let groups = subject
        .iter_organization()
        .filter_map(|group| group.as_str().ok())
        .map(str::to_owned)
        .collect();
    PeerIdentity::Certificate { name: name.to_owned(), groups }
}

/// The open connections of one listener.
#[derive(Clone)]
struct Connections {
    door: Arc<Door>,
    shutdown: CancellationToken,
    graceful: Arc<std::sync::Mutex<Option<GracefulShutdown>>>,
}

impl Connections {
    fn new(door: Arc<Door>, shutdown: CancellationToken) -> Self {
        let graceful = Arc::new(std::sync::Mutex::new(Some(GracefulShutdown::new())));
        Self { door, shutdown, graceful }
    }

    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        identity: PeerIdentity,
    ) {
        let identity = Arc::new(identity);
        let (door, shutdown) = (self.door.clone(), self.shutdown.clone());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (door, identity, shutdown) = (door.clone(), identity.clone(), shutdown.clone());
            async move {
                let reply: hyper::Response<Body> =
                    door.handle(&identity, Upload::of(request), shutdown).await;
                Ok::<_, Infallible>(reply)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(1000)
            .max_header_list_size(64 * 1024);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let watched = match self.graceful.lock() {
            Ok(graceful) => graceful.as_ref().map(|graceful| graceful.watcher()),
            Err(_) => None,
        };
        // Without a watcher the listener has ended already.
        if let Some(watcher) = watched
            && let Err(error) = watcher.watch(connection.into_owned()).await
        {
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn drain(&self) {
        let graceful = self.graceful.lock().ok().and_then(|mut graceful| graceful.take());
        if let Some(graceful) = graceful {
            tokio::select! {
                () = graceful.shutdown() => {}
                () = self.door.config.clock.sleep(DRAIN) => {
                    tracing::warn!("requests still ran when the API server stopped");
                }
            }
        }
    }
}
