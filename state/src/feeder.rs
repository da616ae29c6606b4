//! The task that follows the store and keeps the cache at its heels.

use crate::cache::Cache;
use crate::codec::ROOT;
use crate::model::stored;
use crate::types::Result;
use dhow_kv::{Kv, Range, Span, WatchEvent, WatchRequest, Watcher};
use std::sync::Arc;

/// Loads the cache and returns the watch that follows from there, and the revision of the load.
pub(crate) async fn load(cache: &Cache, kv: &Kv) -> Result<(Box<dyn Watcher>, u64)> {
    let found = stored(kv.range(Range::all(Span::prefix(ROOT))).await)?;
    let watcher = stored(kv.watch(WatchRequest {
        span: Span::prefix(ROOT),
        start_revision: found.revision + 1,
        prev_kv: false,
    }))?;
    let revision = u64::try_from(found.revision).unwrap_or(0);
    cache.load(&found.kvs, revision);
    Ok((watcher, revision))
}

/// Feeds the cache until the store stops.
pub(crate) async fn run(cache: Arc<Cache>, kv: Kv, mut watcher: Box<dyn Watcher>) {
    loop {
        tokio::select! {
            biased;
            event = watcher.next() => match event {
                Some(WatchEvent::Events { revision, events }) => {
                    cache.apply(u64::try_from(revision).unwrap_or(0), &events);
                }
                Some(WatchEvent::Progress(revision)) => {
                    cache.advance(u64::try_from(revision).unwrap_or(0));
                }
                Some(WatchEvent::Compacted(revision)) => {
                    tracing::warn!(revision, "the cache fell behind the store's history and reloads");
                    match load(&cache, &kv).await {
                        Ok((fresh, _)) => watcher = fresh,
                        Err(error) => {
                            tracing::error!(%error, "the cache cannot reload and stops");
                            break;
                        }
                    }
                }
                None => break,
            },
            () = cache.progress.notified() => watcher.request_progress(),
        }
    }
    cache.stop();
}
