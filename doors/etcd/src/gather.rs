//! A socket that gathers writes, so that what a connection says in one turn leaves with few system
//! calls.
//!
//! The HTTP/2 layer writes and flushes each frame of data by itself. This socket takes pieces of
//! the usual size of a frame as if they were written, and flushes when its owner says so: whoever
//! holds a connection ([`crate::turn::Turns`]) does at the end of each turn.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Pieces below this are copied, in bytes: a frame of data has at most 16 KiB for nearly all clients.
const SMALL: usize = 32 << 10;
/// No more than this is gathered, in bytes.
const MOST: usize = 64 << 10;
/// Room for more than this is kept only by those who use it, in bytes.
const KEPT: usize = 16 << 10;

/// See the module. Copies are handles to one socket.
#[derive(Debug)]
pub(crate) struct Gather<S>(Arc<Mutex<Gathering<S>>>);

impl<S> Clone for Gather<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Gathering<S> {
    socket: S,
    gathered: Vec<u8>,
    /// How much of it is written.
    written: usize,
}

impl<S> Gather<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self(Arc::new(Mutex::new(Gathering { socket, gathered: Vec::new(), written: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Gathering<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Writes what was gathered, and has the socket do the same.
    pub(crate) fn poll_gathered(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.lock();
        ready!(this.poll_gathered(context))?;
        Pin::new(&mut this.socket).poll_flush(context)
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    fn poll_gathered(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            match ready!(Pin::new(&mut self.socket).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        self.clear();
        Poll::Ready(Ok(()))
    }

    fn clear(&mut self) {
        let used = self.gathered.len();
        self.written = 0;
        self.gathered.clear();
        if self.gathered.capacity() > KEPT && used <= KEPT {
            self.gathered = Vec::new();
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        if piece.len() < SMALL {
            if self.gathered.len() + piece.len() > MOST {
                ready!(self.poll_gathered(context))?;
            }
            if self.gathered.len() + piece.len() > KEPT {
                self.gathered.reserve_exact(MOST - self.gathered.len());
            }
            self.gathered.extend_from_slice(piece);
            return Poll::Ready(Ok(piece.len()));
        }
        if self.gathered.is_empty() {
            return Pin::new(&mut self.socket).poll_write(context, piece);
        }
        if !self.socket.is_write_vectored() {
            ready!(self.poll_gathered(context))?;
            return Pin::new(&mut self.socket).poll_write(context, piece);
        }
        let rest = self.gathered.len() - self.written;
        let both = [IoSlice::new(&self.gathered[self.written..]), IoSlice::new(piece)];
        let n = ready!(Pin::new(&mut self.socket).poll_write_vectored(context, &both))?;
        if n < rest {
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
            ready!(self.poll_gathered(context))?;
            return Pin::new(&mut self.socket).poll_write(context, piece);
        }
        self.clear();
        if n > rest {
            return Poll::Ready(Ok(n - rest));
        }
        // All that was gathered and nothing of the piece: the socket decides what comes next.
        Pin::new(&mut self.socket).poll_write(context, piece)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        piece: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_write(context, piece)
    }

    /// Does nothing: see [`Gather::poll_gathered`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.lock();
        ready!(this.poll_gathered(context))?;
        Pin::new(&mut this.socket).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().socket).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn all_sizes_arrive_in_order() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        let (mut client, mut server) = (client.unwrap(), Gather::new(server.unwrap().0));
        let sizes = [1, 100, 5000, 10, 4095, 4096, 40_000, 3, 0, 70_000, 2000, 1 << 20, 7];
        let mut expected = Vec::new();
        for (n, size) in sizes.into_iter().enumerate() {
            expected.extend(std::iter::repeat_n(n as u8, size));
        }
        let writing = tokio::spawn(async move {
            for (n, size) in sizes.into_iter().enumerate() {
                server.write_all(&vec![n as u8; size]).await.unwrap();
            }
            server.shutdown().await.unwrap();
        });
        let mut seen = Vec::new();
        client.read_to_end(&mut seen).await.unwrap();
        writing.await.unwrap();
        assert!(seen == expected);
    }
}
