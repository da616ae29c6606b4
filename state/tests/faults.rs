//! What a write that fails leaves behind. Faults are armed for the whole process: one test.

mod common;

use common::{create, me, options, state};
use dhow_fault::Effect;
use dhow_objects::kinds;
use dhow_state::{DeleteOptions, Patch};
use serde_json::json;
use std::time::Duration;

fn fail_next_commit() {
    let effect = Effect::Fail("the disk is on fire".into());
    dhow_fault::arm("state::commit", effect, 0, 1, Duration::from_secs(60));
}

#[tokio::test]
async fn a_write_that_fails_changes_nothing_and_claims_nothing() {
    let state = state().await;
    let service = |name: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {"type": "NodePort", "clusterIP": "10.96.0.99", "ports": [{"port": 80, "nodePort": 30001}]},
        })
    };
    fail_next_commit();
    let refused = create(&state, &kinds::SERVICE, service("web")).await.unwrap_err();
    assert_eq!(refused.code, 500);
    assert!(refused.message.contains("on fire"), "{}", refused.message);
    assert!(state.cached(&kinds::SERVICE, "default", "web").is_none());
    // Neither its address nor its port is taken.
    let made = create(&state, &kinds::SERVICE, service("other")).await.unwrap();

    fail_next_commit();
    let patch = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    let kind = &kinds::SERVICE;
    state.patch(&me(), kind, "default", "other", "", patch, &options()).await.unwrap_err();
    fail_next_commit();
    let delete = DeleteOptions::default();
    state.delete(&me(), kind, "default", "other", &delete).await.unwrap_err();
    let still = state.cached(kind, "default", "other").unwrap();
    assert_eq!(still.revision, made.revision);
    state.delete(&me(), kind, "default", "other", &delete).await.unwrap();
    create(&state, kind, service("web")).await.unwrap();
}
