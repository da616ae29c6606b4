//! Mounts through the kernel's file-descriptor interface: overlay, bind, tmpfs, and their removal.
//!
//! A mount is made detached (`fsmount`, `open_tree`), given its attributes, and only then attached:
//! nobody ever sees it half made. Needs Linux 5.12 (`mount_setattr`). Every mount that has a source
//! text names its owner there.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How mounts travel between namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// As it is.
    Keep,
    /// Not at all.
    Private,
    /// From the machine to here, not back.
    Slave,
}

/// Attributes to set and to clear on a mount.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    /// Attributes to set.
    pub set: MountAttrFlags,
    /// How it travels.
    pub propagation: Propagation,
    /// Also for every mount below.
    pub recursive: bool,
}

/// Changes the attributes of the mount that `fd` (from [`bind_clone`], [`file_system`]) or the
/// path of an attached mount stands for.
///
/// # Errors
/// What `mount_setattr(2)` says.
pub fn set_attributes(fd: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    // The layout is `struct mount_attr` of the kernel's headers, first published size.
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let propagation = match attributes.propagation {
        Propagation::Keep => 0,
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
    };
    let attr =
        MountAttr { set: u64::from(attributes.set.bits()), clear: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if attributes.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attr` lives through the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A detached copy of what is mounted at `source` (with what is mounted below it, if `recursive`).
/// `source` may be a file.
///
/// # Errors
/// What `open_tree(2)` says.
pub fn bind_clone(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(CWD, source, flags)?)
}

/// Attaches a detached mount at `target`, following symbolic links.
///
/// # Errors
/// What `move_mount(2)` says.
pub fn attach(mount: impl AsFd, target: &Path) -> io::Result<()> {
    rustix::mount::move_mount(
        mount.as_fd(),
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS,
    )?;
    Ok(())
}

/// A detached mount of a new file system of this type.
///
/// # Errors
/// What the kernel says, with the text of its message if it left one.
pub fn file_system(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let made = (|| {
        for (key, value) in options {
            rustix::mount::fsconfig_set_string(&context, *key, *value)?;
        }
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    })();
    made.map_err(|errno| explain(&context, errno))
}

/// A detached overlay of `lower` (topmost first) under the writable directory `upper`. `owner`
/// becomes the mount's source text.
///
/// The overlay is volatile: nothing in it is forced to the disk, neither by `fsync` nor by its
/// removal (which would otherwise wait for the whole disk's journal). After a crash of the machine
/// `upper` is of no use, and `work` has to be removed before it is mounted again.
///
/// # Errors
/// What the kernel says; a missing directory is named.
pub fn overlay(lower: &[PathBuf], upper: &Path, work: &Path, owner: &str) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Directories that the option syntax cannot hold are named through a descriptor, which has to
    // stay open until the file system has been made.
    let mut held = Vec::new();
    let mut set = |key: &str, path: &Path| -> io::Result<()> {
        let bytes = path.as_os_str().as_bytes();
        // The kernel takes values of at most 255 bytes, and gives `:`, `,` and `\` a meaning.
        let plain = bytes.len() < 256 && !bytes.iter().any(|b| matches!(b, b':' | b',' | b'\\'));
        let result = if plain {
            rustix::mount::fsconfig_set_string(&context, key, path)
        } else {
            let directory = rustix::fs::open(
                path,
                rustix::fs::OFlags::PATH
                    | rustix::fs::OFlags::DIRECTORY
                    | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )?;
            let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
            held.push(directory);
            rustix::mount::fsconfig_set_string(&context, key, link)
        };
        result.map_err(|errno| {
            let error = explain(&context, errno);
            io::Error::new(error.kind(), format!("{key}={}: {error}", path.display()))
        })
    };
    for layer in lower {
        set("lowerdir+", layer)?;
    }
    set("upperdir", upper)?;
    set("workdir", work)?;
    let made = (|| {
        rustix::mount::fsconfig_set_string(&context, "source", owner)?;
        rustix::mount::fsconfig_set_flag(&context, "volatile")?;
        // Whatever the machine's kernel does by itself: layers that are made here are read by
        // others, and they must not hold a renamed directory's or a changed file's mere name.
        rustix::mount::fsconfig_set_string(&context, "redirect_dir", "off")?;
        rustix::mount::fsconfig_set_string(&context, "metacopy", "off")?;
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    })();
    made.map_err(|errno| explain(&context, errno))
}

/// The kernel's own message about a file system context, else the error number's text.
fn explain(context: &OwnedFd, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    let mut text = [0u8; 512];
    match rustix::io::read(context, &mut text) {
        Ok(length) if length > 2 => {
            // Messages look like `e overlay: no changes allowed`.
            let text = String::from_utf8_lossy(&text[2..length]);
            io::Error::new(error.kind(), format!("{} ({error})", text.trim()))
        }
        _ => error,
    }
}

/// Mounts a tmpfs of at most `size` bytes (0: the kernel's default) with this mode at `target`.
///
/// # Errors
/// What `mount(2)` says.
pub fn tmpfs(
    target: &Path,
    owner: &str,
    size: u64,
    mode: u32,
    flags: MountFlags,
) -> io::Result<()> {
    let mut data = format!("mode={mode:o}");
    if size > 0 {
        data.push_str(&format!(",size={size}"));
    }
    special("tmpfs", owner, target, &data, flags)
}

/// Mounts a file system that needs no device, such as `proc`.
///
/// # Errors
/// What `mount(2)` says.
pub fn special(
    kind: &str,
    owner: &str,
    target: &Path,
    data: &str,
    flags: MountFlags,
) -> io::Result<()> {
    let data = CString::new(data).map_err(io::Error::other)?;
    rustix::mount::mount(owner, target, kind, flags, data.as_c_str())?;
    Ok(())
}

/// Binds `source` onto the existing `target`, not what is mounted below it.
///
/// # Errors
/// What `mount(2)` says.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    rustix::mount::mount_bind(source, target)?;
    Ok(())
}

/// Detaches what is mounted at `target`; it goes away when its last user does. Fine if nothing is
/// mounted there.
///
/// # Errors
/// What `umount2(2)` says.
pub fn unmount_lazily(target: &Path) -> io::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// One line of a mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is mounted.
    pub target: PathBuf,
    /// Which part of the file system is mounted.
    pub root: PathBuf,
    /// Type, for example `overlay`.
    pub kind: String,
    /// Source text: a device, or the owner.
    pub source: String,
    /// The file system's own options.
    pub options: String,
}

/// Reads a table in the format of `/proc/PID/mountinfo` (see proc(5)).
pub fn parse_table(text: &str) -> Vec<Entry> {
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            let (root, target) = (left.next()?, left.next()?);
            let mut right = right.splitn(3, ' ');
            Some(Entry {
                target: unescape(target),
                root: unescape(root),
                kind: right.next()?.to_owned(),
                source: unescape(right.next()?).to_string_lossy().into_owned(),
                options: right.next().unwrap_or_default().to_owned(),
            })
        })
        .collect()
}

/// Everything mounted at or below `prefix` in this process's mount namespace, in mount order.
///
/// # Errors
/// When `/proc/self/mountinfo` cannot be read.
pub fn list(prefix: &Path) -> io::Result<Vec<Entry>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(parse_table(&table).into_iter().filter(|entry| entry.target.starts_with(prefix)).collect())
}

/// Detaches everything mounted at or below `prefix`, last mount first. Links in `prefix` are
/// followed, as the kernel did when the mounts were made.
///
/// # Errors
/// The first failure; the others are attempted all the same.
pub fn unmount_below(prefix: &Path) -> io::Result<()> {
    let prefix = std::fs::canonicalize(prefix).unwrap_or_else(|_| prefix.to_owned());
    let mut result = Ok(());
    for entry in list(&prefix)?.iter().rev() {
        let unmounted = unmount_lazily(&entry.target);
        if result.is_ok() {
            result = unmounted;
        }
    }
    result
}

/// Undoes the octal escapes of mount tables (`\040` is a space).
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|digits| bytes[at] == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        if let Some(digits) = octal {
            let value = digits.iter().fold(0u32, |sum, d| sum * 8 + u32::from(d - b'0'));
            out.push((value & 0xff) as u8);
            at += 4;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table_is_read_with_its_escapes() {
        let table = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                     40 23 0:37 / /sys/fs/cgroup rw - cgroup cgroup rw,cpu,cpuacct\n";
        let entries = parse_table(table);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].target, Path::new("/mnt 2"));
        assert_eq!(entries[0].root, Path::new("/mnt1"));
        assert_eq!(entries[0].kind, "ext3");
        assert_eq!(entries[1].options, "rw,cpu,cpuacct");
    }
}
