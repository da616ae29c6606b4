//! Members on simulated disks, clocks and a simulated network, in one thread and virtual time.

pub mod clock;
pub mod disk;
pub mod net;

use crate::random::Random;
use clock::SimClock;
use dhow_clock::BoxFuture;
use dhow_kv::Error;
use dhow_server::{Cluster, Introduction, Options, Retention, Start, Store};
use disk::SimDisk;
use net::{Net, Port, Station};
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Where the store's files lie on a simulated disk.
const HOME: &str = "/data";

/// A member while it runs.
#[derive(Debug)]
struct Life {
    store: Arc<Store>,
    clock: Arc<SimClock>,
    disk: SimDisk,
    port: Arc<Port>,
    /// Requests that run on the member end with it.
    end: Rc<End>,
}

/// The end of a life. It wakes those who wait for it in their order, which tokio's `watch` does not.
#[derive(Debug, Default)]
struct End {
    come: Cell<bool>,
    told: Notify,
}

impl End {
    fn come(&self) {
        self.come.set(true);
        self.told.notify_waiters();
    }

    async fn wait(&self) {
        let told = self.told.notified();
        tokio::pin!(told);
        told.as_mut().enable();
        if !self.come.get() {
            told.await;
        }
    }
}

/// Who stands at a place.
#[derive(Debug, Clone)]
struct Member {
    name: String,
    urls: Vec<String>,
    start: Start,
}

#[derive(Debug)]
struct Place {
    disk: SimDisk,
    /// `None` where nobody stands yet, or any more.
    member: Option<Member>,
    /// How many have been invited here.
    invited: u64,
    life: Option<Life>,
}

/// What kind of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// How many members it begins with.
    pub members: usize,
    /// How many more places there are, for members to come.
    pub spare: usize,
    /// Whether changes of the membership that could cost the quorum are refused.
    pub strict: bool,
    /// By how many millionths clocks may run fast or slow.
    pub drift: u64,
}

/// Where the first members are reached.
fn first_urls(at: usize) -> Vec<String> {
    vec![format!("http://member-{at}:2380")]
}

/// What all parts of a simulation share. Clones are the same world.
#[derive(Debug, Clone)]
pub struct World(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    places: RefCell<Vec<Place>>,
    random: RefCell<Random>,
    net: Net,
    options: Options,
    shape: Shape,
    crashes: RefCell<u64>,
}

impl World {
    /// A world in which nobody runs yet.
    pub fn new(shape: Shape, mut random: Random) -> Self {
        let places = shape.members + shape.spare;
        let net = Net::new(places, random.fork());
        let place = |at: usize| Place {
            disk: SimDisk::new(random.fork()),
            member: (at < shape.members).then(|| Member {
                name: format!("m{at}"),
                urls: first_urls(at),
                start: Start::New,
            }),
            invited: 0,
            life: None,
        };
        let places = RefCell::new((0..places).map(place).collect());
        let options = Options {
            // Small files, so that everything happens often.
            segment_bytes: 16 << 10,
            checkpoint_bytes: 48 << 10,
            quota_bytes: 64 << 20,
            // Many leases outlive this.
            lease_checkpoint: Some(Duration::from_secs(1)),
            retention: None::<Retention>,
            compaction_checksums: true,
            inline: true,
            ..Options::default()
        };
        let random = RefCell::new(random);
        Self(Rc::new(Inner { places, random, net, options, shape, crashes: RefCell::new(0) }))
    }

    /// How many places there are, taken or not.
    pub fn places(&self) -> usize {
        self.0.places.borrow().len()
    }

    /// Whether somebody stands there, running or not.
    pub fn is_taken(&self, at: usize) -> bool {
        self.0.places.borrow()[at].member.is_some()
    }

    /// Where others reach the member at a place.
    pub fn url(&self, at: usize) -> Option<String> {
        let places = self.0.places.borrow();
        places[at].member.as_ref().and_then(|member| member.urls.first().cloned())
    }

    /// Where others will reach a member that comes to a free place. No two get the same.
    pub fn invite(&self, at: usize) -> String {
        let mut places = self.0.places.borrow_mut();
        places[at].invited += 1;
        format!("http://member-{at}-{}:2380", places[at].invited)
    }

    /// A member that was added comes to its place and starts.
    ///
    /// # Errors
    /// Why the store refused to start.
    pub fn join(&self, at: usize, url: &str, told: Introduction) -> Result<(), String> {
        let name = url.trim_start_matches("http://").trim_end_matches(":2380").to_owned();
        let start = Start::Existing(Some(told));
        let member = Member { name, urls: vec![url.to_owned()], start };
        // Whatever was wrong with the place, it comes with a disk of its own.
        let disk = SimDisk::new(self.0.random.borrow_mut().fork());
        {
            let mut places = self.0.places.borrow_mut();
            (places[at].disk, places[at].member) = (disk, Some(member));
        }
        self.start(at)
    }

    /// A member that was removed goes, and its disk with it.
    pub fn leave(&self, at: usize) {
        self.end(at);
        self.0.places.borrow_mut()[at].member = None;
    }

    /// The network.
    pub fn net(&self) -> &Net {
        &self.0.net
    }

    /// How often a member lost its power.
    pub fn crashes(&self) -> u64 {
        *self.0.crashes.borrow()
    }

    /// The store of a member, when it runs.
    pub fn store(&self, at: usize) -> Option<Arc<Store>> {
        self.0.places.borrow()[at].life.as_ref().map(|life| life.store.clone())
    }

    /// A member's disk.
    pub fn disk(&self, at: usize) -> SimDisk {
        self.0.places.borrow()[at].disk.clone()
    }

    /// A member's clock, when it runs.
    pub fn clock(&self, at: usize) -> Option<Arc<SimClock>> {
        self.0.places.borrow()[at].life.as_ref().map(|life| life.clock.clone())
    }

    /// Starts the member at a place on what its disk holds, if there is one that does not run.
    ///
    /// # Errors
    /// Why the store refused to start.
    pub fn start(&self, at: usize) -> Result<(), String> {
        let (disk, member) = match &self.0.places.borrow()[at] {
            Place { life: None, disk, member: Some(member), .. } => (disk.clone(), member.clone()),
            _ => return Ok(()),
        };
        let (random, rate) = {
            let mut random = self.0.random.borrow_mut();
            let drift = self.0.shape.drift;
            (random.fork(), 1_000_000 - drift + random.below(2 * drift + 1))
        };
        let clock = Arc::new(SimClock::new(random, rate));
        let port = Arc::new(Port {
            net: self.0.net.clone(),
            at,
            id: OnceLock::new(),
            clock: clock.clone(),
            disk: disk.clone(),
            ended: AtomicBool::new(false),
        });
        let mut options = self.0.options.clone();
        let Shape { members, spare, strict, .. } = self.0.shape;
        if members + spare > 1 {
            let initial = (0..members).map(|n| (format!("m{n}"), first_urls(n))).collect();
            let mut cluster = Cluster::new(member.name, initial, port.clone());
            cluster.peer_urls = member.urls;
            cluster.client_urls = vec![format!("http://client-{at}:2379")];
            cluster.start = member.start;
            cluster.strict_reconfig_check = strict;
            options.cluster = Some(cluster);
        }
        let opened =
            Store::open_on(Arc::new(disk.clone()), Path::new(HOME), clock.clone(), options);
        let mut places = self.0.places.borrow_mut();
        match opened {
            Ok(store) => {
                let id = store.identity().member_id;
                let _ = port.id.set(id);
                let station = Station {
                    id,
                    store: Arc::downgrade(&store),
                    clock: clock.clone(),
                    disk: disk.clone(),
                };
                self.0.net.station(at, Some(station));
                places[at].life = Some(Life { store, clock, disk, port, end: Rc::default() });
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Takes a member's power away. It does not come back by itself.
    pub fn crash(&self, at: usize) {
        if self.is_taken(at) {
            self.end(at);
            *self.0.crashes.borrow_mut() += 1;
        }
    }

    fn end(&self, at: usize) {
        let life = {
            let mut places = self.0.places.borrow_mut();
            let after = places[at].disk.crash();
            places[at].disk = after;
            places[at].life.take()
        };
        self.0.net.station(at, None);
        if let Some(life) = life {
            life.port.ended.store(true, Ordering::Relaxed);
            life.end.come();
        }
    }

    /// Crashes those whose disk has lost its power by itself. Returns who that was.
    pub fn bury(&self) -> Vec<usize> {
        let dead = |at: &usize| {
            let places = self.0.places.borrow();
            places[*at].member.is_some() && places[*at].disk.is_dead()
        };
        let dead: Vec<usize> = (0..self.places()).filter(dead).collect();
        dead.iter().for_each(|at| self.crash(*at));
        dead
    }

    /// Runs a request on a member, as a connection to it would. `None` when no answer came: the
    /// member is down, lost its power meanwhile, or took too long.
    pub async fn request<T>(
        &self,
        at: usize,
        patience: Duration,
        work: impl for<'a> FnOnce(&'a Store) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Option<Result<T, Error>> {
        let delay = |world: &Self| {
            let mut random = world.0.random.borrow_mut();
            (Duration::from_micros(random.between(50, 2000)), random.chance(3, 1000))
        };
        let deadline = Instant::now() + patience;
        let (there, lost) = delay(self);
        tokio::time::sleep(there).await;
        if lost {
            tokio::time::sleep_until(deadline).await;
            return None;
        }
        let (store, clock, disk, end) = {
            let places = self.0.places.borrow();
            let life = places[at].life.as_ref()?;
            (life.store.clone(), life.clock.clone(), life.disk.clone(), life.end.clone())
        };
        let served = async {
            tokio::time::sleep_until(clock.busy_until()).await;
            if disk.is_dead() {
                return None;
            }
            let answer = work(&store).await;
            clock.busy(disk.take_busy());
            tokio::time::sleep_until(clock.busy_until()).await;
            (!disk.is_dead()).then_some(answer)
        };
        let answer = tokio::select! {
            biased;
            () = end.wait() => None,
            answer = served => answer,
            () = tokio::time::sleep_until(deadline) => None,
        };
        let (back, lost) = delay(self);
        tokio::time::sleep(back).await;
        if lost {
            tokio::time::sleep_until(deadline).await;
            return None;
        }
        answer
    }

    /// Completes when this life of a member ends.
    pub async fn end_of(&self, at: usize) {
        let end = self.0.places.borrow()[at].life.as_ref().map(|life| life.end.clone());
        if let Some(end) = end {
            end.wait().await;
        }
    }

    /// Whether what a member says now counts: it runs and has power.
    pub fn speaks(&self, at: usize) -> bool {
        let places = self.0.places.borrow();
        places[at].life.as_ref().is_some_and(|life| !life.disk.is_dead())
    }
}
