//! Making processes: `clone3` with namespaces, from the launcher's small heap.

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::io;

/// What a new process is born into.
#[derive(Debug, Default)]
pub(super) struct Womb<'a> {
    /// `CLONE_NEW...` flags.
    pub namespaces: libc::c_int,
    /// The process namespace to be born into, and the launcher's own to come back to.
    pub pid_namespace: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
    /// The version 2 cgroup to be born into.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// The kernel's `struct clone_args`, as of Linux 5.7 (`CLONE_INTO_CGROUP`).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Makes a process that runs `child`. Returns its number and a descriptor for it.
pub(super) fn bear(womb: &Womb<'_>, child: impl FnOnce() -> Never) -> io::Result<(u32, OwnedFd)> {
    let set_pid_namespace = |fd: BorrowedFd<'_>| {
        // SAFETY: setns takes two integers; for process namespaces it only affects later children.
        if unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWPID) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    if let Some((theirs, _)) = womb.pid_namespace {
        set_pid_namespace(theirs)?;
    }
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: (womb.namespaces | libc::CLONE_PIDFD) as u32 as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = womb.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child works on a copy of this single-threaded process, on the
    // same stack addresses; `args` has the kernel's layout and its size is given. The child never
    // returns from this function.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    let error = io::Error::last_os_error();
    if pid == 0 {
        child();
    }
    if let Some((_, own)) = womb.pid_namespace {
        // Left in another process namespace the launcher would put all later containers there.
        if let Err(error) = set_pid_namespace(own) {
            tracing::error!("the launcher cannot return to its process namespace: {error}");
            std::process::abort();
        }
    }
    if pid < 0 {
        return Err(error);
    }
    // SAFETY: the kernel has stored a new descriptor, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((u32::try_from(pid).map_err(io::Error::other)?, pidfd))
}

/// What a child returns: nothing, ever.
pub(super) type Never = std::convert::Infallible;
