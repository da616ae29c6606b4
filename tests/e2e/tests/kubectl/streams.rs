//! What users stream: logs, exec, attach, cp, port-forward, debug.

use crate::{SLEEPER, WEB};
use e2e::{Check, Shell};

pub const ALL: &[Check] = &[
    ("logs", logs),
    ("logs-previous", logs_previous),
    ("exec", exec),
    ("cp", cp),
    ("attach", attach),
    ("port-forward", port_forward),
    ("debug", debug),
];

fn logs(s: &Shell) {
    s.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: log, labels: {app: log}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: init, image: busybox, command: [echo, weigh anchor]}
  containers:
  - {name: one, image: busybox, command: [sh, -c, 'for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2; while test ! -e /tmp/go; do sleep 0.1; done; echo last; sleep 1000']}
  - {name: two, image: busybox, command: [sh, -c, 'echo second; sleep 1000']}
",
    );
    s.ok("kubectl wait --for=condition=Ready pod/log --timeout=30s");
    s.until("kubectl logs log -c one | wc -l", "6");
    s.is("kubectl logs log -c one", "line 1\nline 2\nline 3\nline 4\nline 5\noops");
    s.tells(
        "kubectl logs log 2>&1",
        &["Defaulted container \"one\" out of: one, two, init (init)"],
    );
    s.is("kubectl logs log -c one --tail=2", "line 5\noops");
    s.is("kubectl logs log -c one --tail=0", "");
    s.is("kubectl logs log -c init", "weigh anchor");
    s.is("kubectl logs log -c one --limit-bytes=6", "line 1");
    s.is("kubectl logs log -c one --since=1h | wc -l", "6");
    s.is("kubectl logs log -c one --since-time=2100-01-01T00:00:00Z", "");
    let stamped = s.ok("kubectl logs log -c one --timestamps --tail=1");
    assert!(stamped.starts_with("20") && stamped.contains("Z oops"), "{stamped}");
    s.until(
        "kubectl logs log --all-containers | sort | tr '\\n' ' '",
        "line 1 line 2 line 3 line 4 line 5 oops second weigh anchor",
    );
    s.is("kubectl logs -l app=log -c two --prefix", "[pod/log/two] second");
    let follow = s.spawn("kubectl logs -f log -c one --tail=1");
    follow.wait_for("oops");
    s.ok("kubectl exec log -c one -- touch /tmp/go");
    follow.wait_for("last");
    s.fails("kubectl logs log -c three", &["container three is not valid for pod log"]);
    s.fails("kubectl logs none", &["pods \"none\" not found"]);
    s.fails(
        "kubectl logs log -c one --previous",
        &["previous terminated container \"one\" in pod \"log\" not found"],
    );
    // Following ends with the container.
    let mut follow = s.spawn("kubectl logs -f log -c two");
    follow.wait_for("second");
    s.ok("kubectl delete pod log");
    assert_eq!(follow.end(), 0, "{}", follow.told());
    s.apply(WEB);
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.tells("kubectl logs deploy/web 2>&1", &["Found 2 pods, using pod/web-"]);
    s.ok("kubectl logs svc/web");
}

fn logs_previous(s: &Shell) {
    s.apply(
        &SLEEPER
            .replace(
                "[sleep, '1000']",
                "[sh, -c, 'echo run; test -e /count/n && sleep 1000; touch /count/n; exit 3']",
            )
            .replace("  containers:", "  volumes: [{name: count, emptyDir: {}}]\n  containers:")
            .replace(
                "- {name: main,",
                "- {name: main, volumeMounts: [{name: count, mountPath: /count}],",
            ),
    );
    s.until("kubectl get pod sleeper -o jsonpath='{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running}' | cut -c1-3", "1 {");
    s.is("kubectl get pod sleeper -o jsonpath='{.status.containerStatuses[0].lastState.terminated.exitCode} {.status.containerStatuses[0].lastState.terminated.reason}'", "3 Error");
    s.is("kubectl logs sleeper --previous", "run");
    s.is("kubectl logs sleeper", "run");
}

fn exec(s: &Shell) {
    s.apply(&SLEEPER.replace(
        "  - {name: main,",
        "  - {name: side, image: busybox, command: [sleep, '1000']}\n  - {name: main,",
    ));
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.is("kubectl exec sleeper -c main -- echo ahoy", "ahoy");
    s.is("kubectl exec sleeper -c main -- sh -c 'echo $FLAG; hostname'", "striped\nsleeper");
    let told = s.sh("kubectl exec sleeper -c main -- sh -c 'echo out; echo err >&2; exit 42'");
    assert_eq!((told.code, told.out.as_str()), (42, "out\n"), "{told:#?}");
    assert!(
        told.err.contains("err\n") && told.err.contains("command terminated with exit code 42"),
        "{told:#?}"
    );
    let told = s.pipe("kubectl exec -i sleeper -c main -- wc -c", &"x".repeat(300_000));
    assert_eq!(told.out.trim(), "300000", "{told:#?}");
    let told = s.ok("kubectl exec sleeper -c main -- sh -c 'head -c 3000000 /dev/zero' | wc -c");
    assert_eq!(told.trim(), "3000000");
    s.is("echo 'echo from stdin; exit' | kubectl exec -i sleeper -c side -- sh", "from stdin");
    // On a terminal, with its size, which may come after the session.
    let told = s.sh("script -qec \"stty rows 33 cols 101; kubectl exec -it sleeper -c main -- sh -c 'tty; until stty size | grep 33; do sleep 0.1; done; exit 5'\" /dev/null");
    assert!(told.out.contains("/dev/pts/") && told.out.contains("33 101"), "{told:#?}");
    assert_eq!(told.code, 5, "{told:#?}");
    s.fails("kubectl exec sleeper -c main -- /no/such", &["/no/such"]);
    s.fails("kubectl exec sleeper -c none -- true", &["container none"]);
    s.fails("kubectl exec none -- true", &["pods \"none\" not found"]);
    s.tells("kubectl exec sleeper -- true 2>&1", &["Defaulted container \"side\""]);
    // A session ends when its client goes; what it ran does not stay behind.
    let going = s.spawn("kubectl exec sleeper -c main -- sh -c 'echo begun; exec sleep 765'");
    going.wait_for("begun");
    drop(going);
    s.is("kubectl exec deploy/none -- true 2>&1 | grep -c 'not found'", "1");
}

fn cp(s: &Shell) {
    s.apply(SLEEPER);
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.ok("head -c 2000000 /dev/urandom > chart; kubectl cp chart sleeper:/tmp/chart");
    s.is(
        "kubectl exec sleeper -- sha256sum /tmp/chart | cut -c1-64",
        &s.word("sha256sum chart | cut -c1-64"),
    );
    s.ok("kubectl cp sleeper:/tmp/chart back 2>/dev/null && cmp chart back");
    s.ok("mkdir -p hold/deep; echo a > hold/a; echo b > hold/deep/b; kubectl cp hold sleeper:/tmp");
    s.is("kubectl exec sleeper -- cat /tmp/hold/a /tmp/hold/deep/b", "a\nb");
    s.ok("kubectl cp sleeper:tmp/hold out 2>/dev/null && diff -r hold out");
    // The client itself leaves with 0 here, whatever the server says.
    s.tells("kubectl cp sleeper:/none x 2>&1", &["/none: No such file or directory"]);
}

fn attach(s: &Shell) {
    s.apply(&SLEEPER.replace(
        "command: [sleep, '1000']",
        "stdin: true, command: [sh, -c, 'while read l; do echo got $l; done']",
    ));
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    let mut attached = s.spawn("kubectl attach -i sleeper");
    attached.say("rope");
    attached.wait_for("got rope");
    let listening = s.spawn("kubectl attach sleeper");
    listening.wait_for("see a command prompt");
    attached.say("sail");
    attached.wait_for("got sail");
    drop(attached);
    drop(listening);
    s.is("kubectl logs sleeper", "got rope\ngot sail");
    s.is("kubectl get pod sleeper -o jsonpath='{.status.containerStatuses[0].restartCount}'", "0");
}

fn port_forward(s: &Shell) {
    s.apply(WEB);
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    let pod = s.word("kubectl get pods -o name | head -1");
    for (what, port) in [(pod.as_str(), "8080"), ("svc/web", "80"), ("deploy/web", "http")] {
        let forward = s.spawn(&format!("kubectl port-forward {what} :{port}"));
        let told = forward.wait_for("Forwarding from 127.0.0.1");
        let local = told.split("127.0.0.1:").nth(1).unwrap().split(' ').next().unwrap();
        for _ in 0..3 {
            s.is(&format!("curl -sS http://127.0.0.1:{local}"), "one");
        }
    }
    // Two ports at a time, and one that nobody listens on.
    let forward = s.spawn(&format!("kubectl port-forward {pod} 7001:8080 7002:81"));
    forward.wait_for("127.0.0.1:7002");
    s.fails("curl -sS -m 5 http://127.0.0.1:7002", &[]);
    forward.wait_for("81");
    s.fails("kubectl port-forward svc/web :99", &["does not have a service port 99"]);
    s.fails("kubectl port-forward pod/none :80", &["pods \"none\" not found"]);
}

fn debug(s: &Shell) {
    s.apply(SLEEPER);
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.ok("kubectl debug sleeper --copy-to=copy --container=main --image=busybox -- sh -c 'echo copied; sleep 1000'");
    s.ok("kubectl wait --for=condition=Ready pod/copy --timeout=30s");
    s.until("kubectl logs copy", "copied");
    s.is("kubectl get pod copy -o jsonpath='{.metadata.labels}'", "");
    // A container that joins a running pod, at a terminal, and sees the processes of its target.
    let told = s.sh("script -qec \"kubectl debug -it sleeper --image=busybox --container=peek --target=main --profile=general -- sh -c 'hostname; cat /proc/1/cmdline | tr \\\\\\\\000 :; sleep 0.5; exit 3'\" /dev/null");
    assert!(told.out.contains("sleeper") && told.out.contains("sleep:1000"), "{told:#?}");
    s.until(
        "kubectl get pod sleeper -o jsonpath='{.status.ephemeralContainerStatuses[0].name} {.status.ephemeralContainerStatuses[0].state.terminated.exitCode}'",
        "peek 3",
    );
    s.tells("kubectl logs sleeper -c peek", &["sleeper"]);
    // Without a target it has processes of its own, and it outlives nobody's attention.
    s.ok("kubectl debug sleeper --image=busybox --container=stay -- sh -c 'echo stayed; exec sleep 999'");
    s.until("kubectl logs sleeper -c stay", "stayed");
    s.is("kubectl exec sleeper -c stay -- cat /proc/1/cmdline | tr -d s", "leep\0999\0");
    s.is("kubectl exec sleeper -c stay -- hostname", "sleeper");
    s.is("kubectl get pod sleeper -o jsonpath='{.status.containerStatuses[0].restartCount} {.status.phase}'", "0 Running");
    s.tells("kubectl describe pod sleeper", &["Ephemeral Containers:", "stay:", "peek:"]);
    s.fails(
        "kubectl debug sleeper --image=busybox --container=peek -- true",
        &["existing ephemeral containers \"peek\" may not be changed"],
    );
    s.fails(
        "kubectl debug sleeper --image=busybox --container=lost --target=none -- true",
        &["spec.ephemeralContainers[2].targetContainerName: Not found: \"none\""],
    );
}
