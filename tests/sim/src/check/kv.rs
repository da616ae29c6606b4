//! Linearizability, as Wing and Gong search for it, pruned by revisions.
//!
//! Every write has a revision of its own and every answer tells the store's revision, so the answers
//! themselves fix the order. Only writes of unknown outcome (and leases that ran out) are open: they
//! may fill a revision that nobody claimed, or none. The search walks the revisions upwards with a
//! [`Model`], tries who may fill the gaps, checks every answer where it belongs, and goes back when
//! one is wrong: not to the last choice, but to the last that matters for what was wrong.

use super::facts::{Fact, overlap_any, put_leases, read_spans, spans, tidy, union, wrote};
use super::model::{Model, Undo, bare, read};
use super::timeline::Timeline;
use super::{Promise, Rules, Violation, lease};
use crate::history::{History, Input, Item, Moment, Operation, Output, Watch, may_write};
use bytes::Bytes;
use dhow_kv::{Error, Event, Op, OpResult, Span, Txn, TxnResult};
use std::collections::{BTreeMap, BTreeSet};

/// How many changes the search tries before it gives up.
const BUDGET: usize = 5_000_000;

/// Who made a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The operation with this place in the history.
    Operation(usize),
    /// The end of a lease that nobody renewed.
    Expiry(i64),
}

/// One revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// Who made it.
    pub cause: Cause,
    /// Its events, with previous key-values.
    pub events: Vec<Event>,
    /// When it was asked for; for an expiry, nothing is known.
    pub called: Moment,
}

/// The history of revisions, as it must have been.
#[derive(Debug, Default)]
pub struct Replay {
    /// From revision 2 on.
    revisions: Vec<Revision>,
    /// When which revision was known.
    pub timeline: Timeline,
}

impl Replay {
    /// The newest revision that anybody has seen.
    pub fn last(&self) -> i64 {
        self.revisions.len() as i64 + 1
    }

    /// A revision, from 2 to [`Replay::last`].
    pub fn revision(&self, revision: i64) -> Option<&Revision> {
        self.revisions.get(usize::try_from(revision - 2).ok()?)
    }

    /// All revisions with their numbers.
    pub fn revisions(&self) -> impl Iterator<Item = (i64, &Revision)> {
        (2..).zip(&self.revisions)
    }
}

/// A write of unknown outcome.
struct Open {
    at: usize,
    writes: Vec<Span>,
    guards: Vec<Span>,
    /// It ends this lease.
    revokes: Option<i64>,
}

/// The history, sorted for the search.
struct Search<'a> {
    operations: &'a [Operation],
    timeline: &'a Timeline,
    /// The operation that claims each revision.
    claimed: BTreeMap<i64, usize>,
    /// Reads by the revision that they look at.
    readers: BTreeMap<i64, Vec<usize>>,
    /// Revocations by the revision that they answered.
    revoked: BTreeMap<i64, Vec<usize>>,
    open: Vec<Open>,
    /// Who may fill each gap, among the open.
    fillers: BTreeMap<i64, Vec<usize>>,
    facts: BTreeMap<i64, Vec<Fact>>,
    /// Where nothing happened, at revisions that nobody claims, as watches that saw nothing tell.
    quiet: BTreeMap<i64, Vec<Span>>,
    /// When each lease can have run out at the earliest.
    leases: BTreeMap<i64, std::time::Duration>,
    /// Until when each lease was certainly renewed.
    kept: BTreeMap<i64, std::time::Duration>,
    /// The keys that each lease may have had.
    leased: BTreeMap<i64, Vec<Span>>,
    /// The last revision at which each lease certainly lived.
    lived: BTreeMap<i64, i64>,
}

/// Why the walk cannot go on.
struct Dead {
    detail: String,
    /// The keys that matter for it; none when everything may.
    spans: Option<Vec<Span>>,
}

/// A revision on the way up.
struct Step {
    undo: Vec<Undo>,
    revision: Revision,
    /// The choice that was taken, when there was one: an index into the choices of the gap.
    choice: Option<usize>,
    used: Option<usize>,
    /// The leases whose time was up.
    expiring: Vec<i64>,
}

/// Checks that every operation fits into one order of revisions.
///
/// # Errors
/// [`Promise::Linearizable`], or [`Promise::Decidable`] when the search takes too long.
pub fn check(history: &History, rules: &Rules) -> Result<Replay, Violation> {
    let timeline = Timeline::of(history);
    let search = Search::prepare(history, &timeline, rules)?;
    search.check_refusals(rules)?;
    let revisions = search.run()?;
    Ok(Replay { revisions, timeline })
}

fn broken(detail: String) -> Violation {
    Violation::new(Promise::Linearizable, detail)
}

impl<'a> Search<'a> {
    fn prepare(
        history: &'a History,
        timeline: &'a Timeline,
        rules: &Rules,
    ) -> Result<Self, Violation> {
        let mut search = Search {
            operations: &history.operations,
            timeline,
            claimed: BTreeMap::new(),
            readers: BTreeMap::new(),
            revoked: BTreeMap::new(),
            open: Vec::new(),
            fillers: BTreeMap::new(),
            facts: BTreeMap::new(),
            quiet: BTreeMap::new(),
            leases: BTreeMap::new(),
            kept: BTreeMap::new(),
            leased: BTreeMap::new(),
            lived: BTreeMap::new(),
        };
        for (at, operation) in history.operations.iter().enumerate() {
            search.sort_in(at, operation, rules)?;
        }
        for (revision, event) in history.watches.iter().flat_map(|watch| {
            watch.items.iter().flat_map(|(_, item)| match item {
                Item::Events(revision, events) => {
                    events.iter().map(|event| (*revision, event)).collect::<Vec<_>>()
                }
                Item::Progress(_) | Item::Compacted(_) => Vec::new(),
            })
        }) {
            if event.kv.mod_revision != revision {
                let detail = format!(
                    "a watch delivers {:?} at revision {revision}, which says that it is of revision {}",
                    event.kv.key, event.kv.mod_revision
                );
                return Err(broken(detail));
            }
            let fact = Fact { kv: event.kv.clone(), deleted: event.deleted, no_value: false };
            search.learn(fact);
            if let Some(kv) = &event.prev_kv {
                search.learn(Fact { kv: kv.clone(), deleted: false, no_value: false });
            }
        }
        for facts in search.facts.values_mut() {
            facts.sort_by(|a, b| (&a.kv.key, a.deleted).cmp(&(&b.kv.key, b.deleted)));
            facts.dedup_by(|a, b| {
                a.kv == b.kv && a.deleted == b.deleted && a.no_value == b.no_value
            });
        }
        for spans in search.leased.values_mut() {
            tidy(spans);
        }
        search.find_fillers()?;
        history.watches.iter().for_each(|watch| search.hear_nothing(watch));
        Ok(search)
    }

    /// Learns from what a watch did not deliver. Whether it should have is checked elsewhere.
    fn hear_nothing(&mut self, watch: &Watch) {
        let revisions = watch.items.iter().filter_map(|(_, item)| match item {
            Item::Events(revision, _) => Some((*revision, true)),
            Item::Progress(revision) => Some((*revision, false)),
            Item::Compacted(_) => None,
        });
        let heard: BTreeSet<i64> =
            revisions.clone().filter(|(_, events)| *events).map(|(revision, _)| revision).collect();
        let Some(last) = revisions.clone().map(|(revision, _)| revision).max() else { return };
        let first = match watch.start {
            0 => revisions.map(|(revision, _)| revision).min().unwrap_or(last) + 1,
            start => start,
        };
        if first > last {
            return;
        }
        for (revision, _) in self.fillers.range(first..=last) {
            if !heard.contains(revision) {
                self.quiet.entry(*revision).or_default().push(watch.span.clone());
            }
        }
    }

    fn learn(&mut self, fact: Fact) {
        self.facts.entry(fact.kv.mod_revision).or_default().push(fact);
    }

    fn learn_from(&mut self, result: &OpResult, op: &Op) {
        match (result, op) {
            (OpResult::Range(found), Op::Range(range)) => {
                for kv in &found.kvs {
                    let kv = kv.clone();
                    self.learn(Fact { kv, deleted: false, no_value: range.keys_only });
                }
            }
            (OpResult::Put { prev_kv: Some(kv) }, _) => {
                self.learn(Fact { kv: kv.clone(), deleted: false, no_value: false });
            }
            (OpResult::Delete { prev_kvs, .. }, _) => {
                for kv in prev_kvs {
                    self.learn(Fact { kv: kv.clone(), deleted: false, no_value: false });
                }
            }
            (OpResult::Txn(result), Op::Txn(txn)) => self.learn_from_txn(result, txn),
            _ => {}
        }
    }

    fn learn_from_txn(&mut self, result: &TxnResult, txn: &Txn) {
        let ops = if result.succeeded { &txn.success } else { &txn.failure };
        for (result, op) in result.results.iter().zip(ops) {
            self.learn_from(result, op);
        }
    }

    /// Checks an operation against time alone, and puts it where the search finds it.
    fn sort_in(
        &mut self,
        at: usize,
        operation: &Operation,
        rules: &Rules,
    ) -> Result<(), Violation> {
        let floor = self.timeline.floor(operation.called);
        let behind = |revision: i64| {
            broken(format!(
                "{operation:?} answers with revision {revision}, although {floor} had been seen before it was asked"
            ))
        };
        match (&operation.input, &operation.output) {
            (Input::Range(range), Output::Range(found)) => {
                if !range.serializable && found.revision < floor {
                    return Err(behind(found.revision));
                }
                let looks_at = if range.revision > 0 { range.revision } else { found.revision };
                if looks_at > found.revision {
                    return Err(broken(format!("{operation:?} reads the future")));
                }
                self.readers.entry(looks_at).or_default().push(at);
                self.learn_from(&OpResult::Range(found.clone()), &Op::Range(range.clone()));
            }
            (Input::Txn(txn), Output::Txn(result)) => {
                self.learn_from_txn(result, txn);
                if !wrote(txn, result) {
                    if result.revision < floor {
                        return Err(behind(result.revision));
                    }
                    self.readers.entry(result.revision).or_default().push(at);
                } else if result.revision <= floor {
                    return Err(behind(result.revision));
                } else if let Some(other) = self.claimed.insert(result.revision, at) {
                    let other = &self.operations[other];
                    return Err(broken(format!("{operation:?} and {other:?} have one revision")));
                } else if self.timeline.proved(result.revision).order < operation.called.order {
                    return Err(broken(format!("{operation:?} was seen before it was asked for")));
                }
                self.learn_leases(txn, wrote(txn, result).then_some(result));
            }
            (Input::Txn(txn), Output::Unknown) if may_write(txn) => {
                let (mut writes, mut guards) = (Vec::new(), Vec::new());
                spans(txn, &mut writes, &mut guards);
                self.open.push(Open { at, writes, guards, revokes: None });
                self.learn_leases(txn, None);
            }
            (Input::LeaseRevoke(id), Output::Unknown) => {
                let revokes = Some(*id);
                self.open.push(Open { at, writes: Vec::new(), guards: Vec::new(), revokes });
            }
            (Input::LeaseRevoke(id), Output::Revision(revision)) => {
                if *revision < floor {
                    return Err(behind(*revision));
                }
                let lived = self.lived.entry(*id).or_default();
                *lived = (*lived).max(*revision);
                self.revoked.entry(*revision).or_default().push(at);
            }
            (Input::LeaseGrant(id, ttl), Output::Lease(_) | Output::Unknown) => {
                let least = rules.least(lease::seconds((*ttl).max(rules.min_lease_ttl)));
                self.leases.insert(*id, operation.called.time + least);
            }
            (Input::KeepAlive(id), Output::Lease(lease)) if lease.ttl > 0 => {
                let until = operation.called.time + rules.least(lease::seconds(lease.ttl));
                let kept = self.kept.entry(*id).or_default();
                *kept = (*kept).max(until);
            }
            _ => {}
        }
        Ok(())
    }

    /// Learns which keys leases may have, and until when they certainly lived.
    fn learn_leases(&mut self, txn: &Txn, result: Option<&TxnResult>) {
        for (ops, ran) in [
            (&txn.success, result.is_some_and(|result| result.succeeded)),
            (&txn.failure, result.is_some_and(|result| !result.succeeded)),
        ] {
            for op in ops {
                match op {
                    Op::Put { key, lease, .. } if *lease != 0 => {
                        self.leased.entry(*lease).or_default().push(Span::Key(key.clone()));
                        if let Some(result) = result.filter(|_| ran) {
                            let lived = self.lived.entry(*lease).or_default();
                            *lived = (*lived).max(result.revision);
                        }
                    }
                    Op::Txn(inner) => self.learn_leases(inner, None),
                    _ => {}
                }
            }
        }
    }

    fn leased(&self, id: i64) -> &[Span] {
        self.leased.get(&id).map(Vec::as_slice).unwrap_or_default()
    }

    fn txn(&self, at: usize) -> Option<&'a Txn> {
        match &self.operations[at].input {
            Input::Txn(txn) => Some(txn),
            _ => None,
        }
    }

    /// For every revision that nobody claims, who of the open may be it.
    fn find_fillers(&mut self) -> Result<(), Violation> {
        let none = Vec::new();
        for revision in 2..=self.timeline.last() {
            if self.claimed.contains_key(&revision) {
                continue;
            }
            let facts = self.facts.get(&revision).unwrap_or(&none);
            let proved = self.timeline.proved(revision);
            let fits = |open: &Open| {
                let operation = &self.operations[open.at];
                operation.called.order < proved.order
                    && self.timeline.floor(operation.called) < revision
                    && match self.txn(open.at) {
                        Some(txn) => facts.iter().all(|fact| fact.possible(txn)),
                        None => {
                            let keys = open.revokes.map_or(&[][..], |id| self.leased(id));
                            let has = |key: &Bytes| keys.iter().any(|span| span.contains(key));
                            facts.iter().all(|fact| fact.deleted && has(&fact.kv.key))
                        }
                    }
                    && open
                        .revokes
                        .is_none_or(|id| self.lived.get(&id).is_none_or(|lived| *lived < revision))
            };
            let fillers: Vec<usize> = self
                .open
                .iter()
                .enumerate()
                .filter(|(_, open)| fits(open))
                .map(|(at, _)| at)
                .collect();
            if fillers.is_empty()
                && let Some(fact) = facts.iter().find(|fact| !fact.deleted)
            {
                let Fact { kv, .. } = fact;
                return Err(broken(format!(
                    "revision {revision} is {kv:?}, which nobody can have written"
                )));
            }
            self.fillers.insert(revision, fillers);
        }
        // Where only one fits, it is not free for the others.
        let mut fixed: Vec<(i64, usize)> = self
            .fillers
            .iter()
            .filter(|(revision, fillers)| {
                let put = |facts: &Vec<Fact>| facts.iter().any(|fact| !fact.deleted);
                fillers.len() == 1 && self.facts.get(revision).is_some_and(put)
            })
            .map(|(revision, fillers)| (*revision, fillers[0]))
            .collect();
        let taken: BTreeSet<usize> = fixed.iter().map(|(_, filler)| *filler).collect();
        for (revision, fillers) in &mut self.fillers {
            if fixed.binary_search_by_key(revision, |(at, _)| *at).is_err() {
                fillers.retain(|filler| !taken.contains(filler));
            }
        }
        fixed.sort_by_key(|(_, filler)| *filler);
        if let Some(pair) = fixed.windows(2).find(|pair| pair[0].1 == pair[1].1) {
            let operation = &self.operations[self.open[pair[0].1].at];
            return Err(broken(format!(
                "{operation:?} happened twice, at revisions {} and {}",
                pair[0].0, pair[1].0
            )));
        }
        Ok(())
    }

    /// Checks what was refused for a revision's sake.
    fn check_refusals(&self, rules: &Rules) -> Result<(), Violation> {
        let mut compactions: Vec<(u64, u64, i64)> = self
            .operations
            .iter()
            .filter_map(|operation| match (&operation.input, &operation.output) {
                (Input::Compact(revision), Output::Revision(_)) => {
                    Some((operation.called.order, operation.returned.order, *revision))
                }
                (Input::Compact(revision), Output::Unknown) => {
                    Some((operation.called.order, u64::MAX, *revision))
                }
                _ => None,
            })
            .collect();
        compactions.sort_unstable();
        for operation in self.operations {
            let Input::Range(range) = &operation.input else { continue };
            let revision = range.revision;
            match &operation.output {
                Output::Refused(Error::Compacted) if !rules.compacts_itself => {
                    let before = compactions.iter().take_while(|c| c.0 < operation.returned.order);
                    if !before.into_iter().any(|c| c.2 > revision) {
                        return Err(broken(format!(
                            "{operation:?} is refused, but nobody compacted revision {revision}"
                        )));
                    }
                }
                Output::Refused(Error::FutureRevision)
                    if !range.serializable && revision <= self.timeline.floor(operation.called) =>
                {
                    return Err(broken(format!(
                        "{operation:?} is refused, but revision {revision} had been seen"
                    )));
                }
                Output::Range(_) if revision > 0 && !range.serializable => {
                    let gone =
                        |c: &&(u64, u64, i64)| c.1 < operation.called.order && c.2 > revision;
                    if let Some((.., until)) = compactions.iter().find(gone) {
                        return Err(broken(format!(
                            "{operation:?} reads below revision {until}, which had been compacted"
                        )));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn run(&self) -> Result<Vec<Revision>, Violation> {
        let mut model = Model::default();
        let mut steps: Vec<Step> = Vec::new();
        let mut used: BTreeSet<usize> = BTreeSet::new();
        let mut budget = BUDGET;
        let mut deepest: Option<(i64, String)> = None;
        if let Err(dead) = self.settle(&mut model, &mut Vec::new()) {
            return Err(broken(dead.detail));
        }
        let last = self.timeline.last();
        // Which choice of the next revision to begin with.
        let mut from = 0;
        // What mattered when the search came back to a revision: it still does further back.
        let mut conflicts: BTreeMap<i64, Option<Vec<Span>>> = BTreeMap::new();
        while model.revision < last {
            match self.climb(&mut model, &used, from, &mut budget) {
                Ok(step) => {
                    used.extend(step.used);
                    steps.push(step);
                    from = 0;
                    conflicts.remove(&(model.revision + 1));
                }
                Err(dead) => {
                    let at = model.revision + 1;
                    if deepest.as_ref().is_none_or(|(deepest, _)| *deepest < at) {
                        deepest = Some((at, dead.detail.clone()));
                    }
                    let mut relevant = dead.spans.map(|spans| self.close(spans));
                    if from > 0
                        && let Some(before) = conflicts.remove(&at)
                    {
                        relevant = union(relevant, before);
                    }
                    let found = relevant.clone();
                    let Some(again) =
                        self.retreat(&mut model, &mut steps, &mut used, relevant, &mut budget)
                    else {
                        return Err(broken(deepest.map_or(dead.detail, |(_, detail)| detail)));
                    };
                    from = again;
                    let at = model.revision + 1;
                    let before = conflicts.remove(&at).unwrap_or(Some(Vec::new()));
                    conflicts.insert(at, union(before, found));
                }
            }
            if budget == 0 {
                let at =
                    deepest.map_or(String::new(), |(at, detail)| format!(" at {at}: {detail}"));
                let detail = format!("after {BUDGET} attempts the search stands{at}");
                return Err(Violation::new(Promise::Decidable, detail));
            }
        }
        Ok(steps.into_iter().map(|step| step.revision).collect())
    }

    /// Makes the next revision.
    fn climb(
        &self,
        model: &mut Model,
        used: &BTreeSet<usize>,
        from: usize,
        budget: &mut usize,
    ) -> Result<Step, Dead> {
        let revision = model.revision + 1;
        if let Some(at) = self.claimed.get(&revision) {
            *budget = budget.saturating_sub(1);
            return self.claim(model, *at, revision);
        }
        let fillers = self.fillers.get(&revision).map(Vec::as_slice).unwrap_or_default();
        let revoked = self.revoked.get(&revision).map(Vec::as_slice).unwrap_or_default();
        let proved = self.timeline.proved(revision).time;
        let mut expiring: Vec<i64> = model.keys.values().map(|kv| kv.lease).collect();
        expiring.sort_unstable();
        expiring.dedup();
        expiring.retain(|id| {
            self.leases.get(id).is_some_and(|ends| *ends <= proved)
                && self.lived.get(id).is_none_or(|lived| *lived < revision)
        });
        // A lease that was kept alive is the last to be suspected.
        let kept = |id: &i64| self.kept.get(id).is_some_and(|until| *until > proved);
        expiring.sort_by_key(kept);
        let due = expiring.partition_point(|id| !kept(id));
        let (r, f) = (revoked.len(), fillers.len());
        let mut choice = from;
        let mut why: Option<String> = None;
        let mut conflicts: Option<Vec<Span>> = Some(Vec::new());
        let mut tried: Vec<&Input> = Vec::new();
        loop {
            // First who said that it was them, then whose time was up, then who may have.
            let (cause, filler) = if let Some(at) = revoked.get(choice) {
                (Cause::Operation(*at), None)
            } else if let Some(id) = expiring[..due].get(choice - r) {
                (Cause::Expiry(*id), None)
            } else if let Some(filler) = fillers.get(choice - r - due) {
                (Cause::Operation(self.open[*filler].at), Some(*filler))
            } else if let Some(id) = expiring.get(choice - r - f) {
                (Cause::Expiry(*id), None)
            } else {
                let detail = why.unwrap_or_else(|| {
                    format!("nobody can have made revision {revision}{}", self.seen(revision))
                });
                let choices = self.choices(revision, &expiring);
                let spans = union(self.why_nobody(revision, choices), conflicts);
                return Err(Dead { detail, spans });
            };
            choice += 1;
            *budget = budget.saturating_sub(1);
            if let Some(filler) = filler {
                // Of those that ask for the same, one is as good as another.
                let input = &self.operations[self.open[filler].at].input;
                if used.contains(&filler) || tried.contains(&input) {
                    continue;
                }
                tried.push(input);
            }
            match self.fill(model, cause, revision) {
                Ok((undo, made)) => {
                    let choice = Some(choice);
                    return Ok(Step { undo, revision: made, choice, used: filler, expiring });
                }
                Err(dead) => {
                    why = Some(dead.detail);
                    conflicts = conflicts.zip(dead.spans).map(|(mut all, more)| {
                        all.extend(more);
                        all
                    });
                }
            }
            if *budget == 0 {
                return Err(Dead { detail: "no time left".into(), spans: None });
            }
        }
    }

    /// The keys that any choice for this revision may write.
    fn choices(&self, revision: i64, expiring: &[i64]) -> Vec<Span> {
        let fillers = self.fillers.get(&revision).map(Vec::as_slice).unwrap_or_default();
        let revoked = self.revoked.get(&revision).map(Vec::as_slice).unwrap_or_default();
        let ends = revoked.iter().filter_map(|at| match self.operations[*at].input {
            Input::LeaseRevoke(id) => Some(id),
            _ => None,
        });
        let ends = ends
            .chain(expiring.iter().copied())
            .chain(fillers.iter().filter_map(|filler| self.open[*filler].revokes));
        let mut choices: Vec<Span> = ends.flat_map(|id| self.leased(id)).cloned().collect();
        choices.extend(fillers.iter().flat_map(|filler| &self.open[*filler].writes).cloned());
        tidy(&mut choices);
        choices
    }

    /// The keys that matter when no choice fits: those of what was seen, those of the choices, and
    /// those of the leases that might have been a choice.
    fn why_nobody(&self, revision: i64, mut spans: Vec<Span>) -> Option<Vec<Span>> {
        let facts = self.facts.get(&revision)?;
        for filler in self.fillers.get(&revision).into_iter().flatten() {
            spans.extend(self.open[*filler].guards.iter().cloned());
        }
        for fact in facts {
            let own = Span::Key(fact.kv.key.clone());
            if fact.deleted {
                let leases = self.leased.values().filter(|keys| keys.contains(&own));
                spans.extend(leases.flatten().cloned());
            }
            spans.push(own);
        }
        tidy(&mut spans);
        Some(spans)
    }

    fn seen(&self, revision: i64) -> String {
        match self.facts.get(&revision).and_then(|facts| facts.first()) {
            Some(fact) => format!(", of which {:?} was seen (deleted: {})", fact.kv, fact.deleted),
            None => ", of which nothing was seen".into(),
        }
    }

    /// Makes the revision that an operation claims.
    fn claim(&self, model: &mut Model, at: usize, revision: i64) -> Result<Step, Dead> {
        let operation = &self.operations[at];
        let (Input::Txn(txn), Output::Txn(answer)) = (&operation.input, &operation.output) else {
            return Err(Dead { detail: format!("{operation:?} claims a revision"), spans: None });
        };
        let wrong = |why: String| {
            let mut spans = Vec::new();
            read_spans(txn, &mut spans);
            Dead { detail: format!("{operation:?} {why}"), spans: Some(spans) }
        };
        let Some((result, events, undo)) = model.apply(txn) else {
            let mut dead = wrong("should have been refused".into());
            let mut leases = Vec::new();
            put_leases(txn, &mut leases);
            let keys = leases.iter().flat_map(|id| self.leased(*id)).cloned();
            dead.spans.get_or_insert_default().extend(keys);
            return Err(dead);
        };
        if bare(result.clone()) != bare(answer.clone()) || model.revision != revision {
            model.back(undo);
            return Err(wrong(format!("should have answered {result:?}")));
        }
        let made = Revision { cause: Cause::Operation(at), events, called: operation.called };
        let (undo, made) = self.seal(model, vec![undo], made)?;
        Ok(Step { undo, revision: made, choice: None, used: None, expiring: Vec::new() })
    }

    /// Makes a revision that nobody claims, if this cause can.
    fn fill(
        &self,
        model: &mut Model,
        cause: Cause,
        revision: i64,
    ) -> Result<(Vec<Undo>, Revision), Dead> {
        let never = |keys: Vec<Span>| Dead {
            detail: format!("{cause:?} cannot be revision {revision}"),
            spans: Some(keys),
        };
        let mut matter = Vec::new();
        let (events, undo, called) = match cause {
            Cause::Expiry(id) => {
                matter.extend_from_slice(self.leased(id));
                let (events, undo) = model.end_lease(id);
                (events, undo, Moment::default())
            }
            Cause::Operation(at) => match &self.operations[at].input {
                Input::LeaseRevoke(id) => {
                    matter.extend_from_slice(self.leased(*id));
                    let (events, undo) = model.end_lease(*id);
                    (events, undo, self.operations[at].called)
                }
                Input::Txn(txn) => {
                    read_spans(txn, &mut matter);
                    let mut leases = Vec::new();
                    put_leases(txn, &mut leases);
                    matter.extend(leases.iter().flat_map(|id| self.leased(*id)).cloned());
                    match model.apply(txn) {
                        Some((_, events, undo)) => (events, undo, self.operations[at].called),
                        None => return Err(never(matter)),
                    }
                }
                _ => return Err(never(matter)),
            },
        };
        if events.is_empty() {
            model.back(undo);
            return Err(never(matter));
        }
        self.seal(model, vec![undo], Revision { cause, events, called })
            .map_err(|dead| Dead { detail: dead.detail, spans: union(dead.spans, Some(matter)) })
    }

    /// Checks what was seen of the newest revision and at it, and takes it back if that is wrong.
    fn seal(
        &self,
        model: &mut Model,
        mut undo: Vec<Undo>,
        made: Revision,
    ) -> Result<(Vec<Undo>, Revision), Dead> {
        let revision = model.revision;
        let facts = self.facts.get(&revision).map(Vec::as_slice).unwrap_or_default();
        let quiet = self.quiet.get(&revision).map(Vec::as_slice).unwrap_or_default();
        let loud = |event: &&Event| quiet.iter().any(|span| span.contains(&event.kv.key));
        let sealed = match facts.iter().find(|fact| !fact.fits(&made.events)) {
            _ if made.events.iter().any(|event| loud(&event)) => Err(Dead {
                detail: format!("revision {revision} wrote where a watch saw nothing: {made:?}"),
                spans: Some(Vec::new()),
            }),
            Some(fact) => Err(Dead {
                detail: format!(
                    "revision {revision} is {:?}, but somebody saw {:?} (deleted: {})",
                    made.events, fact.kv, fact.deleted
                ),
                spans: Some(vec![Span::Key(fact.kv.key.clone())]),
            }),
            None => self.settle(model, &mut undo),
        };
        match sealed {
            Ok(()) => Ok((undo, made)),
            Err(dead) => {
                undo.into_iter().rev().for_each(|undo| model.back(undo));
                Err(dead)
            }
        }
    }

    /// Checks the answers that were given at the newest revision.
    fn settle(&self, model: &mut Model, undo: &mut Vec<Undo>) -> Result<(), Dead> {
        let revision = model.revision;
        for at in self.revoked.get(&revision).into_iter().flatten() {
            let operation = &self.operations[*at];
            let Input::LeaseRevoke(id) = operation.input else { continue };
            if model.ended.contains(&id) {
                continue;
            }
            let (events, back) = model.end_lease(id);
            undo.push(back);
            if let Some(event) = events.first() {
                return Err(Dead {
                    detail: format!("{operation:?} left {:?} behind", event.kv.key),
                    spans: Some(vec![Span::Key(event.kv.key.clone())]),
                });
            }
        }
        for at in self.readers.get(&revision).into_iter().flatten() {
            self.answer(model, &self.operations[*at])?;
        }
        Ok(())
    }

    fn answer(&self, model: &mut Model, operation: &Operation) -> Result<(), Dead> {
        match (&operation.input, &operation.output) {
            (Input::Range(range), Output::Range(found)) => {
                let should = read(&model.keys, range);
                if (&should.kvs, should.count, should.more) == (&found.kvs, found.count, found.more)
                {
                    return Ok(());
                }
                let detail = format!("{operation:?} should have answered {should:?}");
                Err(Dead { detail, spans: Some(vec![range.span.clone()]) })
            }
            (Input::Txn(txn), Output::Txn(answer)) => {
                let mut spans = Vec::new();
                read_spans(txn, &mut spans);
                let spans = Some(spans);
                let Some((result, events, undo)) = model.apply(txn) else {
                    let detail = format!("{operation:?} should have been refused");
                    return Err(Dead { detail, spans });
                };
                model.back(undo);
                if events.is_empty() && bare(result.clone()) == bare(answer.clone()) {
                    return Ok(());
                }
                let detail = format!("{operation:?} should have answered {result:?}");
                Err(Dead { detail, spans })
            }
            _ => Ok(()),
        }
    }

    /// All keys on which these depend through guards of open transactions.
    fn close(&self, mut spans: Vec<Span>) -> Vec<Span> {
        let mut pulled = BTreeSet::new();
        loop {
            let before = pulled.len();
            for (at, open) in self.open.iter().enumerate() {
                if !open.guards.is_empty()
                    && !pulled.contains(&at)
                    && overlap_any(&open.writes, &spans)
                {
                    pulled.insert(at);
                    spans.extend(open.guards.iter().cloned());
                }
            }
            if pulled.len() == before {
                return spans;
            }
        }
    }

    /// Goes back to the last choice that matters. Returns with which to go on there.
    fn retreat(
        &self,
        model: &mut Model,
        steps: &mut Vec<Step>,
        used: &mut BTreeSet<usize>,
        relevant: Option<Vec<Span>>,
        budget: &mut usize,
    ) -> Option<usize> {
        while let Some(step) = steps.pop() {
            step.undo.into_iter().rev().for_each(|undo| model.back(undo));
            if let Some(filler) = step.used {
                used.remove(&filler);
            }
            *budget = budget.saturating_sub(1);
            let Some(choice) = step.choice else { continue };
            let matters = relevant.as_ref().is_none_or(|relevant| {
                let choices = self.choices(model.revision + 1, &step.expiring);
                overlap_any(&choices, relevant)
            });
            if matters {
                return Some(choice);
            }
        }
        None
    }
}
