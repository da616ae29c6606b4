//! `bench service`: requests through a ClusterIP against straight to the pod, from the machine and
//! from another pod.
//!
//! Generator, server and kernel share the machine's processors with whatever else runs. Rounds are
//! therefore short and take turns, each turn gives one ratio, and besides the rate the processor time
//! per request is told: what is left of the throughput when nobody else takes the processors.
//!
//! From the machine itself a third way takes its turn: one rule by hand that translates an address
//! to the pod's, which is the least that the kernel's address translation costs there.

use super::report::{Report, Series};
use super::{Bench, pod, ready};
use crate::{sh, tools, workspace};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Turns in a round.
const TURNS: u32 = 4;
/// The table of the rule by hand, and the service address that it translates, which no service has.
const BY_HAND: &str = "dhow-bench-by-hand";
const TRANSLATED: &str = "10.98.255.254";
/// The part of the pod's throughput that is to come through a ClusterIP.
const BAR: f64 = 0.95;

/// Runs it.
///
/// # Errors
/// When the platform does not start or does not answer.
pub fn run(rounds: u32) -> Result<()> {
    tools::debian(&["wrk", "nftables"])?;
    let bench = Bench::new()?;
    let entry = "ENTRYPOINT [\"/shop\", \"catalog\"]";
    bench.image("bench/shop", &workspace::release("shop"), "/shop", entry)?;
    bench.platform.up()?;
    let settings = "apiVersion: v1\nkind: Service\nmetadata:\n  name: served\nspec:\n  \
                    selector: {app: served}\n  ports:\n    - {port: 80, targetPort: 8080}\n";
    let pods = [pod("served", "bench/shop"), pod("asking", "bench/shop")].join("---\n");
    bench.platform.apply(&format!("{pods}---\n{settings}"))?;
    let served = ready(&bench.platform, "served")?;
    ready(&bench.platform, "asking")?;
    let service = bench.platform.get("default", "service", "served")?;
    let pod = served["status"]["podIP"].as_str().context("the pod has no address")?;
    let straight_to = format!("{pod}:8080");
    let straight = format!("http://{straight_to}/healthz");
    let through = service["spec"]["clusterIP"].as_str().context("the service has no address")?;
    let through = format!("http://{through}/healthz");
    crate::platform::until(std::time::Duration::from_secs(5), || {
        let asked = sh::output(Command::new("wrk").args(["-t1", "-c1", "-d1s", &through]));
        Ok(asked.is_ok_and(|told| !told.contains("Socket errors")).then_some(()))
    })?
    .context("the ClusterIP does not answer")?;

    let data = &bench.platform.data;
    let (server, asking) = (process(data, "served")?, process(data, "asking")?);
    for pod in [&server, &asking] {
        forget_connections(pod)?;
    }
    let machine = Path::new("/proc/self").to_path_buf();
    let by_hand = ByHand::new(&straight_to)?;
    let ways =
        [("pod address", straight), ("ClusterIP", through), ("a rule by hand", by_hand.url())];
    let mut report = Report::new("service");
    for (what, from, close, turns, ways) in [
        ("machine", &machine, false, rounds * TURNS, &ways[..]),
        ("pod", &asking, false, rounds * TURNS, &ways[..2]),
        ("pod, a connection each", &asking, true, rounds, &ways[..2]),
    ] {
        let series = |unit, of| {
            let name = |(way, _): &(&str, String)| format!("from a {what}: {way}{of}");
            ways.iter().map(|way| Series::new(name(way), unit)).collect::<Vec<_>>()
        };
        let (mut rates, mut costs) =
            (series("requests/s", ""), series("us/request", ", processor"));
        for turn in 0..turns as usize {
            // Who goes first changes, so that warming up favours nobody.
            for at in (0..ways.len()).map(|at| (at + turn) % ways.len()) {
                let done = ask(&ways[at].1, from, &server, close)?;
                rates[at].push(done.rate);
                costs[at].push(done.cost);
            }
        }
        let mut ratios = Vec::new();
        for at in 1..ways.len() {
            let way = ways[at].0;
            let rate = rates[at].over(&rates[0], &format!("from a {what}: rate, {way} / pod"));
            let cost = costs[0].over(&costs[at], &format!("from a {what}: processor, pod / {way}"));
            ratios.extend([rate, cost]);
        }
        let (by_rate, by_cost) = (ratios[0].median(), ratios[1].median());
        for series in rates.into_iter().chain(costs).chain(ratios) {
            report.add(series);
        }
        if close {
            report.note(format!(
                "from a {what}: no bar, because each costs a new entry of connection tracking"
            ));
        } else {
            let bar = "0.95 or more";
            report.verdict(format!("from a {what}: rate"), by_rate, bar, by_rate >= BAR);
            report.verdict(format!("from a {what}: per processor"), by_cost, bar, by_cost >= BAR);
        }
    }
    report.note("load by wrk on the same machine: one thread, 16 connections, 1 s a run, in turns");
    report.note("processor time: generator, server and the kernel's work for both");
    report.finish()
}

/// One rule of address translation, and nothing that a service has besides; gone with this value.
struct ByHand;

impl ByHand {
    /// Translates what local processes send to [`TRANSLATED`] to an address and port.
    fn new(to: &str) -> Result<Self> {
        let rule = format!("ip daddr {TRANSLATED} tcp dport 80 dnat to {to};");
        // Before the platform's own chain, which refuses addresses that no service has.
        let hook = "type nat hook output priority -110;";
        let table = format!("table ip {BY_HAND} {{ chain output {{ {hook} {rule} }}; }}");
        sh::output(Command::new("nft").arg(table)).map(|_| Self)
    }

    fn url(&self) -> String {
        format!("http://{TRANSLATED}/healthz")
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        if let Err(error) = sh::output(Command::new("nft").args(["delete", "table", "ip", BY_HAND]))
        {
            eprintln!("table {BY_HAND} is left: {error:#}");
        }
    }
}

/// Has a pod keep no port for connections that are over. The kernel keeps each for a minute, and has
/// 28,000 to one address: a few runs with a connection for each request would use them up, and what
/// were measured then is the search for a free one.
fn forget_connections(process: &Path) -> Result<()> {
    let settings = [
        ("ip_local_port_range", "1024 65535"),
        ("tcp_tw_reuse", "1"),
        ("tcp_max_tw_buckets", "1000"),
    ];
    for (name, value) in settings {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", process.join("ns/net").display()));
        command.args(["sh", "-c", &format!("echo {value} > /proc/sys/net/ipv4/{name}")]);
        sh::output(&mut command)?;
    }
    Ok(())
}

/// What one run found.
pub struct Load {
    /// Requests per second.
    pub rate: f64,
    /// Microseconds of processor time per request.
    pub cost: f64,
}

/// Asks for a second from the network namespace of process `from`; the cost is that of generator and
/// server.
fn ask(url: &str, from: &Path, server: &Path, close: bool) -> Result<Load> {
    let before = spent(server)? + children()?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", from.join("ns/net").display()));
    command.args(["wrk", "-t1", "-c16", "-d1s"]);
    if close {
        command.args(["-H", "Connection: close"]);
    }
    let told = sh::output(command.arg(url))?;
    Load::read(&told, spent(server)? + children()? - before)
}

impl Load {
    /// From what wrk tells, and the seconds of processor time that its requests took.
    pub fn read(told: &str, seconds: f64) -> Result<Self> {
        let number = |line: Option<&str>| -> Result<f64> {
            let line = line.with_context(|| format!("wrk tells no rate:\n{told}"))?;
            Ok(line.split_ascii_whitespace().next().unwrap_or_default().parse()?)
        };
        let rate = number(told.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:")))?;
        let requests = number(told.lines().find(|line| line.contains(" requests in ")))?;
        Ok(Self { rate, cost: seconds * 1e6 / requests })
    }
}

/// The `/proc` folder of a pod's process, by the launcher's record.
fn process(data: &Path, pod: &str) -> Result<PathBuf> {
    for entry in std::fs::read_dir(data.join("run/containers"))? {
        let text = std::fs::read_to_string(entry?.path())?;
        let record: serde_json::Value = serde_json::from_str(&text)?;
        let state = &record["state"];
        let labels = state["spec"]["labels"].as_object().into_iter().flatten();
        if labels.into_iter().any(|(_, value)| value == pod) {
            let pid = state["pid"].as_u64().context("a container has no process")?;
            return Ok(format!("/proc/{pid}").into());
        }
    }
    anyhow::bail!("no container of pod {pod} runs")
}

/// Seconds of processor time that a process has used, with its threads that have ended.
pub fn spent(folder: &Path) -> Result<f64> {
    ticks(folder, 11)
}

/// Seconds of processor time that children of this process have used which have ended.
fn children() -> Result<f64> {
    ticks(Path::new("/proc/self"), 13)
}

/// The sum of two fields of a process's `stat`, counted behind its name: clock ticks, which are
/// hundredths of a second on every Linux.
fn ticks(folder: &Path, first: usize) -> Result<f64> {
    let file = folder.join("stat");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", file.display()))?;
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = rest.split_ascii_whitespace().skip(first).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / 100.0)
}
