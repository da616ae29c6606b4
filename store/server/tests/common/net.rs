//! Several members in one process, on disks in memory and a network that can be cut, in the virtual
//! time of a paused runtime.

use bytes::Bytes;
use dhow_bolt::etcd::Snapshot;
use dhow_clock::disk::Memory;
use dhow_clock::{BoxFuture, Clock, SharedClock};
use dhow_kv::admin::{Admin, Member};
use dhow_server::{Cluster, OpenError, Options, Start, Store, Transport, restore};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// The runtime's clock, with numbers that only look random.
#[derive(Debug)]
pub struct Virtual {
    start: tokio::time::Instant,
    drawn: AtomicU64,
}

impl Virtual {
    pub fn shared(seed: u64) -> SharedClock {
        Arc::new(Self { start: tokio::time::Instant::now(), drawn: AtomicU64::new(seed << 32) })
    }
}

impl Clock for Virtual {
    fn now(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, period: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(period))
    }

    fn random(&self) -> u64 {
        let mut x = self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_add(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
}

type Packet = (u64, u64, Bytes);

/// The network: delivers in order, after a moment, unless the way is cut.
#[derive(Debug)]
pub struct Net {
    packets: mpsc::UnboundedSender<Packet>,
    stores: Mutex<BTreeMap<u64, Arc<Store>>>,
    cut: Mutex<BTreeSet<u64>>,
    /// Ways from one member to another that lead nowhere.
    severed: Mutex<BTreeSet<(u64, u64)>>,
    pub delivered: AtomicUsize,
}

impl Net {
    pub fn new() -> Arc<Self> {
        let (packets, mut arriving) = mpsc::unbounded_channel::<Packet>();
        let net = Arc::new(Self {
            packets,
            stores: Mutex::default(),
            cut: Mutex::default(),
            severed: Mutex::default(),
            delivered: AtomicUsize::new(0),
        });
        let weak = Arc::downgrade(&net);
        tokio::spawn(async move {
            while let Some((from, to, message)) = arriving.recv().await {
                let Some(net) = weak.upgrade() else { return };
                let severed = net.severed.lock().unwrap().contains(&(from, to));
                if severed || net.is_cut(from) || net.is_cut(to) {
                    continue;
                }
                let store = net.stores.lock().unwrap().get(&to).cloned();
                if let Some(store) = store {
                    net.delivered.fetch_add(1, Ordering::Relaxed);
                    store.receive(from, message);
                }
            }
        });
        net
    }

    fn is_cut(&self, id: u64) -> bool {
        self.cut.lock().unwrap().contains(&id)
    }

    /// Parts these members from all the others, until [`Net::heal`].
    pub fn part(&self, some: &[u64], others: &[u64]) {
        let mut severed = self.severed.lock().unwrap();
        for (one, other) in some.iter().flat_map(|one| others.iter().map(move |other| (one, other)))
        {
            severed.extend([(*one, *other), (*other, *one)]);
        }
    }

    pub fn heal(&self) {
        self.severed.lock().unwrap().clear();
    }

    pub fn cut(&self, id: u64, cut: bool) {
        let mut all = self.cut.lock().unwrap();
        if cut {
            all.insert(id)
        } else {
            all.remove(&id)
        };
    }
}

#[derive(Debug)]
pub struct Way {
    net: Arc<Net>,
    own: u64,
    pub members: Mutex<Vec<Member>>,
}

impl Transport for Way {
    fn send(&self, to: u64, message: Bytes) {
        let _ = self.net.packets.send((self.own, to, message));
    }

    fn members(&self, members: &[Member]) {
        *self.members.lock().unwrap() = members.to_vec();
    }
}

/// A member that can be stopped and started again.
pub struct Node {
    pub id: u64,
    pub name: String,
    pub disk: Memory,
    pub store: Option<Arc<Store>>,
    pub options: Options,
    seed: u64,
}

/// Several members.
pub struct Nodes {
    pub net: Arc<Net>,
    pub nodes: Vec<Node>,
    pub options: Options,
}

pub fn urls(name: &str) -> Vec<String> {
    vec![format!("http://{name}:2380")]
}

impl Nodes {
    /// Starts a new cluster.
    pub fn start(count: usize, options: &Options) -> Self {
        let net = Net::new();
        let names: Vec<String> = (1..=count).map(|n| format!("m{n}")).collect();
        let initial: Vec<_> = names.iter().map(|name| (name.clone(), urls(name))).collect();
        let mut all = Self { net, nodes: Vec::new(), options: options.clone() };
        for name in &names {
            let mut node = all.describe(name, initial.clone(), None);
            all.open(&mut node).unwrap();
            all.nodes.push(node);
        }
        all
    }

    /// Starts a cluster each of whose members was restored from a snapshot, not all the same.
    pub fn restored(snapshots: &[Vec<u8>], options: &Options) -> Self {
        let net = Net::new();
        let names: Vec<String> = (1..=snapshots.len()).map(|n| format!("m{n}")).collect();
        let initial: Vec<_> = names.iter().map(|name| (name.clone(), urls(name))).collect();
        let mut all = Self { net, nodes: Vec::new(), options: options.clone() };
        for (name, snapshot) in names.iter().zip(snapshots) {
            let mut node = all.describe(name, initial.clone(), None);
            let (disk, clock) = (Arc::new(node.disk.clone()), Virtual::shared(node.seed));
            let mut snapshot = Snapshot::open_unchecked(Cursor::new(snapshot)).unwrap();
            let path = Path::new("/data");
            restore(disk, path, &clock, &node.options, &mut snapshot, 0).unwrap();
            all.open(&mut node).unwrap();
            all.nodes.push(node);
        }
        all
    }

    fn describe(&self, name: &str, initial: Vec<(String, Vec<String>)>, id: Option<u64>) -> Node {
        let way = |own| Way { net: self.net.clone(), own, members: Mutex::default() };
        let mut cluster = Cluster::new(name, initial, Arc::new(way(0)));
        cluster.peer_urls = urls(name);
        cluster.client_urls = vec![format!("http://{name}:2379")];
        let first = cluster.first_members();
        let id = id.unwrap_or_else(|| first.iter().find(|member| member.name == name).unwrap().id);
        cluster.transport = Arc::new(way(id));
        let options = Options { inline: true, cluster: Some(cluster), ..self.options.clone() };
        let seed = self.nodes.len() as u64 + 1;
        Node { id, name: name.into(), disk: Memory::new(), store: None, options, seed }
    }

    pub fn open(&self, node: &mut Node) -> Result<(), OpenError> {
        node.seed += 100;
        let clock = Virtual::shared(node.seed);
        let disk = Arc::new(node.disk.clone());
        let store = Store::open_on(disk, Path::new("/data"), clock, node.options.clone())?;
        self.net.stores.lock().unwrap().insert(node.id, store.clone());
        node.store = Some(store);
        Ok(())
    }

    /// The power goes at one member.
    pub fn crash(&mut self, at: usize) {
        let id = self.nodes[at].id;
        self.net.stores.lock().unwrap().remove(&id);
        let node = &mut self.nodes[at];
        node.disk = node.disk.crash(node.seed);
        node.store = None;
    }

    pub fn restart(&mut self, at: usize) {
        let mut node = self.nodes.remove(at);
        self.open(&mut node).unwrap();
        self.nodes.insert(at, node);
    }

    /// Starts a member that was added to the cluster.
    pub fn join(&mut self, name: &str, id: u64) -> usize {
        let introduction = self.some().introduction();
        let mut node = self.describe(name, Vec::new(), Some(id));
        if let Some(cluster) = &mut node.options.cluster {
            cluster.start = Start::Existing(Some(introduction));
        }
        self.open(&mut node).unwrap();
        assert_eq!(node.store.as_ref().unwrap().identity().member_id, id);
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// The member has another identifier than its URLs would give it.
    pub fn adopt(&mut self, at: usize, id: u64) {
        let way = Way { net: self.net.clone(), own: id, members: Mutex::default() };
        let node = &mut self.nodes[at];
        node.id = id;
        if let Some(cluster) = &mut node.options.cluster {
            cluster.transport = Arc::new(way);
        }
    }

    pub fn store(&self, at: usize) -> &Arc<Store> {
        self.nodes[at].store.as_ref().unwrap()
    }

    pub fn some(&self) -> &Arc<Store> {
        self.nodes.iter().find_map(|node| node.store.as_ref()).unwrap()
    }

    /// Waits until those that run and are reached agree on a leader, and tells which one it is.
    pub async fn leader(&self) -> usize {
        for _ in 0..1000 {
            let running: Vec<&Node> = self
                .nodes
                .iter()
                .filter(|node| node.store.is_some() && !self.net.is_cut(node.id))
                .collect();
            let leads = |node: &Node| node.store.as_ref().unwrap().pulse().leader;
            let leader = leads(running[0]);
            if leader != 0
                && running.iter().all(|node| leads(node) == leader)
                && running.iter().any(|node| node.id == leader)
            {
                return self.nodes.iter().position(|node| node.id == leader).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no leader");
    }

    /// Another than these.
    pub fn other(&self, than: &[usize]) -> usize {
        (0..self.nodes.len()).find(|at| !than.contains(at)).unwrap()
    }

    /// Waits until a member has applied a revision.
    pub async fn reaches(&self, at: usize, revision: i64) {
        use dhow_kv::Backend;
        for _ in 0..2000 {
            if self.store(at).revision() >= revision {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("member {at} is at {} and not at {revision}", self.store(at).revision());
    }
}
