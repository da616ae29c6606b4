//! What a pod asks of a machine's labels.

use crate::Misfit;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};

/// Whether a machine's labels are what the pod's selector and affinity ask for.
///
/// # Errors
/// What does not match.
pub fn selected(pod: &Pod, node: &Node) -> Result<(), Misfit> {
    let labels = node.metadata.labels.as_ref();
    let spec = pod.spec.as_ref();
    for (key, value) in spec.and_then(|s| s.node_selector.as_ref()).into_iter().flatten() {
        if labels.and_then(|l| l.get(key)) != Some(value) {
            return Err(Misfit::Labels(key.clone(), value.clone()));
        }
    }
    let required = spec.and_then(|s| {
        s.affinity
            .as_ref()?
            .node_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    match required {
        Some(required) if !required.node_selector_terms.iter().any(|t| matches(t, node)) => {
            Err(Misfit::Labels("affinity".into(), "required".into()))
        }
        _ => Ok(()),
    }
}

/// Whether a node satisfies a selector term. An empty term matches nothing.
pub fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key)).cloned();
    let field = |key: &str| (key == "metadata.name").then(|| node.metadata.name.clone()).flatten();
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|e| requirement(e, label(&e.key)))
        && fields.iter().all(|e| requirement(e, field(&e.key)))
}

fn requirement(rule: &NodeSelectorRequirement, found: Option<String>) -> bool {
    let values = rule.values.as_deref().unwrap_or_default();
    let number = |text: Option<&String>| text.and_then(|t| t.parse::<i64>().ok());
    match rule.operator.as_str() {
        "In" => found.is_some_and(|v| values.contains(&v)),
        "NotIn" => found.is_none_or(|v| !values.contains(&v)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => {
            matches!((number(found.as_ref()), number(values.first())), (Some(a), Some(b)) if a > b)
        }
        "Lt" => {
            matches!((number(found.as_ref()), number(values.first())), (Some(a), Some(b)) if a < b)
        }
        _ => false,
    }
}
