//! Answers that come before the request was sent: none is lost, in plain or over TLS.

mod common;

use common::Served;
use dhow_door_etcd::{Config, Security};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Sends the whole of a request before it looks for the answer, twice on one connection.
async fn ask_twice(socket: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> [String; 2] {
    let body = vec![b'x'; 4 << 20];
    let mut socket = BufReader::new(socket);
    let mut answers = [String::new(), String::new()];
    for answer in &mut answers {
        let len = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {len}\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&body).await.unwrap();
        socket.flush().await.unwrap();
        while !answer.ends_with("\r\n\r\n") {
            assert_ne!(socket.read_line(answer).await.unwrap(), 0, "{path}: {answer}");
        }
        let length = answer.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut page = vec![0; length.unwrap().parse().unwrap()];
        socket.read_exact(&mut page).await.unwrap();
    }
    answers
}

/// A server that is its own authority, and clients who know it.
fn tls() -> (Arc<rustls::ServerConfig>, tokio_rustls::TlsConnector) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = params.self_signed(&key).unwrap().der().clone();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server.unwrap()), Arc::new(client).into())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_requests_get_their_answers_however_much_they_send() {
    let (server, connector) = tls();
    let served = Served::over_tls(Config::default(), Security::Either(server)).await;
    let mut clients = tokio::task::JoinSet::new();
    for path in ["/v3/nothing", "/health", "/nothing", "/v3/kv/range"] {
        for client in 0..8 {
            let (address, connector) = (served.address, connector.clone());
            clients.spawn(async move {
                let socket = TcpStream::connect(address).await.unwrap();
                if client % 2 == 0 {
                    return ask_twice(socket, path).await;
                }
                let name = "localhost".try_into().unwrap();
                ask_twice(connector.connect(name, socket).await.unwrap(), path).await
            });
        }
    }
    while let Some(answers) = clients.join_next().await {
        for answer in answers.unwrap() {
            assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        }
    }
}
