//! Users, tokens, alarms and keys under one log: what is refused when, and what a snapshot keeps.

use bytes::Bytes;
use dhow_kv::admin::{Access, Alarm, AlarmKind, AuthChange, Caller, Need, Permission, Version};
use dhow_kv::{Error, Op, Range, Span, Txn};
use dhow_mvcc::{Command, Machine, MachineHeader, MachineLoader, Outcome};

/// Commands at one index after the other.
#[derive(Default)]
struct Log {
    machine: Machine,
    index: u64,
}

impl Log {
    fn apply(&mut self, command: &Command) -> Result<Outcome, Error> {
        self.index += 1;
        // Through the bytes, as the log takes it.
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        let command = Command::decode(&bytes.into()).unwrap();
        let applied = self.machine.apply(self.index, &command);
        assert_eq!(self.machine.applied(), self.index);
        applied.map(|applied| applied.outcome)
    }

    fn auth(&mut self, change: AuthChange) {
        self.apply(&Command::Auth(change)).unwrap();
    }

    fn auth_revision(&self) -> u64 {
        self.machine.auth().status().revision
    }

    /// Root and ann, who may read and write keys that start with an a.
    fn with_users() -> Self {
        let mut log = Self::default();
        for name in ["root", "ann"] {
            let (name, hash) = (name.to_owned(), "hash".to_owned());
            log.auth(AuthChange::UserAdd { name, hash, no_password: false });
        }
        log.auth(AuthChange::RoleAdd("r".into()));
        let permission = Permission { access: Access::ReadWrite, span: Span::prefix("a") };
        log.auth(AuthChange::RoleGrant { role: "r".into(), permission });
        for (user, role) in [("root", "root"), ("ann", "r")] {
            log.auth(AuthChange::UserGrantRole { user: user.into(), role: role.into() });
        }
        log.auth(AuthChange::Enable);
        log
    }

    fn token(&mut self, user: &str, auth_revision: u64) -> Result<String, Error> {
        let (user, prefix) = (user.to_owned(), "random".to_owned());
        match self.apply(&Command::TokenIssue { user, prefix, auth_revision })? {
            Outcome::Token(token) => Ok(token),
            other => panic!("{other:?} is no token"),
        }
    }
}

fn txn(op: Op) -> Txn {
    Txn { success: vec![op], ..Txn::default() }
}

fn put() -> Txn {
    txn(Op::put("a", "v"))
}

fn raise(kind: AlarmKind) -> Command {
    Command::AlarmRaise(Alarm { member: 1, kind })
}

#[test]
fn without_space_only_what_grows_is_refused() {
    let mut log = Log::default();
    log.apply(&Command::LeaseGrant { id: 7, ttl: 60 }).unwrap();
    log.apply(&Command::Txn(put())).unwrap();
    log.apply(&raise(AlarmKind::NoSpace)).unwrap();
    assert_eq!(log.apply(&Command::Txn(put())), Err(Error::NoSpace));
    let (txn_as, auth_revision) = (put(), log.auth_revision());
    assert_eq!(log.apply(&Command::TxnAs { txn: txn_as, auth_revision }), Err(Error::NoSpace));
    assert_eq!(log.apply(&Command::LeaseGrant { id: 8, ttl: 60 }), Err(Error::NoSpace));
    // A put in the branch that does not run counts too, as in etcd.
    let either = Txn { failure: vec![Op::put("a", "v")], ..txn(Op::delete("a")) };
    assert_eq!(log.apply(&Command::Txn(either)), Err(Error::NoSpace));
    assert_eq!(log.machine.alarms().check_read(), Ok(()));
    assert!(log.apply(&Command::Txn(txn(Op::delete("a")))).is_ok());
    assert!(log.apply(&Command::LeaseRevoke { id: 7 }).is_ok());
    assert!(log.apply(&Command::Compact(2)).is_ok());
    let ended = log.apply(&Command::AlarmDisarm { member: 1, kind: None }).unwrap();
    assert_eq!(ended, Outcome::Alarms(vec![Alarm { member: 1, kind: AlarmKind::NoSpace }]));
    assert!(log.apply(&Command::Txn(put())).is_ok());
}

#[test]
fn with_members_that_differ_everything_about_keys_is_refused() {
    let mut log = Log::default();
    log.apply(&Command::LeaseGrant { id: 7, ttl: 60 }).unwrap();
    log.apply(&Command::Txn(put())).unwrap();
    log.apply(&raise(AlarmKind::NoSpace)).unwrap();
    log.apply(&raise(AlarmKind::Corrupt)).unwrap();
    let before = log.machine.mvcc.revision();
    for command in [
        Command::Txn(put()),
        Command::Txn(txn(Op::Range(Range::all(Span::Key("a".into()))))),
        Command::Txn(txn(Op::delete("a"))),
        Command::LeaseGrant { id: 8, ttl: 60 },
        Command::LeaseRevoke { id: 7 },
        Command::Compact(2),
    ] {
        assert_eq!(log.apply(&command), Err(Error::Corrupt), "{command:?}");
    }
    assert_eq!(log.machine.alarms().check_read(), Err(Error::Corrupt));
    assert_eq!(log.machine.mvcc.revision(), before);
    let kind = Some(AlarmKind::Corrupt);
    log.apply(&Command::AlarmDisarm { member: 2, kind }).unwrap();
    assert_eq!(log.apply(&Command::LeaseRevoke { id: 7 }), Err(Error::Corrupt));
    log.apply(&Command::AlarmDisarm { member: 0, kind }).unwrap();
    assert!(log.apply(&Command::LeaseRevoke { id: 7 }).is_ok());
    assert_eq!(log.apply(&Command::Txn(put())), Err(Error::NoSpace));
}

#[test]
fn a_transaction_that_was_allowed_by_older_rules_does_not_run() {
    let mut log = Log::with_users();
    let allowed_at = log.auth_revision();
    let guarded = Command::TxnAs { txn: put(), auth_revision: allowed_at };
    assert!(log.apply(&guarded).is_ok());
    log.auth(AuthChange::UserRevokeRole { user: "ann".into(), role: "r".into() });
    // The rules come before the alarms.
    log.apply(&raise(AlarmKind::Corrupt)).unwrap();
    let revision = log.machine.mvcc.revision();
    assert_eq!(log.apply(&guarded), Err(Error::AuthOldRevision));
    assert_eq!(log.machine.mvcc.revision(), revision);
}

#[test]
fn tokens_are_known_until_their_user_changes() {
    let mut log = Log::with_users();
    let now = log.auth_revision();
    assert_eq!(log.token("ann", now - 1), Err(Error::AuthOldRevision));
    assert_eq!(log.token("eve", now), Err(Error::AuthFailed));
    let token = log.token("ann", now).unwrap();
    assert_eq!(token, format!("random.{}", log.index));
    let caller = log.machine.token_caller(&token, 5).unwrap();
    assert_eq!(caller, Caller { user: Some("ann".into()), revision: now });
    let need = [Need::Write(Span::Key("ab".into()))];
    assert_eq!(log.machine.auth().authorize(&caller, &need), Ok(()));
    // A token follows the rules as they change.
    log.auth(AuthChange::RoleAdd("other".into()));
    let caller = log.machine.token_caller(&token, 5).unwrap();
    assert_eq!(log.machine.auth().authorize(&caller, &need), Ok(()));

    let (name, hash) = ("ann".to_owned(), "new".to_owned());
    log.auth(AuthChange::UserChangePassword { name, hash });
    assert_eq!(log.machine.token_caller(&token, 5), None);
    let token = log.token("root", log.auth_revision()).unwrap();
    log.auth(AuthChange::Disable);
    assert_eq!(log.machine.token_caller(&token, 5), None);
    assert_eq!(log.token("root", log.auth_revision()), Err(Error::AuthNotEnabled));
}

fn reload(machine: &Machine) -> Machine {
    let header = machine.snapshot_header();
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    let bytes = Bytes::from(bytes);
    let decoded = MachineHeader::decode(&bytes).unwrap();
    assert_eq!(decoded, header);
    for cut in 0..bytes.len() {
        // Whole sections may be missing: an older version wrote none.
        let _ = MachineHeader::decode(&bytes.slice(..cut));
    }
    let mut newer = bytes.to_vec();
    newer.extend([200, 0]);
    assert!(MachineHeader::decode(&newer.into()).is_err());
    let mut loader = MachineLoader::new(decoded);
    let mut chunk = Vec::new();
    assert_eq!(machine.mvcc.snapshot_chunk(&header.mvcc, None, 1 << 20, &mut chunk), None);
    loader.chunk(&chunk.into()).unwrap();
    loader.finish()
}

#[test]
fn a_snapshot_keeps_keys_users_and_alarms() {
    let mut log = Log::with_users();
    log.apply(&Command::Txn(put())).unwrap();
    log.apply(&raise(AlarmKind::NoSpace)).unwrap();
    let loaded = reload(&log.machine);
    assert_eq!(loaded.applied(), log.index);
    assert_eq!(loaded.mvcc.revision(), 2);
    assert_eq!(loaded.auth(), log.machine.auth());
    assert_eq!(loaded.alarms(), log.machine.alarms());
    // What the roles allow is computed anew.
    let caller = Caller { user: Some("ann".into()), revision: log.auth_revision() };
    assert!(loaded.auth().authorize(&caller, &[Need::Read(Span::prefix("a"))]).is_ok());
    assert!(loaded.auth().authorize(&caller, &[Need::Read(Span::prefix("b"))]).is_err());
}

#[test]
fn a_header_of_keys_alone_is_read_too() {
    let mut log = Log::default();
    log.apply(&Command::Txn(put())).unwrap();
    let mut bytes = Vec::new();
    log.machine.mvcc.snapshot_header().encode(&mut bytes);
    let header = MachineHeader::decode(&bytes.into()).unwrap();
    assert_eq!((header.mvcc.revision, header.applied), (2, 0));
    assert_eq!(header.auth.status().revision, 1);
}

/// The numbers are those of etcd 3.7.3 after the same commands.
#[test]
fn checksums_are_those_of_etcd() {
    let hash = |log: &Log, revision| {
        let mvcc = &log.machine.mvcc;
        let mut run = mvcc.hash_kv(revision, mvcc.revision()).unwrap();
        let found = loop {
            if let Some(hash) = run.step(mvcc, 10) {
                break hash;
            }
        };
        (found.hash, found.compact_revision, found.hash_revision)
    };
    let mut log = Log::default();
    for n in 1..=5 {
        log.apply(&Command::Txn(txn(Op::put(format!("k{n}"), format!("v{n}"))))).unwrap();
    }
    for op in [Op::put("k3", "again"), Op::delete("k2"), Op::put("k2", "back")] {
        log.apply(&Command::Txn(txn(op))).unwrap();
    }
    assert_eq!(hash(&log, 0), (942_461_483, -1, 9));
    assert_eq!(hash(&log, 8), (975_854_936, -1, 8));
    log.apply(&Command::Compact(8)).unwrap();
    let several = vec![Op::put("a", "1"), Op::put("b", "2"), Op::delete("k1")];
    log.apply(&Command::Txn(Txn { success: several, ..Txn::default() })).unwrap();
    assert_eq!(hash(&log, 0), (1_106_487_323, 8, 10));
    while log.machine.mvcc.prune(1) {}
    assert_eq!(hash(&log, 0), (1_106_487_323, 8, 10));
    let mvcc = &log.machine.mvcc;
    assert_eq!(mvcc.hash_kv(7, 10).err(), Some(Error::Compacted));
    assert_eq!(mvcc.hash_kv(11, 10).err(), Some(Error::FutureRevision));
}

#[test]
fn one_downgrade_at_a_time_is_under_way_until_it_is_ended() {
    let mut log = Log::default();
    let (older, oldest) = (Version { major: 3, minor: 6 }, Version { major: 3, minor: 5 });
    log.apply(&Command::Downgrade(None)).unwrap();
    log.apply(&Command::Downgrade(Some(older))).unwrap();
    assert_eq!(log.machine.downgrade(), Some(older));
    assert_eq!(log.apply(&Command::Downgrade(Some(oldest))), Err(Error::DowngradeInProcess));
    // A snapshot keeps it.
    let mut bytes = Vec::new();
    log.machine.snapshot_header().encode(&mut bytes);
    let header = MachineHeader::decode(&bytes.into()).unwrap();
    assert_eq!(MachineLoader::new(header).finish().downgrade(), Some(older));
    log.apply(&Command::Downgrade(None)).unwrap();
    assert_eq!(log.machine.downgrade(), None);
}

#[test]
fn what_remains_of_leases_is_kept_and_no_more_than_was_granted() {
    let mut log = Log::with_users();
    for id in [7, 8, 9] {
        log.apply(&Command::LeaseGrant { id, ttl: 60 }).unwrap();
    }
    let noted = vec![(7, 40), (8, 70), (9, 30), (10, 5)];
    log.apply(&Command::LeaseCheckpoint(noted)).unwrap();
    log.apply(&Command::LeaseCheckpoint(vec![(9, 0)])).unwrap();
    let remaining = [(7, 40), (8, 60)];
    assert_eq!(log.machine.mvcc.remaining().collect::<Vec<_>>(), remaining);
    let loaded = reload(&log.machine);
    assert_eq!(loaded.mvcc.remaining().collect::<Vec<_>>(), remaining);
    assert_eq!(loaded.mvcc.leases().count(), 3);
    // A lease of the same name is another one.
    log.apply(&Command::LeaseRevoke { id: 7 }).unwrap();
    log.apply(&Command::LeaseGrant { id: 7, ttl: 60 }).unwrap();
    assert_eq!(log.machine.mvcc.remaining().collect::<Vec<_>>(), [(8, 60)]);
}
