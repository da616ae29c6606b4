//! What kinds share that make pods of a template.

use super::check::Checks;
use super::column::{Column, containers, number, selector};
use super::pod::validate as pods;
use super::{STATUS_VERBS, Subresource};
use crate::selectors::LabelSelector;
use serde_json::{Map, Value, json};

/// The `scale` subresource of kinds with replicas.
pub(super) const SCALE: Subresource =
    Subresource::new("scale", "autoscaling", "Scale", STATUS_VERBS);

pub(super) const DESIRED: Column =
    Column::number("Desired", "Replicas that are wanted.", |v, _| {
        json!(number(v, "/spec/replicas"))
    });

pub(super) const CURRENT: Column =
    Column::number("Current", "Replicas that exist.", |v, _| json!(number(v, "/status/replicas")));

pub(super) const READY: Column = Column::number("Ready", "Replicas that are ready.", |v, _| {
    json!(number(v, "/status/readyReplicas"))
});

pub(super) const CONTAINERS: Column =
    Column::text("Containers", "Names of each container in the template.", |v, _| {
        containers(v, "/spec/template/spec/containers", "/name")
    })
    .wide();

pub(super) const IMAGES: Column =
    Column::text("Images", "Images referenced by each container in the template.", |v, _| {
        containers(v, "/spec/template/spec/containers", "/image")
    })
    .wide();

pub(super) const SELECTOR: Column =
    Column::text("Selector", "Which pods belong to it.", |v, _| selector(v)).wide();

/// The selector and the template, which must fit each other.
pub(super) fn selector_and_template(checks: &mut Checks, spec: &Value, kind: &str) {
    let selector = match spec.get("selector") {
        None | Some(Value::Null) => {
            checks.required("spec.selector", "");
            &Value::Null
        }
        Some(selector) => {
            checks.label_selector("spec.selector", selector);
            if selector.as_object().is_none_or(Map::is_empty) {
                let detail = format!("empty selector is invalid for {kind}");
                checks.invalid("spec.selector", selector.clone(), &detail);
            }
            selector
        }
    };
    let labels = spec.pointer("/template/metadata/labels").unwrap_or(&Value::Null);
    match LabelSelector::from_json(selector) {
        Err(_) => checks.invalid("spec.selector", selector.clone(), "invalid label selector"),
        Ok(s) if s.is_empty() || s.matches(labels) => {}
        Ok(_) => checks.invalid(
            "spec.template.metadata.labels",
            labels.clone(),
            "`selector` does not match template `labels`",
        ),
    }
    pods::template(checks, spec.get("template"));
}

/// Whose pods they are never changes.
pub(super) fn same_selector(checks: &mut Checks, new: &Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    let path = "/spec/selector";
    checks.immutable("spec.selector", new.pointer(path), old.pointer(path));
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
