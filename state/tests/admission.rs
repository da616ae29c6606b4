//! What the built-in rules add, claim and refuse.

mod common;

use common::{create, me, options, pod, state};
use dhow_objects::kinds;
use dhow_state::{DeleteOptions, Patch, State};
use serde_json::{Value, json};

fn service(name: &str, spec: &Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

async fn patch_service(state: &State, name: &str, patch: Value) -> dhow_state::Result<Value> {
    let patch = Patch::Merge(patch);
    let done = state.patch(&me(), &kinds::SERVICE, "default", name, "", patch, &options()).await;
    done.map(|(o, _)| o.to_value())
}

async fn drop_service(state: &State, name: &str) {
    let options = DeleteOptions::default();
    state.delete(&me(), &kinds::SERVICE, "default", name, &options).await.unwrap();
}

#[tokio::test]
async fn a_pod_runs_as_the_default_account_with_its_token_mounted() {
    let state = state().await;
    let made = create(&state, &kinds::POD, pod("a")).await.unwrap();
    let spec = &made.value()["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["priority"]), (&json!("default"), &json!(0)));
    let volume = spec["volumes"][0]["name"].as_str().unwrap();
    assert!(volume.starts_with("kube-api-access-"));
    let mount = &spec["containers"][0]["volumeMounts"][0];
    assert_eq!(mount["name"], volume);
    assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    let token = &spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["expirationSeconds"], 3607);
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(spec["tolerations"][0]["tolerationSeconds"], 300);
    assert_eq!(made.value()["status"]["phase"], "Pending");
    assert_eq!(made.value()["status"]["qosClass"], "BestEffort");
}

#[tokio::test]
async fn automounting_can_be_declined_and_unknown_accounts_are_refused() {
    let state = state().await;
    let mut value = pod("a");
    value["spec"]["automountServiceAccountToken"] = json!(false);
    let made = create(&state, &kinds::POD, value).await.unwrap();
    assert!(made.value()["spec"]["volumes"].is_null());
    let mut value = pod("b");
    value["spec"]["serviceAccountName"] = json!("ghost");
    let refusal = create(&state, &kinds::POD, value).await.unwrap_err();
    assert_eq!(
        refusal.message,
        "pods \"b\" is forbidden: error looking up service account default/ghost: serviceaccount \"ghost\" not found"
    );
    let mut value = pod("c");
    value["spec"]["priorityClassName"] = json!("urgent");
    let refusal = create(&state, &kinds::POD, value).await.unwrap_err();
    assert_eq!(
        refusal.message,
        "pods \"c\" is forbidden: no PriorityClass with name urgent was found"
    );
    let mut value = pod("c");
    value["spec"]["preemptionPolicy"] = json!("Never");
    let refusal = create(&state, &kinds::POD, value).await.unwrap_err();
    assert!(refusal.message.contains("the string value of PreemptionPolicy (Never) must not be"));
    let mut value = pod("d");
    value["spec"]["runtimeClassName"] = json!("gvisor");
    let refusal = create(&state, &kinds::POD, value).await.unwrap_err();
    assert_eq!(
        refusal.message,
        "pods \"d\" is forbidden: pod rejected: RuntimeClass \"gvisor\" not found"
    );
    let mut value = pod("e");
    value["spec"]["overhead"] = json!({"cpu": "1"});
    let refused = create(&state, &kinds::POD, value).await.unwrap_err();
    assert_eq!(
        refused.message,
        "pods \"e\" is forbidden: pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
    );
}

#[tokio::test]
async fn a_namespace_comes_with_its_account_and_certificate() {
    let state = state().await;
    create(&state, &kinds::NAMESPACE, json!({"metadata": {"name": "shop"}})).await.unwrap();
    assert!(state.cached(&kinds::SERVICE_ACCOUNT, "shop", "default").is_some());
    let certificate = state.cached(&kinds::CONFIG_MAP, "shop", "kube-root-ca.crt").unwrap();
    assert_eq!(certificate.value()["data"]["ca.crt"], "the authority");

    // Who deletes them gets new ones, as long as the namespace lives.
    let furniture =
        [(&kinds::SERVICE_ACCOUNT, "default"), (&kinds::CONFIG_MAP, "kube-root-ca.crt")];
    let delete = async |kind, namespace: &str, name: &str| {
        state.delete(&me(), kind, namespace, name, &DeleteOptions::default()).await.unwrap();
    };
    for (kind, name) in furniture {
        let uid = |object: &dhow_state::Object| object.value()["metadata"]["uid"].clone();
        let before = uid(&state.cached(kind, "shop", name).unwrap());
        delete(kind, "shop", name).await;
        assert_ne!(uid(&state.cached(kind, "shop", name).unwrap()), before, "{name}");
    }
    delete(&kinds::NAMESPACE, "", "shop").await;
    for (kind, name) in furniture {
        delete(kind, "shop", name).await;
        assert!(state.cached(kind, "shop", name).is_none(), "{name}");
    }
}

#[tokio::test]
async fn a_service_gets_an_address_of_the_range() {
    let state = state().await;
    let made = create(&state, &kinds::SERVICE, service("a", &json!({"ports": [{"port": 80}]})))
        .await
        .unwrap();
    let spec = &made.value()["spec"];
    let address: std::net::Ipv4Addr = spec["clusterIP"].as_str().unwrap().parse().unwrap();
    assert!(dhow_state::Config::for_tests().service_cidr.contains(&address));
    assert_eq!(spec["clusterIPs"], json!([address.to_string()]));
    assert_eq!(
        (&spec["ipFamilies"], &spec["ipFamilyPolicy"]),
        (&json!(["IPv4"]), &json!("SingleStack"))
    );
    assert_eq!(
        (&spec["internalTrafficPolicy"], &spec["type"]),
        (&json!("Cluster"), &json!("ClusterIP"))
    );
    // An update that leaves the address out keeps it.
    let value = json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 81}]}});
    let updated =
        state.update(&me(), &kinds::SERVICE, "default", "a", "", value, &options()).await.unwrap();
    assert_eq!(updated.value()["spec"]["clusterIP"], address.to_string());
}

#[tokio::test]
async fn an_address_belongs_to_one_service_until_it_is_deleted() {
    let state = state().await;
    let fixed = json!({"clusterIP": "10.96.0.10", "ports": [{"port": 53}]});
    create(&state, &kinds::SERVICE, service("a", &fixed)).await.unwrap();
    let refusal = create(&state, &kinds::SERVICE, service("b", &fixed)).await.unwrap_err();
    assert_eq!(refusal.code, 422);
    assert_eq!(
        refusal.message,
        "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP 10.96.0.10: provided IP is already allocated"
    );
    drop_service(&state, "a").await;
    create(&state, &kinds::SERVICE, service("b", &fixed)).await.unwrap();
    let outside = json!({"clusterIP": "10.97.0.10", "ports": [{"port": 53}]});
    assert_eq!(
        create(&state, &kinds::SERVICE, service("c", &outside)).await.unwrap_err().code,
        422
    );
}

#[tokio::test]
async fn services_made_at_once_never_share_an_address() {
    let state = state().await;
    let tasks: Vec<_> = (0..60)
        .map(|n| {
            let state = state.clone();
            tokio::spawn(async move {
                let spec = json!({"ports": [{"port": 80}]});
                let made = create(&state, &kinds::SERVICE, service(&format!("s{n}"), &spec))
                    .await
                    .unwrap();
                made.value()["spec"]["clusterIP"].as_str().unwrap().to_owned()
            })
        })
        .collect();
    let mut addresses = std::collections::HashSet::new();
    for task in tasks {
        assert!(addresses.insert(task.await.unwrap()));
    }
}

#[tokio::test]
async fn node_ports_are_chosen_kept_and_released() {
    let state = state().await;
    let spec = json!({"type": "NodePort", "ports": [
        {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53},
    ]});
    let made = create(&state, &kinds::SERVICE, service("dns", &spec)).await.unwrap();
    let ports = &made.value()["spec"]["ports"];
    let chosen = ports[0]["nodePort"].as_u64().unwrap();
    assert!((30000..=30004).contains(&chosen));
    assert_eq!(ports[1]["nodePort"], chosen);
    let same = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": chosen}]});
    let refusal = create(&state, &kinds::SERVICE, service("web", &same)).await.unwrap_err();
    assert_eq!(
        refusal.message,
        format!(
            "Service \"web\" is invalid: spec.ports[0].nodePort: Invalid value: {chosen}: provided port is already allocated"
        )
    );
    let outside = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]});
    let refusal = create(&state, &kinds::SERVICE, service("web", &outside)).await.unwrap_err();
    assert!(refusal.message.ends_with(
        "provided port is not in the valid range. The range of valid ports is 30000-30004"
    ));
    // Back to a cluster address only: the port is free again.
    let back = patch_service(&state, "dns", json!({"spec": {"type": "ClusterIP"}})).await.unwrap();
    assert!(back["spec"]["ports"][0]["nodePort"].is_null());
    create(&state, &kinds::SERVICE, service("web", &same)).await.unwrap();
}

#[tokio::test]
async fn a_full_range_says_so() {
    let state = state().await;
    for n in 0..5 {
        let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
        create(&state, &kinds::SERVICE, service(&format!("s{n}"), &spec)).await.unwrap();
    }
    let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
    let refusal = create(&state, &kinds::SERVICE, service("more", &spec)).await.unwrap_err();
    assert!(refusal.message.contains("range is full"), "{}", refusal.message);
}

#[tokio::test]
async fn headless_and_external_services_have_no_address() {
    let state = state().await;
    let headless = json!({"clusterIP": "None", "selector": {"a": "b"}, "ports": [{"port": 80}]});
    let made = create(&state, &kinds::SERVICE, service("headless", &headless)).await.unwrap();
    assert_eq!(made.value()["spec"]["clusterIPs"], json!(["None"]));
    let external = json!({"type": "ExternalName", "externalName": "example.com"});
    let made = create(&state, &kinds::SERVICE, service("external", &external)).await.unwrap();
    assert!(made.value()["spec"].get("clusterIP").is_none_or(|ip| ip == ""));
    // A service that becomes external gives its address back.
    let fixed = json!({"clusterIP": "10.96.0.20", "ports": [{"port": 80}]});
    create(&state, &kinds::SERVICE, service("a", &fixed)).await.unwrap();
    let patch = json!({"spec": {"type": "ExternalName", "externalName": "example.com"}});
    patch_service(&state, "a", patch).await.unwrap();
    create(&state, &kinds::SERVICE, service("b", &fixed)).await.unwrap();
}

#[tokio::test]
async fn a_service_drops_what_its_new_type_has_no_use_for() {
    let state = state().await;
    let balanced =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    create(&state, &kinds::SERVICE, service("a", &balanced)).await.unwrap();
    let patch = json!({"spec": {"type": "ClusterIP"}});
    let spec = &patch_service(&state, "a", patch).await.unwrap()["spec"];
    for field in ["externalTrafficPolicy", "allocateLoadBalancerNodePorts", "healthCheckNodePort"] {
        assert_eq!(spec.get(field), None, "{field}");
    }
    assert_eq!(spec["ports"][0].get("nodePort"), None);
    // What is asked for and has no use is refused, not dropped.
    let patch = json!({"spec": {"externalTrafficPolicy": "Local"}});
    let refused = patch_service(&state, "a", patch).await.unwrap_err();
    assert_eq!(refused.details.unwrap().causes[0].field, "spec.externalTrafficPolicy");
    let ranges = json!({"loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0"]});
    let mut balanced = balanced;
    balanced.as_object_mut().unwrap().extend(ranges.as_object().unwrap().clone());
    let refused = create(&state, &kinds::SERVICE, service("b", &balanced)).await.unwrap_err();
    assert_eq!(refused.details.unwrap().causes[0].field, "spec.loadBalancerSourceRanges[1]");
}

#[tokio::test]
async fn a_pod_is_bound_once_and_ends_gracefully() {
    let state = state().await;
    let made = create(&state, &kinds::POD, pod("a")).await.unwrap();
    let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "one"}});
    let bound = state.bind(&me(), "default", "a", &binding, &options()).await.unwrap();
    assert_eq!(bound.value()["spec"]["nodeName"], "one");
    assert_eq!(bound.value()["status"]["conditions"][0]["type"], "PodScheduled");
    let again = state.bind(&me(), "default", "a", &binding, &options()).await.unwrap_err();
    assert_eq!(
        again.message,
        "Operation cannot be fulfilled on pods/binding \"a\": pod a is already assigned to node \"one\""
    );
    let marked =
        state.delete(&me(), &kinds::POD, "default", "a", &DeleteOptions::default()).await.unwrap();
    assert_eq!(marked.object().value()["metadata"]["deletionGracePeriodSeconds"], 30);
    let now = DeleteOptions {
        grace_period_seconds: Some(0),
        uid: Some(made.uid().to_owned()),
        ..DeleteOptions::default()
    };
    state.delete(&me(), &kinds::POD, "default", "a", &now).await.unwrap();
    assert_eq!(state.get(&kinds::POD, "default", "a").await.unwrap_err().code, 404);
}

#[tokio::test]
async fn a_pod_that_no_machine_has_goes_at_once() {
    let state = state().await;
    create(&state, &kinds::POD, pod("a")).await.unwrap();
    let done =
        state.delete(&me(), &kinds::POD, "default", "a", &DeleteOptions::default()).await.unwrap();
    assert!(matches!(done, dhow_state::Deleted::Gone(_)));
}

#[tokio::test]
async fn a_service_that_ends_by_an_update_frees_what_it_held() {
    let state = state().await;
    let spec = |port: u32| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let mut held = service("web", &spec(30001));
    held["metadata"]["finalizers"] = json!(["example.com/wait"]);
    create(&state, &kinds::SERVICE, held).await.unwrap();
    drop_service(&state, "web").await;
    // The last finalizer goes, and with the same write the port changes.
    let last = json!({"metadata": {"finalizers": null}, "spec": spec(30002)});
    patch_service(&state, "web", last).await.unwrap();
    assert!(state.cached(&kinds::SERVICE, "default", "web").is_none());
    for (name, port) in [("first", 30001), ("second", 30002)] {
        create(&state, &kinds::SERVICE, service(name, &spec(port))).await.unwrap();
    }
}
