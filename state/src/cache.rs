//! The watch cache: every object with its served bytes, recent history, and who follows it.
//!
//! One task (see `feeder`) applies the store's changes in order, one revision at a time, under one
//! lock; readers therefore see whole revisions. Watchers are given events without waiting: who cannot
//! keep up is ended and never delays others.

use crate::codec;
use crate::types::{Object, Result, WatchEvent, WatchOptions};
use crate::watch::{Watch, Watcher};
use dhow_clock::SharedClock;
use dhow_kv::Event;
use dhow_objects::Status;
use dhow_objects::kinds::Kind;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use tokio::sync::Notify;

/// How many changes of one kind are remembered, and for how long once others follow.
const HISTORY: usize = 1024;
const HISTORY_AGE: Duration = Duration::from_secs(600);
/// How often an idle watch may get a bookmark.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// Who is told of each change of a kind, in step with the cache (typed views).
pub(crate) trait Sink: Send + Sync {
    /// `object` is `None` when it is gone. Returns false when the sink is not wanted any more.
    fn apply(
        &self,
        namespace: &str,
        name: &str,
        object: Option<&Arc<Object>>,
        revision: u64,
    ) -> bool;
}

/// One change of one object.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    at: Duration,
    pub(crate) key: String,
    pub(crate) before: Option<Arc<Object>>,
    pub(crate) after: Option<Arc<Object>>,
    /// The state before with this change's revision: what a `Deleted` event carries.
    last: OnceLock<Arc<Object>>,
}

impl Change {
    pub(crate) fn last_state(&self) -> Option<Arc<Object>> {
        let before = self.before.as_ref()?;
        Some(
            self.last.get_or_init(|| Arc::new(codec::with_revision(before, self.revision))).clone(),
        )
    }
}

/// All objects of one kind.
#[derive(Default)]
pub(crate) struct KindCache {
    pub(crate) objects: BTreeMap<String, Arc<Object>>,
    pub(crate) history: VecDeque<Arc<Change>>,
    /// Every change after this revision is in `history`.
    pub(crate) floor: u64,
    /// The newest revision that changed an object of the kind.
    pub(crate) changed: u64,
    watchers: Vec<Watcher>,
    sinks: Vec<Arc<dyn Sink>>,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) revision: u64,
    kinds: HashMap<usize, KindCache>,
    bookmark_due: Duration,
    stopped: bool,
}

/// How far the cache is, for those who wait for it.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    revision: u64,
    stopped: bool,
}

/// The cache. See the module.
pub(crate) struct Cache {
    inner: RwLock<Inner>,
    clock: SharedClock,
    published: tokio::sync::watch::Sender<Progress>,
    /// Asks the feeder to have the store say how far it is.
    pub(crate) progress: Notify,
}

/// Kinds are rows of a static table: a row's address identifies it.
fn id(kind: &'static Kind) -> usize {
    std::ptr::from_ref(kind) as usize
}

static EMPTY: std::sync::LazyLock<KindCache> = std::sync::LazyLock::new(KindCache::default);

impl Inner {
    /// A kind's objects; empty when there never were any.
    pub(crate) fn kind(&self, kind: &'static Kind) -> &KindCache {
        self.kinds.get(&id(kind)).unwrap_or_else(|| &*EMPTY)
    }

    fn kind_mut(&mut self, kind: &'static Kind) -> &mut KindCache {
        self.kinds.entry(id(kind)).or_default()
    }

    /// The first revision from which a kind's changes are all known.
    pub(crate) fn floor(&self, kind: &'static Kind, start: u64) -> u64 {
        self.kinds.get(&id(kind)).map_or(start, |k| k.floor.max(start))
    }
}

impl Cache {
    pub(crate) fn new(clock: SharedClock) -> Self {
        Self {
            inner: RwLock::default(),
            clock,
            published: tokio::sync::watch::Sender::default(),
            progress: Notify::new(),
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest revision that the cache shows.
    pub(crate) fn revision(&self) -> u64 {
        self.published.borrow().revision
    }

    /// Waits until the cache shows `revision`.
    pub(crate) async fn reach(&self, revision: u64) -> Result<()> {
        let mut seen = self.published.subscribe();
        match seen.wait_for(|p| p.stopped || p.revision >= revision).await {
            Ok(progress) if !progress.stopped => Ok(()),
            _ => Err(Status::unavailable("the store has stopped; try again when it is back")),
        }
    }

    /// One object as the cache has it.
    pub(crate) fn peek(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Object>> {
        self.read().kind(kind).objects.get(&codec::local_key(namespace, name)).cloned()
    }

    /// All objects of a kind, of one namespace or of all.
    pub(crate) fn peek_all(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
    ) -> Vec<Arc<Object>> {
        let inner = self.read();
        range(&inner.kind(kind).objects, namespace).map(|(_, o)| o.clone()).collect()
    }

    /// Takes over the whole contents at `revision`; what is missing is treated as deleted. For the start,
    /// and for a feeder that fell behind the store's history.
    pub(crate) fn load(&self, kvs: &[dhow_kv::KeyValue], revision: u64) {
        let mut inner = self.write();
        let mut gone: Vec<(&'static Kind, String)> = Vec::new();
        let mut fresh: HashMap<(usize, &str), &dhow_kv::KeyValue> = HashMap::new();
        for kv in kvs {
            if let Some((kind, local)) = crate::model::kind_of_key(&kv.key) {
                fresh.insert((id(kind), local), kv);
            }
        }
        for (kind_id, kind) in &inner.kinds {
            for (local, object) in &kind.objects {
                if !fresh.contains_key(&(*kind_id, local.as_str())) {
                    gone.push((object.kind, local.clone()));
                }
            }
        }
        let now = self.clock.monotonic();
        let mut changes: Vec<(u64, &'static Kind, String, Option<&bytes::Bytes>)> =
            gone.into_iter().map(|(kind, local)| (revision, kind, local, None)).collect();
        for kv in kvs {
            let Some((kind, local)) = crate::model::kind_of_key(&kv.key) else { continue };
            let known = inner.kind(kind).objects.get(local).map_or(0, |o| o.revision);
            let written = u64::try_from(kv.mod_revision).unwrap_or(0);
            if known != written {
                changes.push((written, kind, local.to_owned(), Some(&kv.value)));
            }
        }
        // History is in the order of revisions, and watchers rely on it.
        changes.sort_by_key(|c| c.0);
        for (written, kind, local, stored) in changes {
            inner.change(kind, &local, stored, written, now);
        }
        if inner.revision == 0 {
            // What was there at the start is no history: nobody can resume before it.
            for kind in inner.kinds.values_mut() {
                kind.history.clear();
                kind.floor = revision;
            }
        }
        inner.revision = revision;
        drop(inner);
        self.publish(revision);
    }

    /// Applies all changes of one revision.
    pub(crate) fn apply(&self, revision: u64, events: &[Event]) {
        let mut inner = self.write();
        if revision <= inner.revision {
            return;
        }
        let now = self.clock.monotonic();
        for event in events {
            let Some((kind, local)) = crate::model::kind_of_key(&event.kv.key) else { continue };
            let stored = (!event.deleted).then_some(&event.kv.value);
            inner.change(kind, local, stored, revision, now);
        }
        inner.revision = revision;
        inner.bookmarks(now);
        drop(inner);
        self.publish(revision);
    }

    /// Nothing at or below `revision` is still to come.
    pub(crate) fn advance(&self, revision: u64) {
        let mut inner = self.write();
        if revision <= inner.revision {
            return;
        }
        inner.revision = revision;
        drop(inner);
        self.publish(revision);
    }

    fn publish(&self, revision: u64) {
        self.published.send_if_modified(|p| {
            let newer = revision > p.revision;
            if newer {
                p.revision = revision;
            }
            newer
        });
    }

    /// The store is gone: ends all watches and waits.
    pub(crate) fn stop(&self) {
        let mut inner = self.write();
        inner.stopped = true;
        for kind in inner.kinds.values_mut() {
            kind.watchers.clear();
        }
        drop(inner);
        self.published.send_modify(|p| p.stopped = true);
    }

    /// Starts a watch; see [`WatchOptions`]. `start` is the revision that the cache began at.
    pub(crate) fn watch(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        options: WatchOptions,
        start: u64,
    ) -> Result<Watch> {
        let mut inner = self.write();
        if inner.stopped {
            return Err(Status::unavailable("the store has stopped; try again when it is back"));
        }
        let (revision, now) = (inner.revision, self.clock.monotonic());
        let floor = inner.floor(kind, start);
        let initial_all = options.send_initial_events || options.revision.unwrap_or(0) == 0;
        let since = options.revision.unwrap_or(0);
        if !initial_all && since < floor {
            return Err(Status::expired(format!("too old resource version: {since} ({floor})")));
        }
        let cache = inner.kind_mut(kind);
        let (mut watcher, mut watch) =
            Watcher::new(kind, namespace, &options, revision.max(since), now);
        if initial_all {
            for (_, object) in range(&cache.objects, namespace) {
                if watcher.selects(object) {
                    watch.initial.push_back(WatchEvent::Added(object.clone()));
                }
            }
            if options.send_initial_events {
                watch.initial.push_back(WatchEvent::Bookmark { revision, initial_end: true });
            }
        } else {
            let from = cache.history.partition_point(|c| c.revision <= since);
            for change in cache.history.range(from..) {
                watch.initial.extend(watcher.translate(change));
            }
        }
        watcher.bookmarked = now;
        cache.watchers.push(watcher);
        Ok(watch)
    }

    /// Registers a sink after giving it everything that exists.
    pub(crate) fn add_sink(&self, kind: &'static Kind, sink: Arc<dyn Sink>) {
        let mut inner = self.write();
        let cache = inner.kind_mut(kind);
        for object in cache.objects.values() {
            sink.apply(&object.namespace, &object.name, Some(object), object.revision);
        }
        cache.sinks.push(sink);
    }
}

impl Inner {
    fn change(
        &mut self,
        kind: &'static Kind,
        local: &str,
        stored: Option<&bytes::Bytes>,
        revision: u64,
        now: Duration,
    ) {
        let cache = self.kind_mut(kind);
        let (namespace, name) = codec::split_local(kind, local);
        let after =
            stored.map(|bytes| Arc::new(codec::object(kind, namespace, name, bytes, revision)));
        let before = match &after {
            Some(object) => cache.objects.insert(local.to_owned(), object.clone()),
            None => cache.objects.remove(local),
        };
        if before.is_none() && after.is_none() {
            return;
        }
        cache.changed = revision;
        cache.sinks.retain(|sink| sink.apply(namespace, name, after.as_ref(), revision));
        let change = Arc::new(Change {
            revision,
            at: now,
            key: local.to_owned(),
            before,
            after,
            last: OnceLock::new(),
        });
        cache.watchers.retain_mut(|watcher| watcher.push(&change));
        cache.history.push_back(change);
        while cache.history.len() > HISTORY
            || cache.history.front().is_some_and(|c| c.at + HISTORY_AGE < now)
        {
            if let Some(old) = cache.history.pop_front() {
                cache.floor = old.revision;
            }
        }
    }

    /// Sends what bookmarks are due. Called on changes only, so that idle stays idle.
    fn bookmarks(&mut self, now: Duration) {
        if now < self.bookmark_due {
            return;
        }
        self.bookmark_due = now + BOOKMARKS;
        let revision = self.revision;
        for kind in self.kinds.values_mut() {
            kind.watchers.retain_mut(|w| w.bookmark(revision, now, BOOKMARKS));
        }
    }
}

/// The objects of one namespace, or all.
pub(crate) fn range<'a>(
    objects: &'a BTreeMap<String, Arc<Object>>,
    namespace: Option<&str>,
) -> impl Iterator<Item = (&'a String, &'a Arc<Object>)> {
    // '0' follows '/': the end of the namespace's keys.
    let bounds = namespace.map(|n| (format!("{n}/"), format!("{n}0")));
    match bounds {
        Some((from, to)) => objects.range(from..to),
        None => objects.range::<String, _>(..),
    }
}
