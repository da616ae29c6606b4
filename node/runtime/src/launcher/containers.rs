//! Containers and further processes in them: start, signal, end, removal.

use super::log::Log;
use super::poller::{Source, Token};
use super::records::{self, ContainerRecord, GroupRecord};
use super::streams::Streams;
use super::{Asker, Ending, Launcher, Womb, bear, monotonic, now};
use crate::child::{self, Fault, Report, Stdio};
use crate::spec::{ContainerSpec, ContainerState, Exit, Limits, Phase, ProcessSpec};
use crate::wire::{self, Body, Failure};
use dhow_kernel::cgroup::Group;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// How long, and how often, a group's last process is waited for after it was killed.
const BURIAL_PERIOD: Duration = Duration::from_millis(20);
const BURIAL_TRIES: u32 = 500;

/// One container, from the start of its making to its removal.
#[derive(Debug)]
pub(super) struct Container {
    pub state: ContainerState,
    pub group: Group,
    pub streams: Streams,
    pub life: Life,
    /// The connection that it does not outlive.
    client: Option<u64>,
    /// For its namespaces; absent if an earlier launcher made it.
    pidfd: Option<OwnedFd>,
    removers: Vec<Asker>,
}

#[derive(Debug)]
pub(super) enum Life {
    /// Its program has not been executed yet.
    Starting,
    /// A step failed; its process is about to end.
    Failed(Asker, Fault),
    Running,
    Exited,
}

impl Container {
    pub fn is_running(&self) -> bool {
        !matches!(self.life, Life::Exited)
    }

    /// Whether the end of its first process ends all others.
    fn has_own_processes(&self) -> bool {
        let spec = &self.state.spec;
        !spec.host_pid && spec.pid_of.is_none() && !spec.sandbox_pid
    }
}

/// A child of the launcher.
#[derive(Debug)]
pub(super) enum Role {
    Container(String),
    Exec {
        connection: u64,
        exec: u64,
    },
    /// The init of a sandbox.
    Init(String),
    Helper,
}

/// A child that has not executed its program yet.
#[derive(Debug)]
pub(super) struct Birth {
    sync: OwnedFd,
    token: Option<Token>,
    asker: Asker,
    purpose: Purpose,
    terminal: Option<OwnedFd>,
    fault: Option<Fault>,
}

impl Birth {
    pub fn new(sync: OwnedFd, asker: Asker, purpose: Purpose) -> Self {
        Self { sync, token: None, asker, purpose, terminal: None, fault: None }
    }
}

#[derive(Debug)]
pub(super) enum Purpose {
    Container { id: String },
    Exec { id: String, exec: u64, streams: wire::Streams, fds: Vec<OwnedFd> },
    Sandbox { id: String },
}

/// A group whose last process is not gone yet.
#[derive(Debug)]
pub(super) struct Dying {
    pub group: Group,
    pub next: Duration,
    tries: u32,
    askers: Vec<Asker>,
}

impl Dying {
    /// Nobody waits for its end.
    pub fn is_unasked(&self) -> bool {
        self.askers.is_empty()
    }
}

/// Identifiers become names of files and groups.
pub(super) fn usable_name(kind: &str, id: &str) -> Result<(), Failure> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !id.is_empty() && id.len() <= 200 && !id.starts_with('.') && id.chars().all(fine) {
        return Ok(());
    }
    Err(Failure::Other(format!(
        "{id:?} cannot name a {kind}: use at most 200 letters, digits, '-', '_' and '.'"
    )))
}

pub(super) fn limits(limits: &Limits) -> dhow_kernel::cgroup::Limits {
    dhow_kernel::cgroup::Limits {
        cpu_request_millis: limits.cpu_request_millis,
        cpu_limit_millis: limits.cpu_limit_millis,
        memory: limits.memory_limit,
        pids: limits.pids_limit,
    }
}

/// A connection between the launcher (first) and a new child.
pub(super) fn sync_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::io::ioctl_fionbio(&pair.0, true)?;
    Ok(pair)
}

/// The child's ends and ours of the standard streams that are asked for (in, out, error).
fn pipes(wanted: [bool; 3]) -> io::Result<(Stdio, [Option<OwnedFd>; 3])> {
    let mut theirs = Stdio::default();
    let mut ours = [None, None, None];
    for (number, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted) {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (their, our) = if number == 0 { (read, write) } else { (write, read) };
        *match number {
            0 => &mut theirs.stdin,
            1 => &mut theirs.stdout,
            _ => &mut theirs.stderr,
        } = Some(their);
        ours[number] = Some(our);
    }
    Ok((theirs, ours))
}

impl Launcher {
    /// Whether short-lived children are under way.
    pub(super) fn has_helpers(&self) -> bool {
        self.roles.values().any(|role| matches!(role, Role::Helper))
    }

    /// Whether a container or sandbox is being made for a client that has gone.
    pub(super) fn has_orphaned_births(&self) -> bool {
        self.births.values().any(|birth| {
            !matches!(birth.purpose, Purpose::Exec { .. })
                && !self.connections.contains_key(&birth.asker.connection)
        })
    }

    fn container_record(&self, id: &str) -> PathBuf {
        self.dir.join("containers").join(format!("{id}.json"))
    }

    /// The answer comes when the program has been executed, or could not be.
    pub(super) fn start(&mut self, asker: Asker, spec: ContainerSpec) -> Result<(), Failure> {
        let id = spec.id.clone();
        usable_name("container", &id)?;
        if self.containers.contains_key(&id) {
            return Err(Failure::Exists(format!("container {id}")));
        }
        let cannot = |step: &str, cause: &dyn std::fmt::Display| Failure::CannotStart {
            id: id.clone(),
            step: step.to_owned(),
            cause: cause.to_string(),
        };
        let sandbox = match &spec.sandbox {
            None => None,
            Some(sandbox) => match self.sandboxes.get(sandbox) {
                Some(known) if !known.growing => {
                    Some((self.namespace_dir(sandbox), known.spec.clone()))
                }
                _ => return Err(Failure::NotFound(format!("sandbox {sandbox}"))),
            },
        };
        let pid_namespace = match (&spec.pid_of, &spec.sandbox) {
            (Some(other), _) => Some(self.pid_namespace_of(other)?),
            (None, Some(sandbox)) if spec.sandbox_pid => {
                Some(self.pid_namespace_of_sandbox(sandbox)?)
            }
            (None, _) => None,
        };
        let log = spec.log.clone().map(Log::open).transpose();
        let log = log.map_err(|error| cannot("opening the log", &error))?;

        let name = match &spec.sandbox {
            Some(sandbox) => format!("{}/{sandbox}/{id}", self.cgroup),
            None => format!("{}/{id}", self.cgroup),
        };
        let group = self
            .cgroups
            .create(&name, &limits(&spec.limits))
            .map_err(|error| cannot("making the cgroup", &error))?;
        if !spec.privileged {
            self.cgroups.guard_devices(&group);
        }
        let tty = spec.process.tty;
        let born = (|| {
            let (stdio, ours) = pipes(if tty { [false; 3] } else { [spec.stdin, true, true] })?;
            let (sync, their_sync) = sync_pair()?;
            let mut namespaces = libc::CLONE_NEWNS;
            if !spec.host_pid && pid_namespace.is_none() {
                namespaces |= libc::CLONE_NEWPID;
            }
            if sandbox.is_none() {
                namespaces |= libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
            }
            let into = group.clone_target()?;
            let womb = Womb {
                namespaces,
                pid_namespace: pid_namespace
                    .as_ref()
                    .map(|theirs| (theirs.as_fd(), self.own_pid_namespace.as_fd())),
                cgroup: into.as_ref().map(AsFd::as_fd),
            };
            let start = child::Start {
                spec: &spec,
                staging: &self.dir.join("root"),
                sandbox,
                group: &group,
                device_guard: self.device_guard.as_ref().filter(|_| !spec.privileged),
                stdio,
            };
            let (pid, pidfd) =
                bear(&womb, || child::run(&their_sync, || child::container(start, &their_sync)))?;
            io::Result::Ok((pid, pidfd, sync, ours))
        })();
        let (pid, pidfd, sync, [stdin, stdout, stderr]) = match born {
            Ok(born) => born,
            Err(error) => {
                let _ = self.cgroups.remove(&group);
                return Err(cannot("clone", &error));
            }
        };
        let key: Rc<str> = Rc::from(id.as_str());
        let mut streams = Streams::new(key, log).awaiting(&spec);
        if let (Some(stdout), Some(stderr)) = (stdout, stderr)
            && let Err(error) = streams.set_pipes(&mut self.poller, stdin, stdout, stderr)
        {
            tracing::warn!("container {id}: its output cannot be read: {error}");
        }
        let client = spec.with_client.then_some(asker.connection);
        let state =
            ContainerState { spec, phase: Phase::Running, pid, started_at: now(), exit: None };
        let container = Container {
            state,
            group,
            streams,
            life: Life::Starting,
            client,
            pidfd: Some(pidfd),
            removers: Vec::new(),
        };
        self.containers.insert(id.clone(), container);
        self.roles.insert(pid, Role::Container(id.clone()));
        self.expect(pid, Birth::new(sync, asker, Purpose::Container { id }))
    }

    fn pid_namespace_of(&self, id: &str) -> Result<OwnedFd, Failure> {
        let container = self
            .containers
            .get(id)
            .filter(|container| matches!(container.life, Life::Running))
            .ok_or_else(|| Failure::NotFound(format!("running container {id}")))?;
        // The process is our child and not reaped: its number cannot mean another one.
        let path = format!("/proc/{}/ns/pid", container.state.pid);
        rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Failure::Other(format!("container {id}: {path}: {errno}")))
    }

    /// Waits for what a new child has to say.
    pub(super) fn expect(&mut self, pid: u32, mut birth: Birth) -> Result<(), Failure> {
        self.roles.entry(pid).or_insert(Role::Helper);
        match self.poller.add(&birth.sync, EventFlags::IN, Source::Birth(pid)) {
            Ok(token) => birth.token = Some(token),
            // It is looked at when the process has ended, at the latest.
            Err(error) => tracing::warn!("process {pid} cannot be watched: {error}"),
        }
        self.births.insert(pid, birth);
        Ok(())
    }

    /// Reads what a new child says; its silence (the end of the connection) is its success.
    pub(super) fn on_birth(&mut self, pid: u32) {
        loop {
            let Some(birth) = self.births.get_mut(&pid) else { return };
            match receive(&birth.sync) {
                Ok(Some((Report::Failed(fault), _))) => birth.fault = Some(fault),
                Ok(Some((Report::Warning(fault), _))) => {
                    tracing::warn!("{:?}: {}: {}", birth.purpose, fault.step, fault.cause);
                }
                Ok(Some((Report::Terminal, fds))) => birth.terminal = fds.into_iter().next(),
                Ok(Some((Report::Done, _))) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) => break,
                Err(error) => {
                    let step = "hearing from the new process".to_owned();
                    birth.fault = Some(Fault { step, cause: error.to_string() });
                    break;
                }
            }
        }
        if let Some(birth) = self.births.remove(&pid) {
            if let Some(token) = birth.token {
                self.poller.remove(&birth.sync, token);
            }
            self.born(birth);
        }
    }

    fn born(&mut self, birth: Birth) {
        let Birth { asker, purpose, terminal, fault, .. } = birth;
        match purpose {
            Purpose::Sandbox { id } => self.sandbox_born(asker, &id, fault),
            Purpose::Exec { id, exec, streams, mut fds } => match fault {
                Some(Fault { step, cause }) => {
                    let failure = Failure::CannotStart { id, step, cause };
                    self.answer(asker, Body::Failed(failure), Vec::new());
                }
                None => {
                    fds.extend(terminal);
                    self.answer(asker, Body::Streams(wire::Streams { exec, ..streams }), fds);
                }
            },
            Purpose::Container { id } => {
                let Some(container) = self.containers.get_mut(&id) else { return };
                if let Some(fault) = fault {
                    // Told when the process is gone and nothing is left.
                    container.life = Life::Failed(asker, fault);
                    return;
                }
                if let Some(master) = terminal {
                    let stdin = container.state.spec.stdin;
                    if let Err(error) =
                        container.streams.set_terminal(&mut self.poller, master, stdin)
                    {
                        tracing::warn!("container {id}: its terminal cannot be used: {error}");
                    }
                }
                container.life = Life::Running;
                container.state.started_at = now();
                let state = Box::new(container.state.clone());
                tracing::info!("container {id} runs as process {}", state.pid);
                self.record(&id);
                self.answer(asker, Body::Container(state), Vec::new());
            }
        }
    }

    pub(super) fn record(&self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        let start = dhow_kernel::process::identity(container.state.pid);
        let record = ContainerRecord {
            state: container.state.clone(),
            group: GroupRecord::from(&container.group),
            boot: self.boot.clone(),
            start_ticks: start.map_or(0, |(_, ticks)| ticks),
        };
        let stored = records::store(&self.container_record(id), &record);
        if let Err(error) = stored {
            tracing::warn!("the record of container {id} cannot be written: {error}");
        }
    }

    pub(super) fn container_states(&self) -> Vec<ContainerState> {
        self.containers
            .values()
            .filter(|container| matches!(container.life, Life::Running | Life::Exited))
            .map(|container| container.state.clone())
            .collect()
    }

    /// A container whose first process runs.
    fn running(&self, id: &str) -> Result<&Container, Failure> {
        let known =
            self.containers.get(id).ok_or_else(|| Failure::NotFound(format!("container {id}")))?;
        if matches!(known.life, Life::Running) {
            return Ok(known);
        }
        Err(Failure::Other(format!("container {id} is not running")))
    }

    pub(super) fn kill(&mut self, id: &str, signal: i32, all: bool) -> Result<(), Failure> {
        let container = match self.containers.get(id) {
            None => return Err(Failure::NotFound(format!("container {id}"))),
            // What is dead cannot be killed; who asks for it has what it wants.
            Some(container) if !container.is_running() => return Ok(()),
            Some(container) => container,
        };
        dhow_kernel::process::signal(container.state.pid, signal)
            .map_err(|error| Failure::Other(format!("container {id}: signal {signal}: {error}")))?;
        if all {
            let first = container.state.pid;
            if signal == libc::SIGKILL {
                self.cgroups.signal(&container.group, signal);
            } else {
                for pid in self.cgroups.processes(&container.group) {
                    if pid != first {
                        let _ = dhow_kernel::process::signal(pid, signal);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn kill_all(&mut self) {
        for container in self.containers.values().filter(|container| container.is_running()) {
            let _ = dhow_kernel::process::signal(container.state.pid, libc::SIGKILL);
            self.cgroups.signal(&container.group, libc::SIGKILL);
        }
    }

    /// Whether it is gone already; else the asker is answered later.
    pub(super) fn remove(&mut self, asker: Asker, id: &str) -> bool {
        let Some(container) = self.containers.get_mut(id) else { return true };
        // The end of everything has its own answer.
        if !matches!(self.ending, Some(Ending::Purge(purger)) if purger == asker) {
            container.removers.push(asker);
        }
        if container.is_running() {
            let _ = dhow_kernel::process::signal(container.state.pid, libc::SIGKILL);
            self.cgroups.signal(&container.group, libc::SIGKILL);
        } else {
            self.take_away(id);
        }
        false
    }

    /// Removes the containers that were to live no longer than this client, which is gone.
    pub(super) fn remove_those_of(&mut self, connection: u64) {
        let theirs = self.containers.iter().filter(|(_, known)| known.client == Some(connection));
        let theirs: Vec<String> = theirs.map(|(id, _)| id.clone()).collect();
        for id in theirs {
            tracing::info!("container {id} ends with the client that started it");
            self.forsaken = true;
            self.remove(Asker { connection, request: 0 }, &id);
        }
    }

    /// Removes an ended container and answers those who wait for that.
    fn take_away(&mut self, id: &str) {
        let Some(mut container) = self.containers.remove(id) else { return };
        container.streams.close(&mut self.poller);
        if let Err(error) = std::fs::remove_file(self.container_record(id))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("the record of container {id} cannot be removed: {error}");
        }
        let removers = std::mem::take(&mut container.removers);
        if self.cgroups.remove(&container.group).is_ok() {
            for asker in removers {
                self.answer(asker, Body::Done, Vec::new());
            }
        } else {
            self.bury_later(container.group, removers);
        }
    }

    /// Keeps trying to remove a group whose processes have been killed.
    pub(super) fn bury_later(&mut self, group: Group, askers: Vec<Asker>) {
        self.cgroups.signal(&group, libc::SIGKILL);
        let next = monotonic() + BURIAL_PERIOD;
        self.dying.push(Dying { group, next, tries: 0, askers });
    }

    pub(super) fn bury(&mut self, time: Duration) {
        for mut dying in std::mem::take(&mut self.dying) {
            if dying.next > time {
                self.dying.push(dying);
                continue;
            }
            match self.cgroups.remove(&dying.group) {
                Err(error) if dying.tries < BURIAL_TRIES => {
                    if dying.tries == 50 {
                        tracing::warn!("{error}; still trying");
                    }
                    self.cgroups.signal(&dying.group, libc::SIGKILL);
                    dying.tries += 1;
                    dying.next = time + BURIAL_PERIOD;
                    self.dying.push(dying);
                }
                result => {
                    let body = match result {
                        Ok(()) => Body::Done,
                        Err(error) => Body::Failed(Failure::Other(error.to_string())),
                    };
                    if let Body::Failed(failure) = &body {
                        tracing::warn!("given up: {failure:?}");
                    }
                    for asker in dying.askers {
                        let body = match &body {
                            Body::Failed(failure) => Body::Failed(failure.clone()),
                            _ => Body::Done,
                        };
                        self.answer(asker, body, Vec::new());
                    }
                }
            }
        }
    }

    /// The answer comes when the program has been executed, or could not be.
    pub(super) fn exec(
        &mut self,
        asker: Asker,
        id: &str,
        process: ProcessSpec,
        wanted: [bool; 3],
    ) -> Result<(), Failure> {
        let cannot = |step: &str, cause: &dyn std::fmt::Display| Failure::CannotStart {
            id: id.to_owned(),
            step: step.to_owned(),
            cause: cause.to_string(),
        };
        let container = self.running(id)?;
        let target = container.pidfd.as_ref();
        let target = target.ok_or_else(|| cannot("exec", &"its launcher is gone"))?;
        let theirs = self.pid_namespace_of(id)?;
        let tty = process.tty;
        let (stdio, ours) =
            pipes(if tty { [false; 3] } else { wanted }).map_err(|error| cannot("pipe", &error))?;
        let (sync, their_sync) = sync_pair().map_err(|error| cannot("socketpair", &error))?;
        let into = container.group.clone_target().map_err(|error| cannot("cgroup", &error))?;
        let womb = Womb {
            namespaces: 0,
            pid_namespace: Some((theirs.as_fd(), self.own_pid_namespace.as_fd())),
            cgroup: into.as_ref().map(AsFd::as_fd),
        };
        let spec = &container.state.spec;
        let exec = child::Exec {
            process: &process,
            privileged: spec.privileged,
            oom_score_adj: spec.oom_score_adj,
            target: target.as_fd(),
            group: &container.group,
            device_guard: self.device_guard.as_ref().filter(|_| !spec.privileged),
            stdio,
        };
        let (pid, _) = bear(&womb, || child::run(&their_sync, || child::exec(exec, &their_sync)))
            .map_err(|error| cannot("clone", &error))?;
        let number = self.next_exec;
        self.next_exec += 1;
        let streams = wire::Streams {
            stdin: ours[0].is_some(),
            stdout: ours[1].is_some(),
            stderr: ours[2].is_some(),
            terminal: tty,
            ..wire::Streams::default()
        };
        let fds = ours.into_iter().flatten().collect();
        self.roles.insert(pid, Role::Exec { connection: asker.connection, exec: number });
        let purpose = Purpose::Exec { id: id.to_owned(), exec: number, streams, fds };
        self.expect(pid, Birth::new(sync, asker, purpose))
    }

    /// Ends a process that this client's [`Launcher::exec`] started, if it still runs.
    pub(super) fn kill_exec(&self, client: u64, number: u64) {
        for (pid, role) in &self.roles {
            if matches!(role, Role::Exec { connection, exec } if (*connection, *exec) == (client, number))
            {
                // Our child and not reaped: its number cannot mean another process.
                let _ = dhow_kernel::process::signal(*pid, libc::SIGKILL);
            }
        }
    }

    pub(super) fn attach(&mut self, asker: Asker, id: &str, stdin: bool) -> Result<(), Failure> {
        let container = self
            .containers
            .get_mut(id)
            .filter(|container| matches!(container.life, Life::Running | Life::Exited))
            .ok_or_else(|| Failure::NotFound(format!("container {id}")))?;
        let attached = container
            .streams
            .attach(&mut self.poller, stdin)
            .map_err(|error| Failure::Other(format!("container {id}: attaching: {error}")))?;
        let streams = wire::Streams {
            stdin: attached.stdin.is_some(),
            stdout: attached.stdout.is_some(),
            stderr: attached.stderr.is_some(),
            resizable: container.streams.has_terminal(),
            exit: container.state.exit.clone(),
            ..wire::Streams::default()
        };
        let fds =
            [attached.stdin, attached.stdout, attached.stderr].into_iter().flatten().collect();
        self.answer(asker, Body::Streams(streams), fds);
        Ok(())
    }

    pub(super) fn log_seen(&mut self, id: &str) -> Result<Option<u64>, Failure> {
        let container = self.containers.get_mut(id);
        let container = container.ok_or_else(|| Failure::NotFound(format!("container {id}")))?;
        Ok(container.streams.log_seen())
    }

    pub(super) fn resize(&mut self, id: &str, columns: u16, rows: u16) -> Result<(), Failure> {
        let container = self.running(id)?;
        container
            .streams
            .resize(columns, rows)
            .map_err(|error| Failure::Other(format!("container {id}: resizing: {error}")))
    }

    /// Takes note of every child that has ended.
    pub(super) fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: waitpid stores a number in `status`.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            let Ok(pid @ 1..) = u32::try_from(pid) else { return };
            // What it said before its end comes first; all of it is there.
            self.on_birth(pid);
            let signal = if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 };
            let code = if signal > 0 { 128 + signal } else { libc::WEXITSTATUS(status) };
            let exit = Exit { code, signal, oom: false, at: now() };
            match self.roles.remove(&pid) {
                Some(Role::Container(id)) => self.ended(&id, exit),
                Some(Role::Exec { connection, exec }) => {
                    self.send(connection, None, Body::ExecExited { exec, exit }, Vec::new());
                }
                Some(Role::Init(sandbox)) => self.init_ended(&sandbox),
                // Helpers, and orphans that came here.
                Some(Role::Helper) | None => {}
            }
        }
    }

    /// A container's first process has ended.
    fn ended(&mut self, id: &str, mut exit: Exit) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Life::Failed(asker, Fault { step, cause }) = &container.life {
            let failure = Failure::CannotStart {
                id: id.to_owned(),
                step: step.clone(),
                cause: cause.clone(),
            };
            let asker = *asker;
            container.life = Life::Exited;
            self.take_away(id);
            self.answer(asker, Body::Failed(failure), Vec::new());
            return;
        }
        exit.oom = exit.code != 0 && self.cgroups.oom_kills(&container.group) > 0;
        if !container.has_own_processes() {
            self.cgroups.signal(&container.group, libc::SIGKILL);
        }
        container.streams.drain(&mut self.poller);
        container.life = Life::Exited;
        container.pidfd = None;
        container.state.phase = Phase::Exited;
        container.state.exit = Some(exit.clone());
        let removed = !container.removers.is_empty();
        tracing::info!("container {id} ended with code {}", exit.code);
        self.record(id);
        self.announce(|| Body::Exited { id: id.to_owned(), exit: exit.clone() });
        if removed || matches!(self.ending, Some(Ending::Purge(_))) {
            self.take_away(id);
        }
    }

    /// Finds what an earlier launcher left. Its containers have lost their streams with it and
    /// nobody could learn their exit code: what still runs is ended.
    pub(super) fn recover(&mut self) {
        self.recover_sandboxes();
        for entry in std::fs::read_dir(self.dir.join("containers")).into_iter().flatten().flatten()
        {
            let path = entry.path();
            let Some(record) = records::load::<ContainerRecord>(&path) else {
                let _ = std::fs::remove_file(&path);
                continue;
            };
            let ContainerRecord { mut state, group, boot, start_ticks } = record;
            let group = group.group();
            let id = state.spec.id.clone();
            let ended_here = state.phase == Phase::Running;
            if ended_here {
                if boot == self.boot {
                    tracing::warn!("container {id} lost its launcher and is ended");
                    end_orphan(state.pid, start_ticks);
                    self.cgroups.signal(&group, libc::SIGKILL);
                }
                state.phase = Phase::Exited;
                let (code, signal) = (128 + libc::SIGKILL, libc::SIGKILL);
                state.exit = Some(Exit { code, signal, oom: false, at: now() });
            }
            let container = Container {
                streams: Streams::new(Rc::from(id.as_str()), None),
                state,
                group,
                life: Life::Exited,
                client: None,
                pidfd: None,
                removers: Vec::new(),
            };
            self.containers.insert(id.clone(), container);
            if ended_here {
                self.record(&id);
            }
        }
    }
}

/// Kills a process that is not our child, if it still is the one that was recorded, and waits for
/// its end (at most 5 seconds).
fn end_orphan(pid: u32, start_ticks: u64) {
    let Some(number) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return;
    };
    let Ok(pidfd) = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty())
    else {
        return;
    };
    // The descriptor stands for whoever has the number now; only then is the identity compared.
    if dhow_kernel::process::identity(pid).is_none_or(|(_, ticks)| ticks != start_ticks) {
        return;
    }
    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    let _ = rustix::event::poll(&mut fds, Some(&limit));
}

/// One report of a new child; `None` is the end.
fn receive(sync: &OwnedFd) -> io::Result<Option<(Report, Vec<OwnedFd>)>> {
    let mut bytes = [0u8; 16 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(sync, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let rustix::net::RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, fds)))
}
