//! The data directory: its lock, its format, its files' names.

use crate::Error;
use dhow_clock::disk::{Disk, Open};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The format that this program writes.
/// 2: entries of Raft, the hard state among them, members in checkpoints.
const FORMAT: u32 = 2;
const WORD: &str = "dhow-store";

/// A data directory that this process has for itself.
#[derive(Debug)]
pub struct Directory {
    pub(crate) disk: Arc<dyn Disk>,
    path: PathBuf,
    _lock: Box<dyn Send + Sync + Debug>,
}

impl Directory {
    /// Takes the directory, making it if it is not there.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Newer`], [`Error::Damaged`], [`Error::Disk`].
    pub fn open(disk: Arc<dyn Disk>, path: &Path) -> Result<Self, Error> {
        disk.create_dir_all(path).map_err(Error::disk("create", path))?;
        let lock_path = path.join("lock");
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
        let directory = Self { disk, path: path.to_owned(), _lock: lock };
        directory.check_format()?;
        directory.sweep()?;
        Ok(directory)
    }

    /// Whether nothing was ever written to the store in the directory.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn is_new(&self) -> Result<bool, Error> {
        Ok(self.numbered("log-")?.is_empty() && self.numbered("checkpoint-")?.is_empty())
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
                if !self.numbered("log-")?.is_empty() || !self.numbered("checkpoint-")?.is_empty() {
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
        self.disk.sync_dir(&self.path).map_err(Error::disk("sync", &self.path))
    }

    /// Removes what was not finished.
    fn sweep(&self) -> Result<(), Error> {
        for name in self.disk.list(&self.path).map_err(Error::disk("list", &self.path))? {
            if name.ends_with(".new") {
                let path = self.path.join(name);
                self.disk.remove(&path).map_err(Error::disk("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The numbers of the files with this prefix, ascending.
    pub(crate) fn numbered(&self, prefix: &str) -> Result<Vec<u64>, Error> {
        let names = self.disk.list(&self.path).map_err(Error::disk("list", &self.path))?;
        let mut numbers: Vec<u64> = names
            .iter()
            .filter_map(|name| name.strip_prefix(prefix))
            .filter_map(|number| u64::from_str_radix(number, 16).ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    pub(crate) fn file(&self, prefix: &str, number: u64) -> PathBuf {
        self.path.join(format!("{prefix}{number:016x}"))
    }
}
