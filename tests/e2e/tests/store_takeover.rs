//! A real etcd that is killed (-9) under load, and `dhow store` on what it has left: every
//! acknowledged write is there, and everything is as etcd itself finds it after a restart on a copy.

#[path = "store/load.rs"]
mod load;
#[path = "store/member.rs"]
mod member;

use dhow_kv::{Backend as _, Op, Range, Span, Txn};
use load::{connect, program, tail};
use member::etcdctl;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Keys and what was acknowledged for them last.
type Acknowledged = Arc<Mutex<BTreeMap<String, String>>>;

/// A server of etcd's protocol in a directory, which ends with the value.
struct Server {
    child: Child,
    client: String,
    log: PathBuf,
}

impl Server {
    /// Starts `command` as the member `a` with its data in `data`; the same ports every time, since
    /// members are known by them.
    fn start(mut command: Command, data: &Path, ports: (u16, u16), more: &[&str]) -> Self {
        let client = format!("http://127.0.0.1:{}", ports.0);
        let peer = format!("http://127.0.0.1:{}", ports.1);
        let log = data.with_extension("log");
        let file = fs::File::options().create(true).append(true).open(&log).expect("a log");
        let child = command
            .args(["--name", "a", "--data-dir"])
            .arg(data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("a={peer}")])
            .args(more)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("one more handle"))
            .stderr(file)
            .spawn()
            .expect("it starts");
        Self { child, client, log }
    }

    /// As a crash ends it.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn ctl(&self, words: &str) -> Result<String, String> {
        let done = Command::new(etcdctl())
            .args(["--endpoints", &self.client, "--dial-timeout=2s", "--command-timeout=5s"])
            .args(words.split(' '))
            .output()
            .expect("etcdctl runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match done.status.success() {
            true => Ok(text(&done.stdout)),
            false => Err(text(&done.stderr)),
        }
    }

    #[track_caller]
    fn must(&self, words: &str) -> String {
        self.ctl(words).unwrap_or_else(|error| panic!("{words}: {error}\n{}", tail(&self.log)))
    }

    /// Waits until it answers.
    fn ready(self) -> Self {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match self.ctl("endpoint status") {
                Ok(_) => return self,
                // It asks for a user, and so knows its users.
                Err(error) if error.contains("user name is empty") => return self,
                Err(error) if Instant::now() > until => {
                    panic!("it does not answer: {error}\n{}", tail(&self.log))
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// What it tells, without what may differ between servers and moments.
    fn picture(&self) -> Vec<(String, Value)> {
        let root = "--user root:secret";
        let mut picture = Vec::new();
        for words in [
            "get --prefix k",
            "endpoint hashkv",
            "lease list",
            "user list",
            "user get eve",
            "user get root",
            "role list",
            "role get reader",
            "auth status",
            "alarm list",
            "member list",
        ] {
            let text = match self.ctl(&format!("{root} {words} -w json")) {
                // Releases before 3.5 have no such call.
                Err(error) if error.contains("unknown method AuthStatus") => "null".into(),
                told => told.unwrap_or_else(|error| panic!("{words}: {error}")),
            };
            let mut value: Value = serde_json::from_str(&text).expect("etcdctl writes JSON");
            without_moments(&mut value);
            picture.push((words.to_owned(), value));
        }
        for id in [1, 2] {
            let words = format!("{root} lease timetolive {id:x} --keys -w json");
            let mut lease: Value = serde_json::from_str(&self.must(&words)).expect("JSON");
            lease.as_object_mut().expect("an object").remove("ttl");
            without_moments(&mut lease);
            picture.push((format!("lease {id}"), lease));
        }
        picture
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Removes what is of a server or a moment: who answers, terms, indexes, identifiers.
fn without_moments(value: &mut Value) {
    const MOMENTS: [&str; 9] = [
        "header",
        "Endpoint",
        "cluster_id",
        "cluster-id",
        "member_id",
        "ID",
        "raft_term",
        "clientURLs",
        // Releases before 3.6 do not say it.
        "hash_revision",
    ];
    match value {
        Value::Object(map) => {
            // What `lease list` has are the identifiers themselves.
            let is_lease = map.contains_key("ID") && map.len() == 1;
            map.retain(|name, _| is_lease || !MOMENTS.contains(&name.as_str()));
            map.values_mut().for_each(without_moments);
        }
        Value::Array(list) => list.iter_mut().for_each(without_moments),
        _ => {}
    }
}

fn ports() -> (u16, u16) {
    let free = || TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (client, peer) = (free(), free());
    let port = |held: &TcpListener| held.local_addr().expect("it is bound").port();
    (port(&client), port(&peer))
}

fn etcd(program: &Path) -> Command {
    let mut command = Command::new(program);
    // Releases before 3.4 speak another version of the client's language by default.
    command.env("ETCDCTL_API", "3");
    command
}

fn dhow() -> Command {
    let mut command = Command::new(program());
    command.arg("store");
    command
}

/// The newest release lies beside its client, an older one is `ETCD` or in the `PATH`.
fn newest() -> PathBuf {
    Path::new(&etcdctl()).with_file_name("etcd")
}

fn older() -> PathBuf {
    std::env::var_os("ETCD").map_or_else(|| "etcd".into(), PathBuf::from)
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
    assert!(done.success());
}

/// All files of an etcd with their bytes.
fn files(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for folder in ["snap", "wal"] {
        for entry in fs::read_dir(data.join("member").join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let bytes = fs::read(&path).expect("a file");
            found.insert(path, bytes);
        }
    }
    found
}

/// Writes until the server is gone.
async fn load(endpoint: String, client: u32, acknowledged: Acknowledged, count: Arc<AtomicU64>) {
    let remote = connect(&[endpoint]).await;
    for n in 0_u32.. {
        let (key, value) = (format!("k/{client}/{}", n % 50), format!("{n}"));
        let mut txn = Txn { success: vec![Op::put(key.clone(), value.clone())], ..Txn::default() };
        if n % 5 == 0 {
            txn.success.push(Op::delete(format!("k/{client}/gone")));
            txn.success.push(Op::put(format!("k/{client}/also/{n}"), value.clone()));
        }
        if remote.txn(txn).await.is_err() {
            return;
        }
        acknowledged.lock().expect("nobody panics").insert(key, value);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Fills an etcd and kills it; what it acknowledged.
fn killed(etcd: &mut Server, writes: u64) -> BTreeMap<String, String> {
    etcd.must("lease grant 5000 -w json");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (acknowledged, count) = (Acknowledged::default(), Arc::new(AtomicU64::new(0)));
    for client in 0..4 {
        let (acknowledged, count) = (acknowledged.clone(), count.clone());
        runtime.spawn(load(etcd.client.clone(), client, acknowledged, count));
    }
    let enough = |wanted: u64| {
        let until = Instant::now() + Duration::from_secs(60);
        while count.load(Ordering::Relaxed) < wanted {
            assert!(Instant::now() < until, "no writes: {}", tail(&etcd.log));
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    enough(writes / 2);
    etcd.must("compaction 40");
    let own = &etcd.client;
    runtime.block_on(async {
        let remote = connect(std::slice::from_ref(own)).await;
        for (id, ttl) in [(1, 4000), (2, 300), (3, 300)] {
            remote.lease_grant(id, ttl).await.expect("a lease");
            let put = Op::Put {
                key: format!("k/leased/{id}").into(),
                value: "x".into(),
                lease: id,
                prev_kv: false,
                ignore_value: false,
                ignore_lease: false,
            };
            remote.txn(Txn { success: vec![put], ..Txn::default() }).await.expect("a put");
        }
        remote.lease_revoke(3).await.expect("it is there");
        let all = Range::all(Span::prefix("k/leased/"));
        assert_eq!(remote.range(all).await.expect("a read").kvs.len(), 2);
    });
    enough(writes);
    for words in [
        "user add root:secret",
        "user add eve:hers",
        "role add reader",
        "role grant-permission reader read k l",
        "role grant-permission reader write w",
        "role revoke-permission reader w",
        "role add root",
        "user grant-role root root",
        "user grant-role eve reader",
        "put k/last before",
        "auth enable",
    ] {
        etcd.must(words);
    }
    etcd.must("--user root:secret put k/last after");
    // Whoever has no rights is refused when the entry is applied, and the log has it all the same.
    let refused = etcd.ctl("--user eve:hers put k/last never");
    assert!(refused.is_err_and(|error| error.contains("permission denied")));
    etcd.kill();
    drop(runtime);
    let acknowledged = acknowledged.lock().expect("nobody panics");
    acknowledged.clone()
}

fn taken_over(program: &Path, flags: &[&str], writes: u64) {
    let home = tempfile::tempdir().expect("a directory");
    let (data, twin) = (home.path().join("data"), home.path().join("twin"));
    let ports = ports();
    let mut first = Server::start(etcd(program), &data, ports, flags).ready();
    let acknowledged = killed(&mut first, writes);
    copy(&data, &twin);
    let before = files(&data);

    let restarted = Server::start(etcd(program), &twin, ports, &[]).ready();
    let wanted = restarted.picture();
    drop(restarted);

    let dhow = Server::start(dhow(), &data, ports, &[]).ready();
    let found = dhow.picture();
    for ((what, wanted), (_, found)) in wanted.iter().zip(&found) {
        assert!(wanted.is_null() || found == wanted, "{what}: {found}, and etcd: {wanted}");
    }
    assert!(files(&data) == before, "files of etcd have changed");
    let all = dhow.must("--user root:secret get --prefix k/");
    let lines: Vec<&str> = all.lines().collect();
    let there: BTreeMap<&str, &str> = lines.chunks(2).map(|pair| (pair[0], pair[1])).collect();
    for (key, least) in acknowledged {
        let value = there.get(key.as_str()).copied().unwrap_or_default();
        // A later one may have been carried out without being told.
        let number = |text: &str| text.parse::<u32>().ok();
        assert!(number(value) >= number(&least), "{key} is {value:?} and was {least} once");
    }
    assert_eq!(dhow.must("--user root:secret get k/last --print-value-only").trim(), "after");
    dhow.must("--user root:secret put k/more x");
}

#[test]
fn what_a_killed_etcd_acknowledged_is_there_though_its_database_has_not_heard_of_it() {
    // Its database is written once in ten minutes: all is in the log.
    let flags = ["--backend-batch-interval=10m", "--backend-batch-limit=1000000"];
    for program in [newest(), older()] {
        taken_over(&program, &flags, 400);
    }
}

#[test]
fn what_a_killed_etcd_has_in_its_database_and_behind_it_in_its_log_comes_together() {
    for program in [newest(), older()] {
        taken_over(&program, &["--snapshot-count=500"], 2000);
    }
}

#[test]
fn an_etcd_that_runs_is_not_taken_over() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let _etcd = Server::start(etcd(&newest()), &data, ports(), &[]).ready();
    let mut dhow = Server::start(dhow(), &data, ports(), &[]);
    let ended = dhow.child.wait().expect("it is our child");
    assert!(!ended.success());
    let log = tail(&dhow.log);
    assert!(log.contains("an etcd still runs in"), "{log}");
    assert!(!data.join("member/store").exists());
}

#[test]
fn the_log_lies_where_it_is_asked_for_and_is_not_looked_for_elsewhere() {
    let home = tempfile::tempdir().expect("a directory");
    let (data, wal) = (home.path().join("data"), home.path().join("wal"));
    let at = |path: &Path| format!("--wal-dir={}", path.display());
    let ports = ports();
    let mut store = Server::start(dhow(), &data, ports, &[&at(&wal)]).ready();
    store.must("put k v");
    store.kill();
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    };
    let own = wal.join(&names(&wal)[0]);
    assert!(names(&own).iter().any(|name| name.starts_with("log-")), "{:?}", names(&own));
    let beside = names(&data.join("member/store"));
    assert!(!beside.iter().any(|name| name.starts_with("log-")), "{beside:?}");

    let refused = |flags: &[&str]| {
        let mut store = Server::start(dhow(), &data, ports, flags);
        assert!(!store.child.wait().expect("it is our child").success());
        tail(&store.log)
    };
    let told = format!("its log lies in {}: start it with --wal-dir", wal.display());
    assert!(refused(&[]).contains(&told));
    assert!(refused(&[&at(&home.path().join("other"))]).contains(&told));
    fs::rename(&wal, home.path().join("away")).expect("a name");
    assert!(refused(&[&at(&wal)]).contains("is not there"));
    fs::rename(home.path().join("away"), &wal).expect("a name");
    let store = Server::start(dhow(), &data, ports, &[&at(&wal)]).ready();
    assert_eq!(store.must("get k --print-value-only").trim(), "v");
    drop(store);

    // The other way round.
    let plain = home.path().join("plain");
    drop(Server::start(dhow(), &plain, ports, &[]).ready());
    let mut store = Server::start(dhow(), &plain, ports, &[&at(&wal)]);
    assert!(!store.child.wait().expect("it is our child").success());
    assert!(tail(&store.log).contains("its log lies in it: start it without --wal-dir"));
}
