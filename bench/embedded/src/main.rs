//! How long a put and the event that it causes take in the process of the store.
//!
//! It is the store as the platform has it: the writer, the log, checksums and all. Only the device is
//! left out: the directory lies in memory (`/dev/shm`), where a sync costs a system call. The store
//! finds that out and writes in the caller; on a disk that takes its time a thread waits for it, and waking
//! that and being woken by it comes on top.

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use dhow_clock::System;
use dhow_kv::{Backend as _, Op, Span, Txn, WatchEvent, WatchRequest};
use dhow_server::{Options, Store};
use std::path::PathBuf;
use std::time::Instant;

/// Bytes of a value.
const VALUE: usize = 256;

/// Put a key, wait for its event, many times; print what it took as a line of JSON.
#[derive(Debug, Parser)]
#[command(name = "bench-embedded", max_term_width = 100)]
struct Cli {
    /// How many are measured
    #[arg(long, default_value_t = 20_000)]
    puts: usize,
    /// How many come before
    #[arg(long, default_value_t = 2_000)]
    warm: usize,
    /// Where a directory for the store is made
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let told = tokio::spawn(run(cli)).await.context("the bench has ended early")??;
    println!("{told}");
    Ok(())
}

async fn run(cli: Cli) -> Result<serde_json::Value> {
    let directory = tempfile::tempdir_in(&cli.dir)
        .with_context(|| format!("cannot make a directory in {}", cli.dir.display()))?;
    let store = Store::open(&directory.path().join("store"), System::shared(), Options::default())?;
    let mut watcher = store.watch(WatchRequest {
        span: Span::From("".into()),
        start_revision: 0,
        prev_kv: false,
    })?;
    let mut round_trips = Vec::with_capacity(cli.puts);
    for nth in 0..cli.warm + cli.puts {
        let put = Op::Put {
            key: format!("bench/{:06}", nth % 1000).into(),
            value: vec![b'v'; VALUE].into(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        let txn = Txn { compare: Vec::new(), success: vec![put], failure: Vec::new() };
        let start = Instant::now();
        let revision = store.txn(txn).await?.revision;
        match watcher.next().await {
            Some(WatchEvent::Events { revision: seen, .. }) if seen == revision => {}
            other => bail!("{other:?} after the put of revision {revision}"),
        }
        if nth >= cli.warm {
            round_trips.push(start.elapsed());
        }
    }
    store.shutdown().await;
    round_trips.sort_unstable();
    let at = |share: f64| {
        let nth = (round_trips.len().saturating_sub(1)) as f64 * share;
        round_trips.get(nth as usize).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    };
    Ok(serde_json::json!({ "p50_us": at(0.5), "p99_us": at(0.99) }))
}
