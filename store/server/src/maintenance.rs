//! Long work on the whole state while the store goes on: checksums, and snapshots for others.

use crate::Store;
use crate::shared::{Shared, State};
use bytes::Bytes;
use dhow_bolt::etcd;
use dhow_clock::BoxFuture;
use dhow_clock::disk::{Disk, DiskFile, Memory, Open};
use dhow_kv::Error;
use dhow_kv::admin::{HashKv, SnapshotReader, Version};
use dhow_mvcc::{Export, HashRun, MachineHeader, Rows};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// About so many bytes are looked at under one lock.
const STEP: usize = 256 << 10;
/// A snapshot comes in pieces of so many bytes.
const PIECE: usize = 32 << 10;
/// What is written goes to the disk in pieces of so many bytes.
const BUFFER: usize = 1 << 20;

/// Holds compactions back while it lives.
pub(crate) struct Hold<'a> {
    shared: &'a Shared,
    who: u64,
}

impl<'a> Hold<'a> {
    /// Reads something of the state, and keeps compactions from dropping what is behind the
    /// revision that `compacted` finds in it.
    pub(crate) fn begin<T>(
        shared: &'a Shared,
        read: impl FnOnce(&State) -> Result<T, Error>,
        compacted: impl FnOnce(&T) -> i64,
    ) -> Result<(Self, T), Error> {
        let hold = Self { shared, who: shared.reader() };
        let mut state = shared.write();
        let read = read(&state)?;
        state.hold(hold.who, Some(compacted(&read)));
        drop(state);
        Ok((hold, read))
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.shared.write().hold(self.who, None);
        // What it held can be worked off now, also when nothing else is asked for.
        self.shared.queue.wake();
    }
}

fn failed(what: impl std::fmt::Display) -> Error {
    Error::Storage(what.to_string())
}

/// What was there was replaced by another member's state.
fn replaced() -> Error {
    failed("the state was replaced by a newer one meanwhile; try again")
}

pub(crate) fn hash_kv(shared: &Shared, revision: i64) -> Result<HashKv, Error> {
    let now = shared.hub.published();
    let begin = |state: &State| state.machine.mvcc.hash_kv(revision, now);
    let (_hold, run) = Hold::begin(shared, begin, |run| run.compacted())?;
    finish_hash(shared, run)
}

/// Computes a checksum to its end. Compactions must be held.
pub(crate) fn finish_hash(shared: &Shared, mut run: HashRun) -> Result<HashKv, Error> {
    loop {
        let state = shared.read();
        if state.machine.mvcc.pruned() > run.compacted().max(2) {
            return Err(replaced());
        }
        if let Some(hash) = run.step(&state.machine.mvcc, STEP) {
            return Ok(hash);
        }
    }
}

/// Writes the state as etcd's file.
fn write<W: Write + Seek>(shared: &Shared, out: W) -> Result<etcd::Written<W>, Error> {
    let begin = |state: &State| {
        let header = state.machine.snapshot_header();
        let mut its = header.to_etcd();
        let version = state.machine.downgrade().unwrap_or(Version::NEWEST);
        its.cluster_version = format!("{version}.0");
        its.meta.storage_version.clone_from(&its.cluster_version);
        its.meta.term = shared.numbers.term.load(std::sync::atomic::Ordering::Relaxed);
        let members = &state.members;
        its.meta.conf_state = Some(etcd::ConfState {
            voters: members.voters().map(|member| member.id).collect(),
            learners: members.iter().filter(|m| m.learner).map(|m| m.id).collect(),
            ..etcd::ConfState::default()
        });
        its.members = members
            .iter()
            .map(|member| etcd::Member {
                id: member.id,
                peer_urls: member.peer_urls.clone(),
                learner: member.learner,
                name: member.name.clone(),
                client_urls: member.client_urls.clone(),
            })
            .collect();
        its.removed = members.removed().collect();
        Ok((header, its))
    };
    let compacted = |(header, _): &(MachineHeader, etcd::State)| header.mvcc.compacted;
    let (_hold, (header, its)) = Hold::begin(shared, begin, compacted)?;
    let mut writer = etcd::SnapshotWriter::new(out, &its).map_err(failed)?;
    let mut keys = writer.rows();
    let mut export = Export::new(&header.mvcc);
    let mut rows = Rows::default();
    let mut more = true;
    while more {
        rows.clear();
        {
            let state = shared.read();
            if state.machine.mvcc.pruned() > export.compacted().max(2) {
                return Err(replaced());
            }
            more = export.step(&state.machine.mvcc, STEP, &mut rows);
        }
        for (key, value) in rows.iter() {
            keys.put(key, value).map_err(failed)?;
        }
    }
    keys.finish().map_err(failed)?;
    writer.finish().map_err(failed)
}

/// Keeps nothing: for what only wants the checksum.
#[derive(Debug, Default)]
struct Sink {
    at: u64,
    end: u64,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.at += bytes.len() as u64;
        self.end = self.end.max(self.at);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Sink {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = place(to, self.at, self.end)?;
        Ok(self.at)
    }
}

fn place(to: SeekFrom, at: u64, end: u64) -> io::Result<u64> {
    let found = match to {
        SeekFrom::Start(at) => Some(at),
        SeekFrom::End(by) => end.checked_add_signed(by),
        SeekFrom::Current(by) => at.checked_add_signed(by),
    };
    found.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// A file that is gone when nobody wants it any more.
#[derive(Debug)]
struct Scratch {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    buffer: Vec<u8>,
    /// Where the buffer begins in the file.
    at: u64,
    end: u64,
}

impl Scratch {
    fn create(shared: &Shared) -> Result<Self, Error> {
        let (disk, path) = match shared.directory.upgrade() {
            // Opening the directory sweeps what has this ending.
            Some(directory) => {
                let name = format!("snapshot-{:x}.new", shared.reader());
                (directory.disk().clone(), directory.path().join(name))
            }
            None if shared.options.inline => {
                (Arc::new(Memory::new()) as Arc<dyn Disk>, Path::new("snapshot").to_owned())
            }
            None => return Err(Error::Stopped),
        };
        let file = disk.open(&path, Open::Create).map_err(failed)?;
        Ok(Self { disk, path, file, buffer: Vec::new(), at: 0, end: 0 })
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.disk.remove(&self.path);
    }
}

impl Write for Scratch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        self.end = self.end.max(self.at + self.buffer.len() as u64);
        if self.buffer.len() >= BUFFER {
            self.write_out()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_out()
    }
}

impl Seek for Scratch {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.write_out()?;
        self.at = place(to, self.at, self.end)?;
        Ok(self.at)
    }
}

/// A snapshot on its way out.
struct Pieces {
    scratch: Scratch,
    at: u64,
    size: u64,
}

impl SnapshotReader for Pieces {
    fn remaining(&self) -> u64 {
        self.size - self.at
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, Error>>> {
        Box::pin(async move {
            if self.at >= self.size {
                return None;
            }
            let most = PIECE.min(usize::try_from(self.size - self.at).unwrap_or(PIECE));
            let piece = self.scratch.file.read_to_end_at(self.at, most);
            let piece = piece.map_err(failed).and_then(|piece| match piece.len() {
                length if length == most => Ok(Bytes::from(piece)),
                _ => Err(failed("the snapshot's file was cut short")),
            });
            match &piece {
                Ok(piece) => self.at += piece.len() as u64,
                Err(_) => self.at = self.size,
            }
            Some(piece)
        })
    }
}

impl Store {
    /// Runs long work beside the caller, or in it when nothing may run concurrently.
    pub(crate) async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if self.shared.queue.is_closed() {
            return Err(Error::Stopped);
        }
        if self.shared.options.inline {
            return work(&self.shared);
        }
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || work(&shared)).await.unwrap_or(Err(Error::Stopped))
    }

    pub(crate) async fn hash_history(&self, revision: i64) -> Result<HashKv, Error> {
        let mut gone = self.shared.gone.subscribe();
        tokio::select! {
            known = self.shared.checksums.at(revision) => {
                if let Some(known) = known {
                    return Ok(known);
                }
            }
            _ = gone.wait_for(|gone| *gone) => return Err(Error::Stopped),
        }
        self.beside(move |shared| hash_kv(shared, revision)).await
    }

    pub(crate) async fn hash_all(&self) -> Result<u32, Error> {
        self.beside(|shared| Ok(write(shared, Sink::default())?.hash)).await
    }

    pub(crate) async fn write_snapshot(&self) -> Result<Box<dyn SnapshotReader>, Error> {
        let pieces = self.beside(|shared| {
            let mut written = write(shared, Scratch::create(shared)?)?;
            written.out.write_out().map_err(failed)?;
            Ok(Pieces { scratch: written.out, at: 0, size: written.size })
        });
        Ok(Box::new(pieces.await?))
    }
}
