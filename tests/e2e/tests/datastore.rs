//! The platform on an external etcd cluster: a real etcd (`ETCD` or the `etcd` in `PATH`).

#[path = "datastore/etcd.rs"]
mod etcd;

use e2e::{Machine, Output, Shell};
use etcd::Etcd;

fn etcdctl(shell: &Shell, port: u16, command: &str) -> String {
    shell.ok(&format!("ETCDCTL_API=3 etcdctl --endpoints=127.0.0.1:{port} {command}"))
}

/// Every refusal is one line that says what to do.
fn one_line(output: &Output, parts: &[&str]) {
    assert_eq!(output.code, 1, "{output:#?}");
    // After what a platform that runs in the foreground logs.
    let told: Vec<&str> = output.err.lines().filter(|l| !l.contains(" INFO ")).collect();
    assert!(told.len() == 1 && told[0].starts_with("dhow: "), "one line: {output:#?}");
    for part in parts {
        assert!(output.err.contains(part), "must say {part:?}: {output:#?}");
    }
}

const WEB: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: busybox, command: [sh, -c, 'exec httpd -f -p 8080 -h /www']}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

#[test]
fn the_platform_runs_on_an_external_etcd_and_its_state_stays() {
    let mut machine = Machine::bare("datastore");
    let shell = machine.admin().clone();
    let store = Etcd::start(&shell, "store", 12379, &[]);
    let flags = ["--datastore", "http://127.0.0.1:12379"];
    machine.up(&flags);
    machine.dhow(&["image", "load", "-i", "busybox.tar"]);
    assert!(!shell.data.join("store").exists(), "no embedded store is opened");
    shell.tells("dhow status", &["in etcd at http://127.0.0.1:12379"]);

    // A deployment works as on the embedded store.
    shell.apply(WEB);
    shell.ok("kubectl rollout status deployment/web --timeout=60s");
    let ip = shell.word("kubectl get service web -o jsonpath='{.spec.clusterIP}'");
    shell.until(&format!("curl -sS -m 5 http://{ip}/index.html"), "ahoy");
    shell.ok("kubectl scale deployment web --replicas=3");
    shell.ok("kubectl rollout status deployment/web --timeout=60s");
    let keys = etcdctl(&shell, 12379, "get --prefix --keys-only /registry/deployments/");
    let keys = if keys.trim().is_empty() {
        etcdctl(&shell, 12379, "get --prefix --keys-only /registry/")
    } else {
        keys
    };
    assert!(keys.contains("/default/web"), "{keys}");
    // Configuration lies in the same cluster, and needs no flag.
    shell.is("dhow config put shop/name ahoy | cut -d' ' -f1", "shop/name");
    shell.is("dhow config get shop/name", "ahoy");
    // Nor do etcd's own clients.
    shell.is(
        "eval \"$(dhow env)\" && ETCDCTL_API=3 etcdctl get --print-value-only /config/shop/name",
        "ahoy",
    );
    // Foreign keys move the revision and disturb nobody.
    etcdctl(&shell, 12379, "put /other/key value");
    shell.ok("kubectl create configmap log --from-literal=day=1");

    // The store goes away in the middle and comes back: the platform goes on by itself.
    drop(store);
    let refused = shell.sh("kubectl create configmap lost --from-literal=day=1");
    assert_ne!(refused.code, 0, "nobody took it: {refused:#?}");
    let store = Etcd::start(&shell, "store", 12379, &[]);
    shell.until("kubectl create configmap later --from-literal=day=2 -o name", "configmap/later");
    shell.ok("kubectl scale deployment web --replicas=1");
    shell.ok("kubectl rollout status deployment/web --timeout=60s");
    shell.until("kubectl get pods -o name | wc -l", "1");

    // A restart finds everything, without a word about where it is.
    machine.dhow(&["down"]);
    machine.up(&[]);
    shell.is("kubectl get configmap log -o jsonpath='{.data.day}'", "1");
    shell.ok("kubectl wait --for=condition=Available deployment/web --timeout=60s");
    shell
        .is(&format!("curl -sS -m 5 --retry 5 --retry-connrefused http://{ip}/index.html"), "ahoy");
    machine.dhow(&["down"]);

    // Without its store the platform does not start, and says so.
    drop(store);
    one_line(&machine.dhow(&["up"]), &["127.0.0.1:12379", "start it", "--datastore"]);
}

#[test]
fn a_store_that_is_somebody_elses_is_refused() {
    let mut first = Machine::bare("first");
    let shell = first.admin().clone();
    let _store = Etcd::start(&shell, "store", 12379, &[]);
    first.up(&["--datastore", "127.0.0.1:12379"]);
    first.dhow(&["down"]);

    // Another platform, over the same keys.
    let other = shell.dir.join("other").display().to_string();
    let up =
        |port: &str| first.dhow(&["up", "--name", "n2", "--data-dir", &other, "--datastore", port]);
    one_line(&up("127.0.0.1:12379"), &["another dhow platform", "machine n1", "another cluster"]);
    // A cluster that another Kubernetes lives in.
    let _foreign = Etcd::start(&shell, "foreign", 12479, &[]);
    etcdctl(&shell, 12479, "put /registry/pods/default/x '{}'");
    one_line(&up("127.0.0.1:12479"), &["not dhow's", "a cluster of its own"]);
    // What is no address.
    one_line(&up("mysql://127.0.0.1:3306"), &["unknown scheme", "--datastore"]);
    one_line(&up("127.0.0.1"), &["no port"]);
    assert_eq!(first.dhow(&["down", "--purge", "--data-dir", &other]).code, 0);
    // The first one is not disturbed by any of this, and its members may move.
    first.up(&["--datastore", "http://127.0.0.1:12379,http://127.0.0.1:12999"]);
    shell.ok("kubectl get nodes");
    // What is embedded stays embedded.
    let own = shell.dir.join("own").display().to_string();
    std::fs::create_dir_all(format!("{own}/store")).expect("a directory");
    std::fs::write(format!("{own}/dhow.log"), "").expect("a file");
    let config = std::fs::read_to_string(shell.data.join("config.json")).expect("settings");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    config.as_object_mut().expect("an object").remove("datastore");
    std::fs::write(format!("{own}/config.json"), config.to_string()).expect("a file");
    let refused = first.dhow(&["up", "--data-dir", &own, "--datastore", "127.0.0.1:12379"]);
    one_line(&refused, &["contradicts", "embedded store"]);
}

/// An authority and certificates, made by openssl.
const CERTIFICATES: &str = "\
set -e
mkdir -p tls && cd tls
for ca in ca other; do
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
    -subj /CN=$ca -keyout $ca.key -out $ca.crt 2>/dev/null
done
printf 'subjectAltName=IP:127.0.0.1\\n' > names
for name in server client; do
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name \
    -keyout $name.key -out $name.csr 2>/dev/null
  openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
    -extfile names -out $name.crt 2>/dev/null
done
";

#[test]
fn certificates_are_checked_both_ways() {
    let mut machine = Machine::bare("secured");
    let shell = machine.admin().clone();
    shell.ok(CERTIFICATES);
    let files = [
        ["--cert-file", "tls/server.crt"],
        ["--key-file", "tls/server.key"],
        ["--trusted-ca-file", "tls/ca.crt"],
    ];
    let flags = [&files.concat()[..], &["--client-cert-auth"]].concat();
    let _store = Etcd::start(&shell, "store", 12379, &flags);
    let url = "https://127.0.0.1:12379";
    let up = |flags: &[&str]| {
        let mut all = vec!["up", "--name", "n1", "--datastore", url];
        all.extend(flags);
        machine.dhow(&all)
    };
    let shown = ["--datastore-cert", "tls/client.crt", "--datastore-key", "tls/client.key"];
    let with = |ca: &'static str| [&shown[..], &["--datastore-ca", ca]].concat();
    one_line(&up(&with("tls/other.crt")), &["not trusted", "--datastore-ca"]);
    one_line(&up(&["--datastore-ca", "tls/ca.crt"]), &["ends the connection", "--datastore-cert"]);
    one_line(&up(&with("tls/none.crt")), &["tls/none.crt"]);
    let mut flags = vec!["--datastore", url];
    flags.extend(with("tls/ca.crt"));
    machine.up(&flags);
    shell.ok("kubectl get nodes");
    // The paths are kept, wherever the next start is from.
    machine.dhow(&["down"]);
    shell.ok("cd / && dhow up --detach && kubectl get nodes");
}
