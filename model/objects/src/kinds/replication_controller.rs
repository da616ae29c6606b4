//! `ReplicationController`: so many pods of one template, chosen by equality of labels.

use super::check::Checks;
use super::column::{AGE, Column, NAME, labels};
use super::fill::{object_at, set};
use super::pod::{defaults, validate as pods, warnings};
use super::workload::{CONTAINERS, CURRENT, DESIRED, IMAGES, READY, SCALE};
use super::{BASE, Kind, Prepare, STATUS_VERBS, Subresource};
use crate::status::StatusCause;
use serde_json::{Value, json};

/// `v1 ReplicationController`.
pub static REPLICATION_CONTROLLER: Kind = Kind {
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: &["all"],
    storage: "core/replicationcontrollers",
    subresources: &[SCALE, Subresource::new("status", "", "ReplicationController", STATUS_VERBS)],
    columns: &[
        NAME,
        DESIRED,
        CURRENT,
        READY,
        AGE,
        CONTAINERS,
        IMAGES,
        Column::text("Selector", "Which pods belong to it.", |v, _| {
            json!(labels(v.pointer("/spec/selector")))
        })
        .wide(),
    ],
    default,
    validate,
    warnings: warnings::template,
    prepare: Prepare::SPEC_AND_STATUS,
    ..BASE
};

fn default(controller: &mut Value) {
    defaults::spec(controller, &["spec", "template", "spec"]);
    let of_template = controller.pointer("/spec/template/metadata/labels").cloned();
    let empty = |v: Option<&Value>| v.and_then(Value::as_object).is_none_or(|m| m.is_empty());
    if let Some(of_template) = of_template.filter(|labels| !empty(Some(labels))) {
        if empty(controller.pointer("/spec/selector")) {
            controller["spec"]["selector"] = of_template.clone();
        }
        if empty(controller.pointer("/metadata/labels")) {
            controller["metadata"]["labels"] = of_template;
        }
    }
    if let Some(spec) = object_at(controller, &["spec"]) {
        set(spec, "replicas", json!(1));
    }
}

fn validate(new: &Value, _: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let empty = json!({});
    let spec = new.get("spec").unwrap_or(&empty);
    for field in ["replicas", "minReadySeconds"] {
        checks.not_negative(&format!("spec.{field}"), spec.get(field));
    }
    checks.labels("spec.selector", spec.get("selector"));
    let selector = spec.get("selector").and_then(Value::as_object).filter(|s| !s.is_empty());
    if selector.is_none() {
        checks.required("spec.selector", "");
    }
    match spec.get("template") {
        None | Some(Value::Null) => checks.required("spec.template", ""),
        Some(template) => {
            let of = template.pointer("/metadata/labels").unwrap_or(&Value::Null);
            if selector.into_iter().flatten().any(|(key, value)| of.get(key) != Some(value)) {
                checks.invalid(
                    "spec.template.metadata.labels",
                    of.clone(),
                    "`selector` does not match template `labels`",
                );
            }
            pods::template(&mut checks, Some(template));
        }
    }
    checks.causes()
}
