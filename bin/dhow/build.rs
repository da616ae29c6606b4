//! Packs the program's relative relocations where the C library that it is linked with reads them
//! so: a position-independent program of this size has over 40,000 of them, and its start reads
//! each, a megabyte of them when they lie as they are and twelve kilobytes when packed.

use std::process::Command;

/// The first version of glibc whose start-up code applies packed relocations (DT_RELR).
const PACKED: (u32, u32) = (2, 36);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Linked for another machine, the C library here tells nothing.
    let native = std::env::var_os("HOST") == std::env::var_os("TARGET");
    if native && glibc().is_some_and(|version| version >= PACKED) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's C library, major and minor; `None` when it is another one.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
