//! Measures the embedded store on a directory: latencies, throughput, memory and start.
//!
//! `cargo run --release -p dhow-server --example measure_store -- [DIR]`; DIR must not exist and is
//! removed at the end. Without it everything happens in memory.

use dhow_clock::System;
use dhow_kv::{Backend, Op, Range, Span, Txn, WatchRequest};
use dhow_server::{Options, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

fn put(key: String, value: &[u8]) -> Txn {
    Txn { success: vec![Op::put(key, value.to_vec())], ..Txn::default() }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_nanos() as f64 / 1000.0;
    println!("{what:<34} p50 {:>8.1} us   p90 {:>8.1} us   p99 {:>8.1} us", at(50), at(90), at(99));
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() == Some("--start") {
        return start(Path::new(&std::env::args().nth(2).unwrap_or_default())).await;
    }
    let home = std::env::args().nth(1).map(PathBuf::from);
    let clock = System::shared();
    let open = || -> Result<Arc<Store>, dhow_server::OpenError> {
        match &home {
            Some(home) => Store::open(home, clock.clone(), Options::default()),
            None => Ok(Store::memory(clock.clone())),
        }
    };
    let store = open()?;
    println!("{:<34} {}", "memory, empty", memory());
    let value = [b'v'; 256];

    let mut alone = Vec::new();
    for n in 0..3000 {
        let began = clock.monotonic();
        store.txn(put(format!("/registry/pods/{n:08}"), &value)).await?;
        alone.push(clock.monotonic() - began);
    }
    report("put, one at a time", alone);

    let span = Span::prefix("/registry/");
    let mut watcher = store.watch(WatchRequest { span, start_revision: 0, prev_kv: false })?;
    let mut round = Vec::new();
    for n in 0..3000 {
        let began = clock.monotonic();
        let writing = store.txn(put(format!("/registry/pods/{n:08}"), &value));
        let (written, seen) = futures::future::join(writing, watcher.next()).await;
        written?;
        seen.ok_or("the watch ended")?;
        round.push(clock.monotonic() - began);
    }
    report("put and its watch event", round);
    drop(watcher);

    let began = clock.monotonic();
    let writers = (0..64).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in (writer..100_000).step_by(64) {
                store.txn(put(format!("/registry/pods/{n:08}"), &value)).await?;
            }
            Ok::<_, dhow_kv::Error>(())
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer??;
    }
    let took = clock.monotonic() - began;
    println!("{:<34} {:.0}/s", "puts, 64 at a time, 100k keys", 100_000.0 / took.as_secs_f64());
    println!("{:<34} {}", "memory, 100k keys of 256 B", memory());

    for (what, range) in [
        ("get", Range::all(Span::Key("/registry/pods/00050000".into()))),
        ("range, limit 500, counted", Range { limit: 500, ..Range::all(Span::prefix("/reg")) }),
        ("count of 100k", Range { count_only: true, ..Range::all(Span::prefix("/reg")) }),
        ("range of 100k", Range::all(Span::prefix("/reg"))),
    ] {
        let mut times = Vec::new();
        for _ in 0..100 {
            let began = clock.monotonic();
            store.range(range.clone()).await?;
            times.push(clock.monotonic() - began);
        }
        report(what, times);
    }
    store.shutdown().await;
    drop(store);
    if let Some(home) = &home {
        // In a process of its own, because this one's allocator has a past.
        std::process::Command::new(std::env::current_exe()?).arg("--start").arg(home).status()?;
        std::fs::remove_dir_all(home)?;
    }
    Ok(())
}

async fn start(home: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let clock = System::shared();
    let began = clock.monotonic();
    let store = Store::open(home, clock.clone(), Options::default())?;
    println!("{:<34} {:.1} ms", "start", (clock.monotonic() - began).as_secs_f64() * 1000.0);
    println!("{:<34} {}", "memory, after it", memory());
    println!("{:?}", store.status());
    store.shutdown().await;
    Ok(())
}
