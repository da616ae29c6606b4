//! The log: segments of frames, appended by one writer, read back when it is opened.

use crate::directory::LOG as PREFIX;
use crate::frame::{self, Batch, Head};
use crate::{Directory, Error};
use bytes::Bytes;
use dhow_clock::SharedClock;
use dhow_clock::disk::{DiskFile, Open};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"dhowlog1";
/// Magic, nonce (4 bytes), CRC-32C of the rest (4 bytes), index of the first entry, 8 zero bytes.
const SEGMENT_HEADER: usize = 32;
/// Old entries are read in pieces of so many bytes, or of one frame that is larger.
const READ: usize = 256 << 10;

/// How a log behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The size of a segment in bytes, taken when it is begun.
    pub segment_bytes: u64,
}

/// Where a frame begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The index of its segment's first entry.
    pub segment: u64,
    /// The byte in the segment.
    pub offset: u64,
    /// The index of its first entry.
    pub index: u64,
}

#[derive(Debug)]
struct Segment {
    first_index: u64,
    path: PathBuf,
    nonce: u32,
    size: u64,
}

#[derive(Debug)]
struct Active {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    nonce: u32,
    /// Where the next frame goes.
    end: u64,
    size: u64,
}

/// A log open for appending. Entries have consecutive indexes; the first ever has 1.
#[derive(Debug)]
pub struct Log {
    directory: Arc<Directory>,
    clock: SharedClock,
    options: Options,
    /// Segments before the active one, oldest first.
    sealed: VecDeque<Segment>,
    active: Active,
    active_first: u64,
    next_index: u64,
    failed: bool,
}

/// What reading a segment found.
struct Scan {
    /// Where the whole frames end.
    end: usize,
    /// The byte after the last that is not zero.
    dirty_end: usize,
}

impl Log {
    /// Opens the log, hands every entry that it has to `visit` with the frame it stands in, and
    /// cuts off a frame that was not finished. Entries after `after` must be there: what the
    /// checkpoint does not hold (0 without one).
    ///
    /// # Errors
    /// [`Error::Damaged`] with the exact place; [`Error::Disk`]; [`Error::Full`]. What `visit`
    /// calls wrong with an entry is damage too.
    pub fn open(
        directory: Arc<Directory>,
        clock: SharedClock,
        options: Options,
        after: u64,
        mut visit: impl FnMut(Position, Bytes) -> Result<(), String>,
    ) -> Result<Self, Error> {
        let numbers = directory.numbered(PREFIX)?;
        if numbers.is_empty() {
            if after > 0 {
                let path = directory.file(PREFIX, after + 1);
                return Err(Error::damaged(&path, 0, "the log is missing"));
            }
            let active = begin(&directory, &clock, options.segment_bytes, 1)?;
            directory.note_log()?;
            return Ok(Self {
                directory,
                clock,
                options,
                sealed: VecDeque::new(),
                active,
                active_first: 1,
                next_index: 1,
                failed: false,
            });
        }
        let mut next_index = numbers[0];
        if next_index > after + 1 {
            let path = directory.file(PREFIX, next_index);
            let what = format!("entries {} to {} before it are missing", after + 1, next_index - 1);
            return Err(Error::damaged(&path, 0, what));
        }
        let last = numbers.len() - 1;
        let mut sealed = VecDeque::new();
        for (at, number) in numbers.into_iter().enumerate() {
            let path = directory.file(PREFIX, number);
            if number != next_index {
                let what = format!("entries {next_index} to {} before it are missing", number - 1);
                return Err(Error::damaged(&path, 0, what));
            }
            let how = if at == last { Open::Write } else { Open::Read };
            let file = directory.disk.open(&path, how).map_err(Error::disk("open", &path))?;
            let bytes = file
                .read_to_end_at(0, usize::MAX)
                .map(Bytes::from)
                .map_err(Error::disk("read", &path))?;
            let nonce = read_header(&bytes, number)
                .ok_or_else(|| Error::damaged(&path, 0, "not the header of a log segment"))?;
            let scan = scan(&bytes, nonce, number, &mut next_index, &mut visit)
                .map_err(|(offset, what)| Error::damaged(&path, offset as u64, what))?;
            if at < last {
                if scan.dirty_end > scan.end {
                    let what = "a frame is not whole, and segments follow";
                    return Err(Error::damaged(&path, scan.end as u64, what));
                }
                let size = bytes.len() as u64;
                sealed.push_back(Segment { first_index: number, path, nonce, size });
                continue;
            }
            if scan.dirty_end > scan.end {
                tracing::info!(
                    file = %path.display(),
                    offset = scan.end,
                    "cut off a write that a crash had interrupted; it was never acknowledged"
                );
                let zeros = vec![0; scan.dirty_end - scan.end];
                file.write_all_at(&zeros, scan.end as u64).map_err(Error::disk("write", &path))?;
            }
            // Whoever wrote it may have ended before the sync. What was read here counts as
            // durable from now on, the names of the files with it.
            file.sync().map_err(Error::disk("sync", &path))?;
            directory.sync()?;
            let active =
                Active { file, path, nonce, end: scan.end as u64, size: bytes.len() as u64 };
            return Ok(Self {
                directory,
                clock,
                options,
                sealed,
                active,
                active_first: number,
                next_index,
                failed: false,
            });
        }
        // The last segment returns from the loop, and there is one.
        Err(Error::damaged(directory.path(), 0, "the log is missing"))
    }

    /// The index of the newest entry, 0 when there is none.
    pub fn last_index(&self) -> u64 {
        self.next_index - 1
    }

    /// Where the log is.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Makes sure that `size` bytes (see [`Batch::size`]) can be appended as one batch.
    ///
    /// # Errors
    /// [`Error::Full`]: nothing has changed, and it may work later. [`Error::Disk`] likewise, unless
    /// [`Log::is_failed`]. [`Error::Failed`] after an earlier failure of a write.
    pub fn reserve(&mut self, size: u64) -> Result<(), Error> {
        self.check()?;
        if self.active.end + size <= self.active.size {
            return Ok(());
        }
        let size = self.options.segment_bytes.max(size + SEGMENT_HEADER as u64);
        let (new, active) = prepare(&self.directory, &self.clock, size, self.next_index)?;
        let disk = &self.directory.disk;
        disk.rename(&new, &active.path).map_err(Error::disk("rename", &new))?;
        // With its name it is part of the log, and frames behind it in the old one would be void.
        self.directory.sync().inspect_err(|_| self.failed = true)?;
        let old = std::mem::replace(&mut self.active, active);
        if self.active_first == self.next_index {
            // The old one has no entries and the new one has taken its name.
            return Ok(());
        }
        let Active { path, nonce, size, .. } = old;
        self.sealed.push_back(Segment { first_index: self.active_first, path, nonce, size });
        self.active_first = self.next_index;
        Ok(())
    }

    /// Writes a batch and tells where. It is durable after [`Log::sync`].
    ///
    /// # Errors
    /// As [`Log::reserve`]; or [`Error::Disk`], after which the log is not written any more.
    pub fn append(&mut self, batch: &mut Batch) -> Result<Position, Error> {
        let frame_size = batch.bytes();
        self.reserve(frame_size)?;
        let position = Position {
            segment: self.active_first,
            offset: self.active.end,
            index: self.next_index,
        };
        if batch.is_empty() {
            return Ok(position);
        }
        let frame = batch.seal(self.active.nonce, self.next_index);
        let written = dhow_fault::point("log::append")
            .map_err(io::Error::from)
            .and_then(|()| self.active.file.write_all_at(frame, self.active.end));
        if let Err(source) = written {
            self.failed = true;
            return Err(Error::Disk {
                action: "append to",
                path: self.active.path.clone(),
                source,
            });
        }
        self.active.end += frame_size;
        self.next_index += batch.len() as u64;
        Ok(position)
    }

    /// The index of the first entry of the segment that is written now.
    pub fn segment(&self) -> u64 {
        self.active_first
    }

    /// The index of the first entry of the oldest segment.
    pub fn first_segment(&self) -> u64 {
        self.sealed.front().map_or(self.active_first, |segment| segment.first_index)
    }

    /// What the log takes on the disk, in bytes.
    pub fn bytes(&self) -> u64 {
        self.sealed.iter().map(|segment| segment.size).sum::<u64>() + self.active.size
    }

    /// Hands the entries of the frames from a position on to `visit`, until that returns false or
    /// there are no more.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the exact place, also when the position's segment is not there any
    /// more; [`Error::Disk`].
    pub fn read(&self, from: Position, mut visit: impl FnMut(Bytes) -> bool) -> Result<(), Error> {
        let active = Segment {
            first_index: self.active_first,
            path: self.active.path.clone(),
            nonce: self.active.nonce,
            size: self.active.end,
        };
        let segments = self.sealed.iter().chain([&active]);
        let mut offset = from.offset;
        for segment in segments.skip_while(|segment| segment.first_index < from.segment) {
            let path = &segment.path;
            if segment.first_index == from.segment || offset == SEGMENT_HEADER as u64 {
                let opened;
                let file = if segment.first_index == self.active_first {
                    &self.active.file
                } else {
                    let disk = &self.directory.disk;
                    opened = disk.open(path, Open::Read).map_err(Error::disk("open", path))?;
                    &opened
                };
                if !read_frames(&**file, segment, offset, &mut visit)? {
                    return Ok(());
                }
                offset = SEGMENT_HEADER as u64;
            } else {
                return Err(Error::damaged(path, 0, "the segment before it is missing"));
            }
        }
        Ok(())
    }

    /// Makes everything appended durable.
    ///
    /// # Errors
    /// [`Error::Disk`]: what is on the disk is unknown, so the log is not written any more.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.check()?;
        let synced = dhow_fault::point("log::sync")
            .map_err(io::Error::from)
            .and_then(|()| self.active.file.sync());
        synced.map_err(|source| {
            self.failed = true;
            Error::Disk { action: "sync", path: self.active.path.clone(), source }
        })
    }

    /// Deletes the segments whose entries are all at or before `index`, which a checkpoint holds.
    ///
    /// # Errors
    /// [`Error::Disk`]; the log itself is not harmed.
    pub fn trim(&mut self, index: u64) -> Result<(), Error> {
        while let Some(oldest) = self.sealed.front() {
            let next = self.sealed.get(1).map_or(self.active_first, |segment| segment.first_index);
            if next > index + 1 {
                break;
            }
            let removed = self.directory.disk.remove(&oldest.path);
            removed.map_err(Error::disk("remove", &oldest.path))?;
            self.sealed.pop_front();
        }
        Ok(())
    }

    /// Whether the log is not written any more, because nobody knows what the disk holds.
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    fn check(&self) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Failed { path: self.directory.path().to_owned() });
        }
        Ok(())
    }
}

/// Reads the frames of a segment from `offset` on. Returns whether `visit` wants more.
fn read_frames(
    file: &dyn DiskFile,
    segment: &Segment,
    mut offset: u64,
    visit: &mut impl FnMut(Bytes) -> bool,
) -> Result<bool, Error> {
    let path = &segment.path;
    let read = |offset: u64, most: usize| {
        let most = usize::try_from(segment.size.saturating_sub(offset)).unwrap_or(most).min(most);
        file.read_to_end_at(offset, most).map(Bytes::from).map_err(Error::disk("read", path))
    };
    let mut most = READ;
    loop {
        let block = read(offset, most)?;
        let mut at = 0;
        // Behind the last frame of a sealed segment there is space that was never used.
        let Some(first) = Head::read(&block, segment.nonce) else { return Ok(true) };
        most = READ.max(first.size());
        while let Some(head) = block.get(at..).and_then(|rest| Head::read(rest, segment.nonce)) {
            if at + head.size() > block.len() {
                break;
            }
            let entries = head
                .payload(&block.slice(at..))
                .and_then(|payload| frame::entries(payload, head.count))
                .ok_or_else(|| {
                    Error::damaged(path, offset + at as u64, "a frame is not what was written")
                })?;
            for entry in entries {
                if !visit(entry) {
                    return Ok(false);
                }
            }
            at += head.size();
        }
        if at == 0 && first.size() > block.len() && block.len() < READ {
            return Err(Error::damaged(path, offset, "a frame is cut short"));
        }
        offset += at as u64;
    }
}

/// Makes an empty segment with its space taken.
fn begin(
    directory: &Directory,
    clock: &SharedClock,
    size: u64,
    first_index: u64,
) -> Result<Active, Error> {
    let (new, active) = prepare(directory, clock, size, first_index)?;
    directory.name(&new, &active.path)?;
    Ok(active)
}

/// The same, but for its name: it still has the one that is returned.
fn prepare(
    directory: &Directory,
    clock: &SharedClock,
    size: u64,
    first_index: u64,
) -> Result<(PathBuf, Active), Error> {
    let path = directory.file(PREFIX, first_index);
    let new = path.with_extension("new");
    let nonce = clock.random() as u32;
    let mut header = [0; SEGMENT_HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&nonce.to_le_bytes());
    header[16..24].copy_from_slice(&first_index.to_le_bytes());
    let crc = crc32c::crc32c(&header);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    let disk = &directory.disk;
    let made = disk.open(&new, Open::Create).and_then(|file| {
        file.allocate(size)?;
        file.write_all_at(&header, 0)?;
        file.sync()?;
        Ok(file)
    });
    let file = made.map_err(|error| {
        // What there is of it would only take space.
        let _ = disk.remove(&new);
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::Full { path: directory.log_path().to_owned() }
            }
            _ => Error::disk("create", &new)(error),
        }
    })?;
    Ok((new, Active { file, path, nonce, end: SEGMENT_HEADER as u64, size }))
}

fn read_header(bytes: &[u8], first_index: u64) -> Option<u32> {
    let mut header: [u8; SEGMENT_HEADER] = bytes.get(..SEGMENT_HEADER)?.try_into().ok()?;
    let crc = u32::from_le_bytes(header[12..16].try_into().ok()?);
    header[12..16].fill(0);
    let right = header.starts_with(MAGIC)
        && crc32c::crc32c(&header) == crc
        && header[16..24] == first_index.to_le_bytes();
    right.then(|| u32::from_le_bytes([header[8], header[9], header[10], header[11]]))
}

/// Reads the frames of one segment. An error is a place and what is wrong there.
fn scan(
    bytes: &Bytes,
    nonce: u32,
    segment: u64,
    next_index: &mut u64,
    visit: &mut impl FnMut(Position, Bytes) -> Result<(), String>,
) -> Result<Scan, (usize, String)> {
    let mut end = SEGMENT_HEADER;
    while let Some(head) = Head::read(&bytes[end..], nonce) {
        let Some(payload) = head.payload(&bytes.slice(end..)) else { break };
        if head.first_index != *next_index {
            let what = format!("entry {} where {next_index} belongs", head.first_index);
            return Err((end, what));
        }
        let entries = frame::entries(payload, head.count)
            .ok_or_else(|| (end, "a frame's entries do not fill it".to_owned()))?;
        let position = Position { segment, offset: end as u64, index: *next_index };
        for entry in entries {
            visit(position, entry).map_err(|what| (end, what))?;
            *next_index += 1;
        }
        end += head.size();
        if end >= bytes.len() {
            break;
        }
    }
    let end = end.min(bytes.len());
    let rest = &bytes[end..];
    let dirty = rest.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    // A frame is written only when all before it are safe. So one behind the first that is not
    // whole means that an acknowledged one was damaged.
    let mut at = 8;
    while at + frame::HEADER <= dirty.next_multiple_of(8).min(rest.len()) {
        if let Some(head) = Head::read(&rest[at..], nonce)
            && head.first_index > *next_index
        {
            let what = format!(
                "entry {next_index} is not whole, yet entry {} follows at byte {}",
                head.first_index,
                end + at
            );
            return Err((end, what));
        }
        at += 8;
    }
    Ok(Scan { end, dirty_end: end + dirty })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_clock::System;
    use dhow_clock::disk::{Disk, Fault, Memory, Operation};
    use std::path::Path;

    const SMALL: Options = Options { segment_bytes: 4096 };

    fn open_with(disk: &Memory, after: u64) -> Result<(Log, Vec<(u64, Bytes)>), Error> {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let directory = Arc::new(Directory::open(shared, Path::new("/data"))?);
        let mut seen = Vec::new();
        let mut next = 0;
        let log = Log::open(directory, System::shared(), SMALL, after, |frame, entry| {
            next = frame.index.max(next + 1);
            seen.push((next, entry));
            Ok(())
        })?;
        Ok((log, seen))
    }

    fn open(disk: &Memory) -> (Log, Vec<(u64, Bytes)>) {
        open_with(disk, 0).unwrap()
    }

    fn append(log: &mut Log, entries: &[&[u8]]) -> Result<(), Error> {
        let mut batch = Batch::default();
        for entry in entries {
            batch.push(|out| out.extend_from_slice(entry));
        }
        log.append(&mut batch)?;
        log.sync()
    }

    fn entry(n: u64) -> Vec<u8> {
        vec![n as u8; (n as usize * 37) % 700]
    }

    fn fill(log: &mut Log, entries: std::ops::RangeInclusive<u64>) {
        for n in entries {
            append(log, &[&entry(n)]).unwrap();
        }
    }

    fn check(seen: &[(u64, Bytes)], entries: std::ops::RangeInclusive<u64>) {
        let wanted: Vec<_> = entries.map(|n| (n, Bytes::from(entry(n)))).collect();
        assert_eq!(seen, wanted);
    }

    #[test]
    fn what_was_appended_comes_back_over_many_segments() {
        let disk = Memory::new();
        let (mut log, seen) = open(&disk);
        assert!(seen.is_empty());
        fill(&mut log, 1..=50);
        assert!(log.sealed.len() > 3);
        drop(log);
        let (mut log, seen) = open(&disk);
        check(&seen, 1..=50);
        fill(&mut log, 51..=60);
        drop(log);
        check(&open(&disk).1, 1..=60);
    }

    #[test]
    fn what_was_read_once_survives_a_loss_of_power() {
        for seed in 0..30 {
            let disk = Memory::new();
            let (mut log, _) = open(&disk);
            append(&mut log, &[&entry(1)]).unwrap();
            // The process ends between the write and the sync.
            let mut batch = Batch::default();
            batch.push(|out| out.extend_from_slice(&entry(2)));
            log.append(&mut batch).unwrap();
            drop(log);
            check(&open(&disk).1, 1..=2);
            check(&open(&disk.crash(seed)).1, 1..=2);
        }
    }

    #[test]
    fn a_segment_whose_name_may_not_last_ends_the_log() {
        let disk = Memory::new();
        let (mut log, _) = open(&disk);
        disk.fail(Fault { operation: Operation::SyncDir, after: 0, kind: io::ErrorKind::Other });
        let mut last = 0;
        let error = loop {
            match append(&mut log, &[&entry(last + 1)]) {
                Ok(()) => last += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Disk { .. }) && log.is_failed(), "{error}");
        assert!(matches!(append(&mut log, &[b"x"]), Err(Error::Failed { .. })));
        drop(log);
        check(&open(&disk).1, 1..=last);
    }

    #[test]
    fn old_entries_are_read_from_any_frame_on() {
        let disk = Memory::new();
        let (mut log, _) = open(&disk);
        let mut frames = Vec::new();
        for n in 1..=50 {
            let mut batch = Batch::default();
            batch.push(|out| out.extend_from_slice(&entry(2 * n - 1)));
            batch.push(|out| out.extend_from_slice(&entry(2 * n)));
            frames.push(log.append(&mut batch).unwrap());
        }
        let mut large = Batch::default();
        large.push(|out| out.extend_from_slice(&[5; READ + 100]));
        frames.push(log.append(&mut large).unwrap());
        let check = |log: &Log| {
            for frame in &frames {
                let mut index = frame.index;
                let visit = |bytes: Bytes| {
                    let wanted = if index == 101 { vec![5; READ + 100] } else { entry(index) };
                    assert_eq!(bytes, wanted);
                    index += 1;
                    true
                };
                log.read(*frame, visit).unwrap();
                assert_eq!(index, 102);
            }
        };
        check(&log);
        drop(log);
        check(&open(&disk).0);
    }

    #[test]
    fn an_entry_larger_than_a_segment_fits() {
        let disk = Memory::new();
        let (mut log, _) = open(&disk);
        append(&mut log, &[&[7; 10_000]]).unwrap();
        drop(log);
        assert_eq!(open(&disk).1[0].1.len(), 10_000);
    }

    #[test]
    fn a_crash_loses_nothing_that_was_synced() {
        for seed in 0..300 {
            let disk = Memory::new();
            let (mut log, _) = open(&disk);
            let synced = 1 + seed % 40;
            fill(&mut log, 1..=synced);
            let mut batch = Batch::default();
            for n in synced + 1..=synced + 3 {
                batch.push(|out| out.extend_from_slice(&entry(n)));
            }
            log.append(&mut batch).unwrap();
            let crashed = disk.crash(seed);
            let (mut again, seen) = open(&crashed);
            let last = seen.len() as u64;
            assert!(last == synced || last == synced + 3, "all of a batch or nothing: {last}");
            check(&seen, 1..=last);
            fill(&mut again, last + 1..=last + 5);
            drop(again);
            check(&open(&crashed).1, 1..=last + 5);
        }
    }

    #[test]
    fn damage_before_the_end_is_refused_with_its_place() {
        let disk = Memory::new();
        let (mut log, _) = open(&disk);
        append(&mut log, &[&[1; 100]]).unwrap();
        let second = log.active.end;
        append(&mut log, &[&[2; 100]]).unwrap();
        append(&mut log, &[&[3; 100]]).unwrap();
        let path = log.active.path.clone();
        drop(log);
        for inside in [0, 5, 9, 30, 90] {
            let broken = disk.crash(0);
            broken.flip(&path, second + inside);
            match open_with(&broken, 0) {
                Err(Error::Damaged { path: at, offset, .. }) => {
                    assert_eq!((at, offset), (path.clone(), second), "flipped byte {inside}");
                }
                other => panic!("flipped byte {inside}: {other:?}"),
            }
        }
    }

    #[test]
    fn damage_in_an_older_segment_is_refused() {
        let disk = Memory::new();
        let (mut log, _) = open(&disk);
        fill(&mut log, 1..=50);
        let path = log.sealed[1].path.clone();
        drop(log);
        disk.flip(&path, 40);
        assert!(matches!(open_with(&disk, 0), Err(Error::Damaged { path: at, .. }) if at == path));
        disk.remove(&path).unwrap();
        let missing = open_with(&disk, 0).unwrap_err().to_string();
        assert!(missing.contains("missing"), "{missing}");
    }

    #[test]
    fn a_full_disk_refuses_before_writing_and_recovers() {
        let disk = Memory::new();
        let (mut log, _) = open(&disk);
        disk.set_capacity(Some(5000));
        let mut written = 0;
        while append(&mut log, &[&[9; 500]]).is_ok() {
            written += 1;
        }
        assert!(matches!(append(&mut log, &[&[9; 500]]), Err(Error::Full { .. })));
        disk.set_capacity(None);
        append(&mut log, &[&[9; 500]]).unwrap();
        drop(log);
        assert_eq!(open(&disk).1.len(), written + 1);
    }

    #[test]
    fn after_a_failed_sync_nothing_more_is_written() {
        let disk = Memory::new();
        let (mut log, _) = open(&disk);
        disk.fail(Fault { operation: Operation::Sync, after: 1, kind: io::ErrorKind::Other });
        append(&mut log, &[b"one"]).unwrap();
        assert!(matches!(append(&mut log, &[b"two"]), Err(Error::Disk { action: "sync", .. })));
        assert!(matches!(append(&mut log, &[b"three"]), Err(Error::Failed { .. })));
    }

    #[test]
    fn trimming_deletes_what_a_checkpoint_holds() {
        let disk = Memory::new();
        let (mut log, _) = open(&disk);
        fill(&mut log, 1..=50);
        let before = log.sealed.len();
        log.trim(30).unwrap();
        assert!(log.sealed.len() < before);
        drop(log);
        assert!(matches!(open_with(&disk, 0), Err(Error::Damaged { .. })), "needs its checkpoint");
        let (_, seen) = open_with(&disk, 30).unwrap();
        let first = seen[0].0;
        assert!(first > 1 && first <= 31);
        check(&seen, first..=50);
    }

    #[test]
    fn a_second_opener_is_told_who_has_the_directory() {
        let disk = Memory::new();
        let (log, _) = open(&disk);
        let text = open_with(&disk, 0).unwrap_err().to_string();
        let own = std::process::id();
        assert!(text.contains("/data is in use by process") && text.contains(&own.to_string()));
        drop(log);
        open(&disk);
    }

    #[test]
    fn an_older_format_is_refused_in_one_line() {
        let disk = Memory::new();
        drop(open(&disk));
        let file = disk.open(Path::new("/data/version"), Open::Create).unwrap();
        file.write_all_at(b"dhow-store 1\n", 0).unwrap();
        let text = open_with(&disk, 0).unwrap_err().to_string();
        assert!(
            text.contains("/data has format 1 of an earlier") && !text.contains('\n'),
            "{text}"
        );
    }

    #[test]
    fn a_newer_format_is_refused_in_one_line() {
        let disk = Memory::new();
        drop(open(&disk));
        let file = disk.open(Path::new("/data/version"), Open::Write).unwrap();
        file.write_all_at(b"dhow-store 9\n", 0).unwrap();
        let text = open_with(&disk, 0).unwrap_err().to_string();
        assert!(text.contains("/data has format 9") && !text.contains('\n'), "{text}");
    }
}
