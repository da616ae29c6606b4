//! A new member from another one's snapshot.

use bytes::Bytes;
use dhow_bolt::etcd::Snapshot;
use dhow_clock::disk::Real;
use dhow_kv::admin::{Admin, AuthChange};
use dhow_kv::{Backend, Error, Op, Range, Span, Txn};
use dhow_server::{Cluster, Options, Store, Transport, force_new, restore};
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

#[derive(Debug)]
struct Nobody;

impl Transport for Nobody {
    fn send(&self, _: u64, _: Bytes) {}
    fn members(&self, _: &[dhow_kv::admin::Member]) {}
}

fn options(name: &str) -> Options {
    let initial = vec![(name.to_owned(), vec![format!("http://{name}:2380")])];
    let cluster = Cluster::new(name, initial, Arc::new(Nobody));
    Options { cluster: Some(cluster), retention: None, ..Options::default() }
}

fn open(dir: &Path, name: &str) -> Arc<Store> {
    Store::open(dir, dhow_clock::System::shared(), options(name)).unwrap()
}

async fn put(store: &Store, key: &str, value: &str, lease: i64) {
    let op = Op::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    store.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
}

async fn saved(store: &Store) -> Vec<u8> {
    let mut reader = store.snapshot().await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_member_has_everything_and_is_somebody_else() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir.path().join("first"), "a");
    for n in 0..500 {
        put(&first, &format!("k{n:03}"), &format!("v{n}"), 0).await;
    }
    let lease = first.lease_grant(0, 600).await.unwrap().id;
    put(&first, "leased", "x", lease).await;
    first.compact(100, false).await.unwrap();
    let change = AuthChange::UserAdd { name: "ann".into(), hash: "h".into(), no_password: false };
    first.auth_change(change).await.unwrap();
    let snapshot = saved(&first).await;
    let (hash, revision) = (first.hash_kv(0).await.unwrap(), first.revision());
    let old = Admin::identity(&*first);
    first.shutdown().await;

    let clock = dhow_clock::System::shared();
    let second = dir.path().join("second");
    let mut source = Snapshot::open(Cursor::new(snapshot.clone())).unwrap();
    let restored = restore(Real::shared(), &second, &clock, &options("b"), &mut source, 0).unwrap();
    assert_eq!((restored.revision, restored.keys), (revision, 501));
    assert_ne!(restored.identity, old);
    // Twice, because the second start reads what the first one wrote.
    for round in 0..2 {
        let store = open(&second, "b");
        assert_eq!(Admin::identity(&*store), restored.identity);
        assert_eq!(store.hash_kv(revision).await.unwrap().hash, hash.hash, "round {round}");
        let all = store.range(Range::all(Span::prefix("k"))).await.unwrap();
        assert_eq!(all.kvs.len(), 500);
        let mut past = Range::all(Span::Key("k000".into()));
        past.revision = 50;
        assert_eq!(store.range(past).await, Err(Error::Compacted));
        assert_eq!(store.leases().await.unwrap(), [lease]);
        assert_eq!(store.users(), ["ann"]);
        put(&store, &format!("later{round}"), "x", 0).await;
        assert_eq!(store.revision(), revision + 1 + round);
        store.shutdown().await;
    }
    // Never over what is there.
    let mut source = Snapshot::open(Cursor::new(snapshot)).unwrap();
    let refused = restore(Real::shared(), &second, &clock, &options("b"), &mut source, 0);
    assert!(refused.unwrap_err().to_string().contains("holds a store already"));
}

#[tokio::test]
async fn a_store_that_was_about_to_take_its_place_is_not_forgotten() {
    let home = tempfile::tempdir().unwrap();
    let (path, new) = (home.path().join("data"), home.path().join("data.new"));
    let store = open(&path, "m1");
    put(&store, "a", "1", 0).await;
    store.shutdown().await;
    drop(store);
    std::fs::rename(&path, &new).unwrap();
    let error = Store::open(&path, dhow_clock::System::shared(), options("m1")).unwrap_err();
    assert!(error.to_string().contains("data.new"), "{error}");
    assert!(!path.exists());
    std::fs::rename(&new, &path).unwrap();
    assert_eq!(open(&path, "m1").revision(), 2);
}

#[tokio::test]
async fn directories_that_differ_only_behind_a_dot_do_not_get_in_each_others_way() {
    let home = tempfile::tempdir().unwrap();
    let paths = [home.path().join("10.0.0.1"), home.path().join("10.0.0.2")];
    let clock = dhow_clock::System::shared();
    for path in &paths {
        let store = open(path, "m1");
        put(&store, "a", "1", 0).await;
        store.shutdown().await;
    }
    // Interrupted when the second was put aside.
    std::fs::rename(&paths[1], home.path().join("10.0.0.2.new")).unwrap();
    // Twice in one second, as somebody does who starts it again with the same flags.
    for _ in 0..2 {
        force_new(Real::shared(), &paths[0], &clock, &options("m1")).unwrap();
    }
    let error = Store::open(&paths[1], clock, options("m1")).unwrap_err();
    assert!(error.to_string().contains("10.0.0.2.new"), "{error}");
    assert_eq!(open(&paths[0], "m1").revision(), 2);
    let names = std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(
        names
            .into_iter()
            .any(|name| { name.to_str().is_some_and(|name| name.starts_with("10.0.0.1.before-")) })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raised_restore_sends_everybody_who_watched_back_to_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir.path().join("first"), "a");
    for value in ["1", "2", "3"] {
        put(&first, "k", value, 0).await;
    }
    put(&first, "gone", "x", 0).await;
    let gone = Op::Delete { span: Span::Key("gone".into()), prev_kv: false };
    first.txn(Txn { success: vec![gone], ..Txn::default() }).await.unwrap();
    let (snapshot, revision) = (saved(&first).await, first.revision());
    first.shutdown().await;

    let (second, raise) = (dir.path().join("second"), 1_000_000_000);
    let clock = dhow_clock::System::shared();
    let mut source = Snapshot::open(Cursor::new(snapshot)).unwrap();
    let options_b = options("b");
    let disk = Real::shared();
    let restored = restore(disk, &second, &clock, &options_b, &mut source, raise).unwrap();
    assert_eq!((restored.revision, restored.keys), (revision + raise, 1));
    let store = open(&second, "b");
    assert_eq!(store.status().compacted, revision + raise);
    let all = store.range(Range::all(Span::From("".into()))).await.unwrap();
    assert_eq!((all.kvs.len(), all.kvs[0].value.as_ref()), (1, &b"3"[..]));
    let old = Range { revision, ..Range::all(Span::Key("k".into())) };
    assert_eq!(store.range(old).await.unwrap_err(), Error::Compacted);
    put(&store, "k", "4", 0).await;
    assert_eq!(store.revision(), revision + raise + 1);
    // What it writes out again is read by the same rules.
    let again = saved(&store).await;
    store.shutdown().await;
    let mut source = Snapshot::open_unchecked(Cursor::new(again)).unwrap();
    let third = dir.path().join("third");
    let disk = Real::shared();
    let restored = restore(disk, &third, &clock, &options_b, &mut source, 0).unwrap();
    assert_eq!((restored.revision, restored.keys), (revision + raise + 1, 1));
}
