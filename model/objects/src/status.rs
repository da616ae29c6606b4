//! The Kubernetes `Status` object: how every refusal is said, with its causes.
//!
//! Follows `k8s.io/apimachinery/pkg/apis/meta/v1` (`Status`, `StatusReason`) and
//! `pkg/api/errors`, whose texts clients print.

use serde::{Deserialize, Serialize};

/// One field that is at fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusCause {
    /// A `CauseType`: `FieldValueRequired`, `FieldValueInvalid`, `FieldValueNotSupported`...
    pub reason: String,
    /// What is wrong, for a person.
    pub message: String,
    /// Path of the field, for example `spec.containers[0].image`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What the refusal is about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StatusDetails {
    /// Object name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Kind or resource, as upstream fills it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Object uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The fields at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    /// When to try again, in seconds; 0 for not given.
    #[serde(default, rename = "retryAfterSeconds", skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
    /// Token with which a list that is too old goes on all the same; `metadata.continue` on the
    /// wire, empty for none.
    #[serde(skip)]
    pub continue_token: String,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A refusal (or, rarely, a success) of the API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Upstream's `StatusReason`: `NotFound`, `AlreadyExists`, `Conflict`, `Invalid`...
    pub reason: &'static str,
    /// One line for a person.
    pub message: String,
    /// What it is about.
    pub details: Option<Box<StatusDetails>>,
}

impl Status {
    /// A status without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details = Some(Box::new(StatusDetails {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            ..StatusDetails::default()
        }));
        self
    }

    fn qualified(group: &str, resource: &str) -> String {
        if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
    }

    /// 404: `pods "x" not found`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let what = Self::qualified(group, resource);
        Self::new(404, "NotFound", format!("{what} {name:?} not found"))
            .about(group, resource, name)
    }

    /// 409: `pods "x" already exists`.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let what = Self::qualified(group, resource);
        Self::new(409, "AlreadyExists", format!("{what} {name:?} already exists"))
            .about(group, resource, name)
    }

    /// 409: a write was based on an old revision, or cannot be done in the object's state.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = Self::qualified(group, resource);
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {what} {name:?}: {why}"),
        )
        .about(group, resource, name)
    }

    /// The usual conflict: somebody else wrote in between.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// 422: the object breaks rules of its kind; one cause per field.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<StatusCause>) -> Self {
        let what = Self::qualified(group, kind);
        let mut lines: Vec<String> =
            causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        lines.dedup();
        let told = match lines.len() {
            1 => lines.remove(0),
            _ => format!("[{}]", lines.join(", ")),
        };
        let mut status = Self::new(422, "Invalid", format!("{what} {name:?} is invalid: {told}"))
            .about(group, kind, name);
        if let Some(details) = &mut status.details {
            details.causes = causes;
        }
        status
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 403: the actor may not do this.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = Self::qualified(group, resource);
        let named = if name.is_empty() { String::new() } else { format!(" {name:?}") };
        Self::new(403, "Forbidden", format!("{what}{named} is forbidden: {why}"))
            .about(group, resource, name)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406.
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(406, "NotAcceptable", message)
    }

    /// 415.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 410: the revision asked for was compacted away.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 501: known, but not built.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(501, "NotImplemented", message)
    }

    /// The object that goes over the wire.
    pub fn to_json(&self) -> serde_json::Value {
        let mut value = serde_json::json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": if self.code < 400 { "Success" } else { "Failure" },
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            if !details.continue_token.is_empty() {
                value["metadata"]["continue"] = details.continue_token.as_str().into();
            }
            let details = serde_json::to_value(details).unwrap_or_default();
            if details != serde_json::json!({}) {
                value["details"] = details;
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_upstreams() {
        assert_eq!(Status::not_found("", "pods", "x").message, "pods \"x\" not found");
        assert_eq!(
            Status::already_exists("apps", "deployments", "x").message,
            "deployments.apps \"x\" already exists"
        );
    }
}
