//! Frames: how messages stand on a connection, with their length and a checksum.
//!
//! A frame is the payload's length and its CRC-32C, both 32 bits little-endian, then the payload.
//! The checksum starts with the length's bytes, so that neither can be damaged unnoticed. TLS makes
//! it unnecessary; members that talk in the clear have nothing else.

use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The bytes before a payload.
pub(crate) const HEADER: usize = 8;

/// No frame is longer. More than any message that a member sends.
pub(crate) const MOST: usize = 256 << 20;

/// Memory is taken as bytes arrive, in steps of this size, and not because a length says so.
const STEP: usize = 1 << 20;

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), payload)
}

/// What stands before `payload`; `None` when it is too long for a frame.
pub(crate) fn header(payload: &[u8]) -> Option<[u8; HEADER]> {
    let length = u32::try_from(payload.len()).ok().filter(|n| *n as usize <= MOST)?.to_le_bytes();
    let sum = checksum(length, payload).to_le_bytes();
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&length);
    header[4..].copy_from_slice(&sum);
    Some(header)
}

/// Appends a whole frame; returns whether it is short enough for one.
pub(crate) fn put(payload: &[u8], buffer: &mut BytesMut) -> bool {
    let Some(header) = header(payload) else { return false };
    buffer.extend_from_slice(&header);
    buffer.extend_from_slice(payload);
    true
}

/// The next payload of at most `most` bytes; `None` at the end of the connection.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    most: usize,
) -> io::Result<Option<Bytes>> {
    let mut header = [0; HEADER];
    let mut have = 0;
    while have < HEADER {
        match stream.read(&mut header[have..]).await? {
            0 if have == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => have += n,
        }
    }
    let [a, b, c, d, rest @ ..] = header;
    let length = [a, b, c, d];
    let size = u32::from_le_bytes(length) as usize;
    if size > most {
        return Err(invalid(format!("a frame of {size} bytes, where {most} is the most")));
    }
    let mut payload = BytesMut::with_capacity(size.min(STEP));
    while payload.len() < size {
        let missing = size - payload.len();
        payload.reserve(missing.min(STEP));
        if (&mut *stream).take(missing as u64).read_buf(&mut payload).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    if checksum(length, &payload) != u32::from_le_bytes(rest) {
        return Err(invalid("a frame with a wrong checksum".into()));
    }
    Ok(Some(payload.freeze()))
}

pub(crate) fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut bytes: &[u8]) -> Vec<io::Result<Option<Bytes>>> {
        let mut read_all = Vec::new();
        loop {
            let next = read(&mut bytes, 1 << 16).await;
            let last = !matches!(next, Ok(Some(_)));
            read_all.push(next);
            if last {
                return read_all;
            }
        }
    }

    #[tokio::test]
    async fn frames_come_back_whole() {
        let mut buffer = BytesMut::new();
        for payload in [&b"one"[..], b"", &[7; 60_000]] {
            assert!(put(payload, &mut buffer));
        }
        let read: Vec<_> = all(&buffer).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(read[0].as_deref(), Some(&b"one"[..]));
        assert_eq!(read[1].as_deref(), Some(&b""[..]));
        assert_eq!(read[2].as_deref(), Some(&[7; 60_000][..]));
        assert_eq!(read[3], None);
    }

    #[tokio::test]
    async fn no_damaged_bit_goes_unnoticed() {
        let mut buffer = BytesMut::new();
        assert!(put(b"a message", &mut buffer));
        for bit in 0..buffer.len() * 8 {
            let mut damaged = buffer.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(all(&damaged).await.as_slice(), [Err(_)]), "bit {bit}");
        }
    }

    #[tokio::test]
    async fn a_torn_frame_is_an_error_and_not_an_end() {
        let mut buffer = BytesMut::new();
        assert!(put(b"a message", &mut buffer));
        for length in 1..buffer.len() {
            assert!(matches!(all(&buffer[..length]).await.as_slice(), [Err(_)]), "{length} bytes");
        }
    }

    #[tokio::test]
    async fn too_long_a_frame_is_refused_before_it_is_read() {
        let mut buffer = BytesMut::new();
        assert!(put(&[0; 70_000], &mut buffer));
        let [Err(refused)] = &all(&buffer[..8]).await[..] else { panic!("it must be refused") };
        assert!(refused.to_string().contains("70000"), "{refused}");
    }
}
