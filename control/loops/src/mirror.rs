//! Mirroring: keeps the slices of `Endpoints` that somebody writes by hand.

use crate::Context;
use crate::driver::{Outcome, Queue};
use crate::endpoints::{concerned, label, write_slices};
use dhow_objects::kinds;
use dhow_state::{Key, View};
use dhow_workloads::endpoints::{MANAGED_BY, SERVICE_NAME};
use dhow_workloads::mirror::{self, MANAGER};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

const NAME: &str = "endpointslicemirroring-controller";

pub(crate) async fn run(context: Context, mut services: View<Service>) {
    let mut endpoints: View<Endpoints> = context.state.view(&kinds::ENDPOINTS);
    let mut slices: View<EndpointSlice> = context.state.view(&kinds::ENDPOINT_SLICE);
    let mut queue = Queue::new(NAME, context.clock.clone());
    loop {
        tokio::select! {
            keys = endpoints.changed() => keys.into_iter().for_each(|key| queue.add(key)),
            // It may have got a selector, or lost it.
            keys = services.changed() => keys.into_iter().for_each(|key| queue.add(key)),
            // Somebody may have changed or deleted a slice of ours.
            keys = slices.changed() => {
                for key in keys {
                    concerned(&slices, &endpoints, &key).into_iter().for_each(|k| queue.add(k));
                }
            }
            () = queue.moment() => queue.ripen(),
        }
        while let Some(key) = queue.next() {
            let outcome = reconcile(&context, &services, &endpoints, &slices, &key).await;
            queue.done(key, outcome);
        }
    }
}

async fn reconcile(
    context: &Context,
    services: &View<Service>,
    endpoints: &View<Endpoints>,
    slices: &View<EndpointSlice>,
    key: &Key,
) -> Outcome {
    let ours: Vec<_> = slices
        .list_in(&key.namespace)
        .into_iter()
        .filter(|slice| label(slice, SERVICE_NAME) == Some(&key.name))
        .filter(|slice| label(slice, MANAGED_BY).is_some_and(|manager| manager == MANAGER))
        .collect();
    let service = services.get(&key.namespace, &key.name);
    let entry = endpoints.entry(key);
    let mirrored = entry.filter(|entry| mirror::is_mirrored(&entry.object, service.as_deref()));
    let plan = mirror::plan(mirrored.as_ref().map(|entry| &*entry.object), &ours);
    let revision = mirrored.map_or(0, |entry| entry.revision);
    write_slices(context, &Context::actor(NAME, revision), &key.namespace, &plan).await?;
    Ok(None)
}
