//! Container specification to process: launcher, exec, log pipes, seccomp.
//!
//! Containers are the children of a small, single-threaded *launcher* process, never of the big
//! one: forking a process with a large heap is slow, and containers have to outlive `dhow`. The
//! launcher is this same binary, started once per data directory as `dhow launcher DIR` in its own
//! session; it serves a Unix socket, writes container logs, reaps exits and keeps a record of each
//! container on disk. [`Runtime`] is the asynchronous client that the agent holds.

#![allow(unsafe_code)]

mod child;
mod client;
mod launcher;
pub mod spec;
mod wire;

pub use client::Runtime;
pub use spec::{
    ContainerSpec, ContainerState, DEFAULT_CAPABILITIES, Exit, Limits, LogSpec, Mount, MountKind,
    Phase, ProcessSpec, Rootfs, SandboxSpec, SandboxState,
};

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};

/// Why the runtime failed. Each text names the container and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container or sandbox is not known.
    #[error("{0} does not exist")]
    NotFound(String),
    /// One of that identifier exists already.
    #[error("{0} exists already")]
    Exists(String),
    /// The process could not be started: `step` failed.
    #[error("container {id} cannot start: {step}: {cause}")]
    CannotStart {
        /// The container.
        id: String,
        /// What was being done, for example `exec /app`.
        step: String,
        /// What the kernel said.
        cause: String,
    },
    /// The launcher is gone or does not answer.
    #[error("launcher: {0}")]
    Launcher(String),
    /// Input or output failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl Error {
    /// The exit code by which container engines report that a program could not be started: 127 if
    /// it was not found, 126 if it could not be executed, 128 for everything else.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::CannotStart { step, cause, .. } if step == "exec" => {
                let missing = ["executable file not found", "no such file or directory"];
                if missing.iter().any(|text| cause.contains(text)) { 127 } else { 126 }
            }
            _ => 128,
        }
    }
}

/// Where the runtime lives.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory for sockets, records and namespaces, for example `DATA/run`.
    pub dir: PathBuf,
    /// The program to start as launcher: this binary.
    pub binary: PathBuf,
    /// Name of the cgroup that holds everything, unique per data directory, for example
    /// `dhow-1a2b3c`. Made below the process's own cgroup in each controller.
    pub cgroup: String,
}

/// A live process started by [`Runtime::exec`], or a connection to a container's own.
#[derive(Debug)]
pub struct Attached {
    /// Write end of its standard input, if asked for.
    pub stdin: Option<OwnedFd>,
    /// Read end of its standard output (or the terminal's master).
    pub stdout: Option<OwnedFd>,
    /// Read end of its standard error.
    pub stderr: Option<OwnedFd>,
    /// Takes terminal sizes (columns, rows).
    pub resize: Option<mpsc::Sender<(u16, u16)>>,
    /// How it ended.
    pub exit: oneshot::Receiver<Exit>,
    /// Names the process for [`Runtime::kill_exec`]; 0 for a container's own.
    pub exec: u64,
}

/// The launcher's whole life: what `dhow launcher DIR CGROUP` runs, before anything else is started
/// in the process (no thread, no asynchronous runtime).
///
/// Returns once a launcher serves `dir`: the process that calls this makes the one that stays, in
/// its own session, and that one ends by itself when it is told to shut down. It also returns when
/// another launcher serves the directory already.
///
/// # Errors
/// When the directory, the lock or the socket cannot be used, or the kernel refuses a step.
pub fn launcher_main(dir: &Path, cgroup: &str) -> Result<(), Error> {
    launcher::main(dir, cgroup)
}
