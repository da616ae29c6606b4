//! Certificates made on the spot: what `--auto-tls` and `--peer-auto-tls` mean.

use super::settings::Tls;
use crate::files;
use anyhow::{Context, Result};
use dhow_peers::{Address, Place};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType,
};
use std::time::Duration;

/// Makes the certificate that is asked for, unless there is one. It signs itself, so nobody can
/// know it for this machine's: it keeps listeners out.
///
/// # Errors
/// When it cannot be written.
pub fn make(tls: &Tls, listen: &[Address], now: Duration) -> Result<()> {
    let Some(life) = tls.make else { return Ok(()) };
    let (certificate, key) = (&tls.settings.certificate, &tls.settings.key);
    if certificate.exists() && key.exists() {
        return Ok(());
    }
    if let Some(dir) = certificate.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "dhow");
    let start = time::OffsetDateTime::UNIX_EPOCH + now;
    params.not_before = start - Duration::from_secs(86_400);
    params.not_after = start + life;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    for address in listen {
        let Place::Tcp(host, _) = &address.place else { continue };
        params.subject_alt_names.push(match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if host.is_empty() => continue,
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        });
    }
    let made = KeyPair::generate()?;
    let signed = params.self_signed(&made)?;
    files::write(key, made.serialize_pem().as_bytes(), 0o600)?;
    files::write(certificate, signed.pem().as_bytes(), 0o600)?;
    tracing::info!(certificate = %certificate.display(), "certificate made");
    Ok(())
}
