//! `dhow up|down|env|status`: the platform as a whole.

use crate::cli::Target;
use crate::client::{self, Client};
use crate::config::{Config, Flags};
use crate::print::{self, Output};
use crate::{call, join, pki, roles, runtime, servers, token, undo};
use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Set in the environment of a process that `dhow up --detach` started: it reports readiness on
/// standard output, once.
const DETACHED: &str = "DHOW_DETACHED";

fn pid_file(data: &Path) -> PathBuf {
    data.join("dhow.pid")
}

/// A data directory that one process has taken for itself.
struct Claim {
    /// Held for as long as it runs.
    lock: File,
    /// The directory was not there before.
    made: bool,
    /// Nothing was in it.
    empty: bool,
}

/// What a start makes before anything of the platform: the pid file, and the log of a detached one.
const CLAIMED: [&str; 2] = ["dhow.pid", "dhow.log"];

/// What dhow makes first in a data directory, or before it runs there: a directory with none of
/// these is somebody else's.
const MARKS: [&str; 3] = ["dhow.pid", "dhow.log", "images/oci-layout"];

/// Whether a directory may be filled, and with `--purge` be removed, as dhow's own.
fn is_own(data: &Path) -> bool {
    MARKS.iter().any(|name| data.join(name).exists()) || holds_only(data, &[])
}

/// Whether nothing is in a directory but these files, and what a file system of its own has.
fn holds_only(data: &Path, names: &[&str]) -> bool {
    let fine =
        |name: &std::ffi::OsStr| name == "lost+found" || names.iter().any(|known| name == *known);
    let entries = std::fs::read_dir(data);
    entries.is_ok_and(|all| all.flatten().all(|entry| fine(&entry.file_name())))
}

/// Makes the data directory, or finds it; tells whether it was not there.
fn make(data: &Path) -> Result<bool> {
    let made = !data.exists();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .with_context(|| format!("cannot make the data directory {}", data.display()))?;
    if is_own(data) {
        return Ok(made);
    }
    bail!(
        "{} holds files that are not dhow's: choose an empty or a new directory with --data-dir",
        data.display()
    )
}

/// Locks the pid file. Whoever only asks who runs ([`running`]) holds it for a moment, which is
/// waited for; the platform holds it for as long as it lives.
fn lock(file: &File) -> bool {
    (0..50).any(|attempt| {
        if attempt > 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
    })
}

/// Takes the data directory for this process.
fn claim(data: &Path) -> Result<Claim> {
    let made = make(data)?;
    let path = pid_file(data);
    loop {
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if !lock(&file) {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            bail!(
                "data directory {} is in use by dhow process {}: stop it with 'dhow down' or choose another --data-dir",
                data.display(),
                pid.trim()
            );
        }
        if !is_at(&file, &path) {
            // A start that was refused took it away meanwhile: there is a new one.
            continue;
        }
        let empty = holds_only(data, &CLAIMED);
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            if empty {
                unclaim(data, "dhow.pid", made);
            }
            return Err(error).with_context(|| {
                format!("cannot write {}: make room, or choose another --data-dir", path.display())
            });
        }
        return Ok(Claim { lock: file, made, empty });
    }
}

/// Whether an open file is the one at this path.
fn is_at(file: &File, path: &Path) -> bool {
    let same =
        |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let (Ok(open), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    same(&open, &there)
}

/// Takes a refused start's last traces out of a directory that was empty before, or that it made.
fn unclaim(data: &Path, name: &str, made: bool) {
    if holds_only(data, &CLAIMED) {
        // Still locked: who waits for the lock looks again.
        let _ = std::fs::remove_file(data.join(name));
    }
    if made {
        // Fails if something is in it.
        let _ = std::fs::remove_dir(data);
    }
}

/// How long a process that has just claimed a directory may take to write its number.
const CLAIMING: Duration = Duration::from_secs(1);

/// The process that runs `data`, if one does.
fn running(data: &Path) -> Option<rustix::process::Pid> {
    let until = Instant::now() + CLAIMING;
    loop {
        let mut file = File::open(pid_file(data)).ok()?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return None;
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let pid = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
        // Between the lock and the write the number is that of an earlier process, or missing. By
        // now it may be anybody's.
        match pid.filter(|pid| holds(*pid, &file)) {
            Some(pid) => return Some(pid),
            None if Instant::now() > until => return None,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Whether a process has this file open.
fn holds(pid: rustix::process::Pid, file: &File) -> bool {
    let open = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()));
    let mut paths = open.into_iter().flatten().flatten().map(|entry| entry.path());
    paths.any(|path| is_at(file, &path))
}

/// How long `up --detach` lets a process that holds the data directory end, or begin to answer.
const SETTLING: Duration = Duration::from_secs(20);

/// The process that runs `data` and answers. One that was killed holds the directory for a moment
/// longer, and one that starts does before it answers: neither is taken for a platform that is up.
///
/// # Errors
/// When it goes on without answering.
fn answering(data: &Path) -> Result<Option<rustix::process::Pid>> {
    let until = Instant::now() + SETTLING;
    while let Some(pid) = running(data) {
        if answers(&client::socket(data)) {
            return Ok(Some(pid));
        }
        if Instant::now() > until {
            bail!(
                "dhow process {pid} has the data directory {} and does not answer: see {}",
                data.display(),
                log_file(data).display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

/// Whether a platform answers at its local socket.
fn answers(socket: &Path) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: dhow\r\nConnection: close\r\n\r\n")?;
        let mut first = [0; 12];
        stream.read_exact(&mut first)?;
        Ok(first.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

/// After so long `--detach` says that it still waits: one of several servers does, for the others.
const STARTING: Duration = Duration::from_secs(8);

fn must_be_root(what: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("{what} needs root, for namespaces, mounts and networks: use sudo")
}

/// How a platform begins to run.
pub enum Begin<'a> {
    /// By `dhow up`.
    Up(&'a Flags),
    /// By `dhow join`.
    Join(&'a join::Request),
}

/// `dhow up` and `dhow join`: runs the platform until it is told to stop.
///
/// # Errors
/// When something that it needs is missing or taken; one line says what to do.
pub async fn foreground(data: &Path, begin: &Begin<'_>) -> Result<()> {
    must_be_root("dhow")?;
    // It may be relative, and this process does not stay in the directory that it started in.
    let data = &std::path::absolute(data)?;
    let detached = std::env::var_os(DETACHED).is_some();
    if detached {
        // An own session: the terminal's end must not be ours.
        let _ = rustix::process::setsid();
    }
    let started = start(data, begin).await;
    let platform = match started {
        Ok(platform) => platform,
        Err(error) => {
            if detached {
                println!("{}", print::error(&error));
                std::process::exit(1);
            }
            return Err(error);
        }
    };
    if detached {
        // Not before the flags' paths were read: they may be relative.
        std::env::set_current_dir("/")?;
        println!("ready");
        let log = File::options().append(true).open(log_file(data))?;
        rustix::stdio::dup2_stdout(&log)?;
    } else {
        println!("dhow is up: eval \"$(dhow env --data-dir {})\"", print::quoted(data));
    }
    platform.run().await
}

async fn start(data: &Path, begin: &Begin<'_>) -> Result<roles::Platform> {
    let Claim { lock, made, empty } = claim(data)?;
    // Nobody else begins before everything is taken back.
    let held = lock.try_clone()?;
    let started = match begin {
        Begin::Up(flags) => {
            let started = match Config::load(data, flags) {
                Ok(config) => {
                    roles::Platform::start(data, config, lock, flags.force_new_cluster).await
                }
                Err(error) => Err(error),
            };
            if started.is_err() && empty {
                undo::everything_made(data).await;
            }
            started
        }
        Begin::Join(request) => join::start(data, request, lock).await,
    };
    if started.is_err() && empty {
        unclaim(data, "dhow.pid", made);
    }
    drop(held);
    started
}

fn log_file(data: &Path) -> PathBuf {
    data.join("dhow.log")
}

/// The same with `--detach`: starts the platform in the background and waits until it answers.
///
/// # Errors
/// As [`foreground`].
pub fn detached(data: &Path, joins: bool) -> Result<()> {
    must_be_root("dhow")?;
    let data = std::path::absolute(data)?;
    // Whoever joins is told why not by what it starts.
    if !joins && let Some(pid) = answering(&data)? {
        println!("dhow is up already (process {})", pid.as_raw_nonzero());
        return Ok(());
    }
    let made = make(&data)?;
    let (path, new_log) = (log_file(&data), !log_file(&data).exists());
    let log = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let arguments = std::env::args_os().skip(1).filter(|a| a != "--detach");
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(arguments)
        .env(DETACHED, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("cannot start dhow in the background")?;
    let stdout = child.stdout.take().context("the child has no standard output")?;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        // Nobody listens any more when this process ends.
        let _ = tell.send(read.map(|_| line));
    });
    let line = match told.recv_timeout(STARTING) {
        Ok(line) => line?,
        Err(_) => {
            eprintln!("still starting; {} tells what it waits for", path.display());
            told.recv().context("dhow cannot be listened to")??
        }
    };
    match line.trim() {
        "ready" => {
            println!("dhow is up: eval \"$(dhow env --data-dir {})\"", print::quoted(&data));
            Ok(())
        }
        "" => bail!("dhow ended while starting; its log is {}", path.display()),
        told => {
            if new_log {
                unclaim(&data, "dhow.log", made);
            }
            Err(anyhow!("{told}"))
        }
    }
}

/// `dhow down`: stops the platform and its containers; with `purge` removes every trace.
///
/// # Errors
/// When something cannot be stopped or removed.
pub async fn down(data: &Path, purge: bool) -> Result<()> {
    must_be_root("dhow down")?;
    let data = std::path::absolute(data)?;
    if !data.exists() {
        println!("nothing to do: {} does not exist", data.display());
        return Ok(());
    }
    if !is_own(&data) {
        bail!("{} is no dhow data directory: nothing was changed", data.display());
    }
    // Without its configuration nobody knows which groups, links and rules are the platform's: one
    // that cannot be read is an error, one that was never written means that nothing was made.
    let config = match data.join("config.json").exists() {
        true => Some(Config::read(&data)?),
        false => None,
    };
    if purge && let Some(config) = &config {
        // While it runs: of two servers none can let the other go alone.
        leave(&data, config).await;
    }
    end_process(&data)?;
    if let Some(config) = &config {
        if let Some(runtime) = runtime::connect(&data, config).await? {
            runtime.shutdown().await?;
        }
        dhow_dataplane::Dataplane::purge(&config.network, config.cluster_cidr).await?;
    }
    // No container holds these any more, and secrets lie in some of them.
    roles::unmount_below(&data.join("node"))?;
    if !purge {
        println!("dhow is down; its data stays in {}", data.display());
        return Ok(());
    }
    if let Some(datastore) = config.as_ref().and_then(|c| c.datastore.as_ref()) {
        println!(
            "the objects stay in the etcd cluster at {datastore}: delete /registry/ and /dhow/ there to use it anew"
        );
    }
    if remove(&data)? {
        println!("dhow is down and {} is gone", data.display());
    } else {
        println!("dhow is down and {}, a file system of its own, is empty", data.display());
    }
    Ok(())
}

/// Ends the process that runs `data`, if one does.
fn end_process(data: &Path) -> Result<()> {
    use rustix::io::Errno;
    let Some(pid) = running(data) else { return Ok(()) };
    let gone = match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        // It ended by itself meanwhile, as a server does that was taken out.
        Err(Errno::SRCH) => return Ok(()),
        opened => opened.context("cannot watch the dhow process")?,
    };
    match rustix::process::pidfd_send_signal(&gone, rustix::process::Signal::TERM) {
        Err(Errno::SRCH) => return Ok(()),
        sent => sent.context("cannot signal the dhow process")?,
    }
    // A pidfd becomes readable when its process has ended.
    let mut ended = [rustix::event::PollFd::new(&gone, rustix::event::PollFlags::IN)];
    let soon = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
    let poll = "cannot wait for the dhow process";
    if rustix::event::poll(&mut ended, Some(&soon)).context(poll)? == 0 {
        eprintln!(
            "still waiting for dhow process {pid} to end; {} tells what it does",
            log_file(data).display()
        );
        rustix::event::poll(&mut ended, None).context(poll)?;
    }
    Ok(())
}

/// Takes this server out of a platform of several, before its data go. What hinders it is told and
/// hinders nobody: the machine may be wanted for something else just because the others are gone.
async fn leave(data: &Path, config: &Config) {
    let Some((others, id)) = others(data, config).await else { return };
    let left = async {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let pki = pki::Pki::open(&data.join("pki"), now)?;
        let admin = pki.client("admin", "kubernetes-admin", "system:masters", now)?;
        let caller = call::Caller::with_certificate(&pki, &admin)?;
        let path = format!("/dhow/v1/servers/{}", config.name);
        match call::any(&caller, &others, http::Method::DELETE, &path).await {
            Err(error) if !call::is_refusal(&error, 404) => Err(error),
            _ => Ok(()),
        }
    };
    if let Err(error) = left.await {
        eprintln!(
            "dhow: {} is still counted as a server ({}): on another one, once more than half of them run, use 'etcdctl member remove {id}' and 'kubectl delete node {}'",
            config.name,
            print::error(&error),
            config.name
        );
    }
}

/// Where the other servers are reached, and this one's identifier among them; `None` when there are
/// no others.
async fn others(data: &Path, config: &Config) -> Option<(Vec<String>, String)> {
    let known = std::fs::read(servers::file(data)).ok();
    let known: std::collections::BTreeMap<String, std::net::SocketAddr> =
        known.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let mut urls: Vec<String> = known.values().map(|api| format!("https://{api}")).collect();
    let mut id = "ID".to_owned();
    if let Ok(told) = Client::new(data).get("/dhow/v1/servers").await {
        let servers = told["items"].as_array()?;
        let own = |server: &&Value| server["name"] == config.name.as_str();
        if let Some(server) = servers.iter().find(own) {
            id = server["id"].as_str().unwrap_or("ID").to_owned();
        }
        if servers.len() < 2 {
            return None;
        }
        let there = servers.iter().filter(|server| !own(server));
        let there = there.filter_map(|server| Some(format!("https://{}", server["api"].as_str()?)));
        // Those that are there first; each once.
        let mut all: Vec<String> = there.collect();
        urls.retain(|url| !all.contains(url));
        all.append(&mut urls);
        urls = all;
    } else if urls.is_empty() {
        return None;
    }
    Some((urls, id))
}

/// Removes a data directory with what is mounted in it. Returns whether the directory itself is
/// gone: one on which somebody mounted a file system is only emptied.
fn remove(data: &Path) -> Result<bool> {
    let cannot = || format!("cannot remove {}", data.display());
    for entry in std::fs::read_dir(data).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        roles::unmount_below(&entry.path())?;
        let removed = match entry.file_type().with_context(cannot)?.is_dir() {
            true => std::fs::remove_dir_all(entry.path()),
            false => std::fs::remove_file(entry.path()),
        };
        removed.with_context(|| format!("cannot remove {}", entry.path().display()))?;
    }
    match std::fs::remove_dir(data) {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(false),
        removed => removed.map(|()| true).with_context(cannot),
    }
}

/// `dhow env`.
///
/// # Errors
/// When the platform was never started.
pub fn env(target: &Target) -> Result<()> {
    let path = target.data_dir.join("env");
    let text = std::fs::read_to_string(&path).map_err(|error| {
        let data = target.data_dir.display();
        let why = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                format!("cannot read {}: only root may; use sudo", path.display())
            }
            _ => format!(
                "no platform was started in {data}; start one with 'dhow up --data-dir {data}'"
            ),
        };
        anyhow::Error::from(error).context(why)
    })?;
    print!("{text}");
    Ok(())
}

/// `dhow token`.
///
/// # Errors
/// When no server was ever started, or nobody can join.
pub fn token(target: &Target) -> Result<()> {
    let config = Config::read(&target.data_dir)?;
    if config.datastore.is_some() {
        bail!(
            "this platform keeps its data in an external etcd and has one server: nobody can join"
        );
    }
    let path = token::path(&target.data_dir);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}; 'dhow up' makes it", path.display()))?;
    print!("{text}");
    Ok(())
}

/// `dhow status`: one screen.
///
/// # Errors
/// When the platform does not answer.
pub async fn status(target: &Target, output: Output) -> Result<()> {
    let client = Client::new(&target.data_dir);
    let config = Config::read(&target.data_dir)?;
    let nodes = client.get("/api/v1/nodes").await?;
    let pods = client.get("/api/v1/pods").await?;
    let services = client.get("/api/v1/services").await?;
    let deployments = client.get("/apis/apps/v1/deployments").await?;
    let items = |list: &Value| list["items"].as_array().cloned().unwrap_or_default();
    let ready = |conditions: &Value| {
        conditions
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    };
    let machines: Vec<Value> = items(&nodes)
        .iter()
        .map(|node| {
            let address = node["status"]["addresses"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|a| a["type"] == "InternalIP")
                .map_or(Value::Null, |a| a["address"].clone());
            json!({
                "name": node["metadata"]["name"],
                "ready": ready(&node["status"]["conditions"]),
                "schedulable": node["spec"]["unschedulable"] != true,
                "address": address,
            })
        })
        .collect();
    let servers = match &config.datastore {
        Some(_) => Vec::new(),
        None => items(&client.get("/dhow/v1/servers").await?),
    };
    let pods = items(&pods);
    let ready_pods = pods.iter().filter(|p| ready(&p["status"]["conditions"])).count();
    let workloads: Vec<Value> = items(&deployments)
        .iter()
        .map(|d| {
            json!({
                "namespace": d["metadata"]["namespace"],
                "deployment": d["metadata"]["name"],
                "ready": d["status"]["readyReplicas"].as_i64().unwrap_or(0),
                "desired": d["spec"]["replicas"].as_i64().unwrap_or(1),
            })
        })
        .collect();
    let pid = running(&target.data_dir).map_or(0, |p| p.as_raw_nonzero().get());
    let summary = json!({
        "platform": {"process": pid, "dataDir": target.data_dir, "api": config.listen.to_string()},
        "store": {
            "revision": nodes["metadata"]["resourceVersion"],
            "datastore": config.datastore.as_ref().map(ToString::to_string),
        },
        "servers": servers,
        "machines": machines,
        "workloads": workloads,
        "pods": {"total": pods.len(), "ready": ready_pods},
        "network": {
            "pods": config.cluster_cidr.to_string(), "services": config.service_cidr.to_string(),
            "dns": config.dns_ip().to_string(), "serviceCount": items(&services).len(),
        },
    });
    if output != Output::Table {
        return print::value(&summary, output);
    }
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    println!(
        "platform   process {pid}, data in {}, Kubernetes API on {}",
        target.data_dir.display(),
        config.listen
    );
    let place = config.datastore.as_ref().map_or(String::new(), |d| format!(", in etcd at {d}"));
    println!("store      revision {}{place}", text(&summary["store"]["revision"]));
    println!(
        "network    pods {}, services {}, DNS {}",
        config.cluster_cidr,
        config.service_cidr,
        config.dns_ip()
    );
    if config.datastore.is_none() {
        let there = servers.iter().filter(|server| server["present"] == true).count();
        println!(
            "servers    {there} of {} there; 'dhow token' tells what others join with",
            servers.len()
        );
    }
    println!("pods       {ready_pods} of {} ready", pods.len());
    println!();
    if servers.len() > 1 {
        let mut rows = vec![["SERVER", "ROLE", "THERE", "API"].map(str::to_owned).to_vec()];
        for server in &servers {
            let of = |field: &str| match &server[field] {
                Value::Null => "-".to_owned(),
                value => text(value),
            };
            rows.push(["name", "role", "present", "api"].map(of).to_vec());
        }
        print::table(&rows);
        println!();
    }
    let mut rows = vec![["MACHINE", "READY", "ADDRESS"].map(str::to_owned).to_vec()];
    for machine in &machines {
        rows.push(vec![text(&machine["name"]), text(&machine["ready"]), text(&machine["address"])]);
    }
    print::table(&rows);
    if !workloads.is_empty() {
        println!();
        let mut rows = vec![["NAMESPACE", "DEPLOYMENT", "READY"].map(str::to_owned).to_vec()];
        for row in &workloads {
            rows.push(vec![
                text(&row["namespace"]),
                text(&row["deployment"]),
                format!("{}/{}", row["ready"], row["desired"]),
            ]);
        }
        print::table(&rows);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_somebody_else_is_neither_taken_nor_purged() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_own(dir.path()), "an empty one may be taken");
        std::fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
        let refused = make(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("--data-dir"), "{refused}");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let refused = runtime.block_on(down(dir.path(), true)).unwrap_err().to_string();
        assert!(refused.contains("no dhow data directory"), "{refused}");
        assert!(dir.path().join("thesis.txt").exists());
    }

    #[test]
    fn asking_who_runs_does_not_keep_a_start_from_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        drop(claim(dir.path()).unwrap());
        let asker = File::open(pid_file(dir.path())).unwrap();
        rustix::fs::flock(&asker, FlockOperation::NonBlockingLockShared).unwrap();
        let (told, asked) = std::sync::mpsc::channel();
        let path = dir.path().to_owned();
        let starter = std::thread::spawn(move || {
            told.send(()).unwrap();
            claim(&path).map(drop)
        });
        asked.recv().unwrap();
        drop(asker);
        starter.join().unwrap().unwrap();
    }

    #[test]
    fn a_second_platform_is_told_who_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = claim(dir.path()).unwrap();
        let refused = claim(dir.path()).err().unwrap().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        assert_eq!(
            running(dir.path()).map(|p| p.as_raw_nonzero().get() as u32),
            Some(std::process::id())
        );
        drop(held);
        assert_eq!(running(dir.path()), None);
    }

    #[test]
    fn a_number_that_an_earlier_process_left_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        // Claimed by now, but not written yet: the number is that of another process that lives.
        let held = claim(dir.path()).unwrap();
        std::fs::write(pid_file(dir.path()), "1\n").unwrap();
        assert_eq!(running(dir.path()), None);
        drop(held);
    }

    #[test]
    fn a_number_that_cannot_be_written_is_told_with_its_file_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let pid = pid_file(dir.path());
        std::os::unix::fs::symlink("/dev/full", &pid).unwrap();
        let refused = claim(dir.path()).err().unwrap().to_string();
        assert!(refused.starts_with(&format!("cannot write {}: ", pid.display())), "{refused}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_refused_start_leaves_an_empty_directory_empty() {
        let dir = tempfile::tempdir().unwrap();
        let held = claim(dir.path()).unwrap();
        assert!(held.empty && !held.made);
        unclaim(dir.path(), "dhow.pid", held.made);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        drop(held);
        // One that it made itself goes as well.
        let new = dir.path().join("new");
        let held = claim(&new).unwrap();
        unclaim(&new, "dhow.pid", held.made);
        assert!(!new.exists());
        drop(held);
        let held = claim(dir.path()).unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        unclaim(dir.path(), "dhow.pid", true);
        assert!(pid_file(dir.path()).exists(), "it marks the directory as dhow's own");
        drop(held);
    }
}
