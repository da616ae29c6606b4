//! An operator who adds, promotes, removes and replaces members and hands over the leadership, and who
//! never forgets what was acknowledged.

use crate::check::{Promise, Violation};
use crate::random::Random;
use crate::world::World;
use dhow_clock::BoxFuture;
use dhow_kv::Error;
use dhow_kv::admin::{Admin as _, Member};
use dhow_server::{Introduction, Store};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the operator waits for an answer: longer than a member does for others'.
const PATIENCE: Duration = Duration::from_secs(10);

/// A member that was added for certain.
#[derive(Debug, Clone, Copy)]
struct Sure {
    /// `None`: nobody knows whether it was promoted.
    learner: Option<bool>,
    /// Nobody knows whether it was removed.
    leaving: bool,
}

/// See the module.
pub struct Operator {
    world: World,
    random: Random,
    stopped: Rc<Cell<bool>>,
    sure: BTreeMap<u64, Sure>,
    /// Removed for certain.
    gone: BTreeSet<u64>,
    /// Places of members of which nobody knows whether they were added, by their URLs.
    maybe: BTreeMap<String, usize>,
    /// The last refusal, and what for.
    refused: Option<(&'static str, Error)>,
    /// What was done, and how often.
    pub tally: BTreeMap<&'static str, u64>,
}

/// Whether an error says for certain that nothing was changed.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::MemberNotFound
            | Error::MemberExists
            | Error::PeerUrlExists
            | Error::NotEnoughStarted
            | Error::NotLearner
            | Error::LearnerNotReady
            | Error::TooManyLearners
            | Error::Unhealthy
            | Error::TooManyRequests
            | Error::NoSpace
    )
}

fn broken(detail: String) -> Violation {
    Violation::new(Promise::Linearizable, detail)
}

impl Operator {
    /// An operator of a world in which the first members are started.
    pub fn new(world: World, random: Random, stopped: Rc<Cell<bool>>) -> Self {
        let first = (0..world.places()).find_map(|at| world.store(at));
        let members = first.map(|store| store.introduction().members).unwrap_or_default();
        let sure = |member: Member| (member.id, Sure { learner: Some(false), leaving: false });
        let sure = members.into_iter().map(sure).collect();
        let (gone, maybe, refused, tally) = Default::default();
        Self { world, random, stopped, sure, gone, maybe, refused, tally }
    }

    /// Works until it is stopped.
    ///
    /// # Errors
    /// A broken promise.
    pub async fn run(mut self) -> Result<Self, Violation> {
        while !self.stopped.get() {
            let rest = Duration::from_millis(self.random.between(200, 12_000));
            tokio::time::sleep(rest).await;
            match self.random.below(10) {
                0..3 => self.add().await?,
                3..5 => self.promote().await,
                5..7 => self.remove().await,
                7..9 => self.hand_over().await,
                _ => {}
            }
            self.look().await?;
        }
        Ok(self)
    }

    /// Asks a member; `Err(None)` when nobody knows what became of it.
    async fn ask<T>(
        &mut self,
        what: &'static str,
        work: impl for<'a> FnOnce(&'a Store) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Option<Error>> {
        let running: Vec<usize> =
            (0..self.world.places()).filter(|at| self.world.store(*at).is_some()).collect();
        if running.is_empty() {
            return Err(Some(Error::Unhealthy));
        }
        let at = *self.random.pick(&running);
        let answer = self.world.request(at, PATIENCE, work).await;
        if matches!(answer, Some(Ok(_))) {
            *self.tally.entry(what).or_default() += 1;
        }
        match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => {
                self.refused = Some((what, error.clone()));
                Err(is_refusal(&error).then_some(error))
            }
            None => Err(None),
        }
    }

    async fn add(&mut self) -> Result<(), Violation> {
        let taken = |at: &usize| self.world.is_taken(*at) || self.maybe.values().any(|m| m == at);
        let Some(at) = (0..self.world.places()).find(|at| !taken(at)) else { return Ok(()) };
        let url = self.world.invite(at);
        let learner = self.random.chance(2, 3);
        self.maybe.insert(url.clone(), at);
        let urls = vec![url.clone()];
        let added = self
            .ask("members added", move |store| {
                Box::pin(async move {
                    let (member, members) = store.member_add(urls, learner).await?;
                    let cluster_id = store.identity().cluster_id;
                    Ok((member, Introduction { cluster_id, members }))
                })
            })
            .await;
        match added {
            Ok((member, told)) => {
                self.maybe.remove(&url);
                self.sure.insert(member.id, Sure { learner: Some(learner), leaving: false });
                self.join(at, &url, told)?;
            }
            Err(Some(_)) => drop(self.maybe.remove(&url)),
            Err(None) => {}
        }
        Ok(())
    }

    fn join(&self, at: usize, url: &str, told: Introduction) -> Result<(), Violation> {
        let failed =
            |error| Violation::new(Promise::Recovery, format!("{url} does not join: {error}"));
        self.world.join(at, url, told).map_err(failed)
    }

    async fn promote(&mut self) {
        let learners: Vec<u64> = self
            .sure
            .iter()
            .filter(|(_, sure)| sure.learner != Some(false) && !sure.leaving)
            .map(|(id, _)| *id)
            .collect();
        if learners.is_empty() {
            return;
        }
        let id = *self.random.pick(&learners);
        let done = self
            .ask("learners promoted", move |store| {
                Box::pin(async move { store.member_promote(id).await })
            })
            .await;
        if let Some(sure) = self.sure.get_mut(&id) {
            match done {
                Ok(_) => sure.learner = Some(false),
                Err(Some(_)) => {}
                Err(None) => sure.learner = None,
            }
        }
    }

    async fn remove(&mut self) {
        let voters = self.sure.values().filter(|s| s.learner == Some(false) && !s.leaving).count();
        let id = *self.random.pick(&self.sure.keys().copied().collect::<Vec<_>>());
        // The last voter cannot go, and one that nobody is sure of might be it.
        if voters >= 2 {
            self.remove_one(id).await;
        }
    }

    async fn remove_one(&mut self, id: u64) {
        let done = self
            .ask("members removed", move |store| {
                Box::pin(async move { store.member_remove(id).await })
            })
            .await;
        match done {
            Ok(_) => {
                self.sure.remove(&id);
                self.gone.insert(id);
            }
            Err(Some(_)) => {}
            Err(None) => {
                if let Some(sure) = self.sure.get_mut(&id) {
                    sure.leaving = true;
                }
            }
        }
    }

    async fn hand_over(&mut self) {
        let ids: Vec<u64> = self.sure.keys().copied().collect();
        let target = *self.random.pick(&ids);
        let leads = |at: &usize| {
            let store = self.world.store(*at);
            store.is_some_and(|store| store.pulse().leader == store.identity().member_id)
        };
        let Some(at) = (0..self.world.places()).find(leads) else { return };
        let moved = self.world.request(at, PATIENCE, |store| store.move_leader(target)).await;
        if let Some(Ok(())) = moved {
            *self.tally.entry("leaders changed").or_default() += 1;
        }
    }

    /// Compares the members with what was acknowledged, and has those come and go who should.
    async fn look(&mut self) -> Result<Option<Vec<Member>>, Violation> {
        let seen = self
            .ask("lists of members", |store| {
                Box::pin(async move {
                    let members = store.members(true).await?;
                    Ok(Introduction { cluster_id: store.identity().cluster_id, members })
                })
            })
            .await;
        let Ok(told) = seen else {
            // Perhaps there is no quorum without one that was added unknown to the operator.
            return self.come_unasked().map(|()| None);
        };
        let members = told.members.clone();
        self.compare(&members)?;
        for member in &members {
            let Some(url) = member.peer_urls.first() else { continue };
            match self.maybe.get(url).copied() {
                Some(at) => {
                    self.maybe.remove(url);
                    let learner = Some(member.learner);
                    self.sure.insert(member.id, Sure { learner, leaving: false });
                    if !self.world.is_taken(at) {
                        self.join(at, url, told.clone())?;
                    }
                }
                None if !self.sure.contains_key(&member.id) => {
                    return Err(broken(format!("{member:?} is a member, whom nobody has added")));
                }
                None => {}
            }
        }
        self.vacate(&members);
        Ok(Some(members))
    }

    fn compare(&mut self, members: &[Member]) -> Result<(), Violation> {
        if let Some(back) = members.iter().find(|member| self.gone.contains(&member.id)) {
            return Err(broken(format!("{back:?} is a member, although it was removed")));
        }
        let mut left = Vec::new();
        for (id, sure) in &mut self.sure {
            match (members.iter().find(|member| member.id == *id), sure.learner) {
                (None, _) if sure.leaving => left.push(*id),
                (None, _) => {
                    return Err(broken(format!("{id:x} is not a member, although it was added")));
                }
                (Some(found), Some(learner)) if learner != found.learner => {
                    let what = format!("{found:?} was to be a learner: {learner}");
                    return Err(broken(what));
                }
                (Some(found), None) if !found.learner => sure.learner = Some(false),
                _ => {}
            }
        }
        for id in left {
            self.sure.remove(&id);
            self.gone.insert(id);
        }
        Ok(())
    }

    /// Those that were removed go, sooner or later.
    fn vacate(&mut self, members: &[Member]) {
        for at in 0..self.world.places() {
            let Some(url) = self.world.url(at) else { continue };
            let listed = members.iter().any(|member| member.peer_urls.contains(&url));
            if !listed && (self.stopped.get() || self.random.chance(1, 2)) {
                self.world.leave(at);
            }
        }
    }

    /// Starts members that some member knows of, although their addition was not acknowledged.
    fn come_unasked(&mut self) -> Result<(), Violation> {
        for at in 0..self.world.places() {
            let Some(store) = self.world.store(at).filter(|_| self.world.speaks(at)) else {
                continue;
            };
            let told = store.introduction();
            let known = |url: &String| told.members.iter().any(|m| m.peer_urls.contains(url));
            let come: Vec<(String, usize)> = self
                .maybe
                .iter()
                .filter(|(url, to)| known(url) && !self.world.is_taken(**to))
                .map(|(url, to)| (url.clone(), *to))
                .collect();
            for (url, to) in come {
                self.join(to, &url, told.clone())?;
            }
        }
        Ok(())
    }

    /// Once everything else is well: all members are there, run and vote.
    ///
    /// # Errors
    /// A broken promise.
    pub async fn settle(&mut self) -> Result<(), Violation> {
        let deadline = Instant::now() + Duration::from_secs(90);
        let mut seen = Vec::new();
        loop {
            if let Some(members) = self.look().await? {
                seen.clone_from(&members);
                let votes = |member: &Member| !member.learner && !member.name.is_empty();
                let leaving = self.sure.iter().find(|(_, sure)| sure.leaving).map(|(id, _)| *id);
                if leaving.is_none() && members.iter().all(votes) {
                    return Ok(());
                }
                self.promote().await;
                if let Some(id) = leaving {
                    // Whoever may yet go, goes now.
                    self.remove_one(id).await;
                }
            }
            if Instant::now() > deadline {
                let refused = self.refused.take();
                let what = format!(
                    "90 seconds after everything was mended the members are {seen:?}; {refused:?}"
                );
                return Err(Violation::new(Promise::Recovery, what));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
