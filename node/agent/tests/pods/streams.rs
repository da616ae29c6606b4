//! Logs, commands, attach and port-forward against real containers.

use crate::lab::{FOREVER, Lab, shell, within};
use crate::lifecycle::waiting;
use dhow_intents::{AttachRequest, ExecRequest, LogRequest, SessionExit, Streams};
use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

crate::tests![
    logs_are_followed_to_the_end_of_the_container,
    a_command_gets_its_input_and_tells_its_code,
    a_command_may_have_a_terminal,
    attach_reaches_the_containers_own_streams,
    a_port_of_the_pod_is_reached_from_outside,
    what_is_not_there_is_told,
];

async fn logs_are_followed_to_the_end_of_the_container(lab: Arc<Lab>) {
    let mut pod = shell("job", "echo one; sleep 0.2; echo two; sleep 0.2; echo three >&2");
    pod["spec"]["restartPolicy"] = json!("Never");
    lab.feed.create(pod);
    lab.feed.until_event("Started", "").await;
    let follow = LogRequest { follow: true, ..LogRequest::default() };
    assert_eq!(lab.logs("job", follow).await, "one\ntwo\nthree\n");
}

async fn a_command_gets_its_input_and_tells_its_code(lab: Arc<Lab>) {
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    assert_eq!(
        lab.exec("web", "main", "echo out; echo err >&2; exit 7").await,
        (7, "out\nerr\n".into())
    );
    let request = ExecRequest {
        command: vec!["cat".into()],
        stdin: true,
        stdout: true,
        ..ExecRequest::default()
    };
    let mut session = lab.agent().exec(lab.pod("web"), request).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    drop(stdin);
    let mut output = String::new();
    within("cat", session.stdout.unwrap().read_to_string(&mut output)).await.unwrap();
    assert_eq!(output, "hello");
    assert_eq!(session.exit.await, Ok(SessionExit::Code(0)));
}

async fn a_command_may_have_a_terminal(lab: Arc<Lab>) {
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    let request = ExecRequest {
        command: ["sh", "-c", "test -t 1 && echo terminal"].map(str::to_owned).to_vec(),
        stdout: true,
        tty: true,
        ..ExecRequest::default()
    };
    let session = lab.agent().exec(lab.pod("web"), request).await.unwrap();
    let mut output = String::new();
    within("a terminal", session.stdout.unwrap().read_to_string(&mut output)).await.unwrap();
    assert_eq!(output, "terminal\r\n");
}

async fn attach_reaches_the_containers_own_streams(lab: Arc<Lab>) {
    let mut pod = shell("echo", "while read line; do echo got $line; done");
    pod["spec"]["containers"][0]["stdin"] = json!(true);
    pod["spec"]["restartPolicy"] = json!("Never");
    lab.feed.create(pod);
    lab.feed.until_ready("echo").await;
    let request = AttachRequest { stdin: true, stdout: true, ..AttachRequest::default() };
    let mut session = lab.agent().attach(lab.pod("echo"), request).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"it\n").await.unwrap();
    let mut output = [0; 7];
    within("an echo", session.stdout.as_mut().unwrap().read_exact(&mut output)).await.unwrap();
    assert_eq!(&output, b"got it\n");
}

async fn a_port_of_the_pod_is_reached_from_outside(lab: Arc<Lab>) {
    let mut pod = shell(
        "web",
        "mkdir /www; echo hi > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www",
    );
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["sh", "-c", "echo | nc 127.0.0.1 8080"]}});
    lab.feed.create(pod);
    lab.feed.until_ready("web").await;
    let mut stream = lab.agent().forward(lab.pod("web"), 8080).await.unwrap();
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("hi\n"), "{answer}");
    let Err(refused) = lab.agent().forward(lab.pod("web"), 9).await else { panic!("connected") };
    assert!(refused.to_string().contains("connection refused"), "{refused}");
}

async fn what_is_not_there_is_told(lab: Arc<Lab>) {
    let missing = lab.agent().logs(lab.pod("none"), LogRequest::default()).await.unwrap_err();
    assert!(missing.to_string().contains("shop/none"));
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    let request = LogRequest { container: "nope".into(), ..LogRequest::default() };
    let wrong = lab.agent().logs(lab.pod("web"), request).await.unwrap_err();
    assert_eq!(wrong.to_string(), "container nope is not valid for pod web");
    let request = LogRequest { previous: true, ..LogRequest::default() };
    let none = lab.agent().logs(lab.pod("web"), request).await.unwrap_err();
    assert!(none.to_string().contains("previous terminated container \"main\""));
    let mut lost = shell("lost", FOREVER);
    lost["spec"]["containers"][0]["image"] = json!("atlantis:v1");
    lost["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    lab.feed.create(lost);
    let never = |s: &PodStatus| waiting(s, "main").0 == "ErrImageNeverPull";
    lab.feed.until_pod("lost", "its reason", never).await;
    let waits = lab.agent().logs(lab.pod("lost"), LogRequest::default()).await.unwrap_err();
    let wanted = "container \"main\" in pod \"lost\" is waiting to start: ErrImageNeverPull";
    assert_eq!(waits.to_string(), wanted);
}
