//! What the handle, the writer, the watchers and the timers share.

use crate::Options;
use crate::checksums::Checksums;
use crate::lease::Lessor;
use crate::members::Members;
use crate::queue::{Queue, Reply, Request};
use crate::watch::{Hub, lock};
use crate::wire::{Ask, Told};
use crate::writer::{Abandon, Writer};
use dhow_clock::SharedClock;
use dhow_kv::Error;
use dhow_kv::admin::{AuthStatus, Identity};
use dhow_log::Directory;
use dhow_mvcc::{Command, Machine, Outcome};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, Weak,
};
use tokio::sync::{Notify, oneshot, watch};

/// What all members agree on.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Keys, leases, users, alarms.
    pub(crate) machine: Machine,
    /// The members.
    pub(crate) members: Members,
    /// Who still reads what compactions would drop: the compacted revision that each began with.
    holds: BTreeMap<u64, i64>,
}

impl State {
    pub(crate) fn new(machine: Machine, members: Members) -> Self {
        Self { machine, members, holds: BTreeMap::new() }
    }

    /// Keeps what compactions beyond a revision would drop for reader `who`, until called with
    /// `None`.
    pub(crate) fn hold(&mut self, who: u64, compacted: Option<i64>) {
        match compacted {
            Some(compacted) => drop(self.holds.insert(who, compacted)),
            None => drop(self.holds.remove(&who)),
        }
        let oldest = self.holds.values().min().copied();
        self.machine.mvcc.hold(oldest);
    }

    /// Replaces what all agree on; those who read the old one find out.
    pub(crate) fn replace(&mut self, machine: Machine, members: Members) {
        *self = Self::new(machine, members);
    }
}

/// Reader `who` of [`State::hold`] that writes a checkpoint. Members are readers by their
/// identifiers.
pub(crate) const CHECKPOINT: u64 = 0;

/// A caller that writes for others, too, lets the writer's thread go on after so many batches.
const TURNS: usize = 8;

/// Numbers that are read without a lock.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    pub(crate) term: AtomicU64,
    pub(crate) leader: AtomicU64,
    pub(crate) commit: AtomicU64,
    pub(crate) applied: AtomicU64,
    pub(crate) learner: AtomicBool,
    /// Whether writes are refused because there is no space on the disk.
    pub(crate) full: AtomicBool,
    /// What the log takes on the disk.
    pub(crate) log_bytes: AtomicU64,
    /// What the newest checkpoint takes.
    pub(crate) checkpoint_bytes: AtomicU64,
    /// The revision of the rules, doubled, and 1 more when users are asked for.
    rules: AtomicU64,
}

impl Numbers {
    /// Takes note of the rules. Call it where they may have changed, before others see the state.
    pub(crate) fn note_rules(&self, machine: &Machine) {
        let AuthStatus { enabled, revision } = machine.auth().status();
        self.rules.store(revision << 1 | u64::from(enabled), Ordering::Release);
    }

    /// The rules: every request asks, and most have nothing else to wait for.
    pub(crate) fn rules(&self) -> AuthStatus {
        let rules = self.rules.load(Ordering::Acquire);
        AuthStatus { enabled: rules & 1 == 1, revision: rules >> 1 }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    state: RwLock<State>,
    pub(crate) hub: Hub,
    pub(crate) lessor: Arc<Lessor>,
    pub(crate) queue: Queue,
    pub(crate) checksums: Checksums,
    pub(crate) clock: SharedClock,
    pub(crate) options: Options,
    pub(crate) identity: Identity,
    pub(crate) numbers: Numbers,
    /// Whether this member decides alone: its state is the newest that there is.
    pub(crate) alone: AtomicBool,
    /// The leader, 0 when there is none.
    pub(crate) leader: watch::Sender<u64>,
    /// Whether this member has been removed, or the store has stopped.
    pub(crate) gone: watch::Sender<bool>,
    /// Whether time matters: not to a member that decides alone.
    ticking: AtomicBool,
    /// Told when time begins to matter.
    pub(crate) ticks: Notify,
    /// The data directory, as long as the writer has it.
    pub(crate) directory: Weak<Directory>,
    /// The second in which tokens were looked through last.
    pub(crate) swept: AtomicU64,
    /// Numbers for readers that hold back compactions.
    readers: AtomicU64,
    /// Whoever holds the writer writes.
    pub(crate) writer: Mutex<Option<Writer>>,
    /// Whoever asks writes, instead of the thread of the writer's: see [`Shared::enqueue`].
    caller_writes: AtomicBool,
}

impl Shared {
    pub(crate) fn new(
        state: State,
        identity: Identity,
        directory: Weak<Directory>,
        clock: SharedClock,
        options: Options,
    ) -> Self {
        let caller_writes = AtomicBool::new(options.inline);
        let numbers = Numbers::default();
        numbers.note_rules(&state.machine);
        Self {
            hub: Hub::new(state.machine.mvcc.revision()),
            state: RwLock::new(state),
            lessor: Arc::new(Lessor::new(options.lease_checkpoint)),
            queue: Queue::default(),
            checksums: Checksums::default(),
            clock,
            options,
            identity,
            numbers,
            alone: AtomicBool::new(false),
            leader: watch::Sender::new(0),
            gone: watch::Sender::new(false),
            ticking: AtomicBool::new(false),
            ticks: Notify::new(),
            directory,
            swept: AtomicU64::new(0),
            readers: AtomicU64::new(1 << 63),
            writer: Mutex::new(None),
            caller_writes,
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for [`State::hold`] that nobody else has.
    pub(crate) fn reader(&self) -> u64 {
        self.readers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn set_ticking(&self, ticking: bool) {
        if !self.ticking.swap(ticking, Ordering::AcqRel) && ticking {
            self.ticks.notify_one();
        }
    }

    pub(crate) fn is_ticking(&self) -> bool {
        self.ticking.load(Ordering::Acquire)
    }

    /// Refuses what comes from now on, and lets go of the disk of a writer without a thread.
    pub(crate) fn close(&self) {
        self.queue.close();
        if self.options.inline {
            *lock(&self.writer) = None;
            self.queue.abandon();
        }
        self.gone.send_replace(true);
    }

    /// Takes note of how long the disk takes to make a batch durable.
    pub(crate) fn note_pace(&self, quick: bool) {
        self.caller_writes.store(quick || self.options.inline, Ordering::Release);
    }

    /// Has the writer run a request: in its thread, or here and now if there is no thread, or if
    /// waking it and being woken by it would take longer than the disk does.
    pub(crate) fn enqueue(&self, request: Request) {
        let first = self.queue.push(request);
        if !self.caller_writes.load(Ordering::Acquire) {
            if first {
                self.queue.wake();
            }
            return;
        }
        let abandon = Abandon(self);
        let done = self.write_here();
        if done {
            std::mem::forget(abandon);
        }
    }

    /// Does what is in the queue unless somebody else is at it. Returns whether anybody can write.
    fn write_here(&self) -> bool {
        // Whoever has the writer looks for more before and after letting go of it, so that nothing
        // stays behind.
        let mut turns = 0;
        while !self.queue.is_empty() {
            let mut writer = match self.writer.try_lock() {
                Ok(writer) => writer,
                Err(TryLockError::WouldBlock) => return true,
                // Whoever had it has panicked in the middle of something.
                Err(TryLockError::Poisoned(_)) => return false,
            };
            let Some(writer) = &mut *writer else { return false };
            if self.options.inline {
                writer.run_inline(self);
                continue;
            }
            turns += 1;
            if writer.run_here(self) || turns == TURNS {
                self.queue.wake();
                return true;
            }
        }
        true
    }

    /// Refuses everything from now on, because nobody writes any more.
    pub(crate) fn abandon(&self) {
        self.queue.abandon();
        self.gone.send_replace(true);
    }

    async fn ask_writer<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(request(reply));
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    /// Runs a command and waits until it is durable and applied here.
    pub(crate) async fn submit(&self, command: Command, physical: bool) -> Result<Outcome, Error> {
        self.ask_writer(|reply| Request::Command { command, physical, term: 0, reply }).await
    }

    /// The same, only as the leader in a term.
    pub(crate) async fn submit_in(&self, term: u64, command: Command) -> Result<Outcome, Error> {
        self.ask_writer(|reply| Request::Command { command, physical: false, term, reply }).await
    }

    /// Completes when everything is applied here that was acknowledged anywhere before the call.
    pub(crate) async fn catch_up(&self) -> Result<(), Error> {
        if self.alone.load(Ordering::Acquire) {
            return Ok(());
        }
        self.ask_writer(|reply| Request::Read { reply }).await
    }

    /// Has the leader do something.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Told, Error> {
        self.ask_writer(|reply| Request::Ask { ask, reply }).await
    }

    pub(crate) async fn transfer(&self, target: u64) -> Result<(), Error> {
        self.ask_writer(|reply| Request::Transfer { target, reply }).await
    }

    /// Has a checkpoint written and the log trimmed.
    pub(crate) async fn checkpoint(&self) -> Result<(), Error> {
        self.ask_writer(|reply| Request::Checkpoint { reply }).await
    }
}
