//! Runtime classes: there is one runtime and none of them, so a pod that asks for one is refused.
//!
//! Follows `k8s.io/kubernetes/plugin/pkg/admission/runtimeclass`.

use super::Request;
use crate::codec::text;
use crate::types::Result;
use serde_json::Value;

pub(super) fn mutate(request: &Request<'_>, new: &Value) -> Result<()> {
    match text(new, "/spec/runtimeClassName") {
        // A pod's overhead is its class's to say.
        "" if new.pointer("/spec/overhead").is_some_and(|overhead| !overhead.is_null()) => {
            Err(request.forbid(
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            ))
        }
        "" => Ok(()),
        class => Err(request.forbid(&format!("pod rejected: RuntimeClass \"{class}\" not found"))),
    }
}
