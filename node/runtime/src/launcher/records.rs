//! What is kept on disk, so that a dhow or a launcher that was not there learns what happened.
//!
//! Records are replaced by renaming and not synchronised: after a machine's crash there are no
//! containers whose state would matter.

use crate::spec::{ContainerState, SandboxSpec};
use dhow_kernel::cgroup::{Group, Version};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// A group's directories, as they were when it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct GroupRecord {
    name: String,
    /// Version (1 or 2) and directory.
    dirs: Vec<(u8, PathBuf)>,
}

impl From<&Group> for GroupRecord {
    fn from(group: &Group) -> Self {
        let number = |version| if version == Version::V1 { 1 } else { 2 };
        let dirs =
            group.parts.iter().map(|part| (number(part.version), part.dir.clone())).collect();
        Self { name: group.name.clone(), dirs }
    }
}

impl GroupRecord {
    pub fn group(&self) -> Group {
        let version = |number| if number == 1 { Version::V1 } else { Version::V2 };
        let dirs: Vec<_> = self.dirs.iter().map(|(v, dir)| (version(*v), dir.clone())).collect();
        Group::of_dirs(&self.name, &dirs)
    }
}

/// One container.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub state: ContainerState,
    pub group: GroupRecord,
    /// The machine's boot and the first process's start in clock ticks since: with its number they
    /// identify it.
    pub boot: String,
    pub start_ticks: u64,
}

/// One sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub spec: SandboxSpec,
    pub group: GroupRecord,
    pub boot: String,
}

/// Writes a record as a whole or not at all.
pub(super) fn store(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec(record)?)?;
    std::fs::rename(&temporary, path)
}

/// Reads a record; `None`, with a warning, if it cannot be read.
pub(super) fn load<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    let read = std::fs::read(path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
    match read {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!("record {} is of no use: {error}", path.display());
            None
        }
    }
}
