//! When leases end: deadlines in memory, one timer set to the earliest, revocation through the log.

use crate::shared::Shared;
use crate::watch::lock;
use dhow_kv::Error;
use dhow_mvcc::Command;
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
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<i64, Held>,
    deadlines: BTreeSet<(Duration, i64)>,
}

impl State {
    fn start(&mut self, id: i64, ttl: i64, now: Duration) {
        let deadline = after(now, ttl);
        if let Some(before) = self.held.insert(id, Held { ttl, deadline, ending: false }) {
            self.deadlines.remove(&(before.deadline, id));
        }
        self.deadlines.insert((deadline, id));
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
}

fn after(now: Duration, ttl: i64) -> Duration {
    now.saturating_add(Duration::from_secs(u64::try_from(ttl).unwrap_or(0)))
}

impl Lessor {
    /// The term in which this member decides when leases end; 0 when another does.
    pub(crate) fn term(&self) -> u64 {
        self.term.load(Ordering::Acquire)
    }

    /// This member leads from now on. Every lease has its whole time again: its owner may have
    /// renewed it at the leader before.
    pub(crate) fn promote(&self, term: u64, now: Duration) {
        let mut state = lock(&self.state);
        let leases: Vec<(i64, i64)> = state.held.iter().map(|(id, held)| (*id, held.ttl)).collect();
        for (id, ttl) in leases {
            state.start(id, ttl, now);
        }
        self.term.store(term, Ordering::Release);
        drop(state);
        self.nearer.notify_one();
    }

    /// Another member decides from now on.
    pub(crate) fn demote(&self) {
        self.term.store(0, Ordering::Release);
    }

    /// Forgets all leases for these.
    pub(crate) fn reset(&self, leases: impl Iterator<Item = (i64, i64)>, now: Duration) {
        let mut state = lock(&self.state);
        *state = State::default();
        for (id, ttl) in leases {
            state.start(id, ttl, now);
        }
        drop(state);
        self.nearer.notify_one();
    }

    pub(crate) fn granted(&self, id: i64, ttl: i64, now: Duration) {
        let deadline = after(now, ttl);
        let mut state = lock(&self.state);
        let nearest = state.deadlines.first().is_none_or(|(first, _)| deadline < *first);
        state.start(id, ttl, now);
        drop(state);
        if nearest {
            self.nearer.notify_one();
        }
    }

    pub(crate) fn revoked(&self, id: i64) {
        let mut state = lock(&self.state);
        if let Some(held) = state.held.remove(&id) {
            state.deadlines.remove(&(held.deadline, id));
        }
    }

    /// Starts the lease's time anew; what it was granted and what can be promised, in seconds, or
    /// `None` when it does not exist. A quorum has confirmed that this member led when it was
    /// `asked`, and no other gives the lease less than its whole time after that.
    ///
    /// # Errors
    /// [`Error::Timeout`]: the confirmation took longer than the lease lasts.
    pub(crate) fn renew(
        &self,
        id: i64,
        asked: Duration,
        now: Duration,
    ) -> Result<Option<(i64, i64)>, Error> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let Some(held) = state.held.get_mut(&id).filter(|held| !held.ending) else {
            return Ok(None);
        };
        let left = held.ttl - now.saturating_sub(asked).as_secs() as i64;
        if left < 1 {
            return Err(Error::Timeout);
        }
        state.deadlines.remove(&(held.deadline, id));
        held.deadline = after(now, held.ttl);
        state.deadlines.insert((held.deadline, id));
        Ok(Some((held.ttl, left)))
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

/// Revokes leases as they expire, until the store stops.
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
        let nearer = shared.lessor.nearer.notified();
        match next {
            None => nearer.await,
            Some(deadline) => {
                let sleep = shared.clock.sleep_until(deadline);
                futures::future::select(std::pin::pin!(nearer), sleep).await;
            }
        }
    }
}
