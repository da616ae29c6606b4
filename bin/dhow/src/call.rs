//! Calls to other servers of the platform, or of one that is to be joined: one request over TLS,
//! one answer.

use crate::pki;
use anyhow::{Result, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long one call may take: changes of the members wait for a quorum.
const LIMIT: Duration = Duration::from_secs(15);

/// The largest answer that is read.
const MOST: usize = 1 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody answers there.
    #[error("{url} cannot be reached: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
    /// Somebody else answers there.
    #[error("{url} is not a server of this platform: {why}")]
    Stranger {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
    /// The server says no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// One line.
        message: String,
    },
}

/// How a server proves itself and who asks.
pub struct Caller {
    tls: Arc<ClientConfig>,
    /// For the header `authorization`.
    bearer: Option<String>,
}

impl Caller {
    /// Knows the authority by its [`pki::fingerprint`], and shows a token.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn with_token(fingerprint: &str, token: &str) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (fingerprint, webpki) = (fingerprint.to_owned(), provider.clone());
        let pinned = dhow_tls::servers(
            provider.signature_verification_algorithms,
            move |leaf, chain, name, now| {
                check_pinned(&fingerprint, &webpki, leaf, chain, name, now)
            },
        );
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(pinned)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls), bearer: Some(token.to_owned()) })
    }

    /// Knows the authority, and shows a certificate of it.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub fn with_certificate(pki: &pki::Pki, identity: &pki::Identity) -> Result<Self> {
        Ok(Self { tls: pki.client_tls(pki::Shown::new(pki, identity)?)?, bearer: None })
    }

    /// Sends a request to the server at `url` (scheme, host and port) and reads its answer.
    ///
    /// # Errors
    /// [`Failure`], or when `url` is not understood.
    pub async fn call(&self, url: &str, method: Method, path: &str, body: &Value) -> Result<Value> {
        match tokio::time::timeout(LIMIT, self.ask(url, method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => {
                let why = format!("no answer within {} s", LIMIT.as_secs());
                Err(Failure::Unreachable { url: url.to_owned(), why }.into())
            }
        }
    }

    async fn ask(&self, url: &str, method: Method, path: &str, body: &Value) -> Result<Value> {
        let (host, port) = place(url)?;
        let unreachable = |why: String| Failure::Unreachable { url: url.to_owned(), why };
        let socket = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let authority = format!("{host}:{port}");
        let name = ServerName::try_from(host).map_err(|_| not_understood(url))?;
        let stream = TlsConnector::from(self.tls.clone())
            .connect(name, socket)
            .await
            .map_err(|error| Failure::Stranger { url: url.to_owned(), why: error.to_string() })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends by itself when the sender and the answer's body are gone.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", authority)
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .header("user-agent", concat!("dhow/", env!("CARGO_PKG_VERSION")));
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        let request = request.body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
        let answer =
            sender.send_request(request).await.map_err(|error| unreachable(error.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MOST).collect().await;
        let body = body.map_err(|error| unreachable(error.to_string()))?.to_bytes();
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(value);
        }
        let message = value["message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
        Err(Failure::Refused { code: status.as_u16(), message }.into())
    }
}

/// Host and port of a server's address.
///
/// # Errors
/// When it is none.
pub fn place(url: &str) -> Result<(String, u16)> {
    let place: Uri = url.parse().map_err(|_| not_understood(url))?;
    let host = place.host().filter(|_| place.scheme_str() == Some("https"));
    let host = host.ok_or_else(|| not_understood(url))?.trim_matches(['[', ']']).to_owned();
    Ok((host, place.port_u16().unwrap_or(6443)))
}

fn not_understood(url: &str) -> anyhow::Error {
    anyhow!("{url:?} is no address of a server: write https://HOST:6443")
}

/// Whether a server's certificate comes from the authority that is known by its hash, and which the
/// server shows itself. By which name it is called is of no importance: nobody but servers has a
/// server's certificate of that authority.
fn check_pinned(
    fingerprint: &str,
    provider: &Arc<CryptoProvider>,
    leaf: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let general = |why: &str| rustls::Error::General(why.to_owned());
    let authority = chain
        .iter()
        .find(|certificate| pki::fingerprint_of(certificate) == fingerprint)
        .ok_or_else(|| general("its authority is another one than that of the token"))?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| general(&error.to_string()))?;
    match verifier.verify_server_cert(leaf, chain, name, &[], now) {
        Err(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => Ok(()),
        verified => verified.map(|_| ()),
    }
}

/// Asks one server after the other until one does it.
///
/// # Errors
/// What the last one said, or that there is none.
pub async fn any(caller: &Caller, urls: &[String], method: Method, path: &str) -> Result<Value> {
    let mut last = None;
    for url in urls {
        match caller.call(url, method.clone(), path, &Value::Null).await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = Some(error.context(format!("asked {url}"))),
        }
    }
    match last {
        Some(error) => Err(error),
        None => bail!("no other server is known"),
    }
}

/// Whether a failure is a refusal with this status.
pub fn is_refusal(error: &anyhow::Error, status: u16) -> bool {
    matches!(error.downcast_ref::<Failure>(), Some(Failure::Refused { code, .. }) if *code == status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Pki, ServerNames};
    use rustls_pki_types::pem::PemObject;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsAcceptor;

    fn now() -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
    }

    /// Answers every request with an empty object; the address.
    async fn serve(tls: Arc<rustls::ServerConfig>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = TlsAcceptor::from(tls.clone()).accept(socket).await else {
                    continue;
                };
                let mut request = Vec::new();
                while !request.ends_with(b"{}") && stream.read_buf(&mut request).await.unwrap() > 0
                {
                }
                let shown = String::from_utf8_lossy(&request).contains("authorization: Bearer t");
                let status = if shown { "200 OK" } else { "401 Unauthorized" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        url
    }

    fn pki(dir: &tempfile::TempDir) -> Pki {
        Pki::open(&dir.path().join("pki"), now()).unwrap()
    }

    fn server(pki: &Pki) -> pki::Identity {
        let names = ServerNames { names: vec!["elsewhere".into()], addresses: Vec::new() };
        pki.server(&names, now()).unwrap()
    }

    #[tokio::test]
    async fn a_server_is_known_by_its_authority_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(&dir);
        let url =
            serve(pki.server_tls(pki::Shown::new(&pki, &server(&pki)).unwrap()).unwrap()).await;
        let caller = Caller::with_token(&pki.fingerprint().unwrap(), "t").unwrap();
        assert_eq!(caller.call(&url, Method::POST, "/x", &json!({})).await.unwrap(), json!({}));
        let wrong = Caller::with_token(&pki.fingerprint().unwrap(), "u").unwrap();
        let refused = wrong.call(&url, Method::POST, "/x", &json!({})).await.unwrap_err();
        assert!(is_refusal(&refused, 401), "{refused}");
    }

    #[tokio::test]
    async fn whoever_shows_an_authority_without_its_key_is_a_stranger() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (pki, thief) = (pki(&dir), pki(&other));
        // A certificate of another authority, with the true authority behind it.
        let identity = server(&thief);
        let chain = vec![
            CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap(),
            CertificateDer::from_pem_slice(pki.authority().unwrap().as_bytes()).unwrap(),
        ];
        let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let url = serve(Arc::new(tls)).await;
        let caller = Caller::with_token(&pki.fingerprint().unwrap(), "t").unwrap();
        let refused = caller.call(&url, Method::POST, "/x", &json!({})).await.unwrap_err();
        let stranger = matches!(refused.downcast_ref(), Some(Failure::Stranger { .. }));
        assert!(stranger, "{refused}");
    }
}
