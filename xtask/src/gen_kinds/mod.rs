//! `cargo xtask gen-kinds`: derives the table of API types from the published Go modules.
//!
//! `derive.go` reads the sources (it needs Go on the PATH and the module proxy) and prints facts as
//! JSON; this module shapes them into the file that `dhow_objects::schema` embeds. The file's
//! layout is told in `model/objects/src/schema/table.rs`.

mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// The release of the Kubernetes modules that the table is made from.
pub const RELEASE: &str = "v0.37.1";

/// The modules whose types are served.
const MODULES: [&str; 4] = [
    "k8s.io/api",
    "k8s.io/apimachinery",
    "k8s.io/apiextensions-apiserver",
    "k8s.io/kube-aggregator",
];

/// Derives the table and writes it to `model/objects/data/kinds.table`. With `--goldens` as an
/// argument of the process, also has the real Go library answer the cases of the schema's tests
/// (this compiles client-go: a minute or two).
///
/// # Errors
/// Go is missing, a module cannot be downloaded, or its sources hold something unforeseen.
pub fn run() -> anyhow::Result<()> {
    if std::env::args().any(|arg| arg == "--goldens") {
        goldens()?;
    }
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut roots = Vec::new();
    for module in MODULES {
        println!("gen-kinds: reading {module}@{RELEASE}");
        roots.push(format!("{module}={}", download(module, scratch.path())?.display()));
    }
    let program = scratch.path().join("derive.go");
    std::fs::write(&program, include_str!("derive.go"))?;
    let output = Command::new("go")
        .arg("run")
        .arg(&program)
        .args(&roots)
        .current_dir(scratch.path())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run go; install Go 1.24 or newer")?;
    if !output.status.success() {
        bail!("derive.go failed; see its message above");
    }
    let packages: Vec<table::Package> =
        serde_json::from_slice(&output.stdout).context("derive.go printed unexpected facts")?;
    let bytes = table::encode(&packages)?;

    let path = crate::workspace::root().join("model/objects/data/kinds.table");
    std::fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    let types: usize = packages.iter().map(|p| p.types.len()).sum();
    println!("gen-kinds: {types} types in {} packages, {} bytes", packages.len(), bytes.len());
    Ok(())
}

/// Writes `model/objects/tests/data/schema_golden.txt`.
fn goldens() -> anyhow::Result<()> {
    let data = crate::workspace::root().join("model/objects/tests/data");
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    std::fs::write(scratch.path().join("main.go"), include_str!("golden.go"))?;
    let go = |args: &[&str]| -> anyhow::Result<Vec<u8>> {
        let cases = std::fs::File::open(data.join("schema_cases.jsonl"))?;
        let output = Command::new("go")
            .args(args)
            .current_dir(scratch.path())
            .stdin(cases)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run go; install Go 1.24 or newer")?;
        if !output.status.success() {
            bail!("go {} failed; see its message above", args.join(" "));
        }
        Ok(output.stdout)
    };
    go(&["mod", "init", "golden"])?;
    for module in ["k8s.io/api", "k8s.io/apimachinery", "k8s.io/client-go"] {
        go(&["get", &format!("{module}@{RELEASE}")])?;
    }
    go(&["mod", "tidy"])?;
    let answers = go(&["run", "."])?;
    std::fs::write(data.join("schema_golden.txt"), answers)?;
    println!("gen-kinds: wrote the goldens of the schema's tests");
    Ok(())
}

/// Downloads a module and gives the directory of its sources.
fn download(module: &str, scratch: &Path) -> anyhow::Result<PathBuf> {
    let output = Command::new("go")
        .args(["mod", "download", "-json", &format!("{module}@{RELEASE}")])
        .current_dir(scratch)
        .output()
        .context("cannot run go; install Go 1.24 or newer")?;
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("cannot download {module}@{RELEASE}"))?;
    match facts["Dir"].as_str() {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => bail!("cannot download {module}@{RELEASE}: {}", facts["Error"]),
    }
}
