//! A door over a real state on a store in memory, a kubeconfig, and the real kubectl.
#![allow(dead_code, missing_docs)] // Each test file uses its part.

pub mod machine;
mod servers;

use dhow_door_kube::{Config, Door, Version};
use dhow_kv::Kv;
use dhow_server::Store;
use dhow_state::{Actor, State, User, WriteOptions};
use machine::Machine;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

/// A running door and everything a client needs.
pub struct Platform {
    pub state: State,
    pub store: Arc<Store>,
    pub machine: Arc<Machine>,
    pub directory: tempfile::TempDir,
    pub address: String,
    pub shutdown: CancellationToken,
}

/// What a program said.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    pub code: i32,
    pub out: String,
    pub err: String,
}

fn certificate(
    issuer: &CertifiedIssuer<'_, KeyPair>,
    name: &str,
    group: &str,
    server: bool,
) -> (String, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    if !group.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    if server {
        let address = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        params.subject_alt_names.push(SanType::IpAddress(address));
    } else {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    }
    let key = KeyPair::generate().unwrap();
    let signed = params.signed_by(&key, issuer).unwrap();
    (signed.pem(), key.serialize_pem())
}

/// TLS as the platform has it: client certificates are optional and verified against `client_ca`.
fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_ca: CertificateDer<'static>,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(client_ca)?;
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    )
    .allow_unauthenticated()
    .build()
    .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

impl Platform {
    pub async fn start() -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(
                tracing_subscriber::EnvFilter::try_from_default_env()
                    .unwrap_or_else(|_| "warn".into()),
            )
            .with_test_writer()
            .try_init();
        let clock = dhow_clock::System::shared();
        let store = Store::memory(clock.clone());
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "dhow");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let config = dhow_state::Config {
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            node_ports: (30000, 32767),
            ca_pem: ca.pem(),
            ..dhow_state::Config::for_tests()
        };
        let issuer = config.issuer.clone();
        let state = State::open(Kv::new(store.clone()), clock.clone(), config).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (chain, key) = certificate(&ca, "kube-apiserver", "", true);
        let chain = rustls::pki_types::pem::PemObject::from_pem_slice(chain.as_bytes()).unwrap();
        let key = rustls::pki_types::pem::PemObject::from_pem_slice(key.as_bytes()).unwrap();
        let tls = server_config(vec![chain], key, ca.der().clone()).unwrap();
        let machine = Arc::new(Machine::default());
        let streams: Arc<dyn dhow_intents::Streams> = machine.clone();
        let door = Door::new(
            state.clone(),
            Config {
                tls: Arc::new(tls),
                version: Version::default(),
                streams: Arc::new(move |node| (node == "n1").then(|| streams.clone())),
                relay: None,
                servers: Some(Arc::new(servers::One)),
                service_host: address.clone(),
                issuer,
                clock,
            },
        );
        let shutdown = CancellationToken::new();
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixListener::bind(directory.path().join("kube.sock")).unwrap();
        tokio::spawn(door.clone().serve_unix(socket, shutdown.clone()));
        tokio::spawn(door.serve_tls(listener, shutdown.clone()));
        let platform = Self { state, store, machine, directory, address, shutdown };
        std::fs::write(platform.directory.path().join("ca.pem"), ca.pem()).unwrap();
        for (user, group) in [("kubernetes-admin", "system:masters"), ("guest", "")] {
            let (chain, key) = certificate(&ca, user, group, false);
            platform.write_kubeconfig(user, &chain, &key);
        }
        let nobody = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "dhow",
            "clusters": [{"name": "dhow", "cluster": {
                "server": format!("https://{}", platform.address),
                "certificate-authority": platform.directory.path().join("ca.pem"),
            }}],
            "contexts": [{"name": "dhow", "context": {"cluster": "dhow", "user": ""}}],
        });
        std::fs::write(platform.kubeconfig("nobody"), nobody.to_string()).unwrap();
        platform
    }

    fn write_kubeconfig(&self, user: &str, chain: &str, key: &str) {
        let at = |name: String| self.directory.path().join(name);
        let (chain_at, key_at) = (at(format!("{user}.pem")), at(format!("{user}.key")));
        std::fs::write(&chain_at, chain).unwrap();
        std::fs::write(&key_at, key).unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "dhow",
            "clusters": [{"name": "dhow", "cluster": {
                "server": format!("https://{}", self.address),
                "certificate-authority": at("ca.pem".into()),
            }}],
            "users": [{"name": user, "user": {
                "client-certificate": chain_at, "client-key": key_at,
            }}],
            "contexts": [{"name": "dhow", "context": {"cluster": "dhow", "user": user}}],
        });
        std::fs::write(self.kubeconfig(user), config.to_string()).unwrap();
    }

    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.directory.path().join(format!("{user}.kubeconfig"))
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    pub fn command(&self, user: &str) -> tokio::process::Command {
        let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
        let mut command = tokio::process::Command::new(program);
        command
            .env("KUBECONFIG", self.kubeconfig(user))
            .env("KUBECACHEDIR", self.directory.path().join("cache"))
            .kill_on_drop(true);
        command
    }

    async fn run(&self, user: &str, arguments: &[&str], input: Option<&str>) -> Said {
        use tokio::io::AsyncWriteExt;
        let mut command = self.command(user);
        command.args(arguments);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.stdin(std::process::Stdio::piped());
        let mut child = command.spawn().expect("kubectl 1.37 must be installed");
        let mut stdin = child.stdin.take().unwrap();
        let _ = stdin.write_all(input.unwrap_or("").as_bytes()).await;
        drop(stdin);
        let limit = std::time::Duration::from_secs(60);
        let output = tokio::time::timeout(limit, child.wait_with_output())
            .await
            .unwrap_or_else(|_| panic!("kubectl {arguments:?} hangs"))
            .unwrap();
        Said {
            ok: output.status.success(),
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs kubectl, whatever it says.
    pub async fn try_kubectl(&self, arguments: &[&str]) -> Said {
        self.run("kubernetes-admin", arguments, None).await
    }

    /// Runs kubectl as another user.
    pub async fn kubectl_as(&self, user: &str, arguments: &[&str]) -> Said {
        self.run(user, arguments, None).await
    }

    /// Runs kubectl, which must succeed, and returns its output.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        let said = self.try_kubectl(arguments).await;
        assert!(said.ok, "kubectl {arguments:?}: {}{}", said.out, said.err);
        said.out
    }

    /// The same with a standard input.
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> String {
        let said = self.run("kubernetes-admin", arguments, Some(input)).await;
        assert!(said.ok, "kubectl {arguments:?}: {}{}", said.out, said.err);
        said.out
    }

    fn actor() -> Actor {
        let user = User {
            name: "system:test".into(),
            groups: vec!["system:masters".into()],
            ..User::default()
        };
        Actor { user, manager: "test".into(), because: 0 }
    }

    /// Makes a node and a pod that runs on it.
    pub async fn running_pod(&self, name: &str, containers: &[&str]) {
        let kind = |name| dhow_objects::kinds::find("", "v1", name).unwrap();
        let options = WriteOptions::default();
        let (actor, state) = (Self::actor(), &self.state);
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
        let _ = state.create(&actor, kind("nodes"), "", node, &options).await;
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"},
        });
        let accounts = kind("serviceaccounts");
        let _ = state.create(&actor, accounts, "default", account, &options).await;
        let one = |name: &&str| json!({"name": name, "image": "busybox", "stdin": true});
        let containers: Vec<Value> = containers.iter().map(one).collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": containers, "nodeName": "n1"},
        });
        let pods = kind("pods");
        state.create(&actor, pods, "default", pod, &options).await.unwrap();
        let statuses: Vec<Value> = containers
            .iter()
            .map(|one| {
                json!({"name": one["name"], "ready": true, "restartCount": 0, "image": "busybox",
                    "imageID": "", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}})
            })
            .collect();
        let status = json!({"status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": statuses,
        }});
        let patch = dhow_state::Patch::Merge(status);
        state.patch(&actor, pods, "default", name, "status", patch, &options).await.unwrap();
    }
}

/// The directory of this crate's tests.
pub fn here() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
}
