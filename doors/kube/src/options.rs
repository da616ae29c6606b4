//! Query parameters and option bodies, read into `state`'s options.

use crate::call::Call;
use crate::codec;
use bytes::Bytes;
use dhow_objects::kinds::Kind;
use dhow_objects::selectors::{FieldSelector, LabelSelector};
use dhow_objects::{Status, StatusCause};
use dhow_state::{DeleteOptions, FieldValidation, ListOptions, WatchOptions, WriteOptions};
use serde_json::Value;

/// 422 about one query parameter, in upstream's words.
fn invalid(kind: &str, field: &str, message: String) -> Status {
    let cause =
        StatusCause { reason: "FieldValueInvalid".to_owned(), message, field: field.to_owned() };
    Status::invalid("meta.k8s.io", kind, "", vec![cause])
}

/// `dryRun`: absent or `All`.
fn dry_run<'a>(kind: &str, values: impl Iterator<Item = &'a str>) -> Result<bool, Status> {
    let mut found = false;
    for value in values {
        match value {
            "" => {}
            "All" => found = true,
            other => {
                let told = format!("Invalid value: [{other:?}]: supported values: \"All\"");
                return Err(invalid(kind, "dryRun", told));
            }
        }
    }
    Ok(found)
}

/// Options of create, update and patch.
///
/// # Errors
/// 422 for values that are not known.
pub fn write(call: &Call, kind: &str) -> Result<WriteOptions, Status> {
    let field_validation = match call.query.get("fieldValidation") {
        None | Some("Warn") => FieldValidation::Warn,
        Some("Strict") => FieldValidation::Strict,
        Some("Ignore") => FieldValidation::Ignore,
        Some(other) => {
            let told = format!(
                "Unsupported value: {other:?}: supported values: \"Ignore\", \"Warn\", \"Strict\""
            );
            return Err(invalid(kind, "fieldValidation", told));
        }
    };
    if let Some(manager) = call.query.get("fieldManager")
        && (manager.chars().count() > 128 || manager.chars().any(char::is_control))
    {
        let told = format!("Invalid value: {manager:?}: must be at most 128 printable characters");
        return Err(invalid(kind, "fieldManager", told));
    }
    Ok(WriteOptions {
        dry_run: dry_run(kind, call.query.all("dryRun"))?,
        field_validation,
        ..WriteOptions::default()
    })
}

fn revision(call: &Call) -> Result<Option<u64>, Status> {
    call.query
        .get("resourceVersion")
        .map(|text| {
            text.parse().map_err(|_| {
                let told = format!(
                    "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                );
                invalid("ListOptions", "resourceVersion", told)
            })
        })
        .transpose()
}

fn selectors(call: &Call, kind: &Kind) -> Result<(LabelSelector, FieldSelector), Status> {
    let labels = LabelSelector::parse(call.query.get("labelSelector").unwrap_or(""))?;
    let mut fields = call.query.get("fieldSelector").unwrap_or("").to_owned();
    // A name in the address of a watch or of a list narrows it to that object.
    if let Some(name) = call.path.name.as_deref() {
        if !fields.is_empty() {
            fields.push(',');
        }
        fields.push_str("metadata.name=");
        fields.push_str(name);
    }
    Ok((labels, FieldSelector::parse(&fields)?.for_kind(kind)?))
}

/// Options of list and deletecollection.
///
/// # Errors
/// 400 or 422 for what cannot be understood.
pub fn list(call: &Call, kind: &Kind) -> Result<ListOptions, Status> {
    let (labels, fields) = selectors(call, kind)?;
    let limit = match call.query.get("limit") {
        None => 0,
        Some(text) => {
            text.parse::<i64>().ok().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
                Status::bad_request(format!("limit {text:?} is not a whole number from 0 on"))
            })?
        }
    };
    let revision = revision(call)?;
    let revision_match = call.query.get("resourceVersionMatch").unwrap_or("");
    match revision_match {
        "" => {}
        "Exact" | "NotOlderThan" => {
            if revision.is_none() {
                let told = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided";
                return Err(invalid("ListOptions", "resourceVersionMatch", told.to_owned()));
            }
        }
        other => {
            let told = format!(
                "Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
            );
            return Err(invalid("ListOptions", "resourceVersionMatch", told));
        }
    }
    Ok(ListOptions {
        labels,
        fields,
        limit,
        continue_token: call.query.get("continue").unwrap_or("").to_owned(),
        revision,
        revision_match: revision_match.to_owned(),
    })
}

/// Options of watch.
///
/// # Errors
/// 400 or 422 for what cannot be understood.
pub fn watch(call: &Call, kind: &Kind) -> Result<WatchOptions, Status> {
    let (labels, fields) = selectors(call, kind)?;
    let send_initial_events = call.query.flag("sendInitialEvents");
    let matching = call.query.get("resourceVersionMatch").unwrap_or("");
    let refusal = |told: &str| Err(invalid("ListOptions", "resourceVersionMatch", told.to_owned()));
    if call.query.has("sendInitialEvents") {
        if matching != "NotOlderThan" {
            return refusal(
                "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            );
        }
    } else if !matching.is_empty() {
        return refusal(
            "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        );
    }
    Ok(WatchOptions {
        labels,
        fields,
        revision: revision(call)?,
        send_initial_events,
        bookmarks: call.query.flag("allowWatchBookmarks"),
    })
}

/// Options of delete and deletecollection: from the body, then from the query.
///
/// # Errors
/// 400 for what cannot be understood.
pub fn delete(call: &Call, body: &Bytes) -> Result<DeleteOptions, Status> {
    let value = if body.trim_ascii().is_empty() {
        Value::Null
    } else {
        codec::any(&call.head.headers, body)?.value
    };
    let mut options = from_value(&value)?;
    if let Some(text) = call.query.get("gracePeriodSeconds") {
        let seconds = text.parse::<i64>().map_err(|_| {
            Status::bad_request(format!("gracePeriodSeconds {text:?} is not a whole number"))
        })?;
        options.grace_period_seconds = Some(seconds);
    }
    if let Some(policy) = call.query.get("propagationPolicy") {
        options.propagation = policy.to_owned();
    }
    if call.query.get("orphanDependents").is_some() {
        let orphan = call.query.flag("orphanDependents");
        options.propagation = if orphan { "Orphan" } else { "Background" }.to_owned();
    }
    options.dry_run |= dry_run("DeleteOptions", call.query.all("dryRun"))?;
    check_delete(&options)?;
    Ok(options)
}

/// `meta/v1.DeleteOptions` as an object.
///
/// # Errors
/// 400 when a field has another type.
pub fn from_value(value: &Value) -> Result<DeleteOptions, Status> {
    let mut options = DeleteOptions::default();
    match value.get("gracePeriodSeconds") {
        None | Some(Value::Null) => {}
        Some(given) => {
            options.grace_period_seconds = Some(given.as_i64().ok_or_else(|| {
                Status::bad_request(format!("gracePeriodSeconds {given} is not a whole number"))
            })?);
        }
    }
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    options.propagation = text("/propagationPolicy").unwrap_or_default();
    if let Some(orphan) = value.get("orphanDependents").and_then(Value::as_bool) {
        options.propagation = if orphan { "Orphan" } else { "Background" }.to_owned();
    }
    options.uid = text("/preconditions/uid");
    options.resource_version = text("/preconditions/resourceVersion");
    if let Some(all) = value.get("dryRun").and_then(Value::as_array) {
        options.dry_run = dry_run("DeleteOptions", all.iter().filter_map(Value::as_str))?;
    }
    check_delete(&options)?;
    Ok(options)
}

fn check_delete(options: &DeleteOptions) -> Result<(), Status> {
    match options.propagation.as_str() {
        "" | "Foreground" | "Background" | "Orphan" => Ok(()),
        other => Err(invalid(
            "DeleteOptions",
            "propagationPolicy",
            format!(
                "Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\""
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn delete_options_are_read() {
        let options = from_value(&json!({
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": "u"},
            "propagationPolicy": "Foreground",
            "dryRun": ["All"],
        }))
        .unwrap();
        assert_eq!(options.grace_period_seconds, Some(0));
        assert_eq!(options.uid.as_deref(), Some("u"));
        assert!(options.dry_run);
    }

    #[test]
    fn unknown_policies_are_refused() {
        assert_eq!(from_value(&json!({"propagationPolicy": "Sink"})).unwrap_err().code, 422);
        assert_eq!(from_value(&json!({"dryRun": ["Some"]})).unwrap_err().code, 422);
    }
}
