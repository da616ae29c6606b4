//! The container's file systems, made in its own mount namespace.
//!
//! What comes from the machine is cloned into detached mounts first; then the root is changed;
//! everything else happens inside, so that a symbolic link in an image cannot lead outside.

use super::{Fault, at};
use crate::spec::{ContainerSpec, Mount, MountKind, Rootfs};
use dhow_kernel::cgroup::Group;
use dhow_kernel::mount::{self, Attributes, Propagation};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags, UnmountFlags};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Hidden from containers that are not privileged, as container engines do.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Read-only in containers that are not privileged.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Name, mode and numbers of the devices that every container has.
const DEVICES: [(&str, u32, u32, u32); 6] = [
    ("null", 0o666, 1, 3),
    ("zero", 0o666, 1, 5),
    ("full", 0o666, 1, 7),
    ("random", 0o666, 1, 8),
    ("urandom", 0o666, 1, 9),
    ("tty", 0o666, 5, 0),
];

/// Targets, relative to /dev, and texts of its symbolic links.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// A mount of the specification whose source has been taken from the machine.
struct Prepared<'a> {
    mount: &'a Mount,
    /// The detached mount and whether it is a directory; `None` for a tmpfs.
    bind: Option<(OwnedFd, bool)>,
}

/// A device node of the machine, for privileged containers.
struct Device {
    path: PathBuf,
    kind: FileType,
    mode: u32,
    number: u64,
}

/// Builds the root and changes to it. On return the machine's file systems are out of reach.
///
/// `staging` is any directory of the machine; it is covered in this namespace only. `shm` is the
/// pod's shared memory, if the container belongs to a pod.
pub(super) fn enter(
    spec: &ContainerSpec,
    staging: &Path,
    shm: Option<&Path>,
    group: &Group,
) -> Result<(), Fault> {
    let owner = format!("dhow:{}", spec.id);
    // Nothing that is mounted from here on travels back to the machine.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(at("making the mounts private"))?;

    let root = root(spec, &owner)?;
    let prepared = spec.mounts.iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
    let cgroups = cgroups(spec, group)?;
    let shm =
        shm.map(|shm| mount::bind_clone(shm, false)).transpose().map_err(at("shared memory"))?;
    let devices = if spec.privileged { host_devices(Path::new("/dev")) } else { Vec::new() };

    mount::attach(&root, staging).map_err(at("attaching the root file system"))?;
    rustix::process::chdir(staging).map_err(at("entering the root file system"))?;
    rustix::process::pivot_root(".", ".").map_err(at("pivot_root"))?;
    // The old root is on top of the new one now, and the working directory is in it.
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(at("leaving the machine's root"))?;
    rustix::process::chdir("/").map_err(at("entering the root file system"))?;

    standard(spec, &owner, shm, cgroups, &devices)?;
    for one in prepared {
        attach(one, &owner)?;
    }
    if !spec.privileged {
        protect(&owner)?;
    }
    if spec.read_only_rootfs {
        let attributes = Attributes {
            set: MountAttrFlags::MOUNT_ATTR_RDONLY,
            propagation: Propagation::Keep,
            recursive: false,
        };
        mount::set_attributes(root.as_fd(), attributes)
            .map_err(at("making the root file system read-only"))?;
    }
    Ok(())
}

/// Changes to an empty root that cannot be written. `staging` is covered in this namespace only.
pub(super) fn leave(staging: &Path) -> Result<(), Fault> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(at("making the mounts private"))?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount::tmpfs(staging, "dhow:init", 4096, 0o555, flags).map_err(at("making an empty root"))?;
    rustix::process::chdir(staging).map_err(at("entering the empty root"))?;
    rustix::process::pivot_root(".", ".").map_err(at("pivot_root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(at("leaving the machine's root"))?;
    rustix::process::chdir("/").map_err(at("entering the empty root"))
}

/// The detached root file system.
fn root(spec: &ContainerSpec, owner: &str) -> Result<OwnedFd, Fault> {
    match &spec.rootfs {
        Rootfs::Overlay { lower, writable } => {
            let (upper, work) = (writable.join("upper"), writable.join("work"));
            // The mark of an earlier use, which the kernel would refuse.
            match std::fs::remove_dir_all(&work) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(at(format!("emptying {}", work.display()))(error));
                }
                _ => {}
            }
            let mut builder = std::fs::DirBuilder::new();
            for dir in [&upper, &work] {
                builder
                    .recursive(true)
                    .mode(0o755)
                    .create(dir)
                    .map_err(at(format!("making {}", dir.display())))?;
            }
            mount::overlay(lower, &upper, &work, owner).map_err(at("mounting the overlay"))
        }
        Rootfs::Directory(dir) => {
            let what = format!("binding {}", dir.display());
            let tree = mount::bind_clone(dir, true).map_err(at(&what))?;
            let attributes = Attributes {
                set: MountAttrFlags::empty(),
                propagation: Propagation::Private,
                recursive: true,
            };
            mount::set_attributes(tree.as_fd(), attributes).map_err(at(&what))?;
            Ok(tree)
        }
    }
}

fn prepare(mount: &Mount) -> Result<Prepared<'_>, Fault> {
    let bind = match &mount.kind {
        MountKind::Tmpfs { .. } => None,
        MountKind::Bind(source) => {
            let what = || format!("mounting {} at {}", source.display(), mount.target.display());
            let directory = std::fs::metadata(source).map_err(at(what()))?.is_dir();
            let tree = mount::bind_clone(source, true).map_err(at(what()))?;
            let attributes = Attributes {
                set: if mount.read_only {
                    MountAttrFlags::MOUNT_ATTR_RDONLY
                } else {
                    MountAttrFlags::empty()
                },
                propagation: if mount.propagate {
                    Propagation::Slave
                } else {
                    Propagation::Private
                },
                recursive: true,
            };
            mount::set_attributes(tree.as_fd(), attributes).map_err(at(what()))?;
            Some((tree, directory))
        }
    };
    Ok(Prepared { mount, bind })
}

/// Detached mounts of the container's own groups, by the name under `/sys/fs/cgroup` (empty for the
/// unified one).
fn cgroups(spec: &ContainerSpec, group: &Group) -> Result<Vec<(String, OwnedFd)>, Fault> {
    use dhow_kernel::cgroup::Version;
    let mut mounts = Vec::new();
    let hybrid = group.parts.iter().any(|part| part.version == Version::V1);
    for part in &group.parts {
        let name = match part.version {
            Version::V1 => part.controllers.join(","),
            Version::V2 if hybrid => "unified".to_owned(),
            Version::V2 => String::new(),
        };
        let tree = mount::bind_clone(&part.dir, false).map_err(at("binding the cgroup"))?;
        let mut set = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        if !spec.privileged {
            set |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        let attributes = Attributes { set, propagation: Propagation::Private, recursive: false };
        mount::set_attributes(tree.as_fd(), attributes).map_err(at("binding the cgroup"))?;
        mounts.push((name, tree));
    }
    Ok(mounts)
}

/// Every device node below the machine's /dev, but terminals and what is mounted apart.
fn host_devices(dir: &Path) -> Vec<Device> {
    let mut devices = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = entry.metadata() else { continue };
        let kind = metadata.file_type();
        if kind.is_dir() {
            if !["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"]
                .iter()
                .any(|p| path == Path::new(p))
            {
                devices.extend(host_devices(&path));
            }
        } else if (kind.is_char_device() || kind.is_block_device())
            && path != Path::new("/dev/console")
            && path != Path::new("/dev/ptmx")
        {
            let kind = if kind.is_block_device() {
                FileType::BlockDevice
            } else {
                FileType::CharacterDevice
            };
            devices.push(Device {
                path,
                kind,
                mode: metadata.mode() & 0o777,
                number: metadata.rdev(),
            });
        }
    }
    devices
}

/// The mounts that every container has.
fn standard(
    spec: &ContainerSpec,
    owner: &str,
    shm: Option<OwnedFd>,
    cgroups: Vec<(String, OwnedFd)>,
    devices: &[Device],
) -> Result<(), Fault> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let special = |kind: &str, path: &str, data: &str, flags: MountFlags| {
        directory(Path::new(path))
            .and_then(|()| mount::special(kind, owner, Path::new(path), data, flags))
            .map_err(at(format!("mounting {path}")))
    };
    special("proc", "/proc", "", safe)?;
    let read_only = if spec.privileged { MountFlags::empty() } else { MountFlags::RDONLY };
    special("sysfs", "/sys", "", safe | read_only)?;
    special("tmpfs", "/dev", "mode=755,size=65536k", MountFlags::NOSUID | MountFlags::STRICTATIME)?;
    special(
        "devpts",
        "/dev/pts",
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
        MountFlags::NOSUID | MountFlags::NOEXEC,
    )?;
    special("mqueue", "/dev/mqueue", "", safe)?;
    match shm {
        Some(tree) => directory(Path::new("/dev/shm"))
            .and_then(|()| mount::attach(&tree, Path::new("/dev/shm")))
            .map_err(at("mounting /dev/shm"))?,
        None => special("tmpfs", "/dev/shm", "mode=1777,size=65536k", safe)?,
    }
    for (name, mode, major, minor) in DEVICES {
        node(
            &Path::new("/dev").join(name),
            FileType::CharacterDevice,
            mode,
            rustix::fs::makedev(major, minor),
        )?;
    }
    for device in devices {
        if let Some(parent) = device.path.parent() {
            directory(parent).map_err(at(format!("making {}", parent.display())))?;
        }
        node(&device.path, device.kind, device.mode, device.number)?;
    }
    for (target, link) in LINKS {
        rustix::fs::symlink(target, link).map_err(at(format!("making {link}")))?;
    }
    if !cgroups.is_empty() && std::fs::exists("/sys/fs/cgroup").unwrap_or(false) {
        let top = Path::new("/sys/fs/cgroup");
        let what = "mounting /sys/fs/cgroup";
        if cgroups.iter().any(|(name, _)| !name.is_empty()) {
            mount::tmpfs(top, owner, 65536, 0o755, safe).map_err(at(what))?;
        }
        for (name, tree) in &cgroups {
            let target = if name.is_empty() { top.to_owned() } else { top.join(name) };
            directory(&target).and_then(|()| mount::attach(tree, &target)).map_err(at(what))?;
        }
        if !spec.privileged && cgroups.iter().any(|(name, _)| !name.is_empty()) {
            rustix::mount::mount_remount(top, MountFlags::BIND | MountFlags::RDONLY | safe, c"")
                .map_err(at(what))?;
        }
    }
    Ok(())
}

fn node(path: &Path, kind: FileType, mode: u32, number: u64) -> Result<(), Fault> {
    match rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode), number) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(at(format!("making {}", path.display()))(errno)),
    }
}

/// Attaches a mount of the specification.
fn attach(prepared: Prepared<'_>, owner: &str) -> Result<(), Fault> {
    let target = prepared.mount.target.as_path();
    let what = || match &prepared.mount.kind {
        MountKind::Bind(source) => format!("mounting {} at {}", source.display(), target.display()),
        MountKind::Tmpfs { .. } => format!("mounting a tmpfs at {}", target.display()),
    };
    if !target.is_absolute() {
        return Err(Fault::new(what(), "the path in the container has to be absolute"));
    }
    match (&prepared.mount.kind, prepared.bind) {
        (MountKind::Tmpfs { size, mode }, _) => {
            directory(target).map_err(at(what()))?;
            let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
            if prepared.mount.read_only {
                flags |= MountFlags::RDONLY;
            }
            mount::tmpfs(target, owner, *size, *mode, flags).map_err(at(what()))
        }
        (_, Some((tree, true))) => {
            directory(target).and_then(|()| mount::attach(&tree, target)).map_err(at(what()))
        }
        (_, Some((tree, false))) => {
            file(target).and_then(|()| mount::attach(&tree, target)).map_err(at(what()))
        }
        // `prepare` has made a tree of every bind.
        (MountKind::Bind(_), None) => Err(Fault::new(what(), "its source was not prepared")),
    }
}

/// Hides and write-protects what tells too much about the machine or changes it.
fn protect(owner: &str) -> Result<(), Fault> {
    for path in READ_ONLY {
        let path = Path::new(path);
        let tree = match mount::bind_clone(path, true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            tree => tree.map_err(at(format!("protecting {}", path.display())))?,
        };
        let attributes = Attributes {
            set: MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC,
            propagation: Propagation::Keep,
            recursive: true,
        };
        mount::set_attributes(tree.as_fd(), attributes)
            .and_then(|()| mount::attach(&tree, path))
            .map_err(at(format!("protecting {}", path.display())))?;
    }
    let mut empty: Option<PathBuf> = None;
    for path in MASKED {
        let target = Path::new(path);
        let Ok(metadata) = std::fs::metadata(target) else { continue };
        let masked = if !metadata.is_dir() {
            mount::bind(Path::new("/dev/null"), target)
        } else if let Some(empty) = &empty {
            mount::bind(empty, target)
        } else {
            empty = Some(target.to_owned());
            mount::tmpfs(target, owner, 4096, 0o755, MountFlags::RDONLY)
        };
        masked.map_err(at(format!("masking {path}")))?;
    }
    Ok(())
}

/// Makes a directory and its parents; symbolic links on the way are followed, in the container,
/// also where they lead to nothing yet.
pub(super) fn directory(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    // Most often only the last part is missing.
    if builder.mode(0o755).create(path).is_ok() {
        return Ok(());
    }
    builder.recursive(true).create(follow(path)?)
}

/// Makes an empty file, if nothing is there, and its parent directories.
fn file(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path).is_ok() {
        return Ok(());
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o644);
    // Most often only the last part is missing.
    if options.open(path).is_ok() {
        return Ok(());
    }
    let path = follow(path)?;
    if let Some(parent) = path.parent() {
        directory(parent)?;
    }
    options.create_new(false).create(true).truncate(false).open(path).map(|_| ())
}

/// The path without symbolic links, whether it exists or not.
fn follow(path: &Path) -> io::Result<PathBuf> {
    use std::path::Component;
    let split = |path: &Path| -> Vec<PathBuf> {
        path.components().rev().map(|part| PathBuf::from(part.as_os_str())).collect()
    };
    let mut found = PathBuf::from("/");
    let mut rest = split(path);
    let mut links = 0;
    while let Some(part) = rest.pop() {
        match part.components().next() {
            Some(Component::RootDir) => found = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(found.pop()),
            Some(Component::Normal(name)) => match std::fs::read_link(found.join(name)) {
                Ok(target) => {
                    links += 1;
                    // As many as the kernel follows.
                    if links > 40 {
                        return Err(rustix::io::Errno::LOOP.into());
                    }
                    rest.extend(split(&target));
                }
                Err(_) => found.push(name),
            },
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_to_where_nothing_is_yet() {
        let dir = std::env::temp_dir().canonicalize().unwrap();
        let dir = dir.join(format!("dhow-follow-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("real")).unwrap();
        std::os::unix::fs::symlink("../new/place", dir.join("real/dangling")).unwrap();
        std::os::unix::fs::symlink("loop", dir.join("loop")).unwrap();
        assert_eq!(follow(&dir.join("real/dangling/x")).unwrap(), dir.join("new/place/x"));
        assert!(follow(&dir.join("loop")).is_err());
        directory(&dir.join("real/dangling/x")).unwrap();
        assert!(dir.join("new/place/x").is_dir());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
