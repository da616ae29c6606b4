//! Deployments over time: scale and rollout.

use crate::WEB;
use e2e::{Check, Shell};

pub const ALL: &[Check] = &[
    ("scale", scale),
    ("rollout", rollout),
    ("rollout-stuck", rollout_stuck),
    ("rollout-without-a-gap", rollout_without_a_gap),
    ("heal", heal),
];

fn scale(s: &Shell) {
    s.apply(WEB);
    s.is("kubectl scale deploy web --replicas=3", "deployment.apps/web scaled");
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.is("kubectl get deploy web -o jsonpath='{.status.readyReplicas}'", "3");
    s.is("kubectl get pods -o name | wc -l", "3");
    s.fails(
        "kubectl scale deploy web --current-replicas=7 --replicas=1",
        &["Expected replicas to be 7, was 3"],
    );
    s.ok("kubectl scale deploy/web --current-replicas=3 --replicas=1 --timeout=30s");
    s.until("kubectl get pods -o name | wc -l", "1");
    s.ok("kubectl scale deploy web --replicas=0");
    s.until("kubectl get pods -o name | wc -l", "0");
    s.until("kubectl get endpointslice -l kubernetes.io/service-name=web -o jsonpath='{.items[0].endpoints[*].addresses}'", "");
    s.ok("kubectl get deploy web --subresource=scale -o jsonpath='{.status.selector}' | grep app=web");
    s.fails("kubectl scale deploy web --replicas=-1", &["replicas"]);
    s.fails("kubectl scale deploy none --replicas=1", &["not found"]);
}

fn rollout(s: &Shell) {
    s.apply(WEB);
    s.tells(
        "kubectl rollout status deploy/web --timeout=60s",
        &["deployment \"web\" successfully rolled out"],
    );
    s.ok("kubectl annotate deploy web kubernetes.io/change-cause='first voyage'");
    s.ok("kubectl set env deploy/web VERSION=two");
    s.tells("kubectl rollout status deploy/web --timeout=60s", &["successfully rolled out"]);
    s.ok("kubectl annotate deploy web --overwrite kubernetes.io/change-cause='second voyage'");
    s.until(
        "kubectl rollout history deploy/web | grep voyage | tr -s ' '",
        "1 first voyage\n2 second voyage",
    );
    s.tells("kubectl rollout history deploy/web --revision=1", &["VERSION:\tone"]);
    s.ok("kubectl run ask --image=busybox -- sleep 1000 && kubectl wait --for=condition=Ready pod/ask --timeout=30s");
    // The machine learns of those that end and begin a moment later.
    let ask = "kubectl exec ask -- wget -qO- http://web";
    s.until(ask, "two");
    s.is("kubectl rollout undo deploy/web", "deployment.apps/web rolled back");
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.until(ask, "one");
    s.is("kubectl get rs -o jsonpath='{range .items[*]}{.spec.replicas} {end}' | tr ' ' '\\n' | sort | tr -d '\\n'", "02");
    s.ok("kubectl rollout undo deploy/web --to-revision=2");
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.until(ask, "two");
    s.fails(
        "kubectl rollout undo deploy/web --to-revision=99",
        &["unable to find specified revision 99"],
    );
    // A restart makes new pods of the same template.
    let before = s.word("kubectl get pods -l app=web -o name | sort");
    s.is("kubectl rollout restart deploy/web", "deployment.apps/web restarted");
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.until("kubectl get pods -l app=web -o name | wc -l", "2");
    let after = s.word("kubectl get pods -l app=web -o name | sort");
    assert!(after.lines().all(|pod| !before.contains(pod)), "{before} {after}");
    // Paused, nothing moves; resumed, all changes go out as one.
    s.is("kubectl rollout pause deploy/web", "deployment.apps/web paused");
    s.ok("kubectl set env deploy/web VERSION=three");
    s.until("kubectl get deploy web -o jsonpath='{.status.conditions[?(@.type==\"Progressing\")].reason}'", "DeploymentPaused");
    s.is("kubectl get pods -l app=web -o name | sort", &after);
    s.fails("kubectl rollout pause deploy/web", &["already paused"]);
    s.is("kubectl rollout resume deploy/web", "deployment.apps/web resumed");
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.until(ask, "three");
}

fn rollout_stuck(s: &Shell) {
    s.apply(WEB);
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.ok("kubectl patch deploy web -p '{\"spec\":{\"progressDeadlineSeconds\":2}}'");
    s.ok("kubectl set image deploy/web web=busybox:sunk");
    s.fails(
        "kubectl rollout status deploy/web --timeout=30s",
        &["deployment \"web\" exceeded its progress deadline"],
    );
    s.is("kubectl get deploy web -o jsonpath='{.status.availableReplicas}'", "2");
    s.until("kubectl get pods -l app=web | grep -c -E 'ErrImagePull|ImagePullBackOff'", "1");
    s.tells(
        "kubectl get events --field-selector reason=Failed",
        &["busybox:sunk", "dhow image load"],
    );
    s.ok("kubectl rollout undo deploy/web");
    s.ok("kubectl rollout status deploy/web --timeout=30s");
}

fn rollout_without_a_gap(s: &Shell) {
    let graceful = WEB.replace(
        "exec httpd -f -p 8080 -h /www2",
        "httpd -p 8080 -h /www2; trap \"sleep 5; exit 0\" TERM; while :; do sleep 0.1; done",
    );
    s.apply(&graceful.replace("GracePeriodSeconds: 1", "GracePeriodSeconds: 10"));
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    let ip = s.word("kubectl get svc web -o jsonpath='{.spec.clusterIP}'");
    s.until(&format!("curl -sS -m 5 http://{ip}"), "one");
    let asking = s.spawn(&format!(
        "echo begun; while test ! -e stop; do curl -sS -m 5 http://{ip} || echo FAILED; done; echo done"
    ));
    asking.wait_for("one\none\none");
    s.ok(
        "kubectl set env deploy/web VERSION=two && kubectl rollout status deploy/web --timeout=60s",
    );
    asking.wait_for("two");
    s.until("kubectl get pods -l app=web -o name | wc -l", "2");
    s.file("stop", "");
    let told = asking.wait_for("done");
    assert!(!told.contains("FAILED"), "{told}");
}

fn heal(s: &Shell) {
    // A process 1 heeds no signal that it did not ask for, so this one ends by itself.
    let mortal = "httpd -p 8080 -h /www2; while test ! -e /tmp/sink; do sleep 0.2; done; exit 1";
    s.apply(&WEB.replace("exec httpd -f -p 8080 -h /www2", mortal));
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    let pod = s.word("kubectl get pods -o jsonpath='{.items[0].metadata.name}'");
    // A container that ends is started again, in the same pod.
    s.ok(&format!("kubectl exec {pod} -- touch /tmp/sink"));
    s.until(&format!("kubectl get pod {pod} -o jsonpath='{{.status.containerStatuses[0].restartCount}} {{.status.containerStatuses[0].ready}}'"), "1 true");
    // A pod that is deleted is replaced.
    s.ok(&format!("kubectl delete pod {pod}"));
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.until("kubectl get deploy web -o jsonpath='{.status.readyReplicas}'", "2");
    s.fails(&format!("kubectl get pod {pod}"), &["not found"]);
    // A pod whose label is taken away is let go and replaced.
    let pod = s.word("kubectl get pods -o jsonpath='{.items[0].metadata.name}'");
    s.ok(&format!("kubectl label pod {pod} app-"));
    s.until("kubectl get pods -o name | wc -l", "3");
    s.until(&format!("kubectl get pod {pod} -o jsonpath='{{.metadata.ownerReferences}}'"), "");
}
