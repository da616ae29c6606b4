//! Container specification to process: launcher, exec, log pipes, seccomp.
//!
//! Containers are the children of a small, single-threaded *launcher* process, never of the big
//! one: forking a process with a large heap is slow, and containers have to outlive `dhow`. The
//! launcher is this same binary, started once per data directory as `dhow launcher DIR` in its own
//! session; it serves a Unix socket, writes container logs, reaps exits and keeps a record of each
//! container on disk. [`Runtime`] is the asynchronous client that the agent holds.

pub mod spec;

pub use spec::{
    ContainerSpec, ContainerState, Exit, Limits, LogSpec, Mount, MountKind, Phase, ProcessSpec,
    Rootfs, SandboxSpec, SandboxState,
};

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::sync::{broadcast, mpsc, oneshot};

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
}

/// The handle to the launcher of one data directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Runtime {}

#[allow(unused_variables, clippy::unused_async)]
impl Runtime {
    /// Connects to the launcher of `config.dir`, starting it if none answers.
    pub async fn open(config: Config) -> Result<Self, Error> {
        panic!("contract")
    }
    /// Makes a pod's namespaces (network, ipc, uts) and its cgroup; they live until removed.
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<SandboxState, Error> {
        panic!("contract")
    }
    /// Removes a sandbox: namespaces and cgroup. Its containers have to be removed before. Fine if
    /// it is not there.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        panic!("contract")
    }
    /// All sandboxes, also those made before a restart.
    pub async fn sandboxes(&self) -> Result<Vec<SandboxState>, Error> {
        panic!("contract")
    }
    /// Starts a container; returns when its program has been executed (or failed to be).
    pub async fn start(&self, spec: ContainerSpec) -> Result<ContainerState, Error> {
        panic!("contract")
    }
    /// All containers, running and ended, until they are removed.
    pub async fn containers(&self) -> Result<Vec<ContainerState>, Error> {
        panic!("contract")
    }
    /// Sends a signal to a container's first process, or to all of its processes.
    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), Error> {
        panic!("contract")
    }
    /// Removes an ended container's record, mounts and cgroup (kills it first if it runs). The
    /// writable layer and the log stay with the caller. Fine if it is not there.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        panic!("contract")
    }
    /// Runs a further process in a running container.
    pub async fn exec(
        &self,
        id: &str,
        process: ProcessSpec,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<Attached, Error> {
        panic!("contract")
    }
    /// Connects to a running container's own standard streams. Output from the moment of the call
    /// on; several may be attached at once; none slows the container down for long.
    pub async fn attach(&self, id: &str, stdin: bool) -> Result<Attached, Error> {
        panic!("contract")
    }
    /// Every container exit from now on, as `(id, exit)`.
    pub fn exits(&self) -> broadcast::Receiver<(String, Exit)> {
        panic!("contract")
    }
    /// Ends the launcher after everything was removed (`dhow down --purge`).
    pub async fn shutdown(&self) -> Result<(), Error> {
        panic!("contract")
    }
}

/// The launcher's whole life: what `dhow launcher DIR CGROUP` runs. Returns when told to shut down.
#[allow(unused_variables)]
pub fn launcher_main(dir: &Path, cgroup: &str) -> Result<(), Error> {
    panic!("contract")
}
