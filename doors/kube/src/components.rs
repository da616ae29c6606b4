//! `componentstatuses`: how the store and the parts of the control plane are, looked at when asked.
//!
//! Scheduler and controllers run in the server that leads the store, and they end with it: they are
//! well where the store answers.

use crate::call::{Call, Verb};
use crate::resources::{show, show_list};
use crate::respond::Reply;
use crate::{health, negotiate, options};
use dhow_objects::Status;
use dhow_objects::kinds::Kind;
use dhow_state::{List, Object};
use serde_json::{Value, json};
use std::sync::Arc;

/// The names that upstream uses.
const COMPONENTS: [&str; 3] = ["controller-manager", "etcd-0", "scheduler"];

/// Answers a get or a list.
pub async fn serve(call: &Call, kind: &'static Kind) -> Reply {
    let form = negotiate::objects(&call.head.headers)?;
    let store = health::ask(&call.door).await.map(|_| ());
    let component =
        |name: &&str| Arc::new(Object::observed(kind, name, component(kind, name, &store)));
    if call.verb == Verb::Get {
        let name = call.name()?;
        return match COMPONENTS.iter().find(|known| **known == name) {
            Some(known) => show(call, form, 200, &component(known)),
            None => Err(Status::not_found("", kind.plural, name)),
        };
    }
    let asked = options::list(call, kind)?;
    let mut items: Vec<_> = COMPONENTS.iter().map(component).collect();
    // They have no labels.
    items.retain(|one| asked.labels.matches_map(None) && asked.fields.matches(one.value()));
    let list = List { revision: 0, items, continue_token: String::new(), remaining: None };
    show_list(call, form, kind, &list)
}

fn component(kind: &Kind, name: &str, store: &Result<(), String>) -> Value {
    let condition = match store {
        Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(why) => json!({"type": "Healthy", "status": "False", "error": why}),
    };
    json!({
        "kind": kind.kind,
        "apiVersion": kind.api_version(),
        "metadata": {"name": name},
        "conditions": [condition],
    })
}
