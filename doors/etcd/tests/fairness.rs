//! Large answers and small ones on one connection.

mod common;

use bytes::{BufMut as _, Bytes, BytesMut};
use common::Served;
use dhow_door_etcd::Config;
use dhow_rpc::etcdserverpb as pb;
use h2::RecvStream;
use h2::client::{Builder, SendRequest};
use prost::Message as _;
use std::task::Poll;
use tokio::net::TcpStream;

/// A client's windows, in bytes: as large as Go's become behind some large answers.
const WINDOW: usize = 4 << 20;
/// How many large answers are asked for at once.
const LARGE: usize = 4;
/// What each of them holds, in MiB.
const SIZE: usize = 10;

/// Sends a request for all keys below one.
async fn range(client: &mut SendRequest<Bytes>, key: &str) -> RecvStream {
    let request = pb::RangeRequest {
        key: key.to_owned().into(),
        range_end: format!("{key}~").into(),
        ..Default::default()
    };
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(request.encoded_len()).unwrap());
    request.encode(&mut frame).unwrap();
    let request = http::Request::post("http://localhost/etcdserverpb.KV/Range")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    *client = client.clone().ready().await.unwrap();
    let (answer, mut sent) = client.send_request(request, false).unwrap();
    sent.send_data(frame.freeze(), true).unwrap();
    answer.await.unwrap().into_body()
}

/// Takes what has come of large answers, and opens the windows again once they are used up, in
/// large steps.
struct Reader {
    large: Vec<(RecvStream, usize)>,
    taken: usize,
}

impl Reader {
    /// Waits until so many bytes are held.
    async fn fill(&mut self, bytes: usize) {
        std::future::poll_fn(|context| {
            for (stream, held) in &mut self.large {
                while let Poll::Ready(Some(data)) = stream.poll_data(context) {
                    let len = data.unwrap().len();
                    *held += len;
                    self.taken += len;
                }
            }
            let held: usize = self.large.iter().map(|(_, held)| held).sum();
            if held < bytes { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    fn release(&mut self) {
        for (stream, held) in &mut self.large {
            stream.flow_control().release_capacity(std::mem::take(held)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_small_answer_does_not_wait_until_large_ones_before_it_are_taken_in() {
    let served = Served::new(Config::default()).await;
    for part in 0..SIZE {
        served.put(&format!("large/{part}"), &"x".repeat(1 << 20)).await;
    }
    served.put("small", "1").await;

    let socket = TcpStream::connect(served.address).await.unwrap();
    let (mut client, connection) = Builder::new()
        .initial_window_size(u32::try_from(WINDOW).unwrap())
        .initial_connection_window_size(u32::try_from(WINDOW).unwrap())
        .handshake(socket)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut reader = Reader { large: Vec::new(), taken: 0 };
    for _ in 0..LARGE {
        reader.large.push((range(&mut client, "large/").await, 0));
    }
    reader.fill(WINDOW).await;

    // Nothing more can come until the window opens, which it does as a whole.
    let mut small = range(&mut client, "small").await;
    let mut answer = BytesMut::new();
    reader.release();
    let before = reader.taken;
    loop {
        tokio::select! {
            data = small.data() => match data {
                Some(data) => answer.extend_from_slice(&data.unwrap()),
                None => break,
            },
            () = reader.fill(WINDOW / 2) => reader.release(),
        }
    }
    let answer = pb::RangeResponse::decode(&answer[5..]).unwrap();
    assert_eq!(answer.kvs[0].value, "1");
    let between = reader.taken - before;
    assert!(between <= WINDOW, "{between} bytes of large answers came before a small one");
}
