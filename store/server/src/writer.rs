//! The single writer: apply a batch, log it, sync once, publish, answer.

use crate::store::Shared;
use crate::watch::lock;
use bytes::Bytes;
use dhow_kv::Error;
use dhow_mvcc::{Command, Mvcc, Outcome, cost};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// At most so many requests share one sync.
const BATCH: usize = 1024;
/// So many revisions of a compaction are worked off under one lock.
const PRUNE: usize = 256;
/// Automatic compaction begins when it can drop this many revisions.
const COMPACT_STEP: i64 = 512;
/// Ages of revisions are known to about this much.
const SAMPLE: Duration = Duration::from_secs(10);

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the writer is asked.
#[derive(Debug)]
pub(crate) enum Request {
    /// Run a command.
    Command { command: Command, physical: bool, reply: Reply<Outcome> },
    /// Tell a lease's keys.
    LeaseKeys { id: i64, reply: Reply<Vec<Bytes>> },
}

/// An answer that waits for the sync.
enum Answer {
    Outcome(Reply<Outcome>, Result<Outcome, Error>),
    Keys(Reply<Vec<Bytes>>, Vec<Bytes>),
}

#[derive(Debug, Default)]
struct Pending {
    requests: Vec<Request>,
    closed: bool,
}

/// Requests on their way to the writer's thread.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pending: Mutex<Pending>,
    arrived: Condvar,
}

impl Queue {
    /// Adds a request; when the store has stopped it is dropped, which its sender notices.
    pub(crate) fn push(&self, request: Request) {
        let mut pending = lock(&self.pending);
        if pending.closed {
            return;
        }
        pending.requests.push(request);
        // The writer looks before it sleeps, so only the first request needs to wake it.
        let first = pending.requests.len() == 1;
        drop(pending);
        if first {
            self.arrived.notify_one();
        }
    }

    pub(crate) fn close(&self) {
        lock(&self.pending).closed = true;
        self.arrived.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.pending).closed
    }

    /// Moves what has arrived into `batch`, waiting for something if `wait`. Returns whether the
    /// writer should go on.
    fn take(&self, batch: &mut Vec<Request>, wait: bool) -> bool {
        let mut pending = lock(&self.pending);
        while wait && pending.requests.is_empty() && !pending.closed {
            pending = self.arrived.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut pending.requests, batch);
        !(pending.closed && batch.is_empty())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Why nothing can be written any more.
    failed: Option<Error>,
    /// Revisions up to the second were all written before the first.
    samples: VecDeque<(Duration, i64)>,
    /// Who waits for a compaction to be worked off, and what they are told.
    physical: Vec<(Reply<Outcome>, Outcome)>,
}

impl Writer {
    /// A writer without a disk.
    pub(crate) fn volatile() -> Self {
        Self { failed: None, samples: VecDeque::new(), physical: Vec::new() }
    }

    /// Works until the queue is closed.
    pub(crate) fn run(mut self, shared: &Shared) {
        let mut batch = Vec::new();
        let mut untidy = false;
        while shared.queue.take(&mut batch, !untidy) {
            let mut rest = std::mem::take(&mut batch);
            while !rest.is_empty() {
                let after = rest.split_off(rest.len().min(BATCH));
                self.commit(shared, &mut rest);
                rest = after;
            }
            untidy = self.tidy(shared);
        }
    }

    /// Takes a batch through apply, log, sync, publish and answer.
    pub(crate) fn commit(&mut self, shared: &Shared, batch: &mut Vec<Request>) {
        let mut answers = Vec::with_capacity(batch.len());
        let revision;
        {
            let mut mvcc = shared.write();
            for request in batch.drain(..) {
                match request {
                    Request::LeaseKeys { id, reply } => {
                        answers.push(Answer::Keys(reply, mvcc.lease_keys(id)));
                    }
                    Request::Command { command, physical, reply } => {
                        let result = self.apply(shared, &mut mvcc, &command);
                        if physical && let Ok(outcome) = result {
                            self.physical.push((reply, outcome));
                        } else {
                            answers.push(Answer::Outcome(reply, result));
                        }
                    }
                }
            }
            self.compact(shared, &mut mvcc);
            revision = mvcc.revision();
        }
        shared.hub.publish(&shared.read(), revision);
        for answer in answers {
            // Whoever asked may have gone; that is their right.
            match answer {
                Answer::Outcome(reply, result) => drop(reply.send(result)),
                Answer::Keys(reply, keys) => drop(reply.send(Ok(keys))),
            }
        }
    }

    fn apply(
        &mut self,
        shared: &Shared,
        mvcc: &mut Mvcc,
        command: &Command,
    ) -> Result<Outcome, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let quota = shared.options.quota_bytes;
        let growth = match command {
            Command::Txn(txn) => cost(txn),
            Command::LeaseGrant { .. } => 64,
            Command::Compact(_) | Command::LeaseRevoke { .. } => 0,
        };
        if quota > 0 && growth > 0 && mvcc.bytes() + growth > quota {
            return Err(Error::NoSpace);
        }
        let applied = mvcc.apply(command)?;
        match command {
            Command::LeaseGrant { id, ttl } => {
                shared.lessor.granted(*id, *ttl, shared.clock.monotonic());
            }
            Command::LeaseRevoke { id } => shared.lessor.revoked(*id),
            Command::Txn(_) | Command::Compact(_) => {}
        }
        Ok(applied.outcome)
    }

    /// Forgets what the retention does not keep, once that is worth a step.
    fn compact(&mut self, shared: &Shared, mvcc: &mut Mvcc) {
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
        let _ = self.apply(shared, mvcc, &Command::Compact(until));
    }

    /// Does one step of what can wait. Returns whether there is more.
    pub(crate) fn tidy(&mut self, shared: &Shared) -> bool {
        let more = shared.read().wants_prune() && shared.write().prune(PRUNE);
        if !more {
            for (reply, outcome) in self.physical.drain(..) {
                drop(reply.send(Ok(outcome)));
            }
        }
        more
    }
}
