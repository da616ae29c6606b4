//! `bench embedded`: the store inside a process, without the device.

use super::report::{Report, Series};
use crate::{dist, sh};
use anyhow::{Context as _, Result};
use std::process::Command;

/// The most that the median of a put and its event may take, in microseconds.
const BAR: f64 = 20.0;

/// Runs it.
///
/// # Errors
/// When it does not build, or an event is wrong.
pub fn run(rounds: u32) -> Result<()> {
    let program = dist::build(&["bench-embedded"])?;
    let mut report = Report::new("embedded");
    let mut p50 = Series::new("put and its event: p50", "us");
    let mut p99 = Series::new("put and its event: p99", "us");
    for _ in 0..rounds {
        let told: serde_json::Value =
            serde_json::from_str(&sh::output(&mut Command::new(&program))?)?;
        for (series, field) in [(&mut p50, "p50_us"), (&mut p99, "p99_us")] {
            let value = told[field].as_f64();
            series.push(value.with_context(|| format!("the bench tells no {field}"))?);
        }
    }
    let median = p50.median();
    report.verdict("put and its event, us", median, &format!("{BAR} or less"), median <= BAR);
    report.add(p50);
    report.add(p99);
    report.note("one put at a time, values of 256 B; the log lies in /dev/shm");
    report.finish()
}
