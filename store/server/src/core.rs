//! Consensus: Raft's decisions carried out. What is proposed is written, sent, and applied when it is
//! committed; nothing here waits for anybody.

use crate::entry::{self, Proposal, entry_size};
use crate::lease::Lessor;
use crate::members::Change;
use crate::membership::Heard;
use crate::queue::Reply;
use crate::raftlog::RaftLog;
use crate::requests::{Asked, Held, Reading, Round, Waiter, Whom};
use crate::shared::{Shared, State};
use crate::stand::Stand;
use crate::transfer::{Incoming, Outgoing};
use crate::wire::{Ask, Message};
use crate::{Cluster, Transport};
use bytes::Bytes;
use dhow_kv::Error;
use dhow_mvcc::{Command, Outcome};
use raft::eraftpb::{ConfState, Entry, Message as RaftMessage, MessageType};
use raft::{RawNode, StateRole};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// One message takes about this many bytes of entries.
pub(crate) const MESSAGE: u64 = 512 << 10;
/// So many messages of entries go to a follower ahead of its answers.
const AHEAD: usize = 128;
/// One step applies about this many bytes of entries.
const APPLY: u64 = 4 << 20;
/// The time of a request beside two election timeouts, as etcd's.
pub(crate) const REQUEST: Duration = Duration::from_secs(5);
/// To wake a thread takes about as long, and longer on a machine with nothing to do.
const QUICK: Duration = Duration::from_micros(30);
/// So many quick appends in a row make a quick disk.
const STEADY: u32 = 32;
/// With room for so many bytes a disk is not full.
const PROBE: usize = 4 << 10;

/// See the module.
pub(crate) struct Core {
    pub(crate) node: RawNode<RaftLog>,
    pub(crate) own: u64,
    pub(crate) cluster: Option<Cluster>,
    /// Why nothing can be written any more.
    pub(crate) failed: Option<Error>,
    /// The last attempt to write found no space; said once.
    pub(crate) full: bool,
    /// The number that was given to a request last.
    pub(crate) numbered: u64,
    pub(crate) waiters: BTreeMap<u64, Waiter>,
    /// What the proposals under way may take of the quota.
    pub(crate) growing: u64,
    /// Says which commands about leases may go into the log.
    pub(crate) lessor: Arc<Lessor>,
    /// Proposals that wait for a leader, or for the end of another change of the votes.
    pub(crate) held: Held,
    /// Proposals that a member refused that did not lead; tried again a little later.
    pub(crate) later: VecDeque<(u64, Bytes)>,
    /// Reads that begin with the next round.
    pub(crate) reading: Vec<Reading>,
    pub(crate) rounds: BTreeMap<u64, Round>,
    pub(crate) asked: BTreeMap<u64, Asked>,
    /// Questions that came before this leader knew all leases: who asked, by which number, and what.
    pub(crate) early: VecDeque<(u64, u64, Ask)>,
    /// The same of those who asked for the removal of this leader, while it hands over.
    pub(crate) leaving: Vec<(u64, u64, Ask)>,
    /// To whom this leader hands over, until when it waits for that, and who is told.
    pub(crate) transfer: Option<(u64, Duration, Reply<()>)>,
    /// Bytes and number of the entries that Raft has taken and that are not written yet.
    pub(crate) due: (usize, usize),
    pace: Pace,
    pub(crate) applied: u64,
    /// The term in which this member leads and knows everything from before.
    pub(crate) leads: u64,
    /// The leader and term as last seen.
    pub(crate) seen: (u64, u64),
    /// Ticks until this member asks for votes, and ticks so far.
    pub(crate) patience: usize,
    pub(crate) ticks: u64,
    /// Others' last words, by this member's clock.
    pub(crate) heard: BTreeMap<u64, Heard>,
    /// When this member last told its name and URLs.
    pub(crate) told: Option<Duration>,
    pub(crate) outgoing: BTreeMap<u64, Outgoing>,
    pub(crate) incoming: Option<Incoming>,
    /// Compactions that are done when they are worked off, and what to tell.
    pub(crate) physical: Vec<(Reply<Outcome>, Outcome)>,
    /// This member was removed.
    pub(crate) removed: bool,
    /// This member decides alone.
    pub(crate) alone: bool,
    /// It has been so since it knows everything that was acknowledged.
    pub(crate) knows_all: bool,
}

/// How long the log takes to be durable, lately.
#[derive(Debug, Default)]
struct Pace {
    /// Appends in a row that took less than [`QUICK`].
    quick: u32,
}

impl Pace {
    /// Takes note of an append. Returns whether the disk is quick: memory, or one that is told not to sync.
    fn note(&mut self, took: Duration) -> bool {
        self.quick = if took < QUICK { self.quick.saturating_add(1) } else { 0 };
        self.quick >= STEADY
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Core({:x}, applied {})", self.own, self.applied)
    }
}

/// Ticks of an election timeout.
fn election_ticks(cluster: Option<&Cluster>) -> usize {
    cluster.map_or(10, |cluster| {
        let heartbeat = cluster.heartbeat.as_millis().max(1);
        usize::try_from(cluster.election.as_millis() / heartbeat).unwrap_or(10).max(2)
    })
}

impl Core {
    /// A member that goes on where its log ends.
    pub(crate) fn new(log: RaftLog, shared: &Shared) -> Result<Self, raft::Error> {
        let own = log.identity().member_id;
        let applied = log.applied_index();
        let cluster = shared.options.cluster.clone();
        let election_tick = election_ticks(cluster.as_ref());
        let config = raft::Config {
            id: own,
            election_tick,
            // Chance comes from our clock and not from Raft's generator, so that runs can be
            // repeated; see `tick`. This leaves it no choice.
            min_election_tick: election_tick,
            max_election_tick: election_tick + 1,
            heartbeat_tick: 1,
            applied,
            max_size_per_msg: MESSAGE,
            max_inflight_msgs: AHEAD,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: 1 << 30,
            max_committed_size_per_ready: APPLY,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, log, &logger)?;
        let mut core = Self {
            node,
            own,
            cluster,
            failed: None,
            full: false,
            numbered: shared.clock.random() >> 1 | 1,
            waiters: BTreeMap::new(),
            growing: 0,
            lessor: shared.lessor.clone(),
            held: Held::default(),
            later: VecDeque::new(),
            reading: Vec::new(),
            rounds: BTreeMap::new(),
            asked: BTreeMap::new(),
            early: VecDeque::new(),
            leaving: Vec::new(),
            transfer: None,
            due: (0, 0),
            pace: Pace::default(),
            applied,
            leads: 0,
            seen: (0, 0),
            patience: 0,
            ticks: 0,
            heard: BTreeMap::new(),
            told: None,
            outgoing: BTreeMap::new(),
            incoming: None,
            physical: Vec::new(),
            removed: shared.read().members.is_removed(own),
            alone: false,
            // What was on this disk alone was applied when it was opened.
            knows_all: shared.read().members.is_alone(own),
        };
        // At first a little is enough: when there is a leader, the others will not vote against it.
        core.patience = 2 + shared.clock.random() as usize % core.node.raft.election_timeout();
        core.meet(shared);
        core.elect_alone(shared);
        core.drive(shared);
        Ok(core)
    }

    pub(crate) fn log_mut(&mut self) -> &mut RaftLog {
        self.node.mut_store()
    }

    pub(crate) fn transport(&self) -> Option<&Arc<dyn Transport>> {
        self.cluster.as_ref().map(|cluster| &cluster.transport)
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    pub(crate) fn leader(&self) -> u64 {
        self.node.raft.leader_id
    }

    pub(crate) fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// What a checkpoint of the state would be.
    pub(crate) fn stand(&self, state: &State) -> Stand {
        let log = self.node.store();
        Stand {
            index: self.applied,
            term: log.term_of(self.applied).unwrap_or_default(),
            cluster_id: log.identity().cluster_id,
            records: log.records_before(self.applied),
            members: state.members.clone(),
        }
    }

    /// Makes sure that what Raft is about to take can be written.
    pub(crate) fn reserve(&mut self, bytes: usize, entries: usize) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let (due, count) = self.due;
        match self.log_mut().reserve(due + bytes, count + entries) {
            Ok(()) => {
                self.due = (due + bytes, count + entries);
                if std::mem::take(&mut self.full) {
                    tracing::info!("the disk of the store has space again");
                }
                Ok(())
            }
            Err(error @ dhow_log::Error::Full { .. }) => {
                if !std::mem::replace(&mut self.full, true) {
                    tracing::warn!(%error, "writes are refused");
                }
                Err(Error::NoSpace)
            }
            Err(error) => {
                tracing::error!(%error, "a write is refused");
                let failed = self.node.store().disk.as_ref().is_some_and(|d| d.log.is_failed());
                let error = Error::Storage(error.to_string());
                if failed {
                    self.failed = Some(error.clone());
                }
                Err(error)
            }
        }
    }

    /// Whoever asks how a member is whose disk was full should not have to write to be told.
    pub(crate) fn look_for_space(&mut self) {
        if self.full {
            let due = self.due;
            let _ = self.reserve(PROBE, 1);
            self.due = due;
        }
    }

    /// A member that decides alone needs nobody's votes and no patience.
    pub(crate) fn elect_alone(&mut self, shared: &Shared) {
        if self.alone && !self.is_leader() && !self.removed && self.reserve(0, 1).is_ok() {
            if let Err(error) = self.node.campaign() {
                tracing::error!(%error, "the member cannot lead itself");
            }
            self.drive(shared);
        }
        if self.alone && shared.lessor.term() == 0 {
            // There is no space for its vote. Leases are its to keep all the same.
            shared.lessor.promote(self.term().max(1), shared.clock.monotonic());
        }
    }

    fn draw_patience(&mut self, shared: &Shared) {
        let timeout = self.node.raft.election_timeout();
        let random = usize::try_from(shared.clock.random() % timeout as u64).unwrap_or(0);
        self.patience = timeout + random;
    }

    /// A heartbeat's time has passed.
    pub(crate) fn tick(&mut self, shared: &Shared) {
        self.ticks += 1;
        if self.failed.is_some() {
            // It neither leads nor votes; the others go on without it.
            self.expire(shared);
            return;
        }
        if self.is_leader() {
            self.node.tick();
        } else {
            self.node.raft.election_elapsed += 1;
            let impatient = self.node.raft.election_elapsed >= self.patience;
            // A vote for itself must be written.
            if impatient && self.node.raft.promotable() && self.reserve(0, 1).is_ok() {
                self.node.raft.election_elapsed = 0;
                self.draw_patience(shared);
                let _ = self.node.campaign();
            }
        }
        self.expire(shared);
        // An answer may be lost, and a new leader may not have known enough when it was asked.
        if self.ticks.is_multiple_of(3) {
            self.held.extend(std::mem::take(&mut self.later));
            self.ask_rounds();
            self.ask_again(shared);
            self.tell_name(shared);
            self.tell_presence(shared);
            self.retry_transfers(shared);
        }
    }

    /// Carries out all that Raft wants.
    pub(crate) fn drive(&mut self, shared: &Shared) {
        loop {
            while self.failed.is_none() && !self.removed && self.node.has_ready() {
                self.drive_once(shared);
            }
            if self.failed.is_some() || self.removed {
                break;
            }
            self.notice(shared);
            self.begin_round(shared);
            if !self.node.has_ready() {
                break;
            }
        }
        self.due = (0, 0);
        // A member that decides alone needs no time, but whoever still waits for others must be
        // told when it is in vain.
        let others = !self.alone || self.is_waited_for();
        shared.set_ticking(self.cluster.is_some() && !self.removed && others);
        self.tell_numbers(shared);
        if let Some(error) = self.failed.clone() {
            self.fail(shared, &error);
        }
    }

    /// Whether somebody here waits for something.
    fn is_waited_for(&self) -> bool {
        !self.waiters.is_empty()
            || !self.asked.is_empty()
            || !self.rounds.is_empty()
            || !self.reading.is_empty()
            || !self.later.is_empty()
            || self.transfer.is_some()
    }

    fn tell_numbers(&self, shared: &Shared) {
        let numbers = &shared.numbers;
        numbers.term.store(self.term(), Ordering::Relaxed);
        numbers.commit.store(self.node.raft.raft_log.committed, Ordering::Relaxed);
        numbers.applied.store(self.applied, Ordering::Relaxed);
        numbers.full.store(self.full, Ordering::Relaxed);
        if let Some(disk) = &self.node.store().disk {
            numbers.log_bytes.store(disk.log.bytes(), Ordering::Relaxed);
        }
    }

    fn drive_once(&mut self, shared: &Shared) {
        let mut ready = self.node.ready();
        for message in ready.take_messages() {
            self.send(shared, message);
        }
        if !ready.snapshot().is_empty() {
            let metadata = ready.snapshot().get_metadata().clone();
            if let Err(error) = self.install(shared, &metadata) {
                tracing::error!(%error, "the leader's snapshot could not be taken over");
                self.failed = Some(Error::Storage(error.to_string()));
                return;
            }
        }
        let entries = ready.take_entries();
        if let Some(first) = entries.first()
            && first.index <= self.node.store().last()
        {
            self.lose(first.index);
        }
        if !entries.is_empty() || ready.must_sync() {
            let hard = self.node.raft.hard_state();
            let begun = shared.clock.monotonic();
            if let Err(error) = self.log_mut().append(entries, Some(hard)) {
                tracing::error!(%error, "the store cannot write any more; reads go on");
                self.failed = Some(Error::Storage(error.to_string()));
                return;
            }
            self.due = (0, 0);
            let quick = self.pace.note(shared.clock.monotonic() - begun);
            shared.note_pace(quick);
        }
        for message in ready.take_persisted_messages() {
            self.send(shared, message);
        }
        self.apply(shared, ready.take_committed_entries());
        for read in ready.take_read_states() {
            let id = read.request_ctx.get(8..16).and_then(|id| id.try_into().ok());
            let round = id.map(u64::from_le_bytes).and_then(|id| self.rounds.get_mut(&id));
            if let Some(round) = round {
                round.index = Some(read.index);
            }
        }
        let mut light = self.node.advance_append(ready);
        for message in light.take_messages() {
            self.send(shared, message);
        }
        self.apply(shared, light.take_committed_entries());
        self.node.advance_apply_to(self.applied);
        // Not sooner: what this proposes, Raft must not get before it has the `Ready` back.
        let applied_own = self.node.store().term_of(self.applied) == Some(self.term());
        if self.failed.is_none() && self.is_leader() && applied_own && self.leads != self.term() {
            self.lead(shared);
        }
        self.end_rounds(shared);
    }

    fn send(&mut self, shared: &Shared, message: RaftMessage) {
        if message.get_msg_type() == MessageType::MsgSnapshot {
            self.begin_transfer(shared, message);
        } else {
            self.say(message.to, &Message::Raft(message));
        }
    }

    /// Applies committed entries, shows what they did, and answers.
    fn apply(&mut self, shared: &Shared, entries: Vec<Entry>) {
        if entries.is_empty() || self.failed.is_some() {
            return;
        }
        let mut done = Done::default();
        let revision;
        let members;
        {
            let mut state = shared.write();
            for entry in &entries {
                self.applied = entry.index;
                if let Err(error) = self.apply_one(shared, &mut state, entry, &mut done) {
                    tracing::error!(%error, "an entry of the log cannot be applied");
                    self.failed = Some(error);
                    return;
                }
            }
            revision = state.machine.mvcc.revision();
            members = if done.changed { state.members.list() } else { Vec::new() };
        }
        if done.changed {
            self.doubt();
            self.meet(shared);
        }
        let (applied, alone) = (self.applied, self.alone);
        self.log_mut().applied(applied, done.conf, alone);
        let now = shared.clock.monotonic();
        for change in done.leases {
            match change {
                Leased::Granted(id, ttl) => shared.lessor.granted(id, ttl, now),
                Leased::Revoked(id) => shared.lessor.revoked(id),
                Leased::Noted(remaining) => shared.lessor.noted(&remaining),
            }
        }
        shared.hub.publish(&shared.read().machine.mvcc, revision);
        for (whom, result) in done.answers {
            self.give(whom, result, &members);
        }
        self.know_removed(&done.gone, &members);
    }

    /// Applies an entry to the state, and notes what is to be done about it.
    fn apply_one(
        &mut self,
        shared: &Shared,
        state: &mut State,
        entry: &Entry,
        done: &mut Done,
    ) -> Result<(), Error> {
        let payload = entry::payload(entry);
        if payload.is_empty() {
            state.machine.skip(entry.index);
            return Ok(());
        }
        let id = Proposal::id(payload);
        let waiter = if id == 0 { None } else { self.waiters.remove(&id) };
        let decoded;
        let proposal = match &waiter {
            Some(waiter) => &waiter.proposal,
            None => {
                let (_, proposal) = Proposal::decode(payload).map_err(|what| {
                    Error::Storage(format!(
                        "entry {} of the log cannot be read: {what}",
                        entry.index
                    ))
                })?;
                decoded = proposal;
                &decoded
            }
        };
        let result = match proposal {
            Proposal::Command(command) => {
                let compacted = state.machine.mvcc.compacted();
                let applied = state.machine.apply(entry.index, command);
                if let Command::Auth(_) = command {
                    shared.numbers.note_rules(&state.machine);
                }
                if applied.is_ok() {
                    note_lease(command, &mut done.leases);
                    if let Command::Compact(at) = command {
                        shared.checksums.add(shared, state, compacted, *at);
                    }
                }
                applied.map(|applied| applied.outcome)
            }
            Proposal::Member(change) => {
                state.machine.skip(entry.index);
                match state.members.apply(change) {
                    Ok(()) => {
                        self.members_changed(state, change, done)?;
                        Ok(Outcome::Done(state.machine.mvcc.revision()))
                    }
                    Err(refused) => Err(refused),
                }
            }
        };
        if let Some(waiter) = waiter {
            self.growing -= waiter.growth;
            done.answers.push((waiter.whom, result));
        }
        Ok(())
    }

    /// Follows a change of the members that was applied, and tells Raft if it is one of who votes.
    fn members_changed(
        &mut self,
        state: &mut State,
        change: &Change,
        done: &mut Done,
    ) -> Result<(), Error> {
        done.changed = true;
        if let Some(votes) = change.conf_change() {
            let conf = self.node.apply_conf_change(&votes);
            done.conf = Some(conf.map_err(|error| Error::Storage(error.to_string()))?);
        }
        if let Change::Remove(id) = change {
            state.hold(*id, None);
            done.gone.push(*id);
        }
        self.follow_change(change);
        Ok(())
    }

    /// What this member knew when it led, others may have added to since.
    pub(crate) fn doubt(&mut self) {
        self.knows_all &= self.is_leader() && self.leads == self.term();
    }

    /// This member knows everything that was acknowledged before it led.
    fn lead(&mut self, shared: &Shared) {
        self.leads = self.term();
        self.knows_all = true;
        shared.alone.store(self.alone, Ordering::Release);
        shared.lessor.promote(self.leads, shared.clock.monotonic());
        for (from, id, ask) in std::mem::take(&mut self.early) {
            self.answer(shared, from, id, ask);
        }
        self.ask_rounds();
        self.place_held();
    }

    /// Takes note of who leads.
    fn notice(&mut self, shared: &Shared) {
        let now = (self.leader(), self.term());
        if now == self.seen {
            if self.node.raft.lead_transferee.is_none() {
                self.leave_anyway(shared);
                if !self.node.raft.has_pending_conf() {
                    self.place_held();
                }
            }
            return;
        }
        let (before, _) = std::mem::replace(&mut self.seen, now);
        let (leader, term) = now;
        self.draw_patience(shared);
        if !self.is_leader() && self.leads != 0 {
            self.leads = 0;
            shared.lessor.demote();
            self.outgoing_end(shared);
            let early = std::mem::take(&mut self.early).into_iter();
            for (from, id, _) in early.chain(std::mem::take(&mut self.leaving)) {
                self.tell_changed(from, id);
            }
        }
        shared.numbers.leader.store(leader, Ordering::Relaxed);
        shared.leader.send_if_modified(|seen| std::mem::replace(seen, leader) != leader);
        if before != leader && self.cluster.is_some() {
            let own = leader == self.own;
            match leader {
                0 => tracing::warn!(term, "there is no leader"),
                _ => tracing::info!(leader = %format!("{leader:x}"), own, term, "leader"),
            }
        }
        if leader == 0 {
            return;
        }
        if self.transfer.as_ref().is_some_and(|(target, ..)| *target == leader)
            && let Some((_, _, reply)) = self.transfer.take()
        {
            drop(reply.send(Ok(())));
        }
        self.place_held();
        self.ask_again(shared);
        self.ask_rounds();
        self.tell_name(shared);
    }

    /// Tells all members this one's name and where it is reached, if they do not know.
    fn tell_name(&mut self, shared: &Shared) {
        let Some(cluster) = &self.cluster else { return };
        let now = shared.clock.monotonic();
        let told = self.told.is_some_and(|told| now < told + REQUEST);
        if self.leader() == 0 || self.applied == 0 || told {
            return;
        }
        let state = shared.read();
        let Some(own) = state.members.get(self.own) else { return };
        let mut changes = Vec::new();
        if own.name != cluster.name || own.client_urls != cluster.client_urls {
            let (name, client_urls) = (cluster.name.clone(), cluster.client_urls.clone());
            changes.push(Change::Attributes { id: self.own, name, client_urls });
        }
        // It was alone before, and nobody needed to reach it.
        if own.peer_urls.is_empty() && !cluster.peer_urls.is_empty() {
            let peer_urls = crate::cluster::sorted(&cluster.peer_urls);
            changes.push(Change::PeerUrls { id: self.own, peer_urls });
        }
        drop(state);
        if !changes.is_empty() {
            self.told = Some(now);
            let proposal = |change| (Proposal::Member(change), Whom::Nobody, 0);
            self.propose(shared, changes.into_iter().map(proposal).collect());
        }
    }

    /// Takes a message of another member.
    pub(crate) fn receive(&mut self, shared: &Shared, from: u64, bytes: Bytes) {
        if self.failed.is_some() || self.removed {
            return;
        }
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(what) => {
                tracing::warn!(from = %format!("{from:x}"), what, "a message cannot be read");
                return;
            }
        };
        let answers = matches!(message, Message::Told { .. } | Message::Refused { .. });
        if !answers && shared.read().members.is_removed(from) {
            // It does not know yet, or its messages were long on their way.
            return;
        }
        self.hear(shared, from);
        match message {
            Message::Raft(message) => self.step(from, message),
            Message::Propose(parts) => self.receive_proposals(from, parts),
            // It was certainly not taken: the next leader may take it.
            Message::Refused { id, error: Error::NotLeader } => {
                if let Some(waiter) = self.waiters.get(&id) {
                    let mut data = Vec::with_capacity(waiter.proposal.size_bound());
                    waiter.proposal.encode(id, &mut data);
                    self.later.push_back((id, data.into()));
                }
            }
            Message::Refused { id, error } => self.refuse(id, error),
            Message::Ask { id, ask } => self.answer(shared, from, id, ask),
            Message::Told { id, answer } => match answer {
                // It comes from one that led before; the next leader is asked.
                Err(Error::NotLeader | Error::LeaderChanged) => {
                    if let Some(asked) = self.asked.get_mut(&id) {
                        asked.sent = 0;
                    }
                }
                answer => {
                    if let Some(asked) = self.asked.remove(&id) {
                        drop(asked.reply.send(answer));
                    }
                }
            },
            Message::Piece { index, number, bytes, last } => {
                self.take_piece(shared, from, index, number, &bytes, last);
            }
            Message::Received { index, pieces } => {
                self.pieces_received(shared, from, index, pieces);
            }
            Message::Present => {}
        }
    }

    /// Hands a message to Raft, if what it brings can be written.
    pub(crate) fn step(&mut self, from: u64, message: RaftMessage) {
        if message.from != from || message.to != self.own {
            return;
        }
        let last = self.node.raft.raft_log.last_index();
        match message.get_msg_type() {
            MessageType::MsgSnapshot => return,
            MessageType::MsgHeartbeat if message.commit > last && message.term >= self.term() => {
                let text = format!(
                    "this member has lost entries up to {} that it had acknowledged, it has {last}; \
                     remove it from the cluster and add it anew with an empty data directory",
                    message.commit
                );
                tracing::error!("{text}");
                self.failed = Some(Error::Storage(text));
                return;
            }
            _ => {}
        }
        // A member whose disk is full still answers what it need not write anything for, so that it
        // can lead and be read.
        let writes = !message.entries.is_empty()
            || message.term > self.term()
            || matches!(
                message.get_msg_type(),
                // A vote for another or for itself, and what a new leader begins with.
                MessageType::MsgRequestVote
                    | MessageType::MsgTimeoutNow
                    | MessageType::MsgRequestPreVoteResponse
                    | MessageType::MsgRequestVoteResponse
            );
        let size: usize = message.entries.iter().map(entry_size).sum();
        if writes && self.reserve(size, message.entries.len() + 1).is_err() {
            return;
        }
        if let Err(error) = self.node.step(message) {
            tracing::debug!(%error, "Raft does not take a message");
        }
    }
}

/// What entries did that were applied together, as far as something is to be done about it.
#[derive(Default)]
struct Done {
    answers: Vec<(Whom, Result<Outcome, Error>)>,
    leases: Vec<Leased>,
    /// Whether the members have changed; who votes since, and who is gone.
    changed: bool,
    conf: Option<ConfState>,
    gone: Vec<u64>,
}

/// What a command did to leases.
enum Leased {
    Granted(i64, i64),
    Revoked(i64),
    Noted(Vec<(i64, i64)>),
}

fn note_lease(command: &Command, leases: &mut Vec<Leased>) {
    match command {
        Command::LeaseGrant { id, ttl } => leases.push(Leased::Granted(*id, *ttl)),
        Command::LeaseRevoke { id } => leases.push(Leased::Revoked(*id)),
        Command::LeaseCheckpoint(remaining) => leases.push(Leased::Noted(remaining.clone())),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
