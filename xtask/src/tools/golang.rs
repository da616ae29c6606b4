//! Programs built from published Go modules, once, and kept in the cache.
//!
//! `go install MODULE@VERSION` refuses modules whose go.mod replaces others, so each build happens
//! in a module of its own that requires the wanted one.

use crate::{sh, workspace};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to build.
#[derive(Debug)]
pub struct Build<'a> {
    /// The folder under `tools` in the cache; it tells the version.
    pub name: &'a str,
    /// Modules with their versions.
    pub requires: &'a [(&'a str, &'a str)],
    /// Packages to compile, with the names of the binaries.
    pub programs: &'a [(&'a str, &'a str)],
    /// Packages whose tests to compile, with the names of the binaries.
    pub tests: &'a [(&'a str, &'a str)],
    /// Build tags.
    pub tags: &'a str,
    /// Flags of the linker.
    pub link: &'a str,
    /// The version of modules that a required one asks for as v0.0.0: it replaces them by folders
    /// of its own repository, which are published apart.
    pub siblings: Option<&'a str>,
}

impl Build<'_> {
    /// The folder with the binaries, built when it is not there yet.
    ///
    /// # Errors
    /// When Go is missing or too old, a module cannot be had, or it does not compile.
    pub fn folder(&self) -> Result<PathBuf> {
        let home = workspace::cache().join("tools").join(self.name);
        if home.is_dir() {
            return Ok(home);
        }
        println!("building {} from its Go modules into {}", self.name, home.display());
        whole(&home, |half| self.make(half))?;
        Ok(home)
    }

    fn make(&self, home: &Path) -> Result<()> {
        let source = home.join("src");
        std::fs::create_dir_all(&source)?;
        std::fs::write(source.join("go.mod"), "module tools\n\ngo 1.26\n")?;
        // Naming the packages in a file keeps what they need in go.mod.
        let mut text = String::from("//go:build tools\n\npackage tools\n\nimport (\n");
        for (package, _) in self.programs.iter().chain(self.tests) {
            text.push_str(&format!("\t_ \"{package}\"\n"));
        }
        text.push_str(")\n");
        std::fs::write(source.join("tools.go"), text)?;
        for (module, version) in self.requires {
            if let Some(sibling) = self.siblings {
                for name in unversioned(&source, module, version)? {
                    let replace = format!("-replace={name}={name}@{sibling}");
                    sh::output(go(&source).args(["mod", "edit", &replace]))?;
                }
            }
        }
        let wanted = self.requires.iter().map(|(module, version)| format!("{module}@{version}"));
        sh::output(go(&source).arg("get").args(wanted))?;
        for (package, name) in self.programs {
            let mut build = go(&source);
            build.args(["build", "-trimpath", "-tags", self.tags, "-ldflags", self.link, "-o"]);
            sh::output(build.arg(home.join(name)).arg(package))?;
        }
        for (package, name) in self.tests {
            let mut build = go(&source);
            build.args(["test", "-c", "-trimpath", "-tags", self.tags, "-o"]);
            sh::output(build.arg(home.join(name)).arg(package))?;
        }
        Ok(())
    }
}

/// Makes a folder whole or not at all: an interrupted build must not look like a finished one.
///
/// # Errors
/// When `make` fails, or files cannot be moved.
pub fn whole(home: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut half = home.as_os_str().to_owned();
    half.push(".half");
    let half = PathBuf::from(half);
    if half.exists() {
        std::fs::remove_dir_all(&half)?;
    }
    std::fs::create_dir_all(&half).with_context(|| format!("cannot make {}", half.display()))?;
    make(&half)?;
    std::fs::rename(&half, home).with_context(|| format!("cannot make {}", home.display()))
}

/// The directory of a published module's sources.
///
/// # Errors
/// When it cannot be had.
pub fn source(module: &str, version: &str) -> Result<PathBuf> {
    let facts = download(&std::env::temp_dir(), module, version)?;
    match facts["Dir"].as_str() {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => bail!("cannot download {module}@{version}: {}", facts["Error"]),
    }
}

/// Go with few processes and no C, at low priority: a build must not disturb what runs beside it.
fn go(folder: &Path) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "10", "go"]).current_dir(folder);
    command.env("GOFLAGS", "-p=2 -buildvcs=false -mod=mod").env("CGO_ENABLED", "0");
    command
}

fn download(folder: &Path, module: &str, version: &str) -> Result<serde_json::Value> {
    let told =
        sh::output(go(folder).args(["mod", "download", "-json", &format!("{module}@{version}")]))
            .context("install Go 1.26 or newer, and let it reach a module proxy (GOPROXY)")?;
    Ok(serde_json::from_str(&told)?)
}

/// The modules that a module asks for as v0.0.0.
fn unversioned(folder: &Path, module: &str, version: &str) -> Result<Vec<String>> {
    let facts = download(folder, module, version)?;
    let path = facts["GoMod"].as_str().with_context(|| format!("{module} has no go.mod"))?;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let names = text.lines().filter_map(|line| line.trim().strip_suffix(" v0.0.0"));
    Ok(names.map(str::to_owned).collect())
}
