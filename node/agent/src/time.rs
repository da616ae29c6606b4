//! Points in time: durations since the Unix epoch and the API's own forms.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

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
