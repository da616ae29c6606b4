//! A disk that can be slow, full, fail, and lose its power.
//!
//! What was not synced when the power goes is lost, kept, torn at any byte, or kept in some of its
//! sectors, each write for itself: later ones may survive earlier ones, also of other files.

use crate::random::Random;
use dhow_clock::disk::{Disk, DiskFile, Open};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Some writes survive in pieces of this size.
const SECTOR: usize = 512;

/// What a disk can be made to suffer from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The power goes before this many further changes are made.
    PowerLoss(u64),
    /// After this many further syncs one fails.
    SyncFails(u64),
    /// After this many further writes one fails.
    WriteFails(u64),
    /// No more space than there is used now and so many bytes.
    Full(u64),
    /// Syncs take about this long.
    Slow(Duration),
}

#[derive(Debug, Default, Clone)]
struct Content {
    /// What reads see.
    current: Vec<u8>,
    /// What is safe.
    durable: Vec<u8>,
    /// What is neither safe nor lost.
    pending: Vec<(usize, Vec<u8>)>,
}

type Cell = Arc<Mutex<Content>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn put(bytes: &mut Vec<u8>, at: usize, part: &[u8]) {
    if bytes.len() < at + part.len() {
        bytes.resize(at + part.len(), 0);
    }
    bytes[at..at + part.len()].copy_from_slice(part);
}

#[derive(Debug, Clone)]
enum Naming {
    Set(PathBuf, Cell),
    Remove(PathBuf),
}

fn name(names: &mut BTreeMap<PathBuf, Cell>, naming: Naming) {
    match naming {
        Naming::Set(path, cell) => drop(names.insert(path, cell)),
        Naming::Remove(path) => drop(names.remove(&path)),
    }
}

#[derive(Debug)]
struct State {
    names: BTreeMap<PathBuf, Cell>,
    durable: BTreeMap<PathBuf, Cell>,
    pending: Vec<Naming>,
    locks: BTreeSet<PathBuf>,
    random: Random,
    troubles: Vec<Trouble>,
    capacity: Option<u64>,
    slow: Duration,
    /// How long the work since the last [`SimDisk::take_busy`] took.
    busy: Duration,
    dead: bool,
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

impl State {
    fn used(&self) -> u64 {
        self.names.values().map(|cell| locked(cell).current.len() as u64).sum()
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(off()) } else { Ok(()) }
    }

    /// To be called before every change.
    fn change(&mut self) -> io::Result<()> {
        self.alive()?;
        for trouble in &mut self.troubles {
            if let Trouble::PowerLoss(left) = trouble {
                if *left == 0 {
                    self.dead = true;
                    return Err(off());
                }
                *left -= 1;
            }
        }
        Ok(())
    }

    fn fails(&mut self, what: fn(&mut Trouble) -> Option<&mut u64>) -> io::Result<()> {
        let mut failed = false;
        self.troubles.retain_mut(|trouble| match what(trouble) {
            Some(0) if !failed => {
                failed = true;
                false
            }
            Some(left) => {
                *left = left.saturating_sub(1);
                true
            }
            None => true,
        });
        if failed { Err(io::Error::other("the disk failed")) } else { Ok(()) }
    }

    fn room(&self, cell: &Cell, length: usize) -> io::Result<()> {
        let more = length.saturating_sub(locked(cell).current.len()) as u64;
        match self.capacity {
            Some(capacity) if more > 0 && self.used() + more > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn spend(&mut self, usual_us: u64) {
        let slow = self.slow.as_micros() as u64;
        self.busy += Duration::from_micros(self.random.between(usual_us / 2, usual_us * 2 + slow));
    }
}

/// See the module. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty disk.
    pub fn new(random: Random) -> Self {
        Self(Arc::new(Mutex::new(State {
            names: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending: Vec::new(),
            locks: BTreeSet::new(),
            random,
            troubles: Vec::new(),
            capacity: None,
            slow: Duration::ZERO,
            busy: Duration::ZERO,
            dead: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.0)
    }

    /// Makes it suffer.
    pub fn trouble(&self, trouble: Trouble) {
        let mut state = self.state();
        match trouble {
            Trouble::Full(more) => state.capacity = Some(state.used() + more),
            Trouble::Slow(period) => state.slow = period,
            other => state.troubles.push(other),
        }
    }

    /// Ends all troubles but a loss of power that has happened.
    pub fn heal(&self) {
        let mut state = self.state();
        state.troubles.clear();
        state.capacity = None;
        state.slow = Duration::ZERO;
    }

    /// Whether the power is off.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// How long the work since the last call took.
    pub fn take_busy(&self) -> Duration {
        std::mem::take(&mut self.state().busy)
    }

    /// Takes the power away, and gives the disk as it is found when it is back.
    #[must_use]
    pub fn crash(&self) -> Self {
        let mut state = self.state();
        state.dead = true;
        let mut random = state.random.fork();
        let mut names = state.durable.clone();
        let kept = random.below(state.pending.len() as u64 + 1) as usize;
        for naming in state.pending.iter().take(kept) {
            name(&mut names, naming.clone());
        }
        let mut found = BTreeMap::new();
        for (path, cell) in names {
            let content = locked(&cell).clone();
            let bytes = survive(content, &mut random);
            let content = Content { current: bytes.clone(), durable: bytes, pending: Vec::new() };
            found.insert(path, Arc::new(Mutex::new(content)));
        }
        let after = Self::new(random);
        {
            let mut after = after.state();
            after.durable = found.clone();
            after.names = found;
        }
        after
    }
}

/// What is left of a file.
fn survive(content: Content, random: &mut Random) -> Vec<u8> {
    let mut bytes = content.durable;
    if content.current.len() > bytes.len() && random.chance(1, 2) {
        bytes.resize(content.current.len(), 0);
    }
    for (at, part) in content.pending {
        match random.below(5) {
            0 => {}
            1 => put(&mut bytes, at, &part),
            2 => {
                let torn = random.below(part.len() as u64 + 1) as usize;
                put(&mut bytes, at, &part[..torn]);
            }
            _ => {
                let mut start = 0;
                while start < part.len() {
                    let end = (start + SECTOR - (at + start) % SECTOR).min(part.len());
                    if random.chance(1, 2) {
                        put(&mut bytes, at + start, &part[start..end]);
                    }
                    start = end;
                }
            }
        }
    }
    bytes
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display()))
}

impl Disk for SimDisk {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        self.state().alive()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        let inside = state.names.keys().filter(|name| name.parent() == Some(path));
        Ok(inside.filter_map(|name| Some(name.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.alive()?;
        let cell = match (how, state.names.get(path)) {
            (Open::Read | Open::Write, Some(cell)) => cell.clone(),
            (Open::Read | Open::Write, None) => return Err(not_found(path)),
            (Open::Create, _) => {
                state.change()?;
                let cell = Cell::default();
                let set = Naming::Set(path.to_owned(), cell.clone());
                name(&mut state.names, set.clone());
                state.pending.push(set);
                cell
            }
        };
        Ok(Box::new(SimFile { disk: self.clone(), cell }))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync + Debug>> {
        let mut state = self.state();
        state.alive()?;
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        let cell = state.names.get(from).cloned().ok_or_else(|| not_found(from))?;
        for naming in [Naming::Remove(from.to_owned()), Naming::Set(to.to_owned(), cell)] {
            name(&mut state.names, naming.clone());
            state.pending.push(naming);
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        if !state.names.contains_key(path) {
            return Err(not_found(path));
        }
        let remove = Naming::Remove(path.to_owned());
        name(&mut state.names, remove.clone());
        state.pending.push(remove);
        Ok(())
    }

    fn remove_dir(&self, _: &Path) -> io::Result<()> {
        self.state().change()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        state.spend(100);
        let State { pending, durable, .. } = &mut *state;
        pending.retain(|naming| {
            let (Naming::Set(at, _) | Naming::Remove(at)) = naming;
            let inside = at.parent() == Some(path);
            if inside {
                name(durable, naming.clone());
            }
            !inside
        });
        Ok(())
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locks.remove(&self.path);
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    cell: Cell,
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.disk.state().alive()?;
        Ok(locked(&self.cell).current.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.state().alive()?;
        let content = locked(&self.cell);
        let rest = content.current.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let at = offset as usize;
        state.change()?;
        state.room(&self.cell, at + bytes.len())?;
        let failed = state.fails(|trouble| match trouble {
            Trouble::WriteFails(left) => Some(left),
            _ => None,
        });
        // Any part of a write that failed may be there.
        let part = match &failed {
            Ok(()) => bytes,
            Err(_) => &bytes[..state.random.below(bytes.len() as u64 + 1) as usize],
        };
        let mut content = locked(&self.cell);
        put(&mut content.current, at, part);
        content.pending.push((at, part.to_vec()));
        failed
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.change()?;
        state.room(&self.cell, length as usize)?;
        let mut content = locked(&self.cell);
        if content.current.len() < length as usize {
            content.current.resize(length as usize, 0);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.change()?;
        state.spend(100);
        state.fails(|trouble| match trouble {
            Trouble::SyncFails(left) => Some(left),
            _ => None,
        })?;
        let mut content = locked(&self.cell);
        let content = &mut *content;
        for (at, part) in std::mem::take(&mut content.pending) {
            put(&mut content.durable, at, &part);
        }
        content.durable.resize(content.current.len(), 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> &'static Path {
        Path::new("/d/f")
    }

    fn made(seed: u64) -> (SimDisk, Box<dyn DiskFile>) {
        let disk = SimDisk::new(Random::new(seed));
        let file = disk.open(path(), Open::Create).unwrap();
        file.write_all_at(b"safe", 0).unwrap();
        file.sync().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        (disk, file)
    }

    #[test]
    fn a_crash_keeps_what_is_safe_and_ends_the_old_disk() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..60 {
            let (disk, file) = made(seed);
            file.write_all_at(&[7; 1500], 4).unwrap();
            let after = disk.crash();
            assert!(file.sync().is_err() && disk.list(Path::new("/d")).is_err());
            let found = after.open(path(), Open::Read).unwrap().read_to_end_at(0, 1 << 20).unwrap();
            assert!(found.starts_with(b"safe"));
            outcomes.insert(found);
        }
        assert!(outcomes.len() > 20, "lost, kept, torn: {}", outcomes.len());
    }

    #[test]
    fn the_power_goes_between_changes() {
        let (disk, file) = made(1);
        disk.trouble(Trouble::PowerLoss(1));
        file.write_all_at(b"more", 4).unwrap();
        assert!(file.sync().is_err() && disk.is_dead());
    }

    #[test]
    fn troubles_come_and_heal() {
        let (disk, file) = made(1);
        disk.trouble(Trouble::SyncFails(1));
        file.sync().unwrap();
        assert!(file.sync().is_err());
        file.sync().unwrap();
        disk.trouble(Trouble::Full(2));
        assert_eq!(file.allocate(7).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.heal();
        file.allocate(7).unwrap();
        disk.take_busy();
        disk.trouble(Trouble::Slow(Duration::from_secs(9)));
        (0..20).for_each(|_| file.sync().unwrap());
        assert!(disk.take_busy() > Duration::from_secs(9));
    }
}
