//! Three real members on machines of their own (network namespaces on a bridge), cut off from each
//! other by nftables in one direction or in both, under load: who has no quorum refuses, everything
//! heals, and what clients were told is checked by the simulation's checkers. `STORE_PARTITIONS` says
//! how often to cut, `STORE_SEED` what.

#[path = "store/load.rs"]
mod load;

use dhow_sim::random::Random;
use load::{Load, number, program, tail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MEMBERS: usize = 3;

/// What is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The leader from both others, both ways.
    Leader,
    /// The leader does not hear the others.
    DeafLeader,
    /// All from all.
    All,
    /// The others do not hear the leader.
    MuteLeader,
    /// The leader and one other from each other.
    Pair,
    /// A follower from both others, both ways.
    Follower,
    /// A follower does not hear the others.
    DeafFollower,
    /// The others do not hear a follower.
    MuteFollower,
}

const CUTS: [Cut; 8] = [
    Cut::Leader,
    Cut::DeafLeader,
    Cut::All,
    Cut::MuteLeader,
    Cut::Pair,
    Cut::Follower,
    Cut::DeafFollower,
    Cut::MuteFollower,
];

/// Runs a program that must succeed, with a text as its input.
fn must(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; the tests need it"));
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it reads");
    let status = child.wait().expect("it is our child");
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

fn ip(line: &str) {
    must("ip", &line.split(' ').collect::<Vec<_>>(), "");
}

fn address(n: usize) -> String {
    format!("10.9.0.{}", n + 1)
}

fn endpoint(n: usize) -> String {
    format!("http://{}:2379", address(n))
}

/// The machines, the wires between them, and what runs there.
struct Lab {
    program: PathBuf,
    home: tempfile::TempDir,
    children: Vec<Child>,
}

/// The namespace of a member.
fn machine(n: usize) -> String {
    format!("cut{}m{n}", std::process::id())
}

/// The namespace of the bridge, in which the clients live.
fn hub() -> String {
    format!("cut{}hub", std::process::id())
}

impl Lab {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let lab = Self { program: program(), home, children: Vec::new() };
        let hub = hub();
        ip(&format!("netns add {hub}"));
        ip(&format!("-n {hub} link add br0 type bridge"));
        ip(&format!("-n {hub} address add 10.9.0.254/24 dev br0"));
        ip(&format!("-n {hub} link set br0 up"));
        for n in 0..MEMBERS {
            let machine = machine(n);
            ip(&format!("netns add {machine}"));
            ip(&format!("-n {machine} link set lo up"));
            ip(&format!("-n {hub} link add v{n} type veth peer name eth0 netns {machine}"));
            ip(&format!("-n {hub} link set v{n} master br0 up"));
            ip(&format!("-n {machine} address add {}/24 dev eth0", address(n)));
            ip(&format!("-n {machine} link set eth0 up"));
        }
        // What this thread makes from now on, threads and connections, is there too.
        let namespace = File::open(format!("/run/netns/{hub}")).expect("ip made it");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter a namespace");
        lab
    }

    fn log(&self, n: usize) -> PathBuf {
        self.home.path().join(format!("m{n}.log"))
    }

    fn start(&mut self) {
        let peer = |n: usize| format!("http://{}:2380", address(n));
        let initial: Vec<String> = (0..MEMBERS).map(|n| format!("m{n}={}", peer(n))).collect();
        for n in 0..MEMBERS {
            let log = File::create(self.log(n)).expect("a log");
            // `ip` becomes the program, so that the process is the child.
            let child = Command::new("ip")
                .args(["netns", "exec", &machine(n)])
                .arg(&self.program)
                .args(["store", "--name", &format!("m{n}"), "--data-dir"])
                .arg(self.home.path().join(format!("m{n}")))
                .args(["--listen-client-urls", &endpoint(n)])
                .args(["--advertise-client-urls", &endpoint(n)])
                .args(["--listen-peer-urls", &peer(n)])
                .args(["--initial-advertise-peer-urls", &peer(n)])
                .args(["--initial-cluster", &initial.join(",")])
                .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("one more handle"))
                .stderr(log)
                .spawn()
                .expect("dhow store starts");
            self.children.push(child);
        }
    }

    /// What a member's gateway answers; `None` when it does not.
    fn post(&self, n: usize, path: &str, body: &Value) -> Option<(u16, Value)> {
        let to: SocketAddr = format!("{}:2379", address(n)).parse().expect("an address");
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        let body = body.to_string();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: m{n}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        // It may come in chunks; the object is between the first and the last brace.
        let object = body.get(body.find('{')?..=body.rfind('}')?)?;
        Some((status, serde_json::from_str(object).ok()?))
    }

    /// Whom a member takes for the leader, and whether it is the member itself.
    fn leader_of(&self, n: usize) -> Option<(String, bool)> {
        let (_, status) = self.post(n, "/v3/maintenance/status", &json!({}))?;
        let leader = status["leader"].as_str().filter(|leader| *leader != "0")?;
        Some((leader.to_owned(), status["header"]["member_id"] == leader))
    }

    /// Waits until all agree who leads.
    fn leader(&self) -> usize {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let leaders: Vec<_> = (0..MEMBERS).map(|n| self.leader_of(n)).collect();
            let named: Vec<_> = leaders.iter().flatten().map(|(leader, _)| leader).collect();
            let leads = leaders.iter().position(|seen| matches!(seen, Some((_, true))));
            if let Some(leads) = leads
                && named.len() == MEMBERS
                && named.iter().all(|leader| *leader == named[0])
            {
                return leads;
            }
            let log = tail(&self.log(0));
            assert!(Instant::now() < until, "no agreement on a leader: {leaders:?}\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A member does not hear some, and some do not hear it.
    fn cut(&self, n: usize, deaf_to: &[usize], mute_to: &[usize]) {
        let drop = |hook: &str, field: &str, others: &[usize]| {
            let rule = |other: &usize| format!("ip {field} {} drop\n", address(*other));
            let rules: String = others.iter().map(rule).collect();
            format!("chain {hook} {{ type filter hook {hook} priority 0;\n{rules} }}\n")
        };
        let (input, output) = (drop("input", "saddr", deaf_to), drop("output", "daddr", mute_to));
        let table = format!("flush ruleset\ntable inet cut {{\n{input}{output}}}\n");
        must("ip", &["netns", "exec", &machine(n), "nft", "-f", "-"], &table);
    }

    fn heal(&self) {
        for n in 0..MEMBERS {
            must("ip", &["netns", "exec", &machine(n), "nft", "flush", "ruleset"], "");
        }
    }

    /// A member without a quorum refuses what it cannot know, with etcd's words.
    fn refuses(&self, n: usize) {
        let key = "bm9ib2R5"; // nobody
        // What is refused because nobody answers in time may still come about once all is mended.
        // This needs a quorum as every write does, and then changes nothing.
        let write = json!({
            "compare": [{ "key": key, "target": "VERSION", "version": "99" }],
            "success": [{ "requestPut": { "key": key, "value": key } }],
        });
        let (written, read) = std::thread::scope(|scope| {
            let written = scope.spawn(|| self.post(n, "/v3/kv/txn", &write));
            let read = self.post(n, "/v3/kv/range", &json!({ "key": key }));
            (written.join().expect("it does not panic"), read)
        });
        for answer in [written, read] {
            let (status, body) = answer.expect("a member without a quorum answers");
            let text = body["message"].as_str().unwrap_or_default();
            let known = ["request timed out", "leader changed", "no leader"];
            let refused = known.iter().any(|known| text.contains(known));
            assert!(status >= 400 && refused, "member {n} answers {status} {body}");
        }
        let here = json!({ "key": key, "serializable": true });
        let (status, body) = self.post(n, "/v3/kv/range", &here).expect("an answer");
        assert_eq!((status, &body["kvs"]), (200, &Value::Null), "{body}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in (0..MEMBERS).map(machine).chain([hub()]) {
            let _ = Command::new("ip").args(["netns", "delete", &name]).status();
        }
    }
}

/// Cuts, looks whether those who can go on do and the others do not, and mends it.
fn trouble(lab: &Lab, load: &Load, cut: Cut, random: &mut Random) {
    let leader = lab.leader();
    let others: Vec<usize> = (0..MEMBERS).filter(|n| *n != leader).collect();
    let follower = *random.pick(&others);
    let beside: Vec<usize> = (0..MEMBERS).filter(|n| *n != follower).collect();
    let mut alone = None;
    match cut {
        Cut::Leader => {
            lab.cut(leader, &others, &others);
            alone = Some(leader);
        }
        Cut::Follower => {
            lab.cut(follower, &beside, &beside);
            alone = Some(follower);
        }
        Cut::DeafLeader => lab.cut(leader, &others, &[]),
        Cut::MuteLeader => lab.cut(leader, &[], &others),
        Cut::DeafFollower => lab.cut(follower, &beside, &[]),
        Cut::MuteFollower => lab.cut(follower, &[], &beside),
        Cut::Pair => lab.cut(leader, &[follower], &[follower]),
        Cut::All => {
            lab.cut(leader, &others, &others);
            lab.cut(follower, &beside, &beside);
            // What was under way may have come through.
            std::thread::sleep(Duration::from_millis(300));
            let before = load.newest();
            lab.refuses(*random.pick(&[0, 1, 2]));
            assert_eq!(load.newest(), before, "somebody wrote without a quorum");
        }
    }
    if cut != Cut::All {
        load.advances(20, &format!("writes beside {cut:?} of leader {leader}"));
    }
    if let Some(alone) = alone {
        lab.refuses(alone);
    }
    lab.heal();
    load.advances(20, &format!("writes after {cut:?} was mended"));
}

#[test]
fn members_that_are_cut_off_refuse_contradict_nobody_and_come_back() {
    let times = number("STORE_PARTITIONS", 5);
    let seed = number("STORE_SEED", u64::from(std::process::id()));
    println!("{times} partitions; STORE_SEED={seed}");
    let mut random = Random::new(seed);
    let mut lab = Lab::new();
    lab.start();
    lab.leader();
    let endpoints: Vec<String> = (0..MEMBERS).map(endpoint).collect();
    let load = Load::start(&endpoints, &mut random);
    for time in 0..times as usize {
        let cut = CUTS.get(time).copied().unwrap_or_else(|| *random.pick(&CUTS));
        let began = Instant::now();
        trouble(&lab, &load, cut, &mut random);
        println!("{cut:?}: {:.1} s, revision {}", began.elapsed().as_secs_f64(), load.newest());
    }
    lab.leader();
    load.check(&endpoints, &format!("STORE_SEED={seed}"));
}
