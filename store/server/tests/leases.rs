//! Leases end when they should: not before, and not much later.

mod common;

use common::net::Nodes;
use common::*;
use dhow_clock::disk::{Fault, Memory, Operation};
use dhow_clock::{BoxFuture, Clock};
use dhow_kv::Backend;
use dhow_kv::admin::Admin;
use dhow_server::{Options, Store};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A clock that goes on whenever somebody is about to sleep: a thread that is held up there.
#[derive(Debug, Default)]
struct HeldUp {
    inner: Manual,
    seconds: AtomicU64,
}

impl HeldUp {
    fn hold_up(&self) {
        self.inner.advance(Duration::from_secs(self.seconds.swap(0, Ordering::Relaxed)));
    }
}

impl Clock for HeldUp {
    fn now(&self) -> Duration {
        self.inner.now()
    }

    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }

    fn sleep(&self, period: Duration) -> BoxFuture<'static, ()> {
        self.hold_up();
        self.inner.sleep(period)
    }

    fn sleep_until(&self, at: Duration) -> BoxFuture<'static, ()> {
        self.hold_up();
        self.inner.sleep_until(at)
    }

    fn random(&self) -> u64 {
        self.inner.random()
    }
}

/// Waits until the leases' timer sleeps.
async fn rests(clock: &Manual) {
    while clock.sleeping() == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_timer_that_is_held_up_before_it_sleeps_still_wakes_at_the_deadline() {
    let clock = Arc::new(HeldUp::default());
    let store = Store::memory(clock.clone());
    store.lease_grant(5, 60).await.unwrap();
    rests(&clock.inner).await;
    store.lease_grant(6, 10).await.unwrap();
    put_leased(&*store, "leased", 6).await.unwrap();
    let mut watcher = watch(&*store, "", 0);
    clock.seconds.store(6, Ordering::Relaxed);
    // The deadline of the second has come nearer: the timer sleeps anew.
    while clock.monotonic() < Duration::from_secs(6) {
        tokio::task::yield_now().await;
    }
    clock.inner.advance(Duration::from_secs(4));
    assert!(events(&mut *watcher).await.1[0].deleted);
}

#[tokio::test]
async fn leases_that_could_not_be_ended_for_want_of_space_end_a_little_later() {
    for operation in [Operation::Allocate, Operation::Rename] {
        for (after, count) in [(0, 1), (0, 40), (0, 300), (1, 300), (2, 300)] {
            let disk = Memory::new();
            let clock = clock();
            let options = Options { segment_bytes: 4096, inline: true, ..Options::default() };
            let shared = Arc::new(disk.clone());
            let store = Store::open_on(shared, Path::new("/data"), clock.clone(), options).unwrap();
            for id in 1..=count {
                store.lease_grant(id, 10).await.unwrap();
                put_leased(&*store, &format!("k{id}"), id).await.unwrap();
            }
            rests(&clock).await;
            disk.fail(Fault { operation, after, kind: ErrorKind::StorageFull });
            clock.advance(Duration::from_secs(10));
            rests_or_done(&clock, &*store).await;
            let left = store.leases().await.unwrap().len();
            assert!(left <= 1, "{left} of {count} were refused by one fault");
            clock.advance(Duration::from_secs(5));
            rests_or_done(&clock, &*store).await;
            assert_eq!(store.leases().await.unwrap(), [0; 0], "{operation:?} {after} {count}");
            assert!(keys(&*store, "").await.is_empty());
        }
    }
}

/// Lets so much time pass, in steps that the leases' timer can follow.
async fn pass(clock: &Manual, seconds: u64) {
    for _ in 0..seconds / 10 {
        rests(clock).await;
        clock.advance(Duration::from_secs(10));
        tokio::task::yield_now().await;
    }
    rests(clock).await;
}

#[tokio::test]
async fn a_long_lease_does_not_begin_anew_with_a_restart() {
    let disk = Memory::new();
    let clock = clock();
    let options = Options { inline: true, ..Options::default() };
    let open = || {
        let shared = Arc::new(disk.clone());
        Store::open_on(shared, Path::new("/data"), clock.clone(), options.clone()).unwrap()
    };
    let store = open();
    store.lease_grant(5, 3600).await.unwrap();
    store.lease_grant(6, 3600).await.unwrap();
    store.lease_grant(7, 200).await.unwrap();
    let left = |store: Arc<Store>, id| async move {
        store.lease_time_to_live(id, false).await.unwrap().ttl
    };
    pass(&clock, 190).await;
    store.lease_keep_alive(7).await.unwrap();
    pass(&clock, 720).await;
    assert_eq!(left(store.clone(), 5).await, 3600 - 910);
    // One is renewed after its rest was noted, and has its whole time for everybody.
    assert_eq!(store.lease_keep_alive(6).await.unwrap().ttl, 3600);
    drop(store);
    let store = open();
    let noted = left(store.clone(), 5).await;
    assert!((3600 - 910..=3600 - 900 + 10).contains(&noted), "{noted}");
    assert_eq!(left(store.clone(), 6).await, 3600);
    // A snapshot for others and a checkpoint know it too.
    store.defragment().await.unwrap();
    drop(store);
    assert_eq!(left(open(), 5).await, noted);
}

#[tokio::test(start_paused = true)]
async fn a_long_lease_does_not_begin_anew_with_another_leader() {
    let nodes = Nodes::start(3, &Options::default());
    let old = nodes.leader().await;
    let follower = nodes.other(&[old]);
    let store = nodes.store(follower).clone();
    store.lease_grant(5, 3600).await.unwrap();
    store.lease_grant(6, 3600).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    // Renewed by way of a follower, and of the leader.
    assert_eq!(store.lease_keep_alive(6).await.unwrap().ttl, 3600);
    store.lease_grant(7, 3600).await.unwrap();
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert_eq!(nodes.store(old).lease_keep_alive(7).await.unwrap().ttl, 3600);
    nodes.net.cut(nodes.nodes[old].id, true);
    let new = nodes.leader().await;
    let left = |id| {
        let store = nodes.store(new).clone();
        async move { store.lease_time_to_live(id, false).await.unwrap().ttl }
    };
    let noted = left(5).await;
    assert!((3600 - 1410..=3600 - 1190).contains(&noted), "{noted}");
    let renewed = left(6).await;
    assert!((3600 - 410..=3600 - 290).contains(&renewed), "{renewed}");
    assert!(left(7).await >= 3590);
}

/// Waits until the leases' timer sleeps, or has nothing left to sleep for.
async fn rests_or_done(clock: &Manual, store: &dyn Backend) {
    while clock.sleeping() == 0 && !store.leases().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}
