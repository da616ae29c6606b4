//! `bench idle`: memory and processor time of all dhow processes while one pod rests, over 60 s.

use super::report::{Report, Series};
use super::{Bench, pod, ready};
use crate::workspace;
use anyhow::{Context as _, Result, bail};
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
    let (first, count) = ticks(&bench.platform.program, &bench.platform.data)?;
    let mut before = first;
    for _ in 0..rounds {
        let start = Instant::now();
        std::thread::sleep(window);
        let (now, _) = ticks(&bench.platform.program, &bench.platform.data)?;
        share.push(percent(now - before, start.elapsed()));
        before = now;
        memory.push(rss(&bench.platform.program, &bench.platform.data)?);
    }
    let (resident, busy) = (memory.median(), percent(before - first, whole.elapsed()));
    report.add(memory);
    report.add(share);
    report.verdict("RSS, median in MiB", resident, "60 MiB or less", resident <= 60.0);
    report.verdict("processor, all 60 s in %", busy, "0.5 % of a core or less", busy <= 0.5);
    report.note(format!("{count} dhow processes, the launcher included"));
    report.note("REFERENCE, not of this run: k3s 500 MB and more, 5 to 25 %");
    report.finish()
}

fn percent(ticks: u64, time: Duration) -> f64 {
    let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    seconds / time.as_secs_f64() * 100.0
}

/// The `/proc` folders of the processes that run this program for this data directory.
fn processes(program: &Path, data: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        let Ok(exe) = std::fs::read_link(folder.join("exe")) else { continue };
        let command = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        let environment = std::fs::read(folder.join("environ")).unwrap_or_default();
        let data = data.as_os_str().as_encoded_bytes();
        let ours = [command, environment].iter().any(|text| contains(text, data));
        // A program that was rebuilt meanwhile reads `... (deleted)`; the launcher runs from memory.
        let name = exe.to_string_lossy().into_owned();
        let dhow = name.starts_with(&*program.to_string_lossy()) || name.contains("dhow");
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

/// Processor time used so far in clock ticks, user and system, and the number of processes.
fn ticks(program: &Path, data: &Path) -> Result<(u64, usize)> {
    let processes = processes(program, data)?;
    let mut sum = 0;
    for folder in &processes {
        let text = std::fs::read_to_string(folder.join("stat"))?;
        // proc_pid_stat(5): the name in brackets may hold anything, so count from its end.
        let (_, rest) = text.rsplit_once(')').context("/proc/PID/stat is not understood")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        for field in [11, 12] {
            sum += fields.get(field).context("/proc/PID/stat is cut off")?.parse::<u64>()?;
        }
    }
    Ok((sum, processes.len()))
}

/// Resident memory in MiB. Pages that processes share count once for each.
fn rss(program: &Path, data: &Path) -> Result<f64> {
    let mut kib = 0;
    for folder in processes(program, data)? {
        let text = std::fs::read_to_string(folder.join("status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let line = line.context("/proc/PID/status tells no VmRSS")?;
        kib += line.trim().trim_end_matches(" kB").parse::<u64>()?;
    }
    Ok(kib as f64 / 1024.0)
}
