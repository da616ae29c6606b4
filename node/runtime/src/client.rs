//! The handle to the launcher: requests, answers and news over its socket.

use crate::spec::{
    ContainerSpec, ContainerState, Exit, Limits, ProcessSpec, SandboxSpec, SandboxState,
};
use crate::wire::{self, Body, Inbox, Message, OLDEST, Op, Request, VERSION};
use crate::{Attached, Config, Error};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

/// Exits that a slow subscriber may lag behind.
const EXITS: usize = 1024;

/// How long a launcher may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

/// The handle to the launcher of one data directory. Cheap to clone.
///
/// If the launcher is lost (it is killed, say), requests under way fail with [`Error::Launcher`], a
/// new one is started in the background, and every container that ended meanwhile is told by
/// [`Runtime::exits`], perhaps again.
#[derive(Debug, Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    link: tokio::sync::Mutex<Option<Link>>,
    exits: broadcast::Sender<(String, Exit)>,
    /// [`Runtime::shutdown`] was called: the launcher's end is no loss.
    closing: AtomicBool,
    /// Told after each recovery from a loss.
    reconnected: watch::Sender<()>,
}

/// One connection.
#[derive(Debug, Clone)]
struct Link {
    frames: mpsc::UnboundedSender<Vec<u8>>,
    shared: Arc<Shared>,
    /// The version that the launcher speaks.
    version: u32,
    /// This side has no use for the connection: its end is no loss.
    abandoned: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    table: Mutex<Table>,
    /// Told when the connection is gone.
    over: Notify,
}

#[derive(Debug, Default)]
struct Table {
    /// The connection is gone; nothing will be answered any more.
    over: bool,
    pending: HashMap<u64, Pending>,
    /// Who waits for the end of an exec, and of a container.
    execs: HashMap<u64, oneshot::Sender<Exit>>,
    containers: HashMap<String, Vec<oneshot::Sender<Exit>>>,
}

#[derive(Debug)]
struct Pending {
    answer: oneshot::Sender<Answer>,
    /// The container to whose streams it attaches.
    container: Option<String>,
}

#[derive(Debug)]
struct Answer {
    body: Body,
    fds: Vec<OwnedFd>,
    exit: Option<oneshot::Receiver<Exit>>,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn lost() -> Error {
    Error::Launcher("the connection was lost; it is started again, try once more".to_owned())
}

fn unexpected(body: &Body) -> Error {
    Error::Launcher(format!("an unexpected answer: {body:?}"))
}

impl Runtime {
    /// Connects to the launcher of `config.dir`, starting it if none answers. One of an earlier
    /// version goes on with its containers and is spoken to in its own words; once it has none (and
    /// no sandbox) it is replaced by the next call of this.
    ///
    /// # Errors
    /// When it cannot be started, or one that speaks no version of ours serves the directory.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let (exits, _) = broadcast::channel(EXITS);
        let inner = Arc::new(Inner {
            config,
            link: tokio::sync::Mutex::new(None),
            exits,
            closing: AtomicBool::new(false),
            reconnected: watch::Sender::new(()),
        });
        inner.link().await?;
        Ok(Self { inner })
    }

    /// Makes a pod's namespaces (network, ipc, uts) and its cgroup; they live until removed.
    ///
    /// # Errors
    /// [`Error::Exists`], or [`Error::CannotStart`] with the step that failed.
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<SandboxState, Error> {
        match self.ask(Op::CreateSandbox(Box::new(spec))).await? {
            Body::Sandbox(state) => Ok(*state),
            body => Err(unexpected(&body)),
        }
    }

    /// Removes a sandbox: namespaces and cgroup. Its containers have to be removed before. Fine if
    /// it is not there.
    ///
    /// # Errors
    /// [`Error::Launcher`] while it has containers, or if a part cannot be removed.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        self.done(Op::RemoveSandbox { id: id.to_owned() }).await
    }

    /// All sandboxes, also those made before a restart.
    ///
    /// # Errors
    /// When the launcher does not answer.
    pub async fn sandboxes(&self) -> Result<Vec<SandboxState>, Error> {
        match self.ask(Op::Sandboxes).await? {
            Body::Sandboxes(states) => Ok(states),
            body => Err(unexpected(&body)),
        }
    }

    /// Starts a container; returns when its program has been executed (or failed to be).
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NotFound`] for its sandbox, or [`Error::CannotStart`] with the
    /// step that failed; then nothing of it is left.
    pub async fn start(&self, spec: ContainerSpec) -> Result<ContainerState, Error> {
        match self.ask(Op::Start(Box::new(spec))).await? {
            Body::Container(state) => Ok(*state),
            body => Err(unexpected(&body)),
        }
    }

    /// All containers, running and ended, until they are removed.
    ///
    /// # Errors
    /// When the launcher does not answer.
    pub async fn containers(&self) -> Result<Vec<ContainerState>, Error> {
        match self.ask(Op::Containers).await? {
            Body::Containers(states) => Ok(states),
            body => Err(unexpected(&body)),
        }
    }

    /// Sends a signal to a container's first process, or to all of its processes. Fine if it has
    /// ended.
    ///
    /// # Errors
    /// [`Error::NotFound`], or what the kernel says of the signal.
    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), Error> {
        self.done(Op::Kill { id: id.to_owned(), signal, all }).await
    }

    /// Changes the limits of a sandbox and, with them, those of one of its containers: identifier,
    /// limits, and labels that change with them. The container goes on running. Limits can be
    /// changed or added, not taken away (0 leaves what there is).
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Launcher`] with what the kernel refused; memory below what
    /// is in use is refused. Then the container has its old limits.
    pub async fn change_limits(
        &self,
        sandbox: &str,
        limits: Limits,
        container: Option<(&str, Limits, BTreeMap<String, String>)>,
    ) -> Result<(), Error> {
        let container = container.map(|(id, limits, labels)| wire::ContainerLimits {
            id: id.to_owned(),
            limits,
            labels,
        });
        let sandbox = sandbox.to_owned();
        self.done(Op::Limit(Box::new(wire::Relimit { sandbox, limits, container }))).await
    }

    /// Removes an ended container's record, mounts and cgroup (kills it first if it runs). The
    /// writable layer and the log stay with the caller. Fine if it is not there.
    ///
    /// # Errors
    /// When its processes do not die.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        self.done(Op::Remove { id: id.to_owned() }).await
    }

    /// Runs a further process in a running container. It has the container's limits, devices and
    /// namespaces; its user, capabilities, seccomp and directory are `process`'s. With a terminal
    /// there is no separate standard error. The descriptors are non-blocking.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::CannotStart`] with the step that failed.
    pub async fn exec(
        &self,
        id: &str,
        process: ProcessSpec,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<Attached, Error> {
        let process = Box::new(process);
        let op = Op::Exec { id: id.to_owned(), process, stdin, stdout, stderr };
        let answer = self.send(op, None).await?;
        let Body::Streams(streams) = &answer.body else { return Err(unexpected(&answer.body)) };
        let number = streams.exec;
        if !streams.terminal {
            return self.attached(id, answer);
        }
        let exit = answer.exit.ok_or_else(lost)?;
        let Some(master) = answer.fds.into_iter().next() else {
            return Err(Error::Launcher("an answer came without its terminal".to_owned()));
        };
        let io = |source| Error::Io { what: format!("terminal of container {id}"), source };
        rustix::io::ioctl_fionbio(&master, true).map_err(|errno| io(errno.into()))?;
        let copy = |wanted: bool| wanted.then(|| master.try_clone()).transpose().map_err(io);
        let (stdin, stdout) = (copy(stdin)?, copy(stdout)?);
        let (resize, mut sizes) = mpsc::channel::<(u16, u16)>(4);
        tokio::spawn(async move {
            while let Some((columns, rows)) = sizes.recv().await {
                if let Err(error) = crate::child::set_size(master.as_fd(), columns, rows) {
                    tracing::debug!("a terminal's size cannot be set: {error}");
                }
            }
        });
        Ok(Attached { stdin, stdout, stderr: None, resize: Some(resize), exit, exec: number })
    }

    /// Ends a process that [`Runtime::exec`] started, by force. Fine if it has ended.
    ///
    /// # Errors
    /// When the launcher does not answer.
    pub async fn kill_exec(&self, exec: u64) -> Result<(), Error> {
        self.done(Op::KillExec { exec }).await
    }

    /// Connects to a running container's own standard streams. Output from the moment of the call
    /// on; several may be attached at once; none slows the container down for long: one that takes
    /// nothing for 10 seconds is disconnected. The first attachment to a container with `keep_early`
    /// also gets what came before it (the newest 64 KiB of each stream). A container that has ended
    /// can be attached to as well: what was held or kept for the first attachment comes, then the
    /// end; without any of that there are no streams. The descriptors are non-blocking; dropping
    /// them detaches.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn attach(&self, id: &str, stdin: bool) -> Result<Attached, Error> {
        let answer = self.send(Op::Attach { id: id.to_owned(), stdin }, Some(id)).await?;
        self.attached(id, answer)
    }

    /// Says that somebody reads a container's log, as a client does before it attaches: the first
    /// attachment will get what came after it. Returns up to which length the log is to be read, in
    /// bytes of its current file; `None` when no output is kept for a first attachment.
    ///
    /// # Errors
    /// [`Error::NotFound`], or when the launcher is of a version that keeps nothing.
    pub async fn log_seen(&self, id: &str) -> Result<Option<u64>, Error> {
        match self.ask(Op::LogSeen { id: id.to_owned() }).await? {
            Body::LogSeen(size) => Ok(size),
            body => Err(unexpected(&body)),
        }
    }

    fn attached(&self, id: &str, answer: Answer) -> Result<Attached, Error> {
        let Body::Streams(streams) = answer.body else { return Err(unexpected(&answer.body)) };
        let exit = answer.exit.ok_or_else(lost)?;
        for fd in &answer.fds {
            rustix::io::ioctl_fionbio(fd, true).map_err(|errno| Error::Io {
                what: format!("streams of container {id}"),
                source: errno.into(),
            })?;
        }
        let mut fds = answer.fds.into_iter();
        let mut next = |there: bool| if there { fds.next() } else { None };
        let (stdin, stdout) = (next(streams.stdin), next(streams.stdout));
        let stderr = next(streams.stderr);
        let resize = streams.resizable.then(|| {
            let (resize, mut sizes) = mpsc::channel::<(u16, u16)>(4);
            let (runtime, id) = (self.clone(), id.to_owned());
            tokio::spawn(async move {
                while let Some((columns, rows)) = sizes.recv().await {
                    let op = Op::Resize { id: id.clone(), columns, rows };
                    if let Err(error) = runtime.done(op).await {
                        tracing::debug!("{error}");
                    }
                }
            });
            resize
        });
        Ok(Attached { stdin, stdout, stderr, resize, exit, exec: streams.exec })
    }

    /// Changes whenever the launcher was lost and another was reached. The exits that it recorded
    /// have been told by then; a container that it does not know of any more tells nothing.
    pub fn reconnections(&self) -> watch::Receiver<()> {
        self.inner.reconnected.subscribe()
    }

    /// Every container exit from now on, as `(id, exit)`.
    pub fn exits(&self) -> broadcast::Receiver<(String, Exit)> {
        self.inner.exits.subscribe()
    }

    /// Ends the launcher after everything was removed (`dhow down --purge`): containers, sandboxes,
    /// mounts, cgroups and the files of `config.dir`.
    ///
    /// # Errors
    /// What could not be removed; the launcher ends all the same.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.inner.closing.store(true, Ordering::Relaxed);
        self.done(Op::Shutdown).await
    }

    /// Bytes of container output that were dropped because the disk did not take them, over the
    /// containers that are there.
    ///
    /// # Errors
    /// When the launcher does not answer.
    pub async fn dropped_log_bytes(&self) -> Result<u64, Error> {
        match self.ask(Op::Hello { version: VERSION }).await? {
            Body::Hello { dropped_log_bytes, .. } => Ok(dropped_log_bytes),
            body => Err(unexpected(&body)),
        }
    }

    async fn done(&self, op: Op) -> Result<(), Error> {
        match self.ask(op).await? {
            Body::Done => Ok(()),
            body => Err(unexpected(&body)),
        }
    }

    async fn ask(&self, op: Op) -> Result<Body, Error> {
        Ok(self.send(op, None).await?.body)
    }

    async fn send(&self, op: Op, container: Option<&str>) -> Result<Answer, Error> {
        let link = self.inner.link().await?;
        link.request(op, container).await
    }
}

impl Inner {
    /// The connection; made again, with a new launcher if need be, when it is gone.
    async fn link(self: &Arc<Self>) -> Result<Link, Error> {
        let mut slot = self.link.lock().await;
        if let Some(link) = slot.as_ref()
            && !link.shared.table().over
        {
            return Ok(link.clone());
        }
        let mut link = self.greet().await?;
        if link.version < VERSION && link.is_idle().await? {
            tracing::info!(
                "the launcher of {} is of an earlier version and has no container: it is replaced",
                self.config.dir.display()
            );
            link.abandoned.store(true, Ordering::Relaxed);
            link.request(Op::Shutdown, None).await?;
            link.gone().await;
            link = self.greet().await?;
        }
        *slot = Some(link.clone());
        Ok(link)
    }

    /// Connects to the launcher, starting one if none answers, and agrees on a version.
    async fn greet(self: &Arc<Self>) -> Result<Link, Error> {
        let dir = &self.config.dir;
        let stream = match connect(dir).await {
            Ok(stream) => stream,
            Err(_) if self.closing.load(Ordering::Relaxed) => {
                return Err(Error::Launcher("it was shut down".to_owned()));
            }
            Err(_) => {
                start(&self.config).await?;
                connect_soon(dir).await?
            }
        };
        let mut link = Link::new(stream, Arc::downgrade(self), self.exits.clone());
        let hello = link.request(Op::Hello { version: VERSION }, None);
        let answer = tokio::time::timeout(HELLO, hello)
            .await
            .map_err(|_| Error::Launcher(format!("no answer in {} seconds", HELLO.as_secs())))??;
        let Body::Hello { version, pid, oldest, .. } = answer.body else {
            return Err(unexpected(&answer.body));
        };
        if version < OLDEST || (version > VERSION && !(1..=VERSION).contains(&oldest)) {
            link.abandoned.store(true, Ordering::Relaxed);
            let spoken = match oldest {
                0 => version.to_string(),
                oldest => format!("{oldest} to {version}"),
            };
            return Err(Error::Launcher(format!(
                "process {pid} serves {} with version {spoken} of the protocol, this program speaks \
                 {OLDEST} to {VERSION}: end its containers with the dhow that started it (dhow down), \
                 or use that dhow",
                dir.display()
            )));
        }
        if version < VERSION {
            tracing::info!(
                "launcher {pid} of {} speaks version {version} of the protocol, this program \
                 {VERSION}: its containers go on",
                dir.display()
            );
        }
        link.version = version;
        Ok(link)
    }

    /// After a loss: connects again and tells what ended meanwhile.
    async fn recover(inner: Weak<Self>) {
        let mut pause = Duration::from_millis(100);
        loop {
            let Some(inner) = inner.upgrade() else { return };
            if inner.closing.load(Ordering::Relaxed) {
                return;
            }
            let listed = match inner.link().await {
                Ok(link) => link.request(Op::Containers, None).await,
                Err(error) => Err(error),
            };
            match listed {
                Ok(Answer { body: Body::Containers(states), .. }) => {
                    tracing::info!(
                        "connected to the launcher of {} again",
                        inner.config.dir.display()
                    );
                    for state in states {
                        if let Some(exit) = state.exit {
                            // Nobody may be listening.
                            let _ = inner.exits.send((state.spec.id, exit));
                        }
                    }
                    inner.reconnected.send_replace(());
                    return;
                }
                Ok(answer) => tracing::warn!("{}", unexpected(&answer.body)),
                Err(error) => tracing::warn!("launcher of {}: {error}", inner.config.dir.display()),
            }
            drop(inner);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(60));
        }
    }
}

/// Connects to a launcher that serves the directory.
async fn connect(dir: &Path) -> io::Result<UnixStream> {
    use rustix::fs::{Mode, OFlags};
    // Socket addresses are short; directories are not.
    let handle = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}/launcher.sock", handle.as_raw_fd())).await
}

/// Connects to a launcher that is being started, perhaps by somebody else.
async fn connect_soon(dir: &Path) -> Result<UnixStream, Error> {
    let mut error = None;
    for _ in 0..100 {
        match connect(dir).await {
            Ok(stream) => return Ok(stream),
            Err(failed) => error = Some(failed),
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let cause = error.map(|error| error.to_string()).unwrap_or_default();
    Err(Error::Launcher(format!(
        "it does not answer: {cause}; see {}",
        dir.join("launcher.log").display()
    )))
}

/// Starts a launcher. The standard library uses `posix_spawn` here, which does not copy this
/// process; what it starts leaves another process behind and ends at once.
async fn start(config: &Config) -> Result<(), Error> {
    let mut command = std::process::Command::new(&config.binary);
    command.arg("launcher").arg(&config.dir).arg(&config.cgroup);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let binary = config.binary.clone();
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .map_err(|error| Error::Launcher(error.to_string()))?
        .map_err(|source| Error::Io { what: format!("starting {}", binary.display()), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Launcher(format!("it cannot start ({}): {}", output.status, said.trim())))
}

impl Link {
    fn new(
        stream: UnixStream,
        inner: Weak<Inner>,
        exits: broadcast::Sender<(String, Exit)>,
    ) -> Self {
        let (frames, outgoing) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { next: AtomicU64::new(1), ..Shared::default() });
        let abandoned = Arc::new(AtomicBool::new(false));
        let stream = Arc::new(stream);
        tokio::spawn(write(stream.clone(), outgoing));
        let (table, wanted) = (shared.clone(), abandoned.clone());
        tokio::spawn(async move {
            let error = read(&stream, &table, &exits).await;
            {
                let mut inner = table.table();
                // Dropping the senders tells everybody who waits.
                *inner = Table { over: true, ..Table::default() };
            }
            table.over.notify_waiters();
            if let Some(error) = error
                && !wanted.load(Ordering::Relaxed)
                && let Some(running) = inner.upgrade()
                && !running.closing.load(Ordering::Relaxed)
            {
                tracing::warn!("the launcher of {} is lost: {error}", running.config.dir.display());
                drop(running);
                Inner::recover(inner).await;
            }
        });
        Self { frames, shared, version: VERSION, abandoned }
    }

    /// Whether the launcher has neither containers nor sandboxes.
    async fn is_idle(&self) -> Result<bool, Error> {
        let containers = self.request(Op::Containers, None).await?.body;
        let sandboxes = self.request(Op::Sandboxes, None).await?.body;
        Ok(matches!(containers, Body::Containers(all) if all.is_empty())
            && matches!(sandboxes, Body::Sandboxes(all) if all.is_empty()))
    }

    /// Returns when the launcher has closed the connection, which is the last that it does.
    async fn gone(&self) {
        let over = self.shared.over.notified();
        tokio::pin!(over);
        over.as_mut().enable();
        if !self.shared.table().over {
            over.await;
        }
    }

    async fn request(&self, op: Op, container: Option<&str>) -> Result<Answer, Error> {
        if let Some((since, what)) = op.since().filter(|(since, _)| *since > self.version) {
            return Err(Error::Launcher(format!(
                "{what} needs version {since} of the protocol, and the launcher that runs since \
                 before an upgrade speaks version {}: it is replaced after dhow down and dhow up",
                self.version
            )));
        }
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let frame = wire::encode(&Request { id, op })
            .map_err(|source| Error::Io { what: "encoding a request".to_owned(), source })?;
        let (sender, answer) = oneshot::channel();
        {
            let mut table = self.shared.table();
            if table.over {
                return Err(lost());
            }
            let container = container.map(str::to_owned);
            table.pending.insert(id, Pending { answer: sender, container });
        }
        self.frames.send(frame).map_err(|_| lost())?;
        let answer = answer.await.map_err(|_| lost())?;
        match answer.body {
            Body::Failed(failure) => Err(failure.into()),
            _ => Ok(answer),
        }
    }
}

/// Writes frames until nobody is left who could send one.
async fn write(stream: Arc<UnixStream>, mut frames: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        let mut sent = 0;
        while sent < frame.len() {
            let written = stream
                .async_io(Interest::WRITABLE, || {
                    wire::send(stream.as_fd(), &frame[sent..], &[]).map_err(io::Error::from)
                })
                .await;
            match written {
                Ok(count) => sent += count,
                // The reader notices the same.
                Err(_) => return,
            }
        }
    }
    // The launcher answers this by closing, which ends the reader.
    let _ = rustix::net::shutdown(stream.as_fd(), rustix::net::Shutdown::Write);
}

/// Reads frames until the connection ends; `None` if this side wanted that.
async fn read(
    stream: &UnixStream,
    shared: &Shared,
    exits: &broadcast::Sender<(String, Exit)>,
) -> Option<io::Error> {
    let mut inbox = Inbox::default();
    loop {
        match stream.async_io(Interest::READABLE, || inbox.receive(stream.as_fd())).await {
            Ok(true) => {}
            Ok(false) => return Some(io::Error::other("it has closed the connection")),
            Err(error) => return Some(error),
        }
        loop {
            let message = match inbox.next::<Message>() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => return Some(error),
            };
            match inbox.take_fds(message.fds) {
                Ok(fds) => deliver(shared, exits, message, fds),
                Err(error) => return Some(error),
            }
        }
    }
}

fn deliver(
    shared: &Shared,
    exits: &broadcast::Sender<(String, Exit)>,
    message: Message,
    fds: Vec<OwnedFd>,
) {
    let mut table = shared.table();
    match (message.id, message.body) {
        (Some(id), body) => {
            let Some(pending) = table.pending.remove(&id) else { return };
            // Whoever waits for the end is entered before the next frame is read.
            let exit = if let Body::Streams(streams) = &body {
                let (sender, exit) = oneshot::channel();
                match (&streams.exit, pending.container) {
                    (Some(known), _) => drop(sender.send(known.clone())),
                    (None, Some(id)) => {
                        let waiting = table.containers.entry(id).or_default();
                        // Those that have detached since.
                        waiting.retain(|known| !known.is_closed());
                        waiting.push(sender);
                    }
                    (None, None) => drop(table.execs.insert(streams.exec, sender)),
                }
                Some(exit)
            } else {
                None
            };
            // The asker may have gone.
            let _ = pending.answer.send(Answer { body, fds, exit });
        }
        (None, Body::Exited { id, exit }) => {
            for waiting in table.containers.remove(&id).unwrap_or_default() {
                let _ = waiting.send(exit.clone());
            }
            let _ = exits.send((id, exit));
        }
        (None, Body::ExecExited { exec, exit }) => {
            if let Some(waiting) = table.execs.remove(&exec) {
                let _ = waiting.send(exit);
            }
        }
        (None, body) => tracing::warn!("unexpected news from the launcher: {body:?}"),
    }
}
