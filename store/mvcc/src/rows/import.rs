//! A state from the rows that another store kept.

use super::{read_key_value, read_row_key};
use crate::codec::Malformed;
use crate::history::History;
use crate::index::Version;
use crate::{Lease, Mvcc};
use bytes::Bytes;

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
    /// How many revisions were missing so far.
    gap: i64,
}

impl Import {
    /// An empty state, compacted at `compacted` (0 for never), with leases and what each was
    /// granted, in seconds.
    pub fn new(compacted: i64, leases: impl IntoIterator<Item = (i64, i64)>) -> Self {
        let mut mvcc = Mvcc::new();
        mvcc.compacted = compacted.max(0);
        mvcc.history = History::starting(mvcc.compacted.max(2));
        let leases = leases.into_iter();
        mvcc.leases = leases.map(|(id, ttl)| (id, Lease::new(ttl))).collect();
        Self { mvcc, last: None, keys: Vec::new(), stale: Vec::new(), gap: 0 }
    }

    /// Takes the next row. After an error the import is of no more use.
    ///
    /// # Errors
    /// [`Malformed`]: no row, or not in order, or not about what its key says.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        let (revision, sub, tombstone) = read_row_key(key)?;
        if self.last.is_some_and(|last| last >= (revision, sub)) {
            return Err(Malformed("rows are not in order"));
        }
        self.begin(revision, sub)?;
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
            self.keys.push(key);
        }
        Ok(())
    }

    /// Records the revision before, if it is complete, and makes sure that this place is the next.
    fn begin(&mut self, revision: i64, sub: u32) -> Result<(), Malformed> {
        if let Some((last, _)) = self.last
            && last < revision
        {
            self.record(last);
        }
        if revision < self.mvcc.history.first() {
            self.last = Some((revision, sub));
            return Ok(());
        }
        if self.last.is_none_or(|(last, _)| last < revision) {
            self.gap = self.gap.saturating_add((revision - self.mvcc.history.end()).max(0));
        }
        if self.gap > GAP {
            return Err(Malformed("too many revisions are missing"));
        }
        let missing = (sub as usize).saturating_sub(self.keys.len());
        if missing > 0 && (revision != self.mvcc.compacted || missing > GAP as usize) {
            return Err(Malformed("a write of a revision is missing"));
        }
        // A compaction at it may have dropped writes in between: their places stay empty.
        self.keys.resize(sub as usize, Bytes::new());
        self.last = Some((revision, sub));
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
        if self.mvcc.history.end() <= newest {
            self.record(newest);
        }
        self.mvcc.revision = newest.max(self.mvcc.compacted).max(1);
        while self.mvcc.history.end() <= self.mvcc.revision {
            self.mvcc.history.push(Vec::new());
        }
        for key in &self.stale {
            self.mvcc.bytes -= self.mvcc.index.prune(key, self.mvcc.compacted).min(self.mvcc.bytes);
        }
        self.mvcc
    }

    /// The same with its revision raised by `by` and all history forgotten: whoever watched the store
    /// that the rows are from, and may have seen more than they have, is told to begin anew.
    pub fn finish_raised(self, by: i64) -> Mvcc {
        let mut mvcc = self.finish();
        let revision = mvcc.revision.saturating_add(by.max(0));
        (mvcc.revision, mvcc.compacted) = (revision, revision);
        mvcc.history = History::starting(revision);
        mvcc.history.push(Vec::new());
        let keys: Vec<Bytes> = mvcc.index.from(b"").map(|entry| entry.key.clone()).collect();
        for key in keys {
            mvcc.bytes -= mvcc.index.prune(&key, revision).min(mvcc.bytes);
        }
        mvcc
    }
}
