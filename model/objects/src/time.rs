//! Times on the wire (RFC 3339) and ages in tables.
//!
//! Ages follow `k8s.io/apimachinery/pkg/util/duration`.

use jiff::{SignedDuration, Timestamp};

/// Parses RFC 3339 of any precision and offset.
#[must_use]
pub fn parse(text: &str) -> Option<Timestamp> {
    if text.is_empty() { None } else { text.parse().ok() }
}

/// `meta/v1.Time`: whole seconds in UTC, for example `2026-11-22T01:54:59Z`.
#[must_use]
pub fn format(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// An age as tables show it: `5s`, `3m20s`, `4h`, `2d3h`, `400d`, `3y`.
#[must_use]
pub fn human(age: SignedDuration) -> String {
    let seconds = age.as_secs();
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 {
        return "0s".to_owned();
    }
    if seconds < 120 {
        return format!("{seconds}s");
    }
    let minutes = seconds / 60;
    if minutes < 10 {
        return two(minutes, "m", seconds % 60, "s");
    }
    if minutes < 180 {
        return format!("{minutes}m");
    }
    let hours = minutes / 60;
    if hours < 8 {
        return two(hours, "h", minutes % 60, "m");
    }
    if hours < 48 {
        return format!("{hours}h");
    }
    let days = hours / 24;
    if hours < 192 {
        return two(days, "d", hours % 24, "h");
    }
    if hours < 24 * 365 * 2 {
        return format!("{days}d");
    }
    let years = hours / 24 / 365;
    if hours < 24 * 365 * 8 {
        return two(years, "y", days % 365, "d");
    }
    format!("{years}y")
}

fn two(big: i64, big_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 {
        format!("{big}{big_unit}")
    } else {
        format!("{big}{big_unit}{small}{small_unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_upstreams() {
        let cases = [
            (0, "0s"),
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (179 * 60, "179m"),
            (180 * 60, "3h"),
            (4 * 3600 + 60, "4h1m"),
            (9 * 3600, "9h"),
            (47 * 3600, "47h"),
            (51 * 3600, "2d3h"),
            (8 * 86400, "8d"),
            (400 * 86400, "400d"),
            (3 * 365 * 86400, "3y"),
            (9 * 365 * 86400, "9y"),
        ];
        for (seconds, want) in cases {
            assert_eq!(human(SignedDuration::from_secs(seconds)), want);
        }
        assert_eq!(human(SignedDuration::from_secs(-5)), "<invalid>");
    }

    #[test]
    fn stamps() {
        let time = parse("2026-11-22T03:54:59.000123+02:00").unwrap();
        assert_eq!(format(time), "2026-11-22T01:54:59Z");
        assert!(parse("yesterday").is_none());
    }
}
