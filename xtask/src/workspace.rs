//! Where things lie: the repository's root, the target directory, the release binaries.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The target that `.cargo/config.toml` names.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The repository's root: the parent of the manifest's directory (ROOT/xtask), which `cargo run`
/// names in the environment. Not the path at build time: clones may share a target directory, and
/// the program of one would then work on the files of another.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let here = || std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        root_of(std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from), here)
    })
}

/// The root by the manifest's directory. Without one (the program was started by hand) it is the
/// nearest directory above `here` that holds `xtask/Cargo.toml`.
fn root_of(manifest: Option<PathBuf>, here: impl FnOnce() -> PathBuf) -> PathBuf {
    if let Some(root) = manifest.as_deref().and_then(Path::parent) {
        return root.to_owned();
    }
    let here = here();
    let above = here.ancestors().find(|dir| dir.join("xtask/Cargo.toml").is_file());
    above.unwrap_or(&here).to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_where_cargo_runs_and_not_where_it_built() {
        let elsewhere = PathBuf::from("/elsewhere/clone/xtask");
        assert_eq!(root_of(Some(elsewhere), || unreachable!()), Path::new("/elsewhere/clone"));
    }

    #[test]
    fn without_cargo_the_root_is_found_above() -> std::io::Result<()> {
        let dir = std::env::temp_dir().join(format!("dhow-xtask-root-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("xtask"))?;
        std::fs::create_dir_all(dir.join("node/agent"))?;
        std::fs::write(dir.join("xtask/Cargo.toml"), "")?;
        let found = root_of(None, || dir.join("node/agent"));
        std::fs::remove_dir_all(&dir)?;
        assert_eq!(found, dir);
        Ok(())
    }
}
