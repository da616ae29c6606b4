//! Checks what the runtime makes of control groups on the machine that it runs on: `groups DIR`, where
//! DIR is a directory for everything that it makes. `cargo xtask vm` runs it on a machine with pure
//! cgroup v2. Needs root and a static busybox at /bin/busybox.

use dhow_kernel::cgroup::{Layout, Version};
use dhow_runtime::{
    Config, ContainerSpec, ContainerState, Error, Exit, Limits, LogSpec, ProcessSpec, Rootfs,
    Runtime, SandboxSpec,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Longer than anything here takes, on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, word, dir, cgroup] = args.as_slice()
        && word == "launcher"
    {
        dhow_runtime::launcher_main(dir.as_ref(), cgroup).expect("a launcher");
        return;
    }
    let dir = PathBuf::from(args.get(1).expect("usage: groups DIR"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio");
    runtime.block_on(run(&dir));
}

struct World {
    dir: PathBuf,
    runtime: Runtime,
    cgroup: String,
}

async fn run(dir: &Path) {
    let layout = Layout::detect().expect("control groups");
    println!("hierarchies: {:?}", layout.hierarchies);
    let root = dir.join("box");
    for name in ["bin", "dev", "proc", "sys", "etc", "tmp"] {
        std::fs::create_dir_all(root.join(name)).expect("a directory");
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("a static busybox");
    for name in ["sh", "sleep", "cat", "true", "mknod", "head", "rm"] {
        let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(name));
    }
    let cgroup = format!("dhow-check-{}", std::process::id());
    let config = Config {
        dir: dir.join("run"),
        binary: std::env::current_exe().expect("this program"),
        cgroup: cgroup.clone(),
    };
    let runtime = Runtime::open(config).await.expect("a launcher");
    let world = World { dir: dir.to_owned(), runtime, cgroup };
    limits_are_in_the_kernel(&world).await;
    println!("ok: limits are written, and a container is born in its group");
    too_much_memory(&world).await;
    println!("ok: a container over its memory is ended, and that is known");
    too_many_processes(&world).await;
    println!("ok: no container has more processes than it may");
    too_much_time(&world).await;
    println!("ok: a container's processor time is limited");
    limits_change(&world).await;
    println!("ok: limits change while a container runs");
    all_end(&world).await;
    println!("ok: a signal reaches every process of a group");
    devices(&world).await;
    println!("ok: devices that a container makes cannot be used");
    world.runtime.shutdown().await.expect("an end");
    for hierarchy in &layout.hierarchies {
        assert!(!hierarchy.own.join(&world.cgroup).exists(), "a group is left");
    }
    println!("ok: nothing is left");
}

impl World {
    fn shell(&self, id: &str, script: &str, limits: Limits) -> ContainerSpec {
        ContainerSpec {
            id: id.to_owned(),
            sandbox: None,
            rootfs: Rootfs::Directory(self.dir.join("box")),
            read_only_rootfs: false,
            process: ProcessSpec {
                args: ["sh", "-c", script].map(str::to_owned).to_vec(),
                env: vec!["PATH=/bin".to_owned()],
                capabilities: ["MKNOD", "KILL"].map(str::to_owned).to_vec(),
                ..ProcessSpec::default()
            },
            hostname: "box".to_owned(),
            mounts: vec![],
            limits,
            oom_score_adj: 0,
            privileged: false,
            host_pid: false,
            pid_of: None,
            sandbox_pid: false,
            stdin: false,
            stdin_once: false,
            keep_early: false,
            log: Some(LogSpec { path: self.log(id), max_size: 0, max_files: 1 }),
            labels: BTreeMap::new(),
            wait_for_attach: false,
            with_client: false,
        }
    }

    fn log(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.log"))
    }

    fn text(&self, id: &str) -> String {
        std::fs::read_to_string(self.log(id)).expect("a log")
    }

    async fn start(&self, spec: ContainerSpec) -> ContainerState {
        self.runtime.start(spec).await.expect("a container")
    }

    /// Runs a container to its end.
    async fn run(&self, spec: ContainerSpec) -> Exit {
        let mut exits = self.runtime.exits();
        let id = spec.id.clone();
        self.start(spec).await;
        let end = async {
            loop {
                let (ended, exit) = exits.recv().await.expect("news");
                if ended == id {
                    return exit;
                }
            }
        };
        tokio::time::timeout(PATIENCE, end).await.expect("an end in time")
    }

    /// The directory of a process's group that holds `file`.
    fn group(&self, pid: u32, file: &str) -> PathBuf {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("groups");
        let tail = format!("{}/", self.cgroup);
        let layout = Layout::detect().expect("control groups");
        for line in text.lines() {
            let Some((_, below)) = line.split_once(&tail) else { continue };
            for hierarchy in &layout.hierarchies {
                let dir = hierarchy.own.join(&self.cgroup).join(below);
                if dir.join(file).exists() {
                    return dir;
                }
            }
        }
        panic!("process {pid} is in no group of ours that has {file}:\n{text}")
    }

    fn value(&self, pid: u32, file: &str) -> String {
        let path = self.group(pid, file).join(file);
        std::fs::read_to_string(path).expect("a value").trim().to_owned()
    }
}

fn limits() -> Limits {
    Limits {
        cpu_request_millis: 250,
        cpu_limit_millis: 500,
        memory_limit: 64 * MIB,
        pids_limit: 30,
    }
}

fn is_v2() -> bool {
    let layout = Layout::detect().expect("control groups");
    layout.hierarchies.iter().all(|h| h.version == Version::V2)
}

async fn limits_are_in_the_kernel(world: &World) {
    let state = world.start(world.shell("limits", "exec sleep 1000", limits())).await;
    assert_eq!(world.value(state.pid, "pids.max"), "30");
    if is_v2() {
        assert_eq!(world.value(state.pid, "memory.max"), (64 * MIB).to_string());
        assert_eq!(world.value(state.pid, "memory.oom.group"), "1");
        assert_eq!(world.value(state.pid, "cpu.max"), "50000 100000");
        assert_ne!(world.value(state.pid, "cpu.weight"), "100");
    } else {
        assert_eq!(world.value(state.pid, "memory.limit_in_bytes"), (64 * MIB).to_string());
    }
    world.runtime.remove("limits").await.expect("a removal");
}

async fn too_much_memory(world: &World) {
    let small = Limits { memory_limit: 16 * MIB, ..limits() };
    let script = "x=0123456789; while true; do x=$x$x; done";
    let exit = world.run(world.shell("hungry", script, small.clone())).await;
    assert!(exit.oom && exit.code == 137, "{exit:?}");
    let exit = world.run(world.shell("modest", "exit 3", small)).await;
    assert!(!exit.oom && exit.code == 3, "{exit:?}");
}

async fn too_many_processes(world: &World) {
    let script = "n=0; while [ $n -lt 60 ]; do sleep 1000 & n=$((n+1)); done; echo all";
    let exit = world.run(world.shell("many", script, limits())).await;
    assert_ne!(exit.code, 0);
    assert!(!world.text("many").contains(" all"), "{}", world.text("many"));
}

async fn too_much_time(world: &World) {
    let state = world.start(world.shell("busy", "while true; do :; done", limits())).await;
    let file = world.group(state.pid, "cpu.stat").join("cpu.stat");
    let throttled = || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        line.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    // A period of the limit is a tenth of a second.
    let start = std::time::Instant::now();
    while throttled() == 0 {
        assert!(start.elapsed() < PATIENCE, "never held back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.runtime.remove("busy").await.expect("a removal");
}

async fn limits_change(world: &World) {
    let spec = SandboxSpec {
        id: "pod".into(),
        hostname: "pod".into(),
        limits: limits(),
        ..SandboxSpec::default()
    };
    world.runtime.create_sandbox(spec).await.expect("a sandbox");
    let mut spec = world.shell("inner", "exec sleep 1000", limits());
    // The init of its processes has a group beside it.
    (spec.sandbox, spec.sandbox_pid) = (Some("pod".into()), true);
    let pid = world.start(spec).await.pid;
    let more = Limits { memory_limit: 96 * MIB, cpu_limit_millis: 700, ..limits() };
    let inner = Some(("inner", more.clone(), BTreeMap::new()));
    world.runtime.change_limits("pod", more, inner).await.expect("other limits");
    let file = if is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
    assert_eq!(world.value(pid, file), (96 * MIB).to_string());
    let tiny = Limits { memory_limit: 4096, ..limits() };
    let inner = Some(("inner", tiny.clone(), BTreeMap::new()));
    let refused = world.runtime.change_limits("pod", tiny, inner).await;
    assert!(matches!(refused, Err(Error::Launcher(_))), "{refused:?}");
    assert_eq!(world.value(pid, file), (96 * MIB).to_string());
    world.runtime.remove("inner").await.expect("a removal");
    world.runtime.remove_sandbox("pod").await.expect("a removal");
}

async fn all_end(world: &World) {
    let mut exits = world.runtime.exits();
    let script = "sleep 1001 & sleep 1002 & exec sleep 1003";
    let pid = world.start(world.shell("crowd", script, limits())).await.pid;
    let procs = world.group(pid, "cgroup.procs").join("cgroup.procs");
    world.runtime.kill("crowd", libc::SIGKILL, true).await.expect("a signal");
    while exits.recv().await.expect("news").0 != "crowd" {}
    world.runtime.remove("crowd").await.expect("a removal");
    assert!(!procs.exists());
}

async fn devices(world: &World) {
    // The machine's kernel log and memory: readable by root where nothing forbids it.
    let script = "rm -f /tmp/mem /tmp/kmsg; mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem >/dev/null 2>&1 && echo read; \
                  mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg >/dev/null 2>&1 && echo read; \
                  head -c 1 /dev/zero >/dev/null && echo fine; exit 0";
    let exit = world.run(world.shell("devices", script, limits())).await;
    let text = world.text("devices");
    assert!(exit.code == 0 && text.contains(" fine") && !text.contains(" read"), "{text}");
    // That it is the group which forbids it shows where nothing is forbidden.
    let mut free = world.shell("free", script, limits());
    free.privileged = true;
    world.run(free).await;
    assert!(world.text("free").contains(" read"), "{}", world.text("free"));
}
