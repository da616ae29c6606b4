//! `cargo xtask fuzz`: bad input by seed for everything that reads bytes.

use crate::{sh, workspace};
use anyhow::{Context as _, Result};
use clap::Args;
use std::process::Command;

/// What to give bad input to.
#[derive(Debug, Args)]
pub struct Fuzz {
    /// One of command, state, recovery, message, bolt, proto, gateway; all without it
    target: Option<String>,
    /// So many seconds for each
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only the input of this seed
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs what was asked for.
///
/// # Errors
/// When something bore its input badly, or the program could not be built.
pub fn run(options: &Fuzz) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "-p", "dhow-fuzz", "--profile", "simulation"]);
    sh::run(cargo.current_dir(workspace::root())).context("the targets do not build")?;
    let program = workspace::target().join(workspace::TARGET).join("simulation/dhow-fuzz");
    let mut fuzz = Command::new(program);
    fuzz.args(&options.target).args(["--seconds", &options.seconds.to_string()]);
    if let Some(seed) = options.seed {
        fuzz.args(["--seed", &seed.to_string()]);
    }
    sh::run(&mut fuzz)
}

/// What `cargo xtask test` runs: a few seconds for each.
///
/// # Errors
/// As [`run`].
pub fn test() -> Result<()> {
    run(&Fuzz { target: None, seconds: 3, seed: None })
}
