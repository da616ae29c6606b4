//! Traffic between pods, services, names and the machine.

use e2e::Shell;
use std::collections::BTreeMap;

/// A deployment `web` of servers that tell their own names, and end as servers should: they go on
/// for a moment after they were asked to.
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: c
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'hostname > /www/index.html; httpd -f -p 8080 -h /www & trap "kill $!; exit 0" TERM; wait']
        ports: [{name: http, containerPort: 8080}]
        lifecycle: {preStop: {exec: {command: [sleep, "1"]}}}
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, "10000"]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: each}
spec: {selector: {app: web}, clusterIP: None, ports: [{name: http, port: 8080, targetPort: http}]}
"#;

fn web(s: &Shell) {
    s.apply(WEB);
    s.ok("kubectl rollout status deployment/web --timeout=60s");
    s.ok("kubectl wait --for=condition=Ready pod/client --timeout=30s");
    // Its service leads to all of them a moment later.
    let ip = s.word("kubectl get service web -o jsonpath={.spec.clusterIP}");
    s.until(
        &format!("for i in $(seq 40); do curl -sS -m 5 http://{ip}; done | sort -u | wc -l"),
        "3",
    );
}

/// How often each answer came, of `times` requests made by `line`.
fn answers(s: &Shell, line: &str, times: u32) -> BTreeMap<String, u32> {
    let out = s.ok(&format!("for i in $(seq {times}); do {line}; done"));
    let mut counts = BTreeMap::new();
    for answer in out.lines() {
        *counts.entry(answer.to_owned()).or_default() += 1;
    }
    counts
}

fn services(s: &Shell) {
    web(s);
    s.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: out}\n\
         spec: {selector: {app: web}, type: NodePort, ports: [{port: 80, targetPort: 8080}]}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: sticky}\n\
         spec: {selector: {app: web}, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: 8080}]}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: nobody}\n\
         spec: {selector: {app: nobody}, type: NodePort, ports: [{port: 80}]}",
    );
    let of = |what: &str, path: &str| s.word(&format!("kubectl get {what} -o jsonpath={{{path}}}"));
    let ip = of("service web", ".spec.clusterIP");
    let pod = of("pod -l app=web", ".items[0].status.podIP");
    let port = of("service out", ".spec.ports[0].nodePort");
    let node = of("node n1", ".status.addresses[0].address");
    let exec = "kubectl exec client -- sh -c";
    s.until(&format!("curl -sS -m 5 http://{node}:{port} | grep -c web"), "1");
    s.tells(&format!("{exec} 'wget -qO- http://{pod}:8080'"), &["web-"]);
    // Every server gets its share, from inside and from the machine.
    let inside = s.ok(&format!(
        "{exec} 'for i in $(seq 60); do wget -qO- http://web; done' | sort | uniq -c"
    ));
    assert_eq!(inside.lines().count(), 3, "{inside}");
    assert_eq!(answers(s, &format!("curl -sS -m 5 http://{ip}"), 60).len(), 3);
    for host in ["127.0.0.1", &node] {
        assert_eq!(answers(s, &format!("curl -sS -m 5 http://{host}:{port}"), 30).len(), 3);
    }
    s.tells(&format!("{exec} 'wget -qO- http://{node}:{port}'"), &["web-"]);
    // A server reaches itself through its service.
    let own = s.ok("kubectl exec deployment/web -- sh -c 'for i in $(seq 60); do wget -qO- http://web; done' | sort -u");
    assert_eq!(own.lines().count(), 3, "{own}");
    let sticky =
        s.ok(&format!("{exec} 'for i in $(seq 20); do wget -qO- http://sticky; done' | sort -u"));
    assert_eq!(sticky.lines().count(), 1, "{sticky}");
    // Nobody there: refused, and not awaited, which takes minutes.
    let began = std::time::Instant::now();
    s.fails(&format!("{exec} 'wget -qO- http://nobody'"), &["Connection refused"]);
    let nobody = of("service nobody", ".spec.ports[0].nodePort");
    s.fails(&format!("curl -sS http://{node}:{nobody}"), &["(7)"]);
    assert!(began.elapsed().as_secs_f32() < 30.0, "{:?}", began.elapsed());
    // The last server leaves, and it is the same; one comes back, and it serves.
    s.ok("kubectl scale deployment web --replicas=0");
    s.until("kubectl get endpointslices -l kubernetes.io/service-name=web -o jsonpath={.items[*].endpoints[*].addresses}", "");
    s.until(&format!("curl -sS -m 5 http://{ip} 2>&1 | grep -c '(7)'"), "1");
    s.ok("kubectl scale deployment web --replicas=1");
    s.ok("kubectl rollout status deployment/web --timeout=30s");
    s.until(&format!("curl -sS -m 5 http://{ip} | grep -c web"), "1");
}

fn datagrams(s: &Shell) {
    s.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: resolver, labels: {app: resolver}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  \
         volumes: [{name: root, hostPath: {path: /}}]\n  \
         containers:\n  - name: c\n    image: busybox\n    imagePullPolicy: IfNotPresent\n    \
         command: [chroot, /host, python3, -uc, \"import socket\\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\\n\
         s.bind(('', 5353))\\nprint('up')\\nwhile True:\\n  d, a = s.recvfrom(99)\\n  s.sendto(d.upper(), a)\\n\"]\n    \
         volumeMounts: [{name: root, mountPath: /host}]\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: upper}\n\
         spec: {selector: {app: resolver}, ports: [{name: u, port: 53, targetPort: 5353, protocol: UDP}]}",
    );
    s.until("kubectl logs resolver", "up");
    let ip = s.word("kubectl get service upper -o jsonpath={.spec.clusterIP}");
    s.until("kubectl get endpointslices -l kubernetes.io/service-name=upper -o jsonpath={.items[0].endpoints[0].conditions.ready}", "true");
    let ask = format!(
        "python3 -c \"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); \
         s.connect(('{ip}', 53)); s.send(b'ahoy'); print(s.recv(99).decode())\""
    );
    s.until(&ask, "AHOY");
}

fn names(s: &Shell) {
    web(s);
    s.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: alias}\n\
         spec: {type: ExternalName, externalName: web.NS.svc.cluster.local}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: sub}\n\
         spec: {selector: {app: named}, clusterIP: None, ports: [{name: x, port: 1}]}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: named, labels: {app: named}}\n\
         spec:\n  hostname: host\n  subdomain: sub\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '10000']}"
            .replace("NS", &s.namespace)
            .as_str(),
    );
    s.ok("kubectl wait --for=condition=Ready pod/named --timeout=30s");
    let zone = format!("{}.svc.cluster.local", s.namespace);
    let dig = |what: &str| s.word(&format!("dig +short @10.96.0.10 {what} | sort"));
    let of = |what: &str, path: &str| s.word(&format!("kubectl get {what} -o jsonpath={{{path}}}"));
    let ip = of("service web", ".spec.clusterIP");
    let all = s.word("kubectl get pods -l app=web -o jsonpath='{range .items[*]}{.status.podIP}{\"\\n\"}{end}' | sort");
    let named = of("pod named", ".status.podIP");
    assert_eq!(dig(&format!("web.{zone}")), ip);
    assert_eq!(dig(&format!("+tcp WEB.{zone}.")), ip);
    assert_eq!(dig(&format!("each.{zone}")), all);
    assert_eq!(dig(&format!("host.sub.{zone}")), named);
    assert_eq!(dig(&format!("-x {ip}")), format!("web.{zone}."));
    assert_eq!(dig(&format!("-x {named}")), format!("host.sub.{zone}."));
    assert_eq!(dig(&format!("SRV _http._tcp.web.{zone}")), format!("0 100 80 web.{zone}."));
    assert_eq!(dig(&format!("SRV _http._tcp.each.{zone}")).lines().count(), 3);
    assert!(dig(&format!("alias.{zone}")).contains(&ip));
    let dashed = named.replace('.', "-");
    assert_eq!(dig(&format!("{dashed}.{}.pod.cluster.local", s.namespace)), named);
    s.tells(&format!("dig @10.96.0.10 none.{zone}"), &["NXDOMAIN", "SOA"]);
    s.tells(&format!("dig AAAA @10.96.0.10 web.{zone}"), &["NOERROR", "SOA"]);
    // As programs in pods ask: by search path, in every form.
    for name in ["web", &format!("web.{}", s.namespace), &format!("web.{zone}"), "alias"] {
        s.tells(&format!("kubectl exec client -- wget -qO- http://{name}"), &["web-"]);
    }
    s.is("kubectl exec named -- hostname -f", &format!("host.sub.{zone}"));
    s.is(
        "kubectl exec client -- cat /etc/resolv.conf",
        &format!(
            "search {zone} svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5"
        ),
    );
}

fn host(s: &Shell) {
    let pod = |name: &str, spec: &str, port: u32, ports: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  {spec}\n  \
             terminationGracePeriodSeconds: 0\n  containers:\n  - name: c\n    image: busybox\n    \
             imagePullPolicy: IfNotPresent\n    \
             command: [sh, -c, 'echo {name} > /www/index.html; exec httpd -f -p {port} -h /www']\n    \
             ports: [{{containerPort: {port}{ports}}}]"
        )
    };
    s.apply(&pod("machine", "hostNetwork: true\n  dnsPolicy: ClusterFirstWithHostNet", 8099, ""));
    s.apply(&pod("mapped", "restartPolicy: Always", 8080, ", hostPort: 8088"));
    s.ok("kubectl wait --for=condition=Ready pod/machine pod/mapped --timeout=30s");
    let node = s.word("kubectl get node n1 -o jsonpath={.status.addresses[0].address}");
    s.is("kubectl get pod machine -o jsonpath={.status.podIP}", &node);
    s.until("curl -sS -m 5 http://127.0.0.1:8099", "machine");
    for host in ["127.0.0.1", &node] {
        s.until(&format!("curl -sS -m 5 http://{host}:8088"), "mapped");
    }
    s.is(&format!("kubectl exec mapped -- wget -qO- http://{node}:8099"), "machine");
    s.is("kubectl exec machine -- nslookup kubernetes.default.svc.cluster.local | grep -c 10.96.0.1$", "1");
    // The port is taken: the next one waits, and says why.
    s.apply(&pod("late", "restartPolicy: Always", 8080, ", hostPort: 8088"));
    s.until("kubectl events --for pod/late | grep -c \"didn't have free ports\"", "1");
    s.ok("kubectl delete pod mapped --now");
    s.until("curl -sS -m 5 http://127.0.0.1:8088", "late");
}

fn rollout_without_a_lost_request(s: &Shell) {
    web(s);
    let load = s.spawn(
        "kubectl exec client -- sh -c 'while [ ! -e /stop ]; do wget -qO /dev/null http://web && echo fine || echo LOST; done'",
    );
    load.wait_for("fine");
    for _ in 0..2 {
        // Again only in another second than the last time: kubectl writes the time without parts.
        s.until("kubectl rollout restart deployment/web", "deployment.apps/web restarted");
        s.ok("kubectl rollout status deployment/web --timeout=60s");
    }
    s.ok("kubectl scale deployment web --replicas=1");
    s.until("kubectl get pods -l app=web -o name | wc -l", "1");
    let told = load.told();
    assert!(
        !told.contains("LOST"),
        "{} of {} lost",
        told.matches("LOST").count(),
        told.lines().count()
    );
    assert!(told.lines().count() > 50, "{} requests", told.lines().count());
}

fn readiness_decides(s: &Shell) {
    web(s);
    let addresses = "kubectl get endpointslices -l kubernetes.io/service-name=web -o \
                     jsonpath='{range .items[*].endpoints[?(@.conditions.ready==true)]}{.addresses[0]}{\"\\n\"}{end}' | wc -l";
    s.until(addresses, "3");
    let pod = s.word("kubectl get pods -l app=web -o jsonpath={.items[0].metadata.name}");
    s.ok(&format!("kubectl exec {pod} -- rm /www/index.html"));
    s.until(addresses, "2");
    // The machine learns of it a moment later.
    let ask = "kubectl exec client -- sh -c 'for i in $(seq 30); do wget -qO- http://web || echo LOST; done' | sort -u";
    s.until(&format!("{ask} | wc -l"), "2");
    let seen = s.ok(ask);
    assert!(!seen.contains(&pod) && seen.lines().count() == 2, "{seen}");
    assert!(!seen.contains("LOST"), "{seen}");
    s.ok(&format!("kubectl exec {pod} -- sh -c 'hostname > /www/index.html'"));
    s.until(addresses, "3");
}

/// A service without a selector leads to the addresses that its owner writes down, in the old form or
/// the new.
fn manual_endpoints(s: &Shell) {
    web(s);
    let addresses = "kubectl get pods -l app=web -o jsonpath='{.items[*].status.podIP}'";
    let addresses = s.word(addresses);
    let mut addresses = addresses.split(' ');
    let mut address = || addresses.next().expect("three pods");
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{ports: [{{port: 80, targetPort: 8080}}]}}\n---\n"
        )
    };
    let old = |ip: &str| {
        format!(
            "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: old}}\n\
             subsets: [{{addresses: [{{ip: {ip}}}], ports: [{{port: 8080}}]}}]\n"
        )
    };
    let first = address();
    s.apply(&(service("old") + &old(first)));
    let told = "kubectl get endpointslices -l kubernetes.io/service-name=old -o jsonpath='{.items[*].endpoints[*].addresses[0]}'";
    s.until(told, first);
    s.until("kubectl exec client -- wget -qO- http://old | cut -c1-4", "web-");
    let second = address();
    s.apply(&old(second));
    s.until(told, second);
    s.apply(
        &(service("new")
            + &format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: new-1, labels: {{kubernetes.io/service-name: new}}}}\n\
                 addressType: IPv4\nports: [{{port: 8080}}]\n\
                 endpoints: [{{addresses: [{}]}}]\n",
                address()
            )),
    );
    s.until("kubectl exec client -- wget -qO- http://new | cut -c1-4", "web-");
    s.ok("kubectl delete endpoints old");
    s.until(told, "");
    s.until("kubectl exec client -- wget -qO- http://old 2>&1 | grep -c refused", "1");
}

#[test]
fn network() {
    let machine = e2e::Machine::new("net");
    e2e::run(
        &machine,
        &[
            ("rollout", rollout_without_a_lost_request),
            ("services", services),
            ("names", names),
            ("host", host),
            ("datagrams", datagrams),
            ("readiness", readiness_decides),
            ("manual-endpoints", manual_endpoints),
        ],
    );
}
