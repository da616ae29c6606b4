//! Revisions, ranges, transactions, leases, watch history; pure.
//!
//! [`Mvcc`] is a deterministic state machine: the same [`Command`]s in the same order give the same
//! state and the same answers, whoever applies them. [`Machine`] is the same with users and alarms. It does no input or output and reads no clock.
//! Its semantics are those of etcd v3 (<https://etcd.io/docs/latest/learning/api/>).

mod alarm;
pub mod auth;
mod check;
mod codec;
mod history;
mod index;
mod machine;
mod rows;
mod snapshot;
mod txn;

pub use alarm::Alarms;
pub use auth::Auth;
pub use check::{check_range, check_txn, cost, is_read_only};
pub use codec::{Malformed, put_bytes, put_number, put_signed};
pub use machine::{Machine, MachineHeader, MachineLoader};
pub use rows::{Export, Hash, HashRun, Import, ImportError, Rows, read_key_value};
pub use snapshot::{Header, Loader};

use bytes::Bytes;
use dhow_kv::admin::{Alarm, AlarmKind, AuthChange, Counts, Version};
use dhow_kv::{Error, Event, KeyValue, Span, Txn, TxnResult};
use history::History;
use index::Index;
use std::collections::{BTreeMap, BTreeSet};
use txn::Writes;

/// What one version of a key takes of the quota beside its bytes.
pub const KEY_COST: u64 = 256;

/// The longest time to live of a lease, in seconds.
pub const MAX_TTL: i64 = 9_000_000_000;

/// How large a request may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most steps, and the most guards, along one path through a transaction.
    pub txn_ops: usize,
    /// The most bytes in one request.
    pub request_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { txn_ops: 128, request_bytes: 1536 << 10 }
    }
}

/// One unit of the log: what changes the state. See [`Command::encode`] for its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run a transaction.
    Txn(Txn),
    /// Forget history up to a revision.
    Compact(i64),
    /// Grant a lease.
    LeaseGrant {
        /// Its identifier, not 0.
        id: i64,
        /// Its time to live in seconds.
        ttl: i64,
    },
    /// End a lease and delete its keys.
    LeaseRevoke {
        /// Its identifier.
        id: i64,
    },
    /// Note what remains of leases, by their identifiers, in seconds; 0 for the whole time. From
    /// there a new leader goes on, which does not know when they were renewed last.
    LeaseCheckpoint(Vec<(i64, i64)>),
    /// Run a transaction if the rules are still those that it was allowed by.
    TxnAs {
        /// The transaction.
        txn: Txn,
        /// The revision of the rules.
        auth_revision: u64,
    },
    /// Raise an alarm.
    AlarmRaise(Alarm),
    /// End alarms.
    AlarmDisarm {
        /// Whose; 0 for all.
        member: u64,
        /// About what; `None` for all.
        kind: Option<AlarmKind>,
    },
    /// Speak an older version, or the own one again.
    Downgrade(Option<Version>),
    /// Change users, roles or the whole of authentication.
    Auth(AuthChange),
    /// Give a token to a user whose password was checked.
    TokenIssue {
        /// The user.
        user: String,
        /// What the token begins with: random, not used before, without a full stop. The index of
        /// the command follows in the token, so that a member can tell whether it is behind it.
        prefix: String,
        /// The revision of the rules that the password was checked by.
        auth_revision: u64,
    },
}

/// What a lease takes of the quota.
pub const LEASE_COST: u64 = 64;

impl Command {
    /// What the command may add to the store at most, by the quota's measure; 0 for what is not
    /// refused without space.
    pub fn cost(&self) -> u64 {
        match self {
            Self::Txn(txn) | Self::TxnAs { txn, .. } => cost(txn),
            Self::LeaseGrant { .. } => LEASE_COST,
            _ => 0,
        }
    }
}

/// What applying a [`Command`] answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A transaction's answer.
    Txn(TxnResult),
    /// The alarms that were raised or ended.
    Alarms(Vec<Alarm>),
    /// The new token.
    Token(String),
    /// The others answer with the revision after them.
    Done(i64),
}

/// The answer and whether the state changed (and so the command belongs in the log).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// What to answer.
    pub outcome: Outcome,
    /// Whether anything changed.
    pub changed: bool,
}

#[derive(Debug, Clone, Default)]
struct Lease {
    ttl: i64,
    /// What remained when it was noted last; 0 for the whole time.
    remaining: i64,
    keys: BTreeSet<Bytes>,
}

impl Lease {
    /// One without keys that has its whole time.
    fn new(ttl: i64) -> Self {
        Self { ttl, ..Self::default() }
    }
}

/// The state. See the module.
#[derive(Debug)]
pub struct Mvcc {
    index: Index,
    history: History,
    leases: BTreeMap<i64, Lease>,
    revision: i64,
    compacted: i64,
    /// While it is set, compactions beyond this one are not worked off.
    hold: Option<i64>,
    /// The same for others that read for a while: how many at which compacted revision.
    pins: BTreeMap<i64, usize>,
    bytes: u64,
    /// No part of the state: it begins anew with each start.
    done: Counts,
}

impl Default for Mvcc {
    fn default() -> Self {
        Self::new()
    }
}

impl Mvcc {
    /// An empty store: its revision is 1, as etcd's.
    pub fn new() -> Self {
        Self {
            index: Index::default(),
            history: History::starting(2),
            leases: BTreeMap::new(),
            revision: 1,
            compacted: 0,
            hold: None,
            pins: BTreeMap::new(),
            bytes: 0,
            done: Counts::default(),
        }
    }

    /// The newest applied revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The revision below which history is forgotten; 0 before the first compaction.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Everything below this revision may already be gone, as far as compaction has worked it off.
    pub fn pruned(&self) -> i64 {
        self.history.first()
    }

    /// How many keys are alive.
    pub fn keys(&self) -> usize {
        self.index.live()
    }

    /// The quota in use: the keys and values of all kept versions and [`KEY_COST`] for each.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was carried out since the state was made or loaded.
    pub fn counts(&self) -> Counts {
        self.done
    }

    /// Applies a command about keys or leases. The others need a [`Machine`];
    /// here they change nothing.
    ///
    /// # Errors
    /// As the operations of [`dhow_kv::Backend`]; then nothing has changed. A transaction's shape is
    /// not checked here again: see [`check_txn`].
    pub fn apply(&mut self, command: &Command) -> Result<Applied, Error> {
        match command {
            Command::Txn(txn) | Command::TxnAs { txn, .. } => self.apply_txn(txn),
            Command::Compact(revision) => {
                if *revision > self.revision {
                    return Err(Error::FutureRevision);
                }
                if *revision <= self.compacted {
                    return Err(Error::Compacted);
                }
                self.compacted = *revision;
                Ok(self.done(true))
            }
            Command::LeaseGrant { id, ttl } => {
                if *ttl > MAX_TTL {
                    return Err(Error::LeaseTtlTooLarge);
                }
                if self.leases.contains_key(id) {
                    return Err(Error::LeaseExists);
                }
                self.leases.insert(*id, Lease::new(*ttl));
                Ok(self.done(true))
            }
            Command::LeaseRevoke { id } => {
                let lease = self.leases.remove(id).ok_or(Error::LeaseNotFound)?;
                let mut writes = Writes::after(self.revision);
                for key in lease.keys {
                    self.delete(&Span::Key(key), false, &mut writes);
                }
                self.revision = writes.finish(&mut self.history);
                Ok(self.done(true))
            }
            Command::LeaseCheckpoint(remaining) => {
                for (id, remaining) in remaining {
                    // One that has ended meanwhile needs none.
                    if let Some(lease) = self.leases.get_mut(id) {
                        lease.remaining = (*remaining).clamp(0, lease.ttl);
                    }
                }
                Ok(self.done(true))
            }
            Command::AlarmRaise(_)
            | Command::AlarmDisarm { .. }
            | Command::Downgrade(_)
            | Command::Auth(_)
            | Command::TokenIssue { .. } => Ok(self.done(false)),
        }
    }

    fn done(&self, changed: bool) -> Applied {
        Applied { outcome: Outcome::Done(self.revision), changed }
    }

    fn apply_txn(&mut self, txn: &Txn) -> Result<Applied, Error> {
        let path = self.choose(txn, txn::NEWEST);
        self.check_path(txn, &path, self.revision)?;
        let mut writes = Writes::after(self.revision);
        let result = self.run_path(txn, &path, &mut writes);
        let revision = writes.finish(&mut self.history);
        let changed = revision != self.revision;
        self.revision = revision;
        Ok(Applied { outcome: Outcome::Txn(result), changed })
    }

    /// The changes of one revision, in the order of the writes; nothing when it is forgotten.
    pub fn events(&self, revision: i64, prev_kv: bool, span: Option<&Span>) -> Vec<Event> {
        let mut events = Vec::new();
        for (sub, key) in self.history.keys(revision).iter().enumerate() {
            if span.is_some_and(|span| !span.contains(key)) {
                continue;
            }
            let Some(entry) = self.index.get(key) else { continue };
            let Some((version, before)) = entry.exact(revision, sub as u32) else { continue };
            let before = before.filter(|v| prev_kv && v.is_live());
            events.push(Event {
                kv: version.to_kv(&entry.key, false),
                prev_kv: before.map(|v| v.to_kv(&entry.key, false)),
                deleted: !version.is_live(),
            });
        }
        events
    }

    /// Whether the revision wrote a key in the span.
    pub fn touches(&self, revision: i64, span: &Span) -> bool {
        self.history.keys(revision).iter().any(|key| span.contains(key))
    }

    /// The keys that the revision wrote, in the order of the writes.
    pub fn keys_written(&self, revision: i64) -> &[Bytes] {
        self.history.keys(revision)
    }

    /// One key as of `revision`.
    pub fn get(&self, key: &[u8], revision: i64) -> Option<KeyValue> {
        let entry = self.index.get(key)?;
        entry.live_at(revision).map(|v| v.to_kv(&entry.key, false))
    }

    /// Works off at most `most` revisions of the latest compaction. Returns whether more is to do.
    ///
    /// This frees memory and changes no answer.
    pub fn prune(&mut self, most: usize) -> bool {
        let until = self.prune_until();
        for _ in 0..most {
            let Some(keys) = self.history.pop_below(until) else { break };
            for key in &keys {
                self.bytes = self.bytes.saturating_sub(self.index.prune(key, until));
            }
        }
        if self.history.first() < until {
            return true;
        }
        // The boundary's own record stays: a watch may start there.
        for key in self.history.keys(until) {
            self.bytes = self.bytes.saturating_sub(self.index.prune(key, until));
        }
        false
    }

    /// Whether [`Mvcc::prune`] has something to do.
    pub fn wants_prune(&self) -> bool {
        self.history.first() < self.prune_until()
    }

    fn prune_until(&self) -> i64 {
        let pinned = self.pins.first_key_value().map(|(at, _)| *at);
        [self.hold, pinned].into_iter().flatten().fold(self.compacted, i64::min)
    }

    /// Keeps compactions beyond `compacted` from being worked off, until called with `None`: a
    /// snapshot that is being written still needs what they would drop.
    pub fn hold(&mut self, compacted: Option<i64>) {
        self.hold = compacted;
    }

    /// Keeps compactions beyond `compacted` from being worked off until [`Mvcc::unpin`], beside
    /// [`Mvcc::hold`] and any number of others.
    pub fn pin(&mut self, compacted: i64) {
        *self.pins.entry(compacted).or_default() += 1;
    }

    /// Ends one [`Mvcc::pin`].
    pub fn unpin(&mut self, compacted: i64) {
        if let Some(count) = self.pins.get_mut(&compacted) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&compacted);
            }
        }
    }

    /// Whether a snapshot or a pin keeps the newest compaction from being worked off.
    pub fn is_held(&self) -> bool {
        self.prune_until() < self.compacted
    }

    /// The leases and what each was granted, in seconds.
    pub fn leases(&self) -> impl Iterator<Item = (i64, i64)> + '_ {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl))
    }

    /// What remained of leases when it was noted last, in seconds; those that have their whole time
    /// are left out.
    pub fn remaining(&self) -> impl Iterator<Item = (i64, i64)> + '_ {
        let noted = self.leases.iter().filter(|(_, lease)| lease.remaining > 0);
        noted.map(|(id, lease)| (*id, lease.remaining))
    }

    /// The keys that hang on a lease, in order.
    pub fn lease_keys(&self, id: i64) -> Vec<Bytes> {
        self.leases.get(&id).map(|lease| lease.keys.iter().cloned().collect()).unwrap_or_default()
    }
}
