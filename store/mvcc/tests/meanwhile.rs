//! Exports, checksums and snapshots that are under way while the store goes on, compactions
//! included: they give what they would have given at once.

use bytes::Bytes;
use dhow_kv::{Op, Span, Txn};
use dhow_mvcc::{Command, Export, Mvcc, Rows};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8, u8),
    /// So many revisions before the newest.
    Compact(i64),
    Prune(usize),
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..40_u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        2 => (0..40_u8, 1..5_u8).prop_map(|(from, count)| Step::Delete(from, count)),
        1 => (0..20_i64).prop_map(Step::Compact),
        2 => (0..10_usize).prop_map(Step::Prune),
    ];
    prop::collection::vec(step, 0..most)
}

fn run(mvcc: &mut Mvcc, step: &Step) {
    let op = match *step {
        Step::Put(key, value) => Op::put(vec![b'k', key], vec![value; 3]),
        Step::Delete(from, count) => {
            let span = Span::Range(vec![b'k', from].into(), vec![b'k', from + count].into());
            Op::Delete { span, prev_kv: false }
        }
        Step::Compact(before) => {
            // One that is too old changes nothing.
            let _ = mvcc.apply(&Command::Compact(mvcc.revision() - before));
            return;
        }
        Step::Prune(most) => {
            mvcc.prune(most);
            return;
        }
    };
    let txn = Txn { success: vec![op], ..Txn::default() };
    mvcc.apply(&Command::Txn(txn)).unwrap();
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// All rows, with what happens between two steps.
fn export(mvcc: &mut Mvcc, mut between: impl FnMut(&mut Mvcc)) -> Pairs {
    let mut export = Export::new(&mvcc.snapshot_header()).sorting(4);
    let compacted = export.compacted();
    mvcc.pin(compacted);
    let mut rows = Rows::default();
    while export.step(mvcc, 40, &mut rows) {
        between(mvcc);
    }
    mvcc.unpin(compacted);
    rows.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

fn hash(mvcc: &mut Mvcc, revision: i64, mut between: impl FnMut(&mut Mvcc)) -> u32 {
    let mut run = mvcc.hash_kv(revision, mvcc.revision()).unwrap();
    let compacted = run.compacted();
    mvcc.pin(compacted);
    let hash = loop {
        if let Some(hash) = run.step(mvcc, 40) {
            break hash.hash;
        }
        between(mvcc);
    };
    mvcc.unpin(compacted);
    hash
}

fn snapshot(mvcc: &mut Mvcc, mut between: impl FnMut(&mut Mvcc)) -> Vec<u8> {
    let header = mvcc.snapshot_header();
    mvcc.hold(Some(header.compacted));
    let mut out = Vec::new();
    let mut after: Option<Bytes> = None;
    loop {
        after = mvcc.snapshot_chunk(&header, after.as_ref(), 30, &mut out);
        if after.is_none() {
            break;
        }
        between(mvcc);
    }
    mvcc.hold(None);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_happens_meanwhile_does_not_show(
        before in steps(120),
        meanwhile in steps(200),
        back in 0..10_i64,
        which in 0..3_u8,
    ) {
        let mut mvcc = Mvcc::new();
        before.iter().for_each(|step| run(&mut mvcc, step));
        let mut meanwhile = meanwhile.iter();
        let go_on = |mvcc: &mut Mvcc| {
            meanwhile.by_ref().take(3).for_each(|step| run(mvcc, step));
        };
        match which {
            0 => {
                let at_once = export(&mut mvcc, |_| {});
                prop_assert!(at_once.is_sorted());
                prop_assert_eq!(export(&mut mvcc, go_on), at_once);
            }
            1 => {
                let revision = (mvcc.revision() - back).max(mvcc.compacted()).max(1);
                let at_once = hash(&mut mvcc, revision, |_| {});
                prop_assert_eq!(hash(&mut mvcc, revision, go_on), at_once);
            }
            _ => {
                let at_once = snapshot(&mut mvcc, |_| {});
                prop_assert_eq!(snapshot(&mut mvcc, go_on), at_once);
            }
        }
        // Nothing is kept back any more.
        while mvcc.prune(5) {}
        prop_assert!(!mvcc.wants_prune() && !mvcc.is_held());
    }
}
