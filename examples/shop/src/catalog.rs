//! `catalog`: what is for sale, and for how much today.
//!
//! `GET /items` lists, `GET /items/SKU` tells one.

use crate::http::{Handler, Request, Response};
use crate::settings::Environment;
use serde_json::{Value, json};
use std::sync::Arc;

/// Stock-keeping unit, name, price in cents.
const GOODS: [(&str, &str, u32); 4] = [
    ("anchor", "Anchor, 12 kg", 8_900),
    ("lantern", "Storm lantern", 3_450),
    ("rope", "Manila rope, 30 m", 4_200),
    ("sextant", "Sextant", 21_000),
];

/// The service.
pub fn service(environment: Arc<Environment>) -> Box<Handler> {
    Box::new(move |request| answer(&environment, request))
}

fn answer(environment: &Environment, request: &Request) -> Response {
    let settings = match environment.settings() {
        Ok(settings) => settings,
        Err(error) => return Response::error(500, error),
    };
    let item = |(sku, name, cents): &(&str, &str, u32)| -> Value {
        let price = cents * u32::from(100 - settings.discount) / 100;
        json!({"sku": sku, "name": name, "cents": price, "currency": settings.currency})
    };
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/items") => Response::json(&json!({
            "version": environment.version,
            "pod": environment.pod,
            "items": GOODS.iter().map(item).collect::<Vec<_>>(),
        })),
        ("GET", path) => match path.strip_prefix("/items/") {
            Some(sku) => match GOODS.iter().find(|goods| goods.0 == sku) {
                Some(goods) => Response::json(&item(goods)),
                None => Response::error(404, format!("no item {sku:?}; GET /items lists them")),
            },
            None => Response::error(404, "GET /items or /items/SKU"),
        },
        _ => Response::error(405, "GET /items or /items/SKU"),
    }
}
