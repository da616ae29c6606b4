//! Bad input by seed for everything that reads bytes. This is random mutation without a look at
//! coverage; what it finds is found again by the same seed.

use clap::Parser;
use dhow_fuzz::{Random, Target, mutate};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
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
    /// Only the input in this file
    #[arg(long, requires = "target", conflicts_with_all = ["seed", "first"])]
    input: Option<PathBuf>,
    /// Only print the names of all targets
    #[arg(long)]
    list: bool,
    /// Only write the good inputs, into a folder for each target in this one
    #[arg(long)]
    write_good: Option<PathBuf>,
}

/// Panics, wherever they are: a task's own would otherwise be caught by its runtime.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Gives an input to a target; what it does wrong.
fn give(target: &mut dyn Target, input: &[u8]) -> Option<String> {
    let taken = catch_unwind(AssertUnwindSafe(|| target.take(input)));
    let panics = PANICS.swap(0, Ordering::Relaxed);
    match taken {
        Ok(Ok(())) if panics > 0 => Some("it panics beside; see above".to_owned()),
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some("it panics; see above".to_owned()),
    }
}

/// What a seed makes of the good inputs.
fn input(good: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let one = &good[random.below(good.len())];
    let other = &good[random.below(good.len())];
    match random.below(16) {
        0 => one.clone(),
        _ => mutate(one, other, &mut random),
    }
}

fn write_good(folder: &Path, good: &[Vec<u8>]) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (n, input) in good.iter().enumerate() {
        std::fs::write(folder.join(format!("good-{n}")), input)?;
    }
    Ok(())
}

/// Does what was asked for with one target; whether it bore its input.
fn run(cli: &Cli, first: u64, name: &str) -> anyhow::Result<bool> {
    let mut target = dhow_fuzz::target(name)?;
    if let Some(folder) = &cli.write_good {
        write_good(&folder.join(name), target.good())?;
        return Ok(true);
    }
    if let Some(path) = &cli.input {
        let wrong = give(target.as_mut(), &std::fs::read(path)?);
        println!("{name}: {}", wrong.as_deref().unwrap_or("it bears it"));
        return Ok(wrong.is_none());
    }
    let good = target.good().to_vec();
    let until = Instant::now() + Duration::from_secs(cli.seconds);
    let mut seed = first;
    let wrong = loop {
        if let Some(wrong) = give(target.as_mut(), &input(&good, seed)) {
            break Some(wrong);
        }
        seed += 1;
        if cli.seed.is_some() || Instant::now() >= until {
            break None;
        }
    };
    match &wrong {
        None => println!("{name}: {} inputs from seed {first}", seed - first),
        Some(error) => {
            println!("{name}: FAILED at seed {seed}: {error}");
            println!("again: cargo xtask fuzz {name} --seed {seed}");
        }
    }
    Ok(wrong.is_none())
}

fn main() -> ExitCode {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(info);
    }));
    let cli = Cli::parse();
    if cli.list {
        dhow_fuzz::names().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let first = cli.seed.or(cli.first).unwrap_or_else(|| {
        use std::hash::{BuildHasher, Hasher};
        // `RandomState` is seeded from the operating system's entropy.
        std::hash::RandomState::new().build_hasher().finish() % 1_000_000_000
    });
    let targets = match &cli.target {
        Some(name) => vec![name.as_str()],
        None => dhow_fuzz::names().collect(),
    };
    let mut fine = true;
    for name in targets {
        match run(&cli, first, name) {
            Ok(bore) => fine &= bore,
            Err(error) => {
                eprintln!("error: {error:#}");
                return ExitCode::from(2);
            }
        }
    }
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
