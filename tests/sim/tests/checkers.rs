//! Each checker passes what a right store does, and catches what a wrong one would.
//!
//! Histories come from a generator: clients that overlap, requests that nobody knows the end of,
//! leases that run out, watches that are taken up again. Then one thing in them is made wrong.

use dhow_kv::{
    Compare, Error, Event, KeyValue, Lease, Op, OpResult, Order, Range, RangeResult, Span, Target,
    Txn, TxnResult,
};
use dhow_sim::check::model::{Model, read};
use dhow_sim::check::{self, Promise, Rules, kv::Replay, members::Holding};
use dhow_sim::history::{History, Input, Item, Moment, Operation, Output, Watch};
use dhow_sim::random::Random;
use std::time::{Duration, Instant};

struct Generator {
    random: Random,
    model: Model,
    log: Vec<Vec<Event>>,
    history: History,
    /// Under way: whether it has happened, and who has given up on it.
    pending: Vec<(Operation, bool, bool)>,
    order: u64,
    values: u64,
    leases: Vec<i64>,
    watches: Vec<(Watch, i64)>,
}

impl Generator {
    fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            model: Model::default(),
            log: vec![Vec::new(), Vec::new()],
            history: History::default(),
            pending: Vec::new(),
            order: 0,
            values: 0,
            leases: Vec::new(),
            watches: Vec::new(),
        }
    }

    fn now(&mut self) -> Moment {
        self.order += 1;
        Moment { order: self.order, time: Duration::from_millis(self.order * 3) }
    }

    fn key(&mut self) -> String {
        format!("k{}", self.random.below(8))
    }

    fn value(&mut self) -> String {
        self.values += 1;
        format!("v{}", self.values)
    }

    fn input(&mut self) -> Input {
        let key = self.key();
        let span = Span::Key(key.clone().into());
        match self.random.below(12) {
            0..3 => Input::Range(Range::all(span)),
            3 => Input::Range(Range::all(Span::prefix("k"))),
            4 => Input::Range(Range { limit: 3, keys_only: true, ..Range::all(Span::prefix("k")) }),
            5 => Input::Txn(Txn {
                success: vec![Op::Delete { span, prev_kv: true }],
                ..Txn::default()
            }),
            6..8 => {
                let known = self.model.keys.get(key.as_bytes()).map_or(0, |kv| kv.mod_revision);
                let guard = Compare {
                    span: span.clone(),
                    order: Order::Equal,
                    target: Target::ModRevision(known),
                };
                let value = self.value();
                Input::Txn(Txn {
                    compare: vec![guard],
                    success: vec![Op::put(key, value)],
                    failure: vec![Op::Range(Range::all(span))],
                })
            }
            8 => {
                let id = 1 + self.leases.len() as i64;
                self.leases.push(id);
                Input::LeaseGrant(id, 5)
            }
            9 if !self.leases.is_empty() => Input::LeaseRevoke(*self.random.pick(&self.leases)),
            _ => {
                let alive: Vec<i64> = self
                    .leases
                    .iter()
                    .copied()
                    .filter(|id| !self.model.ended.contains(id))
                    .collect();
                let lease = match alive.is_empty() || self.random.chance(1, 2) {
                    true => 0,
                    false => *self.random.pick(&alive),
                };
                let (key, value) = (key.into(), self.value().into());
                let put = Op::Put {
                    key,
                    value,
                    lease,
                    prev_kv: true,
                    ignore_value: false,
                    ignore_lease: false,
                };
                Input::Txn(Txn { success: vec![put], ..Txn::default() })
            }
        }
    }

    /// Makes it happen in the model.
    fn happen(&mut self, input: &Input) -> Output {
        match input {
            Input::Range(range) => {
                let found = read(&self.model.keys, range);
                Output::Range(RangeResult { revision: self.model.revision, ..found })
            }
            Input::Txn(txn) => match self.model.apply(txn) {
                None => Output::Refused(Error::LeaseNotFound),
                Some((result, events, _)) => {
                    if !events.is_empty() {
                        self.log.push(events);
                    }
                    Output::Txn(result)
                }
            },
            Input::LeaseGrant(id, ttl) => {
                Output::Lease(Lease { id: *id, granted_ttl: *ttl, ttl: *ttl, keys: Vec::new() })
            }
            Input::LeaseRevoke(id) => {
                if self.model.ended.contains(id) {
                    return Output::Refused(Error::LeaseNotFound);
                }
                self.end(*id);
                Output::Revision(self.model.revision)
            }
            _ => Output::Unknown,
        }
    }

    fn end(&mut self, id: i64) {
        let (events, _) = self.model.end_lease(id);
        if !events.is_empty() {
            self.log.push(events);
        }
    }

    fn step(&mut self) {
        match self.random.below(10) {
            0..4 if self.pending.len() < 6 => {
                let input = self.input();
                let called = self.now();
                let operation = Operation {
                    client: 1,
                    member: 1,
                    called,
                    returned: called,
                    input,
                    output: Output::Unknown,
                };
                self.pending.push((operation, false, false));
            }
            0..6 if !self.pending.is_empty() => {
                let at = self.random.below(self.pending.len() as u64) as usize;
                if self.pending[at].1 {
                    return;
                }
                let input = self.pending[at].0.input.clone();
                let output = self.happen(&input);
                self.pending[at].1 = true;
                match self.pending[at].2 {
                    // Too late for who asked.
                    true => drop(self.pending.swap_remove(at)),
                    false => self.pending[at].0.output = output,
                }
            }
            6..8 if !self.pending.is_empty() => {
                let at = self.random.below(self.pending.len() as u64) as usize;
                let gives_up = self.random.chance(1, 12);
                let (mut operation, done, gone) = self.pending[at].clone();
                if gone || !(done || gives_up) {
                    return;
                }
                operation.returned = self.now();
                if gives_up {
                    operation.output = Output::Unknown;
                }
                self.history.operations.push(operation);
                match gives_up && !done && self.random.chance(1, 2) {
                    true => self.pending[at].2 = true,
                    false => drop(self.pending.swap_remove(at)),
                }
            }
            8 if self.random.chance(1, 20) => {
                let due = |id: &&i64| !self.model.ended.contains(id);
                let Some(id) = self.leases.iter().copied().find(|id| due(&id)) else { return };
                let granted = self
                    .history
                    .operations
                    .iter()
                    .find(|o| matches!(o.input, Input::LeaseGrant(of, _) if of == id));
                let time = Duration::from_millis(self.order * 3);
                if granted.is_some_and(|o| o.returned.time + Duration::from_secs(5) < time) {
                    self.end(id);
                }
            }
            _ => self.watch(),
        }
    }

    /// Opens, feeds or ends a watch.
    fn watch(&mut self) {
        if self.watches.len() < 3 {
            let called = self.now();
            let opened = self.now();
            let span = if self.random.chance(1, 2) {
                Span::prefix("k")
            } else {
                Span::Key(self.key().into())
            };
            let start = self.random.below(self.model.revision as u64 + 3) as i64;
            let prev_kv = self.random.chance(1, 2);
            let next = if start == 0 { self.model.revision + 1 } else { start };
            let watch = Watch {
                client: 2,
                member: 1,
                called,
                opened,
                span,
                start,
                prev_kv,
                items: Vec::new(),
            };
            self.watches.push((watch, next));
            return;
        }
        let at = self.random.below(3) as usize;
        for _ in 0..self.random.below(20) {
            self.feed(at);
        }
        if self.random.chance(1, 10) {
            let (watch, next) = self.watches.swap_remove(at);
            if self.random.chance(1, 2) {
                let (called, opened) = (self.now(), self.now());
                let again =
                    Watch { called, opened, start: next, items: Vec::new(), ..watch.clone() };
                self.watches.push((again, next));
            }
            self.history.watches.push(watch);
        }
    }

    fn feed(&mut self, at: usize) {
        let moment = self.now();
        let (watch, next) = &mut self.watches[at];
        if *next > self.model.revision {
            if watch.start <= self.model.revision {
                watch.items.push((moment, Item::Progress(self.model.revision)));
            }
            return;
        }
        let revision = *next;
        let events: Vec<Event> = self.log[revision as usize]
            .iter()
            .filter(|event| watch.span.contains(&event.kv.key))
            .cloned()
            .map(|event| Event { prev_kv: event.prev_kv.filter(|_| watch.prev_kv), ..event })
            .collect();
        if !events.is_empty() {
            watch.items.push((moment, Item::Events(revision, events.into())));
        }
        *next += 1;
    }

    fn finish(mut self) -> (History, Model) {
        for (operation, _, gone) in std::mem::take(&mut self.pending) {
            if !gone {
                let returned = self.now();
                let output = Output::Unknown;
                self.history.operations.push(Operation { returned, output, ..operation });
            }
        }
        let rest = self.watches.drain(..).map(|(watch, _)| watch).collect::<Vec<_>>();
        self.history.watches.extend(rest);
        (self.history, self.model)
    }
}

fn generate(seed: u64, steps: usize) -> (History, Model) {
    let mut generator = Generator::new(seed);
    for _ in 0..steps {
        generator.step();
    }
    generator.finish()
}

fn checked(history: &History) -> Result<Replay, Promise> {
    check::all(history, &Rules::default()).map_err(|violation| violation.promise)
}

#[test]
fn what_a_right_store_does_passes() {
    for seed in 0..60 {
        let (history, _) = generate(seed, 3000);
        if let Err(violation) = check::all(&history, &Rules::default()) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn without_watches_it_passes_too() {
    for seed in 100..160 {
        let (mut history, _) = generate(seed, 3000);
        history.watches.clear();
        if let Err(violation) = check::all(&history, &Rules::default()) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn thousands_of_operations_are_decided_in_seconds() {
    let (history, _) = generate(5, 60_000);
    let unknown = history.operations.iter().filter(|o| o.output == Output::Unknown).count();
    assert!(history.operations.len() > 8_000, "{}", history.operations.len());
    assert!(unknown > 1000, "{unknown}");
    let began = Instant::now();
    check::all(&history, &Rules::default()).unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    eprintln!("{} operations, {unknown} unknown: {:?}", history.operations.len(), began.elapsed());
}

/// Makes one thing wrong in many histories, wherever `spoil` finds something, and tells how often
/// that was caught, and as what.
fn spoiled(spoil: impl Fn(&mut History, &mut Random) -> bool) -> (usize, Vec<Promise>) {
    let (mut tried, mut caught) = (0, Vec::new());
    for seed in 0..40 {
        let (mut history, _) = generate(seed, 2500);
        let mut random = Random::new(seed);
        if !spoil(&mut history, &mut random) {
            continue;
        }
        tried += 1;
        if let Err(promise) = checked(&history) {
            caught.push(promise);
        }
    }
    (tried, caught)
}

fn always(what: &[Promise], spoil: impl Fn(&mut History, &mut Random) -> bool) {
    let (tried, caught) = spoiled(spoil);
    assert!(tried > 10, "only {tried} histories could be spoiled");
    assert_eq!(caught.len(), tried, "caught {} of {tried}", caught.len());
    assert!(caught.iter().all(|promise| what.contains(promise)), "{caught:?}");
}

/// The places of the operations that fit, one of which is drawn.
fn draw(
    history: &History,
    random: &mut Random,
    fits: impl Fn(&Operation) -> bool,
) -> Option<usize> {
    let all: Vec<usize> =
        (0..history.operations.len()).filter(|at| fits(&history.operations[*at])).collect();
    (!all.is_empty()).then(|| *random.pick(&all))
}

fn found(operation: &Operation) -> Option<&KeyValue> {
    match (&operation.input, &operation.output) {
        (Input::Range(range), Output::Range(found)) if !range.keys_only => found.kvs.first(),
        _ => None,
    }
}

fn claims(operation: &Operation) -> bool {
    matches!((&operation.input, &operation.output), (Input::Txn(txn), Output::Txn(result))
        if result.succeeded && matches!(txn.success[0], Op::Put { .. }))
}

#[test]
fn a_read_of_what_nobody_wrote_is_caught() {
    always(&[Promise::Linearizable], |history, random| {
        let Some(at) = draw(history, random, |o| found(o).is_some()) else { return false };
        let Output::Range(found) = &mut history.operations[at].output else { return false };
        found.kvs[0].value = "never written".into();
        true
    });
}

#[test]
fn a_stale_read_is_caught() {
    always(&[Promise::Linearizable], |history, random| {
        // An answer as of long ago.
        let Some(at) = draw(history, random, |o| o.called.order > 800 && found(o).is_some()) else {
            return false;
        };
        let old = history.operations.iter().find(|o| {
            o.input == history.operations[at].input
                && o.returned.order < 400
                && matches!(o.output, Output::Range(_))
        });
        let Some(old) = old.map(|o| o.output.clone()) else { return false };
        history.operations[at].output = old;
        true
    });
}

#[test]
fn a_lost_write_is_caught() {
    // It was acknowledged, but everything goes on as if it had not been.
    always(&[Promise::Linearizable], |history, random| {
        let Some(at) = draw(history, random, claims) else { return false };
        let Output::Txn(TxnResult { revision, .. }) = history.operations[at].output else {
            return false;
        };
        let Some(other) = draw(history, random, |o| {
            claims(o) && matches!(&o.output, Output::Txn(r) if r.revision != revision)
        }) else {
            return false;
        };
        // Its place is taken by another's.
        let Output::Txn(result) = &mut history.operations[other].output else { return false };
        result.revision = revision;
        true
    });
}

#[test]
fn a_read_that_misses_an_acknowledged_write_is_caught() {
    always(&[Promise::Linearizable], |history, random| {
        let Some(at) = draw(history, random, |o| found(o).is_some()) else { return false };
        let Output::Range(found) = &mut history.operations[at].output else { return false };
        found.kvs.remove(0);
        found.count -= 1;
        true
    });
}

#[test]
fn a_guard_that_is_not_kept_is_caught() {
    always(&[Promise::Linearizable], |history, random| {
        let guarded = |o: &Operation| matches!((&o.input, &o.output), (Input::Txn(txn), Output::Txn(r)) if !txn.compare.is_empty() && r.succeeded);
        let Some(at) = draw(history, random, guarded) else { return false };
        let Input::Txn(txn) = &mut history.operations[at].input else { return false };
        let Target::ModRevision(revision) = &mut txn.compare[0].target else { return false };
        *revision += 1;
        true
    });
}

#[test]
fn a_write_that_was_refused_and_happened_is_caught() {
    always(&[Promise::Linearizable], |history, random| {
        // A write that somebody saw.
        let seen: Vec<i64> =
            history.operations.iter().filter_map(found).map(|kv| kv.mod_revision).collect();
        let fits = |o: &Operation| {
            claims(o) && matches!(&o.output, Output::Txn(r) if seen.contains(&r.revision))
        };
        let Some(at) = draw(history, random, fits) else { return false };
        history.operations[at].output = Output::Refused(Error::TooManyRequests);
        true
    });
}

#[test]
fn a_write_that_happens_before_it_is_asked_for_is_caught() {
    always(&[Promise::Linearizable], |history, random| {
        let last = history.operations.iter().map(|o| o.returned.order).max().unwrap_or(0);
        let Some(at) = draw(history, random, |o| claims(o) && o.returned.order < last / 2) else {
            return false;
        };
        let operation = &mut history.operations[at];
        operation.called.order = last + 1;
        operation.returned.order = last + 2;
        true
    });
}

#[test]
fn a_write_of_unknown_outcome_that_happens_twice_is_caught() {
    // Two revisions with one value, of which only one writer is known.
    let moment = |order| Moment { order, time: Duration::from_millis(order) };
    let put = |order, output| Operation {
        client: 1,
        member: 1,
        called: moment(order),
        returned: moment(order + 1),
        input: Input::Txn(Txn { success: vec![Op::put("k", "v")], ..Txn::default() }),
        output,
    };
    let read = |order, revision, version| {
        let kv = KeyValue {
            key: "k".into(),
            value: "v".into(),
            create_revision: 2,
            mod_revision: revision,
            version,
            lease: 0,
        };
        Operation {
            input: Input::Range(Range::all(Span::Key("k".into()))),
            output: Output::Range(RangeResult { revision, kvs: vec![kv], more: false, count: 1 }),
            ..put(order, Output::Unknown)
        }
    };
    let operations = vec![put(1, Output::Unknown), read(10, 2, 1), read(20, 3, 2)];
    let mut history = History { operations, ..History::default() };
    assert_eq!(checked(&history).unwrap_err(), Promise::Linearizable);
    history.operations.insert(1, put(3, Output::Unknown));
    checked(&history).unwrap();
}

/// Draws a watch and the place of an events item in it that fits.
fn draw_item(
    history: &History,
    random: &mut Random,
    fits: impl Fn(&Watch, usize) -> bool,
) -> Option<(usize, usize)> {
    let mut all = Vec::new();
    for (watch, held) in history.watches.iter().enumerate() {
        for at in 0..held.items.len() {
            if matches!(held.items[at].1, Item::Events(..)) && fits(held, at) {
                all.push((watch, at));
            }
        }
    }
    (!all.is_empty()).then(|| *random.pick(&all))
}

#[test]
fn an_event_that_is_left_out_is_caught() {
    // When nobody but the watch knows what made a revision, nothing explains its silence.
    let what =
        [Promise::Reliable, Promise::Bookmarkable, Promise::Resumable, Promise::Linearizable];
    always(&what, |history, random| {
        let Some((watch, at)) =
            draw_item(history, random, |watch, at| at + 1 < watch.items.len() && watch.start > 0)
        else {
            return false;
        };
        history.watches[watch].items.remove(at);
        true
    });
}

#[test]
fn an_event_that_comes_twice_is_caught() {
    always(&[Promise::Unique], |history, random| {
        let Some((watch, at)) = draw_item(history, random, |_, _| true) else { return false };
        let mut again = history.watches[watch].items[at].clone();
        again.0.order = u64::MAX - 1;
        history.watches[watch].items.insert(at + 1, again);
        true
    });
}

#[test]
fn events_in_the_wrong_order_are_caught() {
    always(&[Promise::Ordered, Promise::Reliable, Promise::Resumable], |history, random| {
        let next = |watch: &Watch, at: usize| {
            matches!(watch.items.get(at + 1), Some((_, Item::Events(..))))
        };
        let Some((watch, at)) = draw_item(history, random, next) else { return false };
        let items = &mut history.watches[watch].items;
        let (first, second) = (items[at].1.clone(), items[at + 1].1.clone());
        items[at].1 = second;
        items[at + 1].1 = first;
        true
    });
}

#[test]
fn a_revision_in_parts_is_caught() {
    // Leases end several keys at once.
    let (tried, caught) = spoiled(|history, random| {
        let several = |watch: &Watch, at: usize| matches!(&watch.items[at].1, Item::Events(_, events) if events.len() > 1);
        let Some((watch, at)) = draw_item(history, random, several) else { return false };
        let Item::Events(_, events) = &mut history.watches[watch].items[at].1 else { return false };
        *events = events[1..].into();
        true
    });
    assert!(tried > 10 && caught.len() == tried, "{} of {tried}", caught.len());
    assert!(caught.iter().all(|promise| *promise == Promise::Atomic), "{caught:?}");
}

#[test]
fn a_wrong_previous_value_is_caught() {
    always(&[Promise::PrevKv, Promise::Linearizable], |history, random| {
        let has = |watch: &Watch, at: usize| matches!(&watch.items[at].1, Item::Events(_, events) if events[0].prev_kv.is_some());
        let Some((watch, at)) = draw_item(history, random, has) else { return false };
        let Item::Events(_, events) = &mut history.watches[watch].items[at].1 else { return false };
        let mut changed: Vec<Event> = events.to_vec();
        match random.chance(1, 2) {
            true => changed[0].prev_kv = None,
            false => {
                if let Some(kv) = &mut changed[0].prev_kv {
                    kv.version += 1;
                }
            }
        }
        *events = changed.into();
        true
    });
}

#[test]
fn progress_that_was_not_made_is_caught() {
    always(&[Promise::Bookmarkable], |history, random| {
        let Some((watch, at)) = draw_item(history, random, |_, _| true) else { return false };
        let items = &mut history.watches[watch].items;
        let (moment, Item::Events(revision, _)) = items[at].clone() else { return false };
        items.insert(at, (moment, Item::Progress(revision)));
        true
    });
}

fn moment(order: u64, seconds: u64) -> Moment {
    Moment { order, time: Duration::from_secs(seconds) }
}

fn operation(called: (u64, u64), returned: (u64, u64), input: Input, output: Output) -> Operation {
    let (called, returned) = (moment(called.0, called.1), moment(returned.0, returned.1));
    Operation { client: 1, member: 1, called, returned, input, output }
}

/// A lease of ten seconds at 0 s, a key on it at 1 s, renewed at 8 s, the key gone at `gone` s.
fn leased(gone: u64) -> History {
    let lease = |ttl| Output::Lease(Lease { id: 7, granted_ttl: 10, ttl, keys: Vec::new() });
    let put = Op::Put {
        key: "k".into(),
        value: "v".into(),
        lease: 7,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    let txn = Txn { success: vec![put], ..Txn::default() };
    let result =
        TxnResult { revision: 2, succeeded: true, results: vec![OpResult::Put { prev_kv: None }] };
    let range = Range::all(Span::Key("k".into()));
    let none = RangeResult { revision: 3, ..RangeResult::default() };
    History {
        operations: vec![
            operation((1, 0), (2, 0), Input::LeaseGrant(7, 10), lease(10)),
            operation((3, 1), (4, 1), Input::Txn(txn), Output::Txn(result)),
            operation((5, 8), (6, 8), Input::KeepAlive(7), lease(10)),
            operation((7, gone), (8, gone), Input::Range(range), Output::Range(none)),
        ],
        watches: Vec::new(),
    }
}

#[test]
fn a_lease_that_ends_although_it_is_kept_alive_is_caught() {
    checked(&leased(19)).unwrap();
    assert_eq!(checked(&leased(15)).unwrap_err(), Promise::LeaseKept);
    // Nobody knows of its end but from an answer.
    let mut told = leased(19);
    let none = Output::Lease(Lease { id: 7, granted_ttl: 0, ttl: -1, keys: Vec::new() });
    told.operations[3] = operation((7, 12), (8, 12), Input::TimeToLive(7), none);
    assert_eq!(checked(&told).unwrap_err(), Promise::LeaseKept);
}

#[test]
fn a_lease_that_lives_after_its_end_is_caught() {
    let mut history = leased(19);
    let revoke = operation((7, 12), (8, 12), Input::LeaseRevoke(7), Output::Revision(3));
    let renewed = Output::Lease(Lease { id: 7, granted_ttl: 10, ttl: 10, keys: Vec::new() });
    history.operations[3] = revoke;
    checked(&history).unwrap();
    history.operations.push(operation((9, 13), (10, 13), Input::KeepAlive(7), renewed));
    assert_eq!(checked(&history).unwrap_err(), Promise::LeaseGone);
}

#[test]
fn a_key_that_outlives_its_lease_is_caught() {
    let mut history = leased(19);
    let kv = KeyValue {
        key: "k".into(),
        value: "v".into(),
        create_revision: 2,
        mod_revision: 2,
        version: 1,
        lease: 7,
    };
    let still = |at| {
        let output = RangeResult { revision: 2, kvs: vec![kv.clone()], more: false, count: 1 };
        let range = Range::all(Span::Key("k".into()));
        operation((9, at), (10, at), Input::Range(range), Output::Range(output))
    };
    let gone = |history: &History| {
        let slack = Duration::from_secs(5);
        check::lease::gone(history, Duration::ZERO, slack, &Rules::default())
    };
    history.operations[3] = still(17);
    gone(&history).unwrap();
    history.operations[3] = still(30);
    assert_eq!(gone(&history).unwrap_err().promise, Promise::LeaseGone);
}

#[test]
fn members_that_differ_are_caught() {
    let (history, model) = generate(3, 2000);
    let replay = checked(&history).unwrap();
    let holding = |member| Holding {
        member,
        revision: model.revision,
        kvs: model.keys.values().cloned().collect(),
        leases: vec![1],
        rest: "two users".into(),
        hash: None,
    };
    let same = vec![holding(1), holding(2), holding(3)];
    check::members::check(&same, &replay).unwrap();
    let spoil = |spoil: fn(&mut Holding)| {
        let mut holdings = same.clone();
        spoil(&mut holdings[2]);
        check::members::check(&holdings, &replay).map_err(|violation| violation.promise)
    };
    assert_eq!(spoil(|holding| holding.revision += 1), Err(Promise::Agreement));
    assert_eq!(spoil(|holding| drop(holding.kvs.pop())), Err(Promise::Agreement));
    assert_eq!(spoil(|holding| holding.kvs[0].version += 1), Err(Promise::Agreement));
    assert_eq!(spoil(|holding| holding.leases.clear()), Err(Promise::Agreement));
    assert_eq!(spoil(|holding| holding.rest.clear()), Err(Promise::Agreement));
    // All alike, and all wrong.
    let mut wrong = same.clone();
    wrong.iter_mut().for_each(|holding| holding.kvs[0].value = "other".into());
    if model.revision == replay.last() {
        assert!(check::members::check(&wrong, &replay).is_err());
    }
}

#[test]
fn equal_histories_have_equal_digests() {
    let (first, second) = (generate(9, 1000).0, generate(9, 1000).0);
    assert_eq!(first.digest(), second.digest());
    let mut third = second;
    third.operations[0].client += 1;
    assert_ne!(first.digest(), third.digest());
}
