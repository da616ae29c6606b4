//! A request for a resource: what is done, to what, by whom. What handlers are given.

use crate::Door;
use crate::path::{Query, ResourcePath};
use dhow_objects::Status;
use dhow_state::{Actor, User};
use http::{Method, request};
use hyper::upgrade::OnUpgrade;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What is done to a resource, in the words that access rules use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// Read one.
    Get,
    /// Read many.
    List,
    /// Follow changes.
    Watch,
    /// Make.
    Create,
    /// Replace.
    Update,
    /// Change.
    Patch,
    /// Remove one.
    Delete,
    /// Remove many.
    DeleteCollection,
}

impl Verb {
    /// The word in access rules and discovery.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// What a method does there; `None` for methods that resources do not know.
    pub fn of(method: &Method, path: &ResourcePath, query: &Query) -> Option<Self> {
        let one = path.name.is_some();
        Some(match *method {
            Method::GET | Method::HEAD => {
                if path.subresource.is_empty() && (path.watch || query.flag("watch")) {
                    Self::Watch
                } else if one {
                    Self::Get
                } else {
                    Self::List
                }
            }
            Method::POST => Self::Create,
            Method::PUT => Self::Update,
            Method::PATCH => Self::Patch,
            Method::DELETE if one => Self::Delete,
            Method::DELETE => Self::DeleteCollection,
            _ => return None,
        })
    }
}

/// A request for a resource, authenticated and allowed.
pub struct Call {
    /// The door.
    pub door: Arc<Door>,
    /// Who asks.
    pub user: User,
    /// Method, headers...
    pub head: request::Parts,
    /// The URL's path.
    pub path: ResourcePath,
    /// The URL's query.
    pub query: Query,
    /// What is done.
    pub verb: Verb,
    /// Cancelled when the server stops.
    pub shutdown: CancellationToken,
    /// Taken by streams.
    pub upgrade: Option<OnUpgrade>,
}

impl Call {
    /// Who writes: the field manager as given, else the client program's name.
    pub fn actor(&self) -> Actor {
        let manager = self.query.get("fieldManager").map(str::to_owned).unwrap_or_else(|| {
            let agent = self.head.headers.get(http::header::USER_AGENT);
            let agent = agent.and_then(|value| value.to_str().ok()).unwrap_or("unknown");
            agent.split(['/', ' ']).next().unwrap_or("unknown").chars().take(128).collect()
        });
        Actor { user: self.user.clone(), manager, because: 0 }
    }

    /// The namespace, "" for cluster-wide kinds.
    pub fn namespace(&self) -> &str {
        self.path.namespace.as_deref().unwrap_or("")
    }

    /// The object's name.
    ///
    /// # Errors
    /// 405 when the address is a collection.
    pub fn name(&self) -> Result<&str, Status> {
        self.path.name.as_deref().ok_or_else(Status::method_not_allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::{self, Target};

    fn verb(method: Method, path: &str, query: &str) -> Option<Verb> {
        match path::parse(path) {
            Target::Resource(path) => Verb::of(&method, &path, &Query::parse(query)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn verbs_follow_method_name_and_query() {
        assert_eq!(verb(Method::GET, "/api/v1/pods", ""), Some(Verb::List));
        assert_eq!(verb(Method::GET, "/api/v1/pods", "watch=1"), Some(Verb::Watch));
        assert_eq!(verb(Method::GET, "/api/v1/pods", "watch=false"), Some(Verb::List));
        let one = "/api/v1/namespaces/a/pods/b";
        assert_eq!(verb(Method::GET, one, ""), Some(Verb::Get));
        assert_eq!(verb(Method::DELETE, one, ""), Some(Verb::Delete));
        let all = "/api/v1/namespaces/a/pods";
        assert_eq!(verb(Method::DELETE, all, ""), Some(Verb::DeleteCollection));
        assert_eq!(verb(Method::OPTIONS, all, ""), None);
    }
}
