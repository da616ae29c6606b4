//! What an earlier launcher started and did not live to record: it belongs to nobody and is ended.

use super::Launcher;
use dhow_kernel::cgroup::{Group, Version};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

impl Launcher {
    /// Ends and removes every group below ours that no container and no sandbox has.
    pub(super) fn end_strays(&mut self) {
        let groups = self.containers.values().map(|container| &container.group);
        let groups = groups.chain(self.sandboxes.values().map(|sandbox| &sandbox.group));
        let groups = groups.chain(&self.device_guard);
        let known: HashSet<PathBuf> =
            groups.flat_map(|group| &group.parts).map(|part| part.dir.clone()).collect();
        let mut strays = Vec::new();
        for hierarchy in &self.cgroups.layout().hierarchies {
            let root = hierarchy.own.join(&self.cgroup);
            below(&root, hierarchy.version, &mut strays);
        }
        for (version, dir) in strays.into_iter().filter(|(_, dir)| !known.contains(dir)) {
            tracing::warn!("{} was left by an earlier launcher and is ended", dir.display());
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.bury_later(Group::of_dirs(&name, &[(version, dir)]), Vec::new());
        }
    }
}

/// The groups below `dir`, each after those below it.
fn below(dir: &Path, version: Version, found: &mut Vec<(Version, PathBuf)>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            below(&path, version, found);
            found.push((version, path));
        }
    }
}
