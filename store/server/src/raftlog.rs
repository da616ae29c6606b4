//! Raft's log over ours: recent entries in memory, the rest in the segments.

mod replay;

pub(crate) use replay::Replay;

use crate::entry::{self, Record, SMALL, entry_size};
use crate::members::Members;
use dhow_kv::admin::Identity;
use dhow_log::{Batch, Log, Position};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::VecDeque;

/// Entries that are applied stay in memory up to this many bytes, for followers that are near.
const CACHE: usize = 4 << 20;
/// The place of about one frame in so many bytes of the log is known.
const STEP: u64 = 64 << 10;

/// Where on the disk the log is.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) log: Log,
    batch: Batch,
    /// The newest segment that begins with its identity and hard state.
    headed: u64,
    marks: Marks,
    /// How many bytes the log has grown since the last checkpoint began.
    pub(crate) grown: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RaftLog {
    /// None while it is read back, and for a volatile store.
    pub(crate) disk: Option<Disk>,
    identity: Identity,
    /// The first entry that there is.
    first: u64,
    last: u64,
    /// From which index on entries have which term; begins with the one before the first.
    terms: VecDeque<(u64, u64)>,
    /// The newest entries.
    cache: VecDeque<Entry>,
    cached: usize,
    hard: HardState,
    conf: ConfState,
    /// What is applied: entries behind it are never dropped from memory.
    applied: u64,
    /// Whether nobody will ask for old entries.
    alone: bool,
    /// What is not in memory is nowhere.
    volatile: bool,
}

impl RaftLog {
    /// An empty log after `index`.
    pub(crate) fn new(identity: Identity, index: u64, term: u64) -> Self {
        Self {
            disk: None,
            identity,
            first: index + 1,
            last: index,
            terms: [(index, term)].into(),
            cache: VecDeque::new(),
            cached: 0,
            hard: HardState::default(),
            conf: ConfState::default(),
            applied: index,
            alone: false,
            volatile: false,
        }
    }

    /// An empty log that never sees a disk.
    pub(crate) fn volatile(identity: Identity, index: u64, term: u64) -> Self {
        let mut log = Self::new(identity, index, term);
        log.hard.term = term;
        log.hard.commit = index;
        log.volatile = true;
        log
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    pub(crate) fn hard(&self) -> &HardState {
        &self.hard
    }

    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn applied_index(&self) -> u64 {
        self.applied
    }

    /// The term of an entry, if it is known.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index + 1 < self.first || index > self.last {
            return None;
        }
        let at = self.terms.partition_point(|(from, _)| *from <= index);
        at.checked_sub(1).and_then(|at| self.terms.get(at)).map(|(_, term)| *term)
    }

    /// Takes note of what is applied and who votes.
    pub(crate) fn applied(&mut self, index: u64, conf: Option<ConfState>, alone: bool) {
        self.applied = index;
        self.alone = alone;
        if let Some(conf) = conf {
            self.conf = conf;
        }
        self.evict();
    }

    fn evict(&mut self) {
        let most = if self.alone { 0 } else { CACHE };
        while self.cached > most
            && let Some(oldest) = self.cache.front()
            && oldest.index <= self.applied
        {
            let index = oldest.index;
            self.cached -= entry_size(oldest);
            self.cache.pop_front();
            if self.volatile {
                self.forget_before(index + 1);
            }
        }
        if self.cache.is_empty() && self.cache.capacity() > 4096 {
            self.cache = VecDeque::new();
        }
    }

    /// Entries before `first` are no longer there.
    fn forget_before(&mut self, first: u64) {
        if let Some(term) = self.term_of(first - 1) {
            while self.terms.get(1).is_some_and(|(from, _)| *from < first) {
                self.terms.pop_front();
            }
            if let Some(oldest) = self.terms.front_mut() {
                *oldest = (first - 1, term);
            }
            self.first = first;
        }
    }

    /// Drops the entries from `index` on.
    fn truncate(&mut self, index: u64) {
        if index > self.last {
            return;
        }
        self.last = index - 1;
        while self.terms.len() > 1 && self.terms.back().is_some_and(|(from, _)| *from >= index) {
            self.terms.pop_back();
        }
        while self.cache.back().is_some_and(|entry| entry.index >= index) {
            self.cached -= self.cache.pop_back().as_ref().map_or(0, entry_size);
        }
        if let Some(disk) = &mut self.disk {
            disk.marks.truncate(index);
        }
    }

    /// Adds an entry behind what remains before it.
    fn push(&mut self, entry: Entry) {
        if self.terms.back().is_none_or(|(_, term)| *term != entry.term) {
            self.terms.push_back((entry.index, entry.term));
        }
        self.last = entry.index;
        self.cached += entry_size(&entry);
        self.cache.push_back(entry);
    }

    /// The log begins anew after `index`.
    fn restart(&mut self, index: u64, term: u64) {
        (self.first, self.last) = (index + 1, index);
        self.terms = [(index, term)].into();
        self.cache.clear();
        self.cached = 0;
        if let Some(disk) = &mut self.disk {
            disk.marks = Marks::default();
        }
    }

    /// Makes sure that so many bytes in so many entries can be written, with what stands around.
    pub(crate) fn reserve(&mut self, bytes: usize, entries: usize) -> Result<(), dhow_log::Error> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        disk.log.reserve(Batch::size(bytes + 8 * SMALL, entries + 8))
    }

    /// Writes entries and the hard state, and makes them durable. Entries that they contradict are
    /// void.
    pub(crate) fn append(
        &mut self,
        entries: Vec<Entry>,
        hard: Option<HardState>,
    ) -> Result<(), dhow_log::Error> {
        if let Some(hard) = hard {
            self.hard = hard;
        }
        let truncated = entries.first().is_some_and(|first| first.index <= self.last);
        if let Some(first) = entries.first() {
            self.truncate(first.index);
        }
        if let Some(disk) = &mut self.disk {
            let bytes: usize = entries.iter().map(entry_size).sum();
            disk.head(bytes, entries.len(), self.identity)?;
            for entry in &entries {
                disk.batch.push(|out| {
                    out.push(1);
                    entry::put_entry(out, entry);
                });
            }
            disk.batch.push(|out| Record::HardState(self.hard.clone()).encode(out));
            disk.write(entries.first().map(|first| (first.index, truncated)))?;
        }
        for entry in entries {
            self.push(entry);
        }
        Ok(())
    }

    /// Writes that the log begins anew after `index`, where the hard state stands.
    pub(crate) fn append_restart(
        &mut self,
        index: u64,
        term: u64,
        hard: HardState,
        genesis: Option<&Members>,
    ) -> Result<(), dhow_log::Error> {
        self.restart(index, term);
        self.hard = hard;
        if let Some(disk) = &mut self.disk {
            let mut size = SMALL;
            let mut members = Vec::new();
            if let Some(genesis) = genesis {
                Record::Genesis(genesis.clone()).encode(&mut members);
                size += members.len();
            }
            disk.head(size, 2, self.identity)?;
            disk.batch.push(|out| Record::Restart { index, term }.encode(out));
            if !members.is_empty() {
                disk.batch.push(|out| out.extend_from_slice(&members));
            }
            disk.batch.push(|out| Record::HardState(self.hard.clone()).encode(out));
            disk.write(None)?;
        }
        Ok(())
    }

    /// How many records of the log come before those that bring the entries behind `index`, for a
    /// checkpoint to name. Where no entry's place is known, all that there is must be read: what
    /// was trimmed is not missing.
    pub(crate) fn records_before(&self, index: u64) -> u64 {
        let Some(disk) = &self.disk else { return 0 };
        let first = disk.marks.find(index + 1).map(|place| place.index);
        first.unwrap_or_else(|| disk.log.first_segment()) - 1
    }

    /// Deletes segments that hold only entries up to `index`, and none of the records behind the first
    /// `records`: so many a checkpoint has named, and where entries stand may be known better by now.
    pub(crate) fn trim(&mut self, index: u64, records: u64) -> Result<(), dhow_log::Error> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        let Some(place) = disk.marks.find(index + 1) else { return Ok(()) };
        disk.log.trim(records.min(place.index - 1))?;
        // The segment's first frame may begin with older entries.
        let first = disk.marks.trim(disk.log.first_segment()).unwrap_or(self.last + 1);
        if first > self.first {
            self.forget_before(first);
        }
        Ok(())
    }

    fn read(&self, low: u64, high: u64, most: usize) -> Result<Vec<Entry>, dhow_log::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut size = 0;
        let cached_from = self.cache.front().map_or(self.last + 1, |entry| entry.index);
        if let Some(disk) = &self.disk {
            let mut next = low;
            while next < high.min(cached_from) {
                let Some(place) = disk.marks.find(next) else { break };
                let until = disk.marks.next(next).unwrap_or(u64::MAX).min(high).min(cached_from);
                let before = next;
                disk.log.read(place, |bytes| {
                    let entry = match Record::decode(bytes) {
                        Ok(Record::Entry(entry)) if entry.index == next => entry,
                        _ => return true,
                    };
                    size += entry_size(&entry);
                    if !entries.is_empty() && size > most {
                        return false;
                    }
                    entries.push(entry);
                    next += 1;
                    next < until
                })?;
                if size > most {
                    return Ok(entries);
                }
                if next == before {
                    break;
                }
            }
            if next < high.min(cached_from) {
                let directory = disk.log.directory().path();
                let what = format!("entry {next} of the log is missing");
                return Err(dhow_log::Error::damaged(directory, 0, what));
            }
        }
        let next = entries.last().map_or(low, |entry| entry.index + 1);
        let skip = next.saturating_sub(cached_from) as usize;
        let count = high.saturating_sub(next) as usize;
        for entry in self.cache.iter().skip(skip).take(count) {
            size += entry_size(entry);
            if !entries.is_empty() && size > most {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }
}

impl Disk {
    pub(crate) fn new(log: Log) -> Self {
        Self { log, batch: Batch::default(), headed: 0, marks: Marks::default(), grown: 0 }
    }

    /// Takes the space for a batch. The first of a segment tells whose log it is.
    fn head(
        &mut self,
        bytes: usize,
        entries: usize,
        identity: Identity,
    ) -> Result<(), dhow_log::Error> {
        self.batch.clear();
        self.log.reserve(Batch::size(bytes + 4 * SMALL, entries + 4))?;
        if self.headed != self.log.segment() {
            self.headed = self.log.segment();
            self.batch.push(|out| Record::Identity(identity).encode(out));
        }
        Ok(())
    }

    /// Writes the batch, and makes it durable. Its entries begin with an index; are there older ones that
    /// they make void?
    fn write(&mut self, entries: Option<(u64, bool)>) -> Result<(), dhow_log::Error> {
        let size = self.batch.bytes();
        self.grown += size;
        let written = self.log.append(&mut self.batch);
        self.batch.clear();
        let place = written?;
        if let Some((first, void)) = entries {
            self.marks.note(first, place, void);
        }
        self.marks.since += size;
        self.log.sync()
    }
}

/// Where some entries stand: those from an index up to the next are read from its frame on.
#[derive(Debug, Default)]
struct Marks {
    places: VecDeque<(u64, Position)>,
    /// How many bytes were written since the last one.
    since: u64,
}

impl Marks {
    /// The newest at or before an entry.
    fn find(&self, index: u64) -> Option<Position> {
        let at = self.places.partition_point(|(from, _)| *from <= index);
        at.checked_sub(1).and_then(|at| self.places.get(at)).map(|(_, place)| *place)
    }

    /// The index of the first behind an entry.
    fn next(&self, index: u64) -> Option<u64> {
        let at = self.places.partition_point(|(from, _)| *from <= index);
        self.places.get(at).map(|(from, _)| *from)
    }

    /// Notes where an entry stands, if it must be or is worth it.
    fn note(&mut self, index: u64, place: Position, must: bool) {
        let newer = self.places.back().is_none_or(|(_, last)| last.segment != place.segment);
        if must || newer || self.since >= STEP {
            self.places.push_back((index, place));
            self.since = 0;
        }
    }

    /// The entries from `index` on are void.
    fn truncate(&mut self, index: u64) {
        while self.places.back().is_some_and(|(from, _)| *from >= index) {
            self.places.pop_back();
        }
    }

    /// The segments before one are gone. The first entry that has a place still, if there is any.
    fn trim(&mut self, segment: u64) -> Option<u64> {
        while self.places.front().is_some_and(|(_, place)| place.segment < segment) {
            self.places.pop_front();
        }
        self.places.front().map(|(index, _)| *index)
    }
}

fn store_error(what: StorageError) -> Error {
    Error::Store(what)
}

impl Storage for RaftLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first {
            return Err(store_error(StorageError::Compacted));
        }
        let most = max_size.into().and_then(|most| usize::try_from(most).ok());
        self.read(low, high, most.unwrap_or(usize::MAX)).map_err(|error| {
            tracing::error!(%error, "old entries of the log cannot be read");
            match context.can_async() {
                // It is about sending them to a follower, which has to wait.
                true => store_error(StorageError::LogTemporarilyUnavailable),
                false => store_error(StorageError::Other(Box::new(error))),
            }
        })
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_of(index).ok_or_else(|| {
            store_error(if index > self.last {
                StorageError::Unavailable
            } else {
                StorageError::Compacted
            })
        })
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    /// What a snapshot would stand for now. Its state is sent beside Raft.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let term = self.term_of(self.applied).filter(|_| self.applied >= request_index);
        let Some(term) = term.filter(|term| *term > 0) else {
            return Err(store_error(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.applied;
        metadata.term = term;
        metadata.set_conf_state(self.conf.clone());
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use dhow_clock::disk::Memory;
    use dhow_clock::{Clock, System};
    use dhow_log::Directory;
    use std::path::Path;
    use std::sync::Arc;

    const OPTIONS: dhow_log::Options = dhow_log::Options { segment_bytes: 16 << 10 };

    fn directory(disk: &Memory) -> Arc<Directory> {
        Arc::new(Directory::open(Arc::new(disk.clone()), Path::new("/data")).unwrap())
    }

    fn begin(disk: &Memory) -> RaftLog {
        let log = Log::open(directory(disk), System::shared(), OPTIONS, 0, |_, _| Ok(())).unwrap();
        let identity = Identity { cluster_id: 3, member_id: 4 };
        let mut raft = RaftLog::new(identity, 1, 1);
        raft.disk = Some(Disk::new(log));
        raft.append_restart(1, 1, HardState { term: 1, commit: 1, ..HardState::default() }, None)
            .unwrap();
        raft
    }

    /// Opens it again; tells what was applied.
    fn again(disk: &Memory) -> (RaftLog, Vec<Entry>) {
        let mut replay = Replay::new(0);
        let mut applied = Vec::new();
        let log = Log::open(directory(disk), System::shared(), OPTIONS, 0, |place, bytes| {
            replay.record(place, bytes, &mut |entry| {
                applied.push(entry.clone());
                Ok(())
            })
        });
        let (raft, anew) = replay.finish(log.unwrap(), 0).unwrap();
        assert!(!anew);
        (raft, applied)
    }

    #[test]
    fn a_checkpoint_right_after_a_snapshot_knows_of_what_was_trimmed() {
        let disk = Memory::new();
        let mut raft = begin(&disk);
        for index in 2..200 {
            raft.append(vec![entry(index, 1, 1000)], None).unwrap();
        }
        raft.applied(199, None, false);
        raft.trim(190, u64::MAX).unwrap();
        let hard = HardState { term: 2, commit: 500, ..HardState::default() };
        raft.append_restart(500, 2, hard, None).unwrap();
        let records = raft.records_before(500);
        assert!(records > 100);
        drop(raft);
        Log::open(directory(&disk), System::shared(), OPTIONS, records, |_, _| Ok(())).unwrap();
    }

    #[test]
    fn what_a_checkpoint_needs_stays_although_a_segment_begins_right_behind_it() {
        for last in 2..60 {
            let disk = Memory::new();
            let mut raft = begin(&disk);
            for index in 2..=last {
                raft.append(vec![entry(index, 1, 1000)], None).unwrap();
            }
            raft.applied(last, None, true);
            let records = raft.records_before(last);
            for index in last + 1..last + 40 {
                raft.append(vec![entry(index, 1, 1000)], None).unwrap();
            }
            raft.trim(last, records).unwrap();
            drop(raft);
            let opened =
                Log::open(directory(&disk), System::shared(), OPTIONS, records, |_, _| Ok(()));
            assert!(opened.is_ok(), "{last}: {opened:?}");
        }
    }

    fn entry(index: u64, term: u64, size: usize) -> Entry {
        let data = Bytes::from(vec![(index * 31 + term) as u8; size]);
        Entry { index, term, data, ..Entry::default() }
    }

    fn check(raft: &RaftLog, model: &[Entry]) {
        // The model begins with entry 2.
        assert_eq!((raft.first, raft.last), (2, model.len() as u64 + 1));
        for low in (2..=raft.last).step_by(7) {
            for high in [low + 1, low + 20, raft.last + 1] {
                let high = high.min(raft.last + 1);
                let found = raft.read(low, high, usize::MAX).unwrap();
                assert!(found == model[low as usize - 2..high as usize - 2], "{low}..{high}");
            }
            assert_eq!(raft.term_of(low), Some(model[low as usize - 2].term));
            let some = raft.read(low, raft.last + 1, 1000).unwrap();
            assert!(!some.is_empty() && some == model[low as usize - 2..][..some.len()]);
        }
    }

    #[test]
    fn entries_are_read_from_the_disk_whatever_made_others_void() {
        let chance = System::new();
        for round in 0..20 {
            let disk = Memory::new();
            let mut raft = begin(&disk);
            let mut model: Vec<Entry> = Vec::new();
            let mut term = 1;
            let mut commit = 1;
            for _ in 0..60 {
                let last = model.len() as u64 + 1;
                let mut first = last + 1;
                if chance.random().is_multiple_of(5) {
                    // A new leader does not know the last ones.
                    term += 1;
                    first = commit + 1 + chance.random() % (last - commit + 1);
                }
                let count = 1 + chance.random() % 9;
                let size = (chance.random() % 900) as usize;
                let new: Vec<Entry> =
                    (first..first + count).map(|i| entry(i, term, size)).collect();
                model.truncate(first as usize - 2);
                model.extend(new.iter().cloned());
                if chance.random().is_multiple_of(3) {
                    commit = commit.max(first + chance.random() % count);
                }
                raft.append(new, Some(HardState { term, commit, ..HardState::default() })).unwrap();
                // Nothing that is applied stays in memory.
                raft.applied(commit, None, true);
                assert!(raft.cache.front().is_none_or(|oldest| oldest.index > commit));
            }
            check(&raft, &model);
            drop(raft);
            let (raft, applied) = again(&disk);
            check(&raft, &model);
            assert!(applied == model[..commit as usize - 1], "round {round}");
            assert_eq!((raft.hard.term, raft.hard.commit), (term, commit));
        }
    }

    #[test]
    fn what_is_trimmed_is_gone_and_the_rest_is_there() {
        let disk = Memory::new();
        let mut raft = begin(&disk);
        let model: Vec<Entry> = (2..=400).map(|index| entry(index, 1 + index / 100, 200)).collect();
        for entry in &model {
            let hard = HardState { term: 5, commit: entry.index, ..HardState::default() };
            raft.append(vec![entry.clone()], Some(hard)).unwrap();
        }
        raft.applied(400, None, true);
        let before = raft.disk.as_ref().unwrap().log.bytes();
        raft.trim(300, u64::MAX).unwrap();
        assert!(raft.disk.as_ref().unwrap().log.bytes() < before);
        assert!(raft.first > 100 && raft.first <= 301, "{}", raft.first);
        let rest = raft.read(raft.first, 401, usize::MAX).unwrap();
        assert!(rest == model[raft.first as usize - 2..]);
        assert_eq!(raft.term_of(raft.first - 1), Some(model[raft.first as usize - 3].term));
        assert_eq!(raft.term_of(raft.first - 2), None);
        assert!(raft.entries(50, 60, None, GetEntriesContext::empty(false)).is_err());
    }
}
