//! What users look at: get, describe, explain, events, discovery.

use crate::{SLEEPER, WEB};
use e2e::{Check, Shell};

pub const ALL: &[Check] = &[
    ("get-forms", get_forms),
    ("get-selects", get_selects),
    ("get-watch", get_watch),
    ("tables", tables),
    ("describe", describe),
    ("explain", explain),
    ("discovery", discovery),
    ("events", events),
    ("status-subresource", status_subresource),
];

fn get_forms(s: &Shell) {
    s.ok("kubectl create configmap tide --from-literal=high=12 --from-literal=low=6");
    s.is("kubectl get configmap tide -o name", "configmap/tide");
    s.is("kubectl get cm tide -o jsonpath='{.data.high}'", "12");
    s.is("kubectl get cm tide -o go-template='{{.data.low}}'", "6");
    s.is(
        "kubectl get cm tide -o custom-columns=N:.metadata.name,H:.data.high",
        "N      H\ntide   12",
    );
    s.tells(
        "kubectl get cm tide -o yaml",
        &["apiVersion: v1\n", "  high: \"12\"\n", "kind: ConfigMap"],
    );
    assert_eq!(s.json("cm tide")["data"]["low"], "6");
    s.tells("kubectl get cm tide", &["NAME   DATA   AGE\ntide   2 "]);
    s.is("kubectl get cm tide --no-headers | cut -d' ' -f1", "tide");
    s.tells("kubectl get cm tide --show-labels", &["LABELS", "<none>"]);
    s.tells("kubectl get cm,secret,sa", &["configmap/tide", "serviceaccount/default"]);
    s.tells("kubectl get all", &[]);
    s.fails(
        "kubectl get cm none",
        &["Error from server (NotFound): configmaps \"none\" not found"],
    );
    s.fails("kubectl get nonsense", &["the server doesn't have a resource type \"nonsense\""]);
    s.ok("kubectl get cm none --ignore-not-found");
    s.tells("kubectl get secrets 2>&1", &["No resources found in get-forms namespace."]);
    s.tells("kubectl get --raw /api/v1/namespaces/$NS/configmaps/tide", &["\"high\":\"12\""]);
}

fn get_selects(s: &Shell) {
    s.ok("for i in 1 2 3; do kubectl create configmap c$i --from-literal=i=$i; done");
    s.ok("kubectl label cm c1 tier=bow; kubectl label cm c2 tier=stern; kubectl label cm c3 mast=");
    let names = "-o custom-columns=:.metadata.name --no-headers | tr '\\n' ' '";
    s.is(&format!("kubectl get cm -l tier=bow {names}"), "c1");
    s.is(&format!("kubectl get cm -l 'tier in (bow,stern)' {names}"), "c1 c2");
    s.is(&format!("kubectl get cm -l tier!=bow,mast {names}"), "c3");
    s.is(&format!("kubectl get cm -l '!tier,mast' {names}"), "c3");
    s.is(&format!("kubectl get cm --field-selector metadata.name=c2 {names}"), "c2");
    s.tells("kubectl get cm -A", &["NAMESPACE", "get-selects"]);
    s.is(&format!("kubectl get cm -l tier --sort-by=.data.i {names}"), "c1 c2");
    s.is(&format!("kubectl get cm -l tier --chunk-size=1 {names}"), "c1 c2");
    s.fails(
        "kubectl get cm --field-selector spec.colour=red",
        &["\"spec.colour\" is not a known field selector"],
    );
    s.fails("kubectl get cm -l 'a in ('", &["unable to parse requirement"]);
    s.tells("kubectl get cm -L tier", &["TIER", "bow"]);
    // Pods by phase and by machine.
    s.apply(SLEEPER);
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    let pods = "-o name";
    s.is(
        &format!("kubectl get pod --field-selector status.phase=Running,spec.nodeName=n1 {pods}"),
        "pod/sleeper",
    );
    s.is(&format!("kubectl get pod --field-selector status.phase!=Running {pods}"), "");
    s.is(&format!("kubectl get pod --field-selector spec.restartPolicy=Never {pods}"), "");
}

fn get_watch(s: &Shell) {
    let watch =
        s.spawn("kubectl get cm -w -l watched -o custom-columns=N:.metadata.name,V:.data.v");
    let events = s.spawn("kubectl get cm --output-watch-events --watch-only -l watched -o name");
    s.until(
        "kubectl create configmap tide --from-literal=v=1 && kubectl label cm tide watched=",
        "configmap/tide created\nconfigmap/tide labeled",
    );
    watch.wait_for("tide   1");
    s.ok("kubectl patch cm tide -p '{\"data\":{\"v\":\"2\"}}'");
    watch.wait_for("tide   2");
    // What leaves the selection is told as deleted.
    s.ok("kubectl label cm tide watched-");
    let _ = events;
    let pods = s.spawn("kubectl get pods -w");
    s.apply(SLEEPER);
    pods.wait_for("Running");
    s.ok("kubectl delete pod sleeper --wait=false");
    pods.wait_for("Terminating");
}

fn tables(s: &Shell) {
    s.apply(WEB);
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.tells(
        "kubectl get deploy",
        &["NAME", "READY   UP-TO-DATE   AVAILABLE   AGE", "web    2/2     2            2 "],
    );
    s.tells(
        "kubectl get deploy -o wide",
        &["CONTAINERS", "IMAGES", "SELECTOR", "busybox", "app=web"],
    );
    s.tells("kubectl get rs", &["DESIRED   CURRENT   READY   AGE", "2         2         2 "]);
    s.tells("kubectl get pods", &["READY   STATUS    RESTARTS   AGE", "1/1     Running   0 "]);
    s.tells(
        "kubectl get pods -o wide",
        &["IP", "NODE", "NOMINATED NODE", "READINESS GATES", "n1", "10.244.0."],
    );
    s.tells(
        "kubectl get svc",
        &["TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "ClusterIP   10.96.", "80/TCP"],
    );
    s.tells("kubectl get endpoints 2>/dev/null", &["ENDPOINTS", ":8080,10.244.0."]);
    s.tells("kubectl get endpointslices", &["ADDRESSTYPE", "PORTS", "IPv4", "8080"]);
    s.tells("kubectl get nodes", &["NAME   STATUS   ROLES", "n1     Ready", "v1.37"]);
    s.tells("kubectl get nodes -o wide", &["INTERNAL-IP", "KERNEL-VERSION", "CONTAINER-RUNTIME"]);
    s.tells("kubectl get ns", &["STATUS", "default", "kube-system", "tables", "Active"]);
    s.tells("kubectl get sa", &["default"]);
    s.tells("kubectl get leases -n kube-node-lease", &["HOLDER", "n1"]);
    s.tells(
        "kubectl get events",
        &["LAST SEEN", "REASON", "MESSAGE", "deployment/web", "ScalingReplicaSet"],
    );
    s.tells(
        "kubectl get all",
        &["pod/web-", "service/web", "deployment.apps/web", "replicaset.apps/web-"],
    );
    s.is("kubectl get deploy web -o jsonpath='{.status.readyReplicas}'", "2");
}

fn describe(s: &Shell) {
    s.apply(WEB);
    s.ok("kubectl create secret generic anchor --from-literal=chain=iron");
    s.ok("kubectl create configmap tide --from-literal=high=12");
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.tells(
        "kubectl describe $(kubectl get pod -l app=web -o name | head -1)",
        &[
            "Name:",
            "Node:             n1/",
            "Status:           Running",
            "IP:",
            "Controlled By:  ReplicaSet/web-",
            "Image:         busybox",
            "State:          Running",
            "Ready:          True",
            "Restart Count:  0",
            "Readiness:",
            "VERSION:  one",
            "Conditions:",
            "QoS Class:",
            "BestEffort",
            "kube-api-access-",
            "Events:",
            "Scheduled",
            "Started",
        ],
    );
    s.tells(
        "kubectl describe deploy web",
        &[
            "Selector:               app=web",
            "Replicas:               2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
            "StrategyType:           RollingUpdate",
            "25% max unavailable, 25% max surge",
            "Available      True",
            "NewReplicaSet:   web-",
            "ScalingReplicaSet",
        ],
    );
    s.tells(
        "kubectl describe rs",
        &["Controlled By:  Deployment/web", "2 Running / 0 Waiting", "SuccessfulCreate"],
    );
    s.tells(
        "kubectl describe svc web",
        &[
            "Type:                     ClusterIP",
            "Port:                     http  80/TCP",
            "TargetPort:               http/TCP",
            ":8080,10.244.0.",
            "Session Affinity:         None",
        ],
    );
    s.tells(
        "kubectl describe endpointslice",
        &["AddressType:  IPv4", "Conditions:", "Ready:    true", "TargetRef:  Pod/web-"],
    );
    s.tells("kubectl describe endpoints web 2>/dev/null", &["Addresses:", "8080"]);
    s.tells("kubectl describe cm tide", &["high:\n----\n12"]);
    s.tells("kubectl describe secret anchor", &["Type:  Opaque", "chain:  4 bytes"]);
    s.tells("kubectl describe sa default", &["Name:                default"]);
    s.tells("kubectl describe ns $NS", &["Status:       Active"]);
    s.tells(
        "kubectl describe node n1",
        &[
            "Roles:",
            "Conditions:",
            "Ready",
            "Capacity:",
            "Allocatable:",
            "System Info:",
            "Non-terminated Pods:",
            "Allocated resources:",
            "PodCIDR:",
        ],
    );
    s.tells("kubectl describe lease n1 -n kube-node-lease", &["Holder Identity"]);
    s.fails("kubectl describe pod none", &["pods \"none\" not found"]);
}

fn explain(s: &Shell) {
    s.tells("kubectl explain pod", &["KIND:       Pod", "VERSION:    v1", "spec\t<PodSpec>"]);
    s.tells(
        "kubectl explain pod.spec.containers",
        &["FIELD: containers <[]Container>", "image\t<string>", "name\t<string> -required-"],
    );
    s.tells("kubectl explain deploy.spec.strategy --recursive", &["rollingUpdate", "maxSurge"]);
    for kind in [
        "namespace",
        "node",
        "rs",
        "svc",
        "endpointslice",
        "endpoints",
        "cm",
        "secret",
        "sa",
        "event",
        "lease",
        "role",
        "rolebinding",
        "clusterrole",
        "clusterrolebinding",
    ] {
        s.tells(
            &format!("kubectl explain {kind}"),
            &["KIND:", "VERSION:", "FIELDS:", "metadata\t<ObjectMeta>"],
        );
    }
    s.fails("kubectl explain pod.spec.sail", &["field \"sail\" does not exist"]);
}

fn discovery(s: &Shell) {
    s.tells(
        "kubectl api-resources",
        &["NAME", "SHORTNAMES", "deployments", "deploy", "apps/v1", "true", "Deployment"],
    );
    s.tells("kubectl api-resources --namespaced=false -o name", &["namespaces", "nodes"]);
    s.tells(
        "kubectl api-resources --api-group=apps -o wide",
        &["create,delete,deletecollection,get,list,patch,update,watch"],
    );
    s.tells(
        "kubectl api-versions",
        &[
            "v1\n",
            "apps/v1\n",
            "discovery.k8s.io/v1\n",
            "coordination.k8s.io/v1\n",
            "rbac.authorization.k8s.io/v1\n",
        ],
    );
    s.tells("kubectl version", &["Client Version: v1.37", "Server Version: v1.37"]);
    s.tells("kubectl cluster-info", &["Kubernetes control plane", "is running at"]);
    s.tells("kubectl get --raw /healthz", &["ok"]);
    s.tells("kubectl get --raw /metrics", &["# TYPE"]);
    s.fails("kubectl top nodes", &["Metrics API not available"]);
    s.fails("kubectl top pods", &["Metrics API not available"]);
    s.tells("kubectl config view --minify", &["namespace: discovery"]);
}

fn events(s: &Shell) {
    s.apply(SLEEPER);
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.until("kubectl events --for pod/sleeper | grep -c -E 'Scheduled|Created|Started'", "3");
    s.tells("kubectl events --types=Normal", &["LAST SEEN   TYPE     REASON", "Pod/sleeper"]);
    s.is("kubectl events --types=Warning 2>&1", "No events found in events namespace.");
    s.tells("kubectl get events --field-selector reason=Scheduled,involvedObject.name=sleeper -o jsonpath='{.items[0].message}'", &["Successfully assigned events/sleeper to n1"]);
    let watch = s.spawn("kubectl events --watch");
    watch.wait_for("Started");
    s.ok("kubectl delete pod sleeper");
    watch.wait_for("Killing");
}

fn status_subresource(s: &Shell) {
    s.apply(SLEEPER);
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.is("kubectl get pod sleeper --subresource=status -o jsonpath='{.status.phase}'", "Running");
    s.ok("kubectl patch pod sleeper --subresource=status --type=merge -p '{\"status\":{\"conditions\":[{\"type\":\"Cleared\",\"status\":\"True\"}]}}'");
    // A status given along with the object is not taken.
    s.apply(&SLEEPER.replace("spec:\n", "status: {phase: Failed}\nspec:\n"));
    s.is("kubectl get pod sleeper -o jsonpath='{.status.phase}'", "Running");
}
