//! The arithmetic of a rollout: how many pods each replica set may have next.
//!
//! Upstream's rolling update: never more than `replicas + maxSurge` pods, never fewer than
//! `replicas - maxUnavailable` available ones.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// One replica set, as the arithmetic sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// Asked for now.
    pub wanted: i32,
    /// Pods that are there.
    pub present: i32,
    /// Pods that are available.
    pub available: i32,
}

/// The two bounds, in pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Pods above the wanted number.
    pub surge: i32,
    /// Pods below it.
    pub unavailable: i32,
}

/// Resolves an absolute number or a percentage of `total`.
fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let scaled = i64::from(total).saturating_mul(percent);
            let rounded = scaled / 100 + i64::from(round_up && scaled % 100 > 0);
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
        None => 0,
    }
}

/// The bounds of a rolling update of `replicas` pods. Both being zero would stand still: then one
/// pod may be unavailable.
pub fn bounds(
    surge: Option<&IntOrString>,
    unavailable: Option<&IntOrString>,
    replicas: i32,
) -> Bounds {
    let surge = resolve(surge, replicas, true);
    let unavailable = resolve(unavailable, replicas, false);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    Bounds { surge, unavailable: unavailable.min(replicas) }
}

/// The exact sum: sizes are whatever somebody has written.
fn total(sizes: impl Iterator<Item = i32>) -> i64 {
    sizes.map(i64::from).sum()
}

/// The size nearest to a number.
fn size(number: i64) -> i32 {
    number.clamp(i32::MIN.into(), i32::MAX.into()) as i32
}

/// A sum that stops at the largest size.
pub(crate) fn sum(sizes: impl Iterator<Item = i32>) -> i32 {
    size(total(sizes))
}

/// How many pods the new set should ask for, given all sets (the new one included).
pub fn grow_new(new: Set, all: &[Set], replicas: i32, bounds: Bounds) -> i32 {
    if new.wanted >= replicas {
        return replicas;
    }
    let most = i64::from(replicas) + i64::from(bounds.surge);
    let room = (most - total(all.iter().map(|s| s.wanted))).max(0);
    size(i64::from(new.wanted) + room).min(replicas)
}

/// How many pods each old set (oldest first) should ask for. Pods that are not available go first,
/// because they serve nobody.
pub fn shrink_old(old: &[Set], new: Set, replicas: i32, bounds: Bounds) -> Vec<i32> {
    let mut wanted: Vec<i32> = old.iter().map(|s| s.wanted).collect();
    let minimum = i64::from(replicas) - i64::from(bounds.unavailable);
    // Pods of the new set that do not serve yet must not be counted on.
    let counted = total(wanted.iter().copied()) + i64::from(new.wanted.min(new.available));
    let mut spare = (counted - minimum).max(0);
    let take = |wanted: &mut i32, most: i32, spare: &mut i64| {
        let step = most.min(size(*spare));
        *wanted -= step;
        *spare -= i64::from(step);
    };
    for (wanted, set) in wanted.iter_mut().zip(old) {
        take(wanted, (set.wanted - set.available).max(0), &mut spare);
    }
    let available = total(old.iter().map(|s| s.available)) + i64::from(new.available);
    let mut spare = (available - minimum).max(0);
    for wanted in &mut wanted {
        let most = *wanted;
        take(wanted, most, &mut spare);
    }
    wanted
}

/// Spreads a change of scale over the active sets in proportion to their size, as upstream does in
/// the middle of a rollout. `allowed` is the new scale with surge.
pub fn spread(wanted: &[i32], allowed: i32) -> Vec<i32> {
    let total = total(wanted.iter().copied());
    let mut left = i64::from(allowed) - total;
    if total == 0 || left == 0 {
        return wanted.to_vec();
    }
    // Larger sets first, so that rounding leftovers land where they matter least.
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(wanted[*i]));
    let mut next: Vec<i64> = wanted.iter().copied().map(i64::from).collect();
    for &index in &order {
        let exact = next[index] * i64::from(allowed);
        let step = (exact + total / 2) / total - next[index];
        let step = if left > 0 { step.clamp(0, left) } else { step.clamp(left, 0) };
        next[index] += step;
        left -= step;
    }
    if let Some(first) = order.first() {
        next[*first] = (next[*first] + left).max(0);
    }
    next.into_iter().map(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(text: &str) -> IntOrString {
        IntOrString::String(text.into())
    }

    #[test]
    fn surge_rounds_up_and_unavailable_down() {
        let quarter = percent("25%");
        assert_eq!(bounds(Some(&quarter), Some(&quarter), 3), Bounds { surge: 1, unavailable: 0 });
        let none = IntOrString::Int(0);
        assert_eq!(bounds(Some(&none), Some(&none), 3), Bounds { surge: 0, unavailable: 1 });
    }

    #[test]
    fn a_rollout_keeps_its_bounds_and_ends() {
        for replicas in 1..12 {
            for (surge, unavailable) in [(1, 0), (0, 1), (2, 1), (3, 3)] {
                let bounds = Bounds { surge, unavailable: unavailable.min(replicas) };
                let (mut old, mut new) = (replicas, 0);
                for step in 0.. {
                    assert!(step < 100, "no progress at {old}/{new} of {replicas}");
                    // Every pod is available by the time of the next step.
                    let (o, n) = (
                        Set { wanted: old, present: old, available: old },
                        Set { wanted: new, present: new, available: new },
                    );
                    let grown = grow_new(n, &[o, n], replicas, bounds);
                    assert!(old + grown <= replicas + surge);
                    let young = Set { wanted: grown, present: grown, available: new };
                    let shrunk = shrink_old(&[o], young, replicas, bounds)[0];
                    assert!(shrunk + new >= replicas - bounds.unavailable);
                    if shrunk == 0 && grown == replicas {
                        break;
                    }
                    (old, new) = (shrunk, grown);
                }
            }
        }
    }

    #[test]
    fn sizes_beyond_all_measure_do_not_overflow() {
        let most = Set { wanted: i32::MAX, present: 5, available: 5 };
        let bounds = bounds(Some(&percent("99999999999%")), None, i32::MAX);
        assert_eq!(bounds.surge, i32::MAX);
        let new = Set { wanted: 1, present: 1, available: 1 };
        assert_eq!(grow_new(new, &[most, new], i32::MAX, bounds), i32::MAX);
        assert_eq!(grow_new(new, &[new], i32::MAX, bounds), i32::MAX);
        assert_eq!(shrink_old(&[most, most], new, 3, bounds), [0, 2]);
        assert_eq!(spread(&[i32::MAX, i32::MAX], 4), [2, 2]);
    }

    #[test]
    fn broken_old_pods_make_room_at_once() {
        let old = [Set { wanted: 3, present: 3, available: 0 }];
        let new = Set { wanted: 1, present: 1, available: 0 };
        // With nothing available anyway, only the bound on the whole counts.
        assert_eq!(shrink_old(&old, new, 3, Bounds { surge: 1, unavailable: 1 }), [2]);
    }

    #[test]
    fn scaling_in_mid_rollout_is_proportional() {
        assert_eq!(spread(&[8, 2], 20), [16, 4]);
        assert_eq!(spread(&[8, 2], 5), [4, 1]);
        assert_eq!(spread(&[1, 1], 3).iter().sum::<i32>(), 3);
    }
}
