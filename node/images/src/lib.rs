//! Content by digest: load, unpack, snapshots, garbage.
//!
//! Blobs are stored as an OCI image layout (`blobs/sha256/...`, `index.json`) and each layer is
//! unpacked once into a directory that overlayfs takes as a lower layer.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Why the image store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such image here.
    #[error("image {0} is not on this machine; load it with 'dhow image load' or build it with 'dhow image build -t {0} DIR'")]
    NotFound(String),
    /// The name cannot be understood.
    #[error("image name {name:?} is invalid: {why}")]
    InvalidName {
        /// As given.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The archive or blob is damaged or of an unknown form.
    #[error("{what}: {why}")]
    Damaged {
        /// Which file or blob.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The image is used by a container.
    #[error("image {image} is in use by {user}")]
    InUse {
        /// The image.
        image: String,
        /// By what.
        user: String,
    },
    /// Input or output failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The run-time part of an OCI image configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `user[:group]`.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program when there is no entry point.
    pub cmd: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// `8080/tcp`.
    pub exposed_ports: std::collections::BTreeMap<String, serde_json::Value>,
    /// Paths that want a volume.
    pub volumes: std::collections::BTreeMap<String, serde_json::Value>,
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Signal name or number to stop it with; empty means SIGTERM.
    pub stop_signal: String,
}

/// An image that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the configuration, `sha256:...`: what Docker calls the image ID.
    pub id: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Full names with tags, for example `docker.io/library/busybox:latest`.
    pub names: Vec<String>,
    /// How to run it.
    pub config: RunConfig,
    /// Unpacked layers, topmost first, ready for overlayfs. Never empty (an image of no layers has
    /// one empty directory).
    pub layers: Vec<PathBuf>,
    /// Sum of the unpacked layers, bytes.
    pub size: u64,
    /// When it was created, RFC 3339; may be empty.
    pub created: String,
}

/// The image store of one machine. Cheap to clone; safe to use from several threads, and from
/// several processes by a lock file.
#[derive(Debug, Clone)]
pub struct Images {}

#[allow(unused_variables)]
impl Images {
    /// Opens (or makes) the store in `dir`.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        panic!("contract")
    }
    /// Finds an image by name (`busybox`, `repo/name:tag`, `name@sha256:...`), id or unique id
    /// prefix.
    pub fn get(&self, reference: &str) -> Result<Image, Error> {
        panic!("contract")
    }
    /// All images, newest first.
    pub fn list(&self) -> Result<Vec<Image>, Error> {
        panic!("contract")
    }
    /// Loads a `docker save` or OCI archive (plain, gzip or zstd); returns the images it held.
    pub fn load(&self, archive: &mut dyn std::io::Read) -> Result<Vec<Image>, Error> {
        panic!("contract")
    }
    /// Removes a name, and the image with its unshared layers when that was its last name.
    /// `in_use` names the layer directories that running containers need.
    pub fn remove(&self, reference: &str, in_use: &[PathBuf]) -> Result<Vec<String>, Error> {
        panic!("contract")
    }
    /// Gives an image a further name.
    pub fn tag(&self, reference: &str, name: &str) -> Result<(), Error> {
        panic!("contract")
    }
}
