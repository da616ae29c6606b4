//! The end of a pod that has to go because the machine is short of something.

use super::Worker;
use crate::node::Eviction;
use crate::pods::diff;
use crate::pods::observe::{EVICTED, Verdict};

impl Worker {
    /// Begins it, unless the pod ends anyway.
    pub(super) fn evict(&mut self, eviction: Eviction) {
        if diff::ending(&self.pod, &self.seen).is_some() {
            return;
        }
        let Eviction { message, reason, .. } = eviction;
        self.warn("", "Evicted", message.as_str(), &reason);
        // There is no time for a grace period, as upstream has none either.
        self.seen.verdict = Some(Verdict { reason: EVICTED, message, at_once: true });
        self.note();
    }
}
