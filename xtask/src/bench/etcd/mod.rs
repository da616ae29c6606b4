//! `bench etcd`: the store beside etcd and beside the floor, in one run, all with fsync.
//!
//! All servers run for the whole time; in each round all of them take their turn at a case. The
//! floor is a bare server of the same protocol, so that the share of the protocol's library and of
//! the disk is known.

mod cases;
mod servers;

use super::report::{Report, Series};
use crate::dist;
use anyhow::{Context as _, Result, bail};
use cases::{CASES, Case};
pub use servers::{Kind, Programs, Server, ports};
use std::path::Path;

/// Keys in the store while it is measured.
const KEYS: u64 = 100_000;
/// Keys for the longer start.
const MANY: u64 = 1_000_000;

/// What only this bench may be told.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct EtcdOptions {
    /// Of etcd: one short round of the main cases
    #[arg(long)]
    pub quick: bool,
    /// Of etcd: only these cases, by name; `start` and `memory` are cases too
    #[arg(long, value_delimiter = ',')]
    case: Vec<String>,
    /// Of etcd: only these servers
    #[arg(long, value_enum, value_delimiter = ',')]
    server: Vec<Kind>,
    /// Of etcd: seconds of each run
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

impl EtcdOptions {
    fn wants(&self, name: &str, quick: bool) -> bool {
        if self.case.is_empty() {
            quick || !self.quick
        } else {
            self.case.iter().any(|c| c == name)
        }
    }

    fn kinds(&self) -> Vec<Kind> {
        let wanted = |kind: &Kind| self.server.is_empty() || self.server.contains(kind);
        Kind::ALL.into_iter().filter(wanted).collect()
    }
}

/// Runs it.
///
/// # Errors
/// When a server does not start, or answers wrongly.
pub fn run(rounds: u32, options: &EtcdOptions) -> Result<()> {
    let known = |name: &&String| {
        *name != "start" && *name != "memory" && CASES.iter().all(|case| case.name != name.as_str())
    };
    if let Some(name) = options.case.iter().find(known) {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!("there is no case {name:?}; there are {}, start, memory", names.join(", "));
    }
    let rounds = if options.quick { 1 } else { rounds };
    let seconds = if options.quick { 1.0 } else { options.seconds };
    let kinds = options.kinds();
    if kinds.contains(&Kind::Dhow) {
        dist::build_platform()?;
    }
    let programs = Programs::get()?;
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut report = Report::new("etcd");
    let cases: Vec<&Case> =
        CASES.iter().filter(|case| options.wants(case.name, case.quick)).collect();
    if !cases.is_empty() || options.wants("memory", true) {
        let servers = filled(&programs, &kinds, directory.path(), &mut report)?;
        for case in cases {
            measure(&programs, &servers, case, rounds, seconds, &mut report)?;
        }
        for server in servers {
            server.stop()?;
        }
    }
    if options.wants("start", false) {
        starts(&programs, &kinds, directory.path(), rounds, &mut report)?;
    }
    report.note("closed loops unless a rate is named; generator and server share the processors");
    report.note("CPU is the server's, user and system; of watch it is per event");
    report.finish_with(|name| name.starts_with("memory") || name.starts_with("start"))
}

/// Starts the servers and fills them, one after the other; tells their memory.
fn filled(
    programs: &Programs,
    kinds: &[Kind],
    directory: &Path,
    report: &mut Report,
) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for kind in kinds {
        let server = Server::start(programs, *kind, &directory.join(format!("{kind:?}")))?;
        if kind.keeps() {
            let keys = KEYS.to_string();
            one(report, format!("memory idle: {}", kind.name()), "MiB", server.rss()?);
            if *kind == Kind::Dhow {
                let idle = server.rss()?;
                report.verdict("memory idle: dhow, MiB", idle, "12 or less", idle <= 12.0);
            }
            let told =
                programs.bench(&["fill", "--endpoint", &server.endpoint, "--keys", &keys])?;
            if told["keys"] != KEYS {
                bail!("{} counts {} keys of {KEYS}", kind.name(), told["keys"]);
            }
            let full = server.rss()?;
            one(report, format!("memory with {KEYS} keys: {}", kind.name()), "MiB", full);
            if *kind == Kind::Dhow {
                let what = format!("memory with {KEYS} keys: dhow, MiB");
                report.verdict(what, full, "80 or less", full <= 80.0);
            }
        }
        servers.push(server);
    }
    Ok(servers)
}

fn one(report: &mut Report, name: String, unit: &'static str, value: f64) {
    let mut series = Series::new(name, unit);
    series.push(value);
    report.add(series);
}

/// What was measured of one server in one case.
struct Measured {
    kind: Kind,
    rate: Series,
    p50: Series,
    p99: Series,
    cpu: Series,
    own: Series,
}

impl Measured {
    fn new(case: &Case, kind: Kind) -> Self {
        let name = |what: &str| format!("{}: {}: {what}", case.name, kind.name());
        Self {
            kind,
            rate: Series::new(name("rate"), "per second"),
            p50: Series::new(name("p50"), "ms"),
            p99: Series::new(name("p99"), "ms"),
            cpu: Series::new(name("server CPU"), "us"),
            own: Series::new(name("generator CPU"), "us"),
        }
    }

    fn push(&mut self, told: &serde_json::Value) -> Result<()> {
        let fields = [
            (&mut self.rate, "per_second"),
            (&mut self.p50, "p50_ms"),
            (&mut self.p99, "p99_ms"),
            (&mut self.cpu, "server_us"),
            (&mut self.own, "generator_us"),
        ];
        for (series, field) in fields {
            let value = told[field].as_f64();
            series.push(value.with_context(|| format!("the generator tells no {field}"))?);
        }
        Ok(())
    }
}

/// Measures one case on all servers.
fn measure(
    programs: &Programs,
    servers: &[Server],
    case: &Case,
    rounds: u32,
    seconds: f64,
    report: &mut Report,
) -> Result<()> {
    let able = |server: &&Server| case.test != "watch" || server.kind.keeps();
    let servers: Vec<&Server> = servers.iter().filter(able).collect();
    let mut all: Vec<Measured> = servers.iter().map(|s| Measured::new(case, s.kind)).collect();
    for round in 0..rounds as usize {
        for turn in 0..servers.len() {
            // Who goes first changes, so that nobody always follows the same one.
            let nth = (round + turn) % servers.len();
            let server = servers[nth];
            let told = programs.bench(&[
                "load",
                &format!("--endpoint={}", server.endpoint),
                &format!("--pid={}", server.pid()),
                &format!("--test={}", case.test),
                &format!("--clients={}", case.clients),
                &format!("--connections={}", case.connections),
                &format!("--seconds={seconds}"),
                &format!("--keys={KEYS}"),
                &if case.rate == 0 { "--warm=0.5".into() } else { format!("--rate={}", case.rate) },
            ]);
            let told = told.with_context(|| format!("{} on {}", case.name, server.kind.name()))?;
            all[nth].push(&told)?;
        }
    }
    table(case, &all);
    judge(case, &all, report);
    for measured in all {
        for series in [measured.rate, measured.p50, measured.p99, measured.cpu, measured.own] {
            report.add(series);
        }
    }
    Ok(())
}

/// The part of the table that one case fills.
fn table(case: &Case, all: &[Measured]) {
    println!(
        "\n{:<24} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8} {:>7} {:>7} {:>7}",
        case.name,
        "MIN/s",
        "MEDIAN/s",
        "MAX/s",
        "p50 ms",
        "p99 ms",
        "CPU us",
        "GEN us",
        "x etcd",
        "x floor",
        "CPU/etcd"
    );
    let of = |kind| all.iter().find(|measured: &&Measured| measured.kind == kind);
    for measured in all {
        let (min, median, max) = measured.rate.spread();
        let times = |other: Option<&Measured>, cpu: bool| {
            other.map_or(f64::NAN, |other| {
                let (own, other) =
                    if cpu { (&measured.cpu, &other.cpu) } else { (&measured.rate, &other.rate) };
                own.over(other, "").median()
            })
        };
        println!(
            "  {:<22} {min:>9.0} {median:>9.0} {max:>9.0} {:>8.2} {:>8.2} {:>9.1} {:>8.1} {:>7.2} {:>7.2} {:>7.2}",
            measured.kind.name(),
            measured.p50.median(),
            measured.p99.median(),
            measured.cpu.median(),
            measured.own.median(),
            times(of(Kind::Etcd), false),
            times(of(Kind::Floor), false),
            times(of(Kind::Etcd), true),
        );
    }
}

/// Compares dhow with etcd and the floor, round by round.
fn judge(case: &Case, all: &[Measured], report: &mut Report) {
    let of = |kind| all.iter().find(|measured: &&Measured| measured.kind == kind);
    let Some(own) = of(Kind::Dhow) else { return };
    let mut bar = |what: &str, value: f64, wanted: f64, least: bool| {
        if wanted > 0.0 {
            let reached = if least { value >= wanted } else { value <= wanted };
            let words = format!("{wanted:.2} or {}", if least { "more" } else { "less" });
            report.verdict(format!("{}: {what}", case.name), value, &words, reached);
        }
    };
    if let Some(floor) = of(Kind::Floor) {
        bar("rate / floor", own.rate.over(&floor.rate, "").median(), case.bars.floor, true);
    }
    if let Some(etcd) = of(Kind::Etcd) {
        bar("rate / etcd", own.rate.over(&etcd.rate, "").median(), case.bars.rate, true);
        bar("CPU / etcd", own.cpu.over(&etcd.cpu, "").median(), case.bars.cpu, false);
        bar("p99 / etcd", own.p99.over(&etcd.p99, "").median(), case.bars.p99, false);
    }
}

/// Times from a process's start to the first answered put.
fn starts(
    programs: &Programs,
    kinds: &[Kind],
    directory: &Path,
    rounds: u32,
    report: &mut Report,
) -> Result<()> {
    for (keys, bar) in [(0, 0.0), (KEYS, 100.0), (MANY, 1_000.0)] {
        let kinds: Vec<Kind> = kinds.iter().copied().filter(|kind| kind.keeps()).collect();
        let mut all = Vec::new();
        for kind in &kinds {
            let dir = directory.join(format!("start-{keys}-{kind:?}"));
            if keys > 0 {
                let server = Server::start(programs, *kind, &dir)?;
                let keys = keys.to_string();
                let args =
                    ["fill", "--endpoint", &server.endpoint, "--keys", &keys, "--batch", "100"];
                programs.bench(&args)?;
                server.stop()?;
            }
            let name = format!("start with {keys} keys: {}", kind.name());
            let cpu = Series::new(format!("{name}: its CPU"), "ms");
            all.push((Series::new(name, "ms"), cpu, dir));
        }
        for round in 0..rounds as usize {
            for turn in 0..kinds.len() {
                let nth = (round + turn) % kinds.len();
                let (series, cpu, dir) = &mut all[nth];
                if keys == 0 && dir.exists() {
                    std::fs::remove_dir_all(&*dir)?;
                }
                std::fs::create_dir_all(&*dir)?;
                let (elapsed, used) = programs.start_time(kinds[nth], dir)?;
                series.push(elapsed);
                cpu.push(used);
            }
        }
        for (kind, (series, cpu, dir)) in kinds.iter().zip(all) {
            if *kind == Kind::Dhow && bar > 0.0 {
                let (what, value) = (format!("start with {keys} keys: dhow, ms"), series.median());
                report.verdict(what, value, &format!("{bar} or less"), value <= bar);
            }
            report.add(series);
            report.add(cpu);
            std::fs::remove_dir_all(dir)?;
        }
    }
    Ok(())
}
