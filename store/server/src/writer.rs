//! The single writer: apply a batch, log it, sync once, publish, answer.

use crate::journal::Journal;
use crate::queue::{Reply, Request};
use crate::store::Shared;
use bytes::Bytes;
use dhow_kv::Error;
use dhow_mvcc::{Command, Mvcc, Outcome};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// At most so many requests share one sync...
const BATCH: usize = 1024;
/// ...and at most so many bytes of them (more only for a single larger request).
const BATCH_BYTES: usize = 4 << 20;
/// So many revisions of a compaction are worked off under one lock.
const PRUNE: usize = 256;
/// Automatic compaction begins when it can drop this many revisions.
const COMPACT_STEP: i64 = 512;
/// Ages of revisions are known to about this much.
const SAMPLE: Duration = Duration::from_secs(10);

/// An answer that waits for the sync.
enum Answer {
    Outcome(Reply<Outcome>, Result<Outcome, Error>),
    Physical(Reply<Outcome>, Outcome),
    Keys(Reply<Vec<Bytes>>, Vec<Bytes>),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Writer {
    /// The log; none for a volatile store.
    journal: Option<Journal>,
    /// Why nothing can be written any more.
    failed: Option<Error>,
    /// Revisions up to the second were all written before the first.
    samples: VecDeque<(Duration, i64)>,
    /// Who waits for a compaction to be worked off, and what they are told.
    physical: Vec<(Reply<Outcome>, Outcome)>,
}

/// However the writer ends, even by a panic, nobody waits for it in vain.
struct Abandon<'a>(&'a Shared);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.queue.abandon();
    }
}

impl Writer {
    /// A writer into `journal`, or one that keeps nothing.
    pub(crate) fn new(journal: Option<Journal>) -> Self {
        Self { journal, failed: None, samples: VecDeque::new(), physical: Vec::new() }
    }

    /// Works until the queue is closed.
    pub(crate) fn run(mut self, shared: &Arc<Shared>) {
        let _abandon = Abandon(shared);
        let mut pending = VecDeque::new();
        let mut untidy = false;
        while shared.queue.take(&mut pending, !untidy) {
            while !pending.is_empty() {
                self.commit(shared, &mut pending);
            }
            untidy = self.tidy(shared);
            if let Some(journal) = &mut self.journal
                && self.failed.is_none()
            {
                journal.checkpoint_beside(shared);
            }
        }
        if let Some(journal) = self.journal {
            journal.close();
        }
    }

    /// Commits what is pending and tidies up, all in the caller.
    pub(crate) fn run_inline(&mut self, shared: &Shared, request: Request) {
        let mut pending = VecDeque::from([request]);
        while !pending.is_empty() {
            self.commit(shared, &mut pending);
        }
        while self.tidy(shared) {}
        if let Some(journal) = &mut self.journal
            && self.failed.is_none()
        {
            journal.checkpoint_here(shared);
        }
    }

    /// Takes as many requests as make a batch, and whether there is space for them in the log.
    fn gather(
        &mut self,
        pending: &mut VecDeque<Request>,
    ) -> (VecDeque<Request>, Result<(), Error>) {
        let (mut count, mut bytes, mut commands) = (0, 0, 0);
        for request in pending.iter().take(BATCH) {
            if let Request::Command { command, .. } = request {
                let size = Journal::entry_bound(command);
                if bytes > 0 && bytes + size > BATCH_BYTES {
                    break;
                }
                bytes += size;
                commands += 1;
            }
            count += 1;
        }
        let rest = pending.split_off(count);
        let batch = std::mem::replace(pending, rest);
        let ready = match (&self.failed, &mut self.journal) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(journal)) if commands > 0 => journal.reserve(bytes, commands),
            _ => Ok(()),
        };
        (batch, ready)
    }

    /// Takes a batch through apply, log, sync, publish and answer.
    fn commit(&mut self, shared: &Shared, pending: &mut VecDeque<Request>) {
        let (batch, ready) = self.gather(pending);
        let mut answers = Vec::with_capacity(batch.len());
        let mut leases = Vec::new();
        let revision;
        {
            let mut mvcc = shared.write();
            for request in batch {
                match request {
                    Request::LeaseKeys { id, reply } => {
                        answers.push(Answer::Keys(reply, mvcc.lease_keys(id)));
                    }
                    Request::Checkpointed { index, result } => {
                        mvcc.hold(None);
                        if let Some(journal) = &mut self.journal {
                            journal.checkpointed(index, result);
                        }
                    }
                    Request::Command { command, physical, reply } => {
                        let result = ready
                            .clone()
                            .and_then(|()| self.apply(shared, &mut mvcc, &command, &mut leases));
                        answers.push(match result {
                            Ok(outcome) if physical => Answer::Physical(reply, outcome),
                            result => Answer::Outcome(reply, result),
                        });
                    }
                }
            }
            if ready.is_ok() {
                self.compact(shared, &mut mvcc, &mut leases);
            }
            revision = mvcc.revision();
        }
        if self.failed.is_none()
            && let Some(journal) = &mut self.journal
            && let Err(error) = journal.write()
        {
            tracing::error!(%error, "the store cannot write any more; reads go on");
            self.failed = Some(Error::Storage(error.to_string()));
        }
        if let Some(error) = &self.failed {
            // What was applied is not known to be durable, and any answer may rest on it.
            self.refuse(answers, error);
            return;
        }
        let now = shared.clock.monotonic();
        for (id, granted) in leases {
            match granted {
                Some(ttl) => shared.lessor.granted(id, ttl, now),
                None => shared.lessor.revoked(id),
            }
        }
        shared.hub.publish(&shared.read(), revision);
        for answer in answers {
            // Whoever asked may have gone; that is their right.
            match answer {
                Answer::Outcome(reply, result) => drop(reply.send(result)),
                Answer::Keys(reply, keys) => drop(reply.send(Ok(keys))),
                Answer::Physical(reply, outcome) => self.physical.push((reply, outcome)),
            }
        }
    }

    fn refuse(&self, answers: Vec<Answer>, error: &Error) {
        for answer in answers {
            match answer {
                Answer::Outcome(reply, _) | Answer::Physical(reply, _) => {
                    drop(reply.send(Err(error.clone())));
                }
                Answer::Keys(reply, _) => drop(reply.send(Err(error.clone()))),
            }
        }
    }

    /// Applies a command and puts it into the log's batch. What becomes of leases is noted for when
    /// it is durable.
    fn apply(
        &mut self,
        shared: &Shared,
        mvcc: &mut Mvcc,
        command: &Command,
        leases: &mut Vec<(i64, Option<i64>)>,
    ) -> Result<Outcome, Error> {
        let quota = shared.options.quota_bytes;
        let growth = command.cost();
        if quota > 0 && growth > 0 && mvcc.bytes() + growth > quota {
            return Err(Error::NoSpace);
        }
        let applied = mvcc.apply(command)?;
        match command {
            Command::LeaseGrant { id, ttl } => leases.push((*id, Some(*ttl))),
            Command::LeaseRevoke { id } => leases.push((*id, None)),
            _ => {}
        }
        if applied.changed
            && let Some(journal) = &mut self.journal
        {
            journal.add(mvcc.revision(), command);
        }
        Ok(applied.outcome)
    }

    /// Forgets what the retention does not keep, once that is worth a step.
    fn compact(&mut self, shared: &Shared, mvcc: &mut Mvcc, leases: &mut Vec<(i64, Option<i64>)>) {
        let Some(retention) = shared.options.retention else { return };
        let newest = mvcc.revision();
        let now = shared.clock.monotonic();
        match self.samples.back_mut() {
            Some((until, revision)) if now <= *until => *revision = newest,
            _ => self.samples.push_back((now + SAMPLE, newest)),
        }
        // The newest sample that is old enough stays in front.
        while self.samples.get(1).is_some_and(|(at, _)| *at + retention.age <= now) {
            self.samples.pop_front();
        }
        let old = match self.samples.front() {
            Some((at, revision)) if *at + retention.age <= now => *revision,
            _ => 0,
        };
        let until = (newest - retention.newest).min(old).max(newest - retention.most);
        if until - mvcc.compacted() < COMPACT_STEP {
            return;
        }
        if let Err(error) = self.apply(shared, mvcc, &Command::Compact(until), leases) {
            tracing::warn!(%error, revision = until, "the history could not be compacted");
        }
    }

    /// Does one step of what can wait. Returns whether there is more.
    fn tidy(&mut self, shared: &Shared) -> bool {
        if self.failed.is_some() {
            // The compaction may not be durable, and older state may be all that readers have.
            self.physical.clear();
            return false;
        }
        let more = shared.read().wants_prune() && shared.write().prune(PRUNE);
        if !more && !shared.read().is_held() {
            for (reply, outcome) in self.physical.drain(..) {
                drop(reply.send(Ok(outcome)));
            }
        }
        more
    }
}
