//! The service Auth. Hashing passwords takes tens of milliseconds of CPU, so it happens on threads
//! of its own, as many at a time as there are processors.

use crate::access::{Access, Call};
use crate::convert;
use crate::dispatch::{decode, framed};
use crate::error::{Refusal, status};
use crate::method::Method;
use crate::{Inner, Tokens};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dhow_kv::admin::{AuthChange, Need};
use dhow_kv::{Error, Range, Span};
use dhow_rpc::etcdserverpb as pb;
use tonic::Status;

/// What bcrypt takes, in bytes.
const LONGEST_PASSWORD: usize = 72;

impl Inner {
    /// The methods of this service.
    pub(crate) async fn auth(
        &self,
        method: Method,
        call: &Call,
        message: Bytes,
    ) -> Result<Bytes, Status> {
        use Method as M;
        match method {
            M::AuthStatus => framed(self.auth_status(call)),
            M::Authenticate => framed(self.authenticate(decode(message)?).await),
            M::UserGet => framed(self.user_get(call, decode(message)?)),
            M::UserList => framed(self.user_list(call)),
            M::RoleGet => framed(self.role_get(call, decode(message)?)),
            M::RoleList => framed(self.role_list(call)),
            _ => self.change(method, call, message).await,
        }
    }

    /// The methods that change something; they answer with a header.
    async fn change(&self, method: Method, call: &Call, message: Bytes) -> Result<Bytes, Status> {
        use Method as M;
        let change = match method {
            M::AuthEnable => AuthChange::Enable,
            M::AuthDisable => AuthChange::Disable,
            M::UserAdd => {
                let request: pb::AuthUserAddRequest = decode(message)?;
                self.allow_root(call)?;
                let no_password = request.options.is_some_and(|o| o.no_password);
                let hash = if no_password {
                    String::new()
                } else {
                    self.password(request.password, &request.hashed_password).await?
                };
                AuthChange::UserAdd { name: request.name, hash, no_password }
            }
            M::UserDelete => {
                AuthChange::UserDelete(decode::<pb::AuthUserDeleteRequest>(message)?.name)
            }
            M::UserChangePassword => {
                let request: pb::AuthUserChangePasswordRequest = decode(message)?;
                self.allow_root(call)?;
                let hash = self.password(request.password, &request.hashed_password).await?;
                AuthChange::UserChangePassword { name: request.name, hash }
            }
            M::UserGrantRole => {
                let request: pb::AuthUserGrantRoleRequest = decode(message)?;
                AuthChange::UserGrantRole { user: request.user, role: request.role }
            }
            M::UserRevokeRole => {
                let request: pb::AuthUserRevokeRoleRequest = decode(message)?;
                AuthChange::UserRevokeRole { user: request.name, role: request.role }
            }
            M::RoleAdd => AuthChange::RoleAdd(decode::<pb::AuthRoleAddRequest>(message)?.name),
            M::RoleDelete => {
                AuthChange::RoleDelete(decode::<pb::AuthRoleDeleteRequest>(message)?.role)
            }
            M::RoleGrantPermission => {
                let request: pb::AuthRoleGrantPermissionRequest = decode(message)?;
                self.allow_root(call)?;
                let permission = request.perm.ok_or_else(|| status(&Error::PermissionNotGiven))?;
                let permission = convert::permission(permission)
                    .ok_or_else(|| status(&Error::InvalidAuthManagement))?;
                AuthChange::RoleGrant { role: request.name, permission }
            }
            M::RoleRevokePermission => {
                let request: pb::AuthRoleRevokePermissionRequest = decode(message)?;
                let span = Span::new(request.key, request.range_end);
                AuthChange::RoleRevoke { role: request.role, span }
            }
            _ => return Err(Status::unimplemented("unknown method")),
        };
        self.allow_root(call)?;
        self.admin.auth_change(change).await.map_err(|e| status(&e))?;
        // All these answers have a header as field 1 and nothing else.
        framed(Ok::<_, Status>(pb::AuthEnableResponse { header: Some(self.header()) }))
    }

    /// The hash of a password that a client gave, in clear or hashed.
    async fn password(&self, password: String, hashed: &str) -> Result<String, Status> {
        if password.is_empty() && !hashed.is_empty() {
            let hash = STANDARD.decode(hashed).ok().and_then(|h| String::from_utf8(h).ok());
            return hash.ok_or_else(|| status(&Error::AuthFailed));
        }
        if password.len() > LONGEST_PASSWORD {
            return Err(Refusal::LongPassword.into());
        }
        let cost = self.config.bcrypt_cost;
        self.hashed(move || bcrypt::hash(password, cost))
            .await?
            .map_err(|error| Status::unknown(format!("bcrypt: {error}")))
    }

    /// Runs a costly computation beside the tasks.
    async fn hashed<T: Send + 'static>(
        &self,
        compute: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let stopped = || status(&Error::Stopped);
        let _turn = self.hashing.acquire().await.map_err(|_| stopped())?;
        tokio::task::spawn_blocking(compute).await.map_err(|_| stopped())
    }

    fn auth_status(&self, call: &Call) -> Result<pb::AuthStatusResponse, Status> {
        // Whoever sends a token must send a good one, as everywhere.
        self.access(call).map_err(|e| status(&e))?;
        let rules = self.admin.auth_status();
        Ok(pb::AuthStatusResponse {
            header: Some(self.header()),
            enabled: rules.enabled,
            auth_revision: rules.revision,
        })
    }

    async fn authenticate(
        &self,
        request: pb::AuthenticateRequest,
    ) -> Result<pb::AuthenticateResponse, Status> {
        // A read that the leader confirms, so that a user who was just added is known here.
        let mut probe = Range::all(Span::Key(Bytes::from_static(b"\0")));
        probe.count_only = true;
        self.kv.range(probe).await.map_err(|e| status(&e))?;
        loop {
            if !self.admin.auth_status().enabled {
                return Err(status(&Error::AuthNotEnabled));
            }
            let refuse = |error| {
                tracing::warn!(user = request.name, %error, "refused a login");
                status(&error)
            };
            let (hash, revision) = self.admin.password_hash(&request.name).map_err(refuse)?;
            let password = request.password.clone();
            // A stored hash that cannot be read fits no password.
            let fits =
                self.hashed(move || bcrypt::verify(password, &hash).unwrap_or(false)).await?;
            if !fits {
                return Err(refuse(Error::AuthFailed));
            }
            let token = match &*self.config.tokens {
                Tokens::Simple => {
                    self.admin.token_issue(request.name.clone()).await.map_err(|e| status(&e))?
                }
                Tokens::Jwt(jwt) => jwt.issue(&request.name, revision).map_err(Status::unknown)?,
                Tokens::None => return Err(status(&Error::InvalidToken)),
            };
            if self.admin.auth_status().revision == revision {
                return Ok(pb::AuthenticateResponse { header: Some(self.header()), token });
            }
            // The password may have been changed meanwhile: check it again.
        }
    }

    fn user_get(
        &self,
        call: &Call,
        request: pb::AuthUserGetRequest,
    ) -> Result<pb::AuthUserGetResponse, Status> {
        let access = self.access(call).map_err(|e| status(&e))?;
        let own = matches!(&access, Access::As { caller, .. }
            if caller.user.as_deref() == Some(request.name.as_str()));
        if !own {
            self.allow(&access, &[Need::Root]).map_err(|e| status(&e))?;
        }
        let roles = self.admin.user(&request.name).map_err(|e| status(&e))?;
        Ok(pb::AuthUserGetResponse { header: Some(self.header()), roles })
    }

    fn user_list(&self, call: &Call) -> Result<pb::AuthUserListResponse, Status> {
        self.allow_root(call)?;
        Ok(pb::AuthUserListResponse { header: Some(self.header()), users: self.admin.users() })
    }

    fn role_get(
        &self,
        call: &Call,
        request: pb::AuthRoleGetRequest,
    ) -> Result<pb::AuthRoleGetResponse, Status> {
        let access = self.access(call).map_err(|e| status(&e))?;
        let own = match &access {
            Access::As { caller, .. } => caller.user.as_deref().is_some_and(|user| {
                self.admin.user(user).is_ok_and(|roles| roles.contains(&request.role))
            }),
            Access::Open { .. } => false,
        };
        if !own {
            self.allow(&access, &[Need::Root]).map_err(|e| status(&e))?;
        }
        let permissions = self.admin.role(&request.role).map_err(|e| status(&e))?;
        Ok(pb::AuthRoleGetResponse {
            header: Some(self.header()),
            perm: permissions.into_iter().map(convert::permission_message).collect(),
        })
    }

    fn role_list(&self, call: &Call) -> Result<pb::AuthRoleListResponse, Status> {
        self.allow_root(call)?;
        Ok(pb::AuthRoleListResponse { header: Some(self.header()), roles: self.admin.roles() })
    }
}
