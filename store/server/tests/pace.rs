//! Who writes: the thread of the writer's, or whoever asks when the disk is quicker than waking a thread.

mod common;

use common::disk::Watched;
use common::*;
use dhow_kv::{Backend, Range, Span};
use dhow_server::{Options, Retention, Store};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SLOW: Duration = Duration::from_millis(1);

fn dir() -> &'static Path {
    Path::new("/data")
}

/// Where the syncs happened: `true` in the writer's thread.
type Places = Arc<Mutex<Vec<bool>>>;

fn in_thread() -> bool {
    std::thread::current().name() == Some("store-writer")
}

#[tokio::test]
async fn whoever_asks_writes_while_the_disk_is_quick() {
    let (clock, slow, places) =
        (Arc::<Manual>::default(), Arc::<AtomicBool>::default(), Places::default());
    let disk = {
        let (clock, slow, places) = (clock.clone(), slow.clone(), places.clone());
        Watched::new(move || {
            places.lock().unwrap().push(in_thread());
            if slow.load(Ordering::Relaxed) {
                clock.advance(SLOW);
            }
        })
    };
    let store = Store::open_on(Arc::new(disk), dir(), clock, Options::default()).unwrap();
    let fifty = async || {
        places.lock().unwrap().clear();
        for n in 0..50 {
            put(&*store, "key", &format!("{n}")).await;
        }
        std::mem::take(&mut *places.lock().unwrap())
    };
    slow.store(true, Ordering::Relaxed);
    assert_eq!(fifty().await, [true; 50], "a disk that takes its time is waited for in the thread");
    slow.store(false, Ordering::Relaxed);
    assert!(fifty().await[0], "one quick sync does not make a quick disk");
    // While the thread is at it, it takes what comes: when it lets go is chance.
    while fifty().await[49] {}
    slow.store(true, Ordering::Relaxed);
    fifty().await;
    assert_eq!(fifty().await, [true; 50], "a slow sync is enough to go back");
    assert_eq!(value(&*store, "key").await.unwrap(), "49");
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_stays_behind_when_the_disk_changes_its_pace() {
    const TASKS: usize = 8;
    const PUTS: usize = 400;
    let clock = Arc::<Manual>::default();
    let syncs = AtomicUsize::new(0);
    let both = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
    let disk = {
        let (clock, both) = (clock.clone(), both.clone());
        Watched::new(move || {
            both[usize::from(in_thread())].store(true, Ordering::Relaxed);
            // Sixty that are quick, sixty that are not.
            if syncs.fetch_add(1, Ordering::Relaxed) / 60 % 2 == 1 {
                clock.advance(SLOW);
            }
        })
    };
    let options = Options {
        segment_bytes: 4096,
        checkpoint_bytes: 6000,
        retention: Some(Retention { newest: 100, age: Duration::ZERO, most: 1000 }),
        ..Options::default()
    };
    let store =
        Store::open_on(Arc::new(disk.clone()), dir(), clock.clone(), options.clone()).unwrap();
    let tasks = (0..TASKS).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..PUTS {
                put(&*store, &format!("{task}/{}", n % 20), &format!("{n}")).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert!(
        both.iter().all(|seen| seen.load(Ordering::Relaxed)),
        "callers and the thread have written"
    );
    let all = async |store: &Store| {
        let found = store.range(Range::all(Span::From("".into()))).await.unwrap();
        (found.revision, found.kvs)
    };
    let before = all(&store).await;
    assert_eq!(before.0, 1 + (TASKS * PUTS) as i64);
    store.shutdown().await;
    let again = Store::open_on(Arc::new(disk), dir(), clock, options).unwrap();
    assert_eq!(all(&again).await, before);
    again.shutdown().await;
}
