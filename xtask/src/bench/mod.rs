//! `cargo xtask bench`: numbers, side by side with peers in the same run.
//!
//! Every bench makes its own platform in a temporary data directory and removes it. Values of one
//! bench come from rounds in which all cases take turns, so that a busy moment hits all of them.

mod api;
mod embedded;
mod enclosure;
pub mod etcd;
mod idle;
mod report;
mod run;
mod service;
mod start;

use crate::platform::Platform;
use crate::{dist, sh};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The fewest rounds that a median is worth something.
const FEWEST: u32 = 5;

/// What a bench may be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Which bench
    #[arg(value_enum, default_value_t = Which::All)]
    which: Which,
    /// How many rounds, at least 5
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    #[command(flatten)]
    etcd: etcd::EtcdOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// From nothing to the first Ready pod
    Start,
    /// `dhow run --rm` against docker, crun and runc
    Run,
    /// Memory and processor time at rest
    Idle,
    /// Requests per second through a ClusterIP against straight to the pod
    Service,
    /// The Kubernetes API against Kubernetes' own API server
    Api,
    /// The store against etcd and against a bare server of the same protocol
    Etcd,
    /// A put and its event inside the store's process
    Embedded,
    /// All of them
    All,
}

/// Runs the benches.
///
/// # Errors
/// When one cannot be run. A bar that is missed is in the report, and no error.
pub fn run(options: &Options) -> Result<()> {
    sh::must_be_root("cargo xtask bench")?;
    if options.rounds < FEWEST && !options.etcd.quick {
        bail!("--rounds {} is too few for a median: at least {FEWEST}", options.rounds);
    }
    // The store's benches build what they need themselves: they can do without the platform.
    if !matches!(options.which, Which::Etcd | Which::Embedded) {
        dist::build_for_tasks()?;
    }
    let wanted = |which| options.which == which || options.which == Which::All;
    if wanted(Which::Start) {
        start::run(options.rounds)?;
    }
    if wanted(Which::Run) {
        run::run(options.rounds)?;
    }
    if wanted(Which::Idle) {
        idle::run(options.rounds)?;
    }
    if wanted(Which::Service) {
        service::run(options.rounds)?;
    }
    if wanted(Which::Api) {
        api::run(options.rounds)?;
    }
    if wanted(Which::Etcd) {
        etcd::run(options.rounds, &options.etcd)?;
    }
    if wanted(Which::Embedded) {
        embedded::run(options.rounds)?;
    }
    Ok(())
}

/// A platform that is removed when it goes out of scope, also after an error.
struct Bench {
    platform: Platform,
    scratch: PathBuf,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let scratch = directory.path().to_path_buf();
        Ok(Self { platform: Platform::bench(scratch.join("data")), scratch, _directory: directory })
    }

    /// Builds an image whose only file is `program`, as `path`.
    fn image(&self, name: &str, program: &Path, path: &str, entry: &str) -> Result<()> {
        let context = self.scratch.join("context");
        std::fs::create_dir_all(&context)?;
        std::fs::copy(program, context.join("program"))
            .with_context(|| format!("cannot copy {}", program.display()))?;
        let text = format!("FROM scratch\nCOPY program {path}\n{entry}\n");
        std::fs::write(context.join("Dockerfile"), text)?;
        let mut command = self.platform.command(&["image", "build", "-t", name]);
        sh::output(command.arg(&context)).map(drop)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.platform.data.exists()
            && let Err(error) = self.platform.purge()
        {
            eprintln!("cannot clean up {}: {error:#}", self.platform.data.display());
        }
    }
}

/// A pod of the default namespace that runs `image` and nothing else.
fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n    - name: main\n      image: {image}\n"
    )
}

/// Waits until a pod of the default namespace is ready.
fn ready(platform: &Platform, name: &str) -> Result<serde_json::Value> {
    let found = crate::platform::until(Duration::from_secs(30), || {
        let pod = platform.get("default", "pod", name)?;
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let mut ready = conditions.filter(|c| c["type"] == "Ready" && c["status"] == "True");
        Ok(ready.next().is_some().then_some(pod))
    })?;
    found.with_context(|| format!("pod {name} is not ready after 30 s"))
}

/// Runs a command, its output thrown away, and tells how many milliseconds it took.
fn timed(command: &mut Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let done = command.output().with_context(|| format!("cannot run {}", sh::line(command)))?;
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    if !done.status.success() {
        let text = String::from_utf8_lossy(&done.stderr);
        bail!("{}: {}: {}", sh::line(command), done.status, text.trim());
    }
    Ok(milliseconds)
}

/// The hidden task `measure`: runs a command several times inside whatever namespaces this process
/// was put into, so that entering them is not part of what is measured.
///
/// # Errors
/// When the command fails.
pub fn measure(times: u32, command: &[String]) -> Result<()> {
    let (program, args) = command.split_first().context("which command?")?;
    let values: Vec<f64> =
        (0..times).map(|_| timed(Command::new(program).args(args))).collect::<Result<_>>()?;
    println!("{}", serde_json::to_string(&values)?);
    Ok(())
}
