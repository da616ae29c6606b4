//! The bytes of pages: headers, elements, metas.
//!
//! All numbers are little endian, as bbolt writes them on the machines that matter.

use crate::Error;

/// The size of the pages that are written, in bytes.
pub const PAGE_SIZE: usize = 4096;

/// A page's number (8), flags (2), count of elements (2), and how many pages follow it (4).
pub(crate) const HEADER: usize = 16;
/// An element of a leaf: flags, where its key begins, the lengths of key and value (4 each). An
/// element of a branch: where its key begins, its length (4 each), the page (8).
pub(crate) const ELEMENT: usize = 16;
/// What a bucket is in its parent: its root page and a sequence number (8 each).
pub(crate) const BUCKET: usize = 16;

pub(crate) const BRANCH: u16 = 1;
pub(crate) const LEAF: u16 = 2;
pub(crate) const META: u16 = 4;
pub(crate) const FREELIST: u16 = 16;

/// The flag of a leaf's element that is a bucket.
pub(crate) const IS_BUCKET: u32 = 1;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// The bytes of a meta before its checksum, and with it.
const SUMMED: usize = 56;
const META_SIZE: usize = 64;

/// The list of free pages is not kept in the file.
pub(crate) const NO_FREELIST: u64 = u64::MAX;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// The header of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub id: u64,
    pub flags: u16,
    pub count: u16,
    /// How many more pages belong to it.
    pub overflow: u32,
}

impl Header {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.id.to_le_bytes());
        out.extend(self.flags.to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend(self.overflow.to_le_bytes());
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            id: u64_at(bytes, 0)?,
            flags: u16_at(bytes, 8)?,
            count: u16_at(bytes, 10)?,
            overflow: u32_at(bytes, 12)?,
        })
    }
}

/// Where everything begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub page_size: u32,
    /// The root page of the bucket of buckets.
    pub root: u64,
    pub freelist: u64,
    /// The number of pages.
    pub pages: u64,
    /// The transaction that wrote it.
    pub txid: u64,
}

impl Meta {
    /// The whole page.
    pub(crate) fn page(&self, id: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.page_size as usize);
        Header { id, flags: META, count: 0, overflow: 0 }.put(&mut out);
        for number in [MAGIC, VERSION, self.page_size, 0] {
            out.extend(number.to_le_bytes());
        }
        for number in [self.root, 0, self.freelist, self.pages, self.txid] {
            out.extend(number.to_le_bytes());
        }
        let sum = fnv(&out[HEADER..HEADER + SUMMED]);
        out.extend(sum.to_le_bytes());
        out.resize(self.page_size as usize, 0);
        out
    }

    /// Reads the meta from the first bytes of its page.
    pub(crate) fn read(page: &[u8]) -> Result<Self, Error> {
        let short = Error::NotBolt("it is too short for a meta page");
        let Some(meta) = page.get(HEADER..HEADER + META_SIZE) else { return Err(short) };
        let number = |at| u64_at(meta, at).unwrap_or_default();
        if u32_at(meta, 0) != Some(MAGIC) {
            return Err(Error::NotBolt("its meta pages do not begin as such"));
        }
        if u32_at(meta, 4) != Some(VERSION) {
            return Err(Error::NotBolt("its format has another version than 2"));
        }
        if number(SUMMED) != fnv(&meta[..SUMMED]) {
            return Err(Error::NotBolt("its meta pages do not have their checksums"));
        }
        let page_size = u32_at(meta, 8).unwrap_or_default();
        if !page_size.is_power_of_two() || !(1024..=16 << 20).contains(&page_size) {
            return Err(Error::NotBolt("its pages have no possible size"));
        }
        Ok(Self {
            page_size,
            root: number(16),
            freelist: number(32),
            pages: number(40),
            txid: number(48),
        })
    }
}

/// FNV-1a, 64 bits: the checksum of metas.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meta_comes_back_and_notices_damage() {
        let meta = Meta { page_size: 4096, root: 3, freelist: 2, pages: 4, txid: 1 };
        let page = meta.page(1);
        assert_eq!(page.len(), 4096);
        assert_eq!(Meta::read(&page).unwrap(), meta);
        for at in HEADER..HEADER + META_SIZE {
            let mut bad = page.clone();
            bad[at] ^= 1;
            assert!(Meta::read(&bad).is_err(), "byte {at}");
        }
        assert!(Meta::read(&page[..79]).is_err());
    }

    #[test]
    fn the_checksum_is_fnv_1a() {
        assert_eq!(fnv(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
