//! A netlink socket: sends batches, collects answers, names the message that failed.
#![allow(unsafe_code)]

use super::{Error, wire};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Which part of the kernel a socket speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nf_tables and connection tracking.
    Netfilter,
}

/// One message of an answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Position in the batch of the message that this answers.
    pub sequence: u32,
    /// Message type.
    pub kind: u16,
    /// Fixed header and attributes.
    pub body: Vec<u8>,
}

/// A netlink socket, bound to the network namespace of the thread that opened it for good.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    send_limit: usize,
}

/// Room for one datagram of an answer; the kernel never fills more than 32 KiB.
const DATAGRAM: usize = 64 << 10;
/// Answers to a large dump queue here; charged only when used.
const RECEIVE: usize = 8 << 20;

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(family: Family) -> Result<Self, Error> {
        let what = || format!("open a netlink socket ({family:?})");
        let protocol = match family {
            // NETLINK_ROUTE is protocol 0.
            Family::Route => None,
            Family::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(|e| Error::new(what(), e))?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0)).map_err(|e| Error::new(what(), e))?;
        // Best effort: without these, large batches fail later with a clear error.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE);
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
            let on: libc::c_int = 1;
            // SAFETY: the descriptor is open and the value is a live int of the stated size.
            unsafe {
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_NETLINK,
                    option,
                    (&raw const on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                );
            }
        }
        Ok(Self { fd, buffer: vec![0; DATAGRAM], send_limit: 200 << 10 })
    }

    /// The number that the kernel knows this socket by (port), and that it tells who changed what with.
    pub fn port(&self) -> u32 {
        rustix::net::getsockname(&self.fd)
            .ok()
            .and_then(|address| SocketAddrNetlink::try_from(address).ok())
            .map_or(0, |address| address.pid())
    }

    /// Has changes of a kind reported here.
    pub(super) fn join(&self, group: libc::c_int) -> Result<(), Error> {
        // SAFETY: the descriptor is open and the value is a live int of the stated size.
        let joined = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                (&raw const group).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        match joined {
            0 => Ok(()),
            _ => {
                let errno = Errno::from_io_error(&std::io::Error::last_os_error());
                Err(Error::new("follow what programs change", errno.unwrap_or(Errno::INVAL)))
            }
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The descriptor, and room for one datagram.
    pub(super) fn parts(&mut self) -> (BorrowedFd<'_>, &mut [u8]) {
        (self.fd.as_fd(), &mut self.buffer)
    }

    /// Sends a batch in one piece and collects all answers. The first refused message becomes the
    /// error, with its label.
    pub fn transact(&mut self, batch: &wire::Batch) -> Result<Vec<Reply>, Error> {
        let mut first_error = None;
        let replies = self.exchange(batch, |error| {
            if first_error.is_none() {
                first_error = Some(error);
            }
        })?;
        first_error.map_or(Ok(replies), Err)
    }

    /// Sends a batch and reports every refused message to `refused`, for batches whose messages may
    /// fail one by one (deleting what may be gone already).
    pub fn exchange(
        &mut self,
        batch: &wire::Batch,
        mut refused: impl FnMut(Error),
    ) -> Result<Vec<Reply>, Error> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let what = || batch.labels.first().cloned().unwrap_or_default();
        // A batch must reach the kernel as one datagram to be one transaction.
        if batch.bytes.len() + (8 << 10) > self.send_limit {
            let wanted = (batch.bytes.len() + (64 << 10)).next_power_of_two();
            rustix::net::sockopt::set_socket_send_buffer_size_force(&self.fd, wanted)
                .map_err(|e| Error::new(format!("{} (make room for {wanted} bytes)", what()), e))?;
            self.send_limit = wanted;
        }
        rustix::net::sendto(
            &self.fd,
            &batch.bytes,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )
        .map_err(|e| Error::new(what(), e))?;
        let mut replies = Vec::new();
        loop {
            // Answers are queued before `sendto` returns; a dump goes on as it is read.
            let (length, _) =
                match rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                    Ok(got) => got,
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => continue,
                    Err(errno) => {
                        return Err(Error::new(format!("{} (read the answer)", what()), errno));
                    }
                };
            self.parse(length, batch, &mut replies, &mut refused);
        }
        Ok(replies)
    }

    fn parse(
        &self,
        length: usize,
        batch: &wire::Batch,
        replies: &mut Vec<Reply>,
        refused: &mut impl FnMut(Error),
    ) {
        let mut rest = &self.buffer[..length];
        while rest.len() >= 16 {
            let size = wire::u32_of(rest).unwrap_or(0) as usize;
            let Some(message) = rest.get(..size).filter(|m| m.len() >= 16) else { break };
            let kind = u16::from_ne_bytes([message[4], message[5]]);
            let flags = u16::from_ne_bytes([message[6], message[7]]);
            let sequence = wire::u32_of(&message[8..]).unwrap_or(0);
            let body = &message[16..];
            if flags & 0x10 != 0 {
                // NLM_F_DUMP_INTR: the list changed while it was read.
                refused(Error::new("read a list that changes", Errno::INTR));
            }
            match i32::from(kind) {
                libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                    let code = wire::u32_of(body).unwrap_or(0).cast_signed();
                    if code < 0 {
                        // With CAP_ACK only the 16 bytes of the failed header stand between.
                        let detail = (flags & 0x200 != 0)
                            .then(|| wire::find(body.get(20..).unwrap_or_default(), 1))
                            .flatten()
                            .map(wire::text);
                        let what = batch.labels.get(sequence as usize).cloned();
                        refused(Error { what: what.unwrap_or_default(), errno: -code, detail });
                    }
                }
                libc::NLMSG_NOOP | libc::NLMSG_OVERRUN => {}
                _ => replies.push(Reply { sequence, kind, body: body.to_vec() }),
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
