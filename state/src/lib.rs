//! Typed objects over `kv`: optimistic writes, admission, access rules, cause stamp, watch cache.
//!
//! The only way to change an object. A kind is a row of `dhow_objects::kinds`; nothing here knows
//! a kind by name except where Kubernetes itself does (namespaces, pods' graceful deletion...).
//!
//! Objects are stored as the JSON bytes that the API serves, under `/registry/GROUP/PLURAL/NS/NAME`
//! (`/registry/core/...` for the legacy group). A cache that follows the store keeps every object with its served bytes, so that
//! reads copy bytes. Reads are linearizable: they wait until the cache has seen the store's revision.

mod access;
mod admission;
mod builtin;
mod cache;
mod codec;
mod delete;
mod events;
mod feeder;
mod model;
mod read;
mod subresource;
mod tokens;
mod types;
mod view;
mod watch;
mod write;

pub use access::{Attributes, Rule};
pub use builtin::platform;
pub use codec::Cause;
pub use tokens::{Bound, IssuedToken, TokenRequest};
pub use types::{
    Actor, Config, DeleteOptions, Deleted, FieldValidation, List, ListOptions, Object, Patch,
    Result, User, WatchEvent, WatchOptions, WriteOptions, unless_gone,
};
pub use view::{Entry, Key, Reader, View};
pub use watch::Watch;

pub(crate) use dhow_objects::Status;

use cache::Cache;
use dhow_clock::SharedClock;
use dhow_kv::Kv;
use std::sync::Arc;

/// The shared handle. Cheap to clone.
#[derive(Clone)]
pub struct State {
    pub(crate) shared: Arc<Shared>,
}

/// What all handles share.
pub(crate) struct Shared {
    pub(crate) kv: Kv,
    pub(crate) clock: SharedClock,
    pub(crate) config: Config,
    pub(crate) cache: Arc<Cache>,
    /// The revision that the cache began at: no watch can resume before it.
    pub(crate) start: u64,
    pub(crate) signer: tokens::Signer,
    pub(crate) access: access::Access,
    pub(crate) views: view::Views,
    pub(crate) recorded: events::Recorded,
    pub(crate) event_lease: tokio::sync::Mutex<events::EventLease>,
    feeder: tokio::task::AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.feeder.abort();
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State(revision {})", self.revision())
    }
}

impl State {
    /// Opens the state over a store: fills the cache, makes the built-in namespaces and roles.
    /// Starts one task on the current runtime, which ends with the last handle or with the store.
    ///
    /// # Errors
    /// When the store cannot be read or the built-in objects cannot be written.
    pub async fn open(kv: Kv, clock: SharedClock, config: Config) -> Result<Self> {
        let cache = Arc::new(Cache::new(clock.clone()));
        let (watcher, start) = model::stored(feeder::load(&cache, &kv).await)?;
        let task = feeder::run(cache.clone(), kv.clone(), clock.clone(), watcher);
        let feeder = tokio::spawn(task).abort_handle();
        let shared = Shared {
            signer: tokens::Signer::new(&config.token_key)?,
            access: access::Access::default(),
            views: view::Views::default(),
            recorded: events::Recorded::default(),
            event_lease: tokio::sync::Mutex::default(),
            kv,
            clock,
            config,
            cache,
            start,
            feeder,
        };
        let state = Self { shared: Arc::new(shared) };
        state.ensure_builtins().await?;
        Ok(state)
    }

    /// The cache's revision.
    pub fn revision(&self) -> u64 {
        self.shared.cache.revision()
    }

    /// Whether the store answers and the cache follows it, now.
    ///
    /// # Errors
    /// What the store says when it cannot be read.
    pub async fn check(&self) -> Result<u64> {
        self.sync().await
    }

    /// Waits until the cache shows everything that the store has committed, by whichever of several
    /// servers, and returns that revision at least.
    pub(crate) async fn sync(&self) -> Result<u64> {
        let newest = model::stored(self.shared.kv.newest().await)?;
        let target = u64::try_from(newest).unwrap_or(0);
        let cache = &self.shared.cache;
        if cache.revision() < target {
            // The revision may be somebody's write outside of our keys, which no event will tell.
            cache.progress.notify_one();
            cache.reach(target).await?;
        }
        Ok(cache.revision())
    }
}
