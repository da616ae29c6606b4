//! Watches against a real etcd: order, resumption, progress, compaction.

mod common;

use common::{Etcd, SOON, events, next, put, put_surely};
use dhow_kv::{Backend, Op, Span, Txn, WatchEvent, WatchRequest, Watcher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn from(prefix: &'static str, start_revision: i64) -> WatchRequest {
    WatchRequest { span: Span::prefix(prefix), start_revision, prev_kv: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_whole_revisions_in_order() {
    let etcd = Etcd::one();
    let store = etcd.connect().await;
    let first = put(&*store, "/a/0", "0").await;
    let mut history = store.watch(from("/a/", first)).unwrap();
    let mut now = store.watch(from("/a/", 0)).unwrap();
    let other = put(&*store, "/b/0", "0").await;
    let both = Txn { success: vec![Op::put("/a/1", "1"), Op::put("/a/2", "2")], ..Txn::default() };
    let both = store.txn(both).await.unwrap().revision;
    store.txn(Txn { success: vec![Op::delete("/a/1")], ..Txn::default() }).await.unwrap();
    assert_eq!(events(&mut *history).await.0, first);
    for watcher in [&mut history, &mut now] {
        let (revision, told) = events(&mut **watcher).await;
        assert_eq!((revision, told.len()), (both, 2));
        assert_eq!(told[1].kv.value, "2");
        let (revision, told) = events(&mut **watcher).await;
        assert_eq!(revision, both + 1);
        assert!(told[0].deleted && told[0].kv.key == "/a/1");
    }
    assert!(other < both);
    // What was there before, when asked for.
    let request = WatchRequest { prev_kv: true, ..from("/a/", both + 1) };
    let (_, told) = events(&mut *store.watch(request).unwrap()).await;
    assert_eq!(told[0].prev_kv.as_ref().unwrap().value, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_when_everything_before_it_was() {
    let etcd = Etcd::one();
    let store = etcd.connect().await;
    put(&*store, "/a/0", "0").await;
    let mut watcher = store.watch(from("/a/", 0)).unwrap();
    for round in 0..50 {
        let own = put(&*store, "/a/0", &format!("{round}")).await;
        let other = put(&*store, "/b/0", &format!("{round}")).await;
        watcher.request_progress();
        let mut told = 0;
        loop {
            match next(&mut *watcher).await {
                WatchEvent::Events { revision, .. } => told = revision,
                WatchEvent::Progress(revision) => {
                    assert_eq!(told, own, "the event comes before the progress past it");
                    assert!(revision >= other);
                    break;
                }
                WatchEvent::Compacted(_) => panic!("nothing was compacted"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_start_is_told() {
    let etcd = Etcd::one();
    let store = etcd.connect().await;
    let first = put(&*store, "/a/0", "0").await;
    let mut last = first;
    for n in 0..5 {
        last = put(&*store, "/a/0", &format!("{n}")).await;
    }
    store.compact(last, true).await.unwrap();
    let mut late = store.watch(from("/a/", first)).unwrap();
    assert_eq!(next(&mut *late).await, WatchEvent::Compacted(last));
    // From now on is never too late, even for a client that has seen nothing of all this.
    let fresh = etcd.connect().await;
    let mut now = fresh.watch(from("/a/", 0)).unwrap();
    let more = put(&*store, "/a/0", "more").await;
    assert_eq!(events(&mut *now).await.0, more);
}

/// Reads a watch to its `last` revision and checks that every revision of `/n` came once, in order.
async fn all_came(watcher: &mut dyn Watcher, from: u64, to: u64) {
    let mut expected = from;
    while expected <= to {
        let (_, told) = events(watcher).await;
        for event in told.iter() {
            let value: u64 = std::str::from_utf8(&event.kv.value).unwrap().parse().unwrap();
            assert_eq!(value, expected, "in order, without loss or repetition");
            expected += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_go_on_at_another_member() {
    let mut etcd = Etcd::cluster(3);
    let store = etcd.connect().await;
    put_surely(&*store, "/n", "0").await;
    let mut watchers: Vec<_> = (0..4).map(|_| store.watch(from("/n", 0)).unwrap()).collect();
    // A writer of its own, whose every value is written at least once and told apart by number.
    let writer = etcd.connect().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (writing, ending) = (writer.clone(), stop.clone());
    let writing = tokio::spawn(async move {
        let mut n = 0u64;
        // Not fewer on a slow machine.
        while n <= 20 || !ending.load(Ordering::Relaxed) {
            n += 1;
            // A write of unknown fate may have been carried out: only a guarded one is not doubled.
            loop {
                let guard = dhow_kv::Compare {
                    span: Span::Key("/n".into()),
                    order: dhow_kv::Order::Equal,
                    target: dhow_kv::Target::Value((n - 1).to_string().into()),
                };
                let txn = Txn {
                    compare: vec![guard],
                    success: vec![Op::put("/n", n.to_string())],
                    failure: Vec::new(),
                };
                if writing.txn(txn).await.is_ok() {
                    break;
                }
            }
        }
        n
    });
    for at in [0, 1, 2, 0] {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        etcd.kill(at);
        put_surely(&*store, "/other", "x").await;
        etcd.start(at);
        put_surely(&*etcd.connect_with(dhow_remote::Options::new([etcd.url(at)])).await, "/o", "x")
            .await;
    }
    stop.store(true, Ordering::Relaxed);
    let last = writing.await.unwrap();
    for watcher in &mut watchers {
        all_came(&mut **watcher, 1, last).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_a_restart_of_the_only_member() {
    let mut etcd = Etcd::one();
    let store = etcd.connect().await;
    put(&*store, "/n", "0").await;
    let mut watcher = store.watch(from("/n", 0)).unwrap();
    put(&*store, "/n", "1").await;
    all_came(&mut *watcher, 1, 1).await;
    etcd.kill(0);
    etcd.start(0);
    // Written by somebody else before this client is back.
    let writer = etcd.connect().await;
    for n in 2..=20u32 {
        put_surely(&*writer, "/n", &n.to_string()).await;
    }
    all_came(&mut *watcher, 2, 20).await;
    watcher.request_progress();
    let WatchEvent::Progress(_) = next(&mut *watcher).await else { panic!("progress is due") };
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_consumer_loses_nothing_and_holds_up_nobody() {
    let etcd = Etcd::one();
    let store = etcd.connect().await;
    put(&*store, "/n", "0").await;
    let mut slow = store.watch(from("/n", 0)).unwrap();
    let mut quick = store.watch(from("/n", 0)).unwrap();
    let padding = "0".repeat(200_000);
    for n in 1..=60u32 {
        put(&*store, "/n", &format!("{padding}{n}")).await;
    }
    all_came(&mut *quick, 1, 60).await;
    all_came(&mut *slow, 1, 60).await;
    drop(slow);
    put(&*store, "/n", "61").await;
    tokio::time::timeout(SOON, all_came(&mut *quick, 61, 61)).await.unwrap();
}
