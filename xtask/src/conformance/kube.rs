//! Kubernetes' own API server on the store: it starts, serves and keeps what kubectl makes.

use super::{Against, Outcome, logs};
use crate::tools::etcd as etcds;
use crate::upstream::Upstream;
use crate::{sh, workspace};
use anyhow::{Context as _, Result, ensure};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Objects to list in pages.
const OBJECTS: usize = 60;

struct Cluster(Upstream);

/// Runs it.
///
/// # Errors
/// When a program cannot be had. What goes wrong with it is in the outcome.
pub fn run(against: Against) -> Result<Outcome> {
    let start = Instant::now();
    let folder = logs("kube", against)?;
    let upstream = match against {
        Against::Dhow => Upstream::start(&workspace::dhow(), &["store"], &folder)?,
        Against::Etcd => Upstream::start(&etcds::newest()?.etcd, &[], &folder)?,
    };
    let mut cluster = Cluster(upstream);
    let done = cluster.smoke();
    cluster.0.stop()?;
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

impl Cluster {
    fn run(&self, args: &[&str]) -> Result<String> {
        self.0.run(args)
    }

    fn get(&self, path: &str) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.run(&["get", "--raw", path])?)?)
    }

    fn smoke(&mut self) -> Result<String> {
        let seconds = self.0.ready()?.as_secs_f64();
        self.run(&["create", "namespace", "smoke"])?;
        // Somebody watches while things change.
        let mut watch =
            self.0.kubectl(&["get", "configmaps", "-n", "smoke", "--watch-only", "-o", "name"]);
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
        sh::output_with(&mut self.0.kubectl(&["apply", "-f", "-"]), &yaml)?;
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
        let stale = sh::output_with(&mut self.0.kubectl(&["replace", "-f", "-"]), &map);
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
