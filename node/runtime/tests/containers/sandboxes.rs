//! Pods: shared namespaces, sysctls, groups.

use crate::harness::{World, process, read_all, sandbox};
use dhow_runtime::{Error, Limits, Runtime};
use std::rc::Rc;

crate::tests![
    containers_of_a_pod_share_network_ipc_and_name,
    a_sandbox_outlives_a_restart_of_the_client,
    sysctls_are_set_in_the_pod,
    the_machines_network_can_be_used,
    a_pod_limits_its_containers_together,
    containers_can_share_processes,
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
