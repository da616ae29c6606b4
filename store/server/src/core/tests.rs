//! One member by itself; the test says what the others say, and when it is carried out.

use super::*;
use crate::journal::{self, Opened};
use crate::wire::Told;
use crate::{Options, Store};
use dhow_clock::disk::Memory;
use dhow_clock::{BoxFuture, Clock};
use dhow_kv::admin::Member;
use dhow_kv::{Op, Txn};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use tokio::sync::oneshot;

/// Time stands still until it is set.
#[derive(Debug, Default)]
struct Still {
    now: Mutex<Duration>,
    drawn: AtomicU64,
}

impl Clock for Still {
    fn now(&self) -> Duration {
        self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        *self.now.lock().unwrap()
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn random(&self) -> u64 {
        self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

#[derive(Debug, Default)]
struct Said(Mutex<Vec<(u64, Bytes)>>);

impl Transport for Said {
    fn send(&self, to: u64, message: Bytes) {
        self.0.lock().unwrap().push((to, message));
    }

    fn members(&self, _: &[Member]) {}
}

struct One {
    core: Core,
    shared: Arc<Shared>,
    clock: Arc<Still>,
    said: Arc<Said>,
    disk: Memory,
    others: Vec<u64>,
    _store: Arc<Store>,
}

impl One {
    /// The member `m{which}` of so many.
    fn new(which: usize, count: usize) -> Self {
        let initial: Vec<_> =
            (1..=count).map(|n| (format!("m{n}"), vec![format!("http://m{n}:2380")])).collect();
        let said = Arc::new(Said::default());
        let mut cluster = Cluster::new(format!("m{which}"), initial, said.clone());
        cluster.strict_reconfig_check = false;
        let options = Options {
            inline: true,
            segment_bytes: 4096,
            cluster: Some(cluster),
            ..Options::default()
        };
        let disk = Memory::new();
        let clock = Arc::new(Still::default());
        let shared: dhow_clock::SharedClock = clock.clone();
        let its: Arc<dyn dhow_clock::disk::Disk> = Arc::new(disk.clone());
        let opened = journal::recover(its, Path::new("/data"), &shared, &options).unwrap();
        let Opened { state, log, .. } = opened;
        let (store, core) = Store::assemble(state, log, shared, options).unwrap();
        let shared = store.shared.clone();
        let ids: Vec<u64> = shared.read().members.iter().map(|member| member.id).collect();
        let others = ids.into_iter().filter(|id| *id != core.own).collect();
        Self { core, shared, clock, said, disk, others, _store: store }
    }

    /// Another member says something of Raft's, in this member's term if no other is given.
    fn hear(&mut self, from: u64, kind: MessageType, more: impl FnOnce(&mut RaftMessage)) {
        let mut message = RaftMessage { from, to: self.core.own, ..RaftMessage::default() };
        message.set_msg_type(kind);
        message.term = self.core.term();
        more(&mut message);
        self.core.receive(&self.shared, from, Message::Raft(message).encode());
    }

    fn drive(&mut self) {
        self.core.drive(&self.shared);
    }

    /// The first of the others votes for this member.
    fn win(&mut self) {
        let other = self.others[0];
        assert!(self.core.reserve(0, 1).is_ok());
        self.core.node.campaign().unwrap();
        self.drive();
        let next = self.core.term() + 1;
        self.hear(other, MessageType::MsgRequestPreVoteResponse, |message| message.term = next);
        self.drive();
        self.hear(other, MessageType::MsgRequestVoteResponse, |_| ());
        self.drive();
        assert!(self.core.is_leader());
    }

    /// The first of the others has all entries.
    fn hear_all(&mut self) {
        let last = self.core.node.raft.raft_log.last_index();
        self.hear(self.others[0], MessageType::MsgAppendResponse, |message| message.index = last);
    }

    /// The first of the others leads in a later term and says that these are committed behind what
    /// this member has.
    fn follow(&mut self, proposals: &[Proposal]) {
        let term = self.core.term() + 1;
        let (last, before) = {
            let log = &self.core.node.raft.raft_log;
            (log.last_index(), log.last_term())
        };
        let entries: Vec<Entry> = (last + 1..)
            .zip(proposals)
            .map(|(index, proposal)| {
                let mut data = Vec::new();
                proposal.encode(0, &mut data);
                Entry { index, term, ..entry::new_entry(data.into()) }
            })
            .collect();
        self.hear(self.others[0], MessageType::MsgAppend, |message| {
            (message.term, message.index, message.log_term) = (term, last, before);
            message.commit = last + entries.len() as u64;
            message.set_entries(entries.into());
        });
        self.drive();
        assert_eq!(self.core.leader(), self.others[0]);
    }

    /// Proposes something, without carrying it out yet.
    fn propose(
        &mut self,
        command: Command,
        term: u64,
    ) -> oneshot::Receiver<Result<Outcome, Error>> {
        let (reply, answer) = oneshot::channel();
        let whom = Whom::Client { reply, physical: false, term };
        self.core.propose(&self.shared, vec![(Proposal::Command(command), whom, 7)]);
        answer
    }

    fn said(&self) -> Vec<(u64, Bytes)> {
        std::mem::take(&mut *self.said.0.lock().unwrap())
    }
}

fn put(value: &str) -> Command {
    Command::Txn(Txn { success: vec![Op::put("k", value.to_owned())], ..Txn::default() })
}

#[test]
fn what_comes_before_a_leader_knows_everything_is_proposed_when_it_does() {
    let mut one = One::new(1, 3);
    one.win();
    let ask = Ask::Add { peer_urls: vec!["http://m4:2380".into()], learner: false };
    one.core.receive(&one.shared, one.others[1], Message::Ask { id: 5, ask }.encode());
    assert_eq!(one.core.early.len(), 1);
    // In one go: its first entry is committed, and there is another to write.
    one.hear_all();
    let mut answer = one.propose(put("v"), 0);
    one.drive();
    assert_eq!(one.core.leads, one.core.term());
    one.hear_all();
    one.drive();
    assert!(matches!(answer.try_recv(), Ok(Ok(_))));
    assert_eq!(one.shared.read().members.list().len(), 4);
}

#[test]
fn a_full_disk_keeps_a_member_from_asking_for_votes_and_does_not_end_it() {
    let mut one = One::new(1, 3);
    let small = || Proposal::Command(put("v"));
    one.follow(&[small()]);
    one.disk.set_capacity(Some(0));
    while !one.core.full {
        let term = one.core.term();
        let last = one.core.node.raft.raft_log.last_index();
        one.hear(one.others[0], MessageType::MsgAppend, |message| {
            (message.index, message.log_term) = (last, term);
            let mut data = Vec::new();
            small().encode(0, &mut data);
            message.set_entries(
                vec![Entry { index: last + 1, term, ..entry::new_entry(data.into()) }].into(),
            );
        });
        one.drive();
    }
    let term = one.core.term();
    for _ in 0..200 {
        one.hear(one.others[0], MessageType::MsgTimeoutNow, |_| ());
        one.drive();
        // It follows again.
        one.hear(one.others[0], MessageType::MsgHeartbeat, |_| ());
        one.drive();
    }
    assert_eq!(one.core.failed, None);
    assert!(one.core.term() < term + 10);
}

#[test]
fn a_snapshot_is_taken_over_before_the_next_begins() {
    let mut leader = One::new(1, 2);
    leader.win();
    leader.hear_all();
    leader.drive();
    drop(leader.propose(put("v"), 0));
    leader.hear_all();
    leader.drive();
    leader.said();
    let mut one = One::new(2, 2);
    let mut message = RaftMessage { from: leader.core.own, to: one.core.own, ..Default::default() };
    message.term = leader.core.term();
    message.set_msg_type(MessageType::MsgSnapshot);
    leader.core.begin_transfer(&leader.shared, message);
    let pieces = leader.said();
    assert!(pieces.len() > 2);
    // The first comes again, of another attempt, before anything is carried out.
    for (_, piece) in pieces.iter().chain(&pieces[..1]) {
        one.core.receive(&one.shared, leader.core.own, piece.clone());
    }
    one.drive();
    assert_eq!((one.core.failed.clone(), one.core.applied), (None, leader.core.applied));
}

#[test]
fn what_is_meant_for_one_term_never_reaches_another_leader() {
    let mut one = One::new(1, 3);
    one.win();
    one.hear_all();
    one.drive();
    let term = one.core.term();
    one.core.node.transfer_leader(one.others[0]);
    one.drive();
    let mut answer = one.propose(Command::LeaseRevoke { id: 1 }, term);
    assert_eq!(answer.try_recv(), Ok(Err(Error::NotLeader)));
    assert!(one.core.held.is_empty());
    one.follow(&[]);
    one.said();
    let mut answer = one.propose(Command::LeaseRevoke { id: 1 }, term);
    assert_eq!(answer.try_recv(), Ok(Err(Error::NotLeader)));
    assert_eq!(one.said(), []);
}

#[test]
fn who_waits_for_a_leader_that_was_removed_is_told_in_time() {
    let mut one = One::new(1, 2);
    one.follow(&[Proposal::Command(put("v"))]);
    let mut answer = one.propose(put("lost"), 0);
    assert_eq!(one.core.growing, 7);
    one.follow(&[Proposal::Member(Change::Remove(one.others[0]))]);
    one.core.elect_alone(&one.shared);
    assert!(one.core.alone && one.core.is_leader() && one.shared.is_ticking());
    *one.clock.now.lock().unwrap() += Duration::from_secs(60);
    one.core.tick(&one.shared);
    one.drive();
    assert_eq!(answer.try_recv(), Ok(Err(Error::Timeout)));
    assert_eq!(one.core.growing, 0);
    assert!(!one.shared.is_ticking());
}

#[test]
fn who_had_the_leader_removed_need_not_hear_it_from_the_leader() {
    let mut one = One::new(1, 3);
    one.follow(&[Proposal::Command(put("v"))]);
    let leader = one.others[0];
    let (reply, mut answer) = oneshot::channel();
    one.core.ask(&one.shared, Ask::Remove(leader), reply);
    let (reply, mut other) = oneshot::channel();
    one.core.ask(&one.shared, Ask::Remove(9), reply);
    one.follow(&[Proposal::Member(Change::Remove(leader))]);
    let Ok(Ok(Told::Members(meant, members))) = answer.try_recv() else { panic!("no answer") };
    assert_eq!((meant, members.len()), (leader, 2));
    assert!(other.try_recv().is_err(), "nobody removed the other");
}

#[test]
fn a_proposal_that_was_given_up_is_not_held_any_longer() {
    let mut one = One::new(1, 3);
    let mut early = one.propose(put("a"), 0);
    *one.clock.now.lock().unwrap() += Duration::from_secs(5);
    let mut late = one.propose(put("b"), 0);
    assert!(!one.core.held.is_empty());
    *one.clock.now.lock().unwrap() += Duration::from_secs(3);
    one.core.expire(&one.shared);
    assert_eq!(early.try_recv(), Ok(Err(Error::Timeout)));
    assert!(late.try_recv().is_err() && !one.core.held.is_empty());
    *one.clock.now.lock().unwrap() += Duration::from_secs(5);
    one.core.expire(&one.shared);
    assert_eq!(late.try_recv(), Ok(Err(Error::Timeout)));
    assert!(one.core.held.is_empty());
    let large = "x".repeat(1 << 20);
    let mut refused = false;
    for _ in 0..70 {
        refused = one.propose(put(&large), 0).try_recv() == Ok(Err(Error::TooManyRequests));
        one.drive();
    }
    assert!(refused);
}

#[test]
fn one_that_led_once_and_is_left_alone_reads_nothing_before_it_leads_again() {
    let mut one = One::new(1, 2);
    one.win();
    one.hear_all();
    one.drive();
    assert!(one.core.knows_all);
    one.follow(&[Proposal::Member(Change::Remove(one.others[0]))]);
    assert!(one.core.alone && !one.shared.alone.load(Ordering::Acquire));
    one.core.elect_alone(&one.shared);
    assert!(one.shared.alone.load(Ordering::Acquire));
}

/// The answers to questions among what was said.
fn told(said: Vec<(u64, Bytes)>) -> Vec<(u64, Result<Told, Error>)> {
    let answer = |(to, bytes)| match Message::decode(bytes) {
        Ok(Message::Told { answer, .. }) => Some((to, answer)),
        _ => None,
    };
    said.into_iter().filter_map(answer).collect()
}

#[test]
fn a_note_of_a_lease_that_has_ended_is_not_taken_for_the_next_of_its_identifier() {
    let mut one = One::new(1, 3);
    one.win();
    let grant = || Command::LeaseGrant { id: 7, ttl: 1000 };
    let carry_out = |one: &mut One| {
        one.drive();
        one.hear_all();
        one.drive();
    };
    let mut granted = one.propose(grant(), 0);
    carry_out(&mut one);
    assert!(matches!(granted.try_recv(), Ok(Ok(_))));
    *one.clock.now.lock().unwrap() = Duration::from_secs(400);
    let (notes, _) = one.shared.lessor.notes(Duration::from_secs(400));
    assert_eq!(notes, [(7, 601)]);
    // Both stand in the log before the note does.
    let mut ended = one.propose(Command::LeaseRevoke { id: 7 }, 0);
    let mut granted = one.propose(grant(), 0);
    let mut noted = one.propose(Command::LeaseCheckpoint(notes), one.core.term());
    carry_out(&mut one);
    assert!(matches!(ended.try_recv(), Ok(Ok(_))));
    assert!(matches!(granted.try_recv(), Ok(Ok(_))));
    assert!(matches!(noted.try_recv(), Ok(Err(Error::LeaseNotFound))));
    assert_eq!(one.shared.read().machine.mvcc.remaining().next(), None);
    // The new one is noted when it is due.
    let (notes, _) = one.shared.lessor.notes(Duration::from_secs(800));
    assert_eq!(notes, [(7, 601)]);
    let mut noted = one.propose(Command::LeaseCheckpoint(notes), one.core.term());
    carry_out(&mut one);
    assert!(matches!(noted.try_recv(), Ok(Ok(_))));
    assert_eq!(one.shared.read().machine.mvcc.remaining().next(), Some((7, 601)));
}

#[test]
fn a_lease_is_renewed_for_another_member_only_when_a_quorum_has_confirmed_the_leader() {
    let mut one = One::new(1, 3);
    one.win();
    one.hear_all();
    one.drive();
    drop(one.propose(Command::LeaseGrant { id: 7, ttl: 10 }, 0));
    one.drive();
    one.hear_all();
    one.drive();
    let (other, asks) = (one.others[1], Message::Ask { id: 5, ask: Ask::KeepAlive(7) }.encode());
    let advance =
        |one: &One, seconds| *one.clock.now.lock().unwrap() += Duration::from_secs(seconds);
    let confirm = |one: &mut One| {
        let asked = one.said().into_iter().find_map(|(_, bytes)| match Message::decode(bytes) {
            Ok(Message::Raft(asked)) if !asked.context.is_empty() => Some(asked.context),
            _ => None,
        });
        let context = asked.expect("the leader asks whether it still leads");
        one.hear(one.others[0], MessageType::MsgHeartbeatResponse, |m| m.context = context);
        one.drive();
    };
    one.said();
    one.core.receive(&one.shared, other, asks.clone());
    one.drive();
    advance(&one, 4);
    assert_eq!(one.shared.lessor.remaining(7, one.clock.monotonic()), Some((10, 6)));
    confirm(&mut one);
    // What passed meanwhile, another leader might not have given.
    assert_eq!(told(one.said()), [(other, Ok(Told::Lease(Some((10, 6)))))]);
    one.core.receive(&one.shared, other, asks.clone());
    one.drive();
    advance(&one, 12);
    confirm(&mut one);
    assert_eq!(told(one.said()), [(other, Err(Error::Timeout))]);
    one.core.receive(&one.shared, other, asks);
    one.drive();
    one.said();
    // Another leads before it is confirmed, and lets the question go as one of its own.
    one.follow(&[Proposal::Command(put("v"))]);
    let asked = one.said().into_iter().find_map(|(_, bytes)| match Message::decode(bytes) {
        Ok(Message::Raft(m)) if m.get_msg_type() == MessageType::MsgReadIndex => Some(m),
        _ => None,
    });
    let applied = one.core.applied;
    one.hear(one.others[0], MessageType::MsgReadIndexResp, |message| {
        message.index = applied;
        message.entries = asked.expect("the new leader is asked").entries;
    });
    one.drive();
    assert!(one.core.rounds.is_empty());
    assert_eq!(told(one.said()), [(other, Err(Error::LeaderChanged))]);
}
