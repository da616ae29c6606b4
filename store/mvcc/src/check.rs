//! What a request must satisfy before any state is looked at.

use crate::Limits;
use bytes::Bytes;
use dhow_kv::{Error, Op, Range, Span, Txn};
use std::collections::BTreeSet;

/// Checks the shape of a transaction: keys, contradictory flags, numbers of steps, duplicate keys.
///
/// # Errors
/// [`Error::EmptyKey`], [`Error::ValueProvided`], [`Error::LeaseProvided`], [`Error::TooManyOps`],
/// [`Error::DuplicateKey`], [`Error::TooLarge`].
pub fn check_txn(txn: &Txn, limits: &Limits) -> Result<(), Error> {
    shape(txn, limits.txn_ops)?;
    // Only a transaction with several steps can write a key twice.
    for branch in [&txn.success, &txn.failure] {
        if branch.len() > 1 || branch.iter().any(|op| matches!(op, Op::Txn(_))) {
            writes(branch)?;
        }
    }
    // Last, as in etcd, where the size is known only when the request is about to be proposed.
    if size(txn) > limits.request_bytes {
        return Err(Error::TooLarge);
    }
    Ok(())
}

/// Checks the shape of a read.
///
/// # Errors
/// [`Error::EmptyKey`].
pub fn check_range(range: &Range) -> Result<(), Error> {
    check_span(&range.span)
}

fn check_span(span: &Span) -> Result<(), Error> {
    match span {
        Span::Key(key) if key.is_empty() => Err(Error::EmptyKey),
        _ => Ok(()),
    }
}

fn shape(txn: &Txn, most: usize) -> Result<(), Error> {
    let steps = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    let left = most.checked_sub(steps).ok_or(Error::TooManyOps)?;
    for compare in &txn.compare {
        check_span(&compare.span)?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Range(range) => check_range(range)?,
            Op::Put { key, value, lease, ignore_value, ignore_lease, .. } => {
                if key.is_empty() {
                    return Err(Error::EmptyKey);
                }
                if *ignore_value && !value.is_empty() {
                    return Err(Error::ValueProvided);
                }
                if *ignore_lease && *lease != 0 {
                    return Err(Error::LeaseProvided);
                }
            }
            Op::Delete { span, .. } => check_span(span)?,
            Op::Txn(inner) => shape(inner, left)?,
        }
    }
    Ok(())
}

/// The keys that a branch may put and the spans that it may delete.
type Writes<'a> = (BTreeSet<&'a Bytes>, Vec<&'a Span>);

/// A key may be put once per path, and not inside a span deleted on the same level or by an earlier
/// inner transaction. The branches of one inner transaction exclude each other.
fn writes(ops: &[Op]) -> Result<Writes<'_>, Error> {
    let mut puts = BTreeSet::new();
    let mut deletes: Vec<&Span> = ops
        .iter()
        .filter_map(|op| if let Op::Delete { span, .. } = op { Some(span) } else { None })
        .collect();
    let deleted = |deletes: &[&Span], key: &Bytes| deletes.iter().any(|span| span.contains(key));
    for op in ops {
        let Op::Txn(inner) = op else { continue };
        let (then_puts, then_deletes) = writes(&inner.success)?;
        let (else_puts, else_deletes) = writes(&inner.failure)?;
        for key in then_puts.union(&else_puts) {
            if puts.contains(key) || deleted(&deletes, key) {
                return Err(Error::DuplicateKey);
            }
        }
        puts.extend(then_puts);
        puts.extend(else_puts);
        deletes.extend(then_deletes);
        deletes.extend(else_deletes);
    }
    for op in ops {
        let Op::Put { key, .. } = op else { continue };
        if deleted(&deletes, key) || !puts.insert(key) {
            return Err(Error::DuplicateKey);
        }
    }
    Ok((puts, deletes))
}

/// Whether the transaction has no step that could write.
pub fn is_read_only(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| match op {
        Op::Range(_) => true,
        Op::Put { .. } | Op::Delete { .. } => false,
        Op::Txn(inner) => is_read_only(inner),
    })
}

/// What the transaction may add to the store at most, by the quota's measure; 0 when it puts
/// nothing.
pub fn cost(txn: &Txn) -> u64 {
    let branch = |ops: &[Op]| {
        ops.iter()
            .map(|op| match op {
                Op::Put { key, value, .. } => crate::KEY_COST + (key.len() + value.len()) as u64,
                Op::Txn(inner) => cost(inner),
                _ => 0,
            })
            .sum::<u64>()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

/// About how many bytes the request is.
fn size(txn: &Txn) -> usize {
    let ops = txn.success.iter().chain(&txn.failure).map(|op| match op {
        Op::Put { key, value, .. } => 8 + key.len() + value.len(),
        Op::Txn(inner) => size(inner),
        Op::Range(Range { span, .. }) | Op::Delete { span, .. } => 8 + span_size(span),
    });
    let compares = txn.compare.iter().map(|c| match &c.target {
        dhow_kv::Target::Value(value) => span_size(&c.span) + value.len(),
        _ => 8 + span_size(&c.span),
    });
    ops.sum::<usize>() + compares.sum::<usize>()
}

fn span_size(span: &Span) -> usize {
    match span {
        Span::Key(key) | Span::From(key) => key.len(),
        Span::Range(from, to) => from.len() + to.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(success: Vec<Op>) -> Result<(), Error> {
        check_txn(&Txn { success, ..Txn::default() }, &Limits::default())
    }

    fn inner(success: Vec<Op>, failure: Vec<Op>) -> Op {
        Op::Txn(Txn { compare: vec![], success, failure })
    }

    fn delete(from: &str, to: &str) -> Op {
        Op::Delete {
            span: Span::Range(from.to_owned().into(), to.to_owned().into()),
            prev_kv: false,
        }
    }

    #[test]
    fn a_branch_puts_a_key_once() {
        assert_eq!(check(vec![Op::put("a", "1"), Op::put("b", "1")]), Ok(()));
        assert_eq!(check(vec![Op::put("a", "1"), Op::put("a", "2")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![Op::put("b", "1"), delete("a", "c")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![Op::put("c", "1"), delete("a", "c")]), Ok(()));
        assert_eq!(check(vec![delete("a", "c"), delete("a", "c")]), Ok(()));
    }

    #[test]
    fn exclusive_branches_may_put_the_same_key() {
        assert_eq!(check(vec![inner(vec![Op::put("a", "1")], vec![Op::put("a", "2")])]), Ok(()));
        let twice =
            vec![inner(vec![Op::put("a", "1")], vec![]), inner(vec![], vec![Op::put("a", "2")])];
        assert_eq!(check(twice), Err(Error::DuplicateKey));
        let outer = vec![inner(vec![Op::put("a", "1")], vec![]), Op::put("a", "2")];
        assert_eq!(check(outer), Err(Error::DuplicateKey));
        let under = vec![inner(vec![Op::put("a", "1")], vec![]), delete("a", "b")];
        assert_eq!(check(under), Err(Error::DuplicateKey));
        let later =
            vec![inner(vec![Op::put("a", "1")], vec![]), inner(vec![delete("a", "b")], vec![])];
        assert_eq!(check(later), Ok(()));
    }

    #[test]
    fn steps_are_counted_along_the_path() {
        let puts = |n: usize| (0..n).map(|i| Op::put(format!("{i}"), "")).collect::<Vec<_>>();
        assert_eq!(check(puts(128)), Ok(()));
        assert_eq!(check(puts(129)), Err(Error::TooManyOps));
        assert_eq!(check(vec![inner(puts(127), vec![])]), Ok(()));
        assert_eq!(check(vec![inner(puts(128), vec![])]), Err(Error::TooManyOps));
    }

    #[test]
    fn contradictory_flags_are_refused() {
        let put = |value: &str, lease, ignore_value, ignore_lease| Op::Put {
            key: "a".into(),
            value: value.to_owned().into(),
            lease,
            prev_kv: false,
            ignore_value,
            ignore_lease,
        };
        assert_eq!(check(vec![put("v", 0, true, false)]), Err(Error::ValueProvided));
        assert_eq!(check(vec![put("", 7, false, true)]), Err(Error::LeaseProvided));
        assert_eq!(check(vec![Op::put("", "v")]), Err(Error::EmptyKey));
        assert_eq!(check(vec![Op::delete("")]), Err(Error::EmptyKey));
    }

    #[test]
    fn a_request_has_a_largest_size() {
        assert_eq!(check(vec![Op::put("a", vec![0; 2 << 20])]), Err(Error::TooLarge));
        let twice = vec![Op::put("a", vec![0; 2 << 20]), Op::put("a", "1")];
        assert_eq!(check(twice), Err(Error::DuplicateKey));
    }
}
