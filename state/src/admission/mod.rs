//! Rules that look beyond one object: what they add to it, what they claim, what they refuse.
//!
//! One file for each rule. They run after defaults and before the kind's own rules, in the order of
//! [`mutate`].

pub(crate) mod namespace;
mod pod_priority;
mod pod_tolerations;
mod runtime_class;
mod service_account;
mod service_addresses;
mod service_ports;

use crate::State;
use crate::types::Result;
use bytes::Bytes;
use dhow_objects::kinds::{self, Kind};
use dhow_objects::{Status, StatusCause};
use serde_json::{Value, json};

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
}

/// A write on its way.
pub(crate) struct Request<'a> {
    pub(crate) state: &'a State,
    pub(crate) kind: &'static Kind,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) operation: Operation,
    pub(crate) old: Option<&'a Value>,
}

impl Request<'_> {
    fn is(&self, kind: &'static Kind) -> bool {
        std::ptr::eq(self.kind, kind)
    }

    /// 403 for this object.
    fn forbid(&self, why: &str) -> Status {
        Status::forbidden(self.kind.group, self.kind.plural, self.name, why)
    }

    /// 422 for one field of this object.
    fn invalid(&self, field: &str, value: &Value, why: &str) -> Status {
        Status::invalid(
            self.kind.group,
            self.kind.kind,
            self.name,
            vec![StatusCause {
                reason: "FieldValueInvalid".into(),
                message: format!("Invalid value: {value}: {why}"),
                field: field.into(),
            }],
        )
    }
}

/// A key that must be free and becomes ours with the write.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) key: Bytes,
    /// What to say when it is taken; `None` when another one would do.
    pub(crate) refusal: Option<Status>,
}

/// What a write claims and releases.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims {
    pub(crate) wanted: Vec<Claim>,
    pub(crate) released: Vec<Bytes>,
}

impl Claims {
    /// Claims a key, unless this write does already.
    fn want(&mut self, key: String, refusal: Option<Status>) {
        let key = Bytes::from(key);
        if !self.wanted.iter().any(|c| c.key == key) {
            self.wanted.push(Claim { key, refusal });
        }
    }

    fn release(&mut self, keys: impl IntoIterator<Item = String>) {
        for key in keys {
            let key = Bytes::from(key);
            if !self.released.contains(&key) {
                self.released.push(key);
            }
        }
    }
}

/// Runs all rules over a write; says whether the object may have changed.
pub(crate) async fn mutate(
    request: &Request<'_>,
    new: &mut Value,
    claims: &mut Claims,
) -> Result<bool> {
    if request.is(&kinds::POD) {
        if request.operation == Operation::Create {
            service_account::mutate(request, new).await?;
            runtime_class::mutate(request, new)?;
        }
        pod_priority::mutate(request, new)?;
        pod_tolerations::mutate(new);
    } else if request.is(&kinds::SERVICE) {
        service_addresses::mutate(request, new, claims).await?;
        service_ports::mutate(request, new, claims).await?;
    } else if request.is(&kinds::NAMESPACE) {
        namespace::mutate(request, new);
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// What the removal of an object releases.
pub(crate) fn release(kind: &'static Kind, object: &Value) -> Claims {
    let mut claims = Claims::default();
    if std::ptr::eq(kind, &raw const kinds::SERVICE) {
        claims.release(service_addresses::held(object));
        claims.release(service_ports::held(object));
    }
    claims
}

/// Makes the objects that come with a new one. The new one stands whether or not this works: who
/// looks after namespaces tries again.
pub(crate) async fn created(state: &State, kind: &'static Kind, name: &str) {
    if std::ptr::eq(kind, &raw const kinds::NAMESPACE)
        && let Err(error) = state.furnish_namespace(name).await
    {
        tracing::warn!(namespace = name, %error, "a new namespace was not furnished");
    }
}

/// Makes anew what a namespace does not do without, unless the namespace ends as well.
pub(crate) async fn removed(state: &State, kind: &'static Kind, namespace: &str, name: &str) {
    let lives = || {
        let found = state.cached(&kinds::NAMESPACE, "", namespace);
        found.is_some_and(|n| n.value()["metadata"]["deletionTimestamp"].is_null())
    };
    if service_account::is_furniture(kind, name)
        && lives()
        && let Err(error) = state.furnish_namespace(namespace).await
    {
        tracing::warn!(namespace, name, %error, "what every namespace has was not made anew");
    }
}

/// A list in an object, made when missing.
fn list_mut<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    let list = value.as_object_mut()?.entry(field).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut()
}
