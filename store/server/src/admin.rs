//! The administrative half: members, alarms, maintenance, users.

use crate::Store;
use crate::queue::Request;
use crate::wire::{Ask, Told};
use dhow_clock::BoxFuture;
use dhow_kv::admin::{
    Admin, Alarm, AlarmKind, AuthChange, AuthStatus, Caller, HashKv, Identity, Member, Need,
    Permission, Pulse, SnapshotReader, Status, Version,
};
use dhow_kv::{Error, Txn, TxnResult};
use dhow_mvcc::{Command, Outcome};
use sha2::{Digest, Sha256};
use std::sync::atomic::Ordering;

/// What an empty store takes, in bytes, about.
const SMALLEST: u64 = 512;

fn members(told: Told) -> Result<(u64, Vec<Member>), Error> {
    match told {
        Told::Members(meant, members) => Ok((meant, members)),
        Told::Lease(_) => Err(Error::Storage("a request had another's answer".into())),
    }
}

impl Admin for Store {
    fn identity(&self) -> Identity {
        self.shared.identity
    }

    fn pulse(&self) -> Pulse {
        let numbers = &self.shared.numbers;
        Pulse {
            term: numbers.term.load(Ordering::Relaxed),
            leader: numbers.leader.load(Ordering::Relaxed),
            learner: numbers.learner.load(Ordering::Relaxed),
        }
    }

    fn status(&self) -> Status {
        let Pulse { term, leader, learner } = self.pulse();
        let numbers = &self.shared.numbers;
        let on_disk = numbers.log_bytes.load(Ordering::Relaxed)
            + numbers.checkpoint_bytes.load(Ordering::Relaxed);
        let full = numbers.full.load(Ordering::Relaxed);
        if full {
            self.shared.enqueue(Request::Space);
        }
        let state = self.shared.read();
        let mut alarms: Vec<Alarm> = state.machine.alarms().raised().collect();
        let own = Alarm { member: self.shared.identity.member_id, kind: AlarmKind::NoSpace };
        // Where there is no space it cannot be raised for all; it ends by itself.
        if full && !alarms.contains(&own) {
            alarms.push(own);
        }
        let used = state.machine.mvcc.bytes();
        Status {
            term,
            raft_index: numbers.commit.load(Ordering::Relaxed),
            applied_index: numbers.applied.load(Ordering::Relaxed),
            leader,
            learner,
            db_size: on_disk.max(used),
            // No store is without a few records, and clients of JSON miss a field that is 0.
            db_size_in_use: used.max(SMALLEST),
            quota: self.shared.options.quota_bytes,
            keys: state.machine.mvcc.keys() as u64,
            done: state.machine.mvcc.counts(),
            alarms,
            downgrade: state.machine.downgrade(),
        }
    }

    fn leader_changed(&self, known: u64) -> BoxFuture<'_, u64> {
        Box::pin(async move {
            let mut leader = self.shared.leader.subscribe();
            let changed = leader.wait_for(|leader| *leader != known).await;
            changed.map_or(0, |leader| *leader)
        })
    }

    fn members(&self, linearizable: bool) -> BoxFuture<'_, Result<Vec<Member>, Error>> {
        Box::pin(async move {
            if linearizable {
                self.shared.catch_up().await?;
            }
            Ok(self.shared.read().members.list())
        })
    }

    fn member_add(
        &self,
        peer_urls: Vec<String>,
        learner: bool,
    ) -> BoxFuture<'_, Result<(Member, Vec<Member>), Error>> {
        Box::pin(async move {
            let told = self.shared.ask(Ask::Add { peer_urls, learner }).await?;
            let (meant, all) = members(told)?;
            let added = all.iter().find(|member| member.id == meant).cloned();
            Ok((added.ok_or(Error::MemberNotFound)?, all))
        })
    }

    fn member_remove(&self, id: u64) -> BoxFuture<'_, Result<Vec<Member>, Error>> {
        Box::pin(async move { Ok(members(self.shared.ask(Ask::Remove(id)).await?)?.1) })
    }

    fn member_update(
        &self,
        id: u64,
        peer_urls: Vec<String>,
    ) -> BoxFuture<'_, Result<Vec<Member>, Error>> {
        Box::pin(
            async move { Ok(members(self.shared.ask(Ask::Update { id, peer_urls }).await?)?.1) },
        )
    }

    fn member_promote(&self, id: u64) -> BoxFuture<'_, Result<Vec<Member>, Error>> {
        Box::pin(async move { Ok(members(self.shared.ask(Ask::Promote(id)).await?)?.1) })
    }

    fn move_leader(&self, target: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.shared.transfer(target))
    }

    fn alarm_raise(&self, alarm: Alarm) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(
            async move { self.shared.submit(Command::AlarmRaise(alarm), false).await.map(drop) },
        )
    }

    fn alarm_disarm(
        &self,
        member: u64,
        kind: Option<AlarmKind>,
    ) -> BoxFuture<'_, Result<Vec<Alarm>, Error>> {
        Box::pin(async move {
            match self.shared.submit(Command::AlarmDisarm { member, kind }, false).await? {
                Outcome::Alarms(ended) => Ok(ended),
                _ => Err(Error::Storage("a request had another's answer".into())),
            }
        })
    }

    fn downgrade(&self, to: Option<Version>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.shared.submit(Command::Downgrade(to), false).await.map(drop) })
    }

    fn defragment(&self) -> BoxFuture<'_, Result<(), Error>> {
        // What is not in use any more goes with the log that a checkpoint makes needless.
        Box::pin(self.shared.checkpoint())
    }

    fn hash_kv(&self, revision: i64) -> BoxFuture<'_, Result<HashKv, Error>> {
        Box::pin(self.hash_history(revision))
    }

    fn hash(&self) -> BoxFuture<'_, Result<u32, Error>> {
        Box::pin(self.hash_all())
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Box<dyn SnapshotReader>, Error>> {
        Box::pin(self.write_snapshot())
    }

    fn auth_status(&self) -> AuthStatus {
        self.shared.numbers.rules()
    }

    fn auth_change(&self, change: AuthChange) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.shared.submit(Command::Auth(change), false).await.map(drop) })
    }

    fn users(&self) -> Vec<String> {
        self.shared.read().machine.auth().users().keys().cloned().collect()
    }

    fn user(&self, name: &str) -> Result<Vec<String>, Error> {
        self.shared.read().machine.auth().user(name).map(<[String]>::to_vec)
    }

    fn password_hash(&self, name: &str) -> Result<(String, u64), Error> {
        let state = self.shared.read();
        let found = state.machine.auth().password_hash(name);
        found.map(|(hash, revision)| (hash.to_owned(), revision))
    }

    fn roles(&self) -> Vec<String> {
        self.shared.read().machine.auth().roles().map(str::to_owned).collect()
    }

    fn role(&self, name: &str) -> Result<Vec<Permission>, Error> {
        self.shared.read().machine.auth().role(name)
    }

    fn token_issue(&self, user: String) -> BoxFuture<'_, Result<String, Error>> {
        Box::pin(async move {
            let auth_revision = self.auth_status().revision;
            let prefix = self.draw_prefix();
            let issue = Command::TokenIssue { user, prefix, auth_revision };
            match self.shared.submit(issue, false).await? {
                Outcome::Token(token) => Ok(token),
                _ => Err(Error::Storage("a request had another's answer".into())),
            }
        })
    }

    fn token_user(&self, token: &str) -> Option<Caller> {
        let now = self.shared.clock.monotonic().as_secs();
        // There is no timer for tokens: whoever looks at one first drops those that have ended.
        if self.shared.swept.swap(now, Ordering::Relaxed) != now {
            let ttl = self.shared.options.token_ttl;
            self.shared.write().machine.tokens_mut().expire(now, ttl);
        }
        self.shared.read().machine.token_caller(token, now)
    }

    fn authorize(&self, caller: &Caller, needs: &[Need]) -> Result<(), Error> {
        self.shared.read().machine.auth().authorize(caller, needs)
    }

    fn check_txn(&self, txn: &Txn) -> Result<(), Error> {
        dhow_mvcc::check_txn(txn, &self.shared.options.limits)
    }

    fn txn_as(&self, txn: Txn, auth_revision: u64) -> BoxFuture<'_, Result<TxnResult, Error>> {
        Box::pin(self.run_txn(txn, Some(auth_revision)))
    }
}

/// Letters of tokens, as etcd's.
const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

impl Store {
    /// What a token begins with: 16 letters that nobody can guess who does not know the secret.
    fn draw_prefix(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.shared.options.secret.unwrap_or_default());
        hash.update(self.shared.identity.member_id.to_be_bytes());
        for _ in 0..2 {
            hash.update(self.shared.clock.random().to_be_bytes());
        }
        let hash = hash.finalize();
        let pairs = hash.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        pairs.map(|pair| char::from(LETTERS[usize::from(pair) % LETTERS.len()])).collect()
    }
}
