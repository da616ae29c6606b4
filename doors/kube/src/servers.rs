//! Servers of a platform that join it, are listed, and leave: addresses of our own beside
//! Kubernetes' ones. What they do is handed in; the door knows who may ask.

use crate::respond::{self, Reply};
use crate::{Door, codec};
use dhow_bodies::Upload;
use dhow_clock::BoxFuture;
use dhow_objects::Status;
use http::{Method, request};
use serde_json::Value;

/// The servers of the platform, as this one knows and changes them.
pub trait Servers: Send + Sync {
    /// Whether this is the platform's join token. It must take the same time whatever is wrong
    /// with it.
    fn knows(&self, token: &str) -> bool;
    /// Takes a server in that has shown the token, and tells it what it needs. Again for the same
    /// server it must do nothing new.
    fn join(&self, request: Value) -> BoxFuture<'_, Result<Value, Status>>;
    /// Forgets a server that [`Servers::join`] has taken in and that gave up before it had started.
    fn withdraw(&self, request: Value) -> BoxFuture<'_, Result<Value, Status>>;
    /// All servers, and how they are.
    fn list(&self) -> BoxFuture<'_, Result<Value, Status>>;
    /// Takes a server out of the platform for good.
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Value, Status>>;
}

fn servers(door: &Door) -> Result<&dyn Servers, Status> {
    door.config.servers.as_deref().ok_or_else(|| {
        Status::not_implemented(
            "this platform keeps its data in an external etcd and has one server: nobody can join",
        )
    })
}

/// What a server that joins says of itself takes no more, in bytes.
const MAX_REQUEST: usize = 16 << 10;

/// `/dhow/v1/join`: asked by machines that have nothing but the token.
pub async fn join(door: &Door, head: &request::Parts, body: Upload) -> Reply {
    let servers = servers(door)?;
    let given = head.headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = given.and_then(|given| given.strip_prefix("Bearer ")).unwrap_or("");
    if !servers.knows(token) {
        return Err(Status::unauthorized());
    }
    let request = codec::read_at_most(body, MAX_REQUEST).await?;
    let request = serde_json::from_slice(&request)
        .map_err(|error| Status::bad_request(format!("the body is no JSON: {error}")))?;
    let answer = match head.method {
        Method::POST => servers.join(request).await?,
        Method::DELETE => servers.withdraw(request).await?,
        _ => return Err(Status::method_not_allowed()),
    };
    respond::json(200, &answer)
}

/// `/dhow/v1/servers` and one of them, for who may.
pub async fn answer(door: &Door, method: &Method, name: Option<&str>) -> Reply {
    let servers = servers(door)?;
    let answer = match (method, name) {
        (&Method::GET, None) => servers.list().await?,
        (&Method::DELETE, Some(name)) => servers.remove(name).await?,
        _ => return Err(Status::method_not_allowed()),
    };
    respond::json(200, &answer)
}
