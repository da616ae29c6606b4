//! What users change: create, apply, diff, edit, patch, replace, label, annotate, delete.

use crate::{SLEEPER, WEB};
use e2e::{Check, Shell};

pub const ALL: &[Check] = &[
    ("create", create),
    ("create-file", create_file),
    ("apply-client", apply_client),
    ("apply-server", apply_server),
    ("apply-prune", apply_prune),
    ("diff", diff),
    ("edit", edit),
    ("patch", patch),
    ("replace", replace),
    ("label-annotate", label_annotate),
    ("set", set),
    ("delete", delete),
    ("cascade", cascade),
    ("delete-namespace", delete_namespace),
    ("run", run),
    ("expose", expose),
    ("wait", wait),
];

const TIDE: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: tide, labels: {sea: north}}
data: {high: '12', low: '6'}
";

fn create(s: &Shell) {
    s.file("port.txt", "Kiel");
    s.is(
        "kubectl create configmap tide --from-literal=high=12 --from-file=port.txt",
        "configmap/tide created",
    );
    s.is("kubectl get cm tide -o jsonpath='{.data.high} {.data.port\\.txt}'", "12 Kiel");
    s.is("kubectl create secret generic anchor --from-literal=chain=iron", "secret/anchor created");
    s.is("kubectl get secret anchor -o jsonpath='{.data.chain}' | base64 -d", "iron");
    s.ok("kubectl create secret docker-registry dock --docker-server=r.example --docker-username=u --docker-password=p");
    s.is("kubectl get secret dock -o jsonpath='{.type}'", "kubernetes.io/dockerconfigjson");
    s.ok("kubectl create deployment web --image=busybox --replicas=0 --port=80 -- sleep 9");
    s.is("kubectl get deploy web -o jsonpath='{.spec.template.spec.containers[0].command[0]} {.spec.replicas} {.spec.template.metadata.labels.app}'", "sleep 0 web");
    s.ok("kubectl create service clusterip web --tcp=80:8080");
    s.is(
        "kubectl get svc web -o jsonpath='{.spec.ports[0].targetPort} {.spec.type}'",
        "8080 ClusterIP",
    );
    s.ok("kubectl create service clusterip headless --clusterip=None --tcp=80");
    s.is("kubectl get svc headless -o jsonpath='{.spec.clusterIP}'", "None");
    s.ok("kubectl create service nodeport np --tcp=80:8080");
    let port: u16 =
        s.word("kubectl get svc np -o jsonpath='{.spec.ports[0].nodePort}'").parse().unwrap();
    assert!((30_000..=32_767).contains(&port), "{port}");
    s.ok("kubectl create service externalname far --external-name=example.org");
    s.ok("kubectl create service loadbalancer lb --tcp=80");
    s.is("kubectl create serviceaccount sailor", "serviceaccount/sailor created");
    let token = s.word("kubectl create token sailor --duration=1h");
    assert_eq!(token.split('.').count(), 3, "{token}");
    s.ok("kubectl create role reader --verb=get,list --resource=pods,configmaps");
    s.ok("kubectl create rolebinding reader --role=reader --serviceaccount=$NS:sailor");
    s.ok("kubectl create clusterrole e2e-reader --verb=get --resource=nodes");
    s.ok("kubectl create clusterrolebinding e2e-reader --clusterrole=e2e-reader --serviceaccount=$NS:sailor");
    s.tells(
        "kubectl get role,rolebinding",
        &["role.rbac.authorization.k8s.io/reader", "Role/reader"],
    );
    s.ok("kubectl delete clusterrole,clusterrolebinding e2e-reader");
    s.ok("kubectl create namespace create-other && kubectl delete namespace create-other");
    s.fails("kubectl create configmap tide", &["configmaps \"tide\" already exists"]);
    s.fails("kubectl create configmap Tide_", &["Invalid value: \"Tide_\""]);
    s.fails("kubectl create namespace $NS", &["already exists"]);
}

fn create_file(s: &Shell) {
    s.file("tide.yaml", TIDE);
    s.is("kubectl create -f tide.yaml --dry-run=server", "configmap/tide created (server dry run)");
    s.is(
        "kubectl create -f tide.yaml --dry-run=server -o jsonpath='{.metadata.namespace}'",
        "create-file",
    );
    s.fails("kubectl get cm tide", &["not found"]);
    s.is("kubectl create -f tide.yaml", "configmap/tide created");
    s.fails(
        "kubectl create -f tide.yaml",
        &["Error from server (AlreadyExists)", "configmaps \"tide\" already exists"],
    );
    s.is("kubectl delete -f tide.yaml", "configmap \"tide\" deleted from create-file namespace");
    s.file("gen.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: wave-}\n");
    s.is("kubectl create -f gen.yaml -o name | cut -c1-15", "configmap/wave-");
}

fn apply_client(s: &Shell) {
    assert_eq!(s.apply(TIDE), "configmap/tide created\n");
    assert_eq!(s.apply(TIDE), "configmap/tide unchanged\n");
    s.ok("kubectl patch cm tide -p '{\"data\":{\"wind\":\"west\"}}'");
    assert_eq!(s.apply(&TIDE.replace("low: '6'", "low: '5'")), "configmap/tide configured\n");
    // What others set stays, what was applied and is left out goes.
    s.is("kubectl get cm tide -o jsonpath='{.data}'", r#"{"high":"12","low":"5","wind":"west"}"#);
    s.apply(&TIDE.replace(", low: '6'", ""));
    s.is("kubectl get cm tide -o jsonpath='{.data}'", r#"{"high":"12","wind":"west"}"#);
    s.tells("kubectl apply view-last-applied cm/tide", &["high: \"12\""]);
    // Lists merge by their keys: a container that another one added stays.
    s.apply(WEB);
    assert_eq!(s.apply(WEB), "deployment.apps/web unchanged\nservice/web unchanged\n");
    s.ok("kubectl patch deploy web -p '{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"side\",\"image\":\"busybox\"}]}}}}'");
    s.apply(&WEB.replace("value: one", "value: two").replace("replicas: 2", "replicas: 0"));
    s.is(
        "kubectl get deploy web -o jsonpath='{.spec.template.spec.containers[*].name}'",
        "side web",
    );
    s.is(
        "kubectl get deploy web -o jsonpath='{.spec.template.spec.containers[1].env[0].value}'",
        "two",
    );
    let dry = s.pipe("kubectl apply --dry-run=server -f -", &TIDE.replace("'12'", "'13'"));
    assert_eq!(dry.out, "configmap/tide configured (server dry run)\n", "{dry:?}");
    s.is("kubectl get cm tide -o jsonpath='{.data.high}'", "12");
}

fn apply_server(s: &Shell) {
    let apply = |flags: &str, text: &str| {
        s.pipe(&format!("kubectl apply --server-side {flags} -f -"), text)
    };
    assert_eq!(apply("", TIDE).out, "configmap/tide serverside-applied\n");
    let other = TIDE.replace("'12'", "'13'").replace(", low: '6'", "");
    let conflict = apply("--field-manager=mate", &other);
    assert_eq!(conflict.code, 1);
    for part in
        ["Apply failed with 1 conflict: conflict with \"kubectl\": .data.high", "--force-conflicts"]
    {
        assert!(conflict.err.contains(part), "{conflict:#?}");
    }
    s.is("kubectl get cm tide -o jsonpath='{.data.high}'", "12");
    assert_eq!(apply("--field-manager=mate --force-conflicts", &other).code, 0);
    s.is("kubectl get cm tide -o jsonpath='{.data.high}'", "13");
    // The first manager still owns low; what it leaves out goes, what the other one owns stays.
    let less = TIDE.replace("data: {high: '12', low: '6'}\n", "");
    assert_eq!(apply("", &less).code, 0);
    s.is("kubectl get cm tide -o jsonpath='{.data}'", r#"{"high":"13"}"#);
    s.is("kubectl get cm tide --show-managed-fields -o jsonpath='{.metadata.managedFields[*].manager}' | tr ' ' '\\n' | sort | tr '\\n' ' '", "kubectl mate");
    // From client side to server side, without losing or keeping too much.
    s.apply(WEB);
    let web = WEB
        .replace("replicas: 2", "replicas: 0")
        .replace("- name: web", "- name: web\n        workingDir: /tmp");
    assert_eq!(apply("", &web).code, 0, "{:#?}", apply("", &web));
    s.is("kubectl get deploy web -o jsonpath='{.spec.replicas} {.spec.template.spec.containers[0].workingDir}'", "0 /tmp");
    let web = web.replace("\n        workingDir: /tmp", "");
    assert_eq!(apply("", &web).code, 0);
    s.is("kubectl get deploy web -o jsonpath='{.spec.template.spec.containers[0].workingDir}'", "");
    // What was applied from the client before is no conflict, though others changed it since.
    s.ok("kubectl scale deploy web --replicas=1");
    assert_eq!(apply("", &web).code, 0);
    s.is("kubectl get deploy web -o jsonpath='{.spec.replicas}'", "0");
    // Otherwise it is one, and the subresource that it went through is named.
    let web = web.replace("name: web, labels", "name: raft, labels");
    assert_eq!(apply("", &web).code, 0);
    s.ok("kubectl scale deploy raft --replicas=1");
    let fight = apply("", &web);
    let conflict =
        "conflict with \"kubectl\" with subresource \"scale\" using apps/v1: .spec.replicas";
    assert!(fight.err.contains(conflict), "{fight:#?}");
    let dry = apply("--dry-run=server --force-conflicts", &web);
    assert!(
        dry.out.contains("deployment.apps/raft serverside-applied (server dry run)"),
        "{dry:#?}"
    );
    s.is("kubectl get deploy raft -o jsonpath='{.spec.replicas}'", "1");
}

fn apply_prune(s: &Shell) {
    s.file("a.yaml", TIDE);
    s.file("b.yaml", &TIDE.replace("name: tide", "name: ebb"));
    let prune = "--prune -l sea=north --prune-allowlist=core/v1/ConfigMap";
    s.ok("cat a.yaml > both.yaml; echo --- >> both.yaml; cat b.yaml >> both.yaml; kubectl apply -f both.yaml");
    s.tells(&format!("kubectl apply -f a.yaml {prune} 2>&1"), &["configmap/ebb pruned"]);
    s.is("kubectl get cm -l sea -o name", "configmap/tide");
}

fn diff(s: &Shell) {
    s.apply(TIDE);
    s.file("tide.yaml", TIDE);
    s.ok("kubectl diff -f tide.yaml");
    s.file("new.yaml", &TIDE.replace("'12'", "'13'"));
    for form in ["", "--server-side --force-conflicts"] {
        let told = s.sh(&format!("kubectl diff {form} -f new.yaml"));
        assert_eq!(told.code, 1, "{told:#?}");
        assert!(told.out.contains("-  high: \"12\"\n+  high: \"13\"\n"), "{told:#?}");
    }
    s.is("kubectl get cm tide -o jsonpath='{.data.high}'", "12");
    s.file("fresh.yaml", &TIDE.replace("name: tide", "name: ebb"));
    let told = s.sh("kubectl diff -f fresh.yaml");
    assert!(told.code == 1 && told.out.contains("+  name: ebb"), "{told:#?}");
}

fn edit(s: &Shell) {
    s.apply(TIDE);
    s.is("EDITOR=\"sed -i /high:/s/12/14/\" kubectl edit cm tide", "configmap/tide edited");
    s.is("kubectl get cm tide -o jsonpath='{.data.high}'", "14");
    s.is("EDITOR=true kubectl edit cm tide 2>&1", "Edit cancelled, no changes made.");
    // What is refused is shown again, with the reason, until nothing changes.
    s.file("ed.sh", "#!/bin/sh\ngrep -q Invalid $1 && cp $1 seen.yaml || sed -i 's/name: tide/name: Tide_/' $1\n");
    let told = s.sh("chmod +x ed.sh; EDITOR=./ed.sh kubectl edit cm tide");
    assert_ne!(told.code, 0, "{told:#?}");
    s.apply(&WEB.replace("replicas: 2", "replicas: 0"));
    s.is("EDITOR=\"sed -i /app:.web/s/web/raft/\" kubectl edit deploy web 2>&1 | grep -c -m1 'is invalid'", "1");
}

fn patch(s: &Shell) {
    s.apply(TIDE);
    s.is("kubectl patch cm tide -p '{\"data\":{\"high\":\"1\"}}'", "configmap/tide patched");
    s.is(
        "kubectl patch cm tide -p '{\"data\":{\"high\":\"1\"}}'",
        "configmap/tide patched (no change)",
    );
    s.ok("kubectl patch cm tide --type=merge -p '{\"data\":{\"low\":null,\"wind\":\"w\"}}'");
    s.ok("kubectl patch cm tide --type=json -p '[{\"op\":\"test\",\"path\":\"/data/wind\",\"value\":\"w\"},{\"op\":\"add\",\"path\":\"/data/a~1b\",\"value\":\"x\"}]' || true");
    s.is("kubectl get cm tide -o jsonpath='{.data.high} {.data.wind} {.data.low}'", "1 w");
    s.fails("kubectl patch cm tide --type=json -p '[{\"op\":\"test\",\"path\":\"/data/wind\",\"value\":\"e\"}]'", &["The request is invalid", "value did not match"]);
    s.fails(
        "kubectl patch cm tide --type=json -p '[{\"op\":\"remove\",\"path\":\"/data/none\"}]'",
        &["The request is invalid", "/data/none"],
    );
    s.fails("kubectl patch cm none -p '{}'", &["configmaps \"none\" not found"]);
    s.fails("kubectl patch cm tide -p '{\"data\":{\"n\":5}}'", &["data"]);
    s.apply(&WEB.replace("replicas: 2", "replicas: 0"));
    // Strategic: by key, $patch: delete, and an order directive that is left alone.
    s.ok("kubectl patch deploy web -p '{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"web\",\"env\":[{\"name\":\"FLAG\",\"value\":\"red\"}]}]}}}}'");
    s.is(
        "kubectl get deploy web -o jsonpath='{.spec.template.spec.containers[0].env[*].name}'",
        "FLAG VERSION",
    );
    s.ok("kubectl patch deploy web -p '{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"web\",\"env\":[{\"name\":\"FLAG\",\"$patch\":\"delete\"}]}]}}}}'");
    s.is(
        "kubectl get deploy web -o jsonpath='{.spec.template.spec.containers[0].env[*].name}'",
        "VERSION",
    );
    s.ok("kubectl patch deploy web -p '{\"spec\":{\"strategy\":{\"$retainKeys\":[\"type\"],\"type\":\"Recreate\"}}}'");
    s.is("kubectl get deploy web -o jsonpath='{.spec.strategy}'", r#"{"type":"Recreate"}"#);
    s.ok("kubectl patch deploy web --subresource=scale --type=merge -p '{\"spec\":{\"replicas\":1}}'");
    s.is("kubectl get deploy web -o jsonpath='{.spec.replicas}'", "1");
    s.file("p.yaml", "data: {high: '7'}\n");
    s.ok("kubectl patch cm tide --patch-file p.yaml");
    s.is("kubectl get cm tide -o jsonpath='{.data.high}'", "7");
}

fn replace(s: &Shell) {
    s.apply(TIDE);
    s.file("tide.yaml", &TIDE.replace("'12'", "'20'"));
    s.is("kubectl replace -f tide.yaml", "configmap/tide replaced");
    s.is("kubectl get cm tide -o jsonpath='{.data.high}'", "20");
    s.fails(
        "sed s/tide/none/ tide.yaml | kubectl replace -f -",
        &["configmaps \"none\" not found"],
    );
    // An older version of it is a conflict.
    s.ok("kubectl get cm tide -o yaml > old.yaml; kubectl label cm tide a=b");
    s.fails("kubectl replace -f old.yaml", &["Error from server (Conflict)", "the object has been modified; please apply your changes to the latest version and try again"]);
    s.apply(SLEEPER);
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.file("pod.yaml", &SLEEPER.replace("'1000'", "'2000'"));
    s.fails("kubectl replace -f pod.yaml", &["pod updates may not change fields other than"]);
    let old = s.word("kubectl get pod sleeper -o jsonpath='{.metadata.uid}'");
    s.tells("kubectl replace --force -f pod.yaml", &["pod/sleeper replaced"]);
    assert_ne!(s.word("kubectl get pod sleeper -o jsonpath='{.metadata.uid}'"), old);
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.is("kubectl exec sleeper -- cat /proc/1/cmdline | tr '\\0' ' '", "sleep 2000");
}

fn label_annotate(s: &Shell) {
    s.apply(TIDE);
    s.is("kubectl label cm tide crew=small", "configmap/tide labeled");
    s.fails(
        "kubectl label cm tide crew=big",
        &["already has a value (small), and --overwrite is false"],
    );
    s.ok("kubectl label cm tide crew=big --overwrite");
    s.is("kubectl get cm -l crew=big -o name", "configmap/tide");
    s.is("kubectl label cm tide crew-", "configmap/tide unlabeled");
    s.is(
        "kubectl label cm --all deck=",
        "configmap/kube-root-ca.crt labeled\nconfigmap/tide labeled",
    );
    s.fails("kubectl label cm tide 'a b=c'", &["metadata.labels: Invalid value: \"a b\""]);
    s.is("kubectl annotate cm tide note='fair winds'", "configmap/tide annotated");
    s.is("kubectl get cm tide -o jsonpath='{.metadata.annotations.note}'", "fair winds");
    s.tells("kubectl annotate cm tide --list", &["note=fair winds"]);
    s.ok("kubectl annotate cm tide note-");
    s.ok("kubectl label ns $NS e2e=1 && kubectl label node n1 e2e-$NS=1 && kubectl label node n1 e2e-$NS-");
}

fn set(s: &Shell) {
    s.apply(&WEB.replace("replicas: 2", "replicas: 0"));
    s.is("kubectl set image deploy/web web=busybox:next", "deployment.apps/web image updated");
    s.is(
        "kubectl get deploy web -o jsonpath='{.spec.template.spec.containers[0].image}'",
        "busybox:next",
    );
    s.ok("kubectl set env deploy/web VERSION=two FLAG=red");
    s.tells("kubectl set env deploy/web --list", &["VERSION=two", "FLAG=red"]);
    s.ok("kubectl set resources deploy web --limits=cpu=200m,memory=64Mi --requests=cpu=100m");
    s.is(
        "kubectl get deploy web -o jsonpath='{.spec.template.spec.containers[0].resources.limits}'",
        r#"{"cpu":"200m","memory":"64Mi"}"#,
    );
    s.ok("kubectl create sa sailor && kubectl set serviceaccount deploy web sailor");
    s.is("kubectl get deploy web -o jsonpath='{.spec.template.spec.serviceAccountName}'", "sailor");
    s.ok("kubectl set selector svc web app=raft");
    s.is("kubectl get svc web -o jsonpath='{.spec.selector.app}'", "raft");
}

fn delete(s: &Shell) {
    s.apply(TIDE);
    s.is("kubectl delete cm tide", "configmap \"tide\" deleted from delete namespace");
    s.fails("kubectl delete cm tide", &["configmaps \"tide\" not found"]);
    s.ok("kubectl delete cm tide --ignore-not-found");
    s.ok("for i in 1 2 3; do kubectl create cm c$i; done; kubectl label cm c1 c2 x=y");
    s.ok("kubectl delete cm -l x=y");
    s.is("kubectl get cm -o name", "configmap/c3\nconfigmap/kube-root-ca.crt");
    s.ok("kubectl delete cm c3 --dry-run=server && kubectl get cm c3");
    // A pod that does not heed the signal is killed after its grace.
    let deaf = SLEEPER
        .replace("[sleep, '1000']", "[sh, -c, 'trap \"\" TERM; while :; do sleep 0.1; done']");
    s.apply(&deaf);
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.ok("kubectl delete pod sleeper --grace-period=300 --wait=false");
    s.is("kubectl get pod sleeper -o jsonpath='{.metadata.deletionGracePeriodSeconds}'", "300");
    s.tells("kubectl get pod sleeper", &["Terminating"]);
    // The grace may be shortened.
    s.ok("kubectl delete pod sleeper --grace-period=1 --timeout=30s");
    s.fails("kubectl get pod sleeper", &["not found"]);
    s.apply(&deaf);
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.tells(
        "kubectl delete pod sleeper --force --grace-period=0 2>&1",
        &["Immediate deletion does not wait", "force deleted"],
    );
    s.apply(SLEEPER);
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    s.ok("kubectl delete pod sleeper --now");
    // A finalizer holds it.
    s.ok("kubectl create cm held && kubectl patch cm held -p '{\"metadata\":{\"finalizers\":[\"dhow.dev/test\"]}}'");
    s.ok("kubectl delete cm held --wait=false");
    s.fails("kubectl wait --for=delete cm/held --timeout=1s", &["timed out"]);
    s.ok("kubectl patch cm held --type=merge -p '{\"metadata\":{\"finalizers\":null}}'");
    s.ok("kubectl wait --for=delete cm/held --timeout=30s");
    s.ok("kubectl delete cm,secret --all");
}

fn cascade(s: &Shell) {
    let web = WEB.replace("replicas: 2", "replicas: 1");
    s.apply(&web);
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.ok("kubectl delete deploy web --cascade=orphan");
    s.is("kubectl get deploy,rs -l app=web -o name | cut -d- -f1", "replicaset.apps/web");
    s.until("kubectl get rs -l app=web -o jsonpath='{.items[*].metadata.ownerReferences}{.items[*].metadata.finalizers}'", "");
    // The Deployment takes the orphan back.
    let rs = s.word("kubectl get rs -o name");
    s.apply(&web);
    s.until("kubectl get rs -o jsonpath='{.items[*].metadata.ownerReferences[0].name}'", "web");
    s.is("kubectl get rs -o name", &rs);
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.ok("kubectl delete deploy web --cascade=foreground --timeout=30s");
    s.is("kubectl get deploy,rs,pods -o name", "");
    s.apply(&web);
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.ok("kubectl delete deploy web --cascade=background");
    s.until("kubectl get deploy,rs,pods -o name", "");
}

fn delete_namespace(s: &Shell) {
    s.ok("kubectl create ns delete-me");
    let web = WEB.replace("replicas: 2", "replicas: 1");
    assert_eq!(s.pipe("kubectl apply -n delete-me -f -", &web).code, 0);
    s.ok("kubectl rollout status deploy/web -n delete-me --timeout=60s");
    s.ok("kubectl delete ns delete-me --wait=false");
    let refused = s.pipe("kubectl apply -n delete-me -f -", TIDE);
    assert!(
        refused.err.contains("because it is being terminated") || refused.err.contains("not found"),
        "{refused:#?}"
    );
    s.ok("kubectl wait --for=delete ns/delete-me --timeout=30s");
    s.fails("kubectl get ns delete-me", &["namespaces \"delete-me\" not found"]);
    s.is("kubectl get all -A 2>/dev/null | grep delete-me | cat", "");
    s.fails("kubectl delete ns default", &["forbidden"]);
    // One that does not go says why.
    s.ok("kubectl create ns moored");
    s.apply(
        "apiVersion: v1\nkind: ConfigMap\n\
         metadata: {name: rope, namespace: moored, finalizers: [ship.example/anchor]}\n",
    );
    s.ok("kubectl delete ns moored --wait=false");
    s.until(
        "kubectl get ns moored -o jsonpath='{.status.conditions[*].message}'",
        "Some resources are remaining: configmaps. has 1 resource instances \
         Some content in the namespace has finalizers remaining: ship.example/anchor in 1 resource instances",
    );
    s.ok("kubectl patch configmap rope -n moored --type=merge -p '{\"metadata\":{\"finalizers\":null}}'");
    s.ok("kubectl wait --for=delete ns/moored --timeout=30s");
}

fn run(s: &Shell) {
    let run = "kubectl run once --image=busybox --restart=Never --rm -i";
    // A container that ends within milliseconds: before, while or after the client attaches, and
    // whatever its code, its output comes exactly once.
    // (kubectl shows a pod that has ended before it looked from its log, where both streams are one.)
    for (round, code) in [0, 3].into_iter().cycle().enumerate().take(20) {
        let script = format!("echo out {round}; echo err {round} >&2; exit {code}");
        let told = s.sh(&format!("{run} --quiet -- sh -c '{script}'"));
        assert_eq!(told.code, code, "{told:#?}");
        let all = format!("{}{}", told.out, told.err);
        for line in [format!("out {round}\n"), format!("err {round}\n")] {
            assert_eq!(all.matches(&line).count(), 1, "{told:#?}");
        }
        assert!(told.out.contains(&format!("out {round}\n")), "{told:#?}");
    }
    let told = s.pipe(&format!("{run} --quiet -- sh -c 'read line; echo got $line'"), "fish\n");
    assert_eq!((told.code, told.out.as_str()), (0, "got fish\n"), "{told:#?}");
    s.fails("kubectl get pod once", &["not found"]);
    let told = s.pipe(&format!("{run} -- sh -c 'read line; exit 7'"), "end\n");
    assert_eq!(told.code, 7, "{told:#?}");
    s.fails("kubectl get pod once", &["not found"]);
    // On a terminal.
    let told = s.sh("script -qec \"kubectl run brief --image=busybox --restart=Never --rm -it -- sh -c 'tty; echo end'\" /dev/null");
    assert_eq!(told.out.matches("/dev/pts/0").count(), 1, "{told:#?}");
    let told = s.sh("script -qec \"kubectl run tty --image=busybox --restart=Never --rm -it -- sh -c 'sleep 1; tty; echo end'\" /dev/null");
    assert!(
        told.out.contains("/dev/pts/0") && told.out.contains("pod \"tty\" deleted"),
        "{told:#?}"
    );
    s.ok("kubectl run env --image=busybox --env=A=b --labels=x=y --port=80 --expose -- sleep 100");
    s.is("kubectl get svc env -o jsonpath='{.spec.selector.x}{.spec.ports[0].port}'", "y80");
    s.ok("kubectl wait --for=condition=Ready pod/env --timeout=30s");
    s.is("kubectl exec env -- sh -c 'echo $A'", "b");
    s.ok("kubectl run dry --image=busybox --dry-run=client -o yaml | kubectl create -f - && kubectl delete pod dry --now");
    s.fails("kubectl run once --image=busybox:none:x", &["invalid image name"]);
}

fn expose(s: &Shell) {
    s.apply(&WEB.split("---").next().unwrap().replace("replicas: 2", "replicas: 1"));
    s.is("kubectl expose deploy web --port=80 --target-port=8080", "service/web exposed");
    s.ok("kubectl expose deploy web --name=np --type=NodePort --port=80 --target-port=http");
    s.ok("kubectl rollout status deploy/web --timeout=60s");
    s.ok("kubectl expose pod $(kubectl get pod -o jsonpath='{.items[0].metadata.name}') --name=one --port=8080");
    s.ok("kubectl expose svc web --name=again --port=81 --target-port=8080");
    s.ok("kubectl run ask --image=busybox -- sleep 1000 && kubectl wait --for=condition=Ready pod/ask --timeout=30s");
    let run = "kubectl exec ask -- sh -c";
    s.until("kubectl get endpointslice -o jsonpath='{range .items[*]}{.endpoints[0].addresses[0]} {end}' | wc -w", "4");
    // The machine learns of them a moment later.
    s.until(
        &format!("{run} 'for u in web np one:8080 again:81; do wget -qO- http://$u; done'"),
        "one\none\none\none",
    );
    let port = s.word("kubectl get svc np -o jsonpath='{.spec.ports[0].nodePort}'");
    let node = s.word("kubectl get node n1 -o jsonpath='{.status.addresses[0].address}'");
    s.until(&format!("curl -sS http://{node}:{port}"), "one");
    s.fails("kubectl expose cm kube-root-ca.crt --port=1", &["cannot expose"]);
}

fn wait(s: &Shell) {
    s.apply(SLEEPER);
    s.is(
        "kubectl wait --for=condition=Ready pod/sleeper --timeout=30s",
        "pod/sleeper condition met",
    );
    s.ok("kubectl wait --for=jsonpath='{.status.phase}'=Running pod/sleeper --timeout=30s");
    s.ok("kubectl wait --for=jsonpath='{.status.podIP}' pod/sleeper --timeout=30s");
    s.fails(
        "kubectl wait --for=condition=Ready=false pod/sleeper --timeout=1s",
        &["timed out waiting for the condition on pods/sleeper"],
    );
    let gone = s.spawn("kubectl wait --for=delete pod/sleeper --timeout=30s");
    let made = s.spawn("kubectl wait --for=create cm/late --timeout=30s");
    s.ok("kubectl delete pod sleeper && kubectl create cm late");
    gone.wait_for("condition met");
    made.wait_for("condition met");
    s.fails(
        "kubectl wait --for=condition=Ready pod/none --timeout=1s",
        &["pods \"none\" not found"],
    );
    s.apply(&WEB.replace("replicas: 2", "replicas: 1"));
    s.ok("kubectl wait --for=condition=Available deploy/web --timeout=30s");
}
