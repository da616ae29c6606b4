//! A member's clock in virtual time: it may run fast or slow, its wall time may step, and while its
//! member is busy with the disk nothing wakes.

use crate::random::Random;
use dhow_clock::{BoxFuture, Clock};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug)]
struct State {
    random: Random,
    /// What the wall clock shows at the start, in microseconds since the epoch.
    wall: i64,
    /// Until when the member does nothing.
    busy_until: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct SimClock {
    start: Instant,
    /// How much of its own time passes in a million units of virtual time.
    rate: u64,
    state: Arc<Mutex<State>>,
}

impl SimClock {
    /// A clock that starts now and runs `rate` millionths as fast as virtual time.
    pub fn new(random: Random, rate: u64) -> Self {
        let start = Instant::now();
        let state = State { random, wall: 1_800_000_000_000_000, busy_until: start };
        Self { start, rate, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps the wall clock.
    pub fn step(&self, seconds: i64) {
        self.state().wall += seconds * 1_000_000;
    }

    /// Makes the member busy for so long after all that it is busy with.
    pub fn busy(&self, period: Duration) {
        let mut state = self.state();
        state.busy_until = state.busy_until.max(Instant::now()) + period;
    }

    /// What the member is busy with ends with it.
    pub fn idle(&self) {
        self.state().busy_until = Instant::now();
    }

    /// Until when the member is busy.
    pub fn busy_until(&self) -> Instant {
        self.state().busy_until
    }

    /// When its own time has certainly reached `at`: not a nanosecond earlier, since whoever sleeps
    /// until then would sleep again, for no time at all.
    fn instant(&self, at: Duration) -> Instant {
        let nanos = (at.as_nanos() * 1_000_000).div_ceil(u128::from(self.rate.max(1)));
        self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        let wall = self.state().wall + self.monotonic().as_micros() as i64;
        Duration::from_micros(u64::try_from(wall).unwrap_or(0))
    }

    fn monotonic(&self) -> Duration {
        let nanos = self.start.elapsed().as_nanos() * u128::from(self.rate) / 1_000_000;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn sleep(&self, period: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.monotonic().saturating_add(period))
    }

    fn sleep_until(&self, at: Duration) -> BoxFuture<'static, ()> {
        let until = self.instant(at);
        let state = self.state.clone();
        Box::pin(async move {
            tokio::time::sleep_until(until).await;
            loop {
                let busy = state.lock().unwrap_or_else(PoisonError::into_inner).busy_until;
                if busy <= Instant::now() {
                    return;
                }
                tokio::time::sleep_until(busy).await;
            }
        })
    }

    fn random(&self) -> u64 {
        self.state().random.draw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_sleeps_until_a_moment_finds_that_it_has_come() {
        for rate in [998_000, 999_999, 1_000_000, 1_000_001, 1_001_987] {
            let clock = SimClock::new(Random::new(1), rate);
            for step in 1..300 {
                let at = clock.monotonic() + Duration::from_nanos(step * 1_234_567);
                clock.sleep_until(at).await;
                assert!(clock.monotonic() >= at, "{rate}");
            }
        }
    }
}
