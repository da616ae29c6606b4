//! `DaemonSet`: one pod on every machine that takes it.

use super::check::Checks;
use super::column::{AGE, Column, NAME, labels, number};
use super::fill::{object_at, set};
use super::pod::{defaults, warnings};
use super::workload::{self, CONTAINERS, IMAGES, SELECTOR, amount};
use super::{BASE, Kind, Prepare, STATUS_VERBS, Subresource};
use crate::status::StatusCause;
use serde_json::{Value, json};

/// `apps/v1 DaemonSet`.
pub static DAEMON_SET: Kind = Kind {
    group: "apps",
    kind: "DaemonSet",
    plural: "daemonsets",
    singular: "daemonset",
    short_names: &["ds"],
    categories: &["all"],
    storage: "apps/daemonsets",
    subresources: &[Subresource::new("status", "apps", "DaemonSet", STATUS_VERBS)],
    columns: &[
        NAME,
        Column::number("Desired", "Machines that should run its pod.", |v, _| {
            json!(number(v, "/status/desiredNumberScheduled"))
        }),
        Column::number("Current", "Machines that should run its pod and do.", |v, _| {
            json!(number(v, "/status/currentNumberScheduled"))
        }),
        Column::number("Ready", "Machines whose pod is ready.", |v, _| {
            json!(number(v, "/status/numberReady"))
        }),
        Column::number("Up-to-date", "Machines that run the newest template.", |v, _| {
            json!(number(v, "/status/updatedNumberScheduled"))
        }),
        Column::number("Available", "Machines whose pod was ready for long enough.", |v, _| {
            json!(number(v, "/status/numberAvailable"))
        }),
        Column::text("Node Selector", "Labels of the machines that it is for.", |v, _| {
            json!(labels(v.pointer("/spec/template/spec/nodeSelector")))
        }),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    default,
    validate,
    warnings: warnings::template,
    prepare: Prepare::SPEC_AND_STATUS,
    ..BASE
};

fn default(daemons: &mut Value) {
    defaults::spec(daemons, &["spec", "template", "spec"]);
    let Some(spec) = object_at(daemons, &["spec"]) else { return };
    set(spec, "revisionHistoryLimit", json!(10));
    let Some(strategy) = object_at(daemons, &["spec", "updateStrategy"]) else { return };
    set(strategy, "type", json!("RollingUpdate"));
    if strategy["type"] == "RollingUpdate"
        && let Some(rolling) = object_at(daemons, &["spec", "updateStrategy", "rollingUpdate"])
    {
        set(rolling, "maxUnavailable", json!(1));
        set(rolling, "maxSurge", json!(0));
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let empty = json!({});
    let spec = new.get("spec").unwrap_or(&empty);
    workload::selector_and_template(&mut checks, spec, "daemonset");
    for field in ["minReadySeconds", "revisionHistoryLimit"] {
        checks.not_negative(&format!("spec.{field}"), spec.get(field));
    }
    match spec.pointer("/updateStrategy/type").and_then(Value::as_str) {
        Some("OnDelete") => {}
        Some("RollingUpdate") => {
            let rolling = spec.pointer("/updateStrategy/rollingUpdate");
            let mut amounts = [0, 0];
            for (i, field) in ["maxUnavailable", "maxSurge"].into_iter().enumerate() {
                let path = format!("spec.updateStrategy.rollingUpdate.{field}");
                amounts[i] = amount(&mut checks, &path, rolling.and_then(|r| r.get(field)));
            }
            let given = |field| rolling.and_then(|r| r.get(field)).cloned().unwrap_or_default();
            match amounts {
                [0, 0] => checks.required(
                    "spec.updateStrategy.rollingUpdate.maxUnavailable",
                    "cannot be 0 when maxSurge is 0",
                ),
                [a, b] if a > 0 && b > 0 => checks.invalid(
                    "spec.updateStrategy.rollingUpdate.maxSurge",
                    given("maxSurge"),
                    "may not be set when maxUnavailable is non-zero",
                ),
                _ => {}
            }
        }
        other => checks.not_supported(
            "spec.updateStrategy",
            other.unwrap_or_default(),
            &["OnDelete", "RollingUpdate"],
        ),
    }
    workload::same_selector(&mut checks, new, old);
    checks.causes()
}
