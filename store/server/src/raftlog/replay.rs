//! The log read back at a start, record by record.

use super::{Disk, Marks, RaftLog};
use crate::entry::{Record, entry_size};
use crate::members::Members;
use bytes::Bytes;
use dhow_kv::admin::Identity;
use dhow_log::{Log, Position};
use raft::eraftpb::Entry;

/// See the module.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) raft: RaftLog,
    /// The members at the very beginning, if the log reaches back so far.
    pub(crate) genesis: Option<Members>,
    /// Whether any record was seen that tells whose log it is.
    pub(crate) identified: bool,
    /// What becomes a part of [`Disk`], and the frame that was read last.
    marks: Marks,
    last: Option<Position>,
    /// The newest entry that the checkpoint has.
    checkpoint: u64,
    /// How many bytes of entries the checkpoint does not have.
    grown: u64,
}

impl Replay {
    /// `checkpoint` is the index of the newest checkpoint, 0 without one.
    pub(crate) fn new(checkpoint: u64) -> Self {
        let mut raft = RaftLog::new(Identity::default(), 0, 0);
        raft.applied = checkpoint;
        Self {
            raft,
            genesis: None,
            identified: false,
            marks: Marks::default(),
            last: None,
            checkpoint,
            grown: 0,
        }
    }

    /// Takes the next record, and hands the entries that it tells to be committed to `apply`, each
    /// once, if they are not in the checkpoint.
    pub(crate) fn record(
        &mut self,
        place: Position,
        bytes: Bytes,
        apply: &mut impl FnMut(&Entry) -> Result<(), String>,
    ) -> Result<(), String> {
        let size = bytes.len() as u64;
        match Record::decode(bytes)? {
            Record::Identity(identity) => {
                if self.identified && identity != self.raft.identity {
                    return Err("another member's log".into());
                }
                self.raft.identity = identity;
                self.identified = true;
            }
            Record::Genesis(members) => self.genesis = Some(members),
            Record::Restart { index, term } => {
                self.raft.restart(index, term);
                self.marks = Marks::default();
                self.raft.applied = self.raft.applied.max(index);
            }
            Record::HardState(hard) => {
                self.raft.hard = hard;
                self.apply(self.raft.hard.commit, apply)?;
            }
            Record::Entry(entry) => {
                if entry.index > self.checkpoint {
                    self.grown += size;
                }
                self.entry(place, entry)?;
                self.marks.since += size;
            }
        }
        Ok(())
    }

    /// Takes the next entry of the log, which may make earlier ones void.
    fn entry(&mut self, place: Position, entry: Entry) -> Result<(), String> {
        let raft = &mut self.raft;
        let index = entry.index;
        let void = index <= raft.last;
        if index == 0 || (void && index <= raft.applied && index > self.checkpoint) {
            return Err(format!("entry {index} comes again, although it was committed"));
        }
        if index > raft.last + 1 || index < raft.first {
            // What is kept of the log begins here, or a snapshot lies between.
            raft.restart(index - 1, 0);
            self.marks = Marks::default();
        } else if void {
            raft.truncate(index);
            self.marks.truncate(index);
        }
        // One mark for a frame is enough, unless what it stood for is void.
        if self.last.replace(place) != Some(place) || void || self.marks.places.is_empty() {
            self.marks.note(index, place, void);
        }
        raft.push(entry);
        raft.evict();
        Ok(())
    }

    /// Applies the entries up to `commit` that are not applied yet.
    pub(crate) fn apply(
        &mut self,
        commit: u64,
        apply: &mut impl FnMut(&Entry) -> Result<(), String>,
    ) -> Result<(), String> {
        let raft = &mut self.raft;
        let Some(front) = raft.cache.front().map(|entry| entry.index) else { return Ok(()) };
        let skip = (raft.applied + 1).saturating_sub(front) as usize;
        for entry in raft.cache.iter().skip(skip) {
            if entry.index > commit {
                break;
            }
            if entry.index != raft.applied + 1 {
                return Err(format!(
                    "entries {} to {} before it are missing",
                    raft.applied + 1,
                    entry.index - 1
                ));
            }
            apply(entry)?;
            raft.applied = entry.index;
        }
        raft.evict();
        Ok(())
    }

    /// The log, when all records were read. `term` is that of the checkpoint. Returns whether the
    /// log has nothing to do with the checkpoint and begins anew behind it, which is to be written.
    pub(crate) fn finish(mut self, log: Log, term: u64) -> Result<(RaftLog, bool), String> {
        let raft = &mut self.raft;
        if self.checkpoint > 0 && raft.first > self.checkpoint + 1 {
            return Err(format!(
                "entries {} to {} between the checkpoint and the log are missing",
                self.checkpoint + 1,
                raft.first - 1
            ));
        }
        let mut disk = Disk::new(log);
        disk.grown = self.grown;
        let mut anew = false;
        if self.checkpoint + 1 == raft.first && raft.last >= raft.first {
            raft.terms[0] = (self.checkpoint, term);
        } else if self.checkpoint > 0 && raft.term_of(self.checkpoint) != Some(term) {
            raft.restart(self.checkpoint, term);
            self.marks = Marks::default();
            anew = true;
        } else if raft.term_of(raft.first - 1) == Some(0) && raft.first > 1 {
            // The term before the first entry that is left is not known, so it stands for itself.
            let first = raft.first;
            raft.terms.pop_front();
            raft.first = first + 1;
        }
        raft.hard.commit = raft.hard.commit.max(raft.applied).min(raft.last);
        // The entries are parts of whole segments, which must not stay in memory for them.
        raft.cache.retain(|entry| entry.index > raft.applied);
        for entry in &mut raft.cache {
            entry.data = Bytes::copy_from_slice(&entry.data);
            entry.context = Bytes::copy_from_slice(&entry.context);
        }
        raft.cached = raft.cache.iter().map(entry_size).sum();
        disk.marks = self.marks;
        self.raft.disk = Some(disk);
        Ok((self.raft, anew))
    }
}
