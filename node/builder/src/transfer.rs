//! What a `COPY` or `ADD` takes: its sources found, checked and digested.

use crate::pattern::{self, Pattern};
use crate::tree::{Entry, Tree};
use crate::{Error, Place, nearest};
use dhow_images::{digest, layer};
use rustix::fs::FileType;
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

/// Something to copy.
#[derive(Debug)]
pub(crate) struct Item {
    /// The name that it has in a target directory.
    pub(crate) name: OsString,
    pub(crate) content: Content,
    /// Names the content.
    pub(crate) digest: String,
}

/// What it is.
#[derive(Debug)]
pub(crate) enum Content {
    /// Files of the tree: the first one is the source itself.
    Entries(Vec<Entry>),
    /// A here-document.
    Text(String),
    /// A tar archive to unpack.
    Archive(PathBuf),
}

/// Finds what the source `text` names in the tree; a pattern may name several.
pub(crate) fn find(tree: &Tree, place: &Place, text: &str, add: bool) -> Result<Vec<Item>, Error> {
    let mut depth = 0i32;
    for part in Path::new(text).components() {
        match part {
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            _ => {}
        }
        if depth < 0 {
            return Err(place.error(format!(
                "{text:?} leaves {}; only what is in it can be copied",
                tree.name
            )));
        }
    }
    let clean = pattern::clean(text);
    if !Pattern::is_pattern(&clean) {
        let found = one(tree, place, Path::new(&clean), add)?;
        return match found {
            Some(item) => Ok(vec![item]),
            None => Err(place.error(missing(tree, text, &clean))),
        };
    }
    let pattern = Pattern::new(&clean).map_err(|e| place.error(e))?;
    let base: PathBuf = clean.split('/').take_while(|part| !Pattern::is_pattern(part)).collect();
    let depth = (!clean.contains("**")).then(|| clean.split('/').count());
    let mut paths = Vec::new();
    matches(tree, &base, &pattern, depth, &mut paths);
    let mut items = Vec::new();
    for path in paths {
        items.extend(one(tree, place, &path, add)?);
    }
    if items.is_empty() {
        return Err(place.error(format!("nothing in {} fits {text:?}", tree.name)));
    }
    Ok(items)
}

/// Collects the paths below `directory` that fit, at most `depth` names deep.
fn matches(
    tree: &Tree,
    directory: &Path,
    pattern: &Pattern,
    depth: Option<usize>,
    found: &mut Vec<PathBuf>,
) {
    for name in tree.names(directory) {
        let path = directory.join(name);
        if pattern.matches(&path.to_string_lossy()) {
            // A directory brings everything in it.
            found.push(path);
        } else if depth.is_none_or(|depth| path.components().count() < depth) {
            matches(tree, &path, pattern, depth, found);
        }
    }
}

fn missing(tree: &Tree, text: &str, clean: &str) -> String {
    let path = Path::new(clean);
    if let Ok(Some(real)) = tree.resolve(path) {
        if tree.ignores(&real) {
            return format!("{text:?} is excluded from {} by .dockerignore", tree.name);
        }
        return format!("{text:?} is a socket or a device, which an image cannot hold; remove it");
    }
    if let Some(link) = tree.link(path) {
        return format!(
            "{text:?} is a symbolic link to {:?}, which is not in {}; only what is in it can be copied",
            link.display().to_string(),
            tree.name
        );
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    let names: Vec<String> =
        tree.names(parent).iter().map(|name| name.to_string_lossy().into_owned()).collect();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut message = format!("{text:?} is not in {}", tree.name);
    if let Some(close) = nearest(&name, names.iter().map(String::as_str)) {
        message.push_str(&format!(" (nearest: {:?})", parent.join(close).display().to_string()));
    }
    message
}

/// The source at `path`; `None` if it is not there, ignored, or nothing that a layer can hold.
fn one(tree: &Tree, place: &Place, path: &Path, add: bool) -> Result<Option<Item>, Error> {
    let reading = |e: io::Error| place.error(format!("reading {}: {e}", path.display()));
    let Some(real) = tree.resolve(path).map_err(reading)? else { return Ok(None) };
    let mut entries = tree.walk(&real).map_err(reading)?;
    let Some(first) = entries.first() else { return Ok(None) };
    let name = path.file_name().unwrap_or_default().to_owned();
    if add && first.kind == FileType::RegularFile {
        let mut file = tree.file(&real).map_err(reading)?;
        if is_archive(&mut file).map_err(reading)? {
            let digest = tree.digest(&entries).map_err(reading)?;
            return Ok(Some(Item { name, content: Content::Archive(real), digest }));
        }
    }
    // Sockets have no content, and a device 0/0 would mean "removed" in a layer.
    entries.retain(|e| {
        e.kind != FileType::Socket && !(e.kind == FileType::CharacterDevice && e.stat.st_rdev == 0)
    });
    if entries.is_empty() {
        return Ok(None);
    }
    let digest = tree.digest(&entries).map_err(reading)?;
    Ok(Some(Item { name, content: Content::Entries(entries), digest }))
}

/// A here-document as a file.
pub(crate) fn text(name: &str, text: String) -> Item {
    let digest = digest::of(text.as_bytes());
    Item { name: name.into(), content: Content::Text(text), digest }
}

/// Whether the file is a tar archive, perhaps compressed.
fn is_archive(file: &mut std::fs::File) -> io::Result<bool> {
    let mut head = [0u8; 6];
    let filled = file.read(&mut head)?;
    io::Seek::rewind(file)?;
    for (magic, what) in [(&b"BZh"[..], "bzip2"), (b"\xfd7zXZ\0", "xz")] {
        if head[..filled].starts_with(magic) {
            return Err(io::Error::other(format!(
                "unpacking {what} is not implemented; pack it with gzip or zstd, or use COPY"
            )));
        }
    }
    let Ok(stream) = layer::decompress(file) else { return Ok(false) };
    let mut block = Vec::new();
    if stream.take(512).read_to_end(&mut block).is_err() || block.len() < 512 {
        return Ok(false);
    }
    // ustar: an octal check sum of the header at 148, counting itself as spaces.
    let sum: u32 =
        block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum::<u32>() + 256;
    let text = String::from_utf8_lossy(&block[148..156]);
    let text = text.trim_matches([' ', '\0']);
    Ok(u32::from_str_radix(text, 8).is_ok_and(|given| given == sum))
}
