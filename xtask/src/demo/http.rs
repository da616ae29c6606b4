//! A client for the demo: one connection for each request, as a browser's first one.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// Sends a request and returns the JSON document that is answered.
///
/// # Errors
/// When there is no connection, or the answer is anything but 200 with JSON.
pub fn ask(method: &str, address: SocketAddr, path: &str) -> Result<Value> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
    .with_context(|| format!("{address} does not take the request"))?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("{address} does not answer {method} {path}"))?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("{address} answered {method} {path} with {} bytes that are no HTTP", answer.len());
    };
    if !head.starts_with("HTTP/1.1 200 ") {
        let status = head.lines().next().unwrap_or_default();
        bail!("{address} answered {method} {path} with {status}: {}", body.trim());
    }
    serde_json::from_str(body)
        .with_context(|| format!("{address} answered {method} {path} with no JSON"))
}
