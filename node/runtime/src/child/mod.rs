//! What a new process does between its birth in the launcher and the program that it becomes.
//!
//! It is a copy of the single-threaded launcher, so it may allocate; but it must never return into
//! the launcher's code. A failed step is reported over a socket with its name. Descriptors are all
//! closed by the exec that ends this.

mod identity;
mod rootfs;
mod seccomp;

use crate::spec::{ContainerSpec, ProcessSpec, SandboxSpec};
use dhow_kernel::cgroup::Group;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where programs are looked up when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A step that failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub step: String,
    pub cause: String,
}

impl Fault {
    fn new(step: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { step: step.into(), cause: cause.into() }
    }
}

/// Turns an input or output error into the failure of this step.
fn at<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Fault {
    let step = step.into();
    move |error| Fault::new(step, error.into().to_string())
}

/// What the child tells the launcher. The end of the connection means that the program runs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A step failed; the process ends.
    Failed(Fault),
    /// The master side of its terminal comes along.
    Terminal,
    /// Something could not be done, and it goes on without.
    Warning(Fault),
    /// A sandbox stands (there is no exec that would close the connection).
    Done,
}

/// The descriptors that a process gets as its standard ones; with a terminal they are absent.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// What starts a container.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub spec: &'a ContainerSpec,
    /// A directory of the machine to be covered by the root while it is built.
    pub staging: &'a Path,
    /// The directory of the sandbox's namespaces.
    pub sandbox: Option<(PathBuf, SandboxSpec)>,
    pub group: &'a Group,
    pub device_guard: Option<&'a Group>,
    pub stdio: Stdio,
}

/// What starts a further process in a container.
#[derive(Debug)]
pub(crate) struct Exec<'a> {
    pub process: &'a ProcessSpec,
    pub privileged: bool,
    pub oom_score_adj: i32,
    /// The container's first process, for its namespaces.
    pub target: BorrowedFd<'a>,
    pub group: &'a Group,
    pub device_guard: Option<&'a Group>,
    pub stdio: Stdio,
}

/// Runs a child to its exec. Ends the process if a step fails.
pub(crate) fn run(sync: &OwnedFd, work: impl FnOnce() -> Result<Infallible, Fault>) -> ! {
    // A panic must not unwind into the launcher's loop: there would be two of it.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    let fault = match result {
        Ok(Ok(never)) => match never {},
        Ok(Err(fault)) => fault,
        Err(_) => Fault::new("preparing", "a mistake in dhow: the preparation panicked"),
    };
    report(sync, &Report::Failed(fault), &[]);
    exit(1)
}

/// Ends this process without running anything of the launcher's.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

pub(crate) fn report(sync: &OwnedFd, report: &Report, fds: &[OwnedFd]) {
    if let Ok(bytes) = serde_json::to_vec(report) {
        // The launcher may be gone; then nobody wants to know.
        let _ = crate::wire::send(sync.as_fd(), &bytes, fds);
    }
}

/// The life of a container's first process until its exec.
pub(crate) fn container(start: Start<'_>, sync: &OwnedFd) -> Result<Infallible, Fault> {
    let spec = start.spec;
    prepare_process(spec.oom_score_adj, sync)?;
    let groups = open_groups(start.group, start.device_guard)?;
    if let Some((dir, sandbox)) = &start.sandbox {
        for (name, own) in
            [("net", !sandbox.host_network), ("ipc", !sandbox.host_ipc), ("uts", true)]
        {
            if own {
                let path = dir.join(name);
                let step = || format!("entering namespace {}", path.display());
                let file = std::fs::File::open(&path).map_err(at(step()))?;
                set_namespace(file.as_fd(), 0).map_err(at(step()))?;
            }
        }
    } else {
        if !spec.hostname.is_empty() {
            rustix::system::sethostname(spec.hostname.as_bytes())
                .map_err(at("setting the host name"))?;
        }
        dhow_kernel::netns::loopback_up().map_err(at("bringing the loopback link up"))?;
    }
    let shm = start
        .sandbox
        .as_ref()
        .filter(|(_, sandbox)| !sandbox.host_ipc)
        .map(|(dir, _)| dir.join("shm"));
    let shm = match &start.sandbox {
        Some((_, sandbox)) if sandbox.host_ipc => Some(PathBuf::from("/dev/shm")),
        _ => shm,
    };
    rootfs::enter(spec, start.staging, shm.as_deref(), start.group)?;
    groups.join()?;
    // Its root is where this process stands now.
    new_cgroup_namespace(sync);
    become_program(&spec.process, spec.privileged, start.stdio, true, sync)
}

/// The life of a further process until its exec.
pub(crate) fn exec(exec: Exec<'_>, sync: &OwnedFd) -> Result<Infallible, Fault> {
    prepare_process(exec.oom_score_adj, sync)?;
    open_groups(exec.group, exec.device_guard)?.join()?;
    // One call enters all of them; the process namespace was set before this process was made.
    let kinds = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    set_namespace(exec.target, kinds).map_err(at("entering the container's namespaces"))?;
    become_program(exec.process, exec.privileged, exec.stdio, false, sync)
}

/// The life of a pod's init, the parent of whatever its containers leave behind: waits, and reaps.
///
/// It runs as nobody's program: no descriptor, no capability, no file system, and closed to whoever
/// shares its process namespace. The launcher ends it.
pub(crate) fn init(namespaces: &Path, staging: &Path, group: &Group) -> ! {
    let prepare = || -> Result<(), Fault> {
        rustix::process::setsid().map_err(at("setsid"))?;
        identity::rename("dhow-init").map_err(at("changing the command line"))?;
        let groups = open_groups(group, None)?;
        for name in ["net", "ipc", "uts"] {
            let path = namespaces.join(name);
            // One that is the machine's is not kept there.
            let Ok(file) = std::fs::File::open(&path) else { continue };
            set_namespace(file.as_fd(), 0).map_err(at(format!("entering {}", path.display())))?;
        }
        rootfs::leave(staging)?;
        groups.join()?;
        reset_signals();
        identity::become_init().map_err(at("becoming init"))
    };
    let prepared = std::panic::catch_unwind(std::panic::AssertUnwindSafe(prepare));
    let failed = match prepared {
        Ok(Ok(())) => None,
        Ok(Err(fault)) => Some(fault),
        Err(_) => Some(Fault::new("preparing", "a mistake in dhow: the preparation panicked")),
    };
    if let Some(Fault { step, cause }) = failed {
        // The launcher's log is still the standard error.
        eprintln!("a pod's init: {step}: {cause}");
        exit(1);
    }
    // SAFETY: the calls work on a local set and integers; nothing of the launcher is touched.
    unsafe {
        libc::close_range(0, u32::MAX, 0);
        let mut children: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut children);
        libc::sigaddset(&raw mut children, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const children, std::ptr::null_mut());
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            libc::sigwaitinfo(&raw const children, std::ptr::null_mut());
        }
    }
}

/// Makes a sandbox's namespaces and leaves them bound in `dir`. Runs in a short-lived process that
/// was born in them.
pub(crate) fn sandbox(spec: &SandboxSpec, dir: &Path) -> Result<(), Fault> {
    rustix::system::sethostname(spec.hostname.as_bytes()).map_err(at("setting the host name"))?;
    if !spec.host_network {
        dhow_kernel::netns::loopback_up().map_err(at("bringing the loopback link up"))?;
    }
    for (name, value) in &spec.sysctls {
        let path = sysctl_path(name, spec).map_err(|cause| Fault::new("sysctl", cause))?;
        std::fs::write(&path, value).map_err(at(format!("sysctl {name}={value}")))?;
    }
    for (name, own) in [("net", !spec.host_network), ("ipc", !spec.host_ipc), ("uts", true)] {
        if !own {
            continue;
        }
        let target = dir.join(name);
        let step = || format!("keeping namespace {}", target.display());
        std::fs::File::create(&target).map_err(at(step()))?;
        dhow_kernel::mount::bind(&Path::new("/proc/self/ns").join(name), &target)
            .map_err(at(step()))?;
    }
    if !spec.host_ipc {
        let target = dir.join("shm");
        std::fs::create_dir_all(&target).map_err(at("making shared memory"))?;
        let flags = rustix::mount::MountFlags::NOSUID
            | rustix::mount::MountFlags::NODEV
            | rustix::mount::MountFlags::NOEXEC;
        dhow_kernel::mount::tmpfs(&target, &format!("dhow:{}", spec.id), 64 << 20, 0o1777, flags)
            .map_err(at("making shared memory"))?;
    }
    Ok(())
}

/// The file of a sysctl that belongs to one of the sandbox's own namespaces.
fn sysctl_path(name: &str, spec: &SandboxSpec) -> Result<PathBuf, String> {
    let path = name.replace('.', "/");
    if path.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(format!("{name:?} is not the name of a sysctl"));
    }
    let network = path.starts_with("net/");
    let ipc = ["kernel/shm", "kernel/msg", "fs/mqueue/"].iter().any(|p| path.starts_with(p))
        || path == "kernel/sem";
    match (network, ipc) {
        (true, _) if spec.host_network => {
            Err(format!("{name} would change the machine: the pod uses the machine's network"))
        }
        (_, true) if spec.host_ipc => {
            Err(format!("{name} would change the machine: the pod uses the machine's IPC"))
        }
        (true, _) | (_, true) => Ok(Path::new("/proc/sys").join(path)),
        _ => Err(format!("{name} does not belong to a namespace and cannot be set for a pod")),
    }
}

/// What every new process does first: signals, preference for out-of-memory victims, an own session.
fn prepare_process(oom_score_adj: i32, sync: &OwnedFd) -> Result<(), Fault> {
    reset_signals();
    rustix::process::umask(Mode::empty());
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", oom_score_adj.to_string()) {
        // Lowering it needs CAP_SYS_RESOURCE, which a machine may withhold even from root.
        let fault = at(format!("setting oom_score_adj to {oom_score_adj}"))(error);
        report(sync, &Report::Warning(fault), &[]);
    }
    rustix::process::setsid().map_err(at("setsid"))?;
    Ok(())
}

/// Directories that are joined, opened while the machine's file systems can be reached.
struct Groups(Vec<(PathBuf, OwnedFd)>);

/// Opens the version 1 groups (the version 2 one was joined at birth).
fn open_groups(group: &Group, device_guard: Option<&Group>) -> Result<Groups, Fault> {
    let mut groups = Vec::new();
    for group in [Some(group), device_guard].into_iter().flatten() {
        for path in group.joinable() {
            let file = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            let file = file.map_err(at(format!("opening {}", path.display())))?;
            groups.push((path, file));
        }
    }
    Ok(Groups(groups))
}

impl Groups {
    /// Moves this process, which has one thread.
    fn join(self) -> Result<(), Fault> {
        for (path, file) in self.0 {
            rustix::io::write(&file, b"0").map_err(at(format!("joining {}", path.display())))?;
        }
        Ok(())
    }
}

/// Signals as a program expects them: none blocked, none ignored. The launcher blocks what it hears
/// and ignores only SIGPIPE; what was handled is reset by the exec.
fn reset_signals() {
    // SAFETY: the default action is installed, and the calls on the mask work on a local set.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn set_namespace(fd: BorrowedFd<'_>, kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: setns takes two integers; this process has one thread.
    if unsafe { libc::setns(fd.as_raw_fd(), kinds) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn new_cgroup_namespace(sync: &OwnedFd) {
    // SAFETY: unshare takes an integer; this process has one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } != 0 {
        let fault = at("making a cgroup namespace")(io::Error::last_os_error());
        report(sync, &Report::Warning(fault), &[]);
    }
}

/// The last stretch: terminal, user, capabilities, filter, exec.
fn become_program(
    process: &ProcessSpec,
    privileged: bool,
    stdio: Stdio,
    first: bool,
    sync: &OwnedFd,
) -> Result<Infallible, Fault> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let read = |path: &str| std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned());
    let wanted = identity::Wanted {
        user: &process.user,
        uid: process.uid,
        gid: process.gid,
        groups: &process.supplementary_groups,
        no_image_groups: process.no_image_groups,
        must_not_be_root: process.must_not_be_root,
    };
    let user = identity::resolve(
        &wanted,
        &read("/etc/passwd").unwrap_or_default(),
        &read("/etc/group").unwrap_or_default(),
    )
    .map_err(|cause| Fault::new("finding the user", cause))?;

    let slave = if process.tty { Some(terminal(process, &user, first, sync)?) } else { None };
    standard_streams(stdio, slave.as_ref(), &user)?;

    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    if !cwd.starts_with('/') {
        return Err(Fault::new("chdir", format!("{cwd:?} is not an absolute path")));
    }
    rootfs::directory(Path::new(cwd)).map_err(at(format!("making the working directory {cwd}")))?;
    rustix::process::chdir(cwd).map_err(at(format!("chdir to {cwd}")))?;

    let names =
        if privileged { identity::all_capabilities() } else { process.capabilities.clone() };
    let asked = identity::mask(&names).map_err(|cause| Fault::new("capabilities", cause))?;
    let mask = identity::available(asked);
    let filter = (process.seccomp && !privileged).then(|| seccomp::default_profile(&names));

    raise_file_limit();
    identity::limit_bounding_set(mask).map_err(at("limiting the capabilities"))?;
    // Without no-new-privileges only an administrator may install a filter: before becoming less.
    if !process.no_new_privileges
        && let Some(filter) = &filter
    {
        filter.install().map_err(at("installing the seccomp filter"))?;
    }
    identity::switch_user(&user).map_err(at(format!("becoming user {}:{}", user.uid, user.gid)))?;
    identity::set_capabilities(mask).map_err(at("setting the capabilities"))?;
    if process.no_new_privileges {
        identity::set_no_new_privileges().map_err(at("forbidding new privileges"))?;
        if let Some(filter) = &filter {
            filter.install().map_err(at("installing the seccomp filter"))?;
        }
    }
    close_others();
    execute(process, &user)
}

/// Containers get as many descriptors as the machine lets them have, up to the usual 1,048,576.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const USUAL: u64 = 1_048_576;
    let now = getrlimit(Resource::Nofile);
    let most = Rlimit { current: Some(USUAL), maximum: Some(USUAL) };
    if setrlimit(Resource::Nofile, most).is_err() {
        // A machine may withhold the privilege to raise the maximum.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    }
}

/// Opens a terminal of the container, hands its master to the launcher, makes it the controlling one.
fn terminal(
    process: &ProcessSpec,
    user: &identity::User,
    first: bool,
    sync: &OwnedFd,
) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())
        .map_err(at("opening a terminal (/dev/pts/ptmx)"))?;
    rustix::pty::unlockpt(&master).map_err(at("unlocking the terminal"))?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC,
    )
    .map_err(at("opening the terminal's other side"))?;
    if let Some((columns, rows)) = process.size {
        set_size(master.as_fd(), columns, rows).map_err(at("setting the terminal's size"))?;
    }
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(user.uid)), None)
        .map_err(at("giving the terminal to the user"))?;
    rustix::process::ioctl_tiocsctty(&slave)
        .map_err(at("making the terminal the controlling one"))?;
    if first {
        let name =
            rustix::termios::ttyname(&slave, Vec::new()).map_err(at("naming the terminal"))?;
        let console = Path::new("/dev/console");
        std::fs::File::create(console)
            .and_then(|_| {
                let name = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
                dhow_kernel::mount::bind(name, console)
            })
            .map_err(at("making /dev/console"))?;
    }
    report(sync, &Report::Terminal, &[master]);
    Ok(slave)
}

/// Sets the size of the terminal behind this descriptor.
pub(crate) fn set_size(master: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size =
        rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size)?;
    Ok(())
}

fn standard_streams(
    stdio: Stdio,
    slave: Option<&OwnedFd>,
    user: &identity::User,
) -> Result<(), Fault> {
    let null = |write: bool| {
        let flags = if write { OFlags::WRONLY } else { OFlags::RDONLY };
        rustix::fs::open("/dev/null", flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(at("opening /dev/null"))
    };
    for (number, own) in [(0, stdio.stdin), (1, stdio.stdout), (2, stdio.stderr)] {
        let fd = match (slave, own) {
            (Some(slave), _) => slave.try_clone().map_err(at("standard streams"))?,
            (None, Some(own)) => {
                // So that a user other than root can open /dev/stdout.
                let _ = rustix::fs::fchown(
                    &own,
                    Some(rustix::fs::Uid::from_raw(user.uid)),
                    Some(rustix::fs::Gid::from_raw(user.gid)),
                );
                own
            }
            (None, None) => null(number != 0)?,
        };
        // SAFETY: dup2 takes two integers; the target is one of the standard descriptors.
        if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
            return Err(at("standard streams")(io::Error::last_os_error()));
        }
        if fd.as_raw_fd() == number {
            std::mem::forget(fd);
        }
    }
    Ok(())
}

/// Marks every descriptor but the standard ones to be closed by exec.
fn close_others() {
    // SAFETY: close_range takes integers; with this flag nothing is closed before the exec.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Replaces this process by the program.
fn execute(process: &ProcessSpec, user: &identity::User) -> Result<Infallible, Fault> {
    let program = process.args.first().map(String::as_str).unwrap_or_default();
    let mut env = process.env.clone();
    let has = |env: &[String], name: &str| {
        env.iter().any(|entry| entry.split_once('=').is_some_and(|(key, _)| key == name))
    };
    if !has(&env, "PATH") {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    if !has(&env, "HOME") {
        env.push(format!("HOME={}", user.home));
    }
    if process.tty && !has(&env, "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    let path = env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH)
        .to_owned();
    let file = look_up(program, &path).map_err(|cause| Fault::new("exec", cause))?;
    let strings = |list: &[String]| -> Result<Vec<CString>, Fault> {
        list.iter()
            .map(|text| CString::new(text.as_str()))
            .collect::<Result<_, _>>()
            .map_err(|_| Fault::new("exec", "an argument or variable holds a zero byte"))
    };
    let (args, env) = (strings(&process.args)?, strings(&env)?);
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&args), pointers(&env));
    let file = CString::new(file.as_os_str().as_bytes())
        .map_err(|_| Fault::new("exec", "the program's path holds a zero byte"))?;
    // SAFETY: all strings are zero-terminated, both lists end with a null pointer, and all of it
    // outlives the call.
    unsafe { libc::execve(file.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    let error = plain(&io::Error::last_os_error());
    Err(Fault::new("exec", format!("{program:?}: {error}")))
}

/// The program's file. The texts are those that clients of container engines know.
fn look_up(program: &str, path: &str) -> Result<PathBuf, String> {
    if program.is_empty() {
        return Err("no program is given".to_owned());
    }
    if program.contains('/') {
        let file = PathBuf::from(program);
        return match std::fs::metadata(&file) {
            Err(error) => Err(format!("{program:?}: stat {program}: {}", plain(&error))),
            Ok(metadata) if metadata.is_dir() => Err(format!("{program:?}: is a directory")),
            Ok(_) if !executable(&file) => Err(format!("{program:?}: permission denied")),
            Ok(_) => Ok(file),
        };
    }
    path.split(':')
        .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(program))
        .find(|file| std::fs::metadata(file).is_ok_and(|m| m.is_file()) && executable(file))
        .ok_or_else(|| format!("{program:?}: executable file not found in $PATH"))
}

fn executable(file: &Path) -> bool {
    // As the user that this process has become, not as the one that it was.
    rustix::fs::accessat(
        rustix::fs::CWD,
        file,
        rustix::fs::Access::EXEC_OK,
        rustix::fs::AtFlags::EACCESS,
    )
    .is_ok()
}

/// An error's text as C programs print it, in lower case and without the number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_with_familiar_errors() {
        assert_eq!(look_up("sh", "/nonexistent:/bin").unwrap(), Path::new("/bin/sh"));
        assert_eq!(
            look_up("no-such-program", "/bin").unwrap_err(),
            "\"no-such-program\": executable file not found in $PATH"
        );
        assert_eq!(
            look_up("/no/such", "").unwrap_err(),
            "\"/no/such\": stat /no/such: no such file or directory"
        );
        assert_eq!(look_up("/etc/passwd", "").unwrap_err(), "\"/etc/passwd\": permission denied");
        assert_eq!(look_up("/etc", "").unwrap_err(), "\"/etc\": is a directory");
    }

    #[test]
    fn sysctls_of_the_machine_are_refused() {
        let spec = SandboxSpec::default();
        assert_eq!(
            sysctl_path("net.core.somaxconn", &spec).unwrap(),
            Path::new("/proc/sys/net/core/somaxconn")
        );
        assert!(sysctl_path("kernel.shmmax", &spec).is_ok());
        assert!(sysctl_path("kernel.panic", &spec).is_err());
        assert!(sysctl_path("net..x", &spec).is_err());
        let host = SandboxSpec { host_network: true, ..SandboxSpec::default() };
        assert!(
            sysctl_path("net.core.somaxconn", &host).unwrap_err().contains("machine's network")
        );
    }
}
