//! The state of one probe: when it is due next, and what a result means.

use crate::time::Moment;
use k8s_openapi::api::core::v1::{Container, Probe};
use std::collections::BTreeMap;
use std::time::Duration;

/// Which probe of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Holds the others back until it has succeeded once.
    Startup,
    /// Ends a container that does not answer.
    Liveness,
    /// Says whether the container takes traffic.
    Readiness,
}

impl Kind {
    /// As events spell it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// As messages spell it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }

    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// What one attempt showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It answered well.
    Success,
    /// It did not; why.
    Failure(String),
}

/// What has to happen after a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing new.
    Same,
    /// The probe passes from now on, or fails from now on.
    Changed,
    /// The container has to be ended.
    Condemned,
}

/// Where one probe of one instance stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeState {
    /// When the next attempt is due.
    pub due: Moment,
    /// When the next attempt whose failure counts is due. Before a container first answers it is
    /// also asked in between, so that it does not wait a whole period to be found ready.
    pub counted: Moment,
    /// An attempt is under way.
    pub running: bool,
    /// Whether the probe counts as passed.
    pub passed: bool,
    /// Successes in a row.
    pub good: u32,
    /// Counted failures in a row.
    pub bad: u32,
    /// Attempts in between so far.
    pub early: u32,
}

fn count(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
}

/// How often it is asked.
pub fn period(probe: &Probe) -> Duration {
    Duration::from_secs(count(probe.period_seconds, 10).into())
}

/// How long one attempt may take.
pub fn timeout(probe: &Probe) -> Duration {
    Duration::from_secs(count(probe.timeout_seconds, 1).into())
}

impl ProbeState {
    /// The state at the start of an instance.
    pub fn new(kind: Kind, probe: &Probe, started_at: Moment) -> Self {
        let delay = u64::try_from(probe.initial_delay_seconds.unwrap_or(0)).unwrap_or(0);
        let due = started_at + Duration::from_secs(delay);
        Self {
            due,
            counted: due,
            running: false,
            passed: kind == Kind::Liveness,
            good: 0,
            bad: 0,
            early: 0,
        }
    }

    /// The states of all probes of a container.
    pub fn all(container: &Container, started_at: Moment) -> BTreeMap<Kind, Self> {
        [Kind::Startup, Kind::Liveness, Kind::Readiness]
            .into_iter()
            .filter_map(|kind| Some((kind, Self::new(kind, kind.of(container)?, started_at))))
            .collect()
    }

    /// The states of all probes of a container that runs since `started_at` and was last found
    /// `started` and `ready`.
    pub fn resumed(
        container: &Container,
        started_at: Moment,
        now: Moment,
        started: bool,
        ready: bool,
    ) -> BTreeMap<Kind, Self> {
        let mut all = Self::all(container, started_at);
        for (kind, state) in &mut all {
            state.due = state.due.max(now);
            state.counted = state.due;
            state.passed |= match kind {
                Kind::Startup => started,
                Kind::Liveness => true,
                Kind::Readiness => ready,
            };
        }
        all
    }

    /// Whether a failure now would count towards the threshold (and be told as an event).
    pub fn counts(&self, now: Moment) -> bool {
        now >= self.counted
    }

    /// Takes the result of an attempt that began at `began`.
    pub fn take(
        &mut self,
        kind: Kind,
        probe: &Probe,
        outcome: &Outcome,
        began: Moment,
        now: Moment,
    ) -> Verdict {
        self.running = false;
        let period = period(probe);
        let counts = self.counts(began);
        if counts {
            // Attempts that were missed (a suspended machine) are not made up for.
            while self.counted <= now {
                self.counted += period;
            }
        }
        self.due = self.counted;
        match outcome {
            Outcome::Success => {
                self.bad = 0;
                self.good += 1;
                let needed =
                    if kind == Kind::Readiness { count(probe.success_threshold, 1) } else { 1 };
                if !self.passed && self.good >= needed {
                    self.passed = true;
                    return Verdict::Changed;
                }
                Verdict::Same
            }
            Outcome::Failure(_) => {
                self.good = 0;
                if kind != Kind::Liveness && !self.passed && count(probe.success_threshold, 1) == 1
                {
                    // Not answered yet: ask again soon, less and less often.
                    let first = if probe.exec.is_some() { 100 } else { 20 };
                    let gap = Duration::from_millis(first << self.early.min(10));
                    self.early += 1;
                    self.due = self.counted.min(now + gap);
                }
                if !counts {
                    return Verdict::Same;
                }
                self.bad += 1;
                if self.bad < count(probe.failure_threshold, 3) {
                    return Verdict::Same;
                }
                match kind {
                    Kind::Startup | Kind::Liveness => Verdict::Condemned,
                    Kind::Readiness if self.passed => {
                        self.passed = false;
                        Verdict::Changed
                    }
                    Kind::Readiness => Verdict::Same,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> Moment {
        Moment::after(seconds * S)
    }

    fn failure() -> Outcome {
        Outcome::Failure("connection refused".into())
    }

    #[test]
    fn readiness_needs_its_thresholds_both_ways() {
        let probe = Probe {
            success_threshold: Some(2),
            failure_threshold: Some(2),
            period_seconds: Some(5),
            ..Probe::default()
        };
        let mut state = ProbeState::new(Kind::Readiness, &probe, at(1));
        assert_eq!(
            state.take(Kind::Readiness, &probe, &Outcome::Success, at(1), at(1)),
            Verdict::Same
        );
        assert_eq!(state.due, at(6));
        assert_eq!(
            state.take(Kind::Readiness, &probe, &Outcome::Success, at(6), at(6)),
            Verdict::Changed
        );
        assert!(state.passed);
        assert_eq!(state.take(Kind::Readiness, &probe, &failure(), at(11), at(11)), Verdict::Same);
        assert!(state.passed);
        assert_eq!(
            state.take(Kind::Readiness, &probe, &failure(), at(16), at(16)),
            Verdict::Changed
        );
        assert!(!state.passed);
    }

    #[test]
    fn liveness_condemns_after_the_failure_threshold() {
        let probe = Probe { initial_delay_seconds: Some(3), ..Probe::default() };
        let mut state = ProbeState::new(Kind::Liveness, &probe, at(1));
        assert_eq!(state.due, at(4));
        let mut now = state.due;
        for expected in [Verdict::Same, Verdict::Same, Verdict::Condemned] {
            assert_eq!(state.take(Kind::Liveness, &probe, &failure(), now, now), expected);
            now = state.due;
        }
    }

    #[test]
    fn a_container_that_has_not_answered_yet_is_asked_early_without_counting() {
        let probe = Probe { failure_threshold: Some(2), ..Probe::default() };
        let mut state = ProbeState::new(Kind::Startup, &probe, at(0));
        let mut now = at(0);
        let mut asked = 0;
        while now < at(10) {
            assert_eq!(state.take(Kind::Startup, &probe, &failure(), now, now), Verdict::Same);
            asked += 1;
            now = state.due;
        }
        assert!((5..15).contains(&asked), "{asked}");
        assert_eq!(now, at(10));
        assert_eq!(state.take(Kind::Startup, &probe, &failure(), now, now), Verdict::Condemned);
    }

    #[test]
    fn a_success_forgets_failures() {
        let probe = Probe { failure_threshold: Some(2), ..Probe::default() };
        let mut state = ProbeState::new(Kind::Liveness, &probe, at(0));
        for (outcome, seconds) in [(failure(), 0), (Outcome::Success, 10), (failure(), 20)] {
            let at = at(seconds);
            assert_eq!(state.take(Kind::Liveness, &probe, &outcome, at, at), Verdict::Same);
        }
    }
}
