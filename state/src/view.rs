//! Typed views: a live map of one kind, decoded once per change and shared by everybody in process.
//!
//! A view is as new as the cache: what a write returned is in the view when the write returns.

use crate::State;
use crate::cache::Sink;
use crate::model::stored_kind;
use crate::types::{Actor, Object, Patch, Result, WriteOptions};
use dhow_objects::kinds::Kind;
use dhow_objects::{Status, meta};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};
use tokio::sync::Notify;

/// Names an object of a kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key {
    /// Namespace, empty for cluster-wide kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A decoded object and the revision that wrote it.
#[derive(Debug)]
pub struct Entry<T> {
    /// The object.
    pub object: Arc<T>,
    /// Its resourceVersion.
    pub revision: u64,
}

// Not derived: that would ask for `T: Clone`.
impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self { object: self.object.clone(), revision: self.revision }
    }
}

#[derive(Debug, Default)]
struct Subscriber {
    pending: Mutex<BTreeSet<Key>>,
    news: Notify,
}

impl Subscriber {
    fn tell(&self, keys: impl IntoIterator<Item = Key>) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
        self.news.notify_one();
    }
}

struct Store<T> {
    kind: &'static Kind,
    objects: RwLock<BTreeMap<Key, Entry<T>>>,
    subscribers: Mutex<Vec<Weak<Subscriber>>>,
}

impl<T> Store<T> {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Key, Entry<T>>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribe(&self) -> Arc<Subscriber> {
        let subscriber = Arc::new(Subscriber::default());
        // Held until the subscriber is on the list, so that no change falls in between.
        let objects = self.read();
        if !objects.is_empty() {
            subscriber.tell(objects.keys().cloned());
        }
        let mut all = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Arc::downgrade(&subscriber));
        drop(all);
        subscriber
    }
}

/// The cache's end of a store; it ends when nobody has a view any more.
struct Feed<T>(Weak<Store<T>>);

impl<T: DeserializeOwned + Send + Sync + 'static> Sink for Feed<T> {
    fn apply(
        &self,
        namespace: &str,
        name: &str,
        object: Option<&Arc<Object>>,
        revision: u64,
    ) -> bool {
        let Some(store) = self.0.upgrade() else { return false };
        let key = Key::new(namespace, name);
        let decoded = object.map(|o| o.decode::<T>());
        let mut objects = store.objects.write().unwrap_or_else(PoisonError::into_inner);
        match decoded {
            Some(Ok(object)) => {
                objects.insert(key.clone(), Entry { object: Arc::new(object), revision });
            }
            Some(Err(error)) => {
                tracing::error!(kind = store.kind.kind, %key, %error, "object left out of the view");
                objects.remove(&key);
            }
            None => {
                objects.remove(&key);
            }
        }
        let mut subscribers = store.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|s| match s.upgrade() {
            Some(subscriber) => {
                subscriber.tell([key.clone()]);
                true
            }
            None => false,
        });
        true
    }
}

/// A live map of all objects of a kind, to be read. The decoded objects are shared between all handles.
pub struct Reader<T> {
    store: Arc<Store<T>>,
}

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone() }
    }
}

impl<T> std::fmt::Debug for Reader<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({}, {} objects)", self.store.kind.kind, self.store.read().len())
    }
}

impl<T> Reader<T> {
    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.entry(&Key::new(namespace, name)).map(|e| e.object)
    }

    /// One object with its revision.
    pub fn entry(&self, key: &Key) -> Option<Entry<T>> {
        self.store.read().get(key).cloned()
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.store.read().values().map(|e| e.object.clone()).collect()
    }

    /// All objects of a namespace, by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<T>> {
        let from = Key::new(namespace, "");
        let objects = self.store.read();
        let own = objects.range(from..).take_while(|(k, _)| k.namespace == namespace);
        own.map(|(_, e)| e.object.clone()).collect()
    }

    /// All objects with their keys and revisions.
    pub fn entries(&self) -> Vec<(Key, Entry<T>)> {
        self.store.read().iter().map(|(k, e)| (k.clone(), e.clone())).collect()
    }
}

/// A [`Reader`] that hears of changes. What has changed is kept for it until it asks: who never does
/// takes a reader.
pub struct View<T> {
    reader: Reader<T>,
    subscriber: Arc<Subscriber>,
}

impl<T> std::ops::Deref for View<T> {
    type Target = Reader<T>;

    fn deref(&self) -> &Reader<T> {
        &self.reader
    }
}

impl<T> Clone for View<T> {
    /// Another handle, for which everything that exists is news.
    fn clone(&self) -> Self {
        Self { reader: self.reader.clone(), subscriber: self.store.subscribe() }
    }
}

impl<T> std::fmt::Debug for View<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({}, {} objects)", self.store.kind.kind, self.store.read().len())
    }
}

impl<T> View<T> {
    /// A handle that hears of nothing.
    pub fn reader(&self) -> Reader<T> {
        self.reader.clone()
    }

    /// Which objects appeared, changed or went since the last call, in order; waits until there is
    /// at least one. The first call names everything that exists. Cancel safe.
    pub async fn changed(&mut self) -> Vec<Key> {
        loop {
            let keys = self.take_changed();
            if !keys.is_empty() {
                return keys;
            }
            self.subscriber.news.notified().await;
        }
    }

    /// As [`View::changed`], without waiting.
    pub fn take_changed(&mut self) -> Vec<Key> {
        let mut pending = self.subscriber.pending.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *pending).into_iter().collect()
    }
}

/// The stores that are in use, by kind and type.
#[derive(Default)]
pub(crate) struct Views(Mutex<HashMap<(usize, TypeId), Weak<dyn Any + Send + Sync>>>);

impl State {
    /// A live view of a kind, decoded as `T`. Cheap when somebody has one already.
    pub fn view<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        kind: &'static Kind,
    ) -> View<T> {
        let kind = stored_kind(kind);
        let id = (std::ptr::from_ref(kind) as usize, TypeId::of::<T>());
        let mut views = self.shared.views.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = views.get(&id).and_then(Weak::upgrade);
        let store = match known.and_then(|any| any.downcast::<Store<T>>().ok()) {
            Some(store) => store,
            None => {
                let store = Arc::new(Store::<T> {
                    kind,
                    objects: RwLock::default(),
                    subscribers: Mutex::default(),
                });
                self.shared.cache.add_sink(kind, Arc::new(Feed(Arc::downgrade(&store))));
                let any: Arc<dyn Any + Send + Sync> = store.clone();
                views.insert(id, Arc::downgrade(&any));
                store
            }
        };
        drop(views);
        let subscriber = store.subscribe();
        View { reader: Reader { store }, subscriber }
    }

    /// [`State::create`] of a typed object, in the namespace that its metadata names.
    ///
    /// # Errors
    /// As [`State::create`].
    pub async fn create_typed<T: Serialize + DeserializeOwned>(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        object: &T,
    ) -> Result<T> {
        let value = to_value(object)?;
        let namespace = meta::namespace(&value).to_owned();
        self.create(actor, kind, &namespace, value, &WriteOptions::default()).await?.decode()
    }

    /// [`State::update`] of a typed object. Its resourceVersion, when it has one, is a precondition.
    ///
    /// # Errors
    /// As [`State::update`].
    pub async fn update_typed<T: Serialize + DeserializeOwned>(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        object: &T,
    ) -> Result<T> {
        self.update_part(actor, kind, object, "").await
    }

    /// [`State::update`] of a typed object's status alone.
    ///
    /// # Errors
    /// As [`State::update`].
    pub async fn update_status_typed<T: Serialize + DeserializeOwned>(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        object: &T,
    ) -> Result<T> {
        self.update_part(actor, kind, object, "status").await
    }

    async fn update_part<T: Serialize + DeserializeOwned>(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        object: &T,
        part: &str,
    ) -> Result<T> {
        let value = to_value(object)?;
        let (namespace, name) = (meta::namespace(&value).to_owned(), meta::name(&value).to_owned());
        let options = WriteOptions::default();
        self.update(actor, kind, &namespace, &name, part, value, &options).await?.decode()
    }

    /// [`State::patch`] with a typed answer.
    ///
    /// # Errors
    /// As [`State::patch`].
    pub async fn patch_typed<T: DeserializeOwned>(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        key: &Key,
        subresource: &str,
        patch: Patch,
    ) -> Result<T> {
        let options = WriteOptions::default();
        let done = self
            .patch(actor, kind, &key.namespace, &key.name, subresource, patch, &options)
            .await?;
        done.0.decode()
    }
}

fn to_value<T: Serialize>(object: &T) -> Result<Value> {
    serde_json::to_value(object).map_err(Status::internal)
}
