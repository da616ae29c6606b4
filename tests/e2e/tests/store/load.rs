//! Clients that load a store, what they were told, and what must be true of it.
#![allow(dead_code, reason = "each test file uses some")]

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
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const CLIENTS: u32 = 6;
const KEYS: u64 = 10;

/// The program under test.
pub fn program() -> PathBuf {
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

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Where all clients write down what happens.
pub struct Recorder {
    began: Instant,
    order: AtomicU64,
    newest: AtomicU64,
    stopped: AtomicBool,
    history: Mutex<History>,
}

impl Recorder {
    pub fn now(&self) -> Moment {
        // The time is taken within the order, so that both agree.
        let order = self.order.fetch_add(1, Ordering::SeqCst);
        Moment { order, time: self.began.elapsed() }
    }

    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

pub async fn connect(endpoints: &[String]) -> Arc<Remote> {
    let options = Options {
        timeout: Duration::from_secs(3),
        attempt: Duration::from_secs(1),
        connect: Duration::from_millis(500),
        ..Options::new(endpoints)
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

pub async fn ask(remote: &Remote, recorder: &Recorder, client: u32, input: Input) -> Output {
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

pub async fn client(
    endpoints: Vec<String>,
    recorder: Arc<Recorder>,
    number: u32,
    mut random: Random,
) {
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
pub async fn watcher(endpoints: Vec<String>, recorder: Arc<Recorder>, number: u32) {
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

/// Clients and watchers that run until they are stopped.
pub struct Load {
    pub recorder: Arc<Recorder>,
    runtime: Runtime,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts to load the store at these endpoints. The clients' threads are made by this one, and
    /// so live in its namespaces.
    pub fn start(endpoints: &[String], random: &mut Random) -> Self {
        let recorder = Arc::new(Recorder {
            began: Instant::now(),
            order: AtomicU64::new(1),
            newest: AtomicU64::new(1),
            stopped: AtomicBool::new(false),
            history: Mutex::default(),
        });
        let runtime = Runtime::new().expect("a runtime");
        let mut tasks = Vec::new();
        for number in 1..=CLIENTS {
            let (endpoints, recorder) = (endpoints.to_vec(), recorder.clone());
            tasks.push(runtime.spawn(client(endpoints, recorder, number, random.fork())));
        }
        for number in 101..=102 {
            tasks.push(runtime.spawn(watcher(endpoints.to_vec(), recorder.clone(), number)));
        }
        let load = Self { recorder, runtime, tasks };
        e2e::wait_for(|| load.newest() > 50, Duration::from_secs(60), "the first writes");
        load
    }

    /// The newest revision that anybody was told.
    pub fn newest(&self) -> u64 {
        self.recorder.newest.load(Ordering::SeqCst)
    }

    /// Waits until so many more revisions are made.
    pub fn advances(&self, by: u64, what: &str) {
        let before = self.newest();
        e2e::wait_for(|| self.newest() > before + by, Duration::from_secs(60), what);
    }

    /// Runs something beside the clients.
    pub fn beside<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Ends the load, and checks what the clients were told and that all members hold the same.
    pub fn check(mut self, endpoints: &[String], about: &str) {
        self.recorder.stopped.store(true, Ordering::SeqCst);
        for task in std::mem::take(&mut self.tasks) {
            self.runtime.block_on(task).expect("no client panics");
        }
        let history = self.recorder.history.lock().expect("all have ended").clone();
        let open = history.operations.iter().filter(|o| o.output == Output::Unknown).count();
        println!("{} requests, {open} open, revision {}", history.operations.len(), self.newest());
        if let Err(violation) = check::all(&history, &Rules::default()) {
            panic!("{about}: {violation}");
        }
        // Each member by itself holds the same.
        let ask_one = |endpoint: &String| {
            self.runtime.block_on(async {
                let remote = connect(std::slice::from_ref(endpoint)).await;
                let range = Range::all(Span::From(Bytes::from_static(&[0])));
                remote.range(range).await.expect("a healthy member answers")
            })
        };
        let first = ask_one(&endpoints[0]);
        for endpoint in &endpoints[1..] {
            let other = ask_one(endpoint);
            assert_eq!((first.revision, &first.kvs), (other.revision, &other.kvs), "{endpoint}");
        }
    }
}

/// A number of the environment.
pub fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}
