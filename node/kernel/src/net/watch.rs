//! Told by the kernel of what programs change: links, addresses, routes, nf_tables.

use super::socket::Family;
use super::{Error, Socket, wire};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::os::fd::{AsRawFd, RawFd};

/// Kinds of changes (multicast groups).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Links (`RTNLGRP_LINK`).
    Links = 1,
    /// IPv4 addresses (`RTNLGRP_IPV4_IFADDR`).
    Addresses = 5,
    /// IPv4 routes (`RTNLGRP_IPV4_ROUTE`), or all of nf_tables (`NFNLGRP_NFTABLES`).
    Rules = 7,
}

/// One change.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// Message type.
    pub kind: u16,
    /// The port of the socket that asked for it; 0 for the kernel itself.
    pub by: u32,
    /// Fixed header and attributes.
    pub body: &'a [u8],
}

/// A socket that changes are reported to, readable (for `poll`) when there are some.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
}

impl Watch {
    /// Begins to follow changes in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel does not report such changes.
    pub fn open(family: Family, groups: &[Group]) -> Result<Self, Error> {
        let socket = Socket::open(family)?;
        for group in groups {
            socket.join(*group as libc::c_int)?;
        }
        Ok(Self { socket })
    }

    /// Hands out what has come, without waiting. The answer is whether some was lost, because it
    /// was not read in time.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn read(&mut self, mut each: impl FnMut(Change<'_>)) -> Result<bool, Error> {
        let mut lost = false;
        loop {
            let (fd, buffer) = self.socket.parts();
            let length = match rustix::net::recv(fd, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => return Ok(lost),
                Err(Errno::INTR) => continue,
                Err(Errno::NOBUFS) => {
                    lost = true;
                    continue;
                }
                Err(errno) => return Err(Error::new("read what programs change", errno)),
            };
            let mut rest = &buffer[..length];
            while rest.len() >= 16 {
                let size = wire::u32_of(rest).unwrap_or(0) as usize;
                let Some(message) = rest.get(..size).filter(|m| m.len() >= 16) else { break };
                each(Change {
                    kind: u16::from_ne_bytes([message[4], message[5]]),
                    by: wire::u32_of(&message[12..]).unwrap_or(0),
                    body: &message[16..],
                });
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}
