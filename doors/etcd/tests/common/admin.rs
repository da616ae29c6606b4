//! The administrative half of a store of one member in memory: users, alarms, one member.

use bytes::Bytes;
use dhow_clock::BoxFuture;
use dhow_kv::admin::{
    Admin, Alarm, AlarmKind, AuthChange, AuthStatus, Caller, Counts, HashKv, Identity, Member,
    Need, Permission, SnapshotReader, Status, Version,
};
use dhow_kv::{Error, Kv, Txn, TxnResult};
use dhow_mvcc::Auth;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// See the module.
pub struct Local {
    kv: Kv,
    auth: Mutex<Auth>,
    tokens: Mutex<HashMap<String, Caller>>,
    alarms: Mutex<Vec<Alarm>>,
    downgrade: Mutex<Option<Version>>,
    leader: watch::Sender<u64>,
}

/// The only member.
pub const MEMBER: u64 = 0x8e9e_05c5_2164_694d;
/// Its cluster.
pub const CLUSTER: u64 = 0xcdf8_181e_3277_4e8e;
/// How long the snapshot is, in bytes.
#[allow(dead_code, reason = "not every test asks for a snapshot")]
pub const SNAPSHOT: usize = 70 << 10;

impl Local {
    /// One that leads.
    pub fn new(kv: Kv) -> Arc<Self> {
        Arc::new(Self {
            kv,
            auth: Mutex::new(Auth::new()),
            tokens: Mutex::default(),
            alarms: Mutex::default(),
            downgrade: Mutex::default(),
            leader: watch::Sender::new(MEMBER),
        })
    }

    /// Changes the leader, 0 for none.
    #[allow(dead_code, reason = "not every test loses its leader")]
    pub fn lead(&self, leader: u64) {
        self.leader.send_replace(leader);
    }

    fn rules(&self) -> MutexGuard<'_, Auth> {
        self.auth.lock().unwrap()
    }

    fn me(&self) -> Member {
        Member {
            id: MEMBER,
            name: "default".to_owned(),
            peer_urls: vec!["http://localhost:2380".to_owned()],
            client_urls: vec!["http://localhost:2379".to_owned()],
            learner: false,
        }
    }
}

struct Pieces(Vec<Bytes>);

impl SnapshotReader for Pieces {
    fn remaining(&self) -> u64 {
        self.0.iter().map(|p| p.len() as u64).sum()
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, Error>>> {
        Box::pin(async { self.0.pop().map(Ok) })
    }
}

impl Admin for Local {
    fn identity(&self) -> Identity {
        Identity { cluster_id: CLUSTER, member_id: MEMBER }
    }

    fn status(&self) -> Status {
        let index = self.kv.revision() as u64 + 3;
        Status {
            term: 2,
            raft_index: index,
            applied_index: index,
            leader: *self.leader.borrow(),
            learner: false,
            db_size: 20480,
            db_size_in_use: 16384,
            quota: 2 << 30,
            keys: 0,
            done: Counts::default(),
            alarms: self.alarms.lock().unwrap().clone(),
            downgrade: *self.downgrade.lock().unwrap(),
        }
    }

    fn downgrade(&self, to: Option<Version>) -> BoxFuture<'_, Result<(), Error>> {
        *self.downgrade.lock().unwrap() = to;
        Box::pin(async { Ok(()) })
    }

    fn leader_changed(&self, known: u64) -> BoxFuture<'_, u64> {
        let mut leader = self.leader.subscribe();
        Box::pin(
            async move { leader.wait_for(|now| *now != known).await.map_or(known, |now| *now) },
        )
    }

    fn members(&self, _linearizable: bool) -> BoxFuture<'_, Result<Vec<Member>, Error>> {
        Box::pin(async { Ok(vec![self.me()]) })
    }

    fn member_add(
        &self,
        peer_urls: Vec<String>,
        learner: bool,
    ) -> BoxFuture<'_, Result<(Member, Vec<Member>), Error>> {
        Box::pin(async move {
            if peer_urls.iter().any(|url| self.me().peer_urls.contains(url)) {
                return Err(Error::PeerUrlExists);
            }
            let new = Member { id: 7, peer_urls, learner, ..Member::default() };
            Ok((new.clone(), vec![self.me(), new]))
        })
    }

    fn member_remove(&self, id: u64) -> BoxFuture<'_, Result<Vec<Member>, Error>> {
        Box::pin(async move {
            if id == MEMBER { Err(Error::NotEnoughStarted) } else { Err(Error::MemberNotFound) }
        })
    }

    fn member_update(
        &self,
        _id: u64,
        _peer_urls: Vec<String>,
    ) -> BoxFuture<'_, Result<Vec<Member>, Error>> {
        Box::pin(async { Err(Error::MemberNotFound) })
    }

    fn member_promote(&self, _id: u64) -> BoxFuture<'_, Result<Vec<Member>, Error>> {
        Box::pin(async { Err(Error::NotLearner) })
    }

    fn move_leader(&self, target: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { if target == MEMBER { Ok(()) } else { Err(Error::BadTransferee) } })
    }

    fn alarm_raise(&self, alarm: Alarm) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.alarms.lock().unwrap().push(alarm);
            Ok(())
        })
    }

    fn alarm_disarm(
        &self,
        member: u64,
        kind: Option<AlarmKind>,
    ) -> BoxFuture<'_, Result<Vec<Alarm>, Error>> {
        Box::pin(async move {
            let mut alarms = self.alarms.lock().unwrap();
            let ends = |a: &Alarm| {
                (member == 0 || a.member == member) && kind.is_none_or(|kind| kind == a.kind)
            };
            let ended = alarms.iter().copied().filter(ends).collect();
            alarms.retain(|a| !ends(a));
            Ok(ended)
        })
    }

    fn defragment(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn hash_kv(&self, revision: i64) -> BoxFuture<'_, Result<HashKv, Error>> {
        Box::pin(async move {
            let hash_revision = if revision == 0 { self.kv.revision() } else { revision };
            Ok(HashKv { hash: 42, compact_revision: -1, hash_revision })
        })
    }

    fn hash(&self) -> BoxFuture<'_, Result<u32, Error>> {
        Box::pin(async { Ok(43) })
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Box<dyn SnapshotReader>, Error>> {
        let file = Bytes::from(vec![0x5a; SNAPSHOT]);
        let mut pieces: Vec<_> = (0..SNAPSHOT)
            .step_by(32 << 10)
            .map(|at| file.slice(at..SNAPSHOT.min(at + (32 << 10))))
            .collect();
        pieces.reverse();
        Box::pin(async move { Ok(Box::new(Pieces(pieces)) as Box<dyn SnapshotReader>) })
    }

    fn auth_status(&self) -> AuthStatus {
        self.rules().status()
    }

    fn auth_change(&self, change: AuthChange) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.rules().apply(&change).map(drop) })
    }

    fn users(&self) -> Vec<String> {
        self.rules().users().keys().cloned().collect()
    }

    fn user(&self, name: &str) -> Result<Vec<String>, Error> {
        self.rules().user(name).map(<[String]>::to_vec)
    }

    fn password_hash(&self, name: &str) -> Result<(String, u64), Error> {
        self.rules().password_hash(name).map(|(hash, revision)| (hash.to_owned(), revision))
    }

    fn roles(&self) -> Vec<String> {
        self.rules().roles().map(str::to_owned).collect()
    }

    fn role(&self, name: &str) -> Result<Vec<Permission>, Error> {
        self.rules().role(name)
    }

    fn token_issue(&self, user: String) -> BoxFuture<'_, Result<String, Error>> {
        Box::pin(async move {
            let mut tokens = self.tokens.lock().unwrap();
            let token = format!("token.{}", tokens.len());
            let revision = self.auth_status().revision;
            tokens.insert(token.clone(), Caller { user: Some(user), revision });
            Ok(token)
        })
    }

    fn token_user(&self, token: &str) -> Option<Caller> {
        let mut caller = self.tokens.lock().unwrap().get(token).cloned()?;
        // A simple token stands for its user by the rules of now.
        caller.revision = self.auth_status().revision;
        Some(caller)
    }

    fn authorize(&self, caller: &Caller, needs: &[Need]) -> Result<(), Error> {
        self.rules().authorize(caller, needs)
    }

    fn check_txn(&self, txn: &Txn) -> Result<(), Error> {
        dhow_mvcc::check_txn(txn, &dhow_mvcc::Limits::default())
    }

    fn txn_as(&self, txn: Txn, auth_revision: u64) -> BoxFuture<'_, Result<TxnResult, Error>> {
        Box::pin(async move {
            let rules = self.auth_status();
            if rules.enabled && rules.revision != auth_revision {
                return Err(Error::AuthOldRevision);
            }
            self.kv.txn(txn).await
        })
    }
}
