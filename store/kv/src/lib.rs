//! The handle that everybody uses: get, range, transaction, lease, watch; embedded or external.
//!
//! The data model is etcd v3's (<https://etcd.io/docs/latest/learning/api/>): one revision per
//! writing transaction, keys in byte order, watches that replay history. A [`Backend`] provides it;
//! [`Kv`] is the cheap, cloneable handle over whichever backend the process runs on.

pub mod admin;
mod error;

use bytes::Bytes;
use dhow_clock::BoxFuture;
use std::sync::Arc;
use std::task::{Context, Poll};

pub use error::Error;

/// One stored key with its history counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key: any bytes, never empty.
    pub key: Bytes,
    /// The value: any bytes.
    pub value: Bytes,
    /// The revision that created this generation of the key.
    pub create_revision: i64,
    /// The revision that last wrote it.
    pub mod_revision: i64,
    /// How many writes this generation has seen; 1 for a new key.
    pub version: i64,
    /// The lease that the key lives on, 0 for none.
    pub lease: i64,
}

/// A [`KeyValue`] as it lies in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of KeyValue")]
pub struct KeyValueRef<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub lease: i64,
}

impl KeyValue {
    /// The same without owning it.
    pub fn by_ref(&self) -> KeyValueRef<'_> {
        let Self { key, value, create_revision, mod_revision, version, lease } = self;
        KeyValueRef {
            key,
            value,
            create_revision: *create_revision,
            mod_revision: *mod_revision,
            version: *version,
            lease: *lease,
        }
    }
}

/// Which keys a request means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span {
    /// Exactly this key.
    Key(Bytes),
    /// From the first (inclusive) to the second (exclusive).
    Range(Bytes, Bytes),
    /// This key and all after it.
    From(Bytes),
}

impl Span {
    /// The keys of etcd's `key` and `range_end`: an empty end is one key, a zero byte everything from it
    /// on.
    pub fn new(key: Bytes, range_end: Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::Key(key),
            [0] => Self::From(key),
            _ => Self::Range(key, range_end),
        }
    }

    /// The other way.
    pub fn key_and_end(self) -> (Bytes, Bytes) {
        match self {
            Self::Key(key) => (key, Bytes::new()),
            Self::Range(key, end) => (key, end),
            Self::From(key) => (key, Bytes::from_static(&[0])),
        }
    }

    /// Every key that starts with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let prefix: Bytes = prefix.into();
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return Self::Range(prefix, end.into());
            }
        }
        Self::From(prefix)
    }

    /// Whether `key` lies in the span.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(k) => k == key,
            Self::Range(from, to) => key >= from.as_ref() && key < to.as_ref(),
            Self::From(from) => key >= from.as_ref(),
        }
    }
}

/// A read of a span at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Which keys.
    pub span: Span,
    /// At which revision; 0 means the newest.
    pub revision: i64,
    /// At most so many key-values; 0 means all.
    pub limit: usize,
    /// Leave the values out.
    pub keys_only: bool,
    /// Return the count and no key-values.
    pub count_only: bool,
    /// The read may be served from this member's state without a check that it is the newest.
    pub serializable: bool,
    /// Another order than the keys', and bounds on revisions.
    pub select: Select,
}

/// What a range sorts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortBy {
    /// The key.
    Key,
    /// The version.
    Version,
    /// The create revision.
    CreateRevision,
    /// The modification revision.
    ModRevision,
    /// The value's bytes.
    Value,
}

/// Another order than the keys', and bounds on revisions. Applied before the limit, so that a range
/// with any of them reads all its keys; the count ignores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Select {
    /// By what to sort, and whether descending; `None` for the order of the keys.
    pub sort: Option<(SortBy, bool)>,
    /// Leave out keys modified before this revision; 0 for no bound.
    pub min_mod_revision: i64,
    /// Leave out keys modified after this revision; 0 for no bound.
    pub max_mod_revision: i64,
    /// Leave out keys created before this revision; 0 for no bound.
    pub min_create_revision: i64,
    /// Leave out keys created after this revision; 0 for no bound.
    pub max_create_revision: i64,
}

impl Select {
    /// Whether it leaves the answer as it is: no bounds, and the order of the keys.
    pub fn is_default(&self) -> bool {
        let order = Self { sort: None, ..*self };
        order == Self::default() && matches!(self.sort, None | Some((SortBy::Key, false)))
    }
}

impl Range {
    /// A read of everything in `span`, now.
    pub fn all(span: Span) -> Self {
        Self {
            span,
            revision: 0,
            limit: 0,
            keys_only: false,
            count_only: false,
            serializable: false,
            select: Select::default(),
        }
    }
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeResult {
    /// The store's revision when the read was answered.
    pub revision: i64,
    /// The key-values in key order.
    pub kvs: Vec<KeyValue>,
    /// Whether more keys than `limit` were in the span.
    pub more: bool,
    /// How many keys are in the span, whatever the limit.
    pub count: i64,
}

/// What a comparison looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The key's version (0 when it is absent).
    Version(i64),
    /// Its create revision (0 when it is absent).
    CreateRevision(i64),
    /// Its modification revision (0 when it is absent).
    ModRevision(i64),
    /// Its value (an absent key compares false).
    Value(Bytes),
    /// Its lease.
    Lease(i64),
}

/// How a comparison compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The key's side equals the given one.
    Equal,
    /// The key's side is greater.
    Greater,
    /// The key's side is less.
    Less,
    /// They differ.
    NotEqual,
}

/// One guard of a transaction. All keys of the span must satisfy it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Which key or keys.
    pub span: Span,
    /// How to compare.
    pub order: Order,
    /// With what.
    pub target: Target,
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Read a span.
    Range(Range),
    /// Write a key.
    Put {
        /// The key, not empty.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// The lease to attach, 0 for none.
        lease: i64,
        /// Return what was there before.
        prev_kv: bool,
        /// Keep the value that is there (the key must exist).
        ignore_value: bool,
        /// Keep the lease that is there (the key must exist).
        ignore_lease: bool,
    },
    /// Delete a span.
    Delete {
        /// Which keys.
        span: Span,
        /// Return what was there before.
        prev_kv: bool,
    },
    /// A transaction within.
    Txn(Txn),
}

impl Op {
    /// A plain write.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }
    }

    /// A plain delete of one key.
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Delete { span: Span::Key(key.into()), prev_kv: false }
    }
}

/// Guards, and what to do when they all hold or one does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// The guards.
    pub compare: Vec<Compare>,
    /// The steps when all guards hold.
    pub success: Vec<Op>,
    /// The steps when one does not.
    pub failure: Vec<Op>,
}

/// What one step answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// To a range.
    Range(RangeResult),
    /// To a put.
    Put {
        /// What was there before, when asked for.
        prev_kv: Option<KeyValue>,
    },
    /// To a delete.
    Delete {
        /// How many keys went.
        deleted: i64,
        /// What was there before, when asked for.
        prev_kvs: Vec<KeyValue>,
    },
    /// To a transaction within.
    Txn(TxnResult),
}

/// What a transaction answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TxnResult {
    /// The store's revision after it; a transaction that wrote has this revision as its own.
    pub revision: i64,
    /// Whether all guards held.
    pub succeeded: bool,
    /// One answer per step of the branch that ran.
    pub results: Vec<OpResult>,
}

/// A change that a watcher sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The key after the change. For a delete: key and mod_revision only.
    pub kv: KeyValue,
    /// The key before the change, when asked for and not compacted away.
    pub prev_kv: Option<KeyValue>,
    /// Whether the key was deleted.
    pub deleted: bool,
}

/// What to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRequest {
    /// Which keys.
    pub span: Span,
    /// From which revision (inclusive); 0 means from now on.
    pub start_revision: i64,
    /// Deliver the previous key-value with each event.
    pub prev_kv: bool,
}

/// What a watcher receives, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// All events of one revision in the span (never split), in the order of the writes.
    Events {
        /// The revision that they share.
        revision: i64,
        /// The changes; shared between the watchers of equal spans.
        events: Arc<[Event]>,
    },
    /// Nothing at or below this revision is still to come.
    Progress(i64),
    /// The watch ended because its start was compacted; the value is the compacted revision.
    Compacted(i64),
}

/// The receiving half of a watch. Dropping it ends the watch.
pub trait Watcher: Send {
    /// The next item; `None` when the store has shut down. Cancel safe.
    fn next(&mut self) -> BoxFuture<'_, Option<WatchEvent>>;
    /// The same without a future: whoever drives many watchers polls those that were woken. As
    /// [`Watcher::next`] is cancel safe, a new future for each call does; implementations that hold
    /// their waker themselves answer without one.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        self.next().as_mut().poll(context)
    }
    /// As [`Watcher::poll_next`], but an item may hold the events of several whole revisions, in order;
    /// its revision is the last one's. For whoever hands events on without looking at each revision:
    /// watchers of equal spans share what a batch of writes changed.
    fn poll_run(&mut self, context: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        self.poll_next(context)
    }
    /// Asks for a [`WatchEvent::Progress`] once everything up to now was delivered.
    fn request_progress(&mut self);
}

/// A lease as the store sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its identifier, not 0.
    pub id: i64,
    /// What was granted, in seconds.
    pub granted_ttl: i64,
    /// What remains, in seconds; -1 when the lease does not exist.
    pub ttl: i64,
    /// The keys that hang on it, when asked for.
    pub keys: Vec<Bytes>,
}

/// What a store must do. Implemented by `store/server` in process and by an external etcd's client.
pub trait Backend: Send + Sync + 'static {
    /// Reads. See [`Range`].
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeResult, Error>>;
    /// The same for whoever only hands the key-values on: they go to `each` in their order, and the
    /// result has none. Nothing is copied for it, so `each` may be called under a lock and must be
    /// quick. When this fails, what `each` was given is void.
    fn range_each<'a>(
        &'a self,
        range: Range,
        each: &'a mut (dyn FnMut(KeyValueRef<'_>) + Send),
    ) -> BoxFuture<'a, Result<RangeResult, Error>> {
        Box::pin(async move {
            let mut found = self.range(range).await?;
            std::mem::take(&mut found.kvs).iter().for_each(|kv| each(kv.by_ref()));
            Ok(found)
        })
    }
    /// Runs a transaction; when it wrote, it is on disk before this completes.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResult, Error>>;
    /// Forgets history up to `revision`. With `physical` the space is free on return.
    fn compact(&self, revision: i64, physical: bool) -> BoxFuture<'_, Result<i64, Error>>;
    /// Starts a watch; events of revisions committed after the call cannot be missed.
    fn watch(&self, request: WatchRequest) -> Result<Box<dyn Watcher>, Error>;
    /// Grants a lease of `ttl` seconds; `id` 0 lets the store choose.
    fn lease_grant(&self, id: i64, ttl: i64) -> BoxFuture<'_, Result<Lease, Error>>;
    /// Ends a lease and deletes its keys; returns the new revision.
    fn lease_revoke(&self, id: i64) -> BoxFuture<'_, Result<i64, Error>>;
    /// Renews a lease; its `ttl` is 0 when it does not exist.
    fn lease_keep_alive(&self, id: i64) -> BoxFuture<'_, Result<Lease, Error>>;
    /// Tells what remains of a lease.
    fn lease_time_to_live(&self, id: i64, keys: bool) -> BoxFuture<'_, Result<Lease, Error>>;
    /// All leases' identifiers.
    fn leases(&self) -> BoxFuture<'_, Result<Vec<i64>, Error>>;
    /// The newest revision that this member has applied.
    fn revision(&self) -> i64;
    /// A revision that this member has applied, no older than any that was acknowledged before the
    /// call, by whichever member. A store whose only writer asks knows it without asking others.
    fn newest(&self) -> BoxFuture<'_, Result<i64, Error>> {
        Box::pin(std::future::ready(Ok(self.revision())))
    }
}

/// The shared handle to a store.
#[derive(Clone)]
pub struct Kv(Arc<dyn Backend>);

impl Kv {
    /// A handle over `backend`.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self(backend)
    }

    /// The newest value of one key.
    ///
    /// # Errors
    /// As [`Backend::range`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<KeyValue>, Error> {
        let mut found = self.0.range(Range::all(Span::Key(key.into()))).await?;
        Ok(found.kvs.pop())
    }
}

impl std::ops::Deref for Kv {
    type Target = dyn Backend;
    fn deref(&self) -> &Self::Target {
        self.0.as_ref()
    }
}

impl std::fmt::Debug for Kv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kv(revision {})", self.0.revision())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_its_last_byte_grows() {
        assert_eq!(Span::prefix("/a/"), Span::Range("/a/".into(), "/a0".into()));
        assert_eq!(Span::prefix(vec![1, 0xff]), Span::Range(vec![1, 0xff].into(), vec![2].into()));
        assert_eq!(Span::prefix(vec![0xff]), Span::From(vec![0xff].into()));
    }
}
