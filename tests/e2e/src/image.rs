//! The image that the tests run: a static busybox, as `docker save` would write it.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::Path;

/// Name under which the archive is loaded.
pub const NAME: &str = "busybox:latest";

/// Writes a `docker save` archive of a busybox image to `path`.
///
/// # Errors
/// When this machine has no static busybox.
pub fn write(path: &Path) -> Result<()> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| std::fs::read(path).ok())
        .context("no /bin/busybox: install the package busybox-static")?;
    let listed = std::process::Command::new("busybox").arg("--list").output()?;
    let layer = layer(&busybox, &String::from_utf8(listed.stdout)?)?;
    let digest = Sha256::digest(&layer).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/bin", "FLAG=striped"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}
    ]);
    let mut archive = tar::Builder::new(std::fs::File::create(path)?);
    for (name, bytes) in [
        ("config.json", config.to_string().into_bytes()),
        ("manifest.json", manifest.to_string().into_bytes()),
        ("layer.tar", layer),
    ] {
        archive.append_data(
            &mut header(0o644, bytes.len(), tar::EntryType::Regular),
            name,
            &*bytes,
        )?;
    }
    archive.finish()?;
    Ok(())
}

fn layer(busybox: &[u8], applets: &str) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for (directory, mode) in [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("www", 0o755)] {
        let mut header = header(mode, 0, tar::EntryType::Directory);
        layer.append_data(&mut header, directory, std::io::empty())?;
    }
    let file = |mode, bytes: &[u8]| header(mode, bytes.len(), tar::EntryType::Regular);
    layer.append_data(&mut file(0o755, busybox), "bin/busybox", busybox)?;
    for (name, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"),
        ("etc/group", "root:x:0:\nnobody:x:65534:\n"),
        ("www/index.html", "ahoy\n"),
    ] {
        layer.append_data(&mut file(0o644, text.as_bytes()), name, text.as_bytes())?;
    }
    for applet in applets.lines().filter(|a| !a.is_empty() && *a != "busybox") {
        let mut header = header(0o777, 0, tar::EntryType::Symlink);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    Ok(layer.into_inner()?)
}

fn header(mode: u32, size: usize, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header.set_entry_type(kind);
    header
}
