//! A real etcd on a test's machine: `ETCD`, or the `etcd` in `PATH` (Debian package `etcd-server`).

use e2e::Shell;
use std::process::{Child, Stdio};

/// An etcd that runs until the value is dropped.
pub struct Etcd {
    child: Child,
}

impl Etcd {
    /// Starts it with its data in the shell's directory, and waits until it answers.
    pub fn start(shell: &Shell, name: &str, port: u16, flags: &[&str]) -> Self {
        let program = std::env::var("ETCD").unwrap_or_else(|_| "etcd".into());
        let scheme = if flags.contains(&"--client-cert-auth") { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{}", port + 1);
        let log = shell.dir.join(format!("{name}.log"));
        let log = std::fs::File::options().create(true).append(true).open(log).expect("a file");
        let child = shell
            .command(&program)
            .args(["--name", name, "--data-dir", name])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("{name}={peer}")])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        let etcd = Self { child };
        let health = match scheme {
            "https" => format!(
                "curl -sS -m 5 --cacert tls/ca.crt --cert tls/client.crt --key tls/client.key {client}/health"
            ),
            _ => format!("curl -sS -m 5 {client}/health"),
        };
        // Later releases tell a reason as well.
        shell.until(&format!("{health} | grep -o '\"health\":\"true\"'"), "\"health\":\"true\"");
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // As a crash would end it; `nsenter` has become it, so that the process is the child.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
