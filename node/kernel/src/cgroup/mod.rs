//! Control groups, versions 1, hybrid and 2, behind one type.
//!
//! Groups are only ever made below the process's own group of each hierarchy; nothing else is
//! touched. On version 1 a group is one directory per hierarchy that holds a controller we use; on
//! version 2 it is one directory. A hybrid machine gives each controller from wherever it is
//! mounted.

mod devices;
mod layout;
mod system;

pub use layout::{Hierarchy, Layout, Version};
pub use system::System;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Why a group could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the group could not be used.
    #[error("cgroup {path}: {what}: {source}", path = path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The group still holds processes or groups.
    #[error("cgroup {path} is still in use: kill its processes first", path = path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// A name that would leave the process's own group.
    #[error("cgroup name {0:?} is not a relative path of plain names")]
    Name(String),
}

impl Error {
    fn io(path: &Path, what: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), what, source }
    }
}

/// Limits of one group; 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requested thousandths of a core; 0 gives the least share.
    pub cpu_request_millis: u64,
    /// Most thousandths of a core.
    pub cpu_limit_millis: u64,
    /// Most memory in bytes.
    pub memory: u64,
    /// Most processes and threads.
    pub pids: u64,
}

/// One directory of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which version its hierarchy speaks.
    pub version: Version,
    /// The directory.
    pub dir: PathBuf,
    /// The controllers that we use there.
    pub controllers: Vec<String>,
}

/// A group: its directories over all hierarchies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// Its name below the process's own group, for example `dhow-1a2b/POD/CONTAINER`.
    pub name: String,
    /// One directory per hierarchy.
    pub parts: Vec<Part>,
}

impl Group {
    /// The group that is made of these directories; for groups that were recorded on disk.
    pub fn of_dirs(name: &str, dirs: &[(Version, PathBuf)]) -> Self {
        let parts = dirs
            .iter()
            .map(|(version, dir)| Part {
                version: *version,
                dir: dir.clone(),
                controllers: Vec::new(),
            })
            .collect();
        Self { name: name.to_owned(), parts }
    }

    /// The directory for `clone3` with `CLONE_INTO_CGROUP`, where there is a version 2 part.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn clone_target(&self) -> io::Result<Option<OwnedFd>> {
        use rustix::fs::{Mode, OFlags};
        let Some(part) = self.parts.iter().find(|part| part.version == Version::V2) else {
            return Ok(None);
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Some(rustix::fs::open(&part.dir, flags, Mode::empty())?))
    }

    /// The files into which a process of one thread writes `0` to join the version 1 parts.
    ///
    /// They are those that move one thread. Since Linux 5.19 a thread that moves itself takes no
    /// lock over all processes; writing to `cgroup.procs` does, and waits about 12 ms for it when
    /// nothing has moved for a while.
    pub fn joinable(&self) -> Vec<PathBuf> {
        let v1 = self.parts.iter().filter(|part| part.version == Version::V1);
        v1.map(|part| part.dir.join("tasks")).collect()
    }
}

/// Whether every part of `name` is a plain directory name.
fn check_name(name: &str) -> Result<(), Error> {
    let plain =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if name.split('/').all(plain) { Ok(()) } else { Err(Error::Name(name.to_owned())) }
}

/// Version 1's `cpu.shares` for a request: 1024 for a core, at least 2 (as the kubelet computes it).
fn shares(millis: u64) -> u64 {
    (millis.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

/// Version 2's `cpu.weight` for a request: shares 2..262144 mapped onto 1..10000.
fn weight(millis: u64) -> u64 {
    1 + (shares(millis) - 2) * 9999 / 262_142
}

/// Microseconds of CPU per period of 100,000 for a limit; at least 1,000 and at most 44 bits, which the
/// kernel asks for.
fn quota(millis: u64) -> u64 {
    millis.saturating_mul(100).clamp(1000, (1 << 44) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_limits_become_kernel_numbers() {
        assert_eq!((shares(0), shares(250), shares(1000)), (2, 256, 1024));
        assert_eq!((weight(0), weight(1000)), (1, 39));
        assert_eq!((quota(5), quota(500)), (1000, 50_000));
        assert_eq!((shares(u64::MAX), quota(u64::MAX)), (262_144, (1 << 44) - 1));
    }

    #[test]
    fn names_stay_below_the_own_group() {
        assert!(check_name("dhow-1/a/b").is_ok());
        for bad in ["", "/a", "a/../b", "a//b", "."] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
