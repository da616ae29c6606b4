//! Ports of the loopback link for servers that tests start as processes, and start anew.
//!
//! A port that the kernel chose (`bind` to port 0) is the test's own only while its socket is open.
//! As soon as it is closed, any outgoing connection of a test beside it may be given that port,
//! and so may it while a server is away between two starts. These are therefore ports that the
//! kernel does not give away, and each is held against other tests by a lock.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Below what the kernel gives outgoing connections (32768 and up, `ip_local_port_range`) and below
/// node ports (30000 and up); above what well-known servers listen on.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port of 127.0.0.1 that nobody listens on, by TCP and by UDP. No other call of this function
/// gives it as long as this process lives, in whatever process of this network namespace.
///
/// # Panics
/// When all are taken.
pub fn free() -> u16 {
    // Tests that run at once begin at different places. Where one ended, clients of its servers may
    // still try to reach them.
    let begin = (std::process::id().wrapping_mul(61) % u32::from(COUNT)) as u16;
    let mut all = (0..COUNT).map(|n| FIRST + (begin + n) % COUNT);
    all.find(|port| lock(*port) && is_free(*port)).expect("one of ten thousand ports is free")
}

/// Takes the lock of a port, and keeps it until the process ends, also when somebody else has the
/// port: there is no need to look again.
fn lock(port: u16) -> bool {
    // A name without a file, which the kernel frees with the last handle. Like ports, such names
    // belong to a network namespace.
    let name = SocketAddr::from_abstract_name(format!("dhow-test-port-{port}"));
    let held = name.and_then(|name| UnixDatagram::bind_addr(&name));
    held.map(std::mem::forget).is_ok()
}

/// Whether nobody has the port, also not a program that knows nothing of locks.
fn is_free(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_port_is_given_twice() {
        let some = || (0..25).map(|_| free()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(some)).collect();
        let all: Vec<u16> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 100, "{all:?}");
        assert!(all.iter().all(|port| !lock(*port) && is_free(*port)), "{all:?}");
    }

    #[test]
    fn a_port_that_somebody_has_is_not_free() {
        let (tcp, udp) = (free(), free());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, tcp)).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, udp)).unwrap();
        assert!(!is_free(tcp) && !is_free(udp));
        drop((listener, socket));
        assert!(is_free(tcp) && is_free(udp));
    }
}
