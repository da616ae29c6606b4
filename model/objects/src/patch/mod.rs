//! The three patches that carry changes: JSON patch, merge patch, strategic merge patch.
//!
//! The fourth, server-side apply, is in [`crate::apply`].

mod json;
mod strategic;

pub use json::json;
pub use strategic::strategic;

use crate::status::Status;
use serde_json::{Map, Value};

/// 422 for a patch that is well-formed, but cannot be carried out on this object.
pub(crate) fn unprocessable(why: impl std::fmt::Display) -> Status {
    // No causes: clients would print each with the field that it is about, and here is none.
    let what = "the server rejected our request due to an error in our request";
    Status::new(422, "Invalid", format!("{what}: {why}"))
}

/// Carries out a merge patch (RFC 7386): objects merge, null removes, everything else replaces.
#[must_use]
pub fn merge(target: &Value, patch: &Value) -> Value {
    let mut result = target.clone();
    merge_into(&mut result, patch);
    result
}

fn merge_into(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge_into(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests;
