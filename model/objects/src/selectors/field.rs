//! Field selectors: `metadata.name=x,status.phase!=Running`.

use crate::kinds::{Kind, SelectableField};
use crate::status::Status;
use serde_json::Value;
use std::fmt;

/// One condition of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    /// What the client wrote, for example `spec.nodeName`.
    pub label: String,
    /// Dotted path in the stored object; the label until [`FieldSelector::for_kind`] was called.
    pub path: String,
    /// What a missing value reads as.
    absent: &'static str,
    /// True for `!=`.
    pub negated: bool,
    /// The value to compare with.
    pub value: String,
}

/// A field selector, parsed. All terms must hold; without terms it matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

fn invalid(text: &str) -> Status {
    Status::bad_request(format!(
        "invalid selector: '{text}'; can't understand '{text}'; expected FIELD=VALUE or FIELD!=VALUE"
    ))
}

/// Splits at commas that no backslash precedes.
fn split(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ',' => parts.push(std::mem::take(&mut part)),
            '\\' => {
                part.push(c);
                part.extend(chars.next());
            }
            _ => part.push(c),
        }
    }
    parts.push(part);
    parts
}

fn unescape(text: &str) -> Result<String, Status> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e @ ('\\' | ',' | '=')) => out.push(e),
                _ => return Err(invalid(text)),
            },
            ',' | '=' => return Err(invalid(text)),
            _ => out.push(c),
        }
    }
    Ok(out)
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

impl FieldSelector {
    /// Parses the query parameter `fieldSelector`.
    ///
    /// # Errors
    /// 400 when a term is not `FIELD=VALUE`, `FIELD==VALUE` or `FIELD!=VALUE`.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split(text) {
            if part.is_empty() {
                continue;
            }
            let at = part.find('=').ok_or_else(|| invalid(&part))?;
            let (label, negated) = match part[..at].strip_suffix('!') {
                Some(label) => (label, true),
                None => (&part[..at], false),
            };
            let value = &part[at + 1..];
            let value = if negated { value } else { value.strip_prefix('=').unwrap_or(value) };
            if label.is_empty() {
                return Err(invalid(&part));
            }
            terms.push(FieldTerm {
                label: label.to_owned(),
                path: label.to_owned(),
                absent: "",
                negated,
                value: unescape(value)?,
            });
        }
        Ok(Self { terms })
    }

    /// One term `path=value`.
    #[must_use]
    pub fn equals(label: &str, value: &str) -> Self {
        Self {
            terms: vec![FieldTerm {
                label: label.to_owned(),
                path: label.to_owned(),
                absent: "",
                negated: false,
                value: value.to_owned(),
            }],
        }
    }

    /// Checks that a kind knows the fields, and finds where they stand in its stored objects.
    ///
    /// # Errors
    /// 400 with upstream's text when the kind has no such field.
    pub fn for_kind(mut self, kind: &Kind) -> Result<Self, Status> {
        for term in &mut self.terms {
            if term.label == "metadata.name"
                || (term.label == "metadata.namespace" && kind.namespaced)
            {
                continue;
            }
            let field: Option<&SelectableField> =
                kind.fields.iter().find(|f| f.label == term.label);
            let Some(field) = field else {
                return Err(Status::bad_request(if kind.fields.is_empty() {
                    format!(
                        "{:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        term.label
                    )
                } else {
                    format!("field label not supported: {}", term.label)
                }));
            };
            field.path.clone_into(&mut term.path);
            term.absent = field.absent;
        }
        Ok(self)
    }

    /// Whether it matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The conditions.
    #[must_use]
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// The one value that a field must have, when the selector says so.
    #[must_use]
    pub fn exact(&self, label: &str) -> Option<&str> {
        self.terms.iter().find(|t| !t.negated && t.label == label).map(|t| t.value.as_str())
    }

    /// Whether a stored object matches.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|t| {
            let mut at = Some(object);
            for step in t.path.split('.') {
                at = at.and_then(|v| v.get(step));
            }
            let same = match at {
                Some(Value::String(s)) if s.is_empty() => t.absent == t.value,
                Some(Value::String(s)) => *s == t.value,
                Some(Value::Bool(b)) => t.value == if *b { "true" } else { "false" },
                Some(Value::Number(n)) => n.to_string() == t.value,
                _ => t.absent == t.value,
            };
            same != t.negated
        })
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, t) in self.terms.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let op = if t.negated { "!=" } else { "=" };
            write!(f, "{comma}{}{op}{}", t.label, escape(&t.value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use serde_json::json;

    fn pods(text: &str) -> FieldSelector {
        FieldSelector::parse(text).unwrap().for_kind(&kinds::POD).unwrap()
    }

    #[test]
    fn kubectls_own() {
        let pod = json!({
            "metadata": {"name": "web-1", "namespace": "shop"},
            "spec": {"nodeName": "n1", "restartPolicy": "Always"},
            "status": {"phase": "Running"},
        });
        for yes in [
            "",
            "metadata.name=web-1",
            "spec.nodeName==n1,status.phase!=Succeeded,status.phase!=Failed",
            "spec.hostNetwork=false",
            "status.podIP=",
        ] {
            assert!(pods(yes).matches(&pod), "{yes}");
        }
        for no in ["metadata.name=web", "status.phase!=Running", "metadata.namespace=x"] {
            assert!(!pods(no).matches(&pod), "{no}");
        }
    }

    #[test]
    fn events_by_their_object() {
        let event = json!({"involvedObject": {"name": "web-1", "kind": "Pod", "uid": "u"}});
        let text = "involvedObject.name=web-1,involvedObject.uid=u,involvedObject.namespace!=x";
        let core = FieldSelector::parse(text).unwrap().for_kind(&kinds::EVENT).unwrap();
        assert!(core.matches(&event));
        let new = FieldSelector::parse("regarding.name=web-1").unwrap();
        assert!(new.for_kind(&kinds::EVENTS_EVENT).unwrap().matches(&event));
    }

    #[test]
    fn refusals() {
        let unknown = FieldSelector::parse("spec.foo=1").unwrap();
        assert_eq!(
            unknown.clone().for_kind(&kinds::POD).unwrap_err().message,
            "field label not supported: spec.foo"
        );
        assert_eq!(
            unknown.for_kind(&kinds::CONFIG_MAP).unwrap_err().message,
            "\"spec.foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
        assert_eq!(FieldSelector::parse("nonsense").unwrap_err().code, 400);
    }

    #[test]
    fn back_to_text() {
        let text = r"metadata.name=a\,b,status.phase!=x";
        let selector = FieldSelector::parse(text).unwrap();
        assert_eq!(selector.to_string(), text);
        assert_eq!(selector.exact("metadata.name"), Some("a,b"));
    }
}
