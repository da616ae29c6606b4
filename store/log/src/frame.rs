//! The bytes of a frame: a header with its own checksum, then a batch of entries.
//!
//! | bytes | what, little endian |
//! |---|---|
//! | 0..4 | CRC-32C of bytes 4..24, begun with the segment's nonce |
//! | 4..8 | length of the payload |
//! | 8..16 | index of the first entry |
//! | 16..20 | number of entries |
//! | 20..24 | CRC-32C of the payload |
//! | 24.. | payload: for each entry its length (4 bytes) and its bytes |
//!
//! Frames begin at multiples of 8. The nonce is random per segment, so that no stored value can
//! look like a frame.

use bytes::Bytes;

pub(crate) const HEADER: usize = 24;

/// Entries that will be written and synced together.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self { bytes: vec![0; HEADER], count: 0 }
    }
}

impl Batch {
    /// Adds an entry that `encode` appends to the buffer it is given.
    pub fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        encode(&mut self.bytes);
        let length = (self.bytes.len() - at - 4) as u32;
        self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
        self.count += 1;
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many bytes it takes in the log.
    pub fn bytes(&self) -> u64 {
        self.bytes.len().next_multiple_of(8) as u64
    }

    /// Empties it, keeping a modest buffer.
    pub fn clear(&mut self) {
        self.bytes.truncate(HEADER);
        self.bytes.shrink_to(256 << 10);
        self.count = 0;
    }

    /// The bytes that a batch of `payload` bytes in `entries` entries takes in the log.
    pub fn size(payload: usize, entries: usize) -> u64 {
        (HEADER + payload + 4 * entries).next_multiple_of(8) as u64
    }

    /// Completes the frame and returns its bytes. To be called once per batch.
    pub(crate) fn seal(&mut self, nonce: u32, first_index: u64) -> &[u8] {
        let payload_length = (self.bytes.len() - HEADER) as u32;
        let payload_crc = crc32c::crc32c(&self.bytes[HEADER..]);
        let header = &mut self.bytes[..HEADER];
        header[4..8].copy_from_slice(&payload_length.to_le_bytes());
        header[8..16].copy_from_slice(&first_index.to_le_bytes());
        header[16..20].copy_from_slice(&self.count.to_le_bytes());
        header[20..24].copy_from_slice(&payload_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(nonce, &header[4..]);
        header[..4].copy_from_slice(&crc.to_le_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        &self.bytes
    }
}

/// A frame's header, when its checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub length: usize,
    pub first_index: u64,
    pub count: u32,
    payload_crc: u32,
}

impl Head {
    pub(crate) fn read(bytes: &[u8], nonce: u32) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        let word = |at: usize| {
            let four: [u8; 4] = header[at..at + 4].try_into().unwrap_or_default();
            u32::from_le_bytes(four)
        };
        if crc32c::crc32c_append(nonce, &header[4..]) != word(0) {
            return None;
        }
        Some(Self {
            length: word(4) as usize,
            first_index: u64::from(word(8)) | u64::from(word(12)) << 32,
            count: word(16),
            payload_crc: word(20),
        })
    }

    /// The bytes of the whole frame.
    pub(crate) fn size(&self) -> usize {
        (HEADER + self.length).next_multiple_of(8)
    }

    /// The payload, when it is whole. `bytes` begins with the frame.
    pub(crate) fn payload(&self, bytes: &Bytes) -> Option<Bytes> {
        let end = HEADER.checked_add(self.length).filter(|end| *end <= bytes.len())?;
        let payload = bytes.slice(HEADER..end);
        (crc32c::crc32c(&payload) == self.payload_crc).then_some(payload)
    }
}

/// The entries of a payload; `None` when its lengths do not fit.
pub(crate) fn entries(mut payload: Bytes, count: u32) -> Option<Vec<Bytes>> {
    let mut entries = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let length = u32::from_le_bytes(payload.get(..4)?.try_into().ok()?) as usize;
        let rest = payload.slice(4..);
        if length > rest.len() {
            return None;
        }
        entries.push(rest.slice(..length));
        payload = rest.slice(length..);
    }
    payload.is_empty().then_some(entries)
}
