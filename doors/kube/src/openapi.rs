//! `/openapi/v3`: the documents that `kubectl apply` and `explain` read.

use crate::catalog;
use crate::respond::Reply;
use http::header::HeaderMap;

/// The index.
pub fn index(_headers: &HeaderMap) -> Reply {
    Err(catalog::no_such_resource())
}

/// One document.
pub fn document(_headers: &HeaderMap, _path: &str) -> Reply {
    Err(catalog::no_such_resource())
}
