//! The promises of a store, and whether a history keeps them.
//!
//! They are those of etcd v3 (<https://etcd.io/docs/latest/learning/api_guarantees/>): requests are
//! linearizable, watches are ordered, unique, reliable, atomic, resumable and bookmarkable, leases
//! live as long as they are kept alive and their keys no longer than they, and all members agree.

mod facts;
pub mod kv;
pub mod lease;
pub mod members;
pub mod model;
pub mod timeline;
pub mod watch;

use crate::history::History;

/// A promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// Every request takes effect at one moment between its call and its answer.
    Linearizable,
    /// A watch delivers revisions in their order.
    Ordered,
    /// A watch delivers no event twice.
    Unique,
    /// A watch leaves nothing out and adds nothing.
    Reliable,
    /// A watch delivers all events of a revision at once.
    Atomic,
    /// A watch can be taken up at any revision that is not compacted.
    Resumable,
    /// After a progress notice nothing at or below its revision comes.
    Bookmarkable,
    /// Previous key-values are those that were there before.
    PrevKv,
    /// A lease does not end while it is kept alive.
    LeaseKept,
    /// A lease that has ended is gone, and so are its keys.
    LeaseGone,
    /// What a user may not do any more is not done.
    Permitted,
    /// All members hold the same.
    Agreement,
    /// The store works again once everything else does.
    Recovery,
    /// Not a promise: the search gave up before it could tell.
    Decidable,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not kept: {promise:?}: {detail}")]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// Where and how, for people.
    pub detail: String,
}

impl Violation {
    /// A violation of `promise`.
    pub fn new(promise: Promise, detail: impl Into<String>) -> Self {
        Self { promise, detail: detail.into() }
    }
}

/// What a checker must know of the store beside the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The store compacts by itself, so that compacted revisions need no request.
    pub compacts_itself: bool,
    /// Leases are granted for at least so many seconds.
    pub min_lease_ttl: i64,
    /// A member's clock runs at most so many thousandths faster or slower than the history's.
    pub drift_thousandths: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { compacts_itself: false, min_lease_ttl: 2, drift_thousandths: 0 }
    }
}

/// Checks requests, watches and leases. Returns the whole history of revisions as it must have been.
///
/// # Errors
/// The first broken promise.
pub fn all(history: &History, rules: &Rules) -> Result<kv::Replay, Violation> {
    let replay = kv::check(history, rules)?;
    watch::check(history, &replay, rules)?;
    lease::check(history, &replay, rules)?;
    Ok(replay)
}
