//! The store on disk: an OCI image layout, and each layer unpacked once beside it.
//!
//! ```text
//! DIR/oci-layout  DIR/index.json       names and manifests, replaced atomically
//! DIR/blobs/sha256/HEX                 manifests, configurations, layers as they were loaded
//! DIR/layers/CHAIN/fs                  unpacked layers by chain id (the layer and all below it)
//! DIR/tmp/work-PID-...                 work in progress; what a killed process left goes with the
//!                                      next change
//! ```
//! Several processes may use one store: writers hold `DIR/lock`, readers read `index.json`.

use crate::name::{self, Name};
use crate::{Error, Image, RunConfig, digest, layer};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// OCI media types.
pub mod media {
    /// An image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// A list of manifests, one per platform.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An image configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// An uncompressed layer.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// Docker's form of [`INDEX`].
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
}

const NAME: &str = "io.containerd.image.name";
/// Begins the name of a directory in `tmp`; the process's number follows.
const WORK: &str = "work-";

/// A pointer to a blob (OCI content descriptor).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its length in bytes.
    pub size: u64,
    /// Free text; the image's name stands here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// For which machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// Operating system and processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// For example `amd64`.
    pub architecture: String,
    /// For example `linux`.
    pub os: String,
}

/// `index.json`, or an image index.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    schema_version: u32,
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

/// An image manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// The parts of an image configuration that the store itself needs.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) config: Option<RunConfig>,
    pub(crate) rootfs: RootFs,
}

/// The diff ids of an image, bottom layer first.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Vec<String>,
}

/// A layer that is unpacked in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of its uncompressed stream.
    pub diff_id: String,
    /// Digest that names it together with all below it.
    pub chain: String,
    /// The blob, as a manifest names it.
    pub blob: Descriptor,
    /// The unpacked directory.
    pub directory: PathBuf,
}

/// The image store of one machine. Cheap to clone; safe to use from several threads and processes.
#[derive(Debug, Clone)]
pub struct Images {
    dir: Arc<PathBuf>,
}

/// Held while the store changes.
#[derive(Debug)]
pub struct Guard(#[allow(dead_code, reason = "it is held for its lock")] File);

/// Layers hold programs with the set-user-id bit, which nobody is to run outside of a container.
fn close(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut mode = dir.metadata()?.permissions();
    if mode.mode() & 0o077 != 0 {
        mode.set_mode(mode.mode() & 0o700);
        std::fs::set_permissions(dir, mode)?;
    }
    Ok(())
}

impl Images {
    /// Opens (or makes) the store in `dir`.
    ///
    /// # Errors
    /// When the directory cannot be made or written.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        for sub in ["blobs/sha256", "layers", "tmp"] {
            let path = dir.join(sub);
            std::fs::create_dir_all(&path)
                .map_err(|e| Error::io(format!("make {}", path.display()), e))?;
        }
        close(dir).map_err(|e| Error::io(format!("close {} to others", dir.display()), e))?;
        let images = Self { dir: Arc::new(dir.to_path_buf()) };
        let layout = dir.join("oci-layout");
        if !layout.exists() {
            let _guard = images.lock()?;
            write_atomically(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(images)
    }

    /// Where the store lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the store for a change; waits while another process has it.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn lock(&self) -> Result<Guard, Error> {
        let path = self.dir.join("lock");
        let open = || {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
            Ok::<_, std::io::Error>(file)
        };
        let guard =
            open().map(Guard).map_err(|e| Error::io(format!("lock {}", path.display()), e))?;
        self.sweep();
        Ok(guard)
    }

    /// Tells that layers are being made which no image names yet: until the guard is dropped nothing
    /// is taken away as garbage. Several may be at work at a time.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn building(&self) -> Result<Guard, Error> {
        let path = self.dir.join("building");
        let open = || {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared)?;
            Ok::<_, std::io::Error>(file)
        };
        open().map(Guard).map_err(|e| Error::io(format!("lock {}", path.display()), e))
    }

    /// Whether nobody makes layers now. The caller holds the lock.
    fn nobody_builds(&self) -> bool {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.dir.join("building"));
        // The lock goes with the file: who begins meanwhile waits for this one call.
        file.is_ok_and(|file| {
            rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
        })
    }

    /// A directory for work in progress that tells whose it is.
    pub(crate) fn temporary(&self) -> Result<PathBuf, Error> {
        let made = layer::scratch(&self.dir.join("tmp"))?;
        let random = made.file_name().unwrap_or_default().to_string_lossy();
        let named = made.with_file_name(format!("{WORK}{}-{random}", std::process::id()));
        std::fs::rename(&made, &named)
            .map_err(|e| Error::io(format!("make {}", named.display()), e))?;
        Ok(named)
    }

    /// Clears up after processes that were killed at their work. The caller holds the lock.
    fn sweep(&self) {
        for entry in std::fs::read_dir(self.dir.join("tmp")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|n| n.strip_prefix(WORK)?.split('-').next());
            // Whoever has the number of a dead process by now only delays this.
            if owner.is_some_and(|pid| !is_alive(pid))
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "leftover work not removed");
            }
        }
    }

    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    fn layer_path(&self, chain: &str) -> PathBuf {
        // Half a digest is unique enough, and overlay's option string is limited to a page.
        let hex = chain.trim_start_matches("sha256:");
        self.dir.join("layers").join(&hex[..hex.len().min(32)])
    }

    pub(crate) fn read_blob(&self, digest: &str) -> Result<Vec<u8>, Error> {
        check_digest(digest)?;
        let path = self.blob_path(digest);
        let bytes =
            std::fs::read(&path).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
        if digest::of(&bytes) != digest {
            let why = "its content does not match its name; remove the image and load it again";
            return Err(Error::Damaged { what: path.display().to_string(), why: why.into() });
        }
        Ok(bytes)
    }

    pub(crate) fn write_blob(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, Error> {
        let digest = digest::of(bytes);
        let path = self.blob_path(&digest);
        // What is there may be damaged: then this is what repairs it.
        if !std::fs::read(&path).is_ok_and(|known| known == bytes) {
            write_atomically(&path, bytes)?;
        }
        Ok(Descriptor {
            media_type: media_type.into(),
            digest,
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        })
    }

    pub(crate) fn index(&self) -> Result<Index, Error> {
        let path = self.dir.join("index.json");
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::Damaged {
                what: path.display().to_string(),
                why: e.to_string(),
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Ok(Index { schema_version: 2, manifests: Vec::new() })
            }
            Err(e) => Err(Error::io(format!("read {}", path.display()), e)),
        }
    }

    fn write_index(&self, index: &Index) -> Result<(), Error> {
        let bytes = serde_json::to_vec_pretty(index)
            .map_err(|e| Error::io("encode index.json".into(), e))?;
        write_atomically(&self.dir.join("index.json"), &bytes)
    }

    /// Finds an image by name (`busybox`, `repo/name:tag`, `name@sha256:...`), id or unique id
    /// prefix of at least four digits.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::InvalidName`] when it is neither a name nor an id.
    pub fn get(&self, reference: &str) -> Result<Image, Error> {
        let index = self.index()?;
        self.find(&index, reference)
    }

    fn find(&self, index: &Index, reference: &str) -> Result<Image, Error> {
        let parsed = Name::parse(reference);
        if let Ok(parsed) = &parsed {
            let tagged = parsed.tagged();
            let named = index.manifests.iter().find(|m| match &parsed.digest {
                Some(digest) => m.digest == *digest,
                None => m.annotations.get(NAME) == Some(&tagged),
            });
            if let Some(found) = named {
                return self.image(index, found);
            }
        }
        let hex = reference.trim_start_matches("sha256:");
        if hex.len() >= 4 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let mut seen = HashSet::new();
            for manifest in index.manifests.iter().filter(|m| seen.insert(&m.digest)) {
                // One that is damaged hides no other.
                let Ok(image) = self.image(index, manifest) else { continue };
                if [&image.id, &image.digest]
                    .iter()
                    .any(|d| d.trim_start_matches("sha256:").starts_with(hex))
                {
                    return Ok(image);
                }
            }
        }
        parsed.and_then(|_| Err(Error::NotFound(reference.into())))
    }

    fn image(&self, index: &Index, descriptor: &Descriptor) -> Result<Image, Error> {
        let (manifest, config) = self.parts(&descriptor.digest)?;
        let chains = chains(&config.rootfs.diff_ids);
        let mut layers: Vec<PathBuf> =
            chains.iter().map(|c| self.layer_path(c).join("fs")).collect();
        let size = chains
            .iter()
            .filter_map(|c| {
                std::fs::read_to_string(self.layer_path(c).join("size")).ok()?.parse::<u64>().ok()
            })
            .sum();
        layers.reverse();
        if layers.is_empty() {
            layers.push(self.empty_layer()?);
        }
        let names = index
            .manifests
            .iter()
            .filter(|m| m.digest == descriptor.digest)
            .filter_map(|m| m.annotations.get(NAME).cloned())
            .collect();
        Ok(Image {
            id: manifest.config.digest,
            digest: descriptor.digest.clone(),
            names,
            config: config.config.unwrap_or_default(),
            layers,
            size,
            created: config.created.unwrap_or_default(),
        })
    }

    fn empty_layer(&self) -> Result<PathBuf, Error> {
        let path = self.dir.join("layers/empty/fs");
        std::fs::create_dir_all(&path)
            .map_err(|e| Error::io(format!("make {}", path.display()), e))?;
        Ok(path)
    }

    pub(crate) fn parts(&self, manifest: &str) -> Result<(Manifest, ConfigFile), Error> {
        let damaged = |what: &str, e: serde_json::Error| Error::Damaged {
            what: what.into(),
            why: e.to_string(),
        };
        let parsed: Manifest =
            serde_json::from_slice(&self.read_blob(manifest)?).map_err(|e| damaged(manifest, e))?;
        let config: ConfigFile = serde_json::from_slice(&self.read_blob(&parsed.config.digest)?)
            .map_err(|e| damaged(&parsed.config.digest, e))?;
        config.rootfs.diff_ids.iter().try_for_each(|id| check_digest(id))?;
        Ok((parsed, config))
    }

    /// All images, newest first, but those that are damaged, of which a warning tells.
    ///
    /// # Errors
    /// When `index.json` cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, Error> {
        let index = self.index()?;
        let mut seen = HashSet::new();
        let mut images = index
            .manifests
            .iter()
            .filter(|m| seen.insert(m.digest.clone()))
            .filter_map(|m| {
                let name = m.annotations.get(NAME).map_or(m.digest.as_str(), |n| Name::familiar(n));
                let warn = |error: &Error| tracing::warn!(image = name, %error, "not listed");
                self.image(&index, m).inspect_err(warn).ok()
            })
            .collect::<Vec<_>>();
        images.sort_by(|a, b| b.created.cmp(&a.created));
        Ok(images)
    }

    /// The layers of an image, bottom first, and its whole configuration: what a build goes on from.
    ///
    /// # Errors
    /// As [`Images::get`].
    pub fn layers(&self, reference: &str) -> Result<(Vec<Layer>, serde_json::Value), Error> {
        let image = self.get(reference)?;
        let (manifest, config) = self.parts(&image.digest)?;
        let value = serde_json::from_slice(&self.read_blob(&image.id)?)
            .map_err(|e| Error::Damaged { what: image.id.clone(), why: e.to_string() })?;
        let layers = chains(&config.rootfs.diff_ids)
            .into_iter()
            .zip(config.rootfs.diff_ids)
            .zip(manifest.layers)
            .map(|((chain, diff_id), blob)| Layer {
                directory: self.layer_path(&chain).join("fs"),
                diff_id,
                chain,
                blob,
            })
            .collect();
        Ok((layers, value))
    }

    /// Takes the directory `upper` (an overlay's writable layer, moved into the store) as a layer
    /// over `below` (bottom first). The stream is made again from the directory when it is wanted.
    ///
    /// # Errors
    /// When the directory cannot be read or moved.
    pub fn add_layer(&self, upper: &Path, below: &[Layer]) -> Result<Layer, Error> {
        let _guard = self.lock()?;
        let (diff_id, length, size) = layer::pack(upper, std::io::sink())?;
        let chain = chain(below.last().map(|l| l.chain.as_str()), &diff_id);
        let home = self.layer_path(&chain);
        if !home.join("size").exists() {
            settle(upper, &home, size)?;
        }
        let blob = Descriptor {
            media_type: media::LAYER.into(),
            digest: diff_id.clone(),
            size: length,
            annotations: BTreeMap::new(),
            platform: None,
        };
        Ok(Layer { diff_id, chain, blob, directory: home.join("fs") })
    }

    /// Unpacks a layer blob that is at `path` over `below`, and keeps the blob.
    pub(crate) fn import_layer(
        &self,
        path: &Path,
        descriptor: &Descriptor,
        diff_id: &str,
        below: &[Layer],
    ) -> Result<Layer, Error> {
        // They become names of files, and what is here already is not looked at again.
        check_digest(diff_id)?;
        check_digest(&descriptor.digest)?;
        let chain = chain(below.last().map(|l| l.chain.as_str()), diff_id);
        let home = self.layer_path(&chain);
        let mut checked = false;
        if !home.join("size").exists() {
            let work = self.temporary()?;
            self.unpack_layer(path, descriptor, diff_id, below, &work, &home)
                .inspect_err(|_| drop(std::fs::remove_dir_all(&work)))?;
            checked = descriptor.digest == diff_id;
        }
        let blob = self.blob_path(&descriptor.digest);
        if !blob.exists() {
            if !checked {
                check_file(path, &descriptor.digest)?;
            }
            std::fs::rename(path, &blob)
                .map_err(|e| Error::io(format!("move {} into the store", path.display()), e))?;
        }
        Ok(Layer {
            diff_id: diff_id.into(),
            chain,
            blob: descriptor.clone(),
            directory: home.join("fs"),
        })
    }

    fn unpack_layer(
        &self,
        path: &Path,
        descriptor: &Descriptor,
        diff_id: &str,
        below: &[Layer],
        work: &Path,
        home: &Path,
    ) -> Result<(), Error> {
        let under: Vec<PathBuf> = below.iter().rev().map(|l| l.directory.clone()).collect();
        let file =
            File::open(path).map_err(|e| Error::io(format!("open {}", path.display()), e))?;
        let unpacked =
            layer::unpack(std::io::BufReader::with_capacity(1 << 17, file), work, &under)?;
        if unpacked.diff_id != diff_id {
            let why =
                format!("its content has digest {}, the image says {diff_id}", unpacked.diff_id);
            return Err(Error::Damaged { what: format!("layer {}", descriptor.digest), why });
        }
        dhow_fault::point("images::layer").map_err(|e| Error::io("store a layer".into(), e))?;
        settle(work, home, unpacked.size)
    }

    /// Makes an image of `config` (a whole OCI image configuration; its `rootfs` is filled in here)
    /// and `layers` (bottom first) under `names`.
    ///
    /// # Errors
    /// [`Error::InvalidName`], or when the store cannot be written.
    pub fn add_image(
        &self,
        mut config: serde_json::Value,
        layers: &[Layer],
        names: &[String],
    ) -> Result<Image, Error> {
        let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
        config["rootfs"] = serde_json::json!({"type": "layers", "diff_ids": diff_ids});
        let bytes =
            serde_json::to_vec(&config).map_err(|e| Error::io("encode configuration".into(), e))?;
        let _guard = self.lock()?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::MANIFEST.into(),
            config: self.write_blob(media::CONFIG, &bytes)?,
            layers: layers.iter().map(|l| l.blob.clone()).collect(),
        };
        self.add_manifest(&manifest, names)
    }

    /// Names a manifest whose blobs are all here. The caller holds the lock.
    pub(crate) fn add_manifest(
        &self,
        manifest: &Manifest,
        names: &[String],
    ) -> Result<Image, Error> {
        let names = names
            .iter()
            .map(|n| Name::parse(n).map(|n| n.tagged()))
            .collect::<Result<BTreeSet<_>, _>>()?;
        let bytes =
            serde_json::to_vec(manifest).map_err(|e| Error::io("encode manifest".into(), e))?;
        let descriptor = self.write_blob(media::MANIFEST, &bytes)?;
        let mut index = self.index()?;
        index.manifests.retain(|m| !m.annotations.get(NAME).is_some_and(|n| names.contains(n)));
        let known = index.manifests.iter().any(|m| m.digest == descriptor.digest);
        for name in &names {
            let mut named = descriptor.clone();
            named.annotations.insert(NAME.into(), name.clone());
            index.manifests.push(named);
        }
        if names.is_empty() && !known {
            index.manifests.push(descriptor.clone());
        }
        self.write_index(&index)?;
        tracing::info!(image = %descriptor.digest, names = ?names, "image stored");
        self.image(&index, &descriptor)
    }

    /// Gives an image a further name.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::InvalidName`].
    pub fn tag(&self, reference: &str, name: &str) -> Result<(), Error> {
        let _guard = self.lock()?;
        let image = self.get(reference)?;
        let (manifest, _) = self.parts(&image.digest)?;
        self.add_manifest(&manifest, &[name.to_owned()]).map(drop)
    }

    /// Removes a name, and the image with its unshared layers when that was its last name (an id
    /// removes all names). `in_use` names the layer directories that containers need. Returns what
    /// went, one line each. One that is damaged goes by its name all the same.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InUse`].
    pub fn remove(&self, reference: &str, in_use: &[PathBuf]) -> Result<Vec<String>, Error> {
        let _guard = self.lock()?;
        let mut index = self.index()?;
        let image = match self.find(&index, reference) {
            Err(Error::Damaged { .. } | Error::Io { .. }) => {
                return self.remove_damaged(index, reference, in_use);
            }
            found => found?,
        };
        let by_name =
            Name::parse(reference).ok().map(|n| n.tagged()).filter(|n| image.names.contains(n));
        if let Some(name) = by_name.filter(|_| image.names.len() > 1) {
            index.manifests.retain(|m| m.annotations.get(NAME) != Some(&name));
            self.write_index(&index)?;
            return Ok(vec![format!("untagged {}", Name::familiar(&name))]);
        }
        if let Some(used) = image.layers.first().filter(|top| in_use.contains(top)) {
            let user = format!("a container (layer {})", used.display());
            return Err(Error::InUse { image: reference.into(), user });
        }
        index.manifests.retain(|m| m.digest != image.digest);
        self.write_index(&index)?;
        let mut gone: Vec<String> =
            image.names.iter().map(|n| format!("untagged {}", Name::familiar(n))).collect();
        gone.push(format!("deleted {}", image.id));
        self.collect(&index, in_use)?;
        Ok(gone)
    }

    /// Takes away the one name that was asked for, of an image that cannot be read.
    fn remove_damaged(
        &self,
        mut index: Index,
        reference: &str,
        in_use: &[PathBuf],
    ) -> Result<Vec<String>, Error> {
        let wanted = Name::parse(reference)?;
        let tagged = wanted.tagged();
        index.manifests.retain(|m| match &wanted.digest {
            Some(digest) => m.digest != *digest,
            None => m.annotations.get(NAME) != Some(&tagged),
        });
        self.write_index(&index)?;
        self.collect(&index, in_use)?;
        Ok(vec![format!("untagged {}", Name::familiar(&tagged))])
    }

    /// Deletes blobs and layers that no image names.
    fn collect(&self, index: &Index, in_use: &[PathBuf]) -> Result<(), Error> {
        if !self.nobody_builds() {
            // What a build stands on may have no name yet. The next removal takes it all.
            tracing::info!("a build is under way: layers of removed images stay for now");
            return Ok(());
        }
        let mut blobs = HashSet::new();
        let mut layers: HashSet<PathBuf> = HashSet::from([self.dir.join("layers/empty")]);
        for descriptor in &index.manifests {
            let (manifest, config) = match self.parts(&descriptor.digest) {
                Ok(parts) => parts,
                Err(error) => {
                    // Containers may run from layers that it alone can name.
                    tracing::warn!(%error, "layers of removed images stay while an image is damaged");
                    return Ok(());
                }
            };
            blobs.insert(self.blob_path(&descriptor.digest));
            blobs.insert(self.blob_path(&manifest.config.digest));
            blobs.extend(manifest.layers.iter().map(|l| self.blob_path(&l.digest)));
            layers.extend(chains(&config.rootfs.diff_ids).iter().map(|c| self.layer_path(c)));
        }
        let each = |dir: &Path, keep: &dyn Fn(&Path) -> bool| -> std::io::Result<()> {
            for entry in std::fs::read_dir(dir)? {
                let path = entry?.path();
                if keep(&path) {
                    continue;
                }
                if path.is_dir() {
                    std::fs::remove_dir_all(&path)?
                } else {
                    std::fs::remove_file(&path)?
                }
            }
            Ok(())
        };
        each(&self.dir.join("blobs/sha256"), &|p| blobs.contains(p))
            .and_then(|()| {
                each(&self.dir.join("layers"), &|p| {
                    layers.contains(p) || in_use.contains(&p.join("fs"))
                })
            })
            .map_err(|e| Error::io(format!("collect garbage in {}", self.dir.display()), e))
    }

    /// The bytes of a layer blob: as stored, or packed again from its directory.
    pub(crate) fn write_layer(&self, layer: &Layer, sink: &mut dyn Write) -> Result<(), Error> {
        let path = self.blob_path(&layer.blob.digest);
        if let Ok(mut file) = File::open(&path) {
            return std::io::copy(&mut file, sink)
                .map(drop)
                .map_err(|e| Error::io(format!("read {}", path.display()), e));
        }
        let (diff_id, ..) = layer::pack(&layer.directory, sink)?;
        if diff_id != layer.diff_id {
            let why =
                format!("its content now has digest {diff_id}, the image says {}", layer.diff_id);
            return Err(Error::Damaged { what: layer.directory.display().to_string(), why });
        }
        Ok(())
    }
}

/// Moves a layer's directory into the store. It counts as whole from the moment that its `size` is
/// there, and by then the disk has all of its content: what is in a layer is never looked at again,
/// so a power loss must not leave half of it.
fn settle(work: &Path, home: &Path, size: u64) -> Result<(), Error> {
    let sync = || {
        dhow_fault::point("images::sync")?;
        // One call for however many files; each by itself would wait for the journal.
        rustix::fs::syncfs(File::open(work)?)?;
        Ok::<_, std::io::Error>(())
    };
    sync().map_err(|e| Error::io(format!("sync {}", work.display()), e))?;
    std::fs::create_dir_all(home).map_err(|e| Error::io(format!("make {}", home.display()), e))?;
    let _ = std::fs::remove_dir_all(home.join("fs"));
    std::fs::rename(work, home.join("fs"))
        .map_err(|e| Error::io(format!("move {} into the store", work.display()), e))?;
    write_atomically(&home.join("size"), size.to_string().as_bytes())
}

/// Whether a file has the digest that a manifest gives it.
fn check_file(path: &Path, digest: &str) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::io(format!("read {}", path.display()), e);
    let mut hashing = digest::Hashing::new(File::open(path).map_err(failed)?);
    std::io::copy(&mut hashing, &mut std::io::sink()).map_err(failed)?;
    let found = hashing.finish();
    if found == digest {
        return Ok(());
    }
    let why = format!("the file has digest {found}");
    Err(Error::Damaged { what: format!("layer {digest}"), why })
}

/// Whether a process is there and has not ended; one that nobody has waited for yet (a zombie) has.
fn is_alive(pid: &str) -> bool {
    let state = pid.parse().ok().and_then(dhow_kernel::process::identity).map(|(state, _)| state);
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

fn check_digest(text: &str) -> Result<(), Error> {
    if name::is_digest(text) {
        return Ok(());
    }
    Err(Error::Damaged { what: text.into(), why: "it is no sha256 digest".into() })
}

/// The chain id of a layer over the chain below it (OCI image specification, "Layer ChainID").
fn chain(below: Option<&str>, diff_id: &str) -> String {
    match below {
        Some(below) => digest::of(format!("{below} {diff_id}").as_bytes()),
        None => diff_id.to_owned(),
    }
}

fn chains(diff_ids: &[String]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chains.push(chain(chains.last().map(String::as_str), diff_id));
    }
    chains
}

/// Replaces `path` so that a crash leaves the old or the new content, never a mixture.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    dhow_clock::disk::replace(path, bytes, 0o644)
        .map_err(|e| Error::io(format!("write {}", path.display()), e))
}

/// Copies a stream to a file, returning its digest and length.
pub(crate) fn spool(source: &mut dyn Read, path: &Path) -> Result<(String, u64), Error> {
    let failed = |e: std::io::Error| Error::io(format!("write {}", path.display()), e);
    let mut writer = digest::HashingWriter::new(File::create(path).map_err(failed)?);
    std::io::copy(source, &mut writer).map_err(failed)?;
    Ok(writer.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_fault::Effect;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::Duration;

    /// Faults are armed for the whole process: whoever imports layers does so alone.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layer_file(images: &Images) -> (PathBuf, Descriptor) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        tar.append_data(&mut header, "x", &b"x"[..]).unwrap();
        let bytes = tar.into_inner().unwrap();
        let path = images.dir().join("layer.tar");
        std::fs::write(&path, &bytes).unwrap();
        let descriptor = Descriptor {
            media_type: media::LAYER.into(),
            digest: digest::of(&bytes),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        };
        (path, descriptor)
    }

    fn leftovers(images: &Images) -> usize {
        std::fs::read_dir(images.dir().join("tmp")).unwrap().count()
    }

    #[test]
    fn an_identifier_that_is_no_digest_never_becomes_a_path() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path()).unwrap();
        let (path, good) = layer_file(&images);
        // Where such an identifier leads to stands what looks like a layer.
        std::fs::create_dir_all(dir.path().join("outside/fs")).unwrap();
        std::fs::write(dir.path().join("outside/size"), "1").unwrap();
        let cut = good.digest[..39].to_owned();
        let wide = format!("sha256:{}x", "\u{e9}".repeat(17));
        for wrong in ["sha256:../outside", "../outside", &wide, &cut] {
            let refused = images.import_layer(&path, &good, wrong, &[]).unwrap_err().to_string();
            assert!(refused.contains("no sha256 digest"), "{wrong}: {refused}");
            let blob = Descriptor { digest: wrong.into(), ..good.clone() };
            images.import_layer(&path, &blob, &good.digest, &[]).unwrap_err();
        }
        images.import_layer(&path, &good, &good.digest, &[]).unwrap();
    }

    #[test]
    fn a_blob_is_kept_under_its_own_digest_only() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path()).unwrap();
        let (path, good) = layer_file(&images);
        let other = Descriptor { digest: digest::of(b"another"), ..good.clone() };
        let refused = images.import_layer(&path, &other, &good.digest, &[]).unwrap_err();
        assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
        assert!(!images.blob_path(&other.digest).exists());
    }

    #[test]
    fn a_load_that_fails_at_any_layer_leaves_no_work_behind() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path()).unwrap();
        let (path, good) = layer_file(&images);
        let fault = Effect::Fail("disk on fire".into());
        dhow_fault::arm("images::layer", fault, 0, 1, Duration::from_secs(60));
        let failed = images.import_layer(&path, &good, &good.digest, &[]).unwrap_err();
        assert!(failed.to_string().contains("disk on fire"), "{failed}");
        assert_eq!(leftovers(&images), 0);
        images.import_layer(&path, &good, &good.digest, &[]).unwrap();
    }

    #[test]
    fn work_of_a_killed_process_is_cleared_and_that_of_a_living_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path()).unwrap();
        let living = images.temporary().unwrap();
        // The largest number of a process is 2^22.
        std::fs::create_dir(dir.path().join("tmp/work-4194305-00")).unwrap();
        // One that ended, and for which its parent has not waited yet.
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let id = rustix::process::Pid::from_child(&ended);
        let looks = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(id), looks).unwrap();
        std::fs::create_dir(dir.path().join(format!("tmp/work-{}-00", ended.id()))).unwrap();
        images.sweep();
        ended.wait().unwrap();
        assert_eq!(leftovers(&images), 1);
        assert!(living.exists());
    }

    #[test]
    fn a_layer_that_the_disk_did_not_take_does_not_count() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path()).unwrap();
        let (path, descriptor) = layer_file(&images);
        let effect = Effect::Fail("the disk is on fire".into());
        dhow_fault::arm("images::sync", effect, 0, 1, Duration::from_secs(60));
        let import = || images.import_layer(&path, &descriptor, &descriptor.digest, &[]);
        let refused = import().unwrap_err().to_string();
        assert!(refused.contains("on fire"), "{refused}");
        let home = images.layer_path(&chain(None, &descriptor.digest));
        assert!(!home.join("size").exists(), "it does not count as whole");
    }
}
