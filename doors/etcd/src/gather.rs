//! A socket that gathers small writes, so that the answers of many calls leave with one system call.
//!
//! Over a socket that says it can write several buffers at once, the HTTP/2 layer hands every piece
//! of 256 bytes or more on by itself, with a system call for each. This one says that it cannot;
//! then pieces below 1 KiB are gathered there, and what is larger is written here together with
//! what was gathered before it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Pieces below this are copied, in bytes.
const SMALL: usize = 4 << 10;
/// No more than this is gathered, in bytes.
const MOST: usize = 32 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Gather<S> {
    socket: S,
    gathered: Vec<u8>,
    /// How much of it is written.
    written: usize,
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self { socket, gathered: Vec::new(), written: 0 }
    }

    /// Writes what was gathered.
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
        self.written = 0;
        self.gathered.clear();
        if self.gathered.capacity() > MOST + SMALL {
            self.gathered = Vec::new();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        piece: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if piece.len() < SMALL {
            if this.gathered.len() >= MOST {
                ready!(this.poll_gathered(context))?;
            }
            this.gathered.extend_from_slice(piece);
            return Poll::Ready(Ok(piece.len()));
        }
        if this.gathered.is_empty() {
            return Pin::new(&mut this.socket).poll_write(context, piece);
        }
        if !this.socket.is_write_vectored() {
            ready!(this.poll_gathered(context))?;
            return Pin::new(&mut this.socket).poll_write(context, piece);
        }
        let rest = this.gathered.len() - this.written;
        let both = [IoSlice::new(&this.gathered[this.written..]), IoSlice::new(piece)];
        let n = ready!(Pin::new(&mut this.socket).poll_write_vectored(context, &both))?;
        if n < rest {
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.written += n;
            ready!(this.poll_gathered(context))?;
            return Pin::new(&mut this.socket).poll_write(context, piece);
        }
        this.clear();
        if n > rest {
            return Poll::Ready(Ok(n - rest));
        }
        // All that was gathered and nothing of the piece: the socket decides what comes next.
        Pin::new(&mut this.socket).poll_write(context, piece)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_gathered(context))?;
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_gathered(context))?;
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
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
