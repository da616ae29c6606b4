//! Watch fan-out: writers put, all watchers must see all puts, in order, none twice.

use super::{Options, Window, answer, connect, outgoing, summary, used};
use crate::histogram::Histogram;
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use dhow_rpc::etcdserverpb::kv_client::KvClient;
use dhow_rpc::etcdserverpb::{
    PutRequest, WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion,
};
use prost::Message as _;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tonic::Streaming;
use tonic::transport::Channel;

/// Connections that the watchers share; those of one share a stream too.
const CONNECTIONS: usize = 10;
/// How long the last events may take after the last put.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is watched; a key is this and its writer's number.
const START: &[u8] = b"watched/";
const END: &[u8] = b"watched0";

/// Runs it; rates and CPU time are of events, latency is from the put's start to the event.
///
/// # Errors
/// When a watcher misses an event or sees one twice or out of order.
pub async fn run(options: &Options) -> Result<serde_json::Value> {
    ensure!(options.watchers > 0, "--watchers is at least 1");
    let begin = Instant::now();
    let (goal, reached) = watch::channel(None);
    let channels = connect(&options.endpoint, CONNECTIONS.min(options.watchers)).await?;
    let mut streams = Vec::new();
    for (nth, channel) in channels.iter().enumerate() {
        let share = (options.watchers - nth).div_ceil(channels.len());
        streams.push(Watchers::create(channel.clone(), share).await?);
    }
    let window = Window::of(options);
    let mut watchers = tokio::task::JoinSet::new();
    for stream in streams {
        watchers.spawn(stream.follow(begin, window, reached.clone()));
    }
    let cpu = tokio::spawn(used(window, options.pid));
    let writing = connect(&options.endpoint, options.connections).await?;
    let pace = options.rate.map(|rate| Duration::from_secs_f64(options.clients as f64 / rate));
    let mut writers = tokio::task::JoinSet::new();
    for nth in 0..options.clients {
        let client = KvClient::new(writing[nth % writing.len()].clone());
        writers.spawn(write(client, nth, begin, window, pace));
    }
    let (mut puts, mut last) = (0, 0);
    while let Some(done) = writers.join_next().await {
        let (own, revision) = done??;
        puts += own;
        last = last.max(revision);
    }
    // Now each watcher has to come to the last revision.
    goal.send_replace(Some(last));
    let (mut latency, mut events, mut seen) = (Histogram::default(), 0, 0);
    let rest = tokio::time::timeout(PATIENCE, async {
        while let Some(done) = watchers.join_next().await {
            let (own, counted, all) = done??;
            latency.merge(&own);
            events += counted;
            seen += all;
        }
        anyhow::Ok(())
    });
    rest.await.with_context(|| format!("events are missing {} s after", PATIENCE.as_secs()))??;
    let wanted = puts * options.watchers as u64;
    ensure!(seen == wanted, "{seen} events of {wanted}");
    summary(&latency, events, cpu.await??, options)
}

/// One writer: how many puts it made, and the last one's revision.
async fn write(
    mut client: KvClient<Channel>,
    nth: usize,
    begin: Instant,
    window: Window,
    pace: Option<Duration>,
) -> Result<(u64, i64)> {
    let key = Bytes::from([START, format!("{nth:010}").as_bytes()].concat());
    let (mut puts, mut revision) = (0u64, 0);
    let mut next = Instant::now();
    loop {
        if let Some(every) = pace {
            tokio::time::sleep_until(next.into()).await;
            next += every;
        }
        if Instant::now() >= window.end {
            return Ok((puts, revision));
        }
        let mut value = super::value(nth as u64).to_vec();
        let sent = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        value[..8].copy_from_slice(&sent.to_be_bytes());
        let put = PutRequest { key: key.clone(), value: value.into(), ..PutRequest::default() };
        let done = client.put(put).await?.into_inner();
        revision = done.header.context("the put's answer has no header")?.revision;
        puts += 1;
    }
}

/// The watchers of one stream.
struct Watchers {
    answers: Streaming<Bytes>,
    /// Each one's last revision.
    last: Vec<i64>,
    _requests: mpsc::Sender<WatchRequest>,
}

impl Watchers {
    /// Watchers that the server has confirmed.
    async fn create(channel: Channel, count: usize) -> Result<Self> {
        let (requests, queue) = mpsc::channel(count.max(1));
        let create = WatchCreateRequest {
            key: Bytes::from_static(START),
            range_end: Bytes::from_static(END),
            ..WatchCreateRequest::default()
        };
        for _ in 0..count {
            let request_union = Some(RequestUnion::CreateRequest(create.clone()));
            requests.send(WatchRequest { request_union }).await?;
        }
        let mut answers = answer::watch(channel, outgoing(queue)).await?;
        for _ in 0..count {
            let answer = answers.message().await?.context("the server ended the stream")?;
            let answer = WatchResponse::decode(answer)?;
            ensure!(answer.created && !answer.canceled, "no watcher: {}", answer.cancel_reason);
        }
        Ok(Self { answers, last: vec![0; count], _requests: requests })
    }

    /// Reads until all watchers have come to the goal: the latencies and number of events in the
    /// window, and the number of all events.
    async fn follow(
        mut self,
        begin: Instant,
        window: Window,
        mut goal: watch::Receiver<Option<i64>>,
    ) -> Result<(Histogram, u64, u64)> {
        let mut latency = Histogram::default();
        let (mut counted, mut all) = (0, 0);
        loop {
            let reached =
                goal.borrow().is_some_and(|goal| self.last.iter().all(|last| *last >= goal));
            if reached {
                return Ok((latency, counted, all));
            }
            let answer = tokio::select! {
                answer = self.answers.message() => answer?,
                // Told once, then only answers count.
                Ok(()) = goal.changed() => continue,
            };
            let answer = answer.context("the server ended the stream")?;
            let now = Instant::now();
            let last = &mut self.last;
            let watch = answer::events(&answer, |watch, revision, value| {
                let last = last.get_mut(watch).with_context(|| format!("{watch} is nobody"))?;
                ensure!(revision > *last, "{revision} after {last}");
                *last = revision;
                let sent = value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
                let sent = begin + Duration::from_nanos(sent.context("a foreign value")?);
                if window.holds(now) {
                    latency.record(now.saturating_duration_since(sent));
                    counted += 1;
                }
                all += 1;
                Ok(())
            });
            watch?.context("the server cancelled a watcher")?;
        }
    }
}
