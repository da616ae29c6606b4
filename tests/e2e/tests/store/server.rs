//! Servers of etcd's protocol on this machine, of etcd and of dhow.
#![allow(dead_code, reason = "each test file uses some")]

use crate::load::{program, tail};
use crate::member::etcdctl;
use dhow_harness::ports;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A member of a cluster: its name, and the same ports every time, since members are known by them.
#[derive(Clone, Copy)]
pub struct Place {
    pub name: &'static str,
    client: u16,
    peer: u16,
}

impl Place {
    pub fn new(name: &'static str) -> Self {
        Self { name, client: ports::free(), peer: ports::free() }
    }

    pub fn client(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    pub fn peer(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }
}

/// A server of etcd's protocol in a directory, which ends with the value.
pub struct Server {
    child: Child,
    pub client: String,
    pub log: PathBuf,
}

impl Server {
    /// Starts `command` as a member that is alone, with its data in `data`.
    pub fn start(command: Command, data: &Path, place: Place, more: &[&str]) -> Self {
        Self::among(command, data, place, &[place], more)
    }

    /// Starts `command` as one of several.
    pub fn among(
        mut command: Command,
        data: &Path,
        place: Place,
        all: &[Place],
        more: &[&str],
    ) -> Self {
        let (client, peer) = (place.client(), place.peer());
        let all: Vec<String> =
            all.iter().map(|one| format!("{}={}", one.name, one.peer())).collect();
        let log = data.with_extension("log");
        let file = fs::File::options().create(true).append(true).open(&log).expect("a log");
        let child = command
            .args(["--name", place.name, "--data-dir"])
            .arg(data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &all.join(",")])
            .args(more)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("one more handle"))
            .stderr(file)
            .spawn()
            .expect("it starts");
        Self { child, client, log }
    }

    /// As a crash ends it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// In order.
    pub fn stop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// Waits until it ends by itself, which it does with a failure; its log.
    pub fn refuses(&mut self) -> String {
        assert!(!self.child.wait().expect("it is our child").success());
        tail(&self.log)
    }

    pub fn ctl(&self, words: &str) -> Result<String, String> {
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
    pub fn must(&self, words: &str) -> String {
        self.ctl(words).unwrap_or_else(|error| panic!("{words}: {error}\n{}", tail(&self.log)))
    }

    /// Waits until it answers.
    pub fn ready(self) -> Self {
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
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn etcd(program: &Path) -> Command {
    let mut command = Command::new(program);
    // Releases before 3.4 speak another version of the client's language by default.
    command.env("ETCDCTL_API", "3");
    command
}

pub fn dhow() -> Command {
    let mut command = Command::new(program());
    command.arg("store");
    command
}

/// The newest release lies beside its client, an older one is `ETCD` or in the `PATH`.
pub fn newest() -> PathBuf {
    Path::new(&etcdctl()).with_file_name("etcd")
}

pub fn older() -> PathBuf {
    std::env::var_os("ETCD").map_or_else(|| "etcd".into(), PathBuf::from)
}
