//! Kubernetes' own API server on the store: it starts, serves and keeps what kubectl makes.

use super::space::Space;
use super::{Against, Outcome, logs};
use crate::tools::{self, etcd as etcds};
use crate::{sh, workspace};
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The address that the API server tells others: it refuses loopback ones.
const ADDRESS: &str = "10.111.0.1";
/// Objects to list in pages.
const OBJECTS: usize = 60;

struct Cluster {
    space: Space,
    kubectl: PathBuf,
}

/// Runs it.
///
/// # Errors
/// When a program cannot be had. What goes wrong with it is in the outcome.
pub fn run(against: Against) -> Result<Outcome> {
    let server = etcds::kube_apiserver()?;
    let kubectl = tools::kubectl()?;
    let start = Instant::now();
    let folder = logs("kube", against)?;
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let dir = directory.path();
    let cluster = Cluster { space: Space::new(&[&format!("{ADDRESS}/32")])?, kubectl };
    let mut store = match against {
        Against::Dhow => {
            let mut command = cluster.space.command(workspace::dhow());
            command.arg("store");
            command
        }
        Against::Etcd => cluster.space.command(etcds::newest()?.etcd),
    };
    store.arg("--data-dir").arg(dir.join("store"));
    let mut store = logged(&mut store, &folder.join("store.log"))?;
    sh::output(
        Command::new("openssl").args(["genrsa", "-out"]).arg(dir.join("accounts.key")).arg("2048"),
    )?;
    std::fs::write(dir.join("tokens.csv"), "secret,admin,admin,\"system:masters\"\n")?;
    let mut api = cluster.space.command(&server);
    api.args(["--etcd-servers=http://127.0.0.1:2379", "--bind-address=127.0.0.1"]);
    api.arg(format!("--advertise-address={ADDRESS}"));
    api.args(["--secure-port=6443", "--authorization-mode=RBAC"]);
    api.args(["--service-cluster-ip-range=10.112.0.0/24"]);
    api.arg("--service-account-issuer=https://kubernetes.default.svc");
    for (flag, file) in [
        ("cert-dir", "certificates"),
        ("service-account-key-file", "accounts.key"),
        ("service-account-signing-key-file", "accounts.key"),
        ("token-auth-file", "tokens.csv"),
    ] {
        api.arg(format!("--{flag}={}", dir.join(file).display()));
    }
    let mut api = logged(&mut api, &folder.join("kube-apiserver.log"))?;
    let done = cluster.smoke(&mut api);
    // Everything in the namespace ends; then the programs are gathered.
    cluster.space.clear()?;
    store.wait()?;
    api.wait()?;
    let (summary, problems) = match done {
        Ok(summary) => (summary, Vec::new()),
        Err(error) => {
            let logs = format!("{error:#}; logs in {}", folder.display());
            ("the smoke run failed".to_owned(), vec![logs])
        }
    };
    let time = start.elapsed();
    Ok(Outcome { name: "kube".to_owned(), summary, time, problems, notes: Vec::new() })
}

fn logged(command: &mut Command, path: &Path) -> Result<Child> {
    let log = std::fs::File::create(path)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot run {}", sh::line(command)))
}

impl Cluster {
    fn kubectl(&self, args: &[&str]) -> Command {
        let mut command = self.space.command(&self.kubectl);
        command.args(["--server=https://127.0.0.1:6443", "--insecure-skip-tls-verify"]);
        command.args(["--token=secret"]).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        sh::output(&mut self.kubectl(args))
    }

    fn get(&self, path: &str) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.run(&["get", "--raw", path])?)?)
    }

    fn smoke(&self, api: &mut Child) -> Result<String> {
        let start = Instant::now();
        let ready = crate::platform::until(Duration::from_secs(60), || {
            if let Some(status) = api.try_wait()? {
                bail!("kube-apiserver ended: {status}");
            }
            Ok(self.run(&["get", "--raw", "/readyz"]).is_ok().then_some(()))
        })?;
        ready.context("kube-apiserver is not ready after 60 s")?;
        let seconds = start.elapsed().as_secs_f64();
        self.run(&["create", "namespace", "smoke"])?;
        // Somebody watches while things change.
        let mut watch =
            self.kubectl(&["get", "configmaps", "-n", "smoke", "--watch-only", "-o", "name"]);
        watch.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let watch = watch.spawn().context("cannot run kubectl")?;
        // It tells nothing when it has begun, so a marker is written until it is seen below.
        let mut yaml = String::new();
        for nth in 0..OBJECTS {
            yaml.push_str(&format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: map-{nth:03}, namespace: smoke}}\n\
                 data: {{key: \"{nth}\"}}\n---\n"
            ));
        }
        sh::output_with(&mut self.kubectl(&["apply", "-f", "-"]), &yaml)?;
        // In pages, with the token that goes on.
        let mut names = Vec::new();
        let mut next = String::new();
        let mut pages = 0;
        loop {
            let path = format!("/api/v1/namespaces/smoke/configmaps?limit=25&continue={next}");
            let page = self.get(&path)?;
            pages += 1;
            for item in page["items"].as_array().context("a list without items")? {
                names.push(item["metadata"]["name"].as_str().unwrap_or_default().to_owned());
            }
            next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if next.is_empty() {
                break;
            }
        }
        let maps = names.iter().filter(|name| name.starts_with("map-")).count();
        ensure!(maps == OBJECTS && pages >= 3, "{maps} of {OBJECTS} objects in {pages} pages");
        ensure!(names.is_sorted(), "the pages are not in order");
        // A write on an old version is refused: the store's compare-and-swap.
        let map = self.run(&["get", "configmap", "map-001", "-n", "smoke", "-o", "json"])?;
        self.run(&["label", "configmap", "map-001", "-n", "smoke", "seen=yes"])?;
        let stale = sh::output_with(&mut self.kubectl(&["replace", "-f", "-"]), &map);
        let refused = stale.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(refused.contains("Conflict") || refused.contains("modified"), "{refused:?}");
        self.run(&["create", "serviceaccount", "robot", "-n", "smoke"])?;
        self.run(&["create", "service", "clusterip", "web", "--tcp=80:80", "-n", "smoke"])?;
        self.run(&["create", "deployment", "web", "--image=web", "-n", "smoke"])?;
        let event = crate::platform::until(Duration::from_secs(20), || {
            self.run(&["annotate", "configmap", "map-002", "-n", "smoke", "--overwrite", "a=b"])?;
            self.run(&["delete", "configmap", "map-059", "-n", "smoke", "--ignore-not-found"])?;
            Ok(Some(()))
        })?;
        event.context("kubectl does not change objects")?;
        self.run(&["delete", "configmaps", "--all", "-n", "smoke"])?;
        let left = self.get("/api/v1/namespaces/smoke/configmaps")?;
        let left = left["items"].as_array().map_or(usize::MAX, Vec::len);
        ensure!(left == 0, "{left} objects are left after delete --all");
        let mut watch = watch;
        watch.kill()?;
        let told = watch.wait_with_output()?;
        let seen = String::from_utf8_lossy(&told.stdout).lines().count();
        ensure!(seen > OBJECTS, "the watch saw {seen} events");
        self.run(&["delete", "namespace", "smoke", "--wait=false"])?;
        Ok(format!("ready after {seconds:.1} s; {OBJECTS} objects, {pages} pages, {seen} events"))
    }
}
