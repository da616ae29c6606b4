//! Write-ahead log, checkpoints and snapshots over a disk trait.
//!
//! A data directory holds:
//! - `version`: the format's number; a directory of a newer format is refused;
//! - `lock`: held by the process that uses the directory, with its process id;
//! - `log-INDEX`: segments of the log, named by the index of their first entry, in hexadecimal;
//! - `checkpoint-INDEX`: the state after that entry; segments before it are deleted.
//!
//! A batch of entries is one *frame*: one write, one checksum, one sync. A frame that is not whole
//! at the very end of the log was never acknowledged and is cut off; anything else that is not
//! whole is damage, and opening fails with the file and the offset.

mod checkpoint;
mod directory;
mod frame;
mod log;

pub use checkpoint::{Checkpoint, CheckpointWriter};
pub use directory::Directory;
pub use frame::Batch;
pub use log::{Log, Options};

use std::io;
use std::path::{Path, PathBuf};

/// Why the data directory cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the directory.
    #[error(
        "data directory {} is in use by {}; stop it or choose another data directory",
        path.display(),
        holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that has it, when it has told.
        holder: Option<u32>,
    },
    /// The directory was written by a later program.
    #[error(
        "data directory {} has format {found}, but this program knows formats up to {known}; \
         use the newer program that wrote it",
        path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest known format.
        known: u32,
    },
    /// Bytes are not what was written.
    #[error(
        "{} is damaged at byte {offset}: {what}; restore the data directory from a snapshot",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// There is no space for more of the log. Nothing was written.
    #[error("no space left for the log in {}; free some and write again", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
    },
    /// The disk failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An earlier write failed, so what is on the disk is unknown until it is opened again.
    #[error("an earlier write to the log in {} failed; restart to recover", path.display())]
    Failed {
        /// The directory.
        path: PathBuf,
    },
}

impl Error {
    fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Disk { action, path: path.to_owned(), source }
    }

    fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what: what.into() }
    }
}
