//! Which taints of a machine a pod tolerates.

use crate::Misfit;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};

/// Whether a pod tolerates all taints of a machine that have one of these effects.
///
/// # Errors
/// The first that it does not.
pub fn tolerates(pod: &Pod, node: &Node, effects: &[&str]) -> Result<(), Misfit> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let mut hard = taints.iter().filter(|taint| effects.contains(&taint.effect.as_str()));
    match hard.find(|taint| !tolerations(pod).iter().any(|t| tolerated(t, taint))) {
        Some(taint) => Err(Misfit::Taint(taint.key.clone())),
        None => Ok(()),
    }
}

/// What a pod tolerates.
pub fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

/// Whether a toleration is about a taint.
pub fn tolerated(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => key.is_empty() || key == taint.key,
        _ => {
            key == taint.key
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
    }
}
