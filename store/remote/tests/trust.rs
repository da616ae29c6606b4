//! TLS and users against a real etcd.

mod common;

use common::{Etcd, SOON, clock, events, get, put};
use dhow_kv::{Backend, Error, Op, Span, Txn, WatchRequest};
use dhow_remote::{ConnectError, Options, Remote, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use std::path::Path;
use std::process::Command;

/// An authority that signs for the loopback address.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> Vec<u8> {
        self.0.pem().into_bytes()
    }

    /// A certificate for the loopback address and its key.
    fn sign(&self) -> (Vec<u8>, Vec<u8>) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem().into_bytes(), key.serialize_pem().into_bytes())
    }
}

fn with_tls(etcd: &Etcd, ca: Option<Vec<u8>>, identity: Option<(Vec<u8>, Vec<u8>)>) -> Options {
    Options { tls: Some(Tls { ca, identity, ..Tls::default() }), ..Options::new(etcd.urls()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_asked_for_and_shown() {
    let (own, other) = (Authority::new(), Authority::new());
    let etcd = Etcd::with(1, "https", |dir: &Path| {
        let (certificate, key) = own.sign();
        for (name, pem) in [("ca.crt", own.pem()), ("server.crt", certificate), ("server.key", key)]
        {
            std::fs::write(dir.join(name), pem).unwrap();
        }
        let flag = |flag: &str, file: &str| format!("--{flag}={}", dir.join(file).display());
        vec![
            flag("trusted-ca-file", "ca.crt"),
            flag("cert-file", "server.crt"),
            flag("key-file", "server.key"),
            "--client-cert-auth".into(),
        ]
    });
    let store = etcd.connect_with(with_tls(&etcd, Some(own.pem()), Some(own.sign()))).await;
    put(&*store, "k", "v").await;
    assert_eq!(get(&*store, "k").await, Some("v".into()));

    let refused = |options| async { Remote::connect(options, clock()).await.unwrap_err() };
    let error = refused(with_tls(&etcd, Some(other.pem()), Some(own.sign()))).await;
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error}");
    let error = refused(with_tls(&etcd, Some(own.pem()), None)).await;
    assert!(matches!(error, ConnectError::NotTrusted { .. }), "{error}");
    let error = refused(with_tls(&etcd, Some(own.pem()), Some(other.sign()))).await;
    assert!(matches!(error, ConnectError::NotTrusted { .. }), "{error}");
    let error = refused(with_tls(&etcd, Some(b"no certificate".to_vec()), None)).await;
    assert!(!error.to_string().contains('\n'), "{error}");
    let plain = Etcd::one();
    plain.connect().await;
    let secure = Options {
        endpoints: vec![plain.url(0).replace("http:", "https:")],
        ..with_tls(&etcd, Some(own.pem()), None)
    };
    let error = refused(secure).await;
    assert!(error.to_string().contains("http://"), "{error}");
}

/// `etcdctl` with these arguments, as root.
fn etcdctl(etcd: &Etcd, arguments: &[&str]) {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", etcd.url(0)))
        .args(arguments)
        .output()
        .expect("etcdctl runs: install etcd-client");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_asked_for_and_tokens_renewed() {
    let mut etcd = Etcd::with(1, "http", |_| vec!["--auth-token-ttl=2".into()]);
    etcd.connect().await;
    for command in [
        "user add root:hush",
        "role add root",
        "user grant-role root root",
        "user add reader:quiet",
        "role add reader",
        "role grant-permission reader --prefix=true read /a/",
        "user grant-role reader reader",
        "auth enable",
    ] {
        etcdctl(&etcd, &command.split(' ').collect::<Vec<_>>());
    }
    let user = |name: &str, password: &str| Options {
        user: Some((name.into(), password.into())),
        ..Options::new(etcd.urls())
    };
    let store = etcd.connect_with(user("root", "hush")).await;
    put(&*store, "/a/1", "1").await;
    let mut watcher = store
        .watch(WatchRequest { span: Span::prefix("/a/"), start_revision: 0, prev_kv: false })
        .unwrap();
    let error = Remote::connect(user("root", "wrong"), clock()).await.unwrap_err();
    assert_eq!(error, ConnectError::Refused(Error::AuthFailed));
    let error = Remote::connect(Options::new(etcd.urls()), clock()).await.unwrap_err();
    assert_eq!(error, ConnectError::Refused(Error::UserNameEmpty));
    let reader = etcd.connect_with(user("reader", "quiet")).await;
    assert_eq!(get(&*reader, "/a/1").await, Some("1".into()));
    let write = Txn { success: vec![Op::put("/a/1", "2")], ..Txn::default() };
    assert_eq!(reader.txn(write).await, Err(Error::PermissionDenied));

    // The tokens are in the member's memory: a restart forgets them.
    etcd.kill(0);
    etcd.start(0);
    let revision = common::put_surely(&*store, "/a/1", "3").await;
    let told = tokio::time::timeout(SOON, events(&mut *watcher)).await.unwrap();
    assert_eq!(told.0, revision);
}
