//! Who asks: client certificates, bearer tokens, the local socket, impersonation.

use crate::server::PeerIdentity;
use dhow_objects::Status;
use dhow_state::{State, User};
use http::header::{AUTHORIZATION, HeaderMap};

/// Group of everybody whose identity was proved.
const AUTHENTICATED: &str = "system:authenticated";

/// Finds out who asks. A bearer token wins over a certificate, as upstream tries both and a token
/// is the more deliberate of the two.
///
/// # Errors
/// 401 when nothing was proved, or when a token was given and is not valid.
pub async fn authenticate(
    state: &State,
    identity: &PeerIdentity,
    headers: &HeaderMap,
) -> Result<User, Status> {
    if let Some(token) = bearer(headers) {
        let mut user = state.authenticate_token(token, &[]).await?;
        mark(&mut user);
        return Ok(user);
    }
    let mut user = match identity {
        PeerIdentity::Nobody => return Err(Status::unauthorized()),
        PeerIdentity::Certificate { name, groups } => {
            User { name: name.clone(), groups: groups.clone(), ..User::default() }
        }
        PeerIdentity::LocalRoot => User {
            name: "kubernetes-admin".to_owned(),
            groups: vec!["system:masters".to_owned()],
            ..User::default()
        },
    };
    mark(&mut user);
    Ok(user)
}

fn mark(user: &mut User) {
    if !user.groups.iter().any(|group| group == AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
}

/// The token of an `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()).filter(|token| !token.is_empty())
}

/// Who the caller wants to be instead (`kubectl --as`); `None` when nobody else.
///
/// # Errors
/// 400 when groups, uid or extras are given without a user, or a header cannot be read: whoever
/// wants to be less than they are must not act as themselves instead.
pub fn impersonated(headers: &HeaderMap) -> Result<Option<User>, Status> {
    let unreadable = |name: &str| {
        Status::bad_request(format!("the header {name} is not plain ASCII text: nobody is meant"))
    };
    let all = |name: &str| -> Result<Vec<String>, Status> {
        let values = headers.get_all(name).iter().map(|value| value.to_str().map(str::to_owned));
        values.collect::<Result<_, _>>().map_err(|_| unreadable(name))
    };
    let one = |name: &str| Ok(all(name)?.into_iter().next().unwrap_or_default());
    let mut user = User {
        name: one("impersonate-user")?,
        uid: one("impersonate-uid")?,
        groups: all("impersonate-group")?,
        ..User::default()
    };
    for name in headers.keys() {
        let Some(key) = name.as_str().strip_prefix("impersonate-extra-") else { continue };
        let key = crate::path::percent_decode(key, false);
        let key = key.ok_or_else(|| unreadable(name.as_str()))?;
        user.extra.push((key, all(name.as_str())?));
    }
    if user.name.is_empty() {
        let alone = user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty();
        return if alone {
            Ok(None)
        } else {
            Err(Status::bad_request("requested impersonation without impersonating a user"))
        };
    }
    if let Some(account) = user.name.strip_prefix("system:serviceaccount:")
        && user.groups.is_empty()
        && let Some((namespace, _)) = account.split_once(':')
    {
        user.groups.push("system:serviceaccounts".to_owned());
        user.groups.push(format!("system:serviceaccounts:{namespace}"));
    }
    Ok(Some(user))
}

/// Completes an impersonated user once the caller was allowed to be it.
pub fn finish_impersonation(mut user: User) -> User {
    if user.name != "system:anonymous" {
        mark(&mut user);
    }
    user
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn tokens_are_read() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("bearer  abc "));
        assert_eq!(bearer(&headers), Some("abc"));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic abc"));
        assert_eq!(bearer(&headers), None);
    }

    #[test]
    fn an_identity_that_cannot_be_read_is_not_ignored() {
        for name in ["impersonate-user", "impersonate-group", "impersonate-extra-scope"] {
            let mut headers = HeaderMap::new();
            headers.insert("impersonate-user", HeaderValue::from_static("a"));
            headers.insert(name, HeaderValue::from_bytes(b"J\xc3\xb6rg").unwrap());
            let refused = impersonated(&headers).unwrap_err();
            assert_eq!(refused.code, 400, "{name}");
            assert!(refused.message.contains(name), "{}", refused.message);
        }
    }

    #[test]
    fn groups_alone_cannot_be_impersonated() {
        let mut headers = HeaderMap::new();
        assert_eq!(impersonated(&headers), Ok(None));
        headers.insert("impersonate-group", HeaderValue::from_static("a"));
        assert_eq!(impersonated(&headers).unwrap_err().code, 400);
        headers.insert("impersonate-user", HeaderValue::from_static("system:serviceaccount:a:b"));
        let user = impersonated(&headers).unwrap().unwrap();
        assert_eq!(user.groups, ["a"]);
    }
}
