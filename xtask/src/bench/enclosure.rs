//! A place for peers: namespaces of their own, so that a dockerd and its rules, mounts and control
//! groups disturb nobody and go with it.
//!
//! On cgroup v1 and hybrid machines the hierarchies are mounted anew inside a cgroup namespace, so
//! that groups are made below this process's own; cgroup2 is left out there, because crun refuses
//! hybrid machines that show it.

use crate::{platform, sh};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Debian's, whatever else the PATH offers.
pub const DOCKER: &str = "/usr/bin/docker";

/// Prepares the namespaces, then becomes the daemon.
const PREPARE: &str = r#"
set -e
ip link set lo up
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
  grep -E '^[^ ]+ [^ ]+ cgroup2? ' /proc/mounts | while read -r _ where kind options _; do
    umount "$where"
    if [ "$kind" = cgroup ]; then
      only=$(echo "$options" | tr ',' '\n' | grep -vxE 'rw|ro|nosuid|nodev|noexec|relatime|xattr|clone_children|release_agent=.*' | paste -sd,)
      case "$only" in name=*) only="none,$only" ;; esac
      mount -t cgroup -o "$only" cgroup "$where"
    fi
  done
fi
exec "$@"
"#;

/// Namespaces with a dockerd in them, gone when this goes out of scope.
pub struct Enclosure {
    child: Child,
    /// The first process inside, as seen from outside.
    inside: String,
    socket: PathBuf,
    /// Name of the parent of all control groups made inside.
    pub cgroup: String,
}

impl Enclosure {
    /// Starts a dockerd that keeps everything in `home`, and returns when it answers.
    ///
    /// # Errors
    /// When it does not start: with the end of its log.
    pub fn start(home: &Path) -> Result<Self> {
        std::fs::create_dir_all(home)?;
        let socket = home.join("docker.sock");
        let log = home.join("dockerd.log");
        let cgroup = format!("dhow-bench-{}", std::process::id());
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        if hybrid() {
            command.arg("--cgroup");
        }
        command.args(["--", "sh", "-c", PREPARE, "sh", "/usr/sbin/dockerd"]);
        command.arg("--data-root").arg(home.join("data"));
        command.arg("--exec-root").arg(home.join("exec"));
        command.arg("--pidfile").arg(home.join("dockerd.pid"));
        command.arg("--host").arg(format!("unix://{}", socket.display()));
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.args(["--cgroup-parent", &format!("/{cgroup}")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&log)?);
        let child = command.spawn().context("cannot run unshare; install util-linux")?;
        let mut enclosure = Self { child, inside: String::new(), socket, cgroup };
        let answers = platform::until(Duration::from_secs(60), || {
            if enclosure.child.try_wait()?.is_some() {
                return Ok(None);
            }
            let asked = enclosure.docker(&["version"]).stderr(Stdio::null()).output()?;
            Ok(asked.status.success().then_some(()))
        })?;
        answers.with_context(|| {
            format!("dockerd does not answer; the end of its log:\n{}", platform::tail(&log, 12))
        })?;
        let pid = enclosure.child.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        enclosure.inside = std::fs::read_to_string(children)?.trim().to_owned();
        Ok(enclosure)
    }

    /// A docker command that talks to the daemon inside.
    pub fn docker(&self, args: &[&str]) -> Command {
        let mut command = Command::new(DOCKER);
        command.arg("--host").arg(format!("unix://{}", self.socket.display())).args(args);
        command
    }

    /// How many milliseconds a command takes inside, without the way in.
    ///
    /// # Errors
    /// When it fails.
    pub fn timed(&self, command: &[&str]) -> Result<f64> {
        let own = std::env::current_exe()?;
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &self.inside, "--mount", "--net", "--pid"]);
        if hybrid() {
            enter.arg("--cgroup");
        }
        enter.arg("--").arg(own).args(["measure", "1", "--"]).args(command);
        let told = sh::output(&mut enter)?;
        let values: Vec<f64> = serde_json::from_str(&told).context("measure tells no numbers")?;
        values.first().copied().context("measure tells nothing")
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        // The first process inside dies with unshare, and all others inside with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for group in groups(&self.cgroup) {
            remove_group(&group);
        }
    }
}

/// Whether control groups are of version 1, at least in part.
fn hybrid() -> bool {
    !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Where a group of that name would lie below our own, in each hierarchy.
fn groups(name: &str) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        for mount in mounts.lines() {
            let fields: Vec<&str> = mount.split(' ').collect();
            let &[_, place, kind, options, ..] = fields.as_slice() else { continue };
            let fits = match kind {
                "cgroup" => {
                    !controllers.is_empty()
                        && controllers.split(',').all(|c| options.split(',').any(|o| o == c))
                }
                "cgroup2" => controllers.is_empty(),
                _ => false,
            };
            if fits {
                // On version 2 the daemon sees the whole tree.
                let below = if hybrid() { path.trim_start_matches('/') } else { "" };
                found.push(Path::new(place).join(below).join(name));
            }
        }
    }
    found
}

/// Removes a group and those below it, once their processes are gone.
fn remove_group(group: &Path) {
    let Ok(entries) = std::fs::read_dir(group) else { return };
    for entry in entries.flatten().filter(|e| e.path().is_dir()) {
        remove_group(&entry.path());
    }
    let removed = platform::until(Duration::from_secs(5), || {
        Ok(std::fs::remove_dir(group).is_ok().then_some(()))
    });
    if !matches!(removed, Ok(Some(()))) {
        eprintln!("cannot remove the control group {}", group.display());
    }
}
