//! A machine whose containers are processes of this one: enough to prove what the wire carries.

use bytes::Bytes;
use dhow_intents::streams::Duplex;
use dhow_intents::{
    AttachRequest, ExecRequest, LogRequest, PodRef, Session, SessionExit, StreamError, Streams,
};
use futures::future::BoxFuture;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

/// See the module.
#[derive(Debug, Default)]
pub struct Machine {
    /// Terminal sizes that arrived.
    pub sizes: std::sync::Arc<Mutex<Vec<(u16, u16)>>>,
    /// Told when a session was left by its client before its process ended.
    pub left: std::sync::Arc<tokio::sync::Notify>,
    /// What was asked of logs.
    pub asked: Mutex<Vec<LogRequest>>,
}

impl Streams for Machine {
    fn logs(
        &self,
        _pod: PodRef,
        request: LogRequest,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<Bytes>, StreamError>> {
        Box::pin(async move {
            if request.previous {
                return Err(StreamError::BadRequest(format!(
                    "previous terminated container {:?} in pod not found",
                    request.container
                )));
            }
            let (sender, receiver) = mpsc::channel(4);
            let lines = request.tail_lines.unwrap_or(3).min(3);
            let follow = request.follow;
            if let Ok(mut asked) = self.asked.lock() {
                asked.push(request);
            }
            tokio::spawn(async move {
                for line in 3 - lines..3 {
                    let _ = sender.send(Bytes::from(format!("line {line}\n"))).await;
                }
                if follow {
                    let _ = sender.send(Bytes::from("followed\n")).await;
                    // Until the caller goes.
                    sender.closed().await;
                }
            });
            Ok(receiver)
        })
    }

    fn exec(
        &self,
        _pod: PodRef,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<Session, StreamError>> {
        let (sizes, left) = (self.sizes.clone(), self.left.clone());
        Box::pin(async move {
            let pipe = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
            let (program, arguments) = request.command.split_first().unwrap();
            let mut child = tokio::process::Command::new(program)
                .args(arguments)
                .stdin(pipe(request.stdin))
                .stdout(pipe(request.stdout))
                .stderr(pipe(request.stderr))
                .kill_on_drop(true)
                .spawn()
                .map_err(|error| StreamError::Failed(format!("cannot run {program:?}: {error}")))?;
            let (done, exit) = oneshot::channel();
            let stdin = child.stdin.take().map(|s| Box::new(s) as Box<_>);
            let stdout = child.stdout.take().map(|s| Box::new(s) as Box<_>);
            let stderr = child.stderr.take().map(|s| Box::new(s) as Box<_>);
            let (resize, mut resized) = mpsc::channel(4);
            tokio::spawn(async move {
                let mut done = done;
                let status = tokio::select! {
                    status = child.wait() => status,
                    () = done.closed() => {
                        let _ = child.kill().await;
                        left.notify_one();
                        return;
                    }
                };
                let status = status.unwrap();
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
                let _ = done.send(SessionExit::Code(code));
            });
            tokio::spawn(async move {
                while let Some(size) = resized.recv().await {
                    sizes.lock().unwrap().push(size);
                }
            });
            let resize = request.tty.then_some(resize);
            Ok(Session { stdin, stdout, stderr, resize, exit })
        })
    }

    /// The container's own process answers each line in capitals and ends at `bye`.
    fn attach(
        &self,
        _pod: PodRef,
        request: AttachRequest,
    ) -> BoxFuture<'_, Result<Session, StreamError>> {
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(1024);
            let (theirs_in, stdin) = tokio::io::duplex(1024);
            let (done, exit) = oneshot::channel();
            tokio::spawn(async move {
                let mut lines = BufReader::new(stdin).lines();
                let mut out = ours;
                let _ = out.write_all(b"attached\n").await;
                while let Ok(Some(line)) = lines.next_line().await {
                    if line == "bye" {
                        break;
                    }
                    let _ = out.write_all(format!("{}\n", line.to_uppercase()).as_bytes()).await;
                }
                drop(out);
                let _ = done.send(SessionExit::Code(0));
            });
            Ok(Session {
                stdin: request.stdin.then(|| Box::new(theirs_in) as Box<_>),
                stdout: Some(Box::new(theirs)),
                stderr: None,
                resize: None,
                exit,
            })
        })
    }

    fn forward(
        &self,
        _pod: PodRef,
        port: u16,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, StreamError>> {
        Box::pin(async move {
            let socket = TcpStream::connect(("127.0.0.1", port))
                .await
                .map_err(|error| StreamError::Failed(error.to_string()))?;
            Ok(Box::new(socket) as Box<dyn Duplex>)
        })
    }
}
