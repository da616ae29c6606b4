//! A new member from another one's snapshot.

use bytes::Bytes;
use dhow_bolt::etcd::Snapshot;
use dhow_clock::disk::{Disk, Memory, Real};
use dhow_kv::admin::{Admin, AuthChange};
use dhow_kv::{Backend, Error, Op, Range, Span, Txn};
use dhow_server::{Cluster, Options, Store, Transport, force_new, restore};
use std::io::Cursor;
use std::path::{Path, PathBuf};
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

/// All files below a directory of a disk in memory.
fn below(disk: &Memory, path: &Path) -> Vec<PathBuf> {
    let names = disk.list(path).unwrap();
    let paths = names.into_iter().map(|name| path.join(name));
    paths
        .flat_map(|path| match below(disk, &path) {
            inside if inside.is_empty() => vec![path],
            inside => inside,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_was_interrupted_anywhere_is_done_again_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir.path().join("first"), "a");
    for n in 0..20 {
        put(&first, &format!("k{n:03}"), "v", 0).await;
    }
    let (snapshot, revision) = (saved(&first).await, first.revision());
    first.shutdown().await;

    let clock = dhow_clock::System::shared();
    let (home, path) = (Path::new("/"), Path::new("/data/store"));
    let with = |logs: Option<&str>| Options {
        log_dir: logs.map(Into::into),
        segment_bytes: 64 << 10,
        ..options("b")
    };
    let restore_to = |disk: &Memory, options: &Options| {
        let mut source = Snapshot::open(Cursor::new(snapshot.clone())).unwrap();
        restore(Arc::new(disk.clone()), path, &clock, options, &mut source, 0)
    };
    let open_on = |disk: &Memory, options: &Options| {
        Store::open_on(Arc::new(disk.clone()), path, clock.clone(), options.clone())
    };
    // What it leaves when nothing happens; the log's folder has a name of its own each time.
    let whole = |options: &Options| {
        let disk = Memory::new();
        restore_to(&disk, options).unwrap();
        below(&disk, home).len()
    };
    for (logs, later) in [(None, None), (Some("/logs"), Some("/logs")), (Some("/logs"), None)] {
        let (first, second) = (with(logs), with(later));
        let count = whole(&second);
        let (mut interrupted, mut finished) = (0, 0);
        for change in 0.. {
            let mut happened = false;
            for seed in 0..3 {
                let disk = Memory::new();
                disk.crash_before(change, seed);
                restore_to(&disk, &first).unwrap();
                let Some(crashed) = disk.crashed() else { continue };
                happened = true;
                if crashed.list(path).unwrap().is_empty() {
                    interrupted += 1;
                    // It is not mistaken for a place where nothing was ever begun.
                    if !crashed.list(Path::new("/data/store.making")).unwrap().is_empty() {
                        let error = open_on(&crashed.crash(0), &first).unwrap_err().to_string();
                        assert!(error.contains("a restore into it was interrupted"), "{error}");
                    }
                    restore_to(&crashed, &second).unwrap();
                    let left = below(&crashed, home);
                    assert_eq!(left.len(), count, "{change} {seed}: {left:?}");
                    assert_eq!(open_on(&crashed, &second).unwrap().revision(), revision);
                } else {
                    finished += 1;
                    assert_eq!(open_on(&crashed, &first).unwrap().revision(), revision);
                }
            }
            if !happened {
                break;
            }
        }
        assert!(interrupted > 20 && finished > 0, "{interrupted} {finished}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_failed_leaves_nothing_that_the_next_one_cannot_remove() {
    let home = tempfile::tempdir().unwrap();
    let (path, logs) = (home.path().join("data"), home.path().join("logs"));
    let first = open(&home.path().join("first"), "a");
    let snapshot = saved(&first).await;
    first.shutdown().await;
    let half = home.path().join("data.making");
    let log = logs.join("0123");
    std::fs::create_dir_all(&half).unwrap();
    std::fs::create_dir_all(&log).unwrap();
    std::fs::write(half.join("wal-dir.begun"), format!("{}\n", log.display())).unwrap();
    std::fs::write(log.join("log-0000000000000001.new"), "half").unwrap();
    let clock = dhow_clock::System::shared();
    let mut source = Snapshot::open(Cursor::new(snapshot)).unwrap();
    let options = Options { log_dir: Some(logs.clone()), ..options("b") };
    // What is none of a log's files is nobody's to remove.
    std::fs::write(log.join("precious"), "x").unwrap();
    let again = restore(Real::shared(), &path, &clock, &options, &mut source, 0);
    let error = again.unwrap_err().to_string();
    assert!(error.contains("cannot remove") && error.contains("0123"), "{error}");
    std::fs::remove_file(log.join("precious")).unwrap();
    restore(Real::shared(), &path, &clock, &options, &mut source, 0).unwrap();
    assert!(!half.exists() && !log.exists());
    assert_eq!(std::fs::read_dir(&logs).unwrap().count(), 1);
    let store = Store::open(&path, clock, options).unwrap();
    assert_eq!(store.revision(), 1);
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
