//! A network between machines: a bridge in a network namespace of its own.

use crate::machine::{Machine, must};
use std::process::Command;

/// A bridge that machines are connected to. The address of machine `n` is 10.9.0.`n`.
pub struct Lan {
    netns: String,
}

impl Lan {
    /// A network that nobody is connected to.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str) -> Self {
        let netns = format!("e2e-{name}-lan-{}", std::process::id());
        must(Command::new("ip").args(["netns", "add", &netns]));
        let lan = Self { netns };
        lan.ip(&["link", "add", "lan", "type", "bridge"]);
        lan.ip(&["link", "set", "lan", "up"]);
        lan
    }

    fn ip(&self, arguments: &[&str]) {
        must(Command::new("ip").args(["-n", &self.netns]).args(arguments));
    }

    /// Connects a machine, by its link `eth0`.
    ///
    /// # Panics
    /// When it cannot be connected.
    pub fn connect(&self, machine: &mut Machine, n: u8) {
        let (port, netns) = (format!("m{n}"), machine.admin().netns.clone());
        self.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &netns]);
        self.ip(&["link", "set", &port, "master", "lan", "up"]);
        let address = format!("{}/24", address(n));
        for arguments in
            [&["address", "add", &address, "dev", "eth0"][..], &["link", "set", "eth0", "up"]]
        {
            must(Command::new("ip").args(["-n", &netns]).args(arguments));
        }
        machine.has_link = true;
    }
}

/// The address of machine `n`.
pub fn address(n: u8) -> String {
    format!("10.9.0.{n}")
}

impl Drop for Lan {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("E2E_KEEP").is_some() {
            return;
        }
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).status();
    }
}
