//! `ServiceAccount`: who a pod is when it talks to the API.

use super::column::{AGE, Column, NAME, items};
use super::{BASE, Kind, Subresource};
use serde_json::json;

/// `v1 ServiceAccount`.
pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    storage: "core/serviceaccounts",
    subresources: &[Subresource {
        name: "token",
        group: "authentication.k8s.io",
        version: "v1",
        kind: "TokenRequest",
        verbs: &["create"],
    }],
    columns: &[
        NAME,
        Column::number("Secrets", "Number of secrets that the account names.", |v, _| {
            json!(items(v, "/secrets").len())
        }),
        AGE,
    ],
    ..BASE
};
