//! Asking a container: over HTTP, TCP or gRPC at the pod's address, or by a command inside.

use super::diff::Outcome;
use super::{grpc, http};
use crate::registry::Live;
use dhow_runtime::{ProcessSpec, Runtime};
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::future::Future;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Most of a command's output that is looked at.
const OUTPUT_MOST: u64 = 10 * 1024;

/// How long output is waited for after the command has ended.
const LINGER: Duration = Duration::from_millis(50);

/// The number of a port that may be named.
///
/// # Errors
/// A text that names the port.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(port) => port.container_port,
                None => {
                    name.parse().map_err(|_| format!("couldn't find port {name:?} in container"))?
                }
            }
        }
    };
    u16::try_from(number)
        .ok()
        .filter(|p| *p > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

/// Makes one attempt.
pub async fn ask(
    runtime: &Runtime,
    live: &Live,
    container: &Container,
    probe: &Probe,
    ip: &str,
    patience: impl Future<Output = ()>,
    timeout: Duration,
) -> Outcome {
    let attempt = async {
        if let Some(action) = &probe.http_get {
            let port = port(&action.port, container)?;
            let answer = http::get(action, ip, port).await?;
            return match answer.status {
                200..400 => Ok(()),
                status => Err(format!("HTTP probe failed with statuscode: {status}")),
            };
        }
        if let Some(action) = &probe.tcp_socket {
            let port = port(&action.port, container)?;
            let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(ip);
            return match TcpStream::connect((host, port)).await {
                Ok(_) => Ok(()),
                Err(error) => {
                    Err(format!("dial tcp {host}:{port}: connect: {}", http::plain(&error)))
                }
            };
        }
        if let Some(action) = &probe.grpc {
            let port = port(&IntOrString::Int(action.port), container)?;
            return grpc::check(ip, port, action.service.as_deref().unwrap_or("")).await;
        }
        if let Some(action) = &probe.exec {
            let (code, output) =
                run(runtime, live, action.command.as_deref().unwrap_or_default()).await?;
            return match code {
                0 => Ok(()),
                _ => Err(output),
            };
        }
        Err("missing probe handler".to_owned())
    };
    tokio::pin!(attempt);
    let result = tokio::select! {
        result = &mut attempt => result,
        () = patience => Err(match &probe.exec {
            Some(action) => {
                let command = action.command.as_deref().unwrap_or_default().join(" ");
                format!("command timed out: {command:?} timed out after {}s", timeout.as_secs())
            }
            None => "context deadline exceeded".to_owned(),
        }),
    };
    match result {
        Ok(()) => Outcome::Success,
        Err(why) => Outcome::Failure(why),
    }
}

/// A command that runs in a container; it is ended when nobody waits for it any more, as at a
/// probe's timeout.
struct Running<'a> {
    runtime: &'a Runtime,
    exec: Option<u64>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Some(exec) = self.exec else { return };
        // Without a runtime of tasks the whole process is about to end.
        let Ok(tasks) = tokio::runtime::Handle::try_current() else { return };
        let runtime = self.runtime.clone();
        tasks.spawn(async move {
            if let Err(error) = runtime.kill_exec(exec).await {
                tracing::debug!(%error, "a command that took too long is not ended");
            }
        });
    }
}

/// Runs a command in a container to its end; returns its exit code and the beginning of its output.
///
/// # Errors
/// Why it could not be run.
pub async fn run(
    runtime: &Runtime,
    live: &Live,
    command: &[String],
) -> Result<(i32, String), String> {
    let process =
        ProcessSpec { args: command.to_vec(), tty: false, size: None, ..live.process.clone() };
    let session =
        runtime.exec(&live.id, process, false, true, true).await.map_err(|e| e.to_string())?;
    let mut running = Running { runtime, exec: Some(session.exec) };
    let read = |fd: Option<std::os::fd::OwnedFd>| async move {
        let mut output = Vec::new();
        if let Some(fd) = fd
            && let Ok(mut stream) = crate::streams::fd::FdStream::new(fd)
        {
            let _ = (&mut stream).take(OUTPUT_MOST).read_to_end(&mut output).await;
            // A command that says more is not to fail because nobody listens.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
        output
    };
    // A child that the command left behind may hold its output open: the exit is what counts.
    let reading = async { futures::join!(read(session.stdout), read(session.stderr)) };
    tokio::pin!(reading);
    let mut exit = session.exit;
    let (code, output) = tokio::select! {
        output = &mut reading => (exit.await, Some(output)),
        code = &mut exit => (code, tokio::time::timeout(LINGER, reading).await.ok()),
    };
    running.exec = None;
    let exit = code.map_err(|_| "the runtime lost the process".to_owned())?;
    let (mut out, err) = output.unwrap_or_default();
    out.extend(err);
    Ok((exit.code, String::from_utf8_lossy(&out).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_by_name_and_number() {
        let container: Container = serde_json::from_value(
            json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}),
        )
        .unwrap();
        assert_eq!(port(&IntOrString::Int(80), &container), Ok(80));
        assert_eq!(port(&IntOrString::String("web".into()), &container), Ok(8080));
        assert_eq!(port(&IntOrString::String("90".into()), &container), Ok(90));
        assert!(port(&IntOrString::String("x".into()), &container).is_err());
        assert!(port(&IntOrString::Int(0), &container).is_err());
    }
}
