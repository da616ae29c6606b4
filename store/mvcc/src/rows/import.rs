//! A state from the rows that another store kept.

use super::{read_key_value, read_row_key};
use crate::codec::Malformed;
use crate::history::History;
use crate::index::Version;
use crate::{Lease, Mvcc};
use bytes::Bytes;
use std::collections::BTreeSet;

/// At most so many revisions may be missing behind the compaction: etcd leaves none out, but may be
/// told to raise the revision, and then compacts at it.
const GAP: i64 = 1 << 20;

/// Builds a state from rows in the order of their revisions, as a bbolt file of etcd has them.
///
/// Rows that a compaction has to drop yet may be among them, as in a store that was stopped at it.
#[derive(Debug)]
pub struct Import {
    mvcc: Mvcc,
    last: Option<(i64, u32)>,
    /// The keys of the revision that is being read, by their places.
    keys: Vec<Bytes>,
    /// Keys with something that the compaction drops.
    stale: Vec<Bytes>,
}

impl Import {
    /// An empty state, compacted at `compacted` (0 for never), with leases and what each was
    /// granted, in seconds.
    pub fn new(compacted: i64, leases: impl IntoIterator<Item = (i64, i64)>) -> Self {
        let mut mvcc = Mvcc::new();
        mvcc.compacted = compacted.max(0);
        mvcc.history = History::starting(mvcc.compacted.max(2));
        let leases = leases.into_iter();
        mvcc.leases = leases.map(|(id, ttl)| (id, Lease { ttl, keys: BTreeSet::new() })).collect();
        Self { mvcc, last: None, keys: Vec::new(), stale: Vec::new() }
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// [`Malformed`]: no row, or not in order, or not about what its key says.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        let (revision, sub, tombstone) = read_row_key(key)?;
        if self.last.is_some_and(|last| last >= (revision, sub)) {
            return Err(Malformed("rows are not in order"));
        }
        self.close_before(revision)?;
        self.last = Some((revision, sub));
        if value.is_empty() && !tombstone {
            // A restored snapshot may have its revision raised: a row that is nothing else.
            return Ok(());
        }
        let kv = read_key_value(value)?;
        if kv.key.is_empty() {
            return Err(Malformed("a row without a key"));
        }
        if !tombstone && (kv.mod_revision != revision || kv.version < 1) {
            return Err(Malformed("a row that contradicts its revision"));
        }
        let before = self.mvcc.index.get(&kv.key).map(|entry| entry.newest());
        let old_lease = before.map_or(0, |v| v.lease);
        let compacted = self.mvcc.compacted;
        let stale = before.is_some_and(|v| v.mod_revision < compacted);
        let version = Version {
            mod_revision: revision,
            create_revision: if tombstone { 0 } else { kv.create_revision },
            version: if tombstone { 0 } else { kv.version },
            lease: if tombstone { 0 } else { kv.lease },
            sub,
            value: (!tombstone).then_some(kv.value),
        };
        let lease = version.lease;
        self.mvcc.bytes += version.cost(&kv.key);
        let key = self.mvcc.index.write(&kv.key, version);
        // A key may name a lease that is gone; then it hangs on none.
        self.mvcc.move_lease(&key, old_lease, lease);
        if stale || tombstone && revision < compacted {
            self.stale.push(key.clone());
        }
        if revision >= self.mvcc.history.first() {
            // A compaction may have dropped writes in between: their places stay empty.
            self.keys.resize(sub as usize, Bytes::new());
            self.keys.push(key);
        }
        Ok(())
    }

    /// Records the revisions that are complete when a row of `revision` comes.
    fn close_before(&mut self, revision: i64) -> Result<(), Malformed> {
        let Some((last, _)) = self.last.filter(|(last, _)| *last < revision) else {
            return Ok(());
        };
        self.record(last);
        if revision.saturating_sub(self.mvcc.history.end()) > GAP {
            return Err(Malformed("too many revisions are missing"));
        }
        Ok(())
    }

    /// Records the keys of `revision`, and nothing for the revisions before it that have none.
    fn record(&mut self, revision: i64) {
        if revision < self.mvcc.history.first() {
            return;
        }
        while self.mvcc.history.end() < revision {
            self.mvcc.history.push(Vec::new());
        }
        self.mvcc.history.push(std::mem::take(&mut self.keys));
    }

    /// The state, when all rows are taken.
    pub fn finish(mut self) -> Mvcc {
        let newest = self.last.map_or(1, |(revision, _)| revision);
        self.record(newest);
        self.mvcc.revision = newest.max(self.mvcc.compacted).max(1);
        while self.mvcc.history.end() <= self.mvcc.revision {
            self.mvcc.history.push(Vec::new());
        }
        for key in &self.stale {
            self.mvcc.bytes -= self.mvcc.index.prune(key, self.mvcc.compacted).min(self.mvcc.bytes);
        }
        self.mvcc
    }
}
