//! Sets of fields, and their form in `managedFields` (`FieldsV1`).
//!
//! A step of a path is kept as `FieldsV1` writes it: `f:NAME` for a field, `k:{...}` for an item of
//! a list with keys, `v:...` for an item of a set. An item or field is a member when its step maps
//! to `{}` or to an object with a `.`.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    steps: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    member: bool,
    below: FieldSet,
}

impl Entry {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl FieldSet {
    /// From `fieldsV1`; what is no object is an empty set.
    pub(crate) fn from_json(fields: &Value) -> Self {
        let mut set = Self::default();
        for (step, below) in fields.as_object().into_iter().flatten() {
            if step == "." {
                continue;
            }
            let leaf = below.as_object().is_none_or(|b| b.is_empty() || b.contains_key("."));
            let entry = Entry { member: leaf, below: Self::from_json(below) };
            set.steps.insert(step.clone(), entry);
        }
        set
    }

    /// As `fieldsV1`.
    pub(crate) fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (step, entry) in &self.steps {
            let mut below = entry.below.to_json();
            if entry.member
                && !entry.below.is_empty()
                && let Some(below) = below.as_object_mut()
            {
                below.insert(".".into(), json!({}));
            }
            out.insert(step.clone(), below);
        }
        Value::Object(out)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Adds a path; the empty path is no member of anything.
    pub(crate) fn insert(&mut self, path: &[String]) {
        let Some((first, rest)) = path.split_first() else { return };
        let entry = self.steps.entry(first.clone()).or_default();
        if rest.is_empty() {
            entry.member = true;
        } else {
            entry.below.insert(rest);
        }
    }

    /// Whether this one step is a member.
    pub(crate) fn has(&self, step: &str) -> bool {
        self.steps.get(step).is_some_and(|e| e.member)
    }

    /// What lies below a step.
    pub(crate) fn below(&self, step: &str) -> Option<&Self> {
        self.steps.get(step).map(|e| &e.below).filter(|b| !b.is_empty())
    }

    /// Steps that have something below them, with that, to change.
    pub(crate) fn map_below(&mut self, change: &mut dyn FnMut(&str, &mut Self) -> bool) {
        for (step, entry) in &mut self.steps {
            if !entry.below.is_empty() && change(step, &mut entry.below) {
                entry.member = true;
            }
        }
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        for (step, theirs) in &other.steps {
            let ours = out.steps.entry(step.clone()).or_default();
            ours.member |= theirs.member;
            ours.below = ours.below.union(&theirs.below);
        }
        out
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        self.combine(
            other,
            |ours, theirs| ours && theirs,
            |a, b| match b {
                Some(b) => a.intersection(b),
                None => Self::default(),
            },
        )
    }

    pub(crate) fn difference(&self, other: &Self) -> Self {
        self.combine(
            other,
            |ours, theirs| ours && !theirs,
            |a, b| match b {
                Some(b) => a.difference(b),
                None => a.clone(),
            },
        )
    }

    fn combine(
        &self,
        other: &Self,
        member: fn(bool, bool) -> bool,
        below: fn(&Self, Option<&Self>) -> Self,
    ) -> Self {
        let mut out = Self::default();
        for (step, ours) in &self.steps {
            let theirs = other.steps.get(step);
            let entry = Entry {
                member: member(ours.member, theirs.is_some_and(|t| t.member)),
                below: below(&ours.below, theirs.map(|t| &t.below)),
            };
            if !entry.is_empty() {
                out.steps.insert(step.clone(), entry);
            }
        }
        out
    }

    /// Without a top-level field and everything below it.
    pub(crate) fn without_field(mut self, name: &str) -> Self {
        self.steps.remove(&format!("f:{name}"));
        self
    }

    /// Every member, as text: `.spec.containers[name="app"].image`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, before: &str, out: &mut Vec<String>) {
        for (step, entry) in self.steps.iter().filter(|(_, e)| e.member) {
            let _ = entry;
            out.push(format!("{before}{}", step_text(step)));
        }
        for (step, entry) in &self.steps {
            entry.below.collect(&format!("{before}{}", step_text(step)), out);
        }
    }
}

fn step_text(step: &str) -> String {
    let (kind, rest) = step.split_once(':').unwrap_or(("", step));
    match kind {
        "f" => format!(".{rest}"),
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let mut text = String::from("[");
            for (i, (key, value)) in keys.iter().enumerate() {
                let comma = if i == 0 { "" } else { "," };
                // Writing to a string cannot fail.
                let _ = write!(text, "{comma}{key}={value}");
            }
            text + "]"
        }
        "v" => format!("[={rest}]"),
        _ => format!("[{rest}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(fields: Value) -> FieldSet {
        FieldSet::from_json(&fields)
    }

    #[test]
    fn json_and_back() {
        let fields = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {
                "f:containers": {"k:{\"name\":\"app\"}": {".": {}, "f:image": {}}},
                "f:finalizers": {"v:\"a\"": {}},
            },
        });
        assert_eq!(set(fields.clone()).to_json(), fields);
        assert_eq!(
            set(fields).paths(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.containers[name=\"app\"]",
                ".spec.containers[name=\"app\"].image",
                ".spec.finalizers[=\"a\"]",
            ]
        );
    }

    #[test]
    fn algebra() {
        let a = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let b = set(json!({"f:a": {"f:b": {}}, "f:d": {}}));
        assert_eq!(a.intersection(&b), set(json!({"f:a": {"f:b": {}}})));
        assert_eq!(a.difference(&b), set(json!({"f:a": {}, "f:c": {}})));
        assert_eq!(b.difference(&a), set(json!({"f:d": {}})));
        assert_eq!(a.union(&b), set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}, "f:d": {}})));
        assert!(a.difference(&a).is_empty());
    }
}
