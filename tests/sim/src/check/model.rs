//! A store in a few lines: what each answer should have been. Written apart from the store's own
//! code, so that both would have to be wrong in the same way.

use bytes::Bytes;
use dhow_kv::{
    Compare, Event, KeyValue, Op, OpResult, Order, Range, RangeResult, Span, Target, Txn, TxnResult,
};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Keys and their newest versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The newest revision.
    pub revision: i64,
    /// All live keys.
    pub keys: BTreeMap<Bytes, KeyValue>,
    /// The leases that have ended.
    pub ended: BTreeSet<i64>,
}

impl Default for Model {
    fn default() -> Self {
        Self { revision: 1, keys: BTreeMap::new(), ended: BTreeSet::new() }
    }
}

/// What takes a model back to before a change.
#[derive(Debug, Default)]
pub struct Undo {
    revision: i64,
    keys: Vec<(Bytes, Option<KeyValue>)>,
    ended: Option<i64>,
}

/// The live keys of a span, in order.
pub fn inside<'a>(
    keys: &'a BTreeMap<Bytes, KeyValue>,
    span: &Span,
) -> impl Iterator<Item = &'a KeyValue> + use<'a> {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let (from, to) = match span {
        Span::Key(key) => (Included(key.clone()), Included(key.clone())),
        // An empty range must not become one that `range` panics on.
        Span::Range(from, to) if from >= to => (Included(from.clone()), Excluded(from.clone())),
        Span::Range(from, to) => (Included(from.clone()), Excluded(to.clone())),
        Span::From(from) => (Included(from.clone()), Unbounded),
    };
    let empty = matches!((&from, &to), (Included(a), Excluded(b)) if a >= b);
    let found = (!empty).then(|| keys.range((from, to)).map(|(_, kv)| kv));
    found.into_iter().flatten()
}

/// What a read of these keys answers, the revision left at 0.
pub fn read(keys: &BTreeMap<Bytes, KeyValue>, range: &Range) -> RangeResult {
    let mut result = RangeResult::default();
    for kv in inside(keys, &range.span) {
        result.count += 1;
        if range.count_only {
            continue;
        }
        if range.limit > 0 && result.kvs.len() == range.limit {
            result.more = true;
            continue;
        }
        let mut kv = kv.clone();
        if range.keys_only {
            kv.value = Bytes::new();
        }
        result.kvs.push(kv);
    }
    result
}

fn holds(order: Order, found: Ordering) -> bool {
    match order {
        Order::Equal => found == Ordering::Equal,
        Order::Greater => found == Ordering::Greater,
        Order::Less => found == Ordering::Less,
        Order::NotEqual => found != Ordering::Equal,
    }
}

impl Model {
    fn compare(&self, compare: &Compare) -> bool {
        let one = |kv: Option<&KeyValue>| {
            let number = |of: fn(&KeyValue) -> i64| kv.map_or(0, of);
            match &compare.target {
                Target::Value(value) => {
                    kv.is_some_and(|kv| holds(compare.order, kv.value.cmp(value)))
                }
                Target::Version(n) => holds(compare.order, number(|kv| kv.version).cmp(n)),
                Target::CreateRevision(n) => {
                    holds(compare.order, number(|kv| kv.create_revision).cmp(n))
                }
                Target::ModRevision(n) => holds(compare.order, number(|kv| kv.mod_revision).cmp(n)),
                Target::Lease(n) => holds(compare.order, number(|kv| kv.lease).cmp(n)),
            }
        };
        let mut found = inside(&self.keys, &compare.span).peekable();
        match (&compare.span, found.peek()) {
            // Nothing there compares as one absent key.
            (_, None) => one(None),
            _ => found.all(|kv| one(Some(kv))),
        }
    }

    /// Whether all guards of a transaction hold.
    pub fn succeeds(&self, txn: &Txn) -> bool {
        txn.compare.iter().all(|compare| self.compare(compare))
    }

    /// Applies a transaction: its answer, its events, and the way back. `None` when the store must
    /// refuse it, for a key that is kept but not there or a lease that has ended.
    pub fn apply(&mut self, txn: &Txn) -> Option<(TxnResult, Vec<Event>, Undo)> {
        let before = self.clone_for_guards(txn);
        let mut run = Run {
            events: Vec::new(),
            undo: Undo { revision: self.revision, ..Undo::default() },
            before: before.as_ref(),
        };
        let result = run.txn(self, txn);
        let Run { events, undo, .. } = run;
        let Some(mut result) = result else {
            self.back(undo);
            return None;
        };
        if !events.is_empty() {
            self.revision += 1;
        }
        result.revision = self.revision;
        Some((result, events, undo))
    }

    /// Guards within a transaction look at the state before it. Only nested ones need a copy.
    fn clone_for_guards(&self, txn: &Txn) -> Option<Self> {
        let nested = txn.success.iter().chain(&txn.failure).any(|op| matches!(op, Op::Txn(_)));
        nested.then(|| self.clone())
    }

    /// Ends a lease: deletes its keys in order.
    pub fn end_lease(&mut self, id: i64) -> (Vec<Event>, Undo) {
        let mut undo = Undo { revision: self.revision, ..Undo::default() };
        let keys: Vec<Bytes> =
            self.keys.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
        let mut events = Vec::new();
        for key in keys {
            self.delete(&key, &mut events, &mut undo);
        }
        if !events.is_empty() {
            self.revision += 1;
        }
        if self.ended.insert(id) {
            undo.ended = Some(id);
        }
        (events, undo)
    }

    /// Takes a change back. Changes go back in the opposite order.
    pub fn back(&mut self, undo: Undo) {
        self.revision = undo.revision;
        for (key, kv) in undo.keys.into_iter().rev() {
            match kv {
                Some(kv) => drop(self.keys.insert(key, kv)),
                None => drop(self.keys.remove(&key)),
            }
        }
        if let Some(id) = undo.ended {
            self.ended.remove(&id);
        }
    }

    fn delete(
        &mut self,
        key: &Bytes,
        events: &mut Vec<Event>,
        undo: &mut Undo,
    ) -> Option<KeyValue> {
        let old = self.keys.remove(key)?;
        undo.keys.push((key.clone(), Some(old.clone())));
        events.push(Event {
            kv: KeyValue {
                key: key.clone(),
                value: Bytes::new(),
                create_revision: 0,
                mod_revision: self.revision + 1,
                version: 0,
                lease: 0,
            },
            prev_kv: Some(old.clone()),
            deleted: true,
        });
        Some(old)
    }
}

struct Run<'a> {
    events: Vec<Event>,
    undo: Undo,
    before: Option<&'a Model>,
}

impl Run<'_> {
    fn txn(&mut self, model: &mut Model, txn: &Txn) -> Option<TxnResult> {
        let succeeded = self.before.unwrap_or(model).succeeds(txn);
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let results = ops.iter().map(|op| self.op(model, op)).collect::<Option<Vec<_>>>()?;
        Some(TxnResult { revision: 0, succeeded, results })
    }

    fn op(&mut self, model: &mut Model, op: &Op) -> Option<OpResult> {
        Some(match op {
            Op::Range(range) => OpResult::Range(read(&model.keys, range)),
            Op::Txn(inner) => OpResult::Txn(self.txn(model, inner)?),
            Op::Delete { span, prev_kv } => {
                let keys: Vec<Bytes> = inside(&model.keys, span).map(|kv| kv.key.clone()).collect();
                let gone: Vec<KeyValue> = keys
                    .iter()
                    .filter_map(|key| model.delete(key, &mut self.events, &mut self.undo))
                    .collect();
                let deleted = gone.len() as i64;
                OpResult::Delete { deleted, prev_kvs: if *prev_kv { gone } else { Vec::new() } }
            }
            Op::Put { key, value, lease, prev_kv, ignore_value, ignore_lease } => {
                let old = model.keys.get(key).cloned();
                if old.is_none() && (*ignore_value || *ignore_lease) {
                    return None;
                }
                if *lease != 0 && model.ended.contains(lease) {
                    return None;
                }
                let revision = model.revision + 1;
                let kept = old.as_ref();
                let kv = KeyValue {
                    key: key.clone(),
                    value: match kept {
                        Some(kv) if *ignore_value => kv.value.clone(),
                        _ => value.clone(),
                    },
                    create_revision: kept.map_or(revision, |kv| kv.create_revision),
                    mod_revision: revision,
                    version: kept.map_or(0, |kv| kv.version) + 1,
                    lease: match kept {
                        Some(kv) if *ignore_lease => kv.lease,
                        _ => *lease,
                    },
                };
                self.undo.keys.push((key.clone(), old.clone()));
                self.events.push(Event { kv: kv.clone(), prev_kv: old.clone(), deleted: false });
                model.keys.insert(key.clone(), kv);
                OpResult::Put { prev_kv: old.filter(|_| *prev_kv) }
            }
        })
    }
}

/// An answer without what differs between a store and the model for good reasons: the revisions
/// within a transaction.
pub fn bare(mut result: TxnResult) -> TxnResult {
    fn clear(result: &mut TxnResult) {
        for result in &mut result.results {
            match result {
                OpResult::Range(range) => range.revision = 0,
                OpResult::Txn(inner) => {
                    inner.revision = 0;
                    clear(inner);
                }
                OpResult::Put { .. } | OpResult::Delete { .. } => {}
            }
        }
    }
    clear(&mut result);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(model: &mut Model, key: &'static str, value: &'static str, lease: i64) -> Undo {
        let mut op = Op::put(key, value);
        if let Op::Put { lease: own, .. } = &mut op {
            *own = lease;
        }
        model.apply(&Txn { success: vec![op], ..Txn::default() }).unwrap().2
    }

    #[test]
    fn every_change_can_be_taken_back() {
        let mut model = Model::default();
        put(&mut model, "a", "1", 7);
        put(&mut model, "b", "1", 0);
        let before = model.clone();
        let first = put(&mut model, "a", "2", 7);
        let delete = Op::Delete { span: Span::From("".into()), prev_kv: true };
        let txn = Txn { success: vec![Op::put("c", "1"), delete], ..Txn::default() };
        let (result, events, second) = model.apply(&txn).unwrap();
        assert_eq!((result.revision, events.len(), model.keys.len()), (5, 4, 0));
        model.back(second);
        let (events, third) = model.end_lease(7);
        assert_eq!((events.len(), model.revision), (1, 5));
        model.back(third);
        model.back(first);
        assert_eq!(model, before);
    }

    #[test]
    fn guards_look_at_the_state_before_all_steps() {
        let mut model = Model::default();
        let absent = Compare {
            span: Span::Key("a".into()),
            order: Order::Equal,
            target: Target::Version(0),
        };
        let inner = Txn {
            compare: vec![absent],
            success: vec![Op::put("b", "yes")],
            failure: vec![Op::put("b", "no")],
        };
        let txn = Txn { success: vec![Op::put("a", "1"), Op::Txn(inner)], ..Txn::default() };
        model.apply(&txn).unwrap();
        assert_eq!(model.keys[&b"b"[..]].value, "yes");
    }

    #[test]
    fn a_lease_that_has_ended_takes_no_keys() {
        let mut model = Model::default();
        model.end_lease(7);
        let op = Op::Put {
            key: "a".into(),
            value: "1".into(),
            lease: 7,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        let before = model.clone();
        let txn = Txn { success: vec![Op::put("b", "1"), op], ..Txn::default() };
        assert!(model.apply(&txn).is_none());
        assert_eq!(model, before);
    }
}
