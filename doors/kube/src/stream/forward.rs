//! `pods/portforward`: TCP connections into a pod, over SPDY or SPDY inside a WebSocket.
//!
//! For each connection the client opens two streams with the same `requestID`: one for an error
//! text, one for the bytes.

use super::spdy::{Connection, Reader, Stream, Writer};
use super::target::Target;
use super::websocket::Bytestream;
use super::{STREAM_PROTOCOL, Upgrade, agree, spdy_reply, wanted_upgrade, websocket};
use crate::call::{Call, Verb};
use crate::respond::Reply;
use bytes::BytesMut;
use dhow_intents::{PodRef, Streams};
use dhow_objects::Status;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

/// The sub-protocol inside SPDY.
const PROTOCOL: &str = "portforward.k8s.io";
/// The WebSocket sub-protocol that tunnels SPDY.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// How much is read from the pod at once, in bytes.
const PIECE: usize = 32 * 1024;
/// Connections that may wait for their second stream.
const HALF_OPEN: usize = 256;

/// Serves port-forward.
pub async fn serve(mut call: Call) -> Reply {
    if !matches!(call.verb, Verb::Get | Verb::Create) {
        return Err(Status::method_not_allowed());
    }
    let upgrade = wanted_upgrade(&call.head.headers)?;
    let target = Target::find(&call).await?;
    let streams = target.streams(&call)?;
    let upgraded =
        call.upgrade.take().ok_or_else(|| Status::bad_request("Upgrade request required"))?;
    let shutdown = call.shutdown.clone();
    let pod = target.pod;
    match upgrade {
        Upgrade::WebSocket => {
            let (response, _) = websocket::accept(&call.head.headers, &[TUNNEL])?;
            tokio::spawn(async move {
                let Ok(io) = upgraded.await else { return };
                let socket = websocket::open(TokioIo::new(io)).await;
                tokio::select! {
                    () = forward(Bytestream::new(socket), pod, streams) => {}
                    () = shutdown.cancelled() => {}
                }
            });
            Ok(response)
        }
        Upgrade::Spdy => {
            let protocol = agree(&call.head.headers, &STREAM_PROTOCOL, &[PROTOCOL])?;
            tokio::spawn(async move {
                let Ok(io) = upgraded.await else { return };
                tokio::select! {
                    () = forward(TokioIo::new(io), pod, streams) => {}
                    () = shutdown.cancelled() => {}
                }
            });
            Ok(spdy_reply(protocol))
        }
    }
}

/// Serves all connections of one client, until it goes.
async fn forward<T: AsyncRead + AsyncWrite + Send + 'static>(
    io: T,
    pod: PodRef,
    streams: Arc<dyn Streams>,
) {
    let mut connection = Connection::serve(io);
    let mut waiting: HashMap<String, Stream> = HashMap::new();
    // Dropping the set ends every connection.
    let mut running = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            Some(_) = running.join_next() => continue,
        };
        let Some(stream) = stream else { return };
        let kind = stream.header("streamtype").to_owned();
        // Old clients send no request number; then the port pairs the streams.
        let id = match stream.header("requestid") {
            "" => format!("port {}", stream.header("port")),
            id => id.to_owned(),
        };
        // Clients give up half of a pair as well.
        waiting.retain(|_, half| !half.writer.is_gone());
        if !matches!(kind.as_str(), "error" | "data") || waiting.len() >= HALF_OPEN {
            stream.writer.reset().await;
            continue;
        }
        match waiting.remove(&id) {
            Some(other) if other.header("streamtype") != kind => {
                let (error, data) = if kind == "error" { (stream, other) } else { (other, stream) };
                running.spawn(one(error, data, pod.clone(), streams.clone()));
            }
            Some(twice) => {
                twice.writer.reset().await;
                stream.writer.reset().await;
            }
            None => {
                waiting.insert(id, stream);
            }
        }
    }
}

/// Serves one connection.
async fn one(error: Stream, data: Stream, pod: PodRef, streams: Arc<dyn Streams>) {
    let text = data.header("port").to_owned();
    let (name, uid) = (pod.name.clone(), pod.uid.clone());
    let failed = match text.parse::<u16>() {
        Ok(0) | Err(_) => Some(format!("{text:?} is not a port")),
        Ok(port) => match streams.forward(pod, port).await {
            Ok(inside) => {
                let Stream { reader, writer, .. } = data;
                join(inside, reader, &writer).await;
                writer.close().await;
                None
            }
            Err(why) => {
                data.writer.close().await;
                Some(why.to_string())
            }
        },
    };
    if let Some(why) = failed {
        let told = format!("error forwarding port {text} to pod {name}, uid {uid}: {why}");
        error.writer.write(told.into()).await;
    }
    error.writer.close().await;
}

/// Copies both ways until the pod has sent everything or the client is gone.
async fn join(inside: Box<dyn dhow_intents::streams::Duplex>, mut reader: Reader, writer: &Writer) {
    let (mut from, mut to) = tokio::io::split(inside);
    let up = async {
        while let Some(bytes) = reader.read().await {
            if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
        // The pod may still answer.
        std::future::pending::<()>().await;
    };
    let down = async {
        let mut buffer = BytesMut::with_capacity(PIECE);
        loop {
            buffer.reserve(PIECE);
            match from.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if !writer.write(buffer.split().freeze()).await {
                        return;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
        () = writer.gone() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::spdy::frame::{Decoder, Encoder, Frame};
    use super::*;
    use bytes::Bytes;
    use dhow_clock::BoxFuture;
    use dhow_intents::{AttachRequest, ExecRequest, LogRequest, Session, StreamError};
    use tokio::sync::mpsc;

    /// A pod whose only port says hello.
    struct Greeter;

    type Answer<'a, T> = BoxFuture<'a, Result<T, StreamError>>;

    fn nothing<T: Send + 'static>() -> Answer<'static, T> {
        Box::pin(async { Err(StreamError::BadRequest("only ports".into())) })
    }

    impl Streams for Greeter {
        fn logs(&self, _: PodRef, _: LogRequest) -> Answer<'_, mpsc::Receiver<Bytes>> {
            nothing()
        }
        fn exec(&self, _: PodRef, _: ExecRequest) -> Answer<'_, Session> {
            nothing()
        }
        fn attach(&self, _: PodRef, _: AttachRequest) -> Answer<'_, Session> {
            nothing()
        }
        fn forward(&self, _: PodRef, _: u16) -> Answer<'_, Box<dyn dhow_intents::streams::Duplex>> {
            Box::pin(async {
                let (ours, mut theirs) = tokio::io::duplex(64);
                theirs.write_all(b"hello").await.unwrap();
                let inside: Box<dyn dhow_intents::streams::Duplex> = Box::new(ours);
                Ok(inside)
            })
        }
    }

    fn syn(stream: u32, kind: &str) -> Frame {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let id = stream.div_ceil(4).to_string();
        let headers =
            vec![header("streamtype", kind), header("port", "80"), header("requestid", &id)];
        Frame::SynStream { stream, headers, fin: false, unidirectional: false }
    }

    #[tokio::test]
    async fn halves_that_clients_gave_up_make_room() {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let pod = PodRef { namespace: "d".into(), name: "p".into(), uid: "u".into() };
        let serving = tokio::spawn(forward(ours, pod, Arc::new(Greeter)));
        let (mut reading, mut writing) = tokio::io::split(theirs);
        let mut encoder = Encoder::default();
        let last = 4 * HALF_OPEN as u32 + 1;
        for stream in (1..last).step_by(4) {
            for frame in [syn(stream, "error"), Frame::Reset { stream, status: 5 }] {
                writing.write_all(&encoder.encode(&frame)).await.unwrap();
            }
        }
        for frame in [syn(last, "error"), syn(last + 2, "data")] {
            writing.write_all(&encoder.encode(&frame)).await.unwrap();
        }
        let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
        let greeting = loop {
            match decoder.next(&mut buffer).unwrap() {
                Some(Frame::Data { stream, bytes, .. }) if stream == last + 2 => break bytes,
                Some(Frame::Reset { stream, .. }) => panic!("stream {stream} was refused"),
                Some(_) => {}
                None => assert_ne!(reading.read_buf(&mut buffer).await.unwrap(), 0),
            }
        };
        assert_eq!(greeting, "hello");
        serving.abort();
    }
}
