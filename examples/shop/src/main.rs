//! The sample application: one program that is `web`, `catalog` or `cart`, by its first argument.
//!
//! `web` answers people and asks the other two; `cart` asks `catalog` for prices. They find each
//! other by name. Settings come from a mounted file and from the environment; see `settings`.

mod cart;
mod catalog;
mod http;
mod settings;
mod web;

use crate::http::{Handler, Request, Response};
use crate::settings::Environment;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long to keep answering after SIGTERM, so that whoever sends requests here hears first that
/// this instance leaves.
const LINGER: Duration = Duration::from_secs(1);

/// How long requests that were taken may take to finish after that.
const FINISH: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("shop: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let role = std::env::args().nth(1).unwrap_or_default();
    let environment = Arc::new(Environment::from_process());
    let service: Box<Handler> = match role.as_str() {
        "web" => web::service(environment.clone()),
        "catalog" => catalog::service(environment.clone()),
        "cart" => cart::service(environment.clone()),
        "" => return Err("which service? say web, catalog or cart".to_owned()),
        other => return Err(format!("no service {other:?}; say web, catalog or cart")),
    };

    // Before the socket: a SIGTERM that comes early must find us listening for it.
    let mut signals =
        Signals::new([SIGTERM, SIGINT]).map_err(|e| format!("cannot listen for signals: {e}"))?;
    let listener = TcpListener::bind(&environment.listen)
        .map_err(|e| format!("cannot listen on {}: {e}; set SHOP_LISTEN", environment.listen))?;
    let address = listener.local_addr().map_err(|e| format!("cannot tell the address: {e}"))?;
    println!("{role} {} listening on {address}", environment.version);

    let leaving = Arc::new(AtomicBool::new(false));
    let answer = {
        let leaving = leaving.clone();
        move |request: &Request| match request.path.as_str() {
            "/healthz" => Response::text(200, "ok"),
            "/readyz" => readiness(&leaving, &environment),
            _ => service(request),
        }
    };
    let server = http::Server::start(listener, leaving.clone(), Box::new(answer));

    signals.forever().next();
    leaving.store(true, Ordering::SeqCst);
    println!("{role} leaving: not ready any more, answering for {} s", LINGER.as_secs());
    std::thread::sleep(LINGER);
    match server.finish(FINISH) {
        0 => println!("{role} left: nothing in flight"),
        cut => println!("{role} left: {cut} requests cut off after {} s", FINISH.as_secs()),
    }
    Ok(())
}

/// Ready means: not leaving, and the settings are understood. The state of other services does not
/// count: if it did, one that is down would take all others down with it.
fn readiness(leaving: &AtomicBool, environment: &Environment) -> Response {
    if leaving.load(Ordering::SeqCst) {
        return Response::text(503, "leaving");
    }
    match environment.settings() {
        Ok(_) => Response::text(200, "ok"),
        Err(error) => Response::text(503, &error.to_string()),
    }
}
