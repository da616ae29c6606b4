//! The bytes of changes of users and roles, and of the whole state.

use super::{Auth, User};
use crate::codec::{Malformed, Reader, put_bytes, put_number, put_span};
use dhow_kv::Span;
use dhow_kv::admin::{Access, AuthChange, AuthStatus, Permission};
use std::collections::BTreeMap;

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_permission(out: &mut Vec<u8>, permission: &Permission) {
    out.push(match permission.access {
        Access::Read => 0,
        Access::Write => 1,
        Access::ReadWrite => 2,
    });
    put_span(out, &permission.span);
}

fn read_permission(reader: &mut Reader<'_>) -> Result<Permission, Malformed> {
    let access = match reader.byte()? {
        0 => Access::Read,
        1 => Access::Write,
        2 => Access::ReadWrite,
        _ => return Err(Malformed("unknown access")),
    };
    Ok(Permission { access, span: reader.span()? })
}

/// Appends a change's bytes.
pub(crate) fn put_change(out: &mut Vec<u8>, change: &AuthChange) {
    let mut two = |tag: u8, first: &str, second: &str| {
        out.push(tag);
        put_text(out, first);
        put_text(out, second);
    };
    match change {
        AuthChange::Enable => out.push(1),
        AuthChange::Disable => out.push(2),
        AuthChange::UserAdd { name, hash, no_password } => {
            two(if *no_password { 4 } else { 3 }, name, hash);
        }
        AuthChange::UserDelete(name) => {
            out.push(5);
            put_text(out, name);
        }
        AuthChange::UserChangePassword { name, hash } => two(6, name, hash),
        AuthChange::UserGrantRole { user, role } => two(7, user, role),
        AuthChange::UserRevokeRole { user, role } => two(8, user, role),
        AuthChange::RoleAdd(name) => {
            out.push(9);
            put_text(out, name);
        }
        AuthChange::RoleDelete(name) => {
            out.push(10);
            put_text(out, name);
        }
        AuthChange::RoleGrant { role, permission } => {
            out.push(11);
            put_text(out, role);
            put_permission(out, permission);
        }
        AuthChange::RoleRevoke { role, span } => {
            out.push(12);
            put_text(out, role);
            put_span(out, span);
        }
    }
}

/// Reads what [`put_change`] wrote.
pub(crate) fn read_change(reader: &mut Reader<'_>) -> Result<AuthChange, Malformed> {
    Ok(match reader.byte()? {
        1 => AuthChange::Enable,
        2 => AuthChange::Disable,
        tag @ (3 | 4) => AuthChange::UserAdd {
            name: reader.text()?,
            hash: reader.text()?,
            no_password: tag == 4,
        },
        5 => AuthChange::UserDelete(reader.text()?),
        6 => AuthChange::UserChangePassword { name: reader.text()?, hash: reader.text()? },
        7 => AuthChange::UserGrantRole { user: reader.text()?, role: reader.text()? },
        8 => AuthChange::UserRevokeRole { user: reader.text()?, role: reader.text()? },
        9 => AuthChange::RoleAdd(reader.text()?),
        10 => AuthChange::RoleDelete(reader.text()?),
        11 => {
            let role = reader.text()?;
            AuthChange::RoleGrant { role, permission: read_permission(reader)? }
        }
        12 => AuthChange::RoleRevoke { role: reader.text()?, span: reader.span()? },
        _ => return Err(Malformed("unknown change of users and roles")),
    })
}

/// About how many bytes a change's texts and keys are.
pub(crate) fn change_size(change: &AuthChange) -> usize {
    let span = |span: &Span| match span {
        Span::Key(key) | Span::From(key) => key.len(),
        Span::Range(from, to) => from.len() + to.len(),
    };
    match change {
        AuthChange::Enable | AuthChange::Disable => 0,
        AuthChange::UserDelete(name) | AuthChange::RoleAdd(name) | AuthChange::RoleDelete(name) => {
            name.len()
        }
        AuthChange::UserAdd { name: a, hash: b, .. }
        | AuthChange::UserChangePassword { name: a, hash: b }
        | AuthChange::UserGrantRole { user: a, role: b }
        | AuthChange::UserRevokeRole { user: a, role: b } => a.len() + b.len(),
        AuthChange::RoleGrant { role, permission } => role.len() + span(&permission.span),
        AuthChange::RoleRevoke { role, span: on } => role.len() + span(on),
    }
}

impl Auth {
    /// Appends the state's bytes to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.enabled));
        put_number(out, self.revision);
        put_number(out, self.users.len() as u64);
        for (name, user) in &self.users {
            put_text(out, name);
            out.push(u8::from(user.no_password));
            put_text(out, &user.hash);
            put_number(out, user.roles.len() as u64);
            for role in &user.roles {
                put_text(out, role);
            }
        }
        put_number(out, self.roles.len() as u64);
        for (name, permissions) in &self.roles {
            put_text(out, name);
            put_number(out, permissions.len() as u64);
            for permission in permissions {
                put_permission(out, permission);
            }
        }
    }

    /// Reads a state back.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let enabled = reader.byte()? != 0;
        let revision = reader.number()?;
        let mut users = BTreeMap::new();
        for _ in 0..reader.count()? {
            let name = reader.text()?;
            let no_password = reader.byte()? != 0;
            let mut user = User { hash: reader.text()?, no_password, roles: Vec::new() };
            for _ in 0..reader.count()? {
                user.roles.push(reader.text()?);
            }
            users.insert(name, user);
        }
        let mut roles = BTreeMap::new();
        for _ in 0..reader.count()? {
            let name = reader.text()?;
            let mut permissions = Vec::new();
            for _ in 0..reader.count()? {
                permissions.push(read_permission(reader)?);
            }
            roles.insert(name, permissions);
        }
        Ok(Self::from_parts(AuthStatus { enabled, revision }, users, roles))
    }
}
