//! Running code inside a network namespace.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// Runs `work` on a fresh thread that has entered the network namespace at `path`, and waits for
/// it. Sockets that `work` returns keep belonging to that namespace; nothing else of this process
/// changes. Call it from a thread that may block.
///
/// # Errors
/// When the namespace cannot be opened or entered, or `work` panicked.
pub fn enter<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = File::open(path).map_err(|error| {
        io::Error::new(error.kind(), format!("network namespace {}: {error}", path.display()))
    })?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, move || {
                rustix::thread::move_into_link_name_space(
                    namespace.as_fd(),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )?;
                Ok(work())
            })?;
        thread.join().unwrap_or_else(|_| {
            Err(io::Error::other(format!("work in network namespace {} panicked", path.display())))
        })
    })
}

/// Brings the loopback link of the calling thread's network namespace up.
///
/// # Errors
/// What the kernel says.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives through the call.
    let result = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_namespace_is_named() {
        let error = enter(Path::new("/nonexistent/net"), || ()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/net"), "{error}");
    }

    #[test]
    fn work_runs_in_the_namespace_and_this_thread_stays() {
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let inside = enter(Path::new("/proc/self/ns/net"), || {
            std::fs::read_link("/proc/thread-self/ns/net")
        })
        .unwrap()
        .unwrap();
        assert_eq!(own, inside);
    }
}
