//! Certificates from files: who we are, whom we trust; read again when they have changed.
//!
//! The rules are etcd's (<https://etcd.io/docs/latest/op-guide/security/>): a trusted authority
//! means that clients must show a certificate of it, files are looked at for every handshake so
//! that certificates can be renewed under a running server, and a list of allowed names narrows who
//! may come in.

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, OtherError, RootCertStore, ServerConfig,
    SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use x509_parser::time::ASN1Time;

/// Where Linux distributions keep the authorities that the machine trusts.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

const ONLY_12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
const ONLY_13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// How one side proves itself and whom it trusts.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Our certificate with its chain, PEM, shown to clients; and to servers unless
    /// [`Settings::as_client`] says otherwise. Empty: none, for clients that show none.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Another certificate and key, to be shown to servers.
    pub as_client: Option<(PathBuf, PathBuf)>,
    /// The authorities that others' certificates must come from; `None` for the machine's own.
    pub authority: Option<PathBuf>,
    /// Clients must show a certificate.
    pub demand_client: bool,
    /// Certificates that are no longer good, PEM or DER.
    pub revoked: Option<PathBuf>,
    /// The common names that clients may have; empty for any.
    pub allowed_names: Vec<String>,
    /// The host names that a client's certificate must be for, one of them; empty for any.
    pub allowed_hosts: Vec<String>,
    /// The names of the cipher suites to use (below TLS 1.3), as IANA or Go write them; empty for
    /// all that are safe.
    pub suites: Vec<String>,
    /// Nothing older than TLS 1.3.
    pub only_13: bool,
    /// Nothing newer than TLS 1.2.
    pub only_12: bool,
    /// Take any server's certificate: what `--peer-auto-tls` means. It keeps listeners out and
    /// nobody else.
    pub any_server: bool,
    /// The protocols offered within TLS, for example `h2`.
    pub protocols: Vec<Vec<u8>>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing or unreadable.
    #[error("cannot read {}: {source}; check the path and the permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what}: give it as PEM", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// An address is https, but no certificates were given.
    #[error("there are no certificates for https: name them, or use http")]
    NoTrust,
    /// No authority was given, and the machine has none.
    #[error("no authority to trust: name one with the trusted CA flag")]
    NoAuthority,
    /// A cipher suite is not known or not safe.
    #[error(
        "cipher suite {0} is not supported: leave it out, or leave out the list for all safe ones"
    )]
    Suite(String),
    /// The library refuses.
    #[error("{}: {source}", path.display())]
    Tls {
        /// The certificate that it is about.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The library refuses to check clients so.
    #[error("clients' certificates cannot be checked: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// What a file was when it was last read.
type Print = Vec<Option<(i64, i64, u64, u64)>>;

/// Settings, and what was made of their files.
#[derive(Debug)]
pub struct Trust {
    settings: Settings,
    server: Mutex<Option<(Print, Arc<Server>)>>,
    client: Mutex<Option<(Print, Arc<ClientConfig>)>>,
}

impl Trust {
    /// Nothing is read yet.
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self { settings, server: Mutex::default(), client: Mutex::default() })
    }

    /// For connections that come in. It looks at the files for every handshake; while they cannot be
    /// used, what was read last holds.
    ///
    /// # Errors
    /// [`Error`], when the files cannot be used now and never could.
    pub fn server(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Error> {
        if self.latest().is_none() {
            self.current()?;
        }
        let path = || self.settings.certificate.clone();
        let provider = self.provider()?;
        let algorithms = provider.signature_verification_algorithms;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions())
            .map_err(|source| Error::Tls { path: path(), source })?;
        let builder = if self.asks_clients() {
            let trust = self.clone();
            builder.with_client_cert_verifier(dhow_tls::clients(
                algorithms,
                move |leaf, chain, now| trust.check_client(leaf, chain, now),
            ))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(Arc::new(Live(self.clone())));
        config.alpn_protocols.clone_from(&self.settings.protocols);
        if self.asks_clients() {
            // Who resumes a session is not looked at again, whatever was revoked since.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Arc::new(config))
    }

    fn asks_clients(&self) -> bool {
        self.settings.demand_client || self.settings.authority.is_some()
    }

    /// What the files hold now.
    fn current(&self) -> Result<Arc<Server>, Error> {
        cached(&self.server, self.print(), || self.read_server())
    }

    /// The same, or what they held last.
    fn latest(&self) -> Option<Arc<Server>> {
        match self.current() {
            Ok(server) => Some(server),
            Err(error) => {
                tracing::warn!("certificates cannot be read again, the last ones hold: {error}");
                let last = self.server.lock().unwrap_or_else(PoisonError::into_inner);
                last.as_ref().map(|(_, server)| server.clone())
            }
        }
    }

    /// For the next connection that goes out. The files are read if they have changed.
    ///
    /// # Errors
    /// [`Error`], while the files cannot be used.
    pub fn client(&self) -> Result<Arc<ClientConfig>, Error> {
        cached(&self.client, self.print(), || self.make_client())
    }

    /// Whether the lists of names let a client in that showed this certificate.
    ///
    /// # Errors
    /// The reason, for the log.
    pub fn admit(&self, leaf: &CertificateDer<'_>) -> Result<(), String> {
        let Settings { allowed_names, allowed_hosts, .. } = &self.settings;
        if allowed_names.is_empty() && allowed_hosts.is_empty() {
            return Ok(());
        }
        if !allowed_names.is_empty() {
            let name = common_name(leaf).unwrap_or_default();
            if !allowed_names.contains(&name) {
                return Err(format!("its common name {name:?} is not an allowed one"));
            }
        }
        if !allowed_hosts.is_empty() {
            let leaf = ParsedCertificate::try_from(leaf).map_err(|error| error.to_string())?;
            let is_for = |host: &String| {
                ServerName::try_from(host.as_str())
                    .is_ok_and(|name| rustls::client::verify_server_name(&leaf, &name).is_ok())
            };
            if !allowed_hosts.iter().any(is_for) {
                return Err(format!("its certificate is for none of {}", allowed_hosts.join(", ")));
            }
        }
        Ok(())
    }

    /// Whether a client may come in that shows this certificate, by what the files hold now.
    fn check_client(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let server = self.latest();
        let clients = server.as_ref().and_then(|server| server.clients.as_ref());
        let clients = clients.ok_or(CertificateError::UnknownIssuer)?;
        if let Err(refused) = clients.verify_client_cert(leaf, chain, now) {
            // An authority is nobody's certificate to the library below; to Go it is its own.
            if !server.as_ref().is_some_and(|server| server.trusts_itself(leaf, now)) {
                return Err(refused);
            }
        }
        self.admit(leaf)
            .map_err(|why| CertificateError::Other(OtherError(Arc::new(NotAllowed(why)))).into())
    }

    fn print(&self) -> Print {
        let Settings { certificate, key, as_client, authority, revoked, .. } = &self.settings;
        let mut files = vec![certificate, key];
        files.extend(as_client.iter().flat_map(|(certificate, key)| [certificate, key]));
        files.extend(authority);
        files.extend(revoked);
        let look = |path: &PathBuf| {
            let seen = std::fs::metadata(path).ok()?;
            Some((seen.mtime(), seen.mtime_nsec(), seen.size(), seen.ino()))
        };
        files.into_iter().map(look).collect()
    }

    fn read_server(&self) -> Result<Arc<Server>, Error> {
        let Settings { certificate, key, .. } = &self.settings;
        let provider = self.provider()?;
        let identity =
            CertifiedKey::from_der(certificates(certificate)?, private_key(key)?, &provider)
                .map_err(|source| Error::Tls { path: certificate.clone(), source })?;
        let clients = if self.asks_clients() {
            let roots = Arc::new(self.roots()?);
            let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            if let Some(path) = &self.settings.revoked {
                verifier = verifier
                    .with_crls(revocations(path)?)
                    .only_check_end_entity_revocation()
                    .allow_unknown_revocation_status();
            }
            Some(verifier.build()?)
        } else {
            None
        };
        let authorities = match (&self.settings.authority, &self.settings.revoked) {
            (Some(path), None) => certificates(path)?,
            _ => Vec::new(),
        };
        Ok(Arc::new(Server { identity: Arc::new(identity), clients, authorities }))
    }

    fn make_client(&self) -> Result<Arc<ClientConfig>, Error> {
        let Settings { certificate, key, as_client, any_server, .. } = &self.settings;
        let (certificate, key) = match as_client {
            Some((certificate, key)) => (certificate, key),
            None => (certificate, key),
        };
        let fault = |source| Error::Tls { path: certificate.clone(), source };
        let provider = self.provider()?;
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(self.versions())
            .map_err(fault)?;
        let builder = if *any_server {
            let anyone = dhow_tls::any_server(provider.signature_verification_algorithms);
            builder.dangerous().with_custom_certificate_verifier(anyone)
        } else {
            builder.with_root_certificates(self.roots()?)
        };
        let mut config = if certificate.as_os_str().is_empty() {
            builder.with_no_client_auth()
        } else {
            builder
                .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
                .map_err(fault)?
        };
        config.alpn_protocols.clone_from(&self.settings.protocols);
        Ok(Arc::new(config))
    }

    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        match (self.settings.only_12, self.settings.only_13) {
            (_, true) => ONLY_13,
            (true, false) => ONLY_12,
            (false, false) => rustls::ALL_VERSIONS,
        }
    }

    fn provider(&self) -> Result<Arc<CryptoProvider>, Error> {
        let mut provider = rustls::crypto::ring::default_provider();
        let wanted = &self.settings.suites;
        if !wanted.is_empty() {
            let all = std::mem::take(&mut provider.cipher_suites);
            let name = |suite: &rustls::SupportedCipherSuite| {
                format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")
            };
            for text in wanted {
                // Go leaves out the hash of one name.
                let long = format!("{text}_SHA256");
                if !all.iter().any(|s| name(s) == *text || name(s) == long) {
                    return Err(Error::Suite(text.clone()));
                }
            }
            // TLS 1.3 has its own, which no list takes away; as in Go.
            provider.cipher_suites = all
                .into_iter()
                .filter(|suite| {
                    let own = name(suite);
                    suite.tls13().is_some()
                        || wanted.iter().any(|w| *w == own || format!("{w}_SHA256") == own)
                })
                .collect();
        }
        Ok(Arc::new(provider))
    }

    fn roots(&self) -> Result<RootCertStore, Error> {
        let own = self.settings.authority.clone();
        let system = || SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists());
        let given = own.is_some();
        let path = own.or_else(system).ok_or(Error::NoAuthority)?;
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(certificates(&path)?);
        if added == 0 {
            return Err(Error::Content { path, what: "certificate of an authority" });
        }
        if !given {
            tracing::debug!(path = %path.display(), "trusting the machine's own authorities");
        }
        Ok(roots)
    }
}

/// A certificate's common name.
pub fn common_name(der: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some(name)
}

fn cached<T>(
    slot: &Mutex<Option<(Print, Arc<T>)>>,
    print: Print,
    make: impl FnOnce() -> Result<Arc<T>, Error>,
) -> Result<Arc<T>, Error> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((known, made)) = &*slot
        && *known == print
    {
        return Ok(made.clone());
    }
    let made = make()?;
    *slot = Some((print, made.clone()));
    Ok(made)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::Content { path: path.to_owned(), what: "certificate" }),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|_| Error::Content { path: path.to_owned(), what: "private key" })
}

fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        // As etcd wants it: one list, DER.
        _ if bytes.first() == Some(&0x30) => Ok(vec![bytes.into()]),
        _ => Err(Error::Content { path: path.to_owned(), what: "revocation list" }),
    }
}

/// What a server shows and whom it trusts, as its files say.
#[derive(Debug)]
struct Server {
    identity: Arc<CertifiedKey>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// The authorities, if none of them can be revoked.
    authorities: Vec<CertificateDer<'static>>,
}

impl Server {
    /// Whether a certificate is one of the authorities' own, as where one certificate that signs
    /// itself is all there is.
    fn trusts_itself(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> bool {
        if !self.authorities.contains(leaf) {
            return false;
        }
        let Ok((_, its)) = x509_parser::parse_x509_certificate(leaf) else { return false };
        let Ok(now) = ASN1Time::from_timestamp(now.as_secs().cast_signed()) else { return false };
        let for_clients = match its.extended_key_usage() {
            Ok(Some(usage)) => usage.value.client_auth || usage.value.any,
            Ok(None) => true,
            Err(_) => false,
        };
        for_clients && its.validity().is_valid_at(now)
    }
}

/// Shows what the files hold at each handshake.
#[derive(Debug)]
struct Live(Arc<Trust>);

impl ResolvesServerCert for Live {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.latest().map(|server| server.identity.clone())
    }
}

/// A good certificate whose name is not among the allowed ones.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotAllowed(String);

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use std::time::Duration;

    /// A certificate that signs itself and may sign others, and its key.
    fn made() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_that_is_its_own_authority_is_taken_from_clients() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (own, key) = made();
        std::fs::write(path("cert"), &own).unwrap();
        std::fs::write(path("key"), key).unwrap();
        let settings = Settings {
            certificate: path("cert"),
            key: path("key"),
            authority: Some(path("cert")),
            demand_client: true,
            ..Settings::default()
        };
        let trust = Trust::new(settings);
        let leaf = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let checked = |pem: &str, now| trust.check_client(&leaf(pem), &[], now).is_ok();
        let day = |year: u64| UnixTime::since_unix_epoch(Duration::from_secs(year * 31_556_952));
        assert!(checked(&own, day(50)));
        // One that looks the same is not it, and none is good for ever.
        assert!(!checked(&made().0, day(50)));
        assert!(!checked(&own, day(4000)));
    }
}
