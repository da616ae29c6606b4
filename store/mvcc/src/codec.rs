//! The bytes of a [`Command`]: tags and variable-length numbers, little endian, nothing optional.

use crate::Command;
use crate::alarm::{put_alarm, put_kind, read_alarm, read_kind};
use crate::auth::codec::{change_size, put_change, read_change};
use bytes::Bytes;
use dhow_kv::admin::Version;
use dhow_kv::{Compare, Op, Order, Range, Select, SortBy, Span, Target, Txn};

/// How deep transactions may stand in each other.
const DEPTH: usize = 130;

/// Bytes that are no command or snapshot of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a record of this format: {0}")]
pub struct Malformed(pub &'static str);

/// The first bytes of commands that others than the codec look at.
const LEASE_REVOKE: u8 = 4;
const LEASE_CHECKPOINT: u8 = 11;

impl Command {
    /// Whether bytes are those of a command that ends leases or notes what remains of them.
    pub fn is_of_lease(bytes: &[u8]) -> bool {
        matches!(bytes.first(), Some(&(LEASE_REVOKE | LEASE_CHECKPOINT)))
    }

    /// Appends the command's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Txn(txn) => {
                out.push(1);
                put_txn(out, txn);
            }
            Self::Compact(revision) => {
                out.push(2);
                put_signed(out, *revision);
            }
            Self::LeaseGrant { id, ttl } => {
                out.push(3);
                put_signed(out, *id);
                put_signed(out, *ttl);
            }
            Self::LeaseRevoke { id } => {
                out.push(LEASE_REVOKE);
                put_signed(out, *id);
            }
            Self::LeaseCheckpoint(remaining) => {
                out.push(LEASE_CHECKPOINT);
                put_number(out, remaining.len() as u64);
                for (id, remaining) in remaining {
                    put_signed(out, *id);
                    put_signed(out, *remaining);
                }
            }
            Self::TxnAs { txn, auth_revision } => {
                out.push(5);
                put_number(out, *auth_revision);
                put_txn(out, txn);
            }
            Self::AlarmRaise(alarm) => {
                out.push(6);
                put_alarm(out, alarm);
            }
            Self::AlarmDisarm { member, kind } => {
                out.push(7);
                put_kind(out, *kind);
                put_number(out, *member);
            }
            Self::Auth(change) => {
                out.push(8);
                put_change(out, change);
            }
            Self::TokenIssue { user, prefix, auth_revision } => {
                out.push(9);
                put_bytes(out, user.as_bytes());
                put_bytes(out, prefix.as_bytes());
                put_number(out, *auth_revision);
            }
            Self::Downgrade(to) => {
                out.push(10);
                put_version(out, *to);
            }
        }
    }

    /// At least as many bytes as [`Command::encode`] appends.
    pub fn size_bound(&self) -> usize {
        match self {
            Self::Txn(txn) | Self::TxnAs { txn, .. } => 16 + txn_bound(txn),
            Self::LeaseCheckpoint(remaining) => 16 + 20 * remaining.len(),
            Self::Auth(change) => STEP + change_size(change),
            Self::TokenIssue { user, prefix, .. } => STEP + user.len() + prefix.len(),
            Self::Compact(_)
            | Self::LeaseGrant { .. }
            | Self::LeaseRevoke { .. }
            | Self::AlarmRaise(_)
            | Self::AlarmDisarm { .. }
            | Self::Downgrade(_) => 32,
        }
    }

    /// Reads a command back. Its keys and values are slices of `bytes`.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let command = match reader.byte()? {
            1 => Self::Txn(reader.txn(DEPTH)?),
            2 => Self::Compact(reader.signed()?),
            3 => Self::LeaseGrant { id: reader.signed()?, ttl: reader.signed()? },
            LEASE_REVOKE => Self::LeaseRevoke { id: reader.signed()? },
            5 => {
                let auth_revision = reader.number()?;
                Self::TxnAs { txn: reader.txn(DEPTH)?, auth_revision }
            }
            6 => Self::AlarmRaise(read_alarm(&mut reader)?),
            7 => {
                let kind = read_kind(&mut reader)?;
                Self::AlarmDisarm { member: reader.number()?, kind }
            }
            8 => Self::Auth(read_change(&mut reader)?),
            9 => Self::TokenIssue {
                user: reader.text()?,
                prefix: reader.text()?,
                auth_revision: reader.number()?,
            },
            10 => Self::Downgrade(read_version(&mut reader)?),
            LEASE_CHECKPOINT => {
                let mut remaining = Vec::new();
                for _ in 0..reader.count()? {
                    remaining.push((reader.signed()?, reader.signed()?));
                }
                Self::LeaseCheckpoint(remaining)
            }
            _ => return Err(Malformed("unknown command: a newer version wrote it")),
        };
        reader.end()?;
        Ok(command)
    }
}

/// Appends the version to go back to; 0.0 for none.
pub(crate) fn put_version(out: &mut Vec<u8>, version: Option<Version>) {
    let Version { major, minor } = version.unwrap_or(Version { major: 0, minor: 0 });
    put_number(out, major.into());
    put_number(out, minor.into());
}

pub(crate) fn read_version(reader: &mut Reader<'_>) -> Result<Option<Version>, Malformed> {
    let mut number =
        || u32::try_from(reader.number()?).map_err(|_| Malformed("too large a version"));
    let (major, minor) = (number()?, number()?);
    Ok((major > 0).then_some(Version { major, minor }))
}

/// More than the tags, flags and numbers of any one step or guard take.
const STEP: usize = 96;

fn span_bound(span: &Span) -> usize {
    match span {
        Span::Key(key) | Span::From(key) => key.len(),
        Span::Range(from, to) => from.len() + to.len(),
    }
}

fn txn_bound(txn: &Txn) -> usize {
    let compares = txn.compare.iter().map(|compare| {
        let value = if let Target::Value(value) = &compare.target { value.len() } else { 0 };
        STEP + span_bound(&compare.span) + value
    });
    let ops = txn.success.iter().chain(&txn.failure).map(|op| match op {
        Op::Range(Range { span, .. }) | Op::Delete { span, .. } => STEP + span_bound(span),
        Op::Put { key, value, .. } => STEP + key.len() + value.len(),
        Op::Txn(inner) => STEP + txn_bound(inner),
    });
    STEP + compares.sum::<usize>() + ops.sum::<usize>()
}

/// Seven bits a byte, the lowest first.
pub fn put_number(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Small magnitudes of either sign are short (zigzag).
pub fn put_signed(out: &mut Vec<u8>, n: i64) {
    put_number(out, ((n << 1) ^ (n >> 63)) as u64);
}

/// The length, then the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_span(out: &mut Vec<u8>, span: &Span) {
    match span {
        Span::Key(key) => {
            out.push(0);
            put_bytes(out, key);
        }
        Span::Range(from, to) => {
            out.push(1);
            put_bytes(out, from);
            put_bytes(out, to);
        }
        Span::From(from) => {
            out.push(2);
            put_bytes(out, from);
        }
    }
}

fn put_txn(out: &mut Vec<u8>, txn: &Txn) {
    put_number(out, txn.compare.len() as u64);
    for compare in &txn.compare {
        put_span(out, &compare.span);
        out.push(match compare.order {
            Order::Equal => 0,
            Order::Greater => 1,
            Order::Less => 2,
            Order::NotEqual => 3,
        });
        let (tag, number) = match &compare.target {
            Target::Version(n) => (0, n),
            Target::CreateRevision(n) => (1, n),
            Target::ModRevision(n) => (2, n),
            Target::Lease(n) => (3, n),
            Target::Value(value) => {
                out.push(4);
                put_bytes(out, value);
                continue;
            }
        };
        out.push(tag);
        put_signed(out, *number);
    }
    for branch in [&txn.success, &txn.failure] {
        put_number(out, branch.len() as u64);
        for op in branch {
            put_op(out, op);
        }
    }
}

fn put_op(out: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Range(range) => {
            out.push(0);
            put_span(out, &range.span);
            put_signed(out, range.revision);
            put_number(out, range.limit as u64);
            let select = range.select != Select::default();
            out.push(flags([range.keys_only, range.count_only, range.serializable, select]));
            if select {
                put_select(out, &range.select);
            }
        }
        Op::Put { key, value, lease, prev_kv, ignore_value, ignore_lease } => {
            out.push(1);
            out.push(flags([*prev_kv, *ignore_value, *ignore_lease]));
            put_signed(out, *lease);
            put_bytes(out, key);
            put_bytes(out, value);
        }
        Op::Delete { span, prev_kv } => {
            out.push(2);
            out.push(u8::from(*prev_kv));
            put_span(out, span);
        }
        Op::Txn(txn) => {
            out.push(3);
            put_txn(out, txn);
        }
    }
}

/// Few reads have one, so a flag of the read says whether it is there.
fn put_select(out: &mut Vec<u8>, select: &Select) {
    out.push(select.sort.map_or(0, |(by, descending)| {
        let by = match by {
            SortBy::Key => 1,
            SortBy::Version => 2,
            SortBy::CreateRevision => 3,
            SortBy::ModRevision => 4,
            SortBy::Value => 5,
        };
        by | u8::from(descending) << 7
    }));
    for bound in [
        select.min_mod_revision,
        select.max_mod_revision,
        select.min_create_revision,
        select.max_create_revision,
    ] {
        put_signed(out, bound);
    }
}

fn flags<const N: usize>(bits: [bool; N]) -> u8 {
    bits.iter().enumerate().map(|(at, bit)| u8::from(*bit) << at).sum()
}

/// Reads what the functions above wrote.
pub(crate) struct Reader<'a> {
    whole: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(whole: &'a Bytes) -> Self {
        Self { whole, at: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.whole.len()
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(Malformed("bytes left over")) }
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = *self.whole.get(self.at).ok_or(Malformed("cut short"))?;
        self.at += 1;
        Ok(byte)
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(Malformed("number too long"))
    }

    pub(crate) fn signed(&mut self) -> Result<i64, Malformed> {
        let n = self.number()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_| Malformed("length"))?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.whole.len());
        let end = end.ok_or(Malformed("cut short"))?;
        let bytes = self.whole.slice(self.at..end);
        self.at = end;
        Ok(bytes)
    }

    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        let bytes = self.bytes()?;
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| Malformed("text"))
    }

    /// A count of things of at least one byte each.
    pub(crate) fn count(&mut self) -> Result<usize, Malformed> {
        let count = usize::try_from(self.number()?).map_err(|_| Malformed("count"))?;
        if count > self.whole.len() - self.at { Err(Malformed("count")) } else { Ok(count) }
    }

    fn flags<const N: usize>(&mut self) -> Result<[bool; N], Malformed> {
        let byte = self.byte()?;
        if byte >> N != 0 {
            return Err(Malformed("unknown flag"));
        }
        Ok(std::array::from_fn(|at| byte >> at & 1 != 0))
    }

    fn select(&mut self) -> Result<Select, Malformed> {
        let sort = self.byte()?;
        let by = match sort & 0x7f {
            0 if sort == 0 => None,
            1 => Some(SortBy::Key),
            2 => Some(SortBy::Version),
            3 => Some(SortBy::CreateRevision),
            4 => Some(SortBy::ModRevision),
            5 => Some(SortBy::Value),
            _ => return Err(Malformed("unknown order")),
        };
        Ok(Select {
            sort: by.map(|by| (by, sort >> 7 != 0)),
            min_mod_revision: self.signed()?,
            max_mod_revision: self.signed()?,
            min_create_revision: self.signed()?,
            max_create_revision: self.signed()?,
        })
    }

    pub(crate) fn span(&mut self) -> Result<Span, Malformed> {
        Ok(match self.byte()? {
            0 => Span::Key(self.bytes()?),
            1 => Span::Range(self.bytes()?, self.bytes()?),
            2 => Span::From(self.bytes()?),
            _ => return Err(Malformed("unknown span")),
        })
    }

    fn txn(&mut self, depth: usize) -> Result<Txn, Malformed> {
        let mut txn = Txn::default();
        for _ in 0..self.count()? {
            txn.compare.push(self.compare()?);
        }
        for branch in [&mut txn.success, &mut txn.failure] {
            for _ in 0..self.count()? {
                branch.push(self.op(depth)?);
            }
        }
        Ok(txn)
    }

    fn compare(&mut self) -> Result<Compare, Malformed> {
        let span = self.span()?;
        let order = match self.byte()? {
            0 => Order::Equal,
            1 => Order::Greater,
            2 => Order::Less,
            3 => Order::NotEqual,
            _ => return Err(Malformed("unknown comparison")),
        };
        let target = match self.byte()? {
            0 => Target::Version(self.signed()?),
            1 => Target::CreateRevision(self.signed()?),
            2 => Target::ModRevision(self.signed()?),
            3 => Target::Lease(self.signed()?),
            4 => Target::Value(self.bytes()?),
            _ => return Err(Malformed("unknown target")),
        };
        Ok(Compare { span, order, target })
    }

    fn op(&mut self, depth: usize) -> Result<Op, Malformed> {
        Ok(match self.byte()? {
            0 => {
                let span = self.span()?;
                let revision = self.signed()?;
                let limit = usize::try_from(self.number()?).map_err(|_| Malformed("limit"))?;
                let [keys_only, count_only, serializable, select] = self.flags()?;
                let select = if select { self.select()? } else { Select::default() };
                Op::Range(Range {
                    span,
                    revision,
                    limit,
                    keys_only,
                    count_only,
                    serializable,
                    select,
                })
            }
            1 => {
                let [prev_kv, ignore_value, ignore_lease] = self.flags()?;
                let lease = self.signed()?;
                let (key, value) = (self.bytes()?, self.bytes()?);
                Op::Put { key, value, lease, prev_kv, ignore_value, ignore_lease }
            }
            2 => {
                let prev_kv = self.byte()? != 0;
                Op::Delete { span: self.span()?, prev_kv }
            }
            3 => {
                let depth = depth.checked_sub(1).ok_or(Malformed("too deep"))?;
                Op::Txn(self.txn(depth)?)
            }
            _ => return Err(Malformed("unknown step")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_kv::admin::{Access, Alarm, AlarmKind, AuthChange, Permission};

    fn round(command: &Command) {
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        assert!(bytes.len() <= command.size_bound());
        let bytes = Bytes::from(bytes);
        assert_eq!(Command::decode(&bytes).as_ref(), Ok(command));
        for cut in 0..bytes.len() {
            assert!(Command::decode(&bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn every_change_of_users_and_roles_comes_back() {
        let (name, hash) = ("ann".to_owned(), "$2a$10$hash".to_owned());
        let (user, role) = (name.clone(), "reader".to_owned());
        let span = Span::Range("a".into(), "b".into());
        for change in [
            AuthChange::Enable,
            AuthChange::Disable,
            AuthChange::UserAdd { name: name.clone(), hash: hash.clone(), no_password: false },
            AuthChange::UserAdd { name: name.clone(), hash: String::new(), no_password: true },
            AuthChange::UserDelete(name.clone()),
            AuthChange::UserChangePassword { name, hash },
            AuthChange::UserGrantRole { user: user.clone(), role: role.clone() },
            AuthChange::UserRevokeRole { user, role: role.clone() },
            AuthChange::RoleAdd(role.clone()),
            AuthChange::RoleDelete(role.clone()),
            AuthChange::RoleRevoke { role, span },
        ] {
            round(&Command::Auth(change));
        }
        for access in [Access::Read, Access::Write, Access::ReadWrite] {
            let permission = Permission { access, span: Span::From("k".into()) };
            round(&Command::Auth(AuthChange::RoleGrant { role: "r".into(), permission }));
        }
    }

    #[test]
    fn what_a_newer_version_wrote_is_refused() {
        for bytes in [&[77][..], &[8, 77], &[7, 77, 0]] {
            assert!(Command::decode(&Bytes::from(bytes)).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn every_command_comes_back() {
        round(&Command::Compact(i64::MAX));
        round(&Command::LeaseGrant { id: i64::MIN, ttl: 60 });
        round(&Command::LeaseRevoke { id: 7 });
        round(&Command::LeaseCheckpoint(vec![(7, 0), (i64::MIN, i64::MAX)]));
        round(&Command::TxnAs { txn: Txn::default(), auth_revision: u64::MAX });
        round(&Command::AlarmRaise(Alarm { member: u64::MAX, kind: AlarmKind::Corrupt }));
        round(&Command::Downgrade(Some(Version { major: 3, minor: u32::MAX })));
        round(&Command::Downgrade(None));
        round(&Command::AlarmDisarm { member: 0, kind: None });
        round(&Command::AlarmDisarm { member: 9, kind: Some(AlarmKind::NoSpace) });
        let (user, prefix) = ("ann".to_owned(), "abcdefghijklmnop".to_owned());
        round(&Command::TokenIssue { user, prefix, auth_revision: 300 });
        let range = Range { limit: 300, keys_only: true, ..Range::all(Span::From("".into())) };
        let select = Select {
            sort: Some((SortBy::Value, true)),
            min_mod_revision: i64::MIN,
            max_mod_revision: i64::MAX,
            min_create_revision: i64::MIN,
            max_create_revision: 1,
        };
        let selected = Range { select, ..range.clone() };
        let compare = |target| Compare {
            span: Span::Range("a".into(), "b".into()),
            order: Order::NotEqual,
            target,
        };
        let inner = Txn { success: vec![Op::put("k", vec![7; 300])], ..Txn::default() };
        round(&Command::Txn(Txn {
            compare: vec![
                compare(Target::Version(1)),
                compare(Target::CreateRevision(-1)),
                compare(Target::ModRevision(1 << 40)),
                compare(Target::Lease(0)),
                compare(Target::Value("v".into())),
            ],
            success: vec![Op::Range(range), Op::Range(selected), Op::delete("d"), Op::Txn(inner)],
            failure: vec![Op::Put {
                key: "x".into(),
                value: "".into(),
                lease: 9,
                prev_kv: true,
                ignore_value: true,
                ignore_lease: false,
            }],
        }));
    }
}
