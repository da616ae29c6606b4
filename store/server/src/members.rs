//! Who the members are: a part of the replicated state, changed by entries of the log.

use crate::codec::{Malformed, Reader, put_bytes, put_member, put_number, put_texts};
use dhow_kv::Error;
use dhow_kv::admin::Member;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use std::collections::{BTreeMap, BTreeSet};

/// One change of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A voter or learner comes.
    Add(Member),
    /// A member goes.
    Remove(u64),
    /// A learner becomes a voter.
    Promote(u64),
    /// A member tells its name and where clients reach it.
    Attributes { id: u64, name: String, client_urls: Vec<String> },
    /// Others reach a member elsewhere.
    PeerUrls { id: u64, peer_urls: Vec<String> },
}

impl Change {
    /// What it means to Raft; `None` when the votes stay the same.
    pub(crate) fn conf_change(&self) -> Option<ConfChangeV2> {
        let (kind, id) = match self {
            Self::Add(member) if member.learner => (ConfChangeType::AddLearnerNode, member.id),
            Self::Add(member) => (ConfChangeType::AddNode, member.id),
            Self::Promote(id) => (ConfChangeType::AddNode, *id),
            Self::Remove(id) => (ConfChangeType::RemoveNode, *id),
            Self::Attributes { .. } | Self::PeerUrls { .. } => return None,
        };
        let mut single = ConfChangeSingle::default();
        single.set_change_type(kind);
        single.node_id = id;
        let mut change = ConfChangeV2::default();
        change.set_changes(vec![single].into());
        Some(change)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Add(member) => {
                out.push(1);
                put_member(out, member);
            }
            Self::Remove(id) => {
                out.push(2);
                put_number(out, *id);
            }
            Self::Promote(id) => {
                out.push(3);
                put_number(out, *id);
            }
            Self::Attributes { id, name, client_urls } => {
                out.push(4);
                put_number(out, *id);
                put_bytes(out, name.as_bytes());
                put_texts(out, client_urls);
            }
            Self::PeerUrls { id, peer_urls } => {
                out.push(5);
                put_number(out, *id);
                put_texts(out, peer_urls);
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(match reader.byte()? {
            1 => Self::Add(reader.member()?),
            2 => Self::Remove(reader.number()?),
            3 => Self::Promote(reader.number()?),
            4 => Self::Attributes {
                id: reader.number()?,
                name: reader.text()?,
                client_urls: reader.texts()?,
            },
            5 => Self::PeerUrls { id: reader.number()?, peer_urls: reader.texts()? },
            _ => return Err("unknown change of the members: a newer version wrote it"),
        })
    }
}

/// The members and those that were. Equal on all members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members {
    members: BTreeMap<u64, Member>,
    removed: BTreeSet<u64>,
}

impl FromIterator<Member> for Members {
    fn from_iter<I: IntoIterator<Item = Member>>(members: I) -> Self {
        let members = members.into_iter().map(|member| (member.id, member)).collect();
        Self { members, removed: BTreeSet::new() }
    }
}

impl Members {
    pub(crate) fn list(&self) -> Vec<Member> {
        self.members.values().cloned().collect()
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Member> {
        self.members.get(&id)
    }

    pub(crate) fn is_removed(&self, id: u64) -> bool {
        self.removed.contains(&id)
    }

    /// The identifiers of those that were.
    pub(crate) fn removed(&self) -> impl Iterator<Item = u64> {
        self.removed.iter().copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub(crate) fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| !member.learner)
    }

    /// Whether this member decides alone and nobody follows it.
    pub(crate) fn is_alone(&self, id: u64) -> bool {
        self.members.len() == 1 && self.members.get(&id).is_some_and(|member| !member.learner)
    }

    pub(crate) fn conf_state(&self) -> ConfState {
        let mut state = ConfState::default();
        let ids = |learner: bool| {
            let chosen = self.members.values().filter(move |member| member.learner == learner);
            chosen.map(|member| member.id).collect::<Vec<u64>>()
        };
        state.set_voters(ids(false));
        state.set_learners(ids(true));
        state
    }

    /// Whether the change makes sense now.
    ///
    /// # Errors
    /// As [`dhow_kv::admin::Admin`]'s calls.
    pub(crate) fn check(&self, change: &Change) -> Result<(), Error> {
        let exists = |id: &u64| self.members.get(id).ok_or(Error::MemberNotFound);
        let taken = |own: u64, urls: &[String]| {
            let others = self.members.values().filter(|member| member.id != own);
            let mut all = others.flat_map(|member| &member.peer_urls);
            if all.any(|url| urls.contains(url)) { Err(Error::PeerUrlExists) } else { Ok(()) }
        };
        match change {
            Change::Add(member) => {
                taken(0, &member.peer_urls)?;
                if self.members.contains_key(&member.id) || self.removed.contains(&member.id) {
                    return Err(Error::MemberExists);
                }
                Ok(())
            }
            Change::Remove(id) => {
                if !exists(id)?.learner && self.voters().count() == 1 {
                    return Err(Error::NotEnoughStarted);
                }
                Ok(())
            }
            Change::Promote(id) => match exists(id)?.learner {
                true => Ok(()),
                false => Err(Error::NotLearner),
            },
            Change::Attributes { id, .. } => exists(id).map(drop),
            Change::PeerUrls { id, peer_urls } => {
                exists(id)?;
                taken(*id, peer_urls)
            }
        }
    }

    /// Applies a change.
    ///
    /// # Errors
    /// As [`Members::check`]; then nothing has changed.
    pub(crate) fn apply(&mut self, change: &Change) -> Result<(), Error> {
        self.check(change)?;
        match change {
            Change::Add(member) => drop(self.members.insert(member.id, member.clone())),
            Change::Remove(id) => {
                self.members.remove(id);
                self.removed.insert(*id);
            }
            Change::Promote(id) => {
                if let Some(member) = self.members.get_mut(id) {
                    member.learner = false;
                }
            }
            Change::Attributes { id, name, client_urls } => {
                if let Some(member) = self.members.get_mut(id) {
                    member.name.clone_from(name);
                    member.client_urls.clone_from(client_urls);
                }
            }
            Change::PeerUrls { id, peer_urls } => {
                if let Some(member) = self.members.get_mut(id) {
                    member.peer_urls.clone_from(peer_urls);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, self.members.len() as u64);
        for member in self.members.values() {
            put_member(out, member);
        }
        put_number(out, self.removed.len() as u64);
        for id in &self.removed {
            put_number(out, *id);
        }
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        let mut members = Self::default();
        for _ in 0..reader.count()? {
            let member = reader.member()?;
            members.members.insert(member.id, member);
        }
        for _ in 0..reader.count()? {
            members.removed.insert(reader.number()?);
        }
        Ok(members)
    }
}
