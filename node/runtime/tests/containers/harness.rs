//! One fresh launcher per test, and proof that nothing is left of it.

use dhow_runtime::{
    Config, ContainerSpec, Exit, Limits, LogSpec, ProcessSpec, Rootfs, Runtime, SandboxSpec,
};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

pub type Test = (&'static str, fn(Rc<World>) -> Pin<Box<dyn Future<Output = ()>>>);

/// Lists tests as `tests![name, ...]`.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[$crate::harness::Test] = &[
            $((concat!(module_path!(), "::", stringify!($name)), |world| Box::pin($name(world)))),*
        ];
    };
}

/// A directory with a root file system and a launcher.
pub struct World {
    pub dir: PathBuf,
    pub runtime: Runtime,
    pub config: Config,
}

impl World {
    pub fn lower(&self) -> PathBuf {
        self.dir.join("lower")
    }

    /// A container that runs a shell script in its own overlay.
    pub fn shell(&self, id: &str, script: &str) -> ContainerSpec {
        self.program(id, &["sh", "-c", script])
    }

    pub fn program(&self, id: &str, args: &[&str]) -> ContainerSpec {
        ContainerSpec {
            id: id.to_owned(),
            sandbox: None,
            rootfs: Rootfs::Overlay {
                lower: vec![self.lower()],
                writable: self.dir.join("writable").join(id),
            },
            read_only_rootfs: false,
            process: process(args),
            hostname: "box".to_owned(),
            mounts: vec![],
            limits: Limits::default(),
            oom_score_adj: 0,
            privileged: false,
            host_pid: false,
            pid_of: None,
            sandbox_pid: false,
            stdin: false,
            stdin_once: false,
            keep_early: false,
            log: Some(LogSpec { path: self.log_path(id), max_size: 0, max_files: 1 }),
            labels: BTreeMap::new(),
            wait_for_attach: false,
            with_client: false,
        }
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.log"))
    }

    /// The texts of a container's log, without times.
    pub fn log(&self, id: &str) -> String {
        let text = std::fs::read_to_string(self.log_path(id)).unwrap();
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned() + "\n").collect()
    }

    /// Starts a container and waits for its end.
    pub async fn run(&self, spec: ContainerSpec) -> Exit {
        let id = spec.id.clone();
        let mut exits = self.runtime.exits();
        self.runtime.start(spec).await.unwrap();
        exit_of(&mut exits, &id).await
    }

    /// Runs a script and returns its exit code and output.
    pub async fn output(&self, spec: ContainerSpec) -> (i32, String) {
        let id = spec.id.clone();
        let exit = self.run(spec).await;
        (exit.code, self.log(&id))
    }
}

pub fn process(args: &[&str]) -> ProcessSpec {
    ProcessSpec {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/bin".to_owned()],
        capabilities: [
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "SETGID",
            "SETUID",
            "SETPCAP",
            "NET_BIND_SERVICE",
            "NET_RAW",
            "SYS_CHROOT",
            "MKNOD",
            "AUDIT_WRITE",
            "SETFCAP",
        ]
        .map(str::to_owned)
        .to_vec(),
        seccomp: true,
        ..ProcessSpec::default()
    }
}

pub fn sandbox(id: &str) -> SandboxSpec {
    SandboxSpec { id: id.to_owned(), hostname: format!("{id}-host"), ..SandboxSpec::default() }
}

pub async fn exit_of(
    exits: &mut tokio::sync::broadcast::Receiver<(String, Exit)>,
    id: &str,
) -> Exit {
    let wait = async {
        loop {
            let (ended, exit) = exits.recv().await.unwrap();
            if ended == id {
                return exit;
            }
        }
    };
    within(wait, &format!("the end of {id}")).await
}

pub async fn within<T>(work: impl Future<Output = T>, what: &str) -> T {
    tokio::time::timeout(Duration::from_secs(30), work)
        .await
        .unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// Everything until the end of a stream.
pub async fn read_all(fd: Option<OwnedFd>) -> String {
    let mut text = Vec::new();
    let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(fd.unwrap()).unwrap();
    within(pipe.read_to_end(&mut text), "the end of a stream").await.unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads until the text holds `needle`; the descriptor may be a terminal.
pub async fn read_until(fd: &OwnedFd, needle: &str) -> String {
    let (fd, wanted) = (fd.try_clone().unwrap(), needle.to_owned());
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        while !text.contains(&wanted) {
            let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            let ready = rustix::event::poll(&mut fds, Some(&limit)).unwrap();
            assert!(ready > 0, "waited too long for {wanted:?}: {text:?}");
            let mut chunk = [0; 4096];
            match rustix::io::read(&fd, &mut chunk) {
                Ok(0) => panic!("ended before {wanted:?}: {text:?}"),
                Ok(count) => text.push_str(&String::from_utf8_lossy(&chunk[..count])),
                Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => panic!("{error} before {wanted:?}: {text:?}"),
            }
        }
        text
    });
    within(read, needle).await.unwrap()
}

fn build_lower(lower: &Path) {
    for dir in ["etc", "tmp", "root"] {
        std::fs::create_dir_all(lower.join(dir)).unwrap();
    }
    let applets = [
        "sh", "true", "false", "cat", "echo", "sleep", "id", "hostname", "ls", "mount", "ip",
        "stty", "dd", "head", "yes", "wc", "grep", "kill", "touch", "unshare", "mkdir", "ps",
        "seq", "tr", "stat", "readlink", "pwd", "test", "awk", "sysctl", "env", "nc", "tail",
        "usleep", "rm",
    ];
    dhow_harness::install_busybox(&lower.join("bin"), &applets);
    std::fs::write(
        lower.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/tmp:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(lower.join("etc/group"), "root:x:0:\nweb:x:34:\nlogs:x:40:web\n").unwrap();
}

/// What a test may leave behind, found by the name of its cgroup and directory.
fn leftovers(dir: &Path, cgroup: &str) -> Vec<String> {
    let mut found = dhow_harness::leftovers(dir, cgroup);
    let run = dir.join("run");
    if run.exists() {
        found.push(format!("{}", run.display()));
    }
    found
}

pub fn new_config(dir: &Path, cgroup: &str) -> Config {
    Config {
        dir: dir.join("run"),
        binary: std::env::current_exe().unwrap(),
        cgroup: cgroup.to_owned(),
    }
}

/// A fresh directory with a root file system and an open runtime.
pub async fn world(name: &str) -> World {
    let unique = format!("dhow-test-{}-{name}", std::process::id());
    let dir = std::env::temp_dir().join(&unique);
    std::fs::create_dir_all(&dir).unwrap();
    build_lower(&dir.join("lower"));
    let config = new_config(&dir, &unique);
    let runtime = Runtime::open(config.clone()).await.unwrap();
    World { dir, runtime, config }
}

/// Takes a world down; what was left is returned.
pub async fn tear_down(world: Rc<World>) -> Vec<String> {
    let mut left = Vec::new();
    if let Err(error) = world.runtime.shutdown().await {
        left.push(error.to_string());
    }
    // The launcher answers just before it ends.
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let found = leftovers(&world.dir, &world.config.cgroup);
        if found.is_empty() || Instant::now() > end {
            left.extend(found);
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if left.is_empty() {
        std::fs::remove_dir_all(&world.dir).unwrap();
    }
    left
}

pub fn run_all(tests: &[Test]) -> ! {
    dhow_harness::run(dhow_harness::chosen(tests), |name, test| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(async {
            let world = Rc::new(world(&name.replace("::", "-")).await);
            let result = tokio::task::spawn_local(test(world.clone())).await;
            let left = tear_down(world).await;
            match result {
                Err(error) => Err(format!("{error}")),
                Ok(()) if !left.is_empty() => Err(format!("left behind: {left:#?}")),
                Ok(()) => Ok(()),
            }
        }))
    })
}
