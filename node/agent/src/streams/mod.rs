//! Live connections into containers: logs, exec, attach, port-forward.

pub mod fd;
pub mod logs;

use crate::registry::{Live, PodEntry};
use crate::world::World;
use bytes::Bytes;
use dhow_intents::streams::Duplex;
use dhow_intents::{
    AttachRequest, ExecRequest, LogRequest, PodRef, Session, SessionExit, StreamError,
};
use dhow_runtime::{Attached, ProcessSpec};
use fd::FdStream;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

type Result<T> = std::result::Result<T, StreamError>;

/// Where a pod's logs are, and how its containers are called.
struct Found {
    uid: String,
    container: String,
    /// The run that counts as the one before.
    previous: Option<u32>,
    /// Why it waits, when it does.
    waiting: Option<String>,
}

async fn entry(world: &World, pod: &PodRef) -> Result<PodEntry> {
    let PodRef { namespace, name, uid } = pod;
    let entry = world.registry.expect(namespace, name, uid).await;
    let missing = || format!("pod {namespace}/{name} is not on this machine");
    entry.ok_or_else(|| StreamError::NotFound(missing()))
}

async fn find(world: &World, pod: &PodRef, container: &str) -> Result<Found> {
    let PodEntry { uid, containers, all, previous, mut waiting, .. } = entry(world, pod).await?;
    let container = match (container, containers.as_slice()) {
        ("", [only]) => only.clone(),
        ("", several) => {
            return Err(StreamError::BadRequest(format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                pod.name,
                several.join(" ")
            )));
        }
        (name, _) if all.iter().any(|c| c == name) => name.to_owned(),
        (name, _) => {
            return Err(StreamError::BadRequest(format!(
                "container {name} is not valid for pod {}",
                pod.name
            )));
        }
    };
    let previous = previous.get(&container).copied();
    let waiting = waiting.remove(&container);
    Ok(Found { uid, container, previous, waiting })
}

/// The numbers of the runs that have a log, ascending.
fn runs(dir: &std::path::Path) -> Vec<u32> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<u32> = entries
        .filter_map(|e| e.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    all.sort_unstable();
    all
}

/// Opens a container's log.
///
/// `kubectl run -i` reads the log as it is and then attaches: together they give everything once.
pub(crate) async fn open_logs(
    world: &World,
    pod: &PodRef,
    request: LogRequest,
) -> Result<mpsc::Receiver<Bytes>> {
    let Found { uid, container, previous, waiting } = find(world, pod, &request.container).await?;
    let dir: PathBuf = world.log_dir(&pod.namespace, &pod.name, &uid).join(&container);
    let all = runs(&dir);
    let live = world.registry.newest(&uid, &container);
    let newest = all.last().copied();
    let attempt = if request.previous {
        let before = previous.filter(|run| all.contains(run));
        before.ok_or_else(|| {
            StreamError::BadRequest(format!(
                "previous terminated container {container:?} in pod {:?} not found",
                pod.name
            ))
        })?
    } else {
        newest.ok_or_else(|| {
            let why = match waiting.as_deref() {
                None => "ContainerCreating",
                Some("ErrImagePull") => "image can't be pulled",
                Some("ImagePullBackOff") => "trying and failing to pull image",
                Some(reason) => reason,
            };
            StreamError::BadRequest(format!(
                "container {container:?} in pod {:?} is waiting to start: {why}",
                pod.name
            ))
        })?
    };
    let path = world.log_path(&pod.namespace, &pod.name, &uid, &container, attempt);
    let live = live.filter(|l| l.attempt == attempt);
    let whole = !request.follow
        && request.tail_lines.is_none()
        && request.since.is_none()
        && request.limit_bytes.is_none()
        && request.stream.is_empty();
    let end = match &live {
        // Where nothing is kept for a first client, there is no end.
        Some(live) if whole && live.stdin => world.runtime.log_seen(&live.id).await.ok().flatten(),
        _ => None,
    };
    let running = match live {
        Some(live) => until_exit(&live),
        None => watch::channel(false).1,
    };
    logs::read(path, request, running, end)
}

/// Holds true until the instance has ended.
fn until_exit(live: &Live) -> watch::Receiver<bool> {
    let mut exit = live.exit.subscribe();
    let (sender, receiver) = watch::channel(exit.borrow().is_none());
    tokio::spawn(async move {
        tokio::select! {
            _ = exit.wait_for(Option::is_some) => { let _ = sender.send(false); }
            () = sender.closed() => {}
        }
    });
    receiver
}

fn not_running(pod: &PodRef, container: &str) -> StreamError {
    StreamError::BadRequest(format!(
        "container {container} of pod {}/{} is not running",
        pod.namespace, pod.name
    ))
}

async fn running(world: &World, pod: &PodRef, container: &str) -> Result<Arc<Live>> {
    let Found { uid, container, .. } = find(world, pod, container).await?;
    let live = world.registry.newest(&uid, &container);
    live.filter(|l| l.exit.borrow().is_none()).ok_or_else(|| not_running(pod, &container))
}

/// Runs a command in a container.
pub(crate) async fn exec(world: &World, pod: &PodRef, request: ExecRequest) -> Result<Session> {
    if request.command.is_empty() {
        return Err(StreamError::BadRequest(
            "you must specify at least 1 command for the container".into(),
        ));
    }
    let live = running(world, pod, &request.container).await?;
    let mut process =
        ProcessSpec { args: request.command, tty: request.tty, size: None, ..live.process.clone() };
    if request.tty && !process.env.iter().any(|e| e.starts_with("TERM=")) {
        process.env.push("TERM=xterm".to_owned());
    }
    let stderr = request.stderr && !request.tty;
    let attached =
        world.runtime.exec(&live.id, process, request.stdin, request.stdout, stderr).await;
    session(attached.map_err(|e| StreamError::Failed(e.to_string()))?, true, true)
}

/// Connects to a container's own process. One that has ended can be connected to while its output
/// waits for its first client: that client (`kubectl run -i`) was on its way when it ended.
pub(crate) async fn attach(world: &World, pod: &PodRef, request: AttachRequest) -> Result<Session> {
    let Found { uid, container, .. } = find(world, pod, &request.container).await?;
    let refused = || not_running(pod, &container);
    let live = world.registry.newest(&uid, &container).ok_or_else(refused)?;
    let has_ended = || live.exit.borrow().is_some();
    if has_ended() && !live.stdin {
        return Err(refused());
    }
    let attached = world.runtime.attach(&live.id, request.stdin && live.stdin).await;
    let attached = match attached {
        // Somebody else has seen the output, or nobody knows it any more.
        Ok(attached) if attached.stdout.is_none() && has_ended() => return Err(refused()),
        Err(_) if has_ended() => return Err(refused()),
        attached => attached.map_err(|e| StreamError::Failed(e.to_string()))?,
    };
    session(attached, request.stdout, request.stderr)
}

fn session(attached: Attached, stdout: bool, stderr: bool) -> Result<Session> {
    let stream = |fd: Option<OwnedFd>| {
        fd.map(FdStream::new).transpose().map_err(|e| StreamError::Failed(e.to_string()))
    };
    let (sender, exit) = oneshot::channel();
    let code = attached.exit;
    tokio::spawn(async move {
        let ended = match code.await {
            Ok(exit) => SessionExit::Code(exit.code),
            Err(_) => SessionExit::Failed("the runtime lost the process".into()),
        };
        let _ = sender.send(ended);
    });
    Ok(Session {
        stdin: stream(attached.stdin)?.map(|s| Box::new(s) as _),
        stdout: stream(attached.stdout.filter(|_| stdout))?.map(|s| Box::new(s) as _),
        stderr: stream(attached.stderr.filter(|_| stderr))?.map(|s| Box::new(s) as _),
        resize: attached.resize,
        exit,
    })
}

/// How long a connection into a pod may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Connects to a TCP port inside the pod's network namespace.
pub(crate) async fn forward(world: &World, pod: &PodRef, port: u16) -> Result<Box<dyn Duplex>> {
    let netns = entry(world, pod).await?.netns.ok_or_else(|| {
        StreamError::BadRequest(format!(
            "unable to forward port because pod {} is not running",
            pod.name
        ))
    })?;
    let connect = move || {
        let dial = || {
            let loopbacks: [std::net::SocketAddr; 2] =
                [([127, 0, 0, 1], port).into(), (std::net::Ipv6Addr::LOCALHOST, port).into()];
            let mut first = None;
            for address in loopbacks {
                match std::net::TcpStream::connect_timeout(&address, CONNECT) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => first = first.or(Some(error)),
                }
            }
            Err(first.unwrap_or_else(|| std::io::Error::other("no address")))
        };
        match netns {
            Some(path) => dhow_kernel::netns::enter(&path, dial)?,
            None => dial(),
        }
    };
    let refused = |why: String| {
        StreamError::Failed(format!(
            "failed to connect to localhost:{port} inside pod {}: {why}",
            pod.name
        ))
    };
    let stream = tokio::task::spawn_blocking(connect).await.map_err(|e| refused(e.to_string()))?;
    let stream = stream.map_err(|e| refused(crate::probes::http::plain(&e)))?;
    stream.set_nonblocking(true).map_err(|e| refused(e.to_string()))?;
    let stream = tokio::net::TcpStream::from_std(stream).map_err(|e| refused(e.to_string()))?;
    Ok(Box::new(stream))
}
