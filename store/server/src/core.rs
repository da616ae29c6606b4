//! Consensus: Raft's decisions carried out. What is proposed is written, sent, and applied when it is
//! committed; nothing here waits for anybody.

use crate::entry::{self, Proposal, entry_size};
use crate::members::Change;
use crate::queue::Reply;
use crate::raftlog::{RaftLog, Stand};
use crate::shared::{Shared, State};
use crate::transfer::{Incoming, Outgoing};
use crate::wire::{Ask, Message, Told};
use crate::{Cluster, Transport};
use bytes::Bytes;
use dhow_kv::Error;
use dhow_mvcc::{Command, Outcome};
use raft::eraftpb::{Entry, EntryType, Message as RaftMessage, MessageType};
use raft::{RawNode, StateRole};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What is proposed while so many committed entries wait for being applied is refused, as in etcd...
const BEHIND: u64 = 5_000;
/// ...and while so many are not committed, or wait for a leader.
const WAITING: u64 = 50_000;
/// One message takes about this many bytes of entries.
const MESSAGE: u64 = 512 << 10;
/// So many messages of entries go to a follower ahead of its answers.
const AHEAD: usize = 128;
/// One step applies about this many bytes of entries.
const APPLY: u64 = 4 << 20;
/// The time of a request beside two election timeouts, as etcd's.
const REQUEST: Duration = Duration::from_secs(5);

/// Who is told what became of a proposal.
#[derive(Debug)]
pub(crate) enum Whom {
    /// A client, with the outcome.
    Client { reply: Reply<Outcome>, physical: bool },
    /// A member (perhaps this one) that asked for a change of the members; with whom it means.
    Member { from: u64, ask: u64, meant: u64 },
    /// Nobody.
    Nobody,
}

/// A proposal of this member under way.
#[derive(Debug)]
struct Waiter {
    proposal: Proposal,
    whom: Whom,
    deadline: Duration,
    growth: u64,
    /// Which entry it became, on the leader: when another is there, it is lost.
    placed: Option<u64>,
}

/// A question of this member under way.
#[derive(Debug)]
struct Asked {
    ask: Ask,
    reply: Reply<Told>,
    deadline: Duration,
    /// Whom it was sent to.
    sent: u64,
}

/// Reads that wait for the leader to tell how far they must see.
#[derive(Debug)]
struct Round {
    replies: Vec<Reply<()>>,
    deadline: Duration,
    /// How far; `None` before it is told.
    index: Option<u64>,
}

/// See the module.
pub(crate) struct Core {
    pub(crate) node: RawNode<RaftLog>,
    pub(crate) own: u64,
    pub(crate) cluster: Option<Cluster>,
    /// Why nothing can be written any more.
    pub(crate) failed: Option<Error>,
    /// The last attempt to write found no space; said once.
    full: bool,
    /// The next request's number.
    next: u64,
    waiters: BTreeMap<u64, Waiter>,
    /// What the proposals under way may take of the quota.
    pub(crate) growing: u64,
    /// Proposals that wait for a leader, or for the end of another change of the votes.
    held: VecDeque<(u64, Bytes)>,
    /// Proposals that a member refused that did not lead; tried again a little later.
    later: VecDeque<(u64, Bytes)>,
    /// Reads that begin with the next round.
    pub(crate) reading: Vec<Reply<()>>,
    rounds: BTreeMap<u64, Round>,
    asked: BTreeMap<u64, Asked>,
    /// Questions that came before this leader knew all leases.
    early: VecDeque<(u64, u64, Ask)>,
    pub(crate) transfer: Option<(u64, Duration, Reply<()>)>,
    /// Bytes and number of the entries that Raft has taken and that are not written yet.
    due: (usize, usize),
    pub(crate) applied: u64,
    /// The term in which this member leads and knows everything from before.
    pub(crate) leads: u64,
    /// The leader and term as last seen.
    seen: (u64, u64),
    /// Ticks until this member asks for votes, and ticks so far.
    patience: usize,
    ticks: u64,
    /// Others' last words, by this member's clock.
    pub(crate) heard: BTreeMap<u64, Duration>,
    /// When this member last told its name and URLs.
    told: Option<Duration>,
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
            next: shared.clock.random() >> 1 | 1,
            waiters: BTreeMap::new(),
            growing: 0,
            held: VecDeque::new(),
            later: VecDeque::new(),
            reading: Vec::new(),
            rounds: BTreeMap::new(),
            asked: BTreeMap::new(),
            early: VecDeque::new(),
            transfer: None,
            due: (0, 0),
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
        core.draw_patience(shared);
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

    /// When a request that comes now is given up.
    pub(crate) fn deadline(&self, shared: &Shared) -> Duration {
        let election =
            self.cluster.as_ref().map_or(Duration::from_secs(1), |cluster| cluster.election);
        shared.clock.monotonic() + REQUEST + 2 * election
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// What a checkpoint of the state would be.
    pub(crate) fn stand(&self, state: &State) -> Stand {
        let log = self.node.store();
        Stand {
            index: self.applied,
            term: log.term_of(self.applied).unwrap_or_default(),
            cluster_id: log.identity().cluster_id,
            records: log.place_after(self.applied).map_or(0, |place| place.index - 1),
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
                Err(Error::Storage(error.to_string()))
            }
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
    }

    fn draw_patience(&mut self, shared: &Shared) {
        let timeout = self.node.raft.election_timeout();
        let random = usize::try_from(shared.clock.random() % timeout as u64).unwrap_or(0);
        self.patience = timeout + random;
    }

    /// A heartbeat's time has passed.
    pub(crate) fn tick(&mut self, shared: &Shared) {
        self.ticks += 1;
        if self.failed.is_some() || self.reserve(0, 1).is_err() {
            // It neither leads nor votes; the others go on without it.
            self.expire(shared);
            return;
        }
        if self.is_leader() {
            self.node.tick();
        } else {
            self.node.raft.election_elapsed += 1;
            if self.node.raft.election_elapsed >= self.patience && self.node.raft.promotable() {
                self.node.raft.election_elapsed = 0;
                self.draw_patience(shared);
                let _ = self.node.campaign();
            }
        }
        self.expire(shared);
        // An answer may be lost, and a new leader may not have known enough when it was asked.
        if self.ticks.is_multiple_of(3) {
            self.held.append(&mut self.later);
            self.ask_rounds();
            self.tell_name(shared);
            self.retry_transfers(shared);
        }
    }

    /// Gives up what has waited for too long.
    fn expire(&mut self, shared: &Shared) {
        let now = shared.clock.monotonic();
        while let Some(first) = self.waiters.first_entry() {
            if first.get().deadline > now {
                break;
            }
            let waiter = first.remove();
            self.growing -= waiter.growth;
            self.give(waiter.whom, Err(Error::Timeout), &[]);
        }
        if self.waiters.is_empty() {
            self.held.clear();
        }
        let late = |deadline: Duration| deadline <= now;
        while let Some(first) = self.rounds.first_entry().filter(|first| late(first.get().deadline))
        {
            for reply in first.remove().replies {
                drop(reply.send(Err(Error::Timeout)));
            }
        }
        while let Some(first) = self.asked.first_entry().filter(|first| late(first.get().deadline))
        {
            drop(first.remove().reply.send(Err(Error::Timeout)));
        }
        if let Some((_, _, reply)) = self.transfer.take_if(|(_, deadline, _)| late(*deadline)) {
            drop(reply.send(Err(Error::Timeout)));
        }
    }

    /// Proposes something and tells `whom` what becomes of it.
    pub(crate) fn propose(&mut self, shared: &Shared, proposals: Vec<(Proposal, Whom, u64)>) {
        if proposals.is_empty() {
            return;
        }
        if self.is_behind() {
            for (_, whom, _) in proposals {
                self.give(whom, Err(Error::TooManyRequests), &[]);
            }
            return;
        }
        let size: usize = proposals.iter().map(|(proposal, ..)| proposal.size_bound()).sum();
        if let Err(error) = self.reserve(size, proposals.len()) {
            for (_, whom, _) in proposals {
                self.give(whom, Err(error.clone()), &[]);
            }
            return;
        }
        let deadline = self.deadline(shared);
        // One buffer for all: the entries are parts of it.
        let mut buffer = Vec::with_capacity(size);
        let mut ends = Vec::with_capacity(proposals.len());
        for (proposal, whom, growth) in proposals {
            let id = self.number();
            proposal.encode(id, &mut buffer);
            ends.push((id, buffer.len()));
            self.growing += growth;
            let waiter = Waiter { proposal, whom, deadline, growth, placed: None };
            self.waiters.insert(id, waiter);
        }
        let buffer = Bytes::from(buffer);
        let mut start = 0;
        let parts = ends.into_iter().map(|(id, end)| {
            let part = buffer.slice(start..end);
            start = end;
            (id, part)
        });
        let parts = parts.collect();
        self.place(parts);
    }

    /// Whether so much is under way that more would not help.
    fn is_behind(&self) -> bool {
        let log = &self.node.raft.raft_log;
        log.committed.saturating_sub(self.applied) > BEHIND
            || log.last_index().saturating_sub(self.applied) > WAITING
            || self.held.len() as u64 > WAITING
    }

    /// Puts proposals into the log here or at the leader, or keeps them until there is one.
    fn place(&mut self, parts: Vec<(u64, Bytes)>) {
        let leader = self.leader();
        if self.is_leader() && self.node.raft.lead_transferee.is_none() {
            let rest = self.place_here(parts);
            self.held.extend(rest);
        } else if leader != 0 && leader != self.own && self.cluster.is_some() {
            let (mut batch, mut size) = (Vec::new(), 0);
            for (_, part) in parts {
                if size > 0 && size + part.len() > MESSAGE as usize {
                    self.say(leader, &Message::Propose(std::mem::take(&mut batch)));
                    size = 0;
                }
                size += part.len();
                batch.push(part);
            }
            self.say(leader, &Message::Propose(batch));
        } else if shared_alone(&self.node) {
            // It cannot write what would make it leader.
            for (id, _) in parts {
                self.refuse(id, Error::NoSpace);
            }
        } else {
            self.held.extend(parts);
        }
    }

    /// Appends proposals as the leader. Returns those that must wait for a change of the votes.
    fn place_here(&mut self, parts: Vec<(u64, Bytes)>) -> Vec<(u64, Bytes)> {
        let mut entries = Vec::with_capacity(parts.len());
        let mut ids = Vec::with_capacity(parts.len());
        let mut rest = Vec::new();
        let mut changing = self.node.raft.has_pending_conf();
        for (id, part) in parts {
            let entry = entry::new_entry(part.clone());
            if entry.get_entry_type() != EntryType::EntryNormal
                && std::mem::replace(&mut changing, true)
            {
                rest.push((id, part));
                continue;
            }
            entries.push(entry);
            ids.push((id, part));
        }
        if entries.is_empty() {
            return rest;
        }
        let first = self.node.raft.raft_log.last_index() + 1;
        let mut message = RaftMessage::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.own;
        message.set_entries(entries.into());
        match self.node.raft.step(message) {
            Ok(()) => {
                for ((id, _), index) in ids.iter().zip(first..) {
                    if let Some(waiter) = self.waiters.get_mut(id) {
                        waiter.placed = Some(index);
                    }
                }
            }
            Err(_) => rest.extend(ids),
        }
        rest
    }

    /// Places what was held, now that it may be possible.
    fn place_held(&mut self) {
        let leading = self.is_leader() && self.node.raft.lead_transferee.is_none();
        let following = self.leader() != 0 && self.leader() != self.own;
        if self.held.is_empty() || !(leading || following) {
            return;
        }
        let size: usize = self.held.iter().map(|(_, part)| part.len() + entry::SMALL).sum();
        if self.reserve(size, self.held.len()).is_err() {
            return;
        }
        // Whoever has given up meanwhile does not want it done any more.
        let waiters = &self.waiters;
        let wanted = |(id, _): &(u64, Bytes)| waiters.contains_key(id);
        let held: Vec<_> = self.held.drain(..).filter(wanted).collect();
        self.place(held);
    }

    /// The entries from `index` on are void, and with them what this member proposed as leader.
    fn lose(&mut self, index: u64) {
        let lost = |waiter: &Waiter| waiter.placed.is_some_and(|placed| placed >= index);
        let lost: Vec<u64> =
            self.waiters.iter().filter(|(_, waiter)| lost(waiter)).map(|(id, _)| *id).collect();
        for id in lost {
            self.refuse(id, Error::LeaderChanged);
        }
    }

    /// A proposal of this member will not be carried out.
    fn refuse(&mut self, id: u64, error: Error) {
        if let Some(waiter) = self.waiters.remove(&id) {
            self.growing -= waiter.growth;
            self.give(waiter.whom, Err(error), &[]);
        }
    }

    /// Tells what became of a proposal.
    pub(crate) fn give(
        &mut self,
        whom: Whom,
        result: Result<Outcome, Error>,
        members: &[dhow_kv::admin::Member],
    ) {
        match (whom, result) {
            (Whom::Client { reply, physical: true }, Ok(outcome)) => {
                self.physical.push((reply, outcome));
            }
            // Whoever asked may have gone; that is their right.
            (Whom::Client { reply, .. }, result) => drop(reply.send(result)),
            (Whom::Member { from, ask, meant }, result) => {
                let answer = result.map(|_| Told::Members(meant, members.to_vec()));
                self.tell(from, ask, answer);
            }
            (Whom::Nobody, _) => {}
        }
    }

    /// Answers a question.
    pub(crate) fn tell(&mut self, from: u64, id: u64, answer: Result<Told, Error>) {
        if from == self.own {
            if let Some(asked) = self.asked.remove(&id) {
                drop(asked.reply.send(answer));
            }
        } else {
            self.say(from, &Message::Told { id, answer });
        }
    }

    /// Sends a message to another member.
    pub(crate) fn say(&self, to: u64, message: &Message) {
        if let Some(transport) = self.transport() {
            transport.send(to, message.encode());
        }
    }

    /// Puts a question of this member to the leader.
    pub(crate) fn ask(&mut self, shared: &Shared, ask: Ask, reply: Reply<Told>) {
        if let Some(error) = &self.failed {
            drop(reply.send(Err(error.clone())));
            return;
        }
        let id = self.number();
        let deadline = self.deadline(shared);
        self.asked.insert(id, Asked { ask, reply, deadline, sent: 0 });
        self.ask_again(shared);
    }

    /// Sends the questions that the leader of now has not seen yet.
    fn ask_again(&mut self, shared: &Shared) {
        let leader = self.leader();
        if leader == 0 {
            return;
        }
        let mut due = Vec::new();
        for (id, asked) in &mut self.asked {
            // A change of the members that may have happened is not tried again.
            let lease = matches!(asked.ask, Ask::KeepAlive(_) | Ask::TimeToLive(_));
            if asked.sent == 0 || (asked.sent != leader && lease) {
                asked.sent = leader;
                due.push((*id, asked.ask.clone()));
            }
        }
        for (id, ask) in due {
            if leader == self.own {
                self.answer(shared, self.own, id, ask);
            } else {
                self.say(leader, &Message::Ask { id, ask });
            }
        }
    }

    /// Answers a question as the leader.
    fn answer(&mut self, shared: &Shared, from: u64, id: u64, ask: Ask) {
        if !self.is_leader() {
            self.tell(from, id, Err(Error::NotLeader));
            return;
        }
        if self.leads != self.term() {
            if self.early.len() as u64 > WAITING {
                self.tell(from, id, Err(Error::TooManyRequests));
            } else {
                self.early.push_back((from, id, ask));
            }
            return;
        }
        let now = shared.clock.monotonic();
        match ask {
            Ask::KeepAlive(lease) => {
                let ttl = shared.lessor.renew(lease, now);
                self.tell(from, id, Ok(Told::Lease(ttl.map(|ttl| (ttl, ttl)))));
            }
            Ask::TimeToLive(lease) => {
                self.tell(from, id, Ok(Told::Lease(shared.lessor.remaining(lease, now))));
            }
            change => self.change_members(shared, from, id, change),
        }
    }

    /// Asks again for the reads that wait for an answer: a question or its answer may be lost, and
    /// asking later is never wrong.
    fn ask_rounds(&mut self) {
        let asking = self.rounds.iter().filter(|(_, round)| round.index.is_none());
        for id in asking.map(|(id, _)| *id).collect::<Vec<u64>>() {
            self.read_index(id);
        }
    }

    fn read_index(&mut self, id: u64) {
        let mut context = self.own.to_le_bytes().to_vec();
        context.extend_from_slice(&id.to_le_bytes());
        self.node.read_index(context);
    }

    /// Asks how far the gathered reads must see.
    pub(crate) fn begin_round(&mut self, shared: &Shared) {
        if self.reading.is_empty() || self.rounds.values().any(|round| round.index.is_none()) {
            return;
        }
        let id = self.number();
        let replies = std::mem::take(&mut self.reading);
        let deadline = self.deadline(shared);
        self.rounds.insert(id, Round { replies, deadline, index: None });
        self.read_index(id);
    }

    /// Lets those read whose reads see enough.
    fn end_rounds(&mut self) {
        let applied = self.applied;
        let done = |round: &Round| round.index.is_some_and(|index| index <= applied);
        let due: Vec<u64> =
            self.rounds.iter().filter(|(_, round)| done(round)).map(|(id, _)| *id).collect();
        for id in due {
            for reply in self.rounds.remove(&id).map(|round| round.replies).unwrap_or_default() {
                drop(reply.send(Ok(())));
            }
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
        let log = self.node.store();
        let numbers = &shared.numbers;
        numbers.term.store(self.term(), Ordering::Relaxed);
        numbers.commit.store(self.node.raft.raft_log.committed, Ordering::Relaxed);
        numbers.applied.store(self.applied, Ordering::Relaxed);
        if let Some(disk) = &log.disk {
            numbers.log_bytes.store(disk.log.bytes(), Ordering::Relaxed);
        }
        if let Some(error) = self.failed.clone() {
            self.fail(shared, &error);
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
            if let Err(error) = self.log_mut().append(entries, Some(hard)) {
                tracing::error!(%error, "the store cannot write any more; reads go on");
                self.failed = Some(Error::Storage(error.to_string()));
                return;
            }
            self.due = (0, 0);
        }
        for message in ready.take_persisted_messages() {
            self.send(shared, message);
        }
        self.apply(shared, ready.take_committed_entries());
        for read in ready.take_read_states() {
            let id = read.request_ctx.get(8..).and_then(|id| id.try_into().ok());
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
        self.end_rounds();
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
        let mut answers = Vec::with_capacity(entries.len());
        let mut leases = Vec::new();
        let mut conf = None;
        let mut changed = false;
        let revision;
        let members;
        {
            let mut state = shared.write();
            for entry in &entries {
                self.applied = entry.index;
                let payload = entry::payload(entry);
                if payload.is_empty() {
                    state.machine.skip(entry.index);
                    continue;
                }
                let id = Proposal::id(payload);
                let waiter = if id == 0 { None } else { self.waiters.remove(&id) };
                let decoded;
                let proposal = match &waiter {
                    Some(waiter) => &waiter.proposal,
                    None => match Proposal::decode(payload) {
                        Ok((_, proposal)) => {
                            decoded = proposal;
                            &decoded
                        }
                        Err(what) => {
                            let text =
                                format!("entry {} of the log cannot be read: {what}", entry.index);
                            tracing::error!("{text}");
                            self.failed = Some(Error::Storage(text));
                            return;
                        }
                    },
                };
                let result = match proposal {
                    Proposal::Command(command) => {
                        let applied = state.machine.apply(entry.index, command);
                        if applied.is_ok() {
                            note_lease(command, &mut leases);
                        }
                        applied.map(|applied| applied.outcome)
                    }
                    Proposal::Member(change) => {
                        state.machine.skip(entry.index);
                        let result = state.members.apply(change);
                        if result.is_ok() {
                            changed = true;
                            if let Some(votes) = change.conf_change() {
                                match self.node.apply_conf_change(&votes) {
                                    Ok(now) => conf = Some(now),
                                    Err(error) => {
                                        self.failed = Some(Error::Storage(error.to_string()));
                                        return;
                                    }
                                }
                            }
                            self.follow_change(change);
                        }
                        result.map(|()| Outcome::Done(state.machine.mvcc.revision()))
                    }
                };
                if let Some(waiter) = waiter {
                    self.growing -= waiter.growth;
                    answers.push((waiter.whom, result));
                }
            }
            revision = state.machine.mvcc.revision();
            members = if changed { state.members.list() } else { Vec::new() };
        }
        let applied = self.applied;
        if changed {
            self.meet(shared);
        }
        let alone = self.alone;
        self.log_mut().applied(applied, conf, alone);
        let now = shared.clock.monotonic();
        for (id, granted) in leases {
            match granted {
                Some(ttl) => shared.lessor.granted(id, ttl, now),
                None => shared.lessor.revoked(id),
            }
        }
        shared.hub.publish(&shared.read().machine.mvcc, revision);
        for (whom, result) in answers {
            self.give(whom, result, &members);
        }
        let newest = entries.last().map_or(0, |entry| entry.term);
        if self.is_leader() && newest == self.term() && self.leads != self.term() {
            self.lead(shared);
        }
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
            if self.node.raft.lead_transferee.is_none() && !self.node.raft.has_pending_conf() {
                self.place_held();
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
            for (from, id, ask) in std::mem::take(&mut self.early) {
                if from != self.own {
                    self.tell(from, id, Err(Error::LeaderChanged));
                } else if let Some(asked) = self.asked.get_mut(&id) {
                    asked.sent = 0;
                    asked.ask = ask;
                }
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

    /// Tells all members this one's name and where clients reach it, if they do not know.
    fn tell_name(&mut self, shared: &Shared) {
        let Some(cluster) = &self.cluster else { return };
        let now = shared.clock.monotonic();
        if self.leader() == 0 || self.told.is_some_and(|told| now < told + REQUEST) {
            return;
        }
        let known =
            shared.read().members.get(self.own).is_none_or(|own| {
                own.name == cluster.name && own.client_urls == cluster.client_urls
            });
        if known || self.applied == 0 {
            return;
        }
        let (name, client_urls) = (cluster.name.clone(), cluster.client_urls.clone());
        self.told = Some(now);
        let change = Change::Attributes { id: self.own, name, client_urls };
        self.propose(shared, vec![(Proposal::Member(change), Whom::Nobody, 0)]);
    }

    /// Nothing can be written any more: nobody shall wait for it.
    fn fail(&mut self, shared: &Shared, error: &Error) {
        for waiter in std::mem::take(&mut self.waiters).into_values() {
            self.give(waiter.whom, Err(error.clone()), &[]);
        }
        self.growing = 0;
        self.held.clear();
        for asked in std::mem::take(&mut self.asked).into_values() {
            drop(asked.reply.send(Err(error.clone())));
        }
        let rounds = std::mem::take(&mut self.rounds).into_values();
        let reads = rounds.flat_map(|round| round.replies).chain(std::mem::take(&mut self.reading));
        for reply in reads {
            drop(reply.send(Err(error.clone())));
        }
        if let Some((_, _, reply)) = self.transfer.take() {
            drop(reply.send(Err(error.clone())));
        }
        self.physical.clear();
        if !self.alone {
            // The others go on without it.
            shared.numbers.leader.store(0, Ordering::Relaxed);
            shared.leader.send_if_modified(|leader| std::mem::take(leader) != 0);
        }
        if self.leads != 0 {
            self.leads = 0;
            if !self.alone {
                shared.lessor.demote();
            }
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
        self.heard.insert(from, shared.clock.monotonic());
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
        }
    }

    fn receive_proposals(&mut self, from: u64, parts: Vec<Bytes>) {
        let size: usize = parts.iter().map(|part| part.len() + entry::SMALL).sum();
        let parts: Vec<(u64, Bytes)> =
            parts.into_iter().map(|part| (Proposal::id(&part), part)).collect();
        let refusal = if !self.is_leader() {
            Some(Error::NotLeader)
        } else if self.is_behind() {
            Some(Error::TooManyRequests)
        } else {
            self.reserve(size, parts.len()).err()
        };
        let refused = match refusal {
            Some(error) => parts.into_iter().map(|(id, _)| (id, error.clone())).collect(),
            None => {
                let rest = self.place_here(parts);
                rest.into_iter().map(|(id, _)| (id, Error::NotLeader)).collect::<Vec<_>>()
            }
        };
        for (id, error) in refused {
            self.say(from, &Message::Refused { id, error });
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
        let size: usize = message.entries.iter().map(entry_size).sum();
        let count = message.entries.len() + 1;
        if self.reserve(size, count).is_err() {
            return;
        }
        if let Err(error) = self.node.step(message) {
            tracing::debug!(%error, "Raft does not take a message");
        }
    }
}

/// Whether the only voter is this member.
fn shared_alone(node: &RawNode<RaftLog>) -> bool {
    node.raft.prs().is_singleton() && node.raft.promotable()
}

fn note_lease(command: &Command, leases: &mut Vec<(i64, Option<i64>)>) {
    match command {
        Command::LeaseGrant { id, ttl } => leases.push((*id, Some(*ttl))),
        Command::LeaseRevoke { id } => leases.push((*id, None)),
        _ => {}
    }
}
