//! Requests of etcd's log, applied as etcd applies them.
//!
//! An entry is an `etcdserverpb.InternalRaftRequest`; which requests there are and what they need is
//! in etcd's `raft_internal.proto` and `server/etcdserver/apply`. Whether the caller may do it is
//! found out when it is applied: the log also has what is refused then.

use crate::codec::Malformed;
use crate::{Command, Machine};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dhow_bolt::etcd::proto::{Field, fields};
use dhow_kv::admin::{Access, Alarm, AlarmKind, AuthChange, Caller, Need, Permission, Version};
use dhow_kv::{Compare, Op, Order, Range, Span, Target, Txn};

/// Makes the bcrypt hash of a password: before 3.5 the log has passwords in clear.
pub type Hash<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The deepest transaction within transactions that is taken.
const DEEPEST: usize = 64;

/// The shortest lease that etcd grants with its usual times of elections, in seconds.
const SHORTEST_TTL: i64 = 2;

/// A request: what to do, for whom, and what that needs.
struct Request {
    command: Command,
    needs: Vec<Need>,
}

impl Machine {
    /// Applies the entry at `index` of etcd's log. What etcd refuses at this point changes nothing,
    /// nor does what is not about keys, leases, users or alarms.
    ///
    /// # Errors
    /// [`Malformed`]: no request, though it begins as one.
    pub fn replay(&mut self, index: u64, data: &[u8], hash: Hash<'_>) -> Result<(), Malformed> {
        self.skip(index);
        let Some((caller, field, body)) = parts(data) else { return Ok(()) };
        let Some(request) = request(field, body, hash)? else { return Ok(()) };
        let Request { command, mut needs } = request;
        // Whoever gives a lease keys or ends it writes those that hang on it.
        for lease in leases(&command) {
            let keys = self.mvcc.lease_keys(lease);
            needs.extend(keys.into_iter().map(|key| Need::Write(Span::Key(key))));
        }
        if self.auth().authorize(&caller, &needs).is_ok() {
            // Refused as it was when etcd applied it: the lease is gone, the revision compacted.
            let _ = self.apply(index, &command);
        }
        Ok(())
    }
}

/// Who asks, and the request by its number; `None` for an entry that is none.
fn parts(data: &[u8]) -> Option<(Caller, u64, &[u8])> {
    let (mut header, mut found) = (&[][..], None);
    let read = fields(data, |field, content| match (field, content) {
        (100, Field::Bytes(bytes)) => header = bytes,
        (_, Field::Bytes(bytes)) => found = Some((field, bytes)),
        _ => {}
    });
    let mut caller = Caller { user: None, revision: 0 };
    let who = fields(header, |field, content| match field {
        2 => caller.user = Some(content.text()),
        3 => caller.revision = content.number(),
        _ => {}
    });
    let (field, body) = found.filter(|_| read && who)?;
    Some((caller, field, body))
}

/// A message that is read field by field.
fn message<'a>(body: &'a [u8], take: impl FnMut(u64, Field<'a>)) -> Result<(), Malformed> {
    fields(body, take).then_some(()).ok_or(Malformed("a request of etcd's log is no message"))
}

fn owned(content: Field<'_>) -> Bytes {
    Bytes::copy_from_slice(content.bytes())
}

/// The request with a number; `None` for one that changes nothing that is kept.
fn request(field: u64, body: &[u8], hash: Hash<'_>) -> Result<Option<Request>, Malformed> {
    let plain = |command| Some(Request { command, needs: Vec::new() });
    Ok(match field {
        4..=6 => {
            let txn = match field {
                4 => Txn { success: vec![put(body)?], ..Txn::default() },
                5 => Txn { success: vec![delete(body)?], ..Txn::default() },
                _ => txn(body, 0)?,
            };
            let needs = Need::of(&txn);
            Some(Request { command: Command::Txn(txn), needs })
        }
        7 => plain(Command::Compact(number(body, 1)? as i64)),
        8 => plain(Command::LeaseGrant {
            id: number(body, 2)? as i64,
            ttl: (number(body, 1)? as i64).max(SHORTEST_TTL),
        }),
        9 => plain(Command::LeaseRevoke { id: number(body, 1)? as i64 }),
        10 => alarm(body)?.and_then(plain),
        11 => plain(Command::LeaseCheckpoint(checkpoints(body)?)),
        1302 => downgrade(body)?.and_then(plain),
        // Only whoever enables authentication need not be root.
        1000 => plain(Command::Auth(AuthChange::Enable)),
        1011 | 1100..=1299 => auth(field, body, hash)?
            .map(|change| Request { command: Command::Auth(change), needs: vec![Need::Root] }),
        _ => None,
    })
}

/// A field that is a number; 0 when it is not there.
fn number(body: &[u8], wanted: u64) -> Result<u64, Malformed> {
    let mut found = 0;
    message(body, |field, content| {
        if field == wanted {
            found = content.number();
        }
    })?;
    Ok(found)
}

/// A field that is a text; empty when it is not there.
fn text(body: &[u8], wanted: u64) -> Result<String, Malformed> {
    let mut found = String::new();
    message(body, |field, content| {
        if field == wanted {
            found = content.text();
        }
    })?;
    Ok(found)
}

fn put(body: &[u8]) -> Result<Op, Malformed> {
    let (mut key, mut value, mut lease) = (Bytes::new(), Bytes::new(), 0);
    let (mut prev_kv, mut ignore_value, mut ignore_lease) = (false, false, false);
    message(body, |field, content| match field {
        1 => key = owned(content),
        2 => value = owned(content),
        3 => lease = content.number() as i64,
        4 => prev_kv = content.number() != 0,
        5 => ignore_value = content.number() != 0,
        6 => ignore_lease = content.number() != 0,
        _ => {}
    })?;
    Ok(Op::Put { key, value, lease, prev_kv, ignore_value, ignore_lease })
}

fn delete(body: &[u8]) -> Result<Op, Malformed> {
    let (mut key, mut end, mut prev_kv) = (Bytes::new(), Bytes::new(), false);
    message(body, |field, content| match field {
        1 => key = owned(content),
        2 => end = owned(content),
        3 => prev_kv = content.number() != 0,
        _ => {}
    })?;
    Ok(Op::Delete { span: Span::new(key, end), prev_kv })
}

/// A read within a transaction. What it finds is nobody's concern any more, but one of a revision
/// that was compacted has the whole transaction refused.
fn range(body: &[u8]) -> Result<Op, Malformed> {
    let (mut key, mut end, mut revision) = (Bytes::new(), Bytes::new(), 0);
    message(body, |field, content| match field {
        1 => key = owned(content),
        2 => end = owned(content),
        4 => revision = content.number() as i64,
        _ => {}
    })?;
    Ok(Op::Range(Range { revision, count_only: true, ..Range::all(Span::new(key, end)) }))
}

fn txn(body: &[u8], depth: usize) -> Result<Txn, Malformed> {
    if depth > DEEPEST {
        return Err(Malformed("a transaction in too many others"));
    }
    let (mut compare, mut success, mut failure) = (Vec::new(), Vec::new(), Vec::new());
    message(body, |field, content| match field {
        1 => compare.push(content.bytes()),
        2 => success.push(content.bytes()),
        3 => failure.push(content.bytes()),
        _ => {}
    })?;
    let steps = |bodies: Vec<&[u8]>| -> Result<Vec<Op>, Malformed> {
        bodies.into_iter().map(|body| op(body, depth)).collect()
    };
    let guards: Result<Vec<_>, _> = compare.into_iter().map(guard).collect();
    Ok(Txn {
        compare: guards?.into_iter().flatten().collect(),
        success: steps(success)?,
        failure: steps(failure)?,
    })
}

fn op(body: &[u8], depth: usize) -> Result<Op, Malformed> {
    let mut found = None;
    message(body, |field, content| found = Some((field, content.bytes())))?;
    match found {
        Some((1, body)) => range(body),
        Some((2, body)) => put(body),
        Some((3, body)) => delete(body),
        Some((4, body)) => txn(body, depth + 1).map(Op::Txn),
        _ => Err(Malformed("a step of a transaction does nothing")),
    }
}

/// A guard; `None` for one whose comparison is not known, which etcd takes as fulfilled.
fn guard(body: &[u8]) -> Result<Option<Compare>, Malformed> {
    let (mut result, mut target, mut given) = (0, 0, None);
    let (mut key, mut end) = (Bytes::new(), Bytes::new());
    message(body, |field, content| match field {
        1 => result = content.number(),
        2 => target = content.number(),
        3 => key = owned(content),
        4..=8 => given = Some((field, content)),
        64 => end = owned(content),
        _ => {}
    })?;
    let order = match result {
        0 => Order::Equal,
        1 => Order::Greater,
        2 => Order::Less,
        3 => Order::NotEqual,
        _ => return Ok(None),
    };
    // A value of another kind than the target counts as the target's zero.
    let given = given.filter(|(field, _)| *field == target + 4).map(|(_, content)| content);
    let number = given.map_or(0, Field::number) as i64;
    let target = match target {
        0 => Target::Version(number),
        1 => Target::CreateRevision(number),
        2 => Target::ModRevision(number),
        3 => Target::Value(given.map(owned).unwrap_or_default()),
        4 => Target::Lease(number),
        _ => return Ok(None),
    };
    Ok(Some(Compare { span: Span::new(key, end), order, target }))
}

/// The leases that a command gives keys, or ends.
fn leases(command: &Command) -> Vec<i64> {
    match command {
        Command::LeaseRevoke { id } => vec![*id],
        Command::Txn(txn) => txn
            .success
            .iter()
            .filter_map(|op| match op {
                Op::Put { lease, .. } if *lease != 0 => Some(*lease),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn alarm(body: &[u8]) -> Result<Option<Command>, Malformed> {
    let (mut action, mut member, mut kind) = (0, 0, 0);
    message(body, |field, content| match field {
        1 => action = content.number(),
        2 => member = content.number(),
        3 => kind = content.number(),
        _ => {}
    })?;
    let kind = match kind {
        1 => Some(AlarmKind::NoSpace),
        2 => Some(AlarmKind::Corrupt),
        _ => None,
    };
    Ok(match (action, kind) {
        (1, Some(kind)) => Some(Command::AlarmRaise(Alarm { member, kind })),
        (2, kind) => Some(Command::AlarmDisarm { member, kind }),
        _ => None,
    })
}

fn checkpoints(body: &[u8]) -> Result<Vec<(i64, i64)>, Malformed> {
    let mut bodies = Vec::new();
    message(body, |field, content| {
        if field == 1 {
            bodies.push(content.bytes());
        }
    })?;
    bodies.into_iter().map(|body| Ok((number(body, 1)? as i64, number(body, 2)? as i64))).collect()
}

fn downgrade(body: &[u8]) -> Result<Option<Command>, Malformed> {
    if number(body, 1)? == 0 {
        return Ok(Some(Command::Downgrade(None)));
    }
    let version = text(body, 2)?;
    let mut numbers = version.split('.').map(|part| part.parse().ok());
    let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
        return Err(Malformed("a version to go back to is none"));
    };
    // Only what this store can speak: else it goes on with its own.
    let to = Version { major, minor };
    let older = Version { minor: Version::NEWEST.minor - 1, ..Version::NEWEST };
    Ok((to == older).then_some(Command::Downgrade(Some(to))))
}

/// A change of users or roles; `None` for questions about them.
fn auth(field: u64, body: &[u8], hash: Hash<'_>) -> Result<Option<AuthChange>, Malformed> {
    let password = |hashed: u64| -> Result<String, Malformed> {
        let (clear, hashed) = (text(body, 2)?, text(body, hashed)?);
        if clear.is_empty() && !hashed.is_empty() {
            let bytes =
                STANDARD.decode(hashed).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            return bytes.ok_or(Malformed("a hashed password is none"));
        }
        hash(&clear).ok_or(Malformed("a password cannot be hashed"))
    };
    Ok(Some(match field {
        1011 => AuthChange::Disable,
        1100 => {
            let mut options = &[][..];
            message(body, |field, content| {
                if field == 3 {
                    options = content.bytes();
                }
            })?;
            let no_password = number(options, 1)? != 0;
            let hash = if no_password { String::new() } else { password(4)? };
            AuthChange::UserAdd { name: text(body, 1)?, hash, no_password }
        }
        1101 => AuthChange::UserDelete(text(body, 1)?),
        1103 => AuthChange::UserChangePassword { name: text(body, 1)?, hash: password(3)? },
        1104 => AuthChange::UserGrantRole { user: text(body, 1)?, role: text(body, 2)? },
        1105 => AuthChange::UserRevokeRole { user: text(body, 1)?, role: text(body, 2)? },
        1200 => AuthChange::RoleAdd(text(body, 1)?),
        1201 => AuthChange::RoleDelete(text(body, 1)?),
        1203 => {
            let mut given = &[][..];
            message(body, |field, content| {
                if field == 2 {
                    given = content.bytes();
                }
            })?;
            AuthChange::RoleGrant { role: text(body, 1)?, permission: permission(given)? }
        }
        1204 => {
            let (mut key, mut end) = (Bytes::new(), Bytes::new());
            message(body, |field, content| match field {
                2 => key = owned(content),
                3 => end = owned(content),
                _ => {}
            })?;
            AuthChange::RoleRevoke { role: text(body, 1)?, span: Span::new(key, end) }
        }
        _ => return Ok(None),
    }))
}

fn permission(body: &[u8]) -> Result<Permission, Malformed> {
    let (mut kind, mut key, mut end) = (0, Bytes::new(), Bytes::new());
    message(body, |field, content| match field {
        1 => kind = content.number(),
        2 => key = owned(content),
        3 => end = owned(content),
        _ => {}
    })?;
    let access = match kind {
        0 => Access::Read,
        1 => Access::Write,
        2 => Access::ReadWrite,
        _ => return Err(Malformed("a permission of an unknown kind")),
    };
    Ok(Permission { access, span: Span::new(key, end) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_bolt::etcd::proto::{put_bytes, put_message, put_number};

    fn body(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        fill(&mut out);
        out
    }

    /// A request, as its caller sent it with the rules of a revision.
    fn request(field: u32, content: &[u8], caller: Option<(&str, u64)>) -> Vec<u8> {
        body(|out| {
            if let Some((user, revision)) = caller {
                let header = body(|out| {
                    put_bytes(out, 2, user.as_bytes());
                    put_number(out, 3, revision);
                });
                put_message(out, 100, &header);
            }
            put_number(out, 1, 77);
            put_message(out, field, content);
        })
    }

    fn put_of(key: &str, value: &str, lease: u64) -> Vec<u8> {
        body(|out| {
            put_bytes(out, 1, key.as_bytes());
            put_bytes(out, 2, value.as_bytes());
            put_number(out, 3, lease);
        })
    }

    fn two(first: &str, second: &str) -> Vec<u8> {
        body(|out| {
            put_bytes(out, 1, first.as_bytes());
            put_bytes(out, 2, second.as_bytes());
        })
    }

    fn replay(machine: &mut Machine, data: &[u8]) {
        let index = machine.applied() + 1;
        machine.replay(index, data, &|clear| Some(format!("hash of {clear}"))).unwrap();
        assert_eq!(machine.applied(), index);
    }

    fn value(machine: &Machine, key: &'static str) -> Option<Bytes> {
        let all = Range::all(Span::Key(key.into()));
        let found = machine.mvcc.range(&all, machine.mvcc.revision()).unwrap();
        found.kvs.into_iter().next().map(|kv| kv.value)
    }

    #[test]
    fn keys_and_leases_are_as_etcd_left_them() {
        let mut machine = Machine::new();
        replay(&mut machine, b"");
        let grant = body(|out| {
            put_number(out, 1, 60);
            put_number(out, 2, 5);
        });
        replay(&mut machine, &request(8, &grant, None));
        replay(&mut machine, &request(4, &put_of("a", "1", 5), None));
        // The lease does not exist: etcd refuses it only now.
        replay(&mut machine, &request(4, &put_of("b", "2", 6), None));
        assert_eq!((machine.mvcc.revision(), machine.mvcc.keys()), (2, 1));
        let guard = body(|out| {
            put_number(out, 1, 1);
            put_bytes(out, 3, b"a");
            put_number(out, 4, 0);
        });
        let step = |field: u32, content: &[u8]| body(|out| put_message(out, field, content));
        let inner = body(|out| put_message(out, 2, &step(2, &put_of("in", "ner", 0))));
        let txn = body(|out| {
            put_message(out, 1, &guard);
            put_message(out, 2, &step(2, &put_of("c", "3", 0)));
            put_message(out, 2, &step(4, &inner));
            put_message(out, 3, &step(2, &put_of("d", "4", 0)));
        });
        replay(&mut machine, &request(6, &txn, None));
        assert_eq!(value(&machine, "c").as_deref(), Some(&b"3"[..]));
        assert_eq!(value(&machine, "in").as_deref(), Some(&b"ner"[..]));
        assert_eq!(value(&machine, "d"), None);
        assert_eq!(machine.mvcc.revision(), 3);
        replay(&mut machine, &request(9, &body(|out| put_number(out, 1, 5)), None));
        assert_eq!((value(&machine, "a"), machine.mvcc.revision()), (None, 4));
        replay(&mut machine, &request(5, &two("c", "d"), None));
        replay(&mut machine, &request(7, &body(|out| put_number(out, 1, 4)), None));
        assert_eq!((machine.mvcc.revision(), machine.mvcc.compacted()), (5, 4));
        assert_eq!(machine.mvcc.keys(), 1);
    }

    #[test]
    fn users_are_asked_for_from_where_etcd_asked() {
        let mut machine = Machine::new();
        let hashed = body(|out| {
            put_bytes(out, 1, b"root");
            put_bytes(out, 4, STANDARD.encode("$2a$x").as_bytes());
        });
        replay(&mut machine, &request(1100, &hashed, None));
        replay(&mut machine, &request(1100, &two("eve", "secret"), None));
        replay(&mut machine, &request(1200, &body(|out| put_bytes(out, 1, b"reader")), None));
        let range = body(|out| {
            put_number(out, 1, 2);
            put_bytes(out, 2, b"a");
            put_bytes(out, 3, b"c");
        });
        let grant = body(|out| {
            put_bytes(out, 1, b"reader");
            put_message(out, 2, &range);
        });
        replay(&mut machine, &request(1203, &grant, None));
        replay(&mut machine, &request(1104, &two("eve", "reader"), None));
        replay(&mut machine, &request(1104, &two("root", "root"), None));
        replay(&mut machine, &request(1000, b"", None));
        assert!(machine.auth().status().enabled);
        assert_eq!(machine.auth().password_hash("root").unwrap().0, "$2a$x");
        assert_eq!(machine.auth().password_hash("eve").unwrap().0, "hash of secret");
        let now = machine.auth().status().revision;
        for (key, caller, written) in [
            ("a", Some(("eve", now)), true),
            ("b", Some(("eve", now - 1)), false),
            ("b", None, false),
            ("d", Some(("eve", now)), false),
            ("d", Some(("root", now)), true),
        ] {
            let before = machine.mvcc.revision();
            replay(&mut machine, &request(4, &put_of(key, "v", 0), caller));
            assert_eq!(machine.mvcc.revision() > before, written, "{key} by {caller:?}");
        }
        let add = two("mallory", "x");
        replay(&mut machine, &request(1100, &add, Some(("eve", now))));
        assert!(machine.auth().user("mallory").is_err());
        replay(&mut machine, &request(1011, b"", Some(("root", now))));
        assert!(!machine.auth().status().enabled);
    }

    #[test]
    fn alarms_and_a_downgrade_are_taken_and_the_rest_passed_over() {
        let mut machine = Machine::new();
        let raise = body(|out| {
            put_number(out, 1, 1);
            put_number(out, 2, 9);
            put_number(out, 3, 1);
        });
        replay(&mut machine, &request(10, &raise, None));
        assert_eq!(machine.alarms().raised().count(), 1);
        replay(&mut machine, &request(4, &put_of("full", "x", 0), None));
        assert_eq!(machine.mvcc.keys(), 0);
        let back = |version: &str| {
            body(|out| {
                put_number(out, 1, 1);
                put_bytes(out, 2, version.as_bytes());
            })
        };
        replay(&mut machine, &request(1302, &back("3.4.0"), None));
        assert_eq!(machine.downgrade(), None);
        replay(&mut machine, &request(1302, &back("3.6.0"), None));
        assert_eq!(machine.downgrade(), Some(Version { major: 3, minor: 6 }));
        replay(&mut machine, &request(1300, &body(|out| put_bytes(out, 1, b"3.7.0")), None));
        // A member's name as before 3.5, which is no request of this kind.
        replay(&mut machine, b"\x12\x03PUT\x1a\x02/0");
        assert!(machine.replay(99, &request(4, b"\x0a\x09", None), &|_| None).is_err());
    }
}
