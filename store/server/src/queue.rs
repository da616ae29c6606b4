//! Requests on their way to the writer.

use crate::watch::lock;
use bytes::Bytes;
use dhow_kv::Error;
use dhow_mvcc::{Command, Outcome};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use tokio::sync::oneshot;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the writer is asked or told.
#[derive(Debug)]
pub(crate) enum Request {
    /// Run a command. With `physical` a compaction answers when its space is free.
    Command { command: Command, physical: bool, reply: Reply<Outcome> },
    /// Tell a lease's keys.
    LeaseKeys { id: i64, reply: Reply<Vec<Bytes>> },
    /// The checkpoint at `index` has been written (with its size), or not.
    Checkpointed { index: u64, result: Result<u64, dhow_log::Error> },
}

#[derive(Debug, Default)]
struct Pending {
    requests: VecDeque<Request>,
    closed: bool,
}

/// See the module.
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
        pending.requests.push_back(request);
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

    /// Closes the queue and drops what nobody will answer any more.
    pub(crate) fn abandon(&self) {
        let mut pending = lock(&self.pending);
        pending.closed = true;
        pending.requests.clear();
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.pending).closed
    }

    /// Moves what has arrived into `batch`, which is empty, waiting for something if `wait`. Returns whether the
    /// writer should go on.
    pub(crate) fn take(&self, batch: &mut VecDeque<Request>, wait: bool) -> bool {
        let mut pending = lock(&self.pending);
        while wait && pending.requests.is_empty() && !pending.closed {
            pending = self.arrived.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut pending.requests, batch);
        !(pending.closed && batch.is_empty())
    }
}
