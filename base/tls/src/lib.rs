//! Whom to take for the other end of a TLS connection, where a list of authorities cannot say it.
//!
//! rustls asks two things: whether a certificate is the right one, and whether the other end holds
//! the certificate's key. Callers answer the first; the second has only one answer, given here.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::fmt;
use std::sync::Arc;

/// Takes the servers for whose certificate, chain and name `good` says so; they prove that they hold
/// the certificate's key by one of `algorithms`.
pub fn servers<F>(algorithms: WebPkiSupportedAlgorithms, good: F) -> Arc<dyn ServerCertVerifier>
where
    F: Fn(
            &CertificateDer<'_>,
            &[CertificateDer<'_>],
            &ServerName<'_>,
            UnixTime,
        ) -> Result<(), Error>
        + Send
        + Sync
        + 'static,
{
    Arc::new(Verifier { algorithms, good })
}

/// Takes every server that holds the key of the certificate it shows: who only listens is kept out,
/// nobody else.
pub fn any_server(algorithms: WebPkiSupportedAlgorithms) -> Arc<dyn ServerCertVerifier> {
    servers(algorithms, |_, _, _, _| Ok(()))
}

/// Takes the clients for whose certificate and chain `good` says so, and none without one; they are
/// given no hint which of their certificates to show.
pub fn clients<F>(algorithms: WebPkiSupportedAlgorithms, good: F) -> Arc<dyn ClientCertVerifier>
where
    F: Fn(&CertificateDer<'_>, &[CertificateDer<'_>], UnixTime) -> Result<(), Error>
        + Send
        + Sync
        + 'static,
{
    Arc::new(Verifier { algorithms, good })
}

struct Verifier<F> {
    algorithms: WebPkiSupportedAlgorithms,
    good: F,
}

impl<F> fmt::Debug for Verifier<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

/// The methods of both traits that prove the key.
macro_rules! holds_the_key {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signed, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signed, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl<F> ServerCertVerifier for Verifier<F>
where
    F: Fn(
            &CertificateDer<'_>,
            &[CertificateDer<'_>],
            &ServerName<'_>,
            UnixTime,
        ) -> Result<(), Error>
        + Send
        + Sync,
{
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.good)(leaf, chain, name, now).map(|()| ServerCertVerified::assertion())
    }

    holds_the_key!();
}

impl<F> ClientCertVerifier for Verifier<F>
where
    F: Fn(&CertificateDer<'_>, &[CertificateDer<'_>], UnixTime) -> Result<(), Error> + Send + Sync,
{
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        (self.good)(leaf, chain, now).map(|()| ClientCertVerified::assertion())
    }

    holds_the_key!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::ring::{default_provider, sign::any_supported_type};
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use rustls::{CertificateError, ClientConfig, ClientConnection};
    use rustls::{ServerConfig, ServerConnection};
    use rustls_pki_types::PrivateKeyDer;

    #[derive(Debug)]
    struct Shown(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shown {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }

    /// A handshake in memory with a server that shows the certificate of one key and holds another.
    fn shake(
        shown: &KeyPair,
        held: &KeyPair,
        verifier: Arc<dyn ServerCertVerifier>,
    ) -> Result<(), Error> {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = params.self_signed(shown).unwrap().der().clone();
        let key = any_supported_type(&PrivateKeyDer::try_from(held.serialize_der()).unwrap());
        let shown = Shown(Arc::new(CertifiedKey::new(vec![leaf], key.unwrap())));
        let provider = Arc::new(default_provider());
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shown));
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        let mut server = ServerConnection::new(Arc::new(server))?;
        let name = ServerName::try_from("elsewhere").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn any_server_is_taken_that_holds_the_key_of_its_certificate() {
        let algorithms = default_provider().signature_verification_algorithms;
        let (own, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        assert_eq!(shake(&own, &own, any_server(algorithms)), Ok(()));
        let thief = shake(&own, &other, any_server(algorithms));
        assert_eq!(thief, Err(CertificateError::BadSignature.into()));
    }

    #[test]
    fn a_server_that_holds_its_key_is_refused_by_the_callers_word() {
        let algorithms = default_provider().signature_verification_algorithms;
        let own = KeyPair::generate().unwrap();
        let refused = || Error::from(CertificateError::UnknownIssuer);
        let verifier = servers(algorithms, move |_, _, _, _| Err(refused()));
        assert_eq!(shake(&own, &own, verifier), Err(CertificateError::UnknownIssuer.into()));
    }
}
