//! Control groups through the kernel's file system.

use super::devices::Program;
use super::layout::{Hierarchy, Layout, Version};
use super::{Error, Group, Limits, Part, check_name, quota, shares, weight};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

/// The machine's own control groups.
#[derive(Debug)]
pub struct System {
    layout: Layout,
    /// Hierarchies about which a warning was given.
    warned: Mutex<BTreeSet<String>>,
    /// The program that version 2 asks about devices; `None` when the kernel does not take it.
    devices: OnceLock<Option<Program>>,
}

impl System {
    /// Reads the machine's layout once.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn detect() -> io::Result<Self> {
        Ok(Self::of(Layout::detect()?))
    }

    /// Works on this layout.
    pub fn of(layout: Layout) -> Self {
        Self { layout, warned: Mutex::new(BTreeSet::new()), devices: OnceLock::new() }
    }

    /// The layout that it works on.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The part with its controllers, which records on disk do not name.
    fn with_controllers(&self, part: &Part) -> Part {
        let mut part = part.clone();
        if part.controllers.is_empty() {
            let mut all = self.layout.hierarchies.iter();
            let own = all.find(|h| h.version == part.version && part.dir.starts_with(&h.own));
            let of_own = own.into_iter().flat_map(|h| &h.controllers);
            // On version 2 only those that were handed down to the group have files there.
            let there = |name: &str| match part.version {
                Version::V1 => true,
                Version::V2 => std::fs::read_to_string(part.dir.join("cgroup.controllers"))
                    .is_ok_and(|all| all.split_whitespace().any(|c| c == name)),
            };
            part.controllers = of_own.filter(|c| *c != "devices" && there(c)).cloned().collect();
        }
        part
    }

    fn warn_once(&self, what: &str, error: &dyn std::fmt::Display, consequence: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(|e| e.into_inner());
        if warned.insert(what.to_owned()) {
            tracing::warn!("cgroup {what} cannot be used, {consequence}: {error}");
        }
    }

    /// Makes the directory of `name` below the own group; on version 2 hands the controllers down
    /// at each level.
    fn make(&self, hierarchy: &Hierarchy, name: &str) -> Result<Part, Error> {
        let mut dir = hierarchy.own.clone();
        let mut controllers: Vec<String> =
            hierarchy.controllers.iter().filter(|c| *c != "devices").cloned().collect();
        let whole = dir.join(name);
        // Most often only the last part is missing, and version 1 has nothing to hand down.
        if hierarchy.version == Version::V1 && std::fs::create_dir(&whole).is_ok() {
            return Ok(Part { version: hierarchy.version, dir: whole, controllers });
        }
        for part in name.split('/') {
            if hierarchy.version == Version::V2 {
                controllers.retain(|controller| self.delegate(&dir, controller));
            }
            dir.push(part);
            if let Err(error) = std::fs::create_dir(&dir)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(Error::io(&dir, "making it", error));
            }
        }
        if hierarchy.version == Version::V1 && controllers.iter().any(|c| c == "pids") {
            // One that was there may have been told to let nothing multiply ([`System::signal`]).
            let _ = write(&dir, "pids.max", "max");
        }
        Ok(Part { version: hierarchy.version, dir, controllers })
    }

    /// Hands a controller of the version 2 group `dir` down to its children.
    fn delegate(&self, dir: &Path, controller: &str) -> bool {
        let file = dir.join("cgroup.subtree_control");
        let enabled = std::fs::read_to_string(&file).unwrap_or_default();
        if enabled.split_whitespace().any(|name| name == controller) {
            return true;
        }
        match std::fs::write(&file, format!("+{controller}")) {
            Ok(()) => true,
            Err(error) => {
                self.warn_once(
                    &format!("{} controller {controller}", dir.display()),
                    &error,
                    "its limits are not kept (start dhow in a delegated group that holds nothing \
                     else, for example by systemd-run --scope -p Delegate=yes)",
                );
                false
            }
        }
    }
}

/// Whether a failure means that the hierarchy is not ours to use, rather than a mistake.
fn unusable(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if matches!(
        source.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotFound
    ))
}

fn write(dir: &Path, file: &str, value: &str) -> Result<(), Error> {
    let path = dir.join(file);
    std::fs::write(&path, value).map_err(|error| Error::io(&path, "writing it", error))
}

/// Refuses a memory limit below what is in use. Version 1 refuses it itself; version 2 would take
/// it and end processes until it holds.
fn refuse_below_use(part: &Part, limit: u64) -> Result<(), Error> {
    if part.version == Version::V1 || !part.controllers.iter().any(|c| c == "memory") {
        return Ok(());
    }
    let path = part.dir.join("memory.current");
    let used = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    let used: u64 = used.unwrap_or(0);
    if used <= limit {
        return Ok(());
    }
    let why = format!("{used} bytes are in use, more than the new limit of {limit}");
    Err(Error::io(&path, "lowering the limit of memory", std::io::Error::other(why)))
}

/// The writes of one directory's limits: file, value, and whether its absence is fine.
fn writes(part: &Part, limits: &Limits) -> Vec<(&'static str, String, bool)> {
    let has = |name: &str| part.controllers.iter().any(|controller| controller == name);
    let mut writes = Vec::new();
    match part.version {
        Version::V1 => {
            if has("cpu") {
                writes.push(("cpu.shares", shares(limits.cpu_request_millis).to_string(), false));
                if limits.cpu_limit_millis > 0 {
                    writes.push(("cpu.cfs_period_us", "100000".to_owned(), true));
                    let quota = quota(limits.cpu_limit_millis);
                    writes.push(("cpu.cfs_quota_us", quota.to_string(), true));
                }
            }
            if has("memory") && limits.memory > 0 {
                writes.push(("memory.limit_in_bytes", limits.memory.to_string(), false));
                // Without swap accounting the file is not there.
                writes.push(("memory.memsw.limit_in_bytes", limits.memory.to_string(), true));
            }
            if has("pids") && limits.pids > 0 {
                writes.push(("pids.max", limits.pids.to_string(), false));
            }
        }
        Version::V2 => {
            if has("cpu") {
                writes.push(("cpu.weight", weight(limits.cpu_request_millis).to_string(), false));
                if limits.cpu_limit_millis > 0 {
                    let quota = quota(limits.cpu_limit_millis);
                    writes.push(("cpu.max", format!("{quota} 100000"), true));
                }
            }
            if has("memory") && limits.memory > 0 {
                writes.push(("memory.max", limits.memory.to_string(), false));
                writes.push(("memory.swap.max", "0".to_owned(), true));
                writes.push(("memory.oom.group", "1".to_owned(), true));
            }
            if has("pids") && limits.pids > 0 {
                writes.push(("pids.max", limits.pids.to_string(), false));
            }
        }
    }
    writes
}

impl System {
    /// Makes a group (and its ancestors below the own group) and writes its limits. Fine if it
    /// exists. A controller that cannot be used is left out with one warning per process.
    ///
    /// # Errors
    /// When the name is bad or a directory or limit of a usable controller is refused.
    pub fn create(&self, name: &str, limits: &Limits) -> Result<Group, Error> {
        check_name(name)?;
        let mut group = Group { name: name.to_owned(), parts: Vec::new() };
        for hierarchy in &self.layout.hierarchies {
            if hierarchy.controllers.iter().all(|c| c == "devices")
                && hierarchy.version == Version::V1
            {
                continue;
            }
            match self.make(hierarchy, name) {
                Ok(part) => group.parts.push(part),
                Err(error) if unusable(&error) => self.warn_once(
                    &hierarchy.controllers.join(","),
                    &error,
                    "its limits are not kept",
                ),
                Err(error) => {
                    let _ = self.remove(&group);
                    return Err(error);
                }
            }
        }
        if let Err(error) = self.set_limits(&group, limits) {
            let _ = self.remove(&group);
            return Err(error);
        }
        Ok(group)
    }

    /// Makes a group that allows only the usual devices: null, zero, full, random, urandom, tty,
    /// terminals. `None` on version 2, where each group is told by [`System::guard_devices`].
    ///
    /// # Errors
    /// When the group cannot be made.
    pub fn create_device_guard(&self, name: &str) -> Result<Option<Group>, Error> {
        check_name(name)?;
        let Some(hierarchy) = self.layout.hierarchies.iter().find(|hierarchy| {
            hierarchy.version == Version::V1 && hierarchy.controllers.iter().any(|c| c == "devices")
        }) else {
            return Ok(None);
        };
        let made = self.make(hierarchy, name).and_then(|part| {
            write(&part.dir, "devices.deny", "a")?;
            // Making any node is allowed, using only these: the defaults of OCI runtimes.
            for rule in [
                "c *:* m",
                "b *:* m",
                "c 1:3 rwm",
                "c 1:5 rwm",
                "c 1:7 rwm",
                "c 1:8 rwm",
                "c 1:9 rwm",
                "c 5:0 rwm",
                "c 5:1 rwm",
                "c 5:2 rwm",
                "c 136:* rwm",
            ] {
                write(&part.dir, "devices.allow", rule)?;
            }
            Ok(part)
        });
        match made {
            Ok(part) => Ok(Some(Group { name: name.to_owned(), parts: vec![part] })),
            Err(error) if unusable(&error) => {
                self.warn_once("devices", &error, "containers are not kept from devices by it");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Lets a group use only the same devices, on version 2; does nothing on version 1. Where the
    /// kernel takes no such program, there is one warning, and missing `mknod` and the container's
    /// own /dev are what protects devices.
    pub fn guard_devices(&self, group: &Group) {
        // Where version 1 has the controller, its group for all does this.
        if self.layout.has("devices") {
            return;
        }
        let consequence = "containers are not kept from devices by it";
        for part in group.parts.iter().filter(|part| part.version == Version::V2) {
            let load = || {
                let loaded = Program::load();
                loaded.map_err(|error| self.warn_once("devices", &error, consequence)).ok()
            };
            let Some(program) = self.devices.get_or_init(load) else { return };
            if let Err(error) = program.attach(&part.dir) {
                self.warn_once("devices", &error, consequence);
            }
        }
    }

    /// Changes the limits of a group.
    ///
    /// # Errors
    /// When a limit is refused.
    fn set_limits(&self, group: &Group, limits: &Limits) -> Result<(), Error> {
        for part in &group.parts {
            for (file, value, optional) in writes(part, limits) {
                match write(&part.dir, file, &value) {
                    Err(error) if !(optional && unusable(&error)) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Changes the limits of a group whose processes run, upwards or downwards. Also of a group
    /// that was recorded on disk ([`Group::of_dirs`]).
    ///
    /// # Errors
    /// When a limit is refused: memory below what is in use is, and nobody is killed for it.
    pub fn change_limits(&self, group: &Group, limits: &Limits) -> Result<(), Error> {
        for part in &group.parts {
            let part = self.with_controllers(part);
            if limits.memory > 0 {
                refuse_below_use(&part, limits.memory)?;
            }
            for (file, value, optional) in writes(&part, limits) {
                let mut written = write(&part.dir, file, &value);
                if written.is_err() && file == "memory.limit_in_bytes" {
                    // Memory alone may not be more than memory and swap together: upwards, the
                    // sum goes first.
                    let _ = write(&part.dir, "memory.memsw.limit_in_bytes", &value);
                    written = write(&part.dir, file, &value);
                }
                match written {
                    Err(error) if !(optional && unusable(&error)) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The processes in a group, not those of groups below it.
    pub fn processes(&self, group: &Group) -> Vec<u32> {
        let mut all = BTreeSet::new();
        for part in &group.parts {
            let text = std::fs::read_to_string(part.dir.join("cgroup.procs")).unwrap_or_default();
            // 0 stands for a process outside of our process namespace.
            all.extend(
                text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &u32| *pid > 0),
            );
        }
        all.into_iter().collect()
    }

    /// Sends a signal to every process of a group. `SIGKILL` leaves none behind where the kernel
    /// allows (no new process can be made meanwhile).
    pub fn signal(&self, group: &Group, signal: i32) {
        if signal == libc::SIGKILL {
            for part in &group.parts {
                match part.version {
                    Version::V2 => {
                        if write(&part.dir, "cgroup.kill", "1").is_ok() {
                            return;
                        }
                    }
                    // What is to die shall not multiply meanwhile.
                    Version::V1 if part.dir.join("pids.max").exists() => {
                        let _ = write(&part.dir, "pids.max", "0");
                    }
                    Version::V1 => {}
                }
            }
        }
        for pid in self.processes(group) {
            if pid != std::process::id()
                && let Err(error) = crate::process::signal(pid, signal)
            {
                tracing::warn!("process {pid} of cgroup {}: {error}", group.name);
            }
        }
    }

    /// How many processes of the group the kernel has killed for lack of memory.
    pub fn oom_kills(&self, group: &Group) -> u64 {
        // Both files hold a line `oom_kill N`.
        let files = ["memory.oom_control", "memory.events"];
        group
            .parts
            .iter()
            .flat_map(|part| files.iter().map(move |file| part.dir.join(file)))
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .filter_map(|text| {
                text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            })
            .max()
            .unwrap_or(0)
    }

    /// Removes a group. Fine if it is gone.
    ///
    /// # Errors
    /// [`Error::Busy`] while it holds processes.
    pub fn remove(&self, group: &Group) -> Result<(), Error> {
        let mut result = Ok(());
        for part in &group.parts {
            let removed = remove_dir(&part.dir);
            if result.is_ok() {
                result = removed;
            }
        }
        result
    }

    /// Removes the group of this name and all groups below it, in every hierarchy.
    ///
    /// # Errors
    /// [`Error::Busy`] while one of them holds processes.
    pub fn remove_tree(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        let mut result = Ok(());
        for hierarchy in &self.layout.hierarchies {
            let removed = remove_below(&hierarchy.own.join(name));
            if result.is_ok() {
                result = removed;
            }
        }
        result
    }
}

fn remove_dir(dir: &Path) -> Result<(), Error> {
    match std::fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            Err(Error::Busy { path: dir.to_owned() })
        }
        Err(error) => Err(Error::io(dir, "removing it", error)),
    }
}

fn remove_below(dir: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path())?;
        }
    }
    remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(version: Version, controllers: &[&str]) -> Part {
        Part {
            version,
            dir: "/x".into(),
            controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
        }
    }

    #[test]
    fn limits_are_written_in_each_versions_words() {
        let limits =
            Limits { cpu_request_millis: 1000, cpu_limit_millis: 500, memory: 4096, pids: 7 };
        let v1: Vec<_> = writes(&part(Version::V1, &["cpu", "memory"]), &limits)
            .into_iter()
            .map(|(file, value, _)| format!("{file}={value}"))
            .collect();
        assert_eq!(
            v1,
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "memory.limit_in_bytes=4096",
                "memory.memsw.limit_in_bytes=4096",
            ]
        );
        let v2: Vec<_> = writes(&part(Version::V2, &["cpu", "memory", "pids"]), &limits)
            .into_iter()
            .map(|(file, value, _)| format!("{file}={value}"))
            .collect();
        assert!(v2.contains(&"cpu.max=50000 100000".to_owned()), "{v2:?}");
        assert!(v2.contains(&"memory.oom.group=1".to_owned()), "{v2:?}");
        assert!(v2.contains(&"pids.max=7".to_owned()), "{v2:?}");
    }

    #[test]
    fn a_group_is_made_limited_and_removed_on_this_machine() {
        let cgroups = System::detect().unwrap();
        let name = format!("dhow-test-{}", std::process::id());
        let limits = Limits { memory: 64 << 20, pids: 10, ..Limits::default() };
        let group = cgroups.create(&format!("{name}/pod/one"), &limits).unwrap();
        assert!(!group.parts.is_empty());
        let (cpu_request_millis, cpu_limit_millis) = (u64::MAX, u64::MAX);
        let boundless = Limits { cpu_request_millis, cpu_limit_millis, ..Limits::default() };
        cgroups.create(&format!("{name}/pod/boundless"), &boundless).unwrap();
        assert!(cgroups.processes(&group).is_empty());
        assert_eq!(cgroups.oom_kills(&group), 0);
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        for part in &group.parts {
            std::fs::write(part.dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        assert_eq!(cgroups.processes(&group), [child.id()]);
        assert!(matches!(cgroups.remove(&group), Err(Error::Busy { .. })));
        cgroups.signal(&group, libc::SIGKILL);
        child.wait().unwrap();
        cgroups.remove_tree(&name).unwrap();
        assert!(group.parts.iter().all(|part| !part.dir.exists()));
    }
}
