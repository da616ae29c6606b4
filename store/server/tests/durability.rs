//! What was acknowledged is there again after a restart, a crash at any moment, and a kill.

mod common;

use common::disk::Watched;
use common::*;
use dhow_clock::System;
use dhow_clock::disk::{Disk, Memory};
use dhow_kv::{Backend, Error, Op, Range, Span};
use dhow_server::{OpenError, Options, Retention, Store};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

fn dir() -> &'static Path {
    Path::new("/data")
}

/// Small files, so that a few hundred writes pass through everything.
fn small() -> Options {
    Options { segment_bytes: 4096, checkpoint_bytes: 6000, inline: true, ..Options::default() }
}

fn open_on(disk: &Memory, options: Options) -> Result<Arc<Store>, OpenError> {
    Store::open_on(Arc::new(disk.clone()), dir(), clock(), options)
}

/// Everything that can be seen of a store: its keys, their history since `from`, its leases.
async fn picture(store: &dyn Backend, from: i64) -> String {
    // They come by their deadlines, which a restart begins anew.
    let mut leases = store.leases().await.unwrap();
    leases.sort_unstable();
    let mut text = format!("{leases:?}\n");
    for revision in from..=store.revision() {
        let range = Range { revision, ..Range::all(Span::From("".into())) };
        let found = store.range(range).await.map(|found| (found.kvs, found.count));
        text.push_str(&format!("{revision} {found:?}\n"));
    }
    text
}

#[tokio::test]
async fn a_restart_finds_keys_history_leases_and_the_compacted_revision() {
    let home = tempfile::tempdir().unwrap();
    let options = Options { inline: false, ..small() };
    let open = || Store::open(home.path(), System::shared(), options.clone()).unwrap();
    let store = open();
    store.lease_grant(5, 600).await.unwrap();
    store.lease_grant(6, 600).await.unwrap();
    put_leased(&*store, "leased", 5).await.unwrap();
    for n in 0..300 {
        put(&*store, &format!("k{:03}", n % 50), &format!("{n}")).await;
        if n % 10 == 0 {
            delete(&*store, &format!("k{:03}", (n + 5) % 50)).await;
        }
    }
    store.compact(200, true).await.unwrap();
    let last = put(&*store, "last", "1").await;
    store.lease_revoke(6).await.unwrap();
    let before = picture(&*store, 190).await;
    store.shutdown().await;
    let store = open();
    assert_eq!(store.revision(), last);
    assert_eq!(picture(&*store, 190).await, before);
    assert_eq!(store.lease_time_to_live(5, true).await.unwrap().keys, ["leased"]);
    let mut watcher = watch(&*store, "k", 200);
    assert!(events(&mut *watcher).await.0 >= 200);
    assert_eq!(put(&*store, "more", "1").await, last + 1);
    let names = std::fs::read_dir(home.path()).unwrap().count();
    assert!(names < 10, "old segments and checkpoints are deleted: {names} files");
}

/// Some work, of which step `n` leads to a revision that only depends on `n`.
async fn step(store: &dyn Backend, n: u64) -> Result<(), Error> {
    let key = format!("k{}", n % 13);
    match n % 11 {
        3 => drop(run(store, vec![Op::delete(key)]).await?),
        5 => drop(store.lease_grant(n as i64, 100).await?),
        6 => drop(put_leased(store, &key, n as i64 - 1).await?),
        7 if n > 40 => drop(store.lease_revoke(n as i64 - 13).await?),
        8 if n > 40 => drop(store.compact(store.revision() - 20, true).await?),
        _ => {
            let value = vec![n as u8; 10 + (n as usize * 53) % 600];
            drop(run(store, vec![Op::put(key, value.clone()), Op::put("all", value)]).await?);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_crash_at_any_moment_loses_nothing_acknowledged_and_tears_nothing() {
    const STEPS: u64 = 150;
    // What it should look like after each step.
    let reference = Store::memory(clock());
    let mut pictures = vec![picture(&*reference, 1).await];
    for n in 0..STEPS {
        step(&*reference, n).await.unwrap();
        pictures.push(picture(&*reference, 1).await);
    }
    let mut crashes = 0;
    for seed in 0..150 {
        let disk = Memory::new();
        disk.crash_before(seed as usize * 7 % 600, seed);
        let store = open_on(&disk, small()).unwrap();
        let mut done = 0;
        let mut crashed = disk.crashed();
        while crashed.is_none() && done < STEPS {
            step(&*store, done).await.unwrap();
            crashed = disk.crashed();
            done += 1;
        }
        let Some(crashed) = crashed else { continue };
        crashes += 1;
        let again = open_on(&crashed, small()).unwrap();
        let found = picture(&*again, 1).await;
        // The step during which the power went may have happened or not.
        let before = done.saturating_sub(1) as usize;
        let at = (before..=done as usize).find(|at| pictures[*at] == found);
        let at = at.unwrap_or_else(|| panic!("seed {seed}: neither before nor after step {done}"));
        for n in at as u64..STEPS {
            step(&*again, n).await.unwrap();
        }
        assert_eq!(picture(&*again, 1).await, pictures[STEPS as usize], "seed {seed}");
    }
    assert!(crashes > 100, "only {crashes} crashes came in time");
}

/// A disk whose syncs wait at a gate.
fn gated() -> (Watched, Arc<Gate>) {
    let gate = Arc::<Gate>::default();
    let passing = gate.clone();
    (Watched::new(move || passing.pass()), gate)
}

/// How long anything may take that should happen at once.
const SOON: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Gate {
    /// Whether it is shut, and how many wait.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn shut(&self, shut: bool) {
        self.state.lock().unwrap().0 = shut;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        while state.0 {
            state = self.changed.wait(state).unwrap();
        }
        state.1 -= 1;
    }

    fn await_arrival(&self) {
        let state = self.state.lock().unwrap();
        // For a test that has failed elsewhere its runtime would wait for this.
        let waiting = self.changed.wait_timeout_while(state, SOON, |state| state.1 == 0);
        assert!(!waiting.unwrap().1.timed_out(), "nobody comes to the gate");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_seen_before_it_is_durable_and_reads_do_not_wait() {
    let (disk, gate) = gated();
    let store = Store::open_on(Arc::new(disk.clone()), dir(), clock(), Options::default()).unwrap();
    put(&*store, "a", "old").await;
    let mut watcher = watch(&*store, "", 0);
    gate.shut(true);
    // A failed assertion must not leave the writer at the gate: the store waits for it.
    let _open = Opens(gate.clone());
    let writing = {
        let store = store.clone();
        tokio::spawn(async move {
            let ops = vec![Op::put("a", "new"), Op::put("b", "new")];
            run(&*store, ops).await
        })
    };
    let arriving = gate.clone();
    tokio::task::spawn_blocking(move || arriving.await_arrival()).await.unwrap();
    assert_eq!(store.revision(), 2);
    assert_eq!(value(&*store, "a").await.unwrap(), "old");
    let found = store.range(Range::all(Span::From("".into()))).await.unwrap();
    assert_eq!((found.count, found.revision), (1, 2));
    let count = Range { count_only: true, ..Range::all(Span::From("".into())) };
    assert_eq!(store.range(count).await.unwrap().count, 1);
    let past = Range { revision: 3, ..Range::all(Span::From("".into())) };
    assert_eq!(store.range(past).await, Err(Error::FutureRevision));
    let mut late = watch(&*store, "", 3);
    assert_eq!(futures::future::poll_immediate(watcher.next()).await, None);
    assert_eq!(futures::future::poll_immediate(late.next()).await, None);
    gate.shut(false);
    assert_eq!(writing.await.unwrap().unwrap().revision, 3);
    assert_eq!(events(&mut *watcher).await.0, 3);
    assert_eq!(events(&mut *late).await.0, 3);
}

/// Opens a gate when it goes out of scope.
struct Opens(Arc<Gate>);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.shut(false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_arrive_together_share_a_sync() {
    let (disk, gate) = gated();
    let store = Store::open_on(Arc::new(disk.clone()), dir(), clock(), Options::default()).unwrap();
    gate.shut(true);
    let put_one = |n: i32| {
        let store = store.clone();
        tokio::spawn(async move { put(&*store, &format!("k{n}"), "v").await })
    };
    let first = put_one(0);
    let arriving = gate.clone();
    tokio::task::spawn_blocking(move || arriving.await_arrival()).await.unwrap();
    let before = disk.memory.syncs();
    let rest: Vec<_> = (1..200).map(put_one).collect();
    // All have been polled once when as many later tasks have run; then they are in the queue.
    let reached =
        futures::future::join_all((0..64).map(|_| tokio::spawn(tokio::task::yield_now())));
    reached.await;
    gate.shut(false);
    first.await.unwrap();
    let mut revisions: Vec<i64> =
        futures::future::join_all(rest).await.into_iter().map(Result::unwrap).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (3..202).collect::<Vec<i64>>());
    assert!(disk.memory.syncs() - before < 100, "{} syncs", disk.memory.syncs() - before);
}

#[tokio::test]
async fn a_lease_has_its_whole_time_again_after_a_restart_and_then_ends() {
    let disk = Memory::new();
    let manual = clock();
    let open = || Store::open_on(Arc::new(disk.clone()), dir(), manual.clone(), small()).unwrap();
    let store = open();
    store.lease_grant(5, 60).await.unwrap();
    put_leased(&*store, "leased", 5).await.unwrap();
    manual.advance(Duration::from_secs(50));
    drop(store);
    let store = open();
    assert_eq!(store.lease_time_to_live(5, false).await.unwrap().ttl, 60);
    let mut watcher = watch(&*store, "", 0);
    while manual.sleeping() == 0 {
        tokio::task::yield_now().await;
    }
    manual.advance(Duration::from_secs(61));
    assert!(events(&mut *watcher).await.1[0].deleted);
    drop(watcher);
    drop(store);
    assert!(open().leases().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn checkpoints_beside_writers_and_compaction_hold_everything() {
    let disk = Memory::new();
    let retention = Retention { newest: 50, age: Duration::ZERO, most: 600 };
    let options =
        Options { inline: false, checkpoint_bytes: 20_000, retention: Some(retention), ..small() };
    let mut last = 1;
    for round in 0..5 {
        let store = open_on(&disk, options.clone()).unwrap();
        assert_eq!(store.revision(), last);
        let writers = (0..4).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..500 {
                    put(&*store, &format!("k{writer}{}", n % 40), &format!("{round} {n}")).await;
                }
            })
        });
        for writer in futures::future::join_all(writers).await {
            writer.unwrap();
        }
        last += 2000;
        assert_eq!(store.revision(), last);
        let from = store.status().compacted;
        assert!(from > last - 1200, "compacted at {from} of {last}");
        let before = picture(&*store, from).await;
        store.shutdown().await;
        drop(store);
        let again = open_on(&disk, options.clone()).unwrap();
        assert_eq!(again.status().compacted, from);
        assert_eq!(picture(&*again, from).await, before);
        let kv = get(&*again, "k00").await.unwrap();
        assert_eq!((kv.version, kv.value), ((round + 1) * 13, format!("{round} 480").into()));
    }
    let names = disk.list(dir()).unwrap();
    assert!(names.iter().any(|name| name.starts_with("checkpoint-")), "{names:?}");
}

/// Not a test of its own: what the next one kills.
#[tokio::test]
async fn child_that_writes_until_it_is_killed() {
    let Ok(home) = std::env::var("STORE_CHILD_HOME") else { return };
    let options = Options { checkpoint_bytes: 50_000, segment_bytes: 20_000, ..Options::default() };
    let store = Store::open(Path::new(&home), System::shared(), options).unwrap();
    for n in store.revision().. {
        let revision = put(&*store, &format!("k{}", n % 100), &format!("{n:0200}")).await;
        println!("acknowledged {revision}");
    }
}

#[tokio::test]
async fn a_killed_process_has_lost_nothing_that_it_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
            .env("STORE_CHILD_HOME", home.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        let mut seen = 0;
        while seen < 400 {
            let line = lines.next().unwrap().unwrap();
            if let Some((_, revision)) = line.split_once("acknowledged ") {
                acknowledged = revision.trim().parse::<i64>().unwrap();
                seen += 1;
            }
        }
        // Rust's kill is SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(home.path(), System::shared(), Options::default()).unwrap();
        assert!(store.revision() >= acknowledged, "round {round}");
        let written = get(&*store, &format!("k{}", (acknowledged - 1) % 100)).await.unwrap();
        assert!(written.mod_revision >= acknowledged);
        store.shutdown().await;
    }
}

#[tokio::test]
async fn a_second_opener_is_told_and_the_first_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let first = Store::open(home.path(), System::shared(), Options::default()).unwrap();
    let error = Store::open(home.path(), System::shared(), Options::default()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, OpenError::InUse { .. }), "{text}");
    assert!(text.contains(&*home.path().to_string_lossy()) && !text.contains('\n'), "{text}");
    put(&*first, "a", "1").await;
    drop(first);
    let second = Store::open(home.path(), System::shared(), Options::default()).unwrap();
    assert_eq!(value(&*second, "a").await.unwrap(), "1");
}

#[tokio::test]
async fn a_log_on_a_disk_of_its_own_survives_crashes_and_is_looked_for_there_only() {
    let logs = |path: &str| Options { log_dir: Some(path.into()), ..small() };
    for seed in 0..20 {
        let disk = Memory::new();
        let store = open_on(&disk, logs("/logs")).unwrap();
        for n in 0..100 {
            put(&*store, &format!("k{}", n % 7), &format!("{n}-{}", "x".repeat(100))).await;
        }
        let before = picture(&*store, store.revision()).await;
        drop(store);
        let disk = disk.crash(seed);
        for other in [small(), logs("/other")] {
            let refused = open_on(&disk, other).unwrap_err();
            let text = refused.to_string();
            assert!(text.contains("its log lies in /logs: start it with --wal-dir"), "{text}");
        }
        let store = open_on(&disk, logs("/logs")).unwrap();
        assert_eq!(picture(&*store, store.revision()).await, before);
    }
    let disk = Memory::new();
    put(&*open_on(&disk, small()).unwrap(), "k", "v").await;
    let refused = open_on(&disk, logs("/logs")).unwrap_err();
    assert!(refused.to_string().contains("start it without --wal-dir"), "{refused}");
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("version"), "dhow-store 7\n").unwrap();
    let error = Store::open(home.path(), System::shared(), Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 7, known: 2, .. }), "{error}");
    let version = std::fs::read_to_string(home.path().join("version")).unwrap();
    assert_eq!(version, "dhow-store 7\n");
}

#[tokio::test]
async fn damage_is_refused_with_its_place() {
    let disk = Memory::new();
    let store = open_on(&disk, Options { inline: true, ..Options::default() }).unwrap();
    for n in 0..10 {
        put(&*store, "a", &n.to_string()).await;
    }
    drop(store);
    disk.flip(&dir().join("log-0000000000000001"), 140);
    let text = open_on(&disk, Options::default()).unwrap_err().to_string();
    assert!(text.contains("/data/log-0000000000000001 is damaged at byte 120"), "{text}");
}

/// A small tmpfs that is unmounted when it goes.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Self {
        use rustix::mount::{MountFlags, mount};
        let at = tempfile::tempdir().unwrap();
        let data = std::ffi::CString::new(format!("size={size}")).unwrap();
        mount("tmpfs", at.path(), "tmpfs", MountFlags::empty(), data.as_c_str())
            .expect("this test mounts a tmpfs and so needs root");
        Self(at)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::empty());
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_keeps_reads_and_heals_when_there_is_space() {
    let mounted = Tmpfs::mount("2m");
    let options = Options { segment_bytes: 256 << 10, ..Options::default() };
    let home = mounted.0.path().join("data");
    let store = Store::open(&home, System::shared(), options.clone()).unwrap();
    let ballast = mounted.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    let mut written = 0;
    let refused = loop {
        match run(&*store, vec![Op::put(format!("k{written}"), vec![7; 10_000])]).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, Error::NoSpace);
    assert!(written > 10);
    assert_eq!(store.revision(), written + 1);
    assert_eq!(get(&*store, "k3").await.unwrap().value.len(), 10_000);
    std::fs::remove_file(&ballast).unwrap();
    let revision = run(&*store, vec![Op::put("again", "1")]).await.unwrap().revision;
    assert_eq!(revision, written + 2);
    store.shutdown().await;
    drop(store);
    let store = Store::open(&home, System::shared(), options).unwrap();
    assert_eq!(store.revision(), revision);
    drop(store);
}

#[tokio::test]
async fn a_first_start_that_was_interrupted_anywhere_is_made_again() {
    for change in 0.. {
        let mut happened = false;
        for seed in 0..5 {
            let disk = Memory::new();
            disk.crash_before(change, seed);
            drop(open_on(&disk, small()).unwrap());
            let Some(crashed) = disk.crashed() else { continue };
            happened = true;
            let store = open_on(&crashed, small()).unwrap();
            assert_eq!(put(&*store, "a", "1").await, 2);
        }
        if !happened {
            assert!(change > 5);
            break;
        }
    }
}
