//! Live streams, driven by the real kubectl over both transports.

mod common;

use common::Platform;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Both transports: what kubectl prefers, and what it falls back to.
const TRANSPORTS: [&str; 2] = ["true", "false"];

async fn say(
    platform: &Platform,
    sockets: &str,
    arguments: &[&str],
    input: &[u8],
) -> (i32, Vec<u8>, String) {
    let mut command = platform.command("kubernetes-admin");
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", sockets).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    let limit = std::time::Duration::from_secs(60);
    let output = tokio::time::timeout(limit, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("kubectl {arguments:?} hangs"))
        .unwrap();
    feeding.await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), output.stdout, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_with_their_streams_and_exit_codes() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    let big: Vec<u8> = (0..1_500_000u32).map(|n| (n * 7 % 251) as u8).collect();
    for sockets in TRANSPORTS {
        let split = ["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 3"];
        let (code, out, err) = say(&platform, sockets, &split, b"").await;
        assert_eq!((code, out.as_slice()), (3, &b"out\n"[..]), "{err}");
        assert!(err.starts_with("err\n"), "{err}");
        // Everything comes back, and the end of standard input arrives.
        let (code, out, err) =
            say(&platform, sockets, &["exec", "-i", "web", "--", "cat"], &big).await;
        assert_eq!(code, 0, "{err}");
        assert!(out == big, "{} of {} bytes came back", out.len(), big.len());
        let (code, _, err) = say(&platform, sockets, &["exec", "web", "--", "no-such"], b"").await;
        assert_eq!(code, 1);
        assert!(err.contains("cannot run \"no-such\""), "{err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    let text = "tide\n".repeat(100_000);
    let from = platform.file("from", &text);
    let inside = platform.directory.path().join("inside").display().to_string();
    let back = platform.directory.path().join("back").display().to_string();
    platform.kubectl(&["cp", &from, &format!("web:{inside}")]).await;
    platform.kubectl(&["cp", &format!("web:{inside}"), &back]).await;
    assert!(std::fs::read_to_string(back).unwrap() == text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_attached_to() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    for sockets in TRANSPORTS {
        let arguments = ["attach", "-i", "web"];
        let (code, out, err) = say(&platform, sockets, &arguments, b"hello\nbye\n").await;
        assert_eq!(code, 0, "{err}");
        assert_eq!(String::from_utf8_lossy(&out), "attached\nHELLO\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_container_is_chosen() {
    let platform = Platform::start().await;
    platform.running_pod("two", &["left", "right"]).await;
    let raw = "/api/v1/namespaces/default/pods/two/log";
    let said = platform.try_kubectl(&["get", "--raw", raw]).await;
    let told = "a container name must be specified for pod two, choose one of: [left right]";
    assert!(said.err.contains(told), "{said:?}");
    let wrong = format!("{raw}?container=middle");
    let said = platform.try_kubectl(&["get", "--raw", &wrong]).await;
    assert!(said.err.contains("container middle is not valid for pod two"), "{said:?}");
    assert_eq!(platform.kubectl(&["logs", "two", "-c", "right", "--tail=1"]).await, "line 2\n");
    assert_eq!(platform.machine.asked.lock().unwrap()[0].container, "right");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_read_and_followed() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    assert_eq!(platform.kubectl(&["logs", "web"]).await, "line 0\nline 1\nline 2\n");
    platform.kubectl(&["logs", "web", "--since=5s", "--timestamps", "--limit-bytes=9"]).await;
    let asked = platform.machine.asked.lock().unwrap().last().cloned().unwrap();
    assert!(asked.timestamps && asked.since.is_some());
    assert_eq!(asked.limit_bytes, Some(9));
    let previous = platform.try_kubectl(&["logs", "web", "--previous"]).await;
    assert!(previous.err.contains("previous terminated container"), "{previous:?}");
    let mut follow = platform.command("kubernetes-admin");
    follow.args(["logs", "-f", "web"]).stdout(Stdio::piped());
    let mut follow = follow.spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    for expected in ["line 0", "line 1", "line 2", "followed"] {
        assert_eq!(lines.next_line().await.unwrap().unwrap(), expected);
    }
    follow.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    let inside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = inside.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = inside.accept().await.unwrap();
            tokio::spawn(async move {
                let mut all = vec![0; 200_000];
                socket.read_exact(&mut all).await.unwrap();
                all.reverse();
                socket.write_all(&all).await.unwrap();
            });
        }
    });
    for sockets in TRANSPORTS {
        let mut forward = platform.command("kubernetes-admin");
        forward.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", sockets);
        forward.args(["port-forward", "web", &format!(":{port}")]).stdout(Stdio::piped());
        let mut forward = forward.spawn().unwrap();
        let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
        // Forwarding from 127.0.0.1:PORT -> ...
        let told = lines.next_line().await.unwrap().unwrap();
        let local: u16 =
            told.split([':', ' ']).find_map(|word| word.parse().ok()).expect("a local port");
        let mut running = Vec::new();
        for _ in 0..4 {
            running.push(tokio::spawn(async move {
                let mut socket = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
                let sent: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
                let (mut from, mut to) = socket.split();
                let mut back = vec![0; sent.len()];
                let (wrote, read) = tokio::join!(to.write_all(&sent), from.read_exact(&mut back));
                wrote.unwrap();
                read.unwrap();
                back.reverse();
                assert!(back == sent);
            }));
        }
        for one in running {
            one.await.unwrap();
        }
        forward.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_tells_its_size() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    // `script` gives kubectl a terminal.
    let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
    let line =
        format!("stty cols 91 rows 17; {program} exec -it web -- sh -c 'read x; echo got $x'");
    let mut command = tokio::process::Command::new("script");
    command
        .args(["-qec", &line, "/dev/null"])
        .env("KUBECONFIG", platform.kubeconfig("kubernetes-admin"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().expect("script (bsdutils) must be installed");
    let mut stdin = child.stdin.take().unwrap();
    let sizes = platform.machine.sizes.clone();
    let typing = async move {
        // The size comes with the session; then the line is typed.
        while sizes.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        stdin.write_all(b"ahoy\n").await.unwrap();
        stdin
    };
    let limit = std::time::Duration::from_secs(30);
    let stdin = tokio::time::timeout(limit, typing).await.expect("a size within 30 s");
    let mut out = String::new();
    let mut stdout = child.stdout.take().unwrap();
    tokio::time::timeout(limit, stdout.read_to_string(&mut out)).await.unwrap().unwrap();
    drop(stdin);
    assert!(out.contains("got ahoy"), "{out}");
    assert_eq!(platform.machine.sizes.lock().unwrap()[0], (91, 17));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reached_says_so() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    let pods = dhow_objects::kinds::find("", "v1", "pods").unwrap();
    let json = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "far"},
        "spec": {"nodeName": "n9", "containers": [{"name": "main", "image": "x"}]},
    });
    let actor = dhow_state::platform();
    let options = dhow_state::WriteOptions::default();
    platform.state.create(&actor, pods, "default", json, &options).await.unwrap();
    let far = platform.try_kubectl(&["logs", "far"]).await;
    assert!(far.err.contains("node \"n9\" is not connected"), "{far:?}");
    let none = platform.try_kubectl(&["exec", "none", "--", "true"]).await;
    assert!(none.err.contains("pods \"none\" not found"), "{none:?}");
    let guest = platform.kubectl_as("guest", &["logs", "web"]).await;
    assert!(guest.err.contains("Forbidden"), "{guest:?}");
    let proxy = "/api/v1/namespaces/default/pods/web/proxy/";
    let proxied = platform.try_kubectl(&["get", "--raw", proxy]).await;
    assert!(!proxied.ok, "{proxied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_client() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    for sockets in TRANSPORTS {
        let mut exec = platform.command("kubernetes-admin");
        exec.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", sockets);
        exec.args(["exec", "web", "--", "sh", "-c", "echo begun; exec sleep 1000"]);
        let mut exec = exec.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(exec.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "begun");
        exec.kill().await.unwrap();
        let limit = std::time::Duration::from_secs(20);
        let left = platform.machine.left.notified();
        tokio::time::timeout(limit, left).await.expect("the process is told");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_pods_does_not_run_commands_in_them() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    let resources = "--resource=pods,pods/log,pods/exec";
    platform.kubectl(&["create", "role", "look", "--verb=get,list", resources]).await;
    platform.kubectl(&["create", "rolebinding", "look", "--role=look", "--user=guest"]).await;
    let log = platform.kubectl_as("guest", &["logs", "web"]).await;
    assert!(log.ok, "{log:?}");
    let exec = platform.kubectl_as("guest", &["exec", "web", "--", "true"]).await;
    let told = "User \"guest\" cannot create resource \"pods/exec\"";
    assert!(exec.err.contains(told), "{exec:?}");
}
