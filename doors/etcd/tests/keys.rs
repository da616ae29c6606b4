//! The service KV, through a gRPC client.

mod common;

use bytes::Bytes;
use common::{Served, refused};
use dhow_door_etcd::Config;
use dhow_rpc::etcdserverpb as pb;
use pb::{compare, range_request, request_op::Request, response_op::Response};
use tonic::Code;

fn key(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

#[tokio::test]
async fn a_value_is_written_read_and_deleted() {
    let served = Served::new(Config::default()).await;
    let mut client = served.kv_client().await;
    let done = client.put(put("k", "v")).await.unwrap().into_inner();
    let header = done.header.unwrap();
    let identity = served.admin.identity();
    assert_eq!((header.cluster_id, header.member_id), (identity.cluster_id, identity.member_id));
    assert_eq!((header.revision, header.raft_term), (2, served.admin.pulse().term));
    let found = client.range(key("k")).await.unwrap().into_inner();
    assert_eq!((found.count, found.more), (1, false));
    assert_eq!(found.kvs[0].value, "v");
    assert_eq!((found.kvs[0].create_revision, found.kvs[0].version), (2, 1));
    let old = client.put(pb::PutRequest { prev_kv: true, ..put("k", "w") }).await.unwrap();
    assert_eq!(old.into_inner().prev_kv.unwrap().value, "v");
    let request = pb::DeleteRangeRequest { key: "k".into(), prev_kv: true, ..Default::default() };
    let gone = client.delete_range(request).await.unwrap().into_inner();
    assert_eq!((gone.deleted, gone.header.unwrap().revision), (1, 4));
    assert_eq!(gone.prev_kvs[0].value, "w");
}

#[tokio::test]
async fn requests_that_etcd_refuses_are_refused_with_its_words() {
    let served = Served::new(Config::default()).await;
    let mut client = served.kv_client().await;
    let bad = Code::InvalidArgument;
    refused(client.range(key("")).await, bad, "etcdserver: key is not provided");
    refused(client.put(put("", "")).await, bad, "etcdserver: key is not provided");
    let request = pb::RangeRequest { sort_order: 7, ..key("k") };
    refused(client.range(request).await, bad, "etcdserver: invalid sort option");
    let request = pb::PutRequest { ignore_value: true, ..put("k", "v") };
    refused(client.put(request).await, bad, "etcdserver: value is provided");
    let request = pb::PutRequest { ignore_lease: true, lease: 1, ..put("k", "v") };
    refused(client.put(request).await, bad, "etcdserver: lease is provided");
    let request = pb::PutRequest { lease: 1, ..put("k", "v") };
    let no_lease = (Code::NotFound, "etcdserver: requested lease not found");
    refused(client.put(request).await, no_lease.0, no_lease.1);
    // Of two things that are missing, the lease is told.
    let request = pb::PutRequest { ignore_value: true, lease: 1, ..put("missing", "") };
    refused(client.put(request.clone()).await, no_lease.0, no_lease.1);
    let within = vec![op(Request::RequestPut(request))];
    let request = pb::TxnRequest { success: within, ..Default::default() };
    refused(client.txn(request).await, no_lease.0, no_lease.1);
    let request = pb::PutRequest { ignore_value: true, ..put("missing", "") };
    refused(client.put(request).await, bad, "etcdserver: key not found");
    let request = pb::RangeRequest { revision: 99, ..key("k") };
    refused(
        client.range(request).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    let twice = vec![op(Request::RequestPut(put("k", "1"))); 2];
    let request = pb::TxnRequest { success: twice, ..Default::default() };
    refused(client.txn(request).await, bad, "etcdserver: duplicate key given in txn request");
    let many = vec![op(Request::RequestRange(key("k"))); 129];
    let request = pb::TxnRequest { success: many, ..Default::default() };
    refused(client.txn(request).await, bad, "etcdserver: too many operations in txn request");
    let request = pb::TxnRequest { success: vec![pb::RequestOp::default()], ..Default::default() };
    refused(client.txn(request).await, bad, "etcdserver: key not found");
    let large = pb::PutRequest { value: vec![0; 1_600_000].into(), ..put("k", "") };
    refused(client.put(large).await, bad, "etcdserver: request is too large");
    let larger = pb::PutRequest { value: vec![0; 3_000_000].into(), ..put("k", "") };
    let status = client.put(larger).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("grpc: received message larger than max (3000"));
    // The connection and the server live.
    client.put(put("k", "v")).await.unwrap();
}

#[tokio::test]
async fn a_transaction_compares_and_runs_its_steps_in_order() {
    let served = Served::new(Config::default()).await;
    let mut client = served.kv_client().await;
    let guard = pb::Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Version.into(),
        key: "k".into(),
        target_union: Some(compare::TargetUnion::Version(0)),
        ..Default::default()
    };
    let inner = pb::TxnRequest {
        success: vec![op(Request::RequestPut(put("l", "2")))],
        ..Default::default()
    };
    let request = pb::TxnRequest {
        compare: vec![guard],
        success: vec![
            op(Request::RequestRange(key("k"))),
            op(Request::RequestPut(put("k", "1"))),
            op(Request::RequestRange(key("k"))),
            op(Request::RequestTxn(inner)),
        ],
        failure: vec![op(Request::RequestRange(key("k")))],
    };
    let done = client.txn(request.clone()).await.unwrap().into_inner();
    assert!(done.succeeded);
    assert_eq!(done.header.unwrap().revision, 2);
    let revisions: Vec<_> = done
        .responses
        .iter()
        .map(|r| match r.response.as_ref().unwrap() {
            Response::ResponseRange(r) => r.header.unwrap().revision,
            Response::ResponsePut(r) => r.header.unwrap().revision,
            Response::ResponseDeleteRange(r) => r.header.unwrap().revision,
            Response::ResponseTxn(r) => r.header.unwrap().revision,
        })
        .collect();
    assert_eq!(revisions, [1, 2, 2, 0]);
    let again = client.txn(request).await.unwrap().into_inner();
    assert!(!again.succeeded);
    assert_eq!(again.responses.len(), 1);
}

#[tokio::test]
async fn a_streamed_range_comes_in_pieces_of_one_revision() {
    let served = Served::new(Config::default()).await;
    let mut client = served.kv_client().await;
    for n in 0..57 {
        client.put(put(&format!("k{n:03}"), "v")).await.unwrap();
    }
    let all = pb::RangeRequest { range_end: "l".into(), ..key("k") };
    let mut stream = client.range_stream(all.clone()).await.unwrap().into_inner();
    let (mut keys, mut sizes) = (Vec::new(), Vec::new());
    let mut last = None;
    while let Some(piece) = stream.message().await.unwrap() {
        assert!(last.is_none(), "the header ends the stream");
        let piece = piece.range_response.unwrap();
        sizes.push(piece.kvs.len());
        keys.extend(piece.kvs.into_iter().map(|kv| kv.key));
        last = piece.header.map(|header| (header.revision, piece.count, piece.more));
    }
    assert_eq!(sizes, [10, 20, 27]);
    assert!(keys.is_sorted());
    assert_eq!(last, Some((58, 57, false)));
    let limited = pb::RangeRequest { limit: 15, ..all.clone() };
    let mut stream = client.range_stream(limited).await.unwrap().into_inner();
    let mut last = None;
    while let Some(piece) = stream.message().await.unwrap() {
        last = piece.range_response;
    }
    let last = last.unwrap();
    assert_eq!((last.kvs.len(), last.count, last.more), (5, 57, true));
    let sorted = pb::RangeRequest { sort_order: 2, ..all };
    let status = client.range_stream(sorted).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_streamed_range_is_sorted_by_a_target_without_an_order() {
    let served = Served::new(Config::default()).await;
    let mut client = served.kv_client().await;
    for n in 0..25 {
        client.put(put(&format!("k{n:02}"), &format!("{:02}", 99 - n))).await.unwrap();
    }
    let target = range_request::SortTarget::Value.into();
    let all = pb::RangeRequest { range_end: "l".into(), sort_target: target, ..key("k") };
    for (limit, read) in [(0, 25), (12, 12)] {
        let request = pb::RangeRequest { limit, ..all.clone() };
        let mut stream = client.range_stream(request).await.unwrap().into_inner();
        let (mut values, mut last) = (Vec::new(), None);
        while let Some(piece) = stream.message().await.unwrap() {
            let piece = piece.range_response.unwrap();
            values.extend(piece.kvs.into_iter().map(|kv| kv.value));
            last = piece.header.map(|header| (header.revision, piece.count, piece.more));
        }
        assert_eq!((values.len(), values.is_sorted()), (read, true));
        assert_eq!(last, Some((26, 25, read < 25)));
    }
}

#[tokio::test]
async fn protected_prefixes_can_be_read_and_not_written() {
    let config = Config { protected: vec![Bytes::from_static(b"/registry/")], ..Config::default() };
    let served = Served::new(config).await;
    let mut client = served.kv_client().await;
    let denied = (Code::PermissionDenied, "etcdserver: permission denied");
    refused(client.put(put("/registry/a", "v")).await, denied.0, denied.1);
    let request = pb::DeleteRangeRequest { key: "/".into(), range_end: "z".into(), prev_kv: false };
    refused(client.delete_range(request).await, denied.0, denied.1);
    let nested = pb::TxnRequest {
        success: vec![op(Request::RequestPut(put("/registry/a", "v")))],
        ..Default::default()
    };
    let request =
        pb::TxnRequest { failure: vec![op(Request::RequestTxn(nested))], ..Default::default() };
    refused(client.txn(request).await, denied.0, denied.1);
    client.range(key("/registry/a")).await.unwrap();
    client.put(put("/mine", "v")).await.unwrap();
}

#[tokio::test]
async fn without_a_leader_those_who_need_one_are_told() {
    let served = Served::local(Config::default()).await;
    let mut client = served.kv_client().await;
    served.lead(0);
    let mut request = tonic::Request::new(key("k"));
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    refused(client.range(request).await, Code::Unavailable, "etcdserver: no leader");
    client.range(key("k")).await.unwrap();
}
