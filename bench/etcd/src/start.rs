//! How long a server takes from its process's start to its first answered put.

use crate::process;
use anyhow::{Context as _, Result, bail};
use dhow_rpc::etcdserverpb::PutRequest;
use dhow_rpc::etcdserverpb::kv_client::KvClient;
use rustix::process::{Pid, Signal};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::Endpoint;

/// How long a server may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to start.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where it will listen: http://ADDRESS:PORT
    #[arg(long)]
    endpoint: String,
    /// The server and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// Starts, measures and stops it.
///
/// # Errors
/// When it does not start, does not answer within two minutes, or does not end.
pub async fn run(options: &Options) -> Result<()> {
    let (program, args) = options.command.split_first().context("which server?")?;
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let first = first_put(&mut child, &options.endpoint, start).await;
    let facts = first.and_then(|milliseconds| {
        let cpu = process::cpu(child.id())?;
        Ok((milliseconds, cpu, process::rss(child.id())?))
    });
    stop(&mut child)?;
    let (milliseconds, cpu, rss) = facts?;
    println!(
        "{}",
        serde_json::json!({"ms": milliseconds, "cpu_ms": cpu.as_millis() as u64, "rss_kib": rss})
    );
    Ok(())
}

async fn first_put(child: &mut Child, endpoint: &str, start: Instant) -> Result<f64> {
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait()? {
            bail!("the server ended before it answered: {status}");
        }
        let put =
            PutRequest { key: "start/first".into(), value: "1".into(), ..PutRequest::default() };
        if let Ok(channel) = Endpoint::from_shared(endpoint.to_owned())?.connect().await
            && KvClient::new(channel).put(put).await.is_ok()
        {
            return Ok(start.elapsed().as_secs_f64() * 1e3);
        }
        // Nothing tells a client that a port opens, so it asks again.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bail!("the server did not answer a put within {} s", PATIENCE.as_secs())
}

fn stop(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_none()
        && let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
    {
        rustix::process::kill_process(pid, Signal::TERM)?;
    }
    child.wait().map(drop).context("cannot wait for the server")
}
