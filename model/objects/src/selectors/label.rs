//! Label selectors: `a=b,c!=d,e in (x,y),f notin (z),g,!h,i>5`.

use crate::names;
use crate::status::Status;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt;

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `key=value` or `key==value`.
    Equals,
    /// `key!=value`; also true when the key is missing.
    NotEquals,
    /// `key in (a,b)`.
    In,
    /// `key notin (a,b)`; also true when the key is missing.
    NotIn,
    /// `key`.
    Exists,
    /// `!key`.
    DoesNotExist,
    /// `key>5`.
    GreaterThan,
    /// `key<5`.
    LessThan,
}

/// One condition of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How to compare.
    pub operator: Operator,
    /// With what; empty for `Exists` and `DoesNotExist`.
    pub values: BTreeSet<String>,
}

/// A label selector, parsed. All requirements must hold; the default matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Requirement {
    fn new(key: &str, operator: Operator, values: BTreeSet<String>) -> Result<Self, Status> {
        let wrong = names::qualified(key);
        if !wrong.is_empty() {
            let wrong = wrong.join("; ");
            return Err(parse_error(&format!("key: Invalid value: {key:?}: {wrong}")));
        }
        let numeric = matches!(operator, Operator::GreaterThan | Operator::LessThan);
        for (i, value) in values.iter().enumerate() {
            if numeric && value.parse::<i64>().is_err() {
                return Err(parse_error(&format!(
                    "values[{i}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                )));
            }
            let wrong = names::label_value(value);
            if !numeric && !wrong.is_empty() {
                let wrong = wrong.join("; ");
                return Err(parse_error(&format!(
                    "values[{i}][{key}]: Invalid value: {value:?}: {wrong}"
                )));
            }
        }
        Ok(Self { key: key.to_owned(), operator, values })
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = || self.values.first().and_then(|v| number(v));
        match (self.operator, value) {
            (Operator::Exists, v) => v.is_some(),
            (Operator::DoesNotExist, v) => v.is_none(),
            (Operator::Equals | Operator::In, Some(v)) => self.values.contains(v),
            (Operator::NotEquals | Operator::NotIn, Some(v)) => !self.values.contains(v),
            (Operator::NotEquals | Operator::NotIn, None) => true,
            (Operator::GreaterThan, Some(v)) => {
                matches!((number(v), bound()), (Some(a), Some(b)) if a > b)
            }
            (Operator::LessThan, Some(v)) => {
                matches!((number(v), bound()), (Some(a), Some(b)) if a < b)
            }
            (_, None) => false,
        }
    }
}

fn parse_error(what: &str) -> Status {
    Status::bad_request(format!("unable to parse requirement: {what}"))
}

impl LabelSelector {
    /// Matches no object.
    #[must_use]
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Parses the query parameter `labelSelector`.
    ///
    /// # Errors
    /// 400 that names the part that is not understood.
    pub fn parse(text: &str) -> Result<Self, Status> {
        Parser { tokens: lex(text), at: 0 }.selector()
    }

    /// From `matchLabels` and `matchExpressions`. Null (a missing selector) matches nothing, an
    /// empty selector everything, as `meta/v1.LabelSelectorAsSelector` says.
    ///
    /// # Errors
    /// 400 when an operator or a key is not valid.
    pub fn from_json(selector: &Value) -> Result<Self, Status> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut all = Self::default();
        if let Some(labels) = selector.get("matchLabels") {
            all = Self::from_map(labels)?;
        }
        let expressions = selector.get("matchExpressions").and_then(Value::as_array);
        for e in expressions.into_iter().flatten() {
            let key = e.get("key").and_then(Value::as_str).unwrap_or_default();
            let operator = match e.get("operator").and_then(Value::as_str).unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(Status::bad_request(format!(
                        "{other:?} is not a valid label selector operator"
                    )));
                }
            };
            let values = e.get("values").and_then(Value::as_array);
            let values: BTreeSet<String> = values
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            all.requirements.push(Requirement::new(key, operator, values)?);
        }
        Ok(all)
    }

    /// From a map of labels, as `spec.selector` of services is; empty matches everything.
    ///
    /// # Errors
    /// 400 when a key or value is not valid.
    fn from_map(labels: &Value) -> Result<Self, Status> {
        let mut requirements = Vec::new();
        for (key, value) in labels.as_object().into_iter().flatten() {
            let values = [value.as_str().unwrap_or_default().to_owned()].into();
            requirements.push(Requirement::new(key, Operator::Equals, values)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// Whether it matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// The conditions.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether a map of labels matches; null stands for no labels.
    #[must_use]
    pub fn matches(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    /// Whether a map of labels matches.
    #[must_use]
    pub fn matches_map(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    /// Whether labels match that are looked up one by one.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let key = &r.key;
            let first = r.values.first().map_or("", String::as_str);
            let all = || r.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            match r.operator {
                Operator::Equals => write!(f, "{key}={first}")?,
                Operator::NotEquals => write!(f, "{key}!={first}")?,
                Operator::In => write!(f, "{key} in ({})", all())?,
                Operator::NotIn => write!(f, "{key} notin ({})", all())?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan => write!(f, "{key}>{first}")?,
                Operator::LessThan => write!(f, "{key}<{first}")?,
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
}

fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    'next: while let Some(c) = rest.chars().next() {
        if c.is_ascii_whitespace() {
            rest = &rest[1..];
            continue;
        }
        for symbol in ["==", "!=", "=", "!", "(", ")", ",", ">", "<"] {
            if let Some(after) = rest.strip_prefix(symbol) {
                tokens.push(Token::Symbol(symbol));
                rest = after;
                continue 'next;
            }
        }
        let special = |c: char| c.is_ascii_whitespace() || "=!(),<>".contains(c);
        let end = rest.find(special).unwrap_or(rest.len());
        tokens.push(Token::Word(rest[..end].to_owned()));
        rest = &rest[end..];
    }
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Symbol(s)) if *s == symbol);
        self.at += usize::from(found);
        found
    }

    fn found(&self) -> String {
        match self.peek() {
            Some(Token::Word(w)) => w.clone(),
            Some(Token::Symbol(s)) => (*s).to_owned(),
            None => String::new(),
        }
    }

    fn expected(&self, what: &str) -> Status {
        parse_error(&format!("found '{}', expected: {what}", self.found()))
    }

    fn selector(mut self) -> Result<LabelSelector, Status> {
        let mut requirements = Vec::new();
        while self.peek().is_some() {
            requirements.push(self.requirement()?);
            if self.peek().is_none() {
                break;
            }
            if !self.symbol(",") {
                return Err(self.expected("',' or 'end of string'"));
            }
            if self.peek().is_none() {
                return Err(self.expected("identifier after ','"));
            }
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    fn requirement(&mut self) -> Result<Requirement, Status> {
        let absent = self.symbol("!");
        let Some(Token::Word(key)) = self.peek().cloned() else {
            return Err(self.expected("!, identifier, or 'end of string'"));
        };
        self.at += 1;
        if absent {
            return Requirement::new(&key, Operator::DoesNotExist, BTreeSet::new());
        }
        let single = [
            ("==", Operator::Equals),
            ("!=", Operator::NotEquals),
            ("=", Operator::Equals),
            (">", Operator::GreaterThan),
            ("<", Operator::LessThan),
        ];
        for (symbol, operator) in single {
            if self.symbol(symbol) {
                let value = match self.peek() {
                    Some(Token::Word(w)) => w.clone(),
                    Some(Token::Symbol(",")) | None => String::new(),
                    Some(Token::Symbol(_)) => return Err(self.expected("identifier")),
                };
                self.at += usize::from(matches!(self.peek(), Some(Token::Word(_))));
                return Requirement::new(&key, operator, [value].into());
            }
        }
        match self.peek().cloned() {
            None | Some(Token::Symbol(",")) => {
                Requirement::new(&key, Operator::Exists, BTreeSet::new())
            }
            Some(Token::Word(word)) if word == "in" || word == "notin" => {
                self.at += 1;
                let operator = if word == "in" { Operator::In } else { Operator::NotIn };
                let values = self.values()?;
                Requirement::new(&key, operator, values)
            }
            _ => Err(self.expected("in, notin, =, ==, !=, gt, lt")),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, Status> {
        if !self.symbol("(") {
            return Err(self.expected("'('"));
        }
        let mut values = BTreeSet::new();
        loop {
            match self.peek().cloned() {
                Some(Token::Word(word)) => {
                    self.at += 1;
                    values.insert(word);
                }
                // An empty place between commas stands for the empty value.
                Some(Token::Symbol("," | ")")) => {
                    values.insert(String::new());
                }
                _ => return Err(self.expected("',', ')' or identifier")),
            }
            if self.symbol(")") {
                return Ok(values);
            }
            if !self.symbol(",") {
                return Err(self.expected("',' or ')'"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_selectors() {
        let labels = json!({"app": "web", "tier": "front", "n": "7"});
        for yes in [
            "",
            "app=web",
            "app==web,tier!=back",
            "app in (web, api)",
            "tier notin (back),zone notin (a)",
            "app,!zone",
            "zone!=x",
            "n>5,n<8",
        ] {
            assert!(LabelSelector::parse(yes).unwrap().matches(&labels), "{yes}");
        }
        for no in ["app=api", "app!=web", "!app", "zone", "app notin (web)", "n>7", "zone in (a)"] {
            assert!(!LabelSelector::parse(no).unwrap().matches(&labels), "{no}");
        }
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        for bad in ["a in b", "a b", ",", "a,", "a in (b", "a=b=c", "a b=c", "a=-x", "x/y/z=1"] {
            let refusal = LabelSelector::parse(bad).unwrap_err();
            assert_eq!(refusal.code, 400, "{bad}");
            assert!(refusal.message.starts_with("unable to parse requirement: "), "{bad}");
        }
    }

    #[test]
    fn back_to_text() {
        for text in ["a=b", "a!=b", "a in (x,y),b notin (z)", "a,!b", "a>3"] {
            assert_eq!(LabelSelector::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn json_selectors() {
        let selector = LabelSelector::from_json(&json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["front", "edge"]}],
        }))
        .unwrap();
        assert!(selector.matches(&json!({"app": "web", "tier": "edge"})));
        assert!(!selector.matches(&json!({"app": "web"})));
        assert!(LabelSelector::from_json(&json!({})).unwrap().matches(&Value::Null));
        assert!(!LabelSelector::from_json(&Value::Null).unwrap().matches(&json!({"a": "b"})));
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
        assert_eq!(
            LabelSelector::from_json(&bad).unwrap_err().message,
            "\"Near\" is not a valid label selector operator"
        );
    }
}
