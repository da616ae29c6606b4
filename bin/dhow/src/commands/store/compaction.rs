//! Forgets history by itself: by age or by number of revisions, on the leader, as etcd does.
//!
//! The decision is pure: [`Planner`] is told the time and the newest revision, and says what to
//! compact and when to ask again. [`run`] asks it.

use dhow_clock::SharedClock;
use dhow_kv::admin::SharedAdmin;
use dhow_kv::{Error, Kv};
use std::collections::VecDeque;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// With a bound on revisions there is a look this often.
const EVERY: Duration = Duration::from_secs(300);

/// Revisions are noted so many times in a period (at most an hour).
const NOTES: u32 = 10;

/// What history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// What is younger than this.
    Age(Duration),
    /// So many of the newest revisions.
    Revisions(i64),
}

/// Decides what to forget.
#[derive(Debug)]
pub struct Planner {
    retention: Retention,
    /// When which revision was the newest, oldest first.
    notes: VecDeque<(Duration, i64)>,
    /// What was compacted last, and when.
    last: (Duration, i64),
    /// Whether the first whole period has passed.
    begun: bool,
}

impl Planner {
    /// A planner that has seen nothing before `now`.
    pub fn new(retention: Retention, now: Duration) -> Self {
        Self { retention, notes: VecDeque::new(), last: (now, 0), begun: false }
    }

    /// How long to wait before the next [`Planner::plan`].
    pub fn interval(&self) -> Duration {
        match self.retention {
            // Never zero: a very short age is not looked at all the time.
            Retention::Age(age) => (age.min(HOUR) / NOTES).max(Duration::from_millis(1)),
            Retention::Revisions(_) => EVERY,
        }
    }

    /// What to compact now, at this newest revision. Ask after each interval.
    pub fn plan(&mut self, now: Duration, revision: i64) -> Option<i64> {
        let due = match self.retention {
            Retention::Revisions(keep) => (revision - keep).max(0),
            Retention::Age(age) => {
                self.notes.push_back((now, revision));
                let old = |note: &&(Duration, i64)| note.0 + age <= now;
                let due = self.notes.iter().take_while(old).last().map_or(0, |note| note.1);
                // Only the newest of the old ones is still of use.
                while self.notes.get(1).is_some_and(|note| note.0 + age <= now) {
                    self.notes.pop_front();
                }
                // Once the first period has passed, at most each hour.
                let pause = if self.begun { age.min(HOUR) } else { age };
                if now.saturating_sub(self.last.0) < pause {
                    return None;
                }
                due
            }
        };
        (due > 0 && due != self.last.1).then_some(due)
    }

    /// The plan was carried out.
    pub fn done(&mut self, now: Duration, revision: i64) {
        self.begun = true;
        self.last = (now, revision);
    }
}

/// Compacts until it is dropped, while this member leads.
pub async fn run(kv: Kv, admin: SharedAdmin, clock: SharedClock, retention: Retention) {
    let mut planner = Planner::new(retention, clock.monotonic());
    loop {
        clock.sleep(planner.interval()).await;
        let Some(revision) = planner.plan(clock.monotonic(), kv.revision()) else { continue };
        let own = admin.identity().member_id;
        if admin.pulse().leader != own {
            // The leader does it. Its revisions are noted here too, for the day that this one leads.
            continue;
        }
        match kv.compact(revision, false).await {
            Ok(_) => tracing::info!(revision, "completed auto compaction"),
            Err(Error::Compacted) => {}
            Err(error) => {
                tracing::warn!(revision, "failed auto compaction, trying again later: {error}");
                continue;
            }
        }
        planner.done(clock.monotonic(), revision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks a planner for so long, with one revision a second, and lists when it compacts what.
    fn compactions(retention: Retention, hours: u64) -> Vec<(u64, i64)> {
        let mut planner = Planner::new(retention, Duration::ZERO);
        let mut now = Duration::ZERO;
        let mut done = Vec::new();
        while now < HOUR * hours as u32 {
            now += planner.interval();
            let revision = now.as_secs() as i64;
            if let Some(due) = planner.plan(now, revision) {
                planner.done(now, due);
                done.push((now.as_secs(), due));
            }
        }
        done
    }

    #[test]
    fn an_hour_of_history_is_kept_and_looked_at_each_hour() {
        let done = compactions(Retention::Age(HOUR), 4);
        // Noted each 6 minutes, so the first look sees nothing that is an hour old.
        assert_eq!(done.first(), Some(&(3960, 360)));
        for (at, revision) in &done {
            assert!(*at as i64 - revision >= 3600, "{at}: {revision} is too young");
        }
        for pair in done.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= 3600);
        }
        assert_eq!(done.len(), 3);
    }

    #[test]
    fn short_ages_are_followed_closely() {
        let done = compactions(Retention::Age(Duration::from_secs(50)), 1);
        assert!(done.len() > 60, "{done:?}");
        for (at, revision) in &done {
            let age = *at as i64 - revision;
            assert!((50..=60).contains(&age), "at {at} up to {revision}");
        }
    }

    #[test]
    fn a_day_is_compacted_each_hour_after_the_first_day() {
        let done = compactions(Retention::Age(24 * HOUR), 27);
        assert!(done[0].0 >= 24 * 3600 && done.len() >= 3, "{done:?}");
        assert!(done[1].0 - done[0].0 <= 3960);
    }

    #[test]
    fn so_many_revisions_are_kept() {
        let done = compactions(Retention::Revisions(1000), 1);
        assert_eq!(done.first(), Some(&(1200, 200)));
        assert_eq!(done.last(), Some(&(3600, 2600)));
    }

    #[test]
    fn nothing_is_done_where_nothing_changed() {
        let mut planner = Planner::new(Retention::Revisions(10), Duration::ZERO);
        assert_eq!(planner.plan(EVERY, 5), None);
        assert_eq!(planner.plan(2 * EVERY, 50), Some(40));
        planner.done(2 * EVERY, 40);
        assert_eq!(planner.plan(3 * EVERY, 50), None);
        // What failed is asked for again.
        assert_eq!(planner.plan(4 * EVERY, 60), Some(50));
        assert_eq!(planner.plan(5 * EVERY, 60), Some(50));
    }
}
