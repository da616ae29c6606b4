//! `simulate`: runs simulations by seed and prints what came of them.

use clap::Parser;
use dhow_sim::nemesis::Tally;
use dhow_sim::run::{Plan, Report, run};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Simulations of the store in virtual time.
#[derive(Debug, Parser)]
#[command(name = "simulate", max_term_width = 100)]
struct Cli {
    /// The seed
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// A range of seeds, A..B (B is not among them)
    #[arg(long)]
    seeds: Option<String>,
    /// So many new seeds besides, which are printed
    #[arg(long, default_value_t = 0)]
    fresh: u64,
    /// How long trouble goes on, in hours of virtual time
    #[arg(long, default_value_t = 0.1)]
    hours: f64,
    /// How many members; the seed decides otherwise
    #[arg(long, default_value_t = 0)]
    members: usize,
    /// Begin no new simulation after so many seconds of real time
    #[arg(long)]
    budget: Option<u64>,
    /// Run each seed twice and compare the digests
    #[arg(long)]
    twice: bool,
    /// Write the history to this file, and that of the second run beside it
    #[arg(long)]
    dump: Option<String>,
    /// Print the store's log lines
    #[arg(long)]
    log: bool,
}

/// Panics that the runtime has caught: none is a part of any plan.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn seeds(cli: &Cli) -> Result<Vec<u64>, String> {
    let mut seeds = Vec::new();
    if let Some(range) = &cli.seeds {
        let wrong = || format!("--seeds takes A..B, not {range}");
        let (from, to) = range.split_once("..").ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
        seeds.extend(number(from)?..number(to)?);
    }
    seeds.extend(cli.seed);
    if cli.fresh > 0 {
        use std::hash::{BuildHasher, Hasher};
        // `RandomState` is seeded from the operating system's entropy.
        let first = std::hash::RandomState::new().build_hasher().finish() % 1_000_000_000;
        seeds.extend(first..first + cli.fresh);
    }
    if seeds.is_empty() {
        seeds.push(1);
    }
    Ok(seeds)
}

fn tell(report: &Report, real: Duration) {
    let Report { seed, members, digest, operations, unknown, watches, revision, crashes, .. } =
        report;
    println!(
        "seed {seed}: {members} members, {operations} requests ({unknown} open), {watches} watches, revision {revision}, \
         {crashes} crashes, {} messages, digest {digest:016x}, {:.1} s{}",
        report.messages.1,
        real.as_secs_f64(),
        if report.violation.is_some() { ": FAILED" } else { "" },
    );
    if let Some(violation) = &report.violation {
        println!("  {violation}");
    }
}

/// What went wrong and what was done, and how often.
fn list(troubles: &Tally) -> String {
    let troubles: Vec<String> =
        troubles.iter().map(|(what, times)| format!("{what} {times}")).collect();
    troubles.join(", ")
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.log {
        tracing_subscriber::fmt().with_env_filter("debug").without_time().init();
    }
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(info);
    }));
    let seeds = match seeds(&cli) {
        Ok(seeds) => seeds,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let time = Duration::from_secs_f64(cli.hours.max(0.0) * 3600.0);
    let began = Instant::now();
    let (mut done, mut failed, mut troubles) = (0, Vec::new(), Tally::new());
    for seed in &seeds {
        if cli.budget.is_some_and(|budget| began.elapsed().as_secs() >= budget) {
            break;
        }
        let plan = Plan { seed: *seed, time, members: cli.members, dump: cli.dump.as_deref() };
        let start = Instant::now();
        let report = run(plan);
        tell(&report, start.elapsed());
        for (what, times) in &report.troubles {
            *troubles.entry(*what).or_default() += times;
        }
        let mut fine = report.violation.is_none();
        if cli.twice {
            let dump = cli.dump.as_ref().map(|path| format!("{path}.again"));
            let again = run(Plan { dump: dump.as_deref(), ..plan });
            if again.digest != report.digest {
                println!("  the second run's digest is {:016x}: not the same run", again.digest);
                fine = false;
            }
        }
        if PANICS.swap(0, Ordering::Relaxed) > 0 {
            println!("  something panicked; see above");
            fine = false;
        }
        done += 1;
        if !fine {
            failed.push(*seed);
        }
    }
    println!(
        "{done} of {} simulations of {} h in {:.0} s; {} failed",
        seeds.len(),
        cli.hours,
        began.elapsed().as_secs_f64(),
        failed.len()
    );
    println!("{}", list(&troubles));
    for seed in &failed {
        println!("again: cargo xtask simulate store --seed {seed} --hours {}", cli.hours);
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
