//! Random requests of the service KV, good and bad.

use super::Place;
use super::call::Call;
use crate::load::Dice;
use bytes::Bytes;
use dhow_rpc::etcdserverpb::compare::TargetUnion;
use dhow_rpc::etcdserverpb::{
    CompactionRequest, CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
    request_op,
};

/// A random request.
pub fn request(dice: &mut Dice, place: &Place) -> Call {
    match dice.below(100) {
        0..34 => Call::new::<PutResponse>("/etcdserverpb.KV/Put", &put(dice)),
        34..60 => Call::new::<RangeResponse>("/etcdserverpb.KV/Range", &range(dice, place)),
        60..70 => Call::new::<DeleteRangeResponse>("/etcdserverpb.KV/DeleteRange", &delete(dice)),
        70..97 => Call::new::<TxnResponse>("/etcdserverpb.KV/Txn", &txn(dice, place, 0)),
        _ => {
            let compact = CompactionRequest {
                // Not 0: etcd takes it as the first compaction, and then has a hash of nothing.
                revision: match dice.below(3) {
                    0 => revision(dice, place).max(1),
                    _ => place.compacted.max(1) + dice.below(20) as i64,
                },
                physical: dice.below(2) == 0,
            };
            Call::new::<CompactionResponse>("/etcdserverpb.KV/Compact", &compact)
        }
    }
}

/// One of few keys, so that requests meet; sometimes none, or an odd one.
pub fn key(dice: &mut Dice) -> Bytes {
    match dice.below(60) {
        0 => Bytes::new(),
        1 => Bytes::from_static(b"\0"),
        2 => Bytes::from_static(b"\xff\xfe"),
        3 => Bytes::from_static("ключ".as_bytes()),
        _ => {
            let letter = b'a' + dice.below(4) as u8;
            Bytes::from(format!("{}/{}", char::from(letter), dice.below(8)))
        }
    }
}

/// The end of a range that starts at `key`: none, all above, the prefix, or anything.
pub fn end(dice: &mut Dice, key: &Bytes) -> Bytes {
    match dice.below(8) {
        0..4 => Bytes::new(),
        4 => Bytes::from_static(b"\0"),
        5 => {
            let mut end = key.to_vec();
            if let Some(last) = end.last_mut() {
                *last = last.saturating_add(1);
            }
            end.into()
        }
        6 => Bytes::from(vec![key.first().copied().unwrap_or(b'a').saturating_add(1)]),
        _ => self::key(dice),
    }
}

fn value(dice: &mut Dice) -> Bytes {
    match dice.below(150) {
        0 => Bytes::new(),
        // Just under and over the size of a request that etcd takes.
        1 => Bytes::from(vec![b'x'; 1_500_000]),
        2 => Bytes::from(vec![b'x'; 1_600_000]),
        3 => Bytes::from(vec![b'x'; 2_200_000]),
        _ => Bytes::from(format!("v{}", dice.below(6))),
    }
}

/// A revision in the past, now, in the future, or none at all.
pub fn revision(dice: &mut Dice, place: &Place) -> i64 {
    match dice.below(10) {
        0 => -1,
        1 => place.revision + 1 + dice.below(3) as i64,
        2 => place.compacted,
        3 => place.compacted - 1,
        4 => place.revision,
        _ => 1 + dice.below(place.revision.max(1) as u64) as i64,
    }
}

fn lease(dice: &mut Dice) -> i64 {
    match dice.below(8) {
        0 => 1 + dice.below(12) as i64,
        _ => 0,
    }
}

fn put(dice: &mut Dice) -> PutRequest {
    let bare = dice.below(12) == 0;
    PutRequest {
        key: key(dice),
        value: if bare { Bytes::new() } else { value(dice) },
        lease: lease(dice),
        prev_kv: dice.below(4) == 0,
        ignore_value: if bare { dice.below(2) == 0 } else { dice.below(60) == 0 },
        ignore_lease: dice.below(20) == 0,
    }
}

fn range(dice: &mut Dice, place: &Place) -> RangeRequest {
    let key = key(dice);
    let range_end = end(dice, &key);
    let mut bound = |share| {
        if dice.below(share) == 0 { 1 + dice.below(place.revision.max(1) as u64) as i64 } else { 0 }
    };
    let bounds = (bound(15), bound(15), bound(15), bound(15));
    let target = [0, 0, 1, 2, 3, 4, 5][dice.below(7) as usize];
    let limit = [0, 0, 0, 1, 2, 5, -1][dice.below(7) as usize];
    RangeRequest {
        range_end,
        key,
        // etcd's sort leaves equal ones in any order, so which of them a limit cuts off is open.
        limit: if target == 0 { limit } else { 0 },
        revision: if dice.below(4) == 0 { revision(dice, place) } else { 0 },
        // Numbers that mean nothing are answered too.
        sort_order: [0, 0, 0, 1, 2, 3][dice.below(6) as usize],
        sort_target: target,
        serializable: dice.below(3) == 0,
        keys_only: dice.below(8) == 0,
        count_only: dice.below(10) == 0,
        min_mod_revision: bounds.0,
        max_mod_revision: bounds.1,
        min_create_revision: bounds.2,
        max_create_revision: bounds.3,
    }
}

fn delete(dice: &mut Dice) -> DeleteRangeRequest {
    let key = key(dice);
    let range_end = if dice.below(3) == 0 { end(dice, &key) } else { Bytes::new() };
    DeleteRangeRequest { key, range_end, prev_kv: dice.below(2) == 0 }
}

fn txn(dice: &mut Dice, place: &Place, depth: u64) -> TxnRequest {
    let list = |most: u64, dice: &mut Dice| -> u64 {
        // Rarely more than a transaction may have.
        if dice.below(200) == 0 { 129 } else { dice.below(most) }
    };
    let (compares, success, failure) = (list(3, dice), list(4, dice), list(3, dice));
    TxnRequest {
        compare: (0..compares).map(|_| compare(dice, place)).collect(),
        success: (0..success).map(|_| operation(dice, place, depth)).collect(),
        failure: (0..failure).map(|_| operation(dice, place, depth)).collect(),
    }
}

fn compare(dice: &mut Dice, place: &Place) -> Compare {
    let key = key(dice);
    let range_end = if dice.below(5) == 0 { end(dice, &key) } else { Bytes::new() };
    let target = dice.below(5) as i32;
    // The value sometimes belongs to another target than the one that is named.
    let number = dice.below(place.revision.max(1) as u64) as i64;
    let target_union = match if dice.below(30) == 0 { dice.below(6) as i32 } else { target } {
        0 => Some(TargetUnion::Version(dice.below(4) as i64)),
        1 => Some(TargetUnion::CreateRevision(if dice.below(3) == 0 { 0 } else { number })),
        2 => Some(TargetUnion::ModRevision(if dice.below(3) == 0 { 0 } else { number })),
        3 => Some(TargetUnion::Value(format!("v{}", dice.below(6)).into())),
        4 => Some(TargetUnion::Lease(dice.below(12) as i64)),
        _ => None,
    };
    Compare { result: dice.below(4) as i32, target, key, range_end, target_union }
}

/// A range inside a transaction.
fn inner_range(dice: &mut Dice, place: &Place) -> RangeRequest {
    // Newer releases leave leases out of keys alone, older ones do not: only compared outside.
    RangeRequest { keys_only: false, ..range(dice, place) }
}

fn operation(dice: &mut Dice, place: &Place, depth: u64) -> RequestOp {
    use request_op::Request;
    let request = match dice.below(20) {
        0..8 => Some(Request::RequestPut(put(dice))),
        8..13 => Some(Request::RequestRange(inner_range(dice, place))),
        13..17 => {
            let mut delete = delete(dice);
            // etcd's search for keys that are put and deleted at once takes ends that lie before
            // the start, and the one that means all above, for what they are not.
            if delete.range_end <= delete.key {
                delete.range_end = Bytes::new();
            }
            Some(Request::RequestDeleteRange(delete))
        }
        17..19 if depth < 3 => Some(Request::RequestTxn(txn(dice, place, depth + 1))),
        17..19 => Some(Request::RequestRange(inner_range(dice, place))),
        // An operation that is none.
        _ if dice.below(10) == 0 => None,
        _ => Some(Request::RequestPut(put(dice))),
    };
    RequestOp { request }
}
