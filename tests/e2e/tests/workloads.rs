//! What pods and deployments do, seen from outside: settings, limits, probes, ends and rollouts.

use e2e::Shell;
use serde_json::Value;

/// A pod of one busybox container. `spec` and `container` are further fields, one a line.
fn pod(name: &str, spec: &str, command: &str, container: &str) -> String {
    let indent = |text: &str, by: usize| {
        let pad = " ".repeat(by);
        text.lines().map(|line| format!("{pad}{line}\n")).collect::<String>()
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 5\n{}  containers:\n  - name: c\n    image: busybox\n    \
         imagePullPolicy: IfNotPresent\n    command: [sh, -c, '{command}']\n{}",
        indent(spec, 2),
        indent(container, 4)
    )
}

/// A shell that runs until it is asked to end.
const STAY: &str = "trap \"exit 0\" TERM; while :; do sleep 0.1; done";

fn status(shell: &Shell, pod: &str) -> Value {
    shell.json(&format!("pod {pod}"))["status"]["containerStatuses"][0].take()
}

fn settings(s: &Shell) {
    s.ok("kubectl create configmap cm --from-literal=a=one --from-literal=b=two");
    s.ok("kubectl create secret generic sec --from-literal=pw=s3cret");
    s.apply(&pod(
        "p",
        "securityContext: {fsGroup: 2000, runAsUser: 1000}\n\
         volumes:\n\
         - {name: cm, configMap: {name: cm, items: [{key: a, path: dir/a, mode: 0400}]}}\n\
         - {name: sec, secret: {secretName: sec, defaultMode: 0440}}\n\
         - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}\n\
         - {name: host, hostPath: {path: /proc/sys/kernel, type: Directory}}\n\
         - name: all\n  projected:\n    sources:\n    \
             - configMap: {name: cm, items: [{key: b, path: b}]}\n    \
             - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}\n    \
             - serviceAccountToken: {path: token, audience: shop}",
        STAY,
        "resources: {limits: {cpu: 200m, memory: 32Mi}}\n\
         env:\n\
         - {name: A, valueFrom: {configMapKeyRef: {name: cm, key: a}}}\n\
         - {name: AFTER, value: \"<$(A)|$$(A)|$(NONE)>\"}\n\
         - {name: PW, valueFrom: {secretKeyRef: {name: sec, key: pw}}}\n\
         - {name: OPTIONAL, valueFrom: {secretKeyRef: {name: none, key: pw, optional: true}}}\n\
         - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}\n\
         - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}\n\
         envFrom:\n\
         - {prefix: CM_, configMapRef: {name: cm}}\n\
         volumeMounts:\n\
         - {name: cm, mountPath: /cm}\n\
         - {name: sec, mountPath: /sec}\n\
         - {name: mem, mountPath: /mem}\n\
         - {name: host, mountPath: /host, readOnly: true}\n\
         - {name: all, mountPath: /all}",
    ));
    s.ok("kubectl wait --for=condition=Ready pod/p --timeout=30s");
    let ip = s.word("kubectl get pod p -o jsonpath={.status.podIP}");
    let env = s.ok("kubectl exec p -- env");
    for line in ["A=one", "AFTER=<one|$(A)|$(NONE)>", "PW=s3cret", "CPU=200", "CM_b=two"] {
        assert!(env.lines().any(|l| l == line), "{line} in {env}");
    }
    assert!(env.lines().any(|l| l == format!("IP={ip}")), "{env}");
    assert!(!env.contains("OPTIONAL="), "{env}");
    s.is("kubectl exec p -- cat /cm/dir/a /sec/pw /all/b", "ones3crettwo");
    s.is("kubectl exec p -- id -G", "0 2000");
    s.is("kubectl exec p -- stat -Lc %a:%g /cm/dir/a /sec/pw", "440:2000\n440:2000");
    s.tells("kubectl exec p -- cat /all/labels", &["app=\"p\""]);
    s.tells("kubectl exec p -- df -k /mem", &["1024"]);
    s.is("kubectl exec p -- cat /host/ostype", "Linux");
    let written = s.sh("kubectl exec p -- sh -c 'echo >/host/ostype; echo >/cm/x'");
    assert!(written.err.matches("Read-only file system").count() == 2, "{written:?}");

    // Files follow their source; a running process keeps its environment.
    s.ok("kubectl patch configmap cm -p '{\"data\": {\"a\": \"ONE\", \"b\": \"TWO\"}}'");
    s.ok("kubectl patch secret sec -p '{\"stringData\": {\"pw\": \"new\"}}'");
    s.ok("kubectl label pod p tier=db");
    s.until("kubectl exec p -- cat /cm/dir/a /sec/pw /all/b", "ONEnewTWO");
    s.until("kubectl exec p -- grep -c tier /all/labels", "1");
    s.is("kubectl exec p -- sh -c 'echo $A'", "one");
}

fn missing_settings(s: &Shell) {
    let volumes = "volumes: [{name: v, secret: {secretName: late}}]";
    let needs = "env: [{name: A, valueFrom: {configMapKeyRef: {name: late, key: a}}}]\n\
                 volumeMounts: [{name: v, mountPath: /v}]";
    s.apply(&pod("p", volumes, STAY, needs));
    s.until("kubectl events --for pod/p | grep -c 'secret \"late\" not found'", "1");
    s.ok("kubectl create secret generic late --from-literal=a=1");
    let state = "kubectl get pod p -o jsonpath={..state.waiting.reason}";
    s.until(state, "CreateContainerConfigError");
    s.ok("kubectl create configmap late --from-literal=a=1");
    s.ok("kubectl wait --for=condition=Ready pod/p --timeout=30s");
}

fn service_account(s: &Shell) {
    s.ok("kubectl create role reader --verb=list --resource=pods");
    s.ok("kubectl create rolebinding reader --role=reader --serviceaccount=$NS:default");
    // The machine's own client, since busybox has none with an up to date TLS.
    let root = "volumes: [{name: root, hostPath: {path: /}}]";
    s.apply(&pod("p", root, STAY, "volumeMounts: [{name: root, mountPath: /host}]"));
    s.ok("kubectl wait --for=condition=Ready pod/p --timeout=30s");
    s.is(
        "kubectl exec p -- cat /var/run/secrets/kubernetes.io/serviceaccount/namespace",
        &s.namespace,
    );
    let ask = |path: &str| {
        s.ok(&format!(
            "kubectl exec p -- sh -c 'S=/var/run/secrets/kubernetes.io/serviceaccount; \
             IP=$(nslookup kubernetes.default.svc.cluster.local | sed -n \"s/^Address: //p\"); \
             cat $S/ca.crt | chroot /host curl -sS --cacert /dev/stdin -H \"Authorization: Bearer $(cat $S/token)\" \
             --resolve kubernetes.default.svc:443:$IP https://kubernetes.default.svc{path}'"
        ))
    };
    let listed = ask(&format!("/api/v1/namespaces/{}/pods", s.namespace));
    assert!(listed.contains("\"kind\":\"PodList\""), "{listed}");
    let refused = ask(&format!("/api/v1/namespaces/{}/secrets", s.namespace));
    let user = format!("system:serviceaccount:{}:default", s.namespace);
    assert!(refused.contains(&user) && refused.contains("Forbidden"), "{refused}");
}

fn limits(s: &Shell) {
    let never = "restartPolicy: Never";
    s.apply(&pod(
        "memory",
        never,
        "x=a; while :; do x=$x$x; done",
        "resources: {limits: {memory: 16Mi}}",
    ));
    s.apply(&pod(
        "cpu",
        never,
        "timeout 1 sh -c \"while :; do :; done\"; cat /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/cpu/cpu.stat",
        "resources: {limits: {cpu: 100m}}",
    ));
    s.ok("kubectl wait --for=jsonpath={.status.phase}=Failed pod/memory pod/cpu --timeout=30s");
    let ended = status(s, "memory")["state"]["terminated"].take();
    assert_eq!(
        (&ended["reason"], &ended["exitCode"]),
        (&"OOMKilled".into(), &137.into()),
        "{ended}"
    );
    let told = s.ok("kubectl logs cpu");
    let throttled = told.lines().find_map(|l| l.strip_prefix("nr_throttled ")).expect("a count");
    assert!(throttled.trim().parse::<u32>().expect("a number") > 3, "{told}");
}

fn ends(s: &Shell) {
    s.apply(&pod("crash", "", "echo last words; echo why > /dev/termination-log; exit 3", ""));
    s.apply(&pod(
        "retry",
        "restartPolicy: OnFailure\nvolumes: [{name: e, emptyDir: {}}]",
        "[ -e /e/x ] && exit 0; touch /e/x; exit 1",
        "volumeMounts: [{name: e, mountPath: /e}]",
    ));
    s.apply(&pod(
        "own",
        "restartPolicy: Never\nvolumes: [{name: e, emptyDir: {}}]",
        "[ -e /e/x ] && exit 7; touch /e/x; exit 42",
        "restartPolicy: Never\nrestartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]\n\
         volumeMounts: [{name: e, mountPath: /e}]",
    ));
    s.apply(&pod(
        "words",
        "restartPolicy: Never",
        "echo from the log; exit 1",
        "terminationMessagePolicy: FallbackToLogsOnError",
    ));
    s.apply(&pod("command", "restartPolicy: Never", "", "").replace("[sh, -c, '']", "[/none]"));
    let waiting = "kubectl get pod crash -o jsonpath={..state.waiting.reason}";
    s.until(waiting, "CrashLoopBackOff");
    let crash = status(s, "crash");
    let last = &crash["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 3, "{crash}");
    assert_eq!(last["message"], "why\n", "{crash}");
    assert!(crash["restartCount"].as_i64() >= Some(1), "{crash}");
    s.is("kubectl logs crash --previous", "last words");

    s.ok("kubectl wait --for=jsonpath={.status.phase}=Succeeded pod/retry --timeout=30s");
    assert_eq!(status(s, "retry")["restartCount"], 1);
    let failed = "pod/own pod/words pod/command";
    s.ok(&format!("kubectl wait --for=jsonpath={{.status.phase}}=Failed {failed} --timeout=30s"));
    let own = status(s, "own");
    assert_eq!(
        (&own["restartCount"], &own["state"]["terminated"]["exitCode"]),
        (&1.into(), &7.into())
    );
    assert_eq!(status(s, "words")["state"]["terminated"]["message"], "from the log\n");
    let command = status(s, "command")["state"]["terminated"].take();
    assert_eq!(command["reason"], "StartError", "{command}");
    assert!(command["message"].as_str().is_some_and(|m| m.contains("/none")), "{command}");
}

fn order(s: &Shell) {
    let init = |name: &str, command: &str, more: &str| {
        format!(
            "- {{name: {name}, image: busybox, imagePullPolicy: IfNotPresent, {more}\
             command: [sh, -c, '{command}'], volumeMounts: [{{name: e, mountPath: /e}}]}}\n"
        )
    };
    let sidecar = "trap \"echo side-end >> /e/log; exit 0\" TERM; echo side >> /e/log; \
                   while :; do sleep 0.1; done";
    let spec = format!(
        "volumes: [{{name: e, hostPath: {{path: {}, type: Directory}}}}]\ninitContainers:\n{}{}{}",
        s.dir.display(),
        init("one", "sleep 0.5; echo one >> /e/log", ""),
        init(
            "side",
            sidecar,
            "restartPolicy: Always, startupProbe: {exec: {command: [grep, side, /e/log]}, periodSeconds: 1}, "
        ),
        init("two", "echo two >> /e/log", ""),
    );
    let main = "trap \"sleep 0.3; echo main-end >> /e/log; exit 0\" TERM; echo main >> /e/log; \
                while :; do sleep 0.1; done";
    let hooks = "volumeMounts: [{name: e, mountPath: /e}]\n\
                 lifecycle:\n  \
                   postStart: {exec: {command: [sh, -c, 'echo post >> /e/log']}}\n  \
                   preStop: {exec: {command: [sh, -c, 'echo pre >> /e/log']}}";
    s.apply(&pod("p", &spec, main, hooks));
    s.ok("kubectl wait --for=condition=Ready pod/p --timeout=30s");
    s.ok("kubectl delete pod p");
    let log = std::fs::read_to_string(s.dir.join("log")).expect("a log");
    let order: Vec<&str> = log.lines().collect();
    let (start, end) = order.split_at(order.len() - 3);
    assert_eq!(&start[..3], ["one", "side", "two"], "{order:?}");
    assert!(start[3..].contains(&"main") && start[3..].contains(&"post"), "{order:?}");
    assert_eq!(end, ["pre", "main-end", "side-end"]);

    // One that does not hear ends when its time is up.
    s.apply(&pod("deaf", "", "trap \"\" TERM; while :; do sleep 0.1; done", ""));
    s.ok("kubectl wait --for=condition=Ready pod/deaf --timeout=30s");
    let began = std::time::Instant::now();
    s.ok("kubectl delete pod deaf --grace-period=2");
    let took = began.elapsed().as_secs_f32();
    // Half a minute is what it would have without a word about it.
    assert!((1.9..25.0).contains(&took), "{took} s");
}

fn probes(s: &Shell) {
    let serve = "echo ok > /www/live; echo ok > /www/ready; exec httpd -f -p 8080 -h /www";
    s.apply(&pod(
        "http",
        "",
        serve,
        "ports: [{name: web, containerPort: 8080}]\n\
         startupProbe: {httpGet: {path: /live, port: web}, periodSeconds: 1}\n\
         livenessProbe: {httpGet: {path: /live, port: 8080}, periodSeconds: 1, failureThreshold: 2}\n\
         readinessProbe: {httpGet: {path: /ready, port: web}, periodSeconds: 1, failureThreshold: 1}",
    ));
    s.apply(&pod(
        "exec",
        "",
        "touch /live; sleep 1000",
        "livenessProbe: {exec: {command: [test, -e, /live]}, periodSeconds: 1, failureThreshold: 2, \
         terminationGracePeriodSeconds: 1}\n\
         readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1}",
    ));
    s.apply(&pod(
        "tcp",
        "",
        "sleep 1; exec nc -ll -p 9000 -e cat",
        "startupProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, failureThreshold: 20}\n\
         readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}",
    ));
    s.apply(&pod(
        "never",
        "",
        "sleep 1000",
        "startupProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, failureThreshold: 2, \
         terminationGracePeriodSeconds: 1}",
    ));
    s.ok("kubectl wait --for=condition=Ready pod/http pod/tcp --timeout=30s");
    let ready =
        |pod: &str| format!("kubectl get pod {pod} -o jsonpath={{..containerStatuses[0].ready}}");
    let restarts = |pod: &str| {
        format!("kubectl get pod {pod} -o jsonpath={{..containerStatuses[0].restartCount}}")
    };
    s.is(&ready("exec"), "false");
    s.ok("kubectl exec exec -- touch /ready");
    s.until(&ready("exec"), "true");
    s.ok("kubectl exec http -- rm /www/ready");
    s.until(&ready("http"), "false");
    s.is(&restarts("http"), "0");
    s.ok("kubectl exec http -- rm /www/live");
    s.ok("kubectl exec exec -- rm /live");
    s.until(&restarts("http"), "1");
    s.until(&restarts("exec"), "1");
    s.ok("kubectl wait --for=condition=Ready pod/http --timeout=30s");
    s.until(&format!("{} | grep -c '[1-9]'", restarts("never")), "1");
    s.tells(
        "kubectl events --for pod/http",
        &["Liveness probe failed: HTTP probe failed with statuscode: 404"],
    );
}

fn long_logs(s: &Shell) {
    // More than one file of 10 MiB is kept, and read as one.
    let line = "x".repeat(1000);
    let talk =
        format!("i=0; while [ $i -lt 12000 ]; do i=$((i+1)); echo $i {line}; done; sleep 1000");
    s.apply(&pod("p", "terminationGracePeriodSeconds: 1", &talk, "").replacen(
        "  terminationGracePeriodSeconds: 5\n",
        "",
        1,
    ));
    s.until("kubectl logs p --tail=1 | cut -d' ' -f1", "12000");
    s.is("kubectl logs p --tail=3 | cut -d' ' -f1", "11998\n11999\n12000");
    s.ok("kubectl delete pod p --now");
}

/// A deployment that stops at once.
fn deployment(replicas: u32, more: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  \
         replicas: {replicas}\n  progressDeadlineSeconds: 3\n{more}  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    \
         metadata: {{labels: {{app: web}}}}\n    spec:\n      terminationGracePeriodSeconds: 5\n      \
         containers:\n      - name: c\n        image: busybox\n        \
         imagePullPolicy: IfNotPresent\n        command: [sh, -c, '{STAY}']\n"
    )
}

fn rollouts(s: &Shell) {
    let more =
        "  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}\n";
    s.apply(&deployment(3, more));
    s.ok("kubectl rollout status deployment/web --timeout=30s");
    let seen = s.spawn(
        "kubectl get deployment web -w -o \
         jsonpath='{.status.replicas} {.status.availableReplicas} x{\"\\n\"}'",
    );
    seen.wait_for("3 3 x");
    s.ok("kubectl set env deployment/web V=2");
    s.ok("kubectl rollout status deployment/web --timeout=60s");
    s.is("kubectl exec deployment/web -- sh -c 'echo $V'", "2");
    // A bad image stalls: nothing that serves is taken away, and the condition says so.
    s.ok("kubectl set image deployment/web c=none:1");
    s.fails(
        "kubectl rollout status deployment/web --timeout=30s",
        &["exceeded its progress deadline"],
    );
    let counts = "kubectl get deployment web -o \
                  jsonpath='{.status.availableReplicas} {.status.updatedReplicas} {.status.unavailableReplicas}'";
    s.is(counts, "3 1 1");
    let reason = "kubectl get deployment web -o \
                  jsonpath='{.status.conditions[?(@.type==\"Progressing\")].reason}'";
    s.is(reason, "ProgressDeadlineExceeded");
    s.ok("kubectl rollout undo deployment/web");
    s.ok("kubectl rollout status deployment/web --timeout=30s");
    s.is(reason, "NewReplicaSetAvailable");
    s.ok("kubectl rollout undo deployment/web --to-revision=1");
    s.ok("kubectl rollout status deployment/web --timeout=60s");
    s.is("kubectl exec deployment/web -- sh -c 'echo [$V]'", "[]");
    let history = s.ok("kubectl rollout history deployment/web | grep -o '^[0-9]*'");
    assert_eq!(history.split_whitespace().collect::<Vec<_>>(), ["3", "4", "5"]);
    // Never more than the surge allows, never fewer than asked for.
    for line in seen.told().lines().filter(|l| l.ends_with(" x")).skip_while(|l| *l != "3 3 x") {
        let counts: Vec<u32> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
        assert!(counts[0] <= 4 && counts[1] >= 3, "{line}");
    }
}

fn recreate(s: &Shell) {
    s.apply(
        &deployment(2, "  strategy: {type: Recreate}\n")
            .replace("progressDeadlineSeconds: 3", "progressDeadlineSeconds: 60"),
    );
    s.ok("kubectl rollout status deployment/web --timeout=30s");
    let hash = s.word("kubectl get rs -o jsonpath={.items[0].metadata.labels.pod-template-hash}");
    let seen = s.spawn(
        "kubectl get pods -w -o jsonpath='{.metadata.labels.pod-template-hash} {.status.phase}{\"\\n\"}'",
    );
    seen.wait_for(&hash);
    s.ok("kubectl set env deployment/web V=2");
    s.ok("kubectl rollout status deployment/web --timeout=60s");
    let told = seen.told();
    let new: Vec<&str> = told.lines().skip_while(|l| l.starts_with(&hash)).collect();
    // Old pods may still be listed then, but nothing in them runs any more.
    let runs = |l: &&str| l.starts_with(&hash) && !l.ends_with("Succeeded");
    assert!(!new.is_empty() && !new.iter().any(runs), "{told}");
}

/// Processes of a pod among the machine's own end with their container all the same.
fn host_processes(s: &Shell) {
    let mark = format!("9{}", std::process::id());
    let stray = format!("pgrep -fc '^sleep {mark}' || true");
    let command =
        format!("setsid sleep {mark} & trap \"exit 0\" TERM; while :; do sleep 0.1; done");
    s.apply(&pod("h", "hostPID: true", &command, ""));
    s.ok("kubectl wait --for=condition=Ready pod/h --timeout=30s");
    s.is("kubectl exec h -- readlink /proc/self/ns/pid", &s.word("readlink /proc/self/ns/pid"));
    s.tells("kubectl exec h -- ps -o args", &["launcher"]);
    s.is(&stray, "1");
    let first = s.word("kubectl exec h -- sh -c 'ps -o pid,args | grep setsid | grep -v grep' | awk 'NR==1{print $1}'");
    s.ok(&format!("kubectl exec h -- kill -KILL {first}"));
    s.until("kubectl get pod h -o jsonpath={..restartCount}", "1");
    s.ok("kubectl wait --for=condition=Ready pod/h --timeout=30s");
    s.until(&stray, "1");
    s.ok("kubectl delete pod h");
    s.is(&stray, "0");
}

fn healing(s: &Shell) {
    s.apply(&deployment(2, ""));
    s.ok("kubectl rollout status deployment/web --timeout=30s");
    for size in [12, 0, 2] {
        s.ok(&format!("kubectl scale deployment web --replicas={size}"));
        s.ok("kubectl rollout status deployment/web --timeout=60s");
        s.until("kubectl get pods --no-headers 2>/dev/null | wc -l", &size.to_string());
    }
    let first = s.word("kubectl get pods -o name | head -n 1");
    s.ok(&format!("kubectl delete {first} --now"));
    s.until("kubectl get deployment web -o jsonpath={.status.availableReplicas}", "2");
    // The first process of a container ends: the same pod runs it again.
    let pod = s.word("kubectl get pods -o name | head -n 1");
    s.ok(&format!("kubectl exec {pod} -- kill -TERM 1"));
    let restarts = format!("kubectl get {pod} -o jsonpath={{..restartCount}}");
    s.until(&restarts, "1");
    s.ok(&format!("kubectl wait --for=condition=Ready {pod} --timeout=30s"));
}

/// Pods that must be near others, far from them, or spread wait until they may go somewhere.
fn neighbours(s: &Shell) {
    let term = |app: &str| {
        format!(
            "[{{topologyKey: kubernetes.io/hostname, labelSelector: {{matchLabels: {{app: {app}}}}}}}]"
        )
    };
    let required = |kind: &str, app: &str| {
        format!(
            "affinity: {{{kind}: {{requiredDuringSchedulingIgnoredDuringExecution: {}}}}}",
            term(app)
        )
    };
    let waits = |name: &str, why: &str| {
        s.until(
            &format!("kubectl get pod {name} -o jsonpath='{{.status.conditions[?(@.type==\"PodScheduled\")].message}}'"),
            &format!("0/1 nodes are available: 1 node(s) {why}."),
        );
    };
    let runs =
        |name: &str| s.ok(&format!("kubectl wait --for=condition=Ready pod/{name} --timeout=30s"));
    s.apply(&pod("escort", &required("podAffinity", "cog"), STAY, ""));
    waits("escort", "didn't match pod affinity rules");
    s.apply(&pod("cog", "", STAY, ""));
    runs("escort");
    s.apply(&pod("rival", &required("podAntiAffinity", "cog"), STAY, ""));
    waits("rival", "didn't match pod anti-affinity rules");
    s.ok("kubectl delete pod cog --now");
    runs("rival");
    s.apply(&pod("cog", "", STAY, ""));
    waits("cog", "didn't satisfy existing pods anti-affinity rules");
    s.ok("kubectl label pod cog app=hulk --overwrite");
    runs("cog");
    let spread = "topologySpreadConstraints: [{maxSkew: 1, topologyKey: berth, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: even}}}]";
    s.apply(&pod("even", spread, STAY, ""));
    waits("even", "didn't match pod topology spread constraints (missing required label)");
    s.ok("kubectl label node n1 berth=one");
    runs("even");
    s.ok("kubectl label node n1 berth-");
}

#[test]
fn workloads() {
    let machine = e2e::Machine::new("work");
    e2e::run(
        &machine,
        &[
            ("probes", probes),
            ("rollouts", rollouts),
            ("ends", ends),
            ("order", order),
            ("settings", settings),
            ("missing-settings", missing_settings),
            ("service-account", service_account),
            ("limits", limits),
            ("long-logs", long_logs),
            ("recreate", recreate),
            ("healing", healing),
            ("host-processes", host_processes),
            ("neighbours", neighbours),
        ],
    );
}
