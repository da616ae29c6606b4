//! Namespace life cycle: objects are made only in namespaces that exist and are not ending.

use super::{Operation, Request};
use crate::State;
use crate::codec;
use crate::types::Result;
use crate::write::guard;
use dhow_kv::Compare;
use dhow_objects::kinds::{self, Kind};
use dhow_objects::{Status, StatusCause, meta};
use serde_json::{Value, json};

/// Refuses new objects in namespaces that are missing or ending. The guard that it returns keeps
/// the namespace as it is until the write has happened.
pub(crate) fn may_create(
    state: &State,
    kind: &'static Kind,
    namespace: &str,
    name: &str,
) -> Result<Vec<Compare>> {
    if !kind.namespaced {
        return Ok(Vec::new());
    }
    if namespace.is_empty() {
        return Err(Status::bad_request("an empty namespace may not be set during creation"));
    }
    let Some(found) = state.shared.cache.peek(&kinds::NAMESPACE, "", namespace) else {
        return Err(Status::not_found("", "namespaces", namespace));
    };
    if meta::deletion_timestamp(found.value()).is_some() {
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut status = Status::forbidden(kind.group, kind.plural, name, &why);
        if let Some(details) = &mut status.details {
            details.causes.push(StatusCause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            });
        }
        return Err(status);
    }
    let key = codec::object_key(&kinds::NAMESPACE, "", namespace);
    Ok(vec![guard(key, found.revision)])
}

/// New namespaces are active, are held by the finalizer of their contents, and carry their name as a label.
pub(super) fn mutate(request: &Request<'_>, new: &mut Value) {
    new["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(request.name);
    if request.operation == Operation::Create {
        new["spec"]["finalizers"] = json!(["kubernetes"]);
        new["status"]["phase"] = json!("Active");
    } else if let Some(old) = request.old {
        // Only `finalize` may change them.
        new["spec"]["finalizers"] = old["spec"]["finalizers"].clone();
    }
}
