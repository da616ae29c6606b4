//! The platform as a whole: what stands in its way when it starts, and how it goes on and ends.

use e2e::{Machine, wait_for};
use std::time::Duration;

/// Every refusal is one line that says what to do, and leaves nothing behind.
fn one_line(output: &e2e::Output, parts: &[&str]) {
    assert_eq!(output.code, 1, "{output:#?}");
    assert_eq!(output.err.lines().count(), 1, "one line: {output:#?}");
    assert!(output.err.starts_with("dhow: "), "{output:#?}");
    for part in parts {
        assert!(output.err.contains(part), "must say {part:?}: {output:#?}");
    }
}

#[test]
fn what_stands_in_the_way_of_a_start_is_told_in_one_line() {
    let machine = Machine::bare("refused");
    let shell = machine.admin();
    let data = shell.data.display().to_string();

    // Not root: nothing is made, not even the directory.
    for command in ["up", "up --detach", "down"] {
        let told = shell.sh(&format!("setpriv --reuid=65534 --clear-groups dhow {command}"));
        one_line(&told, &["needs root", "sudo"]);
    }
    assert!(!shell.data.exists(), "{data} was made by a start that was refused");

    // Commands before there is a platform.
    one_line(&machine.dhow(&["status"]), &["dhow up"]);
    one_line(&machine.dhow(&["env"]), &["no platform was started", "dhow up"]);
    assert_eq!(machine.dhow(&["down", "--purge"]).code, 0);

    // The port is taken.
    let holder = shell.spawn("busybox nc -l -p 6443; echo ended");
    wait_for(
        || shell.sh("grep -q :192B /proc/net/tcp /proc/net/tcp6").code == 0,
        Duration::from_secs(10),
        "the port to be taken",
    );
    for flags in [&["up", "--name", "n1"][..], &["up", "--detach", "--name", "n1"]] {
        one_line(&machine.dhow(flags), &["6443", "--listen"]);
    }
    drop(holder);
    let leftover = machine.traces();
    assert!(leftover.iter().all(|t| t.starts_with("directory ")), "{leftover:#?}");

    // Wrong flags.
    for (flags, parts) in [
        (&["--name", "Ship One"][..], &["--name", "not a DNS name"][..]),
        (&["--cluster-cidr", "10.0.0.0/30"], &["--cluster-cidr", "too small"]),
        (&["--service-cidr", "10.244.0.0/16"], &["overlap"]),
        (&["--config", "/none.yaml"], &["/none.yaml"]),
    ] {
        let mut arguments = vec!["up"];
        arguments.extend(flags);
        one_line(&machine.dhow(&arguments), parts);
    }
    assert_eq!(machine.dhow(&["up", "--sails"]).code, 2, "wrong usage is told by 2");

    // A data directory of a newer version stays as it is.
    std::fs::create_dir_all(&shell.data).unwrap();
    let config = shell.data.join("config.json");
    std::fs::write(&config, r#"{"format": 99, "name": "n1"}"#).unwrap();
    one_line(&machine.dhow(&["up"]), &["format 99", "newer dhow"]);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), r#"{"format": 99, "name": "n1"}"#);
    std::fs::remove_file(&config).unwrap();
    assert_eq!(machine.dhow(&["down", "--purge"]).code, 0);
}

const KEEPER: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: busybox, command: [sh, -c, 'date +%s%N > /tmp/born; exec httpd -f -p 8080 -h /tmp']}
";

#[test]
fn containers_outlive_the_platform() {
    let mut machine = Machine::new("restart");
    let shell = machine.shell("crew");
    shell.apply(KEEPER);
    shell.ok("kubectl wait --for=condition=Ready pod/keeper --timeout=30s");
    let ip = shell.word("kubectl get pod keeper -o jsonpath='{.status.podIP}'");
    let born = shell.word(&format!("curl -sS -m 5 http://{ip}:8080/born"));
    shell.ok("kubectl create configmap log --from-literal=day=1");

    // A second one does not take the directory from the first.
    let flags = ["up", "--listen", "127.0.0.1:7443"];
    one_line(&machine.dhow(&flags), &["in use by dhow process", "dhow down"]);
    let again = machine.dhow(&["up", "--detach"]);
    assert!(again.code == 0 && again.out.contains("up already"), "{again:#?}");

    // Killed: containers run on, and what was acknowledged is there afterwards.
    let pid = || std::fs::read_to_string(shell.data.join("dhow.pid")).unwrap().trim().to_owned();
    for signal in ["KILL", "TERM"] {
        let before = pid();
        shell.ok(&format!("kubectl patch cm log -p '{{\"data\":{{\"by\":\"{signal}\"}}}}'"));
        shell.ok(&format!("kill -{signal} {before}"));
        wait_for(
            || !std::path::Path::new(&format!("/proc/{before}")).exists(),
            Duration::from_secs(10),
            "the process to end",
        );
        shell.is(&format!("curl -sS -m 5 http://{ip}:8080/born"), &born);
        machine.up(&[]);
        assert_ne!(pid(), before);
        shell.is("kubectl get cm log -o jsonpath='{.data.day}{.data.by}'", &format!("1{signal}"));
        shell.ok("kubectl wait --for=condition=Ready pod/keeper --timeout=30s");
        shell.is("kubectl exec keeper -- cat /tmp/born", &born);
        shell.is(
            "kubectl get pod keeper -o jsonpath='{.status.podIP} {.status.containerStatuses[0].restartCount}'",
            &format!("{ip} 0"),
        );
        shell.is(&format!("curl -sS -m 5 http://{ip}:8080/born"), &born);
    }

    // Down without purge ends the containers and keeps the data; up brings them back.
    let down = machine.dhow(&["down"]);
    assert!(down.code == 0 && down.out.contains("stays in"), "{down:#?}");
    let left: Vec<String> =
        machine.traces().into_iter().filter(|t| !t.starts_with("directory ")).collect();
    assert!(left.is_empty(), "dhow down leaves {left:#?}");
    machine.up(&[]);
    shell.ok("kubectl wait --for=jsonpath='{.status.containerStatuses[0].restartCount}'=1 pod/keeper --timeout=30s");
    shell.ok("kubectl wait --for=condition=Ready pod/keeper --timeout=30s");
    shell.is("kubectl get cm log -o jsonpath='{.data.day}'", "1");
    // What was settled at the first start is not changed by a flag.
    machine.dhow(&["down"]);
    one_line(&machine.dhow(&["up", "--name", "other"]), &["--name other contradicts"]);
    machine.up(&[]);
    shell.ok("kubectl wait --for=condition=Ready pod/keeper --timeout=30s");
}

#[test]
fn two_platforms_on_one_machine_do_not_meet() {
    // Two network namespaces, one kernel: names of cgroups, links and mounts come from the directory.
    let (one, two) = (Machine::new("left"), Machine::new("right"));
    for machine in [&one, &two] {
        let shell = machine.admin();
        shell.ok("kubectl run web --image=busybox -- httpd -f -p 80 -h /www");
        shell.ok("kubectl wait --for=condition=Ready pod/web --timeout=30s");
    }
    drop(one);
    two.admin().is("kubectl exec web -- cat /www/index.html", "ahoy");
    two.admin().tells("dhow status", &["MACHINE", "n1", "1 of 1 ready"]);
}
