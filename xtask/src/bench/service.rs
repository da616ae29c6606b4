//! `bench service`: requests per second through a ClusterIP against straight to the pod.

use super::report::{Report, Series};
use super::{Bench, pod, ready};
use crate::{sh, tools, workspace};
use anyhow::{Context as _, Result};
use std::process::Command;

/// Runs it.
///
/// # Errors
/// When the platform does not start or does not answer.
pub fn run(rounds: u32) -> Result<()> {
    tools::debian(&["wrk"])?;
    let bench = Bench::new()?;
    bench.image(
        "bench/shop",
        &workspace::release("shop"),
        "/shop",
        "ENTRYPOINT [\"/shop\", \"catalog\"]",
    )?;
    bench.platform.up()?;
    let settings = "apiVersion: v1\nkind: Service\nmetadata:\n  name: served\nspec:\n  \
                    selector: {app: served}\n  ports:\n    - {port: 80, targetPort: 8080}\n";
    bench.platform.apply(&format!("{}---\n{settings}", pod("served", "bench/shop")))?;
    let pod = ready(&bench.platform, "served")?;
    let service = bench.platform.get("default", "service", "served")?;
    let straight = pod["status"]["podIP"].as_str().context("the pod has no address")?;
    let straight = format!("http://{straight}:8080/healthz");
    let through = service["spec"]["clusterIP"].as_str().context("the service has no address")?;
    let through = format!("http://{through}/healthz");
    crate::platform::until(std::time::Duration::from_secs(5), || {
        let asked = sh::output(Command::new("wrk").args(["-t1", "-c1", "-d1s", &through]));
        Ok(asked.is_ok_and(|told| !told.contains("Socket errors")).then_some(()))
    })?
    .context("the ClusterIP does not answer")?;

    let mut report = Report::new("service");
    for (what, close, bar) in [("kept connections", false, 0.95), ("a connection each", true, 0.0)]
    {
        let mut pod = Series::new(format!("{what}: pod address"), "requests/s");
        let mut cluster = Series::new(format!("{what}: ClusterIP"), "requests/s");
        for round in 0..rounds {
            // Who goes first changes, so that warming up favours nobody.
            if round % 2 == 0 {
                pod.push(wrk(&straight, close)?);
                cluster.push(wrk(&through, close)?);
            } else {
                cluster.push(wrk(&through, close)?);
                pod.push(wrk(&straight, close)?);
            }
        }
        let ratios = cluster.over(&pod, &format!("{what}: ClusterIP / pod by round"));
        let ratio = ratios.median();
        report.add(pod);
        report.add(cluster);
        report.add(ratios);
        if bar > 0.0 {
            report.verdict(format!("{what}: ratio, median"), ratio, "0.95 or more", ratio >= bar);
        } else {
            report.note(format!(
                "{what}: no bar, because each costs a new entry of connection tracking"
            ));
        }
    }
    report.note("the pod's server is the slowest part: a path that costs little does not show");
    report.note("load by wrk on the same machine: one thread, 16 connections, 3 s a run");
    report.finish()
}

/// Requests per second in one run.
fn wrk(url: &str, close: bool) -> Result<f64> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c16", "-d3s"]);
    if close {
        command.args(["-H", "Connection: close"]);
    }
    let told = sh::output(command.arg(url))?;
    let rate = told.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let rate = rate.with_context(|| format!("wrk tells no rate:\n{told}"))?;
    Ok(rate.trim().parse()?)
}
