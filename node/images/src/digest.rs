//! Digests computed while bytes pass by.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::{self, Read, Write};

/// `sha256:` and 64 hexadecimal digits.
pub fn text(hash: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in hash {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The digest of `bytes`.
pub fn of(bytes: &[u8]) -> String {
    text(&Sha256::digest(bytes))
}

/// A reader that hashes what is read.
pub struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    /// Starts with an empty hash.
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// The digest of all that was read.
    pub fn finish(self) -> String {
        text(&self.hash.finalize())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

/// A writer that hashes and counts what is written.
pub struct HashingWriter<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Starts with an empty hash.
    pub fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), length: 0 }
    }

    /// The digest and the length of all that was written.
    pub fn finish(self) -> (String, u64) {
        (text(&self.hash.finalize()), self.length)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.hash.update(&buffer[..n]);
        self.length += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
