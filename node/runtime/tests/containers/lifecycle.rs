//! Start, end, signals, removal, restarts, limits.

use crate::harness::{World, exit_of, new_config, process, within};
use dhow_runtime::{Error, Exit, Limits, Mount, MountKind, Phase, Rootfs, Runtime};
use std::path::Path;
use std::rc::Rc;

crate::tests![
    it_starts_logs_and_ends,
    a_missing_program_is_named_and_nothing_is_left,
    a_missing_directory_to_work_in_is_made,
    a_missing_layer_and_a_missing_source_are_named,
    signals_reach_the_first_process_or_all,
    removal_ends_what_runs,
    a_hundred_start_at_once,
    a_killed_client_ends_nothing,
    what_a_client_that_died_began_is_known_to_the_next,
    what_is_for_one_client_ends_with_it_and_so_does_an_unused_launcher,
    an_exit_is_learned_after_a_restart,
    a_lost_launcher_is_replaced_and_its_containers_are_told_to_have_ended,
    what_a_lost_launcher_did_not_record_is_ended,
    going_over_the_memory_limit_is_reported,
    the_number_of_processes_is_limited,
    identifiers_are_checked,
    many_layers_make_one_root,
    a_writable_layer_can_be_used_again,
];

async fn it_starts_logs_and_ends(world: Rc<World>) {
    let (code, text) = world.output(world.shell("one", "echo hello; echo oops >&2; exit 3")).await;
    assert_eq!(code, 3);
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["hello", "oops"]);
    let states = world.runtime.containers().await.unwrap();
    assert_eq!(states.len(), 1);
    assert_eq!(states[0].phase, Phase::Exited);
    assert_eq!(states[0].exit.as_ref().unwrap().code, 3);
    world.runtime.remove("one").await.unwrap();
    assert!(world.runtime.containers().await.unwrap().is_empty());
    world.runtime.remove("one").await.unwrap();
}

fn cannot_start(result: Result<impl std::fmt::Debug, Error>) -> (String, String) {
    match result.unwrap_err() {
        Error::CannotStart { step, cause, .. } => (step, cause),
        other => panic!("{other}"),
    }
}

async fn a_missing_program_is_named_and_nothing_is_left(world: Rc<World>) {
    let result = world.runtime.start(world.program("a", &["foo"])).await;
    assert_eq!(result.as_ref().unwrap_err().exit_code(), 127);
    let (step, cause) = cannot_start(result);
    assert_eq!(step, "exec");
    assert_eq!(cause, "\"foo\": executable file not found in $PATH");
    let (_, cause) = cannot_start(world.runtime.start(world.program("a", &["/bin/no"])).await);
    assert_eq!(cause, "\"/bin/no\": stat /bin/no: no such file or directory");
    let result = world.runtime.start(world.program("a", &["/etc/passwd"])).await;
    assert_eq!(result.as_ref().unwrap_err().exit_code(), 126);
    let (_, cause) = cannot_start(result);
    assert_eq!(cause, "\"/etc/passwd\": permission denied");
    assert!(world.runtime.containers().await.unwrap().is_empty());
    // The identifier is free again.
    assert_eq!(world.run(world.program("a", &["true"])).await.code, 0);
}

async fn a_missing_directory_to_work_in_is_made(world: Rc<World>) {
    let mut spec = world.program("a", &["pwd"]);
    spec.process.cwd = "/deep/er".to_owned();
    assert_eq!(world.output(spec).await, (0, "/deep/er\n".to_owned()));
}

async fn a_missing_layer_and_a_missing_source_are_named(world: Rc<World>) {
    let mut spec = world.program("a", &["true"]);
    let Rootfs::Overlay { lower, .. } = &mut spec.rootfs else { unreachable!() };
    lower.push("/no/such/layer".into());
    let (step, cause) = cannot_start(world.runtime.start(spec).await);
    assert!(step.contains("overlay") && cause.contains("/no/such/layer"), "{step}: {cause}");
    let mut spec = world.program("a", &["true"]);
    spec.mounts.push(dhow_runtime::Mount {
        target: "/data".into(),
        kind: dhow_runtime::MountKind::Bind("/no/such/source".into()),
        read_only: false,
        propagate: false,
    });
    let (step, cause) = cannot_start(world.runtime.start(spec).await);
    assert!(step.contains("/no/such/source") && step.contains("/data"), "{step}: {cause}");
}

async fn signals_reach_the_first_process_or_all(world: Rc<World>) {
    let mut exits = world.runtime.exits();
    let script = "trap 'echo term; exit 7' TERM; echo ready; while :; do usleep 10000; done";
    world.runtime.start(world.shell("a", script)).await.unwrap();
    wait_for_log(&world, "a", "ready").await;
    world.runtime.kill("a", libc::SIGTERM, false).await.unwrap();
    assert_eq!(exit_of(&mut exits, "a").await.code, 7);
    // What has ended can be killed again.
    world.runtime.kill("a", libc::SIGTERM, false).await.unwrap();
    assert!(matches!(world.runtime.kill("b", 15, false).await, Err(Error::NotFound(_))));

    let script = "sh -c \"trap 'exit 4' TERM; echo inner; while :; do usleep 10000; done\" & \
                  wait $!; exit $?";
    world.runtime.start(world.shell("c", script)).await.unwrap();
    wait_for_log(&world, "c", "inner").await;
    world.runtime.kill("c", libc::SIGTERM, true).await.unwrap();
    assert_eq!(exit_of(&mut exits, "c").await.code, 4);

    world.runtime.start(world.program("d", &["sleep", "1000"])).await.unwrap();
    world.runtime.kill("d", libc::SIGKILL, true).await.unwrap();
    let exit = exit_of(&mut exits, "d").await;
    assert_eq!((exit.code, exit.signal, exit.oom), (137, 9, false));
}

/// Attaching is no way to wait for what was said before it; the log is.
pub async fn wait_for_log(world: &World, id: &str, text: &str) {
    let wait = async {
        while !std::fs::read_to_string(world.log_path(id)).unwrap().contains(text) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    within(wait, text).await;
}

async fn removal_ends_what_runs(world: Rc<World>) {
    let state = world.runtime.start(world.shell("a", "sleep 1000 & sleep 1000")).await.unwrap();
    world.runtime.remove("a").await.unwrap();
    assert!(!Path::new(&format!("/proc/{}", state.pid)).exists());
    assert!(world.runtime.containers().await.unwrap().is_empty());
    let mut spec = world.shell("b", "sleep 1000 & sleep 1000");
    spec.host_pid = true;
    world.runtime.start(spec).await.unwrap();
    world.runtime.remove("b").await.unwrap();
}

async fn a_hundred_start_at_once(world: Rc<World>) {
    let mut exits = world.runtime.exits();
    let starts = (0..100).map(|number| {
        let spec = world.shell(&format!("c{number}"), &format!("echo {number}; exit {number}"));
        let runtime = world.runtime.clone();
        async move { runtime.start(spec).await.unwrap() }
    });
    within(futures::future::join_all(starts), "a hundred starts").await;
    let mut codes = std::collections::BTreeMap::new();
    while codes.len() < 100 {
        let (id, exit): (String, Exit) = within(exits.recv(), "a hundred ends").await.unwrap();
        codes.insert(id, exit.code);
    }
    for number in 0..100 {
        let id = format!("c{number}");
        assert_eq!(codes[&id], number);
        assert_eq!(world.log(&id), format!("{number}\n"));
    }
    let ids: Vec<String> = codes.keys().cloned().collect();
    within(futures::future::join_all(ids.iter().map(|id| world.runtime.remove(id))), "removal")
        .await;
}

/// Run in an own process: opens the runtime, starts a container, and is killed.
pub fn client_that_is_killed(dir: &str) {
    let dir = Path::new(dir);
    let cgroup = dir.file_name().unwrap().to_str().unwrap().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = new_config(dir, &cgroup);
        let runtime = Runtime::open(config.clone()).await.unwrap();
        let world = World { dir: dir.to_owned(), runtime, config };
        let script = "echo before; while ! test -e /go; do usleep 10000; done; echo after; exit 5";
        world.runtime.start(world.shell("survivor", script)).await.unwrap();
        println!("started");
        std::future::pending::<()>().await;
    });
}

async fn a_killed_client_ends_nothing(world: Rc<World>) {
    use tokio::io::AsyncBufReadExt;
    let mut client = tokio::process::Command::new(std::env::current_exe().unwrap())
        .arg("client")
        .arg(&world.dir)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(client.stdout.take().unwrap()).lines();
    assert_eq!(within(lines.next_line(), "the client").await.unwrap().unwrap(), "started");
    client.kill().await.unwrap();
    let mut exits = world.runtime.exits();
    let states = world.runtime.containers().await.unwrap();
    assert_eq!((states[0].spec.id.as_str(), states[0].phase), ("survivor", Phase::Running));
    std::fs::write(format!("/proc/{}/root/go", states[0].pid), "").unwrap();
    assert_eq!(exit_of(&mut exits, "survivor").await.code, 5);
    assert_eq!(world.log("survivor"), "before\nafter\n");
}

async fn what_is_for_one_client_ends_with_it_and_so_does_an_unused_launcher(world: Rc<World>) {
    let place = world.dir.join("own");
    let config = new_config(&place, &format!("{}-own", world.config.cgroup));
    let builder = Runtime::open(config.clone()).await.unwrap();
    let other = Runtime::open(config.clone()).await.unwrap();
    let mut exits = other.exits();
    let mut spec = world.program("job", &["sleep", "1000"]);
    spec.with_client = true;
    builder.start(spec).await.unwrap();
    drop(builder);
    assert_eq!(exit_of(&mut exits, "job").await.signal, 9);
    assert!(other.containers().await.unwrap().is_empty());
    drop((exits, other));
    let gone = async {
        while config.dir.exists() {
            tokio::task::yield_now().await;
        }
    };
    within(gone, "the end of a launcher that nobody uses").await;
}

async fn an_exit_is_learned_after_a_restart(world: Rc<World>) {
    assert_eq!(world.run(world.shell("a", "exit 9")).await.code, 9);
    let again = Runtime::open(world.config.clone()).await.unwrap();
    let states = again.containers().await.unwrap();
    assert_eq!(states[0].exit.as_ref().unwrap().code, 9);
    assert!(states[0].exit.as_ref().unwrap().at >= states[0].started_at);
    // The record says the same to whoever looks at the disk.
    let record = world.config.dir.join("containers/a.json");
    assert!(std::fs::read_to_string(record).unwrap().contains("\"code\":9"));
}

fn launcher_pid(world: &World) -> u32 {
    let mine =
        |command: &str| command.contains("launcher") && command.contains(&world.config.cgroup);
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|command| mine(&command.replace('\0', " ")))
        })
        .unwrap()
}

async fn a_lost_launcher_is_replaced_and_its_containers_are_told_to_have_ended(world: Rc<World>) {
    let mut exits = world.runtime.exits();
    world.runtime.create_sandbox(crate::harness::sandbox("pod")).await.unwrap();
    let mut spec = world.program("a", &["sleep", "1000"]);
    spec.sandbox = Some("pod".to_owned());
    let state = world.runtime.start(spec).await.unwrap();
    dhow_kernel::process::signal(launcher_pid(&world), libc::SIGKILL).unwrap();
    let exit = exit_of(&mut exits, "a").await;
    assert_eq!(exit.code, 137);
    assert!(dhow_kernel::process::identity(state.pid).is_none_or(|(state, _)| state == 'Z'));
    assert_eq!(world.runtime.sandboxes().await.unwrap().len(), 1);
    world.runtime.remove("a").await.unwrap();
    world.runtime.remove_sandbox("pod").await.unwrap();
    assert_eq!(world.run(world.program("b", &["true"])).await.code, 0);
}

async fn what_a_lost_launcher_did_not_record_is_ended(world: Rc<World>) {
    let mut exits = world.runtime.exits();
    world.runtime.create_sandbox(crate::harness::sandbox("pod")).await.unwrap();
    let mut spec = world.program("kept", &["sleep", "1000"]);
    spec.sandbox = Some("pod".to_owned());
    world.runtime.start(spec.clone()).await.unwrap();
    spec.id = "stray".to_owned();
    let stray = world.runtime.start(spec).await.unwrap();
    std::fs::remove_file(world.config.dir.join("containers/stray.json")).unwrap();
    let pid = rustix::process::Pid::from_raw(stray.pid as i32).unwrap();
    let stray = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    dhow_kernel::process::signal(launcher_pid(&world), libc::SIGKILL).unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        let mut fds = [rustix::event::PollFd::new(&stray, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&limit)).unwrap()
    });
    assert_eq!(ended.await.unwrap(), 1, "the stray goes on");
    exit_of(&mut exits, "kept").await;
    world.runtime.remove("kept").await.unwrap();
    // Nothing in it is in the way of the pod's own group.
    world.runtime.remove_sandbox("pod").await.unwrap();
}

async fn going_over_the_memory_limit_is_reported(world: Rc<World>) {
    let mut spec = world.shell("a", "x=x; while :; do x=$x$x$x$x; done");
    spec.limits = Limits { memory_limit: 16 << 20, ..Limits::default() };
    let exit = world.run(spec).await;
    assert!(exit.oom, "{exit:?}");
    assert_eq!(exit.code, 137);
    // One that ends by itself did not.
    let mut spec = world.shell("b", "exit 1");
    spec.limits = Limits { memory_limit: 16 << 20, ..Limits::default() };
    assert!(!world.run(spec).await.oom);
}

async fn the_number_of_processes_is_limited(world: Rc<World>) {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 100 & done; echo unlimited";
    let mut spec = world.shell("a", script);
    spec.limits = Limits { pids_limit: 5, ..Limits::default() };
    let (code, text) = world.output(spec).await;
    assert!(code != 0 && !text.contains("unlimited"), "{code} {text}");
}

async fn identifiers_are_checked(world: Rc<World>) {
    for bad in ["", "../x", "a/b", ".hidden"] {
        assert!(world.runtime.start(world.program(bad, &["true"])).await.is_err(), "{bad:?}");
    }
    world.run(world.program("a", &["true"])).await;
    let again = world.runtime.start(world.program("a", &["true"])).await;
    assert!(matches!(again, Err(Error::Exists(_))));
    let mut orphan = world.program("b", &["true"]);
    orphan.sandbox = Some("none".to_owned());
    assert!(matches!(world.runtime.start(orphan).await, Err(Error::NotFound(_))));
    let mut empty = world.program("b", &["true"]);
    empty.process = process(&[]);
    assert_eq!(cannot_start(world.runtime.start(empty).await).1, "no program is given");
}

async fn many_layers_make_one_root(world: Rc<World>) {
    let mut layers = Vec::new();
    for number in 0..120 {
        let layer = world.dir.join(format!("layer-{}-{number}", "x".repeat(60)));
        std::fs::create_dir_all(&layer).unwrap();
        std::fs::write(layer.join(format!("f{number}")), "").unwrap();
        layers.push(layer);
    }
    // A name that the option syntax could not hold.
    let odd = world.dir.join("odd:name,with\\everything");
    std::fs::create_dir_all(&odd).unwrap();
    std::fs::write(odd.join("f-odd"), "").unwrap();
    layers.push(odd);
    layers.push(world.lower());
    let mut spec = world.shell("a", "ls / | grep -c '^f[0-9o-]'");
    spec.rootfs = Rootfs::Overlay { lower: layers, writable: world.dir.join("writable/a:b") };
    assert_eq!(world.output(spec).await, (0, "121\n".to_owned()));
}

async fn a_writable_layer_can_be_used_again(world: Rc<World>) {
    let writable = world.dir.join("writable/kept");
    let spec = |id: &str, script: &str| {
        let mut spec = world.shell(id, script);
        spec.rootfs = Rootfs::Overlay { lower: vec![world.lower()], writable: writable.clone() };
        spec
    };
    assert_eq!(world.run(spec("a", "echo kept > /file; rm /etc/group")).await.code, 0);
    assert_eq!(
        world.output(spec("b", "cat /file; ls /etc")).await,
        (0, "kept\npasswd\n".to_owned())
    );
}

async fn what_a_client_that_died_began_is_known_to_the_next(world: Rc<World>) {
    let file = world.dir.join("file");
    std::fs::write(&file, "x").unwrap();
    // So many mounts take a while, to read them too.
    let mount = |number: u32| Mount {
        target: format!("/mounts/{number}").into(),
        kind: MountKind::Bind(file.clone()),
        read_only: true,
        propagate: false,
    };
    let mut spec = world.shell("half", "sleep 1000");
    spec.mounts = (0..500).map(mount).collect();
    let config = world.config.clone();
    let next = Runtime::open(world.config.clone()).await.unwrap();
    next.containers().await.unwrap();
    // Both ask before the launcher, which stands still, hears any of it: first the one that ends, at
    // length, then the other, in a word.
    let launcher = launcher_pid(&world);
    let dying = std::thread::spawn(move || {
        let one = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        one.block_on(async {
            let dying = Runtime::open(config).await.unwrap();
            dying.containers().await.unwrap();
            dhow_kernel::process::signal(launcher, libc::SIGSTOP).unwrap();
            let mut start = std::pin::pin!(dying.start(spec));
            assert!(futures::poll!(&mut start).is_pending(), "it has begun");
            tokio::task::yield_now().await;
        });
    });
    dying.join().unwrap();
    let go_on = async {
        // Behind the question, which needs no answer to be on its way.
        tokio::task::yield_now().await;
        dhow_kernel::process::signal(launcher, libc::SIGCONT).unwrap();
    };
    let (all, ()) = futures::join!(next.containers(), go_on);
    let all = all.unwrap();
    assert_eq!(all.iter().map(|c| c.spec.id.as_str()).collect::<Vec<_>>(), ["half"]);
    next.remove("half").await.unwrap();
}
