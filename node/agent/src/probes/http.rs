//! A minimal HTTP client for probes and hooks: one request, one answer, no verification.

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Most of a body that is looked at, as upstream.
const BODY_MOST: usize = 10 * 1024;

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The beginning of the body.
    pub body: String,
}

/// Asks once. `host` is where to connect unless the action names a host itself.
///
/// # Errors
/// A text in the words of upstream's client.
pub async fn get(action: &HTTPGetAction, host: &str, port: u16) -> Result<Answer, String> {
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(host);
    let secure = action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let path = match action.path.as_deref().unwrap_or("/") {
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    let scheme = if secure { "https" } else { "http" };
    let authority =
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let wrap = |why: String| format!("Get \"{scheme}://{authority}{path}\": {why}");
    let mut request = hyper::Request::get(&path)
        .header("user-agent", "kube-probe/1.37")
        .header("accept", "*/*")
        .header("connection", "close");
    let mut named = false;
    for header in action.http_headers.iter().flatten() {
        named |= header.name.eq_ignore_ascii_case("host");
        request = request.header(&header.name, &header.value);
    }
    if !named {
        request = request.header("host", &authority);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| wrap(e.to_string()))?;
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|e| wrap(format!("dial tcp {authority}: connect: {}", plain(&e))))?;
    if secure {
        let name = ServerName::try_from(host.to_owned()).map_err(|e| wrap(e.to_string()))?;
        let connector = tokio_rustls::TlsConnector::from(tls());
        let stream = connector.connect(name, stream).await.map_err(|e| wrap(e.to_string()))?;
        ask(stream, request).await.map_err(wrap)
    } else {
        ask(stream, request).await.map_err(wrap)
    }
}

/// An error of the kernel in the words that Go uses.
pub fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".into(),
        _ => error.to_string(),
    }
}

async fn ask<S>(stream: S, request: hyper::Request<Empty<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|e| e.to_string())?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while bytes.len() < BODY_MOST {
            match body.frame().await {
                Some(Ok(frame)) => {
                    bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()))
                }
                Some(Err(_)) | None => break,
            }
        }
        bytes.truncate(BODY_MOST);
        Ok(Answer { status, body: String::from_utf8_lossy(&bytes).into_owned() })
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => {
            // The server closed early: what has arrived may still be a whole answer.
            match futures::FutureExt::now_or_never(exchange) {
                Some(answer) => answer,
                None => Err(ended.err().map_or_else(|| "EOF".to_owned(), |e| e.to_string())),
            }
        }
    }
}

fn tls() -> Arc<rustls::ClientConfig> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    let make = || {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions();
        // The provider is the library's own; its default versions cannot be inconsistent with it.
        #[allow(clippy::expect_used)]
        let builder = builder.expect("ring supports the default protocol versions");
        let verifier = Arc::new(AnyServer { schemes });
        Arc::new(
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth(),
        )
    };
    CONFIG.get_or_init(make).clone()
}

/// Takes every certificate, as upstream's probes do: a probe asks whether a server answers, and
/// sends it nothing that is secret. Signatures are not looked at either, so that a certificate that
/// rustls cannot read (X.509 v1, which Go takes) fails no probe.
#[derive(Debug)]
struct AnyServer {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::HTTPHeader;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn an_answer_is_read_even_when_the_server_closes_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 1024];
            let count = socket.read(&mut asked).await.unwrap();
            socket.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
            String::from_utf8_lossy(&asked[..count]).into_owned()
        };
        let action = HTTPGetAction {
            path: Some("healthz".into()),
            http_headers: Some(vec![HTTPHeader { name: "X-A".into(), value: "1".into() }]),
            ..HTTPGetAction::default()
        };
        let (answer, asked) = tokio::join!(get(&action, "127.0.0.1", port), server);
        assert_eq!(answer, Ok(Answer { status: 503, body: "no".into() }));
        assert!(asked.starts_with("GET /healthz HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("x-a: 1") && asked.contains("kube-probe"), "{asked}");
    }

    #[tokio::test]
    async fn a_refused_connection_reads_as_upstreams() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = get(&HTTPGetAction::default(), "127.0.0.1", port).await.unwrap_err();
        assert_eq!(
            error,
            format!(
                "Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused"
            )
        );
    }
}
