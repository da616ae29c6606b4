//! Namespaces: empties those that end, and lets them go.

use crate::Context;
use crate::driver::{Outcome, Queue};
use dhow_objects::kinds;
use dhow_state::{DeleteOptions, Key, ListOptions, View, WriteOptions};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde_json::json;
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
    let mut left = 0;
    // Pods first: what they use stays until they have ended.
    let pods = state
        .delete_collection(&actor, &kinds::POD, Some(&key.name), &everything, &options)
        .await?;
    if !pods.items.is_empty() {
        left = state.list(&kinds::POD, Some(&key.name), &everything).await?.items.len();
    }
    if left > 0 {
        // The last pod's end wakes this loop.
        return Ok(None);
    }
    for kind in kinds::all().iter().filter(|k| k.namespaced) {
        state.delete_collection(&actor, kind, Some(&key.name), &everything, &options).await?;
        left += state.list(kind, Some(&key.name), &everything).await?.items.len();
    }
    if left > 0 {
        return Ok(Some(AGAIN));
    }
    let value = json!({"metadata": {"name": key.name}, "spec": {"finalizers": []}});
    match state.finalize_namespace(&actor, &key.name, &value, &WriteOptions::default()).await {
        Err(refusal) if refusal.code != 404 => Err(refusal),
        _ => {
            tracing::info!(namespace = key.name, "namespace is gone");
            Ok(None)
        }
    }
}
