//! Takes back what a start that failed has made, in a directory in which nothing was before.

use crate::config::Config;
use crate::{roles, runtime};
use std::path::Path;

/// What a start makes in the data directory, besides the files by which it is claimed.
const MADE: [&str; 11] = [
    "config.json",
    "token",
    "servers.json",
    "pki",
    "store",
    "kubeconfig",
    "env",
    "dhow.sock",
    "node",
    "run",
    "images",
];

/// Removes containers, network and files. What cannot be removed is told in the log, and stays where
/// `dhow down --purge` finds it.
pub async fn everything_made(data: &Path) {
    if let Ok(config) = Config::read(data) {
        let cleaned = async {
            if let Some(runtime) = runtime::connect(data, &config).await? {
                runtime.shutdown().await?;
            }
            dhow_dataplane::Dataplane::purge(&config.network, config.cluster_cidr).await?;
            roles::unmount_below(&data.join("node"))
        };
        if let Err(error) = cleaned.await {
            tracing::warn!(
                "something is left of the attempt, 'dhow down --purge' removes it: {error:#}"
            );
            return;
        }
    }
    for path in MADE.map(|name| data.join(name)) {
        let removed = match path.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{} cannot be removed: {error}", path.display());
        }
    }
}
