//! Rules that look beyond one object: what they add to it, what they claim, what they refuse.
//!
//! One file for each rule. They run after defaults and before the kind's own rules, in the order of
//! [`mutate`].

pub(crate) mod namespace;

use crate::State;
use crate::types::{Actor, Result};
use bytes::Bytes;
use dhow_objects::Status;
use dhow_objects::kinds::Kind;
use serde_json::Value;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
}

/// A write on its way.
pub(crate) struct Request<'a> {
    pub(crate) state: &'a State,
    pub(crate) actor: &'a Actor,
    pub(crate) kind: &'static Kind,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) operation: Operation,
    pub(crate) old: Option<&'a Value>,
    pub(crate) dry_run: bool,
}

impl Request<'_> {
    pub(crate) fn is(&self, kind: &'static Kind) -> bool {
        std::ptr::eq(self.kind, kind)
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

/// Runs all rules over a write.
pub(crate) async fn mutate(
    request: &Request<'_>,
    _new: &mut Value,
    _claims: &mut Claims,
) -> Result<()> {
    let _ = (
        request.state,
        request.actor,
        request.namespace,
        request.name,
        request.old,
        request.dry_run,
    );
    let _ = request.operation == Operation::Create;
    Ok(())
}

/// What the removal of an object releases.
pub(crate) fn release(_kind: &'static Kind, _object: &Value) -> Claims {
    Claims::default()
}
