//! Where things lie: the repository's root, the target directory, the release binaries.

use std::path::{Path, PathBuf};

/// The target that `.cargo/config.toml` names.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The repository's root.
pub fn root() -> &'static Path {
    // The manifest's directory is ROOT/xtask.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where a release binary of this workspace lies once it is built.
pub fn release(name: &str) -> PathBuf {
    target().join(TARGET).join("release").join(name)
}

/// The platform's program: `DHOW_BIN` of the environment, or the release binary.
pub fn dhow() -> PathBuf {
    std::env::var_os("DHOW_BIN").map_or_else(|| release("dhow"), PathBuf::from)
}

/// Where tools that the tests need are kept between runs: `~/.cache/dhow`.
pub fn cache() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    home.join(".cache/dhow")
}
