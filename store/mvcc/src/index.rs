//! The ordered, counted index: key to versions.
//!
//! Keys live in leaves of at most [`LEAF`] entries, the leaves in one vector. Each leaf knows how
//! many of its keys are alive now, so that counting a span adds up leaves instead of walking keys,
//! and at the sizes that a control plane has (up to some millions of keys) one flat level of leaves
//! beats a deeper tree in memory and in cache misses.

use bytes::Bytes;
use dhow_kv::{KeyValue, KeyValueRef, Span};
use std::cmp::Ordering;

/// The most entries in one leaf.
const LEAF: usize = 128;

/// One write of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    /// The revision of the write.
    pub mod_revision: i64,
    /// The revision that created the generation; 0 for a tombstone.
    pub create_revision: i64,
    /// The count of writes in the generation; 0 for a tombstone.
    pub version: i64,
    /// The lease, 0 for none.
    pub lease: i64,
    /// The place of the write among its revision's.
    pub sub: u32,
    /// The value; `None` for a tombstone.
    pub value: Option<Bytes>,
}

impl Version {
    /// What the version takes of the quota, in bytes.
    pub(crate) fn cost(&self, key: &[u8]) -> u64 {
        self.value.as_ref().map_or(0, |v| crate::KEY_COST + (key.len() + v.len()) as u64)
    }

    pub(crate) fn is_live(&self) -> bool {
        self.value.is_some()
    }

    pub(crate) fn by_ref<'a>(&'a self, key: &'a [u8], keys_only: bool) -> KeyValueRef<'a> {
        KeyValueRef {
            key,
            value: self.value.as_deref().filter(|_| !keys_only).unwrap_or_default(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }

    pub(crate) fn to_kv(&self, key: &Bytes, keys_only: bool) -> KeyValue {
        KeyValue {
            key: key.clone(),
            value: match &self.value {
                Some(value) if !keys_only => value.clone(),
                _ => Bytes::new(),
            },
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// A key and its versions. Most keys have one, so the newest stands inline.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key: Bytes,
    newest: Version,
    /// Earlier versions, oldest first.
    #[allow(
        clippy::box_collection,
        reason = "one word inline: most keys have no earlier versions"
    )]
    older: Option<Box<Vec<Version>>>,
}

impl Entry {
    /// The newest version.
    pub(crate) fn newest(&self) -> &Version {
        &self.newest
    }

    /// All versions, oldest first.
    pub(crate) fn versions(&self) -> impl DoubleEndedIterator<Item = &Version> {
        self.older.as_deref().into_iter().flatten().chain(std::iter::once(&self.newest))
    }

    /// The version that holds at `revision`, tombstones included.
    pub(crate) fn at(&self, revision: i64) -> Option<&Version> {
        if self.newest.mod_revision <= revision {
            return Some(&self.newest);
        }
        let older = self.older.as_deref()?;
        let after = older.partition_point(|v| v.mod_revision <= revision);
        older[..after].last()
    }

    /// The live version that holds at `revision`.
    pub(crate) fn live_at(&self, revision: i64) -> Option<&Version> {
        self.at(revision).filter(|v| v.is_live())
    }

    /// The version written at exactly this place, and the one before it.
    pub(crate) fn exact(&self, revision: i64, sub: u32) -> Option<(&Version, Option<&Version>)> {
        let mut found = None;
        for version in self.versions().rev() {
            if found.is_some() {
                return Some((found?, Some(version)));
            }
            if (version.mod_revision, version.sub) == (revision, sub) {
                found = Some(version);
            } else if version.mod_revision < revision {
                return None;
            }
        }
        found.map(|version| (version, None))
    }

    fn push(&mut self, version: Version) {
        let earlier = std::mem::replace(&mut self.newest, version);
        let older = self.older.get_or_insert_default();
        if older.len() == older.capacity() {
            // Many keys have one or two earlier versions: a first capacity of four would be a waste.
            older.reserve_exact(older.len() / 2 + 1);
        }
        older.push(earlier);
    }

    /// Drops what compaction at `revision` makes unreachable and returns the quota set free and
    /// whether anything is left. A tombstone of exactly `revision` stays: a watch may start there.
    fn prune(&mut self, revision: i64) -> (u64, bool) {
        let mut freed = 0;
        if let Some(older) = &mut self.older {
            // What holds at the revision, and everything after it, can still be read or watched.
            let mut keep_from = older.partition_point(|v| v.mod_revision < revision);
            let at = older.get(keep_from).unwrap_or(&self.newest).mod_revision;
            if at > revision {
                keep_from = keep_from.saturating_sub(1);
                if older.get(keep_from).is_some_and(|v| !v.is_live() && v.mod_revision < revision) {
                    keep_from += 1;
                }
            }
            let key = &self.key;
            freed += older.drain(..keep_from).map(|v| v.cost(key)).sum::<u64>();
            if older.is_empty() {
                self.older = None;
            } else if older.capacity() > 4 * older.len() {
                older.shrink_to_fit();
            }
        }
        let gone =
            self.older.is_none() && !self.newest.is_live() && self.newest.mod_revision < revision;
        (freed, !gone)
    }
}

#[derive(Debug, Default)]
struct Leaf {
    entries: Vec<Entry>,
    /// Of each entry's key, the four bytes behind the prefix, as a number.
    heads: Vec<u32>,
    /// What all keys begin with, and perhaps more that they share.
    prefix: Bytes,
    live: usize,
}

impl Leaf {
    fn of(entries: Vec<Entry>) -> Self {
        let live = entries.iter().filter(|e| e.newest.is_live()).count();
        let mut leaf = Self { entries, heads: Vec::new(), prefix: Bytes::new(), live };
        leaf.align();
        leaf
    }

    /// Computes prefix and heads anew.
    fn align(&mut self) {
        let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else {
            return;
        };
        self.prefix = first.key.slice(..common(&first.key, &last.key));
        let skip = self.prefix.len();
        self.heads.clear();
        self.heads.reserve_exact(self.entries.capacity());
        self.heads.extend(self.entries.iter().map(|entry| head(&entry.key, skip)));
    }

    /// Where `key` is, or where it belongs.
    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let skip = self.prefix.len();
        match key.get(..skip).unwrap_or(key).cmp(&self.prefix) {
            Ordering::Less => return Err(0),
            Ordering::Greater => return Err(self.entries.len()),
            Ordering::Equal => {}
        }
        let head = head(key, skip);
        let from = self.heads.partition_point(|have| *have < head);
        let equal = self.heads[from..].partition_point(|have| *have == head);
        self.entries[from..from + equal]
            .binary_search_by(|entry| entry.key.as_ref().cmp(key))
            .map(|at| from + at)
            .map_err(|at| from + at)
    }

    fn insert(&mut self, slot: usize, entry: Entry) {
        self.live += usize::from(entry.newest.is_live());
        let outside = slot == 0 || slot == self.entries.len();
        let head = head(&entry.key, self.prefix.len());
        let shares = !outside || entry.key.starts_with(&self.prefix);
        self.entries.insert(slot, entry);
        if shares && !self.heads.is_empty() {
            self.heads.insert(slot, head);
        } else {
            self.align();
        }
    }

    fn remove(&mut self, slot: usize) {
        self.entries.remove(slot);
        self.heads.remove(slot);
    }
}

/// How many bytes two keys have in common at the beginning.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Some bytes of a key as a number, in the order of the keys.
fn head(key: &[u8], skip: usize) -> u32 {
    let rest = key.get(skip..).unwrap_or_default();
    match rest.first_chunk() {
        Some(bytes) => u32::from_be_bytes(*bytes),
        None => rest.iter().chain(&[0; 4]).take(4).fold(0, |n, byte| n << 8 | u32::from(*byte)),
    }
}

/// The same for the first key of a leaf, which has more leaves around it.
fn fence(key: &[u8], skip: usize) -> u128 {
    let rest = key.get(skip..).unwrap_or_default();
    match rest.first_chunk() {
        Some(bytes) => u128::from_be_bytes(*bytes),
        None => rest.iter().chain(&[0; 16]).take(16).fold(0, |n, byte| n << 8 | u128::from(*byte)),
    }
}

/// Where an entry is, or would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    leaf: usize,
    slot: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Index {
    leaves: Vec<Leaf>,
    /// Of each leaf's first key, the bytes behind the prefix, as a number.
    fences: Vec<u128>,
    /// What the first keys of all leaves begin with.
    prefix: Bytes,
    live: usize,
}

impl Index {
    /// How many keys are alive now.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// The leaf that `key` is in, if it is anywhere.
    fn leaf(&self, key: &[u8]) -> usize {
        let skip = self.prefix.len();
        match key.get(..skip).unwrap_or(key).cmp(&self.prefix) {
            Ordering::Less => return 0,
            Ordering::Greater => return self.leaves.len().saturating_sub(1),
            Ordering::Equal => {}
        }
        let fence = fence(key, skip);
        let from = self.fences.partition_point(|have| *have < fence);
        let equal = self.fences[from..].partition_point(|have| *have == fence);
        // No leaf is empty, so each has a first key.
        let after = from
            + self.leaves[from..from + equal]
                .partition_point(|leaf| leaf.entries[0].key.as_ref() <= key);
        after.saturating_sub(1)
    }

    /// Takes note that the first key of a leaf is another.
    fn moved(&mut self, at: usize) {
        let Some(first) = self.leaves.get(at).map(|leaf| &leaf.entries[0].key) else { return };
        if self.leaves.len() > 1 && first.starts_with(&self.prefix) {
            self.fences[at] = fence(first, self.prefix.len());
        } else {
            self.align();
        }
    }

    /// Takes note of a new leaf.
    fn added(&mut self, at: usize) {
        self.fences.insert(at, 0);
        self.moved(at);
    }

    /// Computes prefix and fences anew.
    fn align(&mut self) {
        let (Some(first), Some(last)) = (self.leaves.first(), self.leaves.last()) else {
            return;
        };
        let (first, last) = (&first.entries[0].key, &last.entries[0].key);
        self.prefix = first.slice(..common(first, last));
        let skip = self.prefix.len();
        self.fences.clear();
        self.fences.extend(self.leaves.iter().map(|leaf| fence(&leaf.entries[0].key, skip)));
    }

    /// Where `key` is (`true`), or where it belongs.
    fn find(&self, key: &[u8]) -> (Place, bool) {
        let leaf = self.leaf(key);
        match self.leaves.get(leaf).map(|leaf| leaf.search(key)) {
            None => (Place { leaf: 0, slot: 0 }, false),
            Some(Ok(slot)) => (Place { leaf, slot }, true),
            Some(Err(slot)) => (Place { leaf, slot }, false),
        }
    }

    /// The first place at or after `key`.
    fn lower(&self, key: &[u8]) -> Place {
        let (place, _) = self.find(key);
        self.settle(place)
    }

    /// Moves a place behind the end of its leaf to the start of the next.
    fn settle(&self, place: Place) -> Place {
        match self.leaves.get(place.leaf) {
            Some(leaf) if place.slot >= leaf.entries.len() => {
                Place { leaf: place.leaf + 1, slot: 0 }
            }
            _ => place,
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Entry> {
        let (place, found) = self.find(key);
        found.then(|| &self.leaves[place.leaf].entries[place.slot])
    }

    /// Adds a version as the key's newest. The key's bytes are copied if it is new. Returns the
    /// index's own copy of the key.
    pub(crate) fn write(&mut self, key: &[u8], version: Version) -> Bytes {
        let (place, found) = self.find(key);
        let live = version.is_live();
        if found {
            let leaf = &mut self.leaves[place.leaf];
            let entry = &mut leaf.entries[place.slot];
            let was = entry.newest.is_live();
            entry.push(version);
            if live && !was {
                leaf.live += 1;
                self.live += 1;
            } else if was && !live {
                leaf.live -= 1;
                self.live -= 1;
            }
            return entry.key.clone();
        }
        let key = Bytes::copy_from_slice(key);
        self.insert(place, Entry { key: key.clone(), newest: version, older: None });
        key
    }

    fn insert(&mut self, mut place: Place, entry: Entry) {
        self.live += usize::from(entry.newest.is_live());
        if self.leaves.is_empty() {
            self.leaves.push(Leaf::of(vec![entry]));
            self.added(0);
            return;
        }
        if self.leaves[place.leaf].entries.len() >= LEAF {
            let last = place.leaf + 1 == self.leaves.len();
            if last && place.slot == LEAF {
                // Keys that arrive in order leave full leaves behind.
                self.leaves.push(Leaf::of(vec![entry]));
                self.added(place.leaf + 1);
                return;
            }
            let cut = LEAF / 2;
            let leaf = &mut self.leaves[place.leaf];
            let right = Leaf::of(leaf.entries.split_off(cut));
            leaf.live -= right.live;
            leaf.align();
            self.leaves.insert(place.leaf + 1, right);
            self.added(place.leaf + 1);
            if place.slot > cut {
                place = Place { leaf: place.leaf + 1, slot: place.slot - cut };
            }
        }
        let leaf = &mut self.leaves[place.leaf];
        let length = leaf.entries.len();
        if length == leaf.entries.capacity() {
            // Grow in small steps: doubling would waste half a leaf per leaf.
            let more = (length / 2).clamp(4, 32).min(LEAF - length);
            leaf.entries.reserve_exact(more);
            leaf.heads.reserve_exact(more);
        }
        leaf.insert(place.slot, entry);
        if place.slot == 0 {
            self.moved(place.leaf);
        }
    }

    /// Applies compaction at `revision` to one key. Returns the quota set free.
    pub(crate) fn prune(&mut self, key: &[u8], revision: i64) -> u64 {
        let (place, found) = self.find(key);
        if !found {
            return 0;
        }
        let leaf = &mut self.leaves[place.leaf];
        let (freed, keep) = leaf.entries[place.slot].prune(revision);
        if !keep {
            leaf.remove(place.slot);
            if leaf.entries.is_empty() {
                self.leaves.remove(place.leaf);
                self.fences.remove(place.leaf);
                return freed;
            }
            let few = leaf.entries.len() < LEAF / 4;
            if place.slot == 0 {
                self.moved(place.leaf);
            }
            if few {
                self.merge(place.leaf);
            }
        }
        freed
    }

    /// Joins a small leaf with its successor, when both fit in one.
    fn merge(&mut self, at: usize) {
        let Some(next) = self.leaves.get(at + 1) else { return };
        if self.leaves[at].entries.len() + next.entries.len() > LEAF * 3 / 4 {
            return;
        }
        let next = self.leaves.remove(at + 1);
        self.fences.remove(at + 1);
        let leaf = &mut self.leaves[at];
        leaf.entries.reserve_exact(next.entries.len());
        leaf.entries.extend(next.entries);
        leaf.live += next.live;
        leaf.align();
    }

    /// Where a span begins, and where it ends: before that place.
    fn places(&self, span: &Span) -> (Place, Place) {
        let (start, end) = bounds(span);
        let (first, found) = self.find(start);
        let last = match end {
            End::Only => Place { slot: first.slot + usize::from(found), ..first },
            End::Before(end) => self.lower(end),
            End::None => Place { leaf: self.leaves.len(), slot: 0 },
        };
        (self.settle(first), last)
    }

    /// The entries of a span, dead ones included. Its end is looked for once, so that going through it
    /// compares no keys.
    pub(crate) fn span(&self, span: &Span) -> impl Iterator<Item = &Entry> {
        let (from, to) = self.places(span);
        let leaves = from.leaf..(to.leaf + 1).min(self.leaves.len());
        leaves.flat_map(move |leaf| {
            let entries = &self.leaves[leaf].entries;
            let start = if leaf == from.leaf { from.slot } else { 0 };
            let end = if leaf == to.leaf { to.slot } else { entries.len() };
            // Nothing if the span ends before it begins.
            entries.get(start..end).unwrap_or_default()
        })
    }

    /// All entries at or after `key`.
    pub(crate) fn from(&self, key: &[u8]) -> impl Iterator<Item = &Entry> {
        let place = self.lower(key);
        let first = self.leaves.get(place.leaf).map_or(&[][..], |l| &l.entries[place.slot..]);
        let rest = self.leaves.get(place.leaf + 1..).unwrap_or_default();
        first.iter().chain(rest.iter().flat_map(|leaf| &leaf.entries))
    }

    /// How many keys of the span are alive now.
    pub(crate) fn count(&self, span: &Span) -> usize {
        if let Span::Key(key) = span {
            return usize::from(self.get(key).is_some_and(|e| e.newest.is_live()));
        }
        let (from, to) = self.places(span);
        if (from.leaf, from.slot) >= (to.leaf, to.slot) {
            return 0;
        }
        let live = |leaf: usize, slots: std::ops::Range<usize>| {
            self.leaves
                .get(leaf)
                .map_or(0, |l| l.entries[slots].iter().filter(|e| e.newest.is_live()).count())
        };
        if from.leaf == to.leaf {
            return live(from.leaf, from.slot..to.slot);
        }
        let first = live(from.leaf, from.slot..self.leaves[from.leaf].entries.len());
        let whole: usize = self.leaves[from.leaf + 1..to.leaf].iter().map(|l| l.live).sum();
        first + whole + live(to.leaf, 0..to.slot)
    }
}

/// Where a span ends.
enum End<'a> {
    /// After its only key.
    Only,
    /// Before this key.
    Before(&'a [u8]),
    /// Nowhere.
    None,
}

fn bounds(span: &Span) -> (&[u8], End<'_>) {
    match span {
        Span::Key(key) => (key, End::Only),
        Span::Range(from, to) => (from, End::Before(to)),
        Span::From(from) => (from, End::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(revision: i64) -> Version {
        Version {
            mod_revision: revision,
            create_revision: revision,
            version: 1,
            lease: 0,
            sub: 0,
            value: Some(Bytes::from_static(b"v")),
        }
    }

    fn tombstone(revision: i64) -> Version {
        Version { create_revision: 0, version: 0, value: None, ..live(revision) }
    }

    fn key(n: usize) -> String {
        format!("k{n:05}")
    }

    #[test]
    fn counts_agree_with_walks_while_leaves_split_and_merge() {
        let mut index = Index::default();
        // A fixed permutation of 0..2000, so that inserts land everywhere.
        for n in 0..2000 {
            index.write(key(n * 7 % 2000).as_bytes(), live(n as i64 + 2));
        }
        for n in (0..2000).filter(|n| n % 3 != 0) {
            index.write(key(n).as_bytes(), tombstone(5000 + n as i64));
        }
        for (from, to) in
            [(0, 2000), (1, 2), (100, 1300), (127, 129), (1999, 2000), (50, 50), (9, 3)]
        {
            let span = Span::Range(key(from).into(), key(to).into());
            let walked = index.span(&span).filter(|e| e.newest().is_live()).count();
            assert_eq!(index.count(&span), walked, "{from}..{to}");
        }
        for n in 0..2000 {
            index.prune(key(n).as_bytes(), 100_000);
        }
        assert_eq!(index.from(b"").count(), 667);
        assert_eq!(index.count(&Span::From("".into())), 667);
        assert_eq!(index.live(), 667);
        let keys: Vec<_> = index.from(b"").map(|e| e.key.clone()).collect();
        assert!(keys.is_sorted());
    }

    /// Keys of all lengths with zeros and long common beginnings, found where a sorted map has them.
    #[test]
    fn every_key_is_found_in_its_place() {
        let mut index = Index::default();
        let mut sorted = std::collections::BTreeSet::new();
        let mut state = 7_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let beginnings: [&[u8]; 5] =
            [b"", b"/registry/pods/default/", b"/registry/p", b"\0", b"\xff\xff"];
        for round in 0..6000 {
            let mut key = beginnings[random(5)].to_vec();
            for _ in 0..=random(6) {
                key.push([0, 1, b'a', b'b', 0xff][random(5)]);
            }
            if random(3) == 0 && !sorted.is_empty() {
                index.write(&key, tombstone(round + 2));
                index.prune(&key, i64::MAX);
                sorted.remove(&key);
            } else {
                index.write(&key, live(round + 2));
                sorted.insert(key.clone());
            }
            assert_eq!(index.get(&key).is_some(), sorted.contains(&key));
            if round % 97 == 0 {
                assert!(
                    index.from(b"").map(|e| e.key.as_ref()).eq(sorted.iter().map(Vec::as_slice))
                );
                for key in &sorted {
                    assert!(index.get(key).is_some_and(|entry| entry.key == key));
                }
                let from = sorted.range(key.clone()..).next();
                let found = index.from(&key).next().map(|e| e.key.to_vec());
                assert_eq!(found.as_ref(), from);
            }
        }
    }

    #[test]
    fn ordered_inserts_fill_their_leaves() {
        let mut index = Index::default();
        for n in 0..10 * LEAF {
            index.write(key(n).as_bytes(), live(n as i64 + 2));
        }
        assert_eq!(index.leaves.len(), 10);
    }

    #[test]
    fn compaction_keeps_what_can_still_be_read() {
        let mut index = Index::default();
        index.write(b"a", live(2));
        index.write(b"a", live(4));
        index.write(b"a", tombstone(6));
        index.write(b"a", live(8));
        index.prune(b"a", 5);
        let revisions = |index: &Index| -> Vec<i64> {
            index.get(b"a").into_iter().flat_map(|e| e.versions().map(|v| v.mod_revision)).collect()
        };
        assert_eq!(revisions(&index), [4, 6, 8]);
        index.prune(b"a", 6);
        assert_eq!(revisions(&index), [6, 8]);
        index.prune(b"a", 7);
        assert_eq!(revisions(&index), [8]);
    }

    #[test]
    fn a_dead_key_goes_with_the_compaction_after_its_tombstone() {
        let mut index = Index::default();
        index.write(b"a", live(2));
        index.write(b"a", tombstone(3));
        assert_eq!(index.prune(b"a", 3), crate::KEY_COST + 2);
        assert!(index.get(b"a").is_some());
        assert_eq!(index.prune(b"a", 4), 0);
        assert!(index.get(b"a").is_none());
    }
}
