//! Revisions, reads, transactions, compaction and leases behave as etcd's do.

mod common;

use common::*;
use dhow_kv::{Backend, Error, Op, OpResult, Order, Range, Span, Target, Txn};
use dhow_server::{Options, Retention, Store};
use std::sync::Arc;
use std::time::Duration;

fn store() -> Arc<Store> {
    Store::memory(clock())
}

fn all(prefix: &'static str) -> Range {
    Range::all(Span::prefix(prefix))
}

#[tokio::test]
async fn an_empty_store_is_at_revision_1_and_the_first_write_is_2() {
    let store = store();
    assert_eq!(store.revision(), 1);
    assert_eq!(delete(&*store, "nothing").await, 1);
    assert_eq!(put(&*store, "a", "1").await, 2);
    assert_eq!(store.revision(), 2);
}

#[tokio::test]
async fn a_key_counts_its_writes_and_begins_anew_after_a_delete() {
    let store = store();
    put(&*store, "a", "1").await;
    put(&*store, "a", "2").await;
    let kv = get(&*store, "a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    assert_eq!(delete(&*store, "a").await, 4);
    assert_eq!(get(&*store, "a").await, None);
    put(&*store, "a", "3").await;
    let kv = get(&*store, "a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

#[tokio::test]
async fn reads_see_the_past_count_everything_and_honour_the_limit() {
    let store = store();
    for key in ["k/a", "k/b", "k/c", "other"] {
        put(&*store, key, key).await;
    }
    delete(&*store, "k/b").await;
    let found = store.range(Range { limit: 1, ..all("k/") }).await.unwrap();
    assert_eq!((found.kvs.len(), found.more, found.count, found.revision), (1, true, 2, 6));
    let past = store.range(Range { revision: 5, limit: 2, ..all("k/") }).await.unwrap();
    assert_eq!((past.kvs.len(), past.more, past.count), (2, true, 3));
    let count = store.range(Range { count_only: true, ..all("k/") }).await.unwrap();
    assert_eq!((count.kvs.len(), count.count), (0, 2));
    let bare = store.range(Range { keys_only: true, ..all("k/") }).await.unwrap();
    assert!(bare.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 0));
    let future = store.range(Range { revision: 99, ..all("k/") }).await;
    assert_eq!(future, Err(Error::FutureRevision));
    let empty = store.range(Range::all(Span::Key("".into()))).await;
    assert_eq!(empty, Err(Error::EmptyKey));
}

#[tokio::test]
async fn long_reads_come_back_whole() {
    let store = store();
    for chunk in 0..50 {
        let puts = (0..100).map(|n| Op::put(format!("k/{chunk:02}{n:02}"), "v")).collect();
        run(&*store, puts).await.unwrap();
    }
    let found = store.range(all("k/")).await.unwrap();
    assert_eq!((found.kvs.len(), found.count, found.more), (5000, 5000, false));
    assert!(found.kvs.is_sorted_by(|a, b| a.key < b.key));
    let most = store.range(Range { limit: 3000, ..all("k/") }).await.unwrap();
    assert_eq!((most.kvs.len(), most.count, most.more), (3000, 5000, true));
}

#[tokio::test]
async fn a_transaction_is_one_revision_and_sees_its_own_writes() {
    let store = store();
    let ops = vec![
        Op::put("a", "1"),
        Op::Range(all("")),
        Op::put("b", "2"),
        Op::Range(all("")),
        Op::Delete { span: Span::prefix("zz"), prev_kv: true },
    ];
    let result = run(&*store, ops).await.unwrap();
    assert_eq!((result.revision, result.succeeded), (2, true));
    let counts: Vec<i64> = result
        .results
        .iter()
        .filter_map(|r| if let OpResult::Range(found) = r { Some(found.count) } else { None })
        .collect();
    assert_eq!(counts, [1, 2]);
    assert_eq!(get(&*store, "a").await.unwrap().mod_revision, 2);
    assert_eq!(get(&*store, "b").await.unwrap().mod_revision, 2);
}

#[tokio::test]
async fn a_missing_key_compares_as_zeros_and_its_value_never_matches() {
    let store = store();
    let holds = async |order, target| {
        let txn = Txn { compare: vec![compare("none", order, target)], ..Txn::default() };
        store.txn(txn).await.unwrap().succeeded
    };
    assert!(holds(Order::Equal, Target::Version(0)).await);
    assert!(holds(Order::Equal, Target::CreateRevision(0)).await);
    assert!(holds(Order::Less, Target::ModRevision(1)).await);
    assert!(!holds(Order::Greater, Target::ModRevision(0)).await);
    assert!(!holds(Order::NotEqual, Target::Value("x".into())).await);
}

#[tokio::test]
async fn nested_guards_look_at_the_state_before_the_transaction() {
    let store = store();
    let exists = |order| compare("a", order, Target::Version(0));
    let inner = Txn {
        compare: vec![exists(Order::Greater)],
        success: vec![Op::put("saw", "new")],
        failure: vec![Op::put("saw", "old")],
    };
    let outer = Txn {
        compare: vec![exists(Order::Equal)],
        success: vec![Op::put("a", "1"), Op::Txn(inner)],
        failure: vec![],
    };
    assert!(store.txn(outer).await.unwrap().succeeded);
    assert_eq!(value(&*store, "saw").await.unwrap(), "old");
}

#[tokio::test]
async fn a_failing_step_leaves_nothing_behind() {
    let store = store();
    put(&*store, "a", "1").await;
    let keep = Op::Put {
        key: "absent".into(),
        value: "".into(),
        lease: 0,
        prev_kv: false,
        ignore_value: true,
        ignore_lease: false,
    };
    let failed = run(&*store, vec![Op::put("a", "2"), keep]).await;
    assert_eq!(failed, Err(Error::KeyNotFound));
    // Of two things that are missing, etcd tells the lease.
    let keep = Op::Put {
        key: "absent".into(),
        value: "".into(),
        lease: 77,
        prev_kv: false,
        ignore_value: true,
        ignore_lease: false,
    };
    assert_eq!(run(&*store, vec![keep]).await, Err(Error::LeaseNotFound));
    let future = Op::Range(Range { revision: 50, ..all("a") });
    assert_eq!(run(&*store, vec![Op::put("a", "2"), future]).await, Err(Error::FutureRevision));
    assert_eq!(put_leased(&*store, "a", 77).await, Err(Error::LeaseNotFound));
    assert_eq!(value(&*store, "a").await.unwrap(), "1");
    assert_eq!(store.revision(), 2);
}

#[tokio::test]
async fn puts_can_keep_the_value_and_return_the_previous() {
    let store = store();
    put(&*store, "a", "1").await;
    let op = Op::Put {
        key: "a".into(),
        value: "".into(),
        lease: 0,
        prev_kv: true,
        ignore_value: true,
        ignore_lease: false,
    };
    let result = run(&*store, vec![op]).await.unwrap();
    let OpResult::Put { prev_kv: Some(before) } = &result.results[0] else { panic!("{result:?}") };
    assert_eq!((before.version, before.value.as_ref()), (1, &b"1"[..]));
    let kv = get(&*store, "a").await.unwrap();
    assert_eq!((kv.version, kv.value.as_ref()), (2, &b"1"[..]));
}

#[tokio::test]
async fn compaction_forgets_the_past_and_keeps_what_lives() {
    let store = store();
    put(&*store, "a", "1").await;
    put(&*store, "b", "1").await;
    put(&*store, "a", "2").await;
    delete(&*store, "b").await;
    assert_eq!(store.compact(9, true).await, Err(Error::FutureRevision));
    assert_eq!(store.compact(4, true).await, Ok(5));
    assert_eq!(store.compact(4, false).await, Err(Error::Compacted));
    assert_eq!(store.range(Range { revision: 3, ..all("") }).await, Err(Error::Compacted));
    let at = store.range(Range { revision: 4, ..all("") }).await.unwrap();
    assert_eq!((at.count, at.kvs[0].value.as_ref()), (2, &b"2"[..]));
    let kv = get(&*store, "a").await.unwrap();
    assert_eq!((kv.create_revision, kv.version), (2, 2));
}

#[tokio::test]
async fn history_is_forgotten_by_number_and_age() {
    let clock = clock();
    let retention = Retention { newest: 100, age: Duration::from_secs(300), most: 5000 };
    let options = Options { retention: Some(retention), ..Options::default() };
    let store = Store::memory_with(clock.clone(), options);
    let past = async |revision| store.range(Range { revision, ..all("") }).await;
    for n in 0..2000 {
        put(&*store, "a", &n.to_string()).await;
    }
    assert!(past(2).await.is_ok(), "young revisions stay");
    clock.advance(Duration::from_secs(311));
    put(&*store, "a", "later").await;
    assert_eq!(past(1800).await, Err(Error::Compacted));
    assert!(past(1950).await.is_ok(), "the newest stay");
    for n in 0..6000 {
        put(&*store, "a", &n.to_string()).await;
    }
    assert_eq!(past(2010).await, Err(Error::Compacted), "too many are forgotten, however young");
}

#[tokio::test]
async fn a_lease_ends_at_its_deadline_and_takes_its_keys_along() {
    let clock = clock();
    let store = Store::memory(clock.clone());
    let lease = store.lease_grant(0, 10).await.unwrap();
    assert!(lease.id > 0);
    for key in ["l/b", "l/a"] {
        put_leased(&*store, key, lease.id).await.unwrap();
    }
    put(&*store, "l/c", "stays").await;
    clock.advance(Duration::from_secs(6));
    assert_eq!(store.lease_time_to_live(lease.id, true).await.unwrap().ttl, 4);
    assert_eq!(store.lease_keep_alive(lease.id).await.unwrap().ttl, 10);
    clock.advance(Duration::from_secs(6));
    let told = store.lease_time_to_live(lease.id, true).await.unwrap();
    assert_eq!((told.ttl, told.granted_ttl), (4, 10));
    assert_eq!(told.keys, ["l/a", "l/b"]);
    let mut watcher = watch(&*store, "l/", 0);
    // The timer may not have begun its sleep yet.
    while clock.sleeping() == 0 {
        tokio::task::yield_now().await;
    }
    clock.advance(Duration::from_secs(5));
    let (revision, events) = events(&mut *watcher).await;
    assert_eq!(revision, 5);
    let gone: Vec<_> = events.iter().map(|e| (e.kv.key.as_ref(), e.deleted)).collect();
    assert_eq!(gone, [(&b"l/a"[..], true), (&b"l/b"[..], true)]);
    assert_eq!(keys(&*store, "l/").await, ["l/c"]);
    assert!(store.leases().await.unwrap().is_empty());
    assert_eq!(store.lease_keep_alive(lease.id).await.unwrap().ttl, 0);
    assert_eq!(store.lease_time_to_live(lease.id, false).await.unwrap().ttl, -1);
}

#[tokio::test]
async fn leases_are_granted_once_renewed_and_revoked() {
    let store = store();
    assert_eq!(store.lease_grant(7, 1).await.unwrap().ttl, 2, "etcd's shortest");
    assert_eq!(store.lease_grant(7, 60).await, Err(Error::LeaseExists));
    assert_eq!(store.lease_grant(8, 9_000_000_001).await, Err(Error::LeaseTtlTooLarge));
    assert_eq!(store.revision(), 1);
    put_leased(&*store, "a", 7).await.unwrap();
    put_leased(&*store, "b", 7).await.unwrap();
    put(&*store, "b", "detached").await;
    assert_eq!(store.lease_time_to_live(7, true).await.unwrap().keys, ["a"]);
    assert_eq!(store.lease_revoke(7).await, Ok(5));
    assert_eq!(store.lease_revoke(7).await, Err(Error::LeaseNotFound));
    assert_eq!(keys(&*store, "").await, ["b"]);
}

#[tokio::test]
async fn the_quota_refuses_puts_until_there_is_room() {
    let options = Options { quota_bytes: 4096, ..Options::default() };
    let store = Store::memory_with(clock(), options);
    put(&*store, "a", &"x".repeat(3000)).await;
    let refused = run(&*store, vec![Op::put("b", vec![0; 2000])]).await;
    assert_eq!(refused, Err(Error::NoSpace));
    assert_eq!(delete(&*store, "a").await, 3);
    store.compact(3, true).await.unwrap();
    assert_eq!(put(&*store, "b", &"x".repeat(2000)).await, 4);
}

#[tokio::test]
async fn after_shutdown_everything_is_refused() {
    let store = store();
    put(&*store, "a", "1").await;
    let mut watcher = watch(&*store, "", 0);
    store.shutdown().await;
    assert_eq!(watcher.next().await, None);
    assert_eq!(run(&*store, vec![Op::put("a", "2")]).await, Err(Error::Stopped));
}
