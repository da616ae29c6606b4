//! A platform of several servers: how they join, what the loss of one means, how one leaves. Each is
//! a network namespace on a bridge; kubectl and etcdctl are the real ones.

#[path = "store/member.rs"]
mod member;

use e2e::{Lan, Machine, Shell, address};

fn url(n: u8) -> String {
    format!("https://{}:6443", address(n))
}

fn platform(lan: &Lan, name: &str) -> (Machine, String) {
    let mut machine = Machine::bare(name);
    lan.connect(&mut machine, 1);
    machine.up(&["--advertise", &address(1)]);
    let token = machine.admin().word("dhow token");
    (machine, token)
}

fn another(lan: &Lan, name: &str, n: u8) -> Machine {
    let mut machine = Machine::bare(&format!("{name}{n}"));
    lan.connect(&mut machine, n);
    machine
}

/// `etcdctl` as `dhow env` configures it, on the shell's machine.
fn etcdctl(command: &str) -> String {
    format!("eval \"$(dhow env)\"; {} {command}", member::etcdctl())
}

fn kill(shell: &Shell) {
    shell.ok("pid=$(cat data/dhow.pid); kill -9 $pid; while kill -0 $pid 2>/dev/null; do sleep 0.02; done");
}

const SET: &str = "apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: NAME}\nspec:\n  replicas: 2\n  \
     selector: {matchLabels: {app: NAME}}\n  template:\n    metadata: {labels: {app: NAME}}\n    \
     spec: {nodeSelector: {none: such}, containers: [{name: c, image: busybox}]}";

/// A loop has made the pods of a new set.
fn makes_pods(shell: &Shell, name: &str) {
    shell.until(
        &format!(
            "cat <<E | kubectl apply -f - >/dev/null; kubectl get pods -l app={name} -o name | wc -l\n{}\nE",
            SET.replace("NAME", name)
        ),
        "2",
    );
}

/// A server on `n2` that tells its name, a client on `n1`, and a service for the server.
const APART: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: n2
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'hostname > /www/index.html; echo up; exec httpd -f -p 8080 -h /www']
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, "10000"]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, type: NodePort, ports: [{port: 80, targetPort: 8080}]}
"#;

/// Pods of different machines reach each other, and are reached through every server.
fn pods_reach_each_other(one: &Shell, two: &Shell) {
    one.ok("dhow image load -i busybox.tar");
    two.ok("dhow image load -i busybox.tar");
    one.apply(APART);
    one.ok("kubectl wait --for=condition=Ready pod/web pod/client --timeout=30s");
    one.is(
        "kubectl get nodes -o jsonpath='{.items[*].spec.podCIDR}' | tr ' ' '\\n' | sort | xargs",
        "10.244.0.0/24 10.244.1.0/24 10.244.2.0/24",
    );
    let ip = one.word("kubectl get pod web -o jsonpath={.status.podIP}");
    let port = one.word("kubectl get service web -o jsonpath={.spec.ports[0].nodePort}");
    for shell in [one, two] {
        for to in [format!("{ip}:8080"), "web".into(), format!("10.9.0.1:{port}")] {
            shell.until(&format!("kubectl exec client -- timeout 3 wget -qO- http://{to}"), "web");
        }
        shell.is(&format!("curl -sS -m 5 http://{ip}:8080"), "web");
        shell.is("kubectl logs web", "up");
    }
    one.is("dhow logs web", "up");
    one.is("kubectl exec -i web -- sh -c 'read line; echo $line' <<E\nahoy\nE", "ahoy");
}

#[test]
fn three_servers_go_on_without_one() {
    let lan = Lan::new("three");
    let (first, token) = platform(&lan, "srv1");
    let one = first.admin();
    one.ok("kubectl create configmap before --from-literal=a=1");
    let (mut second, mut third) = (another(&lan, "srv", 2), another(&lan, "srv", 3));
    // At the same time: one waits for the other.
    std::thread::scope(|both| {
        both.spawn(|| second.join("n2", &url(1), &token));
        both.spawn(|| third.join("n3", &url(1), &token));
    });
    let (two, three) = (second.admin(), &third.admin().clone());

    // Three that vote, as an etcd client sees them on each.
    for shell in [one, two, three] {
        let list = etcdctl(
            "member list | grep -c 'started, n[123], https://10.9.0.[123]:2380, https://10.9.0.[123]:2379, false'",
        );
        shell.is(&list, "3");
        shell.is("dhow status -o json | grep -cE '\"role\": \"(leader|voter)\"'", "3");
        shell.is("kubectl get configmap before -o jsonpath={.data.a}", "1");
    }
    one.until(
        "dhow status | grep '^servers'",
        "servers    3 of 3 there; 'dhow token' tells what others join with",
    );
    // What one has acknowledged, the others have.
    for n in 0..5 {
        three.ok(&format!("kubectl create configmap by{n} --from-literal=n={n}"));
        two.is(&format!("kubectl get configmap by{n} -o jsonpath={{.data.n}}"), &n.to_string());
    }
    // A token of one is good for another.
    let bearer = two.word("kubectl create token default");
    three.ok(&format!(
        "curl -sf --cacert data/pki/ca.crt -H 'Authorization: Bearer {bearer}' {}/api | grep -q v1",
        url(3)
    ));
    // The loops run, on one of them.
    makes_pods(three, "first");
    one.until(
        "kubectl get endpoints kubernetes -o jsonpath='{.subsets[0].addresses[*].ip}'",
        "10.9.0.1 10.9.0.2 10.9.0.3",
    );

    pods_reach_each_other(one, two);

    // The first one dies: nothing that was acknowledged is lost, and the others go on.
    kill(one);
    two.until("kubectl create configmap after --from-literal=a=1 >/dev/null && echo made", "made");
    three.is("kubectl get configmap after -o jsonpath={.data.a}", "1");
    three.is("kubectl get configmaps -o name | grep -cE '/(before|after|by[0-4])$'", "7");
    makes_pods(two, "second");
    // Its machine is not heard of any more (sooner than usual): no service leads to its pods.
    two.ok(
        "kubectl -n kube-node-lease patch lease n1 -p '{\"spec\": {\"leaseDurationSeconds\": 1}}'",
    );
    let ready = "-o jsonpath='{.status.conditions[?(@.type==\"Ready\")].status}'";
    two.until(&format!("kubectl get node n1 {ready}"), "Unknown");
    two.until(&format!("kubectl get pod client {ready}"), "False");
    two.until(
        "kubectl get endpoints kubernetes -o jsonpath='{.subsets[0].addresses[*].ip}'",
        "10.9.0.2 10.9.0.3",
    );
    // It comes back and has what it missed.
    one.ok("dhow up --detach");
    one.is("kubectl get configmap after -o jsonpath={.data.a}", "1");
    one.until(&format!("kubectl get node n1 {ready}"), "True");
    one.until(&format!("kubectl get pod client {ready}"), "True");
    one.is(&etcdctl("endpoint status | grep -c ', false, '"), "1");

    // One that is purged leaves; the others need it no more.
    three.ok("dhow down --purge");
    two.is(&etcdctl("member list | wc -l"), "2");
    two.is("dhow status -o json | grep -c '\"role\"'", "2");
    // It may come back, as another one; whichever server it is told, it is the same platform.
    third.join("n3", &url(2), &token);
    three.is("kubectl get configmap after -o jsonpath={.data.a}", "1");
    three.ok("dhow down --purge");
    // So does the last but one, though it takes both to agree.
    two.ok("dhow down --purge");
    one.until(&etcdctl("member list | wc -l"), "1");
    one.ok("kubectl create configmap alone");
    makes_pods(one, "third");
}

/// Who is refused is told why in one line, and leaves nothing: neither here nor in the cluster.
#[test]
fn who_may_not_join_leaves_nothing() {
    let lan = Lan::new("refused");
    let (first, token) = platform(&lan, "ref1");
    let second = another(&lan, "ref", 2);
    let (one, two) = (first.admin(), second.admin());
    let refused = |url: &str, token: &str, more: &str, part: &str| {
        let line = format!("dhow join {url} --token {token} {more}");
        let said = two.fails(&line, &[part]);
        assert_eq!(said.lines().filter(|line| line.starts_with("dhow:")).count(), 1, "{said}");
        two.is("ls -A data 2>/dev/null | wc -l", "0");
        one.is(&etcdctl("member list | wc -l"), "1");
    };
    let (head, secret) = token.rsplit_once('.').expect("a token");
    let other = if secret.starts_with('0') { "1" } else { "0" };
    refused(
        &url(1),
        &format!("{head}.{other}{}", &secret[1..]),
        "--server --name n2",
        "does not know this token",
    );
    let digit = if token.as_bytes()[6] == b'0' { "1" } else { "0" };
    let stranger = format!("{}{digit}{}", &token[..6], &token[7..]);
    refused(
        &url(1),
        &stranger,
        "--server --name n2",
        "its authority is another one than that of the token",
    );
    refused(&url(1), "nonsense", "--server --name n2", "'dhow token' on a server");
    refused(&url(9), &token, "--server --name n2", "cannot be reached");
    refused("http://x", &token, "--server --name n2", "write https://HOST:6443");
    refused(&url(1), &token, "--server --name n1", "a machine named n1 is part of the platform");
    refused(&url(1), &token, "--name n2", "add --server");
    // Another version, and somebody who has no token.
    let ask = |token: &str, version: &str| {
        format!(
            "curl -s --cacert data/pki/ca.crt -H 'Authorization: Bearer {token}' -d \
             '{{\"version\":\"{version}\",\"name\":\"n2\",\"peer\":\"https://10.9.0.2:2380\"}}' {}/dhow/v1/join",
            url(1)
        )
    };
    one.tells(&ask(&token, "9.9.9"), &["this machine has 9.9.9", "\"code\":409"]);
    one.tells(&ask("x", "9.9.9"), &["\"code\":401"]);
    one.is("stat -c %a data/token", "600");
    // One that the others cannot reach at its address is told so, and forgotten.
    let deaf = "--server --name n2 --advertise 10.9.0.2 --peer-listen 127.0.0.1:2380";
    refused(&url(1), &token, deaf, "no other server reaches this one");
    // Somebody else has the port.
    let _taken = two.spawn("exec python3 -c \"import socket, time; s = socket.create_server(('', 2380)); print('up', flush=True); time.sleep(60)\"");
    _taken.wait_for("up");
    refused(
        &url(1),
        &token,
        "--server --name n2",
        "free the port or choose another with --peer-listen",
    );
}

/// One that is killed while it joins goes on where it was.
#[test]
fn a_server_that_is_killed_while_it_joins_goes_on() {
    let lan = Lan::new("killed");
    let (first, token) = platform(&lan, "kil1");
    let mut second = another(&lan, "kil", 2);
    let (one, two) = (first.admin(), second.admin().clone());
    one.ok("kubectl create configmap before");
    // The leader cannot reach it, so that it stays a learner that knows nothing.
    two.ok("nft -f - <<E\ntable ip deaf { chain in { type filter hook input priority 0; tcp dport 2380 drop; }; }\nE");
    let joins = two.spawn(&format!("dhow join {} --token {token} --server --name n2", url(1)));
    one.until(&etcdctl("member list | grep -c true"), "1");
    two.until("ls data/store/log-* >/dev/null && echo begun", "begun");
    kill(&two);
    drop(joins);
    two.ok("nft delete table ip deaf");
    second.up(&[]);
    let (one, two) = (first.admin(), second.admin());
    one.is(&etcdctl("member list | grep -c 'started, n[12].*false'"), "2");
    two.is("kubectl get configmap before -o name", "configmap/before");
    // It is the same after another crash, which the two of them survive together only.
    kill(two);
    one.fails("kubectl create configmap none --request-timeout=3s", &[]);
    two.ok("dhow up --detach");
    one.until("kubectl create configmap both >/dev/null && echo made", "made");
    two.is("kubectl get configmap both -o name", "configmap/both");

    // The other one is lost for good: the first goes on alone, and takes in a new one.
    kill(two);
    kill(one);
    one.fails("timeout --preserve-status 4 dhow up", &["waiting for the other servers"]);
    one.ok("dhow up --detach --force-new-cluster");
    one.is(&etcdctl("member list | wc -l"), "1");
    one.is("kubectl get configmap both -o name", "configmap/both");
    // Purged, nothing is known of it any more.
    two.ok("dhow down --purge");
    one.fails("kubectl get node n2", &["not found"]);
    second.join("n2", &url(1), &token);
    first.admin().is(&etcdctl("member list | grep -c 'started, n[12].*false'"), "2");
}
