//! The state machine against a naive model that keeps a whole copy of the keys per revision.

use bytes::Bytes;
use dhow_kv::{
    Compare, Error, KeyValue, Op, OpResult, Order, Range, Select, SortBy, Span, Target, Txn,
    TxnResult,
};
use dhow_mvcc::{Command, Export, Import, Limits, Loader, Mvcc, Outcome, Rows, check_txn};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

type Keys = BTreeMap<Bytes, KeyValue>;

#[derive(Debug, Clone, Default)]
struct Model {
    /// The keys after each revision from 1 on.
    past: Vec<Keys>,
    /// What each revision from 1 on wrote, in order: the key and its value or `None`.
    written: Vec<Vec<(Bytes, Option<KeyValue>)>>,
    leases: BTreeMap<i64, i64>,
    compacted: i64,
}

impl Model {
    fn new() -> Self {
        Self { past: vec![Keys::new()], written: vec![vec![]], ..Self::default() }
    }

    fn revision(&self) -> i64 {
        self.past.len() as i64
    }

    fn at(&self, revision: i64) -> &Keys {
        &self.past[revision as usize - 1]
    }

    fn now(&self) -> &Keys {
        self.at(self.revision())
    }

    fn range(&self, range: &Range, keys: &Keys) -> (Vec<KeyValue>, bool, i64) {
        let all: Vec<KeyValue> =
            keys.values().filter(|kv| range.span.contains(&kv.key)).cloned().collect();
        let count = all.len() as i64;
        if range.count_only {
            return (Vec::new(), false, count);
        }
        let all = select(all, &range.select);
        let limit = if range.limit == 0 { all.len() } else { range.limit };
        let more = all.len() > limit;
        let mut kvs: Vec<KeyValue> = all.into_iter().take(limit).collect();
        if range.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        (kvs, more, count)
    }

    fn holds(&self, compare: &Compare) -> bool {
        let absent = KeyValue {
            key: Bytes::new(),
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: 0,
            version: 0,
            lease: 0,
        };
        let found: Vec<&KeyValue> =
            self.now().values().filter(|kv| compare.span.contains(&kv.key)).collect();
        let test = |kv: &KeyValue| {
            let ordering = match &compare.target {
                Target::Version(n) => kv.version.cmp(n),
                Target::CreateRevision(n) => kv.create_revision.cmp(n),
                Target::ModRevision(n) => kv.mod_revision.cmp(n),
                Target::Lease(n) => kv.lease.cmp(n),
                Target::Value(value) => kv.value.cmp(value),
            };
            match compare.order {
                Order::Equal => ordering.is_eq(),
                Order::NotEqual => ordering.is_ne(),
                Order::Greater => ordering.is_gt(),
                Order::Less => ordering.is_lt(),
            }
        };
        if found.is_empty() {
            return !matches!(compare.target, Target::Value(_)) && test(&absent);
        }
        found.into_iter().all(test)
    }

    /// Runs a transaction on `work`; guards look at the state before it.
    fn run(&self, txn: &Txn, work: &mut Work) -> Result<TxnResult, Error> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let mut results = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            results.push(match op {
                Op::Range(range) => {
                    let keys = match range.revision {
                        0 => &work.keys,
                        at if at > self.revision() => return Err(Error::FutureRevision),
                        at if at < self.compacted => return Err(Error::Compacted),
                        at => self.at(at),
                    };
                    let (kvs, more, count) = self.range(range, keys);
                    let revision = work.revision(self);
                    OpResult::Range(dhow_kv::RangeResult { revision, kvs, more, count })
                }
                Op::Put { key, value, lease, prev_kv, ignore_value, ignore_lease } => {
                    if *lease != 0 && !self.leases.contains_key(lease) {
                        return Err(Error::LeaseNotFound);
                    }
                    if (*ignore_value || *ignore_lease) && !self.now().contains_key(key) {
                        return Err(Error::KeyNotFound);
                    }
                    let before = work.keys.get(key).cloned();
                    let next = self.revision() + 1;
                    let old = before.as_ref();
                    let kv = KeyValue {
                        key: key.clone(),
                        value: match old {
                            Some(old) if *ignore_value => old.value.clone(),
                            _ => value.clone(),
                        },
                        create_revision: old.map_or(next, |old| old.create_revision),
                        mod_revision: next,
                        version: old.map_or(1, |old| old.version + 1),
                        lease: match old {
                            Some(old) if *ignore_lease => old.lease,
                            _ => *lease,
                        },
                    };
                    work.keys.insert(key.clone(), kv.clone());
                    work.written.push((key.clone(), Some(kv)));
                    OpResult::Put { prev_kv: before.filter(|_| *prev_kv) }
                }
                Op::Delete { span, prev_kv } => {
                    let gone = work.delete(span);
                    OpResult::Delete {
                        deleted: gone.len() as i64,
                        prev_kvs: if *prev_kv { gone } else { Vec::new() },
                    }
                }
                Op::Txn(inner) => OpResult::Txn(self.run(inner, work)?),
            });
        }
        Ok(TxnResult { revision: work.revision(self), succeeded, results })
    }

    fn commit(&mut self, work: Work) {
        if !work.written.is_empty() {
            self.past.push(work.keys);
            self.written.push(work.written);
        }
    }

    fn apply(&mut self, command: &Command) -> Result<Outcome, Error> {
        let mut work = Work { keys: self.now().clone(), written: Vec::new() };
        match command {
            Command::Txn(txn) | Command::TxnAs { txn, .. } => {
                let result = self.run(txn, &mut work)?;
                self.commit(work);
                return Ok(Outcome::Txn(result));
            }
            Command::Compact(revision) if *revision > self.revision() => {
                return Err(Error::FutureRevision);
            }
            Command::Compact(revision) if *revision <= self.compacted => {
                return Err(Error::Compacted);
            }
            Command::Compact(revision) => self.compacted = *revision,
            Command::LeaseGrant { id, .. } if self.leases.contains_key(id) => {
                return Err(Error::LeaseExists);
            }
            Command::LeaseGrant { id, ttl } => drop(self.leases.insert(*id, *ttl)),
            Command::LeaseRevoke { id } => {
                self.leases.remove(id).ok_or(Error::LeaseNotFound)?;
                let keys: Vec<Bytes> = work
                    .keys
                    .values()
                    .filter(|kv| kv.lease == *id)
                    .map(|kv| kv.key.clone())
                    .collect();
                for key in keys {
                    work.delete(&Span::Key(key));
                }
                self.commit(work);
            }
            _ => {}
        }
        Ok(Outcome::Done(self.revision()))
    }
}

/// What a selection leaves, in its order.
fn select(mut all: Vec<KeyValue>, select: &Select) -> Vec<KeyValue> {
    let bounds = [
        (select.min_mod_revision, 1),
        (select.max_mod_revision, -1),
        (select.min_create_revision, 1),
        (select.max_create_revision, -1),
    ];
    for (at, (bound, sign)) in bounds.into_iter().enumerate().filter(|(_, (b, _))| *b != 0) {
        all.retain(|kv| {
            let of = if at < 2 { kv.mod_revision } else { kv.create_revision };
            of * sign >= bound * sign
        });
    }
    if let Some((by, descending)) = select.sort {
        // From behind, so that a sort that is reversed leaves equals in the order of their keys.
        if descending {
            all.reverse();
        }
        match by {
            SortBy::Key => all.sort_by(|a, b| a.key.cmp(&b.key)),
            SortBy::Version => all.sort_by_key(|kv| kv.version),
            SortBy::CreateRevision => all.sort_by_key(|kv| kv.create_revision),
            SortBy::ModRevision => all.sort_by_key(|kv| kv.mod_revision),
            SortBy::Value => all.sort_by(|a, b| a.value.cmp(&b.value)),
        }
        if descending {
            all.reverse();
        }
    }
    all
}

struct Work {
    keys: Keys,
    written: Vec<(Bytes, Option<KeyValue>)>,
}

impl Work {
    fn revision(&self, model: &Model) -> i64 {
        model.revision() + i64::from(!self.written.is_empty())
    }

    fn delete(&mut self, span: &Span) -> Vec<KeyValue> {
        let gone: Vec<KeyValue> =
            self.keys.values().filter(|kv| span.contains(&kv.key)).cloned().collect();
        for kv in &gone {
            self.keys.remove(&kv.key);
            self.written.push((kv.key.clone(), None));
        }
        gone
    }
}

/// Everything that can be asked must be answered alike.
fn check(mvcc: &Mvcc, model: &Model) {
    let now = model.revision();
    assert_eq!((mvcc.revision(), mvcc.compacted()), (now, model.compacted));
    assert_eq!(mvcc.keys(), model.now().len());
    let whole = Span::From(Bytes::new());
    let part = Span::Range("b".into(), "f".into());
    for revision in model.compacted.max(1)..=now {
        for span in [&whole, &part, &Span::Key("c".into())] {
            for limit in [0, 2] {
                let range = Range { revision, limit, ..Range::all(span.clone()) };
                let found = mvcc.range(&range, now).unwrap();
                let wanted = model.range(&range, model.at(revision));
                assert_eq!((found.kvs, found.more, found.count), wanted, "at {revision}");
            }
            assert_eq!(
                mvcc.count_at(span, revision),
                model.at(revision).values().filter(|kv| span.contains(&kv.key)).count(),
            );
        }
        let (first, more) = mvcc.scan(&whole, None, revision, false, 3);
        let after = first.last().map(|kv| kv.key.clone());
        let (rest, _) = mvcc.scan(&whole, after.as_ref(), revision, false, usize::MAX / 16);
        assert!(more || rest.is_empty());
        let all: Vec<&KeyValue> = first.iter().chain(&rest).collect();
        assert_eq!(all, model.at(revision).values().collect::<Vec<_>>());

        let events = mvcc.events(revision, true, None);
        let wanted = &model.written[revision as usize - 1];
        assert_eq!(events.len(), wanted.len(), "events of {revision}");
        let mut touched = BTreeSet::new();
        for (event, (key, kv)) in events.iter().zip(wanted) {
            assert_eq!((&event.kv.key, event.kv.mod_revision), (key, revision));
            assert_eq!(event.deleted, kv.is_none());
            if let Some(kv) = kv {
                assert_eq!(&event.kv, kv);
            }
            let first = touched.insert(key);
            if first && revision > model.compacted.max(1) {
                assert_eq!(event.prev_kv.as_ref(), model.at(revision - 1).get(key));
            }
        }
    }
    if model.compacted > 1 {
        let range = Range { revision: model.compacted - 1, ..Range::all(whole) };
        assert_eq!(mvcc.range(&range, now), Err(Error::Compacted));
    }
    assert_eq!(mvcc.leases().collect::<BTreeMap<_, _>>(), model.leases);
    for id in model.leases.keys() {
        let keys: Vec<&Bytes> =
            model.now().values().filter(|kv| kv.lease == *id).map(|kv| &kv.key).collect();
        assert_eq!(mvcc.lease_keys(*id).iter().collect::<Vec<_>>(), keys);
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    (0..8_u8).prop_map(|n| Bytes::from(vec![b'a' + n]))
}

fn span() -> impl Strategy<Value = Span> {
    prop_oneof![
        3 => key().prop_map(Span::Key),
        2 => (key(), key()).prop_map(|(from, to)| Span::Range(from, to)),
        1 => key().prop_map(Span::From),
    ]
}

fn range() -> impl Strategy<Value = Op> {
    let revision = prop_oneof![4 => Just(0_i64), 1 => 1..40_i64];
    let select = prop_oneof![2 => Just(Select::default()), 1 => selection()];
    (span(), revision, 0..4_usize, any::<bool>(), any::<bool>(), select).prop_map(
        |(span, revision, limit, keys_only, count_only, select)| {
            Op::Range(Range { revision, limit, keys_only, count_only, select, ..Range::all(span) })
        },
    )
}

fn selection() -> impl Strategy<Value = Select> {
    let by = prop_oneof![
        Just(SortBy::Key),
        Just(SortBy::Version),
        Just(SortBy::CreateRevision),
        Just(SortBy::ModRevision),
        Just(SortBy::Value),
    ];
    let bound = || prop_oneof![3 => Just(0_i64), 1 => 1..30_i64];
    let sort = prop::option::of((by, any::<bool>()));
    (sort, bound(), bound(), bound(), bound()).prop_map(|(sort, a, b, c, d)| Select {
        sort,
        min_mod_revision: a,
        max_mod_revision: b,
        min_create_revision: c,
        max_create_revision: d,
    })
}

fn put() -> impl Strategy<Value = Op> {
    let lease = prop_oneof![3 => Just(0_i64), 1 => 1..4_i64];
    (key(), "[xyz]{0,2}", lease, any::<bool>(), 0..8_u8).prop_map(
        |(key, value, lease, prev_kv, rare)| Op::Put {
            key,
            value: if rare == 0 { Bytes::new() } else { value.into() },
            lease: if rare == 1 { 0 } else { lease },
            prev_kv,
            ignore_value: rare == 0,
            ignore_lease: rare == 1,
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    let order = prop_oneof![
        Just(Order::Equal),
        Just(Order::NotEqual),
        Just(Order::Greater),
        Just(Order::Less)
    ];
    let target = prop_oneof![
        (0..3_i64).prop_map(Target::Version),
        (0..20_i64).prop_map(Target::CreateRevision),
        (0..20_i64).prop_map(Target::ModRevision),
        (0..3_i64).prop_map(Target::Lease),
        "[xyz]{0,2}".prop_map(|value| Target::Value(value.into())),
    ];
    (span(), order, target).prop_map(|(span, order, target)| Compare { span, order, target })
}

fn txn() -> impl Strategy<Value = Txn> {
    let op = prop_oneof![
        2 => range(),
        4 => put(),
        2 => (span(), any::<bool>()).prop_map(|(span, prev_kv)| Op::Delete { span, prev_kv }),
    ];
    let made = |op: BoxedStrategy<Op>| {
        (
            prop::collection::vec(compare(), 0..2),
            prop::collection::vec(op.clone(), 0..4),
            prop::collection::vec(op, 0..3),
        )
            .prop_map(|(compare, success, failure)| Txn { compare, success, failure })
    };
    let flat = made(op.clone().boxed());
    made(prop_oneof![5 => op, 1 => flat.prop_map(Op::Txn)].boxed())
}

#[derive(Debug, Clone)]
enum Step {
    Command(Command),
    Prune(usize),
    Reload,
    Travel(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => txn().prop_map(Command::Txn).prop_map(Step::Command),
        1 => (1..40_i64).prop_map(Command::Compact).prop_map(Step::Command),
        1 => (1..4_i64).prop_map(|id| Step::Command(Command::LeaseGrant { id, ttl: id * 10 })),
        1 => (1..4_i64).prop_map(|id| Step::Command(Command::LeaseRevoke { id })),
        2 => (0..4_usize).prop_map(Step::Prune),
        1 => Just(Step::Reload),
        1 => (1..20_usize).prop_map(Step::Travel),
    ]
}

/// The rows that a whole walk gives.
fn rows(mvcc: &Mvcc, sorted: usize, size: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut export = Export::new(&mvcc.snapshot_header()).sorting(sorted);
    let mut all = Vec::new();
    let mut some = Rows::default();
    loop {
        let more = export.step(mvcc, size, &mut some);
        all.extend(some.iter().map(|(key, value)| (key.to_vec(), value.to_vec())));
        some.clear();
        if !more {
            return all;
        }
    }
}

/// Out to rows and back.
fn travel(mvcc: &Mvcc, sorted: usize, size: usize) -> Mvcc {
    let mut import = Import::new(mvcc.compacted(), mvcc.leases());
    for (key, value) in rows(mvcc, sorted, size) {
        import.row(&key, &value).unwrap();
    }
    import.finish()
}

/// The rows that etcd keeps after a compaction: the revision, the place in it, whether it is a
/// tombstone.
fn kept(model: &Model) -> Vec<(i64, u64, bool)> {
    let mut kept = Vec::new();
    let compacted = model.compacted;
    for main in 2..=model.revision() {
        let written = &model.written[main as usize - 1];
        for (sub, (key, kv)) in written.iter().enumerate() {
            // Up to the compaction: what holds at it, and a tombstone of just its revision.
            let last = !written[sub + 1..].iter().any(|(later, _)| later == key);
            let holds = kv.is_some()
                && model.at(compacted.max(1)).get(key).is_some_and(|now| now.mod_revision == main);
            let just_gone = kv.is_none() && main == compacted;
            if main > compacted || last && (holds || just_gone) {
                kept.push((main, sub as u64, kv.is_none()));
            }
        }
    }
    kept
}

/// The checksum computed from the model, as etcd describes it.
fn model_hash(model: &Model, revision: i64) -> u32 {
    let mut crc = crc32c::crc32c(b"key");
    let compacted = model.compacted;
    for main in 2..=revision {
        for (sub, (key, kv)) in model.written[main as usize - 1].iter().enumerate() {
            if main <= compacted {
                let holds = |at: i64| {
                    model
                        .at(at)
                        .get(key)
                        .is_some_and(|now| kv.as_ref() == Some(now) && now.mod_revision == main)
                };
                let any = !model.at(revision).is_empty();
                if !holds(compacted) || any && !holds(revision) {
                    continue;
                }
            }
            let mut row = Vec::new();
            row.extend(main.to_be_bytes());
            row.push(b'_');
            row.extend((sub as i64).to_be_bytes());
            row.extend(kv.is_none().then_some(b't'));
            // Keys, values and numbers of this test take one byte each as varints.
            row.extend([10, key.len() as u8]);
            row.extend(key);
            if let Some(kv) = kv {
                for (tag, n) in [(16, kv.create_revision), (24, kv.mod_revision), (32, kv.version)]
                {
                    row.extend([tag, n as u8]);
                }
                if !kv.value.is_empty() {
                    row.extend([42, kv.value.len() as u8]);
                    row.extend(&kv.value);
                }
                if kv.lease != 0 {
                    row.extend([48, kv.lease as u8]);
                }
            }
            crc = crc32c::crc32c_append(crc, &row);
        }
    }
    crc
}

fn hash(mvcc: &Mvcc, revision: i64, size: usize) -> u32 {
    let mut run = mvcc.hash_kv(revision, mvcc.revision()).unwrap();
    loop {
        if let Some(hash) = run.step(mvcc, size) {
            assert_eq!(hash.hash_revision, revision);
            return hash.hash;
        }
    }
}

fn reload(mvcc: &Mvcc, chunk: usize) -> Mvcc {
    let header = mvcc.snapshot_header();
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    let mut loader = Loader::new(dhow_mvcc::Header::decode(&bytes.into()).unwrap());
    let mut after = None;
    loop {
        let mut out = Vec::new();
        after = mvcc.snapshot_chunk(&header, after.as_ref(), chunk, &mut out);
        loader.chunk(&out.into()).unwrap();
        if after.is_none() {
            return loader.finish();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn it_behaves_like_the_naive_model(steps in prop::collection::vec(step(), 1..40)) {
        let mut mvcc = Mvcc::new();
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Command(command) => {
                    if let Command::Txn(txn) = &command
                        && check_txn(txn, &Limits::default()).is_err()
                    {
                        continue;
                    }
                    // Through its bytes, as the log and later replication take it.
                    let mut bytes = Vec::new();
                    command.encode(&mut bytes);
                    prop_assert!(bytes.len() <= command.size_bound());
                    let decoded = Command::decode(&bytes.into()).unwrap();
                    prop_assert_eq!(&decoded, &command);
                    let before = model.revision();
                    let wanted = model.apply(&command);
                    let applied = mvcc.apply(&decoded);
                    if let (Ok(applied), Command::Txn(_)) = (&applied, &command) {
                        prop_assert_eq!(applied.changed, model.revision() != before);
                    }
                    prop_assert_eq!(applied.map(|applied| applied.outcome), wanted);
                }
                Step::Prune(most) => {
                    mvcc.prune(most);
                }
                Step::Reload => mvcc = reload(&mvcc, 20),
                Step::Travel(size) => mvcc = travel(&mvcc, size, 7 * size),
            }
            check(&mvcc, &model);
        }
        let whole = rows(&mvcc, usize::MAX, usize::MAX / 2);
        prop_assert!(whole.is_sorted());
        prop_assert_eq!(&whole, &rows(&mvcc, 2, 10));
        let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
        let keys = whole
            .iter()
            .map(|(key, _)| (number(&key[..8]) as i64, number(&key[9..17]), key.len() == 18));
        prop_assert_eq!(keys.collect::<Vec<_>>(), kept(&model));
        for revision in model.compacted.max(1)..=model.revision() {
            prop_assert_eq!(hash(&mvcc, revision, 20), model_hash(&model, revision));
        }
        let bytes = reload(&mvcc, 1000).bytes();
        prop_assert_eq!(travel(&mvcc, 1000, 1000).bytes(), bytes);
        while mvcc.prune(1) {}
        check(&mvcc, &model);
        prop_assert_eq!(mvcc.bytes(), bytes, "the quota in use can be computed anew");
    }
}

/// A transaction that has written and then reads the revision before its own: its writes do not
/// count there, also when a limit cuts the answer short.
#[test]
fn a_read_of_the_past_within_a_transaction_does_not_count_its_writes() {
    let mut mvcc = Mvcc::new();
    let put = |key: &str| Op::put(key.to_owned(), "");
    let txn = |success: Vec<Op>| Command::Txn(Txn { success, ..Txn::default() });
    for key in ["a", "b"] {
        mvcc.apply(&txn(vec![put(key)])).unwrap();
    }
    let past = Range { revision: 3, limit: 1, ..Range::all(Span::From("a".into())) };
    let applied = mvcc.apply(&txn(vec![put("c"), Op::Range(past)])).unwrap();
    let Outcome::Txn(answer) = applied.outcome else { panic!("a transaction's answer") };
    let OpResult::Range(read) = &answer.results[1] else { panic!("a range's answer") };
    assert_eq!((read.count, read.more), (2, true));
}
