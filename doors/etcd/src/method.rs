//! The table of all methods: gRPC path, kind, message types, gateway paths.

/// How many messages go each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One and one.
    Unary,
    /// One request, many answers.
    ServerStream,
    /// Many and many.
    BidiStream,
}

impl Kind {
    /// The value of the label `grpc_type`.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) service: &'static str,
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The full names of the messages.
    pub(crate) request: &'static str,
    pub(crate) response: &'static str,
    /// Where the gateway takes it.
    #[cfg(test)]
    pub(crate) gateway: &'static [&'static str],
}

macro_rules! methods {
    ($($id:ident $package:literal $service:literal $name:literal $kind:ident
        $request:literal $response:literal [$($gateway:literal)*];)*) => {
        /// A method of a service.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Method { $($id),* }

        impl Method {
            /// All of them, in the order of the table.
            pub(crate) const ALL: &'static [Method] = &[$(Method::$id),*];

            /// The rows, indexed by the method.
            const ROWS: &'static [Row] = &[$(Row {
                service: concat!($package, ".", $service),
                name: $name,
                kind: Kind::$kind,
                request: concat!($package, ".", $request),
                response: concat!($package, ".", $response),
                #[cfg(test)]
                gateway: &[$($gateway),*],
            }),*];

            /// The method of a gRPC path.
            pub(crate) fn find(path: &str) -> Option<Self> {
                match path {
                    $(concat!("/", $package, ".", $service, "/", $name) => Some(Self::$id),)*
                    _ => None,
                }
            }

            /// The method of a gateway's path.
            pub(crate) fn find_gateway(path: &str) -> Option<Self> {
                match path {
                    $($($gateway => Some(Self::$id),)*)*
                    _ => None,
                }
            }
        }
    };
}

methods! {
    Range "etcdserverpb" "KV" "Range" Unary "RangeRequest" "RangeResponse" ["/v3/kv/range"];
    Put "etcdserverpb" "KV" "Put" Unary "PutRequest" "PutResponse" ["/v3/kv/put"];
    Txn "etcdserverpb" "KV" "Txn" Unary "TxnRequest" "TxnResponse" ["/v3/kv/txn"];
    DeleteRange "etcdserverpb" "KV" "DeleteRange" Unary "DeleteRangeRequest" "DeleteRangeResponse" ["/v3/kv/deleterange"];
    RangeStream "etcdserverpb" "KV" "RangeStream" ServerStream "RangeRequest" "RangeStreamResponse" [];
    Compact "etcdserverpb" "KV" "Compact" Unary "CompactionRequest" "CompactionResponse" ["/v3/kv/compaction"];
    Watch "etcdserverpb" "Watch" "Watch" BidiStream "WatchRequest" "WatchResponse" ["/v3/watch"];
    LeaseGrant "etcdserverpb" "Lease" "LeaseGrant" Unary "LeaseGrantRequest" "LeaseGrantResponse" ["/v3/lease/grant"];
    LeaseRevoke "etcdserverpb" "Lease" "LeaseRevoke" Unary "LeaseRevokeRequest" "LeaseRevokeResponse" ["/v3/lease/revoke" "/v3/kv/lease/revoke"];
    LeaseKeepAlive "etcdserverpb" "Lease" "LeaseKeepAlive" BidiStream "LeaseKeepAliveRequest" "LeaseKeepAliveResponse" ["/v3/lease/keepalive"];
    LeaseTimeToLive "etcdserverpb" "Lease" "LeaseTimeToLive" Unary "LeaseTimeToLiveRequest" "LeaseTimeToLiveResponse" ["/v3/lease/timetolive" "/v3/kv/lease/timetolive"];
    LeaseLeases "etcdserverpb" "Lease" "LeaseLeases" Unary "LeaseLeasesRequest" "LeaseLeasesResponse" ["/v3/lease/leases" "/v3/kv/lease/leases"];
    MemberAdd "etcdserverpb" "Cluster" "MemberAdd" Unary "MemberAddRequest" "MemberAddResponse" ["/v3/cluster/member/add"];
    MemberRemove "etcdserverpb" "Cluster" "MemberRemove" Unary "MemberRemoveRequest" "MemberRemoveResponse" ["/v3/cluster/member/remove"];
    MemberUpdate "etcdserverpb" "Cluster" "MemberUpdate" Unary "MemberUpdateRequest" "MemberUpdateResponse" ["/v3/cluster/member/update"];
    MemberList "etcdserverpb" "Cluster" "MemberList" Unary "MemberListRequest" "MemberListResponse" ["/v3/cluster/member/list"];
    MemberPromote "etcdserverpb" "Cluster" "MemberPromote" Unary "MemberPromoteRequest" "MemberPromoteResponse" ["/v3/cluster/member/promote"];
    Alarm "etcdserverpb" "Maintenance" "Alarm" Unary "AlarmRequest" "AlarmResponse" ["/v3/maintenance/alarm"];
    Status "etcdserverpb" "Maintenance" "Status" Unary "StatusRequest" "StatusResponse" ["/v3/maintenance/status"];
    Defragment "etcdserverpb" "Maintenance" "Defragment" Unary "DefragmentRequest" "DefragmentResponse" ["/v3/maintenance/defragment"];
    Hash "etcdserverpb" "Maintenance" "Hash" Unary "HashRequest" "HashResponse" ["/v3/maintenance/hash"];
    HashKv "etcdserverpb" "Maintenance" "HashKV" Unary "HashKVRequest" "HashKVResponse" ["/v3/maintenance/hashkv"];
    Snapshot "etcdserverpb" "Maintenance" "Snapshot" ServerStream "SnapshotRequest" "SnapshotResponse" ["/v3/maintenance/snapshot"];
    MoveLeader "etcdserverpb" "Maintenance" "MoveLeader" Unary "MoveLeaderRequest" "MoveLeaderResponse" ["/v3/maintenance/transfer-leadership"];
    Downgrade "etcdserverpb" "Maintenance" "Downgrade" Unary "DowngradeRequest" "DowngradeResponse" ["/v3/maintenance/downgrade"];
    AuthEnable "etcdserverpb" "Auth" "AuthEnable" Unary "AuthEnableRequest" "AuthEnableResponse" ["/v3/auth/enable"];
    AuthDisable "etcdserverpb" "Auth" "AuthDisable" Unary "AuthDisableRequest" "AuthDisableResponse" ["/v3/auth/disable"];
    AuthStatus "etcdserverpb" "Auth" "AuthStatus" Unary "AuthStatusRequest" "AuthStatusResponse" ["/v3/auth/status"];
    Authenticate "etcdserverpb" "Auth" "Authenticate" Unary "AuthenticateRequest" "AuthenticateResponse" ["/v3/auth/authenticate"];
    UserAdd "etcdserverpb" "Auth" "UserAdd" Unary "AuthUserAddRequest" "AuthUserAddResponse" ["/v3/auth/user/add"];
    UserGet "etcdserverpb" "Auth" "UserGet" Unary "AuthUserGetRequest" "AuthUserGetResponse" ["/v3/auth/user/get"];
    UserList "etcdserverpb" "Auth" "UserList" Unary "AuthUserListRequest" "AuthUserListResponse" ["/v3/auth/user/list"];
    UserDelete "etcdserverpb" "Auth" "UserDelete" Unary "AuthUserDeleteRequest" "AuthUserDeleteResponse" ["/v3/auth/user/delete"];
    UserChangePassword "etcdserverpb" "Auth" "UserChangePassword" Unary "AuthUserChangePasswordRequest" "AuthUserChangePasswordResponse" ["/v3/auth/user/changepw"];
    UserGrantRole "etcdserverpb" "Auth" "UserGrantRole" Unary "AuthUserGrantRoleRequest" "AuthUserGrantRoleResponse" ["/v3/auth/user/grant"];
    UserRevokeRole "etcdserverpb" "Auth" "UserRevokeRole" Unary "AuthUserRevokeRoleRequest" "AuthUserRevokeRoleResponse" ["/v3/auth/user/revoke"];
    RoleAdd "etcdserverpb" "Auth" "RoleAdd" Unary "AuthRoleAddRequest" "AuthRoleAddResponse" ["/v3/auth/role/add"];
    RoleGet "etcdserverpb" "Auth" "RoleGet" Unary "AuthRoleGetRequest" "AuthRoleGetResponse" ["/v3/auth/role/get"];
    RoleList "etcdserverpb" "Auth" "RoleList" Unary "AuthRoleListRequest" "AuthRoleListResponse" ["/v3/auth/role/list"];
    RoleDelete "etcdserverpb" "Auth" "RoleDelete" Unary "AuthRoleDeleteRequest" "AuthRoleDeleteResponse" ["/v3/auth/role/delete"];
    RoleGrantPermission "etcdserverpb" "Auth" "RoleGrantPermission" Unary "AuthRoleGrantPermissionRequest" "AuthRoleGrantPermissionResponse" ["/v3/auth/role/grant"];
    RoleRevokePermission "etcdserverpb" "Auth" "RoleRevokePermission" Unary "AuthRoleRevokePermissionRequest" "AuthRoleRevokePermissionResponse" ["/v3/auth/role/revoke"];
    Campaign "v3electionpb" "Election" "Campaign" Unary "CampaignRequest" "CampaignResponse" ["/v3/election/campaign"];
    Proclaim "v3electionpb" "Election" "Proclaim" Unary "ProclaimRequest" "ProclaimResponse" ["/v3/election/proclaim"];
    Leader "v3electionpb" "Election" "Leader" Unary "LeaderRequest" "LeaderResponse" ["/v3/election/leader"];
    Observe "v3electionpb" "Election" "Observe" ServerStream "LeaderRequest" "LeaderResponse" ["/v3/election/observe"];
    Resign "v3electionpb" "Election" "Resign" Unary "ResignRequest" "ResignResponse" ["/v3/election/resign"];
    Lock "v3lockpb" "Lock" "Lock" Unary "LockRequest" "LockResponse" ["/v3/lock/lock"];
    Unlock "v3lockpb" "Lock" "Unlock" Unary "UnlockRequest" "UnlockResponse" ["/v3/lock/unlock"];
    HealthCheck "grpc.health.v1" "Health" "Check" Unary "HealthCheckRequest" "HealthCheckResponse" [];
    HealthWatch "grpc.health.v1" "Health" "Watch" ServerStream "HealthCheckRequest" "HealthCheckResponse" [];
}

impl Method {
    /// Whether it may take as long as another client likes.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Self::Lock | Self::Campaign)
    }

    /// What the table tells of it.
    pub(crate) fn row(self) -> &'static Row {
        &Self::ROWS[self as usize]
    }

    /// Whether what it brings may be kept: then it gets a buffer of its own size, so that a stored
    /// value does not hold a connection's read buffer.
    pub(crate) fn keeps_bytes(self) -> bool {
        matches!(
            self,
            Self::Put | Self::Txn | Self::Campaign | Self::Proclaim | Self::RoleGrantPermission
        )
    }
}

/// Why no method has that path, as gRPC servers say it.
pub(crate) fn unknown(path: &str) -> String {
    let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.rsplit_once('/')) else {
        return format!("malformed method name: \"{path}\"");
    };
    if Method::ALL.iter().any(|m| m.row().service == service) {
        format!("unknown method {method} for service {service}")
    } else {
        format!("unknown service {service}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_paths() {
        for method in Method::ALL {
            let row = method.row();
            assert_eq!(Method::find(&format!("/{}/{}", row.service, row.name)), Some(*method));
            for path in row.gateway {
                assert_eq!(Method::find_gateway(path), Some(*method));
            }
        }
    }

    #[test]
    fn unknown_paths_are_named() {
        assert_eq!(unknown("/a.B/C"), "unknown service a.B");
        assert_eq!(unknown("/etcdserverpb.KV/C"), "unknown method C for service etcdserverpb.KV");
    }
}
