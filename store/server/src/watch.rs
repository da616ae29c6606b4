//! Watches: one hub that pushes what is durable, and watchers that pull what they missed.
//!
//! A watcher that keeps up is *synced*: the writer hands it what each of its batches changed, as a run
//! of whole revisions that watchers of equal spans share. A watcher that starts in the past, or whose bounded queue overflowed, is
//! not known to the hub: its consumer reads the history in its own time until it has caught up, so
//! that it costs the writer nothing and the store no memory.

use crate::shared::Shared;
use bytes::Bytes;
use dhow_clock::BoxFuture;
use dhow_kv::{Event, Span, WatchEvent, WatchRequest, Watcher};
use dhow_mvcc::Mvcc;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A synced watcher holds at most this many runs of revisions...
const QUEUE_RUNS: usize = 1024;
/// ...and this many bytes of them (more only for a single larger run).
const QUEUE_BYTES: usize = 4 << 20;
/// A run ends with the revision that brings it to this many bytes.
const RUN_BYTES: usize = 64 << 10;
/// One pull from the history returns at most this many revisions...
const PULL_REVISIONS: usize = 128;
/// ...or about this many bytes...
const PULL_BYTES: usize = 1 << 20;
/// ...and looks at this many, under one lock.
const PULL_SCAN: usize = 2048;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded states are consistent between statements, so a panic elsewhere does not taint them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the hub and one watcher share.
#[derive(Debug, Default)]
struct Slot {
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    queue: VecDeque<Run>,
    bytes: usize,
    /// The first revision that did not fit; the hub has let go of the watcher.
    overflow: Option<i64>,
    /// Revisions below are not wanted: the watch starts in the future.
    start: i64,
    waker: Option<Waker>,
    stopped: bool,
}

/// The events of one or more whole revisions, in order.
#[derive(Debug, Clone)]
struct Run {
    first: i64,
    last: i64,
    events: Arc<[Event]>,
    /// What they take of a queue, in bytes.
    size: usize,
}

impl Run {
    /// The same without what is older than `start`.
    fn since(&self, start: i64) -> Self {
        let newer = self.events.iter().filter(|event| event.kv.mod_revision >= start);
        let events: Arc<[Event]> = newer.cloned().collect();
        let first = events.first().map_or(start, |event| event.kv.mod_revision);
        Self { first, last: self.last, size: size_of_events(&events), events }
    }

    /// One item for each revision.
    fn split(&self) -> impl Iterator<Item = WatchEvent> {
        self.events.chunk_by(|a, b| a.kv.mod_revision == b.kv.mod_revision).map(|events| {
            WatchEvent::Events { revision: events[0].kv.mod_revision, events: events.into() }
        })
    }
}

/// A revision that is about to be published: its events, looked up when somebody wants some of them.
struct Written<'a> {
    mvcc: &'a Mvcc,
    revision: i64,
    keys: &'a [Bytes],
    /// Without and with previous values.
    events: [OnceCell<Vec<Event>>; 2],
}

impl Written<'_> {
    fn events(&self, prev_kv: bool) -> &[Event] {
        self.events[usize::from(prev_kv)]
            .get_or_init(|| self.mvcc.events(self.revision, prev_kv, None))
    }
}

/// Makes runs of what a batch of revisions changed in `span` (everywhere, without one).
fn runs(batch: &[&Written<'_>], prev_kv: bool, span: Option<&Span>) -> Vec<Run> {
    let mut runs = Vec::new();
    let (mut events, mut size) = (Vec::<Event>::new(), 0);
    let mut end = |events: &mut Vec<Event>, size: &mut usize| {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return };
        let (first, last) = (first.kv.mod_revision, last.kv.mod_revision);
        let events = std::mem::take(events).into();
        runs.push(Run { first, last, events, size: std::mem::take(size) });
    };
    for written in batch {
        let before = events.len();
        match span {
            None => events.extend(written.mvcc.events(written.revision, prev_kv, None)),
            Some(span) => {
                let all = written.events(prev_kv).iter();
                events.extend(all.filter(|event| span.contains(&event.kv.key)).cloned());
            }
        }
        size += size_of_events(&events[before..]);
        if size >= RUN_BYTES {
            end(&mut events, &mut size);
        }
    }
    end(&mut events, &mut size);
    runs
}

#[derive(Debug)]
struct Group {
    span: Span,
    prev_kv: bool,
    members: Vec<Arc<Slot>>,
}

#[derive(Debug, Default)]
struct State {
    /// Watches of single keys, without and with previous values.
    keys: HashMap<Bytes, Vec<Group>>,
    /// Watches of spans.
    spans: Vec<Group>,
    stopped: bool,
}

impl State {
    fn groups(&mut self, span: &Span) -> Option<&mut Vec<Group>> {
        match span {
            Span::Key(key) => self.keys.get_mut(key),
            _ => Some(&mut self.spans),
        }
    }

    /// Tells all watchers something and wakes them, always in the same order.
    fn each(&self, tell: impl Fn(&mut SlotState)) {
        let mut keys: Vec<_> = self.keys.iter().collect();
        keys.sort_unstable_by_key(|(key, _)| *key);
        let groups = keys.into_iter().flat_map(|(_, groups)| groups).chain(&self.spans);
        for slot in groups.flat_map(|group| &group.members) {
            let mut slot = lock(&slot.state);
            tell(&mut slot);
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Hub {
    /// The newest durable revision; changed only while `state` is locked.
    published: AtomicI64,
    state: Mutex<State>,
}

impl Hub {
    pub(crate) fn new(published: i64) -> Self {
        Self { published: AtomicI64::new(published), state: Mutex::default() }
    }

    /// The newest revision that anybody may see.
    pub(crate) fn published(&self) -> i64 {
        self.published.load(Ordering::Acquire)
    }

    /// Makes all revisions up to `revision` visible and hands them to the synced watchers.
    pub(crate) fn publish(&self, mvcc: &Mvcc, revision: i64) {
        let mut state = lock(&self.state);
        let from = self.published.load(Ordering::Relaxed) + 1;
        self.published.store(revision, Ordering::Release);
        if state.keys.is_empty() && state.spans.is_empty() {
            return;
        }
        let written = |revision| Written {
            mvcc,
            revision,
            keys: mvcc.keys_written(revision),
            events: Default::default(),
        };
        let batch: Vec<Written<'_>> = (from..=revision).map(written).collect();
        // Groups that match every key share their runs.
        let mut whole: [Option<Vec<Run>>; 2] = [None, None];
        let mut deliver = |group: &mut Group, part: &[&Written<'_>]| {
            let Group { span, prev_kv, .. } = &*group;
            let all = part.len() == batch.len()
                && part.iter().all(|written| written.keys.iter().all(|key| span.contains(key)));
            let some;
            let runs = if all {
                whole[usize::from(*prev_kv)].get_or_insert_with(|| runs(part, *prev_kv, None))
            } else {
                some = runs(part, *prev_kv, Some(span));
                &some
            };
            group.push(runs)
        };
        state.spans.retain_mut(|group| {
            let matches = |w: &&Written<'_>| w.keys.iter().any(|key| group.span.contains(key));
            let part: Vec<_> = batch.iter().filter(matches).collect();
            deliver(group, &part)
        });
        if state.keys.is_empty() {
            return;
        }
        // Most keys have no watch of their own.
        let mut watched: BTreeMap<&Bytes, Vec<&Written<'_>>> = BTreeMap::new();
        for written in &batch {
            for key in written.keys.iter().filter(|key| state.keys.contains_key(*key)) {
                let part = watched.entry(key).or_default();
                // A key that a revision writes twice is delivered once, with both events.
                if part.last().is_none_or(|last| last.revision != written.revision) {
                    part.push(written);
                }
            }
        }
        for (key, part) in watched {
            let Some(groups) = state.keys.get_mut(key) else { continue };
            groups.retain_mut(|group| deliver(group, &part));
            if groups.is_empty() {
                state.keys.remove(key);
            }
        }
    }

    /// Joins the synced watchers if nothing at or after `next` has been published yet.
    fn attach(&self, slot: &Arc<Slot>, request: &WatchRequest, next: i64) -> bool {
        let mut state = lock(&self.state);
        if next <= self.published.load(Ordering::Relaxed) {
            return false;
        }
        {
            let mut slot = lock(&slot.state);
            slot.start = next;
            slot.overflow = None;
        }
        join(&mut state, slot, request);
        true
    }

    /// Joins the synced watchers from the next revision on.
    fn attach_now(&self, slot: &Arc<Slot>, request: &WatchRequest) {
        join(&mut lock(&self.state), slot, request);
    }

    fn detach(&self, slot: &Arc<Slot>, request: &WatchRequest) {
        let mut state = lock(&self.state);
        let Some(groups) = state.groups(&request.span) else { return };
        if let Some(at) =
            groups.iter().position(|g| g.prev_kv == request.prev_kv && g.span == request.span)
        {
            groups[at].members.retain(|member| !Arc::ptr_eq(member, slot));
            if groups[at].members.is_empty() {
                groups.swap_remove(at);
            }
        }
        if let Span::Key(key) = &request.span
            && state.keys.get(key).is_some_and(Vec::is_empty)
        {
            state.keys.remove(key);
        }
    }

    /// The state was replaced by one at `revision`: all watchers look for themselves what the history
    /// says of what they have not seen.
    pub(crate) fn restart(&self, revision: i64) {
        let mut state = lock(&self.state);
        let next = self.published.load(Ordering::Relaxed) + 1;
        self.published.store(revision, Ordering::Release);
        state.each(|slot| slot.overflow = Some(slot.start.max(next)));
        state.keys.clear();
        state.spans.clear();
    }

    /// Ends all watches.
    pub(crate) fn stop(&self) {
        let mut state = lock(&self.state);
        state.stopped = true;
        state.each(|slot| slot.stopped = true);
    }

    fn is_stopped(&self) -> bool {
        lock(&self.state).stopped
    }
}

fn join(state: &mut State, slot: &Arc<Slot>, request: &WatchRequest) {
    lock(&slot.state).stopped = state.stopped;
    let groups = match &request.span {
        Span::Key(key) => state.keys.entry(key.clone()).or_default(),
        _ => &mut state.spans,
    };
    match groups.iter_mut().find(|g| g.prev_kv == request.prev_kv && g.span == request.span) {
        Some(group) => group.members.push(slot.clone()),
        None => groups.push(Group {
            span: request.span.clone(),
            prev_kv: request.prev_kv,
            members: vec![slot.clone()],
        }),
    }
}

impl Group {
    /// Hands runs to the watchers. Returns whether any stay among the synced.
    fn push(&mut self, runs: &[Run]) -> bool {
        if !runs.is_empty() {
            self.members.retain(|slot| push(slot, runs));
        }
        !self.members.is_empty()
    }
}

/// Hands runs to a watcher. Returns whether it stays among the synced.
fn push(slot: &Slot, runs: &[Run]) -> bool {
    let mut slot = lock(&slot.state);
    for run in runs {
        if run.last < slot.start {
            continue;
        }
        let run = if run.first < slot.start { run.since(slot.start) } else { run.clone() };
        let fits = slot.queue.len() < QUEUE_RUNS
            && (slot.bytes + run.size <= QUEUE_BYTES || slot.queue.is_empty());
        if !fits {
            slot.overflow = Some(run.first);
            break;
        }
        slot.bytes += run.size;
        slot.queue.push_back(run);
    }
    if let Some(waker) = slot.waker.take() {
        waker.wake();
    }
    slot.overflow.is_none()
}

fn size_of_events(events: &[Event]) -> usize {
    events
        .iter()
        .map(|e| {
            64 + e.kv.key.len() + e.kv.value.len() + e.prev_kv.as_ref().map_or(0, |p| p.value.len())
        })
        .sum()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Reads the history, next from this revision on.
    Pulling(i64),
    /// Is handed events.
    Synced,
    /// Has seen its last item.
    Ended,
}

/// The receiving half.
pub(crate) struct StoreWatcher {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    request: WatchRequest,
    mode: Mode,
    pulled: VecDeque<WatchEvent>,
    progress: bool,
}

impl StoreWatcher {
    pub(crate) fn new(shared: Arc<Shared>, request: WatchRequest) -> Self {
        let slot = Arc::new(Slot::default());
        let start = request.start_revision;
        let mode = if start <= 0 {
            shared.hub.attach_now(&slot, &request);
            Mode::Synced
        } else if shared.hub.attach(&slot, &request, start) {
            Mode::Synced
        } else {
            Mode::Pulling(start)
        };
        Self { shared, slot, request, mode, pulled: VecDeque::new(), progress: false }
    }

    /// The next item. `runs` tells whether it may be of several revisions.
    fn poll(&mut self, context: &mut Context<'_>, runs: bool) -> Poll<Option<WatchEvent>> {
        loop {
            if let Some(item) = self.pulled.pop_front() {
                return Poll::Ready(Some(item));
            }
            match self.mode {
                Mode::Ended => return Poll::Ready(None),
                Mode::Pulling(next) => {
                    if self.shared.hub.is_stopped() {
                        self.mode = Mode::Ended;
                    } else {
                        self.pull(next);
                    }
                }
                Mode::Synced => {
                    if let Some(ready) = self.poll_queue(context, runs) {
                        return ready;
                    }
                }
            }
        }
    }

    /// Takes from the queue; `None` when the mode has changed or there are items to hand out.
    fn poll_queue(
        &mut self,
        context: &mut Context<'_>,
        runs: bool,
    ) -> Option<Poll<Option<WatchEvent>>> {
        // A progress answer must not overtake events, so nobody may publish meanwhile.
        let hub = self.progress.then(|| lock(&self.shared.hub.state));
        let mut slot = lock(&self.slot.state);
        if let Some(run) = slot.queue.pop_front() {
            slot.bytes -= run.size;
            if !runs && run.first < run.last {
                self.pulled.extend(run.split());
                return None;
            }
            let Run { last: revision, events, .. } = run;
            return Some(Poll::Ready(Some(WatchEvent::Events { revision, events })));
        }
        if slot.queue.capacity() > 64 {
            slot.queue = VecDeque::new();
        }
        if let Some(next) = slot.overflow.take() {
            self.mode = Mode::Pulling(next);
            return None;
        }
        if slot.stopped {
            self.mode = Mode::Ended;
            return Some(Poll::Ready(None));
        }
        if hub.is_some() {
            self.progress = false;
            let revision = self.shared.hub.published();
            return Some(Poll::Ready(Some(WatchEvent::Progress(revision))));
        }
        if !slot.waker.as_ref().is_some_and(|w| w.will_wake(context.waker())) {
            slot.waker = Some(context.waker().clone());
        }
        Some(Poll::Pending)
    }

    /// Reads a piece of the history.
    fn pull(&mut self, next: i64) {
        let state = self.shared.read();
        let mvcc = &state.machine.mvcc;
        let published = self.shared.hub.published();
        if next < mvcc.compacted() {
            self.mode = Mode::Ended;
            self.pulled.push_back(WatchEvent::Compacted(mvcc.compacted()));
            return;
        }
        let (mut revision, mut bytes) = (next, 0);
        while revision <= published
            && self.pulled.len() < PULL_REVISIONS
            && bytes < PULL_BYTES
            && revision - next < PULL_SCAN as i64
        {
            if mvcc.touches(revision, &self.request.span) {
                let events = mvcc.events(revision, self.request.prev_kv, Some(&self.request.span));
                if !events.is_empty() {
                    bytes += size_of_events(&events);
                    let events = events.into();
                    self.pulled.push_back(WatchEvent::Events { revision, events });
                }
            }
            revision += 1;
        }
        drop(state);
        let caught_up =
            revision > published && self.shared.hub.attach(&self.slot, &self.request, revision);
        self.mode = if caught_up { Mode::Synced } else { Mode::Pulling(revision) };
    }
}

impl Watcher for StoreWatcher {
    fn next(&mut self) -> BoxFuture<'_, Option<WatchEvent>> {
        Box::pin(std::future::poll_fn(|context| self.poll(context, false)))
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        self.poll(context, false)
    }

    fn poll_run(&mut self, context: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        self.poll(context, true)
    }

    fn request_progress(&mut self) {
        self.progress = true;
    }
}

impl Drop for StoreWatcher {
    fn drop(&mut self) {
        if self.mode == Mode::Synced {
            self.shared.hub.detach(&self.slot, &self.request);
        }
    }
}

#[cfg(test)]
mod tests;
