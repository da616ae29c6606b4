//! The writer's side of the disk: commands into the log, checkpoints, and both back at the start.

use crate::Options;
use crate::queue::Request;
use crate::store::Shared;
use bytes::Bytes;
use dhow_clock::SharedClock;
use dhow_clock::disk::Disk;
use dhow_kv::Error;
use dhow_log::{Batch, Checkpoint, CheckpointWriter, Directory, Log};
use dhow_mvcc::{Command, Header, Loader, Mvcc};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The bytes of the revision in front of each entry.
const REVISION: usize = 8;
/// About how many bytes of the state go into a checkpoint under one lock.
const CHUNK: usize = 128 << 10;

/// The log and what it takes to keep it short.
#[derive(Debug)]
pub(crate) struct Journal {
    log: Log,
    batch: Batch,
    /// How many bytes the log has grown since the last checkpoint began.
    grown: u64,
    /// How much it may grow.
    limit: u64,
    running: Option<JoinHandle<()>>,
    /// The last attempt to write found no space; said once.
    full: bool,
}

impl Journal {
    /// At least as many bytes as the command takes in a batch.
    pub(crate) fn entry_bound(command: &Command) -> usize {
        REVISION + command.size_bound()
    }

    /// Makes sure that the log has space for so many bytes in so many commands (and one of the
    /// writer's own).
    pub(crate) fn reserve(&mut self, bytes: usize, commands: usize) -> Result<(), Error> {
        let own = Self::entry_bound(&Command::Compact(i64::MAX));
        match self.log.reserve(Batch::size(bytes + own, commands + 1)) {
            Ok(()) => {
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

    /// Puts a command, which has led to `revision`, into the batch.
    pub(crate) fn add(&mut self, revision: i64, command: &Command) {
        self.batch.push(|out| {
            out.extend_from_slice(&revision.to_le_bytes());
            command.encode(out);
        });
    }

    /// Writes the batch and makes it durable.
    pub(crate) fn write(&mut self) -> Result<(), dhow_log::Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.grown += self.batch.bytes();
        let written = self.log.append(&mut self.batch).and_then(|()| self.log.sync());
        self.batch.clear();
        written
    }

    /// Begins a checkpoint in a thread of its own, if one is due.
    pub(crate) fn checkpoint_beside(&mut self, shared: &Arc<Shared>) {
        let Some((index, header)) = self.begin(shared) else { return };
        let directory = self.log.directory().clone();
        let their = shared.clone();
        let spawned =
            std::thread::Builder::new().name("store-checkpoint".into()).spawn(move || {
                let result = write_checkpoint(&their, directory, index, &header);
                their.queue.push(Request::Checkpointed { index, result });
            });
        match spawned {
            Ok(thread) => self.running = Some(thread),
            Err(error) => {
                tracing::warn!(%error, "no thread for a checkpoint; the log grows on");
                shared.write().hold(None);
            }
        }
    }

    /// Writes a checkpoint now, if one is due.
    pub(crate) fn checkpoint_here(&mut self, shared: &Shared) {
        let Some((index, header)) = self.begin(shared) else { return };
        let directory = self.log.directory().clone();
        let result = write_checkpoint(shared, directory, index, &header);
        shared.write().hold(None);
        self.checkpointed(index, result);
    }

    fn begin(&mut self, shared: &Shared) -> Option<(u64, Header)> {
        if self.grown < self.limit || self.running.is_some() {
            return None;
        }
        self.grown = 0;
        let mut mvcc = shared.write();
        let header = mvcc.snapshot_header();
        // What a compaction drops from now on, the checkpoint may still need.
        mvcc.hold(Some(header.compacted));
        Some((self.log.last_index(), header))
    }

    /// Takes note of a checkpoint's end.
    pub(crate) fn checkpointed(&mut self, index: u64, result: Result<u64, dhow_log::Error>) {
        if let Some(thread) = self.running.take() {
            // It has said its last word, so this does not wait.
            let _ = thread.join();
        }
        match result.and_then(|size| self.log.trim(index).map(|()| size)) {
            Ok(size) => {
                // A large state is worth a longer log: else checkpoints would be all there is.
                self.limit = self.limit.max(size);
                tracing::debug!(index, size, "checkpoint written");
            }
            Err(error) => tracing::warn!(%error, "no checkpoint; the log grows on"),
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
    index: u64,
    header: &Header,
) -> Result<u64, dhow_log::Error> {
    let path = directory.path().to_owned();
    let mut writer = CheckpointWriter::begin(directory, index)?;
    writer.chunk(|out| header.encode(out))?;
    let mut after: Option<Bytes> = None;
    loop {
        if shared.queue.is_closed() {
            // The log has everything; the next start reads it.
            return Err(dhow_log::Error::Failed { path });
        }
        let last =
            writer.chunk(|out| shared.read().snapshot_chunk(header, after.as_ref(), CHUNK, out))?;
        match last {
            Some(key) => after = Some(key),
            None => return writer.finish(),
        }
    }
}

/// Reads the state from a directory: the newest checkpoint, and the log after it.
pub(crate) fn recover(
    disk: Arc<dyn Disk>,
    path: &Path,
    clock: &SharedClock,
    options: &Options,
) -> Result<(Mvcc, Journal), dhow_log::Error> {
    let began = clock.monotonic();
    let directory = Arc::new(Directory::open(disk, path)?);
    let mut after = 0;
    let mut limit = options.checkpoint_bytes;
    let mut mvcc = Mvcc::new();
    if let Some(mut checkpoint) = Checkpoint::newest(&directory)? {
        after = checkpoint.index();
        let (loaded, size) = load(&mut checkpoint)?;
        limit = limit.max(size);
        mvcc = loaded;
    }
    let mut grown = 0;
    let log_options = dhow_log::Options { segment_bytes: options.segment_bytes };
    let log = Log::open(directory, clock.clone(), log_options, after, |_, entry| {
        grown += entry.len() as u64;
        replay(&mut mvcc, &entry)
    })?;
    while mvcc.prune(usize::MAX) {}
    tracing::info!(
        directory = %path.display(),
        revision = mvcc.revision(),
        keys = mvcc.keys(),
        checkpoint = after,
        replayed = log.last_index() - after,
        elapsed_ms = (clock.monotonic() - began).as_millis() as u64,
        "store opened"
    );
    let journal =
        Journal { log, batch: Batch::default(), grown, limit, running: None, full: false };
    Ok((mvcc, journal))
}

fn load(checkpoint: &mut Checkpoint) -> Result<(Mvcc, u64), dhow_log::Error> {
    let Some(first) = checkpoint.next_chunk()? else {
        return Err(checkpoint.damage("the header is missing"));
    };
    let header = Header::decode(&first).map_err(|error| checkpoint.damage(error.to_string()))?;
    let mut loader = Loader::new(header);
    let mut size = first.len() as u64;
    while let Some(chunk) = checkpoint.next_chunk()? {
        size += chunk.len() as u64;
        loader.chunk(&chunk).map_err(|error| checkpoint.damage(error.to_string()))?;
    }
    Ok((loader.finish(), size))
}

/// Applies an entry of the log again and checks that it leads where it led before.
fn replay(mvcc: &mut Mvcc, entry: &Bytes) -> Result<(), String> {
    let revision = entry.get(..REVISION).and_then(|bytes| bytes.try_into().ok());
    let revision = revision.map(i64::from_le_bytes).ok_or("an entry is too short")?;
    let command = Command::decode(&entry.slice(REVISION..)).map_err(|error| error.to_string())?;
    mvcc.apply(&command).map_err(|error| format!("a command fails that had worked: {error}"))?;
    if mvcc.revision() != revision {
        let came = mvcc.revision();
        return Err(format!("a command leads to revision {came}, not to {revision}"));
    }
    Ok(())
}
