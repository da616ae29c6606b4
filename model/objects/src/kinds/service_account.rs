//! `ServiceAccount`: who a pod is when it talks to the API.

use super::column::{AGE, NAME};
use super::{BASE, Kind, Subresource};

/// `v1 ServiceAccount`.
pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    storage: "core/serviceaccounts",
    subresources: &[Subresource::new(
        "token",
        "authentication.k8s.io",
        "TokenRequest",
        &["create"],
    )],
    columns: &[NAME, AGE],
    ..BASE
};
