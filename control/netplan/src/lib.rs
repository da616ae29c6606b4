//! Services and names compiled into rules with owners; pure.
//!
//! A Service and its EndpointSlices become one [`ServiceIntent`](dhow_intents::ServiceIntent) for
//! the data plane and one [`NameIntent`](dhow_intents::NameIntent) for DNS; a Pod becomes the name
//! of its address. A Node becomes where other machines find its pods. All are whole: compiling again after any change gives the new truth.

mod endpoints;
mod machines;
mod names;
mod services;

pub use machines::compile_machine;
pub use names::{compile_names, pod_names};
pub use services::compile_service;

use dhow_intents::Owner;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

fn owner(kind: &str, metadata: &ObjectMeta, revision: u64) -> Owner {
    Owner {
        kind: kind.into(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        revision,
    }
}
