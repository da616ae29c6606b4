//! Members that do not have the same find out, and stop what could make it worse.

mod common;

use bytes::Bytes;
use common::net::Nodes;
use dhow_kv::admin::{Admin, Alarm, AlarmKind};
use dhow_kv::{Backend, Error, Op, Range, Span, Txn};
use dhow_server::{Options, Store};
use std::sync::Arc;

fn options() -> Options {
    Options { retention: None, ..Options::default() }
}

async fn put(store: &Store, key: &str, value: &str) -> Result<i64, Error> {
    let put = Op::put(Bytes::copy_from_slice(key.as_bytes()), value.to_owned());
    let txn = Txn { success: vec![put], ..Txn::default() };
    store.txn(txn).await.map(|result| result.revision)
}

/// A snapshot of two keys, one of them with this value.
async fn snapshot(value: &str) -> Vec<u8> {
    let store = Store::memory_with(dhow_clock::System::shared(), options());
    put(&store, "a", "same").await.unwrap();
    put(&store, "b", value).await.unwrap();
    let mut reader = store.snapshot().await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    bytes
}

/// Three members, of which one has something else.
async fn with_an_odd_one() -> (Nodes, u64) {
    let (right, wrong) = (snapshot("right").await, snapshot("wrong").await);
    let nodes = Nodes::restored(&[right.clone(), wrong, right], &options());
    let odd = nodes.nodes[1].id;
    nodes.leader().await;
    (nodes, odd)
}

fn alarms(store: &Arc<Store>) -> Vec<Alarm> {
    Admin::status(&**store).alarms
}

#[tokio::test(start_paused = true)]
async fn members_that_have_the_same_are_left_alone() {
    let nodes = Nodes::start(3, &options());
    let leader = nodes.leader().await;
    for n in 0..10 {
        put(nodes.store(leader), "k", &n.to_string()).await.unwrap();
    }
    nodes.store(leader).compact(5, false).await.unwrap();
    for at in 0..3 {
        let store = nodes.store(at);
        store.check_initially().await.unwrap();
        store.check_newest().await.unwrap();
        store.check_compacted().await.unwrap();
        assert_eq!(alarms(store), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_compaction_shows_who_differs_from_most_and_all_is_refused() {
    let (nodes, odd) = with_an_odd_one().await;
    let leader = nodes.leader().await;
    let store = nodes.store(leader);
    put(store, "c", "new").await.unwrap();
    // Nothing is compacted, so nothing is compared.
    store.check_compacted().await.unwrap();
    assert_eq!(alarms(store), []);
    store.compact(3, false).await.unwrap();
    nodes.reaches(0, 4).await;
    for at in 0..3 {
        nodes.store(at).check_compacted().await.unwrap();
    }
    let corrupt = Alarm { member: odd, kind: AlarmKind::Corrupt };
    assert_eq!(alarms(store), [corrupt]);
    assert_eq!(put(store, "d", "").await, Err(Error::Corrupt));
    let read = store.range(Range::all(Span::Key("a".into()))).await;
    assert_eq!(read.unwrap_err(), Error::Corrupt);
    // It is told once, and goes when somebody says so.
    store.check_compacted().await.unwrap();
    assert_eq!(store.alarm_disarm(0, None).await.unwrap(), [corrupt]);
    put(store, "d", "").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_newest_data_are_compared_without_a_compaction() {
    let (nodes, odd) = with_an_odd_one().await;
    let leader = nodes.leader().await;
    for at in 0..3 {
        nodes.store(at).check_newest().await.unwrap();
    }
    let raised = alarms(nodes.store(leader));
    assert_eq!(raised.len(), 1);
    // The leader believes in itself.
    if nodes.nodes[leader].id != odd {
        assert_eq!(raised[0], Alarm { member: odd, kind: AlarmKind::Corrupt });
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_differs_does_not_begin_to_serve() {
    let (nodes, _) = with_an_odd_one().await;
    assert_eq!(nodes.store(1).check_initially().await, Err(Error::Corrupt));
    // Who cannot be asked says nothing.
    nodes.net.cut(nodes.nodes[1].id, true);
    nodes.store(0).check_initially().await.unwrap();
}
