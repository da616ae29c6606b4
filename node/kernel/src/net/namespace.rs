//! Work inside another network namespace, and settings of the current one.

#![allow(unsafe_code)]

use super::Error;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Opens a network namespace by path (`/proc/PID/ns/net` or a bind mount of it).
pub fn open(path: &Path) -> Result<OwnedFd, Error> {
    rustix::fs::open(
        path,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|e| Error::new(format!("open network namespace {}", path.display()), e))
}

/// The calling thread's network namespace.
pub fn current() -> Result<OwnedFd, Error> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// Moves the calling thread into a network namespace, for good.
pub fn enter(namespace: BorrowedFd<'_>) -> Result<(), Error> {
    rustix::thread::move_into_link_name_space(
        namespace,
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .map_err(|e| Error::new("enter a network namespace", e))
}

/// Moves the calling thread into a new, empty network namespace, for good.
pub fn enter_new() -> Result<(), Error> {
    // SAFETY: only the network namespace is unshared, not the descriptor table, so no descriptor
    // that another part of the program holds changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .map_err(|e| Error::new("make a network namespace", e))
}

/// Makes a new network namespace; it lives as long as the descriptor or anything in it.
pub fn create() -> Result<OwnedFd, Error> {
    let here = current()?;
    within(&here, || {
        enter_new()?;
        current()
    })
}

/// Runs `work` in another network namespace, on a thread of its own that ends with it, so that no
/// failure can leave one of the process's threads in the wrong namespace.
pub fn within<T: Send>(
    namespace: &OwnedFd,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .stack_size(256 << 10)
            .spawn_scoped(scope, || {
                enter(namespace.as_fd())?;
                work()
            })
            .map_err(|e| {
                let errno = Errno::from_io_error(&e).unwrap_or(Errno::AGAIN);
                Error::new("start a thread for a network namespace", errno)
            })?
            .join()
            .unwrap_or_else(|_| {
                Err(Error::new("work in a network namespace panicked", Errno::NOTRECOVERABLE))
            })
    })
}

/// Writes a network setting of the calling thread's namespace, for example
/// `net/ipv4/ip_forward`, only if it differs.
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/{name}");
    let error = |e: std::io::Error| {
        Error::new(format!("set {name} to {value}"), Errno::from_io_error(&e).unwrap_or(Errno::IO))
    };
    if get(name)? != value {
        std::fs::write(path, value).map_err(error)?;
    }
    Ok(())
}

/// Reads a network setting of the calling thread's namespace.
pub fn get(name: &str) -> Result<String, Error> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).map(|v| v.trim().to_owned()).map_err(|e| {
        Error::new(format!("read {name}"), Errno::from_io_error(&e).unwrap_or(Errno::IO))
    })
}
