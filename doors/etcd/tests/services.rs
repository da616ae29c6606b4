//! Leases, locks, elections, users, maintenance and health, through gRPC clients.

mod common;

use common::{Served, refused};
use dhow_door_etcd::{Config, Jwt, Tokens};
use dhow_kv::Error;
use dhow_kv::admin::AuthChange;
use dhow_rpc::etcdserverpb as pb;
use dhow_rpc::health::{HealthCheckRequest, health_client::HealthClient};
use dhow_rpc::v3electionpb::{self as election, election_client::ElectionClient};
use dhow_rpc::v3lockpb::{self as lock, lock_client::LockClient};
use dhow_rpc::{authpb, etcdserverpb::auth_client::AuthClient};
use futures::StreamExt as _;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use sha2::Digest as _;
use tonic::{Code, Request};

/// Without rounds for hashing: the tests need no safety.
fn quick() -> Config {
    Config { bcrypt_cost: 4, ..Config::default() }
}

#[tokio::test]
async fn leases_are_granted_renewed_and_revoked() {
    let served = Served::new(quick()).await;
    let mut client = LeaseClient::new(served.channel().await);
    let grant = pb::LeaseGrantRequest { ttl: 100, id: 5 };
    let lease = client.lease_grant(grant).await.unwrap().into_inner();
    assert_eq!((lease.id, lease.ttl), (5, 100));
    refused(
        client.lease_grant(grant).await,
        Code::FailedPrecondition,
        "etcdserver: lease already exists",
    );
    let huge = pb::LeaseGrantRequest { ttl: 9_000_000_001, id: 0 };
    refused(client.lease_grant(huge).await, Code::OutOfRange, "etcdserver: too large lease TTL");
    let asks = [5, 6].map(|id| pb::LeaseKeepAliveRequest { id });
    let answers = client.lease_keep_alive(futures::stream::iter(asks)).await.unwrap();
    let answers: Vec<_> = answers.into_inner().map(|a| a.unwrap()).collect().await;
    let ttls: Vec<_> = answers.iter().map(|a| (a.id, a.ttl)).collect();
    assert_eq!(ttls, [(5, 100), (6, 0)]);
    let put = pb::PutRequest { key: "k".into(), lease: 5, ..Default::default() };
    served.kv_client().await.put(put).await.unwrap();
    let ask = |id| pb::LeaseTimeToLiveRequest { id, keys: true };
    let told = client.lease_time_to_live(ask(5)).await.unwrap().into_inner();
    assert_eq!((told.granted_ttl, told.keys.len()), (100, 1));
    let told = client.lease_time_to_live(ask(6)).await.unwrap().into_inner();
    assert_eq!((told.ttl, told.granted_ttl), (-1, 0));
    let done = client.lease_revoke(pb::LeaseRevokeRequest { id: 5 }).await.unwrap();
    assert_eq!(done.into_inner().header.unwrap().revision, 3);
    refused(
        client.lease_revoke(pb::LeaseRevokeRequest { id: 5 }).await,
        Code::NotFound,
        "etcdserver: requested lease not found",
    );
    assert!(served.kv.get("k").await.unwrap().is_none());
}

#[tokio::test]
async fn a_lock_passes_to_the_oldest_who_waits() {
    let served = Served::new(quick()).await;
    let mut client = LockClient::new(served.channel().await);
    let ask = || lock::LockRequest { name: "l".into(), lease: 0 };
    let first = client.lock(ask()).await.unwrap().into_inner();
    assert!(first.key.starts_with(b"l/"));
    let mut second = tokio::spawn({
        let mut client = client.clone();
        async move { client.lock(ask()).await.unwrap().into_inner() }
    });
    // The second stands in the queue when its key is there.
    while served.kv.revision() < 3 {
        tokio::task::yield_now().await;
    }
    assert!(futures::poll!(&mut second).is_pending());
    client.unlock(lock::UnlockRequest { key: first.key }).await.unwrap();
    let second = second.await.unwrap();
    assert_eq!(second.header.unwrap().revision, 4);
}

#[tokio::test]
async fn who_gives_up_waiting_for_a_lock_leaves_the_queue() {
    let served = Served::new(quick()).await;
    let mut client = LockClient::new(served.channel().await);
    let ask = || lock::LockRequest { name: "l".into(), lease: 0 };
    client.lock(ask()).await.unwrap();
    let waiting = tokio::spawn({
        let mut client = client.clone();
        async move { client.lock(ask()).await.map(drop) }
    });
    while served.kv.revision() < 3 {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    // Its key is deleted.
    while served.kv.revision() < 4 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_election_has_one_leader_whom_observers_see() {
    let served = Served::new(quick()).await;
    let mut client = ElectionClient::new(served.channel().await);
    let name = || election::LeaderRequest { name: "e".into() };
    refused(client.leader(name()).await, Code::Unknown, "election: no leader");
    let mut seen = client.observe(name()).await.unwrap().into_inner();
    let stand = |value: &'static str| election::CampaignRequest {
        name: "e".into(),
        lease: 0,
        value: value.into(),
    };
    let first = client.campaign(stand("a")).await.unwrap().into_inner().leader.unwrap();
    assert_eq!(seen.message().await.unwrap().unwrap().kv.unwrap().value, "a");
    let second = tokio::spawn({
        let mut client = client.clone();
        async move { client.campaign(stand("b")).await.unwrap().into_inner() }
    });
    let value = election::ProclaimRequest { leader: Some(first.clone()), value: "a2".into() };
    client.proclaim(value.clone()).await.unwrap();
    assert_eq!(seen.message().await.unwrap().unwrap().kv.unwrap().value, "a2");
    client.resign(election::ResignRequest { leader: Some(first) }).await.unwrap();
    second.await.unwrap();
    assert_eq!(seen.message().await.unwrap().unwrap().kv.unwrap().value, "b");
    refused(client.proclaim(value).await, Code::Unknown, "election: not leader");
}

/// A root user and a user `u` who may read `r*` and write `w*`; authentication is on.
async fn with_users(served: &Served) -> AuthClient<tonic::transport::Channel> {
    let mut auth = AuthClient::new(served.channel().await);
    for name in ["root", "u"] {
        let user = pb::AuthUserAddRequest {
            name: name.to_owned(),
            password: format!("{name}-password"),
            ..Default::default()
        };
        auth.user_add(user).await.unwrap();
        auth.role_add(pb::AuthRoleAddRequest { name: name.to_owned() }).await.unwrap();
        let grant = pb::AuthUserGrantRoleRequest { user: name.to_owned(), role: name.to_owned() };
        auth.user_grant_role(grant).await.unwrap();
    }
    for (key, end, kind) in
        [("r", "s", authpb::permission::Type::Read), ("w", "x", authpb::permission::Type::Write)]
    {
        let perm =
            authpb::Permission { perm_type: kind.into(), key: key.into(), range_end: end.into() };
        let grant = pb::AuthRoleGrantPermissionRequest { name: "u".to_owned(), perm: Some(perm) };
        auth.role_grant_permission(grant).await.unwrap();
    }
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    auth
}

async fn token(auth: &mut AuthClient<tonic::transport::Channel>, name: &str) -> String {
    let login =
        pb::AuthenticateRequest { name: name.to_owned(), password: format!("{name}-password") };
    auth.authenticate(login).await.unwrap().into_inner().token
}

fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("token", token.parse().unwrap());
    request
}

#[tokio::test]
async fn rules_hold_for_users() {
    let served = Served::new(quick()).await;
    let mut auth = with_users(&served).await;
    let user = token(&mut auth, "u").await;
    let mut client = served.kv_client().await;
    let get = |key: &str| pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
    let put = |key: &str| pb::PutRequest { key: key.to_owned().into(), ..Default::default() };
    let denied = (Code::PermissionDenied, "etcdserver: permission denied");
    refused(client.range(get("r")).await, Code::InvalidArgument, "etcdserver: user name is empty");
    refused(
        client.range(by("nobody.1", get("r"))).await,
        Code::Unauthenticated,
        "etcdserver: invalid auth token",
    );
    client.range(by(&user, get("r"))).await.unwrap();
    refused(client.range(by(&user, get("w"))).await, denied.0, denied.1);
    refused(client.put(by(&user, put("r"))).await, denied.0, denied.1);
    client.put(by(&user, put("w"))).await.unwrap();
    let telling = pb::PutRequest { prev_kv: true, ..put("w") };
    refused(client.put(by(&user, telling)).await, denied.0, denied.1);
    let wide = pb::RangeRequest { range_end: "sa".into(), ..get("r") };
    refused(client.range(by(&user, wide)).await, denied.0, denied.1);
    // What is wrong in itself is told before what is not allowed.
    let step = pb::request_op::Request::RequestPut(put("r"));
    let success = vec![pb::RequestOp { request: Some(step) }; 2];
    let twice = pb::TxnRequest { success, ..Default::default() };
    let duplicate = "etcdserver: duplicate key given in txn request";
    refused(client.txn(by(&user, twice)).await, Code::InvalidArgument, duplicate);
    let bearer = {
        let mut request = Request::new(get("r"));
        request.metadata_mut().insert("authorization", format!("Bearer {user}").parse().unwrap());
        request
    };
    client.range(bearer).await.unwrap();
    // Only root administrates; everybody may look at themselves.
    let list = pb::AuthUserListRequest {};
    refused(auth.user_list(by(&user, list)).await, denied.0, denied.1);
    let own = pb::AuthUserGetRequest { name: "u".to_owned() };
    assert_eq!(auth.user_get(by(&user, own)).await.unwrap().into_inner().roles, ["u"]);
    // A lease with keys of others can neither be ended nor joined.
    let root = token(&mut auth, "root").await;
    let mut leases = LeaseClient::new(served.channel().await);
    let grant = pb::LeaseGrantRequest { ttl: 100, id: 9 };
    leases.lease_grant(by(&user, grant)).await.unwrap();
    let others = pb::PutRequest { lease: 9, ..put("z") };
    client.put(by(&root, others)).await.unwrap();
    let joined = pb::PutRequest { lease: 9, ..put("w") };
    refused(client.put(by(&user, joined)).await, denied.0, denied.1);
    let revoke = pb::LeaseRevokeRequest { id: 9 };
    refused(leases.lease_revoke(by(&user, revoke)).await, denied.0, denied.1);
    leases.lease_revoke(by(&root, revoke)).await.unwrap();
    // A watch that is not allowed says so and ends alone.
    let metadata = [("token", user.as_str())];
    let channel = served.channel().await;
    let mut watch = common::WatchStream::asking(channel, &metadata).await.unwrap();
    let on =
        |key: &str| pb::WatchCreateRequest { key: key.to_owned().into(), ..Default::default() };
    watch.create(on("w")).await;
    let answer = watch.next().await;
    assert!(answer.created && answer.canceled && answer.watch_id == -1);
    assert_eq!(
        answer.cancel_reason,
        "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    );
    watch.begin(on("r")).await;
}

#[tokio::test]
async fn logins_are_checked() {
    let served = Served::new(quick()).await;
    let mut auth = with_users(&served).await;
    let failed = "etcdserver: authentication failed, invalid user ID or password";
    for (name, password) in [("u", "wrong"), ("nobody", "u-password"), ("", "")] {
        let login =
            pb::AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
        refused(auth.authenticate(login).await, Code::InvalidArgument, failed);
    }
    let (name, hash) = ("cert".to_owned(), String::new());
    let add = AuthChange::UserAdd { name: name.clone(), hash, no_password: true };
    served.admin.auth_change(add).await.unwrap();
    refused(
        auth.authenticate(pb::AuthenticateRequest { name, password: "x".to_owned() }).await,
        Code::Unknown,
        "auth: authentication failed, password was given for no password user",
    );
    let root = token(&mut auth, "root").await;
    auth.auth_disable(by(&root, pb::AuthDisableRequest {})).await.unwrap();
    let login = pb::AuthenticateRequest { name: "u".to_owned(), password: "x".to_owned() };
    refused(
        auth.authenticate(login).await,
        Code::FailedPrecondition,
        "etcdserver: authentication is not enabled",
    );
}

#[tokio::test]
async fn a_snapshot_ends_with_its_digest() {
    let served = Served::local(quick()).await;
    let mut client = MaintenanceClient::new(served.channel().await);
    let mut stream = client.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    let (mut file, mut left) = (Vec::new(), Vec::new());
    while let Some(piece) = stream.message().await.unwrap() {
        left.push(piece.remaining_bytes);
        file.extend_from_slice(&piece.blob);
    }
    let (content, digest) = file.split_at(file.len() - 32);
    assert_eq!(content.len(), common::admin::SNAPSHOT);
    assert_eq!(digest, sha2::Sha256::digest(content).as_slice());
    assert_eq!(left, [38912, 6144, 0, 0]);
}

#[tokio::test]
async fn status_alarms_and_health_are_told() {
    let served = Served::local(quick()).await;
    let mut client = MaintenanceClient::new(served.channel().await);
    let raise = pb::AlarmRequest { action: 1, member_id: 3, alarm: 1 };
    client.alarm(raise).await.unwrap();
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.leader, served.member());
    assert_eq!(status.errors, ["memberID:3 alarm:NOSPACE "]);
    let ended = client.alarm(pb::AlarmRequest { action: 2, ..raise }).await.unwrap().into_inner();
    assert_eq!(ended.alarms, [pb::AlarmMember { member_id: 3, alarm: 1 }]);
    let mover = pb::MoveLeaderRequest { target_id: 1 };
    let text = Error::BadTransferee.to_string();
    refused(client.move_leader(mover).await, Code::FailedPrecondition, &text);
    served.lead(1);
    let text = Error::NotLeader.to_string();
    refused(client.move_leader(mover).await, Code::FailedPrecondition, &text);
    let mut health = HealthClient::new(served.channel().await);
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    assert_eq!(health.check(ask("")).await.unwrap().into_inner().status, 1);
    refused(health.check(ask("x")).await, Code::NotFound, "unknown service");
    let mut stream = health.watch(ask("")).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().status, 1);
}

#[tokio::test]
async fn a_signed_token_stands_for_a_user_until_the_rules_change() {
    let clock = dhow_clock::System::shared();
    let jwt = Jwt::new("HS256", b"secret", b"", std::time::Duration::from_secs(300), clock);
    let tokens = std::sync::Arc::new(Tokens::Jwt(Box::new(jwt.unwrap())));
    let served = Served::new(Config { tokens, ..quick() }).await;
    let mut auth = with_users(&served).await;
    let user = token(&mut auth, "u").await;
    assert_eq!(user.split('.').count(), 3, "{user}");
    let mut client = served.kv_client().await;
    let get = |key: &str| pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
    client.range(by(&user, get("r"))).await.unwrap();
    let denied = "etcdserver: permission denied";
    refused(client.range(by(&user, get("w"))).await, Code::PermissionDenied, denied);
    let (invalid, mut forged) = ("etcdserver: invalid auth token", user.clone());
    forged.pop();
    refused(client.range(by(&forged, get("r"))).await, Code::Unauthenticated, invalid);
    // Its time is that of the rules it was made under: whoever has it logs in again.
    let root = token(&mut auth, "root").await;
    let role = pb::AuthRoleAddRequest { name: "another".to_owned() };
    auth.role_add(by(&root, role)).await.unwrap();
    let old = "etcdserver: revision of auth store is old";
    refused(client.range(by(&user, get("r"))).await, Code::InvalidArgument, old);
    let user = token(&mut auth, "u").await;
    client.range(by(&user, get("r"))).await.unwrap();
}

#[tokio::test]
async fn without_tokens_nobody_logs_in() {
    let tokens = std::sync::Arc::new(Tokens::None);
    let served = Served::new(Config { tokens, ..quick() }).await;
    let mut auth = with_users(&served).await;
    let login = pb::AuthenticateRequest { name: "u".into(), password: "u-password".into() };
    let invalid = "etcdserver: invalid auth token";
    refused(auth.authenticate(login).await, Code::Unauthenticated, invalid);
}

#[tokio::test]
async fn a_downgrade_shows_in_the_versions_until_it_is_ended() {
    use pb::downgrade_request::DowngradeAction::{self as Action, Cancel, Enable, Validate};
    let served = Served::new(quick()).await;
    let mut client = MaintenanceClient::new(served.channel().await);
    let ask = |action: Action, version: &str| pb::DowngradeRequest {
        action: action.into(),
        version: version.to_owned(),
    };
    for bad in ["3.x", "", "3"] {
        let format = "etcdserver: wrong downgrade target version format";
        refused(client.downgrade(ask(Validate, bad)).await, Code::InvalidArgument, format);
    }
    let target = "etcdserver: invalid downgrade target version";
    for bad in ["3.7", "3.5.0", "4.6"] {
        refused(client.downgrade(ask(Enable, bad)).await, Code::InvalidArgument, target);
    }
    let told = client.downgrade(ask(Validate, "3.6")).await.unwrap().into_inner();
    assert_eq!(told.version, "3.7");
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.downgrade_info, Some(pb::DowngradeInfo::default()));

    let told = client.downgrade(ask(Enable, "3.6.0")).await.unwrap().into_inner();
    assert_eq!(told.version, "3.7");
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.version.as_str(), status.storage_version.as_str()), ("3.7.3", "3.6.0"));
    let under_way = pb::DowngradeInfo { enabled: true, target_version: "3.6.0".into() };
    assert_eq!(status.downgrade_info, Some(under_way));
    let busy = "etcdserver: cluster has a downgrade job in progress";
    for next in ["3.5", "3.6"] {
        refused(client.downgrade(ask(Enable, next)).await, Code::FailedPrecondition, busy);
    }
    refused(client.downgrade(ask(Enable, "3.4")).await, Code::InvalidArgument, target);

    for _ in 0..2 {
        let told = client.downgrade(ask(Cancel, "")).await.unwrap().into_inner();
        assert_eq!(told.version, "3.7");
    }
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.storage_version, "3.7.0");
}
