//! The network between members: slow, lossy, cut in one direction or in both.
//!
//! What is sent over a link keeps its order while a connection lasts. A connection may break: what
//! is under way is lost or arrives whenever it likes beside what comes over the next connection.

use crate::random::Random;
use bytes::Bytes;
use dhow_kv::admin::Member;
use dhow_server::{Store, Transport};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;

use super::clock::SimClock;
use super::disk::SimDisk;

#[derive(Debug, Clone, Copy)]
struct Link {
    cut: bool,
    /// How many messages in a thousand are lost, and how many break the connection.
    loss: u64,
    delay: Duration,
    /// The last message arrives then.
    last: Instant,
    connection: u64,
}

/// Who receives.
#[derive(Debug, Clone)]
pub struct Station {
    /// The member's identifier.
    pub id: u64,
    /// The member.
    pub store: Weak<Store>,
    /// Its clock, which tells whether it is busy.
    pub clock: Arc<SimClock>,
    /// Its disk, which tells whether its power is on.
    pub disk: SimDisk,
}

#[derive(Debug)]
struct State {
    random: Random,
    links: BTreeMap<(usize, usize), Link>,
    stations: BTreeMap<usize, Station>,
    sent: u64,
    delivered: u64,
}

/// See the module. Clones are the same network.
#[derive(Debug, Clone)]
pub struct Net(Arc<Mutex<State>>);

impl Net {
    /// A network between `members`, in which all is well.
    pub fn new(members: usize, random: Random) -> Self {
        let mut links = BTreeMap::new();
        for from in 0..members {
            for to in 0..members {
                let link = Link {
                    cut: false,
                    loss: 0,
                    delay: Duration::from_micros(300),
                    last: Instant::now(),
                    connection: 0,
                };
                links.insert((from, to), link);
            }
        }
        let state = State { random, links, stations: BTreeMap::new(), sent: 0, delivered: 0 };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells who stands where.
    pub fn station(&self, at: usize, station: Option<Station>) {
        let mut state = self.state();
        match station {
            Some(station) => drop(state.stations.insert(at, station)),
            None => drop(state.stations.remove(&at)),
        }
        // What was under way to or from it is gone.
        for ((from, to), link) in &mut state.links {
            if *from == at || *to == at {
                link.connection += 1;
            }
        }
    }

    /// Cuts one direction.
    pub fn cut(&self, from: usize, to: usize) {
        if let Some(link) = self.state().links.get_mut(&(from, to)) {
            link.cut = true;
        }
    }

    /// Makes all links lossy and slow.
    pub fn weather(&self, loss: u64, delay: Duration) {
        for link in self.state().links.values_mut() {
            link.loss = loss;
            link.delay = delay;
        }
    }

    /// Mends everything.
    pub fn heal(&self) {
        for link in self.state().links.values_mut() {
            link.cut = false;
            link.loss = 0;
            link.delay = Duration::from_micros(300);
        }
    }

    /// How many messages were sent, and how many arrived.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.sent, state.delivered)
    }

    fn send(&self, from: usize, from_id: u64, after: Instant, to_id: u64, message: Bytes) {
        let mut state = self.state();
        let state = &mut *state;
        state.sent += 1;
        let found = state.stations.iter().find(|(_, station)| station.id == to_id);
        let Some((to, _)) = found.map(|(at, station)| (*at, station.clone())) else { return };
        let Some(link) = state.links.get_mut(&(from, to)) else { return };
        let spread = link.delay.as_micros() as u64;
        let delay = Duration::from_micros(spread / 2 + state.random.below(spread * 2));
        let mut at = after.max(Instant::now()) + delay;
        if link.loss > 0 && state.random.chance(link.loss, 1000) {
            if state.random.chance(1, 2) {
                return;
            }
            // A new connection: the old one's messages may still come, and lose their place.
            link.last = Instant::now();
            if state.random.chance(1, 2) {
                link.connection += 1;
            }
        }
        at = at.max(link.last);
        link.last = at;
        let connection = link.connection;
        let net = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            let station = {
                let mut state = net.state();
                let Some(link) = state.links.get(&(from, to)) else { return };
                if link.cut || link.connection > connection {
                    return;
                }
                state.delivered += 1;
                state.stations.get(&to).cloned()
            };
            let Some(station) = station.filter(|station| station.id == to_id) else { return };
            loop {
                let busy = station.clock.busy_until();
                if busy <= Instant::now() {
                    break;
                }
                tokio::time::sleep_until(busy).await;
            }
            if station.disk.is_dead() {
                return;
            }
            if let Some(store) = station.store.upgrade() {
                store.receive(from_id, message);
                station.clock.busy(station.disk.take_busy());
            }
        });
    }
}

/// One member's way into the network, for one life of it.
#[derive(Debug)]
pub struct Port {
    /// The network.
    pub net: Net,
    /// The member's place.
    pub at: usize,
    /// The member's identifier, once it is known.
    pub id: std::sync::OnceLock<u64>,
    /// The member's clock.
    pub clock: Arc<SimClock>,
    /// The member's disk.
    pub disk: SimDisk,
    /// Set when this life has ended.
    pub ended: AtomicBool,
}

impl Transport for Port {
    fn send(&self, to: u64, message: Bytes) {
        // What is told rests on what was written before, so it waits until that is done.
        self.clock.busy(self.disk.take_busy());
        let Some(id) = self.id.get() else { return };
        if !self.ended.load(Ordering::Relaxed) && !self.disk.is_dead() {
            self.net.send(self.at, *id, self.clock.busy_until(), to, message);
        }
    }

    fn members(&self, _: &[Member]) {}
}
