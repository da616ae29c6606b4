//! Calls against a real etcd: semantics, errors, failover.

mod common;

use common::{Etcd, SOON, clock, found, get, put, put_surely};
use dhow_kv::{
    Backend, Compare, Error, Op, OpResult, Order, Range, Select, SortBy, Span, Target, Txn,
};
use dhow_remote::{ConnectError, Options, Remote};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_writes_mean_what_they_mean_in_the_embedded_store() {
    let etcd = Etcd::one();
    let store = etcd.connect().await;
    assert_ne!(store.cluster_id(), 0);
    let first = put(&*store, "/a/1", "one").await;
    assert!(store.revision() >= first);
    put(&*store, "/a/2", "two").await;
    put(&*store, "/a/1", "uno").await;

    let all = store.range(Range::all(Span::prefix("/a/"))).await.unwrap();
    assert_eq!((all.count, all.more, all.revision), (2, false, first + 2));
    assert_eq!(all.kvs[0].version, 2);
    assert_eq!(all.kvs[0].create_revision, first);
    let limited = Range { limit: 1, keys_only: true, ..Range::all(Span::prefix("")) };
    let limited = store.range(limited).await.unwrap();
    assert_eq!((limited.kvs.len(), limited.more, limited.count), (1, true, 2));
    assert!(limited.kvs[0].value.is_empty());
    let past = Range { revision: first, ..Range::all(Span::From("/a/".into())) };
    assert_eq!(store.range(past).await.unwrap().kvs[0].value, "one");
    let select = Select { sort: Some((SortBy::ModRevision, true)), ..Select::default() };
    let newest = Range { select, limit: 1, ..Range::all(Span::prefix("/a/")) };
    assert_eq!(store.range(newest).await.unwrap().kvs[0].key, "/a/1");
    let nothing = Span::Range("/b".into(), "/a".into());
    assert_eq!(store.range(Range::all(nothing)).await.unwrap().count, 0);

    let absent = Compare {
        span: Span::Key("/a/3".into()),
        order: Order::Equal,
        target: Target::CreateRevision(0),
    };
    let create = Txn {
        compare: vec![absent],
        success: vec![
            Op::put("/a/3", "three"),
            Op::Txn(Txn {
                success: vec![Op::Range(Range::all(Span::Key("/a/3".into())))],
                ..Txn::default()
            }),
        ],
        failure: vec![Op::Range(Range::all(Span::Key("/a/3".into())))],
    };
    let made = store.txn(create.clone()).await.unwrap();
    assert!(made.succeeded);
    let OpResult::Txn(within) = &made.results[1] else { panic!("a transaction") };
    assert_eq!(found(&within.results[0]), 1);
    let again = store.txn(create).await.unwrap();
    assert!(!again.succeeded);
    assert_eq!(found(&again.results[0]), 1);
    let deleted = store
        .txn(Txn {
            success: vec![Op::Delete { span: Span::prefix("/a/"), prev_kv: true }],
            ..Txn::default()
        })
        .await
        .unwrap();
    let OpResult::Delete { deleted, prev_kvs } = &deleted.results[0] else { panic!("a delete") };
    assert_eq!((*deleted, prev_kvs.len()), (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_the_embedded_stores() {
    let etcd = Etcd::one();
    let store = etcd.connect().await;
    let write = |ops: Vec<Op>| store.txn(Txn { success: ops, ..Txn::default() });
    assert_eq!(write(vec![Op::put("", "v")]).await, Err(Error::EmptyKey));
    assert_eq!(write(vec![Op::put("a", "1"), Op::put("a", "2")]).await, Err(Error::DuplicateKey));
    let many = (0..129).map(|n| Op::put(format!("{n}"), "v")).collect();
    assert_eq!(write(many).await, Err(Error::TooManyOps));
    let large = vec![b'x'; 2 << 20];
    assert_eq!(write(vec![Op::put("a", large)]).await, Err(Error::TooLarge));
    let future = Range { revision: 1 << 40, ..Range::all(Span::prefix("")) };
    assert_eq!(store.range(future).await, Err(Error::FutureRevision));
    let revision = put(&*store, "a", "1").await;
    put(&*store, "a", "2").await;
    let revision = store.compact(revision, true).await.map(|_| revision + 1).unwrap();
    store.compact(revision, false).await.unwrap();
    let past = Range { revision: revision - 1, ..Range::all(Span::prefix("")) };
    assert_eq!(store.range(past).await, Err(Error::Compacted));
    assert_eq!(store.lease_revoke(77).await, Err(Error::LeaseNotFound));
    let orphan = Op::Put {
        key: "a".into(),
        value: "v".into(),
        lease: 77,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    assert_eq!(write(vec![orphan]).await, Err(Error::LeaseNotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_granted_renewed_and_revoked() {
    let etcd = Etcd::one();
    let store = etcd.connect().await;
    let lease = store.lease_grant(0, 60).await.unwrap();
    assert_eq!(lease.granted_ttl, 60);
    assert_eq!(store.lease_grant(lease.id, 60).await, Err(Error::LeaseExists));
    let put = Op::Put {
        key: "k".into(),
        value: "v".into(),
        lease: lease.id,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    store.txn(Txn { success: vec![put], ..Txn::default() }).await.unwrap();
    assert_eq!(store.lease_keep_alive(lease.id).await.unwrap().ttl, 60);
    let told = store.lease_time_to_live(lease.id, true).await.unwrap();
    assert_eq!((told.granted_ttl, told.keys.len()), (60, 1));
    assert_eq!(store.leases().await.unwrap(), [lease.id]);
    let before = store.revision();
    assert_eq!(store.lease_revoke(lease.id).await.unwrap(), before + 1);
    assert_eq!(get(&*store, "k").await, None);
    assert_eq!(store.lease_keep_alive(lease.id).await.unwrap().ttl, 0);
    assert_eq!(store.lease_time_to_live(lease.id, false).await.unwrap().ttl, -1);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_come_through() {
    let etcd = Etcd::one();
    let store = etcd.connect().await;
    let value = "x".repeat(1 << 20);
    for n in 0..12 {
        put(&*store, &format!("/big/{n:02}"), &value).await;
    }
    let all = store.range(Range::all(Span::prefix("/big/"))).await.unwrap();
    assert_eq!(all.kvs.iter().map(|kv| kv.value.len()).sum::<usize>(), 12 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_member_is_left_for_another() {
    let mut etcd = Etcd::cluster(3);
    let store = etcd.connect().await;
    let mut last = put_surely(&*store, "k", "0").await;
    for at in 0..3 {
        etcd.kill(at);
        let written = put_surely(&*store, "k", &format!("{at}")).await;
        assert!(written > last);
        last = written;
        assert_eq!(get(&*store, "k").await, Some(format!("{at}")));
        etcd.start(at);
        // The next one must not take the quorum away.
        let alone = etcd.connect_with(Options::new([etcd.url(at)])).await;
        assert_eq!(get(&*alone, "k").await, Some(format!("{at}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_hangs_is_left_for_another() {
    let etcd = Etcd::cluster(3);
    let mut options = Options::new(etcd.urls());
    options.attempt = Duration::from_millis(500);
    options.timeout = Duration::from_secs(15);
    let store = etcd.connect_with(options).await;
    put_surely(&*store, "k", "v").await;
    etcd.freeze(0);
    let read = tokio::time::timeout(SOON, get(&*store, "k")).await;
    etcd.thaw(0);
    assert_eq!(read.expect("in time"), Some("v".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_fate_is_not_known_is_not_repeated() {
    let etcd = Etcd::one();
    let store = etcd.connect().await;
    put(&*store, "n", "0").await;
    let mut options = Options::new(etcd.urls());
    options.timeout = Duration::from_secs(1);
    let hasty = etcd.connect_with(options).await;
    // The request is on its way to a process that stands still.
    etcd.freeze(0);
    let op = vec![Op::put("n", "1")];
    let outcome = hasty.txn(Txn { success: op, ..Txn::default() }).await;
    assert_eq!(outcome, Err(Error::Timeout));
    etcd.thaw(0);
    // Carried out or not, when it goes on: but not twice.
    put_surely(&*hasty, "later", "x").await;
    let kv = store.range(Range::all(Span::Key("n".into()))).await.unwrap().kvs.remove(0);
    let expected = if kv.value == "1" { 2 } else { 1 };
    assert_eq!(kv.version, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_told_apart_from_a_lost_answer() {
    let mut etcd = Etcd::one();
    let mut options = Options::new(etcd.urls());
    options.timeout = Duration::from_secs(2);
    let store = etcd.connect_with(options.clone()).await;
    put_surely(&*store, "k", "1").await;
    etcd.kill(0);
    // The first write may have been on the broken connection; then nobody takes the next.
    let write = || store.txn(Txn { success: vec![Op::put("k", "2")], ..Txn::default() });
    let _ = write().await;
    assert!(matches!(write().await, Err(Error::Unreachable(_))));
    let refused = Remote::connect(options, clock()).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Unreachable { .. }), "{refused}");
    assert!(refused.to_string().contains("refused"), "{refused}");
    // What is back is used again, without anybody's help.
    etcd.start(0);
    put_surely(&*store, "k", "3").await;
    assert_eq!(get(&*etcd.connect().await, "k").await, Some("3".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_holds_up_nobody_who_connects() {
    let etcd = Etcd::one();
    etcd.connect().await;
    // It takes connections and never says a word.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    // Whoever waits for it waits this long, which is not to be taken for a slow machine.
    let patience = SOON * 3;
    let options = Options {
        timeout: patience,
        attempt: patience,
        connect: patience,
        keep_alive: patience,
        ..Options::new([silent, etcd.url(0)])
    };
    let began = clock().monotonic();
    let store = Remote::connect(options, clock()).await.unwrap();
    put(&*store, "k", "v").await;
    assert!(clock().monotonic() - began < SOON);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_two_clusters_are_refused() {
    let (one, other) = (Etcd::one(), Etcd::one());
    let (first, second) = (one.connect().await, other.connect().await);
    // Both have the same name and peers of different ports: the identifiers differ.
    assert_ne!(first.cluster_id(), second.cluster_id());
    let both = Options::new([one.url(0), other.url(0)]);
    // One that is slow to answer is not waited for, once the other has.
    let until = clock().monotonic() + SOON;
    let refused = loop {
        match Remote::connect(both.clone(), clock()).await {
            Err(refused) => break refused,
            Ok(_) => assert!(clock().monotonic() < until, "they are taken for one"),
        }
    };
    assert!(matches!(refused, ConnectError::TwoClusters { .. }), "{refused}");
}
