//! Replies: the body type, Status objects, compression, warnings.

use bytes::Bytes;
use dhow_bodies::Pieces;
use dhow_objects::Status;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use std::io::Write;

/// An error that ends a reply's body early.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every reply.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;
/// A reply, or the refusal that becomes one.
pub type Reply = Result<Response<Body>, Status>;

/// Bodies smaller than this are sent as they are (upstream's threshold).
const COMPRESS_FROM: usize = 128 * 1024;

/// A body that is known whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Pieces::from(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A reply of any media type.
pub fn reply(code: u16, media_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A JSON reply from bytes that already are JSON.
pub fn json_bytes(code: u16, bytes: impl Into<Bytes>) -> Response<Body> {
    reply(code, "application/json", bytes)
}

/// A JSON reply.
pub fn json(code: u16, value: &impl serde::Serialize) -> Reply {
    Ok(json_bytes(code, to_bytes(value)?))
}

/// Serialises to JSON.
pub fn to_bytes(value: &impl serde::Serialize) -> Result<Bytes, Status> {
    serde_json::to_vec(value).map(Bytes::from).map_err(Status::internal)
}

/// A plain text reply.
pub fn text(code: u16, text: impl Into<String>) -> Response<Body> {
    reply(code, "text/plain; charset=utf-8", text.into())
}

/// The reply that a refusal becomes.
pub fn refusal(status: &Status) -> Response<Body> {
    let bytes = serde_json::to_vec(&status.to_json()).unwrap_or_default();
    let mut response = json_bytes(status.code, bytes);
    let headers = response.headers_mut();
    if let Some(details) = &status.details
        && details.retry_after_seconds > 0
    {
        headers.insert(header::RETRY_AFTER, details.retry_after_seconds.into());
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// Appends `Warning` headers (RFC 7234 section 5.5, code 299).
pub fn warn<T>(response: &mut Response<T>, warnings: &[String]) {
    for warning in warnings {
        let clean: String = warning
            .chars()
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c if c.is_control() => vec![' '],
                c => vec![c],
            })
            .collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{clean}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// Whether the caller takes gzip.
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let mut parts = coding.split(';');
            let name = parts.next().unwrap_or("").trim();
            let refused = parts.any(|p| matches!(p.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
            name.eq_ignore_ascii_case("gzip") && !refused
        })
}

/// A JSON reply that is compressed when it is large and the caller takes gzip.
pub fn maybe_compressed(
    headers: &HeaderMap,
    mut response: Response<Body>,
    bytes: Bytes,
) -> Response<Body> {
    if bytes.len() < COMPRESS_FROM || !takes_gzip(headers) {
        *response.body_mut() = full(bytes);
        return response;
    }
    let mut encoder = flate2::write::GzEncoder::new(
        Vec::with_capacity(bytes.len() / 4),
        flate2::Compression::fast(),
    );
    // Writing into a Vec does not fail; if it ever did, the plain bytes are as good.
    let packed = encoder.write_all(&bytes).and_then(|()| encoder.finish());
    match packed {
        Ok(packed) => {
            *response.body_mut() = full(packed);
            let reply = response.headers_mut();
            reply.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            reply.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        Err(_) => *response.body_mut() = full(bytes),
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted() {
        let mut response = Response::new(());
        warn(&mut response, &["unknown field \"spec.x\"\n".to_owned()]);
        assert_eq!(response.headers()[header::WARNING], "299 - \"unknown field \\\"spec.x\\\" \"");
    }

    #[test]
    fn gzip_can_be_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("br, gzip;q=0"));
        assert!(!takes_gzip(&headers));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("br, gzip"));
        assert!(takes_gzip(&headers));
    }
}
