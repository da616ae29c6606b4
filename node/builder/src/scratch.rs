//! A build's own directory in the image store, gone when the build ends, however it ends.

use crate::Error;
use dhow_images::{Images, layer};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::path::{Path, PathBuf};

const PREFIX: &str = "build-";

/// The directory; deleted when this is dropped. A lock tells that its build lives, so that a later
/// build can clear up after one that was killed.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Makes the directory.
    pub(crate) fn new(images: &Images) -> Result<Self, Error> {
        let base = images.dir().join("tmp");
        let random = layer::scratch(&base)?;
        let name = random.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dir = base.join(format!("{PREFIX}{name}"));
        let lock =
            lock_file(&random, true).map_err(Error::io(format!("lock {}", random.display())))?;
        // It gets its name when it is locked: nobody takes it for a dead one.
        std::fs::rename(&random, &dir).map_err(Error::io(format!("make {}", dir.display())))?;
        Ok(Self { dir, _lock: lock })
    }

    /// The build's name, unique.
    pub(crate) fn name(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A new directory in it.
    pub(crate) fn step(&self) -> Result<Step, Error> {
        Ok(Step(layer::scratch(&self.dir)?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!("{} cannot be deleted: {error}", self.dir.display());
        }
    }
}

/// The directory of one step; deleted when this is dropped.
#[derive(Debug)]
pub(crate) struct Step(PathBuf);

impl Step {
    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }

    /// A new directory in it, with exactly this mode.
    pub(crate) fn make(&self, name: &str, mode: u32) -> Result<PathBuf, Error> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.0.join(name);
        std::fs::create_dir(&path)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)))
            .map_err(Error::io(format!("make {}", path.display())))?;
        Ok(path)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!("{} cannot be deleted: {error}", self.0.display());
        }
    }
}

fn lock_file(dir: &Path, create: bool) -> std::io::Result<File> {
    let file = File::options().create(create).write(true).truncate(false).open(dir.join("lock"))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// What builds that were killed left behind; dropping one deletes its directory.
pub(crate) fn dead(images: &Images) -> Vec<Scratch> {
    let base = images.dir().join("tmp");
    let mut dead = Vec::new();
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let (name, dir) = (entry.file_name(), entry.path());
        if name.to_string_lossy().starts_with(PREFIX)
            && let Ok(lock) = lock_file(&dir, false)
        {
            tracing::info!("clearing up after a build that was killed: {}", dir.display());
            dead.push(Scratch { dir, _lock: lock });
        }
    }
    dead
}
