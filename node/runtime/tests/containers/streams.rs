//! Exec, attach, terminals, logs.

use crate::harness::{World, exit_of, process, read_all, read_until, within};
use crate::lifecycle::wait_for_log;
use dhow_runtime::{Attached, Error, Exit, LogSpec};
use std::os::fd::OwnedFd;
use std::rc::Rc;

crate::tests![
    exec_has_streams_and_an_exit_code,
    exec_joins_the_container,
    exec_of_a_missing_program_is_refused,
    exec_with_a_terminal_takes_sizes,
    several_attachments_see_the_same,
    a_slow_attachment_does_not_stop_the_container,
    standard_input_goes_in_and_ends,
    a_terminal_is_shared_and_resized,
    output_is_held_for_the_first_attachment,
    output_is_held_even_after_the_end,
    early_output_is_kept_for_the_one_client_that_is_on_its_way,
    early_output_begins_where_the_log_was_read_to,
    early_output_outlives_the_container_and_is_given_once,
    a_full_disk_does_not_stop_a_container,
    logs_are_rotated,
];

async fn ended(attached: Attached) -> Exit {
    within(attached.exit, "an exit").await.unwrap()
}

fn put(fd: &OwnedFd, text: &str) {
    assert_eq!(rustix::io::write(fd, text.as_bytes()).unwrap(), text.len());
}

async fn sleeper(world: &World, id: &str) {
    world.runtime.start(world.program(id, &["sleep", "1000"])).await.unwrap();
}

async fn exec_has_streams_and_an_exit_code(world: Rc<World>) {
    sleeper(&world, "a").await;
    let script = process(&["sh", "-c", "read line; echo got $line; echo bad >&2; exit 42"]);
    let mut attached = world.runtime.exec("a", script, true, true, true).await.unwrap();
    let stdin = attached.stdin.take().unwrap();
    put(&stdin, "words\n");
    assert_eq!(read_all(attached.stdout.take()).await, "got words\n");
    assert_eq!(read_all(attached.stderr.take()).await, "bad\n");
    assert_eq!(ended(attached).await.code, 42);
    // The end of standard input arrives.
    let mut attached =
        world.runtime.exec("a", process(&["wc", "-c"]), true, true, false).await.unwrap();
    let stdin = attached.stdin.take().unwrap();
    put(&stdin, "12345");
    drop(stdin);
    assert_eq!(read_all(attached.stdout.take()).await, "5\n");
    assert_eq!(ended(attached).await.code, 0);
    let attached = world
        .runtime
        .exec("a", process(&["sh", "-c", "kill -9 $$"]), false, false, false)
        .await
        .unwrap();
    let exit = ended(attached).await;
    assert_eq!((exit.code, exit.signal), (137, 9));
}

async fn exec_joins_the_container(world: Rc<World>) {
    sleeper(&world, "a").await;
    let script = "hostname; cat /proc/1/cmdline | tr '\\0' ' '; echo; cat /proc/self/cgroup | grep -c memory:/$; \
                  grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; id -u";
    let mut inside = process(&["sh", "-c", script]);
    inside.user = "web".to_owned();
    inside.no_new_privileges = true;
    let mut attached = world.runtime.exec("a", inside, false, true, true).await.unwrap();
    let text = read_all(attached.stdout.take()).await;
    assert!(text.starts_with("box\nsleep 1000 \n1\n"), "{text}");
    assert!(text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"), "{text}");
    assert!(text.ends_with("33\n"), "{text}");
    assert_eq!(ended(attached).await.code, 0);
}

async fn exec_of_a_missing_program_is_refused(world: Rc<World>) {
    sleeper(&world, "a").await;
    let missing = world.runtime.exec("a", process(&["nope"]), false, true, true).await;
    match missing.unwrap_err() {
        Error::CannotStart { step, cause, .. } => {
            assert_eq!(
                (step.as_str(), cause.as_str()),
                ("exec", "\"nope\": executable file not found in $PATH")
            );
        }
        other => panic!("{other}"),
    }
    let nowhere = world.runtime.exec("b", process(&["true"]), false, true, true).await;
    assert!(matches!(nowhere, Err(Error::NotFound(_))));
    world.run(world.program("c", &["true"])).await;
    assert!(world.runtime.exec("c", process(&["true"]), false, true, true).await.is_err());
}

async fn exec_with_a_terminal_takes_sizes(world: Rc<World>) {
    sleeper(&world, "a").await;
    let mut shell = process(&["sh"]);
    shell.tty = true;
    shell.size = Some((100, 30));
    let mut attached = world.runtime.exec("a", shell, true, true, true).await.unwrap();
    assert!(attached.stderr.is_none());
    let (stdin, stdout) = (attached.stdin.take().unwrap(), attached.stdout.take().unwrap());
    put(&stdin, "stty size; test -t 0 && echo is-a-$((1+1))-tty\n");
    let text = read_until(&stdout, "is-a-2-tty").await;
    assert!(text.contains("30 100"), "{text}");
    attached.resize.as_ref().unwrap().send((71, 17)).await.unwrap();
    put(&stdin, "while ! stty size | grep '17 71'; do usleep 1000; done; echo siz''ed\n");
    read_until(&stdout, "sized").await;
    put(&stdin, "exit 6\n");
    assert_eq!(ended(attached).await.code, 6);
}

async fn several_attachments_see_the_same(world: Rc<World>) {
    let mut spec = world.shell("a", "echo first; read go; echo $go; echo oops >&2; exit 2");
    spec.stdin = true;
    world.runtime.start(spec).await.unwrap();
    wait_for_log(&world, "a", "first").await;
    let mut one = world.runtime.attach("a", true).await.unwrap();
    let mut two = world.runtime.attach("a", false).await.unwrap();
    assert!(two.stdin.is_none() && one.resize.is_none());
    put(one.stdin.as_ref().unwrap(), "go on\n");
    for attached in [&mut one, &mut two] {
        assert_eq!(read_all(attached.stdout.take()).await, "go on\n");
        assert_eq!(read_all(attached.stderr.take()).await, "oops\n");
    }
    assert_eq!(ended(one).await.code, 2);
    assert_eq!(ended(two).await.code, 2);
    assert!(matches!(world.runtime.attach("none", false).await, Err(Error::NotFound(_))));
}

async fn a_slow_attachment_does_not_stop_the_container(world: Rc<World>) {
    let mut exits = world.runtime.exits();
    let mut spec =
        world.shell("a", "read go; yes 0123456789abcdef | head -c 3000000; echo; echo done");
    spec.stdin = true;
    world.runtime.start(spec).await.unwrap();
    let lazy = world.runtime.attach("a", true).await.unwrap();
    put(lazy.stdin.as_ref().unwrap(), "go\n");
    // It never reads; after some patience it is dropped and the container goes on.
    assert_eq!(exit_of(&mut exits, "a").await.code, 0);
    assert!(world.log("a").ends_with("done\n"));
}

async fn standard_input_goes_in_and_ends(world: Rc<World>) {
    let mut spec = world.program("a", &["wc", "-c"]);
    (spec.stdin, spec.stdin_once, spec.wait_for_attach) = (true, true, true);
    world.runtime.start(spec).await.unwrap();
    let mut attached = world.runtime.attach("a", true).await.unwrap();
    let stdin = attached.stdin.take().unwrap();
    // More than all buffers on the way together.
    let mut pipe = tokio::net::unix::pipe::Sender::from_owned_fd(stdin).unwrap();
    let bytes = vec![b'x'; 1_000_000];
    within(tokio::io::AsyncWriteExt::write_all(&mut pipe, &bytes), "room").await.unwrap();
    drop(pipe);
    assert_eq!(read_all(attached.stdout.take()).await, "1000000\n");
    assert_eq!(ended(attached).await.code, 0);
}

async fn a_terminal_is_shared_and_resized(world: Rc<World>) {
    let mut spec = world.program("a", &["sh"]);
    spec.process.tty = true;
    spec.process.size = Some((90, 20));
    spec.stdin = true;
    world.runtime.start(spec).await.unwrap();
    let mut attached = world.runtime.attach("a", true).await.unwrap();
    let (stdin, stdout) = (attached.stdin.take().unwrap(), attached.stdout.take().unwrap());
    put(&stdin, "stty size; test -c /dev/console && echo o''kay\n");
    let text = read_until(&stdout, "okay").await;
    assert!(text.contains("20 90"), "{text}");
    attached.resize.as_ref().unwrap().send((71, 17)).await.unwrap();
    put(&stdin, "while ! stty size | grep '17 71'; do usleep 1000; done; echo siz''ed\n");
    read_until(&stdout, "sized").await;
    // Letting go and coming back finds the same shell.
    put(&stdin, "v=kept\n");
    drop((stdin, stdout, attached));
    let mut attached = world.runtime.attach("a", true).await.unwrap();
    put(attached.stdin.as_ref().unwrap(), "echo $v-it; exit 3\n");
    read_until(attached.stdout.as_ref().unwrap(), "kept-it").await;
    attached.stdout = None;
    assert_eq!(ended(attached).await.code, 3);
}

async fn output_is_held_for_the_first_attachment(world: Rc<World>) {
    let mut spec = world.shell("a", "echo first; read x; echo last");
    (spec.wait_for_attach, spec.stdin) = (true, true);
    world.runtime.start(spec).await.unwrap();
    let mut attached = world.runtime.attach("a", true).await.unwrap();
    put(attached.stdin.as_ref().unwrap(), "\n");
    assert_eq!(read_all(attached.stdout.take()).await, "first\nlast\n");
    assert_eq!(ended(attached).await.code, 0);
    assert_eq!(world.log("a"), "first\nlast\n");
}

async fn output_is_held_even_after_the_end(world: Rc<World>) {
    let mut spec = world.shell("a", "echo quick; exit 8");
    spec.wait_for_attach = true;
    assert_eq!(world.run(spec).await.code, 8);
    let mut attached = world.runtime.attach("a", false).await.unwrap();
    assert_eq!(read_all(attached.stdout.take()).await, "quick\n");
    assert_eq!(ended(attached).await.code, 8);
}

async fn early_output_is_kept_for_the_one_client_that_is_on_its_way(world: Rc<World>) {
    let mut spec = world.shell("a", "echo early; echo odd >&2; read x; echo late; exit 4");
    (spec.stdin, spec.stdin_once, spec.keep_early) = (true, true, true);
    world.runtime.start(spec).await.unwrap();
    let mut first = world.runtime.attach("a", true).await.unwrap();
    let early = read_until(first.stdout.as_ref().unwrap(), "\n").await;
    let odd = read_until(first.stderr.as_ref().unwrap(), "\n").await;
    assert_eq!((early.as_str(), odd.as_str()), ("early\n", "odd\n"));
    let mut second = world.runtime.attach("a", false).await.unwrap();
    put(first.stdin.as_ref().unwrap(), "\n");
    assert_eq!(read_all(first.stdout.take()).await, "late\n");
    assert_eq!(read_all(second.stdout.take()).await, "late\n");
    assert_eq!(ended(first).await.code, 4);
}

async fn early_output_begins_where_the_log_was_read_to(world: Rc<World>) {
    let script = "echo early; printf half; echo odd >&2; read x; echo ' late'";
    let mut spec = world.shell("a", script);
    (spec.stdin, spec.stdin_once, spec.keep_early) = (true, true, true);
    world.runtime.start(spec).await.unwrap();
    // Whatever has come by now is in the log or comes with the attachment, and never in both.
    let end = world.runtime.log_seen("a").await.unwrap().unwrap();
    let log = std::fs::read(world.log_path("a")).unwrap();
    let seen = String::from_utf8_lossy(&log[..end as usize]).into_owned();
    let mut first = world.runtime.attach("a", true).await.unwrap();
    put(first.stdin.as_ref().unwrap(), "\n");
    let all = |stream: &str, rest: &str| {
        let lines = seen.lines().filter_map(|line| line.splitn(4, ' ').nth(3).zip(Some(line)));
        let of = lines.filter(|(_, line)| line.split(' ').nth(1) == Some(stream));
        of.map(|(text, _)| format!("{text}\n")).collect::<String>() + rest
    };
    assert_eq!(all("stdout", &read_all(first.stdout.take()).await), "early\nhalf late\n");
    assert_eq!(all("stderr", &read_all(first.stderr.take()).await), "odd\n");
    // Nothing is kept any more.
    assert_eq!(world.runtime.log_seen("a").await.unwrap(), None);

    let mut spec = world.shell("b", "echo all; exit 5");
    (spec.stdin, spec.stdin_once, spec.keep_early) = (true, true, true);
    assert_eq!(world.run(spec).await.code, 5);
    let end = world.runtime.log_seen("b").await.unwrap().unwrap();
    assert_eq!(end, std::fs::metadata(world.log_path("b")).unwrap().len());
    let mut first = world.runtime.attach("b", true).await.unwrap();
    assert_eq!(read_all(first.stdout.take()).await, "");
    assert_eq!(ended(first).await.code, 5);
}

async fn early_output_outlives_the_container_and_is_given_once(world: Rc<World>) {
    let mut spec = world.shell("a", "seq 1 30000; exit 5");
    (spec.stdin, spec.stdin_once, spec.keep_early) = (true, true, true);
    assert_eq!(world.run(spec).await.code, 5);
    let mut first = world.runtime.attach("a", true).await.unwrap();
    // What an attached client has been given is not lost with the container.
    world.runtime.remove("a").await.unwrap();
    let text = read_all(first.stdout.take()).await;
    assert_eq!(text.len(), 64 * 1024);
    assert!(text.ends_with("\n29999\n30000\n"));
    assert_eq!(ended(first).await.code, 5);

    let mut silent = world.shell("b", "exit 0");
    (silent.stdin, silent.stdin_once, silent.keep_early) = (true, true, true);
    world.run(silent).await;
    let mut first = world.runtime.attach("b", false).await.unwrap();
    assert_eq!(read_all(first.stdout.take()).await, "");
    let second = world.runtime.attach("b", false).await.unwrap();
    assert!(second.stdout.is_none() && second.stderr.is_none());
}

async fn a_full_disk_does_not_stop_a_container(world: Rc<World>) {
    let disk = world.dir.join("disk");
    std::fs::create_dir_all(&disk).unwrap();
    dhow_kernel::mount::tmpfs(&disk, "test", 65536, 0o755, rustix::mount::MountFlags::empty())
        .unwrap();
    let mut spec = world.shell("a", "seq 1 50000; echo done");
    spec.log = Some(LogSpec { path: disk.join("0.log"), max_size: 0, max_files: 1 });
    let exit = world.run(spec).await;
    let dropped = world.runtime.dropped_log_bytes().await.unwrap();
    let text = std::fs::read_to_string(disk.join("0.log")).unwrap();
    dhow_kernel::mount::unmount_lazily(&disk).unwrap();
    assert_eq!(exit.code, 0);
    assert!(dropped > 1_000_000, "{dropped}");
    assert!(text.ends_with('\n'), "a torn line: {:?}", &text[text.len().saturating_sub(100)..]);
    assert!(text.lines().all(|line| line.splitn(4, ' ').count() == 4));
}

async fn logs_are_rotated(world: Rc<World>) {
    let mut spec = world.shell("a", "seq 1 20000");
    let path = world.log_path("a");
    spec.log = Some(LogSpec { path: path.clone(), max_size: 100_000, max_files: 3 });
    assert_eq!(world.run(spec).await.code, 0);
    let size = |name: &str| std::fs::metadata(world.dir.join(name)).map(|m| m.len()).ok();
    for name in ["a.log", "a.log.1", "a.log.2"] {
        assert!(size(name).is_some_and(|size| size <= 100_000), "{name}: {:?}", size(name));
    }
    assert_eq!(size("a.log.3"), None);
    assert!(world.log("a").ends_with("\n20000\n"));
}
