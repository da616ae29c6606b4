//! A network of its own for each thing that is tested: fixed ports then meet nobody.

use crate::sh;
use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal};
use std::ffi::OsStr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A network namespace with a loopback, and whatever runs in it. Both end with this value.
#[derive(Debug)]
pub struct Space {
    name: String,
}

impl Space {
    /// Makes one; `addresses` are added to its loopback.
    ///
    /// # Errors
    /// When `ip` fails: it needs root and Debian's iproute2.
    pub fn new(addresses: &[&str]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let nth = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dhow-conf-{}-{nth}", std::process::id());
        sh::output(Command::new("ip").args(["netns", "add", &name]))?;
        let space = Self { name };
        sh::output(space.command("ip").args(["link", "set", "lo", "up"]))?;
        for address in addresses {
            sh::output(space.command("ip").args(["address", "add", address, "dev", "lo"]))?;
        }
        Ok(space)
    }

    /// A command that runs in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Kills what still runs in it.
    ///
    /// # Errors
    /// When `ip` cannot tell what that is.
    pub fn clear(&self) -> Result<()> {
        for _ in 0..50 {
            let told = sh::output(Command::new("ip").args(["netns", "pids", &self.name]))?;
            let pids: Vec<Pid> =
                told.lines().filter_map(|pid| Pid::from_raw(pid.trim().parse().ok()?)).collect();
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                // It may have ended by itself.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Err(anyhow::anyhow!("processes in {} do not end", self.name))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let gone = self.clear().and_then(|()| {
            sh::output(Command::new("ip").args(["netns", "delete", &self.name]))
                .context("cannot remove a network namespace")
        });
        if let Err(error) = gone {
            eprintln!("{}: {error:#}", self.name);
        }
    }
}
