//! Priority: a pod's class becomes a number.

use super::{Operation, Request};
use crate::codec::text;
use crate::types::Result;
use serde_json::{Value, json};

/// Classes that exist without being made.
const CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// What those classes, and pods of no class, do with pods of lower priority.
const POLICY: &str = "PreemptLowerPriority";

pub(super) fn mutate(request: &Request<'_>, new: &mut Value) -> Result<()> {
    if request.operation == Operation::Update {
        // It was settled when the pod was made.
        if let Some(old) = request.old {
            for field in ["priority", "preemptionPolicy"] {
                if new["spec"][field].is_null()
                    && let Some(value) = old["spec"].get(field)
                {
                    new["spec"][field] = value.clone();
                }
            }
        }
        return Ok(());
    }
    let class = text(new, "/spec/priorityClassName");
    let priority = if class.is_empty() {
        0
    } else {
        let known = CLASSES.iter().find(|(name, _)| *name == class);
        known
            .ok_or_else(|| {
                request.forbid(&format!("no PriorityClass with name {class} was found"))
            })?
            .1
    };
    if new["spec"]["priority"].as_i64().is_some_and(|given| given != priority) {
        return Err(request.forbid(&format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name",
            new["spec"]["priority"]
        )));
    }
    new["spec"]["priority"] = json!(priority);
    match text(new, "/spec/preemptionPolicy") {
        "" => new["spec"]["preemptionPolicy"] = json!(POLICY),
        POLICY => {}
        given => {
            return Err(request.forbid(&format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {POLICY} from the given PriorityClass name"
            )));
        }
    }
    Ok(())
}
