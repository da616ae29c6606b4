//! Bodies: what answers are made of, and requests read message by message.

use crate::wire;
use bytes::{Bytes, BytesMut};
use dhow_bodies::{Pieces, Upload, cut};
use futures::Stream;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::Status;

/// The answers of a gRPC stream: pieces of framed messages, in order.
pub(crate) type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// The body of an answer. One type for all, so that the hot path boxes nothing.
pub(crate) enum Body {
    /// What is no stream of gRPC: a page, or nothing.
    Full(Pieces),
    /// What is left of one framed message, then `grpc-status: 0`.
    Unary(Bytes),
    /// Framed messages, then the status that they end with; and what is left of the one begun.
    Grpc(Answers, Bytes),
    /// Pieces of text over HTTP.
    Chunks(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
    /// It has ended.
    Ended,
}

/// The trailers of success.
fn success() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static("0"));
    trailers
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    if status.add_header(&mut trailers).is_err() {
        // A text that no header can hold; the code is what matters.
        trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from(status.code() as i32));
    }
    trailers
}

/// The next piece of the message begun, or of the one behind it.
fn poll_piece(
    answers: &mut Answers,
    rest: &mut Bytes,
    context: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, Status>>> {
    if rest.is_empty() {
        match ready!(answers.as_mut().poll_next(context)) {
            Some(Ok(message)) => *rest = message,
            end => return Poll::Ready(end),
        }
    }
    Poll::Ready(Some(Ok(cut(rest))))
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let frame = match this {
            Self::Ended => None,
            Self::Full(page) => return Pin::new(page).poll_frame(context),
            Self::Unary(rest) if !rest.is_empty() => Some(Frame::data(cut(rest))),
            Self::Unary(_) => {
                *this = Self::Ended;
                Some(Frame::trailers(success()))
            }
            Self::Grpc(answers, rest) => match ready!(poll_piece(answers, rest, context)) {
                Some(Ok(piece)) => Some(Frame::data(piece)),
                Some(Err(status)) => {
                    *this = Self::Ended;
                    Some(Frame::trailers(trailers(&status)))
                }
                None => {
                    *this = Self::Ended;
                    Some(Frame::trailers(success()))
                }
            },
            Self::Chunks(pieces) => {
                let piece = ready!(pieces.as_mut().poll_next(context));
                if piece.is_none() {
                    *this = Self::Ended;
                }
                piece.map(Frame::data)
            }
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Ended => true,
            Self::Full(page) => page.is_end_stream(),
            _ => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(page) => page.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

/// The next piece of a request's body; `None` at its end.
pub(crate) async fn next_data(body: &mut Upload) -> Option<Result<Bytes, hyper::Error>> {
    std::future::poll_fn(|context| poll_data(body, context)).await
}

fn poll_data(
    body: &mut Upload,
    context: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, hyper::Error>>> {
    loop {
        match ready!(Pin::new(&mut *body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            Some(Ok(frame)) => {
                // Trailers of a request mean nothing here.
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Poll::Ready(Some(Ok(data)));
                }
            }
        }
    }
}

/// Refuses a message that is larger than the server takes, as grpc-go says it.
pub(crate) fn too_large(len: usize, most: usize) -> Status {
    Status::resource_exhausted(format!("grpc: received message larger than max ({len} vs. {most})"))
}

/// How a request stream is cut into messages.
pub(crate) trait Cut: Send {
    /// The next message of the buffer, `None` when it holds no whole one. `ended` tells that
    /// nothing follows.
    fn cut(&mut self, buffer: &mut BytesMut, ended: bool) -> Result<Option<Bytes>, Status>;
}

/// gRPC's frames.
pub(crate) struct Frames {
    /// The largest message, in bytes.
    pub(crate) most: usize,
}

impl Cut for Frames {
    fn cut(&mut self, buffer: &mut BytesMut, _ended: bool) -> Result<Option<Bytes>, Status> {
        if let Some(len) = wire::frame_len(buffer) {
            if buffer[0] != 0 {
                return Err(Status::internal(
                    "grpc: compressed flag set with identity or empty encoding",
                ));
            }
            if len > self.most {
                return Err(too_large(len, self.most));
            }
        }
        Ok(wire::split_frame(buffer))
    }
}

/// The messages of a request stream.
pub(crate) struct Requests {
    body: Upload,
    buffer: BytesMut,
    cut: Box<dyn Cut>,
    ended: bool,
}

impl Requests {
    pub(crate) fn new(body: Upload, cut: Box<dyn Cut>) -> Self {
        Self { body, buffer: BytesMut::new(), cut, ended: false }
    }

    /// The next message; `None` when the client has no more to say.
    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            match self.cut.cut(&mut self.buffer, self.ended) {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) if self.ended => return Poll::Ready(None),
                Ok(None) => {}
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
            match ready!(poll_data(&mut self.body, context)) {
                Some(Ok(data)) => self.buffer.extend_from_slice(&data),
                Some(Err(_)) => {
                    return Poll::Ready(Some(Err(Status::cancelled("context canceled"))));
                }
                None => self.ended = true,
            }
        }
    }

    /// The same as a future.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }
}
