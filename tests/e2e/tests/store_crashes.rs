//! Three real members under load, killed (-9) at random again and again: what clients were told is
//! checked by the simulation's checkers. `STORE_CRASHES` says how often to kill; `STORE_SEED` which
//! member when. Members started again must find everything that was acknowledged.

use bytes::Bytes;
use dhow_clock::System;
use dhow_kv::{
    Backend as _, Compare, Error, Op, Order, Range, Span, Target, Txn, WatchEvent, WatchRequest,
};
use dhow_remote::{Options, Remote};
use dhow_sim::check::{self, Rules};
use dhow_sim::history::{History, Input, Item, Moment, Operation, Output, Watch, is_refusal};
use dhow_sim::random::Random;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MEMBERS: usize = 3;
const CLIENTS: u32 = 6;
const KEYS: u64 = 10;

/// The program under test.
fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("DHOW_BIN") {
        return std::path::absolute(path).expect("a path");
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo).args(["build", "--quiet", "--package", "dhow"]).status();
    assert!(built.expect("cargo runs").success(), "dhow does not build");
    let me = std::env::current_exe().expect("this test has a path");
    let deps = me.parent().expect("tests lie in deps");
    deps.parent().expect("deps lies in the profile's directory").join("dhow")
}

struct Cluster {
    program: PathBuf,
    home: tempfile::TempDir,
    ports: Vec<(u16, u16)>,
    children: Vec<Option<Child>>,
}

impl Cluster {
    fn new() -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let held: Vec<TcpListener> = (0..2 * MEMBERS).map(|_| free()).collect();
        let port = |n: usize| held[n].local_addr().expect("it is bound").port();
        let ports = (0..MEMBERS).map(|n| (port(2 * n), port(2 * n + 1))).collect();
        drop(held);
        let home = tempfile::tempdir().expect("a directory");
        let children = (0..MEMBERS).map(|_| None).collect();
        Self { program: program(), home, ports, children }
    }

    fn start(&mut self, n: usize) {
        let (client, peer) = self.ports[n];
        let initial: Vec<String> =
            (0..MEMBERS).map(|n| format!("m{n}=http://127.0.0.1:{}", self.ports[n].1)).collect();
        let data = self.home.path().join(format!("m{n}"));
        let log = self.log(n);
        let log = std::fs::File::options().create(true).append(true).open(log).expect("a log");
        let child = Command::new(&self.program)
            .arg("store")
            .args(["--name", &format!("m{n}")])
            .arg("--data-dir")
            .arg(&data)
            .args(["--listen-client-urls", &format!("http://127.0.0.1:{client}")])
            .args(["--advertise-client-urls", &format!("http://127.0.0.1:{client}")])
            .args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("http://127.0.0.1:{peer}")])
            .args(["--initial-cluster", &initial.join(",")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("one more handle"))
            .stderr(log)
            .spawn()
            .expect("dhow store starts");
        self.children[n] = Some(child);
    }

    fn log(&self, n: usize) -> PathBuf {
        self.home.path().join(format!("m{n}.log"))
    }

    /// As the kernel does when it has no memory left.
    fn kill(&mut self, n: usize) {
        if let Some(mut child) = self.children[n].take() {
            let ended = child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "member {n} ended by itself: {}", tail(&self.log(n)));
            child.kill().expect("it is our child");
            child.wait().expect("it is our child");
        }
    }

    fn endpoints(&self) -> Vec<String> {
        self.ports.iter().map(|(client, _)| format!("http://127.0.0.1:{client}")).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Where all clients write down what happens.
struct Recorder {
    began: Instant,
    order: AtomicU64,
    newest: AtomicU64,
    stopped: AtomicBool,
    history: Mutex<History>,
}

impl Recorder {
    fn now(&self) -> Moment {
        // The time is taken within the order, so that both agree.
        let order = self.order.fetch_add(1, Ordering::SeqCst);
        Moment { order, time: self.began.elapsed() }
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

async fn connect(endpoints: &[String]) -> Arc<Remote> {
    let options = Options {
        endpoints: endpoints.to_vec(),
        tls: None,
        user: None,
        timeout: Duration::from_secs(3),
        attempt: Duration::from_secs(1),
        connect: Duration::from_millis(500),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match Remote::connect(options.clone(), System::shared()).await {
            Ok(remote) => return remote,
            Err(error) if Instant::now() > deadline => panic!("no connection: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn ask(remote: &Remote, recorder: &Recorder, client: u32, input: Input) -> Output {
    let called = recorder.now();
    let answer = match input.clone() {
        Input::Range(range) => remote.range(range).await.map(Output::Range),
        Input::Txn(txn) => remote.txn(txn).await.map(Output::Txn),
        _ => Err(Error::Timeout),
    };
    let output = match answer {
        Ok(output) => output,
        Err(error) if is_refusal(&error) => Output::Refused(error),
        Err(_) => Output::Unknown,
    };
    let revision = match &output {
        Output::Range(found) => found.revision,
        Output::Txn(result) => result.revision,
        _ => 0,
    };
    recorder.newest.fetch_max(u64::try_from(revision).unwrap_or(0), Ordering::SeqCst);
    let operation =
        Operation { client, member: 0, called, returned: recorder.now(), input, output };
    let output = operation.output.clone();
    recorder.history.lock().expect("nobody panics with it").operations.push(operation);
    output
}

async fn client(endpoints: Vec<String>, recorder: Arc<Recorder>, number: u32, mut random: Random) {
    let remote = connect(&endpoints).await;
    let mut seen: BTreeMap<Bytes, i64> = BTreeMap::new();
    let mut written = 0;
    while !recorder.stopped() {
        let key: Bytes = format!("k{}", random.below(KEYS)).into();
        let span = Span::Key(key.clone());
        written += 1;
        let value = format!("{number}-{written}");
        let input = match random.below(10) {
            0..3 => Input::Range(Range::all(span)),
            3 => Input::Range(Range::all(Span::prefix("k"))),
            4 => {
                let delete = Op::Delete { span, prev_kv: true };
                Input::Txn(Txn { success: vec![delete], ..Txn::default() })
            }
            5..7 => {
                let known = seen.get(&key).copied().unwrap_or(0);
                let target = Target::ModRevision(known);
                Input::Txn(Txn {
                    compare: vec![Compare { span: span.clone(), order: Order::Equal, target }],
                    success: vec![Op::put(key, value)],
                    failure: vec![Op::Range(Range::all(span))],
                })
            }
            _ => Input::Txn(Txn { success: vec![Op::put(key, value)], ..Txn::default() }),
        };
        match ask(&remote, &recorder, number, input).await {
            Output::Range(found) => {
                seen.extend(found.kvs.into_iter().map(|kv| (kv.key, kv.mod_revision)));
            }
            Output::Unknown => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => {}
        }
    }
}

/// Watches everything from the first revision on until `stopped` and all is seen.
async fn watcher(endpoints: Vec<String>, recorder: Arc<Recorder>, number: u32) {
    let remote = connect(&endpoints).await;
    let span = Span::From(Bytes::from_static(&[0]));
    let called = recorder.now();
    let request = WatchRequest { span: span.clone(), start_revision: 1, prev_kv: true };
    let mut watcher = remote.watch(request).expect("a watch");
    let opened = recorder.now();
    let (start, prev_kv, items) = (1, true, Vec::new());
    let mut watch =
        Watch { client: number, member: 0, called, opened, span, start, prev_kv, items };
    let mut until = None;
    let mut reached = 0;
    loop {
        if recorder.stopped() {
            let newest = recorder.newest.load(Ordering::SeqCst);
            if reached >= newest {
                break;
            }
            let deadline = *until.get_or_insert(Instant::now() + Duration::from_secs(30));
            assert!(Instant::now() < deadline, "the watch stays at {reached}, short of {newest}");
        }
        let item = tokio::time::timeout(Duration::from_millis(200), watcher.next()).await;
        let moment = recorder.now();
        match item {
            Err(_) => watcher.request_progress(),
            Ok(Some(WatchEvent::Events { revision, events })) => {
                reached = reached.max(revision as u64);
                watch.items.push((moment, Item::Events(revision, events)));
            }
            Ok(Some(WatchEvent::Progress(revision))) => {
                reached = reached.max(revision as u64);
                watch.items.push((moment, Item::Progress(revision)));
            }
            Ok(other) => panic!("the watch ends with {other:?}"),
        }
    }
    recorder.history.lock().expect("nobody panics with it").watches.push(watch);
}

#[test]
fn killed_members_lose_nothing_and_contradict_nobody() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let times = number("STORE_CRASHES", 10);
    let seed = number("STORE_SEED", u64::from(std::process::id()));
    println!("{times} crashes; STORE_SEED={seed}");
    let mut random = Random::new(seed);
    let mut cluster = Cluster::new();
    (0..MEMBERS).for_each(|n| cluster.start(n));
    let recorder = Arc::new(Recorder {
        began: Instant::now(),
        order: AtomicU64::new(1),
        newest: AtomicU64::new(1),
        stopped: AtomicBool::new(false),
        history: Mutex::default(),
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut tasks = Vec::new();
    for number in 1..=CLIENTS {
        let (endpoints, recorder) = (cluster.endpoints(), recorder.clone());
        tasks.push(runtime.spawn(client(endpoints, recorder, number, random.fork())));
    }
    for number in 101..=102 {
        tasks.push(runtime.spawn(watcher(cluster.endpoints(), recorder.clone(), number)));
    }
    let newest = || recorder.newest.load(Ordering::SeqCst);
    e2e::wait_for(|| newest() > 50, Duration::from_secs(60), "the first writes");
    for crash in 0..times {
        let first = random.below(MEMBERS as u64) as usize;
        cluster.kill(first);
        // Sometimes a second one, and sometimes all, go with it.
        let more = [0, 0, 0, 1, 2][random.below(5) as usize];
        (1..=more).for_each(|n| cluster.kill((first + n) % MEMBERS));
        std::thread::sleep(Duration::from_millis(random.below(400)));
        (0..=more).for_each(|n| cluster.start((first + n) % MEMBERS));
        let before = newest();
        let what = format!("writes after crash {crash} (STORE_SEED={seed})");
        e2e::wait_for(|| newest() > before + 20, Duration::from_secs(60), &what);
        std::thread::sleep(Duration::from_millis(random.below(300)));
    }
    recorder.stopped.store(true, Ordering::SeqCst);
    for task in tasks {
        runtime.block_on(task).expect("no client panics");
    }
    let history = recorder.history.lock().expect("all have ended").clone();
    let open = history.operations.iter().filter(|o| o.output == Output::Unknown).count();
    println!("{} requests, {open} open, revision {}", history.operations.len(), newest());
    if let Err(violation) = check::all(&history, &Rules::default()) {
        let kept = cluster.home.path().display().to_string();
        panic!("STORE_SEED={seed}, data in {kept}: {violation}");
    }
    // Each member by itself holds the same.
    let ask_one = |n: usize| {
        let endpoint = vec![cluster.endpoints().swap_remove(n)];
        runtime.block_on(async {
            let remote = connect(&endpoint).await;
            let range = Range::all(Span::From(Bytes::from_static(&[0])));
            remote.range(range).await.expect("a healthy member answers")
        })
    };
    let first = ask_one(0);
    for n in 1..MEMBERS {
        let other = ask_one(n);
        assert_eq!((first.revision, &first.kvs), (other.revision, &other.kvs), "member {n}");
    }
}
