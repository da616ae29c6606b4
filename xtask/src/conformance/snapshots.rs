//! Snapshots from one server into the other, both ways, with etcd's own tools in between.

use super::{Against, Outcome};
use crate::bench::etcd::{Kind, Programs, Server};
use crate::tools::etcd as tools;
use crate::{sh, workspace};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What is compared before and after.
#[derive(Debug, PartialEq)]
struct Content {
    /// Hash of all revisions, as etcd computes it, and the revision of it.
    hash: Value,
    revision: Value,
    /// Every key with its value and revisions.
    keys: Value,
}

struct Tools {
    programs: Programs,
    etcdctl: PathBuf,
    etcdutl: PathBuf,
}

/// Runs it.
///
/// # Errors
/// When a server or tool does not run. Content that differs is in the outcome.
pub fn run(against: Against) -> Result<Outcome> {
    let start = Instant::now();
    let newest = tools::newest()?;
    let tools =
        Tools { programs: Programs::get()?, etcdctl: newest.etcdctl, etcdutl: newest.etcdutl };
    let own = match against {
        Against::Dhow => Kind::Dhow,
        Against::Etcd => Kind::Etcd35,
    };
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut problems = Vec::new();
    let mut ways = 0;
    for (from, to) in [(own, Kind::Etcd), (Kind::Etcd, own), (own, own)] {
        let dir = directory.path().join(ways.to_string());
        ways += 1;
        let way = format!("{} to {}", from.name(), to.name());
        match tools.travel(from, to, &dir) {
            Ok((before, after)) if before == after => println!("{way}: the same"),
            Ok((before, after)) => problems.push(format!(
                "{way}: hash {} at {} became {} at {}, keys are {}",
                before.hash,
                before.revision,
                after.hash,
                after.revision,
                if before.keys == after.keys { "the same" } else { "others" },
            )),
            Err(error) => problems.push(format!("{way}: {error:#}")),
        }
    }
    Ok(Outcome {
        name: "snapshots".to_owned(),
        summary: format!("{} of {ways} ways keep everything", ways - problems.len()),
        time: start.elapsed(),
        problems,
        notes: Vec::new(),
    })
}

impl Tools {
    /// Fills a server, takes its snapshot, starts another one on that: the content of both.
    fn travel(&self, from: Kind, to: Kind, dir: &Path) -> Result<(Content, Content)> {
        std::fs::create_dir_all(dir)?;
        let source = Server::start(&self.programs, from, &dir.join("from"))?;
        self.programs.bench(&["fill", "--endpoint", &source.endpoint, "--keys", "3000"])?;
        for args in [
            &["del", "--prefix", "bench/0000000001"][..],
            &["put", "bench/000000000007", "again"],
            &["lease", "grant", "3600", "-w", "json"],
            &["compact", "500"],
            &["put", "empty", ""],
            &["user", "add", "somebody:secret"],
            &["role", "add", "reader"],
        ] {
            self.ctl(&source, args)?;
        }
        let before = self.content(&source)?;
        let file = dir.join("snapshot.db");
        let path = file.to_str().context("the temporary directory's name is no UTF-8")?;
        self.ctl(&source, &["snapshot", "save", path])?;
        source.stop()?;
        let mut status = Command::new(&self.etcdutl);
        let told = sh::output(status.args(["snapshot", "status", path, "-w", "json"]))?;
        let told: Value = serde_json::from_str(&told).context("no JSON from snapshot status")?;
        anyhow::ensure!(
            told["revision"] == before.revision,
            "snapshot status tells revision {}, the server {}",
            told["revision"],
            before.revision
        );
        let restored = dir.join("to");
        let mut restore = match to {
            Kind::Dhow => {
                let mut command = Command::new(workspace::dhow());
                command.arg("store");
                command
            }
            _ => Command::new(&self.etcdutl),
        };
        restore.args(["snapshot", "restore", path, "--data-dir"]).arg(&restored);
        // The address is new at each start; what is restored knows the one that is named here.
        let ports = crate::bench::etcd::ports();
        let peer = format!("http://127.0.0.1:{}", ports.1);
        restore.arg(format!("--initial-advertise-peer-urls={peer}")).arg("--name=bench");
        restore.arg(format!("--initial-cluster=bench={peer}"));
        sh::output(&mut restore)?;
        let target = Server::start_on(&self.programs, to, &restored, ports)?;
        let users =
            self.ctl(&target, &["user", "list"])? + &self.ctl(&target, &["role", "list"])?;
        anyhow::ensure!(users == "somebody\nreader\n", "users and roles are {users:?}");
        let after = self.content(&target)?;
        // It must not only open: it must take writes, with revisions that go on.
        self.ctl(&target, &["put", "after", "1"])?;
        target.stop()?;
        Ok((before, after))
    }

    fn content(&self, server: &Server) -> Result<Content> {
        let hash = self.ctl(server, &["endpoint", "hashkv", "-w", "json"])?;
        let hash: Value = serde_json::from_str(&hash)?;
        let keys = self.ctl(server, &["get", "", "--from-key", "-w", "json"])?;
        let keys: Value = serde_json::from_str(&keys)?;
        Ok(Content {
            hash: hash[0]["HashKV"]["hash"].clone(),
            revision: keys["header"]["revision"].clone(),
            keys: keys["kvs"].clone(),
        })
    }

    fn ctl(&self, server: &Server, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.etcdctl);
        command.args(["--endpoints", &server.endpoint]).args(args);
        sh::output(&mut command)
    }
}
