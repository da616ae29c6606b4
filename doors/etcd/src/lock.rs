//! The service Lock, and what it shares with Election: a queue of keys under a name.
//!
//! As etcd's clients do it: a candidate's key is `name/` and its lease in hexadecimal; the oldest
//! key holds, and the others wait until all older ones are gone.

use crate::Inner;
use crate::access::Call;
use crate::error::{Refusal, status};
use bytes::Bytes;
use dhow_kv::admin::Need;
use dhow_kv::{
    Compare, KeyValue, Op, OpResult, Order, Range, Select, SortBy, Span, Target, Txn, TxnResult,
    WatchEvent, WatchRequest,
};
use dhow_rpc::{etcdserverpb as pb, v3lockpb};
use std::sync::Arc;
use tonic::Status;

/// The seconds that a server's own lease for a client lives.
const SESSION_TTL: i64 = 60;

/// The key of a candidate.
pub(crate) fn candidate_key(name: &[u8], lease: i64) -> Bytes {
    let mut key = name.to_vec();
    // Go writes negative numbers with a sign.
    let sign = if lease < 0 { "-" } else { "" };
    key.extend_from_slice(format!("/{sign}{:x}", lease.unsigned_abs()).as_bytes());
    key.into()
}

/// All candidates of a name.
pub(crate) fn candidates(name: &[u8]) -> Span {
    let mut prefix = name.to_vec();
    prefix.push(b'/');
    Span::prefix(prefix)
}

/// Compares a key's create revision.
pub(crate) fn created(key: &Bytes, revision: i64) -> Compare {
    Compare {
        span: Span::Key(key.clone()),
        order: Order::Equal,
        target: Target::CreateRevision(revision),
    }
}

/// A read of the oldest key.
pub(crate) fn oldest(span: Span) -> Range {
    let mut range = Range::all(span);
    range.limit = 1;
    range.select.sort = Some((SortBy::CreateRevision, false));
    range
}

/// A put with a lease.
pub(crate) fn put(key: &Bytes, value: Bytes, lease: i64) -> Op {
    Op::Put {
        key: key.clone(),
        value,
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    }
}

/// The first key-value that a step read.
pub(crate) fn first(done: &TxnResult, step: usize) -> Option<&KeyValue> {
    match done.results.get(step) {
        Some(OpResult::Range(found)) => found.kvs.first(),
        _ => None,
    }
}

impl Inner {
    /// The lease that a candidate lives on: its own, or a new one.
    pub(crate) async fn session(&self, call: &Call, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        self.allow_anybody(call)?;
        Ok(self.kv.lease_grant(0, SESSION_TTL).await.map_err(|e| status(&e))?.id)
    }

    /// A transaction by a client.
    pub(crate) async fn commit(&self, call: &Call, txn: Txn) -> Result<TxnResult, Status> {
        self.write(call, txn).await.map_err(|e| status(&e))
    }

    /// A watch by a client.
    pub(crate) fn follow(
        &self,
        call: &Call,
        span: Span,
        start_revision: i64,
    ) -> Result<Box<dyn dhow_kv::Watcher>, Status> {
        self.access(call)
            .and_then(|access| self.allow(&access, &[Need::Read(span.clone())]))
            .and_then(|()| self.kv.watch(WatchRequest { span, start_revision, prev_kv: false }))
            .map_err(|e| status(&e))
    }

    /// Waits until no candidate that was created at `revision` or before is left.
    pub(crate) async fn wait_for_older(
        &self,
        call: &Call,
        name: &[u8],
        revision: i64,
    ) -> Result<(), Status> {
        loop {
            let mut youngest = Range::all(candidates(name));
            youngest.limit = 1;
            youngest.select = Select {
                sort: Some((SortBy::CreateRevision, true)),
                max_create_revision: revision,
                ..Select::default()
            };
            let found = self.read(call, youngest).await.map_err(|e| status(&e))?;
            let Some(ahead) = found.kvs.into_iter().next() else { return Ok(()) };
            let mut watch = self.follow(call, Span::Key(ahead.key), found.revision)?;
            loop {
                match watch.next().await {
                    Some(WatchEvent::Events { events, .. }) => {
                        if events.iter().any(|e| e.deleted) {
                            break;
                        }
                    }
                    Some(WatchEvent::Progress(_)) => {}
                    // Look again: the key may be gone since.
                    Some(WatchEvent::Compacted(_)) => break,
                    None => return Err(Refusal::LostWatcher.into()),
                }
            }
        }
    }

    pub(crate) async fn lock(
        self: &Arc<Self>,
        call: &Call,
        request: v3lockpb::LockRequest,
    ) -> Result<v3lockpb::LockResponse, Status> {
        let lease = self.session(call, request.lease).await?;
        let key = candidate_key(&request.name, lease);
        let read = Op::Range(Range::all(Span::Key(key.clone())));
        let owner = Op::Range(oldest(candidates(&request.name)));
        let txn = Txn {
            compare: vec![created(&key, 0)],
            success: vec![put(&key, Bytes::new(), lease), owner.clone()],
            failure: vec![read, owner],
        };
        let done = self.commit(call, txn).await?;
        let mine = match first(&done, 0) {
            Some(kv) if !done.succeeded => kv.create_revision,
            _ => done.revision,
        };
        if first(&done, 1).is_none_or(|owner| owner.create_revision == mine) {
            return Ok(v3lockpb::LockResponse { header: Some(self.header_at(done.revision)), key });
        }
        let waiting = Waiting { inner: self.clone(), key: Some((key.clone(), mine)) };
        self.wait_for_older(call, &request.name, mine - 1).await?;
        let held = Range::all(Span::Key(key.clone()));
        let held = self.read(call, held).await.map_err(|e| status(&e))?;
        waiting.done();
        if held.kvs.is_empty() {
            return Err(Refusal::SessionExpired.into());
        }
        Ok(v3lockpb::LockResponse { header: Some(self.header_at(held.revision)), key })
    }

    pub(crate) async fn unlock(
        &self,
        call: &Call,
        request: v3lockpb::UnlockRequest,
    ) -> Result<v3lockpb::UnlockResponse, Status> {
        let delete = pb::DeleteRangeRequest { key: request.key, ..Default::default() };
        let op = crate::convert::delete(delete).map_err(|e| status(&e))?;
        let txn = Txn { success: vec![op], ..Txn::default() };
        let done = self.commit(call, txn).await?;
        Ok(v3lockpb::UnlockResponse { header: Some(self.header_at(done.revision)) })
    }
}

/// A candidate who waits. When the client gives up, its key goes, so that it does not get a turn
/// that nobody takes.
pub(crate) struct Waiting {
    pub(crate) inner: Arc<Inner>,
    pub(crate) key: Option<(Bytes, i64)>,
}

impl Waiting {
    /// The waiting is over; the key stays.
    pub(crate) fn done(mut self) {
        self.key = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some((key, revision)) = self.key.take() else { return };
        let inner = self.inner.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let txn = Txn {
                    compare: vec![created(&key, revision)],
                    success: vec![Op::delete(key)],
                    failure: Vec::new(),
                };
                if let Err(error) = inner.kv.txn(txn).await {
                    tracing::warn!(%error, "a candidate's key stays until its lease ends");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidates_key_ends_with_its_lease_in_hexadecimal() {
        assert_eq!(candidate_key(b"n", 0x1f), Bytes::from("n/1f"));
        assert_eq!(candidate_key(b"n", -1), Bytes::from("n/-1"));
    }
}
