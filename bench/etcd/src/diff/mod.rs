//! The same random requests to two servers.
use anyhow::Result;
/// Which.
#[derive(Debug, clap::Args)]
pub struct Options {}
/// Runs.
pub async fn run(_: &Options) -> Result<()> {
    anyhow::bail!("not implemented")
}
