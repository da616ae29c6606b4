//! The words between [`Runtime`](crate::Runtime) and the launcher, and how they travel.
//!
//! A frame is a little-endian 32-bit length and so many bytes of JSON, over a Unix stream socket.
//! File descriptors travel by `SCM_RIGHTS` with the first bytes of the frame that names them; the
//! frame says how many there are.

use crate::spec::{
    ContainerSpec, ContainerState, Exit, Limits, ProcessSpec, SandboxSpec, SandboxState,
};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;

/// Version of these words.
///
/// A launcher lives for as long as its containers do, so it meets programs that are newer than it.
/// Words are therefore only ever added: a field with a default, which the other side skips if it does
/// not know it, or an operation, which [`Op::since`] keeps from launchers that would not understand.
/// 3 added [`ContainerSpec::sandbox_pid`] and [`ContainerSpec::keep_early`], 4
/// [`ProcessSpec::no_image_groups`].
pub(crate) const VERSION: u32 = 4;

/// The oldest version that this side still speaks.
pub(crate) const OLDEST: u32 = 2;

/// Longest frame in bytes; more is a broken peer.
const MAX_FRAME: usize = 64 << 20;

/// Most descriptors in one frame.
const MAX_FDS: usize = 4;

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Chosen by the client, repeated in the answer.
    pub id: u64,
    /// The request itself.
    pub op: Op,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Op {
    Hello { version: u32 },
    CreateSandbox(Box<SandboxSpec>),
    RemoveSandbox { id: String },
    Sandboxes,
    Start(Box<ContainerSpec>),
    Containers,
    Kill { id: String, signal: i32, all: bool },
    Remove { id: String },
    Exec { id: String, process: Box<ProcessSpec>, stdin: bool, stdout: bool, stderr: bool },
    Attach { id: String, stdin: bool },
    LogSeen { id: String },
    Resize { id: String, columns: u16, rows: u16 },
    Limit(Box<Relimit>),
    KillExec { exec: u64 },
    Shutdown,
}

impl Op {
    /// What of this not every launcher can do, and the version whose launchers can.
    pub fn since(&self) -> Option<(u32, &'static str)> {
        match self {
            Self::Start(spec) if spec.process.no_image_groups => Some(STRICT_GROUPS),
            Self::Exec { process, .. } if process.no_image_groups => Some(STRICT_GROUPS),
            Self::Start(spec) if spec.sandbox_pid => {
                Some((3, "a process namespace for all containers of a pod"))
            }
            Self::LogSeen { .. } => Some((3, "output that is kept for a first client")),
            _ => None,
        }
    }
}

const STRICT_GROUPS: (u32, &str) = (4, "a process without the groups of its image");

/// New limits of a pod, and of one of its containers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Relimit {
    pub sandbox: String,
    /// Of the whole pod.
    pub limits: Limits,
    pub container: Option<ContainerLimits>,
}

/// New limits of one container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ContainerLimits {
    pub id: String,
    pub limits: Limits,
    /// Labels that change with them.
    pub labels: BTreeMap<String, String>,
}

/// What the launcher says: an answer, or news (`id` is `None`).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Message {
    pub id: Option<u64>,
    /// How many descriptors came with it.
    pub fds: usize,
    pub body: Body,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Body {
    Done,
    Hello {
        version: u32,
        pid: u32,
        dropped_log_bytes: u64,
        /// The oldest version that the launcher still speaks; those before 3 do not say.
        #[serde(default)]
        oldest: u32,
    },
    Sandbox(Box<SandboxState>),
    Sandboxes(Vec<SandboxState>),
    Container(Box<ContainerState>),
    Containers(Vec<ContainerState>),
    /// Descriptors in the order stdin, stdout, stderr, terminal; absent ones are left out.
    Streams(Streams),
    /// How long the log was, in bytes, if output was kept for the first attachment.
    LogSeen(Option<u64>),
    Failed(Failure),
    /// News: a container ended.
    Exited {
        id: String,
        exit: Exit,
    },
    /// News: a process of [`Op::Exec`] ended.
    ExecExited {
        exec: u64,
        exit: Exit,
    },
}

/// What came of [`Op::Exec`] or [`Op::Attach`].
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Streams {
    /// Which descriptors follow.
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// The master side of a terminal, for all directions.
    pub terminal: bool,
    /// The container's process has a terminal that the launcher holds.
    pub resizable: bool,
    /// Names the process in [`Body::ExecExited`].
    pub exec: u64,
    /// The container has ended already.
    pub exit: Option<Exit>,
}

/// [`crate::Error`] in transit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Failure {
    NotFound(String),
    Exists(String),
    CannotStart { id: String, step: String, cause: String },
    Other(String),
}

impl From<Failure> for crate::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound(what) => Self::NotFound(what),
            Failure::Exists(what) => Self::Exists(what),
            Failure::CannotStart { id, step, cause } => Self::CannotStart { id, step, cause },
            Failure::Other(what) => Self::Launcher(what),
        }
    }
}

/// One frame, ready to be written.
pub(crate) fn encode(value: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, value)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(std::io::Error::other(format!("a frame of {length} bytes is too long")));
    }
    let length = u32::try_from(length).map_err(std::io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Bytes and descriptors that have come but are not used up.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Inbox {
    /// Reads once from a non-blocking socket. `Ok(false)` is the end.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<bool> {
        let mut chunk = [0u8; 16 * 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let result = rustix::net::recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut chunk)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            match result {
                Err(Errno::INTR) => {}
                result => break result?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        self.bytes.extend_from_slice(&chunk[..received.bytes]);
        Ok(received.bytes > 0)
    }

    /// The next whole frame, if one is there.
    pub fn next<T: for<'a> Deserialize<'a>>(&mut self) -> std::io::Result<Option<T>> {
        let Some(head) = self.bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*head) as usize;
        if length > MAX_FRAME {
            return Err(std::io::Error::other(format!("a frame of {length} bytes is too long")));
        }
        if self.bytes.len() < 4 + length {
            return Ok(None);
        }
        let value = serde_json::from_slice(&self.bytes[4..4 + length])?;
        self.bytes.drain(..4 + length);
        Ok(Some(value))
    }

    /// The next `count` descriptors.
    pub fn take_fds(&mut self, count: usize) -> std::io::Result<Vec<OwnedFd>> {
        if count > self.fds.len() {
            return Err(std::io::Error::other("a frame came without its descriptors"));
        }
        Ok(self.fds.drain(..count).collect())
    }
}

/// Frames on their way out of a non-blocking socket.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    frames: VecDeque<(Vec<u8>, usize, Vec<OwnedFd>)>,
}

impl Outbox {
    pub fn push(&mut self, frame: Vec<u8>, fds: Vec<OwnedFd>) {
        self.frames.push_back((frame, 0, fds));
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.frames.iter().map(|(frame, sent, _)| frame.len() - sent).sum()
    }

    /// Writes as much as the socket takes. `Ok(true)` when nothing is left.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<bool> {
        while let Some((frame, sent, fds)) = self.frames.front_mut() {
            match send(socket, &frame[*sent..], fds) {
                Ok(count) => {
                    fds.clear();
                    *sent += count;
                    if *sent == frame.len() {
                        self.frames.pop_front();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }
}

/// Sends bytes with descriptors once.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> Result<usize, Errno> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::TOOBIG);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    #[test]
    fn frames_and_descriptors_arrive_in_order() {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let mut out = Outbox::default();
        let frame = |id, fds| encode(&Message { id: Some(id), fds, body: Body::Done }).unwrap();
        let (pipe, _keep) = rustix::pipe::pipe().unwrap();
        out.push(frame(1, 0), vec![]);
        out.push(frame(2, 1), vec![pipe]);
        out.push(frame(3, 0), vec![]);
        assert!(out.flush(a.as_fd()).unwrap());
        let mut inbox = Inbox::default();
        let mut seen = vec![];
        while seen.len() < 3 {
            assert!(inbox.receive(b.as_fd()).unwrap());
            while let Some(message) = inbox.next::<Message>().unwrap() {
                assert_eq!(inbox.take_fds(message.fds).unwrap().len(), message.fds);
                seen.push((message.id.unwrap(), message.fds));
            }
        }
        assert_eq!(seen, [(1, 0), (2, 1), (3, 0)]);
        drop(a);
        assert!(!inbox.receive(b.as_fd()).unwrap());
    }

    #[test]
    fn a_big_number_survives_json() {
        let exit = Exit { code: 1, signal: 0, oom: false, at: 1_800_000_000_123_456_789 };
        let frame = encode(&Body::Exited { id: "x".into(), exit: exit.clone() }).unwrap();
        let back: Body = serde_json::from_slice(&frame[4..]).unwrap();
        assert!(matches!(back, Body::Exited { exit: e, .. } if e == exit));
    }
}
