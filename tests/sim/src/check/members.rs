//! All members agree once they have everything.

use super::kv::Replay;
use super::model::Model;
use super::{Promise, Violation};
use dhow_kv::KeyValue;
use dhow_kv::admin::HashKv;

/// What one member holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holding {
    /// The member.
    pub member: u64,
    /// Its newest revision.
    pub revision: i64,
    /// All its keys.
    pub kvs: Vec<KeyValue>,
    /// All its leases, sorted.
    pub leases: Vec<i64>,
    /// The members, users and roles, as text.
    pub rest: String,
    /// The checksum of its history, when it tells one.
    pub hash: Option<HashKv>,
}

/// Checks that all members hold the same, and that it is what the history leads to.
///
/// # Errors
/// [`Promise::Agreement`].
pub fn check(holdings: &[Holding], replay: &Replay) -> Result<(), Violation> {
    let differ = |detail: String| Err(Violation::new(Promise::Agreement, detail));
    let Some(first) = holdings.first() else { return Ok(()) };
    for other in &holdings[1..] {
        let pair = format!("members {} and {}", first.member, other.member);
        if first.revision != other.revision {
            return differ(format!(
                "{pair} are at revisions {} and {}",
                first.revision, other.revision
            ));
        }
        if first.kvs != other.kvs {
            let theirs = first.kvs.iter().find(|kv| !other.kvs.contains(kv));
            let others = other.kvs.iter().find(|kv| !first.kvs.contains(kv));
            return differ(format!("{pair} hold {theirs:?} and {others:?}"));
        }
        if first.leases != other.leases {
            return differ(format!("{pair} have leases {:?} and {:?}", first.leases, other.leases));
        }
        if first.rest != other.rest {
            return differ(format!("{pair} know {} and {}", first.rest, other.rest));
        }
        if let (Some(a), Some(b)) = (first.hash, other.hash)
            && a != b
        {
            return differ(format!("{pair} have checksums {a:?} and {b:?}"));
        }
    }
    let mut model = Model::default();
    for (revision, made) in replay.revisions().take_while(|(at, _)| *at <= first.revision) {
        for event in &made.events {
            match event.deleted {
                true => drop(model.keys.remove(&event.kv.key)),
                false => drop(model.keys.insert(event.kv.key.clone(), event.kv.clone())),
            }
        }
        model.revision = revision;
    }
    if model.revision == first.revision && !model.keys.values().eq(&first.kvs) {
        let other = first.kvs.iter().find(|kv| model.keys.get(&kv.key) != Some(kv));
        return differ(format!("the members hold {other:?}, to which no history leads"));
    }
    Ok(())
}
