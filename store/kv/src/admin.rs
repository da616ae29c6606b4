//! What a store's server tells and does beside keys: members, alarms, maintenance, users and roles.
//!
//! [`Admin`] is to etcd's Cluster, Maintenance and Auth services what [`Backend`](crate::Backend) is
//! to KV, Watch and Lease: the contract between a door and whoever keeps the data. The semantics are
//! etcd v3's (<https://etcd.io/docs/latest/dev-guide/api_reference_v3/>).

use crate::{Error, Op, Span, Txn, TxnResult};
use bytes::Bytes;
use dhow_clock::BoxFuture;
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

/// Who answers: the numbers in every response header that do not change while a member lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// The cluster, not 0.
    pub cluster_id: u64,
    /// The member, not 0.
    pub member_id: u64,
}

/// How a member is, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The Raft term that this member is in.
    pub term: u64,
    /// The newest entry that is known to be on a quorum.
    pub raft_index: u64,
    /// The newest entry that this member has applied.
    pub applied_index: u64,
    /// The leader's member identifier, 0 when there is none.
    pub leader: u64,
    /// Whether this member is a learner.
    pub learner: bool,
    /// What the data takes on disk, in bytes.
    pub db_size: u64,
    /// What of it is in use, in bytes.
    pub db_size_in_use: u64,
    /// The quota in bytes, 0 for none.
    pub quota: u64,
    /// How many keys are alive.
    pub keys: u64,
    /// What this member has carried out since it started.
    pub done: Counts,
    /// The alarms that are raised, on any member.
    pub alarms: Vec<Alarm>,
    /// The version that the cluster is to be taken back to, if it is.
    pub downgrade: Option<Version>,
}

/// How much was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Puts.
    pub puts: u64,
    /// Deletes of a key or a range.
    pub deletes: u64,
}

/// A version of etcd that a cluster speaks: `major.minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl Version {
    /// What a cluster speaks that is not taken back.
    pub const NEWEST: Self = Self { major: 3, minor: 7 };
}

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What every request looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pulse {
    /// The Raft term that this member is in.
    pub term: u64,
    /// The leader's member identifier, 0 when there is none.
    pub leader: u64,
    /// Whether this member is a learner.
    pub learner: bool,
}

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// Its identifier.
    pub id: u64,
    /// Its name; empty while it has not started.
    pub name: String,
    /// Where the other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty while it has not started.
    pub client_urls: Vec<String>,
    /// Whether it only follows and has no vote.
    pub learner: bool,
}

/// What a member is alarmed about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlarmKind {
    /// The quota is used up: writes that need space are refused until it is disarmed.
    NoSpace,
    /// Its data differ from another member's: everything is refused until it is disarmed.
    Corrupt,
}

/// A raised alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// The member.
    pub member: u64,
    /// About what.
    pub kind: AlarmKind,
}

/// A checksum over the history of all keys up to a revision, equal on all members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HashKv {
    /// CRC-32C as etcd's HashKV computes it.
    pub hash: u32,
    /// The compacted revision that it started from.
    pub compact_revision: i64,
    /// The revision up to which it reaches.
    pub hash_revision: i64,
}

/// What a permission allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads and watches.
    Read,
    /// Writes and deletes.
    Write,
    /// Both.
    ReadWrite,
}

/// A permission of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// What it allows.
    pub access: Access,
    /// On which keys.
    pub span: Span,
}

/// Who asks, as the connection or the token says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// The user's name; `None` for nobody in particular.
    pub user: Option<String>,
    /// The auth revision that the caller's credentials were issued at; 0 when they carry none.
    pub revision: u64,
}

/// What a request needs to be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// To read these keys.
    Read(Span),
    /// To write or delete these keys.
    Write(Span),
    /// The root role.
    Root,
    /// To be somebody, or authentication to be off.
    Anybody,
}

impl Need {
    /// What a transaction needs whichever way it goes, over all levels.
    pub fn of(txn: &Txn) -> Vec<Self> {
        let mut needs = Vec::new();
        Self::collect(txn, &mut needs);
        needs
    }

    fn collect(txn: &Txn, out: &mut Vec<Self>) {
        out.extend(txn.compare.iter().map(|compare| Self::Read(compare.span.clone())));
        for op in txn.success.iter().chain(&txn.failure) {
            let mut write = |span: Span, reads: bool| {
                out.extend(reads.then(|| Self::Read(span.clone())));
                out.push(Self::Write(span));
            };
            match op {
                Op::Put { key, prev_kv, .. } => write(Span::Key(key.clone()), *prev_kv),
                Op::Delete { span, prev_kv } => write(span.clone(), *prev_kv),
                Op::Range(range) => out.push(Self::Read(range.span.clone())),
                Op::Txn(inner) => Self::collect(inner, out),
            }
        }
    }
}

/// Whether users are asked for, and how old the rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AuthStatus {
    /// Whether requests need a user.
    pub enabled: bool,
    /// Grows with every change of users, roles and permissions.
    pub revision: u64,
}

/// A change of users, roles or the whole of authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthChange {
    /// Ask for users from now on.
    Enable,
    /// Stop asking.
    Disable,
    /// Add a user. The hash is bcrypt's; empty with `no_password`.
    UserAdd {
        /// The name, not empty.
        name: String,
        /// The bcrypt hash of the password.
        hash: String,
        /// The user comes by certificate only.
        no_password: bool,
    },
    /// Remove a user.
    UserDelete(String),
    /// Change a password.
    UserChangePassword {
        /// The user.
        name: String,
        /// The bcrypt hash of the new password.
        hash: String,
    },
    /// Give a user a role.
    UserGrantRole {
        /// The user.
        user: String,
        /// The role.
        role: String,
    },
    /// Take a role from a user.
    UserRevokeRole {
        /// The user.
        user: String,
        /// The role.
        role: String,
    },
    /// Add a role.
    RoleAdd(String),
    /// Remove a role, also from its users.
    RoleDelete(String),
    /// Give a role a permission.
    RoleGrant {
        /// The role.
        role: String,
        /// The permission.
        permission: Permission,
    },
    /// Take a permission from a role.
    RoleRevoke {
        /// The role.
        role: String,
        /// The keys of the permission.
        span: Span,
    },
}

/// The bytes of a snapshot on their way to a client.
pub trait SnapshotReader: Send {
    /// How many bytes are left.
    fn remaining(&self) -> u64;
    /// The next piece, at most 32 KiB; `None` at the end.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, Error>>>;
}

/// The administrative half of a store. Implemented by `store/server`.
pub trait Admin: Send + Sync + 'static {
    /// Who answers.
    fn identity(&self) -> Identity;
    /// How this member is.
    fn status(&self) -> Status;
    /// The part of [`Admin::status`] that goes into every answer; called for each request, so it
    /// should cost a few loads and no lock.
    fn pulse(&self) -> Pulse {
        let Status { term, leader, learner, .. } = self.status();
        Pulse { term, leader, learner }
    }
    /// Completes when this member's loss of (or return to) a leader has been noticed: waits while
    /// `leader() == known` holds, and returns the leader now, 0 for none. Cancel safe.
    fn leader_changed(&self, known: u64) -> BoxFuture<'_, u64>;

    /// The members; linearizable unless told otherwise.
    fn members(&self, linearizable: bool) -> BoxFuture<'_, Result<Vec<Member>, Error>>;
    /// Adds a member; returns it and all.
    fn member_add(
        &self,
        peer_urls: Vec<String>,
        learner: bool,
    ) -> BoxFuture<'_, Result<(Member, Vec<Member>), Error>>;
    /// Removes a member; returns the rest.
    fn member_remove(&self, id: u64) -> BoxFuture<'_, Result<Vec<Member>, Error>>;
    /// Changes where a member is reached; returns all.
    fn member_update(
        &self,
        id: u64,
        peer_urls: Vec<String>,
    ) -> BoxFuture<'_, Result<Vec<Member>, Error>>;
    /// Makes a learner a voter; returns all.
    fn member_promote(&self, id: u64) -> BoxFuture<'_, Result<Vec<Member>, Error>>;
    /// Hands the leadership to another member. Only the leader can.
    fn move_leader(&self, target: u64) -> BoxFuture<'_, Result<(), Error>>;

    /// Raises an alarm.
    fn alarm_raise(&self, alarm: Alarm) -> BoxFuture<'_, Result<(), Error>>;
    /// Ends alarms: of one member or all (0), of one kind or all. Returns what ended.
    fn alarm_disarm(
        &self,
        member: u64,
        kind: Option<AlarmKind>,
    ) -> BoxFuture<'_, Result<Vec<Alarm>, Error>>;

    /// Speaks an older version from now on, so that the data can go there; `None` ends that.
    ///
    /// # Errors
    /// [`Error::DowngradeInProcess`]: one has begun and not ended.
    fn downgrade(&self, to: Option<Version>) -> BoxFuture<'_, Result<(), Error>>;

    /// Returns unused space to the file system. Never stops requests.
    fn defragment(&self) -> BoxFuture<'_, Result<(), Error>>;
    /// The checksum over the history up to `revision`, 0 for now.
    fn hash_kv(&self, revision: i64) -> BoxFuture<'_, Result<HashKv, Error>>;
    /// The checksum over everything that is stored.
    fn hash(&self) -> BoxFuture<'_, Result<u32, Error>>;
    /// A snapshot as a bbolt file, without the SHA-256 tail that etcd's protocol adds.
    fn snapshot(&self) -> BoxFuture<'_, Result<Box<dyn SnapshotReader>, Error>>;

    /// Whether users are asked for.
    fn auth_status(&self) -> AuthStatus;
    /// Changes users and roles.
    fn auth_change(&self, change: AuthChange) -> BoxFuture<'_, Result<(), Error>>;
    /// The names of all users.
    fn users(&self) -> Vec<String>;
    /// The roles of a user.
    ///
    /// # Errors
    /// [`Error::UserNotFound`].
    fn user(&self, name: &str) -> Result<Vec<String>, Error>;
    /// The bcrypt hash of a user's password and the auth revision that it was read at.
    ///
    /// # Errors
    /// [`Error::AuthFailed`] without such a user, [`Error::NoPasswordUser`].
    fn password_hash(&self, name: &str) -> Result<(String, u64), Error>;
    /// The names of all roles.
    fn roles(&self) -> Vec<String>;
    /// The permissions of a role.
    ///
    /// # Errors
    /// [`Error::RoleNotFound`].
    fn role(&self, name: &str) -> Result<Vec<Permission>, Error>;
    /// Makes a token that all members accept for this user.
    fn token_issue(&self, user: String) -> BoxFuture<'_, Result<String, Error>>;
    /// The user of a token, and the auth revision that it was issued at.
    fn token_user(&self, token: &str) -> Option<Caller>;
    /// Whether the caller may do all of this.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`], [`Error::UserNameEmpty`], [`Error::AuthOldRevision`].
    fn authorize(&self, caller: &Caller, needs: &[Need]) -> Result<(), Error>;
    /// Whether a transaction is one at all, whoever asks: etcd tells this before it looks at rules.
    ///
    /// # Errors
    /// [`Error::DuplicateKey`], [`Error::TooLarge`] and what else is wrong with it in itself.
    fn check_txn(&self, txn: &Txn) -> Result<(), Error>;
    /// Runs a transaction that [`Admin::check_txn`] takes, and only if the rules are still those of
    /// `auth_revision`, or nobody is asked for a name, so that a permission that is taken away is not
    /// used after that was acknowledged, and names are asked for from the moment that it was
    /// acknowledged that they are.
    ///
    /// # Errors
    /// [`Error::AuthOldRevision`]: ask again; and as [`Backend::txn`](crate::Backend::txn).
    fn txn_as(&self, txn: Txn, auth_revision: u64) -> BoxFuture<'_, Result<TxnResult, Error>>;
}

/// A shared [`Admin`].
pub type SharedAdmin = Arc<dyn Admin>;
