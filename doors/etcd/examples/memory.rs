//! A server of one member in memory, to point etcd's clients at: `memory ADDRESS [CERT KEY [CA]]`.

use dhow_door_etcd::{Config, Door};
use dhow_kv::Kv;
use dhow_server::Store;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

fn tls(files: &[String]) -> Option<Arc<rustls::ServerConfig>> {
    let (certificate, key) = (files.first()?, files.get(1)?);
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match files.get(2) {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            for ca in CertificateDer::pem_file_iter(ca).unwrap() {
                roots.add(ca.unwrap()).unwrap();
            }
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                Arc::new(roots),
                provider,
            );
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    Some(Arc::new(builder.with_single_cert(chain, key).unwrap()))
}

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = arguments.first().map_or("127.0.0.1:2379", String::as_str);
    let store = Store::memory_with(
        dhow_clock::System::shared(),
        dhow_server::Options { retention: None, ..dhow_server::Options::default() },
    );
    let tls = tls(arguments.get(1..).unwrap_or_default());
    let config = Config { client_cert_auth: arguments.len() > 3, ..Config::default() };
    let door = Door::new(Kv::new(store.clone()), store, config);
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    tracing::info!(%address, "ready to serve client requests");
    let stop = CancellationToken::new();
    let serving = tokio::spawn(door.serve(listener, tls, stop.clone()));
    tokio::signal::ctrl_c().await.unwrap();
    stop.cancel();
    serving.await.unwrap();
}
