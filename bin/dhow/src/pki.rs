//! The platform's own certificate authority and the certificates that it issues.
//!
//! Everything lies under `DATA/pki`, readable by root alone. The authority lives for ten years.
//! What it issues lives for one year and is renewed when less than two thirds of it is left: at a
//! start, and by `renewal` while the platform runs.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * 86_400);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// What is left of a certificate's life when it is due to be renewed.
const FRESH: Duration = Duration::from_secs(365 * 86_400 / 3 * 2);

/// The files of the API server's identity.
pub const SERVER: &str = "apiserver";

/// Names and addresses that the API is reached by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerNames {
    /// DNS names.
    pub names: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// The platform's keys and certificates.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    /// What was asked for since this process began, by file: what has to be kept fresh.
    asked: Mutex<BTreeMap<String, Asked>>,
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    Server(ServerNames),
    Peer { name: String, names: ServerNames },
    Client { name: String, group: String },
}

/// A certificate with its key, both PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// What all servers of a platform share, PEM.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Keys {
    /// The authority's certificate.
    pub authority: String,
    /// Its key.
    pub authority_key: String,
    /// The key that signs service account tokens.
    pub token_key: String,
}

fn make(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
}

/// The SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` tells it, without colons.
///
/// # Errors
/// When the text holds no certificate.
pub fn fingerprint(pem: &str) -> Result<String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())?;
    Ok(fingerprint_of(&der))
}

/// The same of a certificate in DER.
pub fn fingerprint_of(der: &[u8]) -> String {
    use std::fmt::Write;
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Pki {
    fn at(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), asked: Mutex::default() }
    }

    /// Opens `dir`, making the authority and the token key when they are missing.
    ///
    /// # Errors
    /// When a file cannot be read or written, or a key file without its certificate is found.
    pub fn open(dir: &Path, now: Duration) -> Result<Self> {
        make(dir)?;
        let pki = Self::at(dir);
        if !pki.path("ca.crt").exists() {
            let key = KeyPair::generate()?;
            let mut params = params("dhow", None, now, AUTHORITY_LIFE)?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![
                KeyUsagePurpose::KeyCertSign,
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::CrlSign,
            ];
            let certificate = params.self_signed(&key)?;
            // The key first: a crash in between leaves no authority without a key.
            pki.write("ca.key", &key.serialize_pem())?;
            pki.write("ca.crt", &certificate.pem())?;
        }
        if !pki.path("sa.key").exists() {
            pki.write("sa.key", &KeyPair::generate()?.serialize_pem())?;
        }
        Ok(pki)
    }

    /// Takes over the authority and the token key of a platform that this machine joins.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn take_over(dir: &Path, keys: &Keys) -> Result<()> {
        make(dir)?;
        let pki = Self::at(dir);
        pki.write("sa.key", &keys.token_key)?;
        pki.write("ca.key", &keys.authority_key)?;
        pki.write("ca.crt", &keys.authority)
    }

    /// What a server that joins takes over.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn keys(&self) -> Result<Keys> {
        Ok(Keys {
            authority: self.authority()?,
            authority_key: self.read("ca.key")?,
            token_key: self.read("sa.key")?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        crate::files::write(&self.path(name), text.as_bytes(), 0o600)
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The authority's certificate, PEM.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn authority(&self) -> Result<String> {
        self.read("ca.crt")
    }

    /// The key that signs service account tokens, PKCS#8 DER.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn token_key(&self) -> Result<Vec<u8>> {
        Ok(KeyPair::from_pem(&self.read("sa.key")?)?.serialize_der())
    }

    /// The identity that the API server shows, renewed if it is old or lacks a name.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub fn server(&self, names: &ServerNames, now: Duration) -> Result<Identity> {
        self.leaf(SERVER, Asked::Server(names.clone()), now)
    }

    /// The identity that this server shows to the other servers' stores, as client and as server.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub fn peer(&self, name: &str, addresses: &[IpAddr], now: Duration) -> Result<Identity> {
        let names = ServerNames { names: Vec::new(), addresses: addresses.to_vec() };
        self.leaf("peer", Asked::Peer { name: name.to_owned(), names }, now)
    }

    /// The authority's [`fingerprint`].
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        fingerprint(&self.authority()?)
    }

    /// A client's identity: user `name` in `group`, renewed if it is old.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub fn client(&self, file: &str, name: &str, group: &str, now: Duration) -> Result<Identity> {
        self.leaf(file, Asked::Client { name: name.to_owned(), group: group.to_owned() }, now)
    }

    fn leaf(&self, file: &str, asked: Asked, now: Duration) -> Result<Identity> {
        let identity = self.fresh(file, &asked, now)?;
        let mut all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(file.to_owned(), asked);
        Ok(identity)
    }

    /// When the first of the certificates that were asked for is due to be renewed, since the epoch.
    pub fn due(&self) -> Option<Duration> {
        let all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = |file: &String| {
            let end = self.read(&format!("{file}.crt")).ok().as_deref().and_then(end_of);
            // One that cannot be read is due at once.
            end.map_or(Duration::ZERO, |end| end.saturating_sub(FRESH))
        };
        all.keys().map(due).min()
    }

    /// Renews what is due of what was asked for. Returns all of it, by file.
    ///
    /// # Errors
    /// When files cannot be read or written; what was renewed before that stays so.
    pub fn renew(&self, now: Duration) -> Result<BTreeMap<String, Identity>> {
        let all = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fresh = |(file, asked): (String, Asked)| {
            let identity = self.fresh(&file, &asked, now)?;
            Ok((file, identity))
        };
        all.into_iter().map(fresh).collect()
    }

    fn fresh(&self, file: &str, asked: &Asked, now: Duration) -> Result<Identity> {
        let (certificate_file, key_file) = (format!("{file}.crt"), format!("{file}.key"));
        let names = match asked {
            Asked::Server(names) | Asked::Peer { names, .. } => Some(names),
            Asked::Client { .. } => None,
        };
        if let (Ok(certificate), Ok(key)) = (self.read(&certificate_file), self.read(&key_file))
            && is_fresh(&certificate, names, now)
        {
            return Ok(Identity { certificate, key });
        }
        let issuer = Issuer::from_ca_cert_pem(
            &self.authority()?,
            KeyPair::from_pem(&self.read("ca.key")?)?,
        )?;
        let key = KeyPair::generate()?;
        let certificate = asked.params(now)?.signed_by(&key, &issuer)?.pem();
        let key = key.serialize_pem();
        self.write(&key_file, &key)?;
        self.write(&certificate_file, &certificate)?;
        tracing::info!(certificate = file, "certificate issued");
        Ok(Identity { certificate, key })
    }

    /// The TLS settings of a client that trusts our authority and shows a certificate of it: the one
    /// that is shown at the time.
    ///
    /// # Errors
    /// When a certificate cannot be parsed.
    pub fn client_tls(&self, shown: Arc<Shown>) -> Result<Arc<rustls::ClientConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority()?.as_bytes())?)?;
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_cert_resolver(shown);
        Ok(Arc::new(config))
    }

    /// The API server's TLS settings: the identity that is shown at the time, and client certificates
    /// of our authority taken but not demanded (tokens are the other way in).
    ///
    /// # Errors
    /// When a certificate cannot be parsed.
    pub fn server_tls(&self, shown: Arc<Shown>) -> Result<Arc<rustls::ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority()?.as_bytes())?)?;
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            provider.clone(),
        )
        .allow_unauthenticated()
        .build()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(shown);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl Asked {
    fn params(&self, now: Duration) -> Result<CertificateParams> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let (mut params, names, usages) = match self {
            Self::Server(names) => {
                (params("dhow-apiserver", None, now, LEAF_LIFE)?, Some(names), vec![ServerAuth])
            }
            Self::Peer { name, names } => {
                let params = params(name, None, now, LEAF_LIFE)?;
                (params, Some(names), vec![ServerAuth, ClientAuth])
            }
            Self::Client { name, group } => {
                (params(name, Some(group), now, LEAF_LIFE)?, None, vec![ClientAuth])
            }
        };
        for name in names.iter().flat_map(|names| &names.names) {
            params.subject_alt_names.push(rcgen::SanType::DnsName(name.as_str().try_into()?));
        }
        for address in names.iter().flat_map(|names| &names.addresses) {
            params.subject_alt_names.push(rcgen::SanType::IpAddress(*address));
        }
        params.extended_key_usages = usages;
        Ok(params)
    }
}

/// The identity that a server or a client shows; it can be exchanged while the process runs.
#[derive(Debug)]
pub struct Shown {
    /// Goes along: a server that joins knows it by its hash alone, and has it from the handshake.
    authority: CertificateDer<'static>,
    key: RwLock<Arc<CertifiedKey>>,
}

impl Shown {
    /// Shows this one of `pki` first.
    ///
    /// # Errors
    /// When it cannot be parsed, or the authority cannot be read.
    pub fn new(pki: &Pki, identity: &Identity) -> Result<Arc<Self>> {
        let authority = CertificateDer::from_pem_slice(pki.authority()?.as_bytes())?;
        let key = certified(&authority, identity)?;
        Ok(Arc::new(Self { authority, key: RwLock::new(Arc::new(key)) }))
    }

    /// Shows this one from now on. Connections that stand are not touched.
    ///
    /// # Errors
    /// When it cannot be parsed.
    pub fn exchange(&self, identity: &Identity) -> Result<()> {
        let next = Arc::new(certified(&self.authority, identity)?);
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    fn now(&self) -> Arc<CertifiedKey> {
        self.key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(authority: &CertificateDer<'static>, identity: &Identity) -> Result<CertifiedKey> {
    let own = CertificateDer::from_pem_slice(identity.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(CertifiedKey::from_der(vec![own, authority.clone()], key, &provider)?)
}

fn params(
    name: &str,
    group: Option<&str>,
    now: Duration,
    life: Duration,
) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group);
    }
    params.distinguished_name = subject;
    // A day of tolerance for clocks that are behind.
    let stamp = |at: Duration| time_of(at);
    params.not_before = stamp(now.saturating_sub(DAY));
    params.not_after = stamp(now + life);
    let mut serial = [0u8; 16];
    rustix::rand::getrandom(&mut serial, rustix::rand::GetRandomFlags::empty())?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    Ok(params)
}

fn time_of(at: Duration) -> time::OffsetDateTime {
    time::OffsetDateTime::UNIX_EPOCH + at
}

/// When a certificate ends, since the epoch.
pub fn end_of(pem: &str) -> Option<Duration> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let end = certificate.validity().not_after.timestamp();
    Some(Duration::from_secs(u64::try_from(end).unwrap_or(0)))
}

/// Whether a certificate has two thirds of its life left and covers `names`.
fn is_fresh(pem: &str, names: Option<&ServerNames>, now: Duration) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return false };
    if end_of(pem).is_none_or(|end| end.saturating_sub(now) <= FRESH) {
        return false;
    }
    let Some(names) = names else { return true };
    let Ok(Some(present)) = certificate.subject_alternative_name() else { return false };
    let has = |wanted: &x509_parser::extensions::GeneralName<'_>| {
        present.value.general_names.contains(wanted)
    };
    use x509_parser::extensions::GeneralName;
    names.names.iter().all(|n| has(&GeneralName::DNSName(n)))
        && names.addresses.iter().all(|a| match a {
            IpAddr::V4(a) => has(&GeneralName::IPAddress(&a.octets())),
            IpAddr::V6(a) => has(&GeneralName::IPAddress(&a.octets())),
        })
}

/// 256 bits that nobody can guess.
///
/// # Errors
/// When the system gives no random numbers.
pub fn random() -> Result<[u8; 32]> {
    let mut secret = [0; 32];
    rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())
        .context("the system gives no random numbers")?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn names(address: &str) -> ServerNames {
        ServerNames { names: vec!["kubernetes".into()], addresses: vec![address.parse().unwrap()] }
    }

    #[test]
    fn identities_are_kept_until_they_age_or_lack_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(&dir.path().join("pki"), NOW).unwrap();
        let first = pki.server(&names("10.0.0.1"), NOW).unwrap();
        let kept = pki.server(&names("10.0.0.1"), NOW + 30 * DAY).unwrap();
        assert_eq!(first.certificate, kept.certificate);
        let moved = pki.server(&names("10.0.0.2"), NOW).unwrap();
        assert_ne!(first.certificate, moved.certificate);
        let renewed = pki.server(&names("10.0.0.2"), NOW + 200 * DAY).unwrap();
        assert_ne!(moved.certificate, renewed.certificate);
        pki.server_tls(Shown::new(&pki, &renewed).unwrap()).unwrap();
        // One that has ended meanwhile.
        let again = pki.server(&names("10.0.0.2"), NOW + 3000 * DAY).unwrap();
        assert!(end_of(&again.certificate).unwrap() > NOW + 3300 * DAY);
    }

    #[test]
    fn a_server_that_joins_has_the_same_authority() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pki = Pki::open(first.path(), NOW).unwrap();
        Pki::take_over(second.path(), &pki.keys().unwrap()).unwrap();
        let other = Pki::open(second.path(), NOW).unwrap();
        assert_eq!(pki.fingerprint().unwrap(), other.fingerprint().unwrap());
        assert_eq!(pki.token_key().unwrap(), other.token_key().unwrap());
        other.peer("m", &["10.0.0.2".parse().unwrap()], NOW).unwrap();
    }

    #[test]
    fn keys_are_for_root_alone_and_the_authority_stays() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), NOW).unwrap().authority().unwrap();
        let mode = dir.path().join("ca.key").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Pki::open(dir.path(), NOW).unwrap().authority().unwrap(), first);
    }
}
