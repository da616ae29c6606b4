//! Layers: tar streams to directories that overlayfs takes as lower layers, and back.
//!
//! Follows the OCI image layer specification: `.wh.NAME` removes NAME of the layers below and
//! `.wh..wh..opq` hides all of a directory below. In an unpacked layer these are overlayfs's own
//! marks: a character device 0/0, and the attribute `trusted.overlay.opaque`.

use crate::Error;
use crate::digest::{Hashing, HashingWriter};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

const OPAQUE: &str = "trusted.overlay.opaque";
const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// Takes whichever compression a layer has.
///
/// # Errors
/// When the stream's head cannot be read or is a damaged zstd frame.
pub fn decompress<'a>(mut source: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut head = [0u8; 4];
    let mut filled = 0;
    while filled < head.len() {
        match source.read(&mut head[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    let whole = io::Cursor::new(head[..filled].to_vec()).chain(source);
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(
            ruzstd::decoding::StreamingDecoder::new(whole)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?,
        ),
        _ => Box::new(whole),
    })
}

/// What unpacking a layer yielded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the uncompressed tar stream: the layer's diff id.
    pub diff_id: String,
    /// Sum of the file sizes, bytes.
    pub size: u64,
}

/// Unpacks a layer (of any compression) into the empty directory `target`. `below` are the
/// unpacked layers under it, topmost first; directories that the stream only implies take owner and
/// mode from there.
///
/// # Errors
/// A damaged stream, or a path that would leave `target`.
pub fn unpack(
    source: impl Read + Send,
    target: &Path,
    below: &[PathBuf],
) -> Result<Unpacked, Error> {
    let damaged = |what: &Path, e: &dyn std::fmt::Display| Error::Damaged {
        what: format!("layer entry {}", what.display()),
        why: e.to_string(),
    };
    let stream = decompress(source).map_err(|e| damaged(Path::new("(head)"), &e))?;
    let mut hashing = Hashing::new(stream);
    let root =
        rustix::fs::open(target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::io(format!("open {}", target.display()), e))?;
    let mut size = 0;
    let mut directories: Vec<(PathBuf, i64)> = Vec::new();
    {
        let mut archive = tar::Archive::new(&mut hashing);
        archive.set_ignore_zeros(false);
        let entries = archive.entries().map_err(|e| damaged(Path::new("(archive)"), &e))?;
        for entry in entries {
            let mut entry = entry.map_err(|e| damaged(Path::new("(archive)"), &e))?;
            let path = entry.path().map_err(|e| damaged(Path::new("(name)"), &e))?.into_owned();
            let Some(path) = inside(&path) else {
                return Err(damaged(&path, &"the path leaves the layer"));
            };
            let unpacked =
                unpack_entry(&root, &mut entry, &path, below).map_err(|e| damaged(&path, &e))?;
            size += unpacked;
            if entry.header().entry_type().is_dir() {
                directories.push((path, entry.header().mtime().unwrap_or(0) as i64));
            }
        }
    }
    // What follows the archive's end marker still belongs to the digest.
    io::copy(&mut hashing, &mut io::sink()).map_err(|e| damaged(Path::new("(tail)"), &e))?;
    // Filling a directory changes its time: set those last, deepest first.
    for (path, mtime) in directories.iter().rev() {
        if let Ok(parent) = open_inside(&root, path, OFlags::PATH | OFlags::DIRECTORY) {
            let _ = rustix::fs::utimensat(&parent, ".", &times(*mtime), AtFlags::empty());
        }
    }
    Ok(Unpacked { diff_id: hashing.finish(), size })
}

/// The path relative to the root, or `None` when it points outside.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}

fn open_inside(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // IN_ROOT: links met on the way resolve as they would in a container, never outside.
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// Opens the directory `path`, making what is missing.
fn ensure_directory(root: &OwnedFd, path: &Path, below: &[PathBuf]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open_inside(root, path, flags) {
        Ok(fd) => return Ok(fd),
        Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let parent = ensure_directory(root, path.parent().unwrap_or(Path::new("")), below)?;
    let name = path.file_name().unwrap_or(OsStr::new("."));
    rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
    if let Some(like) = below
        .iter()
        .find_map(|layer| layer.join(path).symlink_metadata().ok().filter(|m| m.is_dir()))
    {
        let uid = rustix::fs::Uid::from_raw(like.uid());
        let gid = rustix::fs::Gid::from_raw(like.gid());
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::chmodat(
            &parent,
            name,
            Mode::from_raw_mode(like.mode() & 0o7777),
            AtFlags::empty(),
        )?;
    }
    Ok(open_inside(root, path, flags)?)
}

fn times(mtime: i64) -> Timestamps {
    let stamp = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: stamp, last_modification: stamp }
}

fn remove_at(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR) => {
            let path =
                PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(parent)));
            std::fs::remove_dir_all(path.join(name))
        }
        Err(e) => Err(e.into()),
    }
}

fn unpack_entry<R: Read>(
    root: &OwnedFd,
    entry: &mut tar::Entry<'_, R>,
    path: &Path,
    below: &[PathBuf],
) -> io::Result<u64> {
    let header = entry.header();
    let kind = header.entry_type();
    let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
    let uid = rustix::fs::Uid::from_raw(u32::try_from(header.uid()?).unwrap_or(0));
    let gid = rustix::fs::Gid::from_raw(u32::try_from(header.gid()?).unwrap_or(0));
    let mtime = header.mtime()? as i64;
    let device = match kind {
        // Other entries may leave these fields blank.
        tar::EntryType::Char | tar::EntryType::Block => {
            (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0))
        }
        _ => (0, 0),
    };
    let Some(name) = path.file_name() else {
        // The root itself: take its owner and mode.
        let fd = open_inside(root, Path::new("."), OFlags::PATH | OFlags::DIRECTORY)?;
        rustix::fs::chownat(&fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        rustix::fs::chmodat(&fd, ".", mode, AtFlags::empty())?;
        return Ok(0);
    };
    let parent = ensure_directory(root, path.parent().unwrap_or(Path::new("")), below)?;

    if name.as_bytes() == WHITEOUT_OPAQUE {
        let dir = open_inside(
            root,
            path.parent().unwrap_or(Path::new("")),
            OFlags::RDONLY | OFlags::DIRECTORY,
        )?;
        rustix::fs::fsetxattr(&dir, OPAQUE, b"y", XattrFlags::empty())?;
        return Ok(0);
    }
    if let Some(gone) = name.as_bytes().strip_prefix(WHITEOUT) {
        let gone = OsStr::from_bytes(gone);
        remove_at(&parent, gone)?;
        rustix::fs::mknodat(&parent, gone, FileType::CharacterDevice, Mode::empty(), 0)?;
        return Ok(0);
    }

    let mut size = 0;
    if kind.is_dir() {
        match rustix::fs::mkdirat(&parent, name, mode) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                let there = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                    remove_at(&parent, name)?;
                    rustix::fs::mkdirat(&parent, name, mode)?;
                }
            }
            Err(e) => return Err(e.into()),
        }
    } else {
        remove_at(&parent, name)?;
        match kind {
            tar::EntryType::Symlink => {
                let to = entry.link_name_bytes().unwrap_or_default().into_owned();
                rustix::fs::symlinkat(OsStr::from_bytes(&to), &parent, name)?;
            }
            tar::EntryType::Link => {
                let to = entry.link_name()?.map(|p| p.into_owned()).unwrap_or_default();
                let to =
                    inside(&to).ok_or_else(|| io::Error::other("the link leaves the layer"))?;
                let from = ensure_directory(root, to.parent().unwrap_or(Path::new("")), below)?;
                let target = to.file_name().unwrap_or(OsStr::new("."));
                rustix::fs::linkat(&from, target, &parent, name, AtFlags::empty())?;
                return Ok(0);
            }
            tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => {
                let file_type = match kind {
                    tar::EntryType::Char => FileType::CharacterDevice,
                    tar::EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let number = rustix::fs::makedev(device.0, device.1);
                rustix::fs::mknodat(&parent, name, file_type, mode, number)?;
            }
            _ => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::CLOEXEC
                    | OFlags::NOFOLLOW;
                let mut file = File::from(rustix::fs::openat(&parent, name, flags, mode)?);
                size = io::copy(entry, &mut file)?;
            }
        }
    }
    rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != tar::EntryType::Symlink {
        // After the owner: changing it clears the set-user-id bits.
        rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
    }
    set_attributes(entry, &parent, name)?;
    rustix::fs::utimensat(&parent, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(size)
}

/// Extended attributes, as archives carry them (`SCHILY.xattr.NAME`).
fn set_attributes<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    parent: &OwnedFd,
    name: &OsStr,
) -> io::Result<()> {
    let mut wanted = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(key) = extension.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr."))
                && !key.starts_with("trusted.overlay.")
            {
                wanted.push((key.to_owned(), extension.value_bytes().to_vec()));
            }
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let base = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&parent.as_fd()));
    for (key, value) in wanted {
        rustix::fs::lsetxattr(
            Path::new(&base).join(name),
            key.as_str(),
            &value,
            XattrFlags::empty(),
        )?;
    }
    Ok(())
}

/// Writes the directory `source` (an overlay's upper directory, or a layer) as an uncompressed
/// layer, sorted by name so that equal directories give equal digests. Returns the diff id, the
/// length of the stream and the sum of the file sizes.
///
/// # Errors
/// When a file cannot be read or the archive not be written.
pub fn pack(source: &Path, sink: impl Write) -> Result<(String, u64, u64), Error> {
    let mut packer = Packer {
        archive: tar::Builder::new(HashingWriter::new(sink)),
        links: HashMap::new(),
        size: 0,
    };
    packer.archive.mode(tar::HeaderMode::Complete);
    packer
        .directory(source, Path::new(""))
        .map_err(|e| Error::io(format!("pack {}", source.display()), e))?;
    let size = packer.size;
    let sink = packer
        .archive
        .into_inner()
        .map_err(|e| Error::io(format!("pack {}", source.display()), e))?;
    let (digest, length) = sink.finish();
    Ok((digest, length, size))
}

struct Packer<W: Write> {
    archive: tar::Builder<HashingWriter<W>>,
    /// First name of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    size: u64,
}

impl<W: Write> Packer<W> {
    fn directory(&mut self, source: &Path, relative: &Path) -> io::Result<()> {
        let mut children: Vec<_> = std::fs::read_dir(source)?.collect::<io::Result<_>>()?;
        children.sort_by_key(std::fs::DirEntry::file_name);
        for child in children {
            let path = child.path();
            let name = relative.join(child.file_name());
            let metadata = path.symlink_metadata()?;
            if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
                let mut gone = WHITEOUT.to_vec();
                gone.extend_from_slice(child.file_name().as_bytes());
                self.mark(&relative.join(OsStr::from_bytes(&gone)))?;
                continue;
            }
            if metadata.file_type().is_socket() {
                continue;
            }
            self.entry(&path, &name, &metadata)?;
            if metadata.is_dir() {
                let mut value = [0u8; 1];
                if rustix::fs::lgetxattr(&path, OPAQUE, &mut value[..])
                    .is_ok_and(|_| value == *b"y")
                {
                    self.mark(&name.join(OsStr::from_bytes(WHITEOUT_OPAQUE)))?;
                }
                self.directory(&path, &name)?;
            }
        }
        Ok(())
    }

    /// An empty file that stands for something that is gone.
    fn mark(&mut self, name: &Path) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0);
        header.set_size(0);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        self.archive.append_data(&mut header, name, io::empty())
    }

    fn entry(&mut self, path: &Path, name: &Path, metadata: &std::fs::Metadata) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_metadata_in_mode(metadata, tar::HeaderMode::Complete);
        header.set_mode(metadata.permissions().mode() & 0o7777);
        if metadata.is_file() && metadata.nlink() > 1 {
            let key = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&key) {
                header.set_entry_type(tar::EntryType::Link);
                header.set_size(0);
                let first = first.clone();
                return self.archive.append_link(&mut header, name, first);
            }
            self.links.insert(key, name.to_path_buf());
        }
        let attributes = attributes(path)?;
        if !attributes.is_empty() {
            self.archive.append_pax_extensions(
                attributes.iter().map(|(key, value)| (key.as_str(), value.as_slice())),
            )?;
        }
        if metadata.is_symlink() {
            header.set_size(0);
            let to = std::fs::read_link(path)?;
            self.archive.append_link(&mut header, name, to)
        } else if metadata.is_file() {
            self.size += metadata.len();
            // The file may not grow under us: the header's size binds.
            let file = File::open(path)?.take(metadata.len());
            header.set_size(metadata.len());
            self.archive.append_data(&mut header, name, file)
        } else {
            header.set_size(0);
            if metadata.file_type().is_char_device() || metadata.file_type().is_block_device() {
                header.set_device_major(rustix::fs::major(metadata.rdev()))?;
                header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
            }
            self.archive.append_data(&mut header, name, io::empty())
        }
    }
}

/// The extended attributes that belong to the content, as archive keys.
fn attributes(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0u8; 4096];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if !(name == "security.capability" || name.starts_with("user.")) {
            continue;
        }
        let mut value = vec![0u8; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        found.push((format!("SCHILY.xattr.{name}"), value));
    }
    Ok(found)
}

/// Makes an own directory for scratch work below `base`.
///
/// # Errors
/// When it cannot be made.
pub fn scratch(base: &Path) -> Result<PathBuf, Error> {
    let mut random = [0u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("getrandom".into(), e))?;
    let path = base.join(format!("{:016x}", u64::from_le_bytes(random)));
    rustix::fs::mkdirat(CWD, &path, Mode::from_raw_mode(0o755))
        .map_err(|e| Error::io(format!("make {}", path.display()), e))?;
    Ok(path)
}
