//! What somebody saw of a revision, and which keys requests look at and write.

use bytes::Bytes;
use dhow_kv::{Event, KeyValue, Op, OpResult, Span, Txn, TxnResult};

/// Something that was seen of a revision by somebody.
#[derive(Debug, Clone)]
pub(super) struct Fact {
    pub(super) kv: KeyValue,
    pub(super) deleted: bool,
    /// The value was not asked for.
    pub(super) no_value: bool,
}

impl Fact {
    pub(super) fn fits(&self, events: &[Event]) -> bool {
        events.iter().any(|event| {
            event.kv.key == self.kv.key
                && event.deleted == self.deleted
                && (self.deleted
                    || (self.no_value || event.kv.value == self.kv.value)
                        && event.kv.version == self.kv.version
                        && event.kv.create_revision == self.kv.create_revision
                        && event.kv.lease == self.kv.lease)
        })
    }

    /// Whether the transaction could be what was seen, in any state.
    pub(super) fn possible(&self, txn: &Txn) -> bool {
        txn.success.iter().chain(&txn.failure).any(|op| match op {
            Op::Put { key, value, ignore_value, .. } => {
                !self.deleted
                    && *key == self.kv.key
                    && (*ignore_value || self.no_value || *value == self.kv.value)
            }
            Op::Delete { span, .. } => self.deleted && span.contains(&self.kv.key),
            Op::Txn(inner) => self.possible(inner),
            Op::Range(_) => false,
        })
    }
}

/// Whether an answer tells of a write.
pub(super) fn wrote(txn: &Txn, result: &TxnResult) -> bool {
    let ops = if result.succeeded { &txn.success } else { &txn.failure };
    ops.iter().zip(&result.results).any(|(op, result)| match (op, result) {
        (Op::Put { .. }, _) => true,
        (_, OpResult::Delete { deleted, .. }) => *deleted > 0,
        (Op::Txn(txn), OpResult::Txn(result)) => wrote(txn, result),
        _ => false,
    })
}

/// The keys that a transaction may write, and those that its guards look at.
pub(super) fn spans(txn: &Txn, writes: &mut Vec<Span>, guards: &mut Vec<Span>) {
    guards.extend(txn.compare.iter().map(|compare| compare.span.clone()));
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Put { key, .. } => writes.push(Span::Key(key.clone())),
            Op::Delete { span, .. } => writes.push(span.clone()),
            Op::Txn(inner) => spans(inner, writes, guards),
            Op::Range(_) => {}
        }
    }
}

/// The leases that a transaction's puts name.
pub(super) fn put_leases(txn: &Txn, out: &mut Vec<i64>) {
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Put { lease, .. } if *lease != 0 => out.push(*lease),
            Op::Txn(inner) => put_leases(inner, out),
            _ => {}
        }
    }
}

pub(super) fn read_spans(txn: &Txn, out: &mut Vec<Span>) {
    spans(txn, out, &mut Vec::new());
    out.extend(txn.compare.iter().map(|compare| compare.span.clone()));
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Range(range) => out.push(range.span.clone()),
            Op::Txn(inner) => read_spans(inner, out),
            Op::Put { .. } | Op::Delete { .. } => {}
        }
    }
}

/// A span's place in an order of spans.
pub(super) fn rank(span: &Span) -> (u8, &Bytes, Option<&Bytes>) {
    match span {
        Span::Key(key) => (0, key, None),
        Span::Range(from, to) => (1, from, Some(to)),
        Span::From(from) => (2, from, None),
    }
}

pub(super) fn tidy(spans: &mut Vec<Span>) {
    spans.sort_by(|a, b| rank(a).cmp(&rank(b)));
    spans.dedup();
}

pub(super) fn overlap(a: &Span, b: &Span) -> bool {
    match (a, b) {
        (Span::Key(key), other) | (other, Span::Key(key)) => other.contains(key),
        (Span::Range(a, to_a), Span::Range(b, to_b)) => a < to_b && b < to_a,
        (Span::Range(_, to), Span::From(from)) | (Span::From(from), Span::Range(_, to)) => {
            from < to
        }
        (Span::From(_), Span::From(_)) => true,
    }
}

/// Both together; `None` is everything.
pub(super) fn union(these: Option<Vec<Span>>, those: Option<Vec<Span>>) -> Option<Vec<Span>> {
    let (mut these, those) = (these?, those?);
    these.extend(those);
    tidy(&mut these);
    Some(these)
}

pub(super) fn overlap_any(these: &[Span], those: &[Span]) -> bool {
    these.iter().any(|a| those.iter().any(|b| overlap(a, b)))
}
