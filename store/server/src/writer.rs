//! The single writer: takes what has arrived, has consensus carry it out in one go, tidies up.

use crate::checksums::Checksums;
use crate::core::Core;
use crate::entry::Proposal;
use crate::journal::Checkpoints;
use crate::queue::{Reply, Request};
use crate::requests::{Reading, Whom};
use crate::shared::Shared;
use crate::watch::lock;
use dhow_kv::Error;
use dhow_kv::admin::{Alarm, AlarmKind};
use dhow_mvcc::{Command, Outcome, cost};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
/// What a lease takes of the quota.
const LEASE_COST: u64 = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Writer {
    core: Core,
    checkpoints: Checkpoints,
    /// Revisions up to the second were all written before the first.
    samples: VecDeque<(Duration, i64)>,
    /// The revision when a compaction was thought of last.
    looked: i64,
    /// A compaction up to here is under way.
    compacting: i64,
    /// This member's alarm about space was proposed, and is not known to have ended.
    alarmed: bool,
    /// What was taken from the queue; empty between turns.
    pending: VecDeque<Request>,
}

/// However the writer's thread ends, or a caller that writes panics, nobody waits for it in vain.
pub(crate) struct Abandon<'a>(pub(crate) &'a Shared);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Writes in a thread of its own until the queue is closed, as long as callers do not do it themselves.
pub(crate) fn run(shared: &Arc<Shared>) {
    let _abandon = Abandon(shared);
    let mut more = false;
    while more || shared.queue.wait() {
        // The requests are taken by whoever has the writer: their order stays.
        let Ok(mut writer) = shared.writer.lock() else { return };
        let Some(writer) = &mut *writer else { return };
        writer.work_off(shared);
        if writer.core.removed {
            break;
        }
        Checksums::beside(shared);
        more = writer.tidy(shared) && !shared.queue.is_closed();
        if writer.core.failed.is_none() {
            writer.checkpoints.beside(&mut writer.core, shared);
        }
    }
    // A checkpoint under way gives up when it sees this.
    shared.queue.close();
    let writer = lock(&shared.writer).take();
    if let Some(writer) = writer {
        if writer.core.removed {
            shared.hub.stop();
        }
        writer.checkpoints.close();
    }
}

impl Writer {
    pub(crate) fn new(core: Core, checkpoints: Checkpoints) -> Self {
        Self {
            core,
            checkpoints,
            samples: VecDeque::new(),
            looked: 0,
            compacting: 0,
            alarmed: false,
            pending: VecDeque::new(),
        }
    }

    /// Does what is in the queue.
    fn work_off(&mut self, shared: &Shared) {
        let mut pending = std::mem::take(&mut self.pending);
        loop {
            shared.queue.take(&mut pending);
            if pending.is_empty() || self.core.removed {
                break;
            }
            while !pending.is_empty() {
                self.commit(shared, &mut pending);
            }
        }
        self.pending = pending;
    }

    /// Does what is in the queue, in a caller. Returns whether the thread has something to do that may
    /// take longer.
    pub(crate) fn run_here(&mut self, shared: &Shared) -> bool {
        self.work_off(shared);
        self.core.removed
            || !self.core.physical.is_empty()
            || shared.read().machine.mvcc.wants_prune()
            || shared.checksums.is_due()
            || self.checkpoints.is_due(&self.core)
    }

    /// Does what is in the queue and tidies up, all in the caller.
    pub(crate) fn run_inline(&mut self, shared: &Shared) {
        self.work_off(shared);
        if self.core.removed {
            shared.abandon();
            shared.hub.stop();
            return;
        }
        if shared.checksums.is_due() {
            shared.checksums.work(shared);
        }
        while self.tidy(shared) {}
        if self.core.failed.is_none() {
            self.checkpoints.here(&mut self.core, shared);
        }
    }

    /// Takes as many requests as make a batch.
    fn gather(pending: &mut VecDeque<Request>) -> VecDeque<Request> {
        let (mut count, mut bytes) = (0, 0);
        for request in pending.iter().take(BATCH) {
            let size = match request {
                Request::Command { command, .. } => command.size_bound(),
                Request::Message { bytes, .. } => bytes.len(),
                _ => 0,
            };
            if bytes > 0 && bytes + size > BATCH_BYTES {
                break;
            }
            bytes += size;
            count += 1;
        }
        let rest = pending.split_off(count);
        std::mem::replace(pending, rest)
    }

    /// Takes a batch through consensus.
    fn commit(&mut self, shared: &Shared, pending: &mut VecDeque<Request>) {
        let mut proposals = Vec::new();
        for request in Self::gather(pending) {
            match request {
                Request::Command { command, physical, term, reply } => {
                    let whom = Whom::Client { reply, physical, term };
                    proposals.push((Proposal::Command(command), whom, 0));
                }
                Request::Read { reply } => self.read(shared, reply),
                Request::Ask { ask, reply } => self.core.ask(shared, ask, reply),
                Request::Transfer { target, reply } => {
                    self.core.begin_handover(shared, target, reply);
                }
                Request::Checkpoint { reply } => self.checkpoints.want(reply),
                Request::Checkpointed { index, records, result } => {
                    shared.write().hold(crate::shared::CHECKPOINT, None);
                    self.checkpoints.done(&mut self.core, shared, index, records, result);
                }
                Request::Message { from, bytes } => self.core.receive(shared, from, bytes),
                Request::Unreachable(to) => self.core.node.report_unreachable(to),
                Request::Tick => self.core.tick(shared),
                Request::Space => self.core.look_for_space(),
                Request::Expelled => {
                    tracing::warn!("another member says that this one has been removed");
                    self.core.removed = true;
                }
            }
        }
        self.core.elect_alone(shared);
        let revision = shared.hub.published();
        // Others' writes are not proposed here, but make history too.
        let grown = revision != self.looked && self.core.is_leader();
        if !proposals.is_empty() || (grown && shared.options.retention.is_some()) {
            self.looked = revision;
            let proposals = self.admit(shared, proposals);
            self.core.propose(shared, proposals);
        }
        self.core.drive(shared);
        // The other voters may just have gone.
        self.core.elect_alone(shared);
    }

    fn read(&mut self, shared: &Shared, reply: Reply<()>) {
        if shared.alone.load(Ordering::Acquire) {
            drop(reply.send(Ok(())));
        } else if let Some(error) = &self.core.failed {
            drop(reply.send(Err(error.clone())));
        } else {
            self.core.reading.push(Reading::Here(reply));
        }
    }

    /// Refuses what there is no space for, and adds a compaction if one is due.
    fn admit(
        &mut self,
        shared: &Shared,
        proposals: Vec<(Proposal, Whom, u64)>,
    ) -> Vec<(Proposal, Whom, u64)> {
        if let Some(error) = self.core.failed.clone() {
            for (_, whom, _) in proposals {
                self.core.give(whom, Err(error.clone()), &[]);
            }
            return Vec::new();
        }
        let quota = shared.options.quota_bytes;
        let state = shared.read();
        let mut used = state.machine.mvcc.bytes() + self.core.growing;
        let raised = state.machine.alarms().is_raised(AlarmKind::NoSpace);
        let (revision, compacted) = (state.machine.mvcc.revision(), state.machine.mvcc.compacted());
        drop(state);
        let mut admitted = Vec::with_capacity(proposals.len() + 1);
        let mut full = false;
        for (proposal, whom, _) in proposals {
            let growth = match &proposal {
                Proposal::Command(Command::Txn(txn) | Command::TxnAs { txn, .. }) => cost(txn),
                Proposal::Command(Command::LeaseGrant { .. }) => LEASE_COST,
                _ => 0,
            };
            if quota > 0 && growth > 0 && used + growth > quota {
                full = true;
                self.core.give(whom, Err(Error::NoSpace), &[]);
                continue;
            }
            used += growth;
            admitted.push((proposal, whom, growth));
        }
        if !full {
            self.alarmed = false;
        } else if shared.options.quota_alarm && !raised && !self.alarmed {
            self.alarmed = true;
            let alarm = Alarm { member: self.core.own, kind: AlarmKind::NoSpace };
            tracing::warn!(quota, "the quota is used up: an alarm is raised");
            let raise = Proposal::Command(Command::AlarmRaise(alarm));
            admitted.push((raise, Whom::Nobody, 0));
        }
        if let Some(until) = self.compaction(shared, revision, compacted) {
            let compact = Proposal::Command(Command::Compact(until));
            admitted.push((compact, Whom::Nobody, 0));
        }
        admitted
    }

    /// Up to where history is to be forgotten, once that is worth a step.
    fn compaction(&mut self, shared: &Shared, newest: i64, compacted: i64) -> Option<i64> {
        let retention = shared.options.retention?;
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
        if !self.core.is_leader() || until - compacted.max(self.compacting) < COMPACT_STEP {
            return None;
        }
        self.compacting = until;
        Some(until)
    }

    /// Does one step of what can wait. Returns whether there is more.
    fn tidy(&mut self, shared: &Shared) -> bool {
        let wants = shared.read().machine.mvcc.wants_prune();
        let more = wants && shared.write().machine.mvcc.prune(PRUNE);
        if !more && !shared.read().machine.mvcc.is_held() {
            for (reply, outcome) in self.core.physical.drain(..) {
                drop(reply.send(Ok::<Outcome, Error>(outcome)));
            }
        }
        more
    }
}
