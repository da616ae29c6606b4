//! Whether they may: asks `state`'s access rules.

use crate::call::Verb;
use crate::path::ResourcePath;
use dhow_objects::Status;
use dhow_state::{Attributes, State, User};

/// Checks an access to a resource.
///
/// # Errors
/// 403 that names user, verb, resource and place.
pub fn resource(state: &State, user: &User, verb: Verb, path: &ResourcePath) -> Result<(), Status> {
    // A namespace is both an object and the place that rules are bound to.
    let namespace = match (&path.namespace, path.resource.as_str()) {
        (Some(namespace), _) => namespace.as_str(),
        (None, "namespaces") => path.name.as_deref().unwrap_or(""),
        _ => "",
    };
    state.authorize(
        user,
        &Attributes {
            verb: verb.name(),
            group: &path.group,
            resource: &path.resource,
            subresource: &path.subresource,
            namespace,
            name: path.name.as_deref().unwrap_or(""),
            path: "",
        },
    )
}

/// Checks an access to an address that is not a resource.
///
/// # Errors
/// 403 that names user, verb and path.
pub fn url(state: &State, user: &User, verb: &str, path: &str) -> Result<(), Status> {
    state.authorize(user, &Attributes { verb, path, ..Attributes::default() })
}

/// Checks that a user may act as another.
///
/// # Errors
/// 403 for the first part of the wanted identity that is not allowed.
pub fn impersonation(state: &State, user: &User, wanted: &User) -> Result<(), Status> {
    let may = |group, resource, subresource, namespace, name| {
        let verb = "impersonate";
        let what = Attributes { verb, group, resource, subresource, namespace, name, path: "" };
        state.authorize(user, &what)
    };
    let account = wanted.name.strip_prefix("system:serviceaccount:");
    match account.and_then(|account| account.split_once(':')) {
        Some((namespace, name)) => may("", "serviceaccounts", "", namespace, name)?,
        None => may("", "users", "", "", &wanted.name)?,
    }
    for group in &wanted.groups {
        may("", "groups", "", "", group)?;
    }
    if !wanted.uid.is_empty() {
        may("authentication.k8s.io", "uids", "", "", &wanted.uid)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            may("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    Ok(())
}
