//! Users, roles and permissions: who may do what. Pure, and equal on all members.
//!
//! The rules, the errors and their order are etcd's
//! (<https://etcd.io/docs/latest/op-guide/authentication/rbac/>). Passwords come here as bcrypt
//! hashes and are not checked here: that takes long on purpose, and belongs before the log.

pub(crate) mod codec;
mod permission;
mod token;

pub use token::Tokens;

use dhow_kv::Error;
use dhow_kv::Span;
use dhow_kv::admin::{Access, AuthChange, AuthStatus, Caller, Need, Permission};
use permission::Grants;
use std::collections::BTreeMap;

/// The user that can do everything and that authentication cannot be without.
pub const ROOT_USER: &str = "root";
/// The role that allows everything.
pub const ROOT_ROLE: &str = "root";

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// The bcrypt hash of the password; empty for users without one.
    pub hash: String,
    /// The user comes by certificate only.
    pub no_password: bool,
    /// The names of the roles, sorted.
    pub roles: Vec<String>,
}

impl User {
    fn is_root(&self) -> bool {
        self.has(ROOT_ROLE)
    }

    fn has(&self, role: &str) -> bool {
        self.place(role).is_ok()
    }

    fn place(&self, role: &str) -> Result<usize, usize> {
        self.roles.binary_search_by(|have| have.as_str().cmp(role))
    }
}

/// The state. See the module.
#[derive(Debug, Clone)]
pub struct Auth {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, User>,
    /// Each role's permissions, sorted by where their keys begin.
    roles: BTreeMap<String, Vec<Permission>>,
    /// What the roles of each user allow together.
    grants: BTreeMap<String, Grants>,
}

impl Default for Auth {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Auth {
    fn eq(&self, other: &Self) -> bool {
        // The grants follow from the rest.
        (self.enabled, self.revision) == (other.enabled, other.revision)
            && self.users == other.users
            && self.roles == other.roles
    }
}

impl Auth {
    /// No users, no roles, not enabled. The revision is 1, as etcd's.
    pub fn new() -> Self {
        Self {
            enabled: false,
            revision: 1,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            grants: BTreeMap::new(),
        }
    }

    /// A state from its parts, as a snapshot of etcd has them.
    pub fn from_parts(
        status: AuthStatus,
        users: BTreeMap<String, User>,
        roles: BTreeMap<String, Vec<Permission>>,
    ) -> Self {
        let mut auth = Self {
            enabled: status.enabled,
            revision: status.revision.max(1),
            users,
            roles,
            grants: BTreeMap::new(),
        };
        for user in auth.users.values_mut() {
            user.roles.sort_unstable();
            user.roles.dedup();
        }
        for permissions in auth.roles.values_mut() {
            permissions.sort_by(|a, b| start(&a.span).cmp(start(&b.span)));
        }
        auth.refresh(|_| true);
        auth
    }

    /// Whether users are asked for, and how old the rules are.
    pub fn status(&self) -> AuthStatus {
        AuthStatus { enabled: self.enabled, revision: self.revision }
    }

    /// Whether these rules hold now, and whoever goes by those of revision `known` has not heard of it.
    pub fn is_newer(&self, known: u64) -> bool {
        self.enabled && self.revision != known
    }

    /// The users by name.
    pub fn users(&self) -> &BTreeMap<String, User> {
        &self.users
    }

    /// The names of all roles.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// The permissions of each role as they were given: the role root has none of its own.
    pub fn permissions(&self) -> &BTreeMap<String, Vec<Permission>> {
        &self.roles
    }

    /// The roles of a user.
    ///
    /// # Errors
    /// [`Error::UserNotFound`].
    pub fn user(&self, name: &str) -> Result<&[String], Error> {
        self.users.get(name).map(|user| &user.roles[..]).ok_or(Error::UserNotFound)
    }

    /// The permissions of a role; of the role root, that it may do everything.
    ///
    /// # Errors
    /// [`Error::RoleNotFound`].
    pub fn role(&self, name: &str) -> Result<Vec<Permission>, Error> {
        let given = self.roles.get(name).ok_or(Error::RoleNotFound)?;
        if name == ROOT_ROLE {
            let span = Span::From(bytes::Bytes::new());
            return Ok(vec![Permission { access: Access::ReadWrite, span }]);
        }
        Ok(given.clone())
    }

    /// The bcrypt hash of a user's password and the revision of the rules it belongs to.
    ///
    /// # Errors
    /// [`Error::AuthFailed`] without such a user, [`Error::NoPasswordUser`].
    pub fn password_hash(&self, name: &str) -> Result<(&str, u64), Error> {
        let user = self.users.get(name).ok_or(Error::AuthFailed)?;
        if user.no_password {
            return Err(Error::NoPasswordUser);
        }
        Ok((&user.hash, self.revision))
    }

    /// Whether a token may be given to the user, whose password was checked at `revision`.
    ///
    /// # Errors
    /// [`Error::AuthNotEnabled`], [`Error::AuthOldRevision`], and as [`Auth::password_hash`].
    pub fn check_login(&self, name: &str, revision: u64) -> Result<(), Error> {
        if !self.enabled {
            return Err(Error::AuthNotEnabled);
        }
        self.password_hash(name)?;
        if revision != self.revision {
            return Err(Error::AuthOldRevision);
        }
        Ok(())
    }

    /// Whether the caller may do all of this.
    ///
    /// # Errors
    /// Of the first that is refused. Keys: [`Error::UserNameEmpty`] without credentials,
    /// [`Error::AuthOldRevision`], [`Error::PermissionDenied`]. The role root:
    /// [`Error::UserNameEmpty`], [`Error::UserNotFound`], [`Error::PermissionDenied`].
    pub fn authorize(&self, caller: &Caller, needs: &[Need]) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        needs.iter().try_for_each(|need| match need {
            Need::Read(span) => self.check_keys(caller, span, false),
            Need::Write(span) => self.check_keys(caller, span, true),
            Need::Root => {
                let name = caller.user.as_deref().filter(|name| !name.is_empty());
                let user = self.users.get(name.ok_or(Error::UserNameEmpty)?);
                match user.ok_or(Error::UserNotFound)?.is_root() {
                    true => Ok(()),
                    false => Err(Error::PermissionDenied),
                }
            }
            Need::Anybody if caller.user.is_none() => Err(Error::UserNameEmpty),
            Need::Anybody => Ok(()),
        })
    }

    fn check_keys(&self, caller: &Caller, span: &Span, write: bool) -> Result<(), Error> {
        if caller.revision == 0 {
            return Err(Error::UserNameEmpty);
        }
        if caller.revision < self.revision {
            return Err(Error::AuthOldRevision);
        }
        let name = caller.user.as_deref().unwrap_or_default();
        let allowed = self.users.get(name).is_some_and(|user| {
            user.is_root() || self.grants.get(name).is_some_and(|grants| grants.allow(span, write))
        });
        if allowed { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    /// Applies a change. Returns whether it changed anything.
    ///
    /// # Errors
    /// As etcd's, in its order; then nothing has changed.
    pub fn apply(&mut self, change: &AuthChange) -> Result<bool, Error> {
        let changed = match change {
            AuthChange::Enable => return self.enable(),
            AuthChange::Disable => std::mem::take(&mut self.enabled),
            AuthChange::UserAdd { name, hash, no_password } => {
                self.user_add(name, hash, *no_password)?
            }
            AuthChange::UserDelete(name) => {
                if self.enabled && name == ROOT_USER {
                    return Err(Error::InvalidAuthManagement);
                }
                self.users.remove(name).ok_or(Error::UserNotFound)?;
                self.grants.remove(name);
                true
            }
            AuthChange::UserChangePassword { name, hash } => {
                let user = self.users.get_mut(name).ok_or(Error::UserNotFound)?;
                if !user.no_password {
                    user.hash.clone_from(hash);
                }
                true
            }
            AuthChange::UserGrantRole { user, role } => self.grant_role(user, role)?,
            AuthChange::UserRevokeRole { user, role } => self.revoke_role(user, role)?,
            AuthChange::RoleAdd(name) => {
                if name.is_empty() {
                    return Err(Error::RoleNameEmpty);
                }
                if self.roles.contains_key(name) {
                    return Err(Error::RoleExists);
                }
                self.roles.insert(name.clone(), Vec::new());
                true
            }
            AuthChange::RoleDelete(name) => self.role_delete(name)?,
            AuthChange::RoleGrant { role, permission } => self.role_grant(role, permission)?,
            AuthChange::RoleRevoke { role, span } => {
                let permissions = self.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
                let before = permissions.len();
                permissions.retain(|have| have.span != *span);
                if permissions.len() == before {
                    return Err(Error::PermissionNotGranted);
                }
                self.refresh(|user| user.has(role));
                true
            }
        };
        self.revision += u64::from(changed);
        Ok(changed)
    }

    /// Enabling is no change of the rules, so the revision stays.
    fn enable(&mut self) -> Result<bool, Error> {
        if self.enabled {
            return Ok(false);
        }
        let root = self.users.get(ROOT_USER).ok_or(Error::NoRootUser)?;
        if !root.is_root() {
            return Err(Error::NoRootRole);
        }
        self.enabled = true;
        Ok(true)
    }

    fn user_add(&mut self, name: &str, hash: &str, no_password: bool) -> Result<bool, Error> {
        if name.is_empty() {
            return Err(Error::UserNameEmpty);
        }
        if self.users.contains_key(name) {
            return Err(Error::UserExists);
        }
        let hash = if no_password { String::new() } else { hash.to_owned() };
        self.users.insert(name.to_owned(), User { hash, no_password, roles: Vec::new() });
        self.grants.insert(name.to_owned(), Grants::default());
        Ok(true)
    }

    fn grant_role(&mut self, name: &str, role: &str) -> Result<bool, Error> {
        let user = self.users.get_mut(name).ok_or(Error::UserNotFound)?;
        if role != ROOT_ROLE && !self.roles.contains_key(role) {
            return Err(Error::RoleNotFound);
        }
        let Err(place) = user.place(role) else { return Ok(false) };
        user.roles.insert(place, role.to_owned());
        self.refresh_one(name);
        Ok(true)
    }

    fn revoke_role(&mut self, name: &str, role: &str) -> Result<bool, Error> {
        if self.enabled && name == ROOT_USER && role == ROOT_ROLE {
            return Err(Error::InvalidAuthManagement);
        }
        let user = self.users.get_mut(name).ok_or(Error::UserNotFound)?;
        let place = user.place(role).map_err(|_| Error::RoleNotGranted)?;
        user.roles.remove(place);
        self.refresh_one(name);
        Ok(true)
    }

    fn role_delete(&mut self, name: &str) -> Result<bool, Error> {
        if self.enabled && name == ROOT_ROLE {
            return Err(Error::InvalidAuthManagement);
        }
        self.roles.remove(name).ok_or(Error::RoleNotFound)?;
        // The users that had it, which must not have it again when a role of its name comes.
        self.refresh(|user| match user.place(name) {
            Ok(place) => {
                user.roles.remove(place);
                true
            }
            Err(_) => false,
        });
        Ok(true)
    }

    fn role_grant(&mut self, role: &str, permission: &Permission) -> Result<bool, Error> {
        if !permission::is_valid(&permission.span) {
            return Err(Error::InvalidAuthManagement);
        }
        let have = self.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
        match have.iter_mut().find(|have| have.span == permission.span) {
            Some(have) => have.access = permission.access,
            None => {
                let from = start(&permission.span);
                let place = have.partition_point(|have| start(&have.span) <= from);
                have.insert(place, permission.clone());
            }
        }
        self.refresh(|user| user.has(role));
        Ok(true)
    }

    /// Computes anew what the users for whom `which` says so may do.
    fn refresh(&mut self, mut which: impl FnMut(&mut User) -> bool) {
        for (name, user) in &mut self.users {
            if which(user) {
                self.grants.insert(name.clone(), Grants::of(&self.roles, &user.roles));
            }
        }
    }

    fn refresh_one(&mut self, name: &str) {
        if let Some(user) = self.users.get(name) {
            self.grants.insert(name.to_owned(), Grants::of(&self.roles, &user.roles));
        }
    }
}

/// The first key that a span can hold.
fn start(span: &Span) -> &bytes::Bytes {
    match span {
        Span::Key(key) | Span::From(key) | Span::Range(key, _) => key,
    }
}

/// The user whose tokens a change makes invalid; `Some(None)` for everybody's.
pub(crate) fn invalidates(change: &AuthChange) -> Option<Option<&str>> {
    match change {
        AuthChange::UserDelete(name) | AuthChange::UserChangePassword { name, .. } => {
            Some(Some(name))
        }
        AuthChange::Disable => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
