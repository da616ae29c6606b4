//! When leases end: deadlines in memory, one timer set to the earliest, revocation through the log.
//!
//! Deadlines are the leader's. So that a long lease does not begin anew with each leader or restart,
//! what remains of it is noted in the log now and then (a checkpoint of the lease, as etcd calls it),
//! and the next leader goes on from there. A lease that is renewed has its whole time for whoever
//! leads next: a note that is in the way is taken back before the renewal is acknowledged.

use crate::shared::Shared;
use crate::watch::lock;
use dhow_kv::Error;
use dhow_mvcc::{Command, Mvcc};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// After a failed revocation the next attempt comes this much later.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
struct Held {
    ttl: i64,
    deadline: Duration,
    /// It has expired and is being revoked: nothing renews it any more.
    ending: bool,
    /// What remains for whoever leads next, in seconds, as the log says; 0 for the whole time.
    noted: i64,
    /// A note of it is on its way into the log.
    noting: bool,
    /// Its end is in the log of this leader, and not carried out yet.
    leaving: bool,
}

impl Held {
    /// What a new leader gives it, in seconds.
    fn due(&self) -> i64 {
        if self.noted > 0 { self.noted } else { self.ttl }
    }
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<i64, Held>,
    deadlines: BTreeSet<(Duration, i64)>,
    /// When to look next for leases whose rest should be noted.
    note_at: Option<Duration>,
}

impl State {
    fn start(&mut self, id: i64, ttl: i64, noted: i64, now: Duration) {
        let (ending, noting, leaving) = (false, false, false);
        let mut held = Held { ttl, deadline: now, ending, noted, noting, leaving };
        held.deadline = after(now, held.due());
        if let Some(before) = self.held.insert(id, held) {
            self.deadlines.remove(&(before.deadline, id));
        }
        self.deadlines.insert((held.deadline, id));
    }
}

/// The deadlines of all durable leases.
#[derive(Debug, Default)]
pub(crate) struct Lessor {
    state: Mutex<State>,
    /// Told when the earliest deadline has come nearer.
    nearer: Notify,
    /// The term in which this member leads, and so decides when leases end; 0 when it does not.
    term: AtomicU64,
    /// What remains of a lease is noted each time when so much of it has passed, in seconds; 0 for
    /// never.
    note_after: i64,
}

/// What became of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// What to tell: what was granted and what can be promised.
    Told(Option<(i64, i64)>),
    /// The log has, or will have, a note of the time before: take it back and renew again.
    Noted,
}

/// Takes a note of what remains of a lease back.
pub(crate) fn whole(id: i64) -> Command {
    Command::LeaseCheckpoint(vec![(id, 0)])
}

fn after(now: Duration, ttl: i64) -> Duration {
    now.saturating_add(Duration::from_secs(u64::try_from(ttl).unwrap_or(0)))
}

impl Lessor {
    /// No leases yet. What remains of one is noted each time when so much of it has passed.
    pub(crate) fn new(note_after: Option<Duration>) -> Self {
        let note_after = note_after.map_or(0, |period| period.as_secs().max(1) as i64);
        Self { note_after, ..Self::default() }
    }

    /// The term in which this member decides when leases end; 0 when another does.
    pub(crate) fn term(&self) -> u64 {
        self.term.load(Ordering::Acquire)
    }

    /// This member leads from now on, and knows everything that was acknowledged. Every lease has
    /// its whole time again, since its owner may have renewed it at the leader before; but one whose
    /// rest is noted has not been renewed since.
    pub(crate) fn promote(&self, term: u64, now: Duration) {
        let mut state = lock(&self.state);
        let leases: Vec<(i64, Held)> = state.held.iter().map(|(id, held)| (*id, *held)).collect();
        for (id, held) in leases {
            state.start(id, held.ttl, held.noted, now);
        }
        state.note_at = self.next_note(&state, now);
        self.term.store(term, Ordering::Release);
        drop(state);
        self.nearer.notify_one();
    }

    /// Another member decides from now on.
    pub(crate) fn demote(&self) {
        self.term.store(0, Ordering::Release);
    }

    /// Forgets all leases for those of a state.
    pub(crate) fn reset(&self, mvcc: &Mvcc, now: Duration) {
        let mut state = lock(&self.state);
        *state = State::default();
        let noted: HashMap<i64, i64> = mvcc.remaining().collect();
        for (id, ttl) in mvcc.leases() {
            state.start(id, ttl, noted.get(&id).copied().unwrap_or(0), now);
        }
        state.note_at = self.next_note(&state, now);
        drop(state);
        self.nearer.notify_one();
    }

    pub(crate) fn granted(&self, id: i64, ttl: i64, now: Duration) {
        let deadline = after(now, ttl);
        let mut state = lock(&self.state);
        let mut nearest = state.deadlines.first().is_none_or(|(first, _)| deadline < *first);
        state.start(id, ttl, 0, now);
        if self.note_after > 0 && ttl > self.note_after && state.note_at.is_none() {
            state.note_at = Some(after(now, self.note_after));
            nearest = true;
        }
        drop(state);
        if nearest {
            self.nearer.notify_one();
        }
    }

    /// The log says what remains of leases for whoever leads next.
    pub(crate) fn noted(&self, remaining: &[(i64, i64)]) {
        let mut state = lock(&self.state);
        for (id, remaining) in remaining {
            if let Some(held) = state.held.get_mut(id) {
                held.noted = (*remaining).clamp(0, held.ttl);
                held.noting = false;
            }
        }
    }

    /// When the rest of some lease will have to be noted.
    fn next_note(&self, state: &State, now: Duration) -> Option<Duration> {
        let long = state.held.values().filter(|held| held.due() > self.note_after && !held.ending);
        let at = |held: &Held| {
            if held.noting {
                return after(now, self.note_after);
            }
            let spare = u64::try_from(held.due() - self.note_after).unwrap_or(0);
            held.deadline.saturating_sub(Duration::from_secs(spare))
        };
        let first = long.map(at).min().filter(|_| self.note_after > 0)?;
        Some(first.max(now + Duration::from_secs(1)))
    }

    /// What remains of the leases of which much has passed since it was noted, in seconds rounded
    /// up; and when to look again.
    pub(crate) fn notes(&self, now: Duration) -> (Vec<(i64, i64)>, Option<Duration>) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let mut notes = Vec::new();
        if state.note_at.is_some_and(|at| at <= now) {
            for (id, held) in &mut state.held {
                let remaining = held.deadline.saturating_sub(now).as_secs() as i64 + 1;
                let passed = held.due() - remaining;
                if held.due() > self.note_after && passed + 1 >= self.note_after && !held.ending {
                    held.noting = true;
                    notes.push((*id, remaining));
                }
            }
            // The same order on every run, and those that end first before the others.
            notes.sort_unstable_by_key(|(id, remaining)| (*remaining, *id));
            state.note_at = self.next_note(state, now);
        }
        (notes, state.note_at)
    }

    /// Whether this leader may put a command into its log. A note must not come behind the end of its
    /// lease: another may be granted under the same identifier meanwhile, and must not be taken for
    /// as old.
    pub(crate) fn admits(&self, command: &Command) -> bool {
        let mut state = lock(&self.state);
        match command {
            Command::LeaseRevoke { id } => {
                if let Some(held) = state.held.get_mut(id) {
                    held.leaving = true;
                }
                true
            }
            Command::LeaseCheckpoint(remaining) => {
                remaining.iter().all(|(id, left)| *left == 0 || is_noting(&state, *id))
            }
            _ => true,
        }
    }

    /// Leaves out notes of leases that have ended since they were taken.
    fn keep_current(&self, notes: &mut Vec<(i64, i64)>) {
        let state = lock(&self.state);
        notes.retain(|(id, _)| is_noting(&state, *id));
    }

    pub(crate) fn revoked(&self, id: i64) {
        let mut state = lock(&self.state);
        if let Some(held) = state.held.remove(&id) {
            state.deadlines.remove(&(held.deadline, id));
        }
    }

    /// Starts the lease's time anew; what it was granted and what can be promised, in seconds, or
    /// `None` when it does not exist. A quorum has confirmed that this member led when it was
    /// `asked`, and no other gives the lease less than its whole time after that, unless a note says
    /// so: then nothing can be promised before that is taken back.
    ///
    /// # Errors
    /// [`Error::Timeout`]: the confirmation took longer than the lease lasts.
    pub(crate) fn renew(&self, id: i64, asked: Duration, now: Duration) -> Result<Renewed, Error> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let Some(held) = state.held.get_mut(&id).filter(|held| !held.ending) else {
            return Ok(Renewed::Told(None));
        };
        let left = held.ttl - now.saturating_sub(asked).as_secs() as i64;
        if left < 1 {
            return Err(Error::Timeout);
        }
        state.deadlines.remove(&(held.deadline, id));
        held.deadline = after(now, held.ttl);
        state.deadlines.insert((held.deadline, id));
        // From here on there is no reason to note less than the whole.
        if held.noted > 0 || held.noting {
            return Ok(Renewed::Noted);
        }
        Ok(Renewed::Told(Some((held.ttl, left))))
    }

    /// What the lease was granted and what remains, in seconds.
    pub(crate) fn remaining(&self, id: i64, now: Duration) -> Option<(i64, i64)> {
        let held = *lock(&self.state).held.get(&id)?;
        Some((held.ttl, held.deadline.saturating_sub(now).as_secs() as i64))
    }

    /// All leases, those that end first before the others, as etcd lists them.
    pub(crate) fn ids(&self) -> Vec<i64> {
        let state = lock(&self.state);
        let mut ids: Vec<(Duration, i64)> =
            state.held.iter().map(|(id, held)| (held.deadline, *id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// Marks and returns what has expired, and the next deadline.
    fn expire(&self, now: Duration) -> (Vec<i64>, Option<Duration>) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let mut expired = Vec::new();
        while let Some((deadline, id)) = state.deadlines.first().copied() {
            if deadline > now {
                return (expired, Some(deadline));
            }
            state.deadlines.pop_first();
            if let Some(held) = state.held.get_mut(&id) {
                held.ending = true;
                expired.push(id);
            }
        }
        (expired, None)
    }

    fn retry(&self, id: i64, now: Duration) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if let Some(held) = state.held.get_mut(&id)
            && held.ending
        {
            held.deadline = now + RETRY;
            state.deadlines.insert((held.deadline, id));
        }
    }
}

/// Whether a note of a lease belongs to the lease that has the identifier now.
fn is_noting(state: &State, id: i64) -> bool {
    state.held.get(&id).is_some_and(|held| held.noting && !held.leaving)
}

/// So many leases are noted in one entry of the log.
const NOTES: usize = 1000;

/// Revokes leases as they expire and notes what remains of long ones, until the store stops.
pub(crate) async fn expire(shared: Arc<Shared>) {
    loop {
        let term = shared.lessor.term();
        if term == 0 {
            shared.lessor.nearer.notified().await;
            continue;
        }
        let now = shared.clock.monotonic();
        let (expired, next) = shared.lessor.expire(now);
        if !expired.is_empty() {
            // A member that was held up may have been replaced without knowing it yet.
            let confirmed = shared.catch_up().await;
            if confirmed.is_err() || shared.lessor.term() != term {
                for id in expired {
                    shared.lessor.retry(id, shared.clock.monotonic());
                }
                if matches!(confirmed, Err(Error::Stopped)) {
                    return;
                }
                continue;
            }
            tracing::debug!(count = expired.len(), "leases expired");
            let revoke = |id: i64| shared.submit_in(term, Command::LeaseRevoke { id });
            let answers = futures::future::join_all(expired.iter().map(|id| revoke(*id))).await;
            for (id, answer) in expired.into_iter().zip(answers) {
                match answer {
                    Ok(_) | Err(Error::LeaseNotFound) => {}
                    Err(Error::Stopped) => return,
                    // A disk may be well again later, too.
                    Err(_) => shared.lessor.retry(id, shared.clock.monotonic()),
                }
            }
            continue;
        }
        let (notes, note_at) = shared.lessor.notes(now);
        for part in notes.chunks(NOTES) {
            let mut part = part.to_vec();
            loop {
                shared.lessor.keep_current(&mut part);
                if part.is_empty() {
                    break;
                }
                match shared.submit_in(term, Command::LeaseCheckpoint(part.clone())).await {
                    // One of them ended in between.
                    Err(Error::LeaseNotFound) => continue,
                    Err(Error::Stopped) => return,
                    // They stay longer with another leader than they need.
                    Err(error) => tracing::debug!(%error, "what remains of leases is not noted"),
                    Ok(_) => {}
                }
                break;
            }
        }
        let nearer = shared.lessor.nearer.notified();
        match next.into_iter().chain(note_at).min() {
            None => nearer.await,
            Some(deadline) => {
                let sleep = shared.clock.sleep_until(deadline);
                futures::future::select(std::pin::pin!(nearer), sleep).await;
            }
        }
    }
}
