//! Clients: accepting, reading requests, writing answers.

use super::Launcher;
use super::poller::{Source, Token};
use crate::wire::{Inbox, Outbox, Request};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::SocketFlags;
use std::io;

/// A client that lets so many bytes of answers pile up is dropped.
const PATIENCE: usize = 64 << 20;

/// One client.
#[derive(Debug)]
pub(super) struct Connection {
    pub socket: OwnedFd,
    token: Token,
    inbox: Inbox,
    outbox: Outbox,
}

impl Connection {
    pub fn flush(&mut self) -> io::Result<bool> {
        self.outbox.flush(self.socket.as_fd())
    }
}

impl Launcher {
    pub(super) fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            // The file's mode says the same; this holds even if somebody changes that.
            match rustix::net::sockopt::socket_peercred(&socket) {
                Ok(peer) if peer.uid.is_root() => {}
                peer => {
                    tracing::warn!("a client that is not root was refused: {peer:?}");
                    continue;
                }
            }
            let number = self.next_connection;
            self.next_connection += 1;
            match self.poller.add(&socket, EventFlags::IN, Source::Connection(number)) {
                Ok(token) => {
                    let (inbox, outbox) = (Inbox::default(), Outbox::default());
                    let connection = Connection { socket, token, inbox, outbox };
                    self.connections.insert(number, connection);
                }
                Err(error) => tracing::warn!("a client cannot be served: {error}"),
            }
        }
    }

    pub(super) fn on_connection(&mut self, number: u64, writable: bool) {
        if writable {
            self.write_out(number);
        }
        self.hear(number);
    }

    /// Hears everybody out: what a client said before it ended counts, however long its last words
    /// are.
    pub(super) fn hear_all(&mut self) {
        let numbers: Vec<u64> = self.connections.keys().copied().collect();
        for number in numbers {
            while self.hear(number) {}
        }
    }

    /// Reads a piece of what a client says, and does what it asks for. Whether there was any.
    fn hear(&mut self, number: u64) -> bool {
        let Some(connection) = self.connections.get_mut(&number) else { return false };
        let (mut open, heard) = match connection.inbox.receive(connection.socket.as_fd()) {
            Ok(open) => (open, open),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (true, false),
            Err(_) => (false, false),
        };
        while let Some(connection) = self.connections.get_mut(&number) {
            match connection.inbox.next::<Request>() {
                Ok(Some(request)) => self.perform(number, request),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!("a client sent what is not a request: {error}");
                    open = false;
                    break;
                }
            }
        }
        if !open {
            self.disconnect(number);
        }
        open && heard
    }

    pub(super) fn post(&mut self, number: u64, frame: Vec<u8>, fds: Vec<OwnedFd>) {
        // A client that has gone needs no answer.
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.outbox.push(frame, fds);
            self.write_out(number);
        }
    }

    fn write_out(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let interest = match connection.flush() {
            Ok(true) => EventFlags::IN,
            Ok(false) if connection.outbox.waiting() < PATIENCE => EventFlags::IN | EventFlags::OUT,
            _ => {
                self.disconnect(number);
                return;
            }
        };
        if let Err(error) = self.poller.change(&connection.socket, connection.token, interest) {
            tracing::warn!("a client cannot be watched: {error}");
        }
    }

    fn disconnect(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            self.poller.remove(&connection.socket, connection.token);
        }
        self.remove_those_of(number);
    }
}
