//! Whether the server lives and is ready, its version, and how its tokens are verified.

use crate::Door;
use crate::path::Query;
use crate::respond::{self, Reply};
use dhow_objects::Status;
use serde_json::json;
use std::fmt::Write;

/// `/livez`, `/readyz`, `/healthz`, whole or one check of it.
pub fn health(door: &Door, name: &str, check: Option<&str>, query: &Query) -> Reply {
    // The state cannot be made before its cache was filled from the store, so that a door that
    // answers at all is ready; a store that stopped would have ended the process.
    let checks = ["ping", "store", "cache"];
    if let Some(check) = check {
        return if checks.contains(&check) {
            Ok(respond::text(200, "ok"))
        } else {
            Err(Status::new(
                404,
                "NotFound",
                format!("{name} has no check {check:?}: there are {}", checks.join(", ")),
            ))
        };
    }
    if !query.has("verbose") {
        return Ok(respond::text(200, "ok"));
    }
    let mut told = String::new();
    for check in checks {
        // Writing into a String does not fail.
        let _ = match check {
            "cache" => writeln!(told, "[+]{check} ok (revision {})", door.state.revision()),
            _ => writeln!(told, "[+]{check} ok"),
        };
    }
    let _ = writeln!(told, "{name} check passed");
    Ok(respond::text(200, told))
}

/// `/version`.
pub fn version(door: &Door) -> Reply {
    let version = &door.config.version;
    respond::json(
        200,
        &json!({
            "major": "1",
            "minor": "37",
            "emulationMajor": "1",
            "emulationMinor": "37",
            "minCompatibilityMajor": "1",
            "minCompatibilityMinor": "36",
            "gitVersion": version.git_version,
            "gitCommit": version.git_commit,
            "gitTreeState": "clean",
            "buildDate": version.build_date,
            "goVersion": "",
            "compiler": "rustc",
            "platform": format!("{}/{}", std::env::consts::OS, go_architecture()),
        }),
    )
}

/// The architecture as Kubernetes names it.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `/.well-known/openid-configuration`: where those who check service account tokens find the keys.
pub fn openid_configuration(door: &Door) -> Reply {
    respond::json(
        200,
        &json!({
            "issuer": door.config.issuer,
            "jwks_uri": format!("https://{}/openid/v1/jwks", door.config.service_host),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }),
    )
}

/// `/openid/v1/jwks`: the keys that check service account tokens.
pub fn openid_keys(door: &Door) -> Reply {
    let keys = respond::to_bytes(&door.state.token_keys())?;
    Ok(respond::reply(200, "application/jwk-set+json", keys))
}
