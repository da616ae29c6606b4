//! What watches promise: ordered, unique, reliable, atomic, resumable, bookmarkable; and previous
//! key-values that are right.

use super::kv::Replay;
use super::{Promise, Rules, Violation};
use crate::history::{History, Input, Item, Moment, Watch};
use dhow_kv::Event;

/// Checks every watch against the history of revisions.
///
/// # Errors
/// The first broken promise.
pub fn check(history: &History, replay: &Replay, rules: &Rules) -> Result<(), Violation> {
    let compactions: Vec<(u64, i64)> = history
        .operations
        .iter()
        .filter_map(|operation| match operation.input {
            Input::Compact(revision) => Some((operation.called.order, revision)),
            _ => None,
        })
        .collect();
    for watch in &history.watches {
        let mut follow =
            Follow { watch, replay, rules, compactions: &compactions, next: None, noticed: 0 };
        if watch.start > 0 {
            follow.next = Some(watch.start);
        }
        let mut ended = false;
        for (moment, item) in &watch.items {
            if ended {
                return Err(follow.broken(Promise::Reliable, "goes on after its end"));
            }
            match item {
                Item::Events(revision, events) => follow.events(*moment, *revision, events)?,
                Item::Progress(revision) => follow.progress(*revision)?,
                Item::Compacted(revision) => {
                    follow.compacted(*moment, *revision)?;
                    ended = true;
                }
            }
        }
    }
    Ok(())
}

struct Follow<'a> {
    watch: &'a Watch,
    replay: &'a Replay,
    rules: &'a Rules,
    compactions: &'a [(u64, i64)],
    /// Everything before was delivered; unknown until a watch from now on has its first item.
    next: Option<i64>,
    /// The newest revision of a progress notice.
    noticed: i64,
}

impl Follow<'_> {
    fn broken(&self, promise: Promise, what: &str) -> Violation {
        let Watch { client, member, span, start, called, .. } = self.watch;
        let detail = format!(
            "the watch of client {client} on member {member} of {span:?} from {start}, opened at {called:?}, {what}"
        );
        Violation::new(promise, detail)
    }

    fn compacted_before(&self, moment: Moment, revision: i64) -> bool {
        self.rules.compacts_itself
            || self
                .compactions
                .iter()
                .any(|(called, until)| *called < moment.order && *until >= revision)
    }

    fn expected(&self, revision: i64) -> Vec<&Event> {
        let made = self.replay.revision(revision);
        let events = made.into_iter().flat_map(|made| &made.events);
        events.filter(|event| self.watch.span.contains(&event.kv.key)).collect()
    }

    /// The first revision before `until` that should have come and did not.
    fn missed(&self, until: i64) -> Option<i64> {
        let from = self.next.unwrap_or(2);
        (from.max(2)..until).find(|revision| {
            let Some(made) = self.replay.revision(*revision) else { return false };
            // A watch from now on owes what was asked for after it was open.
            let owed = self.next.is_some() || made.called.order > self.watch.opened.order;
            owed && made.events.iter().any(|event| self.watch.span.contains(&event.kv.key))
        })
    }

    fn events(&mut self, moment: Moment, revision: i64, events: &[Event]) -> Result<(), Violation> {
        if revision <= self.noticed {
            let what = format!("delivers revision {revision} after progress {}", self.noticed);
            return Err(self.broken(Promise::Bookmarkable, &what));
        }
        if let Some(next) = self.next
            && revision < next
        {
            return Err(self.backwards(moment, revision, next));
        }
        if let Some(missed) = self.missed(revision) {
            let first = self.watch.items.first().is_some_and(|(first, _)| *first == moment);
            let promise = match first && self.watch.start > 0 {
                true => Promise::Resumable,
                false => Promise::Reliable,
            };
            return Err(self.broken(promise, &format!("leaves out revision {missed}")));
        }
        let expected = self.expected(revision);
        let same = |a: &Event, b: &Event| a.kv == b.kv && a.deleted == b.deleted;
        let equal = expected.len() == events.len()
            && expected.iter().zip(events).all(|(expected, event)| same(expected, event));
        if !equal {
            let part = events.len() < expected.len()
                && events.iter().all(|event| expected.iter().any(|other| same(other, event)));
            let promise = if part { Promise::Atomic } else { Promise::Reliable };
            let what = format!("delivers revision {revision} as {events:?}, not as {expected:?}");
            return Err(self.broken(promise, &what));
        }
        for (event, expected) in events.iter().zip(&expected) {
            let right = match (&event.prev_kv, self.watch.prev_kv) {
                (found, false) => found.is_none(),
                (None, true) => {
                    expected.prev_kv.is_none() || self.compacted_before(moment, revision)
                }
                (found, true) => *found == expected.prev_kv,
            };
            if !right {
                let what = format!(
                    "delivers revision {revision} with {:?} before it, not {:?}",
                    event.prev_kv, expected.prev_kv
                );
                return Err(self.broken(Promise::PrevKv, &what));
            }
        }
        self.next = Some(revision + 1);
        Ok(())
    }

    /// A revision that comes although it, or a later one, was delivered.
    fn backwards(&self, moment: Moment, revision: i64, next: i64) -> Violation {
        let delivered = self.watch.items.iter().take_while(|(at, _)| *at != moment);
        let mut again = delivered.filter_map(|(_, item)| match item {
            Item::Events(other, events) if *other == revision => Some(events),
            _ => None,
        });
        let now = self.watch.items.iter().find(|(at, _)| *at == moment).map(|(_, item)| item);
        match (again.next(), now) {
            (Some(before), Some(Item::Events(_, now))) if before != now => {
                self.broken(Promise::Atomic, &format!("delivers revision {revision} in parts"))
            }
            (Some(_), _) => {
                self.broken(Promise::Unique, &format!("delivers revision {revision} twice"))
            }
            (None, _) if revision < self.watch.start => {
                self.broken(Promise::Reliable, &format!("delivers revision {revision}"))
            }
            (None, _) => {
                let what = format!("delivers revision {revision} after {}", next - 1);
                self.broken(Promise::Ordered, &what)
            }
        }
    }

    fn progress(&mut self, revision: i64) -> Result<(), Violation> {
        if revision < self.noticed || self.next.is_some_and(|next| revision < next - 1) {
            // One that starts in the future may be told about the present.
            let started = self.next.is_some_and(|next| next > self.watch.start);
            if started || revision < self.noticed {
                let what = format!("goes back to progress {revision}");
                return Err(self.broken(Promise::Bookmarkable, &what));
            }
        }
        if let Some(missed) = self.missed(revision + 1) {
            let what = format!("has progress {revision} and no revision {missed}");
            return Err(self.broken(Promise::Bookmarkable, &what));
        }
        self.noticed = revision;
        self.next = Some(self.next.unwrap_or(0).max(revision + 1));
        Ok(())
    }

    fn compacted(&self, moment: Moment, revision: i64) -> Result<(), Violation> {
        if self.next.is_some_and(|next| next >= revision) {
            let what = format!("ends for compaction {revision}, which it did not need");
            return Err(self.broken(Promise::Reliable, &what));
        }
        if !self.compacted_before(moment, revision) {
            let what = format!("ends for compaction {revision}, which nobody asked for");
            return Err(self.broken(Promise::Reliable, &what));
        }
        Ok(())
    }
}
