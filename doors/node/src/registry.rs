//! Live streams by machine: an agent offers them here, doors find them here.

use dhow_intents::Streams;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Finds the live streams of a machine by its name.
pub type Resolver = Arc<dyn Fn(&str) -> Option<Arc<dyn Streams>> + Send + Sync>;

/// The live streams of all machines that are connected. Cheap to clone.
#[derive(Clone, Default)]
pub struct StreamRegistry(Arc<RwLock<HashMap<String, Arc<dyn Streams>>>>);

impl StreamRegistry {
    /// Offers a machine's streams; replaces what was offered under the name before.
    pub fn register(&self, node: impl Into<String>, streams: Arc<dyn Streams>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(node.into(), streams);
    }

    /// Takes a machine's streams away.
    pub fn remove(&self, node: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    /// A machine's streams; `None` when it is unknown or not connected.
    pub fn of(&self, node: &str) -> Option<Arc<dyn Streams>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
    }

    /// [`StreamRegistry::of`] as a function, for doors that must not know this crate.
    pub fn resolver(&self) -> Resolver {
        let registry = self.clone();
        Arc::new(move |node| registry.of(node))
    }
}

impl std::fmt::Debug for StreamRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(nodes.keys()).finish()
    }
}
