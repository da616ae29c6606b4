//! Requests' bodies that are read to their end although nobody wants the rest.
//!
//! A server that answers before it has read a whole request and then closes the connection makes
//! the kernel reset it, and what the client has not yet read of the answer is lost (RFC 9112
//! section 9.6). So what a handler leaves unread is read and thrown away beside the answer, within
//! bounds. The connection stays usable for the next request.

use bytes::{Buf, Bytes};
use http::{Request, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// How much is thrown away of one request, in bytes: more than any server here takes. The
/// connection of a client that sends more is closed.
pub const MOST: usize = 8 << 20;
/// How long a client may take to send what is thrown away.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A request's body. When it is dropped before its end, a task of its own reads the rest, at most
/// [`MOST`] bytes and for [`PATIENCE`].
#[derive(Debug)]
pub struct Upload {
    /// There until the rest is handed to that task.
    body: Option<Incoming>,
    /// Whether the client may be sending the rest whatever it is answered.
    follows: bool,
}

impl Upload {
    /// The same request with a body that is read to its end.
    ///
    /// Over HTTP/2 as well: curl before 8 takes a stream that is reset behind its answer for one
    /// that failed, although the reset says that there was no error (RFC 9113 section 8.1). A client
    /// that waits for leave to send (RFC 9110 section 10.1.1) has sent nothing that could be lost.
    pub fn of(request: Request<Incoming>) -> Request<Self> {
        let waits = request.headers().contains_key(header::EXPECT);
        request.map(|body| Self { body: Some(body), follows: !waits })
    }

    /// The same request of a client that stops by itself when it is answered, as those of gRPC do.
    pub fn of_calls(request: Request<Incoming>) -> Request<Self> {
        request.map(|body| Self { body: Some(body), follows: false })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.follows = false;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| self.follows && !body.is_end_stream());
        // Without a runtime the connection has ended with it.
        if let Some(rest) = rest
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(tokio::time::timeout(PATIENCE, throw_away(rest)));
        }
    }
}

async fn throw_away(mut body: Incoming) {
    let mut left = MOST;
    while let Some(Ok(frame)) =
        std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
    {
        let len = frame.data_ref().map_or(0, Buf::remaining);
        match left.checked_sub(len) {
            Some(less) => left = less,
            None => return,
        }
    }
}
