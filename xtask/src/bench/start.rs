//! `bench start`: from nothing to the first Ready pod, with the image present.

use super::report::{Report, Series};
use super::{Bench, pod, ready};
use crate::workspace;
use anyhow::Result;
use std::time::Instant;

/// Runs it.
///
/// # Errors
/// When the platform does not start or the pod does not become ready.
pub fn run(rounds: u32) -> Result<()> {
    let mut report = Report::new("start");
    let mut up = Series::new("dhow up --detach returns", "s");
    let mut first = Series::new("first pod Ready", "s");
    for _ in 0..rounds {
        let bench = Bench::new()?;
        bench.image(
            "bench/shop",
            &workspace::release("shop"),
            "/shop",
            "ENTRYPOINT [\"/shop\", \"catalog\"]",
        )?;
        let start = Instant::now();
        bench.platform.up()?;
        up.push(start.elapsed().as_secs_f64());
        bench.platform.apply(&pod("first", "bench/shop"))?;
        ready(&bench.platform, "first")?;
        first.push(start.elapsed().as_secs_f64());
    }
    let median = first.median();
    report.add(up);
    report.add(first);
    report.verdict("first pod Ready, median in s", median, "1 s or less", median <= 1.0);
    // Neither runs here: both need images from a registry. The figures were measured elsewhere.
    report.note("REFERENCE, not of this run: k3d 19.9 s, kind 33 s");
    report.finish()
}
