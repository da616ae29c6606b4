//! The driver: keys to reconcile, now or at a moment, again after a failure, never two at once.

use dhow_clock::SharedClock;
use dhow_objects::Status;
use dhow_state::Key;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

/// First wait after a failure; it doubles up to [`LONGEST`].
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(60);

/// What a reconciliation says about its key.
pub(crate) type Outcome = Result<Option<Duration>, Status>;

/// The keys that wait for work.
pub(crate) struct Queue {
    name: &'static str,
    clock: SharedClock,
    ready: BTreeSet<Key>,
    /// When a key is due, in monotonic time.
    later: BTreeMap<(Duration, Key), ()>,
    due: HashMap<Key, Duration>,
    failures: HashMap<Key, u32>,
}

impl Queue {
    pub(crate) fn new(name: &'static str, clock: SharedClock) -> Self {
        Self {
            name,
            clock,
            ready: BTreeSet::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        }
    }

    /// Wants `key` reconciled now.
    pub(crate) fn add(&mut self, key: Key) {
        self.ready.insert(key);
    }

    fn add_later(&mut self, key: Key, wait: Duration) {
        let at = self.clock.monotonic() + wait;
        // The earliest of several moments counts.
        if let Some(known) = self.due.get(&key).copied() {
            if known <= at {
                return;
            }
            self.later.remove(&(known, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.later.insert((at, key), ());
    }

    /// Moves keys whose moment has come to the ready ones.
    pub(crate) fn ripen(&mut self) {
        let now = self.clock.monotonic();
        while let Some(((at, key), ())) = self.later.first_key_value() {
            if *at > now {
                break;
            }
            let (at, key) = (*at, key.clone());
            self.later.remove(&(at, key.clone()));
            self.due.remove(&key);
            self.ready.insert(key);
        }
    }

    /// The next ready key.
    pub(crate) fn next(&mut self) -> Option<Key> {
        self.ready.pop_first()
    }

    /// Completes when the next moment of a waiting key has come; never when none waits.
    pub(crate) async fn moment(&self) {
        match self.later.first_key_value() {
            Some(((at, _), ())) => {
                let wait = at.saturating_sub(self.clock.monotonic());
                self.clock.sleep(wait).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Takes note of how a key's reconciliation went.
    pub(crate) fn done(&mut self, key: Key, outcome: Outcome) {
        match outcome {
            Ok(again) => {
                self.failures.remove(&key);
                if let Some(wait) = again {
                    self.add_later(key, wait);
                }
            }
            // Who empties the namespace removes what asks for more; trying again is of no use.
            Err(refusal) if ends_with_its_namespace(&refusal) => {
                self.failures.remove(&key);
            }
            Err(refusal) => {
                let failures = self.failures.entry(key.clone()).or_default();
                *failures += 1;
                let wait = SHORTEST.saturating_mul(1 << (*failures - 1).min(12)).min(LONGEST);
                // A conflict only says that the view has news; anything else a person may want.
                if refusal.code == 409 {
                    tracing::debug!(r#loop = self.name, %key, %refusal, "reconciling again");
                } else {
                    let times = *failures;
                    tracing::warn!(r#loop = self.name, %key, %refusal, times, "reconciliation failed");
                }
                self.add_later(key, wait);
            }
        }
    }
}

fn ends_with_its_namespace(refusal: &Status) -> bool {
    let causes = refusal.details.iter().flat_map(|d| &d.causes);
    refusal.code == 403 && causes.into_iter().any(|c| c.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_clock::{BoxFuture, Clock};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug, Default)]
    struct Manual(AtomicU64);

    impl Clock for Manual {
        fn now(&self) -> Duration {
            self.monotonic()
        }
        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }
        fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
            Box::pin(std::future::ready(()))
        }
        fn random(&self) -> u64 {
            0
        }
    }

    fn drain(queue: &mut Queue) -> Vec<String> {
        queue.ripen();
        std::iter::from_fn(|| queue.next()).map(|k| k.name).collect()
    }

    #[test]
    fn a_key_is_worked_once_however_often_it_was_added() {
        let mut queue = Queue::new("test", Arc::new(Manual::default()));
        for _ in 0..3 {
            queue.add(Key::new("d", "a"));
        }
        assert_eq!(drain(&mut queue), ["a"]);
        assert!(drain(&mut queue).is_empty());
    }

    #[test]
    fn failures_wait_longer_and_longer_and_success_forgets_them() {
        let clock = Arc::new(Manual::default());
        let mut queue = Queue::new("test", clock.clone());
        let key = Key::new("d", "a");
        let mut waits = Vec::new();
        for _ in 0..3 {
            queue.done(key.clone(), Err(Status::bad_request("no")));
            let before = clock.0.load(Ordering::Relaxed);
            while drain(&mut queue).is_empty() {
                clock.0.fetch_add(1, Ordering::Relaxed);
            }
            waits.push(clock.0.load(Ordering::Relaxed) - before);
        }
        assert_eq!(waits, [20, 40, 80]);
        queue.done(key.clone(), Ok(None));
        assert!(queue.failures.is_empty());
    }

    #[test]
    fn the_earliest_moment_counts() {
        let clock = Arc::new(Manual::default());
        let mut queue = Queue::new("test", clock.clone());
        let key = Key::new("d", "a");
        queue.done(key.clone(), Ok(Some(Duration::from_secs(9))));
        queue.done(key.clone(), Ok(Some(Duration::from_secs(3))));
        queue.done(key, Ok(Some(Duration::from_secs(5))));
        clock.0.store(3000, Ordering::Relaxed);
        assert_eq!(drain(&mut queue), ["a"]);
        clock.0.store(10_000, Ordering::Relaxed);
        assert!(drain(&mut queue).is_empty());
    }
}
