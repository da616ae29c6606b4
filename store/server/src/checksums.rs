//! Checksums of compactions. etcd computes one over the history up to each compaction before that drops
//! anything, keeps the newest ones, and tells them to whoever asks for those revisions afterwards.

use crate::maintenance::{Hold, finish_hash};
use crate::shared::{Shared, State};
use dhow_kv::admin::HashKv;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;

/// So many are kept, as in etcd.
const KEPT: usize = 10;

/// A compaction whose checksum is to be computed.
#[derive(Debug, Clone, Copy)]
struct Due {
    /// The compacted revision before, and since.
    before: i64,
    at: i64,
    /// Who keeps it from dropping anything.
    reader: u64,
}

#[derive(Debug, Default)]
struct Known {
    due: VecDeque<Due>,
    /// Those that are computed, by revision.
    kept: Vec<HashKv>,
    /// Whether a thread is at it.
    running: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Checksums(watch::Sender<Known>);

impl Default for Checksums {
    fn default() -> Self {
        Self(watch::Sender::new(Known::default()))
    }
}

impl Checksums {
    /// Takes note of a compaction that was carried out on the state and has dropped nothing yet.
    pub(crate) fn add(&self, shared: &Shared, state: &mut State, before: i64, at: i64) {
        if shared.options.compaction_checksums {
            let reader = shared.reader();
            state.hold(reader, Some(before));
            self.0.send_modify(|known| known.due.push_back(Due { before, at, reader }));
        }
    }

    /// Whether there is something to compute, and nobody at it.
    pub(crate) fn is_due(&self) -> bool {
        let known = self.0.borrow();
        !known.running && !known.due.is_empty()
    }

    /// The checksum of a compaction at a revision, if there was one; waits until it is computed.
    pub(crate) async fn at(&self, revision: i64) -> Option<HashKv> {
        let mut known = self.0.subscribe();
        let done = known.wait_for(|known| known.due.iter().all(|due| due.at != revision)).await;
        done.ok()?.kept.iter().find(|kept| kept.hash_revision == revision).copied()
    }

    /// Computes in a thread of its own what is due.
    pub(crate) fn beside(shared: &Arc<Shared>) {
        let checksums = &shared.checksums;
        if !checksums.is_due() {
            return;
        }
        checksums.0.send_modify(|known| known.running = true);
        let their = shared.clone();
        let thread = std::thread::Builder::new().name("store-checksum".into());
        if let Err(error) = thread.spawn(move || their.checksums.work(&their)) {
            tracing::warn!(%error, "no thread for the checksum of a compaction; it is left out");
            checksums.work_with(shared, |_| None);
        }
    }

    /// Computes what is due.
    pub(crate) fn work(&self, shared: &Shared) {
        self.work_with(shared, |due| {
            let begin = |state: &State| Ok(state.machine.mvcc.hash_compaction(due.before, due.at));
            let (_hold, run) = Hold::begin(shared, begin, |_| due.before).ok()?;
            finish_hash(shared, run).ok()
        });
    }

    fn work_with(&self, shared: &Shared, compute: impl Fn(Due) -> Option<HashKv>) {
        // Whatever happens, nobody waits for it in vain and nothing is held.
        let _end = End(self, shared);
        loop {
            let next = self.0.borrow().due.front().copied();
            let Some(due) = next else { return };
            let found = if shared.queue.is_closed() { None } else { compute(due) };
            self.0.send_modify(|known| {
                known.due.pop_front();
                known.kept.extend(found);
                known.kept.sort_by_key(|kept| kept.hash_revision);
                let old = known.kept.len().saturating_sub(KEPT);
                known.kept.drain(..old);
            });
            shared.write().hold(due.reader, None);
        }
    }
}

/// The end of a thread.
struct End<'a>(&'a Checksums, &'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut left = VecDeque::new();
        self.0.0.send_modify(|known| {
            // All were computed, unless a panic came between.
            if std::thread::panicking() {
                left = std::mem::take(&mut known.due);
            }
            known.running = false;
        });
        for due in left {
            self.1.write().hold(due.reader, None);
        }
        // What was held can be worked off now, and what came meanwhile is due.
        self.1.queue.wake();
    }
}
