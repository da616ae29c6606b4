//! The data directory at the start, and its checkpoints.

use crate::cluster::member_id;
use crate::core::Core;
use crate::entry::{Proposal, payload};
use crate::members::Members;
use crate::queue::{Reply, Request};
use crate::raftlog::{RaftLog, Replay};
use crate::restore::{HALF, NEW, beside};
use crate::shared::{CHECKPOINT, Shared, State};
use crate::stand::Stand;
use crate::{Cluster, Options, Start};
use bytes::Bytes;
use dhow_clock::SharedClock;
use dhow_clock::disk::Disk;
use dhow_kv::Error;
use dhow_kv::admin::{Identity, Member};
use dhow_log::{Checkpoint, CheckpointWriter, Directory, Log};
use dhow_mvcc::{Machine, MachineHeader, MachineLoader};
use raft::eraftpb::{Entry, HardState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// About how many bytes of the state go into a checkpoint under one lock.
const CHUNK: usize = 128 << 10;
/// So many entries before a checkpoint are kept for followers that are a little behind.
const TAIL: u64 = 5_000;

/// What it takes to keep the log short.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    /// How much the log may grow, in bytes.
    limit: u64,
    running: Option<JoinHandle<()>>,
    /// Who waits for the next one.
    waiting: Vec<Reply<()>>,
}

impl Checkpoints {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, running: None, waiting: Vec::new() }
    }

    /// Asks for a checkpoint although none may be due.
    pub(crate) fn want(&mut self, reply: Reply<()>) {
        self.waiting.push(reply);
    }

    /// Whether it is time for one, and none is under way.
    pub(crate) fn is_due(&self, core: &Core) -> bool {
        let grown = core.node.store().disk.as_ref().map_or(0, |disk| disk.grown);
        self.running.is_none() && (grown >= self.limit || !self.waiting.is_empty())
    }

    /// Begins a checkpoint in a thread of its own, if one is due.
    pub(crate) fn beside(&mut self, core: &mut Core, shared: &Arc<Shared>) {
        let Some((stand, header, directory)) = self.begin(core, shared) else { return };
        let their = shared.clone();
        let (index, records) = (stand.index, stand.records);
        let spawned =
            std::thread::Builder::new().name("store-checkpoint".into()).spawn(move || {
                let result = write_checkpoint(&their, directory, &stand, &header);
                // Not by `enqueue`: this thread is waited for by whoever takes note of its end.
                their.queue.push(Request::Checkpointed { index, records, result });
                their.queue.wake();
            });
        match spawned {
            Ok(thread) => self.running = Some(thread),
            Err(error) => {
                tracing::warn!(%error, "no thread for a checkpoint; the log grows on");
                shared.write().hold(CHECKPOINT, None);
                self.answer(Err(Error::Storage(error.to_string())));
            }
        }
    }

    /// Writes a checkpoint now, if one is due.
    pub(crate) fn here(&mut self, core: &mut Core, shared: &Shared) {
        let Some((stand, header, directory)) = self.begin(core, shared) else { return };
        let result = write_checkpoint(shared, directory, &stand, &header);
        shared.write().hold(CHECKPOINT, None);
        self.done(core, shared, stand.index, stand.records, result);
    }

    fn begin(
        &mut self,
        core: &mut Core,
        shared: &Shared,
    ) -> Option<(Stand, MachineHeader, Arc<Directory>)> {
        if !self.is_due(core) {
            return None;
        }
        let Some(disk) = &mut core.log_mut().disk else {
            self.answer(Ok(()));
            return None;
        };
        disk.grown = 0;
        let directory = disk.log.directory().clone();
        let mut state = shared.write();
        let stand = core.stand(&state);
        let header = state.machine.snapshot_header();
        // What a compaction drops from now on, the checkpoint may still need.
        state.hold(CHECKPOINT, Some(header.mvcc.compacted));
        Some((stand, header, directory))
    }

    /// Takes note of a checkpoint's end: after which entry it stands, and how many records of the log
    /// it does not need.
    pub(crate) fn done(
        &mut self,
        core: &mut Core,
        shared: &Shared,
        index: u64,
        records: u64,
        result: Result<u64, dhow_log::Error>,
    ) {
        if let Some(thread) = self.running.take() {
            // It has said its last word, so this does not wait.
            let _ = thread.join();
        }
        let tail = if core.alone { 0 } else { TAIL };
        let until = index.saturating_sub(tail).min(core.oldest_transfer());
        match result.and_then(|size| core.log_mut().trim(until, records).map(|()| size)) {
            Ok(size) => {
                // A large state is worth a longer log: else checkpoints would be all there is.
                self.limit = self.limit.max(size);
                shared.numbers.checkpoint_bytes.store(size, Ordering::Relaxed);
                tracing::debug!(index, size, "checkpoint written");
                self.answer(Ok(()));
            }
            Err(error) => {
                tracing::warn!(%error, "no checkpoint; the log grows on");
                self.answer(Err(Error::Storage(error.to_string())));
            }
        }
    }

    fn answer(&mut self, result: Result<(), Error>) {
        for reply in self.waiting.drain(..) {
            drop(reply.send(result.clone()));
        }
    }

    /// Waits for a running checkpoint, which gives up when the queue is closed.
    pub(crate) fn close(self) {
        if let Some(thread) = self.running {
            let _ = thread.join();
        }
    }
}

fn write_checkpoint(
    shared: &Shared,
    directory: Arc<Directory>,
    stand: &Stand,
    header: &MachineHeader,
) -> Result<u64, dhow_log::Error> {
    let path = directory.path().to_owned();
    let mut writer = CheckpointWriter::begin(directory, stand.index)?;
    writer.chunk(|out| stand.encode(out))?;
    writer.chunk(|out| header.encode(out))?;
    let mut after: Option<Bytes> = None;
    loop {
        if shared.queue.is_closed() {
            // The log has everything; the next start reads it.
            return Err(dhow_log::Error::Failed { path });
        }
        let last = writer.chunk(|out| {
            let state = shared.read();
            state.machine.mvcc.snapshot_chunk(&header.mvcc, after.as_ref(), CHUNK, out)
        })?;
        match last {
            Some(key) => after = Some(key),
            None => return writer.finish(),
        }
    }
}

/// What was found in a data directory, or made there.
pub(crate) struct Opened {
    pub(crate) state: State,
    pub(crate) log: RaftLog,
    pub(crate) checkpoint: u64,
    pub(crate) limit: u64,
}

/// The state of a new member.
pub(crate) struct Beginning {
    pub(crate) identity: Identity,
    pub(crate) members: Members,
    index: u64,
}

pub(crate) fn beginning(options: &Options, clock: &SharedClock) -> Result<Beginning, String> {
    let Some(cluster) = &options.cluster else {
        let draw = || (clock.random() >> 1).max(1);
        let identity = Identity { cluster_id: draw(), member_id: draw() };
        let own = Member { id: identity.member_id, name: "default".into(), ..Member::default() };
        return Ok(Beginning { identity, members: [own].into_iter().collect(), index: 1 });
    };
    let urls = crate::cluster::sorted(&cluster.peer_urls);
    match &cluster.start {
        Start::New => {
            let members = cluster.first_members();
            let member_id = member_id(&urls, &cluster.token, None);
            if !members.iter().any(|member| member.id == member_id) {
                return Err(format!(
                    "{} with the peer URLs {} is not among the initial members; name it there \
                     with the same URLs",
                    cluster.name,
                    urls.join(",")
                ));
            }
            let ids: std::collections::BTreeSet<u64> =
                members.iter().map(|member| member.id).collect();
            if ids.len() != members.len() {
                return Err("two of the initial members have the same peer URLs".into());
            }
            let identity = Identity { cluster_id: cluster.first_id(), member_id };
            Ok(Beginning { identity, members: members.into_iter().collect(), index: 1 })
        }
        Start::Existing(None) => Err("it is empty, and no member of the existing cluster was \
             reached to join; check the initial cluster's URLs"
            .into()),
        Start::Existing(Some(introduction)) => {
            let own = introduction
                .members
                .iter()
                .find(|member| crate::cluster::sorted(&member.peer_urls) == urls);
            let Some(own) = own else {
                return Err(format!(
                    "the cluster has no member with the peer URLs {}; add it first",
                    urls.join(",")
                ));
            };
            let identity = Identity { cluster_id: introduction.cluster_id, member_id: own.id };
            // The state comes as a snapshot. Until then it knows whom to listen to.
            let members = introduction.members.iter().cloned().collect();
            Ok(Beginning { identity, members, index: 0 })
        }
    }
}

/// A store that never sees a disk.
pub(crate) fn volatile(clock: &SharedClock) -> (State, RaftLog) {
    let draw = || (clock.random() >> 1).max(1);
    let identity = Identity { cluster_id: draw(), member_id: draw() };
    let own = Member { id: identity.member_id, name: "default".into(), ..Member::default() };
    let members: Members = [own].into_iter().collect();
    let mut machine = Machine::new();
    machine.skip(1);
    let mut log = RaftLog::volatile(identity, 1, 1);
    log.applied(1, Some(members.conf_state()), true);
    (State::new(machine, members), log)
}

/// Reads the state from a directory: the newest checkpoint, and the log after it.
pub(crate) fn recover(
    disk: Arc<dyn Disk>,
    path: &Path,
    clock: &SharedClock,
    options: &Options,
) -> Result<Opened, dhow_log::Error> {
    recover_until(disk, path, clock, options, false)
}

/// The same; `everything` has all entries applied, also those that are not known to be on a quorum:
/// for a member that has lost the others, whose last news of that may not be on the disk.
pub(crate) fn recover_until(
    disk: Arc<dyn Disk>,
    path: &Path,
    clock: &SharedClock,
    options: &Options,
    everything: bool,
) -> Result<Opened, dhow_log::Error> {
    let began = clock.monotonic();
    let refused = |what: String| dhow_log::Error::Refused { path: path.to_owned(), what };
    if let Some(new) = left_aside(&*disk, path) {
        return Err(refused(format!(
            "it is empty, but the change to a new cluster was interrupted and left {new}; rename \
             that to it, or remove that if it is not wanted",
            new = new.display()
        )));
    }
    let half = beside(path, HALF);
    if !holds_store(&*disk, path) && disk.list(&half).is_ok_and(|names| !names.is_empty()) {
        return Err(refused(format!(
            "it is empty, but a restore into it was interrupted: restore again, or remove {half} if \
             that is not wanted",
            half = half.display()
        )));
    }
    let directory = open_directory(disk, path, clock, options)?;
    let is_new = directory.is_new()?;
    let mut begins = if is_new { Some(beginning(options, clock).map_err(refused)?) } else { None };
    let mut limit = options.checkpoint_bytes;
    let mut stand = None;
    let mut checkpoint = 0;
    let mut machine = Machine::new();
    let mut members = Members::default();
    if let Some(mut found) = Checkpoint::newest(&directory)? {
        let (loaded, its, size) = load(&mut found)?;
        limit = limit.max(size);
        checkpoint = size;
        members = its.members.clone();
        machine = loaded;
        stand = Some(its);
    }
    let (index, after) = stand.as_ref().map_or((0, 0), |stand| (stand.index, stand.records));
    let mut state = State::new(machine, members);
    let mut replay = Replay::new(index);
    let log_options = dhow_log::Options { segment_bytes: options.segment_bytes };
    let log = Log::open(directory, clock.clone(), log_options, after, |place, bytes| {
        replay.record(place, bytes, &mut |entry| replay_entry(&mut state, entry))?;
        if index == 0
            && let Some(genesis) = replay.genesis.take()
        {
            state.members = genesis;
            state.machine.skip(replay.raft.applied_index());
        }
        Ok(())
    })?;
    if begins.is_none() && stand.is_none() && log.last_index() == 0 {
        // A first start that ended before its first record was safe: nothing was acknowledged.
        begins = Some(beginning(options, clock).map_err(refused)?);
    }
    let damaged = |what: String| dhow_log::Error::damaged(path, 0, what);
    let term = stand.as_ref().map_or(0, |stand| stand.term);
    // Alone, what is on this disk is on a quorum.
    let own = replay.raft.identity().member_id;
    while (everything || state.members.is_alone(own))
        && state.machine.applied() < replay.raft.last()
    {
        let next = state.machine.applied() + 1;
        let mut apply = |entry: &Entry| replay_entry(&mut state, entry);
        replay.apply(next, &mut apply).map_err(damaged)?;
        if state.machine.applied() < next {
            break;
        }
    }
    let identified = replay.identified;
    let (mut log, anew) = replay.finish(log, term).map_err(damaged)?;
    if let Some(begins) = begins {
        log = begin(log, &mut state, begins)?;
    } else {
        if !identified {
            return Err(damaged("nothing tells whose log it is".into()));
        }
        if anew {
            let mut hard = log.hard().clone();
            hard.commit = index;
            hard.term = hard.term.max(term);
            log.append_restart(index, term, hard, None)?;
        }
    }
    let identity = log.identity();
    if let Some(stand) = &stand
        && stand.cluster_id != identity.cluster_id
    {
        return Err(refused("its checkpoint and its log are of different clusters".into()));
    }
    check(&state, identity, options.cluster.as_ref()).map_err(refused)?;
    let conf = state.members.conf_state();
    // One that joins knows of members, but the votes are the leader's to tell.
    let conf = if state.machine.applied() == 0 { None } else { Some(conf) };
    log.applied(state.machine.applied(), conf, state.members.is_alone(identity.member_id));
    while state.machine.mvcc.prune(usize::MAX) {}
    tracing::info!(
        directory = %path.display(),
        revision = state.machine.mvcc.revision(),
        keys = state.machine.mvcc.keys(),
        checkpoint = index,
        replayed = state.machine.applied().saturating_sub(index),
        elapsed_ms = (clock.monotonic() - began).as_millis() as u64,
        "store opened"
    );
    Ok(Opened { state, log, checkpoint, limit })
}

/// Takes a data directory, with its log where the options say.
pub(crate) fn open_directory(
    disk: Arc<dyn Disk>,
    path: &Path,
    clock: &SharedClock,
    options: &Options,
) -> Result<Arc<Directory>, dhow_log::Error> {
    let opened = match &options.log_dir {
        None => Directory::open(disk, path),
        Some(logs) => Directory::open_with_logs(disk, path, logs, clock),
    };
    opened.map(Arc::new)
}

/// The whole store that [`crate::force_new`] had made to take this path's place, if it ended after it
/// had put the old one aside: beginning anew would lose it.
fn left_aside(disk: &dyn Disk, path: &Path) -> Option<PathBuf> {
    let new = beside(path, NEW);
    (!holds_store(disk, path) && holds_store(disk, &new)).then_some(new)
}

fn holds_store(disk: &dyn Disk, path: &Path) -> bool {
    let stored = |name: &String| name.starts_with("checkpoint-") || name.starts_with("log-");
    disk.list(path).is_ok_and(|names| names.iter().any(stored))
}

/// Writes the first records of a new member.
fn begin(log: RaftLog, state: &mut State, begins: Beginning) -> Result<RaftLog, dhow_log::Error> {
    let Beginning { identity, members, index } = begins;
    let mut anew = RaftLog::new(identity, index, index);
    anew.disk = log.disk;
    let mut hard = HardState::default();
    (hard.term, hard.commit) = (index, index);
    anew.append_restart(index, index, hard, Some(&members))?;
    state.members = members;
    if index > 0 {
        state.machine.skip(index);
    }
    Ok(anew)
}

/// Whether the directory belongs to the member that the options describe.
fn check(state: &State, identity: Identity, cluster: Option<&Cluster>) -> Result<(), String> {
    let others = !state.members.is_alone(identity.member_id);
    match cluster {
        None if others && !state.members.is_removed(identity.member_id) => {
            Err("it belongs to a cluster of several members; name the others to open it".into())
        }
        _ => Ok(()),
    }
}

/// Loads a checkpoint: the state, what else it says, its size.
pub(crate) fn load(checkpoint: &mut Checkpoint) -> Result<(Machine, Stand, u64), dhow_log::Error> {
    let Some(first) = checkpoint.next_chunk()? else {
        return Err(checkpoint.damage("the header is missing"));
    };
    let mut size = first.len() as u64;
    let stand = Stand::decode(first).map_err(|what| checkpoint.damage(what))?;
    if stand.index != checkpoint.index() {
        return Err(checkpoint.damage("it stands for another index than its name says"));
    }
    let Some(second) = checkpoint.next_chunk()? else {
        return Err(checkpoint.damage("the header of the state is missing"));
    };
    size += second.len() as u64;
    let header =
        MachineHeader::decode(&second).map_err(|error| checkpoint.damage(error.to_string()))?;
    let mut loader = MachineLoader::new(header);
    while let Some(chunk) = checkpoint.next_chunk()? {
        size += chunk.len() as u64;
        loader.chunk(&chunk).map_err(|error| checkpoint.damage(error.to_string()))?;
    }
    Ok((loader.finish(), stand, size))
}

/// Applies an entry of the log again. What it answered then, nobody waits for now.
fn replay_entry(state: &mut State, entry: &Entry) -> Result<(), String> {
    let payload = payload(entry);
    if payload.is_empty() {
        state.machine.skip(entry.index);
        return Ok(());
    }
    match Proposal::decode(payload)?.1 {
        Proposal::Command(command) => drop(state.machine.apply(entry.index, &command)),
        Proposal::Member(change) => {
            state.machine.skip(entry.index);
            // One that is refused was so then, too.
            let _ = state.members.apply(&change);
        }
    }
    Ok(())
}
