//! The steps of a pod, carried out: each is one future that reports how it ended.

use super::container::{self, Start};
use super::observe::{Hook, Instance, Net, Role, label};
use crate::env::{Sources, Trouble};
use crate::images::{self, NoImage};
use crate::probes::{self, ProbeState};
use crate::registry::Live;
use crate::volumes;
use crate::world::World;
use dhow_intents::{Owner, Protocol};
use dhow_runtime::{ContainerState, Error as RuntimeError};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// The pod as the owner of kernel objects.
pub fn owner(pod: &Pod) -> Owner {
    let meta = &pod.metadata;
    Owner {
        kind: "pod".to_owned(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        revision: meta.resource_version.as_deref().and_then(|r| r.parse().ok()).unwrap_or(0),
    }
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or("")
}

/// Makes a pod's sandbox and gives it its network, or finds both as they are.
///
/// # Errors
/// What could not be made.
pub async fn make_sandbox(world: &World, pod: &Pod) -> Result<Net, String> {
    dhow_fault::point("agent::sandbox").map_err(|e| e.to_string())?;
    let spec = container::sandbox(world, pod);
    let id = spec.id.clone();
    let state = match world.runtime.create_sandbox(spec).await {
        Ok(state) => state,
        Err(RuntimeError::Exists(_)) => {
            let all = world.runtime.sandboxes().await.map_err(|e| e.to_string())?;
            let found = all.into_iter().find(|s| s.spec.id == id);
            found.ok_or_else(|| format!("sandbox {id} exists and does not exist"))?
        }
        Err(error) => return Err(error.to_string()),
    };
    connect(world, pod, state.netns).await
}

/// Gives a sandbox its network; one that was given before keeps it.
///
/// # Errors
/// What the data plane could not do.
pub async fn connect(
    world: &World,
    pod: &Pod,
    netns: Option<std::path::PathBuf>,
) -> Result<Net, String> {
    let Some(netns) = netns else { return Ok(Net { netns: None, ip: None }) };
    dhow_fault::point("agent::network").map_err(|e| e.to_string())?;
    let owner = owner(pod);
    let told = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref());
    let wanted: Option<Ipv4Addr> = told.and_then(|ip| ip.parse().ok());
    let ip = world
        .dataplane
        .attach(uid(pod), &owner, &netns, wanted)
        .await
        .map_err(|e| e.to_string())?;
    let spec = pod.spec.as_ref();
    let inits = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten());
    let all = inits.chain(spec.into_iter().flat_map(|s| &s.containers));
    for port in all.flat_map(|c| c.ports.iter().flatten()) {
        let Some(host_port) = port.host_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0)
        else {
            continue;
        };
        let protocol = match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        let target = SocketAddrV4::new(ip, u16::try_from(port.container_port).unwrap_or(0));
        let mapped =
            world.dataplane.map_host_port(uid(pod), &owner, protocol, host_port, target).await;
        mapped.map_err(|e| format!("hostPort {host_port}: {e}"))?;
    }
    Ok(Net { netns: Some(netns), ip: Some(ip) })
}

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Order {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What the container is to it.
    pub role: Role,
    /// The container.
    pub container: Container,
    /// The number of this run.
    pub attempt: u32,
    /// The pause that this run carries for the next.
    pub backoff: Duration,
    /// The runtime's identifier for it.
    pub id: String,
    /// The pod's network.
    pub net: Net,
    /// Container whose process namespace is shared.
    pub pid_of: Option<String>,
    /// The image was missing at the attempt before.
    pub missed: bool,
}

/// Upstream's waiting reason for what is wrong with a container's settings.
pub const CONFIG_ERROR: &str = "CreateContainerConfigError";

/// How a start failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFailure {
    /// Nothing was started: a reason and message for the waiting state.
    Waiting(&'static str, String),
    /// Nothing was started: a ConfigMap, Secret or key is missing. Waits with [`CONFIG_ERROR`].
    Missing(String),
    /// The program could not be executed; the image's identifier and the cause.
    CannotStart(String, String),
}

/// Starts a container.
///
/// # Errors
/// Why it does not run.
pub async fn start(world: &Arc<World>, order: Order) -> Result<Instance, StartFailure> {
    let container = &order.container;
    let wait = |trouble: Trouble| match trouble {
        Trouble::Config(why) => StartFailure::Waiting(CONFIG_ERROR, why),
        Trouble::Missing(why) => StartFailure::Missing(why),
        Trouble::Unreachable(why) => StartFailure::Waiting("CreateContainerError", why),
    };
    let sources = Sources::gather(world, &order.pod, container).await.map_err(wait)?;
    let shared = world.clone();
    let asked = order.clone();
    let prepared = tokio::task::spawn_blocking(move || {
        let image = images::find(&shared.images, &asked.container, asked.missed)
            .map_err(|NoImage(reason, message)| StartFailure::Waiting(reason, message))?;
        let start = Start {
            pod: &asked.pod,
            role: asked.role,
            container: &asked.container,
            attempt: asked.attempt,
            backoff: asked.backoff,
            id: &asked.id,
            net: &asked.net,
            pid_of: asked.pid_of.clone(),
        };
        container::spec(&shared, &start, &image, &sources).map_err(wait)
    });
    let spec = match prepared.await {
        Ok(spec) => spec?,
        Err(error) => return Err(StartFailure::Waiting("CreateContainerError", error.to_string())),
    };
    let image_id = spec.labels.get(label::IMAGE_ID).cloned().unwrap_or_default();
    let live = register(world, &spec);
    match launch(world, spec).await {
        Ok(state) => {
            live.started.store(true, Ordering::Relaxed);
            let mut instance = super::observe::instance_of(&state, world.now());
            // How it ended, if it has already, comes as an event of its own.
            instance.ended = None;
            instance.hook = match container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
                Some(_) => Hook::Pending,
                None => Hook::Done,
            };
            instance.probes = ProbeState::all(container, instance.started_at.moment);
            Ok(instance)
        }
        Err(error) => {
            world.registry.remove(&order.id);
            if let RuntimeError::CannotStart { .. } = error {
                return Err(StartFailure::CannotStart(image_id, error.to_string()));
            }
            // Nobody heard whether it runs. The next attempt has another identifier, and two of
            // one container must not run.
            if let Err(error) = world.runtime.remove(&order.id).await {
                tracing::warn!(container = order.id, %error, "unheard start not undone");
            }
            Err(StartFailure::Waiting("CreateContainerError", error.to_string()))
        }
    }
}

async fn launch(
    world: &World,
    spec: dhow_runtime::ContainerSpec,
) -> Result<ContainerState, RuntimeError> {
    let lost = |fault: dhow_fault::Injected| RuntimeError::Launcher(fault.to_string());
    dhow_fault::point("agent::start").map_err(lost)?;
    let state = world.runtime.start(spec).await?;
    // The answer may be lost when the launcher or the connection to it is.
    dhow_fault::point("agent::started").map_err(lost)?;
    Ok(state)
}

fn register(world: &World, spec: &dhow_runtime::ContainerSpec) -> Arc<Live> {
    let text = |key: &str| spec.labels.get(key).cloned().unwrap_or_default();
    world.registry.add(Live {
        id: spec.id.clone(),
        namespace: text(label::NAMESPACE),
        pod: text(label::POD),
        uid: text(label::UID),
        container: text(label::CONTAINER),
        attempt: text(label::ATTEMPT).parse().unwrap_or(0),
        process: spec.process.clone(),
        stdin: spec.stdin,
        exit: watch::Sender::new(None),
        started: AtomicBool::new(false),
    })
}

/// Takes up a container that was found after a restart.
pub fn adopt(world: &World, state: &ContainerState) {
    let live = register(world, &state.spec);
    live.started.store(true, Ordering::Relaxed);
    if let Some(exit) = &state.exit {
        live.exit.send_replace(Some(exit.clone()));
    }
}

/// Runs a lifecycle hook.
///
/// # Errors
/// Why it failed.
pub async fn hook(
    world: &World,
    id: &str,
    container: &Container,
    handler: &LifecycleHandler,
    ip: &str,
) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        let live = world.registry.get(id).ok_or_else(|| format!("container {id} is gone"))?;
        let command = action.command.as_deref().unwrap_or_default();
        return match probes::observe::run(&world.runtime, &live, command).await? {
            (0, _) => Ok(()),
            (code, output) => {
                Err(format!("command {command:?} exited with {code}: {}", output.trim_end()))
            }
        };
    }
    if let Some(action) = &handler.http_get {
        let port = probes::observe::port(&action.port, container)?;
        let answer = probes::http::get(action, ip, port).await?;
        return if answer.status < 400 {
            Ok(())
        } else {
            Err(format!("HTTP hook failed with statuscode: {}", answer.status))
        };
    }
    if let Some(action) = &handler.sleep {
        world.clock.sleep(crate::time::seconds(action.seconds)).await;
        return Ok(());
    }
    Err("invalid lifecycle handler: it needs exec, httpGet or sleep".to_owned())
}

/// Asks a container to end: its `preStop` hook, then its stop signal. Returns whether a hook ran.
///
/// # Errors
/// Why the hook failed; the signal was sent all the same.
pub async fn stop(
    world: &World,
    instance: &Instance,
    container: Option<&Container>,
    grace: Duration,
    ip: &str,
) -> (bool, Result<(), String>) {
    let handler = container.and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)));
    let handler = handler.filter(|_| !grace.is_zero());
    let mut result = Ok(());
    if let Some((container, handler)) = handler {
        result = tokio::select! {
            done = hook(world, &instance.id, container, handler, ip) => done,
            () = world.clock.sleep(grace) => Err(format!("PreStop hook did not complete in {}s", grace.as_secs())),
        };
    }
    let signal = if grace.is_zero() { 9 } else { instance.stop_signal };
    match world.runtime.kill(&instance.id, signal, false).await {
        // Gone already: its exit is on its way.
        Ok(()) | Err(RuntimeError::NotFound(_)) => {}
        Err(error) => result = result.and(Err(error.to_string())),
    }
    (handler.is_some(), result)
}

/// Removes everything of a pod from the machine but its logs and its last words.
///
/// # Errors
/// What is left.
pub async fn tear_down(world: &Arc<World>, uid: &str, ids: &[String]) -> Result<(), String> {
    dhow_fault::point("agent::tear_down").map_err(|e| e.to_string())?;
    for id in ids {
        world.runtime.remove(id).await.map_err(|e| e.to_string())?;
        world.registry.remove(id);
    }
    let network = async { world.dataplane.detach(uid).await.map_err(|e| e.to_string()) };
    let files = async { volumes::release(world, uid).await.map_err(|e| e.to_string()) };
    let (network, files) = futures::join!(network, files);
    network?;
    if world.runtime.remove_sandbox(uid).await.is_err() {
        // A container that nobody here knows of may be in it: its start was not heard to the end.
        remove_unknown(world, uid).await.map_err(|e| e.to_string())?;
        world.runtime.remove_sandbox(uid).await.map_err(|e| e.to_string())?;
    }
    files
}

async fn remove_unknown(world: &World, uid: &str) -> Result<(), RuntimeError> {
    for state in world.runtime.containers().await? {
        if state.spec.labels.get(label::UID).is_some_and(|of| of == uid) {
            world.runtime.remove(&state.spec.id).await?;
            world.registry.remove(&state.spec.id);
        }
    }
    Ok(())
}

/// Removes one run's record, writable layer and log.
pub async fn forget(world: &Arc<World>, pod: &Pod, name: &str, instance: &Instance) {
    if instance.recorded
        && let Err(error) = world.runtime.remove(&instance.id).await
    {
        tracing::warn!(container = instance.id, %error, "record of an ended container not removed");
    }
    world.registry.remove(&instance.id);
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or("");
    let dir = world.instance_dir(uid(pod), name, instance.attempt);
    let log = world.log_path(
        namespace,
        meta.name.as_deref().unwrap_or(""),
        uid(pod),
        name,
        instance.attempt,
    );
    let remove = move || {
        let _ = volumes::apply::remove_dir(&dir);
        for rotated in 0..64 {
            let path = if rotated == 0 {
                log.clone()
            } else {
                log.with_extension(format!("log.{rotated}"))
            };
            if std::fs::remove_file(path).is_err() {
                break;
            }
        }
    };
    let _ = tokio::task::spawn_blocking(remove).await;
}
