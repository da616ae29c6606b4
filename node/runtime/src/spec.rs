//! What to run: the words between the agent, the builder and the launcher.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a process in a container may do when nobody asks for more or less: Docker's default set.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// A pod's shared namespaces and cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Identifier, unique; the pod's uid.
    pub id: String,
    /// Host name, set in the UTS namespace.
    pub hostname: String,
    /// Use the machine's network namespace instead of an own one.
    pub host_network: bool,
    /// Use the machine's IPC namespace.
    pub host_ipc: bool,
    /// Sysctls to set in the sandbox's namespaces (`net.*`, `kernel.shm*`, `kernel.msg*`).
    pub sysctls: BTreeMap<String, String>,
    /// Limits of the whole pod, the sum over its containers.
    pub limits: Limits,
    /// Free text for people and for recovery: namespace, name.
    pub labels: BTreeMap<String, String>,
}

/// A sandbox that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    /// What was asked for.
    pub spec: SandboxSpec,
    /// A path that `setns` and netlink can open for the network namespace; `None` for the
    /// machine's.
    pub netns: Option<PathBuf>,
}

/// Resource limits, translated to whichever cgroup version the machine has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Relative share: Kubernetes' millicores of request; 0 for the least share.
    pub cpu_request_millis: u64,
    /// Hard limit in millicores; 0 for none.
    pub cpu_limit_millis: u64,
    /// Hard limit in bytes; 0 for none.
    pub memory_limit: u64,
    /// Most processes and threads; 0 for none.
    pub pids_limit: u64,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rootfs {
    /// An overlay of read-only directories, topmost first, under one writable directory. What is
    /// written there is not forced to the disk (`fsync` does nothing): it outlives the container and
    /// every process, but not a crash of the machine. What has to goes into a volume.
    Overlay {
        /// Layers, topmost first, not empty.
        lower: Vec<PathBuf>,
        /// Directory (made if missing) in which `upper` and `work` are kept; the caller removes it.
        writable: PathBuf,
    },
    /// This directory, as it is.
    Directory(PathBuf),
}

/// How a mount is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A recursive bind of a path of the machine; a file binds onto a file.
    Bind(PathBuf),
    /// A tmpfs of at most so many bytes (0: the kernel's default) and this mode.
    Tmpfs {
        /// Size in bytes.
        size: u64,
        /// Mode bits, for example 0o1777.
        mode: u32,
    },
}

/// One mount, made in the given order after the standard ones (proc, sysfs, dev, devpts, mqueue,
/// shm, cgroup).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container; made if missing.
    pub target: PathBuf,
    /// How.
    pub kind: MountKind,
    /// Read only.
    pub read_only: bool,
    /// Mounts made later on the machine appear in the container (`mountPropagation`).
    pub propagate: bool,
}

/// A process in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments, not empty. Looked up in the container's PATH if it has no slash.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; made if missing; empty means `/`.
    pub cwd: String,
    /// `user[:group]` by name or number, resolved in the container's /etc/passwd and /etc/group;
    /// empty means root.
    pub user: String,
    /// Overrides the user's number.
    pub uid: Option<u32>,
    /// Overrides the group's number.
    pub gid: Option<u32>,
    /// Further groups.
    pub supplementary_groups: Vec<u32>,
    /// Leave out the groups that the container's /etc/group has the user in.
    #[serde(default)]
    pub no_image_groups: bool,
    /// Refuse to run as uid 0.
    pub must_not_be_root: bool,
    /// Capability names without `CAP_`, in all of the sets that the user allows.
    pub capabilities: Vec<String>,
    /// Forbid gaining privileges by exec.
    pub no_new_privileges: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// First size of the terminal (columns, rows).
    pub size: Option<(u16, u16)>,
    /// Apply the default seccomp profile.
    pub seccomp: bool,
}

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpec {
    /// File in the CRI log format (`2026-01-02T03:04:05.123456789Z stdout F text`); its directory
    /// exists.
    pub path: PathBuf,
    /// Rotate at this size in bytes (`path` becomes `path.1`, and so on).
    pub max_size: u64,
    /// Keep so many files, the current one included.
    pub max_files: u32,
}

/// A container to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Identifier, unique: 64 hexadecimal digits or any file-name-safe text.
    pub id: String,
    /// The sandbox whose namespaces it joins; `None` makes own ones (network: none but loopback).
    pub sandbox: Option<String>,
    /// Root file system.
    pub rootfs: Rootfs,
    /// Mount the root file system read-only.
    pub read_only_rootfs: bool,
    /// The first process.
    pub process: ProcessSpec,
    /// Host name when there is no sandbox.
    pub hostname: String,
    /// Further mounts.
    pub mounts: Vec<Mount>,
    /// Resource limits.
    pub limits: Limits,
    /// Kernel preference for out-of-memory victims, -1000 to 1000.
    pub oom_score_adj: i32,
    /// All devices, no masked paths, all capabilities, writable sysfs.
    pub privileged: bool,
    /// Use the machine's process namespace.
    pub host_pid: bool,
    /// Join the process namespace of this container.
    pub pid_of: Option<String>,
    /// Join the process namespace of the sandbox, whose first process is an init of the launcher's
    /// that only reaps; made for the first container that asks for it.
    #[serde(default)]
    pub sandbox_pid: bool,
    /// Keep standard input open for attach.
    pub stdin: bool,
    /// Close standard input when the first attach that wrote to it ends.
    pub stdin_once: bool,
    /// Keep the newest output for the first attach, which is on its way.
    #[serde(default)]
    pub keep_early: bool,
    /// Where output goes; `None` discards it (attach still sees it).
    pub log: Option<LogSpec>,
    /// Free text for people and for recovery: namespace, pod, container, attempt, image.
    pub labels: BTreeMap<String, String>,
    /// Hold output until the first attach has connected (`dhow run` without losing a byte).
    pub wait_for_attach: bool,
    /// End and remove it when the client that started it is gone, whatever ended that one.
    #[serde(default)]
    pub with_client: bool,
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Its first process runs.
    Running,
    /// Its first process has ended.
    Exited,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// The signal that ended it, 0 for none.
    pub signal: i32,
    /// The kernel ended it for going over its memory limit.
    pub oom: bool,
    /// When, nanoseconds since the epoch.
    pub at: i128,
}

/// A container that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// What was asked for.
    pub spec: ContainerSpec,
    /// Where it stands.
    pub phase: Phase,
    /// The first process's number on the machine.
    pub pid: u32,
    /// When it started, nanoseconds since the epoch.
    pub started_at: i128,
    /// How it ended, once it has.
    pub exit: Option<Exit>,
}
