//! The same random requests to a real etcd and to dhow: `bench-etcd diff` sends and compares.

use super::{Against, Outcome, logs};
use crate::bench::etcd::{Kind, Programs, Server, ports};
use anyhow::{Context as _, Result};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The seed of which every run takes part.
const FIXED: u64 = 1;
/// Requests of one seed.
const REQUESTS: u32 = 5_000;

/// Runs it.
///
/// # Errors
/// When a server does not start. Answers that differ are in the outcome.
pub fn run(against: Against, seed: Option<u64>, quick: bool) -> Result<Outcome> {
    let start = Instant::now();
    let programs = Programs::get()?;
    let folder = logs("diff", against)?;
    let fresh = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(2, |now| now.as_secs())
    };
    let seeds = match (seed, quick) {
        (Some(seed), _) => vec![seed],
        (None, true) => vec![FIXED],
        (None, false) => vec![FIXED, FIXED + 1, FIXED + 2, fresh()],
    };
    let mut problems = Vec::new();
    for seed in &seeds {
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let right = match against {
            Against::Dhow => Kind::Dhow,
            Against::Etcd => Kind::Etcd,
        };
        let left =
            Server::start_on(&programs, Kind::Etcd, &directory.path().join("left"), ports())?;
        let right = Server::start_on(&programs, right, &directory.path().join("right"), ports())?;
        let path = folder.join(format!("seed-{seed}.txt"));
        let log = std::fs::File::create(&path)?;
        let mut command = Command::new(&programs.bench);
        command.args(["diff", &format!("--seed={seed}"), &format!("--requests={REQUESTS}")]);
        command.args(["--left", &left.endpoint, "--right", &right.endpoint]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let status = command.status().context("cannot run bench-etcd")?;
        let told = std::fs::read_to_string(&path)?;
        let last = told.lines().last().unwrap_or_default();
        println!("seed {seed}: {last}");
        if !status.success() {
            problems.push(format!("seed {seed}: {last}; see {}", path.display()));
        }
        left.stop()?;
        right.stop()?;
    }
    Ok(Outcome {
        name: "diff".to_owned(),
        summary: format!(
            "{} of {} seeds with {REQUESTS} requests answer alike: {seeds:?}",
            seeds.len() - problems.len(),
            seeds.len()
        ),
        time: start.elapsed(),
        problems,
        notes: Vec::new(),
    })
}
