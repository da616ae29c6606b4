//! A disk that tells when it is synced.

use dhow_clock::disk::{Disk, DiskFile, Memory, Open};
use std::fmt::{self, Debug};
use std::io;
use std::path::Path;
use std::sync::Arc;

type Hook = Arc<dyn Fn() + Send + Sync>;

/// A disk in memory that calls somebody before each sync of a file, in the thread that syncs.
#[derive(Clone)]
pub struct Watched {
    pub memory: Memory,
    hook: Hook,
}

impl Watched {
    pub fn new(hook: impl Fn() + Send + Sync + 'static) -> Self {
        Self { memory: Memory::default(), hook: Arc::new(hook) }
    }
}

impl Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.memory.fmt(f)
    }
}

struct WatchedFile(Box<dyn DiskFile>, Hook);

impl Debug for WatchedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl DiskFile for WatchedFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.0.allocate(length)
    }
    fn sync(&self) -> io::Result<()> {
        (self.1)();
        self.0.sync()
    }
}

impl Disk for Watched {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.memory.create_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.memory.list(path)
    }
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(WatchedFile(self.memory.open(path, how)?, self.hook.clone())))
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync + Debug>> {
        self.memory.lock(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.memory.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.memory.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.memory.remove_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.memory.sync_dir(path)
    }
}
