//! What etcd's buckets hold, typed (`server/storage/schema`, `authpb`, `leasepb` in etcd 3.6).

use super::proto::{fields, put_bytes, put_message, put_number};
use crate::Error;
use serde::{Deserialize, Serialize};

/// Everything in a snapshot beside the rows of the keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// Of the log and the format.
    pub meta: Meta,
    /// By identifier.
    pub leases: Vec<Lease>,
    /// The raised alarms.
    pub alarms: Vec<Alarm>,
    /// The version of the protocol that the members agree on, such as `3.6.0`; empty for none.
    pub cluster_version: String,
    /// The members.
    pub members: Vec<Member>,
    /// The identifiers of members that were removed.
    pub removed: Vec<u64>,
    /// Users and roles.
    pub auth: Auth,
}

/// What the bucket `meta` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// The index of the newest applied entry of the log.
    pub consistent_index: u64,
    /// Its term.
    pub term: u64,
    /// Who votes.
    pub conf_state: Option<ConfState>,
    /// The version of the format, such as `3.6.0`; empty for older ones.
    pub storage_version: String,
    /// The compaction that was begun last; 0 for none.
    pub scheduled_compact: i64,
    /// The compaction that was finished last; 0 for none.
    pub finished_compact: i64,
}

impl Meta {
    /// The compacted revision: etcd resumes a compaction that it had begun.
    pub fn compacted(&self) -> i64 {
        self.scheduled_compact.max(self.finished_compact)
    }
}

/// The members' roles in Raft.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfState {
    /// Who votes.
    pub voters: Vec<u64>,
    /// Who learns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub learners: Vec<u64>,
    /// Who voted before a change that is under way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub voters_outgoing: Vec<u64>,
    /// Who will learn after it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub learners_next: Vec<u64>,
    /// Whether the change ends by itself.
    pub auto_leave: bool,
}

/// A lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lease {
    /// Its identifier.
    pub id: i64,
    /// What was granted, in seconds.
    pub ttl: i64,
    /// What was left of it at the last note, in seconds; 0 when nothing was noted.
    pub remaining_ttl: i64,
}

/// A raised alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Alarm {
    /// The member.
    pub member: u64,
    /// About what: 1 for no space, 2 for data that differ.
    pub kind: u64,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its identifier.
    pub id: u64,
    /// Where the other members reach it.
    #[serde(rename = "peerURLs", deserialize_with = "nullable")]
    pub peer_urls: Vec<String>,
    /// Whether it has no vote.
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    pub learner: bool,
    /// Its name; empty while it has not started.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where clients reach it.
    #[serde(
        rename = "clientURLs",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "nullable"
    )]
    pub client_urls: Vec<String>,
}

/// A list that may be written as `null`.
fn nullable<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Users and roles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Auth {
    /// Whether users are asked for.
    pub enabled: bool,
    /// Grows with every change.
    pub revision: u64,
    /// The users.
    pub users: Vec<User>,
    /// The roles.
    pub roles: Vec<Role>,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// The name.
    pub name: String,
    /// The bcrypt hash of the password.
    pub password: Vec<u8>,
    /// The names of the roles.
    pub roles: Vec<String>,
    /// The user comes by certificate only.
    pub no_password: bool,
}

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Role {
    /// The name.
    pub name: String,
    /// What it allows.
    pub permissions: Vec<Permission>,
}

/// What a permission allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Reads.
    #[default]
    Read,
    /// Writes.
    Write,
    /// Both.
    ReadWrite,
}

/// A permission of a role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Permission {
    /// What it allows.
    pub access: Access,
    /// The first key.
    pub key: Vec<u8>,
    /// Behind the last key; empty for one key, a zero byte for no end.
    pub range_end: Vec<u8>,
}

impl Lease {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(&mut out, 1, self.id as u64);
        put_number(&mut out, 2, self.ttl as u64);
        put_number(&mut out, 3, self.remaining_ttl as u64);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut lease = Self::default();
        let whole = fields(bytes, |field, content| match field {
            1 => lease.id = content.number() as i64,
            2 => lease.ttl = content.number() as i64,
            3 => lease.remaining_ttl = content.number() as i64,
            _ => {}
        });
        message("lease", whole).map(|()| lease)
    }
}

impl Alarm {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(&mut out, 1, self.member);
        put_number(&mut out, 2, self.kind);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut alarm = Self::default();
        let whole = fields(bytes, |field, content| match field {
            1 => alarm.member = content.number(),
            2 => alarm.kind = content.number(),
            _ => {}
        });
        message("alarm", whole).map(|()| alarm)
    }
}

impl User {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, 1, self.name.as_bytes());
        put_bytes(&mut out, 2, &self.password);
        for role in &self.roles {
            put_message(&mut out, 3, role.as_bytes());
        }
        let mut options = Vec::new();
        put_number(&mut options, 1, u64::from(self.no_password));
        put_message(&mut out, 4, &options);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut user = Self::default();
        let mut options: &[u8] = &[];
        let whole = fields(bytes, |field, content| match field {
            1 => user.name = content.text(),
            2 => user.password = content.bytes().to_vec(),
            3 => user.roles.push(content.text()),
            4 => options = content.bytes(),
            _ => {}
        });
        let inner = fields(options, |field, content| {
            if field == 1 {
                user.no_password = content.number() != 0;
            }
        });
        message("authUsers", whole && inner).map(|()| user)
    }
}

impl Role {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, 1, self.name.as_bytes());
        for permission in &self.permissions {
            let mut body = Vec::new();
            put_number(&mut body, 1, permission.access as u64);
            put_bytes(&mut body, 2, &permission.key);
            put_bytes(&mut body, 3, &permission.range_end);
            put_message(&mut out, 2, &body);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut role = Self::default();
        let mut inner = true;
        let whole = fields(bytes, |field, content| match field {
            1 => role.name = content.text(),
            2 => {
                let mut permission = Permission::default();
                let mut known = true;
                inner &= fields(content.bytes(), |field, content| match field {
                    1 => match content.number() {
                        0 => permission.access = Access::Read,
                        1 => permission.access = Access::Write,
                        2 => permission.access = Access::ReadWrite,
                        _ => known = false,
                    },
                    2 => permission.key = content.bytes().to_vec(),
                    3 => permission.range_end = content.bytes().to_vec(),
                    _ => {}
                });
                inner &= known;
                role.permissions.push(permission);
            }
            _ => {}
        });
        message("authRoles", whole && inner).map(|()| role)
    }
}

fn message(bucket: &'static str, whole: bool) -> Result<(), Error> {
    if whole { Ok(()) } else { Err(row(bucket, "it is not the message that it should be")) }
}

pub(super) fn row(bucket: &'static str, what: impl Into<String>) -> Error {
    Error::Row { bucket, what: what.into() }
}
