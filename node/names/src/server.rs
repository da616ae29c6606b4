//! Sockets: UDP and TCP (RFC 1035, RFC 7766).

use crate::Shared;
use crate::answer::{Outcome, failure};
use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// An idle TCP connection is closed after this.
const IDLE: Duration = Duration::from_secs(10);
/// TCP connections at once, on each address.
const CONNECTIONS: usize = 256;
/// Datagrams that may wait, in bytes.
const BACKLOG: usize = 1 << 20;

fn socket(address: SocketAddr, kind: rustix::net::SocketType) -> io::Result<rustix::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags};
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // The address may come later, with the pod network.
    if address.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true)?;
    } else {
        sockopt::set_ipv6_freebind(&socket, true)?;
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// How many ports are tried for port 0.
const TRIES: usize = 64;

/// Binds UDP and TCP on one address; port 0 takes one port that is free for both.
pub(crate) fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    // Held until the end: the kernel, which chooses for UDP alone, would offer them again.
    let mut unfit = Vec::new();
    loop {
        let udp = socket(address, rustix::net::SocketType::DGRAM)?;
        let _ = sockopt::set_socket_recv_buffer_size(&udp, BACKLOG);
        let udp = UdpSocket::from_std(udp.into())?;
        match listen(udp.local_addr()?) {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && address.port() == 0
                    && unfit.len() < TRIES =>
            {
                unfit.push(udp);
            }
            Err(error) => return Err(error),
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let tcp = socket(address, rustix::net::SocketType::STREAM)?;
    rustix::net::listen(&tcp, 1024)?;
    TcpListener::from_std(tcp.into())
}

/// Answers datagrams until the task is aborted.
pub(crate) async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(got) => got,
            // An earlier answer met a closed port; nothing is wrong with this socket.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                tracing::warn!(%error, "a DNS question could not be read");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let packet = &buffer[..length];
        match shared.decide(packet, true) {
            Outcome::Reply(reply) => {
                // Answered in place: the map is at hand and the send buffer has room.
                if socket.try_send_to(&reply, from).is_err() {
                    let _ = socket.send_to(&reply, from).await;
                }
            }
            Outcome::Ignore => {}
            outcome => {
                let (shared, socket, packet) = (shared.clone(), socket.clone(), packet.to_vec());
                tokio::spawn(async move {
                    let reply = finish(&shared, outcome, &packet, true).await;
                    let _ = socket.send_to(&reply, from).await;
                });
            }
        }
    }
}

async fn finish(shared: &Shared, outcome: Outcome, packet: &[u8], udp: bool) -> Vec<u8> {
    match outcome {
        Outcome::Reply(reply) => reply,
        Outcome::Forward => {
            shared.forwarder.ask(packet, udp).await.unwrap_or_else(|| failure(packet))
        }
        Outcome::Chase(pending) => {
            let others = shared.forwarder.look_up(&pending.question).await;
            pending.complete(others)
        }
        Outcome::Ignore => Vec::new(),
    }
}

/// Accepts connections until the task is aborted.
pub(crate) async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    // A client that misbehaves or goes is its own affair.
                    let _ = converse(&shared, stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a DNS connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn converse(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut packet = Vec::new();
        timeout(IDLE, async {
            let length = stream.read_u16().await?;
            packet.resize(usize::from(length), 0);
            stream.read_exact(&mut packet).await
        })
        .await??;
        let outcome = shared.decide(&packet, false);
        if outcome == Outcome::Ignore {
            return Ok(());
        }
        let reply = finish(shared, outcome, &packet, false).await;
        let mut framed = Vec::with_capacity(reply.len() + 2);
        framed.extend_from_slice(&(reply.len() as u16).to_be_bytes());
        framed.extend_from_slice(&reply);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Set in the child that has a network namespace of its own.
    const ALONE: &str = "DHOW_TEST_ALONE";

    /// In a network namespace with two ports to choose from, of which TCP has one already.
    #[test]
    fn port_0_is_one_that_both_can_have() {
        if std::env::var_os(ALONE).is_none() {
            let this = std::env::current_exe().unwrap();
            let told = Command::new("unshare")
                .arg("--net")
                .arg(this)
                .args(["--exact", "server::tests::port_0_is_one_that_both_can_have"])
                .env(ALONE, "1")
                .output()
                .expect("unshare (util-linux) has to be installed");
            let out = String::from_utf8_lossy(&told.stdout);
            assert!(told.status.success() && out.contains("1 passed"), "{told:?}");
            return;
        }
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40001").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _reactor = runtime.enter();
        let any = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let taken = listen(any).unwrap();
        // The kernel takes either by chance.
        for _ in 0..16 {
            let (udp, tcp) = bind(any).unwrap();
            assert_eq!(udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        }
        let taken = taken.local_addr().unwrap();
        assert_eq!(bind(taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
