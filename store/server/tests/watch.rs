//! Watches are ordered, atomic per revision, resumable, and slow ones disturb nobody.

mod common;

use common::*;
use dhow_kv::{Backend, Op, Span, WatchEvent, WatchRequest};
use dhow_server::Store;
use std::sync::Arc;

fn store() -> Arc<Store> {
    Store::memory(clock())
}

#[tokio::test]
async fn events_of_one_transaction_arrive_together_in_the_order_of_the_writes() {
    let store = store();
    put(&*store, "w/b", "0").await;
    let mut watcher = watch(&*store, "w/", 0);
    let ops = vec![Op::put("w/c", "1"), Op::delete("w/b"), Op::put("x", "1"), Op::put("w/a", "1")];
    run(&*store, ops).await.unwrap();
    let (revision, events) = events(&mut *watcher).await;
    assert_eq!(revision, 3);
    let seen: Vec<_> = events.iter().map(|e| (e.kv.key.as_ref(), e.deleted)).collect();
    assert_eq!(seen, [(&b"w/c"[..], false), (&b"w/b"[..], true), (&b"w/a"[..], false)]);
    assert_eq!(events[1].prev_kv.as_ref().unwrap().value, "0");
    assert_eq!(events[1].kv.mod_revision, 3);
    assert!(events[1].kv.value.is_empty() && events[1].kv.version == 0);
}

#[tokio::test]
async fn a_watch_resumes_in_the_past_and_continues_into_the_present() {
    let store = store();
    for n in 0..300 {
        put(&*store, "w/a", &n.to_string()).await;
        put(&*store, "other", "x").await;
    }
    let mut watcher = watch(&*store, "w/", 100);
    let mut next = 100;
    for _ in 0..251 {
        let (revision, events) = events(&mut *watcher).await;
        assert_eq!(revision, next);
        assert_eq!(events[0].kv.mod_revision, revision);
        next += 2;
    }
    put(&*store, "w/a", "now").await;
    assert_eq!(events(&mut *watcher).await.0, 602);
}

#[tokio::test]
async fn a_watch_may_start_in_the_future() {
    let store = store();
    let mut watcher = watch(&*store, "", 5);
    for n in 0..5 {
        put(&*store, "a", &n.to_string()).await;
    }
    assert_eq!(events(&mut *watcher).await.0, 5);
}

#[tokio::test]
async fn a_forgotten_start_is_told_with_the_compacted_revision() {
    let store = store();
    for n in 0..5 {
        put(&*store, "a", &n.to_string()).await;
    }
    store.compact(4, true).await.unwrap();
    let mut watcher = watch(&*store, "", 3);
    assert_eq!(watcher.next().await, Some(WatchEvent::Compacted(4)));
    assert_eq!(watcher.next().await, None);
    let mut watcher = watch(&*store, "", 4);
    let (revision, seen) = events(&mut *watcher).await;
    assert_eq!((revision, seen[0].prev_kv.as_ref()), (4, None));
    assert_eq!(events(&mut *watcher).await.0, 5);
}

#[tokio::test]
async fn a_tombstone_at_the_compacted_revision_is_still_seen() {
    let store = store();
    put(&*store, "a", "1").await;
    delete(&*store, "a").await;
    store.compact(3, true).await.unwrap();
    let mut watcher = watch(&*store, "", 3);
    assert!(events(&mut *watcher).await.1[0].deleted);
}

#[tokio::test]
async fn progress_comes_after_everything_before_it() {
    let store = store();
    let mut watcher = watch(&*store, "w/", 0);
    put(&*store, "w/a", "1").await;
    put(&*store, "x", "1").await;
    watcher.request_progress();
    assert_eq!(events(&mut *watcher).await.0, 2);
    assert_eq!(watcher.next().await, Some(WatchEvent::Progress(3)));
    let mut late = watch(&*store, "w/", 2);
    late.request_progress();
    assert_eq!(events(&mut *late).await.0, 2);
    assert_eq!(late.next().await, Some(WatchEvent::Progress(3)));
}

#[tokio::test]
async fn a_slow_watcher_misses_nothing_and_holds_little() {
    let store = store();
    let mut slow = watch(&*store, "w/", 0);
    for n in 0..5000 {
        put(&*store, "w/a", &n.to_string()).await;
    }
    for n in 0..5000 {
        let (revision, events) = events(&mut *slow).await;
        assert_eq!(revision, n + 2);
        assert_eq!(events[0].kv.value, n.to_string());
    }
    put(&*store, "w/a", "again").await;
    assert_eq!(events(&mut *slow).await.0, 5002);
}

#[tokio::test]
async fn watchers_of_equal_spans_share_their_events() {
    let store = store();
    let mut first = watch(&*store, "w/", 0);
    let mut second = watch(&*store, "w/", 0);
    let request = WatchRequest { span: Span::Key("w/a".into()), start_revision: 0, prev_kv: true };
    let mut third = store.watch(request).unwrap();
    put(&*store, "w/a", "1").await;
    let (one, two) = (events(&mut *first).await.1, events(&mut *second).await.1);
    assert!(Arc::ptr_eq(&one, &two));
    assert!(Arc::ptr_eq(&one, &events(&mut *third).await.1));
    drop(first);
    put(&*store, "w/a", "2").await;
    assert_eq!(events(&mut *second).await.0, 3);
}

#[tokio::test]
async fn a_pending_watch_is_cancel_safe() {
    let store = store();
    let mut watcher = watch(&*store, "w/", 0);
    let waiting = futures::future::poll_immediate(watcher.next()).await;
    assert_eq!(waiting, None);
    put(&*store, "w/a", "1").await;
    assert_eq!(events(&mut *watcher).await.0, 2);
}
