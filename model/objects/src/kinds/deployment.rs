//! `Deployment`: replicas that roll from one template to the next.

use super::check::Checks;
use super::column::{AGE, Column, NAME, number};
use super::fill::{object_at, set};
use super::pod::{defaults, warnings};
use super::workload::{self, CONTAINERS, IMAGES, SCALE, SELECTOR, amount};
use super::{BASE, Kind, Prepare, STATUS_VERBS, Subresource};
use crate::status::StatusCause;
use serde_json::{Value, json};

/// `apps/v1 Deployment`.
pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    storage: "apps/deployments",
    subresources: &[SCALE, Subresource::new("status", "apps", "Deployment", STATUS_VERBS)],
    columns: &[
        NAME,
        Column::text("Ready", "Number of the pod with ready state", |v, _| {
            json!(format!("{}/{}", number(v, "/status/readyReplicas"), number(v, "/spec/replicas")))
        }),
        Column::text("Up-to-date", "Replicas that run the newest template.", |v, _| {
            json!(number(v, "/status/updatedReplicas"))
        }),
        Column::text("Available", "Replicas that have been ready for long enough.", |v, _| {
            json!(number(v, "/status/availableReplicas"))
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

fn default(deployment: &mut Value) {
    defaults::spec(deployment, &["spec", "template", "spec"]);
    let Some(spec) = object_at(deployment, &["spec"]) else { return };
    set(spec, "replicas", json!(1));
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "progressDeadlineSeconds", json!(600));
    let Some(strategy) = object_at(deployment, &["spec", "strategy"]) else { return };
    set(strategy, "type", json!("RollingUpdate"));
    if strategy["type"] == "RollingUpdate"
        && let Some(rolling) = object_at(deployment, &["spec", "strategy", "rollingUpdate"])
    {
        set(rolling, "maxUnavailable", json!("25%"));
        set(rolling, "maxSurge", json!("25%"));
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    let empty = json!({});
    let spec = new.get("spec").unwrap_or(&empty);
    checks.not_negative("spec.replicas", spec.get("replicas"));
    workload::selector_and_template(&mut checks, spec, "deployment");
    strategy(&mut checks, spec);
    for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        checks.not_negative(&format!("spec.{field}"), spec.get(field));
    }
    let deadline = number(spec, "/progressDeadlineSeconds");
    if spec.get("progressDeadlineSeconds").is_some() && deadline <= number(spec, "/minReadySeconds")
    {
        let detail = "must be greater than minReadySeconds";
        checks.invalid("spec.progressDeadlineSeconds", deadline, detail);
    }
    workload::same_selector(&mut checks, new, old);
    checks.causes()
}

fn strategy(checks: &mut Checks, spec: &Value) {
    let path = "spec.strategy";
    let rolling = spec.pointer("/strategy/rollingUpdate");
    match spec.pointer("/strategy/type").and_then(Value::as_str) {
        Some("Recreate") if rolling.is_some() => checks.forbidden(
            &format!("{path}.rollingUpdate"),
            "may not be specified when strategy `type` is 'Recreate'",
        ),
        Some("Recreate") => {}
        Some("RollingUpdate") => {
            let mut amounts = [1, 1];
            for (i, field) in ["maxUnavailable", "maxSurge"].into_iter().enumerate() {
                let value = rolling.and_then(|r| r.get(field));
                amounts[i] = amount(checks, &format!("{path}.rollingUpdate.{field}"), value);
            }
            let at = format!("{path}.rollingUpdate.maxUnavailable");
            let value = rolling.and_then(|r| r.get("maxUnavailable")).cloned().unwrap_or_default();
            if amounts == [0, 0] {
                checks.invalid(&at, value, "may not be 0 when `maxSurge` is 0");
            } else if value.is_string() && amounts[0] > 100 {
                checks.invalid(&at, value, "must not be greater than 100%");
            }
        }
        _ => checks.not_supported(
            path,
            spec.get("strategy").cloned().unwrap_or_default(),
            &["Recreate", "RollingUpdate"],
        ),
    }
}
