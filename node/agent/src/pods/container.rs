//! From a container of a pod to what the runtime starts.

use super::diff::hash;
use super::observe::{Net, Role, label};
use super::{resources, security};
use crate::env::expand::expand_strict;
use crate::env::{self, Sources, Trouble};
use crate::network::files;
use crate::volumes;
use crate::world::World;
use dhow_images::Image;
use dhow_runtime::{ContainerSpec, LogSpec, Mount, MountKind, ProcessSpec, Rootfs, SandboxSpec};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, VolumeMount};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where programs are looked for when neither image nor pod says so.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A start that is to be made.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What the container is to it.
    pub role: Role,
    /// The container.
    pub container: &'a Container,
    /// The number of this run.
    pub attempt: u32,
    /// The pause that this run carries for the next.
    pub backoff: Duration,
    /// The runtime's identifier for it.
    pub id: &'a str,
    /// The pod's network.
    pub net: &'a Net,
    /// Container whose process namespace is shared.
    pub pid_of: Option<String>,
}

fn text(value: Option<&String>) -> &str {
    value.map_or("", String::as_str)
}

/// A pod's sandbox as the runtime makes it.
pub fn sandbox(world: &World, pod: &Pod) -> SandboxSpec {
    let spec = pod.spec.as_ref();
    let host_network = asks(pod, |s| s.host_network);
    let mut sysctls = BTreeMap::new();
    if !host_network {
        // As Docker and containerd do: a container needs no rights for low ports and for ping.
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        sysctls.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    let context = spec.and_then(|s| s.security_context.as_ref());
    for sysctl in context.into_iter().flat_map(|c| c.sysctls.iter().flatten()) {
        sysctls.insert(sysctl.name.replace('/', "."), sysctl.value.clone());
    }
    SandboxSpec {
        id: text(pod.metadata.uid.as_ref()).to_owned(),
        hostname: files::host_name(pod, &world.config.domain, &world.config.node_name).host,
        host_network,
        host_ipc: asks(pod, |s| s.host_ipc),
        sysctls,
        limits: resources::pod_limits(pod, world.facts.pids_of_pod),
        labels: labels(pod),
    }
}

/// Whether the pod asks for something.
fn asks(pod: &Pod, what: fn(&PodSpec) -> Option<bool>) -> bool {
    pod.spec.as_ref().and_then(what).unwrap_or(false)
}

/// What the runtime's records say of the pod.
fn labels(pod: &Pod) -> BTreeMap<String, String> {
    let meta = &pod.metadata;
    BTreeMap::from([
        (label::NAMESPACE.to_owned(), text(meta.namespace.as_ref()).to_owned()),
        (label::POD.to_owned(), text(meta.name.as_ref()).to_owned()),
        (label::UID.to_owned(), text(meta.uid.as_ref()).to_owned()),
    ])
}

/// Whether somebody is on the way to the container's streams: the client that made it, by `kubectl
/// run -i` or `kubectl debug -i`.
fn is_awaited(pod: &Pod, container: &Container) -> bool {
    let ephemeral = pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
    container.stdin == Some(true)
        && (container.stdin_once == Some(true)
            || ephemeral.into_iter().any(|c| c.name == container.name))
}

/// What the runtime starts. Makes the directories and files that it refers to.
///
/// # Errors
/// What the pod refers to and does not exist.
pub fn spec(
    world: &World,
    start: &Start<'_>,
    image: &Image,
    sources: &Sources,
) -> Result<ContainerSpec, Trouble> {
    let Start { pod, container, .. } = *start;
    let ip = pod_ip(world, pod, start.net);
    let facts = world.pod_facts(pod, &ip);
    let variables = env::variables(&facts, container, sources)?;
    let args = env::arguments(container, &image.config.entrypoint, &image.config.cmd, &variables)?;
    let identity = security::identity(pod, container).map_err(Trouble::Config)?;
    let root = matches!(image.config.user.split(':').next(), None | Some("" | "0" | "root"));
    if identity.must_not_be_root && identity.uid.is_none() && root {
        return Err(Trouble::Config(
            "container has runAsNonRoot and image will run as root".to_owned(),
        ));
    }
    let uid = text(pod.metadata.uid.as_ref());
    let own = world.instance_dir(uid, &container.name, start.attempt);
    let io = |e: std::io::Error| Trouble::Config(e.to_string());
    // A start that failed half way may have left a layer behind.
    volumes::apply::remove_dir(&own).map_err(io)?;
    volumes::apply::make_dir(&own, 0o755).map_err(io)?;
    let mut mounts = mounts(world, start, &variables, &ip)?;
    let message = own.join("termination-log");
    std::fs::write(&message, b"").map_err(io)?;
    volumes::apply::set_mode(&message, 0o666).map_err(io)?;
    mounts.push(Mount {
        target: PathBuf::from(
            container.termination_message_path.as_deref().unwrap_or("/dev/termination-log"),
        ),
        kind: MountKind::Bind(message),
        read_only: false,
        propagate: false,
    });
    let log = world.log_path(
        text(pod.metadata.namespace.as_ref()),
        text(pod.metadata.name.as_ref()),
        uid,
        &container.name,
        start.attempt,
    );
    if let Some(dir) = log.parent() {
        volumes::apply::make_dir(dir, 0o755).map_err(io)?;
    }
    let stop = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    let stop = stop.unwrap_or(&image.config.stop_signal);
    let stop_signal = security::signal(stop).unwrap_or(15);
    let mut labels = labels(pod);
    for (key, value) in [
        (label::CONTAINER, container.name.clone()),
        (label::ATTEMPT, start.attempt.to_string()),
        (label::HASH, hash(container)),
        (label::BACKOFF, start.backoff.as_millis().to_string()),
        (label::IMAGE_ID, image.id.clone()),
        (label::IMAGE, container.image.clone().unwrap_or_default()),
        (label::STOP_SIGNAL, stop_signal.to_string()),
        (label::RESOURCES, resources::label(container)),
    ] {
        labels.insert(key.to_owned(), value);
    }
    let hostname = files::host_name(pod, &world.config.domain, &world.config.node_name).host;
    let cwd = container.working_dir.clone().filter(|d| !d.is_empty());
    Ok(ContainerSpec {
        id: start.id.to_owned(),
        sandbox: Some(uid.to_owned()),
        rootfs: Rootfs::Overlay { lower: image.layers.clone(), writable: own.join("rootfs") },
        read_only_rootfs: identity.read_only,
        process: ProcessSpec {
            args,
            env: environment(&image.config.env, variables, &hostname, container.tty == Some(true)),
            cwd: cwd.unwrap_or_else(|| image.config.working_dir.clone()),
            user: image.config.user.clone(),
            uid: identity.uid,
            gid: identity.gid,
            supplementary_groups: identity.groups,
            no_image_groups: identity.no_image_groups,
            must_not_be_root: identity.must_not_be_root,
            capabilities: identity.capabilities,
            no_new_privileges: identity.no_new_privileges,
            tty: container.tty.unwrap_or(false),
            size: None,
            seccomp: identity.seccomp,
        },
        hostname,
        mounts,
        limits: resources::limits(container),
        oom_score_adj: resources::oom_score_adj(pod, container, world.facts.memory),
        privileged: identity.privileged,
        host_pid: asks(pod, |s| s.host_pid),
        pid_of: start.pid_of.clone(),
        sandbox_pid: asks(pod, |s| s.share_process_namespace),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        keep_early: is_awaited(pod, container),
        log: Some(LogSpec {
            path: log,
            max_size: world.config.log_max_size,
            max_files: world.config.log_max_files,
        }),
        labels,
        wait_for_attach: false,
        with_client: false,
    })
}

/// The pod's address, or the machine's when it has the machine's network.
pub fn pod_ip(world: &World, pod: &Pod, net: &Net) -> String {
    let host = asks(pod, |s| s.host_network);
    match net.ip {
        Some(ip) => ip.to_string(),
        None if host => world.config.host_ip().to_owned(),
        None => String::new(),
    }
}

/// The image's variables under the pod's.
fn environment(
    image: &[String],
    variables: Vec<(String, String)>,
    hostname: &str,
    tty: bool,
) -> Vec<String> {
    let mut all: Vec<(String, String)> = vec![
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOSTNAME".to_owned(), hostname.to_owned()),
    ];
    if tty {
        all.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    let image =
        image.iter().filter_map(|e| e.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned()));
    for (name, value) in image.chain(variables) {
        match all.iter_mut().find(|(n, _)| *n == name) {
            Some(known) => known.1 = value,
            None => all.push((name, value)),
        }
    }
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn mounts(
    world: &World,
    start: &Start<'_>,
    variables: &[(String, String)],
    ip: &str,
) -> Result<Vec<Mount>, Trouble> {
    let Start { pod, container, .. } = *start;
    let given = container.volume_mounts.as_deref().unwrap_or_default();
    let mut all = Vec::new();
    for mount in given {
        all.push(volume(world, pod, mount, variables)?);
    }
    let own = etc(world, pod, ip).map_err(|e| Trouble::Config(e.to_string()))?;
    for (target, source) in own {
        // A volume that is mounted there, or the image's own for hosts, wins.
        if given.iter().any(|m| m.mount_path.trim_end_matches('/') == target) {
            continue;
        }
        let read_only =
            container.security_context.as_ref().and_then(|c| c.read_only_root_filesystem);
        all.push(Mount {
            target: PathBuf::from(target),
            kind: MountKind::Bind(source),
            read_only: read_only.unwrap_or(false),
            propagate: false,
        });
    }
    // Parents before what is inside them, whatever the order in the pod.
    all.sort_by_key(|m| m.target.components().count());
    Ok(all)
}

fn volume(
    world: &World,
    pod: &Pod,
    mount: &VolumeMount,
    variables: &[(String, String)],
) -> Result<Mount, Trouble> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let volume = volumes.into_iter().flatten().find(|v| v.name == mount.name).ok_or_else(|| {
        Trouble::Config(format!(
            "volumeMount {:?} names a volume that the pod does not have",
            mount.name
        ))
    })?;
    let mut source = volumes::path(world, pod, volume);
    let lookup = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let sub = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(sub), _) if !sub.is_empty() => sub.clone(),
        (_, Some(expression)) if !expression.is_empty() => {
            expand_strict(expression, lookup).map_err(Trouble::Config)?
        }
        _ => String::new(),
    };
    if !sub.is_empty() {
        source = volumes::apply::sub_path(&source, &sub).map_err(|e| {
            Trouble::Config(format!(
                "failed to prepare subPath for volumeMount {:?}: {e}",
                mount.name
            ))
        })?;
    }
    let payload = volume.empty_dir.is_none() && volume.host_path.is_none();
    Ok(Mount {
        target: Path::new("/").join(&mount.mount_path),
        kind: MountKind::Bind(source),
        read_only: mount.read_only.unwrap_or(false) || payload,
        propagate: mount.mount_propagation.as_deref().is_some_and(|p| p != "None"),
    })
}

/// Writes the files of `/etc` that the agent gives to every container of a pod; returns them by
/// target.
fn etc(world: &World, pod: &Pod, ip: &str) -> std::io::Result<Vec<(&'static str, PathBuf)>> {
    let dir = world.pod_dir(text(pod.metadata.uid.as_ref())).join("etc");
    volumes::apply::make_dir(&dir, 0o755)?;
    let config = &world.config;
    let name = files::host_name(pod, &config.domain, &config.node_name);
    let host_network = asks(pod, |s| s.host_network);
    let machine_hosts = if host_network {
        std::fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        String::new()
    };
    let resolver = dhow_names::ResolvConf::machine();
    let hosts = files::hosts(pod, &name, (!ip.is_empty()).then_some(ip), &machine_hosts);
    let resolv = files::resolv_conf(pod, &resolver, config.dns_ip, &config.domain);
    let mut all = Vec::new();
    for (target, file, content) in [
        ("/etc/hosts", "hosts", hosts),
        ("/etc/resolv.conf", "resolv.conf", resolv),
        ("/etc/hostname", "hostname", format!("{}\n", name.host)),
    ] {
        let path = dir.join(file);
        // Written in place: containers that run hold a bind of this very file.
        if std::fs::read_to_string(&path).ok().as_deref() != Some(content.as_str()) {
            std::fs::write(&path, content)?;
            volumes::apply::set_mode(&path, 0o644)?;
        }
        all.push((target, path));
    }
    Ok(all)
}

/// The termination message of an instance that has ended: the end of what it left at its path, or,
/// with `FallbackToLogsOnError`, of its log.
pub fn termination_message(
    world: &World,
    pod: &Pod,
    container: &Container,
    attempt: u32,
    failed: bool,
) -> String {
    const MOST: u64 = 4096;
    const LOG_MOST: u64 = 2048;
    let uid = text(pod.metadata.uid.as_ref());
    let own = world.instance_dir(uid, &container.name, attempt);
    let mut message = end_of(&own.join("termination-log"), MOST).unwrap_or_default();
    let fallback = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if message.is_empty() && fallback && failed {
        let path = world.log_path(
            text(pod.metadata.namespace.as_ref()),
            text(pod.metadata.name.as_ref()),
            uid,
            &container.name,
            attempt,
        );
        message = crate::streams::logs::tail_text(&path, 80, LOG_MOST).unwrap_or_default();
    }
    message
}

/// The last bytes of a file, however long its writer made it.
fn end_of(path: &Path, most: u64) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_file_the_end_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination-log");
        std::fs::write(&path, "short").unwrap();
        assert_eq!(end_of(&path, 8).unwrap(), "short");
        // Longer than any memory, and nothing on the disk.
        let mut file = std::fs::File::create(&path).unwrap();
        file.set_len(1 << 50).or_else(|_| file.set_len(1 << 40)).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        std::io::Write::write_all(&mut file, b"last words").unwrap();
        assert_eq!(end_of(&path, 5).unwrap(), "words");
    }

    #[test]
    fn the_pods_variables_win_over_the_images() {
        let image = ["PATH=/bin".to_owned(), "A=1".to_owned()];
        let own = vec![("A".to_owned(), "2".to_owned()), ("B".to_owned(), "3".to_owned())];
        assert_eq!(environment(&image, own, "h", false), ["PATH=/bin", "HOSTNAME=h", "A=2", "B=3"]);
    }
}
