//! Users and roles against a naive model that looks at every permission for every key.

use bytes::Bytes;
use dhow_kv::admin::{Access, AuthChange, Caller, Need, Permission};
use dhow_kv::{Error, Op, Span, Txn};
use dhow_mvcc::{Auth, Command, Machine, MachineHeader, MachineLoader};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Default)]
struct Model {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, BTreeSet<String>>,
    roles: BTreeMap<String, Vec<Permission>>,
}

/// Keys of one letter, and the keys right behind them: every span of this test begins and ends at
/// one of them.
fn places() -> Vec<Bytes> {
    let letters = (b'a'..=b'f').flat_map(|letter| [vec![letter], vec![letter, 0]]);
    letters.map(Bytes::from).collect()
}

impl Model {
    fn apply(&mut self, change: &AuthChange) -> Result<bool, Error> {
        let mut next = self.clone();
        let changed = next.change(change)?;
        next.revision += u64::from(changed && *change != AuthChange::Enable);
        *self = next;
        Ok(changed)
    }

    fn change(&mut self, change: &AuthChange) -> Result<bool, Error> {
        match change {
            AuthChange::Enable if self.enabled => return Ok(false),
            AuthChange::Enable => match self.users.get("root") {
                None => return Err(Error::NoRootUser),
                Some(roles) if !roles.contains("root") => return Err(Error::NoRootRole),
                Some(_) => self.enabled = true,
            },
            AuthChange::Disable => return Ok(std::mem::replace(&mut self.enabled, false)),
            AuthChange::UserAdd { name, .. } => {
                if name.is_empty() {
                    return Err(Error::UserNameEmpty);
                }
                if self.users.insert(name.clone(), BTreeSet::new()).is_some() {
                    return Err(Error::UserExists);
                }
            }
            AuthChange::UserDelete(name) if self.enabled && name == "root" => {
                return Err(Error::InvalidAuthManagement);
            }
            AuthChange::UserDelete(name) => {
                self.users.remove(name).ok_or(Error::UserNotFound)?;
            }
            AuthChange::UserChangePassword { name, .. } => {
                self.users.get(name).ok_or(Error::UserNotFound)?;
            }
            AuthChange::UserGrantRole { user, role } => {
                let known = role == "root" || self.roles.contains_key(role);
                let roles = self.users.get_mut(user).ok_or(Error::UserNotFound)?;
                if !known {
                    return Err(Error::RoleNotFound);
                }
                return Ok(roles.insert(role.clone()));
            }
            AuthChange::UserRevokeRole { user, role } => {
                if self.enabled && user == "root" && role == "root" {
                    return Err(Error::InvalidAuthManagement);
                }
                let roles = self.users.get_mut(user).ok_or(Error::UserNotFound)?;
                if !roles.remove(role) {
                    return Err(Error::RoleNotGranted);
                }
            }
            AuthChange::RoleAdd(name) if name.is_empty() => return Err(Error::RoleNameEmpty),
            AuthChange::RoleAdd(name) => {
                if self.roles.contains_key(name) {
                    return Err(Error::RoleExists);
                }
                self.roles.insert(name.clone(), Vec::new());
            }
            AuthChange::RoleDelete(name) => {
                if self.enabled && name == "root" {
                    return Err(Error::InvalidAuthManagement);
                }
                self.roles.remove(name).ok_or(Error::RoleNotFound)?;
                for roles in self.users.values_mut() {
                    roles.remove(name);
                }
            }
            AuthChange::RoleGrant { role, permission } => {
                if matches!(&permission.span, Span::Range(from, to) if from >= to) {
                    return Err(Error::InvalidAuthManagement);
                }
                let permissions = self.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
                permissions.retain(|have| have.span != permission.span);
                permissions.push(permission.clone());
            }
            AuthChange::RoleRevoke { role, span } => {
                let permissions = self.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
                let before = permissions.len();
                permissions.retain(|have| have.span != *span);
                if permissions.len() == before {
                    return Err(Error::PermissionNotGranted);
                }
            }
        }
        Ok(true)
    }

    /// Whether a user may do it at every place that the span holds.
    fn may(&self, user: &str, need: &Need) -> bool {
        let (span, write) = match need {
            Need::Read(span) => (span, false),
            Need::Write(span) => (span, true),
            _ => return false,
        };
        let Some(roles) = self.users.get(user) else { return false };
        let allowed = |place: &Bytes| {
            roles.iter().filter_map(|role| self.roles.get(role)).flatten().any(|permission| {
                let access = match permission.access {
                    Access::Read => !write,
                    Access::Write => write,
                    Access::ReadWrite => true,
                };
                access && permission.span.contains(place)
            })
        };
        // Behind the last place there is a last one that only a span without end holds.
        let mut places = places();
        places.push(Bytes::from_static(b"zz"));
        roles.contains("root") || places.iter().filter(|place| span.contains(place)).all(allowed)
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just("root"), 3 => Just("ann"), 2 => Just("bob"), 1 => Just("")]
        .prop_map(str::to_owned)
}

fn role() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just("root"), 4 => Just("r"), 3 => Just("s"), 1 => Just("")]
        .prop_map(str::to_owned)
}

fn span() -> impl Strategy<Value = Span> {
    let place = || prop::sample::select(places());
    let key = prop::sample::select(vec!["a", "b", "c", "d", "e", "f"]);
    prop_oneof![
        2 => key.prop_map(|key| Span::Key(key.into())),
        4 => (place(), place()).prop_map(|(from, to)| Span::Range(from, to)),
        1 => place().prop_map(Span::From),
    ]
}

fn change() -> impl Strategy<Value = AuthChange> {
    let access = prop::sample::select(vec![Access::Read, Access::Write, Access::ReadWrite]);
    let grant = (role(), access, span());
    prop_oneof![
        2 => Just(AuthChange::Enable),
        1 => Just(AuthChange::Disable),
        4 => name().prop_map(|name| {
            AuthChange::UserAdd { name, hash: "hash".into(), no_password: false }
        }),
        1 => name().prop_map(AuthChange::UserDelete),
        1 => name().prop_map(|name| {
            AuthChange::UserChangePassword { name, hash: "other".into() }
        }),
        6 => (name(), role()).prop_map(|(user, role)| AuthChange::UserGrantRole { user, role }),
        2 => (name(), role()).prop_map(|(user, role)| AuthChange::UserRevokeRole { user, role }),
        4 => role().prop_map(AuthChange::RoleAdd),
        1 => role().prop_map(AuthChange::RoleDelete),
        8 => grant.prop_map(|(role, access, span)| {
            AuthChange::RoleGrant { role, permission: Permission { access, span } }
        }),
        2 => (role(), span()).prop_map(|(role, span)| AuthChange::RoleRevoke { role, span }),
    ]
}

fn through_a_snapshot(machine: &Machine) -> Machine {
    let mut bytes = Vec::new();
    machine.snapshot_header().encode(&mut bytes);
    let header = MachineHeader::decode(&bytes.into()).unwrap();
    let mut chunk = Vec::new();
    let end = machine.mvcc.snapshot_chunk(&header.mvcc, None, usize::MAX / 2, &mut chunk);
    assert_eq!(end, None);
    let mut loader = MachineLoader::new(header);
    loader.chunk(&chunk.into()).unwrap();
    loader.finish()
}

fn check(auth: &Auth, model: &Model, needs: &[Need]) {
    let status = auth.status();
    assert_eq!((status.enabled, status.revision), (model.enabled, model.revision));
    assert!(auth.users().keys().eq(model.users.keys()));
    assert!(auth.roles().eq(model.roles.keys().map(String::as_str)));
    for (name, roles) in &model.users {
        assert!(auth.user(name).unwrap().iter().eq(roles));
    }
    for user in ["root", "ann", "bob", "eve"] {
        let caller = Caller { user: Some(user.into()), revision: model.revision };
        for need in needs {
            let allowed = auth.authorize(&caller, std::slice::from_ref(need));
            let wanted = !model.enabled || model.may(user, need);
            assert_eq!(allowed.is_ok(), wanted, "{user} {need:?} {model:?}");
        }
        let old = Caller { revision: model.revision - 1, ..caller };
        let wanted = match (model.enabled, old.revision) {
            (false, _) => Ok(()),
            (true, 0) => Err(Error::UserNameEmpty),
            (true, _) => Err(Error::AuthOldRevision),
        };
        assert_eq!(auth.authorize(&old, &needs[..1]), wanted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn rules_are_as_the_naive_model_says(
        changes in prop::collection::vec(change(), 1..50),
        spans in prop::collection::vec(span(), 1..6),
    ) {
        let whole = |span: &Span| !matches!(span, Span::Range(from, to) if from >= to);
        let spans = spans.into_iter().filter(whole);
        let mut needs: Vec<Need> =
            spans.flat_map(|span| [Need::Read(span.clone()), Need::Write(span)]).collect();
        needs.push(Need::Read(Span::Key("a".into())));
        let mut model = Model { revision: 1, ..Model::default() };
        let mut machine = Machine::new();
        let mut done = 1;
        for (index, change) in changes.iter().enumerate() {
            let applied = machine.apply(index as u64 + 1, &Command::Auth(change.clone()));
            let wanted = model.apply(change);
            prop_assert_eq!(applied.map(|applied| applied.changed), wanted, "{:?}", change);
            check(machine.auth(), &model, &needs);
            // A transaction that older rules allowed does not run, unless nobody is asked for a name.
            let txn = Txn { success: vec![Op::put("a", "")], ..Txn::default() };
            for auth_revision in [model.revision, model.revision - 1] {
                let command = Command::TxnAs { txn: txn.clone(), auth_revision };
                let ran = machine.apply(index as u64 + 1, &command);
                let wanted = auth_revision == model.revision || !model.enabled;
                prop_assert_eq!(ran.is_ok(), wanted);
                done += i64::from(wanted);
            }
        }
        let loaded = through_a_snapshot(&machine);
        check(loaded.auth(), &model, &needs);
        prop_assert_eq!(loaded.mvcc.revision(), done);
    }
}
