//! Making volumes: directories, memory file systems, and payloads that change all at once.
//!
//! A payload is written the way upstream's atomic writer does (`pkg/volume/util/atomic_writer.go`),
//! because programs rely on it: files live in a directory with a time in its name, `..data` is a
//! symbolic link to it that is replaced by rename, and each visible name links through `..data`.

use super::diff::{File, Payload};
use rustix::fs::{Gid, Uid};
use rustix::mount::MountFlags;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn at(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

/// Makes a directory and its parents.
pub fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|e| at("make directory", path, &e))
}

/// Sets permission bits whatever the umask is.
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| at("chmod", path, &e))
}

fn own(path: &Path, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    if user.is_none() && group.is_none() {
        return Ok(());
    }
    rustix::fs::chown(path, user.map(Uid::from_raw), group.map(Gid::from_raw))
        .map_err(|e| at("chown", path, &e.into()))
}

/// Whether something is mounted at a directory.
fn is_mount(path: &Path) -> bool {
    let (Ok(own), Some(parent)) = (fs::symlink_metadata(path), path.parent()) else { return false };
    fs::metadata(parent).is_ok_and(|p| p.dev() != own.dev())
}

/// Mounts a memory file system of at most `size` bytes (0: the kernel's default) unless one is there.
pub fn mount_memory(path: &Path, size: u64, mode: u32, group: Option<u32>) -> io::Result<()> {
    make_dir(path, 0o755)?;
    if is_mount(path) {
        return Ok(());
    }
    let mut options = format!("mode={:o}", shared(mode, group));
    if let Some(group) = group {
        options.push_str(&format!(",gid={group}"));
    }
    if size > 0 {
        options.push_str(&format!(",size={size}"));
    }
    let options = CString::new(options).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("dhow", path, "tmpfs", flags, options.as_c_str())
        .map_err(|e| at("mount a memory file system at", path, &e.into()))
}

/// Removes a directory with everything in it. Fine if it is not there.
pub fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path, &error)),
        _ => Ok(()),
    }
}

/// The mode of a directory that a group shares: set-group-id passes the group on to what is made in it.
fn shared(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() { mode | 0o2070 } else { mode }
}

/// Makes an empty directory volume, with its owner and mode from the first moment on. One that is
/// there stays as its pod has made it.
pub fn empty_dir(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    // No volume has such a name.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("~");
    let fresh = path.with_file_name(name);
    remove_dir(&fresh)?;
    make_dir(&fresh, 0o755)?;
    own(&fresh, None, group)?;
    set_mode(&fresh, shared(mode, group))?;
    fs::rename(&fresh, path).map_err(|e| at("rename", &fresh, &e))
}

/// Makes `dir` hold exactly `payload`, at once for whoever reads it. Returns whether anything
/// changed. `group` is the pod's `fsGroup`.
pub fn write_payload(
    dir: &Path,
    payload: &Payload,
    group: Option<u32>,
    now: Duration,
) -> io::Result<bool> {
    make_dir(dir, 0o755)?;
    let data = dir.join("..data");
    let current = fs::read_link(&data).ok().map(|name| dir.join(name));
    if let Some(current) = &current
        && holds(current, payload, group)
    {
        link_visible(dir, payload)?;
        return Ok(false);
    }
    let name = format!("..{}_{:09}", stamp(now), now.subsec_nanos());
    let fresh = dir.join(&name);
    remove_dir(&fresh)?;
    make_dir(&fresh, 0o755)?;
    let mut made = BTreeSet::new();
    for (path, file) in payload {
        let target = fresh.join(path);
        if let Some(parent) = Path::new(path).parent().filter(|p| !p.as_os_str().is_empty()) {
            make_dir(&fresh.join(parent), 0o755)?;
            made.extend(
                parent.ancestors().filter(|p| !p.as_os_str().is_empty()).map(|p| fresh.join(p)),
            );
        }
        fs::write(&target, &file.bytes).map_err(|e| at("write", &target, &e))?;
        own(&target, file.user, group)?;
        set_mode(&target, file_mode(file, group))?;
    }
    if group.is_some() {
        for inner in made.iter().map(PathBuf::as_path).chain([fresh.as_path(), dir]) {
            own(inner, None, group)?;
            set_mode(inner, 0o2755)?;
        }
    }
    let temporary = dir.join("..data_tmp");
    let _ = fs::remove_file(&temporary);
    symlink(&name, &temporary).map_err(|e| at("link", &temporary, &e))?;
    fs::rename(&temporary, &data).map_err(|e| at("rename", &temporary, &e))?;
    link_visible(dir, payload)?;
    if let Some(old) = current {
        remove_dir(&old)?;
    }
    Ok(true)
}

fn file_mode(file: &File, group: Option<u32>) -> u32 {
    if group.is_some() { file.mode | 0o440 } else { file.mode }
}

fn holds(dir: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let same = payload.iter().all(|(path, file)| {
        let path = dir.join(path);
        let mode = fs::metadata(&path).map(|m| m.mode() & 0o7777).ok();
        mode == Some(file_mode(file, group)) && fs::read(&path).is_ok_and(|b| b == file.bytes)
    });
    same && count_files(dir) == payload.len()
}

fn count_files(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|e| if e.file_type().is_ok_and(|t| t.is_dir()) { count_files(&e.path()) } else { 1 })
        .sum()
}

/// Links each visible name through `..data`, and removes those that are visible no more.
fn link_visible(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), &link).map_err(|e| at("link", &link, &e))?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(entry.path()).map_err(|e| at("remove", &entry.path(), &e))?;
        }
    }
    Ok(())
}

fn stamp(now: Duration) -> String {
    let text = crate::time::time(now).0.to_string();
    text.trim_end_matches('Z').replace(['-', ':', 'T'], "_")
}

/// Checks (and where asked makes) a path of the machine (`hostPath`).
///
/// # Errors
/// A text in upstream's words that names the path.
pub fn host_path(path: &Path, kind: &str) -> Result<(), String> {
    let fail =
        |what: &str| Err(format!("hostPath type check failed: {} is not {what}", path.display()));
    let io = |e: io::Error| e.to_string();
    let found = fs::metadata(path).ok();
    match kind {
        // Container runtimes make a missing directory when no type is given.
        "" if found.is_none() => make_dir(path, 0o755).map_err(io),
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => make_dir(path, 0o755).map_err(io),
        "FileOrCreate" if found.is_none() => {
            fs::write(path, b"").map_err(|e| io(at("make", path, &e)))?;
            set_mode(path, 0o644).map_err(io)
        }
        "Directory" | "DirectoryOrCreate" if !found.as_ref().is_some_and(fs::Metadata::is_dir) => {
            fail("a directory")
        }
        "File" | "FileOrCreate" if !found.as_ref().is_some_and(fs::Metadata::is_file) => {
            fail("a file")
        }
        "Socket" if !found.as_ref().is_some_and(|f| f.file_type().is_socket()) => {
            fail("a socket file")
        }
        "CharDevice" if !found.as_ref().is_some_and(|f| f.file_type().is_char_device()) => {
            fail("a character device")
        }
        "BlockDevice" if !found.as_ref().is_some_and(|f| f.file_type().is_block_device()) => {
            fail("a block device")
        }
        "Directory" | "DirectoryOrCreate" | "File" | "FileOrCreate" | "Socket" | "CharDevice"
        | "BlockDevice" => Ok(()),
        other => Err(format!("{other:?} is an invalid hostPath type")),
    }
}

/// The path inside a volume that a mount with `subPath` shows; a missing one becomes a directory.
///
/// # Errors
/// A text that names the path, also when it leads out of the volume.
pub fn sub_path(volume: &Path, sub: &str) -> Result<PathBuf, String> {
    if sub.starts_with('/') || sub.split('/').any(|part| part == "..") {
        return Err(format!("subPath {sub:?} must be relative and may not contain '..'"));
    }
    let root = fs::canonicalize(volume).map_err(|e| at("open volume", volume, &e).to_string())?;
    let path = root.join(sub);
    if !path.exists() {
        // Only below the part that exists and stays inside: a link must not lead `mkdir` outside.
        let mut known = path.as_path();
        while !known.exists() {
            known = known.parent().unwrap_or(&root);
        }
        inside(&root, known, sub)?;
        make_dir(&path, 0o755).map_err(|e| e.to_string())?;
    }
    inside(&root, &path, sub)
}

fn inside(root: &Path, path: &Path, sub: &str) -> Result<PathBuf, String> {
    let real = fs::canonicalize(path).map_err(|e| at("open", path, &e).to_string())?;
    if real.starts_with(root) {
        Ok(real)
    } else {
        Err(format!("subPath {sub:?} leads out of its volume"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        File { bytes: text.as_bytes().to_vec(), mode: 0o600, user: None }
    }

    #[test]
    fn a_payload_changes_at_once_and_forgets_what_went() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let one: Payload = [("a".into(), file("1")), ("d/e".into(), file("2"))].into();
        assert!(write_payload(dir, &one, None, Duration::from_secs(1)).unwrap());
        assert_eq!(fs::read_to_string(dir.join("d/e")).unwrap(), "2");
        let first = fs::read_link(dir.join("..data")).unwrap();
        assert!(!write_payload(dir, &one, None, Duration::from_secs(2)).unwrap());
        assert_eq!(fs::read_link(dir.join("..data")).unwrap(), first);
        let two: Payload = [("a".into(), file("3"))].into();
        assert!(write_payload(dir, &two, None, Duration::from_secs(3)).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join("d").exists());
        assert!(!dir.join(first).exists());
        assert_eq!(fs::metadata(dir.join("a")).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_empty_directory_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volumes/work");
        let mode = || fs::metadata(&volume).map(|m| (m.gid(), m.mode() & 0o7777)).unwrap();
        empty_dir(&volume, 0o777, Some(4242)).unwrap();
        assert_eq!(mode(), (4242, 0o2777));
        // A database does so, and does not start when it finds its directory open again.
        set_mode(&volume, 0o700).unwrap();
        empty_dir(&volume, 0o777, Some(4242)).unwrap();
        assert_eq!(mode(), (4242, 0o700));
        assert_eq!(fs::read_dir(dir.path().join("volumes")).unwrap().count(), 1);
    }

    #[test]
    fn a_group_may_read_what_it_owns() {
        let dir = tempfile::tempdir().unwrap();
        let payload: Payload = [("a".into(), file("1"))].into();
        write_payload(dir.path(), &payload, Some(4242), Duration::ZERO).unwrap();
        let meta = fs::metadata(dir.path().join("a")).unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o777), (4242, 0o640));
    }

    #[test]
    fn a_sub_path_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        assert!(sub_path(dir.path(), "x/y").unwrap().is_dir());
        symlink("/etc", dir.path().join("out")).unwrap();
        assert!(sub_path(dir.path(), "out").unwrap_err().contains("leads out"));
        assert!(sub_path(dir.path(), "out/new").unwrap_err().contains("leads out"));
        assert!(sub_path(dir.path(), "../x").is_err());
    }

    #[test]
    fn host_paths_are_checked_by_type() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("m");
        assert!(host_path(&missing, "Directory").unwrap_err().ends_with("is not a directory"));
        assert!(host_path(&missing, "FileOrCreate").is_ok());
        assert!(host_path(&missing, "File").is_ok());
        assert!(host_path(&missing, "Socket").is_err());
        assert!(host_path(Path::new("/dev/null"), "CharDevice").is_ok());
        assert!(host_path(&missing, "Nonsense").unwrap_err().contains("invalid"));
    }
}
