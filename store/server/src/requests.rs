//! Requests under way: proposals on their way into the log, reads that wait for the leader's word,
//! questions to the leader; who waits for each, and for how long.

use crate::core::{Core, MESSAGE, REQUEST};
use crate::entry::{self, Proposal};
use crate::lease::Renewed;
use crate::queue::Reply;
use crate::shared::Shared;
use crate::wire::{Ask, Message, Told};
use bytes::Bytes;
use dhow_kv::Error;
use dhow_mvcc::Outcome;
use raft::eraftpb::{EntryType, Message as RaftMessage, MessageType};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What is proposed while so many committed entries wait for being applied is refused, as in etcd...
const BEHIND: u64 = 5_000;
/// ...and while so many are not committed, or wait for a leader.
const WAITING: u64 = 50_000;
/// ...or while those that wait for a leader take so many bytes.
const WAITING_BYTES: usize = 64 << 20;

/// Who is told what became of a proposal.
#[derive(Debug)]
pub(crate) enum Whom {
    /// A client, with the outcome. With a `term` other than 0 it is meant only if this member
    /// leads in that term, and nobody else is to do it.
    Client { reply: Reply<Outcome>, physical: bool, term: u64 },
    /// A member (perhaps this one) that asked for a change of the members; with whom it means.
    Member { from: u64, ask: u64, meant: u64 },
    /// A member whose renewal of a lease waits for a note to be taken back (see
    /// [`Renewed::Noted`]); as in [`Reading::Lease`].
    Renewal { from: u64, id: u64, lease: i64, term: u64, asked: Duration },
    /// Nobody.
    Nobody,
}

impl Whom {
    /// The term in which this member must lead for it to be meant; 0 for any, and any member.
    fn bound(&self) -> u64 {
        match self {
            Self::Client { term, .. } | Self::Renewal { term, .. } => *term,
            Self::Member { .. } | Self::Nobody => 0,
        }
    }
}

/// A proposal of this member under way.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) proposal: Proposal,
    pub(crate) whom: Whom,
    pub(crate) deadline: Duration,
    pub(crate) growth: u64,
    /// Which entry it became, on the leader: when another is there, it is lost.
    pub(crate) placed: Option<u64>,
}

/// Proposals that wait to be placed, and the bytes that they take.
#[derive(Debug, Default)]
pub(crate) struct Held {
    parts: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Held {
    pub(crate) fn extend(&mut self, parts: impl IntoIterator<Item = (u64, Bytes)>) {
        for part in parts {
            self.bytes += part.1.len();
            self.parts.push_back(part);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn is_full(&self) -> bool {
        self.parts.len() as u64 > WAITING || self.bytes > WAITING_BYTES
    }

    /// Keeps what somebody still waits for.
    fn retain(&mut self, waiters: &BTreeMap<u64, Waiter>) {
        self.parts.retain(|(id, _)| waiters.contains_key(id));
        self.bytes = self.parts.iter().map(|(_, part)| part.len()).sum();
    }
}

/// A question of this member under way.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) ask: Ask,
    pub(crate) reply: Reply<Told>,
    pub(crate) deadline: Duration,
    /// Whom it was sent to.
    pub(crate) sent: u64,
}

/// Who waits until a quorum has confirmed who leads.
#[derive(Debug)]
pub(crate) enum Reading {
    /// A reader here.
    Here(Reply<()>),
    /// A member asked about a lease when this one led in `term`. One that was replaced meanwhile
    /// must neither renew it nor tell of it.
    Lease { from: u64, id: u64, lease: i64, renew: bool, term: u64, asked: Duration },
}

/// Reads that wait for the leader to tell how far they must see.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) readers: Vec<Reading>,
    pub(crate) deadline: Duration,
    /// How far; `None` before it is told.
    pub(crate) index: Option<u64>,
}

impl Core {
    /// When a request that comes now is given up.
    pub(crate) fn deadline(&self, shared: &Shared) -> Duration {
        let election =
            self.cluster.as_ref().map_or(Duration::from_secs(1), |cluster| cluster.election);
        shared.clock.monotonic() + REQUEST + 2 * election
    }

    /// A number for a request of this member.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
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
            || self.held.is_full()
    }

    /// Whether nobody else votes.
    fn is_only_voter(&self) -> bool {
        self.node.raft.prs().is_singleton() && self.node.raft.promotable()
    }

    /// Puts proposals into the log here or at the leader, or keeps them until there is one.
    fn place(&mut self, parts: Vec<(u64, Bytes)>) {
        let leader = self.leader();
        let leads = self.is_leader() && self.node.raft.lead_transferee.is_none();
        let parts = self.still_meant(parts, if leads { self.term() } else { 0 });
        if parts.is_empty() {
            return;
        }
        if leads {
            let rest = self.place_here(parts);
            let rest = self.still_meant(rest, 0);
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
        } else if self.is_only_voter() {
            // It cannot write what would make it leader.
            for (id, _) in parts {
                self.refuse(id, Error::NoSpace);
            }
        } else {
            self.held.extend(parts);
        }
    }

    /// Those of the proposals that are meant now; `leads` is the term in which this member leads, or 0.
    /// The others, which are bound to another term, are refused.
    fn still_meant(&mut self, parts: Vec<(u64, Bytes)>, leads: u64) -> Vec<(u64, Bytes)> {
        let bound = |core: &Self, id: u64| {
            let term = core.waiters.get(&id).map_or(0, |waiter| waiter.whom.bound());
            term != 0 && term != leads
        };
        let (void, parts) = parts.into_iter().partition(|(id, _)| bound(self, *id));
        let void: Vec<_> = void;
        for (id, _) in void {
            self.refuse(id, Error::NotLeader);
        }
        parts
    }

    /// Appends proposals as the leader. Returns those that must wait for a change of the votes.
    fn place_here(&mut self, parts: Vec<(u64, Bytes)>) -> Vec<(u64, Bytes)> {
        let mut entries = Vec::with_capacity(parts.len());
        let mut ids = Vec::with_capacity(parts.len());
        let mut rest = Vec::new();
        let mut changing = self.node.raft.has_pending_conf();
        for (id, part) in parts {
            if let Some(command) = Proposal::of_lease(&part)
                && !self.lessor.admits(&command)
            {
                self.refuse(id, Error::LeaseNotFound);
                continue;
            }
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
    pub(crate) fn place_held(&mut self) {
        let leading = self.is_leader() && self.node.raft.lead_transferee.is_none();
        let following = self.leader() != 0 && self.leader() != self.own;
        if self.held.is_empty() || !(leading || following) {
            return;
        }
        // Whoever has given up meanwhile does not want it done any more.
        self.held.retain(&self.waiters);
        let count = self.held.parts.len();
        if self.reserve(self.held.bytes + count * entry::SMALL, count).is_err() {
            return;
        }
        let held = std::mem::take(&mut self.held);
        self.place(held.parts.into());
    }

    /// The entries from `index` on are void, and with them what this member proposed as leader.
    pub(crate) fn lose(&mut self, index: u64) {
        let lost = |waiter: &Waiter| waiter.placed.is_some_and(|placed| placed >= index);
        let lost: Vec<u64> =
            self.waiters.iter().filter(|(_, waiter)| lost(waiter)).map(|(id, _)| *id).collect();
        for id in lost {
            self.refuse(id, Error::LeaderChanged);
        }
    }

    /// A proposal of this member will not be carried out.
    pub(crate) fn refuse(&mut self, id: u64, error: Error) {
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
            (Whom::Client { reply, physical: true, .. }, Ok(outcome)) => {
                self.physical.push((reply, outcome));
            }
            // Whoever asked may have gone; that is their right.
            (Whom::Client { reply, .. }, result) => drop(reply.send(result)),
            (Whom::Member { from, ask, meant }, result) => {
                let answer = result.map(|_| Told::Members(meant, members.to_vec()));
                self.tell(from, ask, answer);
            }
            // Confirmed once more, it tells what can be promised now.
            (Whom::Renewal { from, id, lease, term, asked }, Ok(_)) => {
                self.reading.push(Reading::Lease { from, id, lease, renew: true, term, asked });
            }
            (Whom::Renewal { from, id, .. }, Err(Error::NotLeader | Error::LeaderChanged)) => {
                self.tell_changed(from, id)
            }
            (Whom::Renewal { from, id, .. }, Err(error)) => self.tell(from, id, Err(error)),
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

    /// Answers those here who asked for the removal of members that are gone now. A leader that
    /// removes itself is not heard any more: its own answer would be lost.
    pub(crate) fn know_removed(&mut self, gone: &[u64], members: &[dhow_kv::admin::Member]) {
        if gone.is_empty() {
            return;
        }
        let meant = |asked: &Asked| match asked.ask {
            Ask::Remove(id) => Some(id).filter(|id| gone.contains(id)),
            _ => None,
        };
        let known: Vec<(u64, u64)> =
            self.asked.iter().filter_map(|(at, asked)| Some((*at, meant(asked)?))).collect();
        for (at, id) in known {
            if let Some(asked) = self.asked.remove(&at) {
                drop(asked.reply.send(Ok(Told::Members(id, members.to_vec()))));
            }
        }
    }

    /// Sends the questions that the leader of now has not seen yet.
    pub(crate) fn ask_again(&mut self, shared: &Shared) {
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
    pub(crate) fn answer(&mut self, shared: &Shared, from: u64, id: u64, ask: Ask) {
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
        let (lease, renew) = match ask {
            Ask::KeepAlive(lease) => (lease, true),
            Ask::TimeToLive(lease) => (lease, false),
            change => return self.change_members(shared, from, id, change),
        };
        let (term, asked) = (self.term(), shared.clock.monotonic());
        self.reading.push(Reading::Lease { from, id, lease, renew, term, asked });
    }

    /// This member does not lead any more: the next leader is to be asked.
    pub(crate) fn tell_changed(&mut self, from: u64, id: u64) {
        if from != self.own {
            self.tell(from, id, Err(Error::LeaderChanged));
        } else if let Some(asked) = self.asked.get_mut(&id) {
            asked.sent = 0;
        }
    }

    /// It is confirmed who leads.
    fn confirmed(&mut self, shared: &Shared, reader: Reading) {
        match reader {
            Reading::Here(reply) => drop(reply.send(Ok(()))),
            Reading::Lease { from, id, lease, renew, term, asked } if self.leads == term => {
                let now = shared.clock.monotonic();
                let told = if renew {
                    shared.lessor.renew(lease, asked, now)
                } else {
                    Ok(Renewed::Told(shared.lessor.remaining(lease, now)))
                };
                match told {
                    Ok(Renewed::Told(told)) => self.tell(from, id, Ok(Told::Lease(told))),
                    Ok(Renewed::Noted) => {
                        let whom = Whom::Renewal { from, id, lease, term, asked };
                        let whole = Proposal::Command(crate::lease::whole(lease));
                        self.propose(shared, vec![(whole, whom, 0)]);
                    }
                    Err(error) => self.tell(from, id, Err(error)),
                }
            }
            Reading::Lease { from, id, .. } => self.tell_changed(from, id),
        }
    }

    /// It will not be confirmed who leads.
    fn unconfirmed(&mut self, reader: Reading, error: &Error) {
        match reader {
            Reading::Here(reply) => drop(reply.send(Err(error.clone()))),
            Reading::Lease { from, id, .. } => self.tell_changed(from, id),
        }
    }

    /// Asks again for the reads that wait for an answer: a question or its answer may be lost, and
    /// asking later is never wrong.
    pub(crate) fn ask_rounds(&mut self) {
        let asking = self.rounds.iter().filter(|(_, round)| round.index.is_none());
        for id in asking.map(|(id, _)| *id).collect::<Vec<u64>>() {
            self.read_index(id);
        }
    }

    fn read_index(&mut self, id: u64) {
        // Never the same twice: Raft lets a read go when a quorum has answered to its context or to
        // that of a later one. Late answers to an earlier question must not pass for answers to a
        // later one, which would let go what was asked between the two.
        let attempt = self.number();
        let mut context = self.own.to_le_bytes().to_vec();
        context.extend_from_slice(&id.to_le_bytes());
        context.extend_from_slice(&attempt.to_le_bytes());
        self.node.read_index(context);
    }

    /// Asks how far the gathered reads must see.
    pub(crate) fn begin_round(&mut self, shared: &Shared) {
        if self.reading.is_empty() || self.rounds.values().any(|round| round.index.is_none()) {
            return;
        }
        let id = self.number();
        let readers = std::mem::take(&mut self.reading);
        let deadline = self.deadline(shared);
        self.rounds.insert(id, Round { readers, deadline, index: None });
        self.read_index(id);
    }

    /// Lets those read whose reads see enough.
    pub(crate) fn end_rounds(&mut self, shared: &Shared) {
        let applied = self.applied;
        let done = |round: &Round| round.index.is_some_and(|index| index <= applied);
        let due: Vec<u64> =
            self.rounds.iter().filter(|(_, round)| done(round)).map(|(id, _)| *id).collect();
        for id in due {
            for reader in self.rounds.remove(&id).map(|round| round.readers).unwrap_or_default() {
                self.confirmed(shared, reader);
            }
        }
    }

    /// Gives up what has waited for too long.
    pub(crate) fn expire(&mut self, shared: &Shared) {
        let now = shared.clock.monotonic();
        let mut expired = false;
        while let Some(first) = self.waiters.first_entry() {
            if first.get().deadline > now {
                break;
            }
            let waiter = first.remove();
            self.growing -= waiter.growth;
            self.give(waiter.whom, Err(Error::Timeout), &[]);
            expired = true;
        }
        if expired {
            self.held.retain(&self.waiters);
        }
        let late = |deadline: Duration| deadline <= now;
        while let Some(first) = self.rounds.first_entry().filter(|first| late(first.get().deadline))
        {
            for reader in first.remove().readers {
                self.unconfirmed(reader, &Error::Timeout);
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

    /// Nothing can be written any more: nobody shall wait for it.
    pub(crate) fn fail(&mut self, shared: &Shared, error: &Error) {
        for waiter in std::mem::take(&mut self.waiters).into_values() {
            self.give(waiter.whom, Err(error.clone()), &[]);
        }
        self.growing = 0;
        self.held = Held::default();
        self.later.clear();
        for asked in std::mem::take(&mut self.asked).into_values() {
            drop(asked.reply.send(Err(error.clone())));
        }
        let rounds = std::mem::take(&mut self.rounds).into_values();
        let reads = rounds.flat_map(|round| round.readers).chain(std::mem::take(&mut self.reading));
        for reader in reads {
            self.unconfirmed(reader, error);
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

    /// Puts another member's proposals into the log, or tells it which are refused.
    pub(crate) fn receive_proposals(&mut self, from: u64, parts: Vec<Bytes>) {
        let size: usize = parts.iter().map(|part| part.len() + entry::SMALL).sum();
        // What this version cannot read must not get into the log, which all have to read.
        let known = |part: &Bytes| match Proposal::decode(part) {
            Ok(_) => true,
            Err(what) => {
                let from = format!("{from:x}");
                tracing::warn!(from, what, "a proposal cannot be read and is left out");
                false
            }
        };
        let parts: Vec<(u64, Bytes)> =
            parts.into_iter().filter(known).map(|part| (Proposal::id(&part), part)).collect();
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
}
