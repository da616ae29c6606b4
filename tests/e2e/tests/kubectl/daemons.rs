//! Daemon sets, replication controllers, and what a dump of the cluster tells.

use e2e::{Check, Shell};

pub const ALL: &[Check] =
    &[("daemonset", daemonset), ("replication-controller", controller), ("dump", dump)];

const DAEMONS: &str = "\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: log}
spec:
  selector: {matchLabels: {app: log}}
  template:
    metadata: {labels: {app: log}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: busybox, command: [sleep, '1000']}
";

fn daemonset(s: &Shell) {
    s.apply(DAEMONS);
    s.ok("kubectl rollout status ds/log --timeout=60s");
    s.is(
        "kubectl get ds log -o jsonpath='{.status.desiredNumberScheduled} {.status.numberReady} {.status.updatedNumberScheduled}'",
        "1 1 1",
    );
    s.tells("kubectl get ds", &["DESIRED", "UP-TO-DATE", "NODE SELECTOR"]);
    let first = s.word("kubectl get pod -l app=log -o jsonpath='{.items[0].metadata.name}'");
    s.is("kubectl get pod -l app=log -o jsonpath='{.items[*].spec.nodeName}'", "n1");
    s.ok(&format!("kubectl delete pod {first}"));
    s.until("kubectl get ds log -o jsonpath='{.status.numberReady}'", "1");
    // From one template to the next, and back.
    s.ok("kubectl set env ds/log SAIL=up && kubectl rollout status ds/log --timeout=60s");
    s.is("kubectl exec ds/log -- sh -c 'echo $SAIL'", "up");
    s.tells("kubectl rollout history ds/log", &["REVISION", "1", "2"]);
    s.ok("kubectl rollout undo ds/log && kubectl rollout status ds/log --timeout=60s");
    s.until("kubectl exec ds/log -- sh -c 'echo x$SAIL'", "x");
    s.is("kubectl get controllerrevision -o jsonpath='{.items[*].revision}' | tr ' ' '\\n' | sort | tr '\\n' ' '", "2 3");
    // Only where it fits.
    s.ok("kubectl patch ds log -p '{\"spec\":{\"template\":{\"spec\":{\"nodeSelector\":{\"deck\":\"none\"}}}}}'");
    s.until("kubectl get ds log -o jsonpath='{.status.desiredNumberScheduled}'; kubectl get pod -l app=log -o name", "0");
    s.tells("kubectl describe ds log", &["SuccessfulCreate", "SuccessfulDelete"]);
    s.refused(
        &DAEMONS.replace(
            "spec:\n  selector: {matchLabels: {app: log}}",
            "spec:\n  selector: {matchLabels: {app: other}}",
        ),
        &["`selector` does not match template `labels`"],
    );
    s.ok("kubectl delete ds log --timeout=30s");
}

fn controller(s: &Shell) {
    let manifest = DAEMONS
        .replace("apps/v1", "v1")
        .replace("DaemonSet", "ReplicationController")
        .replace("  selector: {matchLabels: {app: log}}\n", "  replicas: 2\n");
    s.apply(&manifest);
    s.until("kubectl get rc log -o jsonpath='{.status.readyReplicas}'", "2");
    s.is("kubectl get rc log -o jsonpath='{.spec.selector}'", "{\"app\":\"log\"}");
    s.ok("kubectl scale rc log --replicas=1");
    s.until("kubectl get rc log -o jsonpath='{.status.replicas}'", "1");
    s.tells("kubectl get rc log -o wide", &["DESIRED", "app=log", "busybox"]);
    s.ok("kubectl delete rc log --timeout=30s");
    s.until("kubectl get pod -l app=log -o name", "");
}

fn dump(s: &Shell) {
    s.apply(DAEMONS);
    s.ok("kubectl rollout status ds/log --timeout=60s");
    let pod = s.word("kubectl get pod -l app=log -o jsonpath='{.items[0].metadata.name}'");
    s.ok("kubectl cluster-info dump --namespaces $NS --output-directory=dump");
    for file in ["nodes.json", "$NS/daemonsets.json", "$NS/pods.json", "$NS/events.json"] {
        s.ok(&format!("test -s dump/{file}"));
    }
    s.ok(&format!("test -e dump/$NS/{pod}/logs.txt"));
    s.tells("kubectl cluster-info dump -A | head -c 100000", &["NodeList", "DaemonSetList"]);
}
