//! Do all members have the same? They ask each other for checksums of their histories, and whoever
//! differs is alarmed about, as etcd does (`server/etcdserver/corrupt.go`).
//!
//! Questions and answers go past the writer: a checksum takes long and changes nothing.

use crate::codec::{Malformed, Reader, put_bytes, put_number, put_signed};
use crate::core::REQUEST;
use crate::maintenance::hash_kv;
use crate::shared::Shared;
use crate::watch::lock;
use crate::{Store, Transport};
use bytes::Bytes;
use dhow_kv::Error;
use dhow_kv::admin::{Admin, Alarm, AlarmKind, HashKv};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// How often a question is sent again that has no answer yet.
const AGAIN: Duration = Duration::from_secs(1);

/// The first bytes of questions and answers; those of `wire` are smaller.
const ASK: u8 = 0x40;
const TOLD: u8 = 0x41;

/// A member's checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Checksum {
    kv: HashKv,
    /// The newest revision that the member had.
    newest: i64,
}

/// What a member said: nothing, why it cannot, or its checksum.
type Answer = Option<Result<Checksum, String>>;

/// What members say about checksums.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Ask { id: u64, revision: i64 },
    Told { id: u64, answer: Result<Checksum, String> },
}

impl Word {
    fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Ask { id, revision } => {
                out.push(ASK);
                put_number(&mut out, *id);
                put_signed(&mut out, *revision);
            }
            Self::Told { id, answer } => {
                out.push(TOLD);
                put_number(&mut out, *id);
                out.push(u8::from(answer.is_ok()));
                match answer {
                    Ok(Checksum { kv, newest }) => {
                        put_number(&mut out, kv.hash.into());
                        for number in [kv.compact_revision, kv.hash_revision, *newest] {
                            put_signed(&mut out, number);
                        }
                    }
                    Err(why) => put_bytes(&mut out, why.as_bytes()),
                }
            }
        }
        out.into()
    }

    fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let word = match reader.byte()? {
            ASK => Self::Ask { id: reader.number()?, revision: reader.signed()? },
            TOLD => {
                let id = reader.number()?;
                let answer = if reader.flag()? {
                    let hash = u32::try_from(reader.number()?).map_err(|_| "too large a hash")?;
                    let compact_revision = reader.signed()?;
                    let hash_revision = reader.signed()?;
                    let kv = HashKv { hash, compact_revision, hash_revision };
                    Ok(Checksum { kv, newest: reader.signed()? })
                } else {
                    Err(reader.text()?)
                };
                Self::Told { id, answer }
            }
            _ => return Err("unknown word about checksums: a newer version wrote it"),
        };
        reader.end()?;
        Ok(word)
    }
}

/// What a store knows of comparisons under way.
#[derive(Debug, Default)]
pub(crate) struct Comparisons {
    asked: Mutex<BTreeMap<u64, oneshot::Sender<Result<Checksum, String>>>>,
    next: AtomicU64,
    /// A checksum is being computed for another member: one at a time.
    busy: AtomicBool,
    /// The newest compacted revision at which all members were found equal.
    checked: AtomicI64,
}

/// Whether a message is for this module.
pub(crate) fn is_word(message: &Bytes) -> bool {
    matches!(message.first(), Some(&(ASK | TOLD)))
}

fn checksum(shared: &Shared, revision: i64) -> Result<Checksum, Error> {
    let kv = hash_kv(shared, revision)?;
    Ok(Checksum { kv, newest: shared.hub.published() })
}

/// Which members differ from most of them, by their checksums. When no checksum has a majority of
/// `all` members it is not known who is wrong: then it is 0, who stands for everybody.
fn odd(hashes: &[(u64, u32)], all: usize) -> Vec<u64> {
    let mut by_hash: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for (member, hash) in hashes {
        by_hash.entry(*hash).or_default().push(*member);
    }
    if by_hash.len() < 2 {
        return Vec::new();
    }
    let most = by_hash.iter().find(|(_, members)| members.len() > all / 2).map(|(hash, _)| *hash);
    match most {
        Some(most) => {
            by_hash.into_iter().filter(|(hash, _)| *hash != most).flat_map(|(_, all)| all).collect()
        }
        None => vec![0],
    }
}

/// The first member that contradicts the leader `own`, which computed `before`, then asked the others
/// at its revision, and then computed `after`.
fn contradicts(
    own: u64,
    before: Checksum,
    after: Checksum,
    others: &[(u64, Answer)],
) -> Option<(u64, &'static str)> {
    let same = |left: HashKv, right: HashKv| {
        (left.hash_revision, left.compact_revision) == (right.hash_revision, right.compact_revision)
    };
    if same(before.kv, after.kv) && before.kv.hash != after.kv.hash {
        return Some((own, "its own checksum has changed"));
    }
    others.iter().find_map(|(member, answer)| {
        let Some(Ok(theirs)) = answer else { return None };
        let why = if theirs.newest > after.newest {
            "it has a revision that the leader does not have"
        } else if theirs.kv.compact_revision > after.kv.compact_revision {
            "it has compacted more than the leader"
        } else if theirs.kv.compact_revision == before.kv.compact_revision
            && theirs.kv.hash != before.kv.hash
        {
            "its checksum differs from the leader's"
        } else {
            return None;
        };
        Some((*member, why))
    })
}

impl Store {
    /// Takes a word of another member.
    pub(crate) fn receive_word(&self, from: u64, message: Bytes) {
        match Word::decode(message) {
            Ok(Word::Ask { id, revision }) => self.answer_checksum(from, id, revision),
            Ok(Word::Told { id, answer }) => {
                if let Some(reply) = lock(&self.comparisons.asked).remove(&id) {
                    // Whoever asked may have given up.
                    drop(reply.send(answer));
                }
            }
            Err(what) => {
                tracing::warn!(from = %format!("{from:x}"), what, "a message cannot be read");
            }
        }
    }

    fn transport(&self) -> Option<Arc<dyn Transport>> {
        self.shared.options.cluster.as_ref().map(|cluster| cluster.transport.clone())
    }

    fn answer_checksum(&self, from: u64, id: u64, revision: i64) {
        let Some(transport) = self.transport() else { return };
        // It asks again.
        if self.comparisons.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let (shared, comparisons) = (self.shared.clone(), self.comparisons.clone());
        let work = move || {
            let answer = checksum(&shared, revision).map_err(|error| error.to_string());
            comparisons.busy.store(false, Ordering::Release);
            transport.send(from, Word::Told { id, answer }.encode());
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !self.shared.options.inline => drop(runtime.spawn_blocking(work)),
            _ => work(),
        }
    }

    /// Asks the other members for their checksums at a revision.
    async fn ask_others(&self, revision: i64) -> Vec<(u64, Answer)> {
        let own = self.shared.identity.member_id;
        let members = self.shared.read().members.list();
        let others = members.iter().map(|member| member.id).filter(|id| *id != own);
        let asks = others.map(|id| async move { (id, self.ask_one(id, revision).await) });
        futures::future::join_all(asks).await
    }

    async fn ask_one(&self, member: u64, revision: i64) -> Answer {
        let transport = self.transport()?;
        let election = self.shared.options.cluster.as_ref()?.election;
        let clock = &self.shared.clock;
        let until = clock.monotonic() + REQUEST + 2 * election;
        let id = self.comparisons.next.fetch_add(1, Ordering::Relaxed);
        let (reply, mut answer) = oneshot::channel();
        lock(&self.comparisons.asked).insert(id, reply);
        loop {
            transport.send(member, Word::Ask { id, revision }.encode());
            let answered = tokio::select! {
                answered = &mut answer => Some(answered.ok()),
                () = clock.sleep(AGAIN) => None,
            };
            if let Some(answered) = answered {
                return answered;
            }
            if clock.monotonic() >= until {
                lock(&self.comparisons.asked).remove(&id);
                return None;
            }
        }
    }

    async fn own_checksum(&self, revision: i64) -> Result<Checksum, Error> {
        self.beside(move |shared| checksum(shared, revision)).await
    }

    async fn suspect(&self, member: u64) -> Result<(), Error> {
        let alarm = Alarm { member, kind: AlarmKind::Corrupt };
        if Admin::status(self).alarms.contains(&alarm) {
            return Ok(());
        }
        self.alarm_raise(alarm).await
    }

    /// Compares this member's data with the others', before it serves anybody. Members that cannot
    /// be asked, or have other revisions, say nothing about it.
    ///
    /// # Errors
    /// [`Error::Corrupt`]: it differs from another member; which, is in the log.
    pub async fn check_initially(&self) -> Result<(), Error> {
        let own = self.own_checksum(0).await?;
        let mut differs = false;
        for (member, answer) in self.ask_others(own.kv.hash_revision).await {
            let peer = format!("{member:x}");
            match answer {
                None => tracing::warn!(peer, "a member tells no checksum; it is not compared with"),
                Some(Err(why)) => {
                    tracing::warn!(peer, why, "a member has no checksum of this revision");
                }
                Some(Ok(theirs)) if theirs.kv.compact_revision != own.kv.compact_revision => {
                    tracing::warn!(
                        peer,
                        "found different compact revision values from remote peer"
                    );
                }
                Some(Ok(theirs)) if theirs.kv.hash != own.kv.hash => {
                    tracing::warn!(
                        peer,
                        revision = own.kv.hash_revision,
                        own_hash = own.kv.hash,
                        peer_hash = theirs.kv.hash,
                        "found different hash values from remote peer"
                    );
                    differs = true;
                }
                Some(Ok(_)) => {}
            }
        }
        if differs { Err(Error::Corrupt) } else { Ok(()) }
    }

    /// As the leader: compares the newest data of all members, and raises an alarm about the first
    /// that contradicts. On another member it does nothing.
    ///
    /// # Errors
    /// When there is no checksum, no quorum, or the alarm cannot be raised.
    pub async fn check_newest(&self) -> Result<(), Error> {
        let own = self.shared.identity.member_id;
        if self.pulse().leader != own {
            return Ok(());
        }
        let before = self.own_checksum(0).await?;
        let others = self.ask_others(before.kv.hash_revision).await;
        self.shared.catch_up().await?;
        let after = self.own_checksum(0).await?;
        if let Some((member, why)) = contradicts(own, before, after, &others) {
            let peer = format!("{member:x}");
            tracing::error!(peer, revision = before.kv.hash_revision, "found hash mismatch: {why}");
            self.suspect(member).await?;
        }
        Ok(())
    }

    /// As the leader: compares what all members have at the newest compacted revision, and raises an
    /// alarm about those that differ from most. On another member it does nothing.
    ///
    /// # Errors
    /// When there is no checksum, or an alarm cannot be raised.
    pub async fn check_compacted(&self) -> Result<(), Error> {
        let own = self.shared.identity.member_id;
        let compacted = self.shared.read().machine.mvcc.compacted();
        let checked = self.comparisons.checked.load(Ordering::Relaxed);
        if self.pulse().leader != own || compacted <= checked {
            return Ok(());
        }
        let leads = match self.own_checksum(compacted).await {
            Ok(checksum) => checksum,
            // Compacted again meanwhile: the next time.
            Err(Error::Compacted) => return Ok(()),
            Err(error) => return Err(error),
        };
        let others = self.ask_others(compacted).await;
        let mut hashes = vec![(own, leads.kv.hash)];
        hashes.extend(others.iter().filter_map(|(member, answer)| match answer {
            Some(Ok(its)) if its.kv.compact_revision == leads.kv.compact_revision => {
                Some((*member, its.kv.hash))
            }
            _ => None,
        }));
        let all = others.len() + 1;
        let odd = odd(&hashes, all);
        if odd.is_empty() && hashes.len() == all {
            self.comparisons.checked.fetch_max(compacted, Ordering::Relaxed);
        }
        for member in odd {
            let peer = format!("{member:x}");
            tracing::error!(peer, revision = compacted, "Detected compaction hash mismatch");
            self.suspect(member).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(hash: u32, compact_revision: i64, hash_revision: i64, newest: i64) -> Checksum {
        Checksum { kv: HashKv { hash, compact_revision, hash_revision }, newest }
    }

    #[test]
    fn every_word_comes_back() {
        for word in [
            Word::Ask { id: u64::MAX, revision: -1 },
            Word::Told { id: 1, answer: Ok(sum(u32::MAX, -1, i64::MAX, 5)) },
            Word::Told { id: 1, answer: Err("why".into()) },
        ] {
            let bytes = word.encode();
            assert!(is_word(&bytes));
            assert_eq!(Word::decode(bytes.clone()), Ok(word));
            for cut in 0..bytes.len() {
                assert!(Word::decode(bytes.slice(..cut)).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn the_minority_is_odd_and_without_a_majority_everybody() {
        assert!(odd(&[(1, 7), (2, 7), (3, 7)], 3).is_empty());
        assert_eq!(odd(&[(1, 7), (2, 8), (3, 7)], 3), [2]);
        assert_eq!(odd(&[(1, 7), (2, 8), (3, 8)], 3), [1]);
        assert_eq!(odd(&[(1, 7), (2, 8)], 2), [0]);
        assert_eq!(odd(&[(1, 7), (2, 8)], 3), [0]);
        assert_eq!(odd(&[(1, 7), (2, 8), (3, 9), (4, 7), (5, 7)], 5), [2, 3]);
    }

    #[test]
    fn who_contradicts_the_leader_is_found() {
        let (before, after) = (sum(7, 3, 10, 10), sum(9, 3, 12, 12));
        let found = |others: &[(u64, Answer)]| {
            contradicts(1, before, after, others).map(|(member, _)| member)
        };
        assert_eq!(found(&[(2, None), (3, Some(Err("behind".into())))]), None);
        assert_eq!(found(&[(2, Some(Ok(sum(7, 3, 10, 11))))]), None);
        // It has compacted less: its checksum is another without any fault.
        assert_eq!(found(&[(2, Some(Ok(sum(8, -1, 10, 11))))]), None);
        assert_eq!(found(&[(3, None), (2, Some(Ok(sum(8, 3, 10, 11))))]), Some(2));
        assert_eq!(found(&[(2, Some(Ok(sum(7, 3, 10, 13))))]), Some(2));
        assert_eq!(found(&[(2, Some(Ok(sum(7, 4, 10, 12))))]), Some(2));
        let changed = contradicts(1, before, sum(8, 3, 10, 10), &[]);
        assert_eq!(changed.map(|(member, _)| member), Some(1));
    }
}
