//! Clients that ask at random, try again as real ones do, and write down what they were told.

use crate::history::{History, Input, Item, Moment, Operation, Output, Watch, is_refusal};
use crate::random::Random;
use crate::world::World;
use bytes::Bytes;
use dhow_kv::{
    Backend as _, Compare, Error, KeyValue, Op, OpResult, Order, Range, Span, Target, Txn,
    WatchEvent, WatchRequest,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// The keys are few, so that clients meet.
const KEYS: u64 = 12;

/// Where all clients write down what happens.
#[derive(Debug, Clone)]
pub struct Recorder {
    start: Instant,
    order: Rc<Cell<u64>>,
    history: Rc<RefCell<History>>,
    /// The newest revision that any client was told.
    newest: Rc<Cell<i64>>,
    stopped: Rc<Cell<bool>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            order: Rc::default(),
            history: Rc::default(),
            newest: Rc::new(Cell::new(1)),
            stopped: Rc::default(),
        }
    }
}

impl Recorder {
    /// Now.
    pub fn now(&self) -> Moment {
        self.order.set(self.order.get() + 1);
        Moment { order: self.order.get(), time: self.start.elapsed() }
    }

    /// Tells all clients to stop.
    pub fn stop(&self) {
        self.stopped.set(true);
    }

    /// What was written down.
    pub fn history(&self) -> History {
        self.history.borrow().clone()
    }

    /// How many requests were written down.
    pub fn len(&self) -> usize {
        self.history.borrow().operations.len()
    }

    /// Whether nothing was written down.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes an operation down.
    pub fn note(&self, operation: Operation) {
        match &operation.output {
            Output::Range(found) => self.learn(found.revision),
            Output::Txn(result) => self.learn(result.revision),
            Output::Revision(revision) => self.learn(*revision),
            _ => {}
        }
        self.history.borrow_mut().operations.push(operation);
    }

    fn learn(&self, revision: i64) {
        self.newest.set(self.newest.get().max(revision));
    }
}

/// Asks one member one thing, and writes it down.
pub async fn ask(
    world: &World,
    recorder: &Recorder,
    client: u32,
    at: usize,
    input: Input,
) -> Output {
    let called = recorder.now();
    let asked = input.clone();
    let answer = world
        .request(at, PATIENCE, |store| {
            Box::pin(async move {
                Ok(match asked {
                    Input::Range(range) => Output::Range(store.range(range).await?),
                    Input::Txn(txn) => Output::Txn(store.txn(txn).await?),
                    Input::Compact(revision) => {
                        Output::Revision(store.compact(revision, false).await?)
                    }
                    Input::LeaseGrant(id, ttl) => Output::Lease(store.lease_grant(id, ttl).await?),
                    Input::LeaseRevoke(id) => Output::Revision(store.lease_revoke(id).await?),
                    Input::KeepAlive(id) => Output::Lease(store.lease_keep_alive(id).await?),
                    Input::TimeToLive(id) => {
                        Output::Lease(store.lease_time_to_live(id, false).await?)
                    }
                })
            })
        })
        .await;
    let output = match answer {
        None => Output::Unknown,
        Some(Err(error)) if is_refusal(&error) => Output::Refused(error),
        Some(Err(_)) => Output::Unknown,
        Some(Ok(output)) => output,
    };
    let operation = Operation {
        client,
        member: at as u64,
        called,
        returned: recorder.now(),
        input,
        output: output.clone(),
    };
    recorder.note(operation);
    output
}

/// A client that reads and writes.
pub struct Client {
    /// Its number.
    pub number: u32,
    /// The world it lives in.
    pub world: World,
    /// Where it writes down what happens.
    pub recorder: Recorder,
    /// Its chance.
    pub random: Random,
    /// What it last saw of keys: modification revisions.
    pub seen: BTreeMap<Bytes, i64>,
    /// How long it rests between requests, at most.
    pub rest: Duration,
    written: u64,
    /// Its lease, and when it must be renewed.
    lease: Option<(i64, i64, Instant, u64)>,
    leases: i64,
    member: usize,
}

impl Client {
    /// A client.
    pub fn new(
        number: u32,
        world: World,
        recorder: Recorder,
        mut random: Random,
        rest: Duration,
    ) -> Self {
        let member = random.below(world.places() as u64) as usize;
        Self {
            number,
            world,
            recorder,
            random,
            seen: BTreeMap::new(),
            rest,
            written: 0,
            lease: None,
            leases: 0,
            member,
        }
    }

    fn key(&mut self) -> Bytes {
        format!("k{:02}", self.random.below(KEYS)).into()
    }

    fn value(&mut self) -> Bytes {
        self.written += 1;
        let mut value = format!("{}-{}-", self.number, self.written);
        let more = if self.random.chance(1, 20) { 3000 } else { 40 };
        value.extend(std::iter::repeat_n('x', self.random.below(more) as usize));
        value.into()
    }

    fn span(&mut self) -> Span {
        match self.random.below(4) {
            0 => Span::prefix("k"),
            1 => Span::Range(self.key(), "k99".into()),
            2 => Span::From(Bytes::from_static(&[0])),
            _ => Span::Key(self.key()),
        }
    }

    fn range(&mut self) -> Range {
        let mut range = Range::all(self.span());
        range.serializable = self.random.chance(1, 6);
        range.keys_only = self.random.chance(1, 10);
        range.count_only = self.random.chance(1, 10);
        if self.random.chance(1, 8) {
            range.limit = self.random.between(1, 5) as usize;
        }
        if self.random.chance(1, 8) {
            let newest = self.recorder.newest.get() as u64 + 1;
            range.revision =
                self.random.between(newest.saturating_sub(150).max(1), newest + 1) as i64;
        }
        range
    }

    fn put(&mut self, key: Bytes) -> Op {
        let lease = match &self.lease {
            Some((id, ..)) if self.random.chance(1, 2) => *id,
            _ => 0,
        };
        let prev_kv = self.random.chance(1, 4);
        let value = self.value();
        Op::Put { key, value, lease, prev_kv, ignore_value: false, ignore_lease: false }
    }

    fn delete(&mut self) -> Op {
        let span = match self.random.chance(1, 15) {
            true => self.span(),
            false => Span::Key(self.key()),
        };
        Op::Delete { span, prev_kv: self.random.chance(1, 3) }
    }

    fn guarded(&mut self) -> Txn {
        let key = self.key();
        let known = self.seen.get(&key).copied().unwrap_or(0);
        let span = Span::Key(key.clone());
        let compare = match self.random.below(5) {
            0 => Compare { span: span.clone(), order: Order::Greater, target: Target::Version(1) },
            1 => Compare {
                span: span.clone(),
                order: Order::Equal,
                target: Target::CreateRevision(0),
            },
            _ => Compare {
                span: span.clone(),
                order: Order::Equal,
                target: Target::ModRevision(known),
            },
        };
        let put = self.put(key);
        let mut success = vec![put];
        if self.random.chance(1, 3) {
            let other = self.key();
            let op = self.put(other.clone());
            if !matches!(&success[0], Op::Put { key, .. } if *key == other) {
                success.push(op);
            }
        }
        success.push(Op::Range(Range::all(Span::prefix("k"))));
        let failure = match self.random.chance(1, 4) {
            true => vec![self.delete()],
            false => vec![Op::Range(Range::all(span))],
        };
        Txn { compare: vec![compare], success, failure }
    }

    /// Lives until it is told to stop.
    pub async fn run(mut self) {
        while !self.recorder.stopped.get() {
            let rest = self.random.below(self.rest.as_micros() as u64 + 1);
            tokio::time::sleep(Duration::from_micros(rest)).await;
            self.keep_lease().await;
            let input = match self.random.below(100) {
                0..40 => Input::Range(self.range()),
                40..65 => {
                    let key = self.key();
                    Input::Txn(Txn { success: vec![self.put(key)], ..Txn::default() })
                }
                65..75 => Input::Txn(Txn { success: vec![self.delete()], ..Txn::default() }),
                75..95 => Input::Txn(self.guarded()),
                95..98 if self.lease.is_none() => {
                    self.leases += 1;
                    let ttl = self.random.between(1, 10) as i64;
                    let id = i64::from(self.number) * 1_000_000 + self.leases;
                    let renewals = self.random.below(8);
                    let renew = Instant::now() + Duration::from_millis(ttl as u64 * 300);
                    let granted = self.ask(Input::LeaseGrant(id, ttl)).await;
                    if matches!(granted, Output::Lease(_)) {
                        self.lease = Some((id, ttl, renew, renewals));
                    }
                    continue;
                }
                98 if self.random.chance(1, 5) => {
                    Input::Compact((self.recorder.newest.get() - 200).max(1))
                }
                _ => match self.lease.as_ref().map(|(id, ..)| *id) {
                    Some(id) => {
                        if self.random.chance(1, 2) {
                            self.lease = None;
                            Input::LeaseRevoke(id)
                        } else {
                            Input::TimeToLive(id)
                        }
                    }
                    None => Input::Range(self.range()),
                },
            };
            self.ask(input).await;
        }
    }

    /// Renews its lease in time, as long as it wants it.
    async fn keep_lease(&mut self) {
        let Some((id, ttl, renew, renewals)) = self.lease else { return };
        if Instant::now() < renew {
            return;
        }
        if renewals == 0 {
            self.lease = None;
            return;
        }
        let next = Instant::now() + Duration::from_millis(ttl as u64 * 300);
        self.lease = Some((id, ttl, next, renewals - 1));
        if let Output::Lease(lease) = self.ask(Input::KeepAlive(id)).await
            && lease.ttl <= 0
        {
            self.lease = None;
        }
    }

    /// Asks, and asks others again when that does no harm.
    async fn ask(&mut self, input: Input) -> Output {
        let harmless = !matches!(&input, Input::Txn(txn) if crate::history::may_write(txn))
            && !matches!(input, Input::LeaseGrant(..));
        let mut left = 3;
        loop {
            let output =
                ask(&self.world, &self.recorder, self.number, self.member, input.clone()).await;
            let troubled = matches!(
                output,
                Output::Unknown | Output::Refused(Error::NoSpace | Error::TooManyRequests)
            );
            if troubled || self.random.chance(1, 10) {
                self.member = self.random.below(self.world.places() as u64) as usize;
            }
            if troubled && output == Output::Unknown {
                tokio::time::sleep(Duration::from_millis(self.random.between(20, 500))).await;
            }
            left -= 1;
            if output != Output::Unknown || !harmless || left == 0 || self.recorder.stopped.get() {
                self.note(&input, &output);
                return output;
            }
        }
    }

    fn note(&mut self, input: &Input, output: &Output) {
        let mut see = |kv: &KeyValue| {
            self.seen.insert(kv.key.clone(), kv.mod_revision);
        };
        match (input, output) {
            (_, Output::Range(found)) => found.kvs.iter().for_each(see),
            (Input::Txn(txn), Output::Txn(result)) => {
                for answer in &result.results {
                    if let OpResult::Range(found) = answer {
                        found.kvs.iter().for_each(&mut see);
                    }
                }
                let ran = if result.succeeded { &txn.success } else { &txn.failure };
                for op in ran {
                    if let Op::Put { key, .. } = op {
                        self.seen.insert(key.clone(), result.revision);
                    }
                }
            }
            _ => {}
        }
    }
}

/// A client that watches.
pub struct WatchClient {
    /// Its number.
    pub number: u32,
    /// The world it lives in.
    pub world: World,
    /// Where it writes down what happens.
    pub recorder: Recorder,
    /// Its chance.
    pub random: Random,
    /// It watches everything from the first revision on, and is never content with less.
    pub all: bool,
}

impl WatchClient {
    /// Lives until it is told to stop.
    pub async fn run(mut self) {
        let mut resume: Option<(Span, bool, i64)> = None;
        while !self.recorder.stopped.get() {
            let at = self.random.below(self.world.places() as u64) as usize;
            let (span, prev_kv, start) = resume.take().unwrap_or_else(|| self.choose());
            let called = self.recorder.now();
            let Some(store) = self.world.store(at).filter(|_| self.world.speaks(at)) else {
                resume = Some((span, prev_kv, start));
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            };
            let request = WatchRequest { span: span.clone(), start_revision: start, prev_kv };
            let Ok(watcher) = store.watch(request) else {
                resume = Some((span, prev_kv, start));
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            };
            drop(store);
            let opened = self.recorder.now();
            let (client, member) = (self.number, at as u64);
            let items = Vec::new();
            let mut watch =
                Watch { client, member, called, opened, span: span.clone(), start, prev_kv, items };
            let next = self.follow(at, watcher, &mut watch).await;
            self.recorder.history.borrow_mut().watches.push(watch);
            if self.all || self.random.chance(2, 3) {
                resume = next.map(|next| (span, prev_kv, next));
            }
        }
    }

    fn choose(&mut self) -> (Span, bool, i64) {
        if self.all {
            return (Span::From(Bytes::from_static(&[0])), true, 1);
        }
        let key = |random: &mut Random| Bytes::from(format!("k{:02}", random.below(KEYS)));
        let span = match self.random.below(3) {
            0 => Span::Key(key(&mut self.random)),
            1 => Span::Range(key(&mut self.random), "k99".into()),
            _ => Span::prefix("k"),
        };
        let newest = self.recorder.newest.get() as u64;
        let start = match self.random.below(3) {
            0 => 0,
            1 => self.random.between(newest.saturating_sub(300).max(1), newest + 1),
            _ => newest + self.random.below(5),
        };
        (span, self.random.chance(1, 2), start as i64)
    }

    /// Follows a watch for a while. Returns where to take it up again, when that is known.
    async fn follow(
        &mut self,
        at: usize,
        mut watcher: Box<dyn dhow_kv::Watcher>,
        watch: &mut Watch,
    ) -> Option<i64> {
        let mut next = (watch.start > 0).then_some(watch.start);
        let until = Instant::now() + Duration::from_millis(self.random.between(100, 60_000));
        let mut silent = 0;
        let world = self.world.clone();
        let ended = world.end_of(at);
        tokio::pin!(ended);
        loop {
            let patience = Instant::now() + Duration::from_millis(self.random.between(500, 3000));
            let item = tokio::select! {
                biased;
                () = &mut ended => return next,
                item = watcher.next() => item,
                () = tokio::time::sleep_until(patience.min(until)) => {
                    if Instant::now() >= until || self.recorder.stopped.get() || silent > 3 {
                        return next;
                    }
                    silent += 1;
                    watcher.request_progress();
                    continue;
                }
            };
            // What a member says counts when its disk is done with what it rests on.
            if let Some(clock) = self.world.clock(at) {
                clock.busy(self.world.disk(at).take_busy());
                tokio::select! {
                    biased;
                    () = &mut ended => return next,
                    () = tokio::time::sleep_until(clock.busy_until()) => {}
                }
            }
            if !self.world.speaks(at) {
                return next;
            }
            silent = 0;
            let moment = self.recorder.now();
            match item {
                None => return next,
                Some(WatchEvent::Events { revision, events }) => {
                    self.recorder.learn(revision);
                    watch.items.push((moment, Item::Events(revision, events)));
                    next = Some(revision + 1);
                }
                Some(WatchEvent::Progress(revision)) => {
                    self.recorder.learn(revision);
                    watch.items.push((moment, Item::Progress(revision)));
                    next = Some(next.unwrap_or(0).max(revision + 1));
                }
                Some(WatchEvent::Compacted(revision)) => {
                    watch.items.push((moment, Item::Compacted(revision)));
                    return Some(revision);
                }
            }
            if self.random.chance(1, 50) {
                watcher.request_progress();
            }
        }
    }
}

/// Follows everything on one member from `start` until it has progress at `revision`, and writes it
/// down. Returns whether that came in time.
pub async fn read_history(
    world: &World,
    recorder: &Recorder,
    at: usize,
    start: i64,
    revision: i64,
) -> bool {
    let called = recorder.now();
    let span = Span::From(Bytes::from_static(&[0]));
    let request = WatchRequest { span: span.clone(), start_revision: start, prev_kv: true };
    let Some(store) = world.store(at) else { return false };
    let Ok(mut watcher) = store.watch(request) else { return false };
    let opened = recorder.now();
    let mut watch = Watch {
        client: 0,
        member: at as u64,
        called,
        opened,
        span,
        start,
        prev_kv: true,
        items: Vec::new(),
    };
    let mut complete = false;
    watcher.request_progress();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !complete {
        let item = match tokio::time::timeout_at(deadline, watcher.next()).await {
            Ok(Some(item)) => item,
            Ok(None) | Err(_) => break,
        };
        let moment = recorder.now();
        match item {
            WatchEvent::Events { revision, events } => {
                watch.items.push((moment, Item::Events(revision, events)));
            }
            WatchEvent::Progress(until) => {
                watch.items.push((moment, Item::Progress(until)));
                complete = until >= revision;
                if !complete {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    watcher.request_progress();
                }
            }
            WatchEvent::Compacted(until) => {
                watch.items.push((moment, Item::Compacted(until)));
                break;
            }
        }
    }
    recorder.history.borrow_mut().watches.push(watch);
    complete
}
