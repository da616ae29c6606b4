//! A process's standard streams, carried between this terminal and the platform.
//!
//! The channels are those of Kubernetes' remote-command protocol `v5.channel.k8s.io`.

use anyhow::Result;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use rustix::termios::{OptionalActions, Termios};
use serde_json::Value;
use std::io::Write;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The terminal in raw mode; put back when this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let stdin = rustix::stdio::stdin();
        let before = rustix::termios::tcgetattr(stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.0);
    }
}

fn size() -> Option<Message> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    let text = format!("{{\"Width\":{},\"Height\":{}}}", size.ws_col, size.ws_row);
    Some(framed(RESIZE, text.as_bytes()))
}

fn framed(channel: u8, bytes: &[u8]) -> Message {
    let mut frame = BytesMut::with_capacity(bytes.len() + 1);
    frame.put_u8(channel);
    frame.extend_from_slice(bytes);
    Message::Binary(frame.freeze())
}

/// Carries the streams until the process ends; returns its exit code.
///
/// # Errors
/// When the connection breaks, or the process could not be run.
pub async fn carry(mut socket: WebSocketStream<UnixStream>, stdin: bool, tty: bool) -> Result<i32> {
    let raw = if tty && stdin { Raw::enter() } else { None };
    let mut resized = signal(SignalKind::window_change())?;
    if tty && let Some(size) = size() {
        socket.send(size).await?;
    }
    // Standard input is read on a thread of its own: a read of a terminal cannot be cancelled.
    let mut input = stdin.then(tokio::io::stdin);
    let mut buffer = vec![0u8; 16 * 1024];
    let outcome = loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(frame))) => {
                    if let Some(code) = take(&frame)? {
                        break code;
                    }
                }
                Some(Ok(Message::Close(_))) | None => anyhow::bail!("the stream ended without an exit code"),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(e.into()),
            },
            read = async { match &mut input {
                Some(input) => input.read(&mut buffer).await,
                None => std::future::pending().await,
            } } => match read {
                Ok(0) | Err(_) => {
                    socket.send(Message::Binary(Bytes::from_static(&[CLOSE, STDIN]))).await?;
                    input = None;
                }
                Ok(n) => socket.send(framed(STDIN, &buffer[..n])).await?,
            },
            _ = resized.recv(), if tty => {
                if let Some(size) = size() {
                    socket.send(size).await?;
                }
            }
        }
    };
    drop(raw);
    Ok(outcome)
}

/// Writes one frame out; the exit code when it carried the end.
fn take(frame: &[u8]) -> Result<Option<i32>> {
    let Some((channel, bytes)) = frame.split_first() else { return Ok(None) };
    match *channel {
        STDOUT => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()?;
        }
        STDERR => std::io::stderr().lock().write_all(bytes)?,
        STATUS => return exit_code(&serde_json::from_slice(bytes)?).map(Some),
        _ => {}
    }
    Ok(None)
}

/// The exit code in the status that ends a stream.
fn exit_code(status: &Value) -> Result<i32> {
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let code = causes
        .iter()
        .filter(|c| c["reason"] == "ExitCode")
        .find_map(|c| c["message"].as_str()?.parse().ok());
    match code {
        Some(code) => Ok(code),
        None => anyhow::bail!("{}", status["message"].as_str().unwrap_or("the process failed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_the_exit_code() {
        assert_eq!(exit_code(&serde_json::json!({"status": "Success"})).unwrap(), 0);
        let failed = serde_json::json!({
            "status": "Failure",
            "details": {"causes": [{"reason": "ExitCode", "message": "7"}]},
        });
        assert_eq!(exit_code(&failed).unwrap(), 7);
        let lost = serde_json::json!({"status": "Failure", "message": "no such container"});
        assert_eq!(exit_code(&lost).unwrap_err().to_string(), "no such container");
    }
}
