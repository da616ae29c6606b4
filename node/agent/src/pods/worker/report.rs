//! A pod's status on its way to the control plane.

use super::{Done, REACH_AGAIN, Worker};
use crate::pods::{observe, status};
use crate::time::{At, Moment};
use dhow_intents::FeedError;
use k8s_openapi::api::core::v1::PodStatus;
use std::time::Duration;

/// A status that is neither a new phase nor new readiness is held back this long, so that a start
/// that goes well is told once.
const SETTLE: Duration = Duration::from_millis(30);

impl Worker {
    /// Has the status stored when it is new: at most one write is under way, and the newest wins.
    /// Returns when to look again.
    pub(super) fn report(&mut self, now: At) -> Option<Moment> {
        if self.seen.gone.is_some() {
            return None;
        }
        let host_ip = self.world.config.host_ip();
        let status = status::status(&self.pod, &self.seen, &self.current, host_ip, now);
        if status != self.current {
            self.current = status;
            self.note();
        }
        if self.seen.torn && self.pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        if self.stored.as_ref() == Some(&self.current) {
            self.report_since = None;
            self.seen.reported = !self.reporting;
            return None;
        }
        self.seen.reported = false;
        let now = now.moment;
        if self.reporting {
            return None;
        }
        if let Some(at) = self.report_again.filter(|at| now < *at) {
            return Some(at);
        }
        let since = *self.report_since.get_or_insert(now);
        let urgent = match &self.stored {
            None => false,
            Some(stored) => notable(stored) != notable(&self.current),
        };
        if !urgent && now < since + SETTLE {
            return Some(since + SETTLE);
        }
        self.report_since = None;
        self.report_again = None;
        self.reporting = true;
        let world = self.world.clone();
        let (namespace, name, uid) =
            (self.namespace().to_owned(), self.name().to_owned(), self.uid().to_owned());
        let status = self.current.clone();
        self.push(async move {
            let result = match dhow_fault::point("agent::status") {
                Ok(()) => world.feed.report_pod(&namespace, &name, &uid, status.clone()).await,
                Err(fault) => Err(FeedError::Unreachable(fault.to_string())),
            };
            Done::Reported(Box::new(status), result)
        });
        None
    }

    pub(super) fn reported(
        &mut self,
        status: PodStatus,
        result: Result<(), FeedError>,
        now: Moment,
    ) {
        self.reporting = false;
        match result {
            Ok(()) => {
                self.stored = Some(status);
                self.tell_eviction();
            }
            Err(FeedError::Unreachable(why)) => {
                tracing::debug!(pod = self.name(), why, "status not stored yet");
                self.report_again = Some(now + REACH_AGAIN);
            }
            Err(FeedError::Refused(refusal)) => {
                // The pod is gone or another has its name; its end is on its way here.
                tracing::debug!(pod = self.name(), refusal = refusal.message, "status refused");
                if refusal.code == 404 || refusal.code == 409 {
                    self.stored = Some(status);
                } else {
                    self.report_again = Some(now + observe::BACKOFF_FIRST);
                }
            }
        }
        if self.stored.as_ref() == Some(&self.current) {
            self.seen.reported = true;
        }
    }

    /// Sees to it that what is true is told again, where somebody has marked the pod as not ready
    /// while this machine was not heard of.
    pub(super) fn tell_again(&mut self) {
        if let (Some(stored), Some(told)) = (&self.stored, &self.pod.status)
            && !self.reporting
            && notable(told).1.len() < notable(stored).1.len()
        {
            self.stored = Some(told.clone());
        }
    }
}

/// What of a status others wait for: phase, readiness, address.
fn notable(status: &PodStatus) -> (Option<&str>, Vec<(&str, &str)>) {
    let conditions = status.conditions.iter().flatten();
    let ready =
        conditions.filter(|c| c.type_ == "Ready").map(|c| (c.type_.as_str(), c.status.as_str()));
    let phase = status.phase.as_deref().filter(|p| *p != "Pending");
    (phase, ready.filter(|(_, status)| *status == "True").collect())
}
