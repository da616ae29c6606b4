//! What users get wrong, and what they are told.

use crate::{SLEEPER, WEB};
use e2e::{Check, Shell};

pub const ALL: &[Check] = &[
    ("malformed", malformed),
    ("immutable", immutable),
    ("image-missing", image_missing),
    ("cannot-start", cannot_start),
    ("settings-missing", settings_missing),
];

fn malformed(s: &Shell) {
    let (deployment, service) = WEB.split_once("---\n").unwrap();
    s.refused("apiVersion: v1\nkind: ConfigMap\n metadata: x\n", &["yaml"]);
    s.refused("kind: ConfigMap\nmetadata: {name: x}\n", &["apiVersion not set"]);
    s.refused(
        "apiVersion: v1\nkind: Raft\nmetadata: {name: x}\n",
        &["no matches for kind \"Raft\" in version \"v1\""],
    );
    s.refused(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: b}\nsails: 3\n",
        &["strict decoding error: unknown field \"sails\""],
    );
    s.refused(
        &SLEEPER.replace("image: busybox", "image: busybox, imag: x"),
        &["unknown field \"spec.containers[0].imag\""],
    );
    s.refused(&deployment.replace("replicas: 2", "replicas: two"), &["spec.replicas"]);
    s.refused(
        &deployment.replace("replicas: 2", "replicas: -2"),
        &["spec.replicas: Invalid value: -2: must be greater than or equal to 0"],
    );
    s.refused(
        &service.replace("port: 80,", "port: 80000,"),
        &["spec.ports[0].port: Invalid value: 80000: must be between 1 and 65535"],
    );
    s.refused(
        &SLEEPER.replace("name: sleeper", "name: Sleeper!"),
        &["metadata.name: Invalid value: \"Sleeper!\"", "RFC 1123"],
    );
    s.refused(
        &SLEEPER.replace("name: main", "name: Main_"),
        &["spec.containers[0].name: Invalid value: \"Main_\""],
    );
    s.refused(
        &SLEEPER.replace("image: busybox, ", ""),
        &["spec.containers[0].image: Required value"],
    );
    s.refused(
        &SLEEPER.replace("  containers:\n", "  restartPolicy: Sometimes\n  containers:\n"),
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\"",
            "\"Always\", \"OnFailure\", \"Never\"",
        ],
    );
    s.refused(
        &SLEEPER.replace("command:", "resources: {limits: {memory: lots}}, command:"),
        &["quantities must match the regular expression"],
    );
    s.refused(
        &SLEEPER.replace(
            "command:",
            "resources: {limits: {memory: 1Mi}, requests: {memory: 2Mi}}, command:",
        ),
        &["must be less than or equal to memory limit"],
    );
    s.refused(
        &SLEEPER.replace("command:", "volumeMounts: [{name: hold, mountPath: /h}], command:"),
        &["spec.containers[0].volumeMounts[0].name: Not found: \"hold\""],
    );
    s.refused(
        &deployment.replace("matchLabels: {app: web}", "matchLabels: {app: raft}"),
        &["`selector` does not match template `labels`"],
    );
    s.refused(
        &SLEEPER.replace("labels: {app: sleeper}", "labels: {app: 'a b'}"),
        &["metadata.labels: Invalid value: \"a b\""],
    );
    s.refused(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: nowhere}\n",
        &["namespaces \"nowhere\" not found"],
    );
    s.refused("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: 5}\n", &["data"]);
    s.refused(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ndata: {a: '%%%'}\n",
        &["illegal base64 data"],
    );
    // Two causes, both told.
    let both = SLEEPER.replace("name: main", "name: Main_").replace("image: busybox", "image: ''");
    s.refused(&both, &["spec.containers[0].name", "spec.containers[0].image"]);
    // The loose ways are there too.
    let loose = s.pipe(
        "kubectl apply --validate=warn -f - 2>&1",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: loose}\nsails: 3\n",
    );
    assert!(loose.code == 0 && loose.out.contains("unknown field \"sails\""), "{loose:#?}");
    let loose = s.pipe(
        "kubectl apply --validate=ignore -f - 2>&1",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: loose2}\nsails: 3\n",
    );
    assert!(loose.code == 0 && !loose.out.contains("sails"), "{loose:#?}");
    // Nothing half made.
    s.is("kubectl get pods,deploy,svc,secret -o name", "");
}

fn immutable(s: &Shell) {
    s.apply(&WEB.replace("replicas: 2", "replicas: 0"));
    s.refused(
        &WEB.replace("app: web", "app: raft"),
        &["spec.selector: Invalid value", "field is immutable"],
    );
    let ip = s.word("kubectl get svc web -o jsonpath='{.spec.clusterIP}'");
    s.fails(
        "kubectl patch svc web -p '{\"spec\":{\"clusterIP\":\"10.96.200.200\"}}'",
        &["spec.clusterIPs[0]: Invalid value", "may not change once set"],
    );
    s.is("kubectl get svc web -o jsonpath='{.spec.clusterIP}'", &ip);
    s.fails(
        &format!("kubectl create service clusterip two --tcp=80 --clusterip={ip}"),
        &["provided IP is already allocated"],
    );
    s.fails(
        "kubectl create service clusterip two --tcp=80 --clusterip=10.9.9.9",
        &["the range of valid IPs is 10.96.0.0/16"],
    );
    s.ok("kubectl create service nodeport np --tcp=80 --node-port=31234");
    s.fails(
        "kubectl create service nodeport np2 --tcp=80 --node-port=31234",
        &["provided port is already allocated"],
    );
    s.fails(
        "kubectl create service nodeport np2 --tcp=80 --node-port=80",
        &["provided port is not in the valid range"],
    );
    s.apply(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: fixed}\ndata: {a: b}\nimmutable: true\n",
    );
    s.fails(
        "kubectl patch cm fixed -p '{\"data\":{\"a\":\"c\"}}'",
        &["field is immutable when `immutable` is set"],
    );
    s.ok("kubectl create secret generic typed --type=a/b");
    s.fails("kubectl patch secret typed -p '{\"type\":\"c/d\"}'", &["field is immutable"]);
    s.fails(
        "kubectl patch svc web --type=merge -p '{\"metadata\":{\"uid\":\"x\"}}'",
        &["Precondition failed: UID"],
    );
    s.fails(
        "kubectl patch svc web --type=merge -p '{\"metadata\":{\"name\":\"other\"}}'",
        &["the name of the object (other) does not match the name on the URL (web)"],
    );
}

fn image_missing(s: &Shell) {
    s.ok("kubectl run lost --image=atlantis:v1");
    s.until("kubectl get pod lost -o jsonpath='{.status.phase} {.status.containerStatuses[0].state.waiting.reason}' | sed s/ImagePullBackOff/ErrImagePull/", "Pending ErrImagePull");
    s.tells("kubectl describe pod lost", &["atlantis:v1", "Failed"]);
    s.fails("kubectl logs lost", &["is waiting to start: ", "image"]);
    s.ok("kubectl run never --image=atlantis:v1 --image-pull-policy=Never");
    s.until(
        "kubectl get pod never -o jsonpath='{.status.containerStatuses[0].state.waiting.reason}'",
        "ErrImageNeverPull",
    );
    s.fails("kubectl logs never", &["is waiting to start: ErrImageNeverPull"]);
    // Loaded late, it starts.
    s.ok("dhow image tag busybox atlantis:v1 && kubectl patch pod never -p '{\"metadata\":{\"labels\":{\"x\":\"y\"}}}'");
    s.ok("kubectl wait --for=jsonpath='{.status.containerStatuses[0].imageID}' pod/lost --timeout=30s");
    s.ok("kubectl delete pod lost never --now && dhow image rm atlantis:v1");
}

fn cannot_start(s: &Shell) {
    let sleeper = |name: &str, command: &str| {
        SLEEPER
            .replace("name: sleeper", &format!("name: {name}"))
            .replace("[sleep, '1000']", command)
    };
    s.apply(&sleeper("nofile", "[/no/such/file]"));
    s.until("kubectl get pod nofile -o jsonpath='{.status.containerStatuses[0].restartCount}' | sed s/[1-9]/n/", "n");
    let told = s.ok("kubectl describe pod nofile");
    assert!(told.contains("/no/such/file") && told.contains("no such file"), "{told}");
    s.is("kubectl get pod nofile -o jsonpath='{.status.containerStatuses[0].lastState.terminated.exitCode}'", "128");
    s.is("kubectl get pod nofile -o jsonpath='{.status.containerStatuses[0].lastState.terminated.reason}'", "StartError");
    s.apply(&sleeper("crash", "[sh, -c, 'echo leak; exit 9']"));
    s.until(
        "kubectl get pod crash -o jsonpath='{.status.containerStatuses[0].state.waiting.reason}'",
        "CrashLoopBackOff",
    );
    s.tells("kubectl get pod crash", &["CrashLoopBackOff"]);
    s.tells("kubectl describe pod crash", &["Exit Code:    9", "BackOff"]);
    s.tells("kubectl logs crash", &["leak"]);
    s.apply(
        &sleeper("never", "[sh, -c, 'exit 4']")
            .replace("  containers:", "  restartPolicy: Never\n  containers:"),
    );
    s.ok("kubectl wait --for=jsonpath='{.status.phase}'=Failed pod/never --timeout=30s");
    s.tells("kubectl get pod never", &["0/1     Error"]);
    s.apply(
        &sleeper("done", "['true']")
            .replace("  containers:", "  restartPolicy: OnFailure\n  containers:"),
    );
    s.ok("kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/done --timeout=30s");
    s.tells("kubectl get pod done", &["0/1     Completed"]);
    s.apply(&sleeper("dir", "[sleep, '1000'], workingDir: /etc/passwd"));
    s.until("kubectl describe pod dir | grep -c -m1 /etc/passwd", "1");
    s.apply(&sleeper("big", "[sleep, '1000'], resources: {requests: {memory: 900Ti}}"));
    s.until("kubectl get pod big -o jsonpath='{.status.conditions[?(@.type==\"PodScheduled\")].message}' | cut -d. -f1", "0/1 nodes are available: 1 Insufficient memory");
    s.apply(&sleeper(
        "oom",
        "[sh, -c, 'a=x; while :; do a=$a$a$a; done'], resources: {limits: {memory: 16Mi}}",
    ));
    s.until("kubectl get pod oom -o jsonpath='{.status.containerStatuses[0].lastState.terminated.reason}'", "OOMKilled");
}

fn settings_missing(s: &Shell) {
    s.apply(&SLEEPER.replace("command:", "envFrom: [{configMapRef: {name: tide}}], command:"));
    s.until(
        "kubectl get pod sleeper -o jsonpath='{.status.containerStatuses[0].state.waiting.reason}'",
        "CreateContainerConfigError",
    );
    // The event comes right behind the status.
    let why = "configmap \"tide\" not found";
    s.until(&format!("kubectl describe pod sleeper | grep -o -m1 '{why}'"), why);
    s.ok("kubectl create configmap tide --from-literal=HIGH=12");
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.is("kubectl exec sleeper -- sh -c 'echo $HIGH'", "12");
    s.apply(
        &SLEEPER
            .replace("name: sleeper", "name: hold")
            .replace(
                "  containers:",
                "  volumes: [{name: v, secret: {secretName: gold}}]\n  containers:",
            )
            .replace("command:", "volumeMounts: [{name: v, mountPath: /gold}], command:"),
    );
    s.until("kubectl describe pod hold | grep -c -m1 'secret \"gold\" not found'", "1");
    s.is("kubectl get pod hold -o jsonpath='{.status.phase}'", "Pending");
    s.ok("kubectl create secret generic gold --from-literal=bar=heavy");
    s.ok("kubectl wait --for=condition=Ready pod/hold --timeout=60s");
    s.is("kubectl exec hold -- cat /gold/bar", "heavy");
    // A changed setting arrives.
    s.ok("kubectl create secret generic gold --from-literal=bar=light --dry-run=client -o yaml | kubectl apply -f - 2>/dev/null");
    s.until("kubectl exec hold -- cat /gold/bar", "light");
}
