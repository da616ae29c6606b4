//! A platform of one server, as the door's tests need it.

use dhow_clock::BoxFuture;
use dhow_door_kube::Servers;
use dhow_objects::Status;
use serde_json::{Value, json};

/// Knows one token, and echoes what it was asked.
pub struct One;

impl Servers for One {
    fn knows(&self, token: &str) -> bool {
        token == "open sesame"
    }

    fn join(&self, request: Value) -> BoxFuture<'_, Result<Value, Status>> {
        Box::pin(async move { Ok(json!({"joined": request})) })
    }

    fn withdraw(&self, request: Value) -> BoxFuture<'_, Result<Value, Status>> {
        Box::pin(async move { Ok(json!({"withdrawn": request})) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Value, Status>> {
        Box::pin(async { Ok(json!({"items": ["n1"]})) })
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(async move { Ok(json!({"removed": name})) })
    }
}
