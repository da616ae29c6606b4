//! Durations in buckets that grow with the value: 3 % wide, from 1 ns to 18 minutes.

use std::time::Duration;

/// Buckets of each doubling.
const STEPS: u64 = 32;
/// Doublings that are kept apart.
const DOUBLINGS: u64 = 36;

/// A histogram of durations.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; (STEPS * (DOUBLINGS + 1)) as usize], total: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let last = self.counts.len() - 1;
        self.counts[bucket(nanoseconds).min(last)] += 1;
        self.total += 1;
        self.max = self.max.max(nanoseconds);
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (own, more) in self.counts.iter_mut().zip(&other.counts) {
            *own += more;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// How many durations were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The duration that this share (0 to 1) of all does not exceed, in milliseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return upper(index as u64).min(self.max) as f64 / 1e6;
            }
        }
        self.max as f64 / 1e6
    }
}

/// Small values have buckets of their own; above, each doubling is cut into [`STEPS`].
fn bucket(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let doubling = u64::from(value.ilog2() - STEPS.ilog2());
    (doubling * STEPS + (value >> doubling)) as usize
}

/// The largest value of a bucket.
fn upper(index: u64) -> u64 {
    if index < STEPS * 2 {
        return index;
    }
    let doubling = index / STEPS - 1;
    ((index - doubling * STEPS + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_a_bucket_at_most_4_percent_wide() {
        for value in (0..200).chain([1_000, 4_095, 4_096, 999_999, 5_000_000_000]) {
            let top = upper(bucket(value) as u64);
            assert!(top >= value, "{value} lies above its bucket's end {top}");
            assert!(
                top as f64 <= value as f64 * 1.04 + 1.0,
                "{value} lies in a bucket up to {top}"
            );
        }
    }

    #[test]
    fn quantiles_are_near() {
        let mut histogram = Histogram::default();
        for milliseconds in 1..=100 {
            histogram.record(Duration::from_millis(milliseconds));
        }
        assert_eq!(histogram.total(), 100);
        assert!((histogram.quantile(0.5) - 50.0).abs() < 2.0);
        assert!((histogram.quantile(0.99) - 99.0).abs() < 4.0);
        let mut both = Histogram::default();
        both.merge(&histogram);
        both.merge(&histogram);
        assert_eq!(both.total(), 200);
    }
}
