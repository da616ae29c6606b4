//! When members compare what they have: before the first request, and then now and then.

use anyhow::{Context as _, Result, bail};
use dhow_clock::SharedClock;
use dhow_kv::Error;
use dhow_server::Store;
use std::sync::Arc;
use std::time::Duration;

/// What is compared when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checks {
    /// This member with the others before it serves.
    pub initially: bool,
    /// The newest data this often; `None` for never.
    pub newest: Option<Duration>,
    /// What was compacted this often; `None` for never.
    pub compacted: Option<Duration>,
}

/// Compares before the first request.
///
/// # Errors
/// When this member differs from another.
pub async fn initially(store: &Store) -> Result<()> {
    tracing::info!("starting initial corruption check");
    match store.check_initially().await {
        Ok(()) => {
            tracing::info!("initial corruption checking passed; no corruption");
            Ok(())
        }
        Err(Error::Corrupt) => bail!(
            "{:x} found data inconsistency with peers: the log names them; remove the member that is wrong from the cluster and add it anew with an empty data directory",
            store.identity().member_id
        ),
        Err(error) => Err(error).context("cannot compare the data with the other members'"),
    }
}

/// Compares until it is dropped, while this member leads.
pub async fn run(store: Arc<Store>, clock: SharedClock, checks: Checks) {
    let newest = async {
        let Some(pause) = checks.newest else { return };
        loop {
            clock.sleep(pause).await;
            told("newest data", store.check_newest().await);
        }
    };
    let compacted = async {
        let Some(pause) = checks.compacted else { return };
        loop {
            clock.sleep(pause).await;
            told("compacted data", store.check_compacted().await);
        }
    };
    tokio::join!(newest, compacted);
}

fn told(what: &str, checked: Result<(), Error>) {
    if let Err(error) = checked {
        tracing::warn!(%error, what, "failed to check hash KV; trying again later");
    }
}
