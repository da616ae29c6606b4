//! Kubernetes' own API server on a store, in a network of its own.

use crate::space::Space;
use crate::tools::{self, etcd as etcds};
use crate::{platform, sh};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The address that it tells others: it refuses loopback ones.
const ADDRESS: &str = "10.111.0.1";
/// Where it listens, in its network.
pub const URL: &str = "https://127.0.0.1:6443";

/// A running one.
pub struct Upstream {
    /// Its network.
    pub space: Space,
    kubectl: PathBuf,
    store: Child,
    server: Child,
    started: Instant,
    _directory: tempfile::TempDir,
}

impl Upstream {
    /// Starts it on a store: the program that `store` names, which listens where etcd does unless
    /// told. Logs go to a folder.
    ///
    /// # Errors
    /// When a program cannot be had or run.
    pub fn start(store: &Path, arguments: &[&str], logs: &Path) -> Result<Self> {
        let program = etcds::kube_apiserver()?;
        let kubectl = tools::kubectl()?;
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let dir = directory.path();
        let space = Space::new(&[&format!("{ADDRESS}/32")])?;
        let mut command = space.command(store);
        command.args(arguments).arg("--data-dir").arg(dir.join("store"));
        let store = logged(&mut command, &logs.join("store.log"))?;
        let key = dir.join("accounts.key");
        sh::output(Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048"))?;
        std::fs::write(dir.join("tokens.csv"), "secret,admin,admin,\"system:masters\"\n")?;
        let mut command = space.command(&program);
        command.args(["--etcd-servers=http://127.0.0.1:2379", "--bind-address=127.0.0.1"]);
        command.arg(format!("--advertise-address={ADDRESS}"));
        command.args(["--secure-port=6443", "--authorization-mode=RBAC"]);
        command.args(["--service-cluster-ip-range=10.112.0.0/24"]);
        command.arg("--service-account-issuer=https://kubernetes.default.svc");
        for (flag, file) in [
            ("cert-dir", "certificates"),
            ("service-account-key-file", "accounts.key"),
            ("service-account-signing-key-file", "accounts.key"),
            ("token-auth-file", "tokens.csv"),
        ] {
            command.arg(format!("--{flag}={}", dir.join(file).display()));
        }
        let server = logged(&mut command, &logs.join("kube-apiserver.log"))?;
        let started = Instant::now();
        Ok(Self { space, kubectl, store, server, started, _directory: directory })
    }

    /// Waits until it is ready; tells how long that took from its start.
    ///
    /// # Errors
    /// When it ends, or is not ready after a minute.
    pub fn ready(&mut self) -> Result<Duration> {
        let ready = platform::until(Duration::from_secs(60), || {
            if let Some(status) = self.server.try_wait()? {
                bail!("kube-apiserver ended: {status}");
            }
            Ok(self.run(&["get", "--raw", "/readyz"]).is_ok().then_some(()))
        })?;
        ready.context("kube-apiserver is not ready after 60 s")?;
        Ok(self.started.elapsed())
    }

    /// kubectl that talks to it as an administrator.
    pub fn kubectl(&self, args: &[&str]) -> Command {
        let mut command = self.space.command(&self.kubectl);
        command.arg(format!("--server={URL}"));
        command.args(["--insecure-skip-tls-verify", "--token=secret"]).args(args);
        command
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// When it does not end with success.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        sh::output(&mut self.kubectl(args))
    }

    /// The `/proc` folders of the store and of the server.
    pub fn processes(&self) -> Vec<PathBuf> {
        [&self.store, &self.server].map(|child| format!("/proc/{}", child.id()).into()).into()
    }

    /// Ends everything in its network.
    ///
    /// # Errors
    /// When something does not end.
    pub fn stop(mut self) -> Result<()> {
        self.space.clear()?;
        self.store.wait()?;
        self.server.wait()?;
        Ok(())
    }
}

fn logged(command: &mut Command, path: &Path) -> Result<Child> {
    let log =
        std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot run {}", sh::line(command)))
}
