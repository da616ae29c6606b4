//! Write-ahead log, checkpoints and snapshots over a disk trait.
//!
//! The log is a row of entries that are never changed; what they mean (and that a later one can make
//! an earlier one void) is the caller's business.
//!
//! A data directory holds:
//! - `version`: the format's number; a directory of a newer format is refused;
//! - `lock`: held by the process that uses the directory, with its process id;
//! - `log-INDEX`: segments of the log, named by the index of their first entry, in hexadecimal;
//! - `checkpoint-INDEX`: the state at some index of the caller's, in hexadecimal.
//!
//! A batch of entries is one *frame*: one write, one checksum, one sync. A frame that is not whole
//! at the very end of the log was never acknowledged and is cut off; anything else that is not
//! whole is damage, and opening fails with the file and the offset.

mod checkpoint;
mod directory;
mod frame;
mod log;

pub use checkpoint::{Checkpoint, CheckpointWriter};
pub use directory::{Directory, discard};
pub use frame::Batch;
pub use log::{Log, Options, Position};

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
    /// The directory was written by an earlier program.
    #[error(
        "data directory {} has format {found} of an earlier dhow, and this one writes {known}; \
         take a snapshot with the program that wrote it and restore that into a new directory",
        path.display()
    )]
    Older {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The known format.
        known: u32,
    },
    /// The directory is whole, but cannot be used so.
    #[error("data directory {} cannot be opened: {what}", path.display())]
    Refused {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        what: String,
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

    /// Damage in a file at a byte.
    pub fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what: what.into() }
    }
}
