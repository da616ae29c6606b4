//! WebSockets (RFC 6455): the handshake, and a byte stream over binary messages.

use super::{agree, words};
use crate::respond::{self, Body};
use bytes::{Buf, Bytes};
use dhow_objects::Status;
use futures::{Sink, Stream};
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Response, StatusCode};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// The largest message that is taken, in bytes.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Checks a handshake and agrees on a sub-protocol.
///
/// # Errors
/// 400 for a handshake that is not one, 403 when no sub-protocol is shared.
pub fn accept(
    headers: &HeaderMap,
    ours: &[&'static str],
) -> Result<(Response<Body>, &'static str), Status> {
    let version = headers.get(SEC_WEBSOCKET_VERSION).and_then(|value| value.to_str().ok());
    if version != Some("13") {
        return Err(Status::bad_request("the WebSocket version must be 13"));
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .ok_or_else(|| Status::bad_request("the WebSocket handshake has no key"))?;
    let accepted = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| Status::bad_request("the WebSocket handshake has a broken key"))?;
    if words(headers, &SEC_WEBSOCKET_PROTOCOL).next().is_none() {
        return Err(Status::bad_request(format!(
            "the WebSocket handshake names no sub-protocol: use one of {ours:?}"
        )));
    }
    let protocol = agree(headers, &SEC_WEBSOCKET_PROTOCOL, ours)?;
    let mut response = Response::new(respond::full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let reply = response.headers_mut();
    reply.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    reply.insert(UPGRADE, HeaderValue::from_static("websocket"));
    reply.insert(SEC_WEBSOCKET_ACCEPT, accepted);
    reply.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    Ok((response, protocol))
}

/// The server's side of a WebSocket over a connection that has left HTTP.
pub async fn open<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Bytes in binary messages, as port-forward tunnels SPDY.
pub struct Bytestream<T> {
    socket: WebSocketStream<T>,
    left: Bytes,
}

impl<T> Bytestream<T> {
    /// Over an open WebSocket.
    pub fn new(socket: WebSocketStream<T>) -> Self {
        Self { socket, left: Bytes::new() }
    }
}

fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Bytestream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.left.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(context)) {
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(())),
                Some(Ok(Message::Binary(bytes))) => self.left = bytes,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let length = self.left.len().min(buffer.remaining());
        buffer.put_slice(&self.left[..length]);
        self.left.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Bytestream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(context)).map_err(broken)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.socket).poll_close(context)) {
            // Either side may have closed first.
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn a_handshake_needs_version_key_and_protocol() {
        let mut headers = HeaderMap::new();
        assert_eq!(accept(&headers, &["x"]).unwrap_err().code, 400);
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        // The example of RFC 6455, section 1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        headers.insert(SEC_WEBSOCKET_KEY, key);
        assert_eq!(accept(&headers, &["x"]).unwrap_err().code, 400);
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("y, x"));
        let (reply, protocol) = accept(&headers, &["x"]).unwrap();
        assert_eq!(protocol, "x");
        assert_eq!(reply.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn messages_make_one_stream_of_bytes() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut server = Bytestream::new(open(ours).await);
        let client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        let mut client = Bytestream::new(client);
        client.write_all(b"ab").await.unwrap();
        client.write_all(b"cd").await.unwrap();
        client.flush().await.unwrap();
        let mut read = [0; 4];
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"abcd");
        let closing = tokio::spawn(async move {
            let _ = client.shutdown().await;
        });
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
        closing.await.unwrap();
    }
}
