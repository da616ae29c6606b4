//! A container's standard streams: to its log, to whoever is attached, and from whoever types.
//!
//! Output is read as it comes. Each attachment has a bounded buffer; when one is full the container
//! waits for it, but not for longer than [`PATIENCE`] without progress: then the attachment is
//! dropped.

use super::log::Log;
use super::poller::{Poller, Source, Token};
use crate::spec::ContainerSpec;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Bytes that may wait for an attachment before the container has to.
const SINK_BUFFER: usize = 256 * 1024;

/// Bytes that may wait for the container's standard input.
const INPUT_BUFFER: usize = 64 * 1024;

/// Bytes of early output that are kept for the first attachment: what a pipe holds, so that they are
/// with the client whole even if the container is removed at once.
const EARLY: usize = 64 * 1024;

/// How long a container waits for an attachment that takes nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// A descriptor and its registration, if it is registered at the moment.
#[derive(Debug)]
struct Watched {
    fd: OwnedFd,
    token: Option<Token>,
}

impl Watched {
    fn watch(&mut self, poller: &mut Poller, interest: EventFlags, source: Source) {
        let result = match self.token {
            Some(token) => poller.change(&self.fd, token, interest),
            None => poller.add(&self.fd, interest, source).map(|token| self.token = Some(token)),
        };
        if let Err(error) = result {
            tracing::warn!("a stream cannot be watched: {error}");
        }
    }

    fn ignore(&mut self, poller: &mut Poller) {
        if let Some(token) = self.token.take() {
            poller.remove(&self.fd, token);
        }
    }
}

#[derive(Debug)]
struct Sink {
    out: Watched,
    buffer: VecDeque<u8>,
    /// Since when it has taken nothing although it is full.
    stalled: Option<Duration>,
    /// The stream has ended: close when the buffer is empty.
    ending: bool,
}

#[derive(Debug, Default)]
struct Attachment {
    sinks: [Option<Sink>; 2],
    typing: Option<Watched>,
}

impl Attachment {
    fn is_over(&self) -> bool {
        self.sinks.iter().all(Option::is_none) && self.typing.is_none()
    }
}

#[derive(Debug)]
struct Input {
    out: Watched,
    buffer: VecDeque<u8>,
    /// Close when the buffer is empty.
    ending: bool,
}

/// What [`Streams::attach`] hands to the client.
#[derive(Debug, Default)]
pub(super) struct Attached {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// The launcher's side of one container's streams.
#[derive(Debug)]
pub(super) struct Streams {
    id: Rc<str>,
    outputs: [Option<Watched>; 2],
    /// A terminal's master, for its size.
    terminal: bool,
    input: Option<Input>,
    stdin_once: bool,
    log: Option<Log>,
    /// Nothing is read before somebody is attached.
    held: bool,
    /// The newest output of each stream, for the first attachment: that client is on its way, and its
    /// output is to be whole.
    early: Option<[VecDeque<u8>; 2]>,
    attachments: BTreeMap<u64, Attachment>,
    next: u64,
}

impl Streams {
    /// Of a container whose output is read as it comes, for the log and whoever is attached.
    pub fn new(id: Rc<str>, log: Option<Log>) -> Self {
        Self {
            id,
            outputs: [None, None],
            terminal: false,
            input: None,
            stdin_once: false,
            log,
            held: false,
            early: None,
            attachments: BTreeMap::new(),
            next: 1,
        }
    }

    /// The same, with what a new container wants of its first client.
    pub fn awaiting(mut self, spec: &ContainerSpec) -> Self {
        self.stdin_once = spec.stdin_once;
        self.held = spec.wait_for_attach;
        self.early = spec.keep_early.then(Default::default);
        self
    }

    /// The launcher's ends of the container's pipes.
    pub fn set_pipes(
        &mut self,
        poller: &mut Poller,
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> io::Result<()> {
        for fd in [Some(&stdout), Some(&stderr), stdin.as_ref()].into_iter().flatten() {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        self.outputs = [stdout, stderr].map(|fd| Some(Watched { fd, token: None }));
        self.input = stdin.map(input);
        self.watch_outputs(poller);
        Ok(())
    }

    /// The master of the container's terminal.
    pub fn set_terminal(
        &mut self,
        poller: &mut Poller,
        master: OwnedFd,
        stdin: bool,
    ) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        if stdin {
            // An own descriptor can be watched for writing alone.
            self.input = Some(input(rustix::io::fcntl_dupfd_cloexec(&master, 3)?));
        }
        self.terminal = true;
        self.outputs = [Some(Watched { fd: master, token: None }), None];
        self.watch_outputs(poller);
        Ok(())
    }

    /// Whether there is a terminal.
    pub fn has_terminal(&self) -> bool {
        self.terminal
    }

    /// Bytes of the log that the disk did not take.
    pub fn dropped_log_bytes(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.dropped)
    }

    /// Changes the terminal's size.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match &self.outputs[0] {
            Some(master) if self.terminal => {
                crate::child::set_size(master.fd.as_fd(), columns, rows)
            }
            // It has ended.
            _ => Ok(()),
        }
    }

    fn watch_outputs(&mut self, poller: &mut Poller) {
        let full = self.attachments.values().flat_map(|a| a.sinks.iter().flatten());
        let full = full.into_iter().any(|sink| sink.buffer.len() >= SINK_BUFFER);
        for (stream, output) in self.outputs.iter_mut().enumerate() {
            let Some(output) = output else { continue };
            // An ignored source is taken out altogether: the end of a stream is always reported.
            if self.held || full {
                output.ignore(poller);
            } else if output.token.is_none() {
                output.watch(poller, EventFlags::IN, Source::Output(self.id.clone(), stream));
            }
        }
    }

    /// Connects somebody. Output is seen from now on; the first also sees what was kept for it, even
    /// after the end of the container.
    pub fn attach(&mut self, poller: &mut Poller, stdin: bool) -> io::Result<Attached> {
        let mut attached = Attached::default();
        let mut attachment = Attachment::default();
        let number = self.next;
        self.next += 1;
        let mut early = self.early.take();
        for stream in 0..2 {
            let ending = self.outputs[stream].is_none();
            // A terminal has one stream for both.
            if ending && (early.is_none() || (self.terminal && stream == 1)) {
                continue;
            }
            let buffer = early.as_mut().map(|all| std::mem::take(&mut all[stream]));
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&write, true)?;
            let mut out = Watched { fd: write, token: None };
            // Without interest only the other side's end is reported.
            out.watch(poller, EventFlags::empty(), Source::Sink(self.id.clone(), number, stream));
            let buffer = buffer.unwrap_or_default();
            attachment.sinks[stream] = Some(Sink { out, buffer, stalled: None, ending });
            *if stream == 0 { &mut attached.stdout } else { &mut attached.stderr } = Some(read);
        }
        if stdin && self.input.is_some() {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&read, true)?;
            let mut typing = Watched { fd: read, token: None };
            typing.watch(poller, EventFlags::IN, Source::Typing(self.id.clone(), number));
            attachment.typing = Some(typing);
            attached.stdin = Some(write);
        }
        self.attachments.insert(number, attachment);
        self.held = false;
        for stream in 0..2 {
            self.flush_sink(poller, number, stream);
        }
        self.watch_outputs(poller);
        Ok(attached)
    }

    /// Somebody has read the log, up to the length that this returns: what was kept for the first
    /// attachment begins there. `None` when nothing is kept.
    pub fn log_seen(&mut self) -> Option<u64> {
        let (early, log) = (self.early.as_mut()?, self.log.as_ref()?);
        for (stream, kept) in early.iter_mut().enumerate() {
            *kept = log.unfinished(stream).iter().copied().collect();
        }
        Some(log.size())
    }

    /// Reads an output that is ready, once. Returns whether there may be more.
    pub fn read(&mut self, poller: &mut Poller, stream: usize) -> bool {
        let Some(output) = &mut self.outputs[stream] else { return false };
        let mut chunk = [0u8; 64 * 1024];
        match rustix::io::read(&output.fd, &mut chunk) {
            Ok(0) | Err(Errno::IO) => {
                self.end_output(poller, stream);
                false
            }
            Ok(count) => {
                self.distribute(poller, stream, &chunk[..count]);
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            Err(errno) => {
                tracing::warn!("output of container {} cannot be read: {errno}", self.id);
                self.end_output(poller, stream);
                false
            }
        }
    }

    fn end_output(&mut self, poller: &mut Poller, stream: usize) {
        if let Some(mut output) = self.outputs[stream].take() {
            output.ignore(poller);
        }
        if let Some(log) = &mut self.log {
            log.finish(stream, super::now());
        }
        let numbers: Vec<u64> = self.attachments.keys().copied().collect();
        for number in numbers {
            if let Some(Some(sink)) =
                self.attachments.get_mut(&number).map(|a| &mut a.sinks[stream])
            {
                sink.ending = true;
            }
            self.flush_sink(poller, number, stream);
        }
        if self.outputs.iter().all(Option::is_none) {
            // Nobody is left who could read what is typed.
            for attachment in self.attachments.values_mut() {
                if let Some(mut typing) = attachment.typing.take() {
                    typing.ignore(poller);
                }
            }
            self.close_input(poller);
            self.attachments.retain(|_, attachment| !attachment.is_over());
        }
    }

    fn distribute(&mut self, poller: &mut Poller, stream: usize, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            log.write(stream, bytes, super::now());
        }
        if let Some(early) = &mut self.early {
            let kept = &mut early[stream];
            kept.extend(&bytes[bytes.len().saturating_sub(EARLY)..]);
            kept.drain(..kept.len().saturating_sub(EARLY));
        }
        let numbers: Vec<u64> = self.attachments.keys().copied().collect();
        for number in numbers {
            if let Some(Some(sink)) =
                self.attachments.get_mut(&number).map(|a| &mut a.sinks[stream])
            {
                sink.buffer.extend(bytes);
            }
            self.flush_sink(poller, number, stream);
        }
        self.watch_outputs(poller);
    }

    /// Hands an attachment what it takes.
    pub fn flush_sink(&mut self, poller: &mut Poller, number: u64, stream: usize) {
        let Some(attachment) = self.attachments.get_mut(&number) else { return };
        let Some(sink) = &mut attachment.sinks[stream] else { return };
        let mut gone = false;
        while !sink.buffer.is_empty() {
            match rustix::io::write(&sink.out.fd, sink.buffer.as_slices().0) {
                Ok(count) => {
                    sink.buffer.drain(..count);
                    sink.stalled = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    gone = true;
                    break;
                }
            }
        }
        if gone || (sink.ending && sink.buffer.is_empty()) {
            self.drop_sink(poller, number, stream);
            return;
        }
        if sink.buffer.len() >= SINK_BUFFER && sink.stalled.is_none() {
            sink.stalled = Some(super::monotonic());
        }
        let interest = if sink.buffer.is_empty() { EventFlags::empty() } else { EventFlags::OUT };
        sink.out.watch(poller, interest, Source::Sink(self.id.clone(), number, stream));
        self.watch_outputs(poller);
    }

    /// Lets go of one stream of an attachment.
    pub fn drop_sink(&mut self, poller: &mut Poller, number: u64, stream: usize) {
        if let Some(attachment) = self.attachments.get_mut(&number) {
            if let Some(mut sink) = attachment.sinks[stream].take() {
                sink.out.ignore(poller);
            }
            if attachment.is_over() {
                self.attachments.remove(&number);
            }
        }
        self.watch_outputs(poller);
    }

    /// The next moment at which an attachment's time is up.
    pub fn deadline(&self) -> Option<Duration> {
        self.attachments
            .values()
            .flat_map(|attachment| attachment.sinks.iter().flatten())
            .filter_map(|sink| Some(sink.stalled? + PATIENCE))
            .min()
    }

    /// Drops the attachments whose time is up.
    pub fn drop_stalled(&mut self, poller: &mut Poller, now: Duration) {
        let mut late = Vec::new();
        for (number, attachment) in &self.attachments {
            for (stream, sink) in attachment.sinks.iter().enumerate() {
                if sink.as_ref().is_some_and(|s| s.stalled.is_some_and(|at| at + PATIENCE <= now)) {
                    late.push((*number, stream));
                }
            }
        }
        for (number, stream) in late {
            tracing::warn!("an attachment to container {} took nothing for too long", self.id);
            self.drop_sink(poller, number, stream);
        }
    }

    /// Reads what an attachment has typed.
    pub fn type_in(&mut self, poller: &mut Poller, number: u64) {
        let Some(attachment) = self.attachments.get_mut(&number) else { return };
        let Some(typing) = &mut attachment.typing else { return };
        let mut chunk = [0u8; 16 * 1024];
        let count = match rustix::io::read(&typing.fd, &mut chunk) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => 0,
        };
        if count == 0 || self.input.is_none() {
            typing.ignore(poller);
            attachment.typing = None;
            if attachment.is_over() {
                self.attachments.remove(&number);
            }
            if self.stdin_once
                && let Some(input) = &mut self.input
            {
                input.ending = true;
            }
        } else if let Some(input) = &mut self.input {
            input.buffer.extend(&chunk[..count]);
        }
        self.flush_input(poller);
    }

    /// Hands the container what it takes of its standard input.
    pub fn flush_input(&mut self, poller: &mut Poller) {
        let Some(input) = &mut self.input else { return };
        let mut gone = false;
        while !input.buffer.is_empty() {
            match rustix::io::write(&input.out.fd, input.buffer.as_slices().0) {
                Ok(count) => drop(input.buffer.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    gone = true;
                    break;
                }
            }
        }
        if input.buffer.is_empty() && input.ending && self.terminal {
            // A terminal has no end; the character that means it (control-D) does.
            input.ending = false;
            let _ = rustix::io::write(&input.out.fd, &[4]);
        }
        if gone || (input.buffer.is_empty() && input.ending) {
            self.close_input(poller);
        } else if input.buffer.is_empty() {
            input.out.ignore(poller);
        } else {
            input.out.watch(poller, EventFlags::OUT, Source::Input(self.id.clone()));
        }
        let full = self.input.as_ref().is_some_and(|input| input.buffer.len() >= INPUT_BUFFER);
        for (number, attachment) in &mut self.attachments {
            let Some(typing) = &mut attachment.typing else { continue };
            if full {
                typing.ignore(poller);
            } else if typing.token.is_none() {
                typing.watch(poller, EventFlags::IN, Source::Typing(self.id.clone(), *number));
            }
        }
    }

    fn close_input(&mut self, poller: &mut Poller) {
        if let Some(mut input) = self.input.take() {
            input.out.ignore(poller);
        }
    }

    /// Reads what is left after the container's end, unless it is held for the first attachment.
    pub fn drain(&mut self, poller: &mut Poller) {
        if self.held {
            return;
        }
        for stream in 0..2 {
            // A leftover process could write for ever: what a pipe holds at most is enough.
            for _ in 0..64 {
                if !self.read(poller, stream) {
                    break;
                }
            }
        }
    }

    /// Lets go of everything; what is unread goes to the log.
    pub fn close(&mut self, poller: &mut Poller) {
        self.held = false;
        self.drain(poller);
        for stream in 0..2 {
            if self.outputs[stream].is_some() {
                self.end_output(poller, stream);
            }
        }
        self.close_input(poller);
        for (_, mut attachment) in std::mem::take(&mut self.attachments) {
            for sink in attachment.sinks.iter_mut().flatten() {
                sink.out.ignore(poller);
            }
            if let Some(typing) = &mut attachment.typing {
                typing.ignore(poller);
            }
        }
    }
}

fn input(fd: OwnedFd) -> Input {
    Input { out: Watched { fd, token: None }, buffer: VecDeque::new(), ending: false }
}
