//! What leases promise: they live while they are kept alive, and their keys go with them.

use super::kv::{Cause, Replay};
use super::{Promise, Rules, Violation};
use crate::history::{History, Input, Moment, Operation, Output};
use std::collections::BTreeMap;
use std::time::Duration;

/// A lease as the history tells it.
#[derive(Debug, Default)]
struct Life<'a> {
    /// When it was granted or renewed for certain: asked, answered, for how long.
    renewals: Vec<(Moment, Moment, Duration)>,
    /// The last moment at which a renewal may have happened.
    last: Duration,
    ttl: Duration,
    grant: Option<&'a Operation>,
    /// Requests to end it.
    revocations: Vec<&'a Operation>,
    /// Answers that say that it does not exist.
    absent: Vec<&'a Operation>,
    /// Answers that say that it does.
    present: Vec<&'a Operation>,
}

/// A time to live as a duration.
pub(super) fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

fn lives<'a>(history: &'a History, rules: &Rules) -> BTreeMap<i64, Life<'a>> {
    let mut lives: BTreeMap<i64, Life<'a>> = BTreeMap::new();
    for operation in &history.operations {
        let (called, returned) = (operation.called, operation.returned);
        match (&operation.input, &operation.output) {
            (Input::LeaseGrant(id, ttl), output) => {
                let life = lives.entry(*id).or_default();
                life.ttl = seconds((*ttl).max(rules.min_lease_ttl));
                life.grant = Some(operation);
                match output {
                    Output::Lease(_) => life.renewals.push((called, returned, life.ttl)),
                    Output::Unknown => {}
                    _ => continue,
                }
                life.last = life.last.max(returned.time);
            }
            (Input::KeepAlive(id), Output::Lease(lease)) => {
                let life = lives.entry(*id).or_default();
                if lease.ttl > 0 {
                    life.renewals.push((called, returned, seconds(lease.ttl)));
                    life.present.push(operation);
                    life.last = life.last.max(returned.time);
                } else {
                    life.absent.push(operation);
                }
            }
            (Input::KeepAlive(id), Output::Unknown) => {
                let life = lives.entry(*id).or_default();
                life.last = life.last.max(returned.time);
            }
            (Input::TimeToLive(id), Output::Lease(lease)) => {
                let life = lives.entry(*id).or_default();
                if lease.ttl < 0 {
                    life.absent.push(operation);
                }
            }
            (Input::LeaseRevoke(id), Output::Revision(_) | Output::Unknown) => {
                lives.entry(*id).or_default().revocations.push(operation);
            }
            _ => {}
        }
    }
    lives
}

impl Rules {
    /// The least time that a lease lives, measured by the history's clock.
    pub(super) fn least(&self, ttl: Duration) -> Duration {
        ttl.mul_f64(1.0 - self.drift_thousandths.min(1000) as f64 / 1000.0)
    }
}

/// Checks that no lease ended while it was kept alive, and that none came back.
///
/// # Errors
/// [`Promise::LeaseKept`] or [`Promise::LeaseGone`].
pub fn check(history: &History, replay: &Replay, rules: &Rules) -> Result<(), Violation> {
    let lives = lives(history, rules);
    let mut expiries: BTreeMap<i64, (i64, Moment)> = BTreeMap::new();
    for (revision, made) in replay.revisions() {
        if let Cause::Expiry(id) = made.cause {
            expiries.insert(id, (revision, replay.timeline.proved(revision)));
        }
    }
    for (id, life) in &lives {
        if let Some((revision, proved)) = expiries.get(id) {
            // A renewal that was answered came before the end, and so put it off; or after, and
            // then it should have failed.
            let kept = life
                .renewals
                .iter()
                .find(|(called, _, ttl)| called.time + rules.least(*ttl) > proved.time);
            if let Some((called, ..)) = kept {
                let detail = format!(
                    "lease {id} was renewed at {called:?}, but revision {revision} ended it by {proved:?}"
                );
                return Err(Violation::new(Promise::LeaseKept, detail));
            }
        }
        for absent in &life.absent {
            let revoked = |o: &&Operation| o.called.order < absent.returned.order;
            if life.revocations.iter().any(revoked) {
                continue;
            }
            let kept =
                life.renewals.iter().find(|(_, returned, _)| returned.order < absent.called.order);
            let alive = kept.is_some()
                && life.renewals.iter().any(|(called, returned, ttl)| {
                    returned.order < absent.called.order
                        && called.time + rules.least(*ttl) > absent.returned.time
                });
            if alive {
                let detail = format!("lease {id} was kept alive, but {absent:?}");
                return Err(Violation::new(Promise::LeaseKept, detail));
            }
        }
        for present in &life.present {
            let ended = life.revocations.iter().find(|revocation| {
                matches!(revocation.output, Output::Revision(_))
                    && revocation.returned.order < present.called.order
            });
            if let Some(revocation) = ended {
                let detail = format!("lease {id} lives on in {present:?} after {revocation:?}");
                return Err(Violation::new(Promise::LeaseGone, detail));
            }
            let Output::Lease(lease) = &present.output else { continue };
            if life.grant.is_some() && seconds(lease.ttl) > life.ttl {
                let detail = format!("lease {id} of {:?} is renewed in {present:?}", life.ttl);
                return Err(Violation::new(Promise::LeaseKept, detail));
            }
        }
    }
    Ok(())
}

/// Checks that once the store is well, keys of leases that nobody renews go in time: at most
/// `slack` after the lease's whole time since the store recovered or the last renewal.
///
/// # Errors
/// [`Promise::LeaseGone`].
pub fn gone(
    history: &History,
    recovered: Duration,
    slack: Duration,
    rules: &Rules,
) -> Result<(), Violation> {
    let lives = lives(history, rules);
    for operation in &history.operations {
        let (Input::Range(range), Output::Range(found)) = (&operation.input, &operation.output)
        else {
            continue;
        };
        if range.serializable || range.revision > 0 {
            continue;
        }
        for kv in &found.kvs {
            let Some(life) = lives.get(&kv.lease) else { continue };
            let longest = life.ttl.mul_f64(1.0 + rules.drift_thousandths as f64 / 1000.0);
            let until = life.last.max(recovered) + longest + slack;
            if operation.called.time > until {
                let detail = format!(
                    "lease {} ended by {until:?}, but its key {:?} is read by {operation:?}",
                    kv.lease, kv.key
                );
                return Err(Violation::new(Promise::LeaseGone, detail));
            }
        }
    }
    Ok(())
}
