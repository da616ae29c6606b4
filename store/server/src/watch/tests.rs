//! Runs: what a batch of the writer's becomes on its way to watchers.

use super::*;
use crate::Store;
use dhow_clock::System;
use dhow_kv::{Op, Txn};
use dhow_mvcc::Command;

/// A store whose revisions are published when the test says so.
fn store() -> Arc<Store> {
    Store::memory(System::shared())
}

fn watch(store: &Store, span: Span, start_revision: i64) -> StoreWatcher {
    let request = WatchRequest { span, start_revision, prev_kv: false };
    StoreWatcher::new(store.shared.clone(), request)
}

/// Writes each key in a revision of its own, and publishes all at once.
fn publish(store: &Store, puts: &[(&'static str, usize)]) {
    let shared = &store.shared;
    for (key, size) in puts {
        let put = Op::Put {
            key: Bytes::from_static(key.as_bytes()),
            value: vec![b'v'; *size].into(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        let txn = Txn { compare: Vec::new(), success: vec![put], failure: Vec::new() };
        shared.write().machine.mvcc.apply(&Command::Txn(txn)).unwrap();
    }
    let state = shared.read();
    shared.hub.publish(&state.machine.mvcc, state.machine.mvcc.revision());
}

/// What is there: each item's revision, and its events' revisions.
fn taken(watcher: &mut StoreWatcher, runs: bool) -> Vec<(i64, Vec<i64>)> {
    let mut context = Context::from_waker(Waker::noop());
    let mut all = Vec::new();
    while let Poll::Ready(item) = watcher.poll(&mut context, runs) {
        match item {
            Some(WatchEvent::Events { revision, events }) => {
                all.push((revision, events.iter().map(|e| e.kv.mod_revision).collect()));
            }
            other => panic!("{other:?}"),
        }
    }
    all
}

#[test]
fn a_batch_is_one_run_that_watchers_of_equal_spans_share() {
    let store = store();
    let mut watchers = [0, 1].map(|_| watch(&store, Span::From("".into()), 0));
    publish(&store, &[("a", 1), ("b", 1), ("a", 1)]);
    let mut context = Context::from_waker(Waker::noop());
    let mut run = |watcher: &mut StoreWatcher| match watcher.poll_run(&mut context) {
        Poll::Ready(Some(WatchEvent::Events { revision: 4, events })) => events,
        other => panic!("{other:?}"),
    };
    let [first, second] = &mut watchers;
    let (first, second) = (run(first), run(second));
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(first.iter().map(|e| e.kv.mod_revision).collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn whoever_takes_single_revisions_gets_them_one_by_one() {
    let store = store();
    let mut watcher = watch(&store, Span::From("".into()), 0);
    publish(&store, &[("a", 1), ("b", 1)]);
    publish(&store, &[("c", 1)]);
    assert_eq!(taken(&mut watcher, false), [(2, vec![2]), (3, vec![3]), (4, vec![4])]);
}

#[test]
fn spans_and_keys_see_their_part_of_a_batch_in_order() {
    let store = store();
    let mut span = watch(&store, Span::Range("b".into(), "d".into()), 0);
    let mut key = watch(&store, Span::Key("a".into()), 0);
    let mut other = watch(&store, Span::Key("x".into()), 0);
    publish(&store, &[("a", 1), ("b", 1), ("a", 1), ("c", 1), ("d", 1)]);
    assert_eq!(taken(&mut span, true), [(5, vec![3, 5])]);
    assert_eq!(taken(&mut key, true), [(4, vec![2, 4])]);
    assert_eq!(taken(&mut other, true), []);
}

#[test]
fn a_watch_that_begins_within_a_batch_does_not_see_what_was_before() {
    let store = store();
    let mut watcher = watch(&store, Span::From("".into()), 3);
    publish(&store, &[("a", 1), ("b", 1), ("c", 1)]);
    assert_eq!(taken(&mut watcher, true), [(4, vec![3, 4])]);
}

#[test]
fn runs_end_when_they_are_long_and_what_does_not_fit_comes_from_the_history() {
    let store = store();
    let mut watcher = watch(&store, Span::From("".into()), 0);
    publish(&store, &[("a", RUN_BYTES), ("b", 1), ("c", 1)]);
    assert_eq!(taken(&mut watcher, true), [(2, vec![2]), (4, vec![3, 4])]);
    let half = QUEUE_BYTES / 2;
    publish(&store, &[("a", half), ("b", half), ("c", 1)]);
    publish(&store, &[("d", 1)]);
    let revisions: Vec<i64> =
        taken(&mut watcher, true).into_iter().flat_map(|(_, revisions)| revisions).collect();
    assert_eq!(revisions, [5, 6, 7, 8]);
}
