//! Waiting for descriptors, signals and the next deadline.

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// What a ready descriptor belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Listener,
    Signals,
    Connection(u64),
    /// A process on its way to its exec, by number.
    Birth(u32),
    /// A container's output: its number and the stream (0 stdout, 1 stderr).
    Output(Rc<str>, usize),
    /// A container's standard input takes more.
    Input(Rc<str>),
    /// An attachment's output: container, attachment, stream.
    Sink(Rc<str>, u64, usize),
    /// An attachment's input.
    Typing(Rc<str>, u64),
}

/// A registration; the descriptor has to be kept by its owner.
pub(super) type Token = u64;

/// An epoll instance that remembers what each descriptor is for.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
    sources: HashMap<Token, Source>,
    next: Token,
}

/// A source that is ready.
#[derive(Debug)]
pub(super) struct Ready {
    pub source: Source,
    pub writable: bool,
    /// The other side is gone.
    pub broken: bool,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, sources: HashMap::new(), next: 1 })
    }

    pub fn add(
        &mut self,
        fd: impl AsFd,
        interest: EventFlags,
        source: Source,
    ) -> io::Result<Token> {
        let token = self.next;
        self.next += 1;
        epoll::add(&self.epoll, fd.as_fd(), EventData::new_u64(token), interest)?;
        self.sources.insert(token, source);
        Ok(token)
    }

    pub fn change(&mut self, fd: impl AsFd, token: Token, interest: EventFlags) -> io::Result<()> {
        epoll::modify(&self.epoll, fd.as_fd(), EventData::new_u64(token), interest)?;
        Ok(())
    }

    /// Forgets a descriptor, which has to be open still.
    pub fn remove(&mut self, fd: impl AsFd, token: Token) {
        if self.sources.remove(&token).is_some() {
            // It can only fail if it was not registered.
            let _ = epoll::delete(&self.epoll, fd.as_fd());
        }
    }

    /// Waits until something is ready or `timeout` has passed.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<Ready>> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        let timeout = timeout.map(|timeout| rustix::event::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(events
            .iter()
            .filter_map(|event| {
                let source = self.sources.get(&event.data.u64())?.clone();
                let flags = event.flags;
                Some(Ready {
                    source,
                    writable: flags.contains(EventFlags::OUT),
                    broken: flags.intersects(EventFlags::ERR),
                })
            })
            .collect())
    }
}
