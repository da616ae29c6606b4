//! `dhow run|ps|logs|exec|rm`: one container as people know it, which is a pod of one container.

use crate::cli::{Run, Target};
use crate::client::{Client, is_not_found};
use crate::commands::streams;
use crate::print::{self, Output};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::io::Write;
use std::pin::pin;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The container's name in the pods that `dhow run` makes.
const CONTAINER: &str = "main";

fn pod_path(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}

/// `dhow run`. Returns the container's exit code.
///
/// # Errors
/// When the platform refuses the pod or its container cannot start.
pub async fn run(run: Run) -> Result<i32> {
    let client = Client::new(&run.target.data_dir);
    let pod = pod(&run)?;
    let made = client.post(&format!("/api/v1/namespaces/{}/pods", run.namespace), &pod).await?;
    let name =
        made["metadata"]["name"].as_str().context("the platform made a pod without a name")?;
    if run.detach {
        println!("{name}");
        return Ok(0);
    }
    let path = pod_path(&run.namespace, name);
    let mut outcome = pin!(follow(&client, &run, &path, &made));
    let mut signals = Signals::new()?;
    let mut first = None;
    let outcome = loop {
        tokio::select! {
            outcome = &mut outcome => break outcome,
            signal = signals.next() => {
                let code = 128 + signal;
                if !run.rm {
                    eprintln!("container {name} runs on; 'dhow rm --force {name}' ends it");
                    return Ok(code);
                }
                // The first asks the container to end, and its end is waited for; the next ends it.
                let options = match first {
                    None => json!({}),
                    Some(_) => json!({"gracePeriodSeconds": 0}),
                };
                remove(&client, &path, &options).await?;
                if first.replace(code).is_some() {
                    return Ok(code);
                }
            }
        }
    };
    // Who asked it to end is not told that it ended.
    let outcome = match (outcome, first) {
        (Err(_), Some(code)) => Ok(code),
        (outcome, _) => outcome,
    };
    if run.rm {
        let options = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        if let Err(error) = remove(&client, &path, &options).await {
            return outcome.and(Err(error));
        }
    }
    outcome
}

/// Deletes a pod; fine if it is gone.
async fn remove(client: &Client, path: &str, options: &Value) -> Result<()> {
    match client.delete(path, options).await {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The signals by which people and programs end a command.
struct Signals([(i32, Signal); 3]);

impl Signals {
    fn new() -> Result<Self> {
        let on = |kind: SignalKind| Ok::<_, std::io::Error>((kind.as_raw_value(), signal(kind)?));
        let all = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = all.map(on);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    /// The number of the next one.
    async fn next(&mut self) -> i32 {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.1.recv() => interrupt.0,
            _ = terminate.1.recv() => terminate.0,
            _ = hangup.1.recv() => hangup.0,
        }
    }
}

/// What became of the container by one look at its pod.
enum Seen {
    Running,
    Ended(i32),
    Stuck(String),
}

fn look(pod: &Value) -> Option<Seen> {
    let status = &pod["status"];
    let state = &status["containerStatuses"][0]["state"];
    if let Some(code) = state["terminated"]["exitCode"].as_i64() {
        if state["terminated"]["reason"] == "StartError"
            || state["terminated"]["reason"] == "ContainerCannotRun"
        {
            let why = state["terminated"]["message"].as_str().unwrap_or("it cannot start");
            return Some(Seen::Stuck(why.to_owned()));
        }
        return Some(Seen::Ended(i32::try_from(code).unwrap_or(1)));
    }
    if state["running"].is_object() {
        return Some(Seen::Running);
    }
    let reason = state["waiting"]["reason"].as_str().unwrap_or_default();
    if [
        "ErrImagePull",
        "ErrImageNeverPull",
        "ImagePullBackOff",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    ]
    .contains(&reason)
    {
        let message = state["waiting"]["message"].as_str().unwrap_or(reason);
        return Some(Seen::Stuck(message.to_owned()));
    }
    match status["phase"].as_str() {
        Some("Failed") => {
            let why = status["message"]
                .as_str()
                .or(status["reason"].as_str())
                .unwrap_or("the pod failed");
            Some(Seen::Stuck(why.to_owned()))
        }
        _ => None,
    }
}

/// Why no machine takes the pod, while none does.
fn waits(pod: &Value) -> Option<&str> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let placed = conditions.iter().find(|condition| condition["type"] == "PodScheduled")?;
    (placed["status"] == "False")
        .then(|| placed["message"].as_str().unwrap_or("no machine takes it"))
}

async fn follow(client: &Client, run: &Run, path: &str, made: &Value) -> Result<i32> {
    let name = made["metadata"]["name"].as_str().unwrap_or_default();
    let revision = made["metadata"]["resourceVersion"].as_str().unwrap_or("0");
    let mut watch = client
        .watch(&format!(
            "/api/v1/namespaces/{}/pods?watch=true&fieldSelector=metadata.name%3D{name}&resourceVersion={revision}",
            run.namespace
        ))
        .await?;
    let mut told = String::new();
    let running = loop {
        let event = watch.next().await?;
        if let Some(why) = waits(&event.1).filter(|why| *why != told) {
            eprintln!("dhow: container {name} waits: {why}");
            why.clone_into(&mut told);
        }
        match seen(event, name)? {
            Some(Seen::Running) => break true,
            Some(Seen::Ended(code)) => {
                print_logs(client, path, false).await?;
                return Ok(code);
            }
            Some(Seen::Stuck(why)) => bail!("container {name} cannot run: {why}"),
            None => {}
        }
    };
    if run.interactive && running {
        let attach = format!(
            "{path}/attach?container={CONTAINER}&stdin=true&stdout=true&stderr={}&tty={}",
            !run.tty, run.tty
        );
        let socket = client.channels(&attach).await?;
        // Attach does not tell the container's exit code; the pod's status has it.
        let _ = streams::carry(socket, true, run.tty).await;
    } else {
        print_logs(client, path, true).await?;
    }
    loop {
        match seen(watch.next().await?, name)? {
            Some(Seen::Ended(code)) => return Ok(code),
            Some(Seen::Stuck(why)) => bail!("container {name} cannot run: {why}"),
            _ => {}
        }
    }
}

fn seen((kind, pod): (String, Value), name: &str) -> Result<Option<Seen>> {
    if kind == "DELETED" {
        bail!("container {name} was removed while it was waited for");
    }
    Ok(look(&pod))
}

/// Prints both output streams, each where it belongs.
async fn print_logs(client: &Client, path: &str, follow: bool) -> Result<()> {
    let of =
        |stream: &str| format!("{path}/log?container={CONTAINER}&follow={follow}&stream={stream}");
    let (out, err) = (of("Stdout"), of("Stderr"));
    tokio::try_join!(
        print_log(client, &out, std::io::stdout()),
        print_log(client, &err, std::io::stderr()),
    )?;
    Ok(())
}

async fn print_log(client: &Client, path: &str, mut out: impl Write) -> Result<()> {
    let response = client.send(Method::GET, path, "application/json", Bytes::new()).await?;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            out.write_all(&data)?;
            out.flush()?;
        }
    }
    Ok(())
}

fn pair<'a>(text: &'a str, flag: &str, form: &str) -> Result<(&'a str, &'a str)> {
    text.split_once(if flag == "--env" { '=' } else { ':' })
        .with_context(|| format!("{flag} {text:?} is not of the form {form}"))
}

/// The pod that stands for one `dhow run`.
fn pod(run: &Run) -> Result<Value> {
    let mut container = json!({
        "name": CONTAINER,
        "image": run.image,
        "imagePullPolicy": "IfNotPresent",
        "stdin": run.interactive,
        "stdinOnce": run.interactive,
        "tty": run.tty,
    });
    match &run.entrypoint {
        Some(program) => {
            container["command"] = json!([program]);
            container["args"] = json!(run.command);
        }
        None if !run.command.is_empty() => container["args"] = json!(run.command),
        None => {}
    }
    if let Some(dir) = &run.workdir {
        container["workingDir"] = json!(dir);
    }
    let mut env = Vec::new();
    for text in &run.env {
        let (name, value) = pair(text, "--env", "NAME=VALUE")?;
        env.push(json!({"name": name, "value": value}));
    }
    container["env"] = json!(env);
    let mut ports = Vec::new();
    for text in &run.publish {
        let (host, inner) = pair(text, "--publish", "HOST:CONTAINER")?;
        let number = |n: &str| {
            n.parse::<u16>().with_context(|| format!("--publish {text:?}: {n:?} is no port"))
        };
        ports.push(json!({"hostPort": number(host)?, "containerPort": number(inner)?}));
    }
    container["ports"] = json!(ports);
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    for (index, text) in run.volume.iter().enumerate() {
        let (host, inner) = pair(text, "--volume", "HOST:CONTAINER[:ro]")?;
        let (inner, read_only) = match inner.strip_suffix(":ro") {
            Some(inner) => (inner, true),
            None => (inner, false),
        };
        if !host.starts_with('/') || !inner.starts_with('/') {
            bail!("--volume {text:?}: both paths must be absolute");
        }
        let name = format!("v{index}");
        volumes.push(json!({"name": name, "hostPath": {"path": host}}));
        mounts.push(json!({"name": name, "mountPath": inner, "readOnly": read_only}));
    }
    container["volumeMounts"] = json!(mounts);
    let mut limits = serde_json::Map::new();
    for (resource, amount) in [("memory", &run.memory), ("cpu", &run.cpus)] {
        if let Some(amount) = amount {
            limits.insert(resource.into(), json!(amount));
        }
    }
    container["resources"] = json!({"limits": limits});
    if let Some(user) = &run.user {
        let (user, group) =
            user.split_once(':').map_or((user.as_str(), None), |(u, g)| (u, Some(g)));
        let number =
            |n: &str| n.parse::<u32>().with_context(|| format!("--user {n:?} is no number"));
        container["securityContext"] = json!({"runAsUser": number(user)?});
        if let Some(group) = group {
            container["securityContext"]["runAsGroup"] = json!(number(group)?);
        }
    }
    let metadata = match &run.name {
        Some(name) => json!({"name": name, "labels": {"run": name}}),
        None => json!({"generateName": "run-"}),
    };
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "containers": [container],
            "volumes": volumes,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 10,
            "enableServiceLinks": false,
            "automountServiceAccountToken": false,
        },
    }))
}

/// `dhow ps`.
///
/// # Errors
/// When the platform does not answer.
pub async fn ps(target: &Target, all: bool, output: Output) -> Result<()> {
    let client = Client::new(&target.data_dir);
    let pods = client.get("/api/v1/pods").await?;
    let mut rows = vec![
        ["NAMESPACE", "POD", "CONTAINER", "IMAGE", "STATE", "RESTARTS", "IP"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut values = Vec::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let state = status["state"]
                .as_object()
                .and_then(|s| s.keys().next())
                .map_or("waiting", |k| k.as_str());
            if state != "running" && !all {
                continue;
            }
            let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
            rows.push(vec![
                text(&pod["metadata"]["namespace"]),
                text(&pod["metadata"]["name"]),
                text(&status["name"]),
                text(&status["image"]),
                state.to_owned(),
                status["restartCount"].to_string(),
                text(&pod["status"]["podIP"]),
            ]);
            values.push(json!({
                "namespace": pod["metadata"]["namespace"], "pod": pod["metadata"]["name"],
                "container": status["name"], "image": status["image"], "state": status["state"],
                "restarts": status["restartCount"], "ip": pod["status"]["podIP"],
            }));
        }
    }
    match output {
        Output::Table => print::table(&rows),
        _ => print::value(&Value::Array(values), output)?,
    }
    Ok(())
}

/// `dhow logs`.
///
/// # Errors
/// When there is no such container.
pub async fn logs(
    target: &Target,
    namespace: &str,
    name: &str,
    follow: bool,
    tail: Option<u64>,
) -> Result<()> {
    let mut path = format!("{}/log?follow={follow}", pod_path(namespace, name));
    if let Some(tail) = tail {
        path.push_str(&format!("&tailLines={tail}"));
    }
    print_log(&Client::new(&target.data_dir), &path, std::io::stdout()).await
}

/// `dhow exec`. Returns the command's exit code.
///
/// # Errors
/// When the container does not run or the command cannot start.
pub async fn exec(
    target: &Target,
    namespace: &str,
    name: &str,
    command: &[String],
    interactive: bool,
    tty: bool,
) -> Result<i32> {
    let mut path = format!(
        "{}/exec?stdout=true&stderr={}&stdin={interactive}&tty={tty}",
        pod_path(namespace, name),
        !tty
    );
    for word in command {
        path.push_str("&command=");
        path.push_str(&percent(word));
    }
    let socket = Client::new(&target.data_dir).channels(&path).await?;
    streams::carry(socket, interactive, tty).await
}

/// Percent-encodes everything but unreserved characters (RFC 3986, section 2.3).
pub fn percent(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte as char)
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// `dhow rm`.
///
/// # Errors
/// When one does not exist, or runs and `force` is not given.
pub async fn rm(target: &Target, namespace: &str, names: &[String], force: bool) -> Result<()> {
    let client = Client::new(&target.data_dir);
    for name in names {
        let path = pod_path(namespace, name);
        let pod = client.get(&path).await?;
        if !force && matches!(look(&pod), Some(Seen::Running)) {
            bail!("container {name} is running; stop it first or use 'dhow rm --force {name}'");
        }
        client.delete(&path, &json!({"gracePeriodSeconds": 0})).await?;
        println!("{name}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_percent_encoded() {
        assert_eq!(percent("a b&c/é"), "a%20b%26c%2F%C3%A9");
    }

    #[test]
    fn a_look_tells_running_ended_and_stuck() {
        let pod = |state: Value| json!({"status": {"containerStatuses": [{"state": state}]}});
        assert!(matches!(look(&pod(json!({"running": {}}))), Some(Seen::Running)));
        assert!(matches!(look(&pod(json!({"terminated": {"exitCode": 3}}))), Some(Seen::Ended(3))));
        let waiting =
            pod(json!({"waiting": {"reason": "ErrImageNeverPull", "message": "no image"}}));
        assert!(matches!(look(&waiting), Some(Seen::Stuck(why)) if why == "no image"));
        assert!(look(&pod(json!({"waiting": {"reason": "ContainerCreating"}}))).is_none());
    }

    #[test]
    fn a_pod_that_no_machine_takes_says_why_it_waits() {
        let pod = |status: &str| {
            let placed = json!({"type": "PodScheduled", "status": status, "message": "port 80"});
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, placed]}})
        };
        assert_eq!(waits(&pod("False")), Some("port 80"));
        assert_eq!(waits(&pod("True")), None);
        assert_eq!(waits(&json!({"status": {}})), None);
    }
}
