//! What a payload volume has to hold: files with contents, modes and owners. Pure.

use crate::env::downward::PodFacts;
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret};
use std::collections::BTreeMap;

/// One file of a payload volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Contents.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner; root when absent.
    pub user: Option<u32>,
}

/// The files of a volume by relative path.
pub type Payload = BTreeMap<String, File>;

/// The mode of files when nothing says otherwise.
pub const DEFAULT_MODE: i32 = 0o644;

fn bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o7777
}

/// Refuses paths that would leave the volume.
///
/// # Errors
/// A text that names the path.
pub fn check_path(path: &str) -> Result<(), String> {
    let bad = path.is_empty()
        || path.starts_with('/')
        || path.split('/').any(|part| part == "..")
        || path.starts_with("..");
    if bad {
        Err(format!("invalid path {path:?}: it must be relative and may not contain '..'"))
    } else {
        Ok(())
    }
}

/// Which keys go where, and how.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    /// `config` or `secret`: the word in messages.
    pub word: &'static str,
    /// Only these keys, at these paths.
    pub items: Option<&'a [KeyToPath]>,
    /// A missing key is fine.
    pub optional: bool,
    /// Mode of files that have none of their own.
    pub mode: i32,
}

fn select(
    data: &BTreeMap<String, Vec<u8>>,
    selection: Selection<'_>,
    out: &mut Payload,
) -> Result<(), String> {
    let Some(items) = selection.items.filter(|i| !i.is_empty()) else {
        for (key, bytes) in data {
            out.insert(
                key.clone(),
                File { bytes: bytes.clone(), mode: bits(selection.mode), user: None },
            );
        }
        return Ok(());
    };
    for item in items {
        check_path(&item.path)?;
        match data.get(&item.key) {
            Some(bytes) => {
                let mode = bits(item.mode.unwrap_or(selection.mode));
                let user = item.user.and_then(|u| u32::try_from(u).ok());
                out.insert(item.path.clone(), File { bytes: bytes.clone(), mode, user });
            }
            None if selection.optional => {}
            None => {
                return Err(format!(
                    "references non-existent {} key: {}",
                    selection.word, item.key
                ));
            }
        }
    }
    Ok(())
}

/// Adds the files of a ConfigMap.
///
/// # Errors
/// A text that names the missing key or the bad path.
pub fn config_map(
    map: &ConfigMap,
    selection: Selection<'_>,
    out: &mut Payload,
) -> Result<(), String> {
    let mut data = BTreeMap::new();
    for (key, text) in map.data.iter().flatten() {
        data.insert(key.clone(), text.clone().into_bytes());
    }
    for (key, bytes) in map.binary_data.iter().flatten() {
        data.insert(key.clone(), bytes.0.clone());
    }
    select(&data, selection, out)
}

/// Adds the files of a Secret.
///
/// # Errors
/// A text that names the missing key or the bad path.
pub fn secret(secret: &Secret, selection: Selection<'_>, out: &mut Payload) -> Result<(), String> {
    let mut data = BTreeMap::new();
    for (key, bytes) in secret.data.iter().flatten() {
        data.insert(key.clone(), bytes.0.clone());
    }
    select(&data, selection, out)
}

/// Adds files that tell a pod of itself.
///
/// # Errors
/// A text that names the unknown field, resource or the bad path.
pub fn downward(
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    facts: &PodFacts<'_>,
    out: &mut Payload,
) -> Result<(), String> {
    for item in items {
        check_path(&item.path)?;
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => facts.field(&field.field_path)?,
            (None, Some(resource)) => facts.resource(resource, None)?,
            (None, None) => {
                return Err(format!(
                    "item {} has neither fieldRef nor resourceFieldRef",
                    item.path
                ));
            }
        };
        let user = item.user.and_then(|u| u32::try_from(u).ok());
        let file = File { bytes: text.into_bytes(), mode: bits(item.mode.unwrap_or(mode)), user };
        out.insert(item.path.clone(), file);
    }
    Ok(())
}

/// Adds one file.
///
/// # Errors
/// A text that names the bad path.
pub fn single(
    path: &str,
    bytes: Vec<u8>,
    mode: i32,
    user: Option<u32>,
    out: &mut Payload,
) -> Result<(), String> {
    check_path(path)?;
    out.insert(path.to_owned(), File { bytes, mode: bits(mode), user });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map() -> ConfigMap {
        serde_json::from_value(json!({
            "metadata": {}, "data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="},
        }))
        .unwrap()
    }

    fn selection(items: Option<&[KeyToPath]>, optional: bool) -> Selection<'_> {
        Selection { word: "config", items, optional, mode: 0o640 }
    }

    #[test]
    fn without_items_every_key_is_a_file() {
        let mut out = Payload::new();
        config_map(&map(), selection(None, false), &mut out).unwrap();
        assert_eq!(out.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(out["c"], File { bytes: vec![0, 1], mode: 0o640, user: None });
    }

    #[test]
    fn items_choose_keys_paths_and_modes() {
        let items: Vec<KeyToPath> =
            serde_json::from_value(json!([{"key": "a", "path": "x/y", "mode": 256}])).unwrap();
        let mut out = Payload::new();
        config_map(&map(), selection(Some(&items), false), &mut out).unwrap();
        assert_eq!(out.len(), 1);
        assert_eq!(out["x/y"].mode, 0o400);
    }

    #[test]
    fn a_missing_key_is_an_error_unless_optional() {
        let items: Vec<KeyToPath> =
            serde_json::from_value(json!([{"key": "z", "path": "z"}])).unwrap();
        let mut out = Payload::new();
        let error = config_map(&map(), selection(Some(&items), false), &mut out).unwrap_err();
        assert_eq!(error, "references non-existent config key: z");
        config_map(&map(), selection(Some(&items), true), &mut out).unwrap();
        assert!(out.is_empty());
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        for path in ["/etc/passwd", "../x", "a/../../x", "..data", ""] {
            assert!(check_path(path).is_err(), "{path}");
        }
        assert!(check_path("a/..b/c").is_ok());
    }
}
