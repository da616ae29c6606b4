//! Bytes from elsewhere: whatever they say, they are understood or refused, and nothing panics.

use bytes::Bytes;
use dhow_kv::{Range, Span};
use dhow_mvcc::{Command, Export, Header, Import, Loader, MachineHeader, Mvcc, Rows};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Row {
    revision: u64,
    sub: u64,
    tombstone: bool,
    key: u8,
    numbers: [u8; 4],
    value: u8,
}

impl Row {
    fn bytes(&self) -> (Vec<u8>, Vec<u8>) {
        let mut key = self.revision.to_be_bytes().to_vec();
        key.push(b'_');
        key.extend(self.sub.to_be_bytes());
        key.extend(self.tombstone.then_some(b't'));
        let mut value = vec![10, 1, self.key];
        if !self.tombstone {
            let [create, modified, version, lease] = self.numbers;
            value.extend([16, create, 24, modified, 32, version, 48, lease, 42, 1, self.value]);
        }
        (key, value)
    }
}

/// Rows as a store could have them, and now and then ones that it could not.
fn rows() -> impl Strategy<Value = Vec<Row>> {
    let odd = || prop::option::weighted(0.02, any::<u64>());
    let one = (0..2_u64, any::<bool>(), b'a'..b'e', 1..3_u8, 0..3_u8, any::<u8>(), odd(), odd());
    prop::collection::vec(one, 0..30).prop_map(|parts| {
        let (mut revision, mut sub) = (2, 0);
        let mut rows = Vec::new();
        for (step, tombstone, key, version, lease, value, odd_revision, odd_sub) in parts {
            (revision, sub) = if step == 0 { (revision, sub + 1) } else { (revision + step, 0) };
            if rows.is_empty() {
                sub = 0;
            }
            let numbers = [2, revision as u8, version, lease];
            rows.push(Row {
                revision: odd_revision.unwrap_or(revision),
                sub: odd_sub.unwrap_or(sub),
                tombstone,
                key,
                numbers,
                value,
            });
        }
        rows
    })
}

fn exported(mvcc: &Mvcc) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut export = Export::new(&mvcc.snapshot_header()).sorting(3);
    let mut rows = Rows::default();
    while export.step(mvcc, 100, &mut rows) {}
    rows.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn rows_from_elsewhere_are_taken_or_refused(rows in rows(), compacted in 0..12_i64) {
        let mut import = Import::new(compacted, [(1, 10)]);
        for row in &rows {
            let (key, value) = row.bytes();
            if import.row(&key, &value).is_err() {
                break;
            }
        }
        let mut mvcc = import.finish();
        prop_assert!(mvcc.revision() >= mvcc.compacted());
        let now = mvcc.revision();
        let all = Range::all(Span::From(Bytes::new()));
        prop_assert_eq!(mvcc.range(&all, now).unwrap().count as usize, mvcc.keys());
        for revision in mvcc.compacted().max(1)..=now.min(60) {
            mvcc.events(revision, true, None);
            mvcc.hash_kv(revision, now).unwrap().step(&mvcc, usize::MAX / 2);
        }
        // What it gives out is what it takes.
        let out = exported(&mvcc);
        let mut again = Import::new(mvcc.compacted(), mvcc.leases());
        for (key, value) in &out {
            prop_assert!(again.row(key, value).is_ok(), "{:?}", rows);
        }
        let again = again.finish();
        prop_assert_eq!(exported(&again), out);
        // Less where a key was written twice by the revision that was compacted at.
        prop_assert!(again.bytes() <= mvcc.bytes());
        let compact = mvcc.apply(&Command::Compact(now));
        prop_assert!(compact.is_ok() || now == compacted);
        while mvcc.prune(3) {}
        prop_assert_eq!(mvcc.range(&all, now).unwrap().count as usize, mvcc.keys());
    }

    #[test]
    fn bytes_are_a_command_or_not(bytes in prop::collection::vec(any::<u8>(), 0..60), tag in 0..12_u8) {
        let mut bytes = bytes;
        bytes.insert(0, tag);
        let bytes = Bytes::from(bytes);
        if let Ok(command) = Command::decode(&bytes) {
            let mut again = Vec::new();
            command.encode(&mut again);
            prop_assert_eq!(Command::decode(&again.into()), Ok(command));
        }
        let _ = MachineHeader::decode(&bytes);
        let mut small = Loader::new(Header { revision: 9, compacted: 3, leases: vec![(1, 1)], remaining: Vec::new() });
        if small.chunk(&bytes).is_ok() {
            small.finish();
        }
    }
}
