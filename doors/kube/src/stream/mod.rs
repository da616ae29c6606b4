//! Live streams into containers: logs, exec, attach, port-forward.

mod exec;
mod forward;
mod logs;
mod proxy;
mod relay;
pub mod spdy;
mod target;
mod websocket;

pub use relay::Relay;

use crate::call::Call;
use crate::catalog;
use crate::respond::{self, Body, Reply};
use dhow_bodies::Upload;
use dhow_objects::Status;
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Response, StatusCode};

/// The sub-protocols a client offers for SPDY streams.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Whether a call is for a live stream.
pub fn is_stream(call: &Call) -> bool {
    let below = call.path.subresource.as_str();
    call.path.group.is_empty()
        && matches!(below, "log" | "exec" | "attach" | "portforward" | "proxy")
}

/// Serves a live stream.
pub async fn serve(call: Call, body: Upload) -> Reply {
    if let Some(server) = relay::elsewhere(&call).await? {
        return relay::carry(call, body, server).await;
    }
    match (call.path.resource.as_str(), call.path.subresource.as_str()) {
        ("pods", "log") => logs::serve(call).await,
        ("pods", "exec") => exec::serve(call, exec::What::Exec).await,
        ("pods", "attach") => exec::serve(call, exec::What::Attach).await,
        ("pods", "portforward") => forward::serve(call).await,
        (_, "proxy") => proxy::serve(call, body).await,
        _ => Err(catalog::no_such_resource()),
    }
}

/// How a client wants to leave HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upgrade {
    /// RFC 6455.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
}

/// What a client asks to switch to.
///
/// # Errors
/// 400 when it asks for nothing that is known.
fn wanted_upgrade(headers: &HeaderMap) -> Result<Upgrade, Status> {
    let has = |name: &HeaderName, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    if has(&CONNECTION, "upgrade") {
        if has(&UPGRADE, "websocket") {
            return Ok(Upgrade::WebSocket);
        }
        if has(&UPGRADE, "spdy/3.1") {
            return Ok(Upgrade::Spdy);
        }
    }
    Err(Status::bad_request("Upgrade request required"))
}

/// Every value of a header that lists words, split at commas.
fn words<'a>(headers: &'a HeaderMap, name: &'a HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

/// The first protocol of ours, best first, that a client offers in a header.
///
/// # Errors
/// 403, as upstream answers, when it offers others only.
fn agree<'a>(headers: &HeaderMap, name: &HeaderName, ours: &[&'a str]) -> Result<&'a str, Status> {
    let offered: Vec<&str> = words(headers, name).collect();
    ours.iter().find(|protocol| offered.contains(protocol)).copied().ok_or_else(|| {
        Status::new(
            403,
            "Forbidden",
            format!(
                "unable to upgrade: client supports {offered:?}, server supports {ours:?}: use one of the latter"
            ),
        )
    })
}

/// The reply that switches to SPDY.
fn spdy_reply(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(respond::full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrades_are_told_apart() {
        let mut headers = HeaderMap::new();
        assert_eq!(wanted_upgrade(&headers).unwrap_err().code, 400);
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        assert_eq!(wanted_upgrade(&headers), Ok(Upgrade::WebSocket));
        headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        assert_eq!(wanted_upgrade(&headers), Ok(Upgrade::Spdy));
    }

    #[test]
    fn our_best_protocol_wins() {
        let mut headers = HeaderMap::new();
        headers.append(STREAM_PROTOCOL, HeaderValue::from_static("v4.channel.k8s.io"));
        headers.append(STREAM_PROTOCOL, HeaderValue::from_static("v5.channel.k8s.io"));
        let ours = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
        assert_eq!(agree(&headers, &STREAM_PROTOCOL, &ours), Ok("v5.channel.k8s.io"));
        assert_eq!(agree(&headers, &STREAM_PROTOCOL, &["v9"]).unwrap_err().code, 403);
    }
}
