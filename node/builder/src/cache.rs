//! What each step yielded before, by a digest of everything that it depends on.
//!
//! One small JSON file per step in `cache/` of the image store. An entry whose layer has been
//! deleted counts as none. Entries that nobody asked for in 30 days are deleted.

use crate::Error;
use dhow_images::store::Descriptor;
use dhow_images::{Images, Layer};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a step yielded.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// When it ran, RFC 3339.
    pub(crate) created: String,
    /// The layer that it made, if it made one.
    pub(crate) layer: Option<Layer>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    created: String,
    layer: Option<StoredLayer>,
}

#[derive(Serialize, Deserialize)]
struct StoredLayer {
    diff_id: String,
    chain: String,
    blob: Descriptor,
    /// Relative to the store.
    directory: PathBuf,
}

/// The entries of one image store.
#[derive(Debug)]
pub(crate) struct Cache {
    store: PathBuf,
    dir: PathBuf,
    /// Do not look anything up.
    blind: bool,
}

impl Cache {
    pub(crate) fn open(images: &Images, blind: bool) -> Result<Self, Error> {
        let dir = images.dir().join("cache");
        std::fs::create_dir_all(&dir).map_err(Error::io(format!("make {}", dir.display())))?;
        Ok(Self { store: images.dir().to_path_buf(), dir, blind })
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key.trim_start_matches("sha256:"))
    }

    /// The result of the step with this key.
    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        if self.blind {
            return None;
        }
        let path = self.path(key);
        // A damaged entry counts as none.
        let stored: Stored = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        let layer = match stored.layer {
            None => None,
            Some(layer) => {
                let directory = self.store.join(&layer.directory);
                // The store writes this file when a layer is complete.
                if !directory.parent()?.join("size").exists() {
                    return None;
                }
                let StoredLayer { diff_id, chain, blob, .. } = layer;
                Some(Layer { diff_id, chain, blob, directory })
            }
        };
        // The time of last use; that it cannot be written is no reason to fail.
        if let Ok(file) = std::fs::File::options().write(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(Entry { created: stored.created, layer })
    }

    /// Remembers the result of a step.
    pub(crate) fn put(&self, key: &str, entry: &Entry) -> Result<(), Error> {
        let layer = entry.layer.as_ref().map(|layer| StoredLayer {
            diff_id: layer.diff_id.clone(),
            chain: layer.chain.clone(),
            blob: layer.blob.clone(),
            directory: match layer.directory.strip_prefix(&self.store) {
                Ok(relative) => relative.to_path_buf(),
                Err(_) => layer.directory.clone(),
            },
        });
        let stored = Stored { created: entry.created.clone(), layer };
        let path = self.path(key);
        let new = path.with_extension(format!("new{}", std::process::id()));
        let bytes = serde_json::to_vec(&stored).map_err(Error::io("encode a cache entry"))?;
        std::fs::write(&new, bytes)
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(Error::io(format!("write {}", path.display())))
    }

    /// Deletes what was not used for long.
    pub(crate) fn prune(&self) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let age =
                entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if age.is_some_and(|age| age > KEPT) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}
