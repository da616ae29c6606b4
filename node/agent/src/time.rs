//! Points in time: as people read them (durations since the Unix epoch and the API's own forms), and
//! as deadlines are reckoned with.
//!
//! The machine's time may be set while pods run: a machine that starts without a clock jumps by years
//! when it first hears of the time. No back-off, probe or grace period may end early or late for that.

use dhow_clock::Clock;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point of steady time, which nobody sets: for deadlines and ages in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(Duration);

/// Where the start of the process lies: what was before it has its moment too.
const START: Duration = Duration::from_secs(1 << 40);

impl Moment {
    /// Before everything.
    pub const PAST: Self = Self(Duration::ZERO);

    /// So long after the start of the process.
    pub const fn after(start: Duration) -> Self {
        Self(START.saturating_add(start))
    }

    /// How long after `other` it is; zero if it is before.
    pub fn since(self, other: Self) -> Duration {
        self.0.saturating_sub(other.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, by: Duration) {
        *self = *self + by;
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }
}

/// A point in time by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct At {
    /// Since the Unix epoch, by the machine's clock at that time: what people are told.
    pub wall: Duration,
    /// What deadlines are reckoned with.
    pub moment: Moment,
}

impl At {
    /// The present.
    pub fn now(clock: &dyn Clock) -> Self {
        Self { wall: clock.now(), moment: Moment::after(clock.monotonic()) }
    }

    /// A point in time of which only the machine's time is known, seen from this one: right unless
    /// the clock was set in between.
    pub fn of(self, wall: Duration) -> Self {
        let moment = match wall.checked_sub(self.wall) {
            Some(ahead) => self.moment + ahead,
            None => self.moment - (self.wall - wall),
        };
        Self { wall, moment }
    }

    /// The same of something that has happened: it was not later than this, whatever the clock said.
    pub fn of_past(self, wall: Duration) -> Self {
        let At { moment, .. } = self.of(wall);
        Self { wall, moment: moment.min(self.moment) }
    }
}

/// The API's time: whole seconds, as upstream stores them.
pub fn time(at: Duration) -> Time {
    Time(
        Timestamp::from_second(i64::try_from(at.as_secs()).unwrap_or(i64::MAX)).unwrap_or_default(),
    )
}

/// The API's time with microseconds.
pub fn micro(at: Duration) -> MicroTime {
    let micros = i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
    MicroTime(Timestamp::from_microsecond(micros).unwrap_or_default())
}

/// Since the epoch; times before it are the epoch.
pub fn since_epoch(time: &Time) -> Duration {
    nanos(time.0.as_nanosecond())
}

/// Nanoseconds since the epoch; negative ones are the epoch.
pub fn nanos(at: i128) -> Duration {
    u64::try_from(at).map_or(Duration::ZERO, Duration::from_nanos)
}

/// A non-negative number of seconds.
pub fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn what_the_wall_clock_said_gets_its_moment() {
        let now = At { wall: 1000 * S, moment: Moment::after(10 * S) };
        assert_eq!(now.of(1005 * S).moment, Moment::after(15 * S));
        assert_eq!(now.of(400 * S), At { wall: 400 * S, moment: now.moment - 600 * S });
        assert_eq!(now.moment.since(now.of(400 * S).moment), 600 * S);
        // The clock was set back since: what has happened is not ahead for that.
        assert_eq!(now.of_past(5000 * S), At { wall: 5000 * S, moment: now.moment });
        assert_eq!(now.of_past(400 * S), now.of(400 * S));
    }
}
