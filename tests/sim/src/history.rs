//! What clients asked, when, and what they were told.

use crate::random::mix;
use dhow_kv::{Error, Event, Lease, Op, Range, RangeResult, Span, Txn, TxnResult};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// A moment: its place in the order of all recorded moments, and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment {
    /// Unique, and growing with time: what happened before what.
    pub order: u64,
    /// Since the start of the run, on a clock that runs evenly.
    pub time: Duration,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A read.
    Range(Range),
    /// A transaction. A put or a delete is one with a single step.
    Txn(Txn),
    /// Forget history.
    Compact(i64),
    /// Grant a lease of this identifier for so many seconds. Clients use each identifier once.
    LeaseGrant(i64, i64),
    /// End a lease.
    LeaseRevoke(i64),
    /// Renew a lease.
    KeepAlive(i64),
    /// Ask what remains of a lease.
    TimeToLive(i64),
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A read's answer.
    Range(RangeResult),
    /// A transaction's answer.
    Txn(TxnResult),
    /// The revision after a compaction or revocation.
    Revision(i64),
    /// A lease's answer.
    Lease(Lease),
    /// It was refused, and certainly had no effect.
    Refused(Error),
    /// Nobody knows: no answer, or one that leaves it open.
    Unknown,
}

/// One request of a client. What a client tries again is another operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who asked.
    pub client: u32,
    /// Which member.
    pub member: u64,
    /// When it was sent.
    pub called: Moment,
    /// When the answer came, or the client gave up.
    pub returned: Moment,
    /// What was asked.
    pub input: Input,
    /// What was answered.
    pub output: Output,
}

/// What a watcher received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A revision's events in the span.
    Events(i64, Arc<[Event]>),
    /// Everything up to this revision has been delivered.
    Progress(i64),
    /// The watch ended because history up to this revision is forgotten.
    Compacted(i64),
}

/// One watch from its opening to its end. A watch that is taken up again is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// Who watched.
    pub client: u32,
    /// On which member.
    pub member: u64,
    /// When it was asked for.
    pub called: Moment,
    /// When it was known to be open: what is written after it cannot be missed.
    pub opened: Moment,
    /// Which keys.
    pub span: Span,
    /// From which revision on; 0 for from now on.
    pub start: i64,
    /// Whether previous key-values were asked for.
    pub prev_kv: bool,
    /// What came, and when.
    pub items: Vec<(Moment, Item)>,
}

/// A whole run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// All requests, in the order in which they ended.
    pub operations: Vec<Operation>,
    /// All watches, in the order in which they ended.
    pub watches: Vec<Watch>,
}

impl History {
    /// A number that differs between runs that differ anywhere.
    pub fn digest(&self) -> u64 {
        struct Digest(u64);
        impl std::fmt::Write for Digest {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                for part in text.as_bytes().chunks(8) {
                    let mut word = [0; 8];
                    word[..part.len()].copy_from_slice(part);
                    self.0 = mix(self.0 ^ u64::from_le_bytes(word));
                }
                Ok(())
            }
        }
        let mut digest = Digest(0);
        // Writing into a number cannot fail.
        let _ = write!(digest, "{:?}{:?}", self.operations, self.watches);
        digest.0
    }
}

/// Whether an error says for certain that the request had no effect. Of any other, nobody knows.
pub fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::EmptyKey
            | Error::KeyNotFound
            | Error::ValueProvided
            | Error::LeaseProvided
            | Error::TooManyOps
            | Error::DuplicateKey
            | Error::Compacted
            | Error::FutureRevision
            | Error::LeaseNotFound
            | Error::LeaseExists
            | Error::LeaseTtlTooLarge
            | Error::TooLarge
            | Error::NoSpace
            | Error::Corrupt
            | Error::TooManyRequests
            | Error::NotForLearner
            | Error::PermissionDenied
            | Error::AuthOldRevision
    )
}

/// Whether a transaction can write at all.
pub fn may_write(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Range(_) => false,
        Op::Put { .. } | Op::Delete { .. } => true,
        Op::Txn(inner) => may_write(inner),
    })
}
