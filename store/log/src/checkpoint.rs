//! Checkpoints: the state after some entry, in checksummed chunks, in one file.
//!
//! The file begins with `dhowckp1` and the index (8 bytes). Then come the chunks: length (4 bytes),
//! CRC-32C (4 bytes), bytes. The end is a length of 0 and the CRC-32C of the number of chunks
//! (8 bytes), so that a file cut between two chunks does not pass for whole.

use crate::{Directory, Error};
use bytes::Bytes;
use dhow_clock::disk::{DiskFile, Open};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

const PREFIX: &str = "checkpoint-";
const MAGIC: &[u8; 8] = b"dhowckp1";
const HEADER: u64 = 16;
/// Chunks gather until there is so much to write.
const BUFFER: usize = 256 << 10;

fn index_crc(index: u64) -> u32 {
    crc32c::crc32c(&index.to_le_bytes())
}

/// A checkpoint being written. Dropped without [`CheckpointWriter::finish`] it leaves nothing.
#[derive(Debug)]
pub struct CheckpointWriter {
    directory: Arc<Directory>,
    file: Box<dyn DiskFile>,
    index: u64,
    new: PathBuf,
    buffer: Vec<u8>,
    written: u64,
    chunks: u64,
    finished: bool,
}

impl CheckpointWriter {
    /// Begins the checkpoint of the state after entry `index`.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn begin(directory: Arc<Directory>, index: u64) -> Result<Self, Error> {
        Self::begin_as(directory, index, "new")
    }

    /// The same for a state that another member sends; the two do not disturb each other.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn begin_received(directory: Arc<Directory>, index: u64) -> Result<Self, Error> {
        Self::begin_as(directory, index, "received.new")
    }

    fn begin_as(directory: Arc<Directory>, index: u64, extension: &str) -> Result<Self, Error> {
        let new = directory.file(PREFIX, index).with_extension(extension);
        let file = directory.disk.open(&new, Open::Create).map_err(Error::disk("create", &new))?;
        let mut buffer = Vec::with_capacity(BUFFER + BUFFER / 4);
        buffer.extend_from_slice(MAGIC);
        buffer.extend_from_slice(&index.to_le_bytes());
        Ok(Self { directory, file, index, new, buffer, written: 0, chunks: 0, finished: false })
    }

    /// Adds a chunk that `encode` appends to the buffer it is given. An empty one is left out.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn chunk<T>(&mut self, encode: impl FnOnce(&mut Vec<u8>) -> T) -> Result<T, Error> {
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 8]);
        let answer = encode(&mut self.buffer);
        let length = self.buffer.len() - at - 8;
        if length == 0 {
            self.buffer.truncate(at);
            return Ok(answer);
        }
        let crc = crc32c::crc32c(&self.buffer[at + 8..]);
        self.buffer[at..at + 4].copy_from_slice(&(length as u32).to_le_bytes());
        self.buffer[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        self.chunks += 1;
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(answer)
    }

    fn flush(&mut self) -> Result<(), Error> {
        dhow_fault::point("log::checkpoint")
            .map_err(io::Error::from)
            .and_then(|()| self.file.write_all_at(&self.buffer, self.written))
            .map_err(Error::disk("write", &self.new))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes the checkpoint durable, then removes the older ones. Returns its size in bytes.
    ///
    /// # Errors
    /// [`Error::Disk`]; then the older ones still stand.
    pub fn finish(mut self) -> Result<u64, Error> {
        self.buffer.extend_from_slice(&0_u32.to_le_bytes());
        self.buffer.extend_from_slice(&index_crc(self.chunks).to_le_bytes());
        self.flush()?;
        self.file.sync().map_err(Error::disk("sync", &self.new))?;
        let path = self.directory.file(PREFIX, self.index);
        self.directory.name(&self.new, &path)?;
        self.finished = true;
        remove_older(&self.directory, self.index)?;
        Ok(self.written)
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Opening the directory sweeps it too.
            let _ = self.directory.disk.remove(&self.new);
        }
    }
}

fn remove_older(directory: &Directory, index: u64) -> Result<(), Error> {
    for older in directory.numbered(PREFIX)?.into_iter().filter(|number| *number < index) {
        let path = directory.file(PREFIX, older);
        directory.disk.remove(&path).map_err(Error::disk("remove", &path))?;
    }
    Ok(())
}

/// A checkpoint being read.
#[derive(Debug)]
pub struct Checkpoint {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    index: u64,
    offset: u64,
    chunks: u64,
}

impl Checkpoint {
    /// The newest checkpoint, if there is any.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Disk`].
    pub fn newest(directory: &Directory) -> Result<Option<Self>, Error> {
        let Some(index) = directory.numbered(PREFIX)?.pop() else { return Ok(None) };
        let path = directory.file(PREFIX, index);
        let file = directory.disk.open(&path, Open::Read).map_err(Error::disk("open", &path))?;
        let header = file.read_to_end_at(0, HEADER as usize).map_err(Error::disk("read", &path))?;
        if !header.starts_with(MAGIC) || header[8..] != index.to_le_bytes() {
            return Err(Error::damaged(&path, 0, "not the header of a checkpoint"));
        }
        remove_older(directory, index)?;
        Ok(Some(Self { file, path, index, offset: HEADER, chunks: 0 }))
    }

    /// The entry after which the state was so.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The next chunk, `None` after the last.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the place; [`Error::Disk`].
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let read = |offset, most| {
            self.file.read_to_end_at(offset, most).map_err(Error::disk("read", &self.path))
        };
        let word = |bytes: &[u8]| {
            bytes.try_into().map(u32::from_le_bytes).map_err(|_| self.damage("cut short"))
        };
        let head = read(self.offset, 8)?;
        let (length, crc) = head.split_at(head.len().min(4));
        let (length, crc) = (word(length)? as usize, word(crc)?);
        if length == 0 {
            if crc != index_crc(self.chunks) {
                return Err(self.damage("chunks are missing"));
            }
            return Ok(None);
        }
        let bytes = read(self.offset + 8, length)?;
        if bytes.len() != length || crc32c::crc32c(&bytes) != crc {
            return Err(self.damage("a chunk's checksum does not match"));
        }
        self.offset += 8 + length as u64;
        self.chunks += 1;
        Ok(Some(bytes.into()))
    }

    /// The error for what the current place holds.
    pub fn damage(&self, what: impl Into<String>) -> Error {
        Error::damaged(&self.path, self.offset, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_clock::disk::{Disk, Memory};
    use std::path::Path;

    fn directory(disk: &Memory) -> Arc<Directory> {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        Arc::new(Directory::open(shared, Path::new("/data")).unwrap())
    }

    fn write(directory: &Arc<Directory>, index: u64, chunks: &[&[u8]]) {
        let mut writer = CheckpointWriter::begin(directory.clone(), index).unwrap();
        for chunk in chunks {
            writer.chunk(|out| out.extend_from_slice(chunk)).unwrap();
        }
        writer.finish().unwrap();
    }

    fn read(directory: &Directory) -> Result<Option<(u64, Vec<Bytes>)>, Error> {
        let Some(mut checkpoint) = Checkpoint::newest(directory)? else { return Ok(None) };
        let mut chunks = Vec::new();
        while let Some(chunk) = checkpoint.next_chunk()? {
            chunks.push(chunk);
        }
        Ok(Some((checkpoint.index(), chunks)))
    }

    #[test]
    fn the_newest_checkpoint_comes_back_and_the_older_go() {
        let disk = Memory::new();
        let directory = directory(&disk);
        assert!(read(&directory).unwrap().is_none());
        write(&directory, 5, &[b"old"]);
        write(&directory, 9, &[b"one", b"", &[7; 600_000]]);
        let (index, chunks) = read(&directory).unwrap().unwrap();
        assert_eq!((index, chunks.len()), (9, 2));
        assert_eq!(directory.numbered(PREFIX).unwrap(), [9]);
    }

    #[test]
    fn an_unfinished_checkpoint_leaves_nothing_even_after_a_crash() {
        let disk = Memory::new();
        let opened = directory(&disk);
        write(&opened, 5, &[b"old"]);
        let mut writer = CheckpointWriter::begin(opened, 9).unwrap();
        writer.chunk(|out| out.extend_from_slice(&[1; 300_000])).unwrap();
        for seed in 0..20 {
            let crashed = directory(&disk.crash(seed));
            assert_eq!(read(&crashed).unwrap().unwrap().0, 5);
        }
        drop(writer);
        assert_eq!(
            disk.list(Path::new("/data")).unwrap(),
            ["checkpoint-0000000000000005", "lock", "version"]
        );
    }

    #[test]
    fn damage_is_found_with_its_place() {
        let disk = Memory::new();
        let directory = directory(&disk);
        write(&directory, 5, &[b"first", b"second"]);
        let path = directory.file(PREFIX, 5);
        disk.flip(&path, 40);
        let error = read(&directory).unwrap_err();
        assert!(matches!(error, Error::Damaged { offset: 29, .. }), "{error}");
    }
}
