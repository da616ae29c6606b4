//! Environment, volumes and settings, as programs see them.

use crate::lab::{FOREVER, Lab, shell};
use crate::lifecycle::waiting;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

crate::tests![
    settings_arrive_in_environment_and_files_and_change_live,
    a_missing_setting_is_told_and_the_pod_starts_when_it_comes,
    tokens_are_renewed,
    tokens_are_renewed_when_the_clock_is_set,
    a_pod_sees_its_own_name_address_and_resolver,
    users_groups_and_rights_are_what_the_pod_asks_for,
    memory_volumes_and_sub_paths,
    what_is_not_supported_is_told,
    a_pod_may_use_the_machines_network,
];

async fn settings_arrive_in_environment_and_files_and_change_live(lab: Arc<Lab>) {
    lab.feed.config_map("settings", &[("mode", "fast"), ("other", "x")]);
    lab.feed.secret("vault", &[("key", "sesame")]);
    let mut pod = shell("app", FOREVER);
    let c = &mut pod["spec"]["containers"][0];
    c["env"] = json!([
        {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "mode"}}},
        {"name": "ALL", "value": "$(MODE)-$(FROM_IMAGE)"},
    ]);
    c["envFrom"] = json!([{"secretRef": {"name": "vault"}, "prefix": "S_"}]);
    c["volumeMounts"] = json!([
        {"name": "settings", "mountPath": "/etc/settings"},
        {"name": "all", "mountPath": "/etc/all"},
    ]);
    pod["spec"]["volumes"] = json!([
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "all", "projected": {"sources": [
            {"secret": {"name": "vault", "items": [{"key": "key", "path": "deep/key", "mode": 256}]}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        ]}},
    ]);
    pod["metadata"]["labels"] = json!({"app": "cart"});
    lab.feed.create(pod);
    lab.feed.until_ready("app").await;
    let (_, out) = lab.exec("app", "", "echo $MODE $ALL $S_key $KUBERNETES_SERVICE_HOST").await;
    assert_eq!(out, "fast fast-$(FROM_IMAGE) sesame 10.78.0.1\n");
    let (_, out) =
        lab.exec("app", "", "cat /etc/settings/mode /etc/all/deep/key /etc/all/labels").await;
    assert_eq!(out, "fastsesameapp=\"cart\"");
    let (_, out) =
        lab.exec("app", "", "stat -Lc %a /etc/all/deep/key; touch /etc/settings/x").await;
    assert!(out.starts_with("400\n") && out.contains("Read-only"), "{out}");
    lab.feed.config_map("settings", &[("mode", "slow")]);
    lab.until_output("app", "cat /etc/settings/mode; ls /etc/settings", "slowmode").await;
    lab.feed.change("app", |pod| {
        pod.metadata.labels = Some([("app".to_owned(), "next".to_owned())].into());
    });
    lab.until_output("app", "cat /etc/all/labels", "app=\"next\"").await;
}

async fn a_missing_setting_is_told_and_the_pod_starts_when_it_comes(lab: Arc<Lab>) {
    let mut pod = shell("app", FOREVER);
    pod["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "later"}}]);
    lab.feed.create(pod);
    lab.feed
        .until_pod("app", "reason", |s| waiting(s, "main").0 == "CreateContainerConfigError")
        .await;
    let status = lab.feed.pod("app").unwrap().status.unwrap();
    assert_eq!(waiting(&status, "main").1, "configmap \"later\" not found");
    lab.feed.config_map("later", &[("a", "1")]);
    lab.feed.until_ready("app").await;
    let mut pod = shell("mounts", FOREVER);
    pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "later"}}]);
    lab.feed.create(pod);
    lab.feed.until_event("FailedMount", "secret \"later\" not found").await;
    lab.feed.until_reason(r#"{"code":"VolumeFailed","object":"pod "#).await;
    lab.feed.until_reason(r#""causes":[{"code":"ConfigMissing""#).await;
    lab.feed.secret("later", &[("a", "1")]);
    lab.feed.until_ready("mounts").await;
}

/// A pod that has its first token.
async fn start_with_token(lab: &Lab) {
    let mut pod = shell("app", FOREVER);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "t", "mountPath": "/token"}]);
    pod["spec"]["volumes"] = json!([{"name": "t", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token"}}]}}]);
    lab.feed.create(pod);
    lab.feed.until_ready("app").await;
    assert_eq!(lab.exec("app", "", "cat /token/token").await.1, "token-1");
}

async fn tokens_are_renewed(lab: Arc<Lab>) {
    lab.feed.lock().token_life = 2;
    start_with_token(&lab).await;
    lab.feed.lock().token_life = 3600;
    lab.until_output("app", "cat /token/token", "token-2").await;
}

async fn tokens_are_renewed_when_the_clock_is_set(lab: Arc<Lab>) {
    start_with_token(&lab).await;
    lab.feed.lock().token_life = 3 * 86_400;
    lab.clock.set_on(Duration::from_secs(86_400));
    // Looks at the clock too.
    lab.agent().images_changed();
    lab.until_output("app", "cat /token/token", "token-2").await;
}

async fn a_pod_sees_its_own_name_address_and_resolver(lab: Arc<Lab>) {
    let mut pod = shell("web-0", FOREVER);
    pod["spec"]["subdomain"] = json!("web");
    pod["spec"]["containers"][0]["env"] =
        json!([{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    lab.feed.create(pod);
    lab.feed.until_ready("web-0").await;
    let ip = lab.feed.pod("web-0").unwrap().status.unwrap().pod_ip.unwrap();
    let (_, out) =
        lab.exec("web-0", "", "hostname; cat /etc/hostname; echo $IP; grep web-0 /etc/hosts").await;
    assert_eq!(out, format!("web-0\nweb-0\n{ip}\n{ip}\tweb-0.web.shop.svc.cluster.local\tweb-0\n"));
    let (_, out) = lab.exec("web-0", "", "grep nameserver /etc/resolv.conf").await;
    assert_eq!(out, "nameserver 10.78.0.10\n");
}

async fn users_groups_and_rights_are_what_the_pod_asks_for(lab: Arc<Lab>) {
    let mut pod = shell("safe", FOREVER);
    pod["spec"]["securityContext"] =
        json!({"runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000});
    pod["spec"]["containers"][0]["securityContext"] = json!({
        "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "d", "mountPath": "/data"}]);
    pod["spec"]["volumes"] = json!([{"name": "d", "emptyDir": {}}]);
    lab.feed.create(pod);
    lab.feed.until_ready("safe").await;
    let (_, out) = lab.exec("safe", "", "id -u; id -g; id -G; touch /data/x; stat -c %g /data/x; grep NoNewPrivs /proc/self/status").await;
    assert_eq!(out, "1000\n2000\n2000 3000\n3000\nNoNewPrivs:\t1\n");
    let (_, out) = lab.exec("safe", "", "grep CapEff /proc/1/status; touch /x").await;
    assert!(out.contains("0000000000000000") && out.contains("Read-only"), "{out}");
    let mut pod = shell("root", "true");
    pod["spec"]["securityContext"] = json!({"runAsNonRoot": true, "runAsUser": 0});
    lab.feed.create(pod);
    lab.feed.until_event("Failed", "non-root").await;
}

async fn memory_volumes_and_sub_paths(lab: Arc<Lab>) {
    let mut pod = shell("vol", FOREVER);
    pod["spec"]["containers"][0]["env"] = json!([{"name": "WHO", "value": "me"}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "m", "mountPath": "/mem"},
        {"name": "d", "mountPath": "/sub", "subPathExpr": "for/$(WHO)"},
        {"name": "d", "mountPath": "/whole"},
        {"name": "s", "mountPath": "/etc/one", "subPath": "mode"},
    ]);
    lab.feed.config_map("settings", &[("mode", "fast")]);
    pod["spec"]["volumes"] = json!([
        {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "d", "emptyDir": {}},
        {"name": "s", "configMap": {"name": "settings"}},
    ]);
    lab.feed.create(pod);
    lab.feed.until_ready("vol").await;
    let (_, out) = lab
        .exec("vol", "", "touch /sub/x; ls /whole/for/me; cat /etc/one; grep ' /mem ' /proc/mounts")
        .await;
    assert!(out.starts_with("x\nfast"), "{out}");
    assert!(out.contains("tmpfs") && out.contains("size=1024k"), "{out}");
}

async fn what_is_not_supported_is_told(lab: Arc<Lab>) {
    let mut pod = shell("claim", "true");
    pod["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    lab.feed.create(pod);
    lab.feed.until_event("FailedMount", "persistentVolumeClaim is not supported").await;
    let mut pod = shell("typed", "true");
    pod["spec"]["volumes"] =
        json!([{"name": "v", "hostPath": {"path": "/no/such", "type": "Directory"}}]);
    lab.feed.create(pod);
    lab.feed.until_event("FailedMount", "/no/such is not a directory").await;
}

async fn a_pod_may_use_the_machines_network(lab: Arc<Lab>) {
    let mut pod = shell("host", FOREVER);
    pod["spec"]["hostNetwork"] = json!(true);
    lab.feed.create(pod);
    lab.feed.until_ready("host").await;
    let status = lab.feed.pod("host").unwrap().status.unwrap();
    assert_eq!(status.pod_ip.as_deref(), Some("192.0.2.1"));
    let (_, out) = lab
        .exec("host", "", "hostname; ls /sys/class/net | grep dhowt; grep host /etc/hosts")
        .await;
    assert!(out.contains("host network"), "{out}");
}
