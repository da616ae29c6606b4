//! Watches are ordered, atomic per revision, resumable, and slow ones disturb nobody.

mod common;

use common::*;
use dhow_clock::System;
use dhow_clock::disk::Memory;
use dhow_kv::{Backend, Op, Range, Span, Txn, WatchEvent, WatchRequest};
use dhow_server::{Options, Store};
use std::collections::BTreeMap;
use std::path::Path;
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
async fn a_key_that_is_written_twice_is_told_once_with_both_events() {
    let store = store();
    let request = WatchRequest { span: Span::Key("a".into()), start_revision: 0, prev_kv: false };
    let mut watcher = store.watch(request).unwrap();
    let within = |op| Op::Txn(Txn { success: vec![op], ..Txn::default() });
    run(&*store, vec![within(Op::put("a", "1")), Op::put("b", "1"), within(Op::delete("a"))])
        .await
        .unwrap();
    put(&*store, "a", "2").await;
    let (revision, told) = events(&mut *watcher).await;
    assert_eq!((revision, told.len()), (2, 2));
    assert_eq!((told[0].deleted, told[1].deleted), (false, true));
    let (revision, told) = events(&mut *watcher).await;
    assert_eq!((revision, told.len()), (3, 1));
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

/// Follows a watch up to `last` and returns every event as (revision, key, value if not deleted).
async fn follow(
    store: Arc<Store>,
    request: WatchRequest,
    last: i64,
    slow: bool,
) -> Vec<(i64, bytes::Bytes, Option<bytes::Bytes>)> {
    let mut watcher = store.watch(request).unwrap();
    let mut seen = Vec::new();
    let mut before = 0;
    loop {
        match watcher.next().await.unwrap() {
            WatchEvent::Events { revision, events } => {
                assert!(revision > before, "{revision} after {before}");
                before = revision;
                for event in events.iter() {
                    assert_eq!(event.kv.mod_revision, revision);
                    let value = (!event.deleted).then(|| event.kv.value.clone());
                    seen.push((revision, event.kv.key.clone(), value));
                }
                if slow && revision % 50 == 0 {
                    for _ in 0..100 {
                        tokio::task::yield_now().await;
                    }
                }
                watcher.request_progress();
            }
            WatchEvent::Progress(revision) => {
                assert!(revision >= before);
                before = revision;
                if revision >= last {
                    return seen;
                }
                tokio::task::yield_now().await;
                watcher.request_progress();
            }
            WatchEvent::Compacted(revision) => panic!("compacted at {revision}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_and_watchers_agree_on_one_history() {
    const WRITERS: i64 = 8;
    const WRITES: i64 = 500;
    let last = 1 + WRITERS * WRITES;
    let options =
        Options { segment_bytes: 64 << 10, checkpoint_bytes: 100_000, ..Options::default() };
    let store =
        Store::open_on(Arc::new(Memory::new()), Path::new("/data"), System::shared(), options)
            .unwrap();
    let spans = [Span::From("".into()), Span::prefix("k3"), Span::Key("k5".into())];
    let mut watchers = Vec::new();
    for n in 0..24 {
        let span = spans[n % 3].clone();
        let request = WatchRequest { span, start_revision: 2, prev_kv: n % 2 == 0 };
        watchers.push((n % 3, tokio::spawn(follow(store.clone(), request, last, n % 4 == 0))));
    }
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..WRITES {
                    // A put and a delete of another key, so that every write has its revision.
                    let ops = vec![
                        Op::put(format!("k{}", n % 10), format!("{writer} {n}")),
                        Op::delete(format!("k{}", (n + 5) % 10)),
                    ];
                    run(&*store, ops).await.unwrap();
                }
            })
        })
        .collect();
    let reader = {
        let store = store.clone();
        tokio::spawn(async move {
            // Whatever a read sees is a revision that the store says it has.
            while store.revision() < last {
                let found = store.range(Range::all(Span::From("".into()))).await.unwrap();
                assert!(found.kvs.iter().all(|kv| kv.mod_revision <= found.revision));
                assert_eq!(found.count as usize, found.kvs.len());
                let again = Range { revision: found.revision, ..Range::all(Span::From("".into())) };
                assert_eq!(store.range(again).await.unwrap().kvs, found.kvs);
                tokio::task::yield_now().await;
            }
        })
    };
    for writer in writers {
        writer.await.unwrap();
    }
    reader.await.unwrap();
    assert_eq!(store.revision(), last);
    let mut histories: BTreeMap<usize, Vec<_>> = BTreeMap::new();
    for (span, watcher) in watchers {
        let seen = watcher.await.unwrap();
        let first = histories.entry(span).or_insert_with(|| seen.clone());
        assert_eq!(*first, seen);
    }
    // The watches of parts saw what the watch of everything saw of them.
    for (n, span) in spans.iter().enumerate() {
        let part: Vec<_> =
            histories[&0].iter().filter(|(_, key, _)| span.contains(key)).cloned().collect();
        assert_eq!(histories[&n], part);
    }
    // Replaying the history gives the state.
    let mut state = BTreeMap::new();
    for (_, key, value) in &histories[&0] {
        match value {
            Some(value) => state.insert(key.clone(), value.clone()),
            None => state.remove(key),
        };
    }
    let found = store.range(Range::all(Span::From("".into()))).await.unwrap();
    let found: BTreeMap<_, _> = found.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
    assert_eq!(found, state);
    store.shutdown().await;
}
