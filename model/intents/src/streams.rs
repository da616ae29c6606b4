//! Live connections into containers: logs, exec, attach, port-forward.

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

/// A pod on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid; empty means whichever pod has the name now.
    pub uid: String,
}

/// What `kubectl logs` asks for.
#[derive(Debug, Clone, Default)]
pub struct LogRequest {
    /// Container name; empty means the only one.
    pub container: String,
    /// Keep delivering as lines appear, until the container ends or the caller goes.
    pub follow: bool,
    /// The container's instance before the current one.
    pub previous: bool,
    /// Put an RFC 3339 time in front of each line.
    pub timestamps: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// Only lines at or after this time, nanoseconds since the epoch.
    pub since: Option<i128>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
    /// Only this stream: `stdout`, `stderr`, or empty for both.
    pub stream: String,
}

/// What `kubectl exec` asks for.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// Container name; empty means the only one.
    pub container: String,
    /// The command and its arguments, not empty.
    pub command: Vec<String>,
    /// Give it a standard input.
    pub stdin: bool,
    /// Return its standard output.
    pub stdout: bool,
    /// Return its standard error (never with `tty`).
    pub stderr: bool,
    /// Run it on a terminal.
    pub tty: bool,
}

/// What `kubectl attach` asks for.
#[derive(Debug, Clone, Default)]
pub struct AttachRequest {
    /// Container name; empty means the only one.
    pub container: String,
    /// Write to its standard input.
    pub stdin: bool,
    /// Return its standard output.
    pub stdout: bool,
    /// Return its standard error.
    pub stderr: bool,
    /// The container runs on a terminal.
    pub tty: bool,
}

/// How an exec or attach session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionExit {
    /// The process ended with this code (128 + n for signal n).
    Code(i32),
    /// The process could not be run or was lost.
    Failed(String),
}

/// A live session with a process. Closing `stdin` closes the process's standard input.
pub struct Session {
    /// Bytes for the process's standard input; `None` when none was asked for.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// The process's standard output; `None` when it was not asked for.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// The process's standard error; `None` when it was not asked for or there is a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Terminal sizes (columns, rows), when there is a terminal.
    pub resize: Option<mpsc::Sender<(u16, u16)>>,
    /// Completes once, when the process has ended (or, for attach, the container has).
    pub exit: oneshot::Receiver<SessionExit>,
}

/// Why a live connection could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The pod or container is not on this machine, or has no such instance.
    #[error("{0}")]
    NotFound(String),
    /// The request cannot be understood, or the container's state does not allow it.
    #[error("{0}")]
    BadRequest(String),
    /// It failed on the way.
    #[error("{0}")]
    Failed(String),
}

/// A bidirectional byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What a machine's agent offers to whoever carries live streams.
pub trait Streams: Send + Sync + 'static {
    /// Delivers a container's log, in chunks of whole lines. The channel closes at the end.
    fn logs(
        &self,
        pod: PodRef,
        request: LogRequest,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<Bytes>, StreamError>>;
    /// Runs a command in a container.
    fn exec(
        &self,
        pod: PodRef,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<Session, StreamError>>;
    /// Connects to a container's own process.
    fn attach(
        &self,
        pod: PodRef,
        request: AttachRequest,
    ) -> BoxFuture<'_, Result<Session, StreamError>>;
    /// Connects to a TCP port inside the pod's network namespace.
    fn forward(
        &self,
        pod: PodRef,
        port: u16,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, StreamError>>;
}
