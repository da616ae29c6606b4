//! What a member must be told to be one of several: who it is, who the others are, how to reach them.

use crate::Transport;
use dhow_kv::admin::Member;
use sha2::{Digest, Sha256};
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
                id: member_id(urls, &self.token, 0),
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
        cluster_id(&self.first_members(), &self.token)
    }
}

/// A copy in order.
pub(crate) fn sorted(urls: &[String]) -> Vec<String> {
    let mut urls = urls.to_vec();
    urls.sort_unstable();
    urls
}

fn first_bytes(hash: Sha256) -> u64 {
    let hash = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    // 0 means nobody, to Raft and to etcd's clients.
    u64::from_be_bytes(first).max(1)
}

/// The identifier of a member: from its peer URLs, the cluster's token, and for one that is added
/// later the time, so that it differs from an earlier one at the same place.
pub(crate) fn member_id(peer_urls: &[String], token: &str, added: u64) -> u64 {
    let mut hash = Sha256::new();
    for url in sorted(peer_urls) {
        hash.update((url.len() as u64).to_be_bytes());
        hash.update(url);
    }
    hash.update(token);
    if added > 0 {
        hash.update(added.to_be_bytes());
    }
    first_bytes(hash)
}

fn cluster_id(members: &[Member], token: &str) -> u64 {
    let mut hash = Sha256::new();
    for member in members {
        hash.update(member.id.to_be_bytes());
    }
    hash.update(token);
    first_bytes(hash)
}
