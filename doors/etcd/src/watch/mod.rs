//! The service Watch: many watches over one stream.
//!
//! The stream is driven by whoever reads it: the connection asks for the next piece only when the
//! client has room for it, and only then requests are read and watchers polled. A slow client
//! therefore holds no more than one piece here; what it misses stays in the store's bounded queues
//! and, beyond these, is read from the history when the client comes back to it.

mod bell;
mod encoded;

pub(crate) use encoded::Encoded;

use crate::access::Call;
use crate::body::Requests;
use crate::dispatch::decode;
use crate::error::status;
use crate::method::Method;
use crate::metrics::add;
use crate::{Inner, wire};
use bell::{Bell, Board};
use bytes::{Bytes, BytesMut};
use dhow_kv::admin::Need;
use dhow_kv::{Error, Event, Span, WatchEvent, WatchRequest, Watcher};
use dhow_rpc::etcdserverpb as pb;
use futures::Stream;
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;
use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tonic::{Code, Status};

/// The number of no watch.
const NONE: i64 = -1;
/// A piece is handed on when it is this long, in bytes.
const PIECE: usize = 32 << 10;
/// Events of one watch are put into one answer up to this many bytes.
const BATCH: usize = 64 << 10;
/// Events from this size on are handed on as they are instead of copied.
const SHARE: usize = 8 << 10;
/// The shortest interval of progress notifications.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// One watch.
struct Watch {
    id: i64,
    watcher: Box<dyn Watcher>,
    bell: Arc<Bell>,
    waker: Waker,
    start_revision: i64,
    /// The newest revision when the watch began.
    began: i64,
    no_put: bool,
    no_delete: bool,
    fragment: bool,
    /// Tell the revision when the interval has passed...
    notify: bool,
    /// ...unless events were sent in it.
    quiet: bool,
    /// A notification was asked of the store.
    asked: bool,
}

impl Watch {
    fn wants(&self, event: &Event) -> bool {
        if event.deleted { !self.no_delete } else { !self.no_put }
    }
}

/// A client's request for the progress of the whole stream.
struct Progress {
    /// The watches that have not told theirs.
    waiting: HashSet<u64>,
    /// The least that was told.
    revision: i64,
    /// It was asked for once more meanwhile.
    again: bool,
}

/// Events of one watch on their way into one answer.
#[derive(Default)]
struct Batch {
    parts: Vec<Bytes>,
    bytes: usize,
    revision: i64,
}

/// A stream of watches.
pub(crate) struct Session {
    inner: Arc<Inner>,
    call: Call,
    requests: Requests,
    listening: bool,
    board: Arc<Board>,
    watches: HashMap<u64, Watch>,
    ids: HashMap<i64, u64>,
    next_token: u64,
    next_id: i64,
    progress: Option<Progress>,
    interval: Option<Pin<Box<tokio::time::Sleep>>>,
    batch: Batch,
    pieces: VecDeque<Bytes>,
    out: BytesMut,
    end: Option<Status>,
    ended: bool,
}

impl Session {
    pub(crate) fn new(inner: Arc<Inner>, call: Call, requests: Requests) -> Self {
        inner.metrics.watch_streams.fetch_add(1, Ordering::Relaxed);
        Self {
            inner,
            call,
            requests,
            listening: true,
            board: Arc::default(),
            watches: HashMap::new(),
            ids: HashMap::new(),
            next_token: 0,
            next_id: 0,
            progress: None,
            interval: None,
            batch: Batch::default(),
            pieces: VecDeque::new(),
            out: BytesMut::new(),
            end: None,
            ended: false,
        }
    }

    /// Appends a message that is not events.
    fn say(&mut self, answer: &pb::WatchResponse) {
        let frame = wire::message(answer);
        self.inner.metrics.sent(Method::Watch, 1, frame.len());
        self.out.extend_from_slice(&frame);
    }

    fn refuse(&mut self, reason: String) {
        let header = Some(self.inner.header());
        self.say(&pb::WatchResponse {
            header,
            watch_id: NONE,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..pb::WatchResponse::default()
        });
    }

    fn request(&mut self, message: Bytes) -> Result<(), Status> {
        self.inner.metrics.received(Method::Watch, wire::PREFIX + message.len());
        match decode::<pb::WatchRequest>(message)?.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request),
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.ask_progress(),
            // Nothing that is known; the stream goes on.
            None => {}
        }
        Ok(())
    }

    fn create(&mut self, request: pb::WatchCreateRequest) {
        if request.start_revision < 0 {
            return self.refuse(Error::Compacted.to_string());
        }
        let key =
            if request.key.is_empty() { Bytes::from_static(&[0]) } else { request.key.clone() };
        let span = Span::new(key, request.range_end.clone());
        let allowed = self
            .inner
            .access(&self.call)
            .and_then(|access| self.inner.allow(&access, &[Need::Read(span.clone())]));
        if let Err(error) = allowed {
            return self.refuse(denied(&error));
        }
        if matches!(&span, Span::Range(from, to) if from >= to) {
            return self.refuse("mvcc: watcher range is empty".to_owned());
        }
        let mut id = request.watch_id;
        if id == 0 {
            while self.ids.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            id = self.next_id;
            self.next_id += 1;
        } else if self.ids.contains_key(&id) {
            return self.refuse("mvcc: duplicate watch ID provided on the WatchStream".to_owned());
        }
        let watch =
            WatchRequest { span, start_revision: request.start_revision, prev_kv: request.prev_kv };
        // Before the watch begins: what it sees is newer than the header.
        let header = self.inner.header();
        let watcher = match self.inner.kv.watch(watch) {
            Ok(watcher) => watcher,
            Err(error) => return self.refuse(error.to_string()),
        };
        let token = self.next_token;
        self.next_token += 1;
        let bell = Bell::new(token, self.board.clone());
        let filter = |kind: FilterType| request.filters.contains(&(kind as i32));
        let mut watch = Watch {
            id,
            watcher,
            waker: bell.clone().into(),
            bell,
            start_revision: request.start_revision,
            began: header.revision,
            no_put: filter(FilterType::Noput),
            no_delete: filter(FilterType::Nodelete),
            fragment: request.fragment,
            notify: request.progress_notify,
            quiet: true,
            asked: false,
        };
        // Progress of the whole stream holds for this watch as well.
        if let Some(progress) = &mut self.progress {
            watch.watcher.request_progress();
            progress.waiting.insert(token);
        }
        watch.bell.ring();
        if watch.notify && self.interval.is_none() {
            self.interval = Some(Box::pin(tokio::time::sleep(self.inner.progress_interval())));
        }
        self.watches.insert(token, watch);
        self.ids.insert(id, token);
        self.inner.metrics.watchers.fetch_add(1, Ordering::Relaxed);
        self.say(&pb::WatchResponse {
            header: Some(header),
            watch_id: id,
            created: true,
            ..pb::WatchResponse::default()
        });
    }

    /// Lets go of a watch.
    fn remove(&mut self, id: i64) -> bool {
        let Some(token) = self.ids.remove(&id) else { return false };
        self.watches.remove(&token);
        self.inner.metrics.watchers.fetch_sub(1, Ordering::Relaxed);
        if let Some(progress) = &mut self.progress {
            progress.waiting.remove(&token);
            self.tell_progress();
        }
        true
    }

    fn cancel(&mut self, id: i64) {
        if self.remove(id) {
            let header = Some(self.inner.header());
            self.say(&pb::WatchResponse {
                header,
                watch_id: id,
                canceled: true,
                ..pb::WatchResponse::default()
            });
        }
    }

    fn ask_progress(&mut self) {
        if let Some(progress) = &mut self.progress {
            progress.again = true;
            return;
        }
        if self.watches.is_empty() {
            return;
        }
        for watch in self.watches.values_mut() {
            watch.watcher.request_progress();
            watch.bell.ring();
        }
        self.progress = Some(Progress {
            waiting: self.watches.keys().copied().collect(),
            revision: i64::MAX,
            again: false,
        });
    }

    /// Answers for the whole stream once every watch has told its progress.
    fn tell_progress(&mut self) {
        let Some(progress) = self.progress.take_if(|p| p.waiting.is_empty()) else { return };
        if progress.revision != i64::MAX {
            let header = Some(self.inner.header_at(progress.revision));
            self.say(&pb::WatchResponse { header, watch_id: NONE, ..pb::WatchResponse::default() });
        }
        if progress.again {
            self.ask_progress();
        }
    }

    /// A watch has told its progress.
    fn progressed(&mut self, token: u64, revision: i64) {
        let Some(watch) = self.watches.get_mut(&token) else { return };
        let begun = revision >= watch.start_revision;
        if std::mem::take(&mut watch.asked) && begun {
            let id = watch.id;
            let header = Some(self.inner.header_at(revision));
            self.say(&pb::WatchResponse { header, watch_id: id, ..pb::WatchResponse::default() });
        }
        let Some(progress) = &mut self.progress else { return };
        if progress.waiting.remove(&token) {
            if begun {
                progress.revision = progress.revision.min(revision);
                self.tell_progress();
            } else {
                // A watch that begins in the future has no progress, so neither has the stream.
                self.progress = None;
            }
        }
    }

    /// The interval has passed: asks for the progress of the watches that want to hear it.
    fn interval_passed(&mut self) {
        for watch in self.watches.values_mut().filter(|w| w.notify) {
            if watch.quiet {
                watch.asked = true;
                watch.watcher.request_progress();
                watch.bell.ring();
            }
            watch.quiet = true;
        }
    }

    /// Takes what one watch has, up to a batch.
    fn drain(&mut self, token: u64) {
        loop {
            let Some(watch) = self.watches.get_mut(&token) else { return };
            watch.bell.answer();
            let mut context = Context::from_waker(&watch.waker);
            let Poll::Ready(item) = watch.watcher.poll_run(&mut context) else { break };
            match item {
                Some(WatchEvent::Events { revision, events }) => {
                    self.collect(token, revision, &events);
                    if self.batch.bytes >= BATCH {
                        // Others have their turn first.
                        if let Some(watch) = self.watches.get(&token) {
                            watch.bell.ring();
                        }
                        break;
                    }
                }
                Some(WatchEvent::Progress(revision)) => {
                    self.flush(token, false);
                    self.progressed(token, revision);
                }
                Some(WatchEvent::Compacted(revision)) => {
                    self.flush(token, false);
                    self.compacted(token, revision);
                    return;
                }
                None => {
                    self.flush(token, false);
                    self.end = Some(status(&Error::Stopped));
                    return;
                }
            }
        }
        self.flush(token, false);
    }

    fn compacted(&mut self, token: u64, revision: i64) {
        let Some(id) = self.watches.get(&token).map(|w| w.id) else { return };
        self.remove(id);
        // etcd's answer has revision 0.
        let header = Some(self.inner.header_at(0));
        self.say(&pb::WatchResponse {
            header,
            watch_id: id,
            canceled: true,
            compact_revision: revision,
            ..pb::WatchResponse::default()
        });
    }

    /// Adds events to the batch, of one or more revisions of which `revision` is the last.
    fn collect(&mut self, token: u64, revision: i64, events: &Arc<[Event]>) {
        let Some(watch) = self.watches.get_mut(&token) else { return };
        let wanted = events.iter().filter(|e| watch.wants(e)).count();
        if wanted == 0 {
            return;
        }
        watch.quiet = false;
        add(&self.inner.metrics.events, wanted as u64);
        let bytes = if wanted == events.len() {
            self.inner.encoded.get(events)
        } else {
            wire::events(events.iter().filter(|e| watch.wants(e)))
        };
        let most = self.inner.max_message();
        if watch.fragment && self.batch.bytes + bytes.len() >= most {
            let wanted: Vec<_> = events.iter().filter(|e| watch.wants(e)).cloned().collect();
            self.flush(token, false);
            if bytes.len() >= most && wanted.len() > 1 {
                return self.fragments(token, revision, &wanted, most);
            }
        }
        self.batch.revision = revision;
        self.batch.bytes += bytes.len();
        self.batch.parts.push(bytes);
    }

    /// Sends large revisions in answers that are smaller than `most` bytes.
    fn fragments(&mut self, token: u64, revision: i64, events: &[Event], most: usize) {
        // What stands around the events is shorter than this.
        let room = most.saturating_sub(64);
        self.batch.revision = revision;
        for event in events {
            let bytes = wire::events(std::iter::once(event));
            if !self.batch.parts.is_empty() && self.batch.bytes + bytes.len() > room {
                self.flush(token, true);
                self.batch.revision = revision;
            }
            self.batch.bytes += bytes.len();
            self.batch.parts.push(bytes);
        }
        self.flush(token, false);
    }

    /// Sends the batch as one answer.
    fn flush(&mut self, token: u64, fragment: bool) {
        if self.batch.parts.is_empty() {
            return;
        }
        let Some(watch) = self.watches.get(&token) else { return };
        // As in etcd, the header of what is past tells how far the store is, not the watch.
        let past = self.batch.revision <= watch.began;
        let revision = if past { self.inner.kv.revision() } else { self.batch.revision };
        let header = self.inner.header_at(revision);
        let before = self.out.len();
        self.out.reserve(96 + if self.batch.bytes < SHARE { self.batch.bytes } else { 0 });
        wire::watch_head(&mut self.out, &header, watch.id, fragment, self.batch.bytes);
        let head = self.out.len() - before;
        self.inner.metrics.sent(Method::Watch, 1, head + self.batch.bytes);
        for part in self.batch.parts.drain(..) {
            if part.len() < SHARE {
                self.out.extend_from_slice(&part);
            } else {
                self.pieces.push_back(self.out.split().freeze());
                self.pieces.push_back(part);
            }
        }
        self.batch.bytes = 0;
    }

    /// Whether enough is ready to be sent.
    fn full(&self) -> bool {
        !self.pieces.is_empty() || self.out.len() >= PIECE
    }

    fn next_piece(&mut self) -> Option<Bytes> {
        while let Some(piece) = self.pieces.pop_front() {
            if !piece.is_empty() {
                return Some(piece);
            }
        }
        (!self.out.is_empty()).then(|| self.out.split().freeze())
    }

    /// Does what can be done until a piece is full or nothing is left to do.
    fn work(&mut self, context: &mut Context<'_>) {
        self.board.register(context.waker());
        while self.listening && !self.full() && self.end.is_none() {
            match self.requests.poll_next(context) {
                Poll::Ready(Some(Ok(message))) => {
                    if let Err(status) = self.request(message) {
                        self.end = Some(status);
                    }
                }
                Poll::Ready(Some(Err(status))) => {
                    self.end = Some(match status.code() {
                        Code::Cancelled => Status::cancelled("etcdserver: watch canceled"),
                        _ => status,
                    });
                }
                // The client has nothing more to ask, and goes on to listen.
                Poll::Ready(None) => self.listening = false,
                Poll::Pending => break,
            }
        }
        while let Some(interval) = &mut self.interval
            && interval.as_mut().poll(context).is_ready()
        {
            let next = tokio::time::Instant::now() + self.inner.progress_interval();
            interval.as_mut().reset(next);
            self.interval_passed();
        }
        while !self.full() && self.end.is_none() {
            match self.board.next() {
                Some(token) => self.drain(token),
                None => break,
            }
        }
    }
}

impl Inner {
    /// The interval of progress notifications, with up to a tenth more so that they spread.
    fn progress_interval(&self) -> Duration {
        use std::hash::{BuildHasher as _, Hasher as _};
        let interval = self.config.watch_progress_interval.max(SHORTEST_INTERVAL);
        // `RandomState` differs from call to call; nothing depends on how random it is.
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        interval + interval.mul_f64((random % 1000) as f64 / 10_000.0)
    }
}

/// Why a watch was not allowed, as etcd's server writes a gRPC error into a text.
fn denied(error: &Error) -> String {
    let error = match error {
        Error::InvalidToken | Error::AuthOldRevision | Error::UserNameEmpty => error,
        _ => &Error::PermissionDenied,
    };
    let code = match status(error).code() {
        Code::Unauthenticated => "Unauthenticated",
        Code::InvalidArgument => "InvalidArgument",
        _ => "PermissionDenied",
    };
    format!("rpc error: code = {code} desc = {error}")
}

impl Stream for Session {
    type Item = Result<Bytes, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if !this.full() && this.end.is_none() {
            this.work(context);
        }
        if let Some(piece) = this.next_piece() {
            return Poll::Ready(Some(Ok(piece)));
        }
        match this.end.take() {
            Some(status) => {
                this.ended = true;
                Poll::Ready(Some(Err(status)))
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.inner.metrics.watch_streams.fetch_sub(1, Ordering::Relaxed);
        self.inner.metrics.watchers.fetch_sub(self.watches.len() as i64, Ordering::Relaxed);
    }
}
