//! One simulation from its seed to its verdict.

use crate::check::members::{self, Holding};
use crate::check::{self, Promise, Rules, Violation, lease};
use crate::clients::{Client, Recorder, WatchClient, ask, read_history};
use crate::history::{Input, Output};
use crate::nemesis::{self, Tally};
use crate::operator::Operator;
use crate::random::Random;
use crate::users::{Grants, Keeper, User};
use crate::world::{Shape, World};
use bytes::Bytes;
use dhow_kv::admin::Admin as _;
use dhow_kv::{Backend as _, Error, Op, Range, Span, Txn};
use dhow_server::Store;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What to simulate.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan<'a> {
    /// Everything follows from it.
    pub seed: u64,
    /// How long trouble goes on, in virtual time.
    pub time: Duration,
    /// How many members; 0 lets the seed decide.
    pub members: usize,
    /// Where to write the history, for people.
    pub dump: Option<&'a str>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// How many members there were.
    pub members: usize,
    /// Differs between runs that differ.
    pub digest: u64,
    /// How many requests were made.
    pub operations: usize,
    /// How many of them nobody knows the end of.
    pub unknown: usize,
    /// How many watches there were.
    pub watches: usize,
    /// The last revision.
    pub revision: i64,
    /// How often a member lost its power.
    pub crashes: u64,
    /// Messages sent and delivered.
    pub messages: (u64, u64),
    /// What went wrong, and how often.
    pub troubles: Tally,
    /// The broken promise, if there is one.
    pub violation: Option<Violation>,
}

/// Runs a simulation in this thread.
///
/// # Panics
/// When tokio cannot make a runtime.
pub fn run(plan: Plan<'_>) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input and output needs nothing that could fail");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, simulate(plan))
}

async fn simulate(plan: Plan<'_>) -> Report {
    let mut random = Random::new(plan.seed);
    let members = match plan.members {
        0 => *random.pick(&[1, 3, 3, 3, 5]),
        members => members,
    };
    // Half of the worlds have an operator who changes the members.
    let spare = if random.chance(1, 2) { 3 } else { 0 };
    // A drift of up to two thousandths, a hundred times what real clocks have.
    let shape = Shape { members, spare, strict: random.chance(2, 3), drift: 2000 };
    let world = World::new(shape, random.fork());
    let rules = Rules { drift_thousandths: 5, ..Rules::default() };
    let recorder = Recorder::default();
    let mut outcome: Result<Tally, Violation> = Ok(Tally::new());
    for at in 0..members {
        if let Err(error) = world.start(at) {
            outcome = Err(Violation::new(Promise::Recovery, error));
        }
    }
    let clients = random.between(3, 8) as u32;
    let rest = Duration::from_millis(*random.pick(&[20, 100, 400]));
    for number in 1..=clients {
        let client = Client::new(number, world.clone(), recorder.clone(), random.fork(), rest);
        tokio::task::spawn_local(client.run());
    }
    for number in 0..5 {
        let (world, recorder, random) = (world.clone(), recorder.clone(), random.fork());
        let client =
            WatchClient { number: 100 + number, world, recorder, random, all: number == 0 };
        tokio::task::spawn_local(client.run());
    }
    let stopped = Rc::new(Cell::new(false));
    let operator = (spare > 0).then(|| {
        let operator = Operator::new(world.clone(), random.fork(), stopped.clone());
        tokio::task::spawn_local(operator.run())
    });
    let grants = Grants::default();
    if random.chance(1, 2) {
        let (world, recorder) = (world.clone(), recorder.clone());
        let (grants, stopped) = (grants.clone(), stopped.clone());
        let keeper = Keeper {
            world: world.clone(),
            recorder: recorder.clone(),
            random: random.fork(),
            grants: grants.clone(),
            stopped: stopped.clone(),
        };
        tokio::task::spawn_local(keeper.run());
        for number in 200..202 {
            let user = User {
                number,
                world: world.clone(),
                recorder: recorder.clone(),
                random: random.fork(),
                grants: grants.clone(),
                stopped: stopped.clone(),
            };
            tokio::task::spawn_local(user.run());
        }
    }
    if outcome.is_ok() {
        let until = Instant::now() + plan.time;
        outcome = nemesis::run(&world, random.fork(), until)
            .await
            .map_err(|error| Violation::new(Promise::Recovery, error));
    }
    stopped.set(true);
    let outcome = match outcome {
        Ok(mut tally) => {
            let settled = settle(&world, &recorder, &rules, operator, &mut tally).await;
            if !grants.is_empty() {
                tally.insert("permissions given and taken", grants.len() as u64);
            }
            settled.map(|end| (tally, Some(end)))
        }
        Err(violation) => Err(violation),
    };
    recorder.stop();
    let history = recorder.history();
    let mut troubles = Tally::new();
    let verdict = outcome.and_then(|(tally, end)| {
        troubles = tally;
        let replay = check::all(&history, &rules)?;
        grants.check(&history.operations)?;
        let Some(end) = end else { return Ok(()) };
        lease::gone(&history, end.recovered, Duration::from_secs(5), &rules)?;
        members::check(&end.holdings, &replay)
    });
    if let Some(path) = plan.dump {
        let mut text = String::new();
        for operation in &history.operations {
            text.push_str(&format!("{operation:?}\n"));
        }
        for watch in &history.watches {
            text.push_str(&format!("{watch:?}\n"));
        }
        if let Err(error) = std::fs::write(path, text) {
            tracing::warn!(%error, path, "the history is not written");
        }
    }
    let unknown = history.operations.iter().filter(|o| o.output == Output::Unknown).count();
    Report {
        seed: plan.seed,
        members,
        digest: history.digest(),
        operations: history.operations.len(),
        unknown,
        watches: history.watches.len(),
        revision: check::timeline::Timeline::of(&history).last(),
        crashes: world.crashes(),
        messages: world.net().counts(),
        troubles,
        violation: verdict.err(),
    }
}

struct End {
    recovered: Duration,
    holdings: Vec<Holding>,
}

/// Mends everything, and waits until all is well and all leases are gone.
async fn settle(
    world: &World,
    recorder: &Recorder,
    rules: &Rules,
    operator: Option<JoinHandle<Result<Operator, Violation>>>,
    tally: &mut Tally,
) -> Result<End, Violation> {
    let failed = |what: String| Violation::new(Promise::Recovery, what);
    world.net().heal();
    for at in 0..world.places() {
        world.disk(at).heal();
    }
    // Those that could not write, too: starting them again is what the store says to do.
    for at in 0..world.places() {
        world.crash(at);
        world.start(at).map_err(|error| failed(format!("member {at} does not start: {error}")))?;
    }
    if let Some(operator) = operator {
        let operator = operator.await.map_err(|error| failed(error.to_string()))?;
        let mut operator = operator?;
        operator.settle().await?;
        tally.extend(operator.tally);
    }
    let members: Vec<usize> = (0..world.places()).filter(|at| world.is_taken(*at)).collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    for at in members.iter().copied() {
        let mut n = 0;
        loop {
            n += 1;
            let put = Op::put("settled", format!("{at}-{n}"));
            let txn = Txn { success: vec![put], ..Txn::default() };
            if let Output::Txn(_) = ask(world, recorder, 0, at, Input::Txn(txn)).await {
                break;
            }
            if Instant::now() > deadline {
                let what = "no write within a minute after everything was mended";
                return Err(failed(format!("member {at}: {what}")));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    let recovered = recorder.now().time;
    recorder.stop();
    // The clients' last requests, and the longest lease with what is allowed for it.
    let drift = 1.0 + rules.drift_thousandths as f64 / 1000.0;
    let wait =
        Duration::from_secs(12) + Duration::from_secs_f64(10.0 * drift) + Duration::from_secs(6);
    tokio::time::sleep(wait).await;
    let everything = Range::all(Span::From(Bytes::from_static(&[0])));
    for at in members.iter().copied() {
        let input = Input::Range(everything.clone());
        if !matches!(ask(world, recorder, 0, at, input).await, Output::Range(_)) {
            // A request may be lost even now, but not twice.
            let input = Input::Range(everything.clone());
            let output = ask(world, recorder, 0, at, input).await;
            if !matches!(output, Output::Range(_)) {
                return Err(failed(format!("member {at} does not serve a read: {output:?}")));
            }
        }
    }
    let newest = members.iter().filter_map(|at| world.store(*at)).map(|s| s.revision()).max();
    let newest = newest.unwrap_or(1);
    let mut holdings = Vec::new();
    for at in members.iter().copied() {
        let Some(store) = world.store(at) else { continue };
        let deadline = Instant::now() + Duration::from_secs(30);
        while store.revision() < newest && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let start = store.status().compacted.max(1);
        if !read_history(world, recorder, at, start, newest).await {
            return Err(failed(format!("a watch on member {at} does not reach revision {newest}")));
        }
        let mut here = everything.clone();
        here.serializable = true;
        let found = store.range(here).await.map_err(|error| failed(error.to_string()))?;
        let leases = store.leases().await.map_err(|error| failed(error.to_string()))?;
        if !leases.is_empty() {
            let what = format!("member {at} still has leases {leases:?}");
            return Err(Violation::new(Promise::LeaseGone, what));
        }
        let (revision, kvs) = (found.revision, found.kvs);
        let rest = rest(&store).await.map_err(|error| failed(error.to_string()))?;
        holdings.push(Holding { member: at as u64, revision, kvs, leases, rest, hash: None });
    }
    Ok(End { recovered, holdings })
}

/// The members, users and roles that a member knows.
async fn rest(store: &Store) -> Result<String, Error> {
    let members = store.members(true).await?;
    let (users, roles) = (store.users(), store.roles());
    let granted: Vec<_> = roles.iter().map(|role| store.role(role)).collect();
    let rules = store.auth_status();
    Ok(format!("{members:?} {users:?} {roles:?} {granted:?} {rules:?}"))
}
