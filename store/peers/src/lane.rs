//! One way to one member: a bounded queue, and the task that keeps a connection for it.

use crate::address::Address;
use crate::hello::{Purpose, Refusal};
use crate::{Shared, frame};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, watch};

/// The first pause after a failed connection, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A lane for snapshots is given up when nothing was sent for so long.
const IDLE: Duration = Duration::from_secs(30);

/// Messages below this size are collected into one write.
const SMALL: usize = 16 << 10;

/// How much waits for a member that does not take it: messages, and their bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub messages: usize,
    pub bytes: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Bytes>,
    bytes: usize,
    dropped: u64,
}

/// What waits for a member. Never blocks; the oldest goes when there is too much.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
    limits: Limits,
}

impl Queue {
    pub fn new(limits: Limits) -> Self {
        Self { waiting: Mutex::default(), wake: Notify::new(), limits }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, message: Bytes) {
        let mut waiting = self.lock();
        waiting.bytes += message.len();
        waiting.messages.push_back(message);
        while waiting.messages.len() > 1
            && (waiting.messages.len() > self.limits.messages || waiting.bytes > self.limits.bytes)
        {
            let gone = waiting.messages.pop_front().map_or(0, |m| m.len());
            waiting.bytes -= gone;
            waiting.dropped += 1;
        }
        drop(waiting);
        self.wake.notify_one();
    }

    fn take(&self) -> VecDeque<Bytes> {
        let mut waiting = self.lock();
        waiting.bytes = 0;
        std::mem::take(&mut waiting.messages)
    }

    /// Forgets what waits; returns how many messages were dropped since the last time.
    fn clear(&self) -> u64 {
        let mut waiting = self.lock();
        let dropped = waiting.dropped + waiting.messages.len() as u64;
        *waiting = Waiting::default();
        dropped
    }

    /// Completes when something waits. Cancel safe.
    async fn filled(&self) {
        while self.lock().messages.is_empty() {
            self.wake.notified().await;
        }
    }
}

/// Where a member is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub addresses: Vec<Address>,
    /// The member is none any more: send what waits, and end.
    pub gone: bool,
}

/// Why a connection ended or was none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{address}: {source}")]
    Connect { address: Address, source: io::Error },
    #[error("{address}: {source}")]
    Trust { address: Address, source: crate::tls::Error },
    #[error("{address} refuses: {why}")]
    Refused { address: Address, why: Refusal },
    #[error("{address} did not answer within {} s", crate::HANDSHAKE.as_secs())]
    Silent { address: Address },
    #[error("it has no address that can be used")]
    NoAddress,
    #[error("the connection was closed")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(io::Error),
}

enum End {
    /// The member is none any more.
    Gone,
    /// The member is elsewhere, or the lane was not used for a while: nothing is wrong.
    Fine,
}

/// What the task of a lane knows.
pub(crate) struct Lane {
    pub shared: Arc<Shared>,
    pub member: u64,
    pub purpose: Purpose,
    pub queue: Arc<Queue>,
    pub target: watch::Receiver<Target>,
}

impl Lane {
    /// Carries messages until the member is gone.
    pub async fn run(mut self) {
        let mut said = String::new();
        let mut pause = PAUSE.0;
        loop {
            tokio::select! {
                () = self.queue.filled() => {}
                gone = self.target.wait_for(|target| target.gone) => {
                    // With nothing to send there is nothing to end.
                    drop(gone);
                    return;
                }
            }
            let mut connected = false;
            match self.carry(&mut connected, &mut said).await {
                Ok(End::Gone) => return,
                Ok(End::Fine) => {
                    pause = PAUSE.0;
                    continue;
                }
                Err(trouble) => self.tell(&trouble, &mut said),
            }
            if connected {
                pause = PAUSE.0;
            }
            let dropped = self.queue.clear();
            tracing::debug!(member = self.id(), dropped, "messages dropped");
            if let Some(local) = self.shared.local() {
                local.unreachable(self.member);
            }
            // Not all members at once, and none too often.
            let jitter = self.shared.config.clock.random() % 1000;
            let wait = pause / 2 + pause.mul_f64(jitter as f64 / 2000.0);
            pause = (pause * 2).min(PAUSE.1);
            tokio::select! {
                () = self.shared.config.clock.sleep(wait) => {}
                // An address that changed is worth a try at once.
                changed = self.target.changed() => if changed.is_err() { return },
            }
        }
    }

    fn id(&self) -> String {
        format!("{:x}", self.member)
    }

    /// One line per change: a peer that stays away is not told of again and again.
    fn tell(&self, trouble: &Trouble, said: &mut String) {
        let text = trouble.to_string();
        if let Trouble::Refused { why: Refusal::Removed, .. } = trouble
            && let Some(local) = self.shared.local()
        {
            local.expelled();
        }
        if *said != text {
            let lane = lane_name(self.purpose);
            tracing::warn!(member = self.id(), lane, "member is not reached: {text}");
            *said = text;
        }
    }

    async fn carry(&mut self, connected: &mut bool, said: &mut String) -> Result<End, Trouble> {
        let target = self.target.borrow_and_update().clone();
        let (stream, address) =
            self.shared.call(&target.addresses, self.member, self.purpose).await?;
        *connected = true;
        said.clear();
        let lane = lane_name(self.purpose);
        tracing::info!(member = self.id(), %address, lane, "connected to member");
        let (mut reading, mut writing) = tokio::io::split(stream);
        let mut buffer = BytesMut::new();
        let mut nothing = [0; 1];
        loop {
            let idle = match self.purpose {
                Purpose::Bulk => self.shared.config.clock.sleep(IDLE),
                Purpose::Messages | Purpose::Ask => Box::pin(std::future::pending()),
            };
            tokio::select! {
                // The other side says nothing after its first words: this is the end.
                end = reading.read(&mut nothing) => {
                    return Err(end.map_or_else(Trouble::Broken, |_| Trouble::Closed));
                }
                changed = self.target.changed() => {
                    let target = self.target.borrow_and_update().clone();
                    if target.gone || changed.is_err() {
                        let last = async {
                            self.flush(&mut writing, &mut buffer).await?;
                            writing.shutdown().await
                        };
                        tokio::select! {
                            _ = last => {}
                            () = self.shared.config.clock.sleep(PAUSE.1) => {}
                        }
                        return Ok(End::Gone);
                    }
                    if !target.addresses.contains(&address) {
                        let _ = writing.shutdown().await;
                        return Ok(End::Fine);
                    }
                }
                () = idle => {
                    let _ = writing.shutdown().await;
                    return Ok(End::Fine);
                }
                () = self.queue.filled() => {
                    self.flush(&mut writing, &mut buffer).await.map_err(Trouble::Broken)?;
                }
            }
        }
    }

    /// Writes what waits.
    async fn flush(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        buffer: &mut BytesMut,
    ) -> io::Result<()> {
        for message in self.queue.take() {
            if message.len() < SMALL {
                frame::put(&message, buffer);
            } else if let Some(header) = frame::header(&message) {
                buffer.extend_from_slice(&header);
                stream.write_all(buffer).await?;
                buffer.clear();
                stream.write_all(&message).await?;
            } else {
                tracing::error!(
                    member = self.id(),
                    bytes = message.len(),
                    "a message is too long for a frame and was dropped"
                );
            }
            if buffer.len() > 4 * SMALL {
                stream.write_all(buffer).await?;
                buffer.clear();
            }
        }
        stream.write_all(buffer).await?;
        buffer.clear();
        stream.flush().await
    }
}

fn lane_name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Messages => "messages",
        Purpose::Bulk => "snapshots",
        Purpose::Ask => "questions",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_when_there_is_too_much() {
        let queue = Queue::new(Limits { messages: 3, bytes: 100 });
        for n in 0..5u8 {
            queue.push(Bytes::from(vec![n; 10]));
        }
        let kept: Vec<u8> = queue.take().iter().map(|m| m[0]).collect();
        assert_eq!(kept, [2, 3, 4]);
        queue.push(Bytes::from(vec![1; 60]));
        queue.push(Bytes::from(vec![2; 60]));
        // The newest is kept whatever its size.
        queue.push(Bytes::from(vec![3; 600]));
        assert_eq!(queue.take().iter().map(Bytes::len).collect::<Vec<_>>(), [600]);
        assert_eq!(queue.clear(), 4);
        assert_eq!(queue.clear(), 0);
    }
}
