//! Which revision was known to exist when.

use crate::history::{History, Item, Moment, Output};

/// The revisions that answers and watch items have proved, by time.
#[derive(Debug, Default)]
pub struct Timeline {
    /// When, and the newest revision that was proved until then.
    floors: Vec<(u64, i64)>,
    /// By revision: the first moment at which it was proved to exist.
    proved: Vec<Moment>,
}

impl Timeline {
    /// Reads the proofs out of a history.
    pub fn of(history: &History) -> Self {
        let mut proofs: Vec<(Moment, i64)> = Vec::new();
        for operation in &history.operations {
            let revision = match &operation.output {
                Output::Range(range) => range.revision,
                Output::Txn(txn) => txn.revision,
                Output::Revision(revision) => *revision,
                Output::Lease(_) | Output::Refused(_) | Output::Unknown => continue,
            };
            proofs.push((operation.returned, revision));
        }
        for (moment, item) in history.watches.iter().flat_map(|watch| &watch.items) {
            match item {
                Item::Events(revision, _) | Item::Progress(revision) => {
                    proofs.push((*moment, *revision));
                }
                Item::Compacted(_) => {}
            }
        }
        proofs.sort_unstable();
        let last = proofs.iter().map(|(_, revision)| *revision).max().unwrap_or(1).max(1);
        let never = Moment { order: u64::MAX, time: std::time::Duration::MAX };
        let mut proved = vec![never; last as usize + 1];
        for (moment, revision) in proofs.iter().rev() {
            if let Some(at) = proved.get_mut((*revision).max(0) as usize) {
                *at = *moment;
            }
        }
        for revision in (1..proved.len()).rev() {
            proved[revision - 1] = proved[revision - 1].min(proved[revision]);
        }
        let mut newest = 1;
        let floors = proofs
            .into_iter()
            .map(|(moment, revision)| {
                newest = newest.max(revision);
                (moment.order, newest)
            })
            .collect();
        Self { floors, proved }
    }

    /// The newest revision that anybody has seen.
    pub fn last(&self) -> i64 {
        self.proved.len().saturating_sub(1).max(1) as i64
    }

    /// The newest revision that had been seen before a moment.
    pub fn floor(&self, before: Moment) -> i64 {
        match self.floors.partition_point(|(order, _)| *order < before.order) {
            0 => 1,
            at => self.floors[at - 1].1,
        }
    }

    /// The first moment at which this revision was known to exist.
    pub fn proved(&self, revision: i64) -> Moment {
        self.proved[usize::try_from(revision).unwrap_or(0).min(self.proved.len() - 1)]
    }
}
