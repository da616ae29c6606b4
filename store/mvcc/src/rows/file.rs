//! A whole state as etcd's snapshot file, and from one.

use super::Import;
use crate::auth::User;
use crate::codec::Malformed;
use crate::{Alarms, Auth, Command, Machine, MachineHeader};
use dhow_bolt::etcd;
use dhow_kv::Span;
use dhow_kv::admin::{Access, Alarm, AlarmKind, AuthStatus, Permission};
use std::collections::BTreeMap;
use std::io::{Read, Seek};

/// Why a snapshot could not become a state.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file.
    #[error(transparent)]
    File(#[from] dhow_bolt::Error),
    /// The rows of its keys.
    #[error("the snapshot's keys cannot be understood: {0}; use another copy of it")]
    Rows(#[from] Malformed),
    /// What its log has behind it.
    #[error(
        "the log behind the database cannot be understood: {0}; start etcd once more and stop it in order"
    )]
    Log(#[source] Malformed),
}

impl MachineHeader {
    /// Everything beside the keys as etcd's file has it. What the machine does not know is left for
    /// the caller: the term, the members and their roles, the versions.
    pub fn to_etcd(&self) -> etcd::State {
        let mut state = etcd::State::default();
        state.meta.consistent_index = self.applied;
        state.meta.scheduled_compact = self.mvcc.compacted;
        state.meta.finished_compact = self.mvcc.compacted;
        let leases = self.mvcc.leases.iter();
        let remaining: BTreeMap<i64, i64> = self.mvcc.remaining.iter().copied().collect();
        let lease = |(id, ttl): &(i64, i64)| {
            let remaining_ttl = remaining.get(id).copied().unwrap_or_default();
            etcd::Lease { id: *id, ttl: *ttl, remaining_ttl }
        };
        state.leases = leases.map(lease).collect();
        let kind = |kind| match kind {
            AlarmKind::NoSpace => 1,
            AlarmKind::Corrupt => 2,
        };
        let alarms = self.alarms.raised();
        state.alarms =
            alarms.map(|a| etcd::Alarm { member: a.member, kind: kind(a.kind) }).collect();
        let AuthStatus { enabled, revision } = self.auth.status();
        let users = self.auth.users().iter().map(|(name, user)| etcd::User {
            name: name.clone(),
            password: user.hash.clone().into_bytes(),
            roles: user.roles.clone(),
            no_password: user.no_password,
        });
        let roles = self.auth.permissions().iter().map(|(name, permissions)| etcd::Role {
            name: name.clone(),
            permissions: permissions.iter().map(to_etcd).collect(),
        });
        state.auth =
            etcd::Auth { enabled, revision, users: users.collect(), roles: roles.collect() };
        state
    }
}

fn to_etcd(permission: &Permission) -> etcd::Permission {
    let (key, range_end) = permission.span.clone().key_and_end();
    let access = match permission.access {
        Access::Read => etcd::Access::Read,
        Access::Write => etcd::Access::Write,
        Access::ReadWrite => etcd::Access::ReadWrite,
    };
    etcd::Permission { access, key: key.into(), range_end: range_end.into() }
}

fn from_etcd(permission: &etcd::Permission) -> Permission {
    let span = Span::new(permission.key.clone().into(), permission.range_end.clone().into());
    let access = match permission.access {
        etcd::Access::Read => Access::Read,
        etcd::Access::Write => Access::Write,
        etcd::Access::ReadWrite => Access::ReadWrite,
    };
    Permission { access, span }
}

impl Machine {
    /// The state that a snapshot of etcd holds, as of its index.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn from_etcd<R: Read + Seek>(
        snapshot: &mut etcd::Snapshot<R>,
    ) -> Result<Self, ImportError> {
        Self::from_etcd_raised(snapshot, 0)
    }

    /// The same; with a `raise` other than 0 as [`Import::finish_raised`] does it.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn from_etcd_raised<R: Read + Seek>(
        snapshot: &mut etcd::Snapshot<R>,
        raise: i64,
    ) -> Result<Self, ImportError> {
        let state = snapshot.state();
        let applied = state.meta.consistent_index;
        let alarms: Alarms = state
            .alarms
            .iter()
            .filter_map(|alarm| {
                let kind = match alarm.kind {
                    1 => AlarmKind::NoSpace,
                    2 => AlarmKind::Corrupt,
                    _ => return None,
                };
                Some(Alarm { member: alarm.member, kind })
            })
            .collect();
        let auth = &state.auth;
        let users = auth.users.iter().map(|user| {
            let hash = String::from_utf8_lossy(&user.password).into_owned();
            let (no_password, roles) = (user.no_password, user.roles.clone());
            (user.name.clone(), User { hash, no_password, roles })
        });
        let roles = auth
            .roles
            .iter()
            .map(|role| (role.name.clone(), role.permissions.iter().map(from_etcd).collect()));
        let status = AuthStatus { enabled: auth.enabled, revision: auth.revision };
        let auth = Auth::from_parts(status, users.collect(), roles.collect());
        let leases: Vec<_> = state.leases.iter().map(|lease| (lease.id, lease.ttl)).collect();
        let remaining = state.leases.iter().map(|lease| (lease.id, lease.remaining_ttl)).collect();
        let mut import = Import::new(state.meta.compacted(), leases);
        let mut rows = snapshot.rows()?;
        while let Some(row) = rows.next()? {
            import.row(row.key, row.value)?;
        }
        let mut keys = if raise == 0 { import.finish() } else { import.finish_raised(raise) };
        keys.apply(&Command::LeaseCheckpoint(remaining)).map_err(|_| Malformed("leases"))?;
        Ok(Self::from_parts(keys, auth, alarms, applied))
    }
}
