//! bbolt files, written in bulk and read back: etcd's snapshots.
//!
//! A bbolt file (<https://github.com/etcd-io/bbolt>) is a tree of pages per bucket, with the newest
//! of two meta pages as its root. [`Writer`] makes one from sorted pairs in one pass, with little
//! memory; [`Reader`] walks one that anybody wrote and believes nothing in it. [`etcd`] is the
//! content that etcd gives such a file. There is no way to change a file: the store's own files are
//! others.

pub mod etcd;
mod page;
mod read;
mod write;

pub use page::PAGE_SIZE;
pub use read::{Bucket, Counts, Pair, Reader, Walk};
pub use write::{BucketWriter, Writer};

use std::io;

/// Why a file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file itself failed.
    #[error("the file could not be read or written: {0}")]
    Io(#[from] io::Error),
    /// It is no bbolt file, or its beginning is destroyed.
    #[error("no bbolt file: {0}; give a snapshot or the file member/snap/db of etcd")]
    NotBolt(&'static str),
    /// It is shorter than it says.
    #[error("the bbolt file is cut short: it has {size} bytes and needs {needed}; copy it again")]
    Short {
        /// Its length in bytes.
        size: u64,
        /// What it should be at least.
        needed: u64,
    },
    /// A page contradicts the format.
    #[error("page {page} of the bbolt file is damaged: {what}; use another copy of it")]
    Damaged {
        /// The page's number.
        page: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A row does not hold what its bucket should.
    #[error("a row of the bucket {bucket} cannot be understood: {what}")]
    Row {
        /// The bucket.
        bucket: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The checksum behind a snapshot is not that of its bytes.
    #[error("the snapshot does not have the checksum at its end; copy it again")]
    Checksum,
    /// Pairs must come in the order of their keys, each once, none empty.
    #[error("a key of the bucket {0} is empty or not behind the one before it")]
    Order(String),
    /// A key or value is longer than the format allows.
    #[error("a key or value of the bucket {0} is too long for a bbolt file")]
    TooLong(String),
}
