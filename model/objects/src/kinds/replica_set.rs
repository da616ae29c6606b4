//! `ReplicaSet`: so many pods of one template.

use super::check::Checks;
use super::column::{AGE, Column, NAME, containers, number, selector};
use super::fill::{object_at, set};
use super::pod::{defaults, validate as pods};
use super::{BASE, Kind, Prepare, STATUS_VERBS, Subresource};
use crate::status::StatusCause;
use serde_json::{Value, json};

/// The `scale` subresource of kinds with replicas.
pub(super) const SCALE: Subresource = Subresource {
    name: "scale",
    group: "autoscaling",
    version: "v1",
    kind: "Scale",
    verbs: STATUS_VERBS,
    part: None,
};

/// `apps/v1 ReplicaSet`.
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    storage: "apps/replicasets",
    subresources: &[
        SCALE,
        Subresource {
            name: "status",
            group: "apps",
            version: "v1",
            kind: "ReplicaSet",
            verbs: STATUS_VERBS,
            part: None,
        },
    ],
    columns: &[
        NAME,
        Column::number("Desired", "Replicas that are wanted.", |v, _| {
            json!(number(v, "/spec/replicas"))
        }),
        Column::number("Current", "Replicas that exist.", |v, _| {
            json!(number(v, "/status/replicas"))
        }),
        Column::number("Ready", "Replicas that are ready.", |v, _| {
            json!(number(v, "/status/readyReplicas"))
        }),
        AGE,
        Column::text("Containers", "Names of each container in the template.", |v, _| {
            containers(v, "/spec/template/spec/containers", "/name")
        })
        .wide(),
        Column::text("Images", "Images referenced by each container in the template.", |v, _| {
            containers(v, "/spec/template/spec/containers", "/image")
        })
        .wide(),
        Column::text("Selector", "Which pods belong to it.", |v, _| selector(v)).wide(),
    ],
    default,
    validate,
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
    checks.selector_and_template(spec, "deployment");
    pods::template(&mut checks, spec.get("template"));
    if let Some(old) = old {
        let selector = |v: &Value| v.pointer("/spec/selector").cloned();
        checks.immutable("spec.selector", selector(new).as_ref(), selector(old).as_ref());
    }
    checks.causes()
}
