//! Streams of machines that are connected to another server: the request goes on to that server, as
//! it came, in the name of who asked.
//!
//! This server has found out who asks and that they may; the other one finds out again, from the
//! impersonation headers that it takes from a server's certificate.

use super::proxy;
use super::target::Target;
use crate::call::Call;
use crate::respond::Reply;
use dhow_bodies::Upload;
use dhow_objects::Status;
use dhow_state::User;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::ServerName;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Says that a request was sent on: it is answered where it arrives, or nowhere.
const RELAYED: HeaderName = HeaderName::from_static("x-dhow-relayed");

/// How long a connection to another server may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Finds where the server is reached that a machine is connected to; `None` when no other one is.
pub type Elsewhere = dyn Fn(&str) -> Option<SocketAddr> + Send + Sync;

/// The way to the other servers.
#[derive(Clone)]
pub struct Relay {
    /// Which server a machine is connected to.
    pub server: Arc<Elsewhere>,
    /// Trusts servers, and shows a certificate that may act for everybody.
    pub tls: Arc<rustls::ClientConfig>,
}

/// The server that a call for a stream must go on to; `None` when it is answered here.
///
/// # Errors
/// 404 when there is no such pod.
pub async fn elsewhere(call: &Call) -> Result<Option<SocketAddr>, Status> {
    let Some(relay) = &call.door.config.relay else { return Ok(None) };
    if call.head.headers.contains_key(&RELAYED) {
        return Ok(None);
    }
    let node = match (call.path.resource.as_str(), call.path.subresource.as_str()) {
        ("pods", "log" | "exec" | "attach" | "portforward") => Target::find(call).await?.node,
        ("nodes", "proxy") => {
            let text = call.name()?;
            let part = text.split(':').find(|part| !matches!(*part, "http" | "https"));
            part.unwrap_or(text).to_owned()
        }
        _ => return Ok(None),
    };
    match (call.door.config.streams)(&node) {
        Some(_) => Ok(None),
        None => Ok((relay.server)(&node)),
    }
}

/// Sends a call on to another server.
///
/// # Errors
/// 503 when that server does not answer.
pub async fn carry(call: Call, body: Upload, server: SocketAddr) -> Reply {
    let unreachable =
        |why: String| Status::unavailable(format!("server {server} cannot be reached: {why}"));
    let Some(relay) = call.door.config.relay.clone() else {
        return Err(unreachable("there is no way to it".into()));
    };
    let dial = async {
        let socket = TcpStream::connect(server).await?;
        let name = ServerName::from(server.ip());
        TlsConnector::from(relay.tls.clone()).connect(name, socket).await
    };
    let stream = match tokio::time::timeout(CONNECT, dial).await {
        Ok(stream) => stream.map_err(|error| unreachable(error.to_string()))?,
        Err(_) => return Err(unreachable(format!("no answer within {CONNECT:?}"))),
    };
    let mut request = hyper::Request::new(body);
    *request.method_mut() = call.head.method.clone();
    let target = call.head.uri.path_and_query().map_or("/", |target| target.as_str());
    *request.uri_mut() =
        target.parse().map_err(|_| Status::bad_request("the path cannot be sent on"))?;
    *request.headers_mut() = call.head.headers.clone();
    let headers = request.headers_mut();
    let upgrade = headers.get(header::UPGRADE).cloned();
    proxy::forget_neighbours(headers);
    headers.remove(header::UPGRADE);
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
    let host = HeaderValue::from_str(&server.to_string()).map_err(Status::internal)?;
    headers.insert(header::HOST, host);
    headers.insert(RELAYED, HeaderValue::from_static("1"));
    act_for(headers, &call.user)?;
    proxy::exchange(call, stream, request).await
}

/// Takes away the credentials that came and says who asks.
fn act_for(headers: &mut HeaderMap, user: &User) -> Result<(), Status> {
    headers.remove(header::AUTHORIZATION);
    let asked: Vec<HeaderName> = headers.keys().cloned().collect();
    for name in asked.iter().filter(|name| name.as_str().starts_with("impersonate-")) {
        headers.remove(name);
    }
    let text = |text: &str| {
        HeaderValue::from_str(text)
            .map_err(|_| Status::bad_request(format!("the name {text:?} cannot be sent on")))
    };
    headers.insert("impersonate-user", text(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert("impersonate-uid", text(&user.uid)?);
    }
    for group in &user.groups {
        headers.append("impersonate-group", text(group)?);
    }
    for (key, values) in &user.extra {
        let mut name = "impersonate-extra-".to_owned();
        for byte in key.bytes() {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => name.push(char::from(byte)),
                // Writing into a String does not fail.
                other => _ = write!(name, "%{other:02x}"),
            }
        }
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(Status::internal)?;
        for value in values {
            headers.append(&name, text(value)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::impersonated;

    #[test]
    fn the_other_server_learns_who_asks_and_nothing_else() {
        let user = User {
            name: "system:serviceaccount:shop:cart".into(),
            uid: "u1".into(),
            groups: vec!["system:authenticated".into(), "a b".into()],
            extra: vec![("authentication.kubernetes.io/pod-name".into(), vec!["cart-1".into()])],
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer secret"));
        headers.insert("impersonate-group", HeaderValue::from_static("system:masters"));
        act_for(&mut headers, &user).unwrap();
        assert!(!headers.contains_key(header::AUTHORIZATION));
        assert_eq!(impersonated(&headers).unwrap(), Some(user));
    }
}
