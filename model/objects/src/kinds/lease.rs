//! `Lease`: who holds a duty, and until when.

use super::column::{AGE, Column, NAME, text};
use super::{BASE, Kind};
use serde_json::json;

/// `coordination.k8s.io/v1 Lease`.
pub static LEASE: Kind = Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    storage: "coordination.k8s.io/leases",
    columns: &[
        NAME,
        Column::text("Holder", "Who holds the lease.", |v, _| {
            json!(text(v, "/spec/holderIdentity"))
        }),
        AGE,
    ],
    ..BASE
};
