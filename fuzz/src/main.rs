//! Bad input by seed for everything that reads bytes: decoders, recovery, the etcd door.
//!
//! Each target makes good bytes, changes them as a seed says, and gives them to the code that must
//! bear them: it may refuse them, it must not panic, hang or lie. This is random mutation without
//! a look at coverage; what it finds is found again by the same seed.

mod door;
mod frames;
mod mutate;
mod targets;

use clap::Parser;
use mutate::Random;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bad input by seed for everything that reads bytes.
#[derive(Debug, Parser)]
#[command(name = "fuzz", max_term_width = 100)]
struct Cli {
    /// Which target; all without it
    target: Option<String>,
    /// So many seconds for each target
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Only this seed
    #[arg(long)]
    seed: Option<u64>,
    /// The first seed; a new one otherwise, which is printed
    #[arg(long)]
    first: Option<u64>,
}

/// Something that takes bytes.
pub trait Target {
    /// Its name.
    fn name(&self) -> &'static str;
    /// Gives it what the seed makes.
    ///
    /// # Errors
    /// What it did that it must not.
    fn run(&mut self, random: &mut Random) -> Result<(), String>;
}

/// Panics, wherever they are: a task's own would otherwise be caught by its runtime.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(info);
    }));
    let cli = Cli::parse();
    let first = cli.seed.or(cli.first).unwrap_or_else(|| {
        use std::hash::{BuildHasher, Hasher};
        // `RandomState` is seeded from the operating system's entropy.
        std::hash::RandomState::new().build_hasher().finish() % 1_000_000_000
    });
    let mut failed = 0;
    let mut known = Vec::new();
    let targets = match targets::all() {
        Ok(targets) => targets,
        Err(error) => {
            eprintln!("error: no good bytes to begin with: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    for mut target in targets {
        known.push(target.name());
        if cli.target.as_ref().is_some_and(|wanted| wanted != target.name()) {
            continue;
        }
        let until = Instant::now() + Duration::from_secs(cli.seconds);
        let mut seed = first;
        let mut wrong = None;
        while wrong.is_none() && Instant::now() < until {
            let mut random = Random::new(seed);
            let done = catch_unwind(AssertUnwindSafe(|| target.run(&mut random)));
            wrong = match done {
                Ok(Ok(())) if PANICS.swap(0, Ordering::Relaxed) > 0 => {
                    Some("it panics beside; see above".to_owned())
                }
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(_) => Some("it panics; see above".to_owned()),
            };
            if cli.seed.is_some() {
                seed += 1;
                break;
            }
            seed += u64::from(wrong.is_none());
        }
        match wrong {
            None => println!("{}: {} inputs from seed {first}", target.name(), seed - first),
            Some(error) => {
                failed += 1;
                println!("{}: FAILED at seed {seed}: {error}", target.name());
                println!("again: cargo xtask fuzz {} --seed {seed}", target.name());
            }
        }
    }
    if let Some(wanted) = &cli.target
        && !known.contains(&wanted.as_str())
    {
        eprintln!("error: no target {wanted}; there are {}", known.join(", "));
        return ExitCode::from(2);
    }
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
