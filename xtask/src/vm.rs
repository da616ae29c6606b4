//! `cargo xtask vm`: what depends on how the machine's control groups are mounted, on a machine with
//! pure cgroup v2: Debian's kernel in an emulator, with a file system in memory that holds one
//! program of checks, a busybox and a small init.

use crate::{sh, tools, workspace};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Debian's kernel for virtual machines: small, without drivers for other hardware.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Longer than the checks take on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(600);

/// First process of the machine. The checks run twice: from the root of all groups, and from a group
/// of a service that holds the checks themselves.
const INIT: &str = r#"#!/bin/busybox sh
if [ "$1" != again ]; then
  # What the kernel starts with cannot be left by pivot_root, which containers need.
  /bin/busybox mkdir /root
  /bin/busybox mount -t tmpfs tmpfs /root
  /bin/busybox cp -a /bin /init /dev /proc /sys /tmp /root/
  exec /bin/busybox switch_root /root /init again
fi
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
/bin/busybox mount -t tmpfs tmpfs /tmp
echo "vm: $(/bin/busybox uname -r), $(/bin/busybox cat /sys/fs/cgroup/cgroup.controllers)"
/bin/checks /tmp/root && echo "vm: fine at the root" || /bin/busybox cat /tmp/root/run/launcher.log
/bin/busybox mkdir -p /sys/fs/cgroup/system/some.service
echo $$ > /sys/fs/cgroup/system/some.service/cgroup.procs
/bin/checks /tmp/service && echo "vm: fine in a service" || /bin/busybox cat /tmp/service/run/launcher.log
/bin/busybox poweroff -f
"#;

/// Runs the checks.
///
/// # Errors
/// When something is missing, or a check fails.
pub fn run() -> Result<()> {
    let start = Instant::now();
    tools::debian(&["qemu-system-x86", "busybox-static"])?;
    let kernel = kernel()?;
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(workspace::root());
    sh::run(build.args(["build", "-q", "-p", "dhow-runtime", "--example", "groups"]))?;
    let checks = workspace::target().join(workspace::TARGET).join("debug/examples/groups");

    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let image = scratch.path().join("initramfs");
    std::fs::write(&image, archive(&checks)?)
        .with_context(|| format!("cannot write {}", image.display()))?;
    let told = boot(&kernel, &image)?;
    let count = told.lines().filter(|line| line.starts_with("ok: ")).count();
    for wanted in ["vm: fine at the root", "vm: fine in a service"] {
        if !told.lines().any(|line| line.trim() == wanted) {
            bail!("a check failed on the machine with cgroup v2 (no {wanted:?}):\n{told}");
        }
    }
    println!("vm: {count} checks on pure cgroup v2 in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Debian's kernel, unpacked from its package into the cache; nothing is installed.
fn kernel() -> Result<PathBuf> {
    let depends =
        sh::output(Command::new("apt-cache").args(["depends", KERNEL])).with_context(|| {
            format!("apt knows no {KERNEL}: this task needs Debian's package lists")
        })?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.with_context(|| format!("apt tells no package behind {KERNEL}"))?.trim();
    let file = workspace::cache().join(format!("tools/{package}"));
    if file.is_file() {
        return Ok(file);
    }
    println!("fetching the kernel of {package} into {}", file.display());
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let fetch = &mut Command::new("apt-get");
    // As root: apt's own user may not write there.
    let user = ["-o", "APT::Sandbox::User=root"];
    sh::output(fetch.current_dir(scratch.path()).args(user).args(["download", package]))?;
    let deb = std::fs::read_dir(scratch.path())?.flatten().map(|entry| entry.path());
    let deb = deb.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb"));
    let deb = deb.context("apt-get download left no package")?;
    sh::output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(scratch.path().join("x")))?;
    let boot = scratch.path().join("x/boot");
    let image = std::fs::read_dir(&boot)?.flatten().map(|entry| entry.path());
    let image = image.into_iter().find(|p| p.to_string_lossy().contains("vmlinuz"));
    let image = image.with_context(|| format!("{package} holds no kernel"))?;
    let folder = file.parent().context("the cache has no parent")?;
    std::fs::create_dir_all(folder)?;
    // Whole or not at all.
    let half = file.with_extension("half");
    std::fs::copy(image, &half)?;
    std::fs::rename(&half, &file)?;
    Ok(file)
}

/// Starts the machine and gives what it printed.
fn boot(kernel: &Path, image: &Path) -> Result<String> {
    let mut command = Command::new("timeout");
    command.arg(PATIENCE.as_secs().to_string()).arg("qemu-system-x86_64");
    // Emulated: a machine that is itself virtual may offer virtualisation that does not work.
    command.args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "768"]);
    command.args(["-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(image);
    command.args(["-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all rdinit=/init"]);
    sh::output(&mut command).map(|told| told.replace('\r', ""))
}

/// The file system as a cpio archive in the "newc" form (Linux,
/// `Documentation/driver-api/early-userspace/buffer-format.rst`).
fn archive(checks: &Path) -> Result<Vec<u8>> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new);
    let busybox = busybox.into_iter().find(|path| path.exists()).context("no static busybox")?;
    let mut all = Vec::new();
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        entry(&mut all, folder, 0o040_755, &[]);
    }
    entry(&mut all, "bin/busybox", 0o100_755, &read(busybox)?);
    entry(&mut all, "bin/checks", 0o100_755, &read(checks)?);
    entry(&mut all, "init", 0o100_755, INIT.as_bytes());
    entry(&mut all, "TRAILER!!!", 0, &[]);
    Ok(all)
}

fn entry(all: &mut Vec<u8>, name: &str, mode: u32, bytes: &[u8]) {
    let pad = |all: &mut Vec<u8>| all.resize(all.len().next_multiple_of(4), 0);
    let number = all.len() + 1;
    let fields = [number, mode as usize, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, name.len() + 1, 0];
    all.extend_from_slice(b"070701");
    for field in fields {
        all.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    all.extend_from_slice(name.as_bytes());
    all.push(0);
    pad(all);
    all.extend_from_slice(bytes);
    pad(all);
}
