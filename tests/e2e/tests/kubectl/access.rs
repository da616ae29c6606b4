//! Who may do what: identities, tokens, roles.

use crate::SLEEPER;
use e2e::{Check, Shell};

pub const ALL: &[Check] = &[
    ("identity", identity),
    ("roles", roles),
    ("escalation", escalation),
    ("token-in-pod", token_in_pod),
    ("token-in-secret", token_in_secret),
];

/// A shell whose kubectl knows only this service account's token.
fn sailor(s: &Shell) -> Shell {
    let token = s.word("kubectl create token sailor");
    s.ok(&format!(
        "cp $KUBECONFIG sailor.kubeconfig; export KUBECONFIG=sailor.kubeconfig; \
         kubectl config set-credentials sailor --token={token}; \
         kubectl config set-context --current --user=sailor; \
         kubectl config delete-user kubernetes-admin"
    ));
    s.with_kubeconfig(&s.dir.join("sailor.kubeconfig"))
}

fn identity(s: &Shell) {
    s.tells("kubectl auth whoami", &["kubernetes-admin", "system:masters", "system:authenticated"]);
    s.is("kubectl auth can-i '*' '*'", "yes");
    s.tells("kubectl auth can-i --list", &["*.*"]);
    s.ok("kubectl create sa sailor");
    let sailor = sailor(s);
    sailor.tells(
        "kubectl auth whoami",
        &["system:serviceaccount:identity:sailor", "system:serviceaccounts:identity"],
    );
    sailor.fails("kubectl auth can-i get pods", &[]);
    sailor.fails("kubectl get pods --token=none", &["You must be logged in to the server"]);
    s.is("kubectl auth can-i get pods --as=system:serviceaccount:$NS:sailor || true", "no");
    // A token for another audience is none for this server; one that ran out neither.
    let other = s.word("kubectl create token sailor --audience=elsewhere");
    sailor.fails(&format!("kubectl get pods --token={other}"), &["You must be logged in"]);
    // With the account goes the token.
    s.ok("kubectl delete sa sailor");
    sailor.fails("kubectl auth whoami", &["You must be logged in"]);
    s.fails("kubectl create token none", &["serviceaccounts \"none\" not found"]);
    s.fails(
        "kubectl create token default --duration=1s",
        &["may not specify a duration less than 10 minutes"],
    );
}

fn roles(s: &Shell) {
    s.apply(SLEEPER);
    s.ok("kubectl create sa sailor && kubectl create configmap tide --from-literal=high=12");
    let sailor = sailor(s);
    let me = "User \"system:serviceaccount:roles:sailor\"";
    sailor.fails(
        "kubectl get pods",
        &[
            "Error from server (Forbidden)",
            "pods is forbidden",
            me,
            "cannot list resource \"pods\" in API group \"\" in the namespace \"roles\"",
        ],
    );
    s.ok("kubectl create role watch --verb=get,list,watch --resource=pods,pods/log");
    s.ok("kubectl create role one --verb=get,update,patch --resource=configmaps --resource-name=tide");
    s.ok("kubectl create rolebinding watch --role=watch --serviceaccount=$NS:sailor");
    s.ok("kubectl create rolebinding one --role=one --serviceaccount=$NS:sailor");
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    // What the roles say.
    sailor.is("kubectl get pods -o name", "pod/sleeper");
    sailor.ok("kubectl logs sleeper");
    sailor.is("kubectl get cm tide -o jsonpath='{.data.high}'", "12");
    sailor.ok("kubectl patch cm tide -p '{\"data\":{\"high\":\"13\"}}'");
    sailor.is("kubectl auth can-i list pods", "yes");
    sailor.tells("kubectl auth can-i --list", &["pods", "[get list watch]", "[tide]"]);
    // And nothing else.
    for (line, verb) in [
        ("kubectl delete pod sleeper", "cannot delete resource \"pods\""),
        ("kubectl exec sleeper -- true", "cannot create resource \"pods/exec\""),
        ("kubectl get cm", "cannot list resource \"configmaps\""),
        ("kubectl get cm kube-root-ca.crt", "cannot get resource \"configmaps\""),
        ("kubectl delete cm tide", "cannot delete resource \"configmaps\""),
        ("kubectl create cm new", "cannot create resource \"configmaps\""),
        ("kubectl get secrets", "cannot list resource \"secrets\""),
        ("kubectl get pods -A", "at the cluster scope"),
        ("kubectl get pods -n default", "in the namespace \"default\""),
        ("kubectl get nodes", "cannot list resource \"nodes\""),
        (
            "kubectl patch pod sleeper --subresource=status --type=merge -p '{\"status\":{\"phase\":\"Failed\"}}'",
            "resource \"pods/status\"",
        ),
        ("kubectl create token default", "cannot create resource \"serviceaccounts/token\""),
        ("kubectl get pods --as=kubernetes-admin", "cannot impersonate resource \"users\""),
        ("kubectl port-forward pod/sleeper :80", "cannot create resource \"pods/portforward\""),
        ("kubectl get --raw /metrics", "forbidden"),
    ] {
        sailor.fails(line, &[verb]);
    }
    s.is("kubectl get pod sleeper -o jsonpath='{.status.phase}'", "Running");
    // Taken away, it is gone at once.
    s.ok("kubectl delete rolebinding watch");
    sailor.fails("kubectl get pods", &["forbidden"]);
    // The cluster roles that people expect.
    s.ok("kubectl create rolebinding view --clusterrole=view --serviceaccount=$NS:sailor");
    sailor.ok("kubectl get pods,cm,svc,deploy");
    sailor.fails("kubectl get secrets", &["forbidden"]);
    s.ok("kubectl create rolebinding edit --clusterrole=edit --serviceaccount=$NS:sailor");
    sailor.ok("kubectl create secret generic mine && kubectl delete secret mine && kubectl delete pod sleeper --now");
    sailor.fails("kubectl create role x --verb=get --resource=pods", &["forbidden"]);
}

fn escalation(s: &Shell) {
    s.ok("kubectl create sa sailor");
    s.ok("kubectl create role maker --verb=create,get,update,patch --resource=roles,rolebindings");
    s.ok("kubectl create rolebinding maker --role=maker --serviceaccount=$NS:sailor");
    let sailor = sailor(s);
    sailor.fails(
        "kubectl create role secrets --verb=get --resource=secrets",
        &["is attempting to grant RBAC permissions not currently held"],
    );
    sailor.fails(
        "kubectl create rolebinding admin --clusterrole=cluster-admin --serviceaccount=$NS:sailor",
        &["is attempting to grant RBAC permissions not currently held"],
    );
    sailor.ok("kubectl create role lesser --verb=get --resource=roles");
}

fn token_in_pod(s: &Shell) {
    s.apply(SLEEPER);
    s.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s");
    let dir = "/var/run/secrets/kubernetes.io/serviceaccount";
    s.is(&format!("kubectl exec sleeper -- cat {dir}/namespace"), "token-in-pod");
    s.tells(&format!("kubectl exec sleeper -- cat {dir}/ca.crt"), &["BEGIN CERTIFICATE"]);
    let token = s.word(&format!("kubectl exec sleeper -- cat {dir}/token"));
    s.file("in.kubeconfig", "");
    s.tells(&format!("kubectl --kubeconfig=in.kubeconfig --server=$(kubectl config view --minify -o jsonpath='{{.clusters[0].cluster.server}}') --insecure-skip-tls-verify --token={token} auth whoami"), &["system:serviceaccount:token-in-pod:default"]);
    // The API answers inside too.
    s.is("kubectl exec sleeper -- sh -c 'nc -w 3 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo open'", "open");
    // A pod's token dies with the pod.
    s.ok("kubectl delete pod sleeper --now");
    s.fails(&format!("kubectl --kubeconfig=in.kubeconfig --server=$(kubectl config view --minify -o jsonpath='{{.clusters[0].cluster.server}}') --insecure-skip-tls-verify --token={token} auth whoami"), &["You must be logged in"]);
}

/// A secret of the right type gets a token that lives as long as the secret does.
fn token_in_secret(s: &Shell) {
    s.ok("kubectl create sa robot");
    s.apply(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/service-account-token\n\
         metadata: {name: key, annotations: {kubernetes.io/service-account.name: robot}}\n",
    );
    let field =
        |name: &str| format!("kubectl get secret key -o jsonpath='{{.data.{name}}}' | base64 -d");
    s.until(&format!("{} | tr . '\\n' | grep -c .", field("token")), "3");
    s.is(&field("namespace"), "token-in-secret");
    s.tells(&field("ca\\.crt"), &["BEGIN CERTIFICATE"]);
    s.file("robot.kubeconfig", "");
    let whoami = format!(
        "kubectl --kubeconfig=robot.kubeconfig --server=$(kubectl config view --minify -o \
         jsonpath='{{.clusters[0].cluster.server}}') --insecure-skip-tls-verify --token={} auth whoami",
        s.word(&field("token"))
    );
    s.tells(&whoami, &["system:serviceaccount:token-in-secret:robot"]);
    s.tells("kubectl describe secret key", &["token:", "ca.crt:"]);
    s.ok("kubectl delete secret key");
    s.fails(&whoami, &["You must be logged in"]);
}
