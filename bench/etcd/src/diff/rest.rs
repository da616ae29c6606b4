//! Random requests of all services but KV and Watch, good and bad.

use super::Place;
use super::call::Call;
use super::keys::{end, key, revision};
use crate::load::Dice;
use bytes::Bytes;
use dhow_rpc::authpb::{Permission, UserAddOptions};
use dhow_rpc::etcdserverpb as pb;
use dhow_rpc::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use dhow_rpc::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};

/// A lease of few.
fn id(dice: &mut Dice) -> i64 {
    1 + dice.below(12) as i64
}

/// A request of the lease service.
pub fn lease(dice: &mut Dice) -> Call {
    match dice.below(10) {
        0..4 => {
            // Never so short that it ends while requests are sent.
            let ttl = [3_600, 7_200, 9_000_000_001, 9_000_000_000][dice.below(4) as usize];
            let grant = pb::LeaseGrantRequest { ttl, id: id(dice) };
            Call::new::<pb::LeaseGrantResponse>("/etcdserverpb.Lease/LeaseGrant", &grant)
        }
        4 | 5 => {
            let revoke = pb::LeaseRevokeRequest { id: id(dice) };
            Call::new::<pb::LeaseRevokeResponse>("/etcdserverpb.Lease/LeaseRevoke", &revoke)
        }
        6 => {
            let alive = pb::LeaseKeepAliveRequest { id: id(dice) };
            Call::new::<pb::LeaseKeepAliveResponse>("/etcdserverpb.Lease/LeaseKeepAlive", &alive)
        }
        7 | 8 => {
            let ask = pb::LeaseTimeToLiveRequest { id: id(dice), keys: dice.below(2) == 0 };
            let path = "/etcdserverpb.Lease/LeaseTimeToLive";
            Call::new::<pb::LeaseTimeToLiveResponse>(path, &ask)
        }
        _ => {
            let path = "/etcdserverpb.Lease/LeaseLeases";
            Call::new::<pb::LeaseLeasesResponse>(path, &pb::LeaseLeasesRequest {})
        }
    }
}

fn user(dice: &mut Dice) -> String {
    let names = ["root", "alice", "bob", "alice", "bob", "carol", "dave", ""];
    names[dice.below(8) as usize].to_owned()
}

fn role(dice: &mut Dice) -> String {
    let names = ["root", "reader", "writer", "odd", "reader", "writer", "odd", ""];
    names[dice.below(8) as usize].to_owned()
}

fn password(dice: &mut Dice) -> String {
    ["secret", "better", ""][dice.below(3) as usize].to_owned()
}

/// A request of the auth service; with `enable` also those that switch it on and off.
pub fn auth(dice: &mut Dice, enable: bool) -> Call {
    match dice.below(if enable { 20 } else { 17 }) {
        0 => {
            let add = pb::AuthUserAddRequest {
                name: user(dice),
                password: password(dice),
                options: Some(UserAddOptions { no_password: dice.below(4) == 0 }),
                hashed_password: String::new(),
            };
            Call::new::<pb::AuthUserAddResponse>("/etcdserverpb.Auth/UserAdd", &add)
        }
        1 | 2 => {
            let get = pb::AuthUserGetRequest { name: user(dice) };
            Call::new::<pb::AuthUserGetResponse>("/etcdserverpb.Auth/UserGet", &get)
        }
        3 => {
            let path = "/etcdserverpb.Auth/UserList";
            Call::new::<pb::AuthUserListResponse>(path, &pb::AuthUserListRequest {})
        }
        4 => {
            let delete = pb::AuthUserDeleteRequest { name: user(dice) };
            Call::new::<pb::AuthUserDeleteResponse>("/etcdserverpb.Auth/UserDelete", &delete)
        }
        5 => {
            let change = pb::AuthUserChangePasswordRequest {
                name: user(dice),
                password: password(dice),
                hashed_password: String::new(),
            };
            let path = "/etcdserverpb.Auth/UserChangePassword";
            Call::new::<pb::AuthUserChangePasswordResponse>(path, &change)
        }
        6 | 7 => {
            let grant = pb::AuthUserGrantRoleRequest { user: user(dice), role: role(dice) };
            let path = "/etcdserverpb.Auth/UserGrantRole";
            Call::new::<pb::AuthUserGrantRoleResponse>(path, &grant)
        }
        8 => {
            let revoke = pb::AuthUserRevokeRoleRequest { name: user(dice), role: role(dice) };
            let path = "/etcdserverpb.Auth/UserRevokeRole";
            Call::new::<pb::AuthUserRevokeRoleResponse>(path, &revoke)
        }
        9 => {
            let add = pb::AuthRoleAddRequest { name: role(dice) };
            Call::new::<pb::AuthRoleAddResponse>("/etcdserverpb.Auth/RoleAdd", &add)
        }
        10 | 11 => {
            let get = pb::AuthRoleGetRequest { role: role(dice) };
            Call::new::<pb::AuthRoleGetResponse>("/etcdserverpb.Auth/RoleGet", &get)
        }
        12 => {
            let path = "/etcdserverpb.Auth/RoleList";
            Call::new::<pb::AuthRoleListResponse>(path, &pb::AuthRoleListRequest {})
        }
        13 => {
            let delete = pb::AuthRoleDeleteRequest { role: role(dice) };
            Call::new::<pb::AuthRoleDeleteResponse>("/etcdserverpb.Auth/RoleDelete", &delete)
        }
        14 | 15 => {
            let key = key(dice);
            let range_end = end(dice, &key);
            let perm_type = dice.below(3) as i32;
            let permission = Permission { perm_type, key, range_end };
            let perm = (dice.below(20) > 0).then_some(permission);
            let grant = pb::AuthRoleGrantPermissionRequest { name: role(dice), perm };
            let path = "/etcdserverpb.Auth/RoleGrantPermission";
            Call::new::<pb::AuthRoleGrantPermissionResponse>(path, &grant)
        }
        16 => {
            let key = key(dice);
            let range_end = end(dice, &key);
            let revoke = pb::AuthRoleRevokePermissionRequest { role: role(dice), key, range_end };
            let path = "/etcdserverpb.Auth/RoleRevokePermission";
            Call::new::<pb::AuthRoleRevokePermissionResponse>(path, &revoke)
        }
        17 => authenticate(&user(dice), &password(dice)),
        18 => {
            let path = "/etcdserverpb.Auth/AuthEnable";
            Call::new::<pb::AuthEnableResponse>(path, &pb::AuthEnableRequest {})
        }
        _ => {
            let path = "/etcdserverpb.Auth/AuthDisable";
            Call::new::<pb::AuthDisableResponse>(path, &pb::AuthDisableRequest {})
        }
    }
}

/// A request for a token.
pub fn authenticate(name: &str, password: &str) -> Call {
    let (name, password) = (name.to_owned(), password.to_owned());
    let ask = pb::AuthenticateRequest { name, password };
    Call::new::<pb::AuthenticateResponse>("/etcdserverpb.Auth/Authenticate", &ask)
}

/// A request about members or maintenance that changes nothing.
pub fn cluster(dice: &mut Dice, place: &Place) -> Call {
    match dice.below(13) {
        0 => {
            let list = pb::MemberListRequest { linearizable: dice.below(2) == 0 };
            Call::new::<pb::MemberListResponse>("/etcdserverpb.Cluster/MemberList", &list)
        }
        1 => {
            let remove = pb::MemberRemoveRequest { id: dice.below(3) };
            Call::new::<pb::MemberRemoveResponse>("/etcdserverpb.Cluster/MemberRemove", &remove)
        }
        2 => {
            let peer_ur_ls = vec!["http://127.0.0.1:1".to_owned()];
            let update = pb::MemberUpdateRequest { id: dice.below(3), peer_ur_ls };
            Call::new::<pb::MemberUpdateResponse>("/etcdserverpb.Cluster/MemberUpdate", &update)
        }
        3 => {
            let promote = pb::MemberPromoteRequest { id: dice.below(3) };
            Call::new::<pb::MemberPromoteResponse>("/etcdserverpb.Cluster/MemberPromote", &promote)
        }
        4 => {
            let urls = ["", "nonsense", "http://127.0.0.1", "ftp://127.0.0.1:1"];
            let peer_ur_ls = vec![urls[dice.below(4) as usize].to_owned()];
            let add = pb::MemberAddRequest { peer_ur_ls, is_learner: dice.below(2) == 0 };
            Call::new::<pb::MemberAddResponse>("/etcdserverpb.Cluster/MemberAdd", &add)
        }
        5 => {
            let alarm = pb::AlarmRequest {
                // Only asked for and disarmed: nobody raises one here.
                action: [0, 0, 2][dice.below(3) as usize],
                member_id: 0,
                alarm: dice.below(3) as i32,
            };
            Call::new::<pb::AlarmResponse>("/etcdserverpb.Maintenance/Alarm", &alarm)
        }
        6 => {
            let path = "/etcdserverpb.Maintenance/Status";
            Call::new::<pb::StatusResponse>(path, &pb::StatusRequest {})
        }
        7..10 => {
            // etcd answers with the hash of nothing to a negative revision.
            let revision = if dice.below(2) == 0 { 0 } else { revision(dice, place).max(0) };
            let hash = pb::HashKvRequest { revision };
            Call::new::<pb::HashKvResponse>("/etcdserverpb.Maintenance/HashKV", &hash)
        }
        10 => {
            let path = "/etcdserverpb.Maintenance/Defragment";
            Call::new::<pb::DefragmentResponse>(path, &pb::DefragmentRequest {})
        }
        11 => {
            let target = pb::MoveLeaderRequest { target_id: dice.below(3) };
            Call::new::<pb::MoveLeaderResponse>("/etcdserverpb.Maintenance/MoveLeader", &target)
        }
        _ => {
            let downgrade = pb::DowngradeRequest {
                action: [0, 2][dice.below(2) as usize],
                version: ["", "nonsense", "9.9.0", "2.0.0"][dice.below(4) as usize].to_owned(),
            };
            Call::new::<pb::DowngradeResponse>("/etcdserverpb.Maintenance/Downgrade", &downgrade)
        }
    }
}

/// A request of the services for elections and locks that does not wait.
pub fn concurrency(dice: &mut Dice) -> Call {
    // Each name has one candidate only, so that nobody stands in a queue.
    let name = Bytes::from(format!("e{}", dice.below(4)));
    let lease = i64::from(name[1] - b'0') + 1;
    let leader = LeaderKey {
        name: name.clone(),
        key: Bytes::from(format!("e{}/{lease:x}", lease - 1)),
        rev: 1 + dice.below(50) as i64,
        lease,
    };
    let leader = (dice.below(10) > 0).then_some(leader);
    match dice.below(7) {
        0 | 1 => {
            let campaign = CampaignRequest { name, lease, value: Bytes::from_static(b"me") };
            Call::new::<CampaignResponse>("/v3electionpb.Election/Campaign", &campaign)
        }
        2 => {
            let ask = LeaderRequest { name };
            Call::new::<LeaderResponse>("/v3electionpb.Election/Leader", &ask)
        }
        3 => {
            let proclaim = ProclaimRequest { leader, value: Bytes::from_static(b"still me") };
            Call::new::<ProclaimResponse>("/v3electionpb.Election/Proclaim", &proclaim)
        }
        4 => {
            Call::new::<ResignResponse>("/v3electionpb.Election/Resign", &ResignRequest { leader })
        }
        5 => {
            let name = Bytes::from(format!("l{}", lease - 1));
            Call::new::<LockResponse>("/v3lockpb.Lock/Lock", &LockRequest { name, lease })
        }
        _ => {
            let key = Bytes::from(format!("l{}/{lease:x}", lease - 1));
            Call::new::<UnlockResponse>("/v3lockpb.Lock/Unlock", &UnlockRequest { key })
        }
    }
}

/// Bytes that are no request, and methods that are none.
pub fn nonsense(dice: &mut Dice) -> Call {
    let bytes = (0..dice.below(20)).map(|_| dice.below(256) as u8).collect::<Vec<u8>>();
    match dice.below(7) {
        0 => Call::raw::<pb::PutResponse>("/etcdserverpb.KV/Put", bytes.into()),
        1 => Call::raw::<pb::TxnResponse>("/etcdserverpb.KV/Txn", bytes.into()),
        2 => Call::raw::<pb::RangeResponse>("/etcdserverpb.KV/Range", bytes.into()),
        3 => Call::raw::<pb::LeaseGrantResponse>("/etcdserverpb.Lease/LeaseRevoke", bytes.into()),
        4 => Call::raw::<pb::PutResponse>("/etcdserverpb.KV/Nothing", Bytes::new()),
        5 => Call::raw::<pb::PutResponse>("/nothing.Nothing/Nothing", Bytes::new()),
        // A field of a later release is passed over.
        _ => Call::raw::<pb::RangeResponse>(
            "/etcdserverpb.KV/Range",
            Bytes::from_static(b"\x0a\x03a/1\xfa\x7f\x03new"),
        ),
    }
}
