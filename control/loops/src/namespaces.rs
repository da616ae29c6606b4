//! Namespaces: empties those that end, and lets them go.

use crate::Context;
use crate::driver::{Outcome, Queue};
use dhow_objects::kinds::Kind;
use dhow_objects::{kinds, meta};
use dhow_state::{DeleteOptions, Key, ListOptions, Object, Patch, View, WriteOptions, unless_gone};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "namespace-controller";
/// How often a namespace that ends is looked at while something other than a pod is left in it.
const AGAIN: Duration = Duration::from_millis(500);

pub(crate) async fn run(context: Context, mut pods: View<Pod>) {
    let mut namespaces: View<Namespace> = context.state.view(&kinds::NAMESPACE);
    let mut queue = Queue::new(NAME, context.clock.clone());
    loop {
        tokio::select! {
            keys = namespaces.changed() => keys.into_iter().for_each(|k| queue.add(k)),
            keys = pods.changed() => {
                for key in keys.iter().filter(|k| pods.get(&k.namespace, &k.name).is_none()) {
                    queue.add(Key::new("", &key.namespace));
                }
            }
            () = queue.moment() => queue.ripen(),
        }
        while let Some(key) = queue.next() {
            let outcome = reconcile(&context, &namespaces, &key).await;
            queue.done(key, outcome);
        }
    }
}

async fn reconcile(context: &Context, namespaces: &View<Namespace>, key: &Key) -> Outcome {
    let Some(entry) = namespaces.entry(key) else { return Ok(None) };
    let namespace = entry.object;
    if namespace.metadata.deletion_timestamp.is_none() {
        return Ok(None);
    }
    let state = &context.state;
    let actor = Context::actor(NAME, entry.revision);
    let options = DeleteOptions { propagation: "Background".into(), ..DeleteOptions::default() };
    let everything = ListOptions::default();
    let mut left = Remaining::default();
    // Pods first: what they use stays until they have ended.
    let pods = state
        .delete_collection(&actor, &kinds::POD, Some(&key.name), &everything, &options)
        .await?;
    if !pods.items.is_empty() {
        left.count(
            &kinds::POD,
            &state.list(&kinds::POD, Some(&key.name), &everything).await?.items,
        );
    }
    if !left.instances.is_empty() {
        left.tell(context, &namespace, key).await?;
        // The last pod's end wakes this loop.
        return Ok(None);
    }
    for kind in kinds::all().iter().filter(|k| k.namespaced) {
        state.delete_collection(&actor, kind, Some(&key.name), &everything, &options).await?;
        left.count(kind, &state.list(kind, Some(&key.name), &everything).await?.items);
    }
    if !left.instances.is_empty() {
        left.tell(context, &namespace, key).await?;
        return Ok(Some(AGAIN));
    }
    let value = json!({"metadata": {"name": key.name}, "spec": {"finalizers": []}});
    let options = WriteOptions::default();
    unless_gone(state.finalize_namespace(&actor, &key.name, &value, &options).await)?;
    tracing::info!(namespace = key.name, "namespace is gone");
    Ok(None)
}

/// What keeps a namespace from going.
#[derive(Default)]
struct Remaining {
    /// How many objects there are, by resource and group.
    instances: BTreeMap<String, usize>,
    /// How many of them each finalizer holds.
    finalizers: BTreeMap<String, usize>,
}

impl Remaining {
    fn count(&mut self, kind: &Kind, objects: &[Arc<Object>]) {
        if objects.is_empty() {
            return;
        }
        let resource = format!("{}.{}", kind.plural, kind.group);
        *self.instances.entry(resource).or_default() += objects.len();
        for object in objects {
            for finalizer in meta::finalizers(object.value()) {
                *self.finalizers.entry(finalizer.to_owned()).or_default() += 1;
            }
        }
    }

    /// Writes it into the namespace's conditions, as upstream words it.
    async fn tell(
        &self,
        context: &Context,
        namespace: &Namespace,
        key: &Key,
    ) -> dhow_state::Result<()> {
        let list = |counts: &BTreeMap<String, usize>, word: &str| {
            let each =
                counts.iter().map(|(name, n)| format!("{name} {word} {n} resource instances"));
            each.collect::<Vec<_>>().join(", ")
        };
        let held = !self.finalizers.is_empty();
        let told = [
            (
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", list(&self.instances, "has")),
            ),
            (
                "NamespaceFinalizersRemaining",
                held,
                if held { "SomeFinalizersRemain" } else { "ContentHasNoFinalizers" },
                match held {
                    true => format!(
                        "Some content in the namespace has finalizers remaining: {}",
                        list(&self.finalizers, "in")
                    ),
                    false => "All content-preserving finalizers finished".to_owned(),
                },
            ),
        ];
        let known = namespace.status.as_ref().and_then(|status| status.conditions.as_ref());
        let is_known = |kind: &str, message: &str| {
            let mut known = known.into_iter().flatten();
            known.any(|c| c.type_ == kind && c.message.as_deref() == Some(message))
        };
        if told.iter().all(|(kind, _, _, message)| is_known(kind, message)) {
            return Ok(());
        }
        let now = context.now();
        let conditions: Vec<Value> = told
            .into_iter()
            .map(|(kind, holds, reason, message)| {
                json!({
                    "type": kind, "status": if holds { "True" } else { "False" },
                    "reason": reason, "message": message, "lastTransitionTime": now,
                })
            })
            .collect();
        let patch = Patch::Merge(json!({"status": {"conditions": conditions}}));
        let actor = Context::actor(NAME, 0);
        let kind = &kinds::NAMESPACE;
        let state = &context.state;
        unless_gone(state.patch_typed::<Namespace>(&actor, kind, key, "status", patch).await)?;
        Ok(())
    }
}
