//! The etcd door again: HTTP/2 byte by byte, from a client that sends URLs as authorities.

use crate::door::{PATIENCE, runtime, serve};
use crate::{Random, Target};
use anyhow::Result;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a client begins with: the preface and settings.
const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// `http://127.0.0.1:2379` for an authority, Huffman-coded.
const URL: &[u8] = b"\x41\x8f\x9d\x29\xae\xe3\x0c\x04\x4e\xae\x05\xc0\xb8\x6e\x09\x97\x5f";
/// The same as it stands in the table of headers after the first call.
const URL_AGAIN: &[u8] = b"\xc1";

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A call of `Status`; `shape` says how its headers are framed.
fn call(stream: u8, authority: &[u8], shape: usize) -> Vec<u8> {
    let block = [
        b"\x83\x86\x44\x20/etcdserverpb.Maintenance/Status",
        authority,
        b"\x5f\x10application/grpc\x40\x02te\x08trailers",
    ]
    .concat();
    let headers = match shape {
        0 => frame(1, 4, stream, &block),
        1 => frame(1, 4 | 8 | 0x20, stream, &[b"\x03\0\0\0\0\x0f", &block[..], b"\0\0\0"].concat()),
        _ => {
            let (first, rest) = block.split_at(shape.min(block.len()));
            [frame(1, 0, stream, first), frame(9, 4, stream, rest)].concat()
        }
    };
    [headers, frame(0, 1, stream, &[0; 5])].concat()
}

/// HTTP/2. The first byte says how the others are cut into packets.
struct Frames {
    address: SocketAddr,
    good: Vec<Vec<u8>>,
    runtime: tokio::runtime::Runtime,
}

/// So many ways there are to frame a call.
const SHAPES: u8 = 60;

/// See [`Frames`].
pub(crate) fn frames() -> Result<Box<dyn Target>> {
    let runtime = runtime()?;
    let address = runtime.block_on(serve())?;
    let calls = |shape: u8| {
        let (one, two) = (usize::from(shape), usize::from(SHAPES - 1 - shape));
        [&[shape], &call(1, URL, one)[..], &call(3, URL_AGAIN, two)].concat()
    };
    Ok(Box::new(Frames { address, good: (0..SHAPES).map(calls).collect(), runtime }))
}

impl Frames {
    /// Sends bytes in pieces; what comes back until the door hangs up.
    async fn send(&self, bytes: &[u8], random: &mut Random) -> std::io::Result<Vec<u8>> {
        let mut socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((1 + random.below(80)).min(rest.len()));
            // The door may hang up before it has seen everything.
            if socket.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
            rest = after;
        }
        let mut told = Vec::new();
        let _ = socket.shutdown().await;
        let _ = socket.read_to_end(&mut told).await;
        Ok(told)
    }
}

/// How many streams ended with headers, as calls of gRPC do.
fn answers(mut bytes: &[u8]) -> usize {
    let mut ended = 0;
    while let [_, a, b, kind, flags, _, _, _, _, rest @ ..] = bytes {
        ended += usize::from(*kind == 1 && flags & 1 == 1);
        bytes = rest.get(usize::from(u16::from_be_bytes([*a, *b]))..).unwrap_or_default();
    }
    ended
}

impl Target for Frames {
    fn good(&self) -> &[Vec<u8>] {
        &self.good
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some((cuts, calls)) = bytes.split_first() else { return Ok(()) };
        // Good bytes are understood however they are cut; others end, at the latest with the client.
        let good = self.good.iter().any(|good| good[1..] == *calls);
        let mut cuts = Random::new(u64::from(*cuts));
        let sent = [BEGIN, calls].concat();
        self.runtime.block_on(async {
            match tokio::time::timeout(PATIENCE, self.send(&sent, &mut cuts)).await {
                Ok(Ok(told)) if good && answers(&told) != 2 => {
                    Err(format!("{} of 2 calls are answered: {told:02x?}", answers(&told)))
                }
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(format!("the door is gone: {error}")),
                Err(_) => Err("the connection does not end".to_owned()),
            }
        })
    }
}
