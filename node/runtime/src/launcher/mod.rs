//! The launcher: the small, single-threaded parent of all containers.
//!
//! It serves one data directory, over a Unix socket that only root may use. It does nothing unless
//! a descriptor is ready or a deadline has come. It starts no thread and no runtime: a process that
//! clones itself must not.

mod birth;
mod connection;
mod containers;
mod init;
mod limits;
mod log;
mod note;
mod poller;
mod records;
mod sandboxes;
mod strays;
mod streams;

use crate::Error;
use crate::wire::{Body, Failure, Message, OLDEST, Op, Request, VERSION, encode};
use birth::{Womb, bear};
use connection::Connection;
use containers::{Birth, Container, Dying, Role};
use dhow_clock::Clock;
use dhow_kernel::cgroup::{Group, System};
use poller::{Poller, Source};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sandboxes::Sandbox;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

static CLOCK: LazyLock<dhow_clock::System> = LazyLock::new(dhow_clock::System::new);

/// Nanoseconds since the epoch.
fn now() -> i128 {
    i128::try_from(CLOCK.now().as_nanos()).unwrap_or(i128::MAX)
}

/// For deadlines.
fn monotonic() -> Duration {
    CLOCK.monotonic()
}

/// Longest log of the launcher itself that is kept when it starts.
const LOG_KEPT: u64 = 1 << 20;

/// Who waits for an answer: a connection and its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asker {
    connection: u64,
    request: u64,
}

/// Everything that the launcher knows.
#[derive(Debug)]
struct Launcher {
    dir: PathBuf,
    /// Name of the group that holds everything.
    cgroup: String,
    cgroups: System,
    /// The group that all containers but privileged ones join for its list of devices.
    device_guard: Option<Group>,
    boot: String,
    poller: Poller,
    listener: OwnedFd,
    signals: OwnedFd,
    own_pid_namespace: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    containers: BTreeMap<String, Container>,
    sandboxes: BTreeMap<String, Sandbox>,
    /// Children that have not executed their program yet.
    births: HashMap<u32, Birth>,
    /// What the living children are.
    roles: HashMap<u32, Role>,
    next_exec: u64,
    /// Groups that wait for their last process to be gone.
    dying: Vec<Dying>,
    ending: Option<Ending>,
    /// Who asks for a list that is not settled yet, and for which.
    listings: Vec<(Asker, Listing)>,
    /// A client was killed at work, which can have been the one that this was started by.
    forsaken: bool,
}

/// What a client wants listed.
#[derive(Debug, Clone, Copy)]
enum Listing {
    Containers,
    Sandboxes,
}

/// How the launcher is about to end.
#[derive(Debug)]
enum Ending {
    /// Leaving nothing behind; somebody waits for it.
    Purge(Asker),
    /// Leaving the records (the machine shuts down).
    Stop,
}

/// See [`crate::launcher_main`].
pub(crate) fn main(dir: &Path, cgroup: &str) -> Result<(), Error> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source: io::Error| Error::Io { what, source }
    };
    let make = |dir: &Path| {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io(&format!("making {}", dir.display())))
    };
    make(dir)?;
    let dir = dir.canonicalize().map_err(io(&format!("finding {}", dir.display())))?;
    for name in ["containers", "sandboxes", "ns", "root"] {
        make(&dir.join(name))?;
    }
    let lock = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("launcher.lock"))
        .map_err(io("opening launcher.lock"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        // Another one serves this directory, or is about to.
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
        Err(errno) => return Err(io("locking launcher.lock")(errno.into())),
    }
    let listener = listen(&dir).map_err(io(&format!("serving {}/launcher.sock", dir.display())))?;
    let output = open_log(&dir).map_err(io("opening launcher.log"))?;

    // The process that was started ends here, so that nobody has to wait for its child.
    // SAFETY: this process has one thread; the child goes on with a full copy.
    match unsafe { libc::fork() } {
        -1 => return Err(io("fork")(io::Error::last_os_error())),
        0 => {}
        _ => return Ok(()),
    }
    detach(output).map_err(io("leaving the session"))?;
    let _ = tracing::subscriber::set_global_default(note::Plain);
    let mut launcher = Launcher::new(dir, cgroup, listener).map_err(io("starting the launcher"))?;
    tracing::info!("launcher {} serves {}", std::process::id(), launcher.dir.display());
    launcher.recover();
    launcher.end_strays();
    launcher.serve().map_err(io("waiting for events"))?;
    // The lock is held to the very end.
    drop(lock);
    // What called this is the copy of a program that has ended already.
    std::process::exit(0)
}

fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // Socket addresses are short; directories are not.
    let handle = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/launcher.sock", handle.as_raw_fd());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?);
    rustix::process::umask(umask);
    bound?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

fn open_log(dir: &Path) -> io::Result<std::fs::File> {
    let path = dir.join("launcher.log");
    let file = std::fs::File::options().create(true).append(true).open(path)?;
    if file.metadata()?.len() > LOG_KEPT {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Leaves the session, the terminal and the working directory of whoever started this.
fn detach(output: std::fs::File) -> io::Result<()> {
    rustix::process::setsid()?;
    reset_signals();
    rustix::process::chdir("/")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&output)?;
    rustix::stdio::dup2_stderr(&output)?;
    // The kernel refuses the strongest protection to those who lack CAP_SYS_RESOURCE.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
    // Orphans of containers that share the machine's process namespace come here.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))?;
    Ok(())
}

/// Undoes what whoever started this has ignored: containers would inherit it.
fn reset_signals() {
    for signal in (1..=64).filter(|signal| *signal != libc::SIGPIPE) {
        // SAFETY: only the default action is installed; the kernel refuses the two that have none.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Blocks the signals that the launcher hears and makes a descriptor for them.
fn signal_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: the set is local and initialised by sigemptyset; the result is checked and owned here.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

impl Launcher {
    fn new(dir: PathBuf, cgroup: &str, listener: OwnedFd) -> io::Result<Self> {
        let mut poller = Poller::new()?;
        let signals = signal_descriptor()?;
        poller.add(&signals, EventFlags::IN, Source::Signals)?;
        poller.add(&listener, EventFlags::IN, Source::Listener)?;
        let cgroups = System::detect()?;
        let device_guard =
            cgroups.create_device_guard(&format!("{cgroup}/devices")).unwrap_or_else(|error| {
                tracing::warn!("containers are not kept from devices by a cgroup: {error}");
                None
            });
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let own_pid_namespace = rustix::fs::open("/proc/self/ns/pid", flags, Mode::empty())?;
        Ok(Self {
            dir,
            cgroup: cgroup.to_owned(),
            cgroups,
            device_guard,
            boot: dhow_kernel::process::boot_id(),
            poller,
            listener,
            signals,
            own_pid_namespace,
            connections: BTreeMap::new(),
            next_connection: 1,
            containers: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            births: HashMap::new(),
            roles: HashMap::new(),
            next_exec: 1,
            dying: Vec::new(),
            ending: None,
            listings: Vec::new(),
            forsaken: false,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            let deadline = self.deadline();
            let timeout = deadline.map(|at| at.saturating_sub(monotonic()));
            for ready in self.poller.wait(timeout)? {
                self.handle(ready);
            }
            if deadline.is_some_and(|at| at <= monotonic()) {
                self.on_deadline();
            }
            self.answer_listings();
            if self.is_over() {
                return Ok(());
            }
        }
    }

    fn handle(&mut self, ready: poller::Ready) {
        match ready.source {
            Source::Listener => self.accept(),
            Source::Signals => self.on_signals(),
            Source::Connection(number) => self.on_connection(number, ready.writable),
            Source::Birth(pid) => self.on_birth(pid),
            Source::Output(id, stream) => {
                if let Some(container) = self.containers.get_mut(&*id) {
                    container.streams.read(&mut self.poller, stream);
                }
            }
            Source::Input(id) => {
                if let Some(container) = self.containers.get_mut(&*id) {
                    container.streams.flush_input(&mut self.poller);
                }
            }
            Source::Sink(id, number, stream) => {
                if let Some(container) = self.containers.get_mut(&*id) {
                    if ready.broken {
                        container.streams.drop_sink(&mut self.poller, number, stream);
                    } else {
                        container.streams.flush_sink(&mut self.poller, number, stream);
                    }
                }
            }
            Source::Typing(id, number) => {
                if let Some(container) = self.containers.get_mut(&*id) {
                    container.streams.type_in(&mut self.poller, number);
                }
            }
        }
    }

    fn deadline(&self) -> Option<Duration> {
        let streams = self.containers.values().filter_map(|container| container.streams.deadline());
        streams.chain(self.dying.iter().map(|dying| dying.next)).min()
    }

    fn on_deadline(&mut self) {
        let now = monotonic();
        for container in self.containers.values_mut() {
            container.streams.drop_stalled(&mut self.poller, now);
        }
        self.bury(now);
    }

    fn on_signals(&mut self) {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        let mut stop = false;
        while let Ok(length) = rustix::io::read(&self.signals, &mut info) {
            if length < 4 {
                break;
            }
            // The first field is the signal's number.
            let signal = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            stop |= signal == libc::SIGTERM as u32;
        }
        self.reap();
        if stop && self.ending.is_none() {
            tracing::info!("told to stop: ending all containers");
            self.ending = Some(Ending::Stop);
            self.kill_all();
        }
    }

    fn perform(&mut self, connection: u64, request: Request) {
        let asker = Asker { connection, request: request.id };
        let answer = match request.op {
            Op::Hello { version } => {
                if version != VERSION {
                    tracing::info!("a client speaks version {version}, this launcher {VERSION}");
                }
                let dropped = self.containers.values().map(|c| c.streams.dropped_log_bytes()).sum();
                Some(Ok(Body::Hello {
                    version: VERSION,
                    pid: std::process::id(),
                    dropped_log_bytes: dropped,
                    oldest: OLDEST,
                }))
            }
            _ if self.ending.is_some() => {
                Some(Err(Failure::Other("the launcher is shutting down".to_owned())))
            }
            Op::CreateSandbox(spec) => self.create_sandbox(asker, *spec).err().map(Err),
            Op::RemoveSandbox { id } => self.remove_sandbox(asker, &id).transpose(),
            Op::Sandboxes => {
                self.listings.push((asker, Listing::Sandboxes));
                None
            }
            Op::Start(spec) => self.start(asker, *spec).err().map(Err),
            Op::Containers => {
                self.listings.push((asker, Listing::Containers));
                None
            }
            Op::Kill { id, signal, all } => Some(self.kill(&id, signal, all).map(|()| Body::Done)),
            Op::Remove { id } => self.remove(asker, &id).then_some(Ok(Body::Done)),
            Op::Exec { id, process, stdin, stdout, stderr } => {
                self.exec(asker, &id, *process, [stdin, stdout, stderr]).err().map(Err)
            }
            Op::Attach { id, stdin } => self.attach(asker, &id, stdin).err().map(Err),
            Op::LogSeen { id } => Some(self.log_seen(&id).map(Body::LogSeen)),
            Op::Resize { id, columns, rows } => {
                Some(self.resize(&id, columns, rows).map(|()| Body::Done))
            }
            Op::Limit(relimit) => Some(self.change_limits(*relimit).map(|()| Body::Done)),
            Op::KillExec { exec } => {
                self.kill_exec(connection, exec);
                Some(Ok(Body::Done))
            }
            Op::Shutdown => {
                tracing::info!("removing everything");
                self.ending = Some(Ending::Purge(asker));
                let ids: Vec<String> = self.containers.keys().cloned().collect();
                for id in ids {
                    self.remove(asker, &id);
                }
                None
            }
        };
        match answer {
            Some(Ok(body)) => self.answer(asker, body, Vec::new()),
            Some(Err(failure)) => self.answer(asker, Body::Failed(failure), Vec::new()),
            None => {}
        }
    }

    /// Tells those who ask what there is. What a client that has gone asked for, or began to make, is
    /// there or not when it is done, and who makes the same anew must know which: until then the
    /// answer waits.
    fn answer_listings(&mut self) {
        if self.listings.is_empty() {
            return;
        }
        self.hear_all();
        if self.has_orphaned_births() {
            return;
        }
        for (asker, listing) in std::mem::take(&mut self.listings) {
            let body = match listing {
                Listing::Containers => Body::Containers(self.container_states()),
                Listing::Sandboxes => Body::Sandboxes(self.sandbox_states()),
            };
            self.answer(asker, body, Vec::new());
        }
    }

    /// Whether the loop is to end; does the last things if so.
    fn is_over(&mut self) -> bool {
        if !self.births.is_empty() || !self.dying.is_empty() || self.has_helpers() {
            return false;
        }
        let Some(ending) = &self.ending else { return self.forsaken && self.end_unused() };
        match ending {
            Ending::Stop => self.containers.values().all(|container| !container.is_running()),
            Ending::Purge(asker) => {
                if !self.containers.is_empty() {
                    return false;
                }
                let asker = *asker;
                let result = self.purge();
                let body = match result {
                    Ok(()) => Body::Done,
                    Err(error) => Body::Failed(Failure::Other(error)),
                };
                self.answer(asker, body, Vec::new());
                if let Some(connection) = self.connections.get_mut(&asker.connection) {
                    // It is the last word; a moment for the other side to take it.
                    let _ = rustix::io::ioctl_fionbio(&connection.socket, false);
                    let _ = connection.flush();
                }
                true
            }
        }
    }

    /// Leaves nothing behind if there is nobody to serve, and nothing to keep.
    fn end_unused(&mut self) -> bool {
        // Somebody may have come while the last one went.
        self.accept();
        let used = !self.connections.is_empty()
            || !self.containers.is_empty()
            || !self.sandboxes.is_empty();
        if used {
            return false;
        }
        tracing::info!("the last client is gone and has left nothing");
        if let Err(error) = self.purge() {
            tracing::warn!("something is left: {error}");
        }
        true
    }

    /// Removes what is left when there is no container any more.
    fn purge(&mut self) -> Result<(), String> {
        let mut failures = Vec::new();
        let mut note = |result: Result<(), String>| failures.extend(result.err());
        for id in self.sandboxes.keys().cloned().collect::<Vec<_>>() {
            note(self.drop_sandbox(&id).map_err(|failure| format!("{failure:?}")));
        }
        note(dhow_kernel::mount::unmount_below(&self.dir).map_err(|error| error.to_string()));
        if let Some(guard) = self.device_guard.take() {
            note(self.cgroups.remove(&guard).map_err(|error| error.to_string()));
        }
        note(self.cgroups.remove_tree(&self.cgroup).map_err(|error| error.to_string()));
        for name in ["containers", "sandboxes", "ns"] {
            note(std::fs::remove_dir_all(self.dir.join(name)).map_err(|e| format!("{name}: {e}")));
        }
        note(std::fs::remove_dir(self.dir.join("root")).map_err(|e| format!("root: {e}")));
        for name in ["launcher.sock", "launcher.log", "launcher.lock"] {
            note(std::fs::remove_file(self.dir.join(name)).map_err(|e| format!("{name}: {e}")));
        }
        // Others may keep things beside ours.
        let _ = std::fs::remove_dir(&self.dir);
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    fn answer(&mut self, asker: Asker, body: Body, fds: Vec<OwnedFd>) {
        self.send(asker.connection, Some(asker.request), body, fds);
    }

    fn send(&mut self, connection: u64, id: Option<u64>, body: Body, fds: Vec<OwnedFd>) {
        let message = Message { id, fds: fds.len(), body };
        match encode(&message) {
            Ok(frame) => self.post(connection, frame, fds),
            Err(error) => tracing::error!("an answer cannot be encoded: {error}"),
        }
    }

    /// Tells every client.
    fn announce(&mut self, body: impl Fn() -> Body) {
        for connection in self.connections.keys().copied().collect::<Vec<_>>() {
            self.send(connection, None, body(), Vec::new());
        }
    }
}
