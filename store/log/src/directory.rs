//! The data directory: its lock, its format, its files' names, and where its log lies.

use crate::Error;
use dhow_clock::SharedClock;
use dhow_clock::disk::{Disk, Open};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The format that this program writes.
/// 2: entries of Raft, the hard state among them, members in checkpoints.
const FORMAT: u32 = 2;
const WORD: &str = "dhow-store";

/// The file that is locked while a directory is in use.
const LOCK: &str = "lock";
/// The prefix of a log's files.
pub(crate) const LOG: &str = "log-";
/// The file that says where the log lies, when that is not here.
const ELSEWHERE: &str = "wal-dir";
/// The same while that log has not begun: nothing there was ever acknowledged.
const BEGUN: &str = "wal-dir.begun";

/// A data directory that this process has for itself.
#[derive(Debug)]
pub struct Directory {
    pub(crate) disk: Arc<dyn Disk>,
    path: PathBuf,
    /// Where the log is: here, or in a folder of its own below what was named for logs.
    log: PathBuf,
    _lock: Box<dyn Send + Sync + Debug>,
}

impl Directory {
    /// Takes the directory, making it if it is not there.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Newer`], [`Error::Damaged`], [`Error::Disk`]; [`Error::Refused`]
    /// when its log lies elsewhere.
    pub fn open(disk: Arc<dyn Disk>, path: &Path) -> Result<Self, Error> {
        let mut directory = Self::take(disk, path)?;
        directory.find_log(None)?;
        directory.sweep()?;
        Ok(directory)
    }

    /// The same; the log of a new store comes to lie in a folder of its own in `logs`.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub fn open_with_logs(
        disk: Arc<dyn Disk>,
        path: &Path,
        logs: &Path,
        clock: &SharedClock,
    ) -> Result<Self, Error> {
        let mut directory = Self::take(disk, path)?;
        directory.find_log(Some((logs, clock)))?;
        directory.sweep()?;
        Ok(directory)
    }

    /// Takes the directory for this process.
    fn take(disk: Arc<dyn Disk>, path: &Path) -> Result<Self, Error> {
        disk.create_dir_all(path).map_err(Error::disk("create", path))?;
        let lock = lock(&disk, path)?;
        let directory = Self { disk, path: path.to_owned(), log: path.to_owned(), _lock: lock };
        directory.check_format()?;
        Ok(directory)
    }

    /// Finds the log: a store that looked for it in another place would begin anew.
    fn find_log(&mut self, wanted: Option<(&Path, &SharedClock)>) -> Result<(), Error> {
        let refused = |what| Err(Error::Refused { path: self.path.clone(), what });
        let Some(known) = noted(&*self.disk, &self.path, ELSEWHERE)? else {
            // A first start that ended early may have left one.
            discard_log(&*self.disk, &self.path, BEGUN)?;
            let Some((logs, clock)) = wanted else { return Ok(()) };
            if !self.is_new()? {
                return refused("its log lies in it: start it without --wal-dir".into());
            }
            let log = logs.join(format!("{:016x}", clock.random()));
            // Before it is there, so that it is found again whatever happens.
            let note = format!("{}\n", log.display());
            self.publish(BEGUN, |file| file.write_all_at(note.as_bytes(), 0))?;
            self.disk.create_dir_all(&log).map_err(Error::disk("create", &log))?;
            self.log = log;
            return Ok(());
        };
        let logs = known.parent().unwrap_or(&known);
        if wanted.map(|(wanted, _)| wanted) != Some(logs) {
            let logs = logs.display();
            return refused(format!("its log lies in {logs}: start it with --wal-dir={logs}"));
        }
        if self.disk.list(&known).map_or(true, |files| files.is_empty()) {
            let known = known.display();
            return refused(format!("its log {known} is not there: is its file system mounted?"));
        }
        self.log = known;
        Ok(())
    }

    /// Notes where the log lies, once it is there.
    pub(crate) fn note_log(&self) -> Result<(), Error> {
        if self.log == self.path {
            return Ok(());
        }
        self.name(&self.path.join(BEGUN), &self.path.join(ELSEWHERE))
    }

    /// Whether nothing was ever written to the store in the directory.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn is_new(&self) -> Result<bool, Error> {
        Ok(self.numbered(LOG)?.is_empty() && self.numbered("checkpoint-")?.is_empty())
    }

    /// Where its log is.
    pub(crate) fn log_path(&self) -> &Path {
        &self.log
    }

    /// The disk that it is on.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check_format(&self) -> Result<(), Error> {
        let path = self.path.join("version");
        let file = match self.disk.open(&path, Open::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !self.is_new()? {
                    return Err(Error::damaged(&path, 0, "the file is missing"));
                }
                let content = format!("{WORD} {FORMAT}\n");
                return self.publish("version", |file| file.write_all_at(content.as_bytes(), 0));
            }
            Err(error) => return Err(Error::disk("open", &path)(error)),
        };
        let content = file.read_to_end_at(0, 64).map_err(Error::disk("read", &path))?;
        let content = String::from_utf8_lossy(&content);
        let number = content.strip_prefix(WORD).and_then(|rest| rest.trim().parse::<u32>().ok());
        match number {
            Some(found) if found > FORMAT => {
                Err(Error::Newer { path: self.path.clone(), found, known: FORMAT })
            }
            Some(found) if found < FORMAT => {
                Err(Error::Older { path: self.path.clone(), found, known: FORMAT })
            }
            Some(_) => Ok(()),
            None => Err(Error::damaged(&path, 0, "not a format number of dhow's store")),
        }
    }

    /// Writes a file so that it is there whole or not at all.
    pub(crate) fn publish(
        &self,
        name: &str,
        write: impl FnOnce(&dyn dhow_clock::disk::DiskFile) -> io::Result<()>,
    ) -> Result<(), Error> {
        let (path, new) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let file = self.disk.open(&new, Open::Create).map_err(Error::disk("create", &new))?;
        write(&*file).and_then(|()| file.sync()).map_err(Error::disk("write", &new))?;
        self.name(&new, &path)
    }

    /// Gives a finished file its name, durably.
    pub(crate) fn name(&self, new: &Path, path: &Path) -> Result<(), Error> {
        self.disk.rename(new, path).map_err(Error::disk("rename", new))?;
        self.sync()
    }

    /// Makes the names of the files durable.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        for place in self.places() {
            self.disk.sync_dir(place).map_err(Error::disk("sync", place))?;
        }
        Ok(())
    }

    /// The directories that have its files.
    fn places(&self) -> impl Iterator<Item = &Path> {
        let log = Some(self.log.as_path()).filter(|log| *log != self.path);
        [Some(self.path.as_path()), log].into_iter().flatten()
    }

    /// Removes what was not finished.
    fn sweep(&self) -> Result<(), Error> {
        for place in self.places() {
            for name in self.disk.list(place).map_err(Error::disk("list", place))? {
                if name.ends_with(".new") {
                    remove(&*self.disk, &place.join(name))?;
                }
            }
        }
        Ok(())
    }

    /// Where files with this prefix lie.
    fn place(&self, prefix: &str) -> &Path {
        if prefix == LOG { &self.log } else { &self.path }
    }

    /// The numbers of the files with this prefix, ascending.
    pub(crate) fn numbered(&self, prefix: &str) -> Result<Vec<u64>, Error> {
        let place = self.place(prefix);
        let names = self.disk.list(place).map_err(Error::disk("list", place))?;
        let mut numbers: Vec<u64> = names
            .iter()
            .filter_map(|name| name.strip_prefix(prefix))
            .filter_map(|number| u64::from_str_radix(number, 16).ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    pub(crate) fn file(&self, prefix: &str, number: u64) -> PathBuf {
        self.place(prefix).join(format!("{prefix}{number:016x}"))
    }
}

/// Removes a directory in which a store was being made, with its log where that lies elsewhere.
/// Whether there was one.
///
/// # Errors
/// [`Error::InUse`] while somebody works there; [`Error::Disk`].
pub fn discard(disk: &Arc<dyn Disk>, path: &Path) -> Result<bool, Error> {
    let names = match disk.list(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        listed => listed.map_err(Error::disk("list", path))?,
    };
    if names.is_empty() {
        return Ok(false);
    }
    let _lock = lock(disk, path)?;
    // First what could not be found without the note in the directory.
    for note in [ELSEWHERE, BEGUN] {
        discard_log(&**disk, path, note)?;
    }
    for name in disk.list(path).map_err(Error::disk("list", path))? {
        remove(&**disk, &path.join(name))?;
    }
    disk.remove_dir(path).map_err(Error::disk("remove", path))?;
    Ok(true)
}

/// Takes a directory for this process.
fn lock(disk: &Arc<dyn Disk>, path: &Path) -> Result<Box<dyn Send + Sync + Debug>, Error> {
    let lock_path = path.join(LOCK);
    let lock = disk.lock(&lock_path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            let told = disk
                .open(&lock_path, Open::Read)
                .and_then(|file| file.read_to_end_at(0, 32))
                .unwrap_or_default();
            let holder = String::from_utf8_lossy(&told).trim().parse().ok();
            Error::InUse { path: path.to_owned(), holder }
        }
        _ => Error::disk("lock", &lock_path)(error),
    })?;
    // The process id only helps people, so a full disk may keep it from being told.
    let _ = disk
        .open(&lock_path, Open::Create)
        .and_then(|file| file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0));
    Ok(lock)
}

/// Where the log of a directory lies, by a note in it.
fn noted(disk: &dyn Disk, path: &Path, note: &str) -> Result<Option<PathBuf>, Error> {
    let path = path.join(note);
    let file = match disk.open(&path, Open::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::disk("open", &path)(error)),
    };
    let bytes = file.read_to_end_at(0, 8192).map_err(Error::disk("read", &path))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::damaged(&path, 0, "no path"))?;
    Ok(Some(PathBuf::from(text.trim_end_matches('\n'))))
}

/// Removes the log that a note in a directory tells of, then the note.
fn discard_log(disk: &dyn Disk, path: &Path, note: &str) -> Result<(), Error> {
    let Some(log) = noted(disk, path, note)? else { return Ok(()) };
    // It may not have come to be.
    let names = match disk.list(&log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        listed => Some(listed.map_err(Error::disk("list", &log))?),
    };
    if let Some(names) = names {
        // Only a log's own files: else the folder stays, and the reason is told.
        for name in names.into_iter().filter(|name| name.starts_with(LOG)) {
            remove(disk, &log.join(name))?;
        }
        disk.remove_dir(&log).map_err(Error::disk("remove", &log))?;
    }
    remove(disk, &path.join(note))
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    disk.remove(path).map_err(Error::disk("remove", path))
}
