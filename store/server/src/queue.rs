//! Requests on their way to the writer.

use crate::watch::lock;
use crate::wire::{Ask, Told};
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
    /// Run a command. With `physical` a compaction answers when its space is free; with a `term`
    /// it is refused if this member does not lead in it.
    Command { command: Command, physical: bool, term: u64, reply: Reply<Outcome> },
    /// Answer when everything is applied that was acknowledged anywhere.
    Read { reply: Reply<()> },
    /// Have the leader do something.
    Ask { ask: Ask, reply: Reply<Told> },
    /// Hand the leadership over.
    Transfer { target: u64, reply: Reply<()> },
    /// Write a checkpoint, trim the log.
    Checkpoint { reply: Reply<()> },
    /// The checkpoint at `index` has been written (with its size), or not.
    Checkpointed { index: u64, records: u64, result: Result<u64, dhow_log::Error> },
    /// A message of another member.
    Message { from: u64, bytes: Bytes },
    /// Messages to a member were dropped.
    Unreachable(u64),
    /// A heartbeat's time has passed.
    Tick,
    /// Look whether a disk that was full has space again.
    Space,
    /// Another member says that this one has been removed.
    Expelled,
}

#[derive(Debug, Default)]
struct Pending {
    requests: VecDeque<Request>,
    /// One tick stands for all that a writer that is held up has missed: the others did not wait
    /// for it either.
    ticked: bool,
    /// The writer's thread has something to do besides what is in the queue.
    woken: bool,
    closed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pending: Mutex<Pending>,
    arrived: Condvar,
}

impl Queue {
    /// Adds a request; when the store has stopped it is dropped, which its sender notices. Returns
    /// whether it is the first, whose sender must see to it that somebody looks.
    pub(crate) fn push(&self, request: Request) -> bool {
        let mut pending = lock(&self.pending);
        if pending.closed {
            return false;
        }
        if matches!(request, Request::Tick) && std::mem::replace(&mut pending.ticked, true) {
            return false;
        }
        pending.requests.push_back(request);
        pending.requests.len() == 1
    }

    /// Has the writer's thread look.
    pub(crate) fn wake(&self) {
        lock(&self.pending).woken = true;
        self.arrived.notify_one();
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

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.pending).requests.is_empty()
    }

    /// Waits for a request, for [`Queue::wake`], or for the end. Returns whether the writer should go on.
    pub(crate) fn wait(&self) -> bool {
        let mut pending = lock(&self.pending);
        while pending.requests.is_empty() && !pending.woken && !pending.closed {
            pending = self.arrived.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        pending.woken = false;
        !(pending.closed && pending.requests.is_empty())
    }

    /// Moves what has arrived into `batch`, which is empty.
    pub(crate) fn take(&self, batch: &mut VecDeque<Request>) {
        let mut pending = lock(&self.pending);
        pending.ticked = false;
        std::mem::swap(&mut pending.requests, batch);
    }
}
