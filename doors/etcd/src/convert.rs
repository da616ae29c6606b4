//! Between etcd's messages and the store's types, with the checks that etcd's door makes.
//!
//! The order of the checks, and so which error wins, is that of etcd's `v3rpc/key.go`.

use crate::error::{Refusal, status};
use bytes::Bytes;
use dhow_kv::admin::{Access, Permission};
use dhow_kv::{
    Compare, Error, KeyValue, Op, OpResult, Order, Range, RangeResult, Select, SortBy, Span,
    Target, Txn, TxnResult,
};
use dhow_rpc::etcdserverpb::{self as pb, compare, range_request, request_op, response_op};
use dhow_rpc::{authpb, mvccpb};
use tonic::Status;

/// A checked read.
pub(crate) fn range(request: pb::RangeRequest) -> Result<Range, Status> {
    if request.key.is_empty() {
        return Err(status(&Error::EmptyKey));
    }
    let order =
        range_request::SortOrder::try_from(request.sort_order).map_err(|_| Refusal::SortOption)?;
    let target = range_request::SortTarget::try_from(request.sort_target)
        .map_err(|_| Refusal::SortOption)?;
    Ok(Range {
        span: Span::new(request.key, request.range_end),
        revision: request.revision,
        limit: usize::try_from(request.limit).unwrap_or(0),
        keys_only: request.keys_only,
        count_only: request.count_only,
        serializable: request.serializable,
        select: Select {
            sort: sort(order, target),
            min_mod_revision: request.min_mod_revision,
            max_mod_revision: request.max_mod_revision,
            min_create_revision: request.min_create_revision,
            max_create_revision: request.max_create_revision,
        },
    })
}

/// A target other than the key sorts ascending when no order is given.
fn sort(
    order: range_request::SortOrder,
    target: range_request::SortTarget,
) -> Option<(SortBy, bool)> {
    use range_request::{SortOrder as O, SortTarget as T};
    let by = match target {
        T::Key if order != O::Descend => return None,
        T::Key => SortBy::Key,
        T::Version => SortBy::Version,
        T::Create => SortBy::CreateRevision,
        T::Mod => SortBy::ModRevision,
        T::Value => SortBy::Value,
    };
    Some((by, order == O::Descend))
}

/// A checked write.
pub(crate) fn put(request: pb::PutRequest) -> Result<Op, Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(Op::Put {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    })
}

/// A checked delete.
pub(crate) fn delete(request: pb::DeleteRangeRequest) -> Result<Op, Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    Ok(Op::Delete { span: Span::new(request.key, request.range_end), prev_kv: request.prev_kv })
}

/// A checked transaction of at most `most` guards or steps a list, over all levels. Keys that are
/// written twice are left to the store.
pub(crate) fn txn(request: pb::TxnRequest, most: usize) -> Result<Txn, Status> {
    let steps = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = most.checked_sub(steps).ok_or_else(|| status(&Error::TooManyOps))?;
    if request.compare.iter().any(|c| c.key.is_empty()) {
        return Err(status(&Error::EmptyKey));
    }
    let branch =
        |ops: Vec<pb::RequestOp>| ops.into_iter().map(|o| op(o, left)).collect::<Result<_, _>>();
    Ok(Txn {
        compare: request.compare.into_iter().filter_map(guard).collect(),
        success: branch(request.success)?,
        failure: branch(request.failure)?,
    })
}

fn op(request: pb::RequestOp, left: usize) -> Result<Op, Status> {
    use request_op::Request as R;
    match request.request {
        Some(R::RequestRange(request)) => range(request).map(Op::Range),
        Some(R::RequestPut(request)) => put(request).map_err(|e| status(&e)),
        Some(R::RequestDeleteRange(request)) => delete(request).map_err(|e| status(&e)),
        Some(R::RequestTxn(request)) => txn(request, left).map(Op::Txn),
        // etcd's answer to a step without content.
        None => Err(status(&Error::KeyNotFound)),
    }
}

/// A guard; `None` for one whose comparison is not known, which etcd takes as fulfilled.
fn guard(request: pb::Compare) -> Option<Compare> {
    use compare::{CompareResult as R, CompareTarget as T, TargetUnion as U};
    let order = match R::try_from(request.result).ok()? {
        R::Equal => Order::Equal,
        R::Greater => Order::Greater,
        R::Less => Order::Less,
        R::NotEqual => Order::NotEqual,
    };
    // A value of another kind than the target counts as the target's zero.
    let target = match (T::try_from(request.target).ok()?, request.target_union) {
        (T::Version, Some(U::Version(n))) => Target::Version(n),
        (T::Version, _) => Target::Version(0),
        (T::Create, Some(U::CreateRevision(n))) => Target::CreateRevision(n),
        (T::Create, _) => Target::CreateRevision(0),
        (T::Mod, Some(U::ModRevision(n))) => Target::ModRevision(n),
        (T::Mod, _) => Target::ModRevision(0),
        (T::Value, Some(U::Value(value))) => Target::Value(value),
        (T::Value, _) => Target::Value(Bytes::new()),
        (T::Lease, Some(U::Lease(n))) => Target::Lease(n),
        (T::Lease, _) => Target::Lease(0),
    };
    Some(Compare { span: Span::new(request.key, request.range_end), order, target })
}

/// A key-value as a message.
pub(crate) fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// A header with nothing but a revision, as the answers within a transaction have.
fn inner_header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() })
}

fn range_response(found: RangeResult) -> pb::RangeResponse {
    pb::RangeResponse {
        header: inner_header(found.revision),
        kvs: found.kvs.into_iter().map(key_value).collect(),
        more: found.more,
        count: found.count,
    }
}

/// Whether any step wrote.
fn wrote(results: &[OpResult]) -> bool {
    results.iter().any(|result| match result {
        OpResult::Range(_) => false,
        OpResult::Put { .. } => true,
        OpResult::Delete { deleted, .. } => *deleted > 0,
        OpResult::Txn(inner) => wrote(&inner.results),
    })
}

/// What a transaction answered, as a message.
pub(crate) fn txn_response(done: TxnResult, header: pb::ResponseHeader) -> pb::TxnResponse {
    let mut state = Written { now: false, revision: done.revision, ever: wrote(&done.results) };
    pb::TxnResponse {
        header: Some(header),
        succeeded: done.succeeded,
        responses: done.results.into_iter().map(|result| op_response(result, &mut state)).collect(),
    }
}

/// Which revision the answers within a transaction tell: its own from its first change on.
struct Written {
    now: bool,
    revision: i64,
    ever: bool,
}

impl Written {
    fn current(&self) -> i64 {
        if self.now || !self.ever { self.revision } else { self.revision - 1 }
    }
}

fn op_response(result: OpResult, written: &mut Written) -> pb::ResponseOp {
    use response_op::Response as R;
    let response = match result {
        OpResult::Range(found) => R::ResponseRange(range_response(found)),
        OpResult::Put { prev_kv } => {
            written.now = true;
            R::ResponsePut(pb::PutResponse {
                header: inner_header(written.revision),
                prev_kv: prev_kv.map(key_value),
            })
        }
        OpResult::Delete { deleted, prev_kvs } => {
            written.now |= deleted > 0;
            R::ResponseDeleteRange(pb::DeleteRangeResponse {
                header: inner_header(written.current()),
                deleted,
                prev_kvs: prev_kvs.into_iter().map(key_value).collect(),
            })
        }
        OpResult::Txn(inner) => R::ResponseTxn(pb::TxnResponse {
            header: inner_header(0),
            succeeded: inner.succeeded,
            responses: inner.results.into_iter().map(|r| op_response(r, written)).collect(),
        }),
    };
    pb::ResponseOp { response: Some(response) }
}

/// A permission from its message; `None` when the keys are not a range.
pub(crate) fn permission(message: authpb::Permission) -> Option<Permission> {
    let access = match authpb::permission::Type::try_from(message.perm_type).ok()? {
        authpb::permission::Type::Read => Access::Read,
        authpb::permission::Type::Write => Access::Write,
        authpb::permission::Type::Readwrite => Access::ReadWrite,
    };
    let valid = !message.key.is_empty()
        && match message.range_end.as_ref() {
            [] | [0] => true,
            end => message.key.as_ref() < end,
        };
    valid.then(|| Permission { access, span: Span::new(message.key, message.range_end) })
}

/// A permission as a message.
pub(crate) fn permission_message(permission: Permission) -> authpb::Permission {
    let (key, range_end) = permission.span.key_and_end();
    let access = match permission.access {
        Access::Read => authpb::permission::Type::Read,
        Access::Write => authpb::permission::Type::Write,
        Access::ReadWrite => authpb::permission::Type::Readwrite,
    };
    authpb::Permission { perm_type: access.into(), key, range_end }
}
