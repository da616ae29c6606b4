//! Walks over objects with the schema: which fields they have, how they differ, merge, removal.
//!
//! Follows the rules of `sigs.k8s.io/structured-merge-diff`: structs and maps merge by key, lists
//! with keys by those, sets by value; everything atomic is one leaf.

use super::set::FieldSet;
use crate::quantity::Quantity;
use crate::schema::{Field, FieldType, ListKind, Type};
use serde_json::{Map, Value};

/// How a value is put together.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// One value with one owner.
    Leaf,
    /// Known fields.
    Struct(&'static Type),
    /// Any keys.
    Map(&'static FieldType),
    /// Items with identity: by keys, or, without keys, by value.
    List { keys: &'static [&'static str], item: &'static FieldType },
}

/// The parts of one object that another lacks or has otherwise.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) added: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) removed: FieldSet,
}

/// A configuration that cannot be applied, with the path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {what}")]
pub(crate) struct Malformed {
    pub(crate) path: String,
    pub(crate) what: String,
}

impl Shape {
    fn of_type(ty: &'static FieldType) -> Self {
        match ty {
            FieldType::Message(ty) if ty.atomic => Self::Leaf,
            FieldType::Message(ty) => Self::Struct(ty),
            FieldType::Map(inner) => Self::Map(inner),
            _ => Self::Leaf,
        }
    }

    fn of_field(field: &'static Field) -> Self {
        match &field.ty {
            _ if field.atomic => Self::Leaf,
            FieldType::List(item) => match field.list {
                ListKind::Atomic => Self::Leaf,
                ListKind::Set => Self::List { keys: &[], item },
                ListKind::Map => Self::List { keys: field.keys, item },
            },
            FieldType::Message(ty) if field.granular => Self::Struct(ty),
            ty => Self::of_type(ty),
        }
    }

    /// What lies below a step, and whether the step is a named field of a struct.
    fn below(self, step: &str) -> (Self, bool) {
        match self {
            Self::Leaf => (Self::Leaf, false),
            Self::Map(inner) => (Self::of_type(inner), false),
            Self::List { item, .. } => (Self::of_type(item), false),
            Self::Struct(ty) => match step.strip_prefix("f:").and_then(|name| ty.field(name)) {
                Some(field) => (Self::of_field(field), true),
                None => (Self::Leaf, false),
            },
        }
    }
}

/// The step to an item of a list.
fn item_step(
    keys: &[&str],
    item_type: &FieldType,
    item: &Value,
    path: &dyn Fn() -> String,
) -> Result<String, Malformed> {
    if keys.is_empty() {
        return Ok(format!("v:{item}"));
    }
    let bad = |what: String| Malformed { path: path(), what };
    let Value::Object(object) = item else {
        return Err(bad("associative list with keys may not have non-map elements".into()));
    };
    let mut id = Map::new();
    for key in keys {
        if let Some(value) = object.get(*key) {
            id.insert((*key).to_owned(), value.clone());
        } else if let Some(default) = default_of(item_type, key) {
            id.insert((*key).to_owned(), default);
        }
    }
    if id.is_empty() {
        return Err(bad(format!(
            "associative list with keys has an element that omits all key fields {keys:?} (and doesn't have default values for any key fields)"
        )));
    }
    Ok(format!("k:{}", Value::Object(id)))
}

fn default_of(item: &FieldType, key: &str) -> Option<Value> {
    let FieldType::Message(ty) = item else { return None };
    serde_json::from_str(ty.field(key)?.default?).ok()
}

/// The items of a list with their steps. Of items with the same step the first counts.
fn index<'a>(list: Option<&'a Value>, keys: &[&str], item: &FieldType) -> Vec<(String, &'a Value)> {
    let mut out: Vec<(String, &Value)> = Vec::new();
    for value in list.and_then(Value::as_array).into_iter().flatten() {
        // Live objects are valid; an item without keys could not be told from others anyway.
        if let Ok(step) = item_step(keys, item, value, &String::new)
            && !out.iter().any(|(s, _)| *s == step)
        {
            out.push((step, value));
        }
    }
    out
}

fn join(path: &[String]) -> String {
    let mut set = FieldSet::default();
    set.insert(path);
    set.paths().pop().unwrap_or_default()
}

/// Checks that a configuration fits the schema: known fields, right containers, no item twice.
pub(crate) fn check(value: &Value, shape: Shape, path: &mut Vec<String>) -> Result<(), Malformed> {
    let wrong = |path: &[String], what: String| Err(Malformed { path: join(path), what });
    match (shape, value) {
        (_, Value::Null) | (Shape::Leaf, _) => Ok(()),
        (Shape::Struct(ty), Value::Object(object)) => {
            for (key, value) in object {
                path.push(format!("f:{key}"));
                let Some(field) = ty.field(key) else {
                    return wrong(path, "field not declared in schema".into());
                };
                check(value, Shape::of_field(field), path)?;
                path.pop();
            }
            Ok(())
        }
        (Shape::Map(inner), Value::Object(object)) => {
            for (key, value) in object {
                path.push(format!("f:{key}"));
                check(value, Shape::of_type(inner), path)?;
                path.pop();
            }
            Ok(())
        }
        (Shape::List { keys, item }, Value::Array(items)) => {
            let mut seen = Vec::new();
            for (i, value) in items.iter().enumerate() {
                let at = || format!("{}: element {i}", join(path));
                let step = item_step(keys, item, value, &at)?;
                if seen.contains(&step) {
                    path.push(step);
                    let what = "duplicate entries for key ".to_owned();
                    let id = path.last().map_or_else(String::new, |s| s[2..].to_owned());
                    path.pop();
                    return wrong(path, format!("{what}{id}"));
                }
                path.push(step.clone());
                seen.push(step);
                check(value, Shape::of_type(item), path)?;
                path.pop();
            }
            Ok(())
        }
        (Shape::List { .. }, other) => wrong(path, format!("expected list, got {other}")),
        (_, other) => wrong(path, format!("expected map, got {other}")),
    }
}

/// The fields that an applied configuration names.
pub(crate) fn field_set(value: &Value, ty: &'static Type) -> FieldSet {
    let mut set = FieldSet::default();
    collect(value, Shape::Struct(ty), &mut Vec::new(), &mut set);
    set
}

fn collect(value: &Value, shape: Shape, path: &mut Vec<String>, set: &mut FieldSet) {
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(object)) => {
            for (key, value) in object {
                let step = format!("f:{key}");
                let (below, named) = shape.below(&step);
                path.push(step);
                collect(value, below, path, set);
                let hollow = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if hollow || !named {
                    set.insert(path);
                }
                path.pop();
            }
        }
        (Shape::List { keys, item }, Value::Array(_)) => {
            for (step, value) in index(Some(value), keys, item) {
                path.push(step);
                collect(value, Shape::of_type(item), path, set);
                set.insert(path);
                path.pop();
            }
        }
        (Shape::Struct(_) | Shape::Map(_) | Shape::List { .. }, Value::Null) => {}
        _ => set.insert(path),
    }
}

/// How `new` differs from `old`.
pub(crate) fn compare(old: &Value, new: &Value, ty: &'static Type) -> Comparison {
    let mut out = Comparison::default();
    differ(Some(old), Some(new), Shape::Struct(ty), &mut Vec::new(), &mut out);
    out
}

fn hollow(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(object)) => object.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

fn differ(
    old: Option<&Value>,
    new: Option<&Value>,
    shape: Shape,
    path: &mut Vec<String>,
    out: &mut Comparison,
) {
    let container = |v: Option<&Value>| match (shape, v) {
        (_, None | Some(Value::Null)) => true,
        (Shape::List { .. }, Some(v)) => v.is_array(),
        (_, Some(v)) => v.is_object(),
    };
    let leaf = matches!(shape, Shape::Leaf)
        || (hollow(old) && hollow(new))
        || !container(old)
        || !container(new);
    match (old, new) {
        (None, None) => return,
        (None, Some(_)) => out.added.insert(path),
        (Some(_), None) => out.removed.insert(path),
        (Some(old), Some(new)) if leaf && old != new => out.modified.insert(path),
        _ => {}
    }
    if leaf {
        return;
    }
    match shape {
        Shape::Leaf => {}
        Shape::List { keys, item } => {
            let (old, new) = (index(old, keys, item), index(new, keys, item));
            let find =
                |list: &[(String, &Value)], step: &str| list.iter().position(|(s, _)| s == step);
            for (step, before) in &old {
                let after = find(&new, step).map(|at| new[at].1);
                path.push(step.clone());
                differ(Some(before), after, Shape::of_type(item), path, out);
                path.pop();
            }
            for (step, after) in new.iter().filter(|(step, _)| find(&old, step).is_none()) {
                path.push(step.clone());
                differ(None, Some(after), Shape::of_type(item), path, out);
                path.pop();
            }
        }
        Shape::Struct(_) | Shape::Map(_) => {
            let there = (old.is_some(), new.is_some());
            let empty = Map::new();
            let (old, new) = (
                old.and_then(Value::as_object).unwrap_or(&empty),
                new.and_then(Value::as_object).unwrap_or(&empty),
            );
            let keys = old.keys().chain(new.keys().filter(|k| !old.contains_key(*k)));
            for key in keys {
                let step = format!("f:{key}");
                let (below, _) = shape.below(&step);
                let always = always_there(shape, key);
                let fill = |v: Option<&Value>, there: bool| {
                    v.cloned().or_else(|| always.clone().filter(|_| there))
                };
                let (before, after) = (fill(old.get(key), there.0), fill(new.get(key), there.1));
                path.push(step);
                differ(before.as_ref(), after.as_ref(), below, path, out);
                path.pop();
            }
        }
    }
}

/// What Go holds by value is never missing: a struct is only empty, a list or map null.
fn always_there(shape: Shape, key: &str) -> Option<Value> {
    let Shape::Struct(ty) = shape else { return None };
    let field = ty.field(key).filter(|f| !f.pointer)?;
    match field.ty {
        FieldType::Message(_) => Some(Value::Object(Map::new())),
        FieldType::List(_) | FieldType::Map(_) if !field.omitempty => Some(Value::Null),
        _ => None,
    }
}

/// `config` laid over `live`.
pub(crate) fn merge(live: &Value, config: &Value, ty: &'static Type) -> Value {
    lay_over(live, config, Shape::Struct(ty))
}

fn lay_over(live: &Value, config: &Value, shape: Shape) -> Value {
    match (shape, live, config) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(live), Value::Object(config)) => {
            let mut out = live.clone();
            for (key, value) in config {
                let (below, _) = shape.below(&format!("f:{key}"));
                let merged = match live.get(key) {
                    Some(old) => lay_over(old, value, below),
                    None => value.clone(),
                };
                out.insert(key.clone(), merged);
            }
            Value::Object(out)
        }
        (Shape::List { keys, item }, Value::Array(_), Value::Array(_)) => {
            let (old, new) = (index(Some(live), keys, item), index(Some(config), keys, item));
            Value::Array(lay_list_over(&old, &new, Shape::of_type(item)))
        }
        _ => config.clone(),
    }
}

/// Merges lists: what both have follows the order of the configuration, what only the live list
/// has stays between its neighbours.
fn lay_list_over(old: &[(String, &Value)], new: &[(String, &Value)], item: Shape) -> Vec<Value> {
    let find = |list: &[(String, &Value)], step: &str| list.iter().position(|(s, _)| s == step);
    let shared: Vec<usize> = (0..new.len()).filter(|&i| find(old, &new[i].0).is_some()).collect();
    let mut shared = shared.into_iter().peekable();
    let mut merged = vec![false; new.len()];
    let mut out = Vec::with_capacity(old.len() + new.len());
    let take = |i: usize| match find(old, &new[i].0) {
        Some(at) => lay_over(old[at].1, new[i].1, item),
        None => new[i].1.clone(),
    };
    let (mut l, mut r) = (0, 0);
    while l < old.len() || r < new.len() {
        if l < old.len() {
            match find(new, &old[l].0) {
                // Only the live list has it.
                None => {
                    out.push(old[l].1.clone());
                    l += 1;
                    continue;
                }
                Some(at) if at == r && r < new.len() => {
                    out.push(take(r));
                    merged[r] = true;
                    (l, r) = (l + 1, r + 1);
                    shared.next();
                    continue;
                }
                // Both have it, but its turn comes later, or has been.
                Some(at) if merged[at] || (r < new.len() && shared.peek() != Some(&at)) => {
                    l += 1;
                    continue;
                }
                Some(_) => {}
            }
        }
        if r < new.len() {
            out.push(take(r));
            merged[r] = true;
            if shared.peek() == Some(&r) {
                shared.next();
            }
            r += 1;
        }
    }
    out
}

/// `value` without the members of `gone`; `None` when nothing is left of a container.
pub(crate) fn remove(value: &Value, gone: &FieldSet, ty: &'static Type) -> Value {
    take_away(value, gone, Shape::Struct(ty)).unwrap_or_else(|| Value::Object(Map::new()))
}

fn take_away(value: &Value, gone: &FieldSet, shape: Shape) -> Option<Value> {
    let below = |step: &str, value: &Value| {
        if gone.has(step) {
            return None;
        }
        Some(match gone.below(step) {
            // A container that loses everything stays behind as null, which counts as unset.
            Some(gone) => take_away(value, gone, shape.below(step).0).unwrap_or(Value::Null),
            None => value.clone(),
        })
    };
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(object)) => {
            let left: Map<String, Value> = object
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), below(&format!("f:{key}"), value)?)))
                .collect();
            (!left.is_empty()).then_some(Value::Object(left))
        }
        (Shape::List { keys, item }, Value::Array(items)) => {
            let left: Vec<Value> = items
                .iter()
                .filter_map(|value| match item_step(keys, item, value, &String::new) {
                    Ok(step) => below(&step, value),
                    Err(_) => Some(value.clone()),
                })
                .collect();
            (!left.is_empty()).then_some(Value::Array(left))
        }
        _ => Some(value.clone()),
    }
}

/// The set with every named field of a struct that has members below it as a member too.
pub(crate) fn with_named_parents(set: &FieldSet, ty: &'static Type) -> FieldSet {
    let mut out = set.clone();
    name_parents(&mut out, Shape::Struct(ty));
    out
}

fn name_parents(set: &mut FieldSet, shape: Shape) {
    set.map_below(&mut |step, below| {
        let (inner, named) = shape.below(step);
        name_parents(below, inner);
        named
    });
}

/// Makes the quantities of a configuration canonical, so that `0.5` does not differ from `500m`.
pub(crate) fn canonical(value: &mut Value, ty: &'static Type) {
    let Value::Object(object) = value else { return };
    for (key, value) in object {
        if let Some(field) = ty.field(key) {
            canonical_field(value, &field.ty);
        }
    }
}

fn canonical_field(value: &mut Value, ty: &'static FieldType) {
    match (ty, value) {
        (FieldType::Quantity, value) => {
            if let Ok(quantity) = Quantity::from_json(value) {
                *value = quantity.to_string().into();
            }
        }
        (FieldType::Message(ty), value) => canonical(value, ty),
        (FieldType::List(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| canonical_field(item, inner));
        }
        (FieldType::Map(inner), Value::Object(map)) => {
            map.values_mut().for_each(|item| canonical_field(item, inner));
        }
        _ => {}
    }
}
