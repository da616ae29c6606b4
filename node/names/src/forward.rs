//! Asks other resolvers: UDP first, TCP when the caller came by TCP, with time-outs and a limit.

use crate::answer::question_end;
use hickory_proto::op::{Message, Query};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Rounds over all resolvers.
const ROUNDS: usize = 2;
/// Questions under way at once; above, the answer is a failure at once.
const LIMIT: usize = 512;
/// Largest UDP answer that is taken.
const LARGEST: usize = 4096;

/// The resolvers for all names that are not ours.
#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    under_way: Semaphore,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self { upstreams, under_way: Semaphore::new(LIMIT) }
    }

    /// Asks with a packet as a client sent it; gives the answer under the client's id.
    pub(crate) async fn ask(&self, packet: &[u8], udp: bool) -> Option<Vec<u8>> {
        let end = question_end(packet)?;
        let Ok(_permit) = self.under_way.try_acquire() else {
            tracing::debug!("too many questions under way");
            return None;
        };
        for _ in 0..ROUNDS {
            for upstream in &self.upstreams {
                let answer = timeout(PATIENCE, async {
                    match ask_udp(*upstream, packet, end).await {
                        // Cut short: a client that came by TCP takes the whole.
                        Ok(answer) if answer[2] & 2 != 0 && !udp => {
                            ask_tcp(*upstream, packet, end).await
                        }
                        other => other,
                    }
                });
                match answer.await {
                    Ok(Ok(mut answer)) => {
                        answer[..2].copy_from_slice(&packet[..2]);
                        return Some(answer);
                    }
                    Ok(Err(error)) => tracing::debug!(%upstream, %error, "resolver failed"),
                    Err(_) => tracing::debug!(%upstream, "resolver did not answer"),
                }
            }
        }
        None
    }

    /// Asks for an alias's target.
    pub(crate) async fn look_up(&self, question: &Query) -> Option<Message> {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(question.clone());
        let packet = message.to_vec().ok()?;
        Message::from_vec(&self.ask(&packet, false).await?).ok()
    }
}

fn random_id() -> [u8; 2] {
    // Keyed from the operating system's entropy, a new key each time.
    let value = std::collections::hash_map::RandomState::new().build_hasher().finish();
    [(value >> 8) as u8, value as u8]
}

/// Whether an answer is to this question.
fn fits(answer: &[u8], question: &[u8]) -> bool {
    answer.len() >= 12
        && answer[..2] == question[..2]
        && answer[2] & 0x80 != 0
        && (answer[4..6] == [0, 0]
            || answer
                .get(12..question.len())
                .is_some_and(|a| a.eq_ignore_ascii_case(&question[12..])))
}

async fn ask_udp(upstream: SocketAddr, packet: &[u8], end: usize) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A socket for each question: its random port and the random id make forgery hard.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    let mut question = packet.to_vec();
    question[..2].copy_from_slice(&random_id());
    socket.send(&question).await?;
    let mut answer = vec![0; LARGEST];
    loop {
        let length = socket.recv(&mut answer).await?;
        if fits(&answer[..length], &question[..end]) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, packet: &[u8], end: usize) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let mut question = Vec::with_capacity(packet.len() + 2);
    question.extend_from_slice(&(packet.len() as u16).to_be_bytes());
    question.extend_from_slice(packet);
    question[2..4].copy_from_slice(&random_id());
    stream.write_all(&question).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if fits(&answer, &question[2..end + 2]) {
        Ok(answer)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"))
    }
}
