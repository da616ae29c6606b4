//! Three real members under load, killed (-9) at random again and again: what clients were told is
//! checked by the simulation's checkers. `STORE_CRASHES` says how often to kill; `STORE_SEED` which
//! member when. Members started again must find everything that was acknowledged.

#[path = "store/load.rs"]
mod load;

use dhow_harness::ports;
use dhow_sim::random::Random;
use load::{Load, number, program, tail};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const MEMBERS: usize = 3;

struct Cluster {
    program: PathBuf,
    home: tempfile::TempDir,
    ports: Vec<(u16, u16)>,
    children: Vec<Option<Child>>,
}

impl Cluster {
    fn new() -> Self {
        let ports = (0..MEMBERS).map(|_| (ports::free(), ports::free())).collect();
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

#[test]
fn killed_members_lose_nothing_and_contradict_nobody() {
    let times = number("STORE_CRASHES", 10);
    let seed = number("STORE_SEED", u64::from(std::process::id()));
    println!("{times} crashes; STORE_SEED={seed}");
    let mut random = Random::new(seed);
    let mut cluster = Cluster::new();
    (0..MEMBERS).for_each(|n| cluster.start(n));
    let load = Load::start(&cluster.endpoints(), &mut random);
    for crash in 0..times {
        let first = random.below(MEMBERS as u64) as usize;
        cluster.kill(first);
        // Sometimes a second one, and sometimes all, go with it.
        let more = [0, 0, 0, 1, 2][random.below(5) as usize];
        (1..=more).for_each(|n| cluster.kill((first + n) % MEMBERS));
        std::thread::sleep(Duration::from_millis(random.below(400)));
        (0..=more).for_each(|n| cluster.start((first + n) % MEMBERS));
        load.advances(20, &format!("writes after crash {crash} (STORE_SEED={seed})"));
        std::thread::sleep(Duration::from_millis(random.below(300)));
    }
    let home = cluster.home.path().display().to_string();
    load.check(&cluster.endpoints(), &format!("STORE_SEED={seed}, data in {home}"));
}
