//! All kept rows in the order of their revisions, while the store goes on.

use super::Rows;
use crate::index::Entry;
use crate::{Header, Mvcc};
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// So many rows from before the compaction are put in order at a time...
const SORTED: usize = 256 << 10;
/// ...from so many keys looked at in one step.
const STEP: usize = 8192;

/// A row from before the compaction: its revision, its place in it, its key.
type Old = (i64, u32, Bytes);

/// Where an [`Export`] is.
#[derive(Debug)]
enum Stage {
    /// Looking for the first rows after `floor`: those found, the largest on top.
    Search { cursor: Option<Bytes>, found: BinaryHeap<Old>, overflow: bool },
    /// Giving out what was found; `overflow` when there are more after them.
    Found { rows: BinaryHeap<Reverse<Old>>, overflow: bool },
    /// Giving out what the history has: the next revision and the place in it.
    History { revision: i64, sub: usize },
}

/// A walk over the rows that a compaction leaves of a state. In the store's index keys are in order
/// and revisions are not: rows newer than the compaction are in order in the history, and the
/// others are sorted piece by piece, so that memory is bounded at the price of several passes.
///
/// While it is under way the store must be kept from compacting further: [`Mvcc::pin`].
#[derive(Debug)]
pub struct Export {
    revision: i64,
    compacted: i64,
    /// The last row from before the compaction that was given out.
    floor: (i64, u32),
    stage: Stage,
    /// How many rows are sorted at a time.
    sorted: usize,
}

impl Export {
    /// A walk over the state as of a snapshot's header.
    pub fn new(header: &Header) -> Self {
        Self::between(header.compacted, header.revision)
    }

    pub(super) fn between(compacted: i64, revision: i64) -> Self {
        let found = BinaryHeap::new();
        let stage = Stage::Search { cursor: None, found, overflow: false };
        Self { revision, compacted, floor: (0, 0), stage, sorted: SORTED }
    }

    /// Sorts at most so many rows at a time.
    #[must_use]
    pub fn sorting(mut self, rows: usize) -> Self {
        self.sorted = rows.max(1);
        self
    }

    /// The compacted revision that must be pinned.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// The first revision that the history has a record of.
    fn recorded(&self) -> i64 {
        self.compacted.max(2)
    }

    /// Does one step, which is short: appends rows until they take about `size` bytes more, or
    /// looks at some keys. Returns whether there is more to do.
    pub fn step(&mut self, mvcc: &Mvcc, size: usize, rows: &mut Rows) -> bool {
        let limit = rows.bytes() + size;
        self.next(mvcc, &mut |key, version| {
            rows.push(key, version);
            rows.bytes() < limit
        })
    }

    /// The same with each row given to `take`, until it says that it is enough.
    pub(super) fn next(
        &mut self,
        mvcc: &Mvcc,
        take: &mut dyn FnMut(&Bytes, &crate::index::Version) -> bool,
    ) -> bool {
        match &mut self.stage {
            Stage::Search { .. } => self.search(mvcc),
            Stage::Found { rows, overflow } => {
                while let Some(Reverse((revision, sub, key))) = rows.pop() {
                    self.floor = (revision, sub);
                    let entry = mvcc.index.get(&key);
                    if let Some((key, version)) = entry.and_then(|e| old(e, self.compacted))
                        && !take(key, version)
                    {
                        return true;
                    }
                }
                self.stage = if *overflow {
                    Stage::Search { cursor: None, found: BinaryHeap::new(), overflow: false }
                } else {
                    Stage::History { revision: self.recorded(), sub: 0 }
                };
                true
            }
            Stage::History { revision, sub } => {
                while *revision <= self.revision {
                    let keys = mvcc.history.keys(*revision);
                    while let Some(key) = keys.get(*sub) {
                        let place = *sub as u32;
                        *sub += 1;
                        let Some(entry) = mvcc.index.get(key) else { continue };
                        let Some((version, _)) = entry.exact(*revision, place) else { continue };
                        // What a later write of the same revision replaced went with a compaction
                        // at it.
                        let replaced = *revision == self.compacted
                            && entry.at(*revision).is_some_and(|newest| newest.sub != place);
                        if !replaced && !take(&entry.key, version) {
                            return true;
                        }
                    }
                    (*revision, *sub) = (*revision + 1, 0);
                }
                false
            }
        }
    }

    fn search(&mut self, mvcc: &Mvcc) -> bool {
        let recorded = self.recorded();
        let Stage::Search { cursor, found, overflow } = &mut self.stage else { return true };
        let start = cursor.as_deref().unwrap_or_default();
        let mut last = None;
        // Keys that were written first after the compaction are passed, however many there are.
        let entries = if self.compacted < 2 { 0 } else { STEP };
        for entry in mvcc.index.from(start).take(entries) {
            last = Some(&entry.key);
            if cursor.as_ref() == last {
                continue;
            }
            let Some((key, version)) = old(entry, self.compacted) else { continue };
            let place = (version.mod_revision, version.sub);
            if version.mod_revision >= recorded || place <= self.floor {
                continue;
            }
            if found.len() < self.sorted {
                found.push((place.0, place.1, key.clone()));
            } else {
                *overflow = true;
                if let Some(mut largest) = found.peek_mut()
                    && place < (largest.0, largest.1)
                {
                    *largest = (place.0, place.1, key.clone());
                }
            }
        }
        match last {
            // The last key was looked at again: there are no more.
            Some(key) if cursor.as_ref() != Some(key) => *cursor = Some(key.clone()),
            _ => {
                // Turned round as a heap and not sorted, because steps are to be short.
                let found = std::mem::take(found).into_vec().into_iter().map(Reverse);
                self.stage = Stage::Found { rows: found.collect(), overflow: *overflow };
            }
        }
        true
    }
}

/// What a compaction leaves of an entry's past.
fn old(entry: &Entry, compacted: i64) -> Option<(&Bytes, &crate::index::Version)> {
    entry.live_at(compacted).map(|version| (&entry.key, version))
}
