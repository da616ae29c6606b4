//! When leases end: deadlines in memory, one timer set to the earliest, revocation through the log.

use crate::store::Shared;
use crate::watch::lock;
use dhow_kv::Error;
use dhow_mvcc::Command;
use std::collections::{BTreeSet, HashMap};
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

/// The deadlines of all durable leases.
#[derive(Debug, Default)]
pub(crate) struct Lessor {
    state: Mutex<State>,
    /// Told when the earliest deadline has come nearer.
    nearer: Notify,
}

fn after(now: Duration, ttl: i64) -> Duration {
    now.saturating_add(Duration::from_secs(u64::try_from(ttl).unwrap_or(0)))
}

impl Lessor {
    pub(crate) fn granted(&self, id: i64, ttl: i64, now: Duration) {
        let deadline = after(now, ttl);
        let mut state = lock(&self.state);
        let nearest = state.deadlines.first().is_none_or(|(first, _)| deadline < *first);
        state.held.insert(id, Held { ttl, deadline, ending: false });
        state.deadlines.insert((deadline, id));
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

    /// Starts the lease's time anew; what it was granted, or `None` when it does not exist.
    pub(crate) fn renew(&self, id: i64, now: Duration) -> Option<i64> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let held = state.held.get_mut(&id).filter(|held| !held.ending)?;
        state.deadlines.remove(&(held.deadline, id));
        held.deadline = after(now, held.ttl);
        state.deadlines.insert((held.deadline, id));
        Some(held.ttl)
    }

    /// What the lease was granted and what remains, in seconds.
    pub(crate) fn remaining(&self, id: i64, now: Duration) -> Option<(i64, i64)> {
        let held = *lock(&self.state).held.get(&id)?;
        Some((held.ttl, held.deadline.saturating_sub(now).as_secs() as i64))
    }

    pub(crate) fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = lock(&self.state).held.keys().copied().collect();
        ids.sort_unstable();
        ids
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
        if let Some(held) = state.held.get_mut(&id) {
            held.deadline = now + RETRY;
            state.deadlines.insert((held.deadline, id));
        }
    }
}

/// Revokes leases as they expire, until the store stops or cannot write any more.
pub(crate) async fn expire(shared: Arc<Shared>) {
    loop {
        let now = shared.clock.monotonic();
        let (expired, next) = shared.lessor.expire(now);
        if !expired.is_empty() {
            tracing::debug!(count = expired.len(), "leases expired");
            let revoke = |id: i64| shared.submit(Command::LeaseRevoke { id }, false);
            let answers = futures::future::join_all(expired.iter().map(|id| revoke(*id))).await;
            for (id, answer) in expired.into_iter().zip(answers) {
                match answer {
                    Ok(_) | Err(Error::LeaseNotFound) => {}
                    Err(Error::Stopped | Error::Storage(_)) => return,
                    Err(_) => shared.lessor.retry(id, shared.clock.monotonic()),
                }
            }
            continue;
        }
        let nearer = shared.lessor.nearer.notified();
        match next {
            None => nearer.await,
            Some(deadline) => {
                let sleep = shared.clock.sleep(deadline.saturating_sub(now));
                futures::future::select(std::pin::pin!(nearer), sleep).await;
            }
        }
    }
}
