//! Small files that a crash must not leave half written.

use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Makes `path` hold `bytes`, in one step. A file that does already is left alone: a start on a full
/// disk, which changes nothing, must not need space.
///
/// # Errors
/// When the file cannot be written; the old content is then still there.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let same_mode = || path.metadata().is_ok_and(|file| file.permissions().mode() & 0o7777 == mode);
    if std::fs::read(path).is_ok_and(|known| known == bytes) && same_mode() {
        return Ok(());
    }
    dhow_clock::disk::replace(path, bytes, mode)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads YAML that a person wrote.
///
/// # Errors
/// One line that says what is wrong, and where.
pub fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| first_line(&error))
}

/// Reads several YAML documents that a person wrote.
///
/// # Errors
/// As [`yaml`].
pub fn yaml_documents<T: serde::de::DeserializeOwned>(text: &str) -> Result<Vec<T>, String> {
    serde_saphyr::from_multiple(text).map_err(|error| first_line(&error))
}

/// The lines after the first draw what it says.
fn first_line(error: &serde_saphyr::Error) -> String {
    let told = error.to_string();
    told.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_wrong_with_a_yaml_file_is_told_in_one_line() {
        let told = yaml::<std::collections::BTreeMap<String, u32>>("a: 1\nb: two\n").unwrap_err();
        assert!(told.starts_with("line 2 column 4: ") && told.lines().count() == 1, "{told}");
        let told = yaml_documents::<serde_json::Value>("a: 1\n---\nb: {c: d\n").unwrap_err();
        assert!(told.starts_with("line 3 ") && told.lines().count() == 1, "{told}");
    }

    #[test]
    fn a_file_that_holds_what_is_wanted_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        let file = |bytes: &[u8], mode| {
            write(&path, bytes, mode).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
            let found = path.metadata().unwrap();
            assert_eq!(found.mode() & 0o7777, mode);
            found.ino()
        };
        let first = file(b"a", 0o600);
        assert_eq!(file(b"a", 0o600), first);
        let second = file(b"a", 0o640);
        assert_ne!(second, first);
        assert_ne!(file(b"b", 0o640), second);
    }
}
