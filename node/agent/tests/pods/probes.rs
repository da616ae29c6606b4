//! Probes against real containers.

use crate::feed::condition;
use crate::lab::{FOREVER, Lab, shell};
use crate::lifecycle::container;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

crate::tests![
    readiness_follows_a_file,
    a_failed_liveness_probe_restarts_the_container,
    http_and_tcp_probes_reach_the_pod_as_soon_as_it_listens,
    a_command_that_takes_too_long_is_ended,
    a_command_may_say_a_lot,
];

async fn readiness_follows_a_file(lab: Arc<Lab>) {
    let mut pod = shell("web", FOREVER);
    pod["spec"]["containers"][0]["readinessProbe"] = json!({
        "exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    lab.feed.create(pod);
    lab.feed.until_event("Unhealthy", "Readiness probe failed: cat").await;
    lab.feed.until_pod("web", "not ready", |s| condition(s, "Ready") == "False").await;
    lab.exec("web", "", "touch /tmp/ready").await;
    lab.feed.until_ready("web").await;
    lab.exec("web", "", "rm /tmp/ready").await;
    lab.feed.until_pod("web", "not ready", |s| condition(s, "Ready") == "False").await;
    assert_eq!(container(&lab.feed.pod("web").unwrap().status.unwrap(), "main").restart_count, 0);
}

async fn a_failed_liveness_probe_restarts_the_container(lab: Arc<Lab>) {
    let mut pod = shell("web", FOREVER);
    pod["spec"]["containers"][0]["livenessProbe"] = json!({
        "exec": {"command": ["test", "!", "-e", "/tmp/sick"]}, "periodSeconds": 1, "failureThreshold": 1});
    lab.feed.create(pod);
    lab.feed.until_ready("web").await;
    lab.exec("web", "", "touch /tmp/sick").await;
    lab.feed
        .until_pod("web", "restart", |s| {
            container(s, "main").restart_count == 1 && condition(s, "Ready") == "True"
        })
        .await;
    lab.feed
        .until_event("Killing", "Container main failed liveness probe, will be restarted")
        .await;
}

async fn http_and_tcp_probes_reach_the_pod_as_soon_as_it_listens(lab: Arc<Lab>) {
    let mut pod = shell(
        "web",
        "sleep 0.1; mkdir /www; echo hi > /www/index.html; exec httpd -f -p 8080 -h /www",
    );
    let c = &mut pod["spec"]["containers"][0];
    c["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    // Nobody here waits for a second period.
    c["startupProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 600});
    c["readinessProbe"] =
        json!({"httpGet": {"path": "/index.html", "port": "http"}, "periodSeconds": 600});
    c["livenessProbe"] = json!({"httpGet": {"path": "/", "port": 8080}});
    let begun = Instant::now();
    lab.feed.create(pod);
    lab.feed.until_ready("web").await;
    println!("  bound to ready: {:.2?}", begun.elapsed());
}

async fn a_command_may_say_a_lot(lab: Arc<Lab>) {
    let mut pod = shell("web", FOREVER);
    let talks = "n=0; while [ $n -lt 20000 ]; do echo line $n; n=$((n+1)); done";
    pod["spec"]["containers"][0]["readinessProbe"] = json!({
        "exec": {"command": ["sh", "-c", talks]}, "timeoutSeconds": 15, "failureThreshold": 1});
    lab.feed.create(pod);
    lab.feed.until_ready("web").await;
    let failed = |e: &k8s_openapi::api::core::v1::Event| e.reason.as_deref() == Some("Unhealthy");
    assert!(!lab.feed.lock().events.iter().any(failed));
}

async fn a_command_that_takes_too_long_is_ended(lab: Arc<Lab>) {
    let mut pod = shell("web", FOREVER);
    pod["spec"]["containers"][0]["readinessProbe"] = json!({
        "exec": {"command": ["sleep", "4321"]}, "timeoutSeconds": 1, "periodSeconds": 60});
    lab.feed.create(pod);
    let told = "Readiness probe failed: command timed out: \"sleep 4321\" timed out after 1s";
    lab.feed.until_event("Unhealthy", told).await;
    let counts =
        "n=0; for f in /proc/[0-9]*/cmdline; do grep -q 4321 $f && n=$((n+1)); done; echo $n";
    // The shell that asks has the number in its own command line.
    lab.until_output("web", counts, "1").await;
}
