//! Where each controller is mounted, and where in it this process stands.

use crate::mount::{Entry, parse_table};
use std::io;
use std::path::{Path, PathBuf};

/// Which interface a hierarchy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller or set of controllers.
    V1,
    /// The unified hierarchy.
    V2,
}

/// One hierarchy that holds controllers we use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its interface.
    pub version: Version,
    /// The directory below which groups are made: this process's own group; on version 2 the root.
    pub own: PathBuf,
    /// The controllers that it holds.
    pub controllers: Vec<String>,
}

/// The hierarchies of a machine, as this process sees them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// The hierarchies with controllers we use.
    pub hierarchies: Vec<Hierarchy>,
}

/// Controllers that limit or count; `devices` is used apart (one group for all containers).
pub(super) const USED: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "devices"];

impl Layout {
    /// Reads the machine's layout.
    ///
    /// # Errors
    /// When `/proc/self/cgroup` or `/proc/self/mountinfo` cannot be read.
    pub fn detect() -> io::Result<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup")?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let available = |dir: &Path| {
            std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default()
        };
        Ok(Self::parse(&groups, &mounts, available, |dir, file| dir.join(file).exists()))
    }

    /// The layout of these texts; `available` reads a version 2 group's `cgroup.controllers`, and
    /// `has` tells whether a group has a file.
    pub fn parse(
        groups: &str,
        mounts: &str,
        available: impl Fn(&Path) -> String,
        has: impl Fn(&Path, &str) -> bool,
    ) -> Self {
        let mounts = parse_table(mounts);
        let mut hierarchies = Vec::new();
        let mut unified = None;
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(number), Some(names), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if number == "0" && names.is_empty() {
                unified = Some(path);
                continue;
            }
            let controllers: Vec<String> =
                names.split(',').filter(|name| USED.contains(name)).map(str::to_owned).collect();
            let Some(first) = controllers.first() else { continue };
            let mount = mounts.iter().find(|entry| {
                entry.kind == "cgroup" && entry.options.split(',').any(|option| option == first)
            });
            if let Some(mount) = mount {
                hierarchies.push(Hierarchy {
                    version: Version::V1,
                    own: below(mount, path),
                    controllers,
                });
            }
        }
        let mount = mounts.iter().find(|entry| entry.kind == "cgroup2");
        if let (Some(path), Some(mount)) = (unified, mount) {
            let mut own = below(mount, path);
            // A group that holds processes, as our own does, cannot hand controllers down: groups
            // with limits are made at the root, which can. What is no root (the view of a container)
            // has this file; there our own group is tried.
            if own != mount.target && !has(&mount.target, "cgroup.type") {
                own.clone_from(&mount.target);
            }
            let controllers: Vec<String> = available(&own)
                .split_whitespace()
                .filter(|name| USED.contains(name))
                .map(str::to_owned)
                .collect();
            // On a hybrid machine whose version 2 tree holds none of ours it is of no use.
            if !controllers.is_empty() || hierarchies.is_empty() {
                hierarchies.push(Hierarchy { version: Version::V2, own, controllers });
            }
        }
        Self { hierarchies }
    }

    /// Whether a controller is mounted.
    pub fn has(&self, controller: &str) -> bool {
        self.hierarchies.iter().any(|h| h.controllers.iter().any(|name| name == controller))
    }
}

/// The directory of group `path` in a mount that may show only a part of the hierarchy.
fn below(mount: &Entry, path: &str) -> PathBuf {
    let relative = Path::new(path)
        .strip_prefix(&mount.root)
        .unwrap_or_else(|_| Path::new(path).strip_prefix("/").unwrap_or(Path::new("")));
    if mount.root != Path::new("/") && !Path::new(path).starts_with(&mount.root) {
        // The mount shows another part than where we stand (a container without an own cgroup
        // namespace): its top is all that we can use.
        return mount.target.clone();
    }
    let dir = mount.target.join(relative);
    // Joining an empty path would leave a trailing slash.
    if relative.as_os_str().is_empty() { mount.target.clone() } else { dir }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
    const V2: &str = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_hybrid_machine_gives_each_controller_from_its_hierarchy() {
        let groups = "9:name=systemd:/\n8:pids:/\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/\n";
        let layout =
            Layout::parse(groups, &format!("{V1}{V2}"), |_| "hugetlb".to_owned(), |_, _| false);
        let own: Vec<_> = layout.hierarchies.iter().map(|h| h.own.to_str().unwrap()).collect();
        assert_eq!(own, ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/cpu"]);
        assert!(layout.hierarchies.iter().all(|h| h.version == Version::V1));
        assert!(layout.has("cpuacct") && !layout.has("devices"));
    }

    #[test]
    fn a_unified_machine_has_one_hierarchy_and_groups_are_made_at_its_root() {
        let mounts = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let groups = "0::/system.slice/dhow.service\n";
        let all = |_: &Path| "cpuset cpu io memory pids".to_owned();
        let layout = Layout::parse(groups, mounts, all, |_, _| false);
        assert_eq!(layout.hierarchies.len(), 1);
        assert_eq!(layout.hierarchies[0].controllers, ["cpu", "memory", "pids"]);
        assert_eq!(layout.hierarchies[0].own, Path::new("/sys/fs/cgroup"));
        // In a container the top is not the root: there the own group is what we have.
        let layout = Layout::parse(groups, mounts, all, |dir, file| {
            assert_eq!((dir, file), (Path::new("/sys/fs/cgroup"), "cgroup.type"));
            true
        });
        let own = Path::new("/sys/fs/cgroup/system.slice/dhow.service");
        assert_eq!(layout.hierarchies[0].own, own);
    }

    #[test]
    fn a_mount_of_a_part_is_followed() {
        let mounts = "35 31 0:32 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let inside =
            Layout::parse("4:memory:/docker/x/y\n", mounts, |_| String::new(), |_, _| false);
        assert_eq!(inside.hierarchies[0].own, Path::new("/sys/fs/cgroup/memory/y"));
        let top = Layout::parse("4:memory:/docker/x\n", mounts, |_| String::new(), |_, _| false);
        assert_eq!(top.hierarchies[0].own, Path::new("/sys/fs/cgroup/memory"));
    }
}
