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

    #[test]
    fn random_numbers_differ() {
        let clock = System::new();
        let drawn: std::collections::HashSet<u64> = (0..1000).map(|_| clock.random()).collect();
        assert_eq!(drawn.len(), 1000);
    }

    #[test]
    fn monotonic_time_does_not_step_back() {
        let clock = System::new();
        let first = clock.monotonic();
        assert!(clock.monotonic() >= first);
    }
}
