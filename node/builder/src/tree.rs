//! Reading a directory tree as a container would see it: no symbolic link leads out of it.

use crate::pattern::Ignore;
use crate::scratch::Step;
use dhow_images::digest::HashingWriter;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// How often to look again when the machine's directories change under the search.
const ATTEMPTS: usize = 1000;

/// Opens `path` below `root`; links on the way resolve inside.
pub(crate) fn open_in(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = flags | OFlags::CLOEXEC;
    let mut left = ATTEMPTS;
    loop {
        // The kernel cannot tell where `..` leads while anything anywhere is renamed (openat2(2)).
        match rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Err(Errno::AGAIN) if left > 0 => left -= 1,
            other => return Ok(other?),
        }
    }
}

/// The directory tree that files are copied from.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// For people: `the build context DIR`, `stage build`.
    pub(crate) name: String,
    ignore: Ignore,
    /// Owner and group of the files count (they do not in a build context).
    pub(crate) owned: bool,
    /// What the root's mount is made of; deleted after the root was closed.
    _scratch: Option<Step>,
}

/// One file, directory or link.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Where it is in the tree; no links on the way.
    pub(crate) path: PathBuf,
    /// Relative to the entry that the walk began with; empty for that one.
    pub(crate) below: PathBuf,
    pub(crate) kind: FileType,
    /// Permission bits.
    pub(crate) mode: RawMode,
    pub(crate) stat: Stat,
    /// The target of a symbolic link.
    pub(crate) link: Option<PathBuf>,
}

impl Tree {
    pub(crate) fn new(root: OwnedFd, name: String, ignore: Ignore, owned: bool) -> Self {
        Self { root, name, ignore, owned, _scratch: None }
    }

    /// The same tree, with the directory that it is made of.
    pub(crate) fn made_of(self, scratch: Step) -> Self {
        Self { _scratch: Some(scratch), ..self }
    }

    /// Where `path` really is, all links followed, relative to the root; `None` if it is not there.
    pub(crate) fn resolve(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let found = match open_in(&self.root, path, OFlags::PATH) {
            Ok(found) => found,
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let (root, found) = (location(&self.root)?, location(&found)?);
        let relative = found.strip_prefix(&root).map_err(|_| {
            io::Error::other(format!("{} has moved while it was read", found.display()))
        })?;
        Ok(Some(relative.to_path_buf()))
    }

    /// Where the symbolic link at `path` leads, as it is written; `None` if it is no link.
    pub(crate) fn link(&self, path: &Path) -> Option<PathBuf> {
        let found = open_in(&self.root, path, OFlags::PATH | OFlags::NOFOLLOW).ok()?;
        let target = rustix::fs::readlinkat(&found, "", Vec::new()).ok()?;
        Some(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// Whether `.dockerignore` leaves the path out.
    pub(crate) fn ignores(&self, path: &Path) -> bool {
        self.ignore.ignores(&path.to_string_lossy())
    }

    /// Names in a directory, sorted; empty when it is none.
    pub(crate) fn names(&self, directory: &Path) -> Vec<OsString> {
        open_in(&self.root, directory, OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(|directory| list(&directory))
            .unwrap_or_default()
    }

    /// The entry at `start` (which has no links) and everything below, in order of names, without
    /// what is ignored.
    pub(crate) fn walk(&self, start: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let parent = open_in(&self.root, start.parent().unwrap_or(Path::new("")), OFlags::PATH)?;
        let name = start.file_name().unwrap_or(OsStr::new("."));
        self.visit(&parent, name, start, Path::new(""), &mut entries)?;
        Ok(entries)
    }

    /// Returns whether anything was taken.
    fn visit(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        below: &Path,
        entries: &mut Vec<Entry>,
    ) -> io::Result<bool> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let ignored = !path.as_os_str().is_empty() && self.ignores(path);
        let directory = kind == FileType::Directory;
        if ignored && !(directory && self.ignore.takes_back()) {
            return Ok(false);
        }
        let link = match kind {
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(parent, name, Vec::new())?;
                Some(PathBuf::from(OsString::from_vec(text.into_bytes())))
            }
            _ => None,
        };
        let at = entries.len();
        let mode = stat.st_mode & 0o7777;
        let (path, below) = (path.to_path_buf(), below.to_path_buf());
        entries.push(Entry { path: path.clone(), below: below.clone(), kind, mode, stat, link });
        if directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let this = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            let mut taken = false;
            for child in list(&this)? {
                taken |=
                    self.visit(&this, &child, &path.join(&child), &below.join(&child), entries)?;
            }
            if ignored && !taken {
                entries.truncate(at);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens a file that a walk found.
    pub(crate) fn file(&self, path: &Path) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(File::from(rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)?))
    }

    /// The digest of what a copy of `entries` depends on: names, kinds, modes, link targets and
    /// contents, and owners if they count. Times do not.
    pub(crate) fn digest(&self, entries: &[Entry]) -> io::Result<String> {
        let mut all = HashingWriter::new(io::sink());
        for entry in entries {
            let (uid, gid) =
                if self.owned { (entry.stat.st_uid, entry.stat.st_gid) } else { (0, 0) };
            let content = match entry.kind {
                FileType::RegularFile => {
                    let mut hash = HashingWriter::new(io::sink());
                    io::copy(&mut self.file(&entry.path)?, &mut hash)?;
                    hash.finish().0.into_bytes()
                }
                FileType::Symlink => entry
                    .link
                    .as_ref()
                    .map(|l| l.as_os_str().as_bytes().to_vec())
                    .unwrap_or_default(),
                _ => entry.stat.st_rdev.to_string().into_bytes(),
            };
            let head = format!("{:o} {uid} {gid} {} ", entry.stat.st_mode, content.len());
            all.write_all(head.as_bytes())?;
            all.write_all(&content)?;
            all.write_all(entry.below.as_os_str().as_bytes())?;
            all.write_all(b"\0")?;
        }
        Ok(all.finish().0)
    }
}

/// Where the kernel says an open file is.
pub(crate) fn location(fd: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn list(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}
