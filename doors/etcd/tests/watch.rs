//! The service Watch, through a gRPC client.

mod common;

use common::{Served, WatchStream};
use dhow_door_etcd::Config;
use dhow_rpc::etcdserverpb as pb;
use std::time::Duration;
use tonic::Code;

fn on(key: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
}

fn prefix(key: &str) -> pb::WatchCreateRequest {
    let mut end = key.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    pb::WatchCreateRequest { range_end: end.into(), ..on(key) }
}

/// Takes answers until `n` events came, and returns them as `key=value`, a delete without value.
async fn events(watch: &mut WatchStream, n: usize) -> Vec<String> {
    let mut seen = Vec::new();
    while seen.len() < n {
        for event in watch.next().await.events {
            let kv = event.kv.unwrap();
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            let sign = if event.r#type == 1 { "-" } else { "=" };
            seen.push(format!("{}{sign}{}", text(&kv.key), text(&kv.value)));
        }
    }
    seen
}

#[tokio::test]
async fn watches_of_one_stream_are_numbered_and_told_apart() {
    let served = Served::new(Config::default()).await;
    let mut watch = served.watch().await;
    assert_eq!(watch.begin(on("a")).await, 0);
    assert_eq!(watch.begin(on("b")).await, 1);
    assert_eq!(watch.begin(pb::WatchCreateRequest { watch_id: 7, ..prefix("a") }).await, 7);
    served.put("b", "1").await;
    let answer = watch.next().await;
    assert_eq!((answer.watch_id, answer.header.unwrap().revision), (1, 2));
    assert_eq!(answer.header.unwrap().member_id, served.member());
    served.put("a", "2").await;
    let mut ids = [watch.next().await.watch_id, watch.next().await.watch_id];
    ids.sort_unstable();
    assert_eq!(ids, [0, 7]);
}

#[tokio::test]
async fn creations_that_etcd_refuses_are_refused_and_the_stream_goes_on() {
    let served = Served::new(Config::default()).await;
    let mut watch = served.watch().await;
    assert_eq!(watch.begin(pb::WatchCreateRequest { watch_id: 3, ..on("a") }).await, 3);
    let cases = [
        (
            pb::WatchCreateRequest { watch_id: 3, ..on("b") },
            "mvcc: duplicate watch ID provided on the WatchStream",
        ),
        (
            pb::WatchCreateRequest { range_end: "a".into(), ..on("b") },
            "mvcc: watcher range is empty",
        ),
        (
            pb::WatchCreateRequest { start_revision: -1, ..on("b") },
            "etcdserver: mvcc: required revision has been compacted",
        ),
    ];
    for (request, reason) in cases {
        watch.create(request).await;
        let answer = watch.next().await;
        assert!(answer.created && answer.canceled, "{answer:?}");
        assert_eq!((answer.watch_id, answer.cancel_reason.as_str()), (-1, reason));
    }
    // An empty key is the first key there can be, and an unknown cancel is nothing.
    watch.cancel(99).await;
    let all = pb::WatchCreateRequest { range_end: vec![0].into(), ..on("") };
    watch.begin(all).await;
    served.put("z", "1").await;
    assert_eq!(events(&mut watch, 1).await, ["z=1"]);
}

#[tokio::test]
async fn history_is_replayed_and_continues_without_a_gap() {
    let served = Served::new(Config::default()).await;
    for n in 0..300 {
        served.kv.txn(put_txn("k", n)).await.unwrap();
    }
    let mut watch = served.watch().await;
    watch.begin(pb::WatchCreateRequest { start_revision: 2, ..prefix("k") }).await;
    for n in 300..600 {
        served.kv.txn(put_txn("k", n)).await.unwrap();
    }
    let seen = events(&mut watch, 600).await;
    let expected: Vec<_> = (0..600).map(|n| format!("k={n}")).collect();
    assert_eq!(seen, expected);
}

fn put_txn(key: &'static str, n: usize) -> dhow_kv::Txn {
    dhow_kv::Txn { success: vec![dhow_kv::Op::put(key, n.to_string())], ..dhow_kv::Txn::default() }
}

#[tokio::test]
async fn a_compacted_start_ends_the_watch_after_it_began() {
    let served = Served::new(Config::default()).await;
    for n in 0..5 {
        served.put("k", &n.to_string()).await;
    }
    served.kv.compact(5, true).await.unwrap();
    let mut watch = served.watch().await;
    let id = watch.begin(pb::WatchCreateRequest { start_revision: 2, ..on("k") }).await;
    let end = watch.next().await;
    assert!(end.canceled && !end.created);
    assert_eq!((end.watch_id, end.compact_revision, end.header.unwrap().revision), (id, 5, 0));
    // The number is free again.
    watch.begin(pb::WatchCreateRequest { watch_id: 12, ..on("k") }).await;
}

#[tokio::test]
async fn a_cancelled_watch_is_silent() {
    let served = Served::new(Config::default()).await;
    let mut watch = served.watch().await;
    let id = watch.begin(on("a")).await;
    watch.begin(on("b")).await;
    watch.cancel(id).await;
    let end = watch.next().await;
    assert!(end.canceled && end.watch_id == id && end.cancel_reason.is_empty());
    served.put("a", "1").await;
    served.put("b", "2").await;
    assert_eq!(events(&mut watch, 1).await, ["b=2"]);
}

#[tokio::test]
async fn filters_and_previous_values_are_given_to_those_who_asked() {
    let served = Served::new(Config::default()).await;
    let mut deletes = served.watch().await;
    deletes.begin(pb::WatchCreateRequest { filters: vec![0], ..on("k") }).await;
    let mut puts = served.watch().await;
    puts.begin(pb::WatchCreateRequest { filters: vec![1], prev_kv: true, ..on("k") }).await;
    served.put("k", "1").await;
    served.put("k", "2").await;
    served.delete("k").await;
    assert_eq!(events(&mut deletes, 1).await, ["k-"]);
    let mut previous = Vec::new();
    while previous.len() < 2 {
        for event in puts.next().await.events {
            previous.push(event.prev_kv.map(|kv| kv.value));
        }
    }
    assert_eq!(previous, [None, Some("1".into())]);
}

#[tokio::test]
async fn progress_is_told_when_asked_for() {
    let served = Served::new(Config::default()).await;
    let mut watch = served.watch().await;
    watch.begin(on("a")).await;
    watch.begin(on("b")).await;
    let revision = served.put("c", "1").await;
    watch.progress().await;
    let answer = watch.next().await;
    assert_eq!((answer.watch_id, answer.header.unwrap().revision), (-1, revision));
    assert!(answer.events.is_empty() && !answer.created && !answer.canceled);
    // A watch of the future has no progress; the stream answers again when it is gone.
    let id = watch.begin(pb::WatchCreateRequest { start_revision: 100, ..on("d") }).await;
    watch.progress().await;
    watch.cancel(id).await;
    assert!(watch.next().await.canceled);
    watch.progress().await;
    assert_eq!(watch.next().await.watch_id, -1);
}

#[tokio::test]
async fn a_watch_of_the_past_is_told_how_far_the_store_is() {
    let served = Served::new(Config::default()).await;
    for key in ["k", "other", "other"] {
        served.put(key, "v").await;
    }
    let mut watch = served.watch().await;
    watch.begin(pb::WatchCreateRequest { start_revision: 1, ..on("k") }).await;
    let answer = watch.next().await;
    assert_eq!((answer.events.len(), answer.header.unwrap().revision), (1, 4));
    served.put("k", "v").await;
    served.put("other", "v").await;
    let answer = watch.next().await;
    assert_eq!((answer.events.len(), answer.header.unwrap().revision), (1, 5));
}

#[tokio::test]
async fn a_quiet_watch_is_told_the_revision_at_intervals() {
    let interval = Duration::from_millis(100);
    let config = Config { watch_progress_interval: interval, ..Config::default() };
    let served = Served::new(config).await;
    served.put("c", "1").await;
    let mut watch = served.watch().await;
    watch.begin(on("b")).await;
    // The last to begin: an interval may be over before anything else is done.
    let id = watch.begin(pb::WatchCreateRequest { progress_notify: true, ..on("a") }).await;
    for _ in 0..2 {
        let answer = watch.next().await;
        assert_eq!((answer.watch_id, answer.header.unwrap().revision), (id, 2));
        assert!(answer.events.is_empty());
    }
}

#[tokio::test]
async fn a_large_revision_is_cut_for_those_who_allow_it() {
    let config = Config { max_request_bytes: 600 << 10, ..Config::default() };
    let served = Served::new(config).await;
    let mut whole = served.watch().await;
    whole.begin(prefix("k")).await;
    let mut cut = served.watch().await;
    cut.begin(pb::WatchCreateRequest { fragment: true, ..prefix("k") }).await;
    // One transaction of more than max_request_bytes + 512 KiB, past the door.
    let put = |n: usize| dhow_kv::Op::put(format!("k{n}"), vec![b'x'; 200 << 10]);
    let txn = dhow_kv::Txn { success: (0..7).map(put).collect(), ..Default::default() };
    served.kv.txn(txn).await.unwrap();
    assert_eq!(whole.next().await.events.len(), 7);
    let first = cut.next().await;
    assert!(first.fragment);
    let second = cut.next().await;
    assert!(!second.fragment);
    assert_eq!(first.events.len() + second.events.len(), 7);
    assert_eq!(first.header.unwrap().revision, second.header.unwrap().revision);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let served = Served::new(Config::default()).await;
    let mut slow = served.watch().await;
    slow.begin(on("k")).await;
    let mut quick = served.watch().await;
    quick.begin(on("k")).await;
    let value = "v".repeat(256 << 10);
    for n in 0..100 {
        let revision = served.put("k", &format!("{n}{value}")).await;
        let answer = quick.next().await;
        assert_eq!(answer.header.unwrap().revision, revision);
    }
    // What the slow one missed is still there for it.
    let mut seen = 0;
    while seen < 100 {
        seen += slow.next().await.events.len();
    }
}

#[tokio::test]
async fn streams_that_need_a_leader_end_without_one() {
    let timeout = Duration::from_millis(20);
    let config = Config { election_timeout: timeout, ..Config::default() };
    let served = Served::local(config).await;
    let channel = served.channel().await;
    let mut needs = WatchStream::asking(channel.clone(), &[("hasleader", "true")]).await.unwrap();
    needs.begin(on("k")).await;
    let mut other = WatchStream::new(channel.clone()).await;
    other.begin(on("k")).await;
    served.lead(0);
    let end = needs.end().await.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::Unavailable, "etcdserver: no leader"));
    let refused = WatchStream::asking(channel.clone(), &[("hasleader", "true")]).await;
    assert_eq!(refused.err().map(|s| s.code()), Some(Code::Unavailable));
    served.put("k", "1").await;
    assert_eq!(events(&mut other, 1).await, ["k=1"]);
    served.lead(served.member());
    let mut again = WatchStream::asking(channel, &[("hasleader", "true")]).await.unwrap();
    again.begin(on("k")).await;
}

#[tokio::test]
async fn streams_end_with_the_server() {
    let served = Served::new(Config::default()).await;
    let mut watch = served.watch().await;
    watch.begin(on("k")).await;
    served.stop.cancel();
    let end = watch.end().await.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::Unavailable, "etcdserver: server stopped"));
    served.serving.await.unwrap();
}
