//! What lies below objects: resizing, proxies, scales; and writes that make what is not there.

use crate::{SLEEPER, WEB};
use e2e::{Check, Shell};

pub const ALL: &[Check] =
    &[("resize", resize), ("proxy", proxy), ("apply-scale", apply_scale), ("put", put)];

fn resize(s: &Shell) {
    s.apply(&SLEEPER.replace(
        "command: [sleep, '1000']",
        "resources: {requests: {cpu: 50m}, limits: {cpu: 100m, memory: 32Mi}}, command: [sleep, '1000']",
    ));
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    let patch = |resources: &str| {
        format!(
            "kubectl patch pod sleeper --subresource resize -p '{{\"spec\":{{\"containers\":[{{\"name\":\"main\",\"resources\":{resources}}}]}}}}'"
        )
    };
    s.ok(&patch(r#"{"requests":{"cpu":"60m"},"limits":{"cpu":"200m","memory":"64Mi"}}"#));
    s.until(
        "kubectl get pod sleeper -o jsonpath='{.status.containerStatuses[0].resources.limits.memory} {.status.containerStatuses[0].allocatedResources.cpu} {.status.containerStatuses[0].restartCount}'",
        "64Mi 60m 0",
    );
    s.is(
        "kubectl exec sleeper -- sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max'",
        "67108864",
    );
    s.fails(
        &patch(r#"{"limits":{"cpu":"200m","memory":null}}"#),
        &["spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"],
    );
    s.ok(&patch(r#"{"requests":{"cpu":"900"},"limits":{"cpu":"900"}}"#));
    s.until(
        "kubectl get pod sleeper -o jsonpath='{.status.conditions[?(@.type==\"PodResizePending\")].reason}'",
        "Infeasible",
    );
}

fn proxy(s: &Shell) {
    s.apply(WEB);
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    for what in ["services/web", "services/web:http", "services/web:80", "services/http:web:80"] {
        s.is(&format!("kubectl get --raw /api/v1/namespaces/$NS/{what}/proxy/index.html"), "one");
    }
    let pod = s.word("kubectl get pods -o jsonpath='{.items[0].metadata.name}'");
    for what in [pod.clone(), format!("{pod}:8080"), format!("{pod}:http")] {
        s.is(&format!("kubectl get --raw /api/v1/namespaces/$NS/pods/{what}/proxy/"), "one");
    }
    // The way of a browser.
    let proxy = s.spawn("kubectl proxy --port=0");
    let told = proxy.wait_for("Starting to serve on 127.0.0.1:");
    let port = told.split("127.0.0.1:").nth(1).unwrap().split_whitespace().next().unwrap();
    let base = format!("http://127.0.0.1:{port}/api/v1/namespaces/$NS/services/web/proxy");
    s.is(&format!("curl -sS -L {base}"), "one");
    s.is(&format!("curl -sS -o /dev/null -w '%{{http_code}}' {base}/none"), "404");
    s.is(
        &format!("curl -sS -o /dev/null -w '%{{http_code}}' -X POST -d x=1 {base}/index.html"),
        "501",
    );
    s.is("kubectl get --raw /api/v1/nodes/n1/proxy/healthz", "ok");
    s.tells("kubectl get --raw /api/v1/nodes/n1/proxy/pods", &["\"PodList\"", &pod]);
    s.fails("kubectl get --raw /api/v1/nodes/n1/proxy/stats/summary", &["it serves healthz"]);
    s.fails(
        "kubectl get --raw /api/v1/namespaces/$NS/services/web:99/proxy/",
        &["no service port \"99\" found for service \"web\""],
    );
    s.fails("kubectl get --raw /api/v1/namespaces/$NS/pods/none/proxy/", &["\"none\" not found"]);
    s.ok("kubectl scale deploy/web --replicas=0 && kubectl wait --for=delete pod -l app=web --timeout=30s");
    s.fails(
        "kubectl get --raw /api/v1/namespaces/$NS/services/web/proxy/",
        &["no endpoints available for service \"web\""],
    );
}

fn apply_scale(s: &Shell) {
    s.apply(WEB);
    let scale =
        "apiVersion: autoscaling/v1\nkind: Scale\nmetadata: {name: web}\nspec: {replicas: 1}\n";
    let send = "curl -sS --cert-type PEM --cacert ca.pem -E me.pem -X PATCH -H 'Content-Type: application/apply-patch+yaml' --data-binary @scale";
    s.ok("kubectl config view --raw -o jsonpath='{.clusters[0].cluster.certificate-authority-data}' | base64 -d > ca.pem");
    s.ok("kubectl config view --raw -o jsonpath='{.users[0].user.client-certificate-data}' | base64 -d > me.pem; kubectl config view --raw -o jsonpath='{.users[0].user.client-key-data}' | base64 -d >> me.pem");
    s.file("scale", scale);
    let at = "$(kubectl config view -o jsonpath='{.clusters[0].cluster.server}')/apis/apps/v1/namespaces/$NS/deployments/web/scale";
    s.tells(&format!("{send} \"{at}?fieldManager=me\""), &["conflict", ".spec.replicas"]);
    s.tells(
        &format!("{send} \"{at}?fieldManager=me&force=true\""),
        &["\"kind\":\"Scale\"", "\"replicas\":1"],
    );
    s.is("kubectl get deploy web -o jsonpath='{.spec.replicas}'", "1");
}

fn put(s: &Shell) {
    // A replacement makes these kinds where they are missing, and no others.
    s.file("lease", "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: new}, spec: {holderIdentity: me}}");
    s.ok("kubectl create -f lease --dry-run=client -o json > lease.json");
    s.ok("kubectl replace --raw /apis/coordination.k8s.io/v1/namespaces/$NS/leases/new -f lease.json");
    s.is("kubectl get lease new -o jsonpath='{.spec.holderIdentity}'", "me");
    s.file("map", "{apiVersion: v1, kind: ConfigMap, metadata: {name: new}}");
    s.ok("kubectl create -f map --dry-run=client -o json > map.json");
    s.fails(
        "kubectl replace --raw /api/v1/namespaces/$NS/configmaps/new -f map.json",
        &["configmaps \"new\" not found"],
    );
}
