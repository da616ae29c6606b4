//! Real etcd processes for tests: each in a directory of its own, on free ports of the loopback link.
//!
//! `ETCD` names the program; without it the one in `PATH` is taken (Debian package `etcd-server`).

#![allow(dead_code)] // Every test file uses its part.

use dhow_clock::{SharedClock, System};
use dhow_harness::ports;
use dhow_kv::{Backend, Event, Op, OpResult, Range, Span, Txn, WatchEvent, Watcher};
use dhow_remote::{Options, Remote};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// How long anything may take that should happen at once.
pub const SOON: Duration = Duration::from_secs(20);

/// A cluster of etcd processes.
pub struct Etcd {
    pub dir: tempfile::TempDir,
    members: Vec<Member>,
    flags: Vec<String>,
    scheme: &'static str,
}

struct Member {
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Etcd {
    /// One member without TLS.
    pub fn one() -> Self {
        Self::cluster(1)
    }

    pub fn cluster(members: usize) -> Self {
        Self::with(members, "http", |_| Vec::new())
    }

    /// `flags` is given the cluster's directory.
    pub fn with(
        members: usize,
        scheme: &'static str,
        flags: impl Fn(&Path) -> Vec<String>,
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("dhow-etcd-").tempdir().unwrap();
        let flags = flags(dir.path());
        let members = (0..members)
            .map(|_| Member { client: ports::free(), peer: ports::free(), child: None })
            .collect();
        let mut etcd = Self { dir, members, flags, scheme };
        for at in 0..etcd.members.len() {
            etcd.start(at);
        }
        etcd
    }

    pub fn url(&self, at: usize) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.members[at].client)
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.members.len()).map(|at| self.url(at)).collect()
    }

    /// Starts a member; does not wait until it answers.
    pub fn start(&mut self, at: usize) {
        let program = std::env::var_os("ETCD").unwrap_or_else(|| "etcd".into());
        let peers: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(at, m)| format!("m{at}=http://127.0.0.1:{}", m.peer))
            .collect();
        let (url, peer) = (self.url(at), format!("http://127.0.0.1:{}", self.members[at].peer));
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("m{at}.log")))
            .unwrap();
        let child = Command::new(program)
            .arg("--name")
            .arg(format!("m{at}"))
            .arg("--data-dir")
            .arg(self.dir.path().join(format!("m{at}")))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &peers.join(",")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd starts: install etcd-server or set ETCD");
        self.members[at].child = Some(child);
    }

    /// Kills a member as a crash would.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.members[at].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops a member in its tracks: it answers nobody and closes no connection.
    pub fn freeze(&self, at: usize) {
        self.signal(at, "-STOP");
    }

    pub fn thaw(&self, at: usize) {
        self.signal(at, "-CONT");
    }

    fn signal(&self, at: usize, signal: &str) {
        let pid = self.members[at].child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// A client of all members, as soon as they answer.
    pub async fn connect(&self) -> Arc<Remote> {
        self.connect_with(Options::new(self.urls())).await
    }

    pub async fn connect_with(&self, options: Options) -> Arc<Remote> {
        let until = clock().monotonic() + SOON;
        loop {
            match Remote::connect(options.clone(), clock()).await {
                Ok(remote) => return remote,
                Err(error) if clock().monotonic() > until => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for at in 0..self.members.len() {
            self.kill(at);
            if std::thread::panicking() {
                let log = self.dir.path().join(format!("m{at}.log"));
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(15)..].join("\n");
                eprintln!("the log of member {at} ends with\n{end}");
            }
        }
    }
}

pub fn clock() -> SharedClock {
    static CLOCK: std::sync::OnceLock<SharedClock> = std::sync::OnceLock::new();
    CLOCK.get_or_init(System::shared).clone()
}

/// Writes a key; returns the revision.
pub async fn put(store: &dyn Backend, key: &str, value: &str) -> i64 {
    let op = Op::put(key.to_owned(), value.to_owned());
    let txn = Txn { success: vec![op], ..Txn::default() };
    store.txn(txn).await.unwrap().revision
}

/// Writes a key however often it takes; for cuts in the middle.
pub async fn put_surely(store: &dyn Backend, key: &str, value: &str) -> i64 {
    let until = clock().monotonic() + SOON * 2;
    loop {
        let op = Op::put(key.to_owned(), value.to_owned());
        match store.txn(Txn { success: vec![op], ..Txn::default() }).await {
            Ok(done) => return done.revision,
            Err(error) if clock().monotonic() > until => panic!("{key}: {error}"),
            Err(_) => {}
        }
    }
}

pub async fn get(store: &dyn Backend, key: &str) -> Option<String> {
    let found = store.range(Range::all(Span::Key(key.to_owned().into()))).await.unwrap();
    found.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
}

/// The next item of a watch, soon.
pub async fn next(watcher: &mut dyn Watcher) -> WatchEvent {
    let item = tokio::time::timeout(SOON, watcher.next()).await;
    item.expect("an event in time").expect("the watch goes on")
}

/// The next events of a watch, soon.
pub async fn events(watcher: &mut dyn Watcher) -> (i64, Arc<[Event]>) {
    match next(watcher).await {
        WatchEvent::Events { revision, events } => (revision, events),
        other => panic!("events are due: {other:?}"),
    }
}

pub fn found(result: &OpResult) -> i64 {
    match result {
        OpResult::Range(found) => found.count,
        other => panic!("a range was asked: {other:?}"),
    }
}
