//! `bench idle`: memory and processor time of all dhow processes while one pod rests, over 60 s.

use super::report::{Report, Series};
use super::{Bench, pod, ready};
use crate::workspace;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long all rounds take together.
const TOTAL: Duration = Duration::from_secs(60);

/// Runs it.
///
/// # Errors
/// When the platform does not start.
pub fn run(rounds: u32) -> Result<()> {
    let bench = Bench::new()?;
    bench.image(
        "bench/shop",
        &workspace::release("shop"),
        "/shop",
        "ENTRYPOINT [\"/shop\", \"catalog\"]",
    )?;
    bench.platform.up()?;
    bench.platform.apply(&pod("resting", "bench/shop"))?;
    ready(&bench.platform, "resting")?;
    // What starting left behind (written-back pages, closed connections) is not rest.
    std::thread::sleep(Duration::from_secs(5));

    let mut report = Report::new("idle");
    let mut memory = Series::new("RSS of all dhow processes", "MiB");
    let mut share = Series::new("their share of one core", "%");
    let window = TOTAL / rounds;
    let whole = Instant::now();
    let (program, data) = (&bench.platform.program, &bench.platform.data);
    let count = processes(program, data)?.len();
    let mut before = used(program, data)?;
    let mut sum = Duration::ZERO;
    for _ in 0..rounds {
        let start = Instant::now();
        std::thread::sleep(window);
        let now = used(program, data)?;
        let spent = between(&before, &now);
        share.push(percent(spent, start.elapsed()));
        sum += spent;
        before = now;
        memory.push(rss(program, data)?);
    }
    let (resident, busy) = (memory.median(), percent(sum, whole.elapsed()));
    report.add(memory);
    report.add(share);
    report.verdict("RSS, median in MiB", resident, "60 MiB or less", resident <= 60.0);
    report.verdict("processor, all 60 s in %", busy, "0.5 % of a core or less", busy <= 0.5);
    report.note(format!("{:.2} ms of processor time in all", sum.as_secs_f64() * 1e3));
    report.note(format!("{count} dhow processes, the launcher included"));
    report.note("REFERENCE, not of this run: k3s 500 MB and more, 5 to 25 %");
    report.finish()
}

fn percent(used: Duration, time: Duration) -> f64 {
    used.as_secs_f64() / time.as_secs_f64() * 100.0
}

/// The `/proc` folders of the processes that run this program for this data directory.
pub fn processes(program: &Path, data: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        let Ok(exe) = std::fs::read_link(folder.join("exe")) else { continue };
        let command = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        let environment = std::fs::read(folder.join("environ")).unwrap_or_default();
        let data = data.as_os_str().as_encoded_bytes();
        let ours = [command, environment].iter().any(|text| contains(text, data));
        // By the start of the path: that of a program that was rebuilt meanwhile has an ending.
        let dhow = exe.to_string_lossy().starts_with(&*program.to_string_lossy());
        if ours && dhow {
            found.push(folder);
        }
    }
    if found.is_empty() {
        bail!("no process runs {} for {}", program.display(), data.display());
    }
    Ok(found)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Processor time that each thread has used so far, in nanoseconds. The scheduler's own account:
/// clock ticks would miss what rests for most of one.
fn used(program: &Path, data: &Path) -> Result<BTreeMap<String, u64>> {
    let mut threads = BTreeMap::new();
    for folder in processes(program, data)? {
        for task in std::fs::read_dir(folder.join("task"))? {
            let task = task?;
            // A thread may end while we look at it.
            let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) else { continue };
            let time = text.split(' ').next().unwrap_or_default();
            let time = time.parse().context("/proc/PID/task/TID/schedstat is not understood")?;
            threads.insert(task.file_name().to_string_lossy().into_owned(), time);
        }
    }
    Ok(threads)
}

/// What threads used between two looks; the last bit of those that ended in between is lost.
fn between(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Duration {
    let nanoseconds = after
        .iter()
        .map(|(thread, time)| time.saturating_sub(before.get(thread).copied().unwrap_or_default()))
        .sum();
    Duration::from_nanos(nanoseconds)
}

/// Resident memory in MiB. Pages that processes share count once for each.
fn rss(program: &Path, data: &Path) -> Result<f64> {
    processes(program, data)?.iter().map(|folder| resident(folder)).sum()
}

/// The RSS of a process in MiB, by its `/proc` folder.
pub fn resident(folder: &Path) -> Result<f64> {
    let text = std::fs::read_to_string(folder.join("status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let line = line.context("/proc/PID/status tells no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
