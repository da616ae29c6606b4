//! Leases end when they should: not before, and not much later.

mod common;

use common::*;
use dhow_clock::disk::{Fault, Memory, Operation};
use dhow_clock::{BoxFuture, Clock};
use dhow_kv::Backend;
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

/// Waits until the leases' timer sleeps, or has nothing left to sleep for.
async fn rests_or_done(clock: &Manual, store: &dyn Backend) {
    while clock.sleeping() == 0 && !store.leases().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}
