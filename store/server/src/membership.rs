//! Changes of the members, as the leader decides on them, and what follows for every member.

use crate::cluster::{member_id, sorted};
use crate::core::Core;
use crate::entry::Proposal;
use crate::members::{Change, Members};
use crate::queue::Reply;
use crate::requests::Whom;
use crate::shared::Shared;
use crate::wire::{Ask, Message};
use dhow_kv::Error;
use dhow_kv::admin::Member;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Whether members can be reached by these: as in etcd, a scheme, a host with a port, no path.
fn check_urls(urls: &[String]) -> Result<(), Error> {
    let good = |url: &String| {
        let Some((scheme, rest)) = url.split_once("://") else { return false };
        let place = rest.strip_suffix('/').unwrap_or(rest);
        match scheme {
            "http" | "https" => {
                let port = place.rsplit_once(':').map(|(_, port)| port);
                port.is_some_and(|port| port.parse::<u16>().is_ok()) && !place.contains('/')
            }
            "unix" | "unixs" => !place.is_empty(),
            _ => false,
        }
    };
    if urls.is_empty() || !urls.iter().all(good) { Err(Error::BadMemberUrls) } else { Ok(()) }
}

/// Started members are those that have told their names.
fn started(member: &Member) -> bool {
    !member.name.is_empty()
}

/// Whether the voters would have a quorum of started ones: those there are but `without`, and
/// `more`, of which `more_started` have.
fn keeps_quorum(members: &Members, without: u64, more: usize, more_started: usize) -> bool {
    let voters: Vec<&Member> = members.voters().filter(|member| member.id != without).collect();
    let running = voters.iter().filter(|member| started(member)).count() + more_started;
    let all = voters.len() + more;
    // One that is alone can grow: there is nobody else whom it could ask first.
    (more > 0 && all == 2 && running >= 1) || running > all / 2
}

/// When a member was heard of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    /// Since when without a break.
    since: Duration,
    last: Duration,
}

impl Core {
    /// Takes note that another member was heard of.
    pub(crate) fn hear(&mut self, shared: &Shared, from: u64) {
        let (now, pause) = (shared.clock.monotonic(), self.pause());
        let heard = self.heard.entry(from).or_insert(Heard { since: now, last: now });
        // A machine that is busy may be silent for longer than an election without being away.
        if heard.last + 3 * pause < now {
            heard.since = now;
        }
        heard.last = now;
    }

    /// Raft's followers say nothing to each other, but whoever leads next has to know for how long
    /// the others have been there.
    pub(crate) fn tell_presence(&self, shared: &Shared) {
        if self.is_leader() {
            return;
        }
        let leader = self.leader();
        for member in shared.read().members.iter() {
            if member.id != self.own && member.id != leader {
                self.say(member.id, &Message::Present);
            }
        }
    }

    /// Who is silent for longer than this is away.
    fn pause(&self) -> Duration {
        let election = self.cluster.as_ref().map_or(Duration::ZERO, |cluster| cluster.election);
        election.max(Duration::from_secs(1))
    }

    /// Looks who the members are now.
    pub(crate) fn meet(&mut self, shared: &Shared) {
        let state = shared.read();
        let alone = state.members.is_alone(self.own);
        let learner = state.members.get(self.own).is_none_or(|own| own.learner);
        let list = state.members.list();
        drop(state);
        self.alone = alone;
        self.knows_all &= alone;
        shared.alone.store(self.knows_all, Ordering::Release);
        shared.numbers.learner.store(learner, Ordering::Relaxed);
        if let Some(transport) = self.transport() {
            transport.members(&list);
        }
    }

    /// What a change of the members means to this one.
    pub(crate) fn follow_change(&mut self, change: &Change) {
        match change {
            Change::Remove(id) if *id == self.own => {
                tracing::warn!("this member has been removed from the cluster; it stops");
                self.removed = true;
            }
            Change::Remove(id) => {
                self.outgoing.remove(id);
                self.heard.remove(id);
                tracing::info!(member = %format!("{id:x}"), "a member was removed");
            }
            Change::Add(member) => tracing::info!(
                member = %format!("{:x}", member.id),
                peer_urls = member.peer_urls.join(","),
                learner = member.learner,
                "a member was added"
            ),
            Change::Promote(id) => {
                tracing::info!(member = %format!("{id:x}"), "a learner became a voter");
            }
            Change::Attributes { .. } | Change::PeerUrls { .. } => {}
        }
    }

    /// Whether a member was heard of not long ago.
    fn is_heard(&self, shared: &Shared, id: u64) -> bool {
        self.is_heard_for(shared, id, Duration::ZERO)
    }

    /// Whether a member has been heard of for so long without a break.
    fn is_heard_for(&self, shared: &Shared, id: u64, period: Duration) -> bool {
        let (now, pause) = (shared.clock.monotonic(), self.pause());
        let holds = |heard: &Heard| heard.last + pause >= now && heard.since + period <= now;
        id == self.own || self.heard.get(&id).is_some_and(holds)
    }

    /// Sees to a change of the members for `from`, if it is allowed. A leader that is to go hands
    /// over first, and the next one removes it: so nobody waits for an election, and what the others
    /// send to it meanwhile is not lost with it.
    pub(crate) fn change_members(&mut self, shared: &Shared, from: u64, id: u64, ask: Ask) {
        let goes = matches!(ask, Ask::Remove(gone) if gone == self.own);
        if goes && self.transfer.is_none() && self.allow(shared, ask.clone()).is_ok() {
            if self.leaving.is_empty()
                && let Some(target) = self.successor(shared)
            {
                self.node.transfer_leader(target);
            }
            if self.node.raft.lead_transferee.is_some() {
                self.leaving.push((from, id, ask));
                return;
            }
        }
        self.propose_change(shared, from, id, ask);
    }

    /// The voter that would lead with the least delay.
    fn successor(&self, shared: &Shared) -> Option<u64> {
        let matched = |id| self.node.raft.prs().get(id).map_or(0, |its| its.matched);
        let state = shared.read();
        let others = state.members.voters().map(|voter| voter.id).filter(|id| *id != self.own);
        others.filter(|id| self.is_heard(shared, *id)).max_by_key(|id| (matched(*id), *id))
    }

    /// Nobody has taken over from this leader in time: it proposes its removal itself.
    pub(crate) fn leave_anyway(&mut self, shared: &Shared) {
        for (from, id, ask) in std::mem::take(&mut self.leaving) {
            self.propose_change(shared, from, id, ask);
        }
    }

    /// Proposes a change of the members for `from`, if it is allowed.
    fn propose_change(&mut self, shared: &Shared, from: u64, id: u64, ask: Ask) {
        match self.allow(shared, ask) {
            Ok((change, meant)) => {
                let whom = Whom::Member { from, ask: id, meant };
                self.propose(shared, vec![(Proposal::Member(change), whom, 0)]);
            }
            Err(error) => self.tell(from, id, Err(error)),
        }
    }

    fn allow(&self, shared: &Shared, ask: Ask) -> Result<(Change, u64), Error> {
        // Without a way to them there can be no others.
        let cluster = self.cluster.as_ref().ok_or(Error::Unhealthy)?;
        let state = shared.read();
        let members = &state.members;
        let strict = cluster.strict_reconfig_check;
        let settled = |voter: &&Member| self.is_heard_for(shared, voter.id, cluster.settled);
        Ok(match ask {
            Ask::Add { peer_urls, learner } => {
                check_urls(&peer_urls)?;
                let peer_urls = sorted(&peer_urls);
                let now = shared.clock.now().as_secs();
                let known = |id: &u64| members.get(*id).is_some() || members.is_removed(*id);
                // One at the same place may have gone within this second.
                let mut ids = (now..).map(|at| member_id(&peer_urls, &cluster.token, Some(at)));
                let id = ids.find(|id| !known(id)).ok_or(Error::MemberExists)?;
                let member = Member { id, peer_urls, learner, ..Member::default() };
                let change = Change::Add(member);
                members.check(&change)?;
                let learners = members.iter().filter(|member| member.learner).count();
                if learner && learners >= cluster.max_learners {
                    return Err(Error::TooManyLearners);
                }
                if strict {
                    if !learner && !keeps_quorum(members, 0, 1, 0) {
                        return Err(Error::NotEnoughStarted);
                    }
                    // The new one counts as down: the others must do without it.
                    let voters = members.voters().count();
                    if voters > 1 && members.voters().filter(settled).count() <= voters.div_ceil(2)
                    {
                        return Err(Error::Unhealthy);
                    }
                }
                (change, id)
            }
            Ask::Remove(id) => {
                let change = Change::Remove(id);
                members.check(&change)?;
                let voter = members.get(id).is_some_and(|member| !member.learner);
                if strict && voter {
                    if !keeps_quorum(members, id, 0, 0) {
                        return Err(Error::NotEnoughStarted);
                    }
                    // One that is down can go. One that is up must not leave too few.
                    let voters = members.voters().count();
                    let active = members.voters().filter(settled).count();
                    if self.is_heard(shared, id) && active < 2 + (voters - 1) / 2 {
                        return Err(Error::Unhealthy);
                    }
                }
                (change, id)
            }
            Ask::Update { id, peer_urls } => {
                check_urls(&peer_urls)?;
                let change = Change::PeerUrls { id, peer_urls: sorted(&peer_urls) };
                members.check(&change)?;
                (change, id)
            }
            Ask::Promote(id) => {
                let change = Change::Promote(id);
                members.check(&change)?;
                let matched = |id| self.node.raft.prs().get(id).map_or(0, |its| its.matched);
                if matched(id) < matched(self.own) / 10 * 9 || matched(id) == 0 {
                    return Err(Error::LearnerNotReady);
                }
                if strict && !keeps_quorum(members, 0, 1, 1) {
                    return Err(Error::NotEnoughStarted);
                }
                (change, id)
            }
            // Not about members.
            Ask::KeepAlive(_) | Ask::TimeToLive(_) => return Err(Error::LeaseNotFound),
        })
    }

    /// Begins to hand the leadership to another member.
    pub(crate) fn begin_handover(&mut self, shared: &Shared, target: u64, reply: Reply<()>) {
        let refusal = {
            let state = shared.read();
            let voter = state.members.get(target).is_some_and(|member| !member.learner);
            if let Some(error) = &self.failed {
                Some(error.clone())
            } else if !self.is_leader() {
                Some(Error::NotLeader)
            } else if !voter {
                Some(Error::BadTransferee)
            } else if self.transfer.is_some() {
                Some(Error::TooManyRequests)
            } else {
                None
            }
        };
        if let Some(error) = refusal {
            drop(reply.send(Err(error)));
            return;
        }
        if target == self.own {
            drop(reply.send(Ok(())));
            return;
        }
        let deadline = self.deadline(shared);
        self.transfer = Some((target, deadline, reply));
        self.node.transfer_leader(target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_as_etcd_wants_them() {
        let check = |url: &str| check_urls(&[url.to_owned()]).is_ok();
        assert!(check("http://127.0.0.1:2380") && check("https://[::1]:2380"));
        assert!(check("unix://peer.sock"));
        for bad in ["", "http://a", "127.0.0.1:2380", "http://a:1/b", "ftp://a:1", "http://a:x"] {
            assert!(!check(bad), "{bad}");
        }
        assert_eq!(check_urls(&[]), Err(Error::BadMemberUrls));
    }

    #[test]
    fn the_quorum_counts_those_that_have_started() {
        let members = |names: &[&str]| -> Members {
            let named = |(id, name): (usize, &&str)| Member {
                id: id as u64 + 1,
                name: (*name).into(),
                ..Member::default()
            };
            names.iter().enumerate().map(named).collect()
        };
        assert!(keeps_quorum(&members(&["a"]), 0, 1, 0));
        assert!(keeps_quorum(&members(&["a", "b"]), 0, 1, 0));
        assert!(!keeps_quorum(&members(&["a", ""]), 0, 1, 0));
        assert!(keeps_quorum(&members(&["a", "b", "c"]), 3, 0, 0));
        assert!(!keeps_quorum(&members(&["a", "", "c"]), 3, 0, 0));
        assert!(keeps_quorum(&members(&["a", ""]), 2, 0, 0));
    }
}
