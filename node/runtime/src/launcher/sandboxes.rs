//! Sandboxes: namespaces that live as bind mounts, and the pod's cgroup.

use super::birth::{Womb, bear};
use super::containers::{Birth, Purpose, sync_pair, usable_name};
use super::init::Init;
use super::records::{self, GroupRecord, SandboxRecord};
use super::{Asker, Launcher};
use crate::child::{self, Fault, Report};
use crate::spec::{SandboxSpec, SandboxState};
use crate::wire::{Body, Failure};
use dhow_kernel::cgroup::Group;
use rustix::fd::OwnedFd;
use std::io;
use std::path::{Path, PathBuf};

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespaces.
const NSFS: i64 = 0x6e73_6673;

/// A pod's namespaces and group.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub spec: SandboxSpec,
    pub group: Group,
    /// Its namespaces are being made.
    pub growing: bool,
    /// The first process of the namespace that containers share, if they do.
    pub init: Option<Init>,
}

impl Launcher {
    pub(super) fn namespace_dir(&self, id: &str) -> PathBuf {
        self.dir.join("ns").join(id)
    }

    fn sandbox_record(&self, id: &str) -> PathBuf {
        self.dir.join("sandboxes").join(format!("{id}.json"))
    }

    pub(super) fn create_sandbox(
        &mut self,
        asker: Asker,
        spec: SandboxSpec,
    ) -> Result<(), Failure> {
        let id = spec.id.clone();
        usable_name("sandbox", &id)?;
        if self.sandboxes.contains_key(&id) {
            return Err(Failure::Exists(format!("sandbox {id}")));
        }
        let fail = |step: &str, cause: &dyn std::fmt::Display| Failure::CannotStart {
            id: id.clone(),
            step: step.to_owned(),
            cause: cause.to_string(),
        };
        let limits = super::containers::limits(&spec.limits);
        let group = self
            .cgroups
            .create(&format!("{}/{id}", self.cgroup), &limits)
            .map_err(|error| fail("making the pod's cgroup", &error))?;
        // What was left under this name (by an earlier launcher) may still be on its way out: the
        // new sandbox takes the group over, or it would be ended with the old one.
        let dirs: Vec<&PathBuf> = group.parts.iter().map(|part| &part.dir).collect();
        let taken = |dying: &super::containers::Dying| {
            dying.is_unasked() && dying.group.parts.iter().any(|old| dirs.contains(&&old.dir))
        };
        self.dying.retain(|dying| !taken(dying));
        let dir = self.namespace_dir(&id);
        match bear_sandbox(&spec, &dir) {
            Ok((pid, ours)) => {
                self.sandboxes
                    .insert(id.clone(), Sandbox { spec, group, growing: true, init: None });
                self.expect(pid, Birth::new(ours, asker, Purpose::Sandbox { id }))
            }
            Err((step, error)) => {
                let _ = self.cgroups.remove(&group);
                let _ = std::fs::remove_dir_all(&dir);
                Err(fail(step, &error))
            }
        }
    }

    /// The child that made the namespaces is done.
    pub(super) fn sandbox_born(&mut self, asker: Asker, id: &str, fault: Option<Fault>) {
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return };
        sandbox.growing = false;
        let spec = sandbox.spec.clone();
        let fault = fault.or_else(|| {
            let Err(Failure::Other(cause)) = self.record_sandbox(id) else { return None };
            Some(Fault { step: "writing its record".to_owned(), cause })
        });
        let body = match fault {
            None => Body::Sandbox(Box::new(self.sandbox_state(&spec))),
            Some(fault) => {
                let _ = self.drop_sandbox(id);
                Body::Failed(Failure::CannotStart {
                    id: id.to_owned(),
                    step: fault.step,
                    cause: fault.cause,
                })
            }
        };
        self.answer(asker, body, Vec::new());
    }

    /// Writes the record of a sandbox.
    pub(super) fn record_sandbox(&self, id: &str) -> Result<(), Failure> {
        let Some(sandbox) = self.sandboxes.get(id) else { return Ok(()) };
        let record = SandboxRecord {
            spec: sandbox.spec.clone(),
            group: GroupRecord::from(&sandbox.group),
            boot: self.boot.clone(),
        };
        records::store(&self.sandbox_record(id), &record)
            .map_err(|error| Failure::Other(error.to_string()))
    }

    /// `Ok(None)` means that the answer comes later.
    pub(super) fn remove_sandbox(&mut self, _: Asker, id: &str) -> Result<Option<Body>, Failure> {
        let Some(sandbox) = self.sandboxes.get(id) else { return Ok(Some(Body::Done)) };
        if sandbox.growing {
            return Err(Failure::Other(format!("sandbox {id} is still being made")));
        }
        let member = self.containers.values().find(|c| c.state.spec.sandbox.as_deref() == Some(id));
        if let Some(member) = member {
            let container = &member.state.spec.id;
            return Err(Failure::Other(format!(
                "sandbox {id} still has container {container}: remove it first"
            )));
        }
        self.drop_sandbox(id)?;
        Ok(Some(Body::Done))
    }

    /// Takes a sandbox down.
    pub(super) fn drop_sandbox(&mut self, id: &str) -> Result<(), Failure> {
        let dir = self.namespace_dir(id);
        let fail = |error: &dyn std::fmt::Display| {
            Failure::Other(format!("sandbox {id} cannot be removed: {error}"))
        };
        dhow_kernel::mount::unmount_below(&dir).map_err(|error| fail(&error))?;
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(&error)),
            _ => {}
        }
        if let Some(sandbox) = self.sandboxes.remove(id) {
            if let Some(init) = sandbox.init {
                self.end_init(init);
            }
            if self.cgroups.remove(&sandbox.group).is_err() {
                self.bury_later(sandbox.group, Vec::new());
            }
        }
        let _ = std::fs::remove_file(self.sandbox_record(id));
        Ok(())
    }

    fn sandbox_state(&self, spec: &SandboxSpec) -> SandboxState {
        let netns = (!spec.host_network).then(|| self.namespace_dir(&spec.id).join("net"));
        SandboxState { spec: spec.clone(), netns }
    }

    pub(super) fn sandbox_states(&self) -> Vec<SandboxState> {
        let grown = self.sandboxes.values().filter(|sandbox| !sandbox.growing);
        grown.map(|sandbox| self.sandbox_state(&sandbox.spec)).collect()
    }

    /// Whether a sandbox's namespaces are there. An unmount takes them as a reboot does; containers
    /// could never be started in it again.
    fn holds_namespaces(&self, id: &str) -> bool {
        let Ok(entries) = std::fs::read_dir(self.namespace_dir(id)) else { return false };
        let mut files =
            entries.flatten().map(|entry| entry.path()).filter(|p| p.is_file()).peekable();
        let held = |path: PathBuf| rustix::fs::statfs(&path).is_ok_and(|s| s.f_type == NSFS);
        files.peek().is_some() && files.all(held)
    }

    /// Finds the sandboxes of an earlier launcher.
    pub(super) fn recover_sandboxes(&mut self) {
        for entry in std::fs::read_dir(self.dir.join("sandboxes")).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                let _ = std::fs::remove_file(&path);
                continue;
            }
            let Some(record) = records::load::<SandboxRecord>(&path) else { continue };
            let id = record.spec.id.clone();
            let group = record.group.group();
            let gone = record.boot != self.boot || !self.holds_namespaces(&id);
            let sandbox = Sandbox { spec: record.spec, group, growing: false, init: None };
            self.sandboxes.insert(id.clone(), sandbox);
            if gone {
                tracing::info!(
                    "sandbox {id} ended with its namespaces, most likely with the machine's last boot"
                );
                if let Err(failure) = self.drop_sandbox(&id) {
                    tracing::warn!("{failure:?}");
                }
            }
        }
    }
}

/// Starts the child that makes a sandbox's namespaces and binds them below `dir`.
fn bear_sandbox(
    spec: &SandboxSpec,
    dir: &Path,
) -> Result<(u32, OwnedFd), (&'static str, io::Error)> {
    std::fs::create_dir_all(dir).map_err(|error| ("making the namespaces' directory", error))?;
    let mut namespaces = libc::CLONE_NEWUTS;
    if !spec.host_network {
        namespaces |= libc::CLONE_NEWNET;
    }
    if !spec.host_ipc {
        namespaces |= libc::CLONE_NEWIPC;
    }
    let (ours, theirs) = sync_pair().map_err(|error| ("socketpair", error))?;
    let womb = Womb { namespaces, ..Womb::default() };
    let born = bear(&womb, || {
        child::run(&theirs, || {
            child::sandbox(spec, dir)?;
            child::report(&theirs, &Report::Done, &[]);
            child::exit(0)
        })
    });
    let (pid, _) = born.map_err(|error| ("clone", error))?;
    Ok((pid, ours))
}
