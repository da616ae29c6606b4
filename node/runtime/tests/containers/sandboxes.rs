//! Pods: shared namespaces, sysctls, groups.

use crate::harness::{World, exit_of, process, read_all, sandbox};
use dhow_runtime::{Error, Limits, Runtime};
use std::collections::BTreeMap;
use std::rc::Rc;

crate::tests![
    containers_of_a_pod_share_network_ipc_and_name,
    a_sandbox_outlives_a_restart_of_the_client,
    sysctls_are_set_in_the_pod,
    the_machines_network_can_be_used,
    a_pod_limits_its_containers_together,
    containers_can_share_processes,
    all_containers_of_a_pod_can_share_processes_under_an_init_that_reaps,
    limits_change_while_a_container_runs,
    removal_wants_an_empty_sandbox,
    code_runs_in_a_pods_network,
];

async fn containers_of_a_pod_share_network_ipc_and_name(world: Rc<World>) {
    let state = world.runtime.create_sandbox(sandbox("pod")).await.unwrap();
    assert!(state.netns.unwrap().exists());
    let script = "hostname; for n in net ipc uts; do readlink /proc/self/ns/$n; done; ip link | grep -c 'lo:.*UP'; \
                  ls /dev/shm; echo x > /dev/shm/shared";
    let mut texts = Vec::new();
    for id in ["a", "b"] {
        let mut spec = world.shell(id, script);
        spec.sandbox = Some("pod".to_owned());
        texts.push(world.output(spec).await.1);
    }
    assert!(texts[0].starts_with("pod-host\nnet:["), "{texts:?}");
    assert!(texts[0].ends_with("\n1\n"), "{texts:?}");
    assert_eq!(format!("{}shared\n", texts[0]), texts[1]);
    let again = world.runtime.create_sandbox(sandbox("pod")).await;
    assert!(matches!(again, Err(Error::Exists(_))));
}

async fn a_sandbox_outlives_a_restart_of_the_client(world: Rc<World>) {
    let made = world.runtime.create_sandbox(sandbox("pod")).await.unwrap();
    let again = Runtime::open(world.config.clone()).await.unwrap();
    assert_eq!(again.sandboxes().await.unwrap(), [made]);
}

async fn sysctls_are_set_in_the_pod(world: Rc<World>) {
    let mut spec = sandbox("pod");
    spec.sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
    spec.sysctls.insert("kernel.msgmax".to_owned(), "4321".to_owned());
    world.runtime.create_sandbox(spec).await.unwrap();
    let mut spec =
        world.shell("a", "sysctl -n net.ipv4.ip_unprivileged_port_start; sysctl -n kernel.msgmax");
    spec.sandbox = Some("pod".to_owned());
    assert_eq!(world.output(spec).await.1, "0\n4321\n");
    let mut bad = sandbox("bad");
    bad.sysctls.insert("kernel.panic".to_owned(), "1".to_owned());
    let error = world.runtime.create_sandbox(bad).await.unwrap_err().to_string();
    assert!(error.contains("kernel.panic"), "{error}");
    assert_eq!(world.runtime.sandboxes().await.unwrap().len(), 1);
}

async fn the_machines_network_can_be_used(world: Rc<World>) {
    let mut spec = sandbox("pod");
    spec.host_network = true;
    spec.host_ipc = true;
    assert_eq!(world.runtime.create_sandbox(spec).await.unwrap().netns, None);
    let mut spec = world.shell("a", "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc");
    spec.sandbox = Some("pod".to_owned());
    let machine: String = ["net", "ipc"]
        .iter()
        .map(|name| {
            format!("{}\n", std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display())
        })
        .collect();
    assert_eq!(world.output(spec).await.1, machine);
}

async fn a_pod_limits_its_containers_together(world: Rc<World>) {
    let mut spec = sandbox("pod");
    spec.limits = Limits { memory_limit: 16 << 20, ..Limits::default() };
    world.runtime.create_sandbox(spec).await.unwrap();
    let mut spec = world.shell("a", "x=x; while :; do x=$x$x$x$x; done");
    spec.sandbox = Some("pod".to_owned());
    assert_eq!(world.run(spec).await.code, 137);
}

async fn containers_can_share_processes(world: Rc<World>) {
    world.runtime.create_sandbox(sandbox("pod")).await.unwrap();
    let mut first = world.program("first", &["sleep", "1234"]);
    first.sandbox = Some("pod".to_owned());
    world.runtime.start(first).await.unwrap();
    let mut second = world.shell("second", "cat /proc/1/cmdline | tr '\\0' ' '; echo; sleep 1000");
    second.sandbox = Some("pod".to_owned());
    second.pid_of = Some("first".to_owned());
    world.runtime.start(second).await.unwrap();
    let mut attached = world
        .runtime
        .exec(
            "second",
            process(&["sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '"]),
            false,
            true,
            false,
        )
        .await
        .unwrap();
    assert_eq!(read_all(attached.stdout.take()).await, "sleep 1234 ");
    // Later containers are not born there.
    let (_, text) = world.output(world.shell("third", "echo $$")).await;
    assert_eq!(text, "1\n");
}

async fn all_containers_of_a_pod_can_share_processes_under_an_init_that_reaps(world: Rc<World>) {
    let mut exits = world.runtime.exits();
    world.runtime.create_sandbox(sandbox("pod")).await.unwrap();
    // It leaves orphans behind, which nobody but the init can take.
    let orphans = "for n in 1 2 3; do (sleep 0.01 & exec true); done; exec sleep 4321";
    for (id, script) in [("first", orphans), ("second", "exec sleep 8765")] {
        let mut spec = world.shell(id, script);
        (spec.sandbox, spec.sandbox_pid) = (Some("pod".to_owned()), true);
        world.runtime.start(spec).await.unwrap();
    }
    let script = "head -c 9 /proc/1/cmdline; ls /proc/1/root 2>/dev/null; kill -9 1; \
                  until busybox pidof sleep | wc -w | grep -qx 2; do usleep 1000; done; \
                  while grep -q 'State:.Z' /proc/[0-9]*/status; do usleep 1000; done; \
                  echo; busybox pidof sleep | wc -w";
    let exec = world.runtime.exec("second", process(&["sh", "-c", script]), false, true, false);
    let mut attached = exec.await.unwrap();
    assert_eq!(read_all(attached.stdout.take()).await, "dhow-init\n2\n");
    // Each ends alone, and is alone among those that come later.
    world.runtime.kill("first", 9, false).await.unwrap();
    assert_eq!(exit_of(&mut exits, "first").await.signal, 9);
    let exec =
        world.runtime.exec("second", process(&["busybox", "pidof", "sleep"]), false, true, false);
    assert_eq!(read_all(exec.await.unwrap().stdout.take()).await.split_whitespace().count(), 1);
    let (_, text) = world.output(world.shell("third", "echo $$")).await;
    assert_eq!(text, "1\n");
    for id in ["first", "second", "third"] {
        world.runtime.remove(id).await.unwrap();
    }
    world.runtime.remove_sandbox("pod").await.unwrap();
}

async fn removal_wants_an_empty_sandbox(world: Rc<World>) {
    world.runtime.create_sandbox(sandbox("pod")).await.unwrap();
    let mut spec = world.program("a", &["sleep", "1000"]);
    spec.sandbox = Some("pod".to_owned());
    world.runtime.start(spec).await.unwrap();
    let error = world.runtime.remove_sandbox("pod").await.unwrap_err().to_string();
    assert!(error.contains("still has container a"), "{error}");
    world.runtime.remove("a").await.unwrap();
    world.runtime.remove_sandbox("pod").await.unwrap();
    world.runtime.remove_sandbox("pod").await.unwrap();
    assert!(dhow_kernel::mount::list(&world.config.dir).unwrap().is_empty());
}

async fn code_runs_in_a_pods_network(world: Rc<World>) {
    let state = world.runtime.create_sandbox(sandbox("pod")).await.unwrap();
    let inside = dhow_kernel::netns::enter(&state.netns.unwrap(), || {
        std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()
    })
    .unwrap();
    assert_eq!(inside.lines().count(), 3, "{inside}");
}

/// The limit of memory that the kernel holds a process to, in the words of either version.
const MEMORY: &str =
    "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";

/// The same of the group around that of this process: its pod's.
fn pods_memory(pid: u32) -> u64 {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let group = |head: &str| groups.lines().find_map(|l| Some(l.split_once(head)?.1.to_owned()));
    let file = match group(":memory:") {
        Some(group) => format!("/sys/fs/cgroup/memory{group}/../memory.limit_in_bytes"),
        None => format!("/sys/fs/cgroup{}/../memory.max", group("0::").unwrap()),
    };
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

async fn limits_change_while_a_container_runs(world: Rc<World>) {
    let of = |memory: u64, cpu| Limits {
        memory_limit: memory << 20,
        cpu_limit_millis: cpu,
        cpu_request_millis: cpu,
        pids_limit: 0,
    };
    let mut pod = sandbox("pod");
    pod.limits = of(32, 100);
    world.runtime.create_sandbox(pod).await.unwrap();
    let mut spec = world.shell("a", "sleep 1000");
    spec.sandbox = Some("pod".to_owned());
    spec.limits = of(32, 100);
    let pid = world.runtime.start(spec).await.unwrap().pid;
    let limit = || async {
        let attached =
            world.runtime.exec("a", process(&["sh", "-c", MEMORY]), false, true, false).await;
        read_all(attached.unwrap().stdout).await.trim().to_owned()
    };
    assert_eq!(limit().await, (32u64 << 20).to_string());
    let label = || BTreeMap::from([("size".to_owned(), "large".to_owned())]);
    for memory in [64, 16] {
        let change = Some(("a", of(memory, memory * 10), label()));
        world.runtime.change_limits("pod", of(memory, memory * 10), change).await.unwrap();
        assert_eq!(limit().await, (memory << 20).to_string());
    }
    // Less than is in use is refused, and what it had stays.
    let tiny = Limits { memory_limit: 4096, ..of(16, 160) };
    let refused =
        world.runtime.change_limits("pod", tiny.clone(), Some(("a", tiny, label()))).await;
    assert!(matches!(refused, Err(Error::Launcher(_))), "{refused:?}");
    assert_eq!(limit().await, (16u64 << 20).to_string());
    let states = world.runtime.containers().await.unwrap();
    assert_eq!((states[0].pid, states[0].exit.as_ref()), (pid, None));
    assert_eq!(states[0].spec.limits, of(16, 160));
    assert_eq!(states[0].spec.labels["size"], "large");
    // Nor is the pod left wider than it was, when its container cannot be.
    let change = Some(("b", of(64, 160), label()));
    let nobody = world.runtime.change_limits("pod", of(64, 160), change).await;
    assert!(matches!(nobody, Err(Error::NotFound(_))), "{nobody:?}");
    assert_eq!(pods_memory(pid), 16 << 20);
    let nobody = world.runtime.change_limits("none", of(1, 1), None).await;
    assert!(matches!(nobody, Err(Error::NotFound(_))), "{nobody:?}");
}
