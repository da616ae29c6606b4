//! `pods/exec` and `pods/attach`: a process's standard streams over a WebSocket or SPDY.
//!
//! Both transports become one [`Remote`]; [`run`] joins it to the machine's [`Session`].

use super::spdy::{Connection, Stream as SpdyStream, Writer};
use super::target::{Target, refusal};
use super::{STREAM_PROTOCOL, Upgrade, agree, spdy_reply, wanted_upgrade, websocket};
use crate::call::{Call, Verb};
use crate::respond::Reply;
use bytes::{Bytes, BytesMut};
use dhow_clock::SharedClock;
use dhow_intents::{AttachRequest, ExecRequest, Session, SessionExit, StreamError, Streams};
use dhow_objects::Status;
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

/// WebSocket sub-protocols, best first. They differ in that v5 can close a channel.
const WEBSOCKET: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// SPDY sub-protocols.
const SPDY: &[&str] = &["v4.channel.k8s.io"];

/// Channels of a WebSocket session: the first byte of each message.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// How long a SPDY client may take to open its streams (upstream's value).
const OPENING: Duration = Duration::from_secs(30);
/// After a process ended, its output is over when nothing came for this long: something that it
/// left behind may hold the pipe open for ever.
const LINGER: Duration = Duration::from_millis(500);
/// While a process does not read its input, the client is asked this often whether it is there.
const PROBE: Duration = Duration::from_secs(10);
/// Pieces that may wait for the process or for the client.
const QUEUE: usize = 64;
/// How much output is read at once, in bytes.
const PIECE: usize = 32 * 1024;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Run a command.
    Exec,
    /// Connect to the container's own process.
    Attach,
}

/// A session that has been asked for.
struct Wanted {
    target: Target,
    streams: Arc<dyn Streams>,
    ask: Ask,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

enum Ask {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

impl Wanted {
    async fn of(call: &Call, what: What) -> Result<Self, Status> {
        let query = &call.query;
        let target = Target::find(call).await?;
        let container = target.container(query.get("container"))?;
        let mut tty = query.flag("tty");
        let stdin = query.flag("stdin");
        let stdout = query.flag("stdout");
        let stderr = query.flag("stderr") && !tty;
        if !(stdin || stdout || stderr) {
            return Err(Status::bad_request(
                "you must specify at least 1 of stdin, stdout, stderr",
            ));
        }
        let ask = match what {
            What::Exec => {
                let command: Vec<String> = query.all("command").map(str::to_owned).collect();
                if command.is_empty() {
                    return Err(Status::bad_request(
                        "PodExecOptions is invalid: command: Required value",
                    ));
                }
                Ask::Exec(ExecRequest { container, command, stdin, stdout, stderr, tty })
            }
            What::Attach => {
                let (has_tty, _) = target.terminal(&container);
                tty &= has_tty;
                Ask::Attach(AttachRequest { container, stdin, stdout, stderr, tty })
            }
        };
        let streams = target.streams(call)?;
        Ok(Self { target, streams, ask, stdin, stdout, stderr, tty })
    }

    async fn begin(&self) -> Result<Session, StreamError> {
        let pod = self.target.pod.clone();
        match &self.ask {
            Ask::Exec(request) => self.streams.exec(pod, request.clone()).await,
            Ask::Attach(request) => self.streams.attach(pod, request.clone()).await,
        }
    }
}

/// Serves a session.
pub async fn serve(mut call: Call, what: What) -> Reply {
    if !matches!(call.verb, Verb::Get | Verb::Create) {
        return Err(Status::method_not_allowed());
    }
    let upgrade = wanted_upgrade(&call.head.headers)?;
    let wanted = Wanted::of(&call, what).await?;
    let upgraded =
        call.upgrade.take().ok_or_else(|| Status::bad_request("Upgrade request required"))?;
    let clock = call.door.config.clock.clone();
    let shutdown = call.shutdown.clone();
    match upgrade {
        Upgrade::WebSocket => {
            let (response, _) = websocket::accept(&call.head.headers, WEBSOCKET)?;
            tokio::spawn(async move {
                let Ok(io) = upgraded.await else { return };
                tokio::select! {
                    () = over_websocket(io, wanted, clock) => {}
                    () = shutdown.cancelled() => {}
                }
            });
            Ok(response)
        }
        Upgrade::Spdy => {
            let protocol = agree(&call.head.headers, &STREAM_PROTOCOL, SPDY)?;
            tokio::spawn(async move {
                let Ok(io) = upgraded.await else { return };
                tokio::select! {
                    () = over_spdy(io, wanted, clock) => {}
                    () = shutdown.cancelled() => {}
                }
            });
            Ok(spdy_reply(protocol))
        }
    }
}

/// Where a session's output goes.
enum Output {
    WebSocket(u8, mpsc::Sender<Message>),
    Spdy(Writer),
}

impl Output {
    /// False when the client is gone.
    async fn write(&self, bytes: Bytes) -> bool {
        match self {
            Self::WebSocket(channel, socket) => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.extend_from_slice(&[*channel]);
                message.extend_from_slice(&bytes);
                socket.send(Message::Binary(message.freeze())).await.is_ok()
            }
            Self::Spdy(writer) => writer.write(bytes).await,
        }
    }

    async fn close(&self) {
        if let Self::Spdy(writer) = self {
            writer.close().await;
        }
    }
}

/// The client's side of a session, whatever it came over.
struct Remote {
    stdin: Option<mpsc::Receiver<Bytes>>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    error: Output,
    resize: Option<mpsc::Receiver<(u16, u16)>>,
}

/// Joins a client to a process until the process has ended and its output was delivered.
async fn run(wanted: &Wanted, mut remote: Remote, clock: &SharedClock) {
    let session = match wanted.begin().await {
        Ok(session) => session,
        Err(error) => {
            tell(&remote.error, &refusal(error).to_json()).await;
            return;
        }
    };
    let Session { stdin, stdout, stderr, resize, exit } = session;
    let input = async {
        if let (Some(mut from), Some(mut to)) = (remote.stdin.take(), stdin) {
            while let Some(bytes) = from.recv().await {
                if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                    break;
                }
            }
            // The process sees the end of its input.
            let _ = to.shutdown().await;
        }
        std::future::pending::<()>().await;
    };
    let sizes = async {
        if let (Some(mut from), Some(to)) = (remote.resize.take(), resize) {
            while let Some(size) = from.recv().await {
                if to.send(size).await.is_err() {
                    break;
                }
            }
        }
        std::future::pending::<()>().await;
    };
    let ended = CancellationToken::new();
    let output = async {
        tokio::join!(
            copy(stdout, remote.stdout.as_ref(), &ended, clock),
            copy(stderr, remote.stderr.as_ref(), &ended, clock),
        );
    };
    let exited = async {
        let exit = exit.await;
        ended.cancel();
        exit
    };
    let both = async { tokio::join!(output, exited).1 };
    let exit = tokio::select! {
        exit = both => exit,
        () = input => return,
        () = sizes => return,
    };
    let status = match exit {
        // As upstream: an attachment that saw the end has succeeded, whatever the code; kubectl
        // takes a failure for a reason to print the log once more.
        Ok(SessionExit::Code(_)) if matches!(wanted.ask, Ask::Attach(_)) => {
            json!({"metadata": {}, "status": "Success"})
        }
        Ok(SessionExit::Code(0)) => json!({"metadata": {}, "status": "Success"}),
        Ok(SessionExit::Code(code)) => json!({
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit code {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Ok(SessionExit::Failed(why)) => Status::internal(why).to_json(),
        Err(_) => Status::internal("the connection to the container was lost").to_json(),
    };
    for output in [&remote.stdout, &remote.stderr].into_iter().flatten() {
        output.close().await;
    }
    tell(&remote.error, &status).await;
}

async fn tell(error: &Output, status: &Value) {
    error.write(status.to_string().into()).await;
    error.close().await;
}

/// Copies output to the client until it ends.
async fn copy(
    from: Option<Box<dyn AsyncRead + Send + Unpin>>,
    to: Option<&Output>,
    ended: &CancellationToken,
    clock: &SharedClock,
) {
    let Some(mut from) = from else { return };
    let mut buffer = BytesMut::with_capacity(PIECE);
    loop {
        buffer.reserve(PIECE);
        let read = tokio::select! {
            biased;
            read = from.read_buf(&mut buffer) => read,
            () = async {
                ended.cancelled().await;
                clock.sleep(LINGER).await;
            } => return,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let bytes = buffer.split().freeze();
                // Output that nobody asked for is still read, so that the process can go on.
                if let Some(to) = to
                    && !to.write(bytes).await
                {
                    return;
                }
            }
        }
    }
}

async fn over_websocket(io: Upgraded, wanted: Wanted, clock: SharedClock) {
    let socket = websocket::open(TokioIo::new(io)).await;
    serve_websocket(socket, wanted, clock).await;
}

async fn serve_websocket<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    socket: tokio_tungstenite::WebSocketStream<T>,
    wanted: Wanted,
    clock: SharedClock,
) {
    let (mut sink, mut source) = socket.split();
    let (outgoing, mut queued) = mpsc::channel::<Message>(QUEUE);
    let broken = CancellationToken::new();
    let writer_broken = broken.clone();
    let writer = async move {
        while let Some(message) = queued.recv().await {
            // Flush once there is nothing more to send.
            let sent = match sink.feed(message).await {
                Ok(()) if queued.is_empty() => sink.flush().await,
                other => other,
            };
            if sent.is_err() {
                writer_broken.cancel();
                return;
            }
        }
        // Clients take any other code for a failure.
        let reason = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
        let _ = sink.send(Message::Close(Some(reason))).await;
        let _ = sink.close().await;
    };
    let (to_stdin, stdin) = mpsc::channel(QUEUE);
    let (to_resize, resize) = mpsc::channel(QUEUE);
    let back = outgoing.downgrade();
    let probe_clock = clock.clone();
    let reader = async move {
        let mut to_stdin = Some(to_stdin);
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) => {
                    let taken = take(bytes, &mut to_stdin, &to_resize);
                    tokio::pin!(taken);
                    loop {
                        tokio::select! {
                            () = &mut taken => break,
                            // Nothing is read from the client now; only a failed write would
                            // show that it has gone.
                            () = probe_clock.sleep(PROBE) => {
                                if let Some(outgoing) = back.upgrade() {
                                    let _ = outgoing.try_send(Message::Ping(Bytes::new()));
                                }
                            }
                        }
                    }
                }
                Message::Close(_) => return,
                Message::Ping(payload) => {
                    if let Some(outgoing) = back.upgrade() {
                        let _ = outgoing.send(Message::Pong(payload)).await;
                    }
                }
                _ => {}
            }
        }
    };
    let output =
        |wanted: bool, channel: u8| wanted.then(|| Output::WebSocket(channel, outgoing.clone()));
    let remote = Remote {
        stdin: wanted.stdin.then_some(stdin),
        stdout: output(wanted.stdout, STDOUT),
        stderr: output(wanted.stderr, STDERR),
        error: Output::WebSocket(ERROR, outgoing.clone()),
        resize: wanted.tty.then_some(resize),
    };
    // An empty message tells the client that the session stands, as upstream does.
    let lowest = if wanted.stdout {
        STDOUT
    } else if wanted.stderr {
        STDERR
    } else {
        ERROR
    };
    let _ = outgoing.send(Message::Binary(Bytes::copy_from_slice(&[lowest]))).await;
    drop(outgoing);
    let session = async {
        tokio::select! {
            () = run(&wanted, remote, &clock) => {}
            // The client went: whoever serves the session sees its ends dropped.
            () = reader => {}
            () = broken.cancelled() => {}
        }
    };
    // When the session is over, the last sender is gone; the writer then says good-bye.
    tokio::join!(session, writer);
}

/// Handles one message of a client.
async fn take(
    bytes: Bytes,
    to_stdin: &mut Option<mpsc::Sender<Bytes>>,
    to_resize: &mpsc::Sender<(u16, u16)>,
) {
    let Some((&channel, _)) = bytes.split_first() else { return };
    let payload = bytes.slice(1..);
    match channel {
        STDIN if !payload.is_empty() => {
            if let Some(queue) = to_stdin {
                // A process that reads no more has no use for the rest.
                let _ = queue.send(payload).await;
            }
        }
        RESIZE => {
            if let Some(size) = parse_size(&payload) {
                let _ = to_resize.try_send(size);
            }
        }
        CLOSE if payload.first() == Some(&STDIN) => *to_stdin = None,
        _ => {}
    }
}

/// `{"Width":80,"Height":24}`.
fn parse_size(text: &[u8]) -> Option<(u16, u16)> {
    let size: Value = serde_json::from_slice(text).ok()?;
    let side = |name: &str| size.get(name)?.as_u64().and_then(|n| u16::try_from(n).ok());
    Some((side("Width")?, side("Height")?))
}

async fn over_spdy(io: Upgraded, wanted: Wanted, clock: SharedClock) {
    serve_spdy(TokioIo::new(io), wanted, clock).await;
}

async fn serve_spdy<T: AsyncRead + AsyncWrite + Send + 'static>(
    io: T,
    wanted: Wanted,
    clock: SharedClock,
) {
    let mut connection = Connection::serve(io);
    let gone = connection.gone();
    let opened = tokio::select! {
        opened = open_streams(&mut connection, &wanted) => opened,
        () = clock.sleep(OPENING) => None,
    };
    let Some(remote) = opened else {
        tracing::debug!("a SPDY client did not open the streams it asked for");
        return;
    };
    tokio::select! {
        () = run(&wanted, remote, &clock) => {}
        () = gone.cancelled() => return,
    }
    connection.finish().await;
}

/// Waits for the streams that a client opens: one for errors and one for each that it asked for.
async fn open_streams(connection: &mut Connection, wanted: &Wanted) -> Option<Remote> {
    let (mut error, mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None, None);
    let expected = 1
        + usize::from(wanted.stdin)
        + usize::from(wanted.stdout)
        + usize::from(wanted.stderr)
        + usize::from(wanted.tty);
    for _ in 0..expected {
        let stream = connection.accept().await?;
        let kind = stream.header("streamtype").to_owned();
        let SpdyStream { reader, writer, .. } = stream;
        match kind.as_str() {
            "error" => error = Some(writer),
            "stdin" => stdin = Some(reader.into_receiver()),
            "stdout" => stdout = Some(Output::Spdy(writer)),
            "stderr" => stderr = Some(Output::Spdy(writer)),
            "resize" => {
                let (to, from) = mpsc::channel(QUEUE);
                let mut sizes = reader;
                tokio::spawn(async move {
                    while let Some(text) = sizes.read().await {
                        // Go's encoder may put several lines into one frame; the last counts.
                        let last = text.split(|b| *b == b'\n').rev().find_map(parse_size);
                        if let Some(size) = last
                            && to.send(size).await.is_err()
                        {
                            return;
                        }
                    }
                });
                resize = Some(from);
            }
            _ => {
                writer.reset().await;
                return None;
            }
        }
    }
    Some(Remote { stdin, stdout, stderr, error: Output::Spdy(error?), resize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size(br#"{"Width":80,"Height":24}"#), Some((80, 24)));
        assert_eq!(parse_size(br#"{"Width":-1,"Height":24}"#), None);
        assert_eq!(parse_size(b"x"), None);
    }

    #[tokio::test]
    async fn a_closed_channel_ends_standard_input() {
        let (to_stdin, mut stdin) = mpsc::channel(4);
        let (to_resize, mut resize) = mpsc::channel(4);
        let mut open = Some(to_stdin);
        take(Bytes::from_static(b"\0hello"), &mut open, &to_resize).await;
        take(Bytes::from_static(b"\x04{\"Width\":1,\"Height\":2}"), &mut open, &to_resize).await;
        take(Bytes::from_static(b"\xff\x00"), &mut open, &to_resize).await;
        take(Bytes::from_static(b"\0late"), &mut open, &to_resize).await;
        take(Bytes::new(), &mut open, &to_resize).await;
        assert_eq!(stdin.recv().await.unwrap(), "hello");
        assert_eq!(stdin.recv().await, None);
        assert_eq!(resize.recv().await, Some((1, 2)));
    }
}
