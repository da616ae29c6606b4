//! Etcd's write-ahead log: the files `member/wal/*.wal` of a data directory.
//!
//! A file is a row of records and then zeros, since its space is taken at its beginning. A record is
//! a length (64 bits, little endian: the lower 56 count the record's bytes, of the upper eight the
//! highest says that there is padding and the lowest three how much), a `walpb.Record` and the
//! padding. Its checksum is CRC-32C over the data of all records so far, also of the files before
//! (`server/storage/wal` in etcd: `walpb/record.proto`, `decoder.go`).

use super::proto::{fields, put_message, put_number};

/// What stands before a record.
const LENGTH: usize = 8;
/// Sectors are written whole or not at all.
const SECTOR: usize = 512;
/// No record is longer: etcd takes no request of this size.
const LONGEST: usize = 512 << 20;

/// What a record is.
mod kind {
    pub(super) const ENTRY: u64 = 2;
    pub(super) const STATE: u64 = 3;
    pub(super) const CRC: u64 = 4;
}

/// Why a log is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// Bytes are not what was written.
    #[error("byte {offset}: {what}")]
    Damaged {
        /// Where in the file.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Entries are not there.
    #[error("the log goes on at entry {found}, and entry {wanted} is missing")]
    Gap {
        /// The entry that should be next.
        wanted: u64,
        /// The one that is.
        found: u64,
    },
}

/// An entry of the replicated log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub index: u64,
    /// The term of the leader that it is from.
    pub term: u64,
    /// It changes the members (`raftpb.ConfChange`), and is no request.
    pub members: bool,
    /// What it says; nothing in the first entry of a leader.
    pub data: Vec<u8>,
}

/// A log that is read file by file, of which the entries behind one are wanted.
#[derive(Debug)]
pub struct Wal {
    applied: u64,
    entries: Vec<Entry>,
    commit: u64,
    crc: u32,
}

impl Wal {
    /// Begins to read; the entries up to `applied` are not wanted.
    pub fn behind(applied: u64) -> Self {
        Self { applied, entries: Vec::new(), commit: applied, crc: 0 }
    }

    /// Takes the next file. The `last` one may end in the middle of a record: what was not written
    /// whole was never acknowledged.
    ///
    /// # Errors
    /// [`WalError::Damaged`].
    pub fn file(&mut self, bytes: &[u8], last: bool) -> Result<(), WalError> {
        let mut offset = 0;
        while let Some(length) = bytes.get(offset..).and_then(|rest| rest.first_chunk::<LENGTH>()) {
            let length = u64::from_le_bytes(*length);
            if length == 0 {
                break;
            }
            let damaged = |what| WalError::Damaged { offset, what };
            let padding = if length >> 63 == 1 { (length >> 56 & 7) as usize } else { 0 };
            let size = usize::try_from(length & !(0xff << 56)).unwrap_or(usize::MAX);
            if size > LONGEST {
                return Err(damaged("a record is longer than any"));
            }
            let begin = offset + LENGTH;
            let Some(record) = bytes.get(begin..begin + size) else {
                return if last { Ok(()) } else { Err(damaged("a record is cut short")) };
            };
            match self.record(record) {
                Ok(()) => offset = begin + size + padding,
                Err(_) if last && is_torn(bytes, begin, begin + size) => return Ok(()),
                Err(what) => return Err(damaged(what)),
            }
        }
        Ok(())
    }

    fn record(&mut self, record: &[u8]) -> Result<(), &'static str> {
        let (mut kind, mut crc, mut data) = (0, 0, &[][..]);
        let read = fields(record, |field, content| match field {
            1 => kind = content.number(),
            2 => crc = content.number() as u32,
            3 => data = content.bytes(),
            _ => {}
        });
        if !read {
            return Err("a record is no message");
        }
        if kind == kind::CRC {
            // Every file begins with what the one before came to.
            if self.crc != 0 && self.crc != crc {
                return Err("a file does not follow the one before");
            }
            self.crc = crc;
            return Ok(());
        }
        let sum = crc32c::crc32c_append(self.crc, data);
        if sum != crc {
            return Err("a record has another checksum than its bytes");
        }
        self.crc = sum;
        match kind {
            kind::ENTRY => self.entry(data),
            kind::STATE => {
                let mut commit = 0;
                let state = |field, content: super::proto::Field<'_>| {
                    if field == 3 {
                        commit = content.number();
                    }
                };
                fields(data, state).then_some(()).ok_or("a state is no message")?;
                self.commit = self.commit.max(commit);
                Ok(())
            }
            // Who the member is, and that there was a snapshot: the database says it as well.
            _ => Ok(()),
        }
    }

    fn entry(&mut self, data: &[u8]) -> Result<(), &'static str> {
        let mut entry = Entry { index: 0, term: 0, members: false, data: Vec::new() };
        let read = fields(data, |field, content| match field {
            1 => entry.members = content.number() != 0,
            2 => entry.term = content.number(),
            3 => entry.index = content.number(),
            4 => entry.data = content.bytes().to_vec(),
            _ => {}
        });
        if !read || entry.index == 0 {
            return Err("an entry is no message");
        }
        // A new leader may have replaced what no quorum had.
        self.entries.truncate(self.entries.partition_point(|have| have.index < entry.index));
        if entry.index > self.applied {
            self.entries.push(entry);
        }
        Ok(())
    }

    /// How far the log is known to be committed.
    pub fn commit(&self) -> u64 {
        self.commit
    }

    /// The wanted entries.
    ///
    /// # Errors
    /// [`WalError::Gap`].
    pub fn entries(self) -> Result<Vec<Entry>, WalError> {
        for (entry, wanted) in self.entries.iter().zip(self.applied + 1..) {
            if entry.index != wanted {
                return Err(WalError::Gap { wanted, found: entry.index });
            }
        }
        Ok(self.entries)
    }
}

/// Whether a record was not written whole: one of its sectors is as it was before.
fn is_torn(bytes: &[u8], begin: usize, end: usize) -> bool {
    let mut from = begin;
    while from < end {
        let to = ((from / SECTOR + 1) * SECTOR).min(end);
        if bytes[from..to].iter().all(|byte| *byte == 0) {
            return true;
        }
        from = to;
    }
    false
}

/// Appends a record as etcd writes it; `crc` is that of all records before. For tests of what reads
/// logs.
pub fn put_record(out: &mut Vec<u8>, crc: &mut u32, kind: u64, data: &[u8]) {
    if kind != kind::CRC {
        *crc = crc32c::crc32c_append(*crc, data);
    }
    let mut record = Vec::new();
    put_number(&mut record, 1, kind);
    // etcd writes it even when it is 0, which is read the same.
    put_number(&mut record, 2, u64::from(*crc));
    if kind != kind::CRC {
        put_message(&mut record, 3, data);
    }
    let padding = record.len().next_multiple_of(8) - record.len();
    let mut length = record.len() as u64;
    if padding > 0 {
        length |= (0x80 | padding as u64) << 56;
    }
    out.extend(length.to_le_bytes());
    out.extend(record);
    out.resize(out.len() + padding, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(&mut out, 2, 1);
        put_number(&mut out, 3, index);
        put_message(&mut out, 4, data);
        out
    }

    fn state(commit: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(&mut out, 1, 1);
        put_number(&mut out, 3, commit);
        out
    }

    /// Two files: entries 1 to 3, then 4, 3 again and 4 again.
    fn files() -> [Vec<u8>; 2] {
        let (mut first, mut second, mut crc) = (Vec::new(), Vec::new(), 0);
        put_record(&mut first, &mut crc, kind::CRC, b"");
        put_record(&mut first, &mut crc, 1, b"metadata");
        for index in 1..4 {
            put_record(&mut first, &mut crc, kind::ENTRY, &entry(index, &[1; 700]));
        }
        put_record(&mut first, &mut crc, kind::STATE, &state(2));
        first.resize(8192, 0);
        put_record(&mut second, &mut crc, kind::CRC, b"");
        for index in [4, 3, 4] {
            put_record(&mut second, &mut crc, kind::ENTRY, &entry(index, &[index as u8; 1500]));
        }
        [first, second]
    }

    fn read(files: &[Vec<u8>], applied: u64) -> Result<(u64, Vec<Entry>), WalError> {
        let mut wal = Wal::behind(applied);
        for (n, file) in files.iter().enumerate() {
            wal.file(file, n + 1 == files.len())?;
        }
        Ok((wal.commit(), wal.entries()?))
    }

    #[test]
    fn later_entries_replace_earlier_ones_and_applied_ones_are_left_out() {
        let files = files();
        let indexes = |applied| {
            let (commit, entries) = read(&files, applied).unwrap();
            (commit, entries.iter().map(|e| (e.index, e.data[0])).collect::<Vec<_>>())
        };
        assert_eq!(indexes(0), (2, vec![(1, 1), (2, 1), (3, 3), (4, 4)]));
        assert_eq!(indexes(3), (3, vec![(4, 4)]));
        assert_eq!(indexes(4), (4, vec![]));
    }

    #[test]
    fn a_record_that_was_not_written_whole_is_the_end() {
        let [first, second] = files();
        for cut in 0..second.len() {
            let torn = second[..cut].to_vec();
            assert!(read(&[first.clone(), torn], 0).is_ok(), "{cut}");
        }
        // The space was taken before, and a sector did not reach the disk.
        let mut torn = second.clone();
        let length = torn.len();
        torn[length - 1100..].fill(0);
        let (_, entries) = read(&[first, torn], 0).unwrap();
        assert_eq!(entries.len(), 3);
    }

    #[test]
    fn damage_is_refused_with_its_place() {
        let [first, second] = files();
        let mut bad = first.clone();
        bad[300] ^= 1;
        let found = read(&[bad, second.clone()], 0).unwrap_err();
        assert!(found.to_string().starts_with("byte 48: "), "{found}");
        let mut bad = second.clone();
        let length = bad.len();
        bad[length - 40] ^= 1;
        assert!(read(&[first.clone(), bad], 0).is_err());
        // A file that is cut short is no last one.
        let cut = first[..700].to_vec();
        assert!(read(&[cut, second.clone()], 0).is_err());
        // A file is missing, and one that is not of this log is there.
        assert_eq!(read(&[second], 0), Err(WalError::Gap { wanted: 1, found: 3 }));
        let mut other = Vec::new();
        put_record(&mut other, &mut 7, kind::CRC, b"");
        assert!(read(&[first, other], 0).is_err());
    }
}
