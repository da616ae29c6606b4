//! Garbage: follows every kind's metadata and deletes what nobody owns any more.
//!
//! The index holds metadata of objects that own, are owned or are being deleted; before anything is
//! deleted, each owner's absence is checked against the cache, which is never behind a write.

use crate::Context;
use crate::driver::{Outcome, Queue};
use dhow_objects::kinds::{self, Kind};
use dhow_objects::meta;
use dhow_state::{
    DeleteOptions, Key, Object, Patch, State, WatchEvent, WatchOptions, WriteOptions, unless_gone,
};
use dhow_workloads::garbage::{FOREGROUND, Fate, ORPHAN, Owner, OwnerState, fate};
use futures::stream::{self, Stream, StreamExt};
use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;

const NAME: &str = "garbage-collector";

struct Known {
    kind: &'static Kind,
    key: Key,
    owners: Vec<(Owner, Reference)>,
    deleting: bool,
    foreground: bool,
    orphan: bool,
}

/// How to find an owner again.
#[derive(Clone)]
struct Reference {
    api_version: String,
    kind: String,
    name: String,
}

#[derive(Default)]
struct Index {
    objects: HashMap<String, Known>,
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Index {
    fn put(&mut self, object: &Object) -> String {
        let value = object.value();
        let uid = object.uid().to_owned();
        self.take(&uid);
        let owners: Vec<(Owner, Reference)> = meta::owner_references(value)
            .map(|o| {
                let owner = Owner { uid: o.uid.to_owned(), blocks: o.block_owner_deletion };
                let reference = Reference {
                    api_version: o.api_version.to_owned(),
                    kind: o.kind.to_owned(),
                    name: o.name.to_owned(),
                };
                (owner, reference)
            })
            .collect();
        for (owner, _) in &owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let has = |wanted: &str| meta::finalizers(value).any(|f| f == wanted);
        let known = Known {
            kind: object.kind,
            key: Key::new(&object.namespace, &object.name),
            owners,
            deleting: meta::deletion_timestamp(value).is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        };
        self.objects.insert(uid.clone(), known);
        uid
    }

    /// Brings what is known of an object up to the cache's state. The watches of different kinds are
    /// not in step: the news that an owner has gone may come before the news that its dependent was
    /// let go.
    fn refresh(&mut self, state: &State, uid: &str) {
        let Some(known) = self.objects.get(uid) else { return };
        let Key { namespace, name } = &known.key;
        match state.cached(known.kind, namespace, name) {
            Some(found) if found.uid() == uid => {
                self.put(&found);
            }
            // It has gone; its event is on its way and will look after its dependents.
            _ => {}
        }
    }

    fn take(&mut self, uid: &str) -> Option<Known> {
        let known = self.objects.remove(uid)?;
        for (owner, _) in &known.owners {
            if let Some(of) = self.dependents.get_mut(&owner.uid) {
                of.remove(uid);
                if of.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        Some(known)
    }
}

type Events = Pin<Box<dyn Stream<Item = WatchEvent> + Send>>;

async fn follow(context: &Context, kind: &'static Kind) -> Result<Events, dhow_objects::Status> {
    let watch = context.state.watch(kind, None, WatchOptions::default()).await?;
    Ok(Box::pin(stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((event, watch))
    })))
}

pub(crate) async fn run(context: Context) {
    loop {
        if let Err(refusal) = collect(&context).await {
            tracing::warn!(%refusal, "garbage collection starts anew");
        }
        context.clock.sleep(std::time::Duration::from_secs(1)).await;
    }
}

async fn collect(context: &Context) -> Result<(), dhow_objects::Status> {
    let mut watches = Vec::new();
    // Events and leases own nothing and are many; one storage is followed once.
    for kind in kinds::all().iter().filter(|k| !matches!(k.kind, "Event" | "Lease")) {
        watches.push(follow(context, kind).await?);
    }
    let mut events = stream::select_all(watches);
    let mut index = Index::default();
    // Keyed by uid: a name may come again.
    let mut queue = Queue::new(NAME, context.clock.clone());
    let by_uid = |uid: String| Key::new("", uid);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    queue.add(by_uid(index.put(&object)));
                }
                Some(WatchEvent::Deleted(object)) => {
                    let uid = object.uid().to_owned();
                    let gone = index.take(&uid);
                    index.dependents.get(&uid).into_iter().flatten().for_each(|d| queue.add(by_uid(d.clone())));
                    // An owner may have waited for just this one.
                    gone.iter().flat_map(|g| &g.owners).for_each(|(o, _)| queue.add(by_uid(o.uid.clone())));
                }
                Some(WatchEvent::Bookmark { .. }) => {}
                Some(WatchEvent::Error(refusal)) => return Err(refusal),
                None => return Ok(()),
            },
            () = queue.moment() => queue.ripen(),
        }
        while let Some(key) = queue.next() {
            index.refresh(&context.state, &key.name);
            let outcome = reconcile(context, &index, &key.name).await;
            queue.done(key, outcome);
        }
    }
}

async fn reconcile(context: &Context, index: &Index, uid: &str) -> Outcome {
    let Some(known) = index.objects.get(uid) else { return Ok(None) };
    if known.deleting {
        return end(context, index, uid, known).await;
    }
    let owners: Vec<Owner> = known.owners.iter().map(|(o, _)| o.clone()).collect();
    let state = |owner: &str| owner_state(context, index, known, owner);
    match fate(&owners, state) {
        Fate::Stay => Ok(None),
        Fate::Delete => {
            let foreground = owners.iter().any(|o| state(&o.uid) == OwnerState::Foreground);
            let propagation = if foreground { "Foreground" } else { "Background" };
            delete(context, uid, known, propagation).await
        }
        Fate::Drop(gone) => disown(context, known, &gone).await,
    }
}

fn owner_state(context: &Context, index: &Index, dependent: &Known, uid: &str) -> OwnerState {
    if let Some(owner) = index.objects.get(uid) {
        return if owner.deleting && owner.foreground {
            OwnerState::Foreground
        } else {
            OwnerState::Present
        };
    }
    let Some((_, reference)) = dependent.owners.iter().find(|(o, _)| o.uid == uid) else {
        return OwnerState::Present;
    };
    let (group, version) =
        reference.api_version.rsplit_once('/').unwrap_or(("", &reference.api_version));
    let Some(kind) = kinds::by_kind(group, version, &reference.kind) else {
        // A kind that is not served here: nobody can tell, so the dependent stays.
        return OwnerState::Present;
    };
    let namespace = if kind.namespaced { dependent.key.namespace.as_str() } else { "" };
    match context.state.cached(kind, namespace, &reference.name) {
        Some(found) if found.uid() == uid => OwnerState::Present,
        _ => OwnerState::Absent,
    }
}

async fn delete(context: &Context, uid: &str, known: &Known, propagation: &str) -> Outcome {
    let Key { namespace, name } = &known.key;
    // Decided on this state; if it changes before it goes, its event asks again.
    let version = context
        .state
        .cached(known.kind, namespace, name)
        .map(|found| meta::resource_version(found.value()).to_owned());
    let options = DeleteOptions {
        propagation: propagation.into(),
        uid: Some(uid.to_owned()),
        resource_version: version,
        ..DeleteOptions::default()
    };
    let actor = Context::actor(NAME, 0);
    match context.state.delete(&actor, known.kind, namespace, name, &options).await {
        Ok(_) => {
            tracing::info!(kind = known.kind.kind, key = %known.key, "deleted: its owners are gone");
            Ok(None)
        }
        // Gone already, or another object of that name.
        Err(refusal) if matches!(refusal.code, 404 | 409) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

async fn disown(context: &Context, known: &Known, gone: &[String]) -> Outcome {
    let references: Vec<_> =
        gone.iter().map(|uid| json!({"$patch": "delete", "uid": uid})).collect();
    let patch = Patch::Strategic(json!({"metadata": {"ownerReferences": references}}));
    let (actor, options) = (Context::actor(NAME, 0), WriteOptions::default());
    let Key { namespace, name } = &known.key;
    let state = &context.state;
    unless_gone(state.patch(&actor, known.kind, namespace, name, "", patch, &options).await)?;
    Ok(None)
}

/// Goes on with an object that is being deleted: its dependents, then its finalizer.
async fn end(context: &Context, index: &Index, uid: &str, known: &Known) -> Outcome {
    let dependents = || {
        let uids = index.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|d| Some((d, index.objects.get(d)?)))
    };
    if known.orphan {
        for (_, dependent) in dependents() {
            disown(context, dependent, &[uid.to_owned()]).await?;
        }
        return unfinalize(context, known, ORPHAN).await;
    }
    if known.foreground {
        let mut blocked = false;
        for (dependent_uid, dependent) in dependents() {
            if dependent.owners.iter().any(|(o, _)| o.uid == uid && o.blocks) {
                blocked = true;
                if !dependent.deleting {
                    delete(context, dependent_uid, dependent, "Foreground").await?;
                }
            }
        }
        if !blocked {
            return unfinalize(context, known, FOREGROUND).await;
        }
    }
    Ok(None)
}

async fn unfinalize(context: &Context, known: &Known, finalizer: &str) -> Outcome {
    let Key { namespace, name } = &known.key;
    let Some(object) = context.state.cached(known.kind, namespace, name) else { return Ok(None) };
    let left: Vec<&str> = meta::finalizers(object.value()).filter(|f| *f != finalizer).collect();
    let patch = json!({"metadata": {
        "finalizers": left,
        "resourceVersion": meta::resource_version(object.value()),
    }});
    let (actor, options) = (Context::actor(NAME, 0), WriteOptions::default());
    let patch = Patch::Merge(patch);
    let state = &context.state;
    unless_gone(state.patch(&actor, known.kind, namespace, name, "", patch, &options).await)?;
    Ok(None)
}
