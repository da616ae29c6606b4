//! `/openapi/v3`: the documents that `kubectl apply` and `explain` read.
//!
//! A document is made, compressed and sent when it is asked for: clients keep it by its hash, so
//! that keeping it here would only cost memory.

use crate::catalog;
use crate::negotiate;
use crate::respond::{self, Reply, takes_gzip};
use dhow_objects::Status;
use dhow_objects::kinds;
use dhow_objects::schema::openapi::{self, KindInfo};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{self, HeaderMap, HeaderValue};

/// The rows of a group version.
fn rows(group: &str, version: &str) -> Vec<KindInfo<'static>> {
    kinds::all()
        .iter()
        .filter(|kind| kind.group == group && kind.version == version)
        .map(|kind| KindInfo::from(*kind))
        .collect()
}

/// Documents are JSON; the protobuf form of older clients is refused, and they ask again.
fn negotiate(headers: &HeaderMap) -> Result<(), Status> {
    let json = |clause: &negotiate::Clause| {
        matches!(clause.media.as_str(), "application/json" | "application/*" | "*/*")
    };
    if negotiate::clauses(headers).iter().any(json) {
        return Ok(());
    }
    Err(Status::not_acceptable("only the following media types are accepted: application/json"))
}

/// Media type of the one form in which clients read version 2.
const V2: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// `/openapi/v2`: a document that describes no kind.
///
/// kubectl falls back to it for kinds that version 3 does not know, and says "failed to download
/// openapi" without it instead of naming the kind. It skips what the document does not describe, so
/// that the server, which checks everything anyway, gets to say what is wrong.
pub fn v2(headers: &HeaderMap) -> Reply {
    let wanted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|accept| accept.contains(V2) || accept.contains("*/*"));
    if !wanted {
        let told = format!("only the following media types are accepted: {V2}");
        return Err(Status::not_acceptable(told));
    }
    // Field numbers of gnostic's openapi.v2 Document (swagger 1, info 2, paths 8) and Info (title 1,
    // version 2); each is length-delimited, and no length needs a second byte.
    let field = |number: u8, bytes: &[u8]| {
        let mut field = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap_or(0)];
        field.extend_from_slice(bytes);
        field
    };
    let info = [field(1, b"Kubernetes; see /openapi/v3"), field(2, b"v1")].concat();
    let document = [field(1, b"2.0"), field(2, &info), field(8, &[])].concat();
    // The name that is asked for is no valid media type, so upstream answers with another.
    let told = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    Ok(respond::reply(200, told, document))
}

/// The index.
pub fn index(headers: &HeaderMap) -> Reply {
    negotiate(headers)?;
    let documents: Vec<(String, String)> = catalog::groups()
        .iter()
        .flat_map(|(group, versions)| versions.iter().map(move |version| (*group, *version)))
        .map(|(group, version)| {
            let hash = openapi::hash(group, version, &rows(group, version));
            (openapi::path_of(group, version), hash)
        })
        .collect();
    let pairs = documents.iter().map(|(path, hash)| (path.as_str(), hash.as_str()));
    respond::json(200, &openapi::v3_index(pairs))
}

/// One document.
pub fn document(headers: &HeaderMap, path: &str) -> Reply {
    negotiate(headers)?;
    let known = catalog::groups();
    let found = known.iter().find_map(|(group, versions)| {
        let version = versions.iter().find(|v| openapi::path_of(group, v) == path)?;
        Some((*group, *version))
    });
    let (group, version) = found.ok_or_else(catalog::no_such_resource)?;
    let rows = rows(group, version);
    let etag = HeaderValue::from_str(&format!("\"{}\"", openapi::hash(group, version, &rows)))
        .map_err(Status::internal)?;
    let fresh = headers.get(header::IF_NONE_MATCH).is_some_and(|tag| *tag == etag);
    let code = if fresh { 304 } else { 200 };
    let mut response = respond::json_bytes(code, "");
    let reply = response.headers_mut();
    reply.insert(header::ETAG, etag);
    reply.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    // The hash in the address names the content.
    let keep = HeaderValue::from_static("public, max-age=31536000, immutable");
    reply.insert(header::CACHE_CONTROL, keep);
    if fresh {
        return Ok(response);
    }
    let bytes = if takes_gzip(headers) {
        reply.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        openapi::write_v3_document(&mut packed, group, version, &rows)
            .and_then(|()| packed.finish())
            .map_err(Status::internal)?
    } else {
        openapi::v3_document(group, version, &rows)
    };
    *response.body_mut() = respond::full(bytes);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_version_has_a_document() {
        for (group, versions) in catalog::groups() {
            for version in versions {
                let reply = document(&HeaderMap::new(), &openapi::path_of(group, version));
                assert_eq!(reply.unwrap().status(), 200, "{group}/{version}");
            }
        }
        assert_eq!(document(&HeaderMap::new(), "apis/x/v1").unwrap_err().code, 404);
    }
}
