//! The first process of a pod whose containers share their processes: it reaps and does nothing else.

use super::Launcher;
use super::birth::{Womb, bear};
use super::containers::Role;
use crate::child;
use crate::wire::Failure;
use dhow_kernel::cgroup::{Group, Limits};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::pipe::PipeFlags;
use std::io;

/// How long an init may prepare itself, which takes milliseconds.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A pod's init. While it lives, its process namespace does.
#[derive(Debug)]
pub(super) struct Init {
    pid: u32,
    group: Group,
}

impl Launcher {
    /// The process namespace of a sandbox; its init is made if there is none (any more).
    pub(super) fn pid_namespace_of_sandbox(&mut self, id: &str) -> Result<OwnedFd, Failure> {
        let Some(sandbox) = self.sandboxes.get(id) else {
            return Err(Failure::NotFound(format!("sandbox {id}")));
        };
        let fail = |step: &str, cause: &dyn std::fmt::Display| {
            Failure::Other(format!("sandbox {id}: the init of its containers: {step}: {cause}"))
        };
        let pid = match &sandbox.init {
            Some(init) => init.pid,
            None => {
                let name = format!("{}/{id}/init", self.cgroup);
                let group = self.cgroups.create(&name, &Limits::default());
                let group = group.map_err(|error| fail("making its cgroup", &error))?;
                let pid = match self.bear_init(id, &group) {
                    Ok(pid) => pid,
                    Err(error) => {
                        let _ = self.cgroups.remove(&group);
                        return Err(fail("clone", &error));
                    }
                };
                self.roles.insert(pid, Role::Init(id.to_owned()));
                if let Some(sandbox) = self.sandboxes.get_mut(id) {
                    sandbox.init = Some(Init { pid, group });
                }
                pid
            }
        };
        // The process is our child and not reaped: its number cannot mean another one.
        let path = format!("/proc/{pid}/ns/pid");
        rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| fail("opening its namespace", &errno))
    }

    fn bear_init(&self, id: &str, group: &Group) -> io::Result<u32> {
        let into = group.clone_target()?;
        let womb = Womb {
            namespaces: libc::CLONE_NEWPID | libc::CLONE_NEWNS,
            pid_namespace: None,
            cgroup: into.as_ref().map(AsFd::as_fd),
        };
        let (namespaces, staging) = (self.namespace_dir(id), self.dir.join("root"));
        // No container may meet it before it has given up what it was born with. It lets go of this
        // when it has, as of every descriptor, or when it ends.
        let (prepared, held) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let pid = bear(&womb, || child::init(&namespaces, &staging, group))?.0;
        drop(held);
        let mut fds = [PollFd::new(&prepared, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut fds, Some(&PATIENCE)))? == 0 {
            let _ = dhow_kernel::process::signal(pid, libc::SIGKILL);
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(pid)
    }

    /// A pod's init has ended, and with it every process of its namespace.
    pub(super) fn init_ended(&mut self, id: &str) {
        let init = self.sandboxes.get_mut(id).and_then(|sandbox| sandbox.init.take());
        if let Some(init) = init {
            tracing::warn!("the init of sandbox {id} has ended; the next container gets another");
            self.bury_later(init.group, Vec::new());
        }
    }

    /// Ends the init of a sandbox that is taken down.
    pub(super) fn end_init(&mut self, init: Init) {
        let _ = dhow_kernel::process::signal(init.pid, libc::SIGKILL);
        self.bury_later(init.group, Vec::new());
    }
}
