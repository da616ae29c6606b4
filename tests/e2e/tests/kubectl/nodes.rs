//! What concerns the machine as a whole: taint, cordon, drain, the service before the API.

use crate::{SLEEPER, WEB};
use e2e::{Check, Shell};

pub const ALL: &[Check] = &[
    ("cordon-drain", cordon_drain),
    ("taint", taint),
    ("taint-expels", taint_expels),
    ("not-admitted", not_admitted),
    ("own-service", own_service),
];

fn cordon_drain(s: &Shell) {
    s.apply(&WEB.replace("replicas: 2", "replicas: 1"));
    s.apply(SLEEPER);
    s.ok("kubectl rollout status deploy/web --timeout=60s && kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.is("kubectl cordon n1", "node/n1 cordoned");
    s.tells("kubectl get nodes", &["Ready,SchedulingDisabled"]);
    s.ok("kubectl run late --image=busybox -- sleep 1000");
    s.until("kubectl get pod late -o jsonpath='{.status.conditions[?(@.type==\"PodScheduled\")].reason}'", "Unschedulable");
    s.tells("kubectl describe pod late", &["FailedScheduling", "0/1 nodes are available"]);
    s.fails(
        "kubectl drain n1 --timeout=20s",
        &["cannot delete", "declare no controller", "sleeper"],
    );
    s.tells(
        "kubectl drain n1 --force --ignore-daemonsets --delete-emptydir-data --timeout=30s 2>&1",
        &["evicting pod", "node/n1 drained"],
    );
    s.fails("kubectl get pod sleeper", &["not found"]);
    s.until("kubectl get pods -l app=web -o jsonpath='{.items[*].status.phase}'", "Pending");
    s.is("kubectl uncordon n1", "node/n1 uncordoned");
    s.ok("kubectl rollout status deploy/web --timeout=60s && kubectl wait --for=condition=Ready pod/late --timeout=30s");
}

fn taint(s: &Shell) {
    s.is("kubectl taint node n1 storm=near:NoSchedule", "node/n1 tainted");
    s.apply(SLEEPER);
    s.until("kubectl get pod sleeper -o jsonpath='{.status.conditions[?(@.type==\"PodScheduled\")].reason}'", "Unschedulable");
    s.tells("kubectl get pod sleeper -o jsonpath='{.status.conditions[?(@.type==\"PodScheduled\")].message}'", &["untolerated taint"]);
    s.apply(
        &SLEEPER
            .replace("name: sleeper", "name: brave")
            .replace("spec:\n", "spec:\n  tolerations: [{key: storm, operator: Exists}]\n"),
    );
    s.ok("kubectl wait --for=condition=Ready pod/brave --timeout=30s");
    s.tells("kubectl describe node n1", &["storm=near:NoSchedule"]);
    s.is("kubectl taint node n1 storm-", "node/n1 untainted");
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
}

fn taint_expels(s: &Shell) {
    let tolerant = |name: &str, seconds: &str| {
        let toleration = format!("{{key: storm, operator: Exists, effect: NoExecute{seconds}}}");
        SLEEPER
            .replace("name: sleeper", &format!("name: {name}"))
            .replace("spec:\n", &format!("spec:\n  tolerations: [{toleration}]\n"))
    };
    s.apply(SLEEPER);
    s.apply(&tolerant("brave", ""));
    // Long enough for what is looked at before it goes.
    s.apply(&tolerant("patient", ", tolerationSeconds: 15"));
    s.ok("kubectl wait --for=condition=Ready pod --all --timeout=30s");
    s.is("kubectl taint node n1 storm=here:NoExecute", "node/n1 tainted");
    s.ok("kubectl wait --for=delete pod/sleeper --timeout=30s");
    s.tells("kubectl get events", &["TaintManagerEviction"]);
    s.is("kubectl get pod brave patient -o jsonpath='{.items[*].status.phase}'", "Running Running");
    s.ok("kubectl wait --for=delete pod/patient --timeout=60s");
    s.is("kubectl get pods -o name", "pod/brave");
    s.is("kubectl taint node n1 storm-", "node/n1 untainted");
}

/// The machine itself refuses what is bound to it past the scheduler and does not fit.
fn not_admitted(s: &Shell) {
    let bound = |name: &str, more: &str| {
        SLEEPER
            .replace("name: sleeper", &format!("name: {name}"))
            .replace("spec:\n", &format!("spec:\n  nodeName: n1\n{more}"))
    };
    let huge = bound("huge", "").replace("image:", "resources: {requests: {cpu: 1k}}, image:");
    s.apply(&huge);
    s.until(
        "kubectl get pod huge -o jsonpath='{.status.phase} {.status.reason}'",
        "Failed OutOfcpu",
    );
    s.tells("kubectl get pod huge", &["0/1", "OutOfcpu"]);
    s.tells(
        "kubectl describe pod huge",
        &[
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: ",
            "Warning  OutOfcpu",
        ],
    );
    s.apply(&bound("picky", "  nodeSelector: {deck: upper}\n"));
    s.until("kubectl get pod picky -o jsonpath='{.status.reason}'", "NodeAffinity");
    s.ok("kubectl label node n1 deck=upper");
    s.apply(&bound("content", "  nodeSelector: {deck: upper}\n"));
    s.ok("kubectl wait --for=condition=Ready pod/content --timeout=30s");
    s.ok("kubectl taint node n1 storm=here:NoExecute --overwrite && kubectl wait --for=delete pod/content --timeout=30s");
    s.apply(&bound("late", ""));
    // It is sent away as well.
    s.until("kubectl get events --field-selector reason=TaintToleration -o jsonpath='{.items[*].involvedObject.name}'", "late");
    s.ok("kubectl taint node n1 storm- && kubectl label node n1 deck-");
    // Who wants replicas of it does not fill the store with them.
    s.ok("kubectl create deployment eager --image=busybox --dry-run=client -o yaml | sed 's/    spec:/    spec:\\n      nodeName: n1\\n      nodeSelector: {deck: none}/' | kubectl apply -f -");
    s.until(
        "kubectl get pods -l app=eager -o jsonpath='{.items[*].status.reason}'",
        "NodeAffinity NodeAffinity NodeAffinity NodeAffinity NodeAffinity",
    );
    s.ok("kubectl delete deployment eager --timeout=20s");
}

/// Pods find the API by a service that nobody can take from them for long.
fn own_service(s: &Shell) {
    let told = "kubectl get service,endpoints,endpointslices -n default kubernetes -o jsonpath='{.items[0].spec.clusterIP} {.items[1].subsets[0].addresses[0].ip} {.items[2].endpoints[0].addresses[0]}'";
    let before = s.word(told);
    s.ok("kubectl delete -n default --ignore-not-found --wait=false service/kubernetes endpoints/kubernetes endpointslice/kubernetes");
    s.until(told, &before);
    s.ok("kubectl patch -n default endpointslice kubernetes --type=merge -p '{\"endpoints\":[]}'");
    s.until(told, &before);
    s.is(
        "kubectl get -n default endpointslices -o name",
        "endpointslice.discovery.k8s.io/kubernetes",
    );
}
