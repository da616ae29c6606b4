//! A new member from a snapshot, of a store or of etcd.

use crate::journal::{Beginning, beginning, open_directory, recover_until};
use crate::raftlog::{RaftLog, Replay};
use crate::stand::Stand;
use crate::{OpenError, Options};
use bytes::Bytes;
use dhow_bolt::etcd::{Entry, Snapshot};
use dhow_clock::SharedClock;
use dhow_clock::disk::Disk;
use dhow_kv::admin::Identity;
use dhow_log::{CheckpointWriter, Log};
use dhow_mvcc::{Hash, ImportError, Machine};
use raft::eraftpb::HardState;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// About how many bytes of the state go into one piece of the checkpoint.
const CHUNK: usize = 128 << 10;
/// The term that a restored cluster begins with; equal on all its members.
const TERM: u64 = 1;

/// Why a snapshot did not become a member.
#[derive(Debug)]
pub enum RestoreError {
    /// The snapshot.
    Snapshot(ImportError),
    /// The new directory.
    Store(OpenError),
}

impl std::fmt::Display for RestoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Snapshot(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RestoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Snapshot(error) => error.source(),
            Self::Store(error) => error.source(),
        }
    }
}

impl From<ImportError> for RestoreError {
    fn from(error: ImportError) -> Self {
        Self::Snapshot(error)
    }
}

impl From<OpenError> for RestoreError {
    fn from(error: OpenError) -> Self {
        Self::Store(error)
    }
}

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Who the new member is.
    pub identity: Identity,
    /// The revision that it begins with.
    pub revision: i64,
    /// How many keys it has.
    pub keys: usize,
}

/// Makes a data directory that [`Store::open`](crate::Store::open) finds the snapshot's state in.
/// The members are those of `options`, all new: each of them must be made from the same snapshot.
/// With a `raise` other than 0 its revision is so much higher and all history is forgotten. The
/// directory comes into being whole or not at all.
///
/// # Errors
/// [`RestoreError`]: the snapshot is damaged, or the directory is not empty or cannot be written.
pub fn restore<R: Read + Seek>(
    disk: Arc<dyn Disk>,
    path: &Path,
    clock: &SharedClock,
    options: &Options,
    snapshot: &mut Snapshot<R>,
    raise: i64,
) -> Result<Restored, RestoreError> {
    // Before anything is written: a snapshot that is refused leaves nothing.
    let machine = Machine::from_etcd_raised(snapshot, raise)?;
    Ok(make(disk, path, clock, options, machine)?)
}

/// Makes a data directory of what an etcd has left: its database, and the entries of its log behind
/// it. Passwords that the log has in clear are hashed by `hash`. The directory comes into being whole
/// or not at all.
///
/// # Errors
/// As [`restore`].
pub fn take_over<R: Read + Seek>(
    disk: Arc<dyn Disk>,
    path: &Path,
    clock: &SharedClock,
    options: &Options,
    snapshot: &mut Snapshot<R>,
    log: &[Entry],
    hash: Hash<'_>,
) -> Result<Restored, RestoreError> {
    let mut machine = Machine::from_etcd(snapshot)?;
    for entry in log {
        let data = if entry.members { &[][..] } else { &entry.data };
        machine.replay(entry.index, data, hash).map_err(ImportError::Log)?;
    }
    Ok(make(disk, path, clock, options, machine)?)
}

/// The end of the name of a directory that is being made: what is in it is worth nothing.
pub(crate) const HALF: &str = ".making";
/// The end of the name of one that is whole and about to take the place of another.
pub(crate) const NEW: &str = ".new";

/// What was done to a path, for errors.
fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Disk { action, path, source }
}

/// Makes a data directory with a state and the members of `options`, whole or not at all: it gets its
/// name when everything in it, and its log elsewhere, is safe. What an earlier time left that ended in
/// the middle goes first.
fn make(
    disk: Arc<dyn Disk>,
    path: &Path,
    clock: &SharedClock,
    options: &Options,
    machine: Machine,
) -> Result<Restored, OpenError> {
    if disk.list(path).is_ok_and(|names| !names.is_empty()) {
        let what = "it holds a store already; name an empty directory".to_owned();
        return Err(OpenError::Refused { path: path.to_owned(), what });
    }
    let half = beside(path, HALF);
    if dhow_log::discard(&disk, &half)? {
        let path = half.display();
        tracing::info!(%path, "removed what an interrupted restore had left, its log included");
    }
    let restored = fill(disk.clone(), &half, clock, options, machine)?;
    put_in_place(&*disk, &half, path)?;
    Ok(restored)
}

fn put_in_place(disk: &dyn Disk, new: &Path, path: &Path) -> Result<(), OpenError> {
    disk.rename(new, path).map_err(failed("put in place", new))?;
    match path.parent() {
        Some(parent) => disk.sync_dir(parent).map_err(failed("write", parent)),
        None => Ok(()),
    }
}

/// The path of the same name with `end` behind it: an end that the name has already stays, so that
/// no two paths have the same one beside them.
pub(crate) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(end);
    path.with_file_name(name)
}

/// Makes a cluster of its own of a member that has lost the others for good: the state stays with
/// all that its log has, and the members are those of `options`. What was there
/// before stays beside it, in a directory of the same name with `.before-TIME` at its end.
///
/// # Errors
/// [`OpenError`]: as [`Store::open`](crate::Store::open).
pub fn force_new(
    disk: Arc<dyn Disk>,
    path: &Path,
    clock: &SharedClock,
    options: &Options,
) -> Result<Restored, OpenError> {
    let machine = recover_until(disk.clone(), path, clock, options, true)?.state.machine;
    let time = clock.now().as_secs();
    let new = beside(path, NEW);
    // An earlier time ended before it had put the old one aside.
    dhow_log::discard(&disk, &new)?;
    let restored = make(disk.clone(), &new, clock, options, machine)?;
    // It may not be the first time in this second.
    let mut names = (time..).map(|time| beside(path, &format!(".before-{time}")));
    let taken = [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::AlreadyExists];
    let aside = names.find_map(|before| match disk.rename(path, &before) {
        Err(error) if taken.contains(&error.kind()) => None,
        done => Some(done),
    });
    aside.unwrap_or(Ok(())).map_err(failed("put aside", path))?;
    put_in_place(&*disk, &new, path)?;
    Ok(restored)
}

/// Fills an empty directory with a state and the members of `options`.
fn fill(
    disk: Arc<dyn Disk>,
    path: &Path,
    clock: &SharedClock,
    options: &Options,
    mut machine: Machine,
) -> Result<Restored, OpenError> {
    let index = machine.applied().max(1);
    machine.skip(index);
    let refused = |what: String| OpenError::Refused { path: path.to_owned(), what };
    let Beginning { identity, members, .. } = beginning(options, clock).map_err(refused)?;
    let directory = open_directory(disk, path, clock, options)?;

    let header = machine.snapshot_header();
    let cluster_id = identity.cluster_id;
    let stand = Stand { index, term: TERM, cluster_id, records: 0, members: members.clone() };
    let mut writer = CheckpointWriter::begin(directory.clone(), index)?;
    writer.chunk(|out| stand.encode(out))?;
    writer.chunk(|out| header.encode(out))?;
    let mut after: Option<Bytes> = None;
    loop {
        let last = writer
            .chunk(|out| machine.mvcc.snapshot_chunk(&header.mvcc, after.as_ref(), CHUNK, out))?;
        match last {
            Some(key) => after = Some(key),
            None => break,
        }
    }
    writer.finish()?;

    let mut replay = Replay::new(index);
    let log_options = dhow_log::Options { segment_bytes: options.segment_bytes };
    let log = Log::open(directory, clock.clone(), log_options, 0, |place, bytes| {
        replay.record(place, bytes, &mut |_| Ok(()))
    })?;
    let (log, _) = replay.finish(log, TERM).map_err(|what| OpenError::damaged(path, 0, what))?;
    let mut anew = RaftLog::new(identity, index, TERM);
    anew.disk = log.disk;
    let mut hard = HardState::default();
    (hard.term, hard.commit) = (TERM, index);
    anew.append_restart(index, TERM, hard, Some(&members))?;
    let revision = machine.mvcc.revision();
    Ok(Restored { identity, revision, keys: machine.mvcc.keys() })
}
