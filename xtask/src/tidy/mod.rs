//! `cargo xtask tidy`: what this repository promises about itself, checked.
//!
//! Also a plain test, so that nobody forgets it. Each finding is one line: what, where, what to do.

mod files;
mod floors;
mod licences;

use crate::{sh, workspace};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// Checks everything and prints what it found.
///
/// # Errors
/// When there is a finding.
pub fn run() -> Result<()> {
    let mut findings = check(workspace::root())?;
    let formatted = Command::new("cargo")
        .args(["fmt", "--all", "--", "--check", "-l"])
        .current_dir(workspace::root())
        .output()?;
    let text = String::from_utf8_lossy(&formatted.stdout).into_owned();
    // Once each: a test module that several tests share is told for each of them.
    for file in text.lines().collect::<std::collections::BTreeSet<_>>() {
        let file = Path::new(file).strip_prefix(workspace::root()).unwrap_or(Path::new(file));
        let file = file.display();
        findings.push(format!("{file}: is not formatted; run 'cargo fmt --all'"));
    }
    if !formatted.status.success() && text.is_empty() {
        let text = String::from_utf8_lossy(&formatted.stderr);
        findings.push(format!("cargo fmt cannot run: {}", text.lines().next().unwrap_or_default()));
    }
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("tidy: fine");
            Ok(())
        }
        n => bail!("tidy: {n} findings, listed above"),
    }
}

/// All findings except those about formatting.
fn check(root: &Path) -> Result<Vec<String>> {
    let metadata = sh::output(
        Command::new("cargo")
            .args(["metadata", "--format-version=1", "--locked"])
            .args(["--filter-platform", workspace::TARGET])
            .current_dir(root),
    )?;
    let packages = floors::packages(&metadata, root)?;
    let mut findings = floors::check(&packages);
    findings.extend(files::check(root, &packages)?);
    findings.extend(licences::check(&metadata)?);
    findings.extend(locked(&std::fs::read_to_string(root.join("Cargo.lock"))?));
    findings.extend(reasons(root));
    Ok(findings)
}

/// Trust comes from rustls and ring alone: nothing that links or builds a C library for it.
fn locked(lock: &str) -> Vec<String> {
    const FORBIDDEN: [&str; 6] =
        ["openssl", "openssl-sys", "aws-lc-rs", "aws-lc-sys", "native-tls", "boring-sys"];
    lock.lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .filter(|name| FORBIDDEN.contains(name))
        .map(|name| {
            format!(
                "Cargo.lock: {name} is not wanted; 'cargo tree -i {name}' tells who asks for it: choose that crate's ring feature"
            )
        })
        .collect()
}

/// Whoever meets a reason code finds a page about it.
fn reasons(root: &Path) -> Vec<String> {
    let folder = root.join("docs/reasons");
    let missing = dhow_reason::Code::ALL
        .iter()
        .map(|code| code.name())
        .filter(|name| !folder.join(format!("{name}.md")).is_file());
    missing
        .map(|name| format!("docs/reasons/{name}.md: is missing; every reason code has a page"))
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_is_tidy() {
        let findings = super::check(crate::workspace::root()).unwrap();
        assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
    }

    #[test]
    fn unwanted_crates_are_found_in_the_lock_file() {
        let lock = "[[package]]\nname = \"openssl-sys\"\n[[package]]\nname = \"openssl-probe\"\n";
        assert_eq!(super::locked(lock).len(), 1);
    }
}
