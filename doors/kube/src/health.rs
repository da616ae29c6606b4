//! Whether the server lives and is ready, its version, and how its tokens are verified.

use crate::Door;
use crate::path::Query;
use crate::respond::{self, Reply};
use dhow_objects::Status;
use serde_json::json;
use std::fmt::Write;
use std::time::Duration;

/// How long the store may take to answer before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(2);

const CHECKS: [&str; 3] = ["ping", "store", "cache"];

/// `/livez`, `/readyz`, `/healthz`, whole or one check of it. That the process lives is not the
/// store's to say: `/livez` asks nothing.
pub async fn health(door: &Door, name: &str, check: Option<&str>, query: &Query) -> Reply {
    if let Some(check) = check.filter(|check| !CHECKS.contains(check)) {
        let known = CHECKS.join(", ");
        let told = format!("{name} has no check {check:?}: there are {known}");
        return Err(Status::new(404, "NotFound", told));
    }
    let asked = check.is_none_or(|check| check != "ping") && name != "livez";
    // One question for both: the cache has to show what the store has.
    let store = match asked {
        true => ask(door).await,
        false => Ok(door.state.revision()),
    };
    let excluded: Vec<&str> = query.all("exclude").collect();
    let chosen = CHECKS.iter().filter(|one| match check {
        Some(check) => check == **one,
        None => !excluded.contains(*one),
    });
    let mut told = String::new();
    let mut failed = false;
    for one in chosen {
        // Writing into a String does not fail.
        let _ = match (*one, &store) {
            ("cache", Ok(revision)) => writeln!(told, "[+]cache ok (revision {revision})"),
            ("ping", _) | (_, Ok(_)) => writeln!(told, "[+]{one} ok"),
            (_, Err(why)) => {
                failed = true;
                writeln!(told, "[-]{one} failed: {why}")
            }
        };
    }
    if failed {
        let _ = writeln!(told, "{name} check failed");
        return Ok(respond::text(500, told));
    }
    if check.is_some() || !query.has("verbose") {
        return Ok(respond::text(200, "ok"));
    }
    let _ = writeln!(told, "{name} check passed");
    Ok(respond::text(200, told))
}

/// Asks the store for its revision and waits until the cache shows it.
pub async fn ask(door: &Door) -> Result<u64, String> {
    match tokio::time::timeout(PATIENCE, door.state.check()).await {
        Ok(answer) => answer.map_err(|refusal| refusal.message),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
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
