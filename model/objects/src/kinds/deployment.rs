//! `Deployment`: replicas that roll from one template to the next.

use super::check::Checks;
use super::column::{AGE, Column, NAME, containers, number, selector};
use super::fill::{object_at, set};
use super::pod::{defaults, validate as pods};
use super::replica_set::SCALE;
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
    subresources: &[
        SCALE,
        Subresource {
            name: "status",
            group: "apps",
            version: "v1",
            kind: "Deployment",
            verbs: STATUS_VERBS,
            part: None,
        },
    ],
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
    checks.selector_and_template(spec, "deployment");
    pods::template(&mut checks, spec.get("template"));
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
    if let Some(old) = old {
        let selector = |v: &Value| v.pointer("/spec/selector").cloned();
        checks.immutable("spec.selector", selector(new).as_ref(), selector(old).as_ref());
    }
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

/// A number or a percentage.
pub(super) fn amount(checks: &mut Checks, path: &str, value: Option<&Value>) -> i64 {
    match value {
        Some(Value::String(text)) => {
            match text.strip_suffix('%').and_then(|n| n.parse::<i64>().ok()).filter(|n| *n >= 0) {
                Some(percent) => percent,
                None => {
                    let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                    checks.invalid(path, text.as_str(), detail);
                    1
                }
            }
        }
        other => {
            checks.not_negative(path, other);
            other.and_then(Value::as_i64).unwrap_or(0)
        }
    }
}
