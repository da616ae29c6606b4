//! Events encoded once for all watchers that share them.

use crate::wire;
use bytes::Bytes;
use dhow_kv::Event;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Encodings are spread over this many locks.
const SHARDS: usize = 8;
/// So many encodings are kept behind one lock.
const ENTRIES: usize = 256;

/// The store hands all watchers of a span the same list of events. Whoever comes first encodes it;
/// the last one takes the encoding away, so that nothing is held when all have it.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    shards: [Mutex<HashMap<usize, Entry>>; SHARDS],
}

#[derive(Debug)]
struct Entry {
    /// Keeps the address from being used again.
    events: Arc<[Event]>,
    bytes: Bytes,
}

impl Encoded {
    /// The events as the field of a `WatchResponse`.
    pub(crate) fn get(&self, events: &Arc<[Event]>) -> Bytes {
        if Arc::strong_count(events) == 1 {
            return wire::events(events.iter());
        }
        let address = events.as_ptr() as usize;
        // Allocations lie at least 16 bytes apart.
        let shard = &self.shards[(address >> 6) % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = shard.get(&address) {
            let bytes = entry.bytes.clone();
            // Ours and the entry's: nobody else waits for it.
            if Arc::strong_count(events) == 2 {
                shard.remove(&address);
            }
            return bytes;
        }
        if shard.len() >= ENTRIES {
            shard.retain(|_, entry| Arc::strong_count(&entry.events) > 1);
            if shard.len() >= ENTRIES {
                shard.clear();
            }
        }
        let bytes = wire::events(events.iter());
        shard.insert(address, Entry { events: events.clone(), bytes: bytes.clone() });
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_kv::KeyValue;

    fn events() -> Arc<[Event]> {
        let kv = KeyValue {
            key: "k".into(),
            value: "v".into(),
            create_revision: 2,
            mod_revision: 2,
            version: 1,
            lease: 0,
        };
        vec![Event { kv, prev_kv: None, deleted: false }].into()
    }

    #[test]
    fn shared_events_are_encoded_once_and_let_go_by_the_last() {
        let encoded = Encoded::default();
        let held = || encoded.shards.iter().map(|s| s.lock().unwrap().len()).sum::<usize>();
        let first = events();
        let second = first.clone();
        let a = encoded.get(&first);
        assert_eq!(held(), 1);
        drop(first);
        let b = encoded.get(&second);
        assert_eq!(a.as_ptr(), b.as_ptr());
        assert_eq!(held(), 0);
        assert_eq!(encoded.get(&second), b);
        assert_eq!(held(), 0);
    }
}
