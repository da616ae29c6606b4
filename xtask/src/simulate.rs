//! `cargo xtask simulate`: the store in virtual time by seed, and real members that are killed.

use crate::{sh, workspace};
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::Command;

/// Seeds that every change is tried with: each has shown something once.
const FIXED: &str = "1..13";
/// So many new ones besides.
const FRESH: &str = "8";
/// No new simulation begins after so many seconds.
const BUDGET: &str = "75";

/// What to simulate.
#[derive(Debug, Subcommand)]
pub enum Simulate {
    /// Members, clients, crashes, partitions and bad disks in virtual time; the history is checked
    #[command(after_help = "Example: cargo xtask simulate store --seeds 1..100 --hours 0.5")]
    Store(Store),
    /// Three real members under load, killed (-9) again and again; the history is checked
    #[command(after_help = "Example: cargo xtask simulate crashes --times 200")]
    Crashes {
        /// How often to kill
        #[arg(long, default_value_t = 200)]
        times: u32,
        /// Decides which member is killed when; not how the machine schedules
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Three real members in network namespaces, cut off from each other by nftables under load; the
    /// history is checked
    #[command(after_help = "Example: cargo xtask simulate partitions --times 40")]
    Partitions {
        /// How often to cut
        #[arg(long, default_value_t = 40)]
        times: u32,
        /// Decides what is cut when; not how the machine schedules
        #[arg(long)]
        seed: Option<u64>,
    },
}

/// Passed on to the simulation.
#[derive(Debug, Args)]
pub struct Store {
    /// The seed
    #[arg(long)]
    seed: Option<u64>,
    /// A range of seeds, A..B (B is not among them)
    #[arg(long, conflicts_with = "seed")]
    seeds: Option<String>,
    /// So many new seeds besides, which are printed
    #[arg(long)]
    fresh: Option<u64>,
    /// How long trouble goes on, in hours of virtual time
    #[arg(long, default_value_t = 0.1)]
    hours: f64,
    /// How many members; the seed decides otherwise
    #[arg(long)]
    members: Option<usize>,
    /// Run each seed twice and compare the digests
    #[arg(long)]
    twice: bool,
    /// Print the store's log lines
    #[arg(long)]
    log: bool,
    /// Write the history to this file
    #[arg(long)]
    dump: Option<PathBuf>,
}

/// Runs what was asked for.
///
/// # Errors
/// When a promise was broken, or the program could not be built.
pub fn run(what: &Simulate) -> Result<()> {
    let store = match what {
        Simulate::Store(store) => store,
        Simulate::Crashes { times, seed } => {
            return real("store_crashes", "STORE_CRASHES", *times, *seed);
        }
        Simulate::Partitions { times, seed } => {
            sh::must_be_root("cargo xtask simulate partitions")?;
            return real("store_partitions", "STORE_PARTITIONS", *times, *seed);
        }
    };
    let mut arguments: Vec<String> = vec!["--hours".into(), store.hours.to_string()];
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([name.to_owned(), value]);
        }
    };
    option("--seed", store.seed.map(|seed| seed.to_string()));
    option("--seeds", store.seeds.clone());
    option("--fresh", store.fresh.map(|fresh| fresh.to_string()));
    option("--members", store.members.map(|members| members.to_string()));
    option("--dump", store.dump.as_ref().map(|path| path.display().to_string()));
    arguments.extend(store.twice.then(|| "--twice".into()));
    arguments.extend(store.log.then(|| "--log".into()));
    sh::run(Command::new(build()?).args(arguments))
}

/// An end-to-end test with real members, for longer than `cargo xtask test` runs it.
fn real(test: &str, variable: &str, times: u32, seed: Option<u64>) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "-p", "e2e", "--test", test, "--", "--nocapture"]);
    cargo.env(variable, times.to_string());
    if let Some(seed) = seed {
        cargo.env("STORE_SEED", seed.to_string());
    }
    sh::run(cargo.current_dir(workspace::root()))
}

/// What `cargo xtask test` runs: the fixed seeds and a few fresh ones, in bounded time.
///
/// # Errors
/// As [`run`].
pub fn test() -> Result<()> {
    let program = build()?;
    let arguments = ["--seeds", FIXED, "--fresh", FRESH, "--hours", "0.05", "--budget", BUDGET];
    sh::run(Command::new(&program).args(arguments))?;
    sh::run(Command::new(&program).args(["--seeds", "1..3", "--hours", "0.01", "--twice"]))
}

/// Builds the simulation, optimised and with all checks.
fn build() -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "build",
        "--quiet",
        "-p",
        "dhow-sim",
        "--bin",
        "simulate",
        "--profile",
        "simulation",
    ]);
    sh::run(cargo.current_dir(workspace::root())).context("the simulation does not build")?;
    Ok(workspace::target().join(workspace::TARGET).join("simulation/simulate"))
}
