//! One watch: what it selects, how changes look to it, and what happens when it falls behind.

use crate::cache::Change;
use crate::model::shown;
use crate::types::{Object, WatchEvent, WatchOptions};
use dhow_objects::Status;
use dhow_objects::kinds::Kind;
use dhow_objects::selectors::{FieldSelector, LabelSelector};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc;

/// How many events may wait for a watcher before it is given up.
const BACKLOG: usize = 2048;

/// A stream of watch events. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    pub(crate) initial: VecDeque<WatchEvent>,
    receiver: mpsc::Receiver<WatchEvent>,
    end: Arc<OnceLock<Status>>,
    ended: bool,
    /// What the objects are shown as; may differ from the kind that is stored.
    kind: &'static Kind,
}

impl Watch {
    /// Shows the objects as `kind`.
    pub(crate) fn shown_as(&mut self, kind: &'static Kind) {
        self.kind = kind;
    }

    fn show(&self, event: WatchEvent) -> WatchEvent {
        let kind = self.kind;
        match event {
            WatchEvent::Added(o) => WatchEvent::Added(shown(kind, &o)),
            WatchEvent::Modified(o) => WatchEvent::Modified(shown(kind, &o)),
            WatchEvent::Deleted(o) => WatchEvent::Deleted(shown(kind, &o)),
            other => other,
        }
    }

    /// The next event; `None` when the platform shuts down. A watch that fell too far behind gets
    /// what waited for it, then [`WatchEvent::Error`], then `None`. Cancel safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        if let Some(event) = self.initial.pop_front() {
            if self.initial.is_empty() {
                self.initial = VecDeque::new();
            }
            return Some(self.show(event));
        }
        if let Some(event) = self.receiver.recv().await {
            return Some(self.show(event));
        }
        if self.ended {
            return None;
        }
        self.ended = true;
        self.end.get().cloned().map(WatchEvent::Error)
    }
}

/// The cache's half of a watch.
pub(crate) struct Watcher {
    prefix: Option<String>,
    labels: LabelSelector,
    fields: FieldSelector,
    bookmarks: bool,
    sender: mpsc::Sender<WatchEvent>,
    end: Arc<OnceLock<Status>>,
    /// Everything up to here was delivered or did not concern the watcher.
    sent: u64,
    pub(crate) bookmarked: Duration,
}

impl Watcher {
    pub(crate) fn new(
        kind: &'static Kind,
        namespace: Option<&str>,
        options: &WatchOptions,
        revision: u64,
        now: Duration,
    ) -> (Self, Watch) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let end = Arc::new(OnceLock::new());
        let watcher = Self {
            prefix: namespace.map(|n| format!("{n}/")),
            labels: options.labels.clone(),
            fields: options.fields.clone(),
            bookmarks: options.bookmarks,
            sender,
            end: end.clone(),
            sent: revision,
            bookmarked: now,
        };
        (watcher, Watch { initial: VecDeque::new(), receiver, end, ended: false, kind })
    }

    /// Whether the selectors hold for an object.
    pub(crate) fn selects(&self, object: &Object) -> bool {
        crate::model::selects(&self.labels, &self.fields, object)
    }

    /// How a change looks through the selectors.
    pub(crate) fn translate(&self, change: &Change) -> Option<WatchEvent> {
        if self.prefix.as_ref().is_some_and(|p| !change.key.starts_with(p.as_str())) {
            return None;
        }
        let before = change.before.as_ref().filter(|o| self.selects(o));
        let after = change.after.as_ref().filter(|o| self.selects(o));
        match (before, after) {
            (None, Some(object)) => Some(WatchEvent::Added(object.clone())),
            (Some(_), Some(object)) => Some(WatchEvent::Modified(object.clone())),
            (Some(_), None) => change.last_state().map(WatchEvent::Deleted),
            (None, None) => None,
        }
    }

    /// Gives the watcher a change. False when it is gone or was given up.
    pub(crate) fn push(&mut self, change: &Change) -> bool {
        if change.revision <= self.sent {
            return !self.sender.is_closed();
        }
        let Some(event) = self.translate(change) else { return !self.sender.is_closed() };
        self.sent = change.revision - 1;
        self.send(event)
    }

    /// Sends a bookmark when one is due. False when the watcher is gone.
    pub(crate) fn bookmark(&mut self, revision: u64, now: Duration, period: Duration) -> bool {
        if !self.bookmarks || revision <= self.sent || now < self.bookmarked + period {
            return !self.sender.is_closed();
        }
        self.sent = revision;
        self.bookmarked = now;
        self.send(WatchEvent::Bookmark { revision, initial_end: false })
    }

    fn send(&mut self, event: WatchEvent) -> bool {
        match self.sender.try_send(event) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::warn!(sent = self.sent, "watch ended: it did not keep up");
                let why = "the watch did not keep up with the changes; list and watch again";
                let _ = self.end.set(Status::expired(why));
                false
            }
        }
    }
}
