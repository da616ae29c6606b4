//! The named faults of the log: the store refuses, never lies, and a restart recovers.
//!
//! Fault points belong to the process, so these tests take turns.

mod common;

use common::*;
use dhow_clock::System;
use dhow_fault::Effect;
use dhow_kv::{Backend, Error, Op};
use dhow_server::{Options, Store};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

static TURN: Mutex<()> = Mutex::const_new(());
const MINUTE: Duration = Duration::from_secs(60);

fn open(home: &Path, checkpoint_bytes: u64) -> Arc<Store> {
    let options = Options { checkpoint_bytes, segment_bytes: 20_000, ..Options::default() };
    Store::open(home, System::shared(), options).unwrap()
}

async fn a_failing_disk_stops_writes_for_good(point: &str) {
    let _turn = TURN.lock().await;
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path(), 1 << 20);
    put(&*store, "a", "safe").await;
    let mut watcher = watch(&*store, "", 0);
    dhow_fault::arm(point, Effect::Fail("no luck".into()), 0, 1, MINUTE);
    let error = run(&*store, vec![Op::put("a", "lost")]).await.unwrap_err();
    let Error::Storage(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("no luck") && text.contains("log-"), "{text}");
    dhow_fault::disarm(point);
    // The disk is well again, but nobody knows what it holds: not even a later write may pass.
    assert_eq!(run(&*store, vec![Op::put("b", "later")]).await, Err(error.clone()));
    assert_eq!(store.lease_grant(1, 60).await.unwrap_err(), error);
    assert_eq!(store.compact(2, true).await, Err(error));
    assert_eq!(value(&*store, "a").await.unwrap(), "safe");
    assert_eq!(store.revision(), 2);
    assert_eq!(futures::future::poll_immediate(watcher.next()).await, None);
    store.shutdown().await;
    let store = open(home.path(), 1 << 20);
    let found = value(&*store, "a").await.unwrap();
    assert!(found == "safe" || found == "lost", "unacknowledged may be either");
    assert_eq!(get(&*store, "b").await, None);
    let next = store.revision() + 1;
    assert_eq!(put(&*store, "b", "works").await, next);
}

#[tokio::test]
async fn a_failed_sync_stops_writes_for_good() {
    a_failing_disk_stops_writes_for_good("log::sync").await;
}

#[tokio::test]
async fn a_failed_append_stops_writes_for_good() {
    a_failing_disk_stops_writes_for_good("log::append").await;
}

#[tokio::test]
async fn a_failed_checkpoint_costs_only_a_longer_log() {
    let _turn = TURN.lock().await;
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path(), 10_000);
    dhow_fault::arm("log::checkpoint", Effect::Fail("no luck".into()), 0, u32::MAX, MINUTE);
    for n in 0..300 {
        put(&*store, &format!("k{}", n % 50), &"x".repeat(200)).await;
    }
    // Not before: one that is being written might find the disk well again.
    store.shutdown().await;
    dhow_fault::disarm("log::checkpoint");
    let names = |prefix: &str| {
        let names = std::fs::read_dir(home.path()).unwrap();
        let names = names.map(|name| name.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(prefix)).count()
    };
    assert_eq!(names("checkpoint-"), 0);
    let store = open(home.path(), 10_000);
    assert_eq!(store.revision(), 301);
    put(&*store, "a", "1").await;
    store.shutdown().await;
    drop(store);
    let store = open(home.path(), 10_000);
    assert_eq!((store.revision(), keys(&*store, "k").await.len()), (302, 50));
}
