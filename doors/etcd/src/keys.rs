//! The service KV.

use crate::Inner;
use crate::access::Call;
use crate::body::Answers;
use crate::convert;
use crate::error::status;
use crate::method::Method;
use crate::wire;
use bytes::Bytes;
use dhow_kv::{Error, KeyValue, KeyValueRef, OpResult, Range, RangeResult, Span, Txn};
use dhow_rpc::etcdserverpb::{self as pb, range_request};
use futures::stream;
use std::sync::Arc;
use tonic::Status;

/// How many keys the first piece of a streamed range has.
const FIRST_PIECE: usize = 10;

/// A transaction of one step.
fn single(op: dhow_kv::Op) -> Txn {
    Txn { compare: Vec::new(), success: vec![op], failure: Vec::new() }
}

impl Inner {
    pub(crate) async fn range(
        &self,
        call: &Call,
        request: pb::RangeRequest,
    ) -> Result<Bytes, Status> {
        if !request.serializable && self.admin.pulse().learner {
            return Err(status(&Error::NotForLearner));
        }
        let range = convert::range(request)?;
        let mut frame = wire::RangeFrame::new(range.limit);
        let mut each = |kv: KeyValueRef<'_>| frame.push(kv);
        let found = self.read_each(call, range, &mut each).await.map_err(|e| status(&e))?;
        Ok(frame.finish(&self.header_at(found.revision), &found))
    }

    pub(crate) async fn put(&self, call: &Call, request: pb::PutRequest) -> Result<Bytes, Status> {
        let op = convert::put(request).map_err(|e| status(&e))?;
        let mut done = self.write(call, single(op)).await.map_err(|e| status(&e))?;
        let prev_kv = match done.results.pop() {
            Some(OpResult::Put { prev_kv }) => prev_kv,
            _ => None,
        };
        Ok(wire::put(&self.header_at(done.revision), prev_kv.as_ref()))
    }

    pub(crate) async fn delete_range(
        &self,
        call: &Call,
        request: pb::DeleteRangeRequest,
    ) -> Result<Bytes, Status> {
        let op = convert::delete(request).map_err(|e| status(&e))?;
        let mut done = self.write(call, single(op)).await.map_err(|e| status(&e))?;
        let (deleted, prev_kvs) = match done.results.pop() {
            Some(OpResult::Delete { deleted, prev_kvs }) => (deleted, prev_kvs),
            _ => (0, Vec::new()),
        };
        Ok(wire::delete(&self.header_at(done.revision), deleted, &prev_kvs))
    }

    pub(crate) async fn txn(&self, call: &Call, request: pb::TxnRequest) -> Result<Bytes, Status> {
        let txn = convert::txn(request, self.config.max_txn_ops)?;
        let done = self.write(call, txn).await.map_err(|e| status(&e))?;
        let header = self.header_at(done.revision);
        Ok(wire::message(&convert::txn_response(done, header)))
    }

    pub(crate) async fn compact(
        &self,
        call: &Call,
        request: pb::CompactionRequest,
    ) -> Result<Bytes, Status> {
        self.allow_root(call)?;
        self.kv.compact(request.revision, request.physical).await.map_err(|e| status(&e))?;
        Ok(wire::message(&pb::CompactionResponse { header: Some(self.header()) }))
    }

    /// Reads in pieces of one revision. Only the last piece has a header, the count and `more`.
    pub(crate) async fn range_stream(
        self: &Arc<Self>,
        call: Call,
        request: pb::RangeRequest,
    ) -> Result<Answers, Status> {
        let (order, target) = (request.sort_order, request.sort_target);
        let range = convert::range(request)?;
        let default_order = order == range_request::SortOrder::None as i32
            || (order == range_request::SortOrder::Ascend as i32
                && target == range_request::SortTarget::Key as i32);
        if !default_order {
            return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
        }
        let select = range.select;
        if [
            select.min_mod_revision,
            select.max_mod_revision,
            select.min_create_revision,
            select.max_create_revision,
        ] != [0; 4]
        {
            return Err(Status::unimplemented("RangeStream does not support revision filters"));
        }
        let mut pieces = Pieces {
            inner: self.clone(),
            call,
            left: if range.limit == 0 { usize::MAX } else { range.limit },
            sorted: None,
            range,
            size: FIRST_PIECE,
            sent: 0,
            revision: 0,
            done: false,
        };
        // Another target without an order is sorted by: nothing comes before all is read.
        if pieces.range.select.sort.is_some() && !pieces.range.count_only {
            pieces.sorted = Some(pieces.read(pieces.range.clone()).await?);
        }
        // The first piece decides whether the request is refused.
        let first = pieces.next().await?;
        Ok(Box::pin(stream::unfold((Some(first), pieces), |(first, mut pieces)| async move {
            if let Some(first) = first {
                return Some((Ok(first), (None, pieces)));
            }
            if pieces.done {
                return None;
            }
            let next = pieces.next().await;
            pieces.done |= next.is_err();
            Some((next, (None, pieces)))
        })))
    }
}

/// A streamed range under way.
struct Pieces {
    inner: Arc<Inner>,
    call: Call,
    range: Range,
    /// What is still to be sent, when it was read at once.
    sorted: Option<RangeResult>,
    /// How many keys may still be sent.
    left: usize,
    /// How many keys the next piece has.
    size: usize,
    sent: i64,
    /// The store's revision when the stream began.
    revision: i64,
    done: bool,
}

impl Pieces {
    async fn read(&self, range: Range) -> Result<RangeResult, Status> {
        self.inner.read(&self.call, range).await.map_err(|e| status(&e))
    }

    /// The next piece is to be about as large as a request may be; the last one had so many bytes.
    fn adapt(&mut self, kvs: &[KeyValue]) {
        let bytes: usize = kvs.iter().map(|kv| kv.key.len() + kv.value.len() + 32).sum();
        let target = self.inner.config.max_request_bytes;
        if bytes < target / 2 {
            self.size *= 2;
        } else if bytes > target * 2 {
            self.size = (self.size / 2).max(1);
        }
    }

    async fn next(&mut self) -> Result<Bytes, Status> {
        let mut answer = pb::RangeResponse::default();
        if let Some(sorted) = &mut self.sorted {
            let rest = sorted.kvs.split_off(self.size.min(sorted.kvs.len()));
            let kvs = std::mem::replace(&mut sorted.kvs, rest);
            self.done = sorted.kvs.is_empty();
            if self.done {
                answer.header = Some(self.inner.header_at(sorted.revision));
                (answer.more, answer.count) = (sorted.more, sorted.count);
            }
            self.adapt(&kvs);
            answer.kvs = kvs.into_iter().map(convert::key_value).collect();
            return Ok(self.frame(answer));
        }
        if self.range.count_only {
            let found = self.read(self.range.clone()).await?;
            self.done = true;
            answer.header = Some(self.inner.header_at(found.revision));
            answer.count = found.count;
            return Ok(self.frame(answer));
        }
        self.range.limit = self.size.min(self.left);
        let found = self.read(self.range.clone()).await?;
        if self.revision == 0 {
            self.revision = found.revision;
            if self.range.revision <= 0 {
                self.range.revision = found.revision;
            }
            // Later pieces are of a fixed revision; asking the leader again adds nothing.
            self.range.serializable = true;
        }
        let read = found.kvs.len();
        self.sent += read as i64;
        self.left -= read.min(self.left);
        self.adapt(&found.kvs);
        let next = found.kvs.last().map(|kv| {
            let mut key = kv.key.to_vec();
            key.push(0);
            Bytes::from(key)
        });
        answer.kvs = found.kvs.into_iter().map(convert::key_value).collect();
        self.done = !found.more || self.left == 0 || next.is_none();
        if self.done {
            answer.header = Some(self.inner.header_at(self.revision));
            answer.more = found.more;
            // What this piece did not reach counts as well.
            answer.count = self.sent - read as i64 + found.count;
        } else if let Some(next) = next {
            self.range.span =
                match std::mem::replace(&mut self.range.span, Span::From(next.clone())) {
                    Span::Range(_, end) => Span::Range(next, end),
                    _ => Span::From(next),
                };
        }
        Ok(self.frame(answer))
    }

    fn frame(&self, answer: pb::RangeResponse) -> Bytes {
        let frame = wire::message(&pb::RangeStreamResponse { range_response: Some(answer) });
        self.inner.metrics.sent(Method::RangeStream, 1, frame.len());
        frame
    }
}
