//! Writing files into a root, as `COPY` and `ADD` do.

use crate::pattern;
use crate::transfer::{Content, Item};
use crate::tree::{Entry, Tree, location, open_in};
use dhow_images::layer;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Writes into one root directory.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    root: &'a OwnedFd,
    /// Owner and group of all that is written; `None` keeps the source's.
    pub(crate) owner: Option<(u32, u32)>,
    /// The same for what is unpacked.
    pub(crate) archive_owner: Option<(u32, u32)>,
    /// Mode of all that is written; `None` keeps the source's.
    pub(crate) mode: Option<RawMode>,
    /// Where a file that has several names was written first.
    links: HashMap<(u64, u64), PathBuf>,
    /// Directories whose times are set when everything is in them.
    times: Vec<(PathBuf, Timestamps)>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(root: &'a OwnedFd) -> Self {
        Self {
            root,
            owner: Some((0, 0)),
            archive_owner: None,
            mode: None,
            links: HashMap::new(),
            times: Vec::new(),
        }
    }

    /// Puts the items at `target`, an absolute path. `scratch` is an empty directory for unpacking.
    pub(crate) fn copy(
        &mut self,
        tree: &Tree,
        items: &[Item],
        target: &str,
        scratch: &Path,
    ) -> io::Result<()> {
        let into = target.ends_with('/') || target.ends_with("/.") || items.len() > 1;
        let path = PathBuf::from(pattern::clean(target));
        for item in items {
            let inside = into || self.is_directory(&path)?;
            match &item.content {
                Content::Archive(archive) => self.unpack(tree, archive, &path, scratch)?,
                Content::Entries(entries) if entries[0].kind == FileType::Directory => {
                    self.tree(tree, entries, &path)?;
                }
                Content::Entries(entries) => {
                    let path = if inside { path.join(&item.name) } else { self.real(&path)? };
                    self.parent(&path)?;
                    self.entry(tree, &entries[0], &path)?;
                }
                Content::Text(text) => {
                    let path = if inside { path.join(&item.name) } else { self.real(&path)? };
                    self.parent(&path)?;
                    self.text(text, &path)?;
                }
            }
        }
        self.finish()
    }

    /// Makes the directory and all above it; true if it was not there.
    pub(crate) fn directory(&mut self, path: &Path) -> io::Result<bool> {
        if self.is_directory(path)? {
            return Ok(false);
        }
        self.parent(path)?;
        let (parent, name) = self.split(path)?;
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map_err(|e| match e {
            Errno::EXIST => what(path, "it is there already and is no directory"),
            e => e.into(),
        })?;
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        own(&parent, name, uid, gid)?;
        // The mode without what the process's mask takes away.
        rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
        Ok(true)
    }

    fn parent(&mut self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if path.file_name().is_some() => self.directory(parent).map(drop),
            _ => Ok(()),
        }
    }

    /// Where a file that is named as the target really is: one that is there is written through
    /// symbolic links, as Docker does. What is not there is where it is named.
    fn real(&self, path: &Path) -> io::Result<PathBuf> {
        let Ok(found) = open_in(self.root, path, OFlags::PATH) else {
            return Ok(path.to_path_buf());
        };
        let (root, found) = (location(self.root)?, location(&found)?);
        Ok(found.strip_prefix(&root).map_or_else(|_| path.to_path_buf(), Path::to_path_buf))
    }

    fn is_directory(&self, path: &Path) -> io::Result<bool> {
        match open_in(self.root, path, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) => Ok(true),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// The open parent directory, and the name in it.
    fn split<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().ok_or_else(|| what(Path::new("/"), "it is a directory"))?;
        Ok((open_in(self.root, parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
    }

    /// Copies the content of a directory into the directory `target`.
    fn tree(&mut self, tree: &Tree, entries: &[Entry], target: &Path) -> io::Result<()> {
        for (at, entry) in entries.iter().enumerate() {
            let path = match at {
                0 => target.to_path_buf(),
                _ => target.join(&entry.below),
            };
            if entry.kind != FileType::Directory {
                self.entry(tree, entry, &path)?;
                continue;
            }
            let made = self.directory(&path)?;
            // A target that was there keeps what it is; what is copied into it does not.
            if made || at > 0 {
                let this = open_in(self.root, &path, OFlags::PATH | OFlags::DIRECTORY)?;
                let (uid, gid) = self.owner.unwrap_or((entry.stat.st_uid, entry.stat.st_gid));
                rustix::fs::chownat(
                    &this,
                    "",
                    Some(Uid::from_raw(uid)),
                    Some(Gid::from_raw(gid)),
                    AtFlags::EMPTY_PATH,
                )?;
                let mode = Mode::from_raw_mode(self.mode.unwrap_or(entry.mode));
                rustix::fs::chmodat(&this, ".", mode, AtFlags::empty())?;
                self.times.push((path, times(entry)));
            }
        }
        Ok(())
    }

    /// Copies anything but a directory to `path`, whose directory is there.
    fn entry(&mut self, tree: &Tree, entry: &Entry, path: &Path) -> io::Result<()> {
        let (parent, name) = self.split(path)?;
        make_room(&parent, name, path)?;
        if entry.stat.st_nlink > 1 {
            let key = (entry.stat.st_dev, entry.stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                let (from, first) = self.split(first)?;
                return Ok(rustix::fs::linkat(&from, first, &parent, name, AtFlags::empty())?);
            }
            self.links.insert(key, path.to_path_buf());
        }
        let (uid, gid) = self.owner.unwrap_or((entry.stat.st_uid, entry.stat.st_gid));
        let mode = Mode::from_raw_mode(self.mode.unwrap_or(entry.mode));
        match (entry.kind, &entry.link) {
            (_, Some(link)) => {
                rustix::fs::symlinkat(link, &parent, name)?;
                own(&parent, name, uid, gid)?;
            }
            (FileType::RegularFile, _) => {
                let mut source = tree.file(&entry.path)?;
                let mut file = create(&parent, name)?;
                io::copy(&mut source, &mut file)?;
                own(&parent, name, uid, gid)?;
                // After the owner: changing it clears the set-user-id bits and capabilities.
                rustix::fs::fchmod(&file, mode)?;
                attributes(&source, &file)?;
            }
            (kind, _) => {
                rustix::fs::mknodat(&parent, name, kind, mode, entry.stat.st_rdev)?;
                own(&parent, name, uid, gid)?;
                rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
            }
        }
        rustix::fs::utimensat(&parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn text(&mut self, text: &str, path: &Path) -> io::Result<()> {
        let (parent, name) = self.split(path)?;
        make_room(&parent, name, path)?;
        let mut file = create(&parent, name)?;
        file.write_all(text.as_bytes())?;
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        own(&parent, name, uid, gid)?;
        Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(self.mode.unwrap_or(0o644)))?)
    }

    /// Unpacks an archive into the directory `target`: first aside, then like any other tree, so
    /// that the paths in it cannot lead elsewhere.
    fn unpack(
        &mut self,
        tree: &Tree,
        archive: &Path,
        target: &Path,
        scratch: &Path,
    ) -> io::Result<()> {
        let aside = layer::scratch(scratch).map_err(io::Error::other)?;
        layer::unpack(tree.file(archive)?, &aside, &[]).map_err(io::Error::other)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&aside, flags, Mode::empty())?;
        let name = format!("archive {}", archive.display());
        let unpacked = Tree::new(root, name, pattern::Ignore::default(), true);
        let entries = unpacked.walk(Path::new(""))?;
        self.directory(target)?;
        let owner = std::mem::replace(&mut self.owner, self.archive_owner);
        let done = self.tree(&unpacked, &entries, target);
        self.owner = owner;
        self.links.clear();
        done?;
        std::fs::remove_dir_all(&aside)
    }

    /// Filling a directory changes its time, so that is set last.
    fn finish(&mut self) -> io::Result<()> {
        for (path, times) in std::mem::take(&mut self.times).iter().rev() {
            let this = open_in(self.root, path, OFlags::PATH | OFlags::DIRECTORY)?;
            rustix::fs::utimensat(&this, ".", times, AtFlags::empty())?;
        }
        Ok(())
    }
}

fn what(path: &Path, why: &str) -> io::Error {
    io::Error::other(format!("/{} cannot be written: {why}", path.display()))
}

fn create(parent: &OwnedFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let resolve = ResolveFlags::BENEATH;
    Ok(File::from(rustix::fs::openat2(parent, name, flags, mode, resolve)?))
}

/// Removes what a file is to replace.
fn make_room(parent: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Err(what(path, "a directory is in the place of the file")),
        Err(e) => Err(e.into()),
    }
}

fn own(parent: &OwnedFd, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    Ok(rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(entry: &Entry) -> Timestamps {
    let stamp = Timespec { tv_sec: entry.stat.st_mtime, tv_nsec: entry.stat.st_mtime_nsec as _ };
    Timestamps { last_access: stamp, last_modification: stamp }
}

/// Copies the extended attributes that belong to the content.
fn attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let mut names = vec![0u8; 4096];
    let length = match rustix::fs::flistxattr(&from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    for name in names[..length].split(|b| *b == 0) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name == "security.capability" || name.starts_with("user.") {
            let mut value = vec![0u8; 65536];
            let length = rustix::fs::fgetxattr(&from, name, &mut value[..])?;
            rustix::fs::fsetxattr(&to, name, &value[..length], XattrFlags::empty())?;
        }
    }
    Ok(())
}
