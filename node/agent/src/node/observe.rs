//! What the machine has: processors, memory, disk, kernel.

use std::fs;
use std::path::Path;

/// What a machine has. It does not change while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Processors in thousandths.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Size of the disk that holds the data directory, bytes.
    pub storage: u64,
    /// Processes and threads that one pod may have.
    pub pids_of_pod: u64,
    /// `Linux` release, for example `6.1.0`.
    pub kernel: String,
    /// Name of the distribution.
    pub os_image: String,
    /// Architecture in Go's words.
    pub architecture: String,
    /// Of this installation.
    pub machine_id: String,
    /// Of the hardware.
    pub system_uuid: String,
    /// Of this boot.
    pub boot_id: String,
}

/// What the machine has less of as time goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// Memory that can be had without swapping is short.
    pub memory: bool,
    /// The disk of the data directory is nearly full.
    pub disk: bool,
    /// Process numbers are short.
    pub pid: bool,
}

/// With so much space left, in bytes, no disk counts as short, however large it is.
const SPACE_LEAST: u64 = 1 << 30;

/// How much is left of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Disk {
    /// Bytes in all, and those that pods can still use.
    pub space: (u64, u64),
    /// The same of files.
    pub files: (u64, u64),
}

impl Disk {
    /// The disk that holds a directory; `None` when the kernel does not tell.
    pub fn of(directory: &Path) -> Option<Self> {
        let d = rustix::fs::statvfs(directory).ok()?;
        let space = (d.f_blocks * d.f_frsize, d.f_bavail * d.f_frsize);
        Some(Self { space, files: (d.f_files, d.f_favail) })
    }

    /// Pods are sent away when fewer bytes are left. Upstream's tenth is a lot of a large disk, which
    /// others use as well: a twentieth here, and no more than [`SPACE_LEAST`].
    pub fn threshold(&self) -> u64 {
        (self.space.0 / 20).min(SPACE_LEAST)
    }

    /// Whether space or files run out.
    pub fn is_short(&self) -> bool {
        self.space.1 < self.threshold() || self.files.1 < self.files.0 / 20
    }
}

/// Less available memory than this is pressure, as upstream's default eviction threshold.
const MEMORY_LEAST: u64 = 100 << 20;
/// Most processes and threads of one pod, however many the machine may have.
const PIDS_OF_POD: u64 = 16 << 10;

fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn meminfo(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let found = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    let kib: u64 = found.and_then(|v| v.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    kib * 1024
}

/// `PRETTY_NAME` of an `os-release` file.
fn pretty_name(text: &str) -> String {
    let found = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    found.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// Looks at the machine. `data` is the directory whose disk counts; it has to exist.
pub fn facts(data: &Path) -> Facts {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let disk = rustix::fs::statvfs(data).ok();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let machine_id = line("/etc/machine-id");
    let boot_id = line("/proc/sys/kernel/random/boot_id");
    let uuid = line("/sys/class/dmi/id/product_uuid").to_lowercase();
    Facts {
        cpu_millis: cpus * 1000,
        memory: meminfo("MemTotal"),
        storage: disk.map_or(0, |d| d.f_blocks * d.f_frsize),
        pids_of_pod: pids_of_pod(),
        kernel: line("/proc/sys/kernel/osrelease"),
        os_image: pretty_name(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        architecture: architecture.to_owned(),
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        boot_id,
    }
}

/// A pod that forks without end is to leave the machine, and other pods, the numbers of processes
/// that they need. No machine has so many that one pod could use them all in earnest.
fn pids_of_pod() -> u64 {
    let most = ["pid_max", "threads-max"]
        .iter()
        .filter_map(|name| line(&format!("/proc/sys/kernel/{name}")).parse::<u64>().ok())
        .min();
    most.map_or(0, |most| (most / 4).clamp(1, PIDS_OF_POD))
}

/// Looks at what is short now.
pub fn pressure(data: &Path) -> Pressure {
    let disk = Disk::of(data).is_some_and(|disk| disk.is_short());
    let available = meminfo("MemAvailable");
    let most: u64 = line("/proc/sys/kernel/pid_max").parse().unwrap_or(0);
    let loads = line("/proc/loadavg");
    let running =
        loads.split_whitespace().nth(3).and_then(|f| f.split('/').nth(1)?.parse::<u64>().ok());
    Pressure {
        memory: available > 0 && available < MEMORY_LEAST,
        disk,
        pid: most > 0 && running.is_some_and(|n| n > most - most / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something() {
        let facts = facts(Path::new("/"));
        assert!(facts.cpu_millis >= 1000 && facts.memory > 1 << 20 && facts.storage > 0);
        assert!(!facts.kernel.is_empty() && !facts.boot_id.is_empty());
    }

    #[test]
    fn a_disk_is_short_of_space_or_of_files() {
        let disk = |space, files| Disk { space: (1000, space), files };
        assert!(!disk(50, (100, 5)).is_short());
        assert!(disk(49, (100, 5)).is_short());
        assert!(disk(50, (100, 4)).is_short());
        // A large one has room while others use most of it.
        assert!(!Disk { space: (1 << 40, 2 << 30), files: (0, 0) }.is_short());
        assert!(Disk { space: (1 << 40, 1 << 29), files: (0, 0) }.is_short());
        // Some file systems make as many as it takes.
        assert!(!disk(50, (0, 0)).is_short());
    }

    #[test]
    fn the_distributions_name_is_found() {
        assert_eq!(pretty_name("ID=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(pretty_name(""), "Linux");
    }
}
