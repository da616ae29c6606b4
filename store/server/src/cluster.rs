//! What a member must be told to be one of several: who it is, who the others are, how to reach them.

use crate::Transport;
use dhow_kv::admin::Member;
use ring::digest;
use std::sync::Arc;
use std::time::Duration;

/// How an empty data directory becomes a member. One that is not empty knows already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// All members of [`Cluster::initial`] begin a new cluster together.
    New,
    /// The member was added to a cluster that runs. What another member has told of it; `None` when
    /// none could be asked, with which only a directory opens that is not empty.
    Existing(Option<Introduction>),
}

/// What a member tells one that wants to join. See [`crate::Store::introduction`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Introduction {
    /// The cluster's identifier.
    pub cluster_id: u64,
    /// Its members, with the one that joins.
    pub members: Vec<Member>,
}

impl Introduction {
    /// Whether the member with these peer URLs has run before. If its data directory is empty now,
    /// it has lost what it had acknowledged and voted for: it must not begin anew under the same
    /// identifier ([`Start::New`]), but be removed and added again.
    pub fn has_run(&self, peer_urls: &[String]) -> bool {
        let urls = sorted(peer_urls);
        let own = self.members.iter().find(|member| sorted(&member.peer_urls) == urls);
        own.is_some_and(|own| !own.client_urls.is_empty())
    }
}

/// What another member is to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A member.
    Member,
    /// It was one and has been removed: it is to stop. Tell it (see [`crate::Store::expelled`]).
    Removed,
    /// Not known, perhaps not yet.
    Unknown,
}

/// How one of several members behaves. Without it a [`crate::Store`] is alone.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// This member's name.
    pub name: String,
    /// Where the other members reach it. By these it finds itself among the members at first.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; told to all.
    pub client_urls: Vec<String>,
    /// The members of a new cluster: names and peer URLs, this one among them. Equal on all.
    pub initial: Vec<(String, Vec<String>)>,
    /// Tells clusters with equal addresses apart. Equal on all members.
    pub token: String,
    /// What to do when the data directory is empty.
    pub start: Start,
    /// How often the leader is heard of.
    pub heartbeat: Duration,
    /// After so long without a leader an election begins; a multiple of `heartbeat`.
    pub election: Duration,
    /// Refuse changes of the membership that could cost the quorum.
    pub strict_reconfig_check: bool,
    /// A change of the votes is refused until the other voters have been heard of for so long.
    pub settled: Duration,
    /// How many learners there may be.
    pub max_learners: usize,
    /// Carries the messages.
    pub transport: Arc<dyn Transport>,
}

impl Cluster {
    /// A member of a new cluster with etcd's defaults: heartbeats each 100 ms, elections after 1 s,
    /// the strict check, one learner.
    pub fn new(
        name: impl Into<String>,
        initial: Vec<(String, Vec<String>)>,
        transport: Arc<dyn Transport>,
    ) -> Self {
        let name = name.into();
        let own = initial.iter().find(|(member, _)| *member == name);
        Self {
            peer_urls: own.map(|(_, urls)| urls.clone()).unwrap_or_default(),
            name,
            client_urls: Vec::new(),
            initial,
            token: "etcd-cluster".to_owned(),
            start: Start::New,
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(1000),
            strict_reconfig_check: true,
            settled: Duration::ZERO,
            max_learners: 1,
            transport,
        }
    }

    /// The members that a new cluster begins with, in the order of their identifiers.
    pub fn first_members(&self) -> Vec<Member> {
        let mut members: Vec<Member> = self
            .initial
            .iter()
            .map(|(name, urls)| Member {
                id: member_id(urls, &self.token, None),
                name: name.clone(),
                peer_urls: sorted(urls),
                client_urls: Vec::new(),
                learner: false,
            })
            .collect();
        members.sort_by_key(|member| member.id);
        members
    }

    /// The identifier of the new cluster of these members.
    pub fn first_id(&self) -> u64 {
        cluster_id(&self.first_members())
    }
}

/// A copy in order.
pub(crate) fn sorted(urls: &[String]) -> Vec<String> {
    let mut urls = urls.to_vec();
    urls.sort_unstable();
    urls
}

/// The first 8 bytes of SHA-1, as etcd makes identifiers. It is no secret that they keep.
fn first_bytes(text: &[u8]) -> u64 {
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text);
    let first = hash.as_ref().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    // 0 means nobody, to Raft and to etcd's clients.
    first.max(1)
}

/// The identifier of a member, as etcd computes it: from its peer URLs, the cluster's token, and for
/// one that is added later the second, so that it differs from an earlier one at the same place.
pub fn member_id(peer_urls: &[String], token: &str, added: Option<u64>) -> u64 {
    let mut text = sorted(peer_urls).concat() + token;
    if let Some(added) = added {
        text += &added.to_string();
    }
    first_bytes(text.as_bytes())
}

/// The identifier of a cluster, as etcd computes it: from its first members', in their order.
fn cluster_id(members: &[Member]) -> u64 {
    let ids: Vec<u8> = members.iter().flat_map(|member| member.id.to_be_bytes()).collect();
    first_bytes(&ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|url| (*url).to_owned()).collect()
    }

    // What etcd 3.7 tells of members with these flags.
    #[test]
    fn identifiers_are_those_that_etcd_computes() {
        let id = member_id(&texts(&["http://localhost:2380"]), "etcd-cluster", None);
        assert_eq!(id, 0x8e9e_05c5_2164_694d);
        let own = Member { id, ..Member::default() };
        assert_eq!(cluster_id(&[own]), 0xcdf8_1819_4e3a_8c32);
    }

    #[test]
    fn order_of_urls_is_nothing_and_time_is_something() {
        let (one, two) =
            (texts(&["http://a:1", "http://b:1"]), texts(&["http://b:1", "http://a:1"]));
        assert_eq!(member_id(&one, "t", None), member_id(&two, "t", None));
        assert_ne!(member_id(&one, "t", None), member_id(&one, "u", None));
        assert_ne!(member_id(&one, "t", Some(1)), member_id(&one, "t", Some(2)));
    }
}
