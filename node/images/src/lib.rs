//! Content by digest: load, unpack, snapshots, garbage.
//!
//! Blobs are stored as an OCI image layout and each layer is unpacked once into a directory that
//! overlayfs takes as a lower layer. See [`store`] for the layout on disk.

pub mod archive;
pub mod digest;
pub mod layer;
pub mod name;
pub mod store;

pub use name::Name;
pub use store::{Images, Layer};

use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Why the image store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such image here.
    #[error(
        "image {0} is not on this machine; load it with 'dhow image load' or build it with 'dhow image build -t {0} DIR'"
    )]
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
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// Which file or blob.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The image is used by a container.
    #[error("image {image} is in use by {user}; remove that first")]
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

impl Error {
    pub(crate) fn io(what: String, source: impl Into<std::io::Error>) -> Self {
        Self::Io { what, source: source.into() }
    }
}

/// Docker writes `null` where it means nothing.
fn nothing<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    source: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(source)?.unwrap_or_default())
}

/// The run-time part of an OCI image configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `user[:group]`.
    #[serde(deserialize_with = "nothing")]
    pub user: String,
    /// `NAME=value`.
    #[serde(deserialize_with = "nothing")]
    pub env: Vec<String>,
    /// Program and first arguments.
    #[serde(deserialize_with = "nothing")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program when there is no entry point.
    #[serde(deserialize_with = "nothing")]
    pub cmd: Vec<String>,
    /// Working directory.
    #[serde(deserialize_with = "nothing")]
    pub working_dir: String,
    /// `8080/tcp`.
    #[serde(deserialize_with = "nothing")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// Paths that want a volume.
    #[serde(deserialize_with = "nothing")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// Labels.
    #[serde(deserialize_with = "nothing")]
    pub labels: BTreeMap<String, String>,
    /// Signal name or number to stop it with; empty means SIGTERM.
    #[serde(deserialize_with = "nothing")]
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
