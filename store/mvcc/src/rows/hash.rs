//! The checksum over the history, as etcd computes it (`server/storage/mvcc/hash.go`).

use super::{Export, Rows};
use crate::Mvcc;
use dhow_kv::Error;
use dhow_kv::admin::HashKv;

/// A checksum that is being computed, step by step, while the store goes on. The store must be kept
/// from compacting meanwhile: [`Mvcc::pin`] with [`HashRun::compacted`].
#[derive(Debug)]
pub struct HashRun {
    export: Export,
    row: Rows,
    crc: u32,
    compacted: i64,
    revision: i64,
    /// Whether any key is alive at the revision. If none is, etcd takes what it has from before the
    /// compaction for kept.
    any: bool,
}

impl Mvcc {
    /// Begins the checksum over the history up to `revision` (0 for `now`).
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::FutureRevision`].
    pub fn hash_kv(&self, revision: i64, now: i64) -> Result<HashRun, Error> {
        let compacted = self.compacted();
        if revision > 0 && revision < compacted {
            return Err(Error::Compacted);
        }
        if revision > now {
            return Err(Error::FutureRevision);
        }
        // A compaction may be applied that is not known to be durable yet.
        let revision = if revision <= 0 { now.max(compacted) } else { revision };
        let any = self.index.from(b"").any(|entry| entry.live_at(revision).is_some());
        Ok(HashRun::new(compacted, revision, any))
    }

    /// Begins the checksum that etcd computes while it carries out a compaction at revision `at`, when
    /// the one before was at `before`. That one must still be held or pinned.
    pub fn hash_compaction(&self, before: i64, at: i64) -> HashRun {
        // Unlike a checksum, a compaction keeps what its own revision has deleted.
        let any = !self.history.keys(at).is_empty()
            || self.index.from(b"").any(|entry| entry.live_at(at).is_some());
        HashRun::new(before, at, any)
    }
}

impl HashRun {
    fn new(compacted: i64, revision: i64, any: bool) -> Self {
        Self {
            export: Export::between(compacted, revision),
            row: Rows::default(),
            crc: crc32c::crc32c(b"key"),
            compacted,
            revision,
            any,
        }
    }

    /// The compacted revision that must be pinned.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Takes about `size` bytes more into the checksum, or looks at some keys. Returns the checksum
    /// at the end.
    pub fn step(&mut self, mvcc: &Mvcc, size: usize) -> Option<HashKv> {
        let mut taken = 0;
        let more = self.export.next(mvcc, &mut |key, version| {
            if version.mod_revision <= self.compacted {
                let holds = mvcc.index.get(key).and_then(|entry| entry.live_at(self.revision));
                let holds = holds.is_some_and(|holds| {
                    (holds.mod_revision, holds.sub) == (version.mod_revision, version.sub)
                });
                // A tombstone of the compacted revision itself never counts, since some versions of
                // etcd drop it and some do not.
                if !version.is_live() || self.any && !holds {
                    return true;
                }
            }
            self.row.clear();
            self.row.push(key, version);
            self.crc = crc32c::crc32c_append(self.crc, &self.row.bytes);
            taken += self.row.bytes();
            taken < size
        });
        // Before the first compaction etcd says -1.
        let compact_revision = if self.compacted > 0 { self.compacted } else { -1 };
        (!more).then_some(HashKv { hash: self.crc, compact_revision, hash_revision: self.revision })
    }
}
