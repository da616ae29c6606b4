//! The state as rows of etcd's `key` bucket: written out, hashed, and read back.
//!
//! A row's key is a revision: eight bytes of the main revision, big endian, `_`, eight bytes of the
//! write's place in it, and a `t` behind a tombstone's. Its value is the protobuf message
//! `mvccpb.KeyValue` (`server/storage/mvcc/revision.go` and `api/mvccpb/kv.proto` in etcd).

mod export;
mod file;
mod hash;
mod import;
mod replay;

pub use export::Export;
pub use file::ImportError;
pub use hash::HashRun;
pub use import::Import;
pub use replay::Hash;

use crate::codec::Malformed;
use crate::index::Version;
use bytes::{Buf as _, Bytes};
use dhow_kv::KeyValue;

/// The bytes of a row's key without a tombstone's mark.
const PLAIN: usize = 17;

/// Pairs of keys and values in one buffer, in the order of the keys.
#[derive(Debug, Default)]
pub struct Rows {
    bytes: Vec<u8>,
    /// Where each key ends and where its value ends.
    ends: Vec<(usize, usize)>,
}

impl Rows {
    /// Forgets the rows and keeps the buffer.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many bytes the keys and values take together.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut from = 0;
        self.ends.iter().map(move |(key, value)| {
            let row = (&self.bytes[from..*key], &self.bytes[*key..*value]);
            from = *value;
            row
        })
    }

    fn push(&mut self, key: &[u8], version: &Version) {
        put_row_key(&mut self.bytes, version);
        let key_end = self.bytes.len();
        put_key_value(&mut self.bytes, key, version);
        self.ends.push((key_end, self.bytes.len()));
    }
}

fn put_row_key(out: &mut Vec<u8>, version: &Version) {
    out.extend_from_slice(&version.mod_revision.to_be_bytes());
    out.push(b'_');
    out.extend_from_slice(&u64::from(version.sub).to_be_bytes());
    if !version.is_live() {
        out.push(b't');
    }
}

/// Reads a row's key: the main revision, the place in it, whether it is a tombstone's.
fn read_row_key(bytes: &[u8]) -> Result<(i64, u32, bool), Malformed> {
    let bad = Malformed("a row's key is no revision");
    let tombstone = match bytes.get(PLAIN..) {
        Some([]) => false,
        Some(b"t") => true,
        _ => return Err(bad),
    };
    let mut plain = &bytes[..PLAIN];
    let main = i64::try_from(plain.get_u64()).map_err(|_| bad.clone())?;
    if plain.get_u8() != b'_' {
        return Err(bad);
    }
    let sub = u32::try_from(plain.get_u64()).map_err(|_| bad)?;
    Ok((main, sub, tombstone))
}

/// Appends `mvccpb.KeyValue`: fields that are zero or empty are left out; a tombstone has its key.
fn put_key_value(out: &mut Vec<u8>, key: &[u8], version: &Version) {
    let number = |out: &mut Vec<u8>, field: u8, n: i64| {
        if n != 0 {
            out.push(field << 3);
            crate::codec::put_number(out, n as u64);
        }
    };
    let text = |out: &mut Vec<u8>, field: u8, bytes: &[u8]| {
        if !bytes.is_empty() {
            out.push(field << 3 | 2);
            crate::codec::put_bytes(out, bytes);
        }
    };
    text(out, 1, key);
    let Some(value) = &version.value else { return };
    number(out, 2, version.create_revision);
    number(out, 3, version.mod_revision);
    number(out, 4, version.version);
    text(out, 5, value);
    number(out, 6, version.lease);
}

/// Reads `mvccpb.KeyValue`. Fields that are not known are passed over, as protobuf wants it.
///
/// # Errors
/// [`Malformed`]: cut short, or no protobuf.
pub fn read_key_value(bytes: &[u8]) -> Result<KeyValue, Malformed> {
    let mut kv = KeyValue {
        key: Bytes::new(),
        value: Bytes::new(),
        create_revision: 0,
        mod_revision: 0,
        version: 0,
        lease: 0,
    };
    let mut rest = bytes;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        match tag & 7 {
            0 => {
                let n = varint(&mut rest)? as i64;
                match tag >> 3 {
                    2 => kv.create_revision = n,
                    3 => kv.mod_revision = n,
                    4 => kv.version = n,
                    6 => kv.lease = n,
                    _ => {}
                }
            }
            2 => {
                let length = varint(&mut rest)?;
                let length = usize::try_from(length).ok().filter(|n| *n <= rest.len());
                let (body, after) = rest.split_at(length.ok_or(Malformed("cut short"))?);
                match tag >> 3 {
                    1 => kv.key = Bytes::copy_from_slice(body),
                    5 => kv.value = Bytes::copy_from_slice(body),
                    _ => {}
                }
                rest = after;
            }
            kind @ (1 | 5) => {
                let length = if kind == 1 { 8 } else { 4 };
                rest = rest.get(length..).ok_or(Malformed("cut short"))?;
            }
            _ => return Err(Malformed("no protobuf")),
        }
    }
    Ok(kv)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().ok_or(Malformed("cut short"))?;
        *rest = after;
        n |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Ok(n);
        }
    }
    Err(Malformed("number too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(value: Option<&str>) -> Version {
        Version {
            mod_revision: 300,
            create_revision: 5,
            version: 2,
            lease: -1,
            sub: 7,
            value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
        }
    }

    #[test]
    fn a_row_is_what_etcd_writes() {
        let mut rows = Rows::default();
        rows.push(b"k", &version(Some("v")));
        rows.push(b"k", &version(None));
        let rows: Vec<_> = rows.iter().collect();
        assert_eq!(rows[0].0, b"\0\0\0\0\0\0\x01\x2c_\0\0\0\0\0\0\0\x07");
        assert_eq!(
            rows[0].1,
            b"\x0a\x01k\x10\x05\x18\xac\x02\x20\x02\x2a\x01v\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
        );
        assert_eq!(rows[1].0, b"\0\0\0\0\0\0\x01\x2c_\0\0\0\0\0\0\0\x07t");
        assert_eq!(rows[1].1, b"\x0a\x01k");
        assert_eq!(read_row_key(rows[0].0), Ok((300, 7, false)));
        assert_eq!(read_row_key(rows[1].0), Ok((300, 7, true)));
        let kv = read_key_value(rows[0].1).unwrap();
        assert_eq!((kv.key.as_ref(), kv.value.as_ref()), (&b"k"[..], &b"v"[..]));
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (5, 300, 2, -1));
    }

    #[test]
    fn what_is_no_row_is_refused() {
        for key in
            [&b""[..], &[0; 16], &[0; 17], &[0; 19], b"\0\0\0\0\0\0\x01\x2c_\0\0\0\0\0\0\0\x07x"]
        {
            assert!(read_row_key(key).is_err(), "{key:?}");
        }
        assert!(read_row_key(b"\xff\0\0\0\0\0\x01\x2c_\0\0\0\0\0\0\0\x07").is_err());
        for value in
            [&b"\x0a\x05k"[..], b"\x10", b"\x0b", b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
        {
            assert!(read_key_value(value).is_err(), "{value:?}");
        }
        // A field of a later version.
        assert_eq!(read_key_value(b"\x78\x01\x0a\x01k\x79\0\0\0\0\0\0\0\0").unwrap().key, "k");
    }
}
