//! Etcd's rules, case by case.

use super::*;
use bytes::Bytes;

fn add(name: &str) -> AuthChange {
    AuthChange::UserAdd { name: name.into(), hash: "hash".into(), no_password: false }
}

fn grant(user: &str, role: &str) -> AuthChange {
    AuthChange::UserGrantRole { user: user.into(), role: role.into() }
}

fn revoke(user: &str, role: &str) -> AuthChange {
    AuthChange::UserRevokeRole { user: user.into(), role: role.into() }
}

fn allow(role: &str, access: Access, span: Span) -> AuthChange {
    AuthChange::RoleGrant { role: role.into(), permission: Permission { access, span } }
}

fn range(from: &str, to: &str) -> Span {
    Span::Range(Bytes::copy_from_slice(from.as_bytes()), Bytes::copy_from_slice(to.as_bytes()))
}

fn key(key: &str) -> Span {
    Span::Key(Bytes::copy_from_slice(key.as_bytes()))
}

/// Root, and ann with the role r; enabled.
fn with_ann(permissions: &[(Access, Span)]) -> Auth {
    let mut auth = Auth::new();
    let changes = [add("root"), grant("root", "root"), add("ann"), AuthChange::RoleAdd("r".into())];
    for change in changes {
        assert_eq!(auth.apply(&change), Ok(true));
    }
    for (access, span) in permissions {
        auth.apply(&allow("r", *access, span.clone())).unwrap();
    }
    auth.apply(&grant("ann", "r")).unwrap();
    auth.apply(&AuthChange::Enable).unwrap();
    auth
}

fn caller(auth: &Auth, user: &str) -> Caller {
    Caller { user: Some(user.into()), revision: auth.status().revision }
}

fn may(auth: &Auth, need: Need) -> bool {
    auth.authorize(&caller(auth, "ann"), &[need]).is_ok()
}

#[test]
fn enabling_needs_root_with_its_role() {
    let mut auth = Auth::new();
    assert_eq!(auth.status(), AuthStatus { enabled: false, revision: 1 });
    assert_eq!(auth.apply(&AuthChange::Enable), Err(Error::NoRootUser));
    auth.apply(&add("root")).unwrap();
    assert_eq!(auth.apply(&AuthChange::Enable), Err(Error::NoRootRole));
    // The role root needs not exist to be given.
    auth.apply(&grant("root", "root")).unwrap();
    let before = auth.status().revision;
    assert_eq!(auth.apply(&AuthChange::Enable), Ok(true));
    assert_eq!(auth.apply(&AuthChange::Enable), Ok(false));
    assert_eq!(auth.status().revision, before);
    assert_eq!(auth.apply(&AuthChange::Disable), Ok(true));
    assert_eq!(auth.status().revision, before + 1);
    assert_eq!(auth.apply(&AuthChange::Disable), Ok(false));
    assert_eq!(auth.status().revision, before + 1);
}

#[test]
fn what_authentication_needs_stays_while_it_is_on() {
    let mut auth = with_ann(&[]);
    let root = || "root".to_owned();
    let refused = Err(Error::InvalidAuthManagement);
    assert_eq!(auth.apply(&AuthChange::UserDelete(root())), refused);
    assert_eq!(auth.apply(&AuthChange::RoleDelete(root())), refused);
    assert_eq!(auth.apply(&revoke("root", "root")), refused);
    auth.apply(&AuthChange::Disable).unwrap();
    assert_eq!(auth.apply(&AuthChange::RoleDelete(root())), Err(Error::RoleNotFound));
    assert_eq!(auth.apply(&revoke("root", "root")), Ok(true));
    assert_eq!(auth.apply(&AuthChange::UserDelete(root())), Ok(true));
}

#[test]
fn every_refusal_has_its_error() {
    let mut auth = with_ann(&[(Access::Read, key("a"))]);
    let none = || "none".to_owned();
    let before = auth.clone();
    let permission = Permission { access: Access::Read, span: key("a") };
    let bad = |span| AuthChange::RoleGrant {
        role: "none".into(),
        permission: Permission { access: Access::Read, span },
    };
    for (change, error) in [
        (add(""), Error::UserNameEmpty),
        (add("ann"), Error::UserExists),
        (AuthChange::UserDelete(none()), Error::UserNotFound),
        (AuthChange::UserChangePassword { name: none(), hash: none() }, Error::UserNotFound),
        (grant("none", "none"), Error::UserNotFound),
        (grant("ann", "none"), Error::RoleNotFound),
        (revoke("none", "r"), Error::UserNotFound),
        (revoke("root", "r"), Error::RoleNotGranted),
        (AuthChange::RoleAdd(String::new()), Error::RoleNameEmpty),
        (AuthChange::RoleAdd("r".into()), Error::RoleExists),
        (AuthChange::RoleDelete(none()), Error::RoleNotFound),
        (AuthChange::RoleGrant { role: none(), permission }, Error::RoleNotFound),
        (bad(key("")), Error::InvalidAuthManagement),
        (bad(range("b", "b")), Error::InvalidAuthManagement),
        (bad(range("b", "a")), Error::InvalidAuthManagement),
        (AuthChange::RoleRevoke { role: none(), span: key("a") }, Error::RoleNotFound),
        (
            AuthChange::RoleRevoke { role: "r".into(), span: range("a", "b") },
            Error::PermissionNotGranted,
        ),
    ] {
        assert_eq!(auth.apply(&change), Err(error), "{change:?}");
        assert_eq!(auth, before);
    }
    assert_eq!(auth.apply(&grant("ann", "r")), Ok(false));
    assert_eq!(auth, before);
}

#[test]
fn ranges_add_up() {
    let auth = with_ann(&[
        (Access::Read, range("a", "c")),
        (Access::ReadWrite, range("c", "e")),
        (Access::Read, key("f")),
        (Access::Write, Span::From("x".into())),
        (Access::Read, range("b", "d")),
    ]);
    assert!(may(&auth, Need::Read(range("a", "e"))));
    assert!(may(&auth, Need::Read(range("b", "e"))));
    assert!(!may(&auth, Need::Read(range("a", "f"))));
    assert!(!may(&auth, Need::Read(range("a", "e\0"))));
    assert!(!may(&auth, Need::Write(range("b", "d"))));
    assert!(may(&auth, Need::Write(key("c"))));
    assert!(may(&auth, Need::Read(key("f"))));
    assert!(may(&auth, Need::Read(range("f", "f\0"))));
    assert!(!may(&auth, Need::Read(key("f\0"))));
    assert!(may(&auth, Need::Write(Span::From("y".into()))));
    assert!(may(&auth, Need::Write(range("x", "zz"))));
    assert!(!may(&auth, Need::Write(Span::From("w".into()))));
    assert!(!may(&auth, Need::Read(Span::From("a".into()))));
}

#[test]
fn both_ends_of_a_span_without_keys_must_be_allowed() {
    let auth = with_ann(&[(Access::ReadWrite, range("c", "d"))]);
    assert!(may(&auth, Need::Write(range("c5", "c1"))));
    assert!(!may(&auth, Need::Write(range("c5", "a1"))));
    assert!(!may(&auth, Need::Write(range("c5", "c"))));
    assert!(!may(&auth, Need::Write(range("e", "c5"))));
}

#[test]
fn a_permission_for_all_keys_holds_the_empty_start() {
    let auth = with_ann(&[(Access::Read, Span::From(Bytes::from_static(&[0])))]);
    assert!(may(&auth, Need::Read(Span::From(Bytes::new()))));
    assert!(may(&auth, Need::Read(range("", "z"))));
}

#[test]
fn a_permission_is_changed_in_its_place_and_taken_whole() {
    let mut auth = with_ann(&[(Access::Read, key("a")), (Access::Read, range("a", "b"))]);
    auth.apply(&allow("r", Access::Write, range("a", "b"))).unwrap();
    let given = auth.role("r").unwrap();
    assert_eq!(given.len(), 2);
    assert!(may(&auth, Need::Write(range("a", "b"))));
    assert!(!may(&auth, Need::Read(range("a", "b"))));
    let span = range("a", "b");
    auth.apply(&AuthChange::RoleRevoke { role: "r".into(), span }).unwrap();
    assert!(!may(&auth, Need::Write(key("a"))));
    assert!(may(&auth, Need::Read(key("a"))));
}

#[test]
fn a_role_that_goes_leaves_its_users_and_does_not_come_back_to_them() {
    let mut auth = with_ann(&[(Access::Read, key("a"))]);
    assert!(may(&auth, Need::Read(key("a"))));
    auth.apply(&AuthChange::RoleDelete("r".into())).unwrap();
    assert!(!may(&auth, Need::Read(key("a"))));
    auth.apply(&AuthChange::RoleAdd("r".into())).unwrap();
    auth.apply(&allow("r", Access::Read, key("a"))).unwrap();
    assert!(!may(&auth, Need::Read(key("a"))));
    assert_eq!(auth.user("ann"), Ok(&[][..]));
}

#[test]
fn who_asks_must_be_known_and_up_to_date() {
    let mut auth = with_ann(&[(Access::Read, key("a"))]);
    let need = [Need::Read(key("a"))];
    let nobody = Caller::default();
    assert_eq!(auth.authorize(&nobody, &need), Err(Error::UserNameEmpty));
    assert_eq!(auth.authorize(&nobody, &[Need::Root]), Err(Error::UserNameEmpty));
    assert_eq!(auth.authorize(&nobody, &[Need::Anybody]), Err(Error::UserNameEmpty));
    assert_eq!(auth.authorize(&caller(&auth, "eve"), &need), Err(Error::PermissionDenied));
    assert_eq!(auth.authorize(&caller(&auth, "eve"), &[Need::Root]), Err(Error::UserNotFound));
    assert_eq!(auth.authorize(&caller(&auth, "ann"), &[Need::Root]), Err(Error::PermissionDenied));
    assert_eq!(auth.authorize(&caller(&auth, "ann"), &[Need::Anybody]), Ok(()));
    assert_eq!(auth.authorize(&caller(&auth, "root"), &[Need::Root]), Ok(()));
    assert_eq!(
        auth.authorize(&caller(&auth, "root"), &[Need::Write(Span::From(Bytes::new()))]),
        Ok(())
    );
    let ann = caller(&auth, "ann");
    assert_eq!(auth.authorize(&ann, &need), Ok(()));
    auth.apply(&add("bob")).unwrap();
    assert_eq!(auth.authorize(&ann, &need), Err(Error::AuthOldRevision));
    auth.apply(&AuthChange::Disable).unwrap();
    assert_eq!(auth.authorize(&nobody, &[Need::Root, need[0].clone()]), Ok(()));
}

#[test]
fn only_users_with_passwords_log_in() {
    let mut auth = with_ann(&[]);
    let no_password =
        AuthChange::UserAdd { name: "cert".into(), hash: "h".into(), no_password: true };
    auth.apply(&no_password).unwrap();
    let now = auth.status().revision;
    assert_eq!(auth.password_hash("ann"), Ok(("hash", now)));
    assert_eq!(auth.password_hash("cert"), Err(Error::NoPasswordUser));
    assert_eq!(auth.check_login("ann", now), Ok(()));
    assert_eq!(auth.check_login("ann", now - 1), Err(Error::AuthOldRevision));
    assert_eq!(auth.check_login("cert", now), Err(Error::NoPasswordUser));
    assert_eq!(auth.check_login("eve", now), Err(Error::AuthFailed));
    auth.apply(&AuthChange::Disable).unwrap();
    assert_eq!(auth.check_login("ann", now), Err(Error::AuthNotEnabled));
}

#[test]
fn the_role_root_may_everything() {
    let mut auth = Auth::new();
    assert_eq!(auth.role("root"), Err(Error::RoleNotFound));
    auth.apply(&AuthChange::RoleAdd("root".into())).unwrap();
    let all = Permission { access: Access::ReadWrite, span: Span::From(Bytes::new()) };
    assert_eq!(auth.role("root"), Ok(vec![all]));
}
