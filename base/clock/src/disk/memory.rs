//! A disk in memory that can be full, fail, and crash: for tests and simulations.

use super::{Disk, DiskFile, Open};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A crash keeps or loses writes in pieces of this size, as real disks do.
const SECTOR: usize = 512;

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`DiskFile::write_all_at`].
    Write,
    /// [`DiskFile::allocate`].
    Allocate,
    /// [`DiskFile::sync`].
    Sync,
    /// [`Disk::rename`].
    Rename,
    /// [`Disk::sync_dir`].
    SyncDir,
}

/// A failure to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Of what.
    pub operation: Operation,
    /// After so many successes.
    pub after: usize,
    /// With this error, once.
    pub kind: io::ErrorKind,
}

#[derive(Debug, Default, Clone)]
struct Contents {
    /// What reads see.
    current: Vec<u8>,
    /// What a crash leaves for certain.
    durable: Vec<u8>,
    /// What a crash may lose: where, and which bytes.
    pending: Vec<(usize, Vec<u8>)>,
}

impl Contents {
    fn put(bytes: &mut Vec<u8>, at: usize, part: &[u8]) {
        if bytes.len() < at + part.len() {
            bytes.resize(at + part.len(), 0);
        }
        bytes[at..at + part.len()].copy_from_slice(part);
    }

    fn sync(&mut self) {
        for (at, part) in std::mem::take(&mut self.pending) {
            Self::put(&mut self.durable, at, &part);
        }
        let length = self.current.len();
        self.durable.resize(length, 0);
    }
}

type FileId = usize;

#[derive(Debug, Clone)]
enum NameChange {
    Set(PathBuf, FileId),
    Remove(PathBuf),
    /// A file, or a directory with all that is in it.
    Move(PathBuf, PathBuf),
}

impl NameChange {
    /// The name that it gives or takes.
    fn path(&self) -> &Path {
        match self {
            Self::Set(path, _) | Self::Remove(path) | Self::Move(_, path) => path,
        }
    }
}

fn change(names: &mut BTreeMap<PathBuf, FileId>, change: NameChange) {
    match change {
        NameChange::Set(path, file) => drop(names.insert(path, file)),
        NameChange::Remove(path) => drop(names.remove(&path)),
        NameChange::Move(from, to) => {
            names.remove(&to);
            let moved = |path: PathBuf| match path.strip_prefix(&from) {
                Ok(rest) if rest.as_os_str().is_empty() => to.clone(),
                Ok(rest) => to.join(rest),
                Err(_) => path,
            };
            *names =
                std::mem::take(names).into_iter().map(|(at, file)| (moved(at), file)).collect();
        }
    }
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<PathBuf, FileId>,
    durable_names: BTreeMap<PathBuf, FileId>,
    pending_names: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    capacity: Option<u64>,
    faults: Vec<Fault>,
    syncs: usize,
    /// How many changes have been made.
    changes: usize,
    /// Before which change the power goes, and by which seed.
    crash_before: Option<(usize, u64)>,
    crashed: Option<Memory>,
}

impl State {
    fn name(&mut self, path: &Path, file: FileId) {
        let set = NameChange::Set(path.to_owned(), file);
        change(&mut self.names, set.clone());
        self.pending_names.push(set);
    }

    fn unname(&mut self, path: &Path) {
        let remove = NameChange::Remove(path.to_owned());
        change(&mut self.names, remove.clone());
        self.pending_names.push(remove);
    }

    fn used(&self) -> u64 {
        self.names.values().map(|file| self.files[*file].current.len() as u64).sum()
    }

    fn room(&self, file: FileId, length: usize) -> io::Result<()> {
        let more = length.saturating_sub(self.files[file].current.len()) as u64;
        match self.capacity {
            Some(capacity) if more > 0 && self.used() + more > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    /// The state after the power went. See [`Memory::crash`].
    fn crash(&self, seed: u64) -> Self {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut draw = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) as usize % below.max(1)
        };
        let mut names = self.durable_names.clone();
        let kept = draw(self.pending_names.len() + 1);
        for pending in self.pending_names.iter().take(kept) {
            change(&mut names, pending.clone());
        }
        let mut files = self.files.clone();
        for contents in &mut files {
            if contents.current.len() > contents.durable.len() && draw(2) == 0 {
                contents.durable.resize(contents.current.len(), 0);
            }
            for (at, part) in std::mem::take(&mut contents.pending) {
                // 0 loses all, 1 keeps all, else sector by sector.
                let mood = draw(4);
                let mut start = 0;
                while start < part.len() {
                    let end = (start + SECTOR - (at + start) % SECTOR).min(part.len());
                    if mood == 1 || (mood > 1 && draw(2) == 0) {
                        Contents::put(&mut contents.durable, at + start, &part[start..end]);
                    }
                    start = end;
                }
            }
            contents.current = contents.durable.clone();
        }
        let durable_names = names.clone();
        Self { files, durable_names, names, capacity: self.capacity, ..Self::default() }
    }

    /// To be called before every change.
    fn changing(&mut self) {
        if let Some((before, seed)) = self.crash_before
            && self.changes == before
        {
            self.crashed = Some(Memory(Arc::new(Mutex::new(self.crash(seed)))));
        }
        self.changes += 1;
    }

    fn check(&mut self, operation: Operation) -> io::Result<()> {
        self.changing();
        let mut failed = None;
        self.faults.retain_mut(|fault| {
            if fault.operation != operation || failed.is_some() {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            failed = Some(fault.kind);
            false
        });
        failed.map_or(Ok(()), |kind| Err(kind.into()))
    }
}

/// A disk in memory. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

impl Memory {
    /// An empty disk without a limit.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Limits the sum of all files' lengths; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Arranges a failure.
    pub fn fail(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// How often anything was synced.
    pub fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// Changes one byte, durably: damage.
    pub fn flip(&self, path: &Path, offset: u64) {
        let mut state = self.state();
        let Some(file) = state.names.get(path).copied() else { return };
        let contents = &mut state.files[file];
        contents.sync();
        if let Some(byte) = contents.current.get_mut(offset as usize) {
            *byte ^= 0x55;
        }
        contents.durable = contents.current.clone();
    }

    /// The disk after the power went at this moment: what was synced is there, of the rest the
    /// `seed` decides sector by sector, and of the changed names a beginning. This disk itself is
    /// left alone, as are those who hold it.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(self.state().crash(seed))))
    }

    /// Arranges for a crash before the `change`th change from now, while the disk itself goes on.
    /// See [`Memory::crashed`].
    pub fn crash_before(&self, change: usize, seed: u64) {
        let mut state = self.state();
        state.crash_before = Some((state.changes + change, seed));
        state.crashed = None;
    }

    /// The disk after the arranged crash, once that has happened.
    pub fn crashed(&self) -> Option<Self> {
        self.state().crashed.take()
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display()))
}

impl Disk for Memory {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let below = state.names.keys().filter_map(|name| name.strip_prefix(path).ok());
        let mut names: Vec<String> =
            below.filter_map(|rest| Some(rest.iter().next()?.to_str()?.to_owned())).collect();
        // A directory is there as often as it has files.
        names.dedup();
        Ok(names)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let file = match (how, state.names.get(path)) {
            (Open::Read | Open::Write, Some(file)) => *file,
            (Open::Read | Open::Write, None) => return Err(not_found(path)),
            (Open::Create, _) => {
                state.changing();
                state.files.push(Contents::default());
                let file = state.files.len() - 1;
                state.name(path, file);
                file
            }
        };
        Ok(Box::new(MemoryFile { disk: self.clone(), file }))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync + Debug>> {
        if !self.state().locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemoryLock { disk: self.clone(), path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check(Operation::Rename)?;
        let inside = |directory: &Path| state.names.keys().any(|name| name.starts_with(directory));
        let is_file = state.names.contains_key(from);
        if !is_file && !inside(from) {
            return Err(not_found(from));
        }
        if !is_file && inside(to) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let moved = NameChange::Move(from.to_owned(), to.to_owned());
        change(&mut state.names, moved.clone());
        state.pending_names.push(moved);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.changing();
        let file = *state.names.get(path).ok_or_else(|| not_found(path))?;
        state.unname(path);
        // Its bytes matter only to a crash that brings the name back.
        state.files[file].current = Vec::new();
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        match self.list(path)?.is_empty() {
            // One without files is not there.
            true => Ok(()),
            false => Err(io::ErrorKind::DirectoryNotEmpty.into()),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check(Operation::SyncDir)?;
        let State { pending_names, durable_names, .. } = &mut *state;
        pending_names.retain(|pending| {
            let inside = pending.path().parent() == Some(path);
            if inside {
                change(durable_names, pending.clone());
            }
            !inside
        });
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryLock {
    disk: Memory,
    path: PathBuf,
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.disk.state().locks.remove(&self.path);
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: Memory,
    file: FileId,
}

impl DiskFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.file].current.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let rest = state.files[self.file].current.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check(Operation::Write)?;
        let at = offset as usize;
        state.room(self.file, at + bytes.len())?;
        let contents = &mut state.files[self.file];
        Contents::put(&mut contents.current, at, bytes);
        contents.pending.push((at, bytes.to_vec()));
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check(Operation::Allocate)?;
        let length = length as usize;
        state.room(self.file, length)?;
        let contents = &mut state.files[self.file];
        if contents.current.len() < length {
            contents.current.resize(length, 0);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check(Operation::Sync)?;
        state.syncs += 1;
        state.files[self.file].sync();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> &'static Path {
        Path::new("/d/f")
    }

    fn made() -> (Memory, Box<dyn DiskFile>) {
        let disk = Memory::new();
        let file = disk.open(path(), Open::Create).unwrap();
        file.write_all_at(b"safe", 0).unwrap();
        file.sync().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        (disk, file)
    }

    fn content(disk: &Memory) -> Vec<u8> {
        disk.open(path(), Open::Read).unwrap().read_to_end_at(0, 1 << 20).unwrap()
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_may_lose_the_rest() {
        let (disk, file) = made();
        file.write_all_at(&[7; 2000], 4).unwrap();
        let outcomes: BTreeSet<Vec<u8>> = (0..50).map(|seed| content(&disk.crash(seed))).collect();
        assert!(outcomes.iter().all(|bytes| bytes.starts_with(b"safe")));
        assert!(outcomes.len() > 3, "some are lost, kept, torn");
        assert_eq!(content(&disk).len(), 2004);
    }

    #[test]
    fn a_name_that_was_not_synced_may_be_lost() {
        let disk = Memory::new();
        disk.open(path(), Open::Create).unwrap();
        let there = (0..50).filter(|seed| disk.crash(*seed).open(path(), Open::Read).is_ok());
        assert!((1..50).contains(&there.count()));
    }

    #[test]
    fn a_directory_moves_with_all_that_is_in_it_or_not_at_all() {
        let (disk, _) = made();
        let (from, to) = (Path::new("/d"), Path::new("/e"));
        disk.rename(from, to).unwrap();
        assert_eq!((disk.list(from).unwrap().len(), disk.list(to).unwrap()), (0, vec!["f".into()]));
        let places: BTreeSet<bool> =
            (0..50).map(|seed| disk.crash(seed).open(path(), Open::Read).is_ok()).collect();
        assert_eq!(places.len(), 2);
        disk.sync_dir(Path::new("/")).unwrap();
        assert!((0..50).all(|seed| disk.crash(seed).list(to).unwrap() == ["f"]));
        disk.open(path(), Open::Create).unwrap();
        assert_eq!(disk.rename(from, to).unwrap_err().kind(), io::ErrorKind::DirectoryNotEmpty);
        assert!(disk.remove_dir(to).is_err());
    }

    #[test]
    fn a_full_disk_and_an_arranged_fault_fail() {
        let (disk, file) = made();
        disk.set_capacity(Some(10));
        assert_eq!(file.allocate(11).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.fail(Fault { operation: Operation::Sync, after: 1, kind: io::ErrorKind::Other });
        assert!(file.sync().is_ok());
        assert!(file.sync().is_err());
        assert!(file.sync().is_ok());
    }

    #[test]
    fn a_lock_has_one_holder() {
        let (disk, _) = made();
        let held = disk.lock(path()).unwrap();
        assert_eq!(disk.lock(path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        assert!(disk.lock(path()).is_ok());
    }
}
