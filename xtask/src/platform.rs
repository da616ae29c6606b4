//! A platform of the tasks' own, driven by its command line alone, as a person would.

use crate::{sh, workspace};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A platform with a data directory, addresses and a name of its own, so that it disturbs no other
/// one on the machine.
#[derive(Debug, Clone)]
pub struct Platform {
    /// The release binary.
    pub program: PathBuf,
    /// Its data directory.
    pub data: PathBuf,
    name: &'static str,
    listen: &'static str,
    pods: &'static str,
    services: &'static str,
}

impl Platform {
    /// The demo's.
    pub fn demo(data: PathBuf) -> Self {
        Self {
            program: workspace::dhow(),
            data,
            name: "demo",
            listen: "127.0.0.1:16443",
            pods: "10.245.0.0/16",
            services: "10.97.0.0/16",
        }
    }

    /// The benches'.
    pub fn bench(data: PathBuf) -> Self {
        Self {
            program: workspace::dhow(),
            data,
            name: "bench",
            listen: "127.0.0.1:17443",
            pods: "10.246.0.0/16",
            services: "10.98.0.0/16",
        }
    }

    /// The address and port of its Kubernetes API.
    pub fn listen(&self) -> &'static str {
        self.listen
    }

    /// A dhow command that talks to this platform.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("DHOW_DATA_DIR", &self.data).env_remove("DHOW_LOG");
        command
    }

    /// Runs a dhow command and returns what it printed.
    ///
    /// # Errors
    /// As the command says.
    pub fn dhow(&self, args: &[&str]) -> Result<String> {
        sh::output(&mut self.command(args))
    }

    /// Starts it and returns when it answers.
    ///
    /// # Errors
    /// As `dhow up` says.
    pub fn up(&self) -> Result<()> {
        let flags = ["--name", self.name, "--listen", self.listen];
        let ranges = ["--cluster-cidr", self.pods, "--service-cidr", self.services];
        let args = [&["up", "--detach"][..], &flags, &ranges].concat();
        // Not through a pipe: what the platform starts must not keep us waiting for its end.
        let mut command = self.command(&args);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let status = command.status().context("cannot start dhow")?;
        if !status.success() {
            bail!("dhow up --detach: {status}; see its message above");
        }
        Ok(())
    }

    /// Stops it and removes every trace.
    ///
    /// # Errors
    /// As `dhow down` says.
    pub fn purge(&self) -> Result<()> {
        self.dhow(&["down", "--purge"]).map(drop)
    }

    /// One object.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, namespace: &str, resource: &str, name: &str) -> Result<Value> {
        let text = self.dhow(&["get", resource, name, "-n", namespace, "-o", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("{resource} {name} is no JSON"))
    }

    /// The pods of a namespace that carry the label `app=app` and are not being deleted.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn pods(&self, namespace: &str, app: &str) -> Result<Vec<Value>> {
        let text = self.dhow(&["get", "pods", "-n", namespace, "-o", "json"])?;
        let list: Value = serde_json::from_str(&text).context("the list of pods is no JSON")?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items
            .into_iter()
            .filter(|pod| pod["metadata"]["labels"]["app"] == app)
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .collect())
    }

    /// Applies objects given as YAML.
    ///
    /// # Errors
    /// When one is refused.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        sh::output_with(&mut self.command(&["apply", "-f", "-"]), yaml).map(drop)
    }

    /// Waits until a Deployment has rolled out: the newest template, all replicas ready, no others.
    ///
    /// # Errors
    /// When it takes longer than `limit`: with its status.
    pub fn rolled_out(&self, namespace: &str, name: &str, limit: Duration) -> Result<()> {
        let mut last = Value::Null;
        let done = until(limit, || {
            let object = self.get(namespace, "deployment", name)?;
            last = object["status"].clone();
            let number = |value: &Value| value.as_i64().unwrap_or_default();
            let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
            let status = &object["status"];
            let seen =
                number(&status["observedGeneration"]) >= number(&object["metadata"]["generation"]);
            let all = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"];
            Ok((seen && all.iter().all(|field| number(&status[*field]) == wanted)).then_some(()))
        })?;
        done.with_context(|| {
            format!("deployment {name} is not rolled out after {} s: {last}", limit.as_secs())
        })
    }

    /// The end of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.data.join("dhow.log"), lines)
    }
}

/// The last lines of a file, or why there are none.
pub fn tail(path: &Path, lines: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("(cannot read {}: {error})", path.display()),
    }
}

/// Asks again and again until there is an answer or the time is over.
///
/// # Errors
/// As `ask` says.
pub fn until<T>(limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = ask()? {
            return Ok(Some(found));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
