//! Reads, comparisons and the application of transactions.

use crate::index::{Entry, Version};
use crate::{History, Mvcc};
use bytes::Bytes;
use dhow_kv::{
    Compare, Error, KeyValue, KeyValueRef, Op, OpResult, Order, Range, RangeResult, Select, SortBy,
    Span, Target, Txn, TxnResult,
};

/// A revision that is newer than all.
pub(crate) const NEWEST: i64 = i64::MAX;

/// Which branches a transaction and those within it take: decided on the state before any write.
pub(crate) struct Path {
    succeeded: bool,
    inner: Vec<Path>,
}

impl Mvcc {
    /// Answers a read as of `now`, the newest revision that the reader may know (at most the
    /// applied one). The read's own revision may be older.
    ///
    /// # Errors
    /// [`Error::FutureRevision`], [`Error::Compacted`].
    pub fn range(&self, range: &Range, now: i64) -> Result<RangeResult, Error> {
        let at = self.check_revision(range.revision, now)?;
        Ok(self.range_at(range, at, now))
    }

    /// The revision that a read of `revision` (0 for the newest) looks at.
    ///
    /// # Errors
    /// [`Error::FutureRevision`], [`Error::Compacted`].
    pub fn check_revision(&self, revision: i64, now: i64) -> Result<i64, Error> {
        if revision > now {
            return Err(Error::FutureRevision);
        }
        if revision <= 0 {
            return Ok(now);
        }
        if revision < self.compacted {
            return Err(Error::Compacted);
        }
        Ok(revision)
    }

    /// The same in the order of the keys and without bounds on revisions: the key-values go to `each`
    /// as they lie here, and the result has none.
    ///
    /// # Errors
    /// As [`Mvcc::range`].
    pub fn range_each(
        &self,
        range: &Range,
        now: i64,
        each: &mut dyn FnMut(KeyValueRef<'_>),
    ) -> Result<RangeResult, Error> {
        let at = self.check_revision(range.revision, now)?;
        Ok(self.walk(range, at, now, |key, version| each(version.by_ref(key, range.keys_only))))
    }

    fn range_at(&self, range: &Range, at: i64, now: i64) -> RangeResult {
        if range.count_only {
            let count = self.count(&range.span, at, now) as i64;
            return RangeResult { revision: now, count, ..RangeResult::default() };
        }
        if !range.select.is_default() {
            return self.selected(range, at, now);
        }
        let mut kvs = Vec::new();
        let found = self.walk(range, at, now, |key, version| {
            kvs.push(version.to_kv(key, range.keys_only));
        });
        RangeResult { kvs, ..found }
    }

    /// Hands the live versions of the span to `each`, up to the limit.
    fn walk(
        &self,
        range: &Range,
        at: i64,
        now: i64,
        mut each: impl FnMut(&Bytes, &Version),
    ) -> RangeResult {
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let (mut passed, mut more) = (0, false);
        for entry in self.index.span(&range.span) {
            let Some(version) = entry.live_at(at) else { continue };
            if passed == limit {
                more = true;
                break;
            }
            each(&entry.key, version);
            passed += 1;
        }
        let count = if more { self.count(&range.span, at, now) } else { passed };
        RangeResult { revision: now, kvs: Vec::new(), more, count: count as i64 }
    }

    /// A read with bounds on revisions or another order than the keys': it looks at all keys of the
    /// span. Equals stay in the order of their keys.
    fn selected(&self, range: &Range, at: i64, now: i64) -> RangeResult {
        let Select {
            sort,
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
        } = range.select;
        let within = |revision: i64, min: i64, max: i64| {
            (min == 0 || revision >= min) && (max == 0 || revision <= max)
        };
        let mut count = 0;
        let mut found: Vec<(&Bytes, &Version)> = Vec::new();
        for entry in self.index.span(&range.span) {
            let Some(version) = entry.live_at(at) else { continue };
            count += 1;
            if within(version.mod_revision, min_mod_revision, max_mod_revision)
                && within(version.create_revision, min_create_revision, max_create_revision)
            {
                found.push((&entry.key, version));
            }
        }
        if let Some((by, descending)) = sort {
            found.sort_by(|a, b| {
                let ordering = match by {
                    SortBy::Key => a.0.cmp(b.0),
                    SortBy::Version => a.1.version.cmp(&b.1.version),
                    SortBy::CreateRevision => a.1.create_revision.cmp(&b.1.create_revision),
                    SortBy::ModRevision => a.1.mod_revision.cmp(&b.1.mod_revision),
                    SortBy::Value => a.1.value.cmp(&b.1.value),
                };
                if descending { ordering.reverse() } else { ordering }
            });
        }
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        RangeResult {
            revision: now,
            more: found.len() > limit,
            kvs: found.iter().take(limit).map(|(key, v)| v.to_kv(key, range.keys_only)).collect(),
            count,
        }
    }

    /// At most `most` live key-values of the span at revision `at`, of keys after `after`; and
    /// whether there may be more. For reads too long for one lock.
    pub fn scan(
        &self,
        span: &Span,
        after: Option<&Bytes>,
        at: i64,
        keys_only: bool,
        most: usize,
    ) -> (Vec<KeyValue>, bool) {
        let rest;
        let span = match (after, span) {
            (None, span) => span,
            // The smallest key after `after` is `after` and a zero byte.
            (Some(key), Span::Range(_, to)) => {
                rest = Span::Range(successor(key), to.clone());
                &rest
            }
            (Some(key), Span::From(_)) => {
                rest = Span::From(successor(key));
                &rest
            }
            (Some(_), Span::Key(_)) => return (Vec::new(), false),
        };
        let mut found = Vec::new();
        // Dead entries count as work too, so that one call stays short.
        let mut visited = 0;
        for entry in self.index.span(span) {
            visited += 1;
            if let Some(version) = entry.live_at(at) {
                if found.len() >= most || visited > 8 * most && !found.is_empty() {
                    return (found, true);
                }
                found.push(version.to_kv(&entry.key, keys_only));
            }
        }
        (found, false)
    }

    /// How many keys of the span are alive at revision `at`.
    pub fn count_at(&self, span: &Span, at: i64) -> usize {
        self.count(span, at, self.revision)
    }

    /// The same for a reader to whom `now` is the newest revision: beyond ours for a transaction
    /// that has written, behind it for one that must not see what is not durable yet.
    fn count(&self, span: &Span, at: i64, now: i64) -> usize {
        if at >= now.max(self.revision) {
            return self.index.count(span);
        }
        if now > self.revision {
            // The index holds what the transaction wrote; the history does not tell it yet.
            return self.index.span(span).filter(|e| e.live_at(at).is_some()).count();
        }
        // Near the newest revision it is cheaper to undo the later changes than to walk.
        let newest = self.index.count(span);
        match self.history.keys_after(at, newest.max(256)) {
            Some(mut changed) => {
                changed.retain(|key| span.contains(key));
                changed.sort_unstable();
                changed.dedup();
                let mut count = newest as i64;
                for entry in changed.iter().filter_map(|key| self.index.get(key)) {
                    count += i64::from(entry.live_at(at).is_some());
                    count -= i64::from(entry.newest().is_live());
                }
                usize::try_from(count).unwrap_or(0)
            }
            None => self.index.span(span).filter(|e| e.live_at(at).is_some()).count(),
        }
    }

    /// Runs a transaction that cannot write, as of revision `now`.
    ///
    /// # Errors
    /// [`Error::FutureRevision`], [`Error::Compacted`].
    pub fn read_txn(&self, txn: &Txn, now: i64) -> Result<TxnResult, Error> {
        let path = self.choose(txn, now);
        self.check_path(txn, &path, now)?;
        self.read_path(txn, &path, now)
    }

    fn read_path(&self, txn: &Txn, path: &Path, now: i64) -> Result<TxnResult, Error> {
        let (ops, mut inner) = branch(txn, path);
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(match op {
                Op::Range(range) => OpResult::Range(self.range(range, now)?),
                Op::Txn(txn) => {
                    let Some(path) = inner.next() else { continue };
                    OpResult::Txn(self.read_path(txn, path, now)?)
                }
                Op::Put { .. } => OpResult::Put { prev_kv: None },
                Op::Delete { .. } => OpResult::Delete { deleted: 0, prev_kvs: Vec::new() },
            });
        }
        Ok(TxnResult { revision: now, succeeded: path.succeeded, results })
    }

    /// Decides all branches on the state as of `now`.
    pub(crate) fn choose(&self, txn: &Txn, now: i64) -> Path {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare, now));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let inner = ops
            .iter()
            .filter_map(|op| if let Op::Txn(t) = op { Some(self.choose(t, now)) } else { None })
            .collect();
        Path { succeeded, inner }
    }

    fn holds(&self, compare: &Compare, now: i64) -> bool {
        let mut live =
            self.index.span(&compare.span).filter_map(|entry| entry.live_at(now)).peekable();
        if live.peek().is_none() {
            // An absent key, and likewise a span without any, compares as zeros.
            return compare_version(compare, None);
        }
        live.all(|version| compare_version(compare, Some(version)))
    }

    /// Checks what can still fail on the chosen path, before anything is written.
    pub(crate) fn check_path(&self, txn: &Txn, path: &Path, now: i64) -> Result<(), Error> {
        let (ops, mut inner) = branch(txn, path);
        for op in ops {
            match op {
                Op::Range(range) => {
                    // Only in a transaction does etcd take a negative revision for a compacted
                    // one; it holds -1 for the last compaction until there has been one.
                    let last = if self.compacted > 0 { 0 } else { -1 };
                    if range.revision < last {
                        return Err(Error::Compacted);
                    }
                    self.check_revision(range.revision, now)?;
                }
                Op::Put { key, lease, ignore_value, ignore_lease, .. } => {
                    if *lease != 0 && !self.leases.contains_key(lease) {
                        return Err(Error::LeaseNotFound);
                    }
                    if (*ignore_value || *ignore_lease)
                        && self.index.get(key).and_then(|e| e.live_at(now)).is_none()
                    {
                        return Err(Error::KeyNotFound);
                    }
                }
                Op::Delete { .. } => {}
                Op::Txn(txn) => {
                    if let Some(path) = inner.next() {
                        self.check_path(txn, path, now)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Runs the chosen path. Every check has passed, so this cannot fail half way.
    pub(crate) fn run_path(&mut self, txn: &Txn, path: &Path, writes: &mut Writes) -> TxnResult {
        let (ops, mut inner) = branch(txn, path);
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            let result = match op {
                Op::Range(range) => {
                    let now = writes.revision();
                    let at = if range.revision > 0 { range.revision } else { NEWEST };
                    OpResult::Range(self.range_at(range, at, now))
                }
                Op::Put { .. } => OpResult::Put { prev_kv: self.put(op, writes) },
                Op::Delete { span, prev_kv } => {
                    let (deleted, prev_kvs) = self.delete(span, *prev_kv, writes);
                    OpResult::Delete { deleted, prev_kvs }
                }
                Op::Txn(txn) => match inner.next() {
                    Some(path) => OpResult::Txn(self.run_path(txn, path, writes)),
                    None => continue,
                },
            };
            results.push(result);
        }
        TxnResult { revision: writes.revision(), succeeded: path.succeeded, results }
    }

    fn put(&mut self, op: &Op, writes: &mut Writes) -> Option<KeyValue> {
        let Op::Put { key, value, lease, prev_kv, ignore_value, ignore_lease } = op else {
            return None;
        };
        self.done.puts += 1;
        let entry = self.index.get(key);
        let before = entry.map(Entry::newest).filter(|v| v.is_live());
        let previous =
            before.filter(|_| *prev_kv).and_then(|v| entry.map(|e| v.to_kv(&e.key, false)));
        let (create_revision, version, old_lease) =
            before.map_or((writes.next, 0, 0), |v| (v.create_revision, v.version, v.lease));
        let lease = if *ignore_lease { old_lease } else { *lease };
        let value = match before {
            Some(Version { value: Some(kept), .. }) if *ignore_value => kept.clone(),
            // The request's bytes may be a small part of a large buffer, so the store keeps a copy.
            _ => Bytes::copy_from_slice(value),
        };
        let version = Version {
            mod_revision: writes.next,
            create_revision,
            version: version + 1,
            lease,
            sub: writes.sub(),
            value: Some(value),
        };
        self.bytes += version.cost(key);
        let key = self.index.write(key, version);
        self.move_lease(&key, old_lease, lease);
        writes.keys.push(key);
        previous
    }

    /// Deletes a span: the number of keys that went and, when asked for, what they were.
    pub(crate) fn delete(
        &mut self,
        span: &Span,
        want_previous: bool,
        writes: &mut Writes,
    ) -> (i64, Vec<KeyValue>) {
        self.done.deletes += 1;
        let doomed: Vec<(Bytes, i64)> = self
            .index
            .span(span)
            .filter(|e| e.newest().is_live())
            .map(|e| (e.key.clone(), e.newest().lease))
            .collect();
        let mut previous = Vec::new();
        for (key, lease) in &doomed {
            if want_previous && let Some(entry) = self.index.get(key) {
                previous.push(entry.newest().to_kv(&entry.key, false));
            }
            let tombstone = Version {
                mod_revision: writes.next,
                create_revision: 0,
                version: 0,
                lease: 0,
                sub: writes.sub(),
                value: None,
            };
            self.index.write(key, tombstone);
            self.move_lease(key, *lease, 0);
            writes.keys.push(key.clone());
        }
        (doomed.len() as i64, previous)
    }

    pub(crate) fn move_lease(&mut self, key: &Bytes, from: i64, to: i64) {
        if from == to {
            return;
        }
        if from != 0
            && let Some(lease) = self.leases.get_mut(&from)
        {
            lease.keys.remove(key);
        }
        if to != 0
            && let Some(lease) = self.leases.get_mut(&to)
        {
            lease.keys.insert(key.clone());
        }
    }
}

/// The writes of one command: they share a revision.
pub(crate) struct Writes {
    /// The revision that the writes have.
    next: i64,
    /// The written keys, in order.
    keys: Vec<Bytes>,
}

impl Writes {
    pub(crate) fn after(revision: i64) -> Self {
        Self { next: revision + 1, keys: Vec::new() }
    }

    fn sub(&self) -> u32 {
        self.keys.len() as u32
    }

    /// The revision as the command sees it so far.
    fn revision(&self) -> i64 {
        if self.keys.is_empty() { self.next - 1 } else { self.next }
    }

    /// Records the writes and returns the revision after the command.
    pub(crate) fn finish(self, history: &mut History) -> i64 {
        let revision = self.revision();
        if !self.keys.is_empty() {
            history.push(self.keys);
        }
        revision
    }
}

/// The steps that run, and the paths of the transactions among them.
fn branch<'a>(txn: &'a Txn, path: &'a Path) -> (&'a [Op], std::slice::Iter<'a, Path>) {
    (if path.succeeded { &txn.success } else { &txn.failure }, path.inner.iter())
}

fn successor(key: &Bytes) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

fn compare_version(compare: &Compare, version: Option<&Version>) -> bool {
    let number = |of: fn(&Version) -> i64| version.map_or(0, of);
    let ordering = match &compare.target {
        Target::Version(want) => number(|v| v.version).cmp(want),
        Target::CreateRevision(want) => number(|v| v.create_revision).cmp(want),
        Target::ModRevision(want) => number(|v| v.mod_revision).cmp(want),
        Target::Lease(want) => number(|v| v.lease).cmp(want),
        Target::Value(want) => match version.and_then(|v| v.value.as_ref()) {
            Some(value) => value.cmp(want),
            None => return false,
        },
    };
    match compare.order {
        Order::Equal => ordering.is_eq(),
        Order::NotEqual => ordering.is_ne(),
        Order::Greater => ordering.is_gt(),
        Order::Less => ordering.is_lt(),
    }
}
