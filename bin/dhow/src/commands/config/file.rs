//! Files that are replaced in one step, after a look at the new one.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Permissions of a file that is made.
const MODE: u32 = 0o644;

/// A new file beside the one that it is to replace. Dropping it removes it.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    dest: PathBuf,
}

/// Whether a file has these bytes, and this mode if one is given.
pub fn is_same(dest: &Path, bytes: &[u8], mode: Option<u32>) -> bool {
    let same_mode = |meta: std::fs::Metadata| {
        mode.is_none_or(|mode| meta.permissions().mode() & 0o7777 == mode)
    };
    std::fs::metadata(dest).is_ok_and(same_mode)
        && std::fs::read(dest).is_ok_and(|old| old == bytes)
}

/// Writes the new file to disk, with the old one's owner and mode.
///
/// # Errors
/// When the directory cannot be written.
pub fn stage(dest: &Path, bytes: &[u8], mode: Option<u32>) -> Result<Staged> {
    let failed = || format!("cannot write {}", dest.display());
    // What a link points to is replaced, not the link.
    let dest = dest.canonicalize().unwrap_or_else(|_| dest.to_path_buf());
    let name = dest.file_name().with_context(failed)?.to_string_lossy().into_owned();
    let path = dest.with_file_name(format!(".{name}.dhow-{}", std::process::id()));
    // Left by a process of the same number that was killed.
    let _ = std::fs::remove_file(&path);
    let old = std::fs::metadata(&dest).ok();
    // Not readable by others before its mode is known to be right.
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(failed)?;
    let staged = Staged { path, dest };
    file.write_all(bytes).with_context(failed)?;
    if let Some(old) = &old {
        let new = file.metadata().with_context(failed)?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))
                .with_context(failed)?;
        }
    }
    let mode = mode.or(old.map(|old| old.permissions().mode() & 0o7777)).unwrap_or(MODE);
    file.set_permissions(std::fs::Permissions::from_mode(mode)).with_context(failed)?;
    file.sync_all().with_context(failed)?;
    Ok(staged)
}

impl Staged {
    /// Where the new file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it in place.
    ///
    /// # Errors
    /// When it cannot be; the old file is then still there.
    pub fn commit(self) -> Result<()> {
        let failed = || format!("cannot replace {}", self.dest.display());
        std::fs::rename(&self.path, &self.dest).with_context(failed)?;
        let dir = self.dest.parent().unwrap_or(Path::new("/"));
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir).and_then(|dir| dir.sync_all()).with_context(failed)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already when it was put in place.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_file_keeps_its_mode_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("app.conf");
        stage(&dest, b"one", None).unwrap().commit().unwrap();
        assert_eq!(mode(&dest), 0o644);
        std::fs::set_permissions(&dest, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(is_same(&dest, b"one", None) && !is_same(&dest, b"one", Some(0o600)));
        stage(&dest, b"two", None).unwrap().commit().unwrap();
        assert_eq!((std::fs::read(&dest).unwrap(), mode(&dest)), (b"two".to_vec(), 0o640));
        // One that is not taken leaves the old file alone.
        drop(stage(&dest, b"three", Some(0o600)).unwrap());
        assert_eq!(std::fs::read(&dest).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        stage(&link, b"new", None).unwrap().commit().unwrap();
        assert_eq!(std::fs::read(&real).unwrap(), b"new");
        assert!(link.symlink_metadata().unwrap().is_symlink());
    }
}
