//! Secrets that hold tokens of service accounts.

use dhow_clock::System;
use dhow_objects::kinds;
use dhow_state::{Actor, Config, DeleteOptions, State, View, WriteOptions};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

fn me() -> Actor {
    Actor { manager: "tests".into(), ..dhow_state::platform() }
}

async fn create(state: &State, kind: &'static kinds::Kind, value: Value) {
    state.create(&me(), kind, "default", value, &WriteOptions::default()).await.unwrap();
}

/// Waits until the secret `robot-token` is as it should be.
async fn until(secrets: &mut View<Secret>, holds: impl Fn(Option<Arc<Secret>>) -> bool) {
    let wait = async {
        while !holds(secrets.get("default", "robot-token")) {
            secrets.changed().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the loop to act");
}

#[tokio::test]
async fn a_secret_gets_its_accounts_token_and_goes_with_the_account() {
    let clock = System::shared();
    let kv = dhow_kv::Kv::new(dhow_server::Store::memory(clock.clone()));
    let state = State::open(kv, clock.clone(), Config::for_tests()).await.unwrap();
    state.furnish_namespace("default").await.unwrap();
    let loops = dhow_loops::start(&state, &clock);
    create(&state, &kinds::SERVICE_ACCOUNT, json!({"metadata": {"name": "robot"}})).await;
    let secret = json!({
        "metadata": {
            "name": "robot-token",
            "annotations": {"kubernetes.io/service-account.name": "robot"},
        },
        "type": "kubernetes.io/service-account-token",
    });
    create(&state, &kinds::SECRET, secret).await;
    let mut secrets: View<Secret> = state.view(&kinds::SECRET);
    let has = |secret: &Option<Arc<Secret>>, field: &str| {
        secret.as_ref().is_some_and(|s| s.data.iter().flatten().any(|(key, _)| key == field))
    };
    until(&mut secrets, |secret| {
        ["token", "ca.crt", "namespace"].iter().all(|field| has(&secret, field))
    })
    .await;
    let token =
        secrets.get("default", "robot-token").unwrap().data.as_ref().unwrap()["token"].clone();
    let token = String::from_utf8(token.0).unwrap();
    let bearer = state.authenticate_token(&token, &[]).await.unwrap();
    assert_eq!(bearer.name, "system:serviceaccount:default:robot");

    let options = DeleteOptions::default();
    state.delete(&me(), &kinds::SERVICE_ACCOUNT, "default", "robot", &options).await.unwrap();
    until(&mut secrets, |secret| secret.is_none()).await;
    assert!(state.authenticate_token(&token, &[]).await.is_err(), "it died with its secret");
    loops.shutdown().await;
}
