//! `bench run`: one container from the command to its end, against docker, crun and runc.
//!
//! The same image for dhow and docker: a static `true`. crun and runc, which are only the last part
//! of the way, get its files as a bundle, in the namespaces that dockerd runs in.

use super::enclosure::{DOCKER, Enclosure};
use super::report::{Report, Series};
use super::{Bench, timed};
use crate::{sh, tools};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const IMAGE: &str = "bench/true:v1";

/// Runs it.
///
/// # Errors
/// When the platform or a peer does not run.
pub fn run(rounds: u32) -> Result<()> {
    tools::debian(&["busybox-static", "crun", "docker.io", "iproute2", "iptables", "runc"])?;
    let bench = Bench::new()?;
    // busybox does what its name says; this one is called true.
    bench.image(IMAGE, Path::new("/bin/busybox"), "/bin/true", "CMD [\"/bin/true\"]")?;
    bench.platform.up()?;

    let peers = Enclosure::start(&bench.scratch.join("docker"))?;
    let archive = bench.scratch.join("image.tar");
    let mut save = bench.platform.command(&["image", "save", IMAGE, "-o"]);
    sh::output(save.arg(&archive))?;
    sh::output(peers.docker(&["load", "-i"]).arg(&archive))?;

    let mut runtimes = Vec::new();
    for name in ["crun", "runc"] {
        let bundle = bench.scratch.join(name);
        make_bundle(&bundle, &format!("/{}/{name}", peers.cgroup))?;
        let root = bench.scratch.join(format!("{name}-state")).display().to_string();
        let bundle = bundle.display().to_string();
        runtimes.push((name, root, bundle, Series::new(format!("{name} run, on a bundle"), "ms")));
    }

    let mut dhow = Series::new("dhow run --rm", "ms");
    let mut docker = Series::new("docker run --rm", "ms");
    // Round 0 warms up and is not counted.
    for round in 0..=rounds {
        let own = timed(&mut bench.platform.command(&["run", "--rm", IMAGE, "/bin/true"]))?;
        let theirs = timed(&mut peers.docker(&["run", "--rm", IMAGE, "/bin/true"]))?;
        if round > 0 {
            dhow.push(own);
            docker.push(theirs);
        }
        for (name, root, bundle, series) in &mut runtimes {
            let id = format!("bench-{round}");
            let value = peers.timed(&[name, "--root", root, "run", "--bundle", bundle, &id])?;
            if round > 0 {
                series.push(value);
            }
        }
    }
    let version = sh::output(Command::new(DOCKER).arg("--version"))?;

    let mut report = Report::new("run");
    let own = dhow.median();
    let times = docker.over(&dhow, "docker / dhow, round by round");
    let ratio = times.median();
    report.add(dhow);
    report.add(docker);
    report.add(times);
    for (name, _, _, series) in runtimes {
        report.note(format!("{name} / dhow {:.2}: it starts the process and no more (no image, API, network or log)", series.median() / own));
        report.add(series);
    }
    report.verdict("docker / dhow, median", ratio, "10 times faster or more", ratio >= 10.0);
    report.note(format!("the peer: {}", version.trim()));
    report.finish()
}

/// An OCI bundle with the static `true`.
fn make_bundle(bundle: &Path, cgroup: &str) -> Result<()> {
    let files = bundle.join("rootfs/bin");
    std::fs::create_dir_all(&files)?;
    std::fs::copy("/bin/busybox", files.join("true")).context("cannot copy busybox")?;
    sh::output(Command::new("runc").args(["spec", "--bundle"]).arg(bundle))?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["process"]["args"] = json!(["/bin/true"]);
    config["process"]["terminal"] = json!(false);
    config["linux"]["cgroupsPath"] = json!(cgroup);
    std::fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    Ok(())
}
