//! Real etcds that are killed (-9) under load, alone or three of them, and `dhow store` on what they
//! have left: every acknowledged write is there, and everything is as etcd itself finds it after a
//! restart on a copy.

#[path = "store/load.rs"]
mod load;
#[path = "store/member.rs"]
mod member;
#[path = "store/server.rs"]
mod server;

use dhow_kv::{Backend as _, Op, Range, Span, Txn};
use load::{connect, tail};
use serde_json::Value;
use server::{Place, Server, dhow, etcd, newest, older};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Keys and what was acknowledged for them last.
type Acknowledged = Arc<Mutex<BTreeMap<String, String>>>;

impl Server {
    fn leads(&self) -> bool {
        let told = self.must("--user root:secret endpoint status -w json");
        let told: Value = serde_json::from_str(&told).expect("etcdctl writes JSON");
        let status = &told[0]["Status"];
        status["leader"] == status["header"]["member_id"]
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

/// Removes what is of a server or a moment: who answers, terms, indexes, identifiers, the order of
/// leases, which only a leader knows by their ends.
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
            if let Some(Value::Array(leases)) = map.get_mut("leases") {
                leases.sort_by_key(|lease| lease["id"].as_i64());
            }
            map.values_mut().for_each(without_moments);
        }
        Value::Array(list) => list.iter_mut().for_each(without_moments),
        _ => {}
    }
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

/// Fills an etcd; what it acknowledged.
fn filled(etcd: &Server, writes: u64) -> BTreeMap<String, String> {
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
    // Nobody of the load has said who it is, so that it has ended.
    drop(runtime);
    let acknowledged = acknowledged.lock().expect("nobody panics");
    acknowledged.clone()
}

fn taken_over(program: &Path, flags: &[&str], writes: u64) {
    let home = tempfile::tempdir().expect("a directory");
    let (data, twin) = (home.path().join("data"), home.path().join("twin"));
    let place = Place::new("a");
    let mut first = Server::start(etcd(program), &data, place, flags).ready();
    let acknowledged = filled(&first, writes);
    first.kill();
    copy(&data, &twin);
    let before = files(&data);

    let restarted = Server::start(etcd(program), &twin, place, &[]).ready();
    let wanted = restarted.picture();
    drop(restarted);

    let dhow = Server::start(dhow(), &data, place, &[]).ready();
    same(&wanted, &dhow.picture());
    assert!(files(&data) == before, "files of etcd have changed");
    holds(&dhow, &acknowledged);
    dhow.must("--user root:secret put k/more x");
}

/// What dhow tells is what etcd tells.
#[track_caller]
fn same(etcd: &[(String, Value)], dhow: &[(String, Value)]) {
    for ((what, wanted), (_, found)) in etcd.iter().zip(dhow) {
        assert!(wanted.is_null() || found == wanted, "{what}: {found}, and etcd: {wanted}");
    }
}

/// Everything that was acknowledged is there.
#[track_caller]
fn holds(dhow: &Server, acknowledged: &BTreeMap<String, String>) {
    let all = dhow.must("--user root:secret get --prefix k/");
    let lines: Vec<&str> = all.lines().collect();
    let there: BTreeMap<&str, &str> = lines.chunks(2).map(|pair| (pair[0], pair[1])).collect();
    for (key, least) in acknowledged {
        let value = there.get(key.as_str()).copied().unwrap_or_default();
        // A later one may have been carried out without being told.
        let number = |text: &str| text.parse::<u32>().ok();
        assert!(number(value) >= number(least), "{key} is {value:?} and was {least} once");
    }
    assert_eq!(dhow.must("--user root:secret get k/last --print-value-only").trim(), "after");
}

/// Three etcds, of which first the followers are killed and then the leader, which has written what
/// no other one has; each of them then taken over.
fn several_taken_over(program: &Path) {
    let home = tempfile::tempdir().expect("a directory");
    let places = ["a", "b", "c"].map(Place::new);
    let data = places.map(|place| home.path().join(place.name));
    let start = |command: fn(&Path) -> Command, n: usize, data: &Path, more: &[&str]| {
        Server::among(command(program), data, places[n], &places, more)
    };
    let mut members: Vec<Server> =
        (0..3).map(|n| start(etcd, n, &data[n], &["--snapshot-count=500"])).collect();
    members = members.into_iter().map(Server::ready).collect();
    let acknowledged = filled(&members[0], 1000);
    let leader = members.iter().position(Server::leads).expect("one of them leads");
    let follower = (leader + 1) % 3;
    for n in (0..3).filter(|n| *n != leader) {
        members[n].kill();
    }
    // It has that in its log, and nobody can tell it whether it counts.
    members[leader].ctl("--user root:secret put k/last never").expect_err("there is no quorum");
    members[leader].kill();
    drop(members);

    // Alone and by force, each as etcd itself.
    for n in [leader, follower] {
        let (own, twin) = (home.path().join("forced"), home.path().join("twin"));
        copy(&data[n], &own);
        copy(&data[n], &twin);
        let force = &["--force-new-cluster"];
        let etcd = start(etcd, n, &twin, force).ready();
        let wanted = etcd.picture();
        drop(etcd);
        let dhow = start(|_| dhow(), n, &own, force).ready();
        same(&wanted, &dhow.picture());
        holds(&dhow, &acknowledged);
        dhow.must("--user root:secret put k/more x");
        drop(dhow);
        for gone in [own, twin] {
            fs::remove_dir_all(gone).expect("it was there");
        }
    }

    // Without force what only the others can confirm is not guessed.
    let before = files(&data[leader]);
    let refused = start(|_| dhow(), leader, &data[leader], &[]).refuses();
    for part in ["only the other members", "stop them in order", "--force-new-cluster"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(files(&data[leader]) == before && !data[leader].join("member/store").exists());

    // What it asks for helps: nothing is in doubt then, and each goes on from its own.
    let mut members: Vec<Server> = (0..3).map(|n| start(etcd, n, &data[n], &[])).collect();
    members = members.into_iter().map(Server::ready).collect();
    let wanted = members[0].picture();
    members.iter_mut().for_each(Server::stop);
    drop(members);
    let members: Vec<Server> = (0..3).map(|n| start(|_| dhow(), n, &data[n], &[])).collect();
    let members: Vec<Server> = members.into_iter().map(Server::ready).collect();
    for member in &members {
        same(&wanted, &member.picture());
        holds(member, &acknowledged);
    }
    members[1].must("--user root:secret put k/more x");
    let told = members[2].must("--user root:secret get k/more --print-value-only");
    assert_eq!(told.trim(), "x");
}

#[test]
fn three_killed_etcds_are_taken_over_by_force_as_etcd_would_or_together_without_a_guess() {
    for program in [newest(), older()] {
        several_taken_over(&program);
    }
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
    let _etcd = Server::start(etcd(&newest()), &data, Place::new("a"), &[]).ready();
    let mut dhow = Server::start(dhow(), &data, Place::new("a"), &[]);
    let log = dhow.refuses();
    assert!(log.contains("an etcd still runs in"), "{log}");
    assert!(!data.join("member/store").exists());
}

#[test]
fn the_log_lies_where_it_is_asked_for_and_is_not_looked_for_elsewhere() {
    let home = tempfile::tempdir().expect("a directory");
    let (data, wal) = (home.path().join("data"), home.path().join("wal"));
    let at = |path: &Path| format!("--wal-dir={}", path.display());
    let place = Place::new("a");
    let mut store = Server::start(dhow(), &data, place, &[&at(&wal)]).ready();
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

    let refused = |flags: &[&str]| Server::start(dhow(), &data, place, flags).refuses();
    let told = format!("its log lies in {}: start it with --wal-dir", wal.display());
    assert!(refused(&[]).contains(&told));
    assert!(refused(&[&at(&home.path().join("other"))]).contains(&told));
    fs::rename(&wal, home.path().join("away")).expect("a name");
    assert!(refused(&[&at(&wal)]).contains("is not there"));
    fs::rename(home.path().join("away"), &wal).expect("a name");
    let store = Server::start(dhow(), &data, place, &[&at(&wal)]).ready();
    assert_eq!(store.must("get k --print-value-only").trim(), "v");
    drop(store);

    // The other way round.
    let plain = home.path().join("plain");
    drop(Server::start(dhow(), &plain, place, &[]).ready());
    let log = Server::start(dhow(), &plain, place, &[&at(&wal)]).refuses();
    assert!(log.contains("its log lies in it: start it without --wal-dir"), "{log}");
}
