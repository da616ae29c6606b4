//! `cart`: what a visitor has chosen, at the catalog's prices of this moment.
//!
//! `GET /cart` shows it, `POST /cart/SKU` adds one piece. It lives in memory: an instance that
//! starts anew starts with one rope.

use crate::http::{Handler, Request, Response, get};
use crate::settings::Environment;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

type Pieces = BTreeMap<String, u64>;

/// The service.
pub fn service(environment: Arc<Environment>) -> Box<Handler> {
    let pieces = Mutex::new(Pieces::from([("rope".to_owned(), 1)]));
    Box::new(move |request| answer(&environment, &pieces, request))
}

fn answer(environment: &Environment, pieces: &Mutex<Pieces>, request: &Request) -> Response {
    // A poisoned lock only says that another request's thread died; a map of numbers is never
    // half changed.
    let lock = || pieces.lock().unwrap_or_else(PoisonError::into_inner);
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/cart") => {
            let chosen = lock().clone();
            show(environment, &chosen)
        }
        ("POST", path) if path.starts_with("/cart/") => {
            let sku = &path["/cart/".len()..];
            if let Err(error) = get(&format!("{}/items/{sku}", environment.catalog)) {
                return Response::error(if error.missing() { 404 } else { 502 }, error);
            }
            let chosen = {
                let mut pieces = lock();
                *pieces.entry(sku.to_owned()).or_default() += 1;
                pieces.clone()
            };
            show(environment, &chosen)
        }
        _ => Response::error(404, "GET /cart or POST /cart/SKU"),
    }
}

fn show(environment: &Environment, chosen: &Pieces) -> Response {
    let mut lines = Vec::new();
    let mut total = 0;
    for (sku, count) in chosen {
        let item: Value = match get(&format!("{}/items/{sku}", environment.catalog)) {
            Ok(item) => item,
            Err(error) => return Response::error(502, error),
        };
        let cents = item["cents"].as_u64().unwrap_or_default() * count;
        total += cents;
        lines.push(json!({"sku": sku, "count": count, "cents": cents}));
    }
    Response::json(&json!({
        "version": environment.version,
        "pod": environment.pod,
        "lines": lines,
        "cents": total,
    }))
}
