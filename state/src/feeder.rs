//! The task that follows the store and keeps the cache at its heels.

use crate::cache::Cache;
use crate::codec::ROOT;
use dhow_clock::SharedClock;
use dhow_kv::{Error, Kv, Range, Span, WatchEvent, WatchRequest, Watcher};
use std::sync::Arc;
use std::time::Duration;

/// How long to wait before a store that cannot be read is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Loads the cache and returns the watch that follows from there, and the revision of the load.
pub(crate) async fn load(cache: &Cache, kv: &Kv) -> Result<(Box<dyn Watcher>, u64), Error> {
    let found = kv.range(Range::all(Span::prefix(ROOT))).await?;
    let watcher = kv.watch(WatchRequest {
        span: Span::prefix(ROOT),
        start_revision: found.revision + 1,
        prev_kv: false,
    })?;
    let revision = u64::try_from(found.revision).unwrap_or(0);
    cache.load(&found.kvs, revision);
    Ok((watcher, revision))
}

/// Feeds the cache until the store stops.
pub(crate) async fn run(
    cache: Arc<Cache>,
    kv: Kv,
    clock: SharedClock,
    mut watcher: Box<dyn Watcher>,
) {
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
                    match reload(&cache, &kv, &clock).await {
                        Some(fresh) => watcher = fresh,
                        None => break,
                    }
                }
                None => break,
            },
            () = cache.progress.notified() => watcher.request_progress(),
        }
    }
    cache.stop();
}

/// Loads the cache again, however long an external store cannot be reached; `None` when the store
/// has stopped.
async fn reload(cache: &Cache, kv: &Kv, clock: &SharedClock) -> Option<Box<dyn Watcher>> {
    let mut failed = false;
    loop {
        match load(cache, kv).await {
            Ok((fresh, _)) => return Some(fresh),
            Err(Error::Stopped) => return None,
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::error!(%error, "the cache cannot reload and tries again");
                }
                clock.sleep(RETRY).await;
            }
        }
    }
}
