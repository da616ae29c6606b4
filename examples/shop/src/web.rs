//! `web`: the front page, put together from the catalog and the cart.
//!
//! `GET /` answers JSON: who answered, its version and settings, and what the other two said.
//! `POST /buy/SKU` puts a piece into the cart.

use crate::http::{Error, Handler, Request, Response, get, post};
use crate::settings::Environment;
use serde_json::{Value, json};
use std::sync::Arc;

/// The service.
pub fn service(environment: Arc<Environment>) -> Box<Handler> {
    Box::new(move |request| answer(&environment, request))
}

fn answer(environment: &Environment, request: &Request) -> Response {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/") => page(environment),
        ("POST", path) if path.starts_with("/buy/") => {
            let sku = &path["/buy/".len()..];
            match post(&format!("{}/cart/{sku}", environment.cart)) {
                Ok(cart) => Response::json(&cart),
                Err(error) => Response::error(if error.missing() { 404 } else { 502 }, error),
            }
        }
        _ => Response::error(404, "GET / or POST /buy/SKU"),
    }
}

fn page(environment: &Environment) -> Response {
    let settings = match environment.settings() {
        Ok(settings) => settings,
        Err(error) => return Response::error(500, error),
    };
    let (catalog, cart) = match both(environment) {
        Ok(both) => both,
        Err(error) => return Response::error(502, error),
    };
    Response::json(&json!({
        "service": "web",
        "version": environment.version,
        "pod": environment.pod,
        "settings": settings,
        "catalog": catalog,
        "cart": cart,
    }))
}

fn both(environment: &Environment) -> Result<(Value, Value), Error> {
    Ok((
        get(&format!("{}/items", environment.catalog))?,
        get(&format!("{}/cart", environment.cart))?,
    ))
}
