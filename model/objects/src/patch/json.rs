//! JSON patch (RFC 6902), as lenient as the library that upstream uses (`evanphx/json-patch`, version
//! 4), because clients came to rely on it: `replace` also adds a member that is missing, a missing
//! member is `null` to `test` and `copy`, and an index below zero counts from the end.

use super::unprocessable;
use crate::status::Status;
use serde::Deserialize;
use serde_json::Value;

/// At most so many operations.
const OPERATIONS: usize = 10_000;

/// At most so many bytes are copied within one object: each copy may double it.
const COPIED: usize = 3 * 1024 * 1024;

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Operation {
    Add {
        path: String,
        #[serde(default)]
        value: Value,
    },
    Remove {
        path: String,
    },
    Replace {
        path: String,
        #[serde(default)]
        value: Value,
    },
    Move {
        from: String,
        path: String,
    },
    Copy {
        from: String,
        path: String,
    },
    Test {
        path: String,
        #[serde(default)]
        value: Value,
    },
}

/// Carries out a JSON patch.
///
/// # Errors
/// 400 when it is no JSON patch, 413 when it has too many operations or copies too much, 422 when an
/// operation fails (a path is missing, a test does not hold).
pub fn json(target: &Value, patch: &Value) -> Result<Value, Status> {
    let operations: Vec<Operation> = Deserialize::deserialize(patch)
        .map_err(|e| Status::bad_request(format!("error decoding JSON patch: {e}")))?;
    let too_large = |what| Status::new(413, "RequestEntityTooLarge", what);
    if operations.len() > OPERATIONS {
        return Err(too_large(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut result = target.clone();
    let mut copied = 0;
    for (i, operation) in operations.into_iter().enumerate() {
        if let Operation::Copy { from, .. } = &operation {
            copied += get(&result, from).map_or(0, |value| value.to_string().len());
            if copied > COPIED {
                return Err(too_large(format!(
                    "operation '/{i}' of the JSON patch failed: no more than {COPIED} bytes may be copied"
                )));
            }
        }
        carry_out(&mut result, operation).map_err(|(path, why)| {
            unprocessable(format!("operation '/{i}' failed at path '{path}': {why}"))
        })?;
    }
    Ok(result)
}

const MISSING: &str = "path is invalid";

fn carry_out(document: &mut Value, operation: Operation) -> Result<(), (String, &'static str)> {
    match operation {
        Operation::Add { path, value } => add(document, &path, value).map_err(|why| (path, why)),
        Operation::Remove { path } => remove(document, &path).map(drop).map_err(|why| (path, why)),
        Operation::Replace { path, value } => {
            replace(document, &path, value).map_err(|why| (path, why))
        }
        Operation::Move { from, path } => {
            let value = remove(document, &from).map_err(|why| (from, why))?;
            add(document, &path, value).map_err(|why| (path, why))
        }
        Operation::Copy { from, path } => {
            let value = get(document, &from).map_err(|why| (from, why))?.clone();
            add(document, &path, value).map_err(|why| (path, why))
        }
        Operation::Test { path, value } => match get(document, &path) {
            Ok(found) if *found == value => Ok(()),
            Ok(_) => Err((path, "value did not match")),
            Err(why) => Err((path, why)),
        },
    }
}

/// A pointer's last part, unescaped, and what leads to it.
fn split(path: &str) -> Result<(&str, String), &'static str> {
    let (parent, last) = path.rsplit_once('/').ok_or(MISSING)?;
    Ok((parent, last.replace("~1", "/").replace("~0", "~")))
}

/// A place in a list of `length` elements, counted from the end when it is below zero.
fn index(key: &str, length: usize) -> Result<usize, &'static str> {
    let number: i64 = key.parse().map_err(|_| MISSING)?;
    let place = if number < 0 { number + i64::try_from(length).unwrap_or(0) } else { number };
    usize::try_from(place).ok().filter(|place| *place < length).ok_or(MISSING)
}

/// The value at a path; a member that its object lacks is `null`.
fn get<'a>(document: &'a Value, path: &str) -> Result<&'a Value, &'static str> {
    if path.is_empty() {
        return Ok(document);
    }
    let (parent, key) = split(path)?;
    match document.pointer(parent) {
        Some(Value::Object(members)) => Ok(members.get(&key).unwrap_or(&Value::Null)),
        Some(Value::Array(list)) => Ok(&list[index(&key, list.len())?]),
        _ => Err(MISSING),
    }
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), &'static str> {
    put(document, path, value, |list, key, value| {
        let place = if key == "-" { list.len() } else { index(key, list.len() + 1)? };
        list.insert(place, value);
        Ok(())
    })
}

fn replace(document: &mut Value, path: &str, value: Value) -> Result<(), &'static str> {
    put(document, path, value, |list, key, value| {
        let place = index(key, list.len())?;
        list[place] = value;
        Ok(())
    })
}

/// Puts a value at a path: in place of the whole document, as a member, or into a list as
/// `into_list` does.
fn put(
    document: &mut Value,
    path: &str,
    value: Value,
    into_list: impl FnOnce(&mut Vec<Value>, &str, Value) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    if path.is_empty() {
        *document = value;
        return Ok(());
    }
    let (parent, key) = split(path)?;
    match document.pointer_mut(parent) {
        Some(Value::Object(members)) => {
            members.insert(key, value);
            Ok(())
        }
        Some(Value::Array(list)) => into_list(list, &key, value),
        _ => Err(MISSING),
    }
}

fn remove(document: &mut Value, path: &str) -> Result<Value, &'static str> {
    let (parent, key) = split(path)?;
    match document.pointer_mut(parent) {
        Some(Value::Object(members)) => members.remove(&key).ok_or(MISSING),
        Some(Value::Array(list)) => {
            let place = index(&key, list.len())?;
            Ok(list.remove(place))
        }
        _ => Err(MISSING),
    }
}
