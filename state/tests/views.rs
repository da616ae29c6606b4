//! Typed views and events, as the platform's own writers use them.

mod common;

use common::{create, me, pod, state};
use dhow_objects::kinds;
use dhow_state::{DeleteOptions, Key, ListOptions, Patch, View};
use k8s_openapi::api::core::v1::{Event, Pod};
use serde_json::json;
use std::sync::Arc;

#[tokio::test]
async fn a_view_is_as_new_as_the_last_write_and_names_what_changed() {
    let state = state().await;
    create(&state, &kinds::POD, pod("a")).await.unwrap();
    let mut view: View<Pod> = state.view(&kinds::POD);
    assert_eq!(view.changed().await, [Key::new("default", "a")]);
    create(&state, &kinds::POD, pod("b")).await.unwrap();
    assert_eq!(view.list().len(), 2);
    let patch = Patch::Merge(json!({"metadata": {"labels": {"x": "y"}}}));
    let key = Key::new("default", "b");
    let patched: Pod = state.patch_typed(&me(), &kinds::POD, &key, "", patch).await.unwrap();
    let seen = view.entry(&key).unwrap();
    assert_eq!(*seen.object, patched);
    assert_eq!(Some(seen.revision.to_string()), patched.metadata.resource_version);
    // Two changes of one object are one piece of news.
    assert_eq!(view.changed().await, std::slice::from_ref(&key));
    let options = DeleteOptions::default();
    state.delete(&me(), &kinds::POD, "default", "b", &options).await.unwrap();
    assert_eq!(view.changed().await, [key]);
    assert!(view.get("default", "b").is_none());
    assert!(view.take_changed().is_empty());
}

#[tokio::test]
async fn views_of_one_kind_share_their_objects() {
    let state = state().await;
    create(&state, &kinds::POD, pod("a")).await.unwrap();
    let one: View<Pod> = state.view(&kinds::POD);
    let mut two = one.clone();
    let other: View<Pod> = state.view(&kinds::POD);
    let (a, b) = (one.get("default", "a").unwrap(), other.get("default", "a").unwrap());
    assert!(Arc::ptr_eq(&a, &b));
    assert_eq!(two.changed().await.len(), 1);
    assert_eq!(one.list_in("default").len(), 1);
    assert!(one.list_in("kube-system").is_empty());
}

#[tokio::test]
async fn typed_writes_carry_their_revision_as_a_precondition() {
    let state = state().await;
    create(&state, &kinds::POD, pod("a")).await.unwrap();
    let view: View<Pod> = state.view(&kinds::POD);
    let mut mine = (*view.get("default", "a").unwrap()).clone();
    mine.status.as_mut().unwrap().phase = Some("Running".into());
    let written: Pod = state.update_status_typed(&me(), &kinds::POD, &mine).await.unwrap();
    assert_eq!(written.status.unwrap().phase.as_deref(), Some("Running"));
    mine.status.as_mut().unwrap().phase = Some("Failed".into());
    let refusal = state.update_status_typed(&me(), &kinds::POD, &mine).await.unwrap_err();
    assert_eq!(refusal.reason, "Conflict");
}

#[tokio::test]
async fn equal_events_are_counted() {
    let state = state().await;
    let event = |message: &str| -> Event {
        serde_json::from_value(json!({
            "metadata": {},
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": "a"},
            "reason": "BackOff", "message": message, "type": "Warning",
        }))
        .unwrap()
    };
    for message in ["again", "again", "other", "again"] {
        state.record_event(&me(), event(message)).await.unwrap();
    }
    let list = state.list(&kinds::EVENT, Some("default"), &ListOptions::default()).await.unwrap();
    let mut counts: Vec<_> = list
        .items
        .iter()
        .map(|o| {
            (
                o.value()["message"].as_str().unwrap().to_owned(),
                o.value()["count"].as_i64().unwrap(),
            )
        })
        .collect();
    counts.sort();
    assert_eq!(counts, [("again".to_owned(), 3), ("other".to_owned(), 1)]);
}

#[tokio::test]
async fn events_hang_on_a_lease_and_other_objects_do_not() {
    let kv = common::kv();
    let state = common::open(kv.clone()).await;
    let event = json!({
        "metadata": {"name": "e"}, "reason": "Test", "message": "m", "type": "Normal",
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "a"},
    });
    create(&state, &kinds::EVENT, event).await.unwrap();
    create(&state, &kinds::POD, pod("a")).await.unwrap();
    let lease = kv.get("/registry/core/events/default/e").await.unwrap().unwrap().lease;
    assert_ne!(lease, 0);
    assert_eq!(kv.lease_time_to_live(lease, false).await.unwrap().granted_ttl, 3900);
    assert_eq!(kv.get("/registry/core/pods/default/a").await.unwrap().unwrap().lease, 0);
}
