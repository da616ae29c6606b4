//! `Lease`: who holds a duty, and until when.

use super::check::Checks;
use super::column::{AGE, Column, NAME, text};
use super::{BASE, Kind};
use crate::status::StatusCause;
use serde_json::{Value, json};

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
    validate,
    create_on_update: true,
    ..BASE
};

fn validate(new: &Value, _: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let number = |field: &str| new.get("spec").and_then(|s| s.get(field)).and_then(Value::as_i64);
    if let Some(seconds) = number("leaseDurationSeconds").filter(|s| *s <= 0) {
        checks.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0");
    }
    if let Some(count) = number("leaseTransitions").filter(|n| *n < 0) {
        let detail = "must be greater than or equal to 0";
        checks.invalid("spec.leaseTransitions", count, detail);
    }
    checks.causes()
}
