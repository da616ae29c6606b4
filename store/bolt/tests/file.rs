//! Files that are written come back, and files that are damaged are errors.

use dhow_bolt::etcd::{
    Access, Alarm, Auth, ConfState, Lease, Member, Meta, Permission, Role, Snapshot,
    SnapshotWriter, State, TAIL, User, check_tail, sum,
};
use dhow_bolt::{Error, PAGE_SIZE, Reader, Writer};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::Cursor;

type Content = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

fn write(content: &Content) -> Vec<u8> {
    let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
    for (name, pairs) in content {
        let mut bucket = writer.bucket(name);
        for (key, value) in pairs {
            bucket.put(key, value).unwrap();
        }
        bucket.finish().unwrap();
    }
    let (out, size) = writer.finish().unwrap();
    let bytes = out.into_inner();
    assert_eq!(bytes.len() as u64, size);
    assert_eq!(bytes.len() % PAGE_SIZE, 0);
    bytes
}

/// Everything in a file; and each walk ends, whatever the file says.
fn read(bytes: &[u8]) -> Result<Content, Error> {
    let mut reader = Reader::open(Cursor::new(bytes))?;
    let mut content = Content::new();
    for (name, bucket) in reader.buckets()? {
        let mut pairs = BTreeMap::new();
        let mut walk = reader.walk(&bucket)?;
        while let Some(pair) = walk.next()? {
            pairs.insert(pair.key.to_vec(), pair.value.to_vec());
        }
        content.insert(name, pairs);
    }
    reader.check()?;
    Ok(content)
}

fn numbered(count: u32, value: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    (0..count).map(|n| (format!("key{n:08}").into_bytes(), vec![n as u8; value])).collect()
}

#[test]
fn buckets_of_every_size_come_back() {
    let mut content = Content::new();
    content.insert(b"empty".to_vec(), BTreeMap::new());
    content.insert(b"inline".to_vec(), numbered(3, 10));
    content.insert(b"one page".to_vec(), numbered(20, 100));
    content.insert(b"one value".to_vec(), numbered(1, 3 * PAGE_SIZE));
    content.insert(b"some levels".to_vec(), numbered(20_000, 60));
    content.insert(b"long values".to_vec(), numbered(50, 100_000));
    // Branches whose keys do not fit a page.
    let long = (0..7_u8).map(|n| (vec![n + 1; 30_000], vec![n; 5])).collect();
    content.insert(b"long keys".to_vec(), long);
    assert_eq!(read(&write(&content)).unwrap(), content);
    // What stands behind the pages does not matter.
    let mut bytes = write(&content);
    bytes.extend([7; TAIL]);
    assert_eq!(read(&bytes).unwrap(), content);
    let counts = Reader::open(Cursor::new(&bytes)).unwrap().check().unwrap();
    assert_eq!((counts.buckets, counts.pairs, counts.free), (7, 20_081, 0));
}

#[test]
fn every_number_of_pages_makes_whole_branches() {
    // Around where a branch is full, so that the last one would have a single page.
    for count in (1..5).chain(149..155).chain(300..306) {
        let content = Content::from([(b"b".to_vec(), numbered(count, 3000))]);
        assert_eq!(read(&write(&content)).unwrap(), content, "{count}");
    }
    // Keys so long that a branch holds two or three: many levels.
    for (length, most) in [(1300, 70), (1900, 70), (5000, 20)] {
        for count in 1..most {
            let pairs = (0..count).map(|n: u8| ([vec![n + 1], vec![0; length]].concat(), vec![n]));
            let content = Content::from([(b"b".to_vec(), pairs.collect())]);
            let bytes = write(&content);
            assert_eq!(read(&bytes).unwrap(), content, "{count} keys of {length}");
            for (number, page) in bytes.chunks(PAGE_SIZE).enumerate() {
                let branch = page[..10] == [&number.to_le_bytes()[..], &[1, 0]].concat();
                assert!(!branch || page[10] >= 2, "{count} keys of {length}: page {number}");
            }
        }
    }
}

#[test]
fn keys_must_be_in_order() {
    let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
    let mut bucket = writer.bucket(b"b");
    bucket.put(b"k", b"").unwrap();
    assert!(matches!(bucket.put(b"k", b""), Err(Error::Order(_))));
    assert!(matches!(bucket.put(b"a", b""), Err(Error::Order(_))));
    assert!(matches!(bucket.put(b"", b""), Err(Error::Order(_))));
    assert!(matches!(bucket.put(&[255; 32769], b""), Err(Error::TooLong(_))));
    bucket.finish().unwrap();
    writer.bucket(b"b").finish().unwrap();
    assert!(matches!(writer.finish(), Err(Error::Order(_))));
}

#[test]
fn one_meta_is_enough() {
    let mut content = Content::new();
    content.insert(b"b".to_vec(), numbered(100, 100));
    let whole = write(&content);
    for page in 0..2 {
        let mut bytes = whole.clone();
        bytes[page * PAGE_SIZE + 20] ^= 1;
        assert_eq!(read(&bytes).unwrap(), content);
    }
    let mut bytes = whole.clone();
    bytes[20] ^= 1;
    bytes[PAGE_SIZE + 20] ^= 1;
    assert!(matches!(read(&bytes), Err(Error::NotBolt(_))));
    for cut in [0, 10, 79, 80, 4096, 5000, whole.len() - 1] {
        assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

/// Damage that bytes at random would hardly find.
#[test]
fn pages_that_go_round_in_circles_are_an_error() {
    let mut content = Content::new();
    content.insert(b"b".to_vec(), numbered(400, 200));
    let whole = write(&content);
    let pages = whole.len() / PAGE_SIZE;
    let branch = (2..pages).find(|page| whole[page * PAGE_SIZE + 8] == 1).unwrap();
    // The first child of the branch is the branch itself.
    let mut bytes = whole.clone();
    let child = branch * PAGE_SIZE + 16 + 8;
    bytes[child..child + 8].copy_from_slice(&(branch as u64).to_le_bytes());
    assert!(matches!(read(&bytes), Err(Error::Damaged { .. })));
    // Two children are one page.
    let mut bytes = whole.clone();
    bytes.copy_within(child..child + 8, child + 16);
    assert!(matches!(read(&bytes), Err(Error::Damaged { .. })));
    // The bucket is the root.
    let root = (2..pages).rfind(|page| whole[page * PAGE_SIZE + 8] == 2).unwrap();
    let mut bytes = whole.clone();
    let value = root * PAGE_SIZE + 16 + 16 + 1;
    bytes[value..value + 8].copy_from_slice(&(root as u64).to_le_bytes());
    assert!(matches!(read(&bytes), Err(Error::Damaged { .. })));
}

fn content() -> impl Strategy<Value = Content> {
    let bytes = |most: usize| prop::collection::vec(any::<u8>(), 1..most);
    let value = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..300),
        1 => (0..20_000_usize).prop_map(|length| vec![1; length]),
    ];
    let pairs = prop::collection::btree_map(bytes(40), value, 0..80);
    prop::collection::btree_map(bytes(8), pairs, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(content in content()) {
        prop_assert_eq!(read(&write(&content)).unwrap(), content);
    }

    #[test]
    fn damage_never_panics(
        content in content(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut bytes = write(&content);
        // The metas have checksums; it is the pages behind them that could say anything.
        for (at, byte) in damage {
            let length = bytes.len();
            bytes[2 * PAGE_SIZE + at.index(length - 2 * PAGE_SIZE)] = byte;
        }
        let _ = read(&bytes);
        let _ = Snapshot::open(Cursor::new(&bytes));
    }

    #[test]
    fn damaged_headers_never_panic(
        content in content(),
        page in any::<prop::sample::Index>(),
        at in 0..64_usize,
        bytes_there in any::<[u8; 4]>(),
    ) {
        let mut bytes = write(&content);
        let page = 2 + page.index(bytes.len() / PAGE_SIZE - 2);
        bytes[page * PAGE_SIZE + at..][..4].copy_from_slice(&bytes_there);
        let _ = read(&bytes);
    }
}

fn state() -> State {
    State {
        meta: Meta {
            consistent_index: 1 << 40,
            term: 3,
            conf_state: Some(ConfState { voters: vec![u64::MAX, 1], ..ConfState::default() }),
            storage_version: "3.6.0".into(),
            scheduled_compact: 12,
            finished_compact: 10,
        },
        leases: vec![
            Lease { id: 7, ttl: 60, remaining_ttl: 0 },
            Lease { id: i64::MAX, ttl: 9, remaining_ttl: 3 },
            Lease { id: -1, ttl: 1, remaining_ttl: 0 },
        ],
        alarms: vec![Alarm { member: 5, kind: 1 }, Alarm { member: 5, kind: 2 }],
        cluster_version: "3.6.0".into(),
        members: vec![Member {
            id: 0xabc,
            peer_urls: vec!["http://127.0.0.1:2380".into()],
            learner: true,
            name: "m0".into(),
            client_urls: vec!["http://127.0.0.1:2379".into()],
        }],
        removed: vec![0xdef],
        auth: Auth {
            enabled: true,
            revision: 9,
            users: vec![User {
                name: "root".into(),
                password: b"$2a$10$".to_vec(),
                roles: vec!["r".into(), "root".into()],
                no_password: false,
            }],
            roles: vec![Role {
                name: "r".into(),
                permissions: vec![
                    Permission { access: Access::Write, key: vec![0], range_end: vec![0] },
                    Permission { access: Access::Read, key: b"a".to_vec(), range_end: vec![] },
                ],
            }],
        },
    }
}

#[test]
fn a_snapshot_comes_back() {
    let state = state();
    let mut writer = SnapshotWriter::new(Cursor::new(Vec::new()), &state).unwrap();
    let mut rows = writer.rows();
    for n in 1..=5000_u64 {
        rows.put(&n.to_be_bytes(), &n.to_le_bytes()).unwrap();
    }
    rows.finish().unwrap();
    let written = writer.finish().unwrap();
    let mut bytes = written.out.into_inner();
    assert_eq!(bytes.len() as u64, written.size);
    assert!(!check_tail(&mut Cursor::new(&bytes)).unwrap());
    let tail = sum(&mut Cursor::new(&bytes)).unwrap();
    bytes.extend(tail);

    let mut snapshot = Snapshot::open(Cursor::new(&bytes)).unwrap();
    assert_eq!(snapshot.state(), &state);
    assert_eq!(snapshot.state().meta.compacted(), 12);
    let mut rows = snapshot.rows().unwrap();
    for n in 1..=5000_u64 {
        let row = rows.next().unwrap().unwrap();
        assert_eq!((row.key, row.value), (&n.to_be_bytes()[..], &n.to_le_bytes()[..]));
    }
    assert!(rows.next().unwrap().is_none());
    snapshot.reader().check().unwrap();

    bytes[5 * PAGE_SIZE] ^= 1;
    assert!(matches!(Snapshot::open(Cursor::new(&bytes)), Err(Error::Checksum)));
}
