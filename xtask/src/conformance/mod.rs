//! `cargo xtask conformance etcd`: does dhow's store do what etcd does?
//!
//! Its own suites, its clients, its data files, Kubernetes' API server and random requests are
//! turned on dhow; `--against etcd` turns them on a real etcd, which proves the harness. What is
//! known to fail is in `known.txt`, each with its reason; anything else that fails is an error.

mod clients;
mod diff;
mod kube;
mod snapshots;
mod suites;

use crate::{dist, sh, tools, workspace};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use suites::Suite;

/// What fails on dhow for a reason that is told there.
const KNOWN: &str = include_str!("known.txt");

/// What conformance may be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// With what
    #[arg(value_enum)]
    with: With,
    /// Which parts; all without it
    #[arg(long, value_enum, value_delimiter = ',')]
    part: Vec<Part>,
    /// Which server is tested: etcd's own proves the harness
    #[arg(long, value_enum, default_value_t = Against::Dhow)]
    against: Against,
    /// Of the suites: only tests whose names hold this
    #[arg(long)]
    filter: Option<String>,
    /// The parts that a few minutes are enough for
    #[arg(long)]
    quick: bool,
    /// The first seed of the random requests; without it a fixed one and a fresh one
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum With {
    /// etcd v3
    Etcd,
}

/// A part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The end-to-end suite of etcd 3.4.23
    Debian,
    /// The newest release's tests/common
    Common,
    /// The newest release's tests/e2e
    Newest,
    /// Random requests to a real etcd and to dhow
    Diff,
    /// Snapshots from one to the other, both ways
    Snapshots,
    /// etcdctl 3.4, 3.5 and newest; etcd3gw over JSON; the Rust crate etcd-client
    Clients,
    /// Kubernetes' API server
    Kube,
}

impl Part {
    const ALL: [Self; 7] = [
        Self::Debian,
        Self::Common,
        Self::Newest,
        Self::Diff,
        Self::Snapshots,
        Self::Clients,
        Self::Kube,
    ];
    const QUICK: [Self; 4] = [Self::Debian, Self::Diff, Self::Snapshots, Self::Clients];
}

/// Which server is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Against {
    /// dhow
    Dhow,
    /// A real etcd
    Etcd,
}

/// How a part ended.
#[derive(Debug)]
struct Outcome {
    name: String,
    summary: String,
    time: Duration,
    /// What must not be.
    problems: Vec<String>,
    /// What a person may want to know.
    notes: Vec<String>,
}

/// Runs the parts.
///
/// # Errors
/// When one cannot be run, or something fails that is not known to.
pub fn run(options: &Options) -> Result<()> {
    sh::must_be_root("cargo xtask conformance")?;
    if options.against == Against::Dhow {
        dist::build_platform()?;
    }
    let With::Etcd = options.with;
    let parts: &[Part] = match (&options.part[..], options.quick) {
        ([], true) => &Part::QUICK,
        ([], false) => &Part::ALL,
        (parts, _) => parts,
    };
    finish(parts, options)
}

/// The short run, as a stage of `cargo xtask test`: the platform is built already.
///
/// # Errors
/// As [`run`].
pub fn short() -> Result<()> {
    let options = Options {
        with: With::Etcd,
        part: Vec::new(),
        against: Against::Dhow,
        filter: None,
        quick: true,
        seed: None,
    };
    finish(&Part::QUICK, &options)
}

fn finish(parts: &[Part], options: &Options) -> Result<()> {
    tools::debian(&["iproute2"])?;
    let mut outcomes = Vec::new();
    for part in parts {
        println!("\n=== {part:?}");
        let start = Instant::now();
        let filter = options.filter.as_deref();
        let done = match part {
            Part::Debian => suites::run(Suite::Debian, options.against, filter),
            Part::Common => suites::run(Suite::Common, options.against, filter),
            Part::Newest => suites::run(Suite::Newest, options.against, filter),
            Part::Diff => diff::run(options.against, options.seed, options.quick),
            Part::Snapshots => snapshots::run(options.against),
            Part::Clients => clients::run(options.against, options.quick),
            Part::Kube => kube::run(options.against),
        };
        // One part that cannot run must not hide what the others find.
        outcomes.push(done.unwrap_or_else(|error| Outcome {
            name: format!("{part:?}").to_lowercase(),
            summary: "could not run".to_owned(),
            time: start.elapsed(),
            problems: vec![format!("{error:#}")],
            notes: Vec::new(),
        }));
    }
    println!("\n=== summary");
    let mut bad = Vec::new();
    for outcome in &outcomes {
        println!("{:<12} {:>6.1} s  {}", outcome.name, outcome.time.as_secs_f64(), outcome.summary);
        for note in &outcome.notes {
            println!("             {note}");
        }
        for problem in &outcome.problems {
            println!("    PROBLEM  {problem}");
        }
        bad.extend(outcome.problems.iter().map(|problem| format!("{}: {problem}", outcome.name)));
    }
    if !bad.is_empty() {
        bail!(
            "{} problems; see above, and {}\n{}",
            bad.len(),
            workspace::target().join("conformance").display(),
            bad.join("\n")
        );
    }
    Ok(())
}

/// What is known to fail in a part, with reasons: lines `PART NAME REASON`.
fn known(part: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    KNOWN.lines().filter(|line| !line.starts_with('#')).filter_map(move |line| {
        let rest = line.strip_prefix(part)?.strip_prefix(' ')?;
        Some(rest.split_once(' ').unwrap_or((rest, "")))
    })
}

/// An empty folder for what a part leaves to be read.
fn logs(part: &str, against: Against) -> Result<PathBuf> {
    let against = format!("{against:?}").to_lowercase();
    let folder = workspace::target().join("conformance").join(format!("{part}-{against}"));
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_failure_has_a_reason() {
        for line in KNOWN.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut words = line.splitn(3, ' ');
            assert!(words.next().is_some() && words.next().is_some(), "{line}");
            assert!(words.next().is_some_and(|reason| reason.len() > 10), "{line}: no reason");
        }
    }
}
