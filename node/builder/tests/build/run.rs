//! Commands of RUN: what they see, what stays of them, and what happens when they fail.

use crate::harness::World;
use dhow_builder::{Event, Options};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

crate::tests![
    commands_see_what_the_image_says,
    commands_change_the_image_and_nothing_else,
    here_documents_are_scripts,
    commands_run_without_a_base,
    output_comes_as_it_is_written,
    a_failing_command_ends_the_build_and_leaves_nothing,
    a_command_that_cannot_start_says_why,
    a_build_can_be_stopped,
    what_a_killed_build_left_is_cleared_up,
    a_launcher_that_ran_before_stays,
];

fn commands_see_what_the_image_says(world: &World) {
    world.base();
    world.write(
        "Dockerfile",
        "FROM box\nARG arg=1 shadow=arg\nENV shadow=env\nWORKDIR /w\nUSER web:logs\nRUN echo $arg $shadow $HTTP_PROXY; id -u; id -g; pwd; echo ~\n\
         USER root\nSHELL [\"/bin/sh\", \"-euc\"]\nRUN [\"/bin/echo\", \"exec $arg\"]\nRUN ls /sys/class/net; echo $-\n",
    );
    let mut options = world.options();
    options.arguments = vec!["HTTP_PROXY=proxy".into()];
    let (image, said) = world.build_with(&options);
    let image = image.unwrap();
    let lines: Vec<&str> = said.output.lines().collect();
    assert_eq!(lines[..5], ["1 env proxy", "33", "40", "/w", "/tmp"]);
    assert_eq!(lines[5], "exec $arg");
    // There is no network but loopback.
    assert_eq!(lines[6], "lo");
    assert!(lines[7].contains('e') && lines[7].contains('u'), "{lines:?}");
    assert!(!world.config(&image).to_string().contains("proxy"));
}

fn commands_change_the_image_and_nothing_else(world: &World) {
    world.base();
    world.write("d/x", "x");
    world.write("d/y", "y");
    let image = world.build(
        "FROM box\nCOPY d /d\nCOPY d /e\nCOPY d /f\nRUN rm /d/x && rm -r /e && mkdir /e && echo 1 > /e/z && mv /f /g && chmod 700 /g\n\
         USER web\nRUN echo mine > /tmp/mine || echo no\nUSER 0\nRUN echo mine > /mine; exit 0\n",
    );
    assert_eq!(world.paths(&image, "d"), ["y"]);
    assert_eq!(world.paths(&image, "e"), ["z"]);
    assert_eq!(world.paths(&image, "g"), ["x", "y"]);
    let names = world.look(&image, |root| {
        assert_eq!(root.join("g").metadata().unwrap().mode() & 0o777, 0o700);
        let mut names: Vec<_> =
            std::fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    });
    // The directories that the runtime mounts on are not there.
    assert_eq!(names, ["bin", "d", "e", "etc", "g", "mine", "tmp"]);
    // What was removed stays removed after a trip through an archive.
    let mut archive = Vec::new();
    world.images.save("test", &mut archive).unwrap();
    let other = dhow_images::Images::open(&world.dir.join("other")).unwrap();
    let loaded = other.load(&mut &archive[..]).unwrap();
    assert_eq!(world.paths(&loaded[0], ""), world.paths(&image, ""));
}

fn here_documents_are_scripts(world: &World) {
    world.base();
    let image = world.build(
        "FROM box\nENV N=1\nRUN <<EOF\necho one $N > /one\necho two >> /one\nEOF\nRUN <<'X'\n#!/bin/cat\nthe script $N\nX\n\
         RUN cat <<A > /a && cat <<-\"B\" > /b\na $N\nA\n\tb $N\n\tB\n",
    );
    assert_eq!(world.text(&image, "one"), "one 1\ntwo\n");
    assert_eq!(world.text(&image, "a"), "a 1\n");
    assert_eq!(world.text(&image, "b"), "b $N\n");
}

fn commands_run_without_a_base(world: &World) {
    std::fs::copy(dhow_harness::busybox(), world.write("busybox", "")).unwrap();
    let image = world.build(
        "FROM scratch\nCOPY busybox /bin/sh\nRUN echo 1 > /made\nFROM scratch\nCOPY --from=0 /made /\n",
    );
    assert_eq!(world.paths(&image, ""), ["made"]);
}

fn output_comes_as_it_is_written(world: &World) {
    world.base();
    world.write("Dockerfile", "FROM box\nRUN echo out; echo err >&2; echo -n last\n");
    let (built, said) = world.build_with(&world.options());
    built.unwrap();
    let mut lines: Vec<&str> = said.output.split('\n').collect();
    lines.sort_unstable();
    assert!(said.output.contains("out\n") && said.output.contains("err\n"), "{said:?}");
    assert!(said.output.contains("last"), "{said:?}");
}

fn a_failing_command_ends_the_build_and_leaves_nothing(world: &World) {
    world.base();
    let old = world.build("FROM box\nRUN echo 1 > /old\n");
    let refused = world.refused("FROM box\nRUN echo 1 > /new\n\nRUN echo 2 > /new; \\\n  exit 3\n");
    assert_eq!(refused, "Dockerfile:4: RUN: \"echo 2 > /new;   exit 3\" failed with exit code 3");
    let refused = world.refused("FROM box\nRUN [\"/bin/sh\", \"-c\", \"exit 7\"]\n");
    assert_eq!(refused, "Dockerfile:2: RUN: \"/bin/sh -c exit 7\" failed with exit code 7");
    assert_eq!(world.images.get("test").unwrap(), old);
    // What worked before it need not be done again.
    world.write("Dockerfile", "FROM box\nRUN echo 1 > /new\n");
    let (_, said) = world.build_with(&world.options());
    assert!(said.ran().is_empty(), "{said:?}");
}

fn a_command_that_cannot_start_says_why(world: &World) {
    world.base();
    let refused = world.refused("FROM box\nSHELL [\"/bin/bash\", \"-c\"]\nRUN make all\n");
    assert!(refused.starts_with("Dockerfile:3: RUN: \"make all\" cannot start: "), "{refused}");
    assert!(refused.ends_with("(is /bin/bash in the image?)"), "{refused}");
    let refused = world.refused("FROM box\nUSER nobody\nRUN true\n");
    let why = "unable to find user nobody: no matching entries in passwd file";
    assert!(refused.ends_with(why), "{refused}");
}

fn a_build_can_be_stopped(world: &World) {
    world.base();
    world.write("Dockerfile", "FROM box\nRUN echo started; sleep 1000\n");
    let (stopper, stop) = tokio::sync::watch::channel(false);
    let options = Options { stop, ..world.options() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut report = |event: Event<'_>| {
        if let Event::Output(_) = event {
            stopper.send_replace(true);
        }
    };
    let built = runtime.block_on(dhow_builder::build(&world.images, &options, &mut report));
    assert_eq!(built.unwrap_err().to_string(), "the build was stopped; no image was made");
    assert!(world.images.get("test").is_err());
}

/// A process that builds and is killed in the middle of a command.
pub fn build_that_is_killed(dir: &Path) {
    let cgroup = dir.file_name().unwrap().to_str().unwrap();
    let world = World::at(dir, cgroup);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut report = |event: Event<'_>| {
        if let Event::Output(_) = event {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        }
    };
    let options = world.options();
    let _ = runtime.block_on(dhow_builder::build(&world.images, &options, &mut report));
}

fn what_a_killed_build_left_is_cleared_up(world: &World) {
    world.base();
    world.write("Dockerfile", "FROM box\nRUN echo started; sleep 1000\n");
    let ended = Command::new(std::env::current_exe().unwrap())
        .arg("build-that-is-killed")
        .arg(&world.dir)
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(ended.signal(), Some(9));
    let left = || std::fs::read_dir(world.dir.join("images/tmp")).unwrap().count();
    assert_eq!(left(), 1);
    // The command ends with the build, and the launcher that nobody uses any more.
    let until = Instant::now() + Duration::from_secs(20);
    while world.dir.join("run").exists() {
        assert!(Instant::now() < until, "the command of a killed build runs on");
        std::thread::yield_now();
    }
    world.build("FROM box\nRUN echo fine\n");
    assert_eq!(left(), 0);
}

fn a_launcher_that_ran_before_stays(world: &World) {
    world.base();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let launcher = runtime.block_on(dhow_runtime::Runtime::open(world.options().runtime)).unwrap();
    world.build("FROM box\nRUN echo 1\n");
    assert!(runtime.block_on(launcher.containers()).unwrap().is_empty());
    runtime.block_on(launcher.shutdown()).unwrap();
}
