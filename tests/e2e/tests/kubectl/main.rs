//! Every verb of kubectl, as its users type it, against a real platform.

mod access;
mod below;
mod daemons;
mod nodes;
mod reads;
mod refusals;
mod rollouts;
mod streams;
mod writes;

/// A Deployment of a small web server, and a Service before it.
const WEB: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: busybox
        command: [sh, -c, 'mkdir /www2; echo \"$VERSION\" > /www2/index.html; exec httpd -f -p 8080 -h /www2']
        env: [{name: VERSION, value: one}]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
";

/// A Pod that sleeps until it is told to end.
const SLEEPER: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: sleeper, labels: {app: sleeper}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: busybox, command: [sleep, '1000']}
";

#[test]
fn kubectl() {
    let machine = e2e::Machine::new("kubectl");
    let all = [
        below::ALL,
        daemons::ALL,
        reads::ALL,
        writes::ALL,
        rollouts::ALL,
        streams::ALL,
        access::ALL,
        refusals::ALL,
    ];
    e2e::run(&machine, &all.concat());
}

/// What changes the machine as a whole runs alone.
#[test]
fn kubectl_on_nodes() {
    let machine = e2e::Machine::new("nodes");
    e2e::run_one_by_one(&machine, nodes::ALL);
}
