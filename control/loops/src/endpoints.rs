//! Endpoints: keeps the slices of services that have a selector.

use crate::Context;
use crate::driver::{Outcome, Queue};
use dhow_objects::{Status, kinds};
use dhow_state::{Actor, DeleteOptions, Key, Reader, View, unless_gone};
use dhow_workloads::endpoints::{self, MANAGED_BY, MANAGER, Plan, SERVICE_NAME};
use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeSet, HashMap};

const NAME: &str = "endpointslice-controller";

pub(crate) async fn run(context: Context, mut services: View<Service>, mut pods: View<Pod>) {
    let mut slices: View<EndpointSlice> = context.state.view(&kinds::ENDPOINT_SLICE);
    let olds = context.state.view::<Endpoints>(&kinds::ENDPOINTS).reader();
    let mut queue = Queue::new(NAME, context.clock.clone());
    // Which services a pod was last counted for: a change of its labels concerns old and new.
    let mut members: HashMap<Key, BTreeSet<Key>> = HashMap::new();
    loop {
        tokio::select! {
            keys = services.changed() => keys.into_iter().for_each(|k| queue.add(k)),
            keys = pods.changed() => {
                for key in keys {
                    let now = selecting(&services, &pods, &key);
                    let before = if now.is_empty() {
                        members.remove(&key)
                    } else {
                        members.insert(key, now.clone())
                    };
                    now.into_iter().chain(before.into_iter().flatten()).for_each(|k| queue.add(k));
                }
            }
            keys = slices.changed() => {
                // Somebody may have changed or deleted a slice of ours.
                for key in keys {
                    concerned(&slices, &services, &key).into_iter().for_each(|k| queue.add(k));
                }
            }
            () = queue.moment() => queue.ripen(),
        }
        while let Some(key) = queue.next() {
            let outcome = reconcile(&context, &services, &pods, &slices, &olds, &key).await;
            queue.done(key, outcome);
        }
    }
}

pub(crate) fn label<'a>(slice: &'a EndpointSlice, key: &str) -> Option<&'a String> {
    slice.metadata.labels.as_ref()?.get(key)
}

/// Whom a changed slice concerns: the one that it names, or, when it has gone, those of `owners` from
/// whose names its own may have been made.
pub(crate) fn concerned<T: Metadata<Ty = ObjectMeta>>(
    slices: &View<EndpointSlice>,
    owners: &View<T>,
    key: &Key,
) -> Vec<Key> {
    let names: Vec<String> = match slices.get(&key.namespace, &key.name) {
        Some(slice) => label(&slice, SERVICE_NAME).cloned().into_iter().collect(),
        None => {
            let owners = owners.list_in(&key.namespace).into_iter();
            let names = owners.filter_map(|owner| owner.metadata().name.clone());
            names.filter(|name| key.name.starts_with(&format!("{name}-"))).collect()
        }
    };
    names.into_iter().map(|name| Key::new(&key.namespace, name)).collect()
}

/// The services that select a pod.
fn selecting(services: &View<Service>, pods: &View<Pod>, key: &Key) -> BTreeSet<Key> {
    let Some(pod) = pods.get(&key.namespace, &key.name) else { return BTreeSet::new() };
    let has = |key: &String, value: &String| {
        pod.metadata.labels.as_ref().and_then(|l| l.get(key)) == Some(value)
    };
    services
        .list_in(&key.namespace)
        .iter()
        .filter(|s| {
            let selector = s.spec.as_ref().and_then(|s| s.selector.as_ref());
            selector.is_some_and(|s| !s.is_empty() && s.iter().all(|(k, v)| has(k, v)))
        })
        .filter_map(|s| Some(Key::new(&key.namespace, s.metadata.name.clone()?)))
        .collect()
}

async fn reconcile(
    context: &Context,
    services: &View<Service>,
    pods: &View<Pod>,
    slices: &View<EndpointSlice>,
    olds: &Reader<Endpoints>,
    key: &Key,
) -> Outcome {
    let state = &context.state;
    let Some(entry) = services.entry(key) else {
        // The slices go with their owner; the older object has none.
        if olds.get(&key.namespace, &key.name).is_some() {
            let actor = Context::actor(NAME, 0);
            let (kind, options) = (&kinds::ENDPOINTS, DeleteOptions::default());
            unless_gone(state.delete(&actor, kind, &key.namespace, &key.name, &options).await)?;
        }
        return Ok(None);
    };
    let service = entry.object;
    let spec = service.spec.as_ref();
    let selector = spec.and_then(|s| s.selector.as_ref()).is_some_and(|s| !s.is_empty());
    if !selector
        || service.metadata.deletion_timestamp.is_some()
        || spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName")
    {
        return Ok(None);
    }
    let ours: Vec<_> = slices
        .list_in(&key.namespace)
        .into_iter()
        .filter(|s| label(s, SERVICE_NAME) == Some(&key.name))
        .filter(|s| label(s, MANAGED_BY).is_some_and(|m| m == MANAGER))
        .collect();
    let old = olds.get(&key.namespace, &key.name);
    let plan = endpoints::plan(&service, &pods.list_in(&key.namespace), &ours, old.as_deref());
    let actor = Context::actor(NAME, entry.revision);
    write_slices(context, &actor, &key.namespace, &plan).await?;
    if let Some(wanted) = plan.endpoints {
        match &old {
            None => drop(state.create_typed(&actor, &kinds::ENDPOINTS, &wanted).await?),
            Some(old) => {
                let mut next = Endpoints::clone(old);
                next.subsets = wanted.subsets;
                next.metadata.labels = wanted.metadata.labels;
                state.update_typed(&actor, &kinds::ENDPOINTS, &next).await?;
            }
        }
    }
    Ok(None)
}

/// Makes the slices what the plan says.
///
/// # Errors
/// When the store does not take a write.
pub(crate) async fn write_slices(
    context: &Context,
    actor: &Actor,
    namespace: &str,
    plan: &Plan,
) -> Result<(), Status> {
    let (state, kind) = (&context.state, &kinds::ENDPOINT_SLICE);
    // The new before the old, so that at no moment nobody stands behind the service.
    for slice in &plan.create {
        state.create_typed(actor, kind, slice).await?;
    }
    for slice in &plan.update {
        state.update_typed(actor, kind, slice).await?;
    }
    for name in &plan.delete {
        let options = DeleteOptions::default();
        unless_gone(state.delete(actor, kind, namespace, name, &options).await)?;
    }
    Ok(())
}
