//! The end of a pod that has to go because the machine is short of something.

use super::Worker;
use crate::node::Eviction;
use crate::pods::diff;
use crate::pods::observe::{Decision, Verdict};

/// The word for it in status and event.
const EVICTED: &str = "Evicted";

impl Worker {
    /// Begins it, unless the pod ends anyway.
    pub(super) fn evict(&mut self, eviction: Eviction) {
        if diff::ending(&self.pod, &self.seen).is_some() {
            return;
        }
        let message = eviction.message.clone();
        let decision = Decision::Evicted;
        self.seen.verdict = Some(Verdict { decision, reason: EVICTED.into(), message });
        self.evicted = Some(eviction);
        self.note();
    }

    /// Tells of it once the store takes writes: it may have had no room before.
    pub(super) fn tell_eviction(&mut self) {
        if self.stored.as_ref().and_then(|s| s.reason.as_deref()) == Some(EVICTED)
            && let Some(Eviction { message, reason, .. }) = self.evicted.take()
        {
            self.warn("", EVICTED, message, &reason);
        }
    }
}
