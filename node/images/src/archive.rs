//! Archives: `docker save` (old and new form) and OCI image layouts in a tar file.

use crate::store::{Descriptor, Images, Index, Layer, Manifest, Platform, media, spool};
use crate::{Error, Image, Name, digest, layer};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};

/// One image of Docker's `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Images {
    /// Loads a `docker save` or OCI archive (plain, gzip or zstd); returns the images it held.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is neither, or something in it does not match its digest. Nothing
    /// half loaded is left under a name.
    pub fn load(&self, archive: &mut (dyn Read + Send)) -> Result<Vec<Image>, Error> {
        let _guard = self.lock()?;
        let work = self.temporary()?;
        let loaded = self.load_from(archive, &work);
        let _ = std::fs::remove_dir_all(&work);
        loaded
    }

    fn load_from(&self, archive: &mut (dyn Read + Send), work: &Path) -> Result<Vec<Image>, Error> {
        extract(archive, work)?;
        let damaged =
            |why: &str| Err(Error::Damaged { what: "archive".into(), why: why.to_owned() });
        let (loaded, list) = if work.join("index.json").exists() {
            (self.load_layout(work)?, "index.json")
        } else if work.join("manifest.json").exists() {
            (self.load_docker(work)?, "manifest.json")
        } else {
            return damaged("it holds neither index.json (OCI) nor manifest.json (docker save)");
        };
        match loaded.is_empty() {
            true => damaged(&format!("its {list} names no image")),
            false => Ok(loaded),
        }
    }

    fn load_layout(&self, work: &Path) -> Result<Vec<Image>, Error> {
        let index: Index = read_json(&work.join("index.json"))?;
        // `docker save` of today writes both forms; the names stand in manifest.json as well.
        let docker: Vec<DockerImage> = match work.join("manifest.json").exists() {
            true => read_json(&work.join("manifest.json"))?,
            false => Vec::new(),
        };
        let mut images = Vec::new();
        for entry in &index.manifests {
            let mut names: Vec<String> =
                ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
                    .iter()
                    .filter_map(|key| entry.annotations.get(*key))
                    .filter(|name| name.contains(['/', ':']))
                    .take(1)
                    .cloned()
                    .collect();
            let descriptor = for_this_machine(work, entry)?;
            let manifest: Manifest = read_blob(work, &descriptor.digest)?;
            for known in &docker {
                if known.config.ends_with(manifest.config.digest.trim_start_matches("sha256:")) {
                    names.extend(known.repo_tags.iter().flatten().cloned());
                }
            }
            names.sort();
            names.dedup();
            let config = std::fs::read(blob(work, &manifest.config.digest)?).map_err(|e| {
                Error::io(format!("read configuration {}", manifest.config.digest), e)
            })?;
            let blobs = manifest
                .layers
                .iter()
                .map(|l| Ok((blob(work, &l.digest)?, l.clone())))
                .collect::<Result<Vec<_>, Error>>()?;
            images.push(self.admit(&config, &manifest.config.digest, &blobs, &names)?);
        }
        Ok(images)
    }

    fn load_docker(&self, work: &Path) -> Result<Vec<Image>, Error> {
        let known: Vec<DockerImage> = read_json(&work.join("manifest.json"))?;
        // Images may share a file, which moves into the store with the first of them.
        let mut hashed: HashMap<PathBuf, Descriptor> = HashMap::new();
        let mut images = Vec::new();
        for image in known {
            let config = std::fs::read(within(work, &image.config)?)
                .map_err(|e| Error::io(format!("read {}", image.config), e))?;
            let mut blobs = Vec::new();
            for layer in &image.layers {
                let path = within(work, layer)?;
                if !path.exists() && !hashed.contains_key(&path) {
                    let why = format!("its layer {layer} is not there");
                    return Err(Error::Damaged { what: format!("image {}", image.config), why });
                }
                let descriptor = match hashed.get(&path) {
                    Some(known) => known.clone(),
                    None => hash(layer, &path)?,
                };
                hashed.insert(path.clone(), descriptor.clone());
                blobs.push((path, descriptor));
            }
            let names = image.repo_tags.unwrap_or_default();
            images.push(self.admit(&config, &digest::of(&config), &blobs, &names)?);
        }
        Ok(images)
    }

    /// Checks everything, unpacks the layers, and only then names the image.
    fn admit(
        &self,
        config: &[u8],
        config_digest: &str,
        blobs: &[(PathBuf, Descriptor)],
        names: &[String],
    ) -> Result<Image, Error> {
        let damaged = |why: String| Error::Damaged { what: format!("image {config_digest}"), why };
        if digest::of(config) != config_digest {
            return Err(damaged("its configuration does not match its digest".into()));
        }
        let parsed: crate::store::ConfigFile = serde_json::from_slice(config)
            .map_err(|e| damaged(format!("its configuration: {e}")))?;
        if parsed.rootfs.diff_ids.len() != blobs.len() {
            let told = parsed.rootfs.diff_ids.len();
            return Err(damaged(format!(
                "its configuration names {told} layers, it has {}",
                blobs.len()
            )));
        }
        let mut layers: Vec<Layer> = Vec::new();
        for ((path, descriptor), diff_id) in blobs.iter().zip(&parsed.rootfs.diff_ids) {
            // An image may hold one layer twice; its file was moved the first time.
            let path =
                if path.exists() { path.clone() } else { self.blob_path(&descriptor.digest) };
            if !path.exists() {
                return Err(damaged(format!("its layer {} is not there", descriptor.digest)));
            }
            layers.push(self.import_layer(&path, descriptor, diff_id, &layers)?);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::MANIFEST.into(),
            config: self.write_blob(media::CONFIG, config)?,
            layers: layers.into_iter().map(|l| l.blob).collect(),
        };
        let mut image = self.add_manifest(&manifest, names)?;
        // Not what else it is called here.
        let told: Vec<String> =
            names.iter().filter_map(|n| Some(Name::parse(n).ok()?.tagged())).collect();
        image.names.retain(|name| told.contains(name));
        Ok(image)
    }

    /// Writes an image as an archive that `docker load` and OCI tools take.
    ///
    /// # Errors
    /// [`Error::NotFound`], or when the sink cannot be written.
    pub fn save(&self, reference: &str, sink: &mut dyn Write) -> Result<(), Error> {
        let image = self.get(reference)?;
        let (layers, _) = self.layers(reference)?;
        let work = self.temporary()?;
        // As `docker save`: the name that was asked for, and none for one asked for by its id.
        let name = Name::parse(reference).ok().map(|name| name.tagged());
        let name = name.filter(|name| image.names.contains(name));
        let result = self.save_from(&image, name.as_deref(), &layers, sink, &work);
        let _ = std::fs::remove_dir_all(&work);
        result
    }

    fn save_from(
        &self,
        image: &Image,
        name: Option<&str>,
        layers: &[Layer],
        sink: &mut dyn Write,
        work: &Path,
    ) -> Result<(), Error> {
        let failed = |e: std::io::Error| Error::io(format!("save {}", image.id), e);
        let mut archive = tar::Builder::new(sink);
        let mut append = |path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, path, bytes).map_err(failed)
        };
        let in_blobs =
            |digest: &str| format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
        append("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&in_blobs(&image.digest), &self.read_blob(&image.digest)?)?;
        append(&in_blobs(&image.id), &self.read_blob(&image.id)?)?;
        let mut index = self.index()?;
        index.manifests.retain(|m| m.digest == image.digest);
        match name {
            Some(name) => index.manifests.retain(|m| m.annotations.values().any(|n| n == name)),
            None => {
                index.manifests.truncate(1);
                index.manifests.iter_mut().for_each(|m| m.annotations.clear());
            }
        }
        append("index.json", &serde_json::to_vec(&index).unwrap_or_default())?;
        let docker = [DockerImage {
            config: in_blobs(&image.id),
            repo_tags: name.map(|name| vec![Name::familiar(name).to_owned()]),
            layers: layers.iter().map(|l| in_blobs(&l.blob.digest)).collect(),
        }];
        append("manifest.json", &serde_json::to_vec(&docker).unwrap_or_default())?;
        for layer in layers {
            let path = work.join("layer");
            let mut file = std::fs::File::create(&path).map_err(failed)?;
            self.write_layer(layer, &mut file)?;
            archive.append_path_with_name(&path, in_blobs(&layer.blob.digest)).map_err(failed)?;
        }
        archive.finish().map_err(failed)
    }
}

/// What a manifest says of the layer file at `path`, called `name` in its archive.
fn hash(name: &str, path: &Path) -> Result<Descriptor, Error> {
    let failed = |e: std::io::Error| Error::io(format!("read {name}"), e);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut hash = digest::HashingWriter::new(std::io::sink());
    std::io::copy(&mut file, &mut hash).map_err(failed)?;
    let (digest, size) = hash.finish();
    Ok(Descriptor {
        media_type: media::LAYER.into(),
        digest,
        size,
        annotations: BTreeMap::new(),
        platform: None,
    })
}

/// Writes every plain file of the archive below `work`. Links between layers (old `docker save`)
/// become copies.
fn extract(archive: &mut (dyn Read + Send), work: &Path) -> Result<(), Error> {
    let damaged = |e: std::io::Error| Error::Damaged {
        what: "archive".into(),
        why: format!("{e}; one of 'docker save' or an OCI layout in a tar file is expected"),
    };
    let stream = layer::decompress(archive).map_err(damaged)?;
    let mut tar = tar::Archive::new(stream);
    let mut links: Vec<(PathBuf, PathBuf)> = Vec::new();
    for entry in tar.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.into_owned();
        let target = within(work, &path.to_string_lossy())?;
        let kind = entry.header().entry_type();
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|e| Error::io(format!("make {}", parent.display()), e))?;
        }
        if kind.is_file() {
            spool(&mut entry, &target)?;
        } else if kind.is_symlink() || kind.is_hard_link() {
            let to =
                entry.link_name().map_err(damaged)?.map(|p| p.into_owned()).unwrap_or_default();
            let base = if kind.is_symlink() {
                path.parent().unwrap_or(Path::new(""))
            } else {
                Path::new("")
            };
            links.push((target, within(work, &base.join(to).to_string_lossy())?));
        }
    }
    for (link, to) in links {
        std::fs::copy(&to, &link).map_err(|e| Error::io(format!("copy {}", to.display()), e))?;
    }
    Ok(())
}

/// `relative` below `work`, with `..` resolved; refused when it leaves.
fn within(work: &Path, relative: &str) -> Result<PathBuf, Error> {
    let mut clean = PathBuf::new();
    for part in Path::new(relative).components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir if clean.pop() => {}
            Component::CurDir | Component::RootDir => {}
            _ => {
                let why = "the path leaves the archive";
                return Err(Error::Damaged { what: relative.into(), why: why.into() });
            }
        }
    }
    Ok(work.join(clean))
}

fn blob(work: &Path, digest: &str) -> Result<PathBuf, Error> {
    if !crate::name::is_digest(digest) {
        return Err(Error::Damaged { what: digest.into(), why: "it is no sha256 digest".into() });
    }
    Ok(work.join("blobs/sha256").join(digest.trim_start_matches("sha256:")))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bytes = std::fs::read(path).map_err(|e| Error::io(format!("read {name}"), e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Damaged { what: name, why: e.to_string() })
}

/// Reads a blob that is what its name says: so none leads back to itself.
fn read_blob<T: serde::de::DeserializeOwned>(work: &Path, digest: &str) -> Result<T, Error> {
    let path = blob(work, digest)?;
    let bytes = std::fs::read(&path).map_err(|e| Error::io(format!("read blob {digest}"), e))?;
    let damaged = |why| Error::Damaged { what: format!("blob {digest}"), why };
    if digest::of(&bytes) != digest {
        return Err(damaged("its content does not match its digest".to_owned()));
    }
    serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))
}

/// Follows an image index down to the manifest for this kind of machine.
fn for_this_machine(work: &Path, entry: &Descriptor) -> Result<Descriptor, Error> {
    if entry.media_type != media::INDEX && entry.media_type != media::DOCKER_LIST {
        return Ok(entry.clone());
    }
    let index: Index = read_blob(work, &entry.digest)?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let wanted = Platform { architecture: architecture.into(), os: "linux".into() };
    let fits = |d: &&Descriptor| match &d.platform {
        Some(p) => *p == wanted,
        None => true,
    };
    let found = index.manifests.iter().find(fits).ok_or_else(|| Error::Damaged {
        what: format!("image index {}", entry.digest),
        why: format!("it has no manifest for linux/{architecture}"),
    })?;
    for_this_machine(work, found)
}
