//! Users, tokens, alarms, checksums and snapshots, on one member and on several.

mod common;

use common::net::Nodes;
use common::*;
use dhow_bolt::etcd::Snapshot;
use dhow_kv::admin::{
    Access, Admin, Alarm, AlarmKind, AuthChange, AuthStatus, Caller, HashKv, Need, Permission,
};
use dhow_kv::{Backend, Error, Op, Range, Span, Txn};
use dhow_mvcc::Machine;
use dhow_server::{Options, Store};
use std::io::Cursor;
use std::time::Duration;

async fn snapshot(store: &Store) -> Vec<u8> {
    let mut reader = store.snapshot().await.unwrap();
    let announced = reader.remaining();
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert_eq!((bytes.len() as u64, reader.remaining()), (announced, 0));
    bytes
}

/// A history with overwrites, deletes, leases and a compaction.
async fn history(store: &dyn Backend) {
    store.lease_grant(5, 600).await.unwrap();
    put_leased(store, "leased", 5).await.unwrap();
    for n in 0..300 {
        put(store, &format!("k{:03}", n * 7 % 100), &format!("{n}")).await;
        if n % 9 == 0 {
            delete(store, &format!("k{:03}", n * 5 % 100)).await;
        }
    }
    store.compact(store.revision() - 100, true).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn all_members_have_the_same_checksums_and_snapshots() {
    let nodes = Nodes::start(3, &Options { retention: None, ..Options::default() });
    nodes.leader().await;
    history(&**nodes.store(0)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let revision = nodes.store(0).revision();
    let first = nodes.store(0).hash_kv(0).await.unwrap();
    assert_eq!((first.hash_revision, first.compact_revision), (revision, revision - 100));
    let (hash, file) = (nodes.store(0).hash().await.unwrap(), snapshot(nodes.store(0)).await);
    for at in 0..3 {
        let store = nodes.store(at);
        assert_eq!(store.hash_kv(revision).await.unwrap(), first);
        assert_eq!(store.hash().await.unwrap(), hash);
        assert_eq!(snapshot(store).await.len(), file.len());
        assert_eq!(store.hash_kv(revision - 101).await, Err(Error::Compacted));
        assert_eq!(store.hash_kv(revision + 1).await, Err(Error::FutureRevision));
    }
    let mut read = Snapshot::open_unchecked(Cursor::new(file)).unwrap();
    let state = read.state();
    assert_eq!(state.members.len(), 3);
    assert!(state.members.iter().all(|member| member.name.starts_with('m')));
    let machine = Machine::from_etcd(&mut read).unwrap();
    assert_eq!(machine.mvcc.revision(), revision);
    assert_eq!(machine.mvcc.lease_keys(5), ["leased"]);
    let mut run = machine.mvcc.hash_kv(revision, revision).unwrap();
    let again: HashKv = loop {
        if let Some(hash) = run.step(&machine.mvcc, 1 << 20) {
            break hash;
        }
    };
    assert_eq!(again, first);
}

#[tokio::test(start_paused = true)]
async fn the_checksum_at_a_compaction_stays_what_it_was_before_it() {
    let options = Options { retention: None, compaction_checksums: true, ..Options::default() };
    let nodes = Nodes::start(3, &options);
    nodes.leader().await;
    let store = nodes.store(0);
    history(&**store).await;
    let mut known = Vec::new();
    for _ in 0..12 {
        for n in 0..10 {
            put(&**store, &format!("k{n}"), "x").await;
        }
        let revision = delete(&**store, "k0").await;
        known.push(store.hash_kv(revision).await.unwrap());
        store.compact(revision, true).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for at in 0..3 {
        // The newest ten are kept, by every member, each with the compaction before it.
        for before in &known[2..] {
            assert_eq!(nodes.store(at).hash_kv(before.hash_revision).await, Ok(*before));
        }
        let old = nodes.store(at).hash_kv(known[1].hash_revision).await;
        assert_eq!(old, Err(Error::Compacted));
        // A newer revision is computed from what there is.
        let now = nodes.store(at).hash_kv(0).await.unwrap();
        assert_eq!(now.compact_revision, known[11].hash_revision);
    }
}

#[tokio::test]
async fn a_physical_compaction_waits_for_its_checksum_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let clock = dhow_clock::System::shared();
    let options = Options { compaction_checksums: true, ..Options::default() };
    let store = Store::open(home.path(), clock, options).unwrap();
    history(&*store).await;
    // Nobody asks for anything else meanwhile.
    for _ in 0..20 {
        put(&*store, "k", "v").await;
        let revision = store.revision();
        let before = store.hash_kv(revision).await.unwrap();
        store.compact(revision, true).await.unwrap();
        assert_eq!(store.hash_kv(revision).await, Ok(before));
    }
    store.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_on_a_disk_leaves_no_file_and_writes_go_on_meanwhile() {
    let home = tempfile::tempdir().unwrap();
    let clock = dhow_clock::System::shared();
    let store = Store::open(home.path(), clock, Options::default()).unwrap();
    history(&*store).await;
    let mut reader = store.snapshot().await.unwrap();
    put(&*store, "during", "1").await;
    store.compact(store.revision(), true).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    drop(reader);
    let machine = Machine::from_etcd(&mut Snapshot::open_unchecked(Cursor::new(bytes)).unwrap());
    assert_eq!(machine.unwrap().mvcc.revision(), store.revision() - 1);
    let names = std::fs::read_dir(home.path()).unwrap();
    let names: Vec<_> = names.map(|name| name.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with("snapshot")), "{names:?}");
    store.defragment().await.unwrap();
    let status = Admin::status(&*store);
    assert!(status.db_size >= status.db_size_in_use && status.db_size_in_use > 0);
    assert!(store.hash().await.is_ok());
    store.shutdown().await;
    assert_eq!(store.hash().await, Err(Error::Stopped));
}

async fn with_users(store: &Store) {
    let hash = "$2a$10$abcdefghijklmnopqrstuv".to_owned();
    let user = |name: &str| AuthChange::UserAdd {
        name: name.into(),
        hash: hash.clone(),
        no_password: false,
    };
    let grant =
        |user: &str, role: &str| AuthChange::UserGrantRole { user: user.into(), role: role.into() };
    let permission = Permission { access: Access::ReadWrite, span: Span::prefix("ann/") };
    assert_eq!(store.auth_change(AuthChange::Enable).await, Err(Error::NoRootUser));
    for change in [
        user("root"),
        AuthChange::RoleAdd("root".into()),
        grant("root", "root"),
        user("ann"),
        AuthChange::RoleAdd("own".into()),
        AuthChange::RoleGrant { role: "own".into(), permission },
        grant("ann", "own"),
        AuthChange::Enable,
    ] {
        store.auth_change(change).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn users_and_tokens_are_the_same_on_all_members_and_after_a_restart() {
    let mut nodes = Nodes::start(3, &Options { secret: Some([7; 32]), ..Options::default() });
    nodes.leader().await;
    let before = nodes.store(1).auth_status().revision;
    let nameless = || Txn { success: vec![Op::put("x", "1")], ..Txn::default() };
    nodes.store(1).auth_change(AuthChange::RoleAdd("other".into())).await.unwrap();
    // Nobody is asked for a name: it does not matter how old the rules are that one knows.
    nodes.store(1).txn_as(nameless(), before).await.unwrap();
    with_users(nodes.store(0)).await;
    // A member that had not heard yet that names are asked for does not let anybody in.
    assert_eq!(nodes.store(1).txn_as(nameless(), before).await, Err(Error::AuthOldRevision));
    let token = nodes.store(1).token_issue("ann".into()).await.unwrap();
    let caller = nodes.store(1).token_user(&token).unwrap();
    assert_eq!(caller.user.as_deref(), Some("ann"));
    // Whatever is read by quorum has seen the token.
    nodes.store(2).range(Range::all(Span::Key("a".into()))).await.unwrap();
    assert_eq!(nodes.store(2).token_user(&token), Some(caller.clone()));
    let own = Need::Write(Span::Key("ann/x".into()));
    let other = Need::Read(Span::Key("bob/x".into()));
    assert_eq!(nodes.store(2).authorize(&caller, &[own]), Ok(()));
    assert_eq!(nodes.store(2).authorize(&caller, &[other]), Err(Error::PermissionDenied));
    assert_eq!(
        nodes.store(2).authorize(&Caller::default(), &[Need::Root]),
        Err(Error::UserNameEmpty)
    );
    // A permission that is taken away is not used any more once that was acknowledged.
    let allowed = nodes.store(0).auth_status().revision;
    let taken = AuthChange::UserRevokeRole { user: "ann".into(), role: "own".into() };
    let txn = || Txn { success: vec![Op::put("ann/x", "1")], ..Txn::default() };
    nodes.store(1).txn_as(txn(), allowed).await.unwrap();
    nodes.store(0).auth_change(taken).await.unwrap();
    assert_eq!(nodes.store(0).auth_status(), AuthStatus { enabled: true, revision: allowed + 1 });
    assert_eq!(nodes.store(1).txn_as(txn(), allowed).await, Err(Error::AuthOldRevision));
    for at in 0..3 {
        nodes.crash(at);
    }
    for at in 0..3 {
        nodes.restart(at);
    }
    nodes.leader().await;
    nodes.store(0).range(Range::all(Span::Key("a".into()))).await.unwrap();
    assert_eq!(nodes.store(0).auth_status(), AuthStatus { enabled: true, revision: allowed + 1 });
    assert_eq!(nodes.store(0).users(), ["ann", "root"]);
    assert_eq!(nodes.store(0).user("ann").unwrap(), Vec::<String>::new());
    // A token that nobody uses ends.
    let token = nodes.store(0).token_issue("ann".into()).await.unwrap();
    assert!(nodes.store(0).token_user(&token).is_some());
    tokio::time::sleep(Duration::from_secs(299)).await;
    assert!(nodes.store(0).token_user(&token).is_some());
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(nodes.store(0).token_user(&token), None);
}

#[tokio::test]
async fn a_quota_heals_by_itself_unless_an_alarm_is_wanted() {
    let options = Options { quota_bytes: 20_000, ..Options::default() };
    for alarm in [false, true] {
        let options = Options { quota_alarm: alarm, ..options.clone() };
        let store = Store::memory_with(clock(), options);
        while run(&*store, vec![Op::put("a", vec![1; 1000])]).await.is_ok() {}
        let large = || vec![Op::put("b", vec![1; 1000])];
        assert_eq!(run(&*store, large()).await, Err(Error::NoSpace));
        store.compact(store.revision(), true).await.unwrap();
        let now = run(&*store, large()).await;
        let alarms = Admin::status(&*store).alarms;
        if alarm {
            let member = store.identity().member_id;
            assert_eq!(alarms, [Alarm { member, kind: AlarmKind::NoSpace }]);
            assert_eq!(now, Err(Error::NoSpace));
            store.alarm_disarm(member, Some(AlarmKind::NoSpace)).await.unwrap();
            put(&*store, "b", "1").await;
        } else {
            assert!(now.is_ok() && alarms.is_empty());
        }
    }
}

#[tokio::test]
async fn nothing_is_read_or_written_while_members_differ() {
    let store = Store::memory(clock());
    put(&*store, "a", "1").await;
    let alarm = Alarm { member: store.identity().member_id, kind: AlarmKind::Corrupt };
    store.alarm_raise(alarm).await.unwrap();
    let read = store.range(Range::all(Span::Key("a".into()))).await;
    assert_eq!(read, Err(Error::Corrupt));
    assert_eq!(run(&*store, vec![Op::put("a", "2")]).await, Err(Error::Corrupt));
    assert_eq!(store.alarm_disarm(0, None).await.unwrap(), [alarm]);
    assert_eq!(value(&*store, "a").await.unwrap(), "1");
}

#[tokio::test]
async fn a_store_that_is_alone_has_lasting_identifiers_and_takes_no_members() {
    let home = tempfile::tempdir().unwrap();
    let open = || {
        let clock = dhow_clock::System::shared();
        Store::open(home.path(), clock, Options::default()).unwrap()
    };
    let store = open();
    let identity = store.identity();
    assert!(identity.cluster_id != 0 && identity.member_id != 0);
    let status = Admin::status(&*store);
    assert_eq!((status.leader, status.learner), (identity.member_id, false));
    assert!(status.term > 0 && status.raft_index == status.applied_index);
    let members = store.members(true).await.unwrap();
    assert_eq!(
        (members.len(), members[0].id, &*members[0].name),
        (1, identity.member_id, "default")
    );
    let urls = vec!["http://other:2380".to_owned()];
    assert_eq!(store.member_add(urls, false).await, Err(Error::Unhealthy));
    store.shutdown().await;
    drop(store);
    assert_eq!(open().identity(), identity);
}
