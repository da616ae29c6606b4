//! Answers given in pieces.

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The most that an answer gives to its connection at once, in bytes.
///
/// Over HTTP/2 a stream claims the window of its connection for all that it was given (RFC 9113
/// section 5.2). A large answer, given whole, would leave nothing for the small ones behind it, the
/// events of a watch among them, until the client took it in.
pub const PIECE: usize = 64 << 10;

/// Cuts the next piece off; an empty one when nothing is left.
pub fn cut(rest: &mut Bytes) -> Bytes {
    rest.split_to(rest.len().min(PIECE))
}

/// A body that is known whole and given in pieces.
#[derive(Debug)]
pub struct Pieces {
    rest: Bytes,
}

impl From<Bytes> for Pieces {
    fn from(rest: Bytes) -> Self {
        Self { rest }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = cut(&mut self.rest);
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_body() {
        let whole: Bytes = (0..PIECE * 2 + 1).map(|n| (n % 251) as u8).collect();
        let mut body = Pieces::from(whole.clone());
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut given = Vec::new();
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some((whole.len() - given.len()) as u64));
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) else {
                panic!("no piece behind {} bytes", given.len());
            };
            let piece = frame.into_data().unwrap();
            assert!((1..=PIECE).contains(&piece.len()), "{}", piece.len());
            given.extend_from_slice(&piece);
        }
        assert_eq!(given, whole);
        assert!(matches!(Pin::new(&mut body).poll_frame(&mut context), Poll::Ready(None)));
    }
}
