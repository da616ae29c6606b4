//! What the permissions of several roles allow together: unions of ranges of keys.

use bytes::Bytes;
use dhow_kv::Span;
use dhow_kv::admin::{Access, Permission};
use std::collections::BTreeMap;

/// Whether a permission can be on these keys: some keys, and none of them empty.
pub(super) fn is_valid(span: &Span) -> bool {
    match span {
        Span::Key(key) | Span::From(key) => !key.is_empty(),
        Span::Range(from, to) => !from.is_empty() && from < to,
    }
}

/// The keys that a user may read and may write.
#[derive(Debug, Clone, Default)]
pub(super) struct Grants {
    read: Union,
    write: Union,
}

impl Grants {
    /// What these roles allow.
    pub(super) fn of(all: &BTreeMap<String, Vec<Permission>>, roles: &[String]) -> Self {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in roles.iter().filter_map(|role| all.get(role)).flatten() {
            if permission.access != Access::Write {
                read.push(Interval::of(&permission.span));
            }
            if permission.access != Access::Read {
                write.push(Interval::of(&permission.span));
            }
        }
        Self { read: Union::of(read), write: Union::of(write) }
    }

    pub(super) fn allow(&self, span: &Span, write: bool) -> bool {
        let union = if write { &self.write } else { &self.read };
        union.covers(span)
    }
}

/// From a key (inclusive) to another (exclusive), or without end.
#[derive(Debug, Clone)]
struct Interval {
    from: Bytes,
    to: Option<Bytes>,
}

impl Interval {
    fn of(span: &Span) -> Self {
        match span {
            Span::Key(key) => {
                // The smallest key after `key` is `key` and a zero byte.
                let mut to = Vec::with_capacity(key.len() + 1);
                to.extend_from_slice(key);
                to.push(0);
                Self { from: key.clone(), to: Some(to.into()) }
            }
            Span::Range(from, to) => Self { from: from.clone(), to: Some(to.clone()) },
            Span::From(from) => Self { from: from.clone(), to: None },
        }
    }
}

/// Intervals in order that neither overlap nor touch.
#[derive(Debug, Clone, Default)]
struct Union(Vec<Interval>);

impl Union {
    fn of(mut parts: Vec<Interval>) -> Self {
        parts.sort_by(|a, b| a.from.cmp(&b.from));
        let mut joined: Vec<Interval> = Vec::with_capacity(parts.len());
        for part in parts {
            match joined.last_mut() {
                Some(Interval { to: None, .. }) => break,
                Some(Interval { to: Some(to), .. }) if part.from <= *to => match part.to {
                    Some(end) if end <= *to => {}
                    Some(end) => *to = end,
                    None => joined.last_mut().into_iter().for_each(|last| last.to = None),
                },
                _ => joined.push(part),
            }
        }
        Self(joined)
    }

    /// Whether one interval holds the whole span.
    fn covers(&self, span: &Span) -> bool {
        // No key is empty, so nothing lies before the key of one zero byte.
        let normal = |from: &Bytes| match from.is_empty() {
            true => Bytes::from_static(&[0]),
            false => from.clone(),
        };
        let (from, to) = match span {
            Span::Key(key) => return self.around(key).is_some(),
            Span::Range(from, to) => (normal(from), Some(to)),
            Span::From(from) => (normal(from), None),
        };
        self.around(&from).is_some_and(|interval| match (&interval.to, to) {
            // A span that ends before it begins has no keys; etcd asks for both ends all the same.
            (_, Some(to)) if *to <= interval.from => false,
            (None, _) => true,
            (Some(_), None) => false,
            (Some(end), Some(to)) => to <= end,
        })
    }

    /// The interval that holds the key.
    fn around(&self, key: &Bytes) -> Option<&Interval> {
        let after = self.0.partition_point(|interval| interval.from <= *key);
        let interval = self.0.get(after.checked_sub(1)?)?;
        interval.to.as_ref().is_none_or(|to| key < to).then_some(interval)
    }
}
