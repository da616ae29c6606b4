//! The whole state that members replicate: keys, users, alarms; one log, one snapshot.

use crate::alarm::Alarms;
use crate::auth::{Auth, Tokens, invalidates};
use crate::codec::{Malformed, Reader, put_bytes, put_number, put_version, read_version};
use crate::snapshot::{Header, Loader};
use crate::{Applied, Command, Mvcc, Outcome};
use bytes::Bytes;
use dhow_kv::Error;
use dhow_kv::admin::{Caller, Version};

/// The state machine of a member. Deterministic, as [`Mvcc`] is: the same commands at the same
/// indexes give the same state and answers on all members.
#[derive(Debug, Default)]
pub struct Machine {
    /// Keys, leases, history.
    pub mvcc: Mvcc,
    auth: Auth,
    alarms: Alarms,
    tokens: Tokens,
    downgrade: Option<Version>,
    applied: u64,
}

impl Machine {
    /// An empty state at index 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// A state from its parts, for example from another store's snapshot, as of `applied`.
    pub fn from_parts(mvcc: Mvcc, auth: Auth, alarms: Alarms, applied: u64) -> Self {
        let (tokens, downgrade) = (Tokens::default(), None);
        Self { mvcc, auth, alarms, tokens, downgrade, applied }
    }

    /// The index of the newest applied command.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Users and roles.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// The raised alarms.
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// The older version that is spoken.
    pub fn downgrade(&self) -> Option<Version> {
        self.downgrade
    }

    /// The tokens that this member knows.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The same, to expire some.
    pub fn tokens_mut(&mut self) -> &mut Tokens {
        &mut self.tokens
    }

    /// The caller that a simple token stands for, at `now` in seconds (see [`Tokens::user`]). As in
    /// etcd, a simple token follows changes of the rules: whoever has one comes with the newest
    /// revision.
    pub fn token_caller(&self, token: &str, now: u64) -> Option<Caller> {
        let user = self.tokens.user(token, now)?.to_owned();
        Some(Caller { user: Some(user), revision: self.auth.status().revision })
    }

    /// Takes note that the log has reached `index` with something that is no command.
    pub fn skip(&mut self, index: u64) {
        self.applied = index;
    }

    /// Applies the command at `index` of the log.
    ///
    /// # Errors
    /// As the operations of [`dhow_kv::Backend`] and [`dhow_kv::admin::Admin`]; then nothing has
    /// changed but [`Machine::applied`].
    pub fn apply(&mut self, index: u64, command: &Command) -> Result<Applied, Error> {
        self.applied = index;
        match command {
            Command::TxnAs { auth_revision, .. } if self.auth.is_newer(*auth_revision) => {
                Err(Error::AuthOldRevision)
            }
            Command::Txn(_)
            | Command::TxnAs { .. }
            | Command::LeaseGrant { .. }
            | Command::Compact(_)
            | Command::LeaseCheckpoint(_)
            | Command::LeaseRevoke { .. } => {
                self.alarms.check_write(command.cost() > 0)?;
                self.mvcc.apply(command)
            }
            Command::AlarmRaise(alarm) => {
                let changed = self.alarms.raise(*alarm);
                Ok(Applied { outcome: Outcome::Alarms(vec![*alarm]), changed })
            }
            Command::AlarmDisarm { member, kind } => {
                let ended = self.alarms.disarm(*member, *kind);
                Ok(Applied { changed: !ended.is_empty(), outcome: Outcome::Alarms(ended) })
            }
            Command::Downgrade(to) => {
                if to.is_some() && self.downgrade.is_some() {
                    return Err(Error::DowngradeInProcess);
                }
                let changed = std::mem::replace(&mut self.downgrade, *to) != *to;
                Ok(Applied { outcome: Outcome::Done(self.mvcc.revision()), changed })
            }
            Command::Auth(change) => {
                let changed = self.auth.apply(change)?;
                if changed && let Some(user) = invalidates(change) {
                    self.tokens.forget(user);
                }
                Ok(Applied { outcome: Outcome::Done(self.mvcc.revision()), changed })
            }
            Command::TokenIssue { user, prefix, auth_revision } => {
                self.auth.check_login(user, *auth_revision)?;
                let token = format!("{prefix}.{index}");
                self.tokens.insert(token.clone(), user.clone());
                Ok(Applied { outcome: Outcome::Token(token), changed: true })
            }
        }
    }

    /// Begins a snapshot of the newest state: call [`Mvcc::hold`] with its compacted revision, then
    /// [`Mvcc::snapshot_chunk`] of [`Machine::mvcc`] with its part `mvcc` until that returns
    /// nothing, then `hold(None)`.
    pub fn snapshot_header(&self) -> MachineHeader {
        MachineHeader {
            mvcc: self.mvcc.snapshot_header(),
            auth: self.auth.clone(),
            alarms: self.alarms.clone(),
            downgrade: self.downgrade,
            applied: self.applied,
        }
    }
}

/// What a snapshot of a [`Machine`] says beside the keys, fixed at the moment it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineHeader {
    /// Of the keys.
    pub mvcc: Header,
    /// Users and roles.
    pub auth: Auth,
    /// The raised alarms.
    pub alarms: Alarms,
    /// The older version that is spoken.
    pub downgrade: Option<Version>,
    /// The index of the newest command in the snapshot.
    pub applied: u64,
}

/// The sections behind the header of the keys. What has none of them was written before there were
/// any, and is as empty as it says.
const AUTH: u8 = 1;
const ALARMS: u8 = 2;
const APPLIED: u8 = 3;
const DOWNGRADE: u8 = 4;
const REMAINING: u8 = 5;

impl MachineHeader {
    /// Appends the header's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.mvcc.encode(out);
        let mut section = |tag: u8, write: &dyn Fn(&mut Vec<u8>)| {
            let mut body = Vec::new();
            write(&mut body);
            out.push(tag);
            put_bytes(out, &body);
        };
        section(AUTH, &|body| self.auth.encode(body));
        section(ALARMS, &|body| self.alarms.encode(body));
        section(APPLIED, &|body| put_number(body, self.applied));
        if self.downgrade.is_some() {
            section(DOWNGRADE, &|body| put_version(body, self.downgrade));
        }
        if !self.mvcc.remaining.is_empty() {
            section(REMAINING, &|body| self.mvcc.encode_remaining(body));
        }
    }

    /// Reads a header back; also one of [`Header`] alone.
    ///
    /// # Errors
    /// [`Malformed`]: cut short, or with a section of a newer version.
    pub fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let mut header = Self {
            mvcc: Header::read(&mut reader)?,
            auth: Auth::new(),
            alarms: Alarms::default(),
            downgrade: None,
            applied: 0,
        };
        while !reader.is_empty() {
            let tag = reader.byte()?;
            let body = reader.bytes()?;
            let mut body = Reader::new(&body);
            match tag {
                AUTH => header.auth = Auth::decode(&mut body)?,
                ALARMS => header.alarms = Alarms::decode(&mut body)?,
                APPLIED => header.applied = body.number()?,
                DOWNGRADE => header.downgrade = read_version(&mut body)?,
                REMAINING => header.mvcc.read_remaining(&mut body)?,
                _ => return Err(Malformed("unknown section: a newer version wrote it")),
            }
            body.end()?;
        }
        Ok(header)
    }
}

/// Builds a [`Machine`] from a snapshot's header and chunks.
#[derive(Debug)]
pub struct MachineLoader {
    keys: Loader,
    auth: Auth,
    alarms: Alarms,
    downgrade: Option<Version>,
    applied: u64,
}

impl MachineLoader {
    /// An empty state that becomes the snapshot's.
    pub fn new(header: MachineHeader) -> Self {
        let MachineHeader { mvcc, auth, alarms, downgrade, applied } = header;
        Self { keys: Loader::new(mvcc), auth, alarms, downgrade, applied }
    }

    /// Loads one chunk.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn chunk(&mut self, bytes: &Bytes) -> Result<(), Malformed> {
        self.keys.chunk(bytes)
    }

    /// The state, when all chunks are loaded.
    pub fn finish(self) -> Machine {
        let mut machine =
            Machine::from_parts(self.keys.finish(), self.auth, self.alarms, self.applied);
        machine.downgrade = self.downgrade;
        machine
    }
}
