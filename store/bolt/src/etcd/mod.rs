//! Etcd's snapshots: what its backend file holds, in both directions.
//!
//! A snapshot that a client saved is such a file with a SHA-256 of its bytes behind it; the file
//! `member/snap/db` of a data directory is one without. Writing: [`SnapshotWriter`]. Reading:
//! [`Snapshot`]. What such a directory's log has behind the file: [`wal`].

mod members;
pub mod proto;
mod rows;
pub mod wal;

pub use rows::{
    Access, Alarm, Auth, ConfState, Lease, Member, Meta, Permission, Role, State, User,
};
pub use wal::{Entry, Wal, WalError};

use crate::{Bucket, BucketWriter, Error, Reader, Walk, Writer};
use rows::row;
use sha2::{Digest as _, Sha256};
use std::io::{Read, Seek, SeekFrom, Write};

/// The length of the checksum behind a snapshot, in bytes.
pub const TAIL: usize = 32;

/// Files are multiples of this long, so that a tail can be told.
const SECTOR: u64 = 512;

/// The buckets, in their order in the file.
const BUCKETS: [&str; 10] = [
    "alarm",
    "auth",
    "authRoles",
    "authUsers",
    "cluster",
    "key",
    "lease",
    "members",
    "members_removed",
    "meta",
];

/// Writes a snapshot: first everything else that sorts before the keys, then their rows, then the
/// rest.
#[derive(Debug)]
pub struct SnapshotWriter<'a, W> {
    state: &'a State,
    writer: Writer<W>,
    hash: u32,
}

impl<'a, W: Write + Seek> SnapshotWriter<'a, W> {
    /// Begins a snapshot at the beginning of `out`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(out: W, state: &'a State) -> Result<Self, Error> {
        let mut this = Self { state, writer: Writer::new(out)?, hash: 0 };
        for name in &BUCKETS[..5] {
            this.small(name)?;
        }
        Ok(this)
    }

    /// Begins the rows of the keys.
    pub fn rows(&mut self) -> RowWriter<'_, W> {
        self.hash = crc32c::crc32c_append(self.hash, b"key");
        RowWriter { bucket: self.writer.bucket(b"key"), hash: &mut self.hash }
    }

    /// Completes the snapshot, without the checksum behind it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Order`] when [`SnapshotWriter::rows`] was called twice, or the state
    /// has something twice.
    pub fn finish(mut self) -> Result<Written<W>, Error> {
        for name in &BUCKETS[6..] {
            self.small(name)?;
        }
        let (out, size) = self.writer.finish()?;
        Ok(Written { out, size, hash: self.hash })
    }

    fn small(&mut self, name: &'static str) -> Result<(), Error> {
        let mut pairs = pairs(self.state, name)?;
        pairs.sort();
        self.hash = crc32c::crc32c_append(self.hash, name.as_bytes());
        let mut bucket = self.writer.bucket(name.as_bytes());
        for (key, value) in &pairs {
            bucket.put(key, value)?;
            let aside: [&[u8]; 3] = [b"consistent_index", b"term", b"storageVersion"];
            if name != "meta" || !aside.contains(&key.as_slice()) {
                self.hash = crc32c::crc32c_append(self.hash, key);
                self.hash = crc32c::crc32c_append(self.hash, value);
            }
        }
        bucket.finish()
    }
}

/// A snapshot that is complete.
#[derive(Debug)]
pub struct Written<W> {
    /// What it was written to; the position in it can be anywhere.
    pub out: W,
    /// Its length in bytes.
    pub size: u64,
    /// CRC-32C over the buckets, their keys and values, but for what members may differ in: what
    /// etcd answers to `Hash`.
    pub hash: u32,
}

/// Writes the rows of the keys.
#[derive(Debug)]
pub struct RowWriter<'a, W> {
    bucket: BucketWriter<'a, W>,
    hash: &'a mut u32,
}

impl<W: Write + Seek> RowWriter<'_, W> {
    /// Adds the next row: a revision's bytes and a `mvccpb.KeyValue`, in the order of the revisions.
    ///
    /// # Errors
    /// [`Error::Order`], [`Error::TooLong`], [`Error::Io`].
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        *self.hash = crc32c::crc32c_append(*self.hash, key);
        *self.hash = crc32c::crc32c_append(*self.hash, value);
        self.bucket.put(key, value)
    }

    /// Completes the rows.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<(), Error> {
        self.bucket.finish()
    }
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The pairs of a bucket, in any order.
fn pairs(state: &State, name: &'static str) -> Result<Pairs, Error> {
    let member_key = |id: u64| format!("{id:x}").into_bytes();
    Ok(match name {
        "alarm" => state.alarms.iter().map(|alarm| (alarm.encode(), Vec::new())).collect(),
        "auth" => {
            let revision = (b"authRevision".to_vec(), state.auth.revision.to_be_bytes().to_vec());
            // etcd has no such key before users are asked for the first time.
            let enabled = state.auth.enabled.then(|| (b"authEnabled".to_vec(), vec![1]));
            enabled.into_iter().chain([revision]).collect()
        }
        "authRoles" => {
            let roles = state.auth.roles.iter();
            roles.map(|role| (role.name.clone().into_bytes(), role.encode())).collect()
        }
        "authUsers" => {
            let users = state.auth.users.iter();
            users.map(|user| (user.name.clone().into_bytes(), user.encode())).collect()
        }
        "cluster" if state.cluster_version.is_empty() => Vec::new(),
        "cluster" => vec![(b"clusterVersion".to_vec(), state.cluster_version.clone().into())],
        "lease" => {
            let leases = state.leases.iter();
            leases.map(|lease| (lease.id.to_be_bytes().to_vec(), lease.encode())).collect()
        }
        "members" => {
            let mut pairs = Vec::new();
            for member in &state.members {
                pairs.push((member_key(member.id), json("members", member)?));
            }
            pairs
        }
        "members_removed" => {
            state.removed.iter().map(|id| (member_key(*id), b"removed".to_vec())).collect()
        }
        _ => meta_pairs(&state.meta)?,
    })
}

fn meta_pairs(meta: &Meta) -> Result<Pairs, Error> {
    let mut pairs = Vec::new();
    let mut add = |key: &str, value: Vec<u8>| pairs.push((key.as_bytes().to_vec(), value));
    if meta.consistent_index > 0 {
        add("consistent_index", meta.consistent_index.to_be_bytes().to_vec());
    }
    if meta.term > 0 {
        add("term", meta.term.to_be_bytes().to_vec());
    }
    if let Some(conf_state) = &meta.conf_state {
        add("confState", json("meta", conf_state)?);
    }
    if !meta.storage_version.is_empty() {
        add("storageVersion", meta.storage_version.clone().into());
    }
    for (key, revision) in [
        ("scheduledCompactRev", meta.scheduled_compact),
        ("finishedCompactRev", meta.finished_compact),
    ] {
        if revision > 0 {
            let mut value = revision.to_be_bytes().to_vec();
            value.push(b'_');
            value.extend([0; 8]);
            add(key, value);
        }
    }
    Ok(pairs)
}

fn json(bucket: &'static str, value: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| row(bucket, error.to_string()))
}

/// A snapshot that is being read.
#[derive(Debug)]
pub struct Snapshot<R> {
    reader: Reader<R>,
    state: State,
    rows: Option<Bucket>,
}

impl<R: Read + Seek> Snapshot<R> {
    /// Opens a snapshot or the file `member/snap/db` of a data directory. The checksum behind a
    /// snapshot is checked: that reads the whole file.
    ///
    /// # Errors
    /// [`Error::Checksum`], and as [`Reader::open`]; [`Error::Row`].
    pub fn open(mut source: R) -> Result<Self, Error> {
        check_tail(&mut source)?;
        Self::open_unchecked(source)
    }

    /// The same without looking at the checksum.
    ///
    /// # Errors
    /// As [`Reader::open`]; [`Error::Row`].
    pub fn open_unchecked(source: R) -> Result<Self, Error> {
        let mut reader = Reader::open(source)?;
        let mut state = State::default();
        let mut rows = None;
        for (name, bucket) in reader.buckets()? {
            let Some(name) = BUCKETS.iter().find(|known| known.as_bytes() == name) else {
                continue;
            };
            if *name == "key" {
                rows = Some(bucket);
                continue;
            }
            let mut walk = reader.walk(&bucket)?;
            while let Some(pair) = walk.next()? {
                take(&mut state, name, pair.key, pair.value)?;
            }
        }
        if rows.is_none() {
            return Err(Error::NotBolt("it has no bucket for keys"));
        }
        Ok(Self { reader, state, rows })
    }

    /// Everything beside the rows of the keys.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The rows of the keys in the order of their revisions.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn rows(&mut self) -> Result<Walk<'_, R>, Error> {
        let rows = self.rows.as_ref().ok_or(Error::NotBolt("it has no bucket for keys"))?;
        self.reader.walk(rows)
    }

    /// The file.
    pub fn reader(&mut self) -> &mut Reader<R> {
        &mut self.reader
    }
}

/// Takes a pair of a bucket. What is not known is passed over: newer versions write more.
fn take(state: &mut State, name: &'static str, key: &[u8], value: &[u8]) -> Result<(), Error> {
    let number = |bytes: &[u8]| {
        let bytes = bytes.get(..8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_be_bytes).ok_or_else(|| row(name, "a number is cut short"))
    };
    let text = || String::from_utf8_lossy(value).into_owned();
    let member = || {
        let text = std::str::from_utf8(key).ok();
        let id = text.and_then(|text| u64::from_str_radix(text, 16).ok());
        id.ok_or_else(|| row(name, "a member's identifier is no number"))
    };
    let bad = |error: serde_json::Error| row(name, error.to_string());
    match (name, key) {
        ("alarm", _) => state.alarms.push(Alarm::decode(key)?),
        ("auth", b"authEnabled") => state.auth.enabled = value == [1],
        ("auth", b"authRevision") => state.auth.revision = number(value)?,
        ("authRoles", _) => state.auth.roles.push(Role::decode(value)?),
        ("authUsers", _) => state.auth.users.push(User::decode(value)?),
        ("cluster", b"clusterVersion") => state.cluster_version = text(),
        ("lease", _) => state.leases.push(Lease::decode(value)?),
        ("members", _) => {
            let mut found: Member = serde_json::from_slice(value).map_err(bad)?;
            found.id = member()?;
            state.members.push(found);
        }
        ("members_removed", _) => state.removed.push(member()?),
        ("meta", b"consistent_index") => state.meta.consistent_index = number(value)?,
        ("meta", b"term") => state.meta.term = number(value)?,
        ("meta", b"confState") => {
            state.meta.conf_state = Some(serde_json::from_slice(value).map_err(bad)?);
        }
        ("meta", b"storageVersion") => state.meta.storage_version = text(),
        ("meta", b"scheduledCompactRev") => state.meta.scheduled_compact = number(value)? as i64,
        ("meta", b"finishedCompactRev") => state.meta.finished_compact = number(value)? as i64,
        _ => {}
    }
    Ok(())
}

/// Checks the checksum behind a snapshot. Returns whether there is one.
///
/// # Errors
/// [`Error::Checksum`], [`Error::Io`].
pub fn check_tail<R: Read + Seek>(source: &mut R) -> Result<bool, Error> {
    let size = source.seek(SeekFrom::End(0))?;
    if size % SECTOR != TAIL as u64 {
        return Ok(false);
    }
    source.seek(SeekFrom::Start(0))?;
    let sum = sum(&mut source.take(size - TAIL as u64))?;
    let mut tail = [0; TAIL];
    source.read_exact(&mut tail)?;
    if sum == tail { Ok(true) } else { Err(Error::Checksum) }
}

/// The checksum that belongs behind a snapshot: of all bytes from where `source` stands.
///
/// # Errors
/// [`Error::Io`].
pub fn sum(source: &mut impl Read) -> Result<[u8; TAIL], Error> {
    let mut sha = Sha256::new();
    let mut piece = vec![0; 256 << 10];
    loop {
        match source.read(&mut piece)? {
            0 => return Ok(sha.finalize().into()),
            length => sha.update(&piece[..length]),
        }
    }
}
