//! Members of a store on a test's machine: `dhow` under the name of etcd, and etcd's clients.
#![allow(dead_code, reason = "each test file uses some")]

use e2e::Shell;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The newest etcdctl: `ETCDCTL`, or the one that `cargo xtask` has built.
pub fn etcdctl() -> String {
    tool("ETCDCTL", "etcdctl")
}

/// The newest etcdutl: `ETCDUTL`, or the one that `cargo xtask` has built.
pub fn etcdutl() -> String {
    tool("ETCDUTL", "etcdutl")
}

fn tool(variable: &str, name: &str) -> String {
    let built = || {
        let home = std::env::var("HOME").expect("a home directory");
        PathBuf::from(home).join(".cache/dhow/tools/etcd").join(name)
    };
    let path = std::env::var(variable).map_or_else(|_| built(), PathBuf::from);
    assert!(path.exists(), "no {name}: set {variable}, or run cargo xtask conformance etcd once");
    path.display().to_string()
}

/// Makes `etcd` a name of the program under test, in the shell's directory.
pub fn prepare(shell: &Shell) {
    shell.ok("ln -sf \"$(command -v dhow)\" etcd");
}

/// A member that runs until the value is dropped. Its data lie in `NAME.etcd`, and its log in
/// `NAME.log`.
pub struct Member {
    child: Child,
}

impl Member {
    /// Starts `etcd` with flags. Does not wait.
    pub fn start(shell: &Shell, name: &str, flags: &[&str]) -> Self {
        let log = shell.dir.join(format!("{name}.log"));
        let log = std::fs::File::options().create(true).append(true).open(log).expect("a file");
        let child = shell
            .command("./etcd")
            .args(["--name", name])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("the program starts");
        Self { child }
    }

    /// `SIGTERM`; returns the exit code.
    pub fn stop(&mut self) -> i32 {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        self.child.wait().ok().and_then(|status| status.code()).unwrap_or(-1)
    }

    /// `SIGKILL`.
    pub fn kill(&mut self) {
        // `nsenter` has become the program, so that the process is the child.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the end that the member comes to by itself; returns the exit code.
    pub fn end(&mut self) -> i32 {
        self.child.wait().ok().and_then(|status| status.code()).unwrap_or(-1)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until a member's log has a line with all of `parts`.
#[track_caller]
pub fn logged(shell: &Shell, name: &str, part: &str) {
    shell.until(&format!("grep -q '{part}' {name}.log && echo yes"), "yes");
}
