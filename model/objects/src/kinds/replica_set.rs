//! `ReplicaSet`: so many pods of one template.

use super::check::Checks;
use super::column::{AGE, NAME};
use super::fill::{object_at, set};
use super::pod::{defaults, warnings};
use super::workload::{self, CONTAINERS, CURRENT, DESIRED, IMAGES, READY, SCALE, SELECTOR};
use super::{BASE, Kind, Prepare, STATUS_VERBS, Subresource};
use crate::status::StatusCause;
use serde_json::{Value, json};

/// `apps/v1 ReplicaSet`.
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    storage: "apps/replicasets",
    subresources: &[SCALE, Subresource::new("status", "apps", "ReplicaSet", STATUS_VERBS)],
    columns: &[NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR],
    default,
    validate,
    warnings: warnings::template,
    prepare: Prepare::SPEC_AND_STATUS,
    ..BASE
};

fn default(set_of_pods: &mut Value) {
    defaults::spec(set_of_pods, &["spec", "template", "spec"]);
    if let Some(spec) = object_at(set_of_pods, &["spec"]) {
        set(spec, "replicas", json!(1));
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let empty = json!({});
    let spec = new.get("spec").unwrap_or(&empty);
    for field in ["replicas", "minReadySeconds"] {
        checks.not_negative(&format!("spec.{field}"), spec.get(field));
    }
    workload::selector_and_template(&mut checks, spec, "deployment");
    workload::same_selector(&mut checks, new, old);
    checks.causes()
}
