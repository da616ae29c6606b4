//! Where the container runtime of a data directory lives.

use crate::config::Config;
use anyhow::{Context, Result};
use dhow_runtime::Runtime;
use std::path::{Path, PathBuf};

/// Directory of sockets, records and namespaces.
pub fn dir(data: &Path) -> PathBuf {
    data.join("run")
}

/// What the runtime is configured with.
///
/// # Errors
/// When this program's own path is unknown.
pub fn config(data: &Path, config: &Config) -> Result<dhow_runtime::Config> {
    let binary = std::env::current_exe().context("cannot tell this program's path")?;
    Ok(dhow_runtime::Config { dir: dir(data), binary, cgroup: config.cgroup.clone() })
}

/// Connects to the launcher of `data`, starting it if there is none.
///
/// # Errors
/// When it cannot be started.
pub async fn open(data: &Path, settings: &Config) -> Result<Runtime> {
    Ok(Runtime::open(config(data, settings)?).await?)
}

/// Connects to the launcher of `data` if one runs.
///
/// # Errors
/// When one runs and does not answer.
pub async fn connect(data: &Path, settings: &Config) -> Result<Option<Runtime>> {
    if !dir(data).join("launcher.sock").exists() {
        return Ok(None);
    }
    open(data, settings).await.map(Some)
}
