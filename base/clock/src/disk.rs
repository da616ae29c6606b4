//! The disk as durable parts see it: a trait, the machine's own disk, and one in memory.
//!
//! What is written is safe only after [`DiskFile::sync`]; a new, renamed or removed name only after
//! [`Disk::sync_dir`]. [`Memory`] takes that literally: it can crash and lose the rest.

mod memory;

pub use memory::{Fault, Memory, Operation};

use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It exists and is only read.
    Read,
    /// It exists and is read and written.
    Write,
    /// It is made, empty; what was there is gone.
    Create,
}

/// A file system, or a part of one.
pub trait Disk: Send + Sync + Debug + 'static {
    /// Makes a directory and those above it, durably.
    ///
    /// # Errors
    /// The file system's.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// The file system's.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Opens a file.
    ///
    /// # Errors
    /// The file system's.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;
    /// Takes a file for this process alone until the returned guard is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when somebody else has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync + Debug>>;
    /// Gives a file, or a directory with all that is in it, another name in the same directory,
    /// replacing a file or an empty directory that has it.
    ///
    /// # Errors
    /// The file system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// The file system's.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory that is empty.
    ///
    /// # Errors
    /// The file system's.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// The file system's.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// A file that is open.
pub trait DiskFile: Send + Sync + Debug {
    /// Its length in bytes.
    ///
    /// # Errors
    /// The file system's.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    ///
    /// # Errors
    /// The file system's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads up to `buffer.len()` bytes; 0 at the end.
    ///
    /// # Errors
    /// The file system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all bytes.
    ///
    /// # Errors
    /// The file system's; then any part may have been written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the file `length` bytes long (filled with zeros) and takes the space for it now.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] when there is not enough.
    fn allocate(&self, length: u64) -> io::Result<()>;
    /// Makes everything written so far durable (fdatasync). After a failure nobody knows what is.
    ///
    /// # Errors
    /// The file system's.
    fn sync(&self) -> io::Result<()>;

    /// Reads all bytes from `offset` on, at most `most`.
    ///
    /// # Errors
    /// The file system's.
    fn read_to_end_at(&self, offset: u64, most: usize) -> io::Result<Vec<u8>> {
        let length = self.len()?.saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(most).min(most)];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

/// The machine's own file systems.
#[derive(Debug, Default, Clone, Copy)]
pub struct Real;

impl Real {
    /// The same, ready to share.
    pub fn shared() -> Arc<dyn Disk> {
        Arc::new(Self)
    }
}

impl Disk for Real {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::path::absolute(path)?;
        // Those that are not there yet, and the one above them, whose names change.
        let missing = path.ancestors().take_while(|above| !above.exists()).count();
        // What a store keeps is its owner's business alone.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        path.ancestors().skip(1).take(missing).try_for_each(|above| self.sync_dir(above))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = OpenOptions::new();
        match how {
            Open::Read => options.read(true),
            Open::Write => options.read(true).write(true),
            Open::Create => options.read(true).write(true).create(true).truncate(true).mode(0o600),
        };
        Ok(Box::new(RealFile(options.open(path)?)))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync + Debug>> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// Replaces the file at `path` so that a crash leaves the old or the new content, never a mixture,
/// and what was written is there after it. `mode` are the permissions of the new file.
///
/// # Errors
/// The file system's; then the old content is still there.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    // One that a crash left has the permissions of another time.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| std::fs::rename(&beside, path)) {
        let _ = std::fs::remove_file(&beside);
        return Err(error);
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => Real.sync_dir(parent),
        _ => Real.sync_dir(Path::new(".")),
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        match fallocate(&self.0, FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(()),
            // Some file systems cannot: then zeros take the space.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                let zeros = vec![0; 1 << 20];
                let mut at = self.len()?;
                while at < length {
                    let part = (length - at).min(zeros.len() as u64);
                    self.0.write_all_at(&zeros[..part as usize], at)?;
                    at += part;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_never_takes_the_permissions_of_a_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.key");
        std::fs::write(dir.path().join("ca.key.new"), "half").unwrap();
        replace(&path, b"secret", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"secret");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        replace(&path, b"newer", 0o600).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_replacement_that_fails_leaves_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("kept"), "").unwrap();
        assert!(replace(&path, b"x", 0o600).is_err());
        assert!(path.join("kept").exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
