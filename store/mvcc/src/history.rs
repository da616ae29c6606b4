//! Which keys each revision wrote, for watches that catch up and for compaction.

use bytes::Bytes;
use std::collections::VecDeque;

/// The keys of one revision, in the order of the writes.
#[derive(Debug, Clone)]
enum Record {
    /// Most revisions write one key.
    One(Bytes),
    Many(Box<[Bytes]>),
}

impl Record {
    fn keys(&self) -> &[Bytes] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
        }
    }
}

/// A record per revision from `first` on, without gaps.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The revision of the first record.
    first: i64,
    records: VecDeque<Record>,
}

impl History {
    /// A history whose first record will be of revision `first`.
    pub(crate) fn starting(first: i64) -> Self {
        Self { first, records: VecDeque::new() }
    }

    /// Adds the record of the next revision.
    pub(crate) fn push(&mut self, mut keys: Vec<Bytes>) {
        let length = self.records.len();
        if length == self.records.capacity() {
            // In smaller steps than by doubling: there may be millions.
            self.records.reserve_exact((length / 4).max(64));
        }
        self.records.push_back(match keys.pop() {
            Some(only) if keys.is_empty() => Record::One(only),
            Some(last) => {
                keys.push(last);
                Record::Many(keys.into())
            }
            None => Record::Many(Box::default()),
        });
    }

    /// The first revision that is recorded (or would be).
    pub(crate) fn first(&self) -> i64 {
        self.first
    }

    /// The revision that the next record will be of.
    pub(crate) fn end(&self) -> i64 {
        self.first + self.records.len() as i64
    }

    /// The keys that `revision` wrote; nothing when it is not recorded.
    pub(crate) fn keys(&self, revision: i64) -> &[Bytes] {
        usize::try_from(revision - self.first)
            .ok()
            .and_then(|at| self.records.get(at))
            .map_or(&[], Record::keys)
    }

    /// The keys written after `revision`, or `None` when they are more than `most` or unknown.
    pub(crate) fn keys_after(&self, revision: i64, most: usize) -> Option<Vec<&Bytes>> {
        let skip = usize::try_from(revision + 1 - self.first).ok()?;
        if self.records.len().saturating_sub(skip) > most {
            return None;
        }
        let mut keys = Vec::new();
        for record in self.records.iter().skip(skip) {
            keys.extend(record.keys());
            if keys.len() > most {
                return None;
            }
        }
        Some(keys)
    }

    /// Removes and returns the first record if its revision is below `revision`.
    pub(crate) fn pop_below(&mut self, revision: i64) -> Option<Box<[Bytes]>> {
        if self.first >= revision {
            return None;
        }
        let record = self.records.pop_front()?;
        self.first += 1;
        if self.records.capacity() > 4096 && self.records.len() < self.records.capacity() / 4 {
            self.records.shrink_to(self.records.len() * 2);
        }
        Some(match record {
            Record::One(key) => Box::new([key]),
            Record::Many(keys) => keys,
        })
    }
}
