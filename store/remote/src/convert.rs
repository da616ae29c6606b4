//! The store's words as etcd's messages, and back.

use bytes::Bytes;
use dhow_kv::{
    Compare, Event, KeyValue, Op, OpResult, Order, Range, RangeResult, SortBy, Span, Target, Txn,
    TxnResult,
};
use dhow_rpc::etcdserverpb as pb;
use dhow_rpc::mvccpb;
use pb::request_op::Request as Step;
use pb::response_op::Response as Answer;

/// The first key and the end of a span as etcd writes them. etcd has no empty first key: a zero byte
/// is the smallest key that can exist.
pub(crate) fn span(span: Span) -> (Bytes, Bytes) {
    const ZERO: Bytes = Bytes::from_static(b"\0");
    let first = |key: Bytes| if key.is_empty() { ZERO } else { key };
    match span {
        Span::Key(key) => (key, Bytes::new()),
        // A span without keys stays one: an empty end would mean the first key alone.
        Span::Range(from, to) if to.is_empty() => (first(from.clone()), first(from)),
        Span::Range(from, to) => (first(from), to),
        Span::From(from) => (first(from), ZERO),
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(crate) fn range(range: Range) -> pb::RangeRequest {
    use pb::range_request::{SortOrder, SortTarget};
    let Range { span: keys, revision, limit, keys_only, count_only, serializable, select } = range;
    let (key, range_end) = span(keys);
    let (target, order) = match select.sort {
        None => (SortTarget::Key, SortOrder::None),
        Some((by, descending)) => {
            let target = match by {
                SortBy::Key => SortTarget::Key,
                SortBy::Version => SortTarget::Version,
                SortBy::CreateRevision => SortTarget::Create,
                SortBy::ModRevision => SortTarget::Mod,
                SortBy::Value => SortTarget::Value,
            };
            (target, if descending { SortOrder::Descend } else { SortOrder::Ascend })
        }
    };
    pb::RangeRequest {
        key,
        range_end,
        limit: count(limit),
        revision,
        sort_order: order.into(),
        sort_target: target.into(),
        serializable,
        keys_only,
        count_only,
        min_mod_revision: select.min_mod_revision,
        max_mod_revision: select.max_mod_revision,
        min_create_revision: select.min_create_revision,
        max_create_revision: select.max_create_revision,
    }
}

fn compare(compare: Compare) -> pb::Compare {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let (key, range_end) = span(compare.span);
    let result = match compare.order {
        Order::Equal => CompareResult::Equal,
        Order::Greater => CompareResult::Greater,
        Order::Less => CompareResult::Less,
        Order::NotEqual => CompareResult::NotEqual,
    };
    let (target, with) = match compare.target {
        Target::Version(n) => (CompareTarget::Version, TargetUnion::Version(n)),
        Target::CreateRevision(n) => (CompareTarget::Create, TargetUnion::CreateRevision(n)),
        Target::ModRevision(n) => (CompareTarget::Mod, TargetUnion::ModRevision(n)),
        Target::Value(value) => (CompareTarget::Value, TargetUnion::Value(value)),
        Target::Lease(n) => (CompareTarget::Lease, TargetUnion::Lease(n)),
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key,
        range_end,
        target_union: Some(with),
    }
}

fn step(op: Op) -> pb::RequestOp {
    let request = match op {
        Op::Range(wanted) => Step::RequestRange(range(wanted)),
        Op::Put { key, value, lease, prev_kv, ignore_value, ignore_lease } => {
            Step::RequestPut(pb::PutRequest {
                key,
                value,
                lease,
                prev_kv,
                ignore_value,
                ignore_lease,
            })
        }
        Op::Delete { span: keys, prev_kv } => {
            let (key, range_end) = span(keys);
            Step::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv })
        }
        Op::Txn(within) => Step::RequestTxn(txn(within)),
    };
    pb::RequestOp { request: Some(request) }
}

pub(crate) fn txn(txn: Txn) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: txn.compare.into_iter().map(compare).collect(),
        success: txn.success.into_iter().map(step).collect(),
        failure: txn.failure.into_iter().map(step).collect(),
    }
}

/// Whether a transaction writes in neither branch.
pub(crate) fn reads_only(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| match op {
        Op::Range(_) => true,
        Op::Txn(within) => reads_only(within),
        Op::Put { .. } | Op::Delete { .. } => false,
    })
}

pub(crate) fn key_value(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

fn key_values(kvs: Vec<mvccpb::KeyValue>) -> Vec<KeyValue> {
    kvs.into_iter().map(key_value).collect()
}

pub(crate) fn range_result(answer: pb::RangeResponse) -> RangeResult {
    RangeResult {
        revision: answer.header.map_or(0, |h| h.revision),
        kvs: key_values(answer.kvs),
        more: answer.more,
        count: answer.count,
    }
}

fn op_result(answer: pb::ResponseOp) -> Option<OpResult> {
    Some(match answer.response? {
        Answer::ResponseRange(found) => OpResult::Range(range_result(found)),
        Answer::ResponsePut(put) => OpResult::Put { prev_kv: put.prev_kv.map(key_value) },
        Answer::ResponseDeleteRange(deleted) => {
            OpResult::Delete { deleted: deleted.deleted, prev_kvs: key_values(deleted.prev_kvs) }
        }
        Answer::ResponseTxn(within) => OpResult::Txn(txn_result(within)),
    })
}

pub(crate) fn txn_result(answer: pb::TxnResponse) -> TxnResult {
    TxnResult {
        revision: answer.header.map_or(0, |h| h.revision),
        succeeded: answer.succeeded,
        results: answer.responses.into_iter().filter_map(op_result).collect(),
    }
}

pub(crate) fn event(event: mvccpb::Event) -> Option<Event> {
    let deleted = event.r#type() == mvccpb::event::EventType::Delete;
    Some(Event { kv: key_value(event.kv?), prev_kv: event.prev_kv.map(key_value), deleted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_etcd_does() {
        let written = |s| {
            let (key, end) = span(s);
            (key.to_vec(), end.to_vec())
        };
        assert_eq!(written(Span::Key("a".into())), (b"a".to_vec(), vec![]));
        assert_eq!(written(Span::prefix("/a/")), (b"/a/".to_vec(), b"/a0".to_vec()));
        assert_eq!(written(Span::From("m".into())), (b"m".to_vec(), vec![0]));
        // The whole store.
        assert_eq!(written(Span::prefix("")), (vec![0], vec![0]));
        // No key at all must not become one key.
        let (key, end) = written(Span::Range("a".into(), Bytes::new()));
        assert!(!end.is_empty() && end <= key);
    }

    #[test]
    fn a_transaction_that_writes_in_any_branch_is_no_read() {
        let read = || Op::Range(Range::all(Span::prefix("")));
        let mut txn = Txn { success: vec![read()], ..Txn::default() };
        assert!(reads_only(&txn));
        txn.failure.push(Op::Txn(Txn { failure: vec![Op::delete("a")], ..Txn::default() }));
        assert!(!reads_only(&txn));
    }
}
