//! Time, sleep and seeded randomness: the only reader of the wall clock.
//!
//! Everything deterministic takes a [`Clock`] by argument, so that a simulation can replace it.
//! [`System`] reads the machine's clocks.

pub mod disk;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A source of time and randomness.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// Time since the Unix epoch. It may step; use it for what people read, never for deadlines.
    fn now(&self) -> Duration;
    /// Time since an arbitrary start that never steps back. Use it for deadlines and ages.
    fn monotonic(&self) -> Duration;
    /// Completes when at least `period` of monotonic time has passed.
    fn sleep(&self, period: Duration) -> BoxFuture<'static, ()>;
    /// Completes when [`Clock::monotonic`] has reached `at`. Use it for deadlines: whoever reads the
    /// clock, computes what is left and sleeps for that, sleeps too long by what passed in between.
    /// A clock that moves while it is asked must not leave this to [`Clock::sleep`], as here.
    fn sleep_until(&self, at: Duration) -> BoxFuture<'static, ()> {
        self.sleep(at.saturating_sub(self.monotonic()))
    }
    /// The next 64 random bits. Not for secrets: those come from the cryptography library.
    fn random(&self) -> u64;
}

/// A clock that is shared by everything in one process.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's own clocks, with a xorshift generator seeded from the operating system.
#[derive(Debug)]
pub struct System {
    start: std::time::Instant,
    state: AtomicU64,
}

impl System {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        use std::hash::{BuildHasher, Hasher};
        // `RandomState` is seeded from the operating system's entropy.
        let seed = std::collections::hash_map::RandomState::new().build_hasher().finish();
        Self { start: std::time::Instant::now(), state: AtomicU64::new(seed | 1) }
    }

    /// The same, ready to share.
    pub fn shared() -> SharedClock {
        Arc::new(Self::new())
    }
}

impl Default for System {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for System {
    fn now(&self) -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, period: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(period))
    }

    fn sleep_until(&self, at: Duration) -> BoxFuture<'static, ()> {
        match self.start.checked_add(at) {
            Some(at) => Box::pin(tokio::time::sleep_until(at.into())),
            None => Box::pin(std::future::pending()),
        }
    }

    fn random(&self) -> u64 {
        // xorshift64*: one word of state, period 2^64 - 1.
        let step = |mut x: u64| {
            x ^= x >> 12;
            x ^= x << 25;
            x ^= x >> 27;
            x
        };
        let previous = self
            .state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |x| Some(step(x)))
            .unwrap_or(1);
        step(previous).wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Waker};

    #[test]
    fn random_numbers_differ() {
        let clock = System::new();
        let drawn: std::collections::HashSet<u64> = (0..1000).map(|_| clock.random()).collect();
        assert_eq!(drawn.len(), 1000);
    }

    #[tokio::test]
    async fn a_deadline_is_reached_and_one_that_has_passed_is_not_waited_for() {
        let clock = System::new();
        let at = clock.monotonic() + Duration::from_millis(5);
        clock.sleep_until(at).await;
        assert!(clock.monotonic() >= at);
        clock.sleep_until(Duration::ZERO).await;
        let never = std::pin::pin!(clock.sleep_until(Duration::MAX));
        assert!(never.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[test]
    fn monotonic_time_does_not_step_back() {
        let clock = System::new();
        let first = clock.monotonic();
        assert!(clock.monotonic() >= first);
    }
}
