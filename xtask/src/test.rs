//! `cargo xtask test`: everything that a developer needs to trust a change.
//!
//! It installs what it needs and says so. Every stage runs even when an earlier one failed, unless
//! it needs what failed; nothing is left out silently, and an ignored test counts as a failure.

use crate::tools::etcd::Etcd;
use crate::{conformance, demo, dist, fuzz, sh, simulate, tidy, tools, workspace};
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Debian packages that tests use: what runs in containers, and what looks at the kernel from
/// outside.
const PACKAGES: [&str; 9] = [
    "busybox-static",
    "ca-certificates",
    "curl",
    "dnsmasq-base",
    "dnsutils",
    "etcd-client",
    "iproute2",
    "nftables",
    "openssl",
];

/// What the tests of one `cargo test` said.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// Real clients and servers that tests run, in the versions that they are written for: what else
/// the `PATH` holds must not matter.
struct Clients {
    kubectl: PathBuf,
    newest: Etcd,
    debian: Etcd,
}

impl Clients {
    fn install() -> Result<Self> {
        Ok(Self {
            kubectl: tools::kubectl()?,
            newest: tools::etcd::newest()?,
            debian: tools::etcd::debian_release()?,
        })
    }

    /// Tells tests where they are.
    fn name_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("KUBECTL", &self.kubectl)
            .env("ETCDCTL", &self.newest.etcdctl)
            .env("ETCDUTL", &self.newest.etcdutl)
            .env("ETCD", &self.debian.etcd)
    }
}

struct Run {
    count: Count,
    stages: Vec<(&'static str, f64, Result<(), String>)>,
}

impl Run {
    /// Runs a stage and remembers how it went.
    fn stage(&mut self, name: &'static str, work: impl FnOnce(&mut Count) -> Result<()>) -> bool {
        println!("\n=== {name}");
        let start = Instant::now();
        let done = work(&mut self.count).map_err(|error| format!("{error:#}"));
        if let Err(error) = &done {
            println!("{name} failed: {error}");
        }
        let fine = done.is_ok();
        self.stages.push((name, start.elapsed().as_secs_f64(), done));
        fine
    }
}

/// Runs the tests; with `quick` without release build, end-to-end tests and demo.
///
/// # Errors
/// When anything failed.
pub fn run(quick: bool) -> Result<()> {
    sh::must_be_root("cargo xtask test")?;
    let start = Instant::now();
    let mut run = Run { count: Count::default(), stages: Vec::new() };
    let mut clients = None;
    run.stage("tools", |_| {
        tools::debian(&PACKAGES)?;
        clients = Some(Clients::install()?);
        Ok(())
    });
    run.stage("tidy", |_| tidy::run());
    run.stage("clippy", |_| {
        let args = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        sh::run(Command::new("cargo").args(args).current_dir(workspace::root()))
    });
    if let Some(clients) = &clients {
        run.stage("unit and behaviour tests", |count| {
            let args = ["test", "--workspace", "--exclude", "e2e", "--no-fail-fast", "--locked"];
            cargo_test(clients.name_to(Command::new("cargo").args(args)), count)
        });
    }
    run.stage("simulation", |_| simulate::test());
    run.stage("bad input", |_| fuzz::test());
    if !quick {
        let built = run.stage("release build", |_| {
            let path = dist::build(&["dhow", "shop"])?;
            let size = dist::check(&path)?;
            println!("{} is static and has {:.1} MB", path.display(), size as f64 / 1e6);
            Ok(())
        });
        if built && let Some(clients) = &clients {
            run.stage("end-to-end tests", |count| {
                let args = ["test", "-p", "e2e", "--no-fail-fast", "--locked"];
                let mut command = Command::new("cargo");
                command.args(args).env("DHOW_BIN", workspace::release("dhow"));
                cargo_test(clients.name_to(&mut command), count)
            });
        }
        if built {
            run.stage("conformance", |_| conformance::short());
        }
        if built {
            run.stage("demo", |_| demo::run(&demo::Options { purge: true, ..Default::default() }));
        }
    }
    summary(&run, quick, start.elapsed().as_secs_f64())
}

fn summary(run: &Run, quick: bool, seconds: f64) -> Result<()> {
    println!("\n=== summary");
    for (name, seconds, done) in &run.stages {
        println!("{:<26} {seconds:>7.1} s  {}", name, if done.is_ok() { "fine" } else { "FAILED" });
        // Whoever reads only the end of a long output must find out what to mend.
        for line in done.as_ref().err().into_iter().flat_map(|error| error.lines()) {
            println!("    {line}");
        }
    }
    let wanted: &[&str] = match quick {
        true => &["unit and behaviour tests"],
        false => &["unit and behaviour tests", "end-to-end tests", "conformance", "demo"],
    };
    let missing: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|wanted| run.stages.iter().all(|(name, ..)| name != wanted))
        .collect();
    for name in &missing {
        println!("{name:<26}            NOT RUN, because what it needs failed");
    }
    if quick {
        println!("not run with --quick: release build, end-to-end tests, conformance, demo");
    }
    let bad = run.stages.iter().filter(|(_, _, done)| done.is_err()).count() + missing.len();
    let Count { passed, failed, ignored } = run.count;
    println!(
        "{passed} passed, {failed} failed, {ignored} ignored; {} stages, {bad} of them failed; {seconds:.0} s",
        run.stages.len() + missing.len()
    );
    if bad > 0 {
        bail!("the tests failed; the summary above says which stage");
    }
    Ok(())
}

/// Runs `cargo test`, passes its output on and counts what it says.
fn cargo_test(command: &mut Command, count: &mut Count) -> Result<()> {
    command.current_dir(workspace::root()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot run cargo")?;
    let stdout = child.stdout.take().context("cargo has no standard output")?;
    let mut own = Count::default();
    let mut failed = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        writeln!(std::io::stdout(), "{line}")?;
        failed.extend(failed_test(&line).map(str::to_owned));
        if let Some(more) = counted(&line) {
            own.passed += more.passed;
            own.failed += more.failed;
            own.ignored += more.ignored;
        }
    }
    let status = child.wait()?;
    count.passed += own.passed;
    count.failed += own.failed;
    count.ignored += own.ignored;
    if !status.success() {
        let failed: String = failed.iter().map(|name| format!("\n{name}")).collect();
        bail!("{}: {status}{failed}", sh::line(command));
    }
    if own.ignored > 0 {
        bail!("{} tests are ignored; a test runs or goes", own.ignored);
    }
    if own.passed == 0 {
        bail!("no test ran; that cannot be right");
    }
    Ok(())
}

/// Reads `test result: ok. 3 passed; 0 failed; 0 ignored; ...`.
fn counted(line: &str) -> Option<Count> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut count = Count::default();
    for part in rest.split("; ") {
        let Some((number, what)) = part.split_once(' ') else { continue };
        let Ok(number) = number.parse() else { continue };
        match what {
            "passed" => count.passed = number,
            "failed" => count.failed = number,
            "ignored" => count.ignored = number,
            _ => {}
        }
    }
    Some(count)
}

/// Reads `test a::test ... FAILED`, also with a time behind it.
fn failed_test(line: &str) -> Option<&str> {
    let (name, how) = line.strip_prefix("test ")?.split_once(" ... ")?;
    how.starts_with("FAILED").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::{Count, counted, failed_test};

    #[test]
    fn counts_what_cargo_says() {
        let line = "test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.01s";
        assert_eq!(counted(line), Some(Count { passed: 12, failed: 1, ignored: 2 }));
        assert_eq!(counted("test http::tests::reads ... ok"), None);
    }

    #[test]
    fn names_what_failed() {
        assert_eq!(failed_test("test a::b ... FAILED (1.2s)"), Some("a::b"));
        assert_eq!(failed_test("test a::b ... ok"), None);
        assert_eq!(failed_test("a::b ... FAILED"), None);
    }
}
