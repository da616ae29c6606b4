//! What the kernel tells about a process.

use anyhow::{Context as _, Result};
use std::time::Duration;

/// Processor time of a process, user and system, of all its threads.
///
/// # Errors
/// When the process is gone.
pub fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name in brackets may hold blanks; what follows it starts with the third field.
    let (_, rest) = text.rsplit_once(") ").with_context(|| format!("{path} has no name"))?;
    let ticks = |nth: usize| -> Result<u64> {
        let field = rest.split(' ').nth(nth).with_context(|| format!("{path} is short"))?;
        Ok(field.parse()?)
    };
    // Fields 14 and 15 of proc(5), in ticks of 10 ms: what Linux tells on every platform.
    let ticks = ticks(11)? + ticks(12)?;
    Ok(Duration::from_millis(ticks * 10))
}

/// Resident memory of a process in KiB.
///
/// # Errors
/// When the process is gone.
pub fn rss(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let line = line.with_context(|| format!("{path} tells no VmRSS"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_about_this_process() {
        let own = std::process::id();
        assert!(rss(own).unwrap() > 100);
        assert!(cpu(own).unwrap() < Duration::from_secs(3600));
        assert!(cpu(u32::MAX).is_err());
    }
}
