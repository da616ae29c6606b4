//! Launchers of other versions: containers outlive an upgrade of the program.

use crate::harness::{World, within};
use dhow_runtime::{Config, Error, Runtime};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

crate::tests![
    a_launcher_of_the_version_before_goes_on_with_its_containers,
    a_launcher_of_the_version_before_is_replaced_when_it_has_nothing,
    a_launcher_that_speaks_none_of_our_versions_is_refused,
];

/// A container as version 2 listed it.
const OLD_CONTAINER: &str = r#"{"spec":{"id":"old","sandbox":null,"rootfs":{"Directory":"/nowhere"},
    "read_only_rootfs":false,"process":{"args":["sh"],"env":[],"cwd":"","user":"","uid":null,
    "gid":null,"supplementary_groups":[],"must_not_be_root":false,"capabilities":[],
    "no_new_privileges":false,"tty":false,"size":null,"seccomp":true},"hostname":"h","mounts":[],
    "limits":{"cpu_request_millis":0,"cpu_limit_millis":0,"memory_limit":0,"pids_limit":0},
    "oom_score_adj":0,"privileged":false,"host_pid":false,"pid_of":null,"stdin":false,
    "stdin_once":false,"log":null,"labels":{},"wait_for_attach":false},
    "phase":"Running","pid":4194303,"started_at":1,"exit":null}"#;

/// Where a stand-in for a launcher listens.
struct Place {
    config: Config,
    listener: UnixListener,
}

impl Place {
    fn new(world: &World, name: &str) -> Self {
        let dir = world.dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        // Socket addresses are short; directories are not.
        let handle = std::fs::File::open(&dir).unwrap();
        let path = format!("/proc/self/fd/{}/launcher.sock", handle.as_raw_fd());
        let listener = UnixListener::bind(path).unwrap();
        let cgroup = format!("{}-{name}", world.config.cgroup);
        Self { config: Config { dir, cgroup, ..world.config.clone() }, listener }
    }
}

/// Answers requests with what `words` makes of their text, until it makes nothing; then removes the
/// socket, as a launcher does that ends.
async fn stand_in(
    listener: UnixListener,
    socket: PathBuf,
    words: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let (mut client, _) = listener.accept().await.unwrap();
    let mut heard = Vec::new();
    while let Some(request) = receive(&mut client).await {
        let id = request["id"].as_u64().unwrap();
        let op = request["op"].to_string();
        heard.push(op.clone());
        let answer = words(&op);
        let last = answer.is_none();
        if last {
            std::fs::remove_file(&socket).unwrap();
        }
        let body = answer.unwrap_or_else(|| "\"Done\"".to_owned());
        send(&mut client, &format!(r#"{{"id":{id},"fds":0,"body":{body}}}"#)).await;
        if last {
            break;
        }
    }
    heard
}

async fn receive(client: &mut UnixStream) -> Option<serde_json::Value> {
    let length = client.read_u32_le().await.ok()?;
    let mut bytes = vec![0; length as usize];
    client.read_exact(&mut bytes).await.unwrap();
    Some(serde_json::from_slice(&bytes).unwrap())
}

async fn send(client: &mut UnixStream, text: &str) {
    client.write_u32_le(text.len() as u32).await.unwrap();
    client.write_all(text.as_bytes()).await.unwrap();
}

fn hello(version: u32, oldest: Option<u32>) -> String {
    let oldest = oldest.map_or(String::new(), |o| format!(r#","oldest":{o}"#));
    format!(r#"{{"Hello":{{"version":{version},"pid":77,"dropped_log_bytes":0{oldest}}}}}"#)
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("launcher.sock")
}

async fn a_launcher_of_the_version_before_goes_on_with_its_containers(world: Rc<World>) {
    let Place { config, listener } = Place::new(&world, "v2");
    let launcher = tokio::spawn(stand_in(listener, socket(&config.dir), |op| {
        Some(match op {
            op if op.contains("Hello") => hello(2, None),
            "\"Containers\"" => format!(r#"{{"Containers":[{OLD_CONTAINER}]}}"#),
            "\"Sandboxes\"" => r#"{"Sandboxes":[]}"#.to_owned(),
            op if op.contains("Start") => format!(r#"{{"Container":{OLD_CONTAINER}}}"#),
            _ => "\"Done\"".to_owned(),
        })
    }));
    let runtime = within(Runtime::open(config), "the old launcher").await.unwrap();
    let all = runtime.containers().await.unwrap();
    assert_eq!(all[0].spec.id, "old");
    runtime.kill("old", 15, false).await.unwrap();
    runtime.start(world.shell("new", "true")).await.unwrap();
    // What it cannot do is refused with a way out, not done otherwise.
    let mut shared = world.shell("shared", "true");
    shared.sandbox_pid = true;
    let Err(Error::Launcher(why)) = runtime.start(shared).await else { panic!("not refused") };
    assert!(why.contains("version 3") && why.contains("dhow down"), "{why}");
    let mut strict = world.shell("strict", "true");
    strict.process.no_image_groups = true;
    let Err(Error::Launcher(why)) = runtime.start(strict).await else { panic!("not refused") };
    assert!(why.contains("groups") && why.contains("version 4"), "{why}");
    drop(runtime);
    let heard = within(launcher, "the end of the connection").await.unwrap();
    assert!(!heard.iter().any(|op| op.contains("Shutdown") || op.contains("shared")), "{heard:?}");
}

async fn a_launcher_of_the_version_before_is_replaced_when_it_has_nothing(world: Rc<World>) {
    let Place { config, listener } = Place::new(&world, "idle");
    let launcher = tokio::spawn(stand_in(listener, socket(&config.dir), |op| match op {
        op if op.contains("Hello") => Some(hello(2, None)),
        "\"Containers\"" => Some(r#"{"Containers":[]}"#.to_owned()),
        "\"Sandboxes\"" => Some(r#"{"Sandboxes":[]}"#.to_owned()),
        "\"Shutdown\"" => None,
        other => panic!("asked for {other}"),
    }));
    let runtime = within(Runtime::open(config), "another launcher").await.unwrap();
    let heard = within(launcher, "the end of the old launcher").await.unwrap();
    assert_eq!(heard.last().unwrap(), "\"Shutdown\"");
    // This one is real, and of our version.
    let mut spec = world.shell("new", "echo from the new one");
    spec.log = None;
    runtime.start(spec).await.unwrap();
    runtime.shutdown().await.unwrap();
}

async fn a_launcher_that_speaks_none_of_our_versions_is_refused(world: Rc<World>) {
    for (name, version, oldest, taken) in
        [("far", 9, Some(8), false), ("near", 9, Some(3), true), ("first", 1, None, false)]
    {
        let Place { config, listener } = Place::new(&world, name);
        let words = move |_: &str| Some(hello(version, oldest));
        let launcher = tokio::spawn(stand_in(listener, socket(&config.dir), words));
        let opened = within(Runtime::open(config), "an answer").await;
        assert_eq!(opened.is_ok(), taken, "{name}: {opened:?}");
        if let Err(error) = &opened {
            let error = error.to_string();
            assert!(error.contains("process 77") && error.contains("dhow down"), "{error}");
        }
        drop(opened);
        within(launcher, "the end of the connection").await.unwrap();
    }
}
