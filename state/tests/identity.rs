//! Who may do what, and what a token proves.

mod common;

use common::{create, me, options, pod, state};
use dhow_objects::kinds;
use dhow_state::{Actor, Attributes, Bound, DeleteOptions, State, TokenRequest, User};
use serde_json::json;

fn user(name: &str, groups: &[&str]) -> User {
    User {
        name: name.into(),
        groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        ..User::default()
    }
}

fn may(state: &State, user: &User, verb: &str, resource: &str, namespace: &str) -> bool {
    state
        .authorize(user, &Attributes { verb, resource, namespace, ..Attributes::default() })
        .is_ok()
}

async fn bind(state: &State, role: &str, name: &str) {
    let value = json!({
        "metadata": {"name": format!("{name}-{role}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}],
    });
    create(state, &kinds::ROLE_BINDING, value).await.unwrap();
}

#[tokio::test]
async fn masters_may_everything_and_strangers_nothing_but_look_around() {
    let state = state().await;
    let master = user("root", &["system:masters"]);
    assert!(may(&state, &master, "delete", "nodes", ""));
    let stranger = user("x", &["system:authenticated"]);
    assert!(!may(&state, &stranger, "list", "pods", "default"));
    let path = |path| Attributes { verb: "get", path, ..Attributes::default() };
    assert!(state.authorize(&stranger, &path("/apis/apps/v1")).is_ok());
    let refusal = state.authorize(&stranger, &path("/metrics")).unwrap_err();
    assert_eq!(refusal.message, "forbidden: User \"x\" cannot get path \"/metrics\"");
    let review = Attributes {
        verb: "create",
        group: "authorization.k8s.io",
        resource: "selfsubjectaccessreviews",
        ..Attributes::default()
    };
    assert!(state.authorize(&stranger, &review).is_ok());
}

#[tokio::test]
async fn a_binding_holds_in_its_namespace_from_the_moment_it_is_written() {
    let state = state().await;
    let ann = user("ann", &["system:authenticated"]);
    assert!(!may(&state, &ann, "list", "pods", "default"));
    bind(&state, "view", "ann").await;
    assert!(may(&state, &ann, "list", "pods", "default"));
    assert!(!may(&state, &ann, "list", "pods", "kube-system"));
    assert!(!may(&state, &ann, "create", "pods", "default"));
    assert!(!may(&state, &ann, "get", "secrets", "default"));
    bind(&state, "edit", "ann").await;
    assert!(may(&state, &ann, "create", "pods", "default"));
    let options = DeleteOptions::default();
    for name in ["ann-view", "ann-edit"] {
        state.delete(&me(), &kinds::ROLE_BINDING, "default", name, &options).await.unwrap();
    }
    assert!(!may(&state, &ann, "list", "pods", "default"));
}

#[tokio::test]
async fn a_role_may_name_single_objects() {
    let state = state().await;
    let role = json!({"metadata": {"name": "one"}, "rules": [
        {"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a"]},
    ]});
    create(&state, &kinds::ROLE, role).await.unwrap();
    let binding = json!({
        "metadata": {"name": "one"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "one"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
    });
    create(&state, &kinds::ROLE_BINDING, binding).await.unwrap();
    let account = user("system:serviceaccount:default:default", &[]);
    let get = |name| Attributes {
        verb: "get",
        resource: "configmaps",
        namespace: "default",
        name,
        ..Attributes::default()
    };
    assert!(state.authorize(&account, &get("a")).is_ok());
    assert!(state.authorize(&account, &get("b")).is_err());
}

#[tokio::test]
async fn a_token_proves_an_account_until_its_pod_is_gone() {
    let state = state().await;
    let made = create(&state, &kinds::POD, pod("a")).await.unwrap();
    let bound = Bound { kind: "Pod".into(), name: "a".into(), uid: made.uid().into() };
    let request = TokenRequest { bound: Some(bound), ..TokenRequest::default() };
    let issued = state.issue_token("default", "default", request).await.unwrap();
    let who = state.authenticate_token(&issued.token, &[]).await.unwrap();
    assert_eq!(who.name, "system:serviceaccount:default:default");
    assert!(who.groups.contains(&"system:serviceaccounts:default".to_owned()));
    assert!(
        who.extra.contains(&("authentication.kubernetes.io/pod-name".into(), vec!["a".into()]))
    );
    let other = state.authenticate_token(&issued.token, &["vault".into()]).await.unwrap_err();
    assert_eq!(other.code, 401);
    let options = DeleteOptions::default();
    state.delete(&me(), &kinds::POD, "default", "a", &options).await.unwrap();
    assert_eq!(state.authenticate_token(&issued.token, &[]).await.unwrap_err().code, 401);
}

#[tokio::test]
async fn a_token_of_a_machine_ends_with_the_machine() {
    let state = state().await;
    create(&state, &kinds::NODE, json!({"metadata": {"name": "n1"}})).await.unwrap();
    let bound = Bound { kind: "Node".into(), name: "n1".into(), uid: String::new() };
    let request = TokenRequest { bound: Some(bound), ..TokenRequest::default() };
    let issued = state.issue_token("default", "default", request).await.unwrap();
    state.authenticate_token(&issued.token, &[]).await.unwrap();
    state.delete(&me(), &kinds::NODE, "", "n1", &DeleteOptions::default()).await.unwrap();
    assert_eq!(state.authenticate_token(&issued.token, &[]).await.unwrap_err().code, 401);
}

#[tokio::test]
async fn a_forged_token_is_refused() {
    let state = state().await;
    let issued = state.issue_token("default", "default", TokenRequest::default()).await.unwrap();
    let mut parts: Vec<&str> = issued.token.split('.').collect();
    let other = state.issue_token("kube-system", "default", TokenRequest::default()).await.unwrap();
    parts[1] = other.token.split('.').nth(1).unwrap();
    assert_eq!(state.authenticate_token(&parts.join("."), &[]).await.unwrap_err().code, 401);
    assert_eq!(state.authenticate_token("rubbish", &[]).await.unwrap_err().code, 401);
    assert_eq!(state.token_keys()["keys"][0]["alg"], "ES256");
}

#[tokio::test]
async fn a_token_lives_ten_minutes_at_least() {
    let state = state().await;
    let request = TokenRequest { expiration_seconds: 10, ..TokenRequest::default() };
    let refusal = state.issue_token("default", "default", request).await.unwrap_err();
    assert!(refusal.message.contains("may not specify a duration less than 10 minutes"));
}

#[tokio::test]
async fn a_token_expires() {
    let clock = common::Manual::shared();
    let state =
        State::open(common::kv(), clock.clone(), dhow_state::Config::for_tests()).await.unwrap();
    let request = TokenRequest { expiration_seconds: 600, ..TokenRequest::default() };
    let issued = state.issue_token("default", "default", request).await.unwrap();
    assert!(state.authenticate_token(&issued.token, &[]).await.is_ok());
    clock.forward(601);
    assert_eq!(state.authenticate_token(&issued.token, &[]).await.unwrap_err().code, 401);
}

#[tokio::test]
async fn nobody_grants_more_than_they_have() {
    let state = state().await;
    let role = |name: &str, verbs: &[&str], resource: &str| {
        json!({"metadata": {"name": name}, "rules": [
            {"verbs": verbs, "apiGroups": ["rbac.authorization.k8s.io", ""], "resources": [resource]},
        ]})
    };
    create(&state, &kinds::ROLE, role("all", &["*"], "secrets")).await.unwrap();
    let binding = |name: &str, role: &str, who: &str| {
        json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
            "subjects": [{"kind": "User", "name": who}],
        })
    };
    create(&state, &kinds::ROLE, role("some", &["create", "update"], "roles")).await.unwrap();
    create(&state, &kinds::ROLE_BINDING, binding("bob", "some", "bob")).await.unwrap();
    let bob = Actor { user: user("bob", &[]), ..me() };
    let refused = state
        .create(&bob, &kinds::ROLE, "default", role("x", &["get"], "secrets"), &options())
        .await
        .unwrap_err();
    assert_eq!(refused.code, 403);
    assert!(refused.message.contains("attempting to grant RBAC permissions not currently held"));
    assert!(refused.message.contains(r#"Resources:["secrets"], Verbs:["get"]"#), "{refused:?}");
    let less = role("y", &["create"], "roles");
    state.create(&bob, &kinds::ROLE, "default", less.clone(), &options()).await.unwrap();
    // Nor by changing one that is there.
    let more = role("y", &["delete"], "roles");
    let update = state.update(&bob, &kinds::ROLE, "default", "y", "", more, &options()).await;
    assert_eq!(update.unwrap_err().code, 403);
    let mut labelled = less;
    labelled["metadata"]["labels"] = json!({"a": "b"});
    state.update(&bob, &kinds::ROLE, "default", "y", "", labelled, &options()).await.unwrap();
    // Nor by binding one.
    let bind = async |name: &str, role: &str| {
        let binding = binding(name, role, "bob");
        state.create(&bob, &kinds::ROLE_BINDING, "default", binding, &options()).await
    };
    assert_eq!(bind("bob-all", "all").await.unwrap_err().code, 403);
    bind("bob-less", "y").await.unwrap();
    // Whoever may `escalate` or `bind`, as `*` does, may.
    create(&state, &kinds::ROLE, role("any", &["*"], "roles")).await.unwrap();
    create(&state, &kinds::ROLE_BINDING, binding("bob-any", "any", "bob")).await.unwrap();
    bind("bob-all", "all").await.unwrap();
}
