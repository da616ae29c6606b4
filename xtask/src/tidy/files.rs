//! The form of source files: a first line that says what the file is, limits of length, `unsafe`
//! and the wall clock only where they are allowed.

use super::floors::Package;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// The most lines of a file.
const FILE_LINES: usize = 1_000;
/// The most lines of a crate, its tests included.
const CRATE_LINES: usize = 15_000;
/// Crates that may hold `unsafe` code.
const UNSAFE: [&str; 2] = ["node/kernel", "node/runtime"];
/// Folders whose crates take time through `base/clock`, so that simulation can replace it.
const SIMULATED: [&str; 3] = ["store", "state", "control"];
/// Ways around `base/clock`.
const CLOCKS: [&str; 4] =
    ["Instant::now()", "SystemTime::now()", "Timestamp::now()", "Zoned::now()"];

/// Checks all source files of the workspace's crates.
///
/// # Errors
/// When a file cannot be read.
pub fn check(root: &Path, packages: &[Package]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for package in packages {
        let mut files = Vec::new();
        sources(&root.join(&package.folder), &mut files)?;
        files.sort();
        let mut lines = 0;
        for file in files {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            lines += text.lines().count();
            let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            findings.extend(check_file(&name, &package.folder, &text));
        }
        if lines > CRATE_LINES {
            findings.push(format!(
                "{}: has {lines} lines, the limit is {CRATE_LINES}; split the crate along a rule",
                package.folder
            ));
        }
    }
    Ok(findings)
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                sources(&path, files)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(name: &str, folder: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if !text.starts_with("//! ") {
        findings.push(format!("{name}:1: opens without a '//! ' line; say what the file is for"));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES {
        findings.push(format!(
            "{name}: has {lines} lines, the limit is {FILE_LINES}; cut it along a seam"
        ));
    }
    let simulated = SIMULATED.iter().any(|f| folder == *f || folder.starts_with(&format!("{f}/")));
    // Tests, examples and benches are edges; so is a file's own test module, which stands last.
    let core = simulated && name.strip_prefix(folder).is_some_and(|rest| rest.starts_with("/src/"));
    let mut in_tests = false;
    for (index, line) in text.lines().enumerate() {
        in_tests |= line.starts_with("#[cfg(test)]");
        let code = line.split("//").next().unwrap_or_default();
        if code.contains(concat!("allow(", "unsafe_code)")) && !UNSAFE.contains(&folder) {
            findings.push(format!(
                "{name}:{}: unsafe code is only for {}; wrap what you need there",
                index + 1,
                UNSAFE.join(" and ")
            ));
        }
        if core
            && !in_tests
            && let Some(clock) = CLOCKS.iter().find(|c| code.contains(**c))
        {
            findings.push(format!(
                "{name}:{}: reads {clock}; take the time from dhow_clock::Clock",
                index + 1
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::check_file;

    #[test]
    fn finds_what_is_not_in_form() {
        assert_eq!(check_file("state/src/a.rs", "state", "fn main() {}\n").len(), 1);
        let long = format!("//! Long.\n{}", "\n".repeat(1_000));
        assert_eq!(check_file("state/src/a.rs", "state", &long).len(), 1);
        let unsafe_one = concat!("//! A.\n#![allow(", "unsafe_code)]\n");
        assert_eq!(check_file("state/src/a.rs", "state", unsafe_one).len(), 1);
        assert!(check_file("node/kernel/src/lib.rs", "node/kernel", unsafe_one).is_empty());
    }

    #[test]
    fn the_core_takes_its_time_from_the_clock() {
        let clock = concat!("//! A.\nlet t = Instant::", "now();\n");
        assert_eq!(check_file("state/src/a.rs", "state", clock).len(), 1);
        assert!(check_file("state/tests/a.rs", "state", clock).is_empty());
        assert!(check_file("node/agent/src/a.rs", "node/agent", clock).is_empty());
        let tested = clock.replace("let", "#[cfg(test)]\nlet");
        assert!(check_file("state/src/a.rs", "state", &tested).is_empty());
    }
}
