//! Small files that a crash must not leave half written.

use anyhow::{Context, Result};
use std::path::Path;

/// Replaces `path` in one step.
///
/// # Errors
/// When the file cannot be written; the old content is then still there.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    dhow_clock::disk::replace(path, bytes, mode)
        .with_context(|| format!("cannot write {}", path.display()))
}
