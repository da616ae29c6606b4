//! `cargo xtask fuzz`: bad input for everything that reads bytes, by seed or by coverage.

use crate::{sh, workspace};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What rustc adds for libFuzzer: a counter for each edge of the code, and calls at comparisons. It
/// is what cargo-fuzz passes with `--sanitizer none`, which a stable toolchain takes.
const INSTRUMENTED: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Where the targets are programs of libFuzzer.
const PACKAGE: &str = "fuzz/libfuzzer";

/// What to give bad input to.
#[derive(Debug, Args)]
pub struct Fuzz {
    /// Which target, for example recovery or dns; all without it
    target: Option<String>,
    /// So many seconds for each
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only the input of this seed
    #[arg(long, conflicts_with = "coverage")]
    seed: Option<u64>,
    /// Only the input in this file
    #[arg(long, requires = "target", conflicts_with_all = ["coverage", "seed"])]
    input: Option<PathBuf>,
    /// Let libFuzzer look which code each input reaches (needs a C++ compiler)
    #[arg(long)]
    coverage: bool,
}

/// Runs what was asked for.
///
/// # Errors
/// When something bore its input badly, or the program could not be built.
pub fn run(options: &Fuzz) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "-p", "dhow-fuzz", "--profile", "simulation"]);
    sh::run(cargo.current_dir(workspace::root())).context("the targets do not build")?;
    let seeded = workspace::target().join(workspace::TARGET).join("simulation/dhow-fuzz");
    if options.coverage {
        return coverage(options, &seeded);
    }
    let mut fuzz = Command::new(seeded);
    fuzz.args(&options.target).args(["--seconds", &options.seconds.to_string()]);
    if let Some(seed) = options.seed {
        fuzz.args(["--seed", &seed.to_string()]);
    }
    if let Some(input) = &options.input {
        fuzz.arg("--input").arg(input);
    }
    sh::run(&mut fuzz)
}

/// What `cargo xtask test` runs: a few seconds for each.
///
/// # Errors
/// As [`run`].
pub fn test() -> Result<()> {
    run(&Fuzz { target: None, seconds: 3, seed: None, input: None, coverage: false })
}

/// Fuzzing by libFuzzer. What it learns stays in `TARGET/fuzz/corpus` and it goes on from there.
fn coverage(options: &Fuzz, seeded: &Path) -> Result<()> {
    let home = workspace::target().join("fuzz");
    let corpus = home.join("corpus");
    let mut good = Command::new(seeded);
    sh::run(good.args(&options.target).arg("--write-good").arg(&corpus))?;
    let names = match &options.target {
        Some(name) => vec![name.clone()],
        None => {
            sh::output(Command::new(seeded).arg("--list"))?.lines().map(str::to_owned).collect()
        }
    };
    println!("building {} for libFuzzer", names.join(", "));
    let programs = build(&names)?;
    let mut found = 0;
    for name in &names {
        let folder = corpus.join(name);
        let log = home.join(format!("{name}.log"));
        let findings = home.join(format!("found-{name}-"));
        let mut fuzz = Command::new(programs.join(name));
        fuzz.arg(&folder)
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-artifact_prefix={}", findings.display()))
            .args(["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]);
        let output =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let status = fuzz.stdout(output.try_clone()?).stderr(output).status();
        let status = status.with_context(|| format!("cannot run {}", sh::line(&fuzz)))?;
        let told = std::fs::read_to_string(&log).unwrap_or_default();
        println!("{name}: {}", summary(&told));
        if !status.success() {
            found += 1;
            let input = told.lines().find_map(|line| line.split_once("Test unit written to "));
            let input = input.map_or("(none was written)", |(_, path)| path);
            println!("{name}: FAILED, see {}", log.display());
            println!("again: cargo xtask fuzz {name} --input {input}");
        }
    }
    if found > 0 {
        bail!("{found} of {} targets did not bear their input", names.len());
    }
    Ok(())
}

/// Builds the targets; where the programs are.
fn build(names: &[String]) -> Result<PathBuf> {
    let package = workspace::root().join(PACKAGE);
    // The same versions as the workspace has, and whatever libFuzzer needs besides.
    let lock = package.join("Cargo.lock");
    std::fs::copy(workspace::root().join("Cargo.lock"), &lock)
        .with_context(|| format!("cannot write {}", lock.display()))?;
    // Flags of its own need a directory of its own: the workspace would be built anew each time.
    let target = workspace::target().join("fuzz/build");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--release"]);
    cargo.args(names.iter().flat_map(|name| ["--bin", name]));
    cargo.env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", INSTRUMENTED);
    sh::run(cargo.current_dir(package)).context("the targets do not build for libFuzzer")?;
    Ok(target.join(workspace::TARGET).join("release"))
}

/// What libFuzzer's output says at its end: how many inputs it tried, what they reach.
fn summary(log: &str) -> String {
    let value = |name: &str| {
        let line = log.lines().rfind(|line| line.starts_with(name))?;
        line.rsplit(' ').next()
    };
    let reached = log.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once("cov: ")?;
        rest.split(' ').next()
    });
    format!(
        "{} inputs, {} places reached, {} inputs kept",
        value("stat::number_of_executed_units:").unwrap_or("?"),
        reached.unwrap_or("?"),
        value("stat::new_units_added:").unwrap_or("?"),
    )
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn the_end_of_a_run_is_told() {
        let log = "#2\tINITED cov: 17 ft: 20 corp: 2/9b\n#90\tNEW    cov: 31 ft: 40 corp: 3/12b\n\
                   Done 120 runs in 2 second(s)\nstat::number_of_executed_units: 120\n\
                   stat::average_exec_per_sec:     60\nstat::new_units_added:          3\n";
        assert_eq!(summary(log), "120 inputs, 31 places reached, 3 inputs kept");
    }
}
