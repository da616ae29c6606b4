//! What settings were, for longer than the store remembers.
//!
//! The store's history is one of all keys together, so that the platform's own heartbeats push the past
//! of a setting out within hours. What a key below `/config/` was before a change is therefore
//! written down under `/dhow/history/`, and stays until it is [`AGE`] since the change or all of it
//! is larger than [`BYTES`]. Nothing is written while no setting changes.

use dhow_clock::SharedClock;
use dhow_kv::{
    Backend, Compare, Error, Event, KeyValue, Kv, Op, Order, Range, Span, Target, Txn, WatchEvent,
    WatchRequest,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// The keys whose past is written down.
pub const FOLLOWED: &str = "/config/";
/// Where: followed by the key without its first slash, `@`, and the revision in 16 hexadecimal digits.
const PLACE: &str = "/dhow/history/";
/// Holds the revision up to which everything is written down.
const MARK: &str = "/dhow/history-mark";

/// How long a value is known after it was changed: 90 days.
pub const AGE: Duration = Duration::from_secs(90 * 86_400);
/// How much is kept, in bytes of keys and values; the oldest goes first.
pub const BYTES: usize = 8 << 20;
/// Larger values are not written down: a transaction takes no more.
const LARGEST: usize = 1 << 20;
/// Steps and bytes of one transaction, within etcd's limits.
const STEPS: usize = 100;
const WEIGHT: usize = 1 << 20;
/// Records that are read at once.
const PAGE: usize = 200;
/// The pause after a failure.
const AGAIN: Duration = Duration::from_secs(60);

/// What a key was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// The revision that made it so.
    pub revision: i64,
    /// Of which the first is 1; 0 when the key was deleted.
    pub version: i64,
    /// `None` when the key was deleted.
    pub value: Option<bytes::Bytes>,
}

/// The first line of a record; the value follows.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    version: i64,
    /// When it was changed to something else, or deleted: seconds since the epoch.
    until: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
}

/// What was written down about a key, from the oldest to the newest. It may overlap with what the
/// store itself remembers.
///
/// # Errors
/// As the store's.
pub async fn past(kv: &dyn Backend, key: &[u8]) -> Result<Vec<Past>, Error> {
    let place = place(key);
    let found = kv.range(Range::all(Span::prefix(place.clone()))).await?;
    let read = |record: &KeyValue| {
        let revision = digits(record.key.strip_prefix(place.as_slice())?)?;
        let end = record.value.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(&record.value[..end]).ok()?;
        let value = (!head.deleted).then(|| record.value.slice(end + 1..));
        Some(Past { revision, version: head.version, value })
    };
    Ok(found.kvs.iter().filter_map(read).collect())
}

fn place(key: &[u8]) -> Vec<u8> {
    let key = key.strip_prefix(b"/").unwrap_or(key);
    [PLACE.as_bytes(), key, b"@"].concat()
}

/// The revision that ends a record's key; others may go on after the `@`.
fn digits(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 16)?;
    i64::from_str_radix(text, 16).ok()
}

/// Writes down what settings were, until the store ends.
pub async fn keep(kv: Kv, clock: SharedClock) {
    while let Err(error) = follow(&kv, &clock, BYTES).await {
        tracing::warn!(
            "the past of settings cannot be written down: {error}; trying again in a minute"
        );
        clock.sleep(AGAIN).await;
    }
}

async fn follow(kv: &Kv, clock: &SharedClock, bytes: usize) -> Result<(), Error> {
    let mut kept = Kept::load(kv, bytes).await?;
    'watch: loop {
        let request = WatchRequest {
            span: Span::prefix(FOLLOWED),
            start_revision: kept.mark + 1,
            prev_kv: true,
        };
        let mut watcher = kv.watch(request)?;
        loop {
            match watcher.next().await {
                Some(WatchEvent::Events { revision, events }) => {
                    if !kept.write(kv, revision, &events, clock.now()).await? {
                        // Another platform of the same store was faster.
                        kept = Kept::load(kv, bytes).await?;
                        continue 'watch;
                    }
                }
                Some(WatchEvent::Progress(_)) => {}
                Some(WatchEvent::Compacted(revision)) => {
                    if kept.mark > 0 {
                        tracing::warn!(
                            "settings changed between revisions {} and {revision} while nobody wrote \
                             down what they were",
                            kept.mark
                        );
                    }
                    kept.mark = revision;
                    continue 'watch;
                }
                None => return Ok(()),
            }
        }
    }
}

/// What is written down.
struct Kept {
    /// Everything up to this revision is.
    mark: i64,
    /// The revision that wrote the mark, 0 if none did.
    seen: i64,
    /// By the moment of the change: key, and bytes of key and value.
    records: VecDeque<(u64, bytes::Bytes, usize)>,
    bytes: usize,
    most: usize,
}

impl Kept {
    async fn load(kv: &Kv, most: usize) -> Result<Self, Error> {
        let mark = kv.get(MARK).await?;
        let seen = mark.as_ref().map_or(0, |kv| kv.mod_revision);
        let text = mark.as_ref().and_then(|kv| std::str::from_utf8(&kv.value).ok());
        let mark = text.and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut records = BTreeMap::new();
        let (mut bytes, mut from) = (0, PLACE.as_bytes().to_vec());
        // The end of everything that starts with the place.
        let Span::Range(_, end) = Span::prefix(PLACE) else { return Err(Error::EmptyKey) };
        loop {
            let span = Span::Range(from.clone().into(), end.clone());
            let page = kv.range(Range { limit: PAGE, ..Range::all(span) }).await?;
            for record in &page.kvs {
                let line = record.value.split(|byte| *byte == b'\n').next().unwrap_or_default();
                let head = serde_json::from_slice::<Head>(line);
                let size = record.key.len() + record.value.len();
                bytes += size;
                // One that is not understood is the oldest.
                let until = head.map_or(0, |head| head.until);
                records.insert((until, record.mod_revision, record.key.clone()), size);
            }
            match page.kvs.last() {
                Some(last) if page.more => from = [&last.key[..], &[0]].concat(),
                _ => break,
            }
        }
        let records = records.into_iter().map(|((until, _, key), size)| (until, key, size));
        Ok(Self { mark, seen, records: records.collect(), bytes, most })
    }

    /// Writes down what the keys of these changes were. False if somebody else has written meanwhile.
    async fn write(
        &mut self,
        kv: &Kv,
        revision: i64,
        events: &[Event],
        now: Duration,
    ) -> Result<bool, Error> {
        let until = now.as_secs();
        let mut puts: VecDeque<(bytes::Bytes, Vec<u8>)> = VecDeque::new();
        for event in events {
            if let Some(prev) = &event.prev_kv {
                let head = Head { version: prev.version, until, deleted: false };
                puts.extend(record(prev, &head, &prev.value));
            }
            if event.deleted {
                let head = Head { version: 0, until, deleted: true };
                puts.extend(record(&event.kv, &head, b""));
            }
        }
        loop {
            let (mut txn, mut weight) = (Txn::default(), 0);
            while let Some((key, value)) = puts.front() {
                let size = key.len() + value.len();
                if txn.success.len() >= STEPS || (weight + size > WEIGHT && weight > 0) {
                    break;
                }
                weight += size;
                self.bytes += size;
                self.records.push_back((until, key.clone(), size));
                if let Some((key, value)) = puts.pop_front() {
                    txn.success.push(Op::put(key, value));
                }
            }
            let oldest = until.saturating_sub(AGE.as_secs());
            while txn.success.len() < STEPS
                && let Some((at, _, _)) = self.records.front()
                && (*at < oldest || self.bytes > self.most)
                && let Some((_, key, size)) = self.records.pop_front()
            {
                self.bytes -= size;
                // One key must not be written twice in a transaction.
                let fresh = |op: &Op| matches!(op, Op::Put { key: put, .. } if *put == key);
                match txn.success.iter().position(fresh) {
                    Some(at) => drop(txn.success.remove(at)),
                    None => txn.success.push(Op::delete(key)),
                }
            }
            let last = puts.is_empty();
            let mark = if last { revision } else { self.mark };
            txn.success.push(Op::put(MARK, mark.to_string()));
            txn.compare = vec![Compare {
                span: Span::Key(MARK.into()),
                order: Order::Equal,
                target: Target::ModRevision(self.seen),
            }];
            let done = kv.txn(txn).await?;
            if !done.succeeded {
                return Ok(false);
            }
            self.seen = done.revision;
            self.mark = mark;
            if last {
                return Ok(true);
            }
        }
    }
}

/// The key and text of a record, unless it is too large.
fn record(of: &KeyValue, head: &Head, value: &[u8]) -> Option<(bytes::Bytes, Vec<u8>)> {
    if value.len() > LARGEST {
        return None;
    }
    let key = [&place(&of.key)[..], format!("{:016x}", of.mod_revision).as_bytes()].concat();
    let mut text = serde_json::to_vec(head).ok()?;
    text.push(b'\n');
    text.extend_from_slice(value);
    Some((key.into(), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_server::{Options, Store};

    struct World {
        kv: Kv,
        clock: SharedClock,
        _dir: tempfile::TempDir,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let clock = dhow_clock::System::shared();
        let store = Store::open(dir.path(), clock.clone(), Options::default()).unwrap();
        World { kv: Kv::new(store), clock, _dir: dir }
    }

    impl World {
        async fn put(&self, key: &str, value: &str) -> i64 {
            let op = Op::put(key.to_owned(), value.to_owned());
            let txn = Txn { success: vec![op], ..Txn::default() };
            self.kv.txn(txn).await.unwrap().revision
        }

        async fn delete(&self, key: &str) -> i64 {
            let txn = Txn { success: vec![Op::delete(key.to_owned())], ..Txn::default() };
            self.kv.txn(txn).await.unwrap().revision
        }

        /// Runs the keeper until everything up to `revision` is written down.
        async fn keep_until(&self, revision: i64, bytes: usize) {
            let span = Span::Key(MARK.into());
            // From now on: nothing is written down before it is followed.
            let request = WatchRequest { span, start_revision: 0, prev_kv: false };
            let mut marks = self.kv.watch(request).unwrap();
            let reached = async {
                loop {
                    let Some(WatchEvent::Events { events, .. }) = marks.next().await else {
                        panic!("the watch ended")
                    };
                    let text = String::from_utf8_lossy(&events[0].kv.value).into_owned();
                    if text.parse::<i64>().unwrap() >= revision {
                        return;
                    }
                }
            };
            tokio::select! {
                () = reached => {}
                ended = follow(&self.kv, &self.clock, bytes) => panic!("{ended:?}"),
            }
        }

        async fn values(&self, key: &str) -> Vec<(i64, Option<String>)> {
            let text = |v: bytes::Bytes| String::from_utf8_lossy(&v).into_owned();
            let past = past(&*self.kv, key.as_bytes()).await.unwrap();
            past.into_iter().map(|p| (p.version, p.value.map(text))).collect()
        }
    }

    fn was(list: &[(i64, &str)]) -> Vec<(i64, Option<String>)> {
        let deleted = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        list.iter().map(|(version, text)| (*version, deleted(text))).collect()
    }

    #[tokio::test]
    async fn what_a_setting_was_outlives_the_stores_own_history() {
        let world = world();
        world.put("/config/a", "one").await;
        world.put("/config/a", "two").await;
        world.put("/registry/other", "x").await;
        world.put("/config/a@0000000000000002", "another key").await;
        world.put("/config/a@0000000000000002", "another key still").await;
        world.delete("/config/a").await;
        let last = world.put("/config/a", "three").await;
        world.keep_until(last, BYTES).await;
        world.kv.compact(world.kv.revision(), true).await.unwrap();
        assert_eq!(world.values("/config/a").await, was(&[(1, "one"), (2, "two"), (0, "")]));
        // After a restart it goes on where it was, and nothing is written while nothing changes.
        let last = world.put("/config/a", "four").await;
        world.keep_until(last, BYTES).await;
        assert_eq!(world.kv.revision(), last + 1);
        let all = was(&[(1, "one"), (2, "two"), (0, ""), (1, "three")]);
        assert_eq!(world.values("/config/a").await, all);
        assert!(world.values("/config/none").await.is_empty());
        assert!(world.values("/registry/other").await.is_empty());
    }

    #[tokio::test]
    async fn the_oldest_goes_when_there_is_too_much_or_it_is_too_old() {
        let world = world();
        let filler = "x".repeat(1000);
        let mut last = 0;
        for n in 0..10 {
            last = world.put("/config/a", &format!("{n}{filler}")).await;
        }
        world.keep_until(last, 4000).await;
        let left = world.values("/config/a").await;
        assert_eq!(left.iter().map(|(version, _)| *version).collect::<Vec<_>>(), [7, 8, 9]);

        let mut kept = Kept::load(&world.kv, BYTES).await.unwrap();
        let revision = world.kv.revision();
        let change = |key: &str| Event {
            kv: world_key(key, revision),
            prev_kv: Some(world_key(key, revision - 1)),
            deleted: false,
        };
        let later = world.clock.now() + AGE + Duration::from_secs(10);
        assert!(kept.write(&world.kv, revision, &[change("/config/b")], later).await.unwrap());
        assert!(world.values("/config/a").await.is_empty());
        assert_eq!(world.values("/config/b").await.len(), 1);
        // Whoever finds that somebody else has written looks again.
        world.put(MARK, "1").await;
        assert!(!kept.write(&world.kv, revision, &[change("/config/c")], later).await.unwrap());
    }

    fn world_key(key: &str, revision: i64) -> KeyValue {
        KeyValue {
            key: key.to_owned().into(),
            value: "v".into(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        }
    }

    #[tokio::test]
    async fn a_change_of_many_keys_is_written_down_in_pieces() {
        let world = world();
        let puts = (0..120).map(|n| Op::put(format!("/config/k{n}"), "old"));
        world.kv.txn(Txn { success: puts.collect(), ..Txn::default() }).await.unwrap();
        let all = Op::Delete { span: Span::prefix(FOLLOWED), prev_kv: false };
        world.kv.txn(Txn { success: vec![all], ..Txn::default() }).await.unwrap();
        world.keep_until(world.kv.revision(), BYTES).await;
        assert_eq!(world.values("/config/k0").await, was(&[(1, "old"), (0, "")]));
        assert_eq!(world.values("/config/k119").await, was(&[(1, "old"), (0, "")]));
    }
}
