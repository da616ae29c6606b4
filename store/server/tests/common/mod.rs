//! What the behaviour tests share: a clock that only moves when told to, and short words.
#![allow(dead_code, reason = "each test file uses some")]

pub mod disk;
pub mod net;

use bytes::Bytes;
use dhow_clock::{BoxFuture, Clock};
use dhow_kv::{
    Backend, Compare, Error, Event, KeyValue, Op, Order, Range, Span, Target, Txn, TxnResult,
    WatchEvent, WatchRequest, Watcher,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// A clock that stands still until [`Manual::advance`].
#[derive(Debug, Default)]
pub struct Manual {
    now: Mutex<Duration>,
    sleepers: Mutex<Vec<(Duration, oneshot::Sender<()>)>>,
    drawn: AtomicU64,
}

impl Manual {
    pub fn advance(&self, by: Duration) {
        let mut sleepers = self.sleepers.lock().unwrap();
        let now = {
            let mut now = self.now.lock().unwrap();
            *now += by;
            *now
        };
        for (at, wake) in std::mem::take(&mut *sleepers) {
            if at <= now {
                let _ = wake.send(());
            } else {
                sleepers.push((at, wake));
            }
        }
    }

    /// How many sleeps have not ended.
    pub fn sleeping(&self) -> usize {
        self.sleepers.lock().unwrap().iter().filter(|(_, wake)| !wake.is_closed()).count()
    }
}

impl Clock for Manual {
    fn now(&self) -> Duration {
        self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        *self.now.lock().unwrap()
    }

    fn sleep(&self, period: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.monotonic() + period)
    }

    fn sleep_until(&self, at: Duration) -> BoxFuture<'static, ()> {
        let (wake, woken) = oneshot::channel();
        // The time cannot move while they are looked at: see `advance`.
        let mut sleepers = self.sleepers.lock().unwrap();
        if at > self.monotonic() {
            sleepers.push((at, wake));
        }
        Box::pin(async move {
            let _ = woken.await;
        })
    }

    fn random(&self) -> u64 {
        self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

pub fn clock() -> Arc<Manual> {
    Arc::default()
}

pub async fn run(store: &dyn Backend, ops: Vec<Op>) -> Result<TxnResult, Error> {
    store.txn(Txn { success: ops, ..Txn::default() }).await
}

pub async fn put(store: &dyn Backend, key: &str, value: &str) -> i64 {
    run(store, vec![Op::put(key.to_owned(), value.to_owned())]).await.unwrap().revision
}

pub async fn put_leased(store: &dyn Backend, key: &str, lease: i64) -> Result<TxnResult, Error> {
    let op = Op::Put {
        key: key.to_owned().into(),
        value: "v".into(),
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    run(store, vec![op]).await
}

pub async fn delete(store: &dyn Backend, key: &str) -> i64 {
    run(store, vec![Op::delete(key.to_owned())]).await.unwrap().revision
}

pub async fn get(store: &dyn Backend, key: &str) -> Option<KeyValue> {
    store.range(Range::all(Span::Key(key.to_owned().into()))).await.unwrap().kvs.pop()
}

pub async fn value(store: &dyn Backend, key: &str) -> Option<Bytes> {
    get(store, key).await.map(|kv| kv.value)
}

pub async fn keys(store: &dyn Backend, prefix: &str) -> Vec<String> {
    let found = store.range(Range::all(Span::prefix(prefix.to_owned()))).await.unwrap();
    found.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect()
}

pub fn compare(key: &str, order: Order, target: Target) -> Compare {
    Compare { span: Span::Key(key.to_owned().into()), order, target }
}

pub fn watch(store: &dyn Backend, prefix: &str, start_revision: i64) -> Box<dyn Watcher> {
    let span = Span::prefix(prefix.to_owned());
    store.watch(WatchRequest { span, start_revision, prev_kv: true }).unwrap()
}

/// The next events of a watch; panics if the next item is something else.
pub async fn events(watcher: &mut dyn Watcher) -> (i64, Arc<[Event]>) {
    match watcher.next().await {
        Some(WatchEvent::Events { revision, events }) => (revision, events),
        other => panic!("expected events, got {other:?}"),
    }
}
