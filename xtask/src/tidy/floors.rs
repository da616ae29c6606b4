//! The floors: which folder's crates may depend on which.
//!
//! `control`, `node`, `doors` and `ops` are siblings that never import each other; they meet in
//! `state` and `model`. The table is the one of the design, one row for each crate or folder.

use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// Who may use whom: the first row that fits a crate's folder holds. An entry without a slash
/// allows all crates of a folder, one with a slash a single crate.
const FLOORS: &[(&str, &[&str])] = &[
    ("base/clock", &[]),
    ("base/fault", &["base/clock"]),
    ("base/reason", &[]),
    ("base/tls", &[]),
    ("base/bodies", &[]),
    ("model/objects", &["base/reason"]),
    ("model/fit", &["base/reason", "model/objects"]),
    ("model/intents", &["base/reason", "model/objects"]),
    ("store/kv", &["base"]),
    ("store/mvcc", &["store/bolt", "store/kv"]),
    ("store/bolt", &[]),
    ("store/rpc", &[]),
    ("store/peers", &["base", "store"]),
    ("store/remote", &["base", "store/kv", "store/rpc"]),
    ("store/log", &["base"]),
    ("store/server", &["base", "store"]),
    ("state", &["base", "model", "store/kv"]),
    ("control/loops", &["base", "model", "state", "control"]),
    ("control", &["model", "base/reason"]),
    ("node/kernel", &["base"]),
    ("node/images", &["base", "model", "node/kernel"]),
    ("node/runtime", &["base", "model", "node/kernel"]),
    ("node/builder", &["base", "node/images", "node/kernel", "node/runtime"]),
    ("node/dataplane", &["base", "model", "node/kernel"]),
    ("node/names", &["base", "model"]),
    ("node/provision", &["base", "model", "node/kernel"]),
    ("node/agent", &["base", "model", "node"]),
    ("doors/etcd", &["base", "model", "state", "store/kv", "store/rpc"]),
    ("doors/registry", &["base", "model", "state", "node/images"]),
    ("doors", &["base", "model", "state"]),
    ("ops", &["base", "model", "state"]),
    // The parts at the top may use everything, and nothing may use them.
    ("bin", &["base", "model", "store", "state", "control", "node", "doors", "ops"]),
    ("bench/embedded", &["base/clock", "store/kv", "store/server"]),
    ("bench", &["store/rpc"]),
    ("fuzz", &["base", "model", "store", "state", "node", "doors", "fuzz"]),
    // Real crashes are judged by the simulation's checkers.
    ("tests/e2e", &["base", "store/kv", "store/remote", "tests/sim"]),
    ("tests/harness", &["node/kernel"]),
    ("tests", &["base", "model", "store", "state", "control", "node", "doors", "ops"]),
    ("xtask", &["base/reason", "tests/harness"]),
    ("examples", &[]),
];

/// What tests and examples of a crate may use besides: the store in memory, objects, state, and what
/// tests share.
const IN_TESTS: &[&str] = &["base", "model", "store", "state", "tests/harness"];

/// A crate of this workspace.
#[derive(Debug)]
pub struct Package {
    /// Its folder below the root, for example `node/kernel`.
    pub folder: String,
    /// Crates of this workspace that it uses: folder, and whether only its tests do.
    pub uses: Vec<(String, bool)>,
}

/// Reads the crates from what `cargo metadata` prints.
///
/// # Errors
/// When it is not understood.
pub fn packages(metadata: &str, root: &Path) -> Result<Vec<Package>> {
    let metadata: serde_json::Value =
        serde_json::from_str(metadata).context("cargo metadata prints no JSON")?;
    let folder = |path: &str| -> String {
        Path::new(path)
            .strip_prefix(root)
            .map_or_else(|_| path.to_owned(), |p| p.display().to_string())
    };
    let mut packages = Vec::new();
    let all = metadata["packages"].as_array().context("cargo metadata tells no packages")?;
    for package in all.iter().filter(|package| package["source"].is_null()) {
        let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap_or_default());
        let own = manifest.parent().unwrap_or(root).display().to_string();
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        packages.push(Package {
            folder: folder(&own),
            uses: dependencies
                .filter_map(|d| Some((folder(d["path"].as_str()?), d["kind"] == "dev")))
                .collect(),
        });
    }
    Ok(packages)
}

/// Every dependency that the table does not allow.
pub fn check(packages: &[Package]) -> Vec<String> {
    let mut findings = Vec::new();
    for package in packages {
        let Some((_, allowed)) = FLOORS.iter().find(|(who, _)| covers(who, &package.folder)) else {
            findings.push(format!(
                "{}: stands on no floor; add a row for it to xtask/src/tidy/floors.rs",
                package.folder
            ));
            continue;
        };
        for (used, in_tests) in &package.uses {
            let fits = |list: &[&str]| list.iter().any(|entry| covers(entry, used));
            let fine = fits(allowed) || (*in_tests && fits(IN_TESTS));
            if !fine {
                findings.push(format!(
                    "{}/Cargo.toml: must not use {used}; it may use {}: move the shared part down or let them meet in state or model",
                    package.folder,
                    if allowed.is_empty() { "no crate of ours".to_owned() } else { allowed.join(", ") },
                ));
            }
        }
    }
    findings
}

/// Whether `entry` (a folder or a crate) covers the crate in `folder`.
fn covers(entry: &str, folder: &str) -> bool {
    folder.strip_prefix(entry).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(folder: &str, uses: &[(&str, bool)]) -> Package {
        let uses = uses.iter().map(|(used, tests)| ((*used).to_owned(), *tests)).collect();
        Package { folder: folder.to_owned(), uses }
    }

    #[test]
    fn siblings_never_use_each_other_not_even_in_tests() {
        for (folder, used) in [
            ("control/workloads", "node/agent"),
            ("node/agent", "state"),
            ("doors/kube", "doors/node"),
            ("doors/kube", "control/loops"),
            ("model/objects", "state"),
            ("node/runtime", "node/images"),
        ] {
            assert_eq!(check(&[package(folder, &[(used, false)])]).len(), 1, "{folder} > {used}");
        }
        assert_eq!(check(&[package("node/agent", &[("doors/kube", true)])]).len(), 1);
    }

    #[test]
    fn the_way_down_is_open() {
        let fine = [
            package(
                "doors/kube",
                &[("state", false), ("base/clock", false), ("store/server", true)],
            ),
            package("control/loops", &[("control/scheduler", false), ("state", false)]),
            package("node/agent", &[("node/runtime", false), ("model/intents", false)]),
        ];
        assert_eq!(check(&fine), Vec::<String>::new());
    }

    #[test]
    fn a_crate_outside_the_house_is_found() {
        assert_eq!(check(&[package("stateful", &[])]).len(), 1);
    }
}
