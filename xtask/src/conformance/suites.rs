//! etcd's own test suites, pointed at another server: each test in a process and a network of its
//! own, so that one that panics, hangs or leaves servers behind does not touch the next.

use super::{Against, Outcome, known, logs};
use crate::space::Space;
use crate::tools::etcd as tools;
use crate::{platform, sh, workspace};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Tests that run at once: they wait most of their time.
const ABREAST: usize = 4;
/// How long one test may take. Go itself ends it then, and tells where it stood.
const PATIENCE: Duration = Duration::from_secs(180);
/// Lines of a failed test's log that are shown.
const TAIL: usize = 40;
/// The v3 tests of the 3.4 suite that are about a server.
const V3: &str = "TestCtlV3(Put|Get|Del|Watch|Txn|Lease|Alarm|Compact|Endpoint|Lock|Elect|RoleAdd|\
                  UserAdd|Snapshot|MemberList)|TestV3Curl";

/// Which suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// `tests/e2e` of 3.4.23, from Debian
    Debian,
    /// `tests/common` of the newest release
    Common,
    /// `tests/e2e` of the newest release
    Newest,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Debian => "e2e-3.4",
            Self::Common => "common",
            Self::Newest => "e2e",
        }
    }
}

/// A compiled suite.
struct Tests {
    program: PathBuf,
    /// Where it must run.
    folder: PathBuf,
    /// `etcd`, `etcdctl`, `etcdutl`.
    programs: PathBuf,
    names: Vec<String>,
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    Skipped,
}

/// Runs a suite, or the tests of it whose names hold `filter`.
///
/// # Errors
/// When the suite cannot be had or run. A test that fails is in the outcome.
pub fn run(suite: Suite, against: Against, filter: Option<&str>) -> Result<Outcome> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut tests = tests(suite, against, directory.path())?;
    if let Some(filter) = filter {
        tests.names.retain(|name| name.contains(filter));
    }
    let start = Instant::now();
    let folder = logs(suite.name(), against)?;
    let ends = all(&tests, &folder)?;
    Ok(judge(suite, against, &ends, &folder, start.elapsed()))
}

fn tests(suite: Suite, against: Against, directory: &Path) -> Result<Tests> {
    let newest = tools::newest()?;
    let (program, folder, clients) = match suite {
        Suite::Debian => {
            let (program, folder) = tools::suite_debian()?;
            (program, folder, tools::debian_release()?)
        }
        Suite::Common => {
            let (programs, source) = tools::suites_newest()?;
            (programs.join("common.test"), source.join("common"), newest)
        }
        Suite::Newest => {
            let (programs, source) = tools::suites_newest()?;
            (programs.join("e2e.test"), source.join("e2e"), newest)
        }
    };
    let server = match against {
        Against::Dhow => workspace::dhow(),
        Against::Etcd => clients.etcd.clone(),
    };
    let programs = directory.join("bin");
    std::fs::create_dir_all(&programs)?;
    let mut links = vec![("etcd", server), ("etcdctl", clients.etcdctl)];
    if clients.etcdutl.is_file() {
        links.push(("etcdutl", clients.etcdutl));
    }
    for (name, target) in links {
        let target = target.canonicalize().with_context(|| format!("no {}", target.display()))?;
        std::os::unix::fs::symlink(target, programs.join(name))?;
    }
    let pattern = if suite == Suite::Debian { V3 } else { "." };
    let mut list = Command::new(&program);
    let told = sh::output(list.args(["-test.list", pattern]).current_dir(&folder))?;
    let names = told.lines().filter(|line| line.starts_with("Test")).map(str::to_owned).collect();
    Ok(Tests { program, folder, programs, names })
}

fn all(tests: &Tests, logs: &Path) -> Result<BTreeMap<String, End>> {
    let ends = Mutex::new(BTreeMap::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..ABREAST)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while let Some(name) = tests.names.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let start = Instant::now();
                        let end = test(tests, name, logs)?;
                        let seconds = start.elapsed().as_secs_f64();
                        println!("{end:?} {name} ({seconds:.1} s)");
                        if let Ok(mut ends) = ends.lock() {
                            ends.insert(name.clone(), end);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            match worker.join() {
                Ok(done) => done?,
                Err(_) => bail!("a worker panicked"),
            }
        }
        Ok(())
    })?;
    ends.into_inner().map_err(|_| anyhow::anyhow!("a worker panicked"))
}

/// A folder to run a test in that looks like the suite's and is its own: some tests start servers
/// that leave their data where they run, which others would find. The two folders above it look like
/// the suite's, too: that far up are the certificates.
fn private(folder: &Path, scratch: &Path) -> Result<PathBuf> {
    let path: Vec<&Path> = folder.ancestors().take(3).collect();
    let mut own = scratch.join("suite");
    std::fs::create_dir_all(&own)?;
    for (at, from) in path.iter().enumerate().rev() {
        let below = at.checked_sub(1).and_then(|at| path.get(at)).copied();
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            if Some(entry.path().as_path()) != below {
                std::os::unix::fs::symlink(entry.path(), own.join(entry.file_name()))?;
            }
        }
        if let Some(below) = below {
            own.push(below.file_name().context("a suite needs a folder")?);
            std::fs::create_dir_all(&own)?;
        }
    }
    Ok(own)
}

/// Runs one test; what it printed is kept when it fails.
fn test(tests: &Tests, name: &str, logs: &Path) -> Result<End> {
    let space = Space::new(&[])?;
    let scratch = tempfile::tempdir()?;
    let own = private(&tests.folder, scratch.path())?;
    let path = log_of(name, logs);
    let log = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut command = space.command(&tests.program);
    command.args(["-test.v", "-test.run", &format!("^{name}$")]);
    command.arg(format!("-test.timeout={}s", PATIENCE.as_secs()));
    command.arg(format!("-bin-dir={}", tests.programs.display()));
    command.current_dir(&own).env("TMPDIR", scratch.path());
    // The suites pass over what a program prints until the line that they wait for: the reason of a
    // failure would be among it.
    command.env("EXPECT_DEBUG", "1");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let status = command.status().context("cannot run the suite")?;
    space.clear()?;
    let told = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
    let passed = told.contains(&format!("--- PASS: {name} "));
    // The suite's program looks at its own goroutines at its end, a moment too early at times. That
    // says nothing about the server.
    let hasty = passed && told.contains("Too many goroutines running after all test(s).");
    let end = if hasty {
        End::Passed
    } else if !status.success() {
        End::Failed
    } else if told.contains(&format!("--- SKIP: {name} ")) {
        End::Skipped
    } else if passed {
        End::Passed
    } else {
        End::Failed
    };
    if end != End::Failed {
        std::fs::remove_file(&path)?;
    }
    Ok(end)
}

fn log_of(test: &str, logs: &Path) -> PathBuf {
    logs.join(format!("{test}.log"))
}

fn judge(
    suite: Suite,
    against: Against,
    ends: &BTreeMap<String, End>,
    logs: &Path,
    time: Duration,
) -> Outcome {
    let known: BTreeMap<&str, &str> = known(suite.name()).collect();
    let of = |end| ends.iter().filter(move |(_, own)| **own == end).map(|(name, _)| name.as_str());
    let mut problems = Vec::new();
    let mut notes = Vec::new();
    let mut excused = 0;
    for name in of(End::Failed) {
        match known.get(name) {
            Some(reason) => {
                excused += 1;
                notes.push(format!("{name} fails, as known: {reason}"));
            }
            None => {
                let log = log_of(name, logs);
                problems.push(format!(
                    "{name} fails; {} ends:\n{}",
                    log.display(),
                    platform::tail(&log, TAIL)
                ));
            }
        }
    }
    if against == Against::Dhow {
        for name in of(End::Passed).filter(|name| known.contains_key(name)) {
            notes.push(format!("{name} passes now: take it off known.txt"));
        }
    }
    if ends.is_empty() {
        problems.push("no test ran".to_owned());
    }
    Outcome {
        name: suite.name().to_owned(),
        summary: format!(
            "{} of {} tests passed, {excused} failed as known, {} failed, {} skip themselves",
            of(End::Passed).count(),
            ends.len(),
            of(End::Failed).count() - excused,
            of(End::Skipped).count(),
        ),
        time,
        problems,
        notes,
    }
}
