//! What goes wrong, when, and for how long: by seed.

use crate::random::Random;
use crate::world::World;
use crate::world::disk::Trouble;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How often what went wrong.
pub type Tally = BTreeMap<&'static str, u64>;

/// Makes trouble until `until`, and tells how often which. It leaves the world as it is then.
///
/// # Errors
/// When a member refuses to start although nothing is wrong with its disk.
pub async fn run(world: &World, mut random: Random, until: Instant) -> Result<Tally, String> {
    let mut tally = Tally::new();
    let members = world.places();
    // Who is down, and when it comes back.
    let mut down: BTreeMap<usize, Instant> = BTreeMap::new();
    // Whose disk fails: a store that could not write stays so until it is started again.
    let mut doomed: BTreeMap<usize, Instant> = BTreeMap::new();
    let mut heal_at: Option<Instant> = None;
    let mut next = Instant::now() + Duration::from_secs(2);
    loop {
        let now = Instant::now();
        if now >= until {
            return Ok(tally);
        }
        doomed.retain(|at, when| {
            if *when <= now {
                world.disk(*at).trouble(Trouble::PowerLoss(0));
            }
            *when > now
        });
        for at in world.bury() {
            *tally.entry("power loss while writing").or_default() += 1;
            down.entry(at).or_insert(now + Duration::from_millis(random.between(0, 8000)));
        }
        if heal_at.is_some_and(|at| at <= now) {
            heal_at = None;
            world.net().heal();
            for at in 0..members {
                world.disk(at).heal();
            }
        }
        let back: Vec<usize> =
            down.iter().filter(|(_, at)| **at <= now).map(|(member, _)| *member).collect();
        for at in back {
            down.remove(&at);
            world.disk(at).heal();
            world.start(at).map_err(|error| format!("member {at} does not start: {error}"))?;
        }
        if now >= next {
            next = now + Duration::from_millis(random.between(200, 15_000));
            let what = trouble(world, &mut random, &mut down, &mut doomed);
            *tally.entry(what).or_default() += 1;
            if heal_at.is_none() {
                heal_at = Some(now + Duration::from_millis(random.between(500, 20_000)));
            }
        }
        let wake = down.values().copied().chain(heal_at).chain([next, until]).min().unwrap_or(next);
        // A disk may lose its power at any time, so somebody looks now and then.
        tokio::time::sleep_until(wake.min(now + Duration::from_millis(50))).await;
    }
}

fn trouble(
    world: &World,
    random: &mut Random,
    down: &mut BTreeMap<usize, Instant>,
    doomed: &mut BTreeMap<usize, Instant>,
) -> &'static str {
    let members = world.places();
    let at = random.below(members as u64) as usize;
    let soon = |random: &mut Random| {
        let most = if random.chance(1, 5) { 40_000 } else { 4000 };
        Instant::now() + Duration::from_millis(random.between(0, most))
    };
    match random.below(15) {
        0..2 => {
            world.crash(at);
            down.insert(at, soon(random));
            "power loss"
        }
        2..4 => {
            world.disk(at).trouble(Trouble::PowerLoss(random.below(60)));
            "power loss to come"
        }
        4 => {
            for at in 0..members {
                world.crash(at);
                down.insert(at, soon(random));
            }
            "power loss everywhere"
        }
        5 => {
            let failing = match random.chance(1, 2) {
                true => Trouble::SyncFails(random.below(20)),
                false => Trouble::WriteFails(random.below(20)),
            };
            world.disk(at).trouble(failing);
            doomed.insert(at, soon(random) + Duration::from_secs(3));
            "failing disk"
        }
        6 => {
            world.disk(at).trouble(Trouble::Full(random.below(20_000)));
            "full disk"
        }
        7 => {
            let most = *random.pick(&[20, 200, 1500]);
            world.disk(at).trouble(Trouble::Slow(Duration::from_millis(most)));
            "slow disk"
        }
        8 => {
            if let Some(clock) = world.clock(at) {
                clock.step(random.between(0, 20_000) as i64 - 10_000);
            }
            "clock step"
        }
        9 => {
            if let Some(clock) = world.clock(at) {
                clock.busy(Duration::from_millis(random.between(100, 6000)));
            }
            "pause"
        }
        10 if members > 1 => {
            for other in 0..members {
                world.net().cut(at, other);
                world.net().cut(other, at);
            }
            "one member cut off"
        }
        11 if members > 1 => {
            let inside: Vec<bool> = (0..members).map(|_| random.chance(1, 2)).collect();
            for from in 0..members {
                for to in (0..members).filter(|to| inside[*to] != inside[from]) {
                    world.net().cut(from, to);
                }
            }
            "partition"
        }
        12 if members > 1 => {
            let other = random.below(members as u64) as usize;
            match random.chance(1, 2) {
                true => world.net().cut(at, other),
                false => (0..members).for_each(|other| world.net().cut(at, other)),
            }
            "one-way cut"
        }
        13 if members > 1 => {
            let delay = Duration::from_millis(random.between(1, 120));
            world.net().weather(random.between(1, 200), delay);
            "bad network"
        }
        _ => "nothing",
    }
}
