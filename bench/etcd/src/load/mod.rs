//! Load of one kind on one server, in a closed loop (each client sends its next request when it
//! has its answer) or an open one (requests start at their times, answers or not).

mod answer;
mod request;
mod watch;

use crate::histogram::Histogram;
use crate::process;
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dhow_rpc::etcdserverpb::PutRequest;
use futures::Stream;
use request::Client;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

/// The first of the keys that [`key`] makes.
pub const KEYS_START: &[u8] = b"bench/";
/// Behind the last of them.
pub const KEYS_END: &[u8] = b"bench0";
/// What a server may send on one stream before it is read, in bytes.
const WINDOW: u32 = 1 << 20;
/// Bytes of a value.
const VALUE: usize = 256;

/// What to do to which server.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The server: http://ADDRESS:PORT
    #[arg(long)]
    endpoint: String,
    /// The server's process, for its CPU time and memory
    #[arg(long)]
    pid: Option<u32>,
    /// The kind of load
    #[arg(long, value_enum)]
    test: Test,
    /// How many clients
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// How many connections they share
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Seconds to measure
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Seconds before that
    #[arg(long, default_value_t = 0.5)]
    warm: f64,
    /// Requests per second of all clients: an open loop. Without it the loop is closed
    #[arg(long)]
    rate: Option<f64>,
    /// How many keys there are
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Watchers, of `watch`
    #[arg(long, default_value_t = 100)]
    watchers: usize,
}

/// Kinds of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Test {
    /// Puts of 256 bytes to random keys
    Put,
    /// Linearizable gets of random keys
    Get,
    /// Serializable gets of random keys
    GetSerializable,
    /// Ranges of 500 keys from a random one on
    Range,
    /// A transaction that puts if the key is as the client left it
    Cas,
    /// A lease granted and revoked
    Lease,
    /// A lease kept alive, on a stream for each client
    KeepAlive,
    /// Four reads to each put
    Mixed,
    /// Puts that many watchers see
    Watch,
}

/// Runs it and prints a line of JSON.
///
/// # Errors
/// When the server cannot be reached, or an answer is an error or wrong.
pub async fn run(options: Options) -> Result<()> {
    if options.clients == 0 || options.connections == 0 || options.keys == 0 {
        bail!("--clients, --connections and --keys are at least 1");
    }
    let facts = match options.test {
        Test::Watch => watch::run(&options).await?,
        _ => requests(&options).await?,
    };
    println!("{facts}");
    Ok(())
}

/// When measuring starts and ends.
#[derive(Debug, Clone, Copy)]
struct Window {
    start: Instant,
    end: Instant,
}

impl Window {
    fn of(options: &Options) -> Self {
        let start = Instant::now() + Duration::from_secs_f64(options.warm);
        Self { start, end: start + Duration::from_secs_f64(options.seconds) }
    }

    /// Whether a moment lies in it.
    fn holds(&self, at: Instant) -> bool {
        self.start <= at && at < self.end
    }
}

/// CPU time of the server and of this process while a window is open.
#[derive(Debug, Default, Clone, Copy)]
struct Used {
    server: Duration,
    own: Duration,
}

async fn used(window: Window, server: Option<u32>) -> Result<Used> {
    let of = |pid: Option<u32>| pid.map_or(Ok(Duration::ZERO), process::cpu);
    let own = Some(std::process::id());
    tokio::time::sleep_until(window.start.into()).await;
    let before = (of(server)?, of(own)?);
    tokio::time::sleep_until(window.end.into()).await;
    Ok(Used { server: of(server)? - before.0, own: of(own)? - before.1 })
}

async fn requests(options: &Options) -> Result<serde_json::Value> {
    let channels = connect(&options.endpoint, options.connections).await?;
    let mut clients = Vec::with_capacity(options.clients);
    for nth in 0..options.clients {
        let channel = channels[nth % channels.len()].clone();
        clients.push(Client::new(options.test, channel, nth as u64, options.keys).await?);
    }
    let window = Window::of(options);
    let pace = options.rate.map(|rate| Duration::from_secs_f64(options.clients as f64 / rate));
    let mut tasks = tokio::task::JoinSet::new();
    for (nth, client) in clients.into_iter().enumerate() {
        let share = nth as f64 / options.clients as f64;
        tasks.spawn(drive(client, window, pace.map(|every| (every, every.mul_f64(share)))));
    }
    let cpu = tokio::spawn(used(window, options.pid));
    let mut all = Histogram::default();
    while let Some(done) = tasks.join_next().await {
        all.merge(&done??);
    }
    summary(&all, all.total(), cpu.await??, options)
}

/// One client's loop: closed without a pace; with one, a request starts at each of its times, and
/// what a late one waited counts into its latency.
async fn drive(
    mut client: Client,
    window: Window,
    pace: Option<(Duration, Duration)>,
) -> Result<Histogram> {
    let mut histogram = Histogram::default();
    let mut next = Instant::now() + pace.map_or(Duration::ZERO, |(_, first)| first);
    loop {
        let start = match pace {
            None => Instant::now(),
            Some((every, _)) => {
                tokio::time::sleep_until(next.into()).await;
                let planned = next;
                next += every;
                planned
            }
        };
        if start >= window.end {
            return Ok(histogram);
        }
        client.send().await?;
        let end = Instant::now();
        if window.holds(end) {
            histogram.record(end - start);
        }
    }
}

/// The line of JSON: `done` is what was done in the window, of which CPU time is told per one.
fn summary(
    latency: &Histogram,
    done: u64,
    cpu: Used,
    options: &Options,
) -> Result<serde_json::Value> {
    let per = |cpu: Duration| cpu.as_secs_f64() * 1e6 / done.max(1) as f64;
    let rss = options.pid.map(process::rss).transpose()?;
    Ok(json!({
        "per_second": done as f64 / options.seconds,
        "p50_ms": latency.quantile(0.5),
        "p99_ms": latency.quantile(0.99),
        "p999_ms": latency.quantile(0.999),
        "server_us": per(cpu.server),
        "generator_us": per(cpu.own),
        "rss_kib": rss,
    }))
}

/// Connections to a server, each its own.
///
/// # Errors
/// When it does not answer.
pub async fn connect(endpoint: &str, connections: usize) -> Result<Vec<Channel>> {
    let mut channels = Vec::with_capacity(connections);
    for _ in 0..connections {
        // Windows as those that etcd's Go client comes to by itself under load.
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(4 * WINDOW);
        channels.push(endpoint.connect().await.context("the server does not answer")?);
    }
    Ok(channels)
}

/// What a queue holds, as the body of a client's stream.
pub fn outgoing<T>(mut queue: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    futures::stream::poll_fn(move |context| queue.poll_recv(context))
}

/// The key with this number: 18 bytes.
pub fn key(number: u64) -> Bytes {
    format!("bench/{number:012}").into()
}

/// A value of 256 bytes, each client's another.
pub fn value(client: u64) -> Bytes {
    let mut bytes = vec![b'v'; VALUE];
    bytes[..8].copy_from_slice(&client.to_be_bytes());
    bytes.into()
}

/// A put of this key and value.
pub fn put(key: Bytes, value: &Bytes) -> PutRequest {
    PutRequest { key, value: value.clone(), ..PutRequest::default() }
}

/// Numbers that look random and are the same in each run: xorshift64*.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice of their own for each seed.
    pub fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }
}
