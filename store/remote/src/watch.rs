//! All watches over one stream, which is opened anew at another member when it breaks.
//!
//! One task owns the stream. It knows for every watch the first revision that was not told yet, and
//! starts it again from there. A consumer that falls behind has its watch taken off the stream until
//! it has caught up, so that it holds neither memory nor the others.
//!
//! Releases of etcd before 3.4.25 and 3.5.8 answer a request for progress without waiting for events
//! that are still on their way (etcd issue 15220). On those, watches cover all keys and are filtered
//! here: every revision is seen, so that progress is known without asking.

use crate::convert;
use crate::errors::{self, Failure};
use crate::pool::{self, ANY_SIZE, Pool};
use dhow_clock::BoxFuture;
use dhow_kv::{Error, Event, Span, WatchEvent, WatchRequest, Watcher};
use dhow_rpc::etcdserverpb as pb;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;

/// A consumer that is behind by so many bytes waits for no more.
const MOST_QUEUED: usize = 4 << 20;

/// A consumer that is behind by so many revisions waits for no more.
const MOST_REVISIONS: usize = 8192;

/// Members do not answer a request for progress while one of the watches replays history: ask again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What the watcher and the task share about the queue between them.
#[derive(Debug, Default)]
struct Queue {
    bytes: AtomicUsize,
    revisions: AtomicUsize,
    /// The watch is off the stream until the consumer has caught up.
    paused: AtomicBool,
}

#[derive(Debug)]
enum Command {
    Add(u64, Box<Watch>),
    Remove(u64),
    /// Tell when everything up to this revision has been told.
    Progress(u64, i64),
    Resume(u64),
}

/// A watch as the task knows it.
#[derive(Debug)]
struct Watch {
    request: WatchRequest,
    /// The first revision that was not told yet.
    next: i64,
    /// It starts from now and nothing has been told yet.
    fresh: bool,
    /// Its number on the stream. Never used twice: what was sent under an old one may still arrive.
    wire: i64,
    /// It was refused, perhaps for want of a fresh token.
    denied: bool,
    /// Progress up to here is wanted.
    wanted: Option<i64>,
    queue: Arc<Queue>,
    out: mpsc::UnboundedSender<(WatchEvent, usize)>,
}

/// The handle to the task.
#[derive(Debug)]
pub(crate) struct Watches {
    commands: mpsc::UnboundedSender<Command>,
    last: AtomicU64,
}

impl Queue {
    /// Whether the consumer has caught up enough to be told more.
    fn is_low(&self) -> bool {
        self.bytes.load(Ordering::Acquire) <= MOST_QUEUED / 4
            && self.revisions.load(Ordering::Acquire) <= MOST_REVISIONS / 4
    }

    /// Ends a pause. Only one of those who try has ended it.
    fn resume(&self) -> bool {
        self.is_low() && self.paused.swap(false, Ordering::AcqRel)
    }
}

impl Watches {
    pub(crate) fn start(pool: Arc<Pool>) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        tokio::spawn(Task { pool, inbox, watches: BTreeMap::new(), last_wire: 0 }.run());
        Self { commands, last: AtomicU64::new(0) }
    }

    pub(crate) fn add(
        &self,
        request: WatchRequest,
        pool: &Arc<Pool>,
    ) -> Result<RemoteWatcher, Error> {
        if matches!(&request.span, Span::Key(key) if key.is_empty()) {
            return Err(Error::EmptyKey);
        }
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (out, events) = mpsc::unbounded_channel();
        let queue = Arc::<Queue>::default();
        // From now on: nothing that is committed after this call can be missed, because every answer
        // that was seen is older.
        let fresh = request.start_revision == 0;
        let next = if fresh { pool.revision() + 1 } else { request.start_revision };
        let watch = Watch {
            request,
            next,
            fresh,
            wire: 0,
            denied: false,
            wanted: None,
            queue: queue.clone(),
            out,
        };
        let commands = self.commands.clone();
        commands.send(Command::Add(id, Box::new(watch))).map_err(|_| Error::Stopped)?;
        Ok(RemoteWatcher { id, events, queue, commands, pool: pool.clone() })
    }
}

/// See [`Watcher`].
pub(crate) struct RemoteWatcher {
    id: u64,
    events: mpsc::UnboundedReceiver<(WatchEvent, usize)>,
    queue: Arc<Queue>,
    commands: mpsc::UnboundedSender<Command>,
    pool: Arc<Pool>,
}

impl Watcher for RemoteWatcher {
    fn next(&mut self) -> BoxFuture<'_, Option<WatchEvent>> {
        Box::pin(async move {
            let (event, bytes) = self.events.recv().await?;
            self.queue.bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.queue.revisions.fetch_sub(1, Ordering::AcqRel);
            if self.queue.resume() {
                let _ = self.commands.send(Command::Resume(self.id));
            }
            Some(event)
        })
    }

    fn request_progress(&mut self) {
        let _ = self.commands.send(Command::Progress(self.id, self.pool.revision()));
    }
}

impl Drop for RemoteWatcher {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Remove(self.id));
    }
}

fn size(events: &[Event]) -> usize {
    let of = |kv: &dhow_kv::KeyValue| kv.key.len() + kv.value.len() + 64;
    events.iter().map(|e| of(&e.kv) + e.prev_kv.as_ref().map_or(0, of)).sum()
}

impl Watch {
    /// Hands an item to the consumer. Whether it can take more.
    fn tell(&self, event: WatchEvent) -> bool {
        let bytes = if let WatchEvent::Events { events, .. } = &event { size(events) } else { 0 };
        let bytes_now = self.queue.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let revisions_now = self.queue.revisions.fetch_add(1, Ordering::AcqRel) + 1;
        // An error means that the watcher is gone; its removal is on the way.
        let _ = self.out.send((event, bytes));
        bytes_now <= MOST_QUEUED && revisions_now <= MOST_REVISIONS
    }

    /// Hands over the events that were not told yet. Whether the consumer can take more.
    fn events(&mut self, events: Vec<Event>, wide: bool) -> bool {
        let mut room = true;
        let mut events = events.into_iter().peekable();
        while let Some(first) = events.next() {
            let revision = first.kv.mod_revision;
            let mut together = vec![first];
            while let Some(more) = events.next_if(|e| e.kv.mod_revision == revision) {
                together.push(more);
            }
            if revision < self.next {
                continue;
            }
            if wide {
                together.retain(|e| self.request.span.contains(&e.kv.key));
            }
            if !together.is_empty() {
                room &= self.tell(WatchEvent::Events { revision, events: together.into() });
            }
            self.next = revision + 1;
            self.fresh = false;
        }
        room
    }

    /// Everything up to `revision` has been told.
    fn reached(&mut self, revision: i64) {
        self.next = self.next.max(revision + 1);
    }

    /// Answers a request for progress, if it can be.
    fn answer(&mut self, newest: i64) {
        let told = (self.next - 1).min(newest);
        if self.wanted.is_some_and(|wanted| wanted <= told) {
            self.wanted = None;
            self.tell(WatchEvent::Progress(told));
        }
    }

    fn is_paused(&self) -> bool {
        self.queue.paused.load(Ordering::Acquire)
    }
}

/// The way to the member.
struct Requests {
    sender: mpsc::UnboundedSender<pb::WatchRequest>,
    /// The numbers of watches that were asked for and not answered: answers come in this order, and
    /// refusals may carry no number.
    unanswered: VecDeque<i64>,
}

impl Requests {
    fn send(&self, union: RequestUnion) {
        // An error means that the stream is broken, which its other half tells.
        let _ = self.sender.send(pb::WatchRequest { request_union: Some(union) });
    }
}

/// An open stream.
struct Stream {
    requests: Requests,
    answers: tonic::Streaming<pb::WatchResponse>,
    /// Watches cover all keys, because this member's progress cannot be trusted.
    wide: bool,
    /// Progress has been asked for, for watches up to this number.
    asked: Option<i64>,
}

struct Task {
    pool: Arc<Pool>,
    inbox: mpsc::UnboundedReceiver<Command>,
    watches: BTreeMap<u64, Watch>,
    last_wire: i64,
}

impl Task {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            if self.watches.is_empty() {
                match self.inbox.recv().await {
                    Some(command) => self.obey(command, None),
                    None => return,
                }
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(command) => self.obey(command, None),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            }
            if self.watches.is_empty() {
                continue;
            }
            let (at, token, ended) = self.serve(&mut failures).await;
            let Err(status) = ended else { continue };
            match errors::classify(&status) {
                Failure::Token(_) => {
                    if let Err(failure) = self.pool.renew(token).await {
                        tracing::warn!(?failure, "the store gives no new token");
                    }
                }
                Failure::Refused(error) => self.pool.failed(at, &error.to_string()),
                Failure::NotSent(why) | Failure::Unknown(_, why) => self.pool.failed(at, &why),
            }
            let pause = self.pool.pause(failures);
            failures = failures.saturating_add(1);
            self.pool.clock.sleep(pause).await;
        }
    }

    /// Opens a stream and serves the watches over it until it breaks or nothing is watched. Returns
    /// the member, the number of the token, and how it ended.
    async fn serve(&mut self, failures: &mut u32) -> (usize, u64, Result<(), Status>) {
        let pool = self.pool.clone();
        let (at, member) = pool.member();
        let told = match pool.tell(member).await {
            Ok(told) if pool.is_ours(&told) => told,
            Ok(_) => {
                let other = Status::unavailable("the member belongs to another etcd cluster");
                return (at, 0, Err(other));
            }
            Err(status) => return (at, 0, Err(status)),
        };
        let wide = has_early_progress(&told.version);
        let (sender, outgoing) = mpsc::unbounded_channel();
        let mut requests = Requests { sender, unanswered: VecDeque::new() };
        // Members answer the call with the first answer on the stream: there must be a request.
        for watch in self.watches.values_mut() {
            // None of the numbers of an earlier stream means anything on this one.
            watch.wire = 0;
        }
        for watch in self.watches.values_mut().filter(|w| !w.is_paused()) {
            create(watch, &mut self.last_wire, wide, &mut requests);
        }
        let outgoing = futures::stream::unfold(outgoing, |mut outgoing| async move {
            let next = outgoing.recv().await?;
            Some((next, outgoing))
        });
        let (request, token) = pool.request(outgoing, true).await;
        let mut client =
            WatchClient::new(member.channel.clone()).max_decoding_message_size(ANY_SIZE);
        let opened = tokio::select! {
            opened = client.watch(request) => opened,
            () = pool.clock.sleep(Duration::from_secs(5)) => {
                Err(Status::deadline_exceeded("no answer to a watch in time"))
            }
        };
        let mut stream = match opened {
            Ok(answers) => Stream { requests, answers: answers.into_inner(), wide, asked: None },
            Err(status) => return (at, token, Err(status)),
        };
        self.ask(&mut stream);
        loop {
            if self.watches.is_empty() {
                return (at, token, Ok(()));
            }
            let waiting = !stream.wide && self.watches.values().any(|w| w.wanted.is_some());
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => self.obey(command, Some(&mut stream)),
                    // `run` sees it as well.
                    None => return (at, token, Ok(())),
                },
                answer = stream.answers.message() => match answer {
                    Ok(Some(answer)) => {
                        if *failures > 0 {
                            *failures = 0;
                            pool.answered(at);
                        }
                        if let Err(status) = self.take(answer, &mut stream) {
                            return (at, token, Err(status));
                        }
                    }
                    Ok(None) => {
                        let ended = Status::unavailable("the member ended the stream of watches");
                        return (at, token, Err(ended));
                    }
                    Err(status) => return (at, token, Err(status)),
                },
                () = pool.clock.sleep(ASK_AGAIN), if waiting => {
                    stream.requests.send(progress());
                }
            }
        }
    }

    fn obey(&mut self, command: Command, stream: Option<&mut Stream>) {
        match command {
            Command::Add(id, mut watch) => {
                if let Some(stream) = stream {
                    create(&mut watch, &mut self.last_wire, stream.wide, &mut stream.requests);
                }
                self.watches.insert(id, *watch);
            }
            Command::Remove(id) => {
                if let (Some(watch), Some(stream)) = (self.watches.remove(&id), stream) {
                    stream.requests.send(cancel(watch.wire));
                }
            }
            Command::Resume(id) => {
                if let (Some(watch), Some(stream)) = (self.watches.get_mut(&id), stream)
                    && watch.wire == 0
                {
                    create(watch, &mut self.last_wire, stream.wide, &mut stream.requests);
                }
            }
            Command::Progress(id, revision) => {
                let newest = self.pool.revision();
                let Some(watch) = self.watches.get_mut(&id) else { return };
                watch.wanted = watch.wanted.max(Some(revision));
                watch.answer(newest);
                if let Some(stream) = stream {
                    self.ask(stream);
                }
            }
        }
    }

    /// Asks for progress, if somebody waits for it and it has not been asked.
    fn ask(&self, stream: &mut Stream) {
        if !stream.wide
            && stream.asked.is_none()
            && self.watches.values().any(|w| w.wanted.is_some())
        {
            stream.asked = Some(self.last_wire);
            stream.requests.send(progress());
        }
    }

    /// Takes an answer of the stream.
    fn take(&mut self, mut answer: pb::WatchResponse, stream: &mut Stream) -> Result<(), Status> {
        use crate::pool::Headed;
        self.pool.seen(answer.header());
        let (newest, told) =
            (self.pool.revision(), answer.header.as_ref().map_or(0, |h| h.revision));
        if answer.watch_id == -1 && !answer.created && !answer.canceled {
            // It speaks of all watches that had been started when it was asked for.
            let known = stream.asked.take().unwrap_or(0);
            if !stream.wide {
                for watch in self.watches.values_mut() {
                    if watch.wire != 0 && watch.wire <= known && !watch.is_paused() {
                        watch.reached(told);
                        watch.answer(newest);
                    }
                }
            }
            self.ask(stream);
            return Ok(());
        }
        if answer.created
            && let Some(wire) = stream.requests.unanswered.pop_front()
        {
            answer.watch_id = wire;
        }
        let found = self.watches.iter_mut().find(|(_, w)| w.wire == answer.watch_id);
        let Some((&id, watch)) = found else { return Ok(()) };
        if watch.is_paused() {
            return Ok(());
        }
        if answer.canceled {
            if answer.compact_revision > 0 {
                if watch.fresh {
                    // It started from now, by a revision that was older than we knew.
                    watch.next = watch.next.max(answer.compact_revision + 1);
                    create(watch, &mut self.last_wire, stream.wide, &mut stream.requests);
                    return Ok(());
                }
                watch.tell(WatchEvent::Compacted(answer.compact_revision));
                self.watches.remove(&id);
                return Ok(());
            }
            // Releases differ in whether they tell a token that they do not know from a user who
            // may not.
            let known = errors::of_text(&answer.cancel_reason);
            let stale = matches!(
                known,
                Some(Error::InvalidToken | Error::AuthOldRevision | Error::PermissionDenied)
            );
            if stale && !watch.denied && self.pool.has_user() {
                watch.denied = true;
                return Err(Status::unauthenticated(Error::InvalidToken.to_string()));
            }
            let hint = match stream.wide {
                true => {
                    "; this release of etcd needs a user that may read all keys, 3.4.25 or 3.5.8 does not"
                }
                false => "",
            };
            tracing::error!(
                reason = answer.cancel_reason,
                "the store refuses to watch {:?}{hint}",
                watch.request.span
            );
            self.watches.remove(&id);
            return Ok(());
        }
        watch.denied = false;
        if answer.created {
            return Ok(());
        }
        if answer.events.is_empty() {
            // Told from time to time when nothing happens: later starts need less history.
            watch.reached(told);
        } else {
            let events = std::mem::take(&mut answer.events);
            let events = events.into_iter().filter_map(convert::event).collect();
            if !watch.events(events, stream.wide) {
                watch.queue.paused.store(true, Ordering::Release);
                // It may have caught up before it could see the pause, and would wait for ever.
                if !watch.queue.resume() {
                    stream.requests.send(cancel(watch.wire));
                    watch.wire = 0;
                }
            }
        }
        watch.answer(newest);
        Ok(())
    }
}

/// Puts a watch on the stream, under a number of its own.
fn create(watch: &mut Watch, last_wire: &mut i64, wide: bool, requests: &mut Requests) {
    *last_wire += 1;
    watch.wire = *last_wire;
    let span = if wide { Span::prefix("") } else { watch.request.span.clone() };
    let (key, range_end) = convert::span(span);
    requests.unanswered.push_back(watch.wire);
    requests.send(RequestUnion::CreateRequest(pb::WatchCreateRequest {
        key,
        range_end,
        start_revision: watch.next,
        progress_notify: true,
        prev_kv: watch.request.prev_kv,
        watch_id: watch.wire,
        ..Default::default()
    }));
}

fn cancel(wire: i64) -> RequestUnion {
    RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: wire })
}

fn progress() -> RequestUnion {
    RequestUnion::ProgressRequest(pb::WatchProgressRequest {})
}

/// Whether a release answers requests for progress before events that are on their way.
fn has_early_progress(version: &str) -> bool {
    match pool::parse(version) {
        Some((3, 5, patch)) => patch < 8,
        Some((3, 4, patch)) => patch < 25,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: &'static str, revision: i64) -> Event {
        let kv = dhow_kv::KeyValue {
            key: key.into(),
            value: "v".into(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        };
        Event { kv, prev_kv: None, deleted: false }
    }

    fn watch(next: i64) -> (Watch, mpsc::UnboundedReceiver<(WatchEvent, usize)>) {
        let (out, events) = mpsc::unbounded_channel();
        let request =
            WatchRequest { span: Span::prefix("/a/"), start_revision: next, prev_kv: false };
        let queue = Arc::default();
        (
            Watch { request, next, fresh: false, wire: 1, denied: false, wanted: None, queue, out },
            events,
        )
    }

    fn revisions(events: &mut mpsc::UnboundedReceiver<(WatchEvent, usize)>) -> Vec<(i64, usize)> {
        std::iter::from_fn(|| events.try_recv().ok())
            .map(|(event, _)| match event {
                WatchEvent::Events { revision, events } => (revision, events.len()),
                WatchEvent::Progress(revision) => (revision, 0),
                WatchEvent::Compacted(revision) => (-revision, 0),
            })
            .collect()
    }

    #[test]
    fn what_was_told_is_not_told_again_and_revisions_stay_whole() {
        let (mut watch, mut out) = watch(5);
        let batch = vec![event("/a/1", 4), event("/a/1", 5), event("/a/2", 5), event("/a/1", 7)];
        assert!(watch.events(batch.clone(), false));
        assert!(watch.events(batch, false));
        assert_eq!(revisions(&mut out), [(5, 2), (7, 1)]);
        assert_eq!(watch.next, 8);
    }

    #[test]
    fn a_wide_watch_tells_its_keys_and_knows_its_progress() {
        let (mut watch, mut out) = watch(1);
        watch.wanted = Some(3);
        watch.events(vec![event("/b/1", 2), event("/a/1", 3), event("/b/1", 4)], true);
        watch.answer(9);
        assert_eq!(revisions(&mut out), [(3, 1), (4, 0)]);
        // Not of the future.
        watch.next = 100;
        watch.wanted = Some(9);
        watch.answer(9);
        assert_eq!(revisions(&mut out), [(9, 0)]);
    }

    #[test]
    fn a_consumer_that_falls_behind_gets_no_more() {
        let (mut watch, _out) = watch(1);
        let many: Vec<Event> =
            (1..=i64::try_from(MOST_REVISIONS).unwrap() + 1).map(|r| event("/a/1", r)).collect();
        assert!(!watch.events(many, false));
    }

    #[test]
    fn releases_with_early_progress_are_known() {
        for (version, early) in [
            ("3.4.23", true),
            ("3.4.25", false),
            ("3.5.1", true),
            ("3.5.8", false),
            ("3.6.0", false),
            ("3.7.1", false),
        ] {
            assert_eq!(has_early_progress(version), early, "{version}");
        }
    }
}
