//! Objects are made, read, changed and deleted as the Kubernetes API promises.

mod common;

use common::{config_map, create, me, options, pod, state};
use dhow_objects::kinds;
use dhow_state::{
    Actor, DeleteOptions, Deleted, FieldValidation, ListOptions, Patch, WatchOptions,
};
use serde_json::{Value, json};

#[tokio::test]
async fn a_created_object_reads_back_with_its_metadata() {
    let state = state().await;
    let made =
        create(&state, &kinds::CONFIG_MAP, config_map("a", &json!({"k": "v"}))).await.unwrap();
    let read = state.get(&kinds::CONFIG_MAP, "default", "a").await.unwrap();
    assert_eq!(made.bytes, read.bytes);
    let value = read.value();
    assert_eq!(value["metadata"]["resourceVersion"], read.revision.to_string());
    assert_eq!(value["metadata"]["namespace"], "default");
    assert_eq!(value["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert!(!value["metadata"]["creationTimestamp"].as_str().unwrap().is_empty());
    assert_eq!(value["data"]["k"], "v");
    assert!(value.get("dhow.dev/cause").is_none());
}

#[tokio::test]
async fn the_cause_of_a_write_can_be_asked_for() {
    let state = state().await;
    let mut actor = me();
    actor.because = 41;
    let value = config_map("a", &json!({}));
    state.create(&actor, &kinds::CONFIG_MAP, "default", value, &options()).await.unwrap();
    let cause = state.cause(&kinds::CONFIG_MAP, "default", "a").await.unwrap().unwrap();
    assert_eq!((cause.user.as_str(), cause.manager.as_str(), cause.because), ("me", "tests", 41));
    actor.because = 42;
    let kind = &kinds::CONFIG_MAP;
    state.delete(&actor, kind, "default", "a", &DeleteOptions::default()).await.unwrap();
    assert_eq!(state.cause(kind, "default", "a").await.unwrap().unwrap().because, 42);
    assert_eq!(state.cause(kind, "default", "never").await.unwrap_err().code, 404);
}

#[tokio::test]
async fn applies_own_their_fields_and_conflict_with_others() {
    let state = state().await;
    let by = |manager: &str| Actor { manager: manager.into(), ..me() };
    let apply = async |manager: &str, data: Value, force: bool| {
        let value = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data,
        });
        let patch = Patch::Apply { value, force };
        state.patch(&by(manager), &kinds::CONFIG_MAP, "default", "a", "", patch, &options()).await
    };
    let (made, created) = apply("one", json!({"x": "1", "y": "1"}), false).await.unwrap();
    assert!(created);
    assert_eq!(made.value()["metadata"]["managedFields"][0]["operation"], "Apply");
    let (again, created) = apply("one", json!({"x": "1", "y": "1"}), false).await.unwrap();
    assert!(!created);
    assert_eq!(again.revision, made.revision);
    let refusal = apply("two", json!({"x": "2"}), false).await.unwrap_err();
    assert_eq!((refusal.code, refusal.reason), (409, "Conflict"));
    apply("two", json!({"x": "2"}), true).await.unwrap();
    // What nobody wants any more goes.
    let (last, _) = apply("one", json!({}), false).await.unwrap();
    assert_eq!(last.value()["data"], json!({"x": "2"}));
}

#[tokio::test]
async fn a_patch_of_unknown_fields_is_refused_when_strict_and_told_otherwise() {
    let state = state().await;
    create(&state, &kinds::CONFIG_MAP, config_map("a", &json!({}))).await.unwrap();
    let patch = || Patch::Merge(json!({"dta": {"k": "v"}}));
    let mut strict = options();
    strict.field_validation = FieldValidation::Strict;
    let kind = &kinds::CONFIG_MAP;
    let refusal = state.patch(&me(), kind, "default", "a", "", patch(), &strict).await.unwrap_err();
    assert_eq!(refusal.code, 400);
    assert!(refusal.message.contains("unknown field \"dta\""), "{}", refusal.message);
    let warn = options();
    let (done, _) = state.patch(&me(), kind, "default", "a", "", patch(), &warn).await.unwrap();
    assert!(done.value()["dta"].is_null());
    assert_eq!(*warn.warnings.lock().unwrap(), ["unknown field \"dta\""]);
}

#[tokio::test]
async fn a_stopped_store_is_said_to_be_so() {
    let store = dhow_server::Store::memory(dhow_clock::System::shared());
    let state = common::open(dhow_kv::Kv::new(store.clone())).await;
    let mut watch = state.watch(&kinds::POD, None, WatchOptions::default()).await.unwrap();
    store.shutdown().await;
    assert!(watch.next().await.is_none());
    let refusal = create(&state, &kinds::POD, pod("a")).await.unwrap_err();
    assert_eq!(refusal.code, 503);
}

#[tokio::test]
async fn a_name_is_taken_once_and_generated_names_differ() {
    let state = state().await;
    create(&state, &kinds::CONFIG_MAP, config_map("a", &json!({}))).await.unwrap();
    let refusal =
        create(&state, &kinds::CONFIG_MAP, config_map("a", &json!({}))).await.unwrap_err();
    assert_eq!(refusal.message, "configmaps \"a\" already exists");
    let generated = json!({"metadata": {"generateName": "x-"}});
    let one = create(&state, &kinds::CONFIG_MAP, generated.clone()).await.unwrap();
    let two = create(&state, &kinds::CONFIG_MAP, generated).await.unwrap();
    assert!(one.name.starts_with("x-") && one.name.len() == 7);
    assert_ne!(one.name, two.name);
    let nameless = create(&state, &kinds::CONFIG_MAP, json!({"metadata": {}})).await.unwrap_err();
    assert_eq!((nameless.code, nameless.reason), (422, "Invalid"));
}

#[tokio::test]
async fn a_missing_object_and_a_missing_namespace_are_named() {
    let state = state().await;
    let refusal = state.get(&kinds::DEPLOYMENT, "default", "x").await.unwrap_err();
    assert_eq!(refusal.message, "deployments.apps \"x\" not found");
    let refusal =
        state.create(&me(), &kinds::POD, "nowhere", pod("a"), &options()).await.unwrap_err();
    assert_eq!(refusal.message, "namespaces \"nowhere\" not found");
}

#[tokio::test]
async fn an_update_at_an_old_revision_conflicts_and_one_without_a_revision_does_not() {
    let state = state().await;
    let made =
        create(&state, &kinds::CONFIG_MAP, config_map("a", &json!({"n": "0"}))).await.unwrap();
    let mut value = made.to_value();
    value["data"]["n"] = json!("1");
    let update = |value: Value| {
        let state = state.clone();
        async move {
            state.update(&me(), &kinds::CONFIG_MAP, "default", "a", "", value, &options()).await
        }
    };
    let second = update(value.clone()).await.unwrap();
    assert!(second.revision > made.revision);
    value["data"]["n"] = json!("2");
    let refusal = update(value.clone()).await.unwrap_err();
    assert_eq!(
        refusal.message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    value["metadata"]["resourceVersion"] = json!("");
    assert_eq!(update(value.clone()).await.unwrap().value()["data"]["n"], "2");
    value["metadata"]["uid"] = json!("other");
    assert_eq!(update(value).await.unwrap_err().reason, "Conflict");
}

#[tokio::test]
async fn an_update_that_changes_nothing_writes_nothing() {
    let state = state().await;
    let made =
        create(&state, &kinds::CONFIG_MAP, config_map("a", &json!({"n": "0"}))).await.unwrap();
    let again = state
        .update(&me(), &kinds::CONFIG_MAP, "default", "a", "", made.to_value(), &options())
        .await
        .unwrap();
    assert_eq!(again.revision, made.revision);
    let patch = Patch::Merge(json!({"data": {"n": "0"}}));
    let (patched, _) = state
        .patch(&me(), &kinds::CONFIG_MAP, "default", "a", "", patch, &options())
        .await
        .unwrap();
    assert_eq!(patched.revision, made.revision);
}

#[tokio::test]
async fn patches_of_many_writers_all_arrive() {
    let state = state().await;
    create(&state, &kinds::CONFIG_MAP, config_map("a", &json!({}))).await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let state = state.clone();
            tokio::spawn(async move {
                let patch = Patch::Merge(json!({"data": {format!("k{n}"): "v"}}));
                state
                    .patch(&me(), &kinds::CONFIG_MAP, "default", "a", "", patch, &options())
                    .await
                    .unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let read = state.get(&kinds::CONFIG_MAP, "default", "a").await.unwrap();
    assert_eq!(read.value()["data"].as_object().unwrap().len(), 8);
}

#[tokio::test]
async fn a_dry_run_shows_the_result_and_stores_nothing() {
    let state = state().await;
    let mut dry = options();
    dry.dry_run = true;
    let value = config_map("a", &json!({"k": "v"}));
    let shown = state.create(&me(), &kinds::CONFIG_MAP, "default", value, &dry).await.unwrap();
    assert_eq!(shown.value()["data"]["k"], "v");
    assert!(shown.value()["metadata"].get("resourceVersion").is_none());
    assert_eq!(state.get(&kinds::CONFIG_MAP, "default", "a").await.unwrap_err().code, 404);
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let state = state().await;
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "main", "image": "web:1"}]},
            },
        },
        "status": {"replicas": 9},
    });
    let made = create(&state, &kinds::DEPLOYMENT, deployment).await.unwrap();
    assert_eq!(made.value()["metadata"]["generation"], 1);
    assert!(made.value()["status"]["replicas"].is_null());
    let mut value = made.to_value();
    value["spec"]["replicas"] = json!(5);
    value["status"] = json!({"replicas": 3, "observedGeneration": 1});
    let status = state
        .update(&me(), &kinds::DEPLOYMENT, "default", "web", "status", value.clone(), &options())
        .await
        .unwrap();
    assert_eq!(status.value()["status"]["replicas"], 3);
    assert_eq!(status.value()["spec"]["replicas"], 1);
    assert_eq!(status.value()["metadata"]["generation"], 1);
    value["status"] = json!({"replicas": 7});
    value["metadata"]["resourceVersion"] = json!("");
    let spec = state
        .update(&me(), &kinds::DEPLOYMENT, "default", "web", "", value, &options())
        .await
        .unwrap();
    assert_eq!(spec.value()["spec"]["replicas"], 5);
    assert_eq!(spec.value()["status"]["replicas"], 3);
    assert_eq!(spec.value()["metadata"]["generation"], 2);

    let scale = state.get_subresource(&kinds::DEPLOYMENT, "default", "web", "scale").await.unwrap();
    assert_eq!(scale.value()["spec"]["replicas"], 5);
    assert_eq!(scale.value()["status"]["selector"], "app=web");
    let patch = Patch::Merge(json!({"spec": {"replicas": 2}}));
    let (scale, _) = state
        .patch(&me(), &kinds::DEPLOYMENT, "default", "web", "scale", patch, &options())
        .await
        .unwrap();
    assert_eq!(
        (&scale.value()["kind"], &scale.value()["spec"]["replicas"]),
        (&json!("Scale"), &json!(2))
    );
    let read = state.get(&kinds::DEPLOYMENT, "default", "web").await.unwrap();
    assert_eq!(read.value()["spec"]["replicas"], 2);
}

#[tokio::test]
async fn a_broken_rule_names_its_field() {
    let state = state().await;
    let mut bad = pod("a");
    bad["spec"]["containers"][0]["name"] = json!("");
    let refusal = create(&state, &kinds::POD, bad).await.unwrap_err();
    assert_eq!(refusal.code, 422);
    let causes = refusal.details.unwrap().causes;
    assert!(causes.iter().any(|c| c.field == "spec.containers[0].name"), "{causes:?}");
}

#[tokio::test]
async fn a_finalizer_holds_a_deleted_object_until_it_is_removed() {
    let state = state().await;
    let mut value = config_map("a", &json!({}));
    value["metadata"]["finalizers"] = json!(["example.com/hold"]);
    create(&state, &kinds::CONFIG_MAP, value).await.unwrap();
    let kind = &kinds::CONFIG_MAP;
    let done = state.delete(&me(), kind, "default", "a", &DeleteOptions::default()).await.unwrap();
    assert!(matches!(done, Deleted::Marked(_)));
    let held = state.get(kind, "default", "a").await.unwrap();
    assert!(held.value()["metadata"]["deletionTimestamp"].is_string());
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    state.patch(&me(), kind, "default", "a", "", patch, &options()).await.unwrap();
    assert_eq!(state.get(kind, "default", "a").await.unwrap_err().code, 404);
}

#[tokio::test]
async fn propagation_leaves_its_finalizer() {
    let state = state().await;
    create(&state, &kinds::CONFIG_MAP, config_map("a", &json!({}))).await.unwrap();
    let foreground = DeleteOptions { propagation: "Foreground".into(), ..DeleteOptions::default() };
    let done = state.delete(&me(), &kinds::CONFIG_MAP, "default", "a", &foreground).await.unwrap();
    assert_eq!(done.object().value()["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    let wrong = DeleteOptions { propagation: "Sideways".into(), ..DeleteOptions::default() };
    let refusal =
        state.delete(&me(), &kinds::CONFIG_MAP, "default", "a", &wrong).await.unwrap_err();
    assert_eq!(refusal.code, 422);
}

#[tokio::test]
async fn a_delete_with_another_uid_is_refused() {
    let state = state().await;
    create(&state, &kinds::CONFIG_MAP, config_map("a", &json!({}))).await.unwrap();
    let other = DeleteOptions { uid: Some("other".into()), ..DeleteOptions::default() };
    let refusal =
        state.delete(&me(), &kinds::CONFIG_MAP, "default", "a", &other).await.unwrap_err();
    assert_eq!(refusal.reason, "Conflict");
}

#[tokio::test]
async fn delete_collection_takes_what_the_selector_finds() {
    let state = state().await;
    for name in ["a", "b", "c"] {
        let mut value = config_map(name, &json!({}));
        value["metadata"]["labels"] = json!({"drop": (name != "b").to_string()});
        create(&state, &kinds::CONFIG_MAP, value).await.unwrap();
    }
    let labels = dhow_objects::selectors::LabelSelector::parse("drop=true").unwrap();
    let list = ListOptions { labels, ..ListOptions::default() };
    let kind = &kinds::CONFIG_MAP;
    let gone = state
        .delete_collection(&me(), kind, Some("default"), &list, &DeleteOptions::default())
        .await
        .unwrap();
    assert_eq!(gone.items.len(), 2);
    let left = state.list(kind, Some("default"), &ListOptions::default()).await.unwrap();
    let names: Vec<&str> = left.items.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names, ["b", "kube-root-ca.crt"]);
}

#[tokio::test]
async fn a_terminating_namespace_takes_no_new_content_and_goes_when_finalized() {
    let state = state().await;
    create(&state, &kinds::NAMESPACE, json!({"metadata": {"name": "shop"}})).await.unwrap();
    let kind = &kinds::NAMESPACE;
    let made = state.get(kind, "", "shop").await.unwrap();
    assert_eq!(made.value()["status"]["phase"], "Active");
    assert_eq!(made.value()["metadata"]["labels"]["kubernetes.io/metadata.name"], "shop");
    let done = state.delete(&me(), kind, "", "shop", &DeleteOptions::default()).await.unwrap();
    assert_eq!(done.object().value()["status"]["phase"], "Terminating");
    let refusal = state.create(&me(), &kinds::POD, "shop", pod("a"), &options()).await.unwrap_err();
    assert_eq!(
        refusal.message,
        "pods \"a\" is forbidden: unable to create new content in namespace shop because it is being terminated"
    );
    let value = json!({"spec": {"finalizers": []}, "metadata": {}});
    state.finalize_namespace(&me(), "shop", &value, &options()).await.unwrap();
    assert_eq!(state.get(kind, "", "shop").await.unwrap_err().code, 404);
    let refusal =
        state.delete(&me(), kind, "", "default", &DeleteOptions::default()).await.unwrap_err();
    assert_eq!(
        refusal.message,
        "namespaces \"default\" is forbidden: this namespace may not be deleted"
    );
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let kv = common::kv();
    let first = common::open(kv.clone()).await;
    let made =
        create(&first, &kinds::CONFIG_MAP, config_map("a", &json!({"k": "v"}))).await.unwrap();
    drop(first);
    let second = common::open(kv).await;
    let read = second.get(&kinds::CONFIG_MAP, "default", "a").await.unwrap();
    assert_eq!((&read.bytes, read.revision), (&made.bytes, made.revision));
}

#[tokio::test]
async fn a_scale_is_applied_and_its_field_is_the_objects() {
    let state = state().await;
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "main", "image": "web:1"}]}});
    let deployment = json!({"metadata": {"name": "web"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    create(&state, &kinds::DEPLOYMENT, deployment).await.unwrap();
    let apply = async |manager: &str, replicas: Value, force: bool| {
        let value = json!({"apiVersion": "autoscaling/v1", "kind": "Scale",
            "metadata": {"name": "web"}, "spec": {"replicas": replicas}});
        let (actor, patch) =
            (Actor { manager: manager.into(), ..me() }, Patch::Apply { value, force });
        let kind = &kinds::DEPLOYMENT;
        state.patch(&actor, kind, "default", "web", "scale", patch, &options()).await
    };
    let taken = apply("autoscaler", json!(5), false).await.unwrap_err();
    assert_eq!(taken.code, 409);
    assert!(taken.message.contains(".spec.replicas"), "{}", taken.message);
    let (scale, created) = apply("autoscaler", json!(5), true).await.unwrap();
    assert!(!created);
    assert_eq!(
        (scale.value()["kind"].as_str(), &scale.value()["spec"]),
        (Some("Scale"), &json!({"replicas": 5}))
    );
    let object = state.get(&kinds::DEPLOYMENT, "default", "web").await.unwrap().to_value();
    assert_eq!(object["spec"]["replicas"], 5);
    let fields = object["metadata"]["managedFields"].as_array().unwrap();
    let own = fields.iter().find(|f| f["manager"] == "autoscaler").unwrap();
    assert_eq!(own["subresource"], "scale");
    assert_eq!(own["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(apply("autoscaler", json!(-1), true).await.unwrap_err().code, 422);
}

#[tokio::test]
async fn a_list_whose_revision_is_forgotten_goes_on_with_the_token_of_its_refusal() {
    let kv = common::kv();
    let state = common::open(kv.clone()).await;
    for name in ["a", "b", "c"] {
        create(&state, &kinds::CONFIG_MAP, config_map(name, &json!({}))).await.unwrap();
    }
    let list = async |state: &dhow_state::State, token: &str| {
        let options =
            ListOptions { limit: 1, continue_token: token.to_owned(), ..ListOptions::default() };
        state.list(&kinds::CONFIG_MAP, Some("default"), &options).await
    };
    let first = list(&state, "").await.unwrap();
    let later = create(&state, &kinds::CONFIG_MAP, config_map("bb", &json!({}))).await.unwrap();
    kv.compact(i64::try_from(later.revision).unwrap(), true).await.unwrap();
    // Another process: its cache does not remember what the store has forgotten.
    let state = common::open(kv).await;
    let refused = list(&state, &first.continue_token).await.unwrap_err();
    assert_eq!(refused.code, 410, "{refused:?}");
    let told = refused.to_json();
    let second = list(&state, told["metadata"]["continue"].as_str().unwrap()).await.unwrap();
    assert_eq!(second.items[0].name, "b");
    assert!(told.get("details").is_none());
    // From here on the rest is consistent again.
    let third = list(&state, &second.continue_token).await.unwrap();
    assert_eq!((third.items[0].name.as_str(), third.revision), ("bb", second.revision));
}
