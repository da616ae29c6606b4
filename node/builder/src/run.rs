//! Commands of `RUN`, in containers of the machine's runtime.

use crate::Error;
use dhow_runtime::{
    Config, ContainerSpec, Exit, Limits, Mount, MountKind, ProcessSpec, Rootfs, Runtime,
};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;

/// Where a script of a here-document is seen in the container. `/dev` is not part of the layer.
pub(crate) const SCRIPT: &str = "/dev/dhow-run";

/// The runtime, connected to when the first command needs it.
#[derive(Debug)]
pub(crate) struct Launcher {
    config: Config,
    runtime: Option<Runtime>,
    /// None ran before.
    ours: bool,
}

impl Launcher {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, runtime: None, ours: false }
    }

    /// Whether a launcher serves the directory.
    async fn runs(&self) -> bool {
        // Socket addresses are short; directories are not.
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::open(&self.config.dir, flags, rustix::fs::Mode::empty()) else {
            return false;
        };
        let path = format!("/proc/self/fd/{}/launcher.sock", dir.as_raw_fd());
        tokio::net::UnixStream::connect(path).await.is_ok()
    }

    pub(crate) async fn runtime(&mut self) -> Result<Runtime, Error> {
        if let Some(runtime) = &self.runtime {
            return Ok(runtime.clone());
        }
        self.ours = !self.runs().await;
        let runtime = Runtime::open(self.config.clone()).await?;
        self.runtime = Some(runtime.clone());
        Ok(runtime)
    }

    /// Removes the containers of a build that was killed, if a launcher still has any.
    pub(crate) async fn remove_containers(&mut self, prefix: &str) -> Result<(), Error> {
        if !self.runs().await {
            return Ok(());
        }
        let runtime = self.runtime().await?;
        for container in runtime.containers().await? {
            if container.spec.id.starts_with(prefix) {
                runtime.remove(&container.spec.id).await?;
            }
        }
        Ok(())
    }

    /// Ends the launcher if it was started here and nobody else uses it by now.
    pub(crate) async fn close(self) {
        let Some(runtime) = self.runtime.filter(|_| self.ours) else { return };
        let idle = match (runtime.containers().await, runtime.sandboxes().await) {
            (Ok(containers), Ok(sandboxes)) => containers.is_empty() && sandboxes.is_empty(),
            _ => false,
        };
        if idle && let Err(error) = runtime.shutdown().await {
            tracing::warn!("the launcher that the build started: {error}");
        }
    }
}

/// One command.
#[derive(Debug)]
pub(crate) struct Job {
    /// Identifier, unique.
    pub(crate) id: String,
    /// Layers, topmost first.
    pub(crate) lower: Vec<PathBuf>,
    /// Directory with `upper` and `work`.
    pub(crate) writable: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) directory: String,
    pub(crate) user: String,
    /// A file to show as [`SCRIPT`].
    pub(crate) script: Option<PathBuf>,
}

/// Runs a command to its end and removes its container, whatever happens.
pub(crate) async fn run(
    runtime: &Runtime,
    job: Job,
    stop: &watch::Receiver<bool>,
    output: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<Exit, Error> {
    let (id, lower, upper) = (job.id.clone(), job.lower.clone(), job.writable.join("upper"));
    let result = tokio::select! {
        result = to_the_end(runtime, spec(job), output) => result,
        () = stopped(stop) => Err(Error::Stopped),
    };
    let removed = runtime.remove(&id).await;
    let exit = result?;
    removed?;
    remove_mount_points(&lower, &upper);
    Ok(exit)
}

fn spec(job: Job) -> ContainerSpec {
    let script = job.script.map(|path| Mount {
        target: PathBuf::from(SCRIPT),
        kind: MountKind::Bind(path),
        read_only: true,
        propagate: false,
    });
    ContainerSpec {
        labels: BTreeMap::from([("dhow.dev/build".to_owned(), job.id.clone())]),
        id: job.id,
        sandbox: None,
        rootfs: Rootfs::Overlay { lower: job.lower, writable: job.writable },
        read_only_rootfs: false,
        process: ProcessSpec {
            args: job.args,
            env: job.env,
            cwd: job.directory,
            user: job.user,
            capabilities: dhow_runtime::DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
            seccomp: true,
            ..ProcessSpec::default()
        },
        hostname: "build".to_owned(),
        mounts: script.into_iter().collect(),
        limits: Limits::default(),
        oom_score_adj: 0,
        privileged: false,
        host_pid: false,
        pid_of: None,
        sandbox_pid: false,
        stdin: false,
        stdin_once: false,
        keep_early: false,
        log: None,
        wait_for_attach: true,
        with_client: true,
    }
}

async fn to_the_end(
    runtime: &Runtime,
    spec: ContainerSpec,
    output: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<Exit, Error> {
    let id = spec.id.clone();
    runtime.start(spec).await?;
    let attached = runtime.attach(&id, false).await?;
    let open = |fd: Option<OwnedFd>| {
        fd.map(Receiver::from_owned_fd).transpose().map_err(Error::io("attach to the command"))
    };
    let (mut stdout, mut stderr) = (open(attached.stdout)?, open(attached.stderr)?);
    let (mut out, mut err) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            read = next(&mut stdout, &mut out) => output(&out[..read]),
            read = next(&mut stderr, &mut err) => output(&err[..read]),
        }
    }
    attached.exit.await.map_err(|_| {
        Error::Runtime(dhow_runtime::Error::Launcher("it was lost while a command ran".into()))
    })
}

/// Reads once; the stream is taken away at its end.
async fn next(stream: &mut Option<Receiver>, buffer: &mut [u8]) -> usize {
    let Some(open) = stream else { return std::future::pending().await };
    match open.read(buffer).await {
        Ok(0) | Err(_) => {
            *stream = None;
            0
        }
        Ok(read) => read,
    }
}

async fn stopped(stop: &watch::Receiver<bool>) {
    let mut stop = stop.clone();
    if stop.wait_for(|stop| *stop).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending::<()>().await;
    }
}

/// The runtime makes these directories to mount on; they are no part of the command's result.
fn remove_mount_points(lower: &[PathBuf], upper: &Path) {
    for name in ["proc", "sys", "dev"] {
        if !lower.iter().any(|layer| layer.join(name).symlink_metadata().is_ok()) {
            // Fails if it is not empty: then it is part of the result.
            let _ = std::fs::remove_dir(upper.join(name));
        }
    }
}
