//! HTTP/1.1 (RFC 9112) as far as three services need it: a server with a thread for each
//! connection, and a client that opens a connection for each request.
//!
//! A connection for each request is on purpose: every call between services is balanced anew, and
//! none is lost on a kept connection whose other end is just leaving.

use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest request head (all lines together) in bytes.
const MAX_HEAD: u64 = 16 * 1024;
/// The longest body in bytes.
const MAX_BODY: usize = 1024 * 1024;
/// The most connections at a time.
const MAX_CONNECTIONS: usize = 512;
/// How long a kept connection may be silent.
const IDLE: Duration = Duration::from_secs(30);
/// How long a call to another service may take, from connecting to the answer's end.
const CALL: Duration = Duration::from_secs(3);

/// What a service does with a request.
pub type Handler = dyn Fn(&Request) -> Response + Send + Sync;

/// What was asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`...
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// The sender wants to close the connection after the answer.
    close: bool,
}

/// What is answered.
#[derive(Debug)]
pub struct Response {
    status: u16,
    kind: &'static str,
    body: Vec<u8>,
}

impl Response {
    /// Plain text, closed by a line end.
    pub fn text(status: u16, text: &str) -> Self {
        Self { status, kind: "text/plain", body: format!("{text}\n").into_bytes() }
    }

    /// A JSON document with status 200.
    pub fn json(value: &Value) -> Self {
        Self { status: 200, kind: "application/json", body: format!("{value}\n").into_bytes() }
    }

    /// A JSON document that says what is wrong.
    pub fn error(status: u16, error: impl ToString) -> Self {
        Self { status, ..Self::json(&json!({"error": error.to_string()})) }
    }

    fn write(&self, to: &mut impl Write, close: bool) -> std::io::Result<()> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            502 => "Bad Gateway",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        // One write: a small answer is then one packet.
        let mut out = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: {}\r\ncontent-length: {}\r\n{}\r\n",
            self.status,
            self.kind,
            self.body.len(),
            if close { "connection: close\r\n" } else { "" },
        )
        .into_bytes();
        out.extend_from_slice(&self.body);
        to.write_all(&out)
    }
}

/// A running server.
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    leaving: Arc<AtomicBool>,
    handler: Box<Handler>,
    connections: AtomicUsize,
    in_flight: Mutex<usize>,
    all_answered: Condvar,
}

impl Server {
    /// Answers on `listener` in threads of its own. Once `leaving` is set, every answer also asks
    /// to close its connection.
    pub fn start(listener: TcpListener, leaving: Arc<AtomicBool>, handler: Box<Handler>) -> Self {
        let shared = Arc::new(Shared {
            leaving,
            handler,
            connections: AtomicUsize::new(0),
            in_flight: Mutex::new(0),
            all_answered: Condvar::new(),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || accept(&listener, &accepting));
        Self { shared }
    }

    /// Waits until no request is in flight, at most `limit`; returns how many still are.
    pub fn finish(self, limit: Duration) -> usize {
        let in_flight = self.shared.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let (in_flight, _) = self
            .shared
            .all_answered
            .wait_timeout_while(in_flight, limit, |count| *count > 0)
            .unwrap_or_else(PoisonError::into_inner);
        *in_flight
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                // For example no file descriptors: some connection has to end first.
                eprintln!("cannot accept a connection: {error}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let shared = shared.clone();
        if shared.connections.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
            let mut stream = stream;
            let full = Response::error(503, "too many connections; try again");
            // Who does not take the answer is not served either.
            let _ = full.write(&mut stream, true);
            shared.connections.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        std::thread::spawn(move || {
            if let Err(error) = connection(stream, &shared)
                && !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
            {
                eprintln!("connection lost: {error}");
            }
            shared.connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Answers the requests of one connection until either side closes it.
fn connection(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(&stream);
    loop {
        // The first byte makes it a request in flight; before it the connection is only idle.
        if reader.fill_buf()?.is_empty() {
            return Ok(());
        }
        let _flight = Flight::begin(shared);
        let (request, response) = match read_request(&mut reader)? {
            Ok(request) => {
                let response = (shared.handler)(&request);
                if !matches!(request.path.as_str(), "/healthz" | "/readyz") {
                    println!("{} {} {}", request.method, request.path, response.status);
                }
                (request, response)
            }
            Err(what) => {
                let nothing = Request { method: String::new(), path: String::new(), close: true };
                (nothing, Response::error(400, what))
            }
        };
        let close = request.close || shared.leaving.load(Ordering::SeqCst);
        response.write(&mut &stream, close)?;
        if close {
            return Ok(());
        }
    }
}

/// Counts a request as in flight for as long as it lives.
struct Flight<'a>(&'a Shared);

impl<'a> Flight<'a> {
    fn begin(shared: &'a Shared) -> Self {
        *shared.in_flight.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(shared)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut count = self.0.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            self.0.all_answered.notify_all();
        }
    }
}

/// Reads one request with its body (which no service here looks at). The inner error is the
/// sender's mistake.
fn read_request(reader: &mut impl std::io::BufRead) -> std::io::Result<Result<Request, String>> {
    let (first, headers) = match read_head(reader)? {
        Ok(head) => head,
        Err(what) => return Ok(Err(what)),
    };
    let mut words = first.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Ok(Err(format!("not a request line: {first:?}")));
    };
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") || !target.starts_with('/') {
        return Ok(Err(format!("not a request line: {first:?}")));
    }
    let mut close = version == "HTTP/1.0";
    let mut length = 0;
    for (name, value) in &headers {
        match name.as_str() {
            "connection" if value.eq_ignore_ascii_case("close") => close = true,
            "content-length" => match value.parse::<usize>() {
                Ok(n) if n <= MAX_BODY => length = n,
                _ => return Ok(Err(format!("a body of {value} bytes is not taken"))),
            },
            "transfer-encoding" => {
                return Ok(Err("a body needs a content-length".to_owned()));
            }
            _ => {}
        }
    }
    std::io::copy(&mut reader.take(length as u64), &mut std::io::sink())?;
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    Ok(Ok(Request { method: method.to_owned(), path: path.to_owned(), close }))
}

type Head = (String, Vec<(String, String)>);

/// Reads the first line and the headers, their names in lower case.
fn read_head(reader: &mut impl std::io::BufRead) -> std::io::Result<Result<Head, String>> {
    let mut reader = reader.take(MAX_HEAD);
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Ok(Err("the head ended early or is too long".to_owned()));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if line.is_empty() {
            break;
        }
        let Ok(line) = String::from_utf8(line) else {
            return Ok(Err("the head is not text".to_owned()));
        };
        lines.push(line);
    }
    let mut lines = lines.into_iter();
    let Some(first) = lines.next() else { return Ok(Err("the head is empty".to_owned())) };
    let mut headers = Vec::new();
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            return Ok(Err(format!("not a header: {line:?}")));
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Ok((first, headers)))
}

/// Why another service did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is not of the form `http://HOST:PORT/PATH`.
    #[error("{0:?} is not a URL of the form http://HOST:PORT/PATH")]
    Url(String),
    /// The name has no address.
    #[error("{0}: the name does not resolve: {1}")]
    Name(String, std::io::Error),
    /// No connection, or it broke.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    /// What came is not HTTP or not JSON.
    #[error("{0}: the answer is not understood: {1}")]
    Answer(String, String),
    /// The service answered with an error of its own.
    #[error("{0} answered {1}: {2}")]
    Status(String, u16, String),
}

impl Error {
    /// The service answered that there is no such thing.
    pub fn missing(&self) -> bool {
        matches!(self, Self::Status(_, 404, _))
    }
}

/// Asks another service for a JSON document.
///
/// # Errors
/// When it cannot be reached within three seconds or answers anything but success.
pub fn get(url: &str) -> Result<Value, Error> {
    call("GET", url)
}

/// Tells another service to do something; the answer is a JSON document.
///
/// # Errors
/// As [`get`].
pub fn post(url: &str) -> Result<Value, Error> {
    call("POST", url)
}

fn call(method: &str, url: &str) -> Result<Value, Error> {
    let bad = || Error::Url(url.to_owned());
    let rest = url.strip_prefix("http://").ok_or_else(bad)?;
    let slash = rest.find('/').ok_or_else(bad)?;
    let (authority, path) = rest.split_at(slash);
    if !authority.contains(':') {
        return Err(bad());
    }
    let io = |e| Error::Io(url.to_owned(), e);
    let end = Instant::now() + CALL;
    let addresses = authority.to_socket_addrs().map_err(|e| Error::Name(url.to_owned(), e))?;
    let stream = connect(addresses, end).map_err(io)?;
    stream.set_nodelay(true).map_err(io)?;
    stream.set_read_timeout(Some(left(end))).map_err(io)?;
    stream.set_write_timeout(Some(left(end))).map_err(io)?;
    let ask = format!(
        "{method} {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    (&stream).write_all(ask.as_bytes()).map_err(io)?;
    let (status, body) = read_answer(&mut BufReader::new(&stream))
        .map_err(io)?
        .map_err(|what| Error::Answer(url.to_owned(), what))?;
    if status != 200 {
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        return Err(Error::Status(url.to_owned(), status, text));
    }
    serde_json::from_slice(&body).map_err(|e| Error::Answer(url.to_owned(), e.to_string()))
}

/// What is left until `end`; at least a millisecond, because zero would mean for ever.
fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn connect(
    addresses: impl Iterator<Item = std::net::SocketAddr>,
    end: Instant,
) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(end)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn read_answer(
    reader: &mut impl std::io::BufRead,
) -> std::io::Result<Result<(u16, Vec<u8>), String>> {
    let (first, headers) = match read_head(reader)? {
        Ok(head) => head,
        Err(what) => return Ok(Err(what)),
    };
    let Some(status) = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
    else {
        return Ok(Err(format!("not a status line: {first:?}")));
    };
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let Some(length) = length.and_then(|(_, value)| value.parse::<usize>().ok()) else {
        return Ok(Err("no content-length".to_owned()));
    };
    if length > MAX_BODY {
        return Ok(Err(format!("{length} bytes are too many")));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Ok((status, body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Request, String> {
        read_request(&mut text.as_bytes()).unwrap()
    }

    #[test]
    fn reads_a_request_and_leaves_the_next_one() {
        let mut two = "POST /a?b=c HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyzGET / HTTP/1.1\r\nConnection: Close\r\n\r\n".as_bytes();
        let first = read_request(&mut two).unwrap().unwrap();
        assert_eq!(
            first,
            Request { method: "POST".to_owned(), path: "/a".to_owned(), close: false }
        );
        let second = read_request(&mut two).unwrap().unwrap();
        assert_eq!((second.path.as_str(), second.close), ("/", true));
    }

    #[test]
    fn refuses_what_is_not_a_request() {
        for bad in [
            "",
            "\r\n\r\n",
            "GET /\r\n\r\n",
            "GET / HTTP/2\r\n\r\n",
            "GET x HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
            "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nunfinished: yes",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000));
        assert!(parse(&long).is_err());
    }

    #[test]
    fn names_the_url_that_failed() {
        assert!(matches!(get("ftp://x/"), Err(Error::Url(_))));
        assert!(matches!(get("http://nowhere/"), Err(Error::Url(_))));
        // Port 9 of the loopback: nobody listens.
        let error = get("http://127.0.0.1:9/x").unwrap_err();
        assert!(error.to_string().starts_with("http://127.0.0.1:9/x: "), "{error}");
    }
}
