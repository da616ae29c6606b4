//! The door, driven by the real kubectl 1.37 (`KUBECTL` or the one in `PATH`).

mod common;

use common::Platform;
use serde_json::Value;

const CONFIG: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: tide, labels: {app: shop}}
data: {high: \"12\"}
";

#[tokio::test(flavor = "multi_thread")]
async fn discovery_and_identity_are_told() {
    let platform = Platform::start().await;
    let version = platform.kubectl(&["version", "-o", "json"]).await;
    let version: Value = serde_json::from_str(&version).unwrap();
    assert_eq!(version["serverVersion"]["minor"], "37");
    let resources = platform.kubectl(&["api-resources", "-o", "name"]).await;
    for name in ["pods", "deployments.apps", "endpointslices.discovery.k8s.io"] {
        assert!(resources.lines().any(|line| line == name), "{name}: {resources}");
    }
    assert!(platform.kubectl(&["api-versions"]).await.contains("apps/v1"));
    assert!(platform.kubectl(&["cluster-info"]).await.contains(&platform.address));
    let me = platform.kubectl(&["auth", "whoami"]).await;
    assert!(me.contains("kubernetes-admin") && me.contains("system:masters"), "{me}");
    assert_eq!(platform.kubectl(&["auth", "can-i", "create", "pods"]).await.trim(), "yes");
    assert!(platform.kubectl(&["auth", "can-i", "--list"]).await.contains("*.*"));
    let ready = platform.kubectl(&["get", "--raw", "/readyz?verbose"]).await;
    assert!(ready.contains("[+]store ok"), "{ready}");
    platform.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_on_their_way_out_are_served_with_a_warning() {
    let platform = Platform::start().await;
    let parts = platform.try_kubectl(&["get", "cs"]).await;
    assert_eq!(parts.err.trim(), "Warning: v1 ComponentStatus is deprecated in v1.19+");
    let rows: Vec<Vec<&str>> =
        parts.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "STATUS", "MESSAGE", "ERROR"]);
    assert_eq!(rows[1], ["controller-manager", "Healthy", "ok"]);
    assert_eq!(rows[2], ["etcd-0", "Healthy", "ok"]);
    assert_eq!(rows[3], ["scheduler", "Healthy", "ok"]);
    let one = platform.kubectl(&["get", "componentstatus", "etcd-0", "-o", "name"]).await;
    assert_eq!(one.trim(), "componentstatus/etcd-0");
    let none = platform.try_kubectl(&["get", "cs", "mast"]).await;
    assert!(none.err.contains("componentstatuses \"mast\" not found"), "{none:?}");
    let endpoints = platform.try_kubectl(&["get", "endpoints"]).await;
    let told =
        "Warning: v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";
    assert_eq!(endpoints.err.lines().next(), Some(told));
    // A refusal comes with it.
    let none = platform.try_kubectl(&["get", "endpoints", "mast"]).await;
    assert!(!none.ok && none.err.starts_with(told), "{none:?}");
    assert!(!platform.try_kubectl(&["get", "pods"]).await.err.contains("Warning"));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let platform = Platform::start().await;
    let guest = platform.kubectl_as("guest", &["get", "pods"]).await;
    assert!(!guest.ok);
    let told = "Error from server (Forbidden): pods is forbidden: User \"guest\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!(guest.err.trim(), told);
    let can = platform.kubectl_as("guest", &["auth", "can-i", "get", "secrets"]).await;
    assert_eq!(can.out.trim(), "no");
    let nobody = platform.kubectl_as("nobody", &["get", "pods", "--token=x"]).await;
    assert!(nobody.err.contains("must be logged in"), "{nobody:?}");
    // Who may do everything may also look through others' eyes.
    let as_guest = platform.try_kubectl(&["get", "pods", "--as", "guest"]).await;
    assert_eq!(as_guest.err.trim(), told);
    let steal = platform.kubectl_as("guest", &["get", "pods", "--as", "kubernetes-admin"]).await;
    assert!(steal.err.contains("cannot impersonate resource \"users\""), "{steal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_account_tokens_identify() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    let token = platform.kubectl(&["create", "token", "default"]).await;
    let token = format!("--token={}", token.trim());
    let who = platform.kubectl_as("nobody", &["auth", "whoami", &token]).await;
    assert!(who.out.contains("system:serviceaccount:default:default"), "{who:?}");
    let wrong = platform.kubectl_as("nobody", &["auth", "whoami", "--token=x.y.z"]).await;
    assert!(!wrong.ok && wrong.err.contains("must be logged in"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_made_shown_changed_and_removed() {
    let platform = Platform::start().await;
    let k = async |arguments: &[&str]| platform.kubectl(arguments).await;
    assert_eq!(
        k(&["create", "configmap", "tide", "--from-literal=high=12"]).await,
        "configmap/tide created\n"
    );
    let again = platform.try_kubectl(&["create", "configmap", "tide"]).await;
    assert_eq!(
        again.err.trim(),
        "error: failed to create configmap: configmaps \"tide\" already exists"
    );
    assert_eq!(k(&["get", "cm", "tide", "-o", "name"]).await, "configmap/tide\n");
    assert!(k(&["get", "cm", "tide"]).await.starts_with("NAME   DATA   AGE\ntide   1 "));
    assert!(k(&["get", "cm", "tide", "-o", "yaml"]).await.contains("high: \"12\""));
    let path = "jsonpath={.data.high}";
    assert_eq!(k(&["get", "cm", "tide", "-o", path]).await, "12");
    k(&["label", "cm", "tide", "app=shop"]).await;
    k(&["annotate", "cm", "tide", "by=moon"]).await;
    assert_eq!(k(&["get", "cm", "-A", "-l", "app=shop", "-o", "name"]).await, "configmap/tide\n");
    assert_eq!(k(&["get", "cm", "-l", "app=x", "-o", "name"]).await, "");
    let by_name = "--field-selector=metadata.name=tide";
    assert_eq!(k(&["get", "cm", by_name, "-o", "name"]).await, "configmap/tide\n");
    k(&["patch", "cm", "tide", "-p", r#"{"data":{"low":"6"}}"#]).await;
    k(&["patch", "cm", "tide", "--type=merge", "-p", r#"{"data":{"high":null}}"#]).await;
    let json = r#"[{"op":"add","path":"/data/mid","value":"9"}]"#;
    k(&["patch", "cm", "tide", "--type=json", "-p", json]).await;
    let data = k(&["get", "cm", "tide", "-o", "jsonpath={.data}"]).await;
    assert_eq!(data, r#"{"low":"6","mid":"9"}"#);
    let described = k(&["describe", "cm", "tide"]).await;
    assert!(described.contains("by: moon") || described.contains("by=moon"), "{described}");
    k(&["wait", "cm/tide", "--for=jsonpath={.data.mid}=9", "--timeout=5s"]).await;
    assert_eq!(
        k(&["delete", "cm", "tide"]).await,
        "configmap \"tide\" deleted from default namespace\n"
    );
    let gone = platform.try_kubectl(&["get", "cm", "tide"]).await;
    assert_eq!(gone.err.trim(), "Error from server (NotFound): configmaps \"tide\" not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_is_applied_compared_edited_and_replaced() {
    let platform = Platform::start().await;
    let k = async |arguments: &[&str]| platform.kubectl(arguments).await;
    let file = platform.file("tide.yaml", CONFIG);
    assert_eq!(k(&["apply", "-f", &file]).await, "configmap/tide created\n");
    assert_eq!(k(&["apply", "-f", &file]).await, "configmap/tide unchanged\n");
    let newer = platform.file("newer.yaml", &CONFIG.replace("12", "13"));
    for arguments in [&["diff", "-f", &newer][..], &["diff", "--server-side", "-f", &newer]] {
        let said = platform.try_kubectl(arguments).await;
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.out.contains("+  high: \"13\""), "{said:?}");
    }
    assert_eq!(k(&["get", "cm", "tide", "-o", "jsonpath={.data.high}"]).await, "12");
    assert!(k(&["apply", "-f", &newer, "--dry-run=server"]).await.contains("(server dry run)"));
    assert_eq!(k(&["apply", "-f", &newer]).await, "configmap/tide configured\n");
    let managed = platform.file("managed.yaml", &CONFIG.replace("tide", "ebb"));
    for _ in 0..2 {
        let applied = k(&["apply", "--server-side", "-f", &managed]).await;
        assert_eq!(applied, "configmap/ebb serverside-applied\n");
    }
    k(&["replace", "-f", &platform.file("last.yaml", &CONFIG.replace("12", "14"))]).await;
    let editor = platform.file("editor.sh", "#!/bin/sh\nsed -i 's/\"14\"/\"15\"/' \"$1\"\n");
    let mut edit = platform.command("kubernetes-admin");
    edit.env("KUBE_EDITOR", format!("sh {editor}")).args(["edit", "cm", "tide"]);
    let edited = edit.output().await.unwrap();
    assert!(edited.status.success(), "{edited:?}");
    assert_eq!(k(&["get", "cm", "tide", "-o", "jsonpath={.data.high}"]).await, "15");
    k(&["replace", "--force", "-f", &file]).await;
    assert_eq!(k(&["get", "cm", "tide", "-o", "jsonpath={.data.high}"]).await, "12");
    assert!(k(&["delete", "-f", &file]).await.contains("deleted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_in_words_that_help() {
    let platform = Platform::start().await;
    let unknown = CONFIG.replace("\ndata:", "\ndta:");
    let said =
        platform.try_kubectl(&["apply", "-f", &platform.file("unknown.yaml", &unknown)]).await;
    assert!(said.err.contains("strict decoding error: unknown field \"dta\""), "{said:?}");
    let warned = platform
        .try_kubectl(&["create", "--validate=warn", "-f", &platform.file("unknown.yaml", &unknown)])
        .await;
    assert!(warned.ok && warned.err.contains("Warning: unknown field \"dta\""), "{warned:?}");
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n  a: 1\n";
    let said = platform.try_kubectl(&["create", "-f", &platform.file("type.yaml", twice)]).await;
    assert!(!said.ok && said.err.contains("cannot unmarshal number"), "{said:?}");
    let missing = platform.try_kubectl(&["get", "ships"]).await;
    let told = "error: the server doesn't have a resource type \"ships\"";
    assert_eq!(missing.err.trim(), told);
    let name = platform.try_kubectl(&["create", "configmap", "No_Name"]).await;
    assert!(name.err.contains("Invalid value: \"No_Name\""), "{name:?}");
    let raw = platform.try_kubectl(&["get", "--raw", "/apis/none/v1/things"]).await;
    let told = "Error from server (NotFound): the server could not find the requested resource";
    assert_eq!(raw.err.trim(), told);
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_are_scaled_explained_and_listed() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    let k = async |arguments: &[&str]| platform.kubectl(arguments).await;
    k(&["create", "deployment", "shop", "--image=shop:1", "--replicas=2"]).await;
    k(&["scale", "deployment/shop", "--replicas=3"]).await;
    let replicas = "jsonpath={.spec.replicas}";
    assert_eq!(k(&["get", "deploy", "shop", "-o", replicas]).await, "3");
    assert!(k(&["get", "deploy", "shop", "-o", "wide"]).await.contains("shop:1"));
    let scale = k(&["get", "deploy", "shop", "--subresource=scale", "-o", "yaml"]).await;
    assert!(scale.contains("kind: Scale"), "{scale}");
    let scale = k(&["get", "deploy", "shop", "--subresource=scale"]).await;
    assert!(scale.starts_with("NAME   DESIRED   AVAILABLE   AGE\nshop   3         0"), "{scale}");
    k(&["set", "image", "deployment/shop", "shop=shop:2"]).await;
    assert!(k(&["rollout", "history", "deployment/shop"]).await.contains("shop"));
    let told = k(&["explain", "deployment.spec.replicas"]).await;
    assert!(told.contains("FIELD: replicas <integer>"), "{told}");
    k(&["create", "service", "clusterip", "shop", "--tcp=80:8080"]).await;
    k(&["expose", "deployment", "shop", "--name=front", "--port=80"]).await;
    let all = k(&["get", "all"]).await;
    for name in ["pod/web", "service/front", "deployment.apps/shop"] {
        assert!(all.contains(name), "{all}");
    }
    let pods = k(&["get", "pods", "-A", "-o", "wide"]).await;
    assert!(pods.contains("Running") && pods.contains("n1"), "{pods}");
    let on_node = k(&["get", "pods", "--field-selector=spec.nodeName=n1", "-o", "name"]).await;
    assert_eq!(on_node, "pod/web\n");
    assert!(k(&["describe", "pod", "web"]).await.contains("busybox"));
    assert!(k(&["describe", "node", "n1"]).await.contains("web"));
    k(&["wait", "pod/web", "--for=condition=Ready", "--timeout=5s"]).await;
    platform.try_kubectl(&["events"]).await;
    k(&["create", "namespace", "port"]).await;
    k(&["delete", "pod", "web", "--grace-period=0", "--force"]).await;
    k(&["delete", "service", "front", "--wait=true"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_followed() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let platform = Platform::start().await;
    platform.kubectl(&["create", "configmap", "tide", "--from-literal=high=12"]).await;
    for format in [&[][..], &["-o", "jsonpath={.metadata.name}{\"\\n\"}"], &["-o", "name"]] {
        let mut watch = platform.command("kubernetes-admin");
        watch.args(["get", "cm", "tide", "-w"]).args(format);
        watch.stdout(std::process::Stdio::piped());
        let mut watch = watch.spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        let mut next = async || {
            let limit = std::time::Duration::from_secs(20);
            tokio::time::timeout(limit, lines.next_line()).await.unwrap().unwrap().unwrap()
        };
        let mut first = next().await;
        if format.is_empty() {
            assert!(first.starts_with("NAME"), "{first}");
            first = next().await;
        }
        assert!(first.contains("tide"), "{first}");
        platform.kubectl(&["annotate", "cm", "tide", "--overwrite", "n=1"]).await;
        platform.kubectl(&["annotate", "cm", "tide", "--overwrite", "n=2"]).await;
        let second = next().await;
        assert!(second.contains("tide"), "{second}");
        watch.kill().await.unwrap();
    }
}
