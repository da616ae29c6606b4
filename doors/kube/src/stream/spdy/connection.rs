//! A SPDY connection, as the server sees it: streams that the client opens.
//!
//! One task reads, one writes. A stream that nobody reads holds the connection up when its queue
//! is full: Kubernetes' peers do not use SPDY's windows, so that there is no other way to slow one.

use super::frame::{Decoder, Encoder, Frame, Headers, MAX_DATA};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Pieces that may wait on one stream for its reader.
const QUEUE: usize = 64;
/// Frames that may wait for the socket.
const OUTGOING: usize = 64;
/// While a stream is not read, the client is asked this often whether it is there.
const PROBE: Duration = Duration::from_secs(10);
/// Streams that may be open at once; more are refused.
const MAX_STREAMS: usize = 1024;

/// Writes the bytes of one direction of a stream.
#[derive(Debug)]
pub struct Writer {
    stream: u32,
    outgoing: mpsc::Sender<Frame>,
    gone: CancellationToken,
    /// Tells the reading side that this side is done.
    done: Arc<AtomicBool>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
    }
}

impl Writer {
    /// Sends bytes. False when the stream or the connection is gone.
    pub async fn write(&self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(MAX_DATA));
            if !self.send(Frame::Data { stream: self.stream, bytes: part, fin: false }).await {
                return false;
            }
        }
        true
    }

    /// Tells the client that nothing more comes.
    pub async fn close(&self) -> bool {
        self.send(Frame::Data { stream: self.stream, bytes: Bytes::new(), fin: true }).await
    }

    /// Breaks the stream off.
    pub async fn reset(&self) {
        self.send(Frame::Reset { stream: self.stream, status: 5 }).await;
    }

    async fn send(&self, frame: Frame) -> bool {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => false,
            sent = self.outgoing.send(frame) => sent.is_ok(),
        }
    }

    /// Whether the client broke the stream off or went.
    pub fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Completes when the client broke the stream off or went.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

/// Reads the bytes of one direction of a stream.
#[derive(Debug)]
pub struct Reader(mpsc::Receiver<Bytes>);

impl Reader {
    /// The next bytes; `None` when the client has sent all. Cancel safe.
    pub async fn read(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }

    /// The queue itself.
    pub fn into_receiver(self) -> mpsc::Receiver<Bytes> {
        self.0
    }
}

/// A stream that the client opened.
#[derive(Debug)]
pub struct Stream {
    /// What the client said of it.
    pub headers: Headers,
    /// What the client sends.
    pub reader: Reader,
    /// What the client receives.
    pub writer: Writer,
}

impl Stream {
    /// The value of a header, whatever its case; "" when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map_or("", |(_, value)| value.as_str())
    }
}

/// A connection. Dropping it ends it and all its streams.
#[derive(Debug)]
pub struct Connection {
    incoming: mpsc::Receiver<Stream>,
    _end: DropGuard,
    gone: CancellationToken,
    writer: Option<tokio::task::JoinHandle<()>>,
}

impl Connection {
    /// Serves SPDY over a byte stream, in two tasks that end with the connection.
    pub fn serve<T: AsyncRead + AsyncWrite + Send + 'static>(io: T) -> Self {
        let (read, write) = tokio::io::split(io);
        let gone = CancellationToken::new();
        let (opened, incoming) = mpsc::channel(QUEUE);
        let (outgoing, queued) = mpsc::channel(OUTGOING);
        let writer = tokio::spawn(write_frames(write, queued, gone.clone()));
        let reader = Input {
            outgoing,
            opened,
            streams: HashMap::new(),
            gone: gone.clone(),
            decoder: Decoder::default(),
        };
        let end = gone.clone();
        tokio::spawn(async move {
            // A guard, because the task can also be dropped half way.
            let _end = end.clone().drop_guard();
            tokio::select! {
                () = end.cancelled() => {}
                () = reader.run(read) => {}
            }
        });
        Self { incoming, _end: gone.clone().drop_guard(), gone, writer: Some(writer) }
    }

    /// The next stream that the client opens; `None` when the connection has ended. Cancel safe.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Completes when the client has gone.
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Ends the connection after everything that was written has been sent. All writers must be
    /// dropped or done by then.
    pub async fn finish(mut self) {
        let Some(writer) = self.writer.take() else { return };
        // The reader stops and drops its end of the queue; the writer then drains what is left.
        self.gone.cancel();
        let _ = writer.await;
    }
}

async fn write_frames<W: AsyncWrite>(
    write: W,
    mut queued: mpsc::Receiver<Frame>,
    gone: CancellationToken,
) {
    let mut encoder = Encoder::default();
    tokio::pin!(write);
    loop {
        let frame = tokio::select! {
            biased;
            frame = queued.recv() => frame,
            () = gone.cancelled() => None,
        };
        let Some(frame) = frame else { break };
        let mut bytes = encoder.encode(&frame);
        // Small frames that wait go out together.
        if let Ok(next) = queued.try_recv() {
            let mut joined = BytesMut::from(bytes.as_ref());
            joined.extend_from_slice(&encoder.encode(&next));
            while joined.len() < 2 * MAX_DATA
                && let Ok(next) = queued.try_recv()
            {
                joined.extend_from_slice(&encoder.encode(&next));
            }
            bytes = joined.freeze();
        }
        if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
            break;
        }
    }
    gone.cancel();
    let _ = write.shutdown().await;
}

/// A stream as the reading side knows it.
struct Open {
    /// Where its bytes go; `None` when the client has sent all.
    queue: Option<mpsc::Sender<Bytes>>,
    gone: CancellationToken,
    /// Our side is done.
    done: Arc<AtomicBool>,
}

impl Open {
    /// Whether nobody needs the stream any more.
    fn over(&self) -> bool {
        let heard = self.queue.as_ref().is_none_or(mpsc::Sender::is_closed);
        heard && self.done.load(Ordering::Acquire)
    }
}

/// The reading side.
struct Input {
    outgoing: mpsc::Sender<Frame>,
    opened: mpsc::Sender<Stream>,
    streams: HashMap<u32, Open>,
    gone: CancellationToken,
    decoder: Decoder,
}

impl Input {
    async fn run<R: AsyncRead>(mut self, read: R) {
        tokio::pin!(read);
        let mut buffer = BytesMut::with_capacity(MAX_DATA);
        loop {
            match self.decoder.next(&mut buffer) {
                Ok(Some(frame)) => {
                    if !self.take(frame).await {
                        return;
                    }
                }
                Ok(None) => match read.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
                Err(error) => {
                    tracing::debug!(%error, "a SPDY client sent what cannot be read");
                    let _ = self.outgoing.send(Frame::GoAway).await;
                    return;
                }
            }
        }
    }

    /// Handles one frame. False when the connection is over.
    async fn take(&mut self, frame: Frame) -> bool {
        match frame {
            Frame::SynStream { stream, headers, fin, .. } => {
                self.streams.retain(|_, open| !open.over());
                if self.streams.len() >= MAX_STREAMS || self.streams.contains_key(&stream) {
                    return self.outgoing.send(Frame::Reset { stream, status: 3 }).await.is_ok();
                }
                let gone = self.gone.child_token();
                let (sender, receiver) = mpsc::channel(QUEUE);
                let done = Arc::new(AtomicBool::new(false));
                let queue = (!fin).then_some(sender);
                let open = Open { queue, gone: gone.clone(), done: done.clone() };
                self.streams.insert(stream, open);
                let reply = Frame::SynReply { stream, headers: Vec::new(), fin: false };
                if self.outgoing.send(reply).await.is_err() {
                    return false;
                }
                let writer = Writer { stream, outgoing: self.outgoing.clone(), gone, done };
                self.opened.send(Stream { headers, reader: Reader(receiver), writer }).await.is_ok()
            }
            Frame::Data { stream, bytes, fin } => {
                if let Some(Open { queue, gone, .. }) = self.streams.get_mut(&stream) {
                    if !bytes.is_empty()
                        && let Some(queue) = queue
                    {
                        // Whoever stopped reading wants no more; the bytes are dropped.
                        let sending = queue.send(bytes);
                        tokio::pin!(sending);
                        loop {
                            tokio::select! {
                                () = gone.cancelled() => break,
                                _ = &mut sending => break,
                                // Nothing is read from the client now; only a failed write
                                // would show that it has gone.
                                () = tokio::time::sleep(PROBE) => {
                                    let _ = self.outgoing.try_send(Frame::Ping(2));
                                }
                            }
                        }
                    }
                    if fin {
                        *queue = None;
                    }
                }
                true
            }
            Frame::Headers { stream, fin: true, .. }
            | Frame::SynReply { stream, fin: true, .. } => {
                if let Some(open) = self.streams.get_mut(&stream) {
                    open.queue = None;
                }
                true
            }
            Frame::Reset { stream, .. } => {
                if let Some(open) = self.streams.remove(&stream) {
                    open.gone.cancel();
                }
                true
            }
            // Even numbers answer pings of ours.
            Frame::Ping(id) if id % 2 == 1 => self.outgoing.send(Frame::Ping(id)).await.is_ok(),
            Frame::GoAway
            | Frame::Ping(_)
            | Frame::Headers { .. }
            | Frame::SynReply { .. }
            | Frame::WindowUpdate { .. }
            | Frame::Other(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn send(io: &mut (impl AsyncWrite + Unpin), encoder: &mut Encoder, frame: Frame) {
        io.write_all(&encoder.encode(&frame)).await.unwrap();
    }

    async fn receive(
        io: &mut (impl AsyncRead + Unpin),
        decoder: &mut Decoder,
        buffer: &mut BytesMut,
    ) -> Frame {
        loop {
            if let Some(frame) = decoder.next(buffer).unwrap() {
                return frame;
            }
            assert_ne!(io.read_buf(buffer).await.unwrap(), 0, "the connection ended");
        }
    }

    fn syn(stream: u32) -> Frame {
        let headers = vec![("streamtype".to_owned(), "data".to_owned())];
        Frame::SynStream { stream, headers, fin: false, unidirectional: false }
    }

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_and_end() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut connection = Connection::serve(ours);
        let (mut encoder, mut decoder, mut buffer) =
            (Encoder::default(), Decoder::default(), BytesMut::new());
        send(&mut theirs, &mut encoder, syn(1)).await;
        let bytes = Bytes::from_static(b"ping");
        send(&mut theirs, &mut encoder, Frame::Data { stream: 1, bytes, fin: true }).await;
        let mut stream = connection.accept().await.unwrap();
        assert_eq!(stream.header("StreamType"), "data");
        assert_eq!(stream.reader.read().await.unwrap(), "ping");
        assert_eq!(stream.reader.read().await, None);
        assert!(stream.writer.write(Bytes::from_static(b"pong")).await);
        assert!(stream.writer.close().await);
        let reply = receive(&mut theirs, &mut decoder, &mut buffer).await;
        assert!(matches!(reply, Frame::SynReply { stream: 1, .. }));
        let data = receive(&mut theirs, &mut decoder, &mut buffer).await;
        let bytes = Bytes::from_static(b"pong");
        assert_eq!(data, Frame::Data { stream: 1, bytes, fin: false });
        let last = receive(&mut theirs, &mut decoder, &mut buffer).await;
        assert_eq!(last, Frame::Data { stream: 1, bytes: Bytes::new(), fin: true });
    }

    #[tokio::test]
    async fn pings_come_back_and_resets_end_streams() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut connection = Connection::serve(ours);
        let (mut encoder, mut decoder, mut buffer) =
            (Encoder::default(), Decoder::default(), BytesMut::new());
        send(&mut theirs, &mut encoder, Frame::Ping(1)).await;
        let answered = receive(&mut theirs, &mut decoder, &mut buffer).await;
        assert_eq!(answered, Frame::Ping(1));
        send(&mut theirs, &mut encoder, syn(1)).await;
        let mut stream = connection.accept().await.unwrap();
        send(&mut theirs, &mut encoder, Frame::Reset { stream: 1, status: 5 }).await;
        stream.writer.gone().await;
        assert_eq!(stream.reader.read().await, None);
        assert!(!stream.writer.write(Bytes::from_static(b"late")).await);
    }

    #[tokio::test]
    async fn streams_that_are_over_make_room() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut connection = Connection::serve(ours);
        let (mut reading, mut writing) = tokio::io::split(theirs);
        let drain = tokio::spawn(async move {
            let mut all = Vec::new();
            let _ = reading.read_to_end(&mut all).await;
        });
        let mut encoder = Encoder::default();
        for number in 0..2 * MAX_STREAMS as u32 {
            let stream = 2 * number + 1;
            send(&mut writing, &mut encoder, syn(stream)).await;
            let last = Frame::Data { stream, bytes: Bytes::new(), fin: true };
            send(&mut writing, &mut encoder, last).await;
            let stream = connection.accept().await.unwrap();
            assert!(stream.writer.close().await);
        }
        drop(connection);
        drain.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_everything() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut connection = Connection::serve(ours);
        let mut encoder = Encoder::default();
        send(&mut theirs, &mut encoder, syn(1)).await;
        let mut stream = connection.accept().await.unwrap();
        drop(theirs);
        assert_eq!(stream.reader.read().await, None);
        assert!(connection.accept().await.is_none());
    }

    #[tokio::test]
    async fn what_was_written_arrives_before_the_end() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut connection = Connection::serve(ours);
        let mut encoder = Encoder::default();
        send(&mut theirs, &mut encoder, syn(1)).await;
        let stream = connection.accept().await.unwrap();
        let sent = tokio::spawn(async move {
            stream.writer.write(Bytes::from(vec![7; 10_000])).await;
            stream.writer.close().await;
            drop(stream);
            connection.finish().await;
        });
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        sent.await.unwrap();
        let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::from(&all[..]));
        let mut received = 0;
        while let Some(frame) = decoder.next(&mut buffer).unwrap() {
            if let Frame::Data { bytes, .. } = frame {
                received += bytes.len();
            }
        }
        assert_eq!(received, 10_000);
    }
}
