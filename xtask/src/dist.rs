//! `cargo xtask dist`: the release binary, static and small.

use crate::{sh, workspace};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The largest release binary, in bytes.
const LARGEST: u64 = 40 * 1000 * 1000;

/// Builds and checks it.
///
/// # Errors
/// When it does not build, is not static or is too large.
pub fn run() -> Result<()> {
    let path = build(&["dhow"])?;
    let size = check(&path)?;
    println!("{} is static and has {:.1} MB", path.display(), size as f64 / 1e6);
    Ok(())
}

/// Builds release binaries of these packages; the path of the first.
///
/// # Errors
/// When the build fails.
pub fn build(packages: &[&str]) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--locked"]).current_dir(workspace::root());
    for package in packages {
        cargo.args(["-p", package]);
    }
    sh::run(&mut cargo)?;
    Ok(workspace::release(packages.first().copied().unwrap_or_default()))
}

/// Builds what demo and benches run: the sample application, and the platform unless `DHOW_BIN`
/// names one.
///
/// # Errors
/// When the build fails.
pub fn build_for_tasks() -> Result<()> {
    if std::env::var_os("DHOW_BIN").is_some() {
        println!("using {} as DHOW_BIN says", workspace::dhow().display());
        return build(&["shop"]).map(drop);
    }
    build(&["dhow", "shop"]).map(drop)
}

/// Builds the platform's program unless `DHOW_BIN` names one.
///
/// # Errors
/// When the build fails.
pub fn build_platform() -> Result<()> {
    if std::env::var_os("DHOW_BIN").is_some() {
        println!("using {} as DHOW_BIN says", workspace::dhow().display());
        return Ok(());
    }
    build(&["dhow"]).map(drop)
}

/// Checks a binary and returns its size in bytes.
///
/// # Errors
/// When it is not static or too large.
pub fn check(path: &std::path::Path) -> Result<u64> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if let Some(interpreter) = interpreter(&bytes)? {
        bail!(
            "{} is not static: it asks for {interpreter}; is +crt-static still set in .cargo/config.toml?",
            path.display()
        );
    }
    let size = bytes.len() as u64;
    if size > LARGEST {
        bail!(
            "{} has {:.1} MB, at most {} are wanted; 'cargo bloat --release --crates' tells what grew",
            path.display(),
            size as f64 / 1e6,
            LARGEST / 1_000_000
        );
    }
    Ok(size)
}

/// The dynamic loader that a 64-bit little-endian ELF file asks for (gABI, program header of type
/// PT_INTERP). A static program asks for none.
fn interpreter(elf: &[u8]) -> Result<Option<String>> {
    const PT_INTERP: u32 = 3;
    if elf.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1][..]) {
        bail!("this is not a 64-bit little-endian ELF file");
    }
    let short = |at: usize| -> Result<usize> {
        let bytes = elf.get(at..at + 2).context("the ELF file is cut off")?;
        Ok(usize::from(u16::from_le_bytes(bytes.try_into()?)))
    };
    let long = |at: usize| -> Result<usize> {
        let bytes = elf.get(at..at + 8).context("the ELF file is cut off")?;
        Ok(usize::try_from(u64::from_le_bytes(bytes.try_into()?))?)
    };
    let (table, entry, count) = (long(0x20)?, short(0x36)?, short(0x38)?);
    for at in (0..count).map(|i| table + i * entry) {
        let kind = elf.get(at..at + 4).context("the ELF file is cut off")?;
        if u32::from_le_bytes(kind.try_into()?) == PT_INTERP {
            let (start, length) = (long(at + 8)?, long(at + 0x20)?);
            let name = elf.get(start..start + length).context("the ELF file is cut off")?;
            return Ok(Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_static_from_dynamic() {
        // This test itself is static, as everything here is.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(interpreter(&own).unwrap(), None);
        let dynamic = std::fs::read("/bin/sh").unwrap();
        let asked = interpreter(&dynamic).unwrap().unwrap();
        assert!(asked.contains("ld"), "{asked}");
        assert!(interpreter(b"#!/bin/sh\n").is_err());
    }
}
