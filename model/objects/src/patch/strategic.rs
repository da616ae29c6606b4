//! Strategic merge patch: lists of objects merge by a key that the schema names.
//!
//! Follows the behaviour of `k8s.io/apimachinery/pkg/util/strategicpatch`, whose directives are
//! `$patch`, `$retainKeys`, `$setElementOrder/FIELD` and `$deleteFromPrimitiveList/FIELD`.

use super::unprocessable;
use crate::schema::{Field, FieldType, Type};
use crate::status::Status;
use serde_json::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// Carries out a strategic merge patch on an object of type `ty`.
///
/// # Errors
/// 400 when a directive is malformed, a merge key is missing or an unknown field would need the
/// schema; 422 when a directive is unknown.
pub fn strategic(target: &Value, patch: &Value, ty: &'static Type) -> Result<Value, Status> {
    let (Value::Object(target), Value::Object(patch)) = (target, patch) else {
        return Err(Status::bad_request("invalid JSON document"));
    };
    merge_object(target.clone(), patch.clone(), Shape::Struct(ty)).map(Value::Object)
}

/// What the schema says about an object.
#[derive(Clone, Copy)]
enum Shape {
    Struct(&'static Type),
    Map(&'static FieldType),
    /// Any JSON: nothing is known, lists are replaced.
    Free,
}

/// What the schema says about a field.
struct Place {
    shape: Shape,
    merge: bool,
    merge_key: Option<&'static str>,
}

impl Shape {
    fn of(ty: &FieldType) -> Self {
        match ty {
            FieldType::Message(ty) => Self::Struct(ty),
            FieldType::Map(inner) => Self::Map(inner),
            FieldType::List(inner) => Self::of(inner),
            _ => Self::Free,
        }
    }

    fn field(self, key: &str, structured: bool) -> Result<Place, Status> {
        let free = Place { shape: Self::Free, merge: false, merge_key: None };
        match self {
            Self::Free => Ok(free),
            Self::Map(inner) => Ok(Place { shape: Self::of(inner), merge: false, merge_key: None }),
            Self::Struct(ty) => match ty.field(key) {
                Some(field) => Ok(Self::place(field)),
                // Upstream cannot tell how to merge such a field, and says so.
                None if structured => Err(Status::bad_request(format!(
                    "unable to find api field in struct {} for the json field {key:?}",
                    ty.go_name()
                ))),
                None => Ok(free),
            },
        }
    }

    fn place(field: &Field) -> Place {
        Place { shape: Self::of(&field.ty), merge: field.merge, merge_key: field.merge_key }
    }
}

fn bad_order() -> Status {
    Status::bad_request("invalid patch format of setElementOrder list")
}

fn no_merge_key(item: &Value, key: &str) -> Status {
    Status::bad_request(format!("map: {item} does not contain declared merge key: {key}"))
}

fn merge_object(mut original: Object, mut patch: Object, shape: Shape) -> Result<Object, Status> {
    if let Some(directive) = patch.remove(PATCH) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(unprocessable(format!("unknown patch type: {directive} in map: {patch:?}"))),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_orders(&mut original, &mut patch, shape)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM) {
            if let (Some(Value::Array(from)), Value::Array(gone)) = (original.get_mut(list), &value)
            {
                from.retain(|item| !gone.contains(item));
            } else if !value.is_array() {
                return Err(Status::bad_request(
                    "invalid patch format of primitive list: it is not a list",
                ));
            }
            continue;
        }
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let Some(old) = original.remove(&key) else {
            if let Some(value) = without_directives(value) {
                original.insert(key, value);
            }
            continue;
        };
        let merged = match (old, value) {
            (Value::Object(old), Value::Object(new)) => {
                let place = shape.field(&key, true)?;
                Value::Object(merge_object(old, new, place.shape)?)
            }
            (Value::Array(old), Value::Array(new)) => {
                let place = shape.field(&key, true)?;
                Value::Array(merge_list(old, new, &place)?)
            }
            (_, new) => match without_directives(new) {
                Some(new) => new,
                None => continue,
            },
        };
        original.insert(key, merged);
    }
    Ok(original)
}

/// Drops from `original` what `$retainKeys` does not name.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Status> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || Status::bad_request("invalid patch format of retainKeys");
    let Value::Array(keys) = keys else { return Err(bad()) };
    let named = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    for (key, value) in patch.iter() {
        let directive = key.starts_with(DELETE_FROM) || key.starts_with(SET_ORDER);
        if !value.is_null() && !directive && !named(key) {
            return Err(bad());
        }
    }
    original.retain(|key, _| named(key));
    Ok(())
}

/// Merges the lists for which the patch gives an order.
fn set_orders(original: &mut Object, patch: &mut Object, shape: Shape) -> Result<(), Status> {
    let keys: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for key in keys {
        let Some(Value::Array(order)) = patch.remove(&key) else { return Err(bad_order()) };
        let field = &key[SET_ORDER.len()..];
        let place = shape.field(field, true)?;
        let removed = match patch.get(&format!("{DELETE_FROM}{field}")) {
            Some(Value::Array(gone)) => gone.clone(),
            _ => Vec::new(),
        };
        let take = |from: &mut Object| match from.remove(field) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => {
                Err(Status::bad_request(format!("expected a list in field {field:?}, got {other}")))
            }
        };
        if patch.get(field).is_some_and(Value::is_null) {
            continue;
        }
        let new = take(patch)?;
        let old = take(original)?;
        check_order(new.as_deref().unwrap_or_default(), &order, place.merge_key)?;
        let (merged, before) = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => (old.clone(), old),
            (None, Some(new)) => match without_directives(Value::Array(new)) {
                Some(Value::Array(new)) => (new, Vec::new()),
                _ => continue,
            },
            (Some(old), Some(new)) => (merge_list(old.clone(), new, &place)?, old),
        };
        let merged: Vec<Value> = merged.into_iter().filter(|m| !removed.contains(m)).collect();
        original
            .insert(field.to_owned(), ordered(merged, &order, &before, place.merge_key)?.into());
    }
    Ok(())
}

/// The items of a patch must stand in the order that the patch asks for.
fn check_order(patch: &[Value], order: &[Value], key: Option<&str>) -> Result<(), Status> {
    if order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in patch.iter().filter(|i| i.get(PATCH).is_none()) {
        let id = identity(item, key)?;
        if !rest.by_ref().any(|o| identity(o, key).is_ok_and(|o| o == id)) {
            return Err(Status::bad_request(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                Value::from(patch),
                Value::from(order)
            )));
        }
    }
    Ok(())
}

/// What makes an item of a list itself: its merge key, or for scalars the value.
fn identity<'a>(item: &'a Value, key: Option<&str>) -> Result<&'a Value, Status> {
    match key {
        None => Ok(item),
        Some(key) => item.get(key).ok_or_else(|| no_merge_key(item, key)),
    }
}

fn merge_list(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    place: &Place,
) -> Result<Vec<Value>, Status> {
    if !place.merge {
        return Ok(match without_directives(Value::Array(patch)) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        });
    }
    let Some(first) = original.first().or(patch.first()) else { return Ok(Vec::new()) };
    if first.is_array() {
        return Err(unprocessable("lists of lists are not supported"));
    }
    let before = original.clone();
    let Some(key) = place.merge_key.filter(|_| first.is_object()) else {
        for item in &patch {
            if !original.contains(item) {
                original.push(item.clone());
            }
        }
        return ordered(original, &patch, &before, None);
    };
    let mut order = Vec::new();
    let mut replace = false;
    let mut changes = Vec::new();
    for item in patch {
        let Value::Object(object) = &item else {
            return Err(Status::bad_request(format!("expected an object in the list, got {item}")));
        };
        match object.get(PATCH).map(|d| d.as_str().unwrap_or_default()) {
            None => {
                order.push(item.clone());
                changes.push(item);
            }
            Some("replace") => replace = true,
            Some("delete") => {
                let gone = identity(&item, Some(key))?;
                original.retain(|old| old.get(key) != Some(gone));
            }
            Some("merge") => {
                return Err(Status::bad_request(
                    "merging lists cannot yet be specified in the patch",
                ));
            }
            Some(other) => {
                return Err(unprocessable(format!("unknown patch type: {other} in map: {item}")));
            }
        }
    }
    if replace {
        return Ok(changes);
    }
    for change in changes {
        let id = identity(&change, Some(key))?.clone();
        let found = original.iter_mut().find(|old| old.get(key) == Some(&id));
        match (found, change) {
            (Some(Value::Object(old)), Value::Object(change)) => {
                *old = merge_object(std::mem::take(old), change, place.shape)?;
            }
            (_, change) => original.extend(without_directives(change)),
        }
    }
    ordered(original, &order, &before, Some(key))
}

/// Orders a merged list: items that the patch names in the patch's order, the others in between
/// where they stood before.
fn ordered(
    merged: Vec<Value>,
    order: &[Value],
    before: &[Value],
    key: Option<&str>,
) -> Result<Vec<Value>, Status> {
    let position = |list: &[Value], item: &Value| -> Result<Option<usize>, Status> {
        let id = identity(item, key)?;
        Ok(list.iter().position(|o| identity(o, key).is_ok_and(|o| o == id)))
    };
    let mut named = Vec::new();
    let mut others = Vec::new();
    for item in merged {
        let was = position(before, &item)?;
        match position(order, &item)? {
            Some(at) => named.push((at, was, item)),
            None => others.push((was.unwrap_or(usize::MAX), was, item)),
        }
    }
    named.sort_by_key(|(at, ..)| *at);
    others.sort_by_key(|(at, ..)| *at);
    let mut result = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return Ok(result),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((_, Some(other), _)), Some((_, Some(name), _))) => other < name,
            _ => false,
        };
        let next = if other_first { others.next() } else { named.next() };
        result.extend(next.map(|(_, _, item)| item));
    }
}

/// A value of a patch as it is stored when nothing was there before; `None` when it is a
/// directive.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        // Upstream drops objects with a directive altogether, whatever the directive.
        Value::Object(object) if object.contains_key(PATCH) => None,
        Value::Object(object) => {
            let cleaned = object
                .into_iter()
                .filter(|(key, value)| {
                    key != RETAIN_KEYS
                        && !key.starts_with(SET_ORDER)
                        && !key.starts_with(DELETE_FROM)
                        && !value.is_null()
                })
                .filter_map(|(key, value)| Some((key, without_directives(value)?)))
                .collect();
            Some(Value::Object(cleaned))
        }
        Value::Array(items) => {
            Some(Value::Array(items.into_iter().filter_map(without_directives).collect()))
        }
        other => Some(other),
    }
}
