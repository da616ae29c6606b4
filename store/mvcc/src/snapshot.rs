//! The state as a header and chunks, written while the store goes on, and loaded back.

use crate::codec::{Malformed, Reader, put_bytes, put_number, put_signed};
use crate::history::History;
use crate::index::Version;
use crate::{Lease, Mvcc};
use bytes::Bytes;

/// What a snapshot says beside its keys, fixed at the moment it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The newest revision in the snapshot.
    pub revision: i64,
    /// The compacted revision.
    pub compacted: i64,
    /// The leases and what each was granted, in seconds.
    pub leases: Vec<(i64, i64)>,
    /// What remains of them (see [`Mvcc::remaining`]). Not among the bytes of this header.
    pub remaining: Vec<(i64, i64)>,
}

impl Header {
    /// Appends the header's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_signed(out, self.revision);
        put_signed(out, self.compacted);
        put_number(out, self.leases.len() as u64);
        for (id, ttl) in &self.leases {
            put_signed(out, *id);
            put_signed(out, *ttl);
        }
    }

    /// Reads a header back.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let header = Self::read(&mut reader)?;
        reader.end()?;
        Ok(header)
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (revision, compacted) = (reader.signed()?, reader.signed()?);
        let mut leases = Vec::new();
        for _ in 0..reader.count()? {
            leases.push((reader.signed()?, reader.signed()?));
        }
        Ok(Self { revision, compacted, leases, remaining: Vec::new() })
    }

    pub(crate) fn encode_remaining(&self, out: &mut Vec<u8>) {
        put_number(out, self.remaining.len() as u64);
        for (id, remaining) in &self.remaining {
            put_signed(out, *id);
            put_signed(out, *remaining);
        }
    }

    pub(crate) fn read_remaining(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        for _ in 0..reader.count()? {
            self.remaining.push((reader.signed()?, reader.signed()?));
        }
        Ok(())
    }
}

impl Mvcc {
    /// Begins a snapshot of the newest state: call [`Mvcc::hold`] with its compacted revision,
    /// then [`Mvcc::snapshot_chunk`] until it returns nothing, then `hold(None)`.
    pub fn snapshot_header(&self) -> Header {
        Header {
            revision: self.revision,
            compacted: self.compacted,
            leases: self.leases().collect(),
            remaining: self.remaining().collect(),
        }
    }

    /// Appends the versions of the keys after `after` as of `header` to `out` until it has grown
    /// by about `size` bytes or many keys were passed. Returns the last key, `None` at the end.
    pub fn snapshot_chunk(
        &self,
        header: &Header,
        after: Option<&Bytes>,
        size: usize,
        out: &mut Vec<u8>,
    ) -> Option<Bytes> {
        let limit = out.len() + size;
        let start = after.map_or(&[][..], |key| key.as_ref());
        for (passed, entry) in self.index.from(start).enumerate() {
            if Some(&entry.key) == after {
                continue;
            }
            // What the compaction will drop is left out, as if it were done.
            let holds = entry.at(header.compacted).filter(|v| v.is_live());
            let kept = entry.versions().filter(|v| {
                v.mod_revision <= header.revision
                    && (v.mod_revision >= header.compacted || Some(*v) == holds)
            });
            let kept: Vec<&Version> = kept.collect();
            if !kept.is_empty() {
                put_bytes(out, &entry.key);
                put_number(out, kept.len() as u64);
                for version in kept {
                    put_version(out, version);
                }
            }
            if out.len() >= limit || passed >= 4096 {
                return Some(entry.key.clone());
            }
        }
        None
    }
}

fn put_version(out: &mut Vec<u8>, version: &Version) {
    put_signed(out, version.mod_revision);
    put_number(out, u64::from(version.sub));
    put_number(out, version.version as u64);
    if let Some(value) = &version.value {
        put_signed(out, version.create_revision);
        put_signed(out, version.lease);
        put_bytes(out, value);
    }
}

/// Builds the state from a snapshot's header and chunks.
#[derive(Debug)]
pub struct Loader {
    mvcc: Mvcc,
    header: Header,
    /// Every kept write, to rebuild the history from.
    writes: Vec<(i64, u32, Bytes)>,
}

impl Loader {
    /// An empty state that becomes the snapshot's.
    pub fn new(header: Header) -> Self {
        let mut mvcc = Mvcc::new();
        mvcc.revision = header.revision;
        mvcc.compacted = header.compacted;
        for (id, ttl) in &header.leases {
            mvcc.leases.insert(*id, Lease::new(*ttl));
        }
        for (id, remaining) in &header.remaining {
            if let Some(lease) = mvcc.leases.get_mut(id) {
                lease.remaining = *remaining;
            }
        }
        Self { mvcc, header, writes: Vec::new() }
    }

    /// Loads one chunk.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn chunk(&mut self, bytes: &Bytes) -> Result<(), Malformed> {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let key = reader.bytes()?;
            let (mut newest, mut copy) = (0, Bytes::new());
            for _ in 0..reader.number()? {
                let mod_revision = reader.signed()?;
                let sub = u32::try_from(reader.number()?).map_err(|_| Malformed("place"))?;
                let version = reader.number()? as i64;
                let (create_revision, lease, value) = if version > 0 {
                    let (create_revision, lease) = (reader.signed()?, reader.signed()?);
                    (create_revision, lease, Some(Bytes::copy_from_slice(&reader.bytes()?)))
                } else {
                    (0, 0, None)
                };
                newest = lease;
                let version = Version { mod_revision, create_revision, version, lease, sub, value };
                self.mvcc.bytes += version.cost(&key);
                copy = self.mvcc.index.write(&key, version);
                if mod_revision >= self.header.compacted {
                    self.writes.push((mod_revision, sub, copy.clone()));
                }
            }
            // A key that came from elsewhere may name a lease that is gone.
            if newest != 0
                && let Some(lease) = self.mvcc.leases.get_mut(&newest)
            {
                lease.keys.insert(copy);
            }
        }
        Ok(())
    }

    /// The state, when all chunks are loaded.
    pub fn finish(mut self) -> Mvcc {
        self.writes.sort_unstable();
        let first = self.header.compacted.max(2);
        let mut history = History::starting(first);
        let mut writes = self.writes.into_iter().peekable();
        for revision in first..=self.header.revision {
            let mut keys = Vec::new();
            while let Some((_, _, key)) = writes.next_if(|(at, ..)| *at == revision) {
                keys.push(key);
            }
            history.push(keys);
        }
        self.mvcc.history = history;
        self.mvcc
    }
}
