//! Keeps the platform's certificates from ending while it runs.

use crate::pki::{Identity, Pki, Shown};
use crate::roles::ADMIN;
use anyhow::Result;
use dhow_clock::SharedClock;
use std::sync::Arc;
use std::time::Duration;

/// Longest sleep: the wall clock, which certificates end by, may be set meanwhile, and a sleeping
/// machine's clock of sleeps stands still.
const LOOK: Duration = Duration::from_secs(86_400);
/// After a failure (a full disk, say) there are months left; the log need not be full of it.
const AGAIN: Duration = Duration::from_secs(3600);

/// Renews what was asked of `pki` when it is due, for ever. Whoever shows one of them (by the name of
/// its files) shows the new one on connections that come from then on; `client_files` is handed the
/// administrator's. The doors for etcd's clients and for other servers read their files for each
/// connection.
pub async fn run(
    pki: Arc<Pki>,
    shown: Vec<(&'static str, Arc<Shown>)>,
    client_files: impl Fn(&Identity) -> Result<()>,
    clock: SharedClock,
) {
    loop {
        let left = pki.due().unwrap_or(Duration::MAX).saturating_sub(clock.now());
        if !left.is_zero() {
            clock.sleep(left.min(LOOK)).await;
            continue;
        }
        while let Err(error) = renew(&pki, &shown, &client_files, clock.now()) {
            tracing::warn!("certificates cannot be renewed: {error:#}; trying again in an hour");
            clock.sleep(AGAIN).await;
        }
        if pki.due().is_some_and(|due| due <= clock.now()) {
            // What cannot be read back would be due for ever.
            clock.sleep(AGAIN).await;
        }
    }
}

fn renew(
    pki: &Pki,
    shown: &[(&str, Arc<Shown>)],
    client_files: &impl Fn(&Identity) -> Result<()>,
    now: Duration,
) -> Result<()> {
    let all = pki.renew(now)?;
    for (file, shown) in shown {
        if let Some(identity) = all.get(*file) {
            shown.exchange(identity)?;
        }
    }
    if let Some(admin) = all.get(ADMIN) {
        client_files(admin)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{SERVER, ServerNames, end_of};
    use dhow_clock::{BoxFuture, Clock};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    const DAY: Duration = Duration::from_secs(86_400);
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    const START: Duration = Duration::from_secs(1_800_000_000);

    /// A clock on which a sleep takes no time; after `end` nobody wakes any more.
    struct Leaping {
        now: Mutex<Duration>,
        end: Duration,
        /// Told of every moment at which somebody wakes.
        woken: Box<dyn Fn(Duration) + Send + Sync>,
    }

    impl std::fmt::Debug for Leaping {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Leaping")
        }
    }

    impl Clock for Leaping {
        fn now(&self) -> Duration {
            *self.now.lock().unwrap()
        }
        fn monotonic(&self) -> Duration {
            self.now()
        }
        fn sleep(&self, period: Duration) -> BoxFuture<'static, ()> {
            let mut now = self.now.lock().unwrap();
            *now += period;
            if *now > self.end {
                return Box::pin(std::future::pending());
            }
            (self.woken)(*now);
            Box::pin(tokio::task::yield_now())
        }
        fn random(&self) -> u64 {
            0
        }
    }

    /// A handshake in memory, with the clients' clock at `now`.
    fn shake(server: Arc<rustls::ServerConfig>, authority: &str, now: Duration) {
        #[derive(Debug)]
        struct At(Duration);
        impl rustls::time_provider::TimeProvider for At {
            fn current_time(&self) -> Option<UnixTime> {
                Some(UnixTime::since_unix_epoch(self.0))
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder_with_details(provider, Arc::new(At(now)))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("kubernetes").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut server = rustls::ServerConnection::new(server).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            if !bytes.is_empty() {
                client.read_tls(&mut bytes.as_slice()).unwrap();
                client.process_new_packets().unwrap();
            }
        }
    }

    #[tokio::test]
    async fn nothing_ends_in_five_years_without_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), START).unwrap();
        let names = ServerNames { names: vec!["kubernetes".into()], addresses: vec![] };
        let shown = Shown::new(&pki, &pki.server(&names, START).unwrap()).unwrap();
        let admin = pki.client(ADMIN, "kubernetes-admin", "system:masters", START).unwrap();
        pki.client("etcd-client", "dhow-etcd", "dhow", START).unwrap();
        let (authority, tls) = (pki.authority().unwrap(), pki.server_tls(shown.clone()).unwrap());

        let (given, writes) = (Arc::new(Mutex::new(admin)), Arc::new(Mutex::new(0)));
        let (file, admin) = (dir.path().join("etcd-client.crt"), given.clone());
        let looks = AtomicU32::new(0);
        let woken = move |now: Duration| {
            let admin = admin.lock().unwrap().clone();
            let etcd = std::fs::read_to_string(&file).unwrap();
            for certificate in [&admin.certificate, &etcd] {
                assert!(end_of(certificate).unwrap() > now + YEAR / 2, "{now:?}");
            }
            // A handshake for every month will do.
            if looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(30) {
                shake(tls.clone(), &authority, now);
            }
        };
        let end = START + 5 * YEAR;
        let clock = Arc::new(Leaping { now: Mutex::new(START), end, woken: Box::new(woken) });
        let (kept, count) = (given.clone(), writes.clone());
        let files = move |identity: &Identity| {
            *kept.lock().unwrap() = identity.clone();
            *count.lock().unwrap() += 1;
            // A disk that is full for a while.
            if *count.lock().unwrap() == 2 { anyhow::bail!("no space left") } else { Ok(()) }
        };
        let renewed = run(Arc::new(pki), vec![(SERVER, shown)], files, clock.clone());
        let over = async {
            while clock.now() <= end {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { () = renewed => {}, () = over => {} }
        // Each lives for a third of a year before it is renewed.
        let writes = *writes.lock().unwrap();
        assert!((14..=17).contains(&writes), "{writes}");
        assert!(end_of(&given.lock().unwrap().certificate).unwrap() > end + 200 * DAY);
    }
}
