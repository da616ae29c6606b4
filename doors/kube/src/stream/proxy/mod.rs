//! `pods/proxy`, `services/proxy` and `nodes/proxy`: one HTTP request, carried on to a server in the
//! cluster.
//!
//! A name is `[SCHEME:]NAME[:PORT]`. What follows `proxy` in the URL goes on unchanged, with the
//! query. Upgrades (WebSocket) are carried through. Links in pages are not rewritten; the address of
//! a redirection is.

mod goal;
mod node;
mod tls;

use crate::call::Call;
use crate::respond::{self, Body, Reply};
use dhow_bodies::Upload;
use dhow_objects::Status;
use goal::Goal;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// How long a connection to the server may take.
const CONNECT: Duration = Duration::from_secs(30);

/// Headers that are between two neighbours only (RFC 9110 section 7.6.1).
const NEIGHBOURS: [HeaderName; 6] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
];

/// Serves a proxied request.
pub async fn serve(call: Call, body: Upload) -> Reply {
    let (prefix, rest) = split(&call);
    if rest.is_empty() && matches!(call.head.method, Method::GET | Method::HEAD) {
        // Relative links of the page that follows have to stay below it.
        return redirect(&call, &format!("{prefix}/"));
    }
    let goal = match call.path.resource.as_str() {
        "nodes" => return node::serve(call, &rest).await,
        "services" => Goal::of_service(&call).await?,
        _ => Goal::of_pod(&call).await?,
    };
    carry(call, body, &prefix, &rest, goal).await
}

/// The raw path up to and with `proxy`, and what follows it (empty, or from the slash on).
fn split(call: &Call) -> (String, String) {
    let path = call.head.uri.path();
    // /api/v1/namespaces/NAMESPACE/RESOURCE/NAME/proxy, or without the namespace.
    let words = if call.path.namespace.is_some() { 7 } else { 5 };
    let end = path.match_indices('/').nth(words).map_or(path.len(), |(at, _)| at);
    (path[..end].to_owned(), path[end..].to_owned())
}

fn redirect(call: &Call, path: &str) -> Reply {
    let location = match call.head.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut response = respond::text(301, "");
    let location = HeaderValue::from_str(&location).map_err(Status::internal)?;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

fn unreachable(why: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("error trying to reach service: {why}"))
}

async fn carry(call: Call, body: Upload, prefix: &str, rest: &str, goal: Goal) -> Reply {
    goal.check()?;
    let dial = tokio::net::TcpStream::connect((goal.address.as_str(), goal.port));
    let socket = tokio::time::timeout(CONNECT, dial)
        .await
        .map_err(|_| unreachable(format!("{goal} did not answer within {CONNECT:?}")))?
        .map_err(|error| unreachable(format!("dial tcp {goal}: {error}")))?;
    let upgrades = call.head.headers.contains_key(header::UPGRADE);
    let request = request(&call, body, prefix, rest, &goal, upgrades)?;
    let mut response = if goal.tls {
        let stream = tls::connect(socket, &goal.address).await.map_err(unreachable)?;
        exchange(call, stream, request).await?
    } else {
        exchange(call, socket, request).await?
    };
    relocate(response.headers_mut(), prefix, &goal);
    Ok(response)
}

/// Sends a request over a connection and hands the answer on; also what follows when both sides
/// leave HTTP.
pub async fn exchange(
    mut call: Call,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: hyper::Request<Upload>,
) -> Reply {
    let upgrades = call.head.headers.contains_key(header::UPGRADE);
    let mut response = send(stream, request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        if let Some(ours) = call.upgrade.take().filter(|_| upgrades) {
            let theirs = hyper::upgrade::on(&mut response);
            let shutdown = call.shutdown.clone();
            tokio::spawn(async move {
                let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) else { return };
                let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
                tokio::select! {
                    // Either side may simply go.
                    _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
    } else {
        forget_neighbours(response.headers_mut());
    }
    Ok(response)
}

/// The request as the server gets it.
fn request(
    call: &Call,
    body: Upload,
    prefix: &str,
    rest: &str,
    goal: &Goal,
    upgrades: bool,
) -> Result<hyper::Request<Upload>, Status> {
    let head = &call.head;
    let target = match head.uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let target: Uri =
        if target.starts_with('/') { target } else { format!("/{target}") }
            .parse()
            .map_err(|error| Status::bad_request(format!("the path to proxy: {error}")))?;
    let mut request = hyper::Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = target;
    let headers = request.headers_mut();
    *headers = head.headers.clone();
    let upgrade = head.headers.get(header::UPGRADE).filter(|_| upgrades).cloned();
    forget_neighbours(headers);
    // Who asks is the API server's secret, and what they may is decided.
    headers.remove(header::AUTHORIZATION);
    let asked: Vec<HeaderName> = headers.keys().cloned().collect();
    for name in asked.iter().filter(|name| name.as_str().starts_with("impersonate-")) {
        headers.remove(name);
    }
    headers.remove(header::UPGRADE);
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
    let host = headers.get(header::HOST).cloned().or_else(|| {
        HeaderValue::from_str(head.uri.authority().map_or("", |authority| authority.as_str())).ok()
    });
    let host = host.filter(|host| !host.is_empty());
    if let Some(host) = &host {
        headers.insert("x-forwarded-host", host.clone());
    }
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    if let Ok(uri) = HeaderValue::from_str(&format!("{prefix}{rest}")) {
        headers.insert("x-forwarded-uri", uri);
    }
    let own = HeaderValue::from_str(&goal.to_string()).map_err(Status::internal)?;
    headers.insert(header::HOST, host.unwrap_or(own));
    Ok(request)
}

/// Takes away the headers that are between two neighbours only.
pub fn forget_neighbours(headers: &mut HeaderMap) {
    let named: Vec<String> = super::words(headers, &header::CONNECTION)
        .map(str::to_ascii_lowercase)
        .filter(|word| word != "upgrade")
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in &NEIGHBOURS {
        headers.remove(name);
    }
    headers.remove("keep-alive");
}

/// A redirection to the server's own address leads through the proxy as well.
fn relocate(headers: &mut HeaderMap, prefix: &str, goal: &Goal) {
    let Some(location) = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) else {
        return;
    };
    let own = [format!("http://{goal}"), format!("https://{goal}")];
    let path = own.iter().find_map(|own| location.strip_prefix(own.as_str())).unwrap_or(location);
    if !path.starts_with('/') || path.starts_with("//") || path.starts_with(prefix) {
        return;
    }
    if let Ok(there) = HeaderValue::from_str(&format!("{prefix}{path}")) {
        headers.insert(header::LOCATION, there);
    }
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: hyper::Request<Upload>,
) -> Result<Response<Body>, Status> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(unreachable)?;
    // It ends with the reply's body, or when the client goes and the body is dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let response = sender.send_request(request).await.map_err(unreachable)?;
    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn located(location: &'static str) -> String {
        let goal = Goal { address: "10.0.0.1".into(), port: 80, tls: false };
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, HeaderValue::from_static(location));
        relocate(&mut headers, "/p/proxy", &goal);
        headers[header::LOCATION].to_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn redirections_stay_inside() {
        assert_eq!(located("/login"), "/p/proxy/login");
        assert_eq!(located("http://10.0.0.1:80/login"), "/p/proxy/login");
        assert_eq!(located("https://elsewhere/login"), "https://elsewhere/login");
        assert_eq!(located("next"), "next");
        assert_eq!(located("//elsewhere/x"), "//elsewhere/x");
        assert_eq!(located("/p/proxy/x"), "/p/proxy/x");
    }

    #[test]
    fn what_is_between_neighbours_stays_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("connection", "close, x-mine"), ("x-mine", "1"), ("x-other", "2")] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        forget_neighbours(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
    }
}
