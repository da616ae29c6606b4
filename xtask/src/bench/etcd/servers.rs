//! The servers that are measured, each with a directory and ports of its own.

use crate::tools::etcd::{self as tools, Etcd};
use crate::{sh, workspace};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// etcd's newest release
    Etcd,
    /// etcd 3.5.1 of PyPI
    Etcd35,
    /// The protocol and a log, with nothing behind them
    Floor,
    /// `dhow store`
    Dhow,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Etcd, Self::Etcd35, Self::Floor, Self::Dhow];

    /// What tables call it.
    pub fn name(self) -> String {
        match self {
            Self::Etcd => format!("etcd {}", tools::NEWEST),
            Self::Etcd35 => format!("etcd {}", tools::DISTRO),
            Self::Floor => "floor".to_owned(),
            Self::Dhow => "dhow".to_owned(),
        }
    }

    /// Whether it keeps what is written.
    pub fn keeps(self) -> bool {
        self != Self::Floor
    }
}

/// Where the programs are.
#[derive(Debug)]
pub struct Programs {
    newest: Etcd,
    distro: Etcd,
    /// The load generator, which is the floor too.
    pub bench: PathBuf,
}

impl Programs {
    /// Builds or installs all that is missing; `BENCH_ETCD_BIN` of the environment names a load
    /// generator that is built already.
    ///
    /// # Errors
    /// When one cannot be had.
    pub fn get() -> Result<Self> {
        let newest = tools::newest()?;
        let distro = tools::distro()?;
        let bench = match std::env::var_os("BENCH_ETCD_BIN") {
            Some(path) => path.into(),
            None => crate::dist::build(&["bench-etcd"])?,
        };
        Ok(Self { newest, distro, bench })
    }

    /// The command that starts a server on `ports` (clients, peers) with its data in `dir`.
    pub fn command(&self, kind: Kind, dir: &Path, ports: (u16, u16)) -> Command {
        let client = format!("http://127.0.0.1:{}", ports.0);
        let peer = format!("http://127.0.0.1:{}", ports.1);
        let mut command = match kind {
            Kind::Etcd => Command::new(&self.newest.etcd),
            Kind::Etcd35 => Command::new(&self.distro.etcd),
            Kind::Dhow => {
                let mut command = Command::new(workspace::dhow());
                command.arg("store");
                command
            }
            Kind::Floor => {
                let mut command = Command::new(&self.bench);
                command.arg("floor").arg(format!("--listen=127.0.0.1:{}", ports.0));
                command.arg("--dir").arg(dir);
                return command;
            }
        };
        command.args(["--name=bench", "--log-level=error"]).arg("--data-dir").arg(dir);
        command.arg(format!("--listen-client-urls={client}"));
        command.arg(format!("--advertise-client-urls={client}"));
        command.arg(format!("--listen-peer-urls={peer}"));
        command.arg(format!("--initial-advertise-peer-urls={peer}"));
        command.arg(format!("--initial-cluster=bench={peer}"));
        // So many writes fit, and no quota is what is measured.
        command.arg("--quota-backend-bytes=8589934592");
        command
    }

    /// Runs the load generator and reads the line that it prints.
    ///
    /// # Errors
    /// When it fails: a server that does not answer, or answers wrongly.
    pub fn bench(&self, args: &[&str]) -> Result<serde_json::Value> {
        let told = sh::output(Command::new(&self.bench).args(args))?;
        serde_json::from_str(&told).with_context(|| format!("not JSON: {told}"))
    }

    /// Milliseconds from a server's start to its first answered put, with what lies in `dir`; and
    /// those of its processor time.
    ///
    /// # Errors
    /// When it does not answer or does not end.
    pub fn start_time(&self, kind: Kind, dir: &Path) -> Result<(f64, f64)> {
        let ports = ports();
        let endpoint = format!("http://127.0.0.1:{}", ports.0);
        let server = self.command(kind, dir, ports);
        let mut measure = Command::new(&self.bench);
        measure.args(["start", "--endpoint", &endpoint, "--"]);
        measure.arg(server.get_program()).args(server.get_args());
        let told: serde_json::Value = serde_json::from_str(&sh::output(&mut measure)?)?;
        let time = |field: &str| told[field].as_f64().context("no time was told");
        Ok((time("ms")?, time("cpu_ms")?))
    }
}

/// A running server; it ends with this value.
#[derive(Debug)]
pub struct Server {
    /// What it is.
    pub kind: Kind,
    /// Where it listens.
    pub endpoint: String,
    /// Where it tells other members to find it.
    pub peer: String,
    child: Child,
}

impl Server {
    /// Starts one; it answers when this returns.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(programs: &Programs, kind: Kind, dir: &Path) -> Result<Self> {
        let server = Self::start_on(programs, kind, dir, ports())?;
        // Whoever answers a put is all there.
        programs.bench(&["fill", "--endpoint", &server.endpoint, "--keys", "1"])?;
        Ok(server)
    }

    /// Starts one on `ports` (clients, peers) without writing a key; it listens when this returns.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_on(
        programs: &Programs,
        kind: Kind,
        dir: &Path,
        ports: (u16, u16),
    ) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let log = std::fs::File::create(dir.with_extension("log"))?;
        let mut command = programs.command(kind, dir, ports);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child =
            command.spawn().with_context(|| format!("cannot run {}", sh::line(&command)))?;
        let endpoint = format!("http://127.0.0.1:{}", ports.0);
        let peer = format!("http://127.0.0.1:{}", ports.1);
        let mut server = Self { kind, endpoint, peer, child };
        let answers = crate::platform::until(std::time::Duration::from_secs(60), || {
            if let Some(status) = server.child.try_wait()? {
                let path = dir.with_extension("log");
                let log = std::fs::read_to_string(path).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                bail!("{} ended: {status}: {}", kind.name(), last.join("\n"));
            }
            let args = ["fill", "--endpoint", &server.endpoint, "--keys", "0"];
            Ok(programs.bench(&args).is_ok().then_some(()))
        })?;
        answers.with_context(|| format!("{} does not answer after 60 s", kind.name()))?;
        Ok(server)
    }

    /// Its process.
    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Resident memory in MiB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn rss(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("no {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: f64 = line.context("no VmRSS")?.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        // The floor knows no end, and keeps nothing.
        let signal = if self.kind.keeps() { Signal::TERM } else { Signal::KILL };
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            rustix::process::kill_process(pid, signal)?;
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("cannot end {}: {error:#}", self.kind.name());
        }
    }
}

/// Two ports that nobody listens on: for clients and for peers.
pub fn ports() -> (u16, u16) {
    (dhow_harness::ports::free(), dhow_harness::ports::free())
}
