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
    // An external store that is not there, found out after certificates were made.
    for flags in [&["up"][..], &["up", "--detach"]] {
        let flags = [flags, &["--name", "n1", "--datastore", "http://127.0.0.1:9"]].concat();
        let told = machine.dhow(&flags);
        // In the foreground the log is on standard error as well; the refusal ends it.
        let err = told.err.lines().last().unwrap_or_default().to_owned();
        one_line(&e2e::Output { err, ..told }, &["127.0.0.1:9"]);
    }
    assert_eq!(machine.traces(), Vec::<String>::new());

    // Wrong flags.
    std::fs::write(shell.dir.join("bad.yaml"), "sails: 2\n").unwrap();
    for (flags, parts) in [
        (&["--name", "Ship One"][..], &["--name", "not a DNS name"][..]),
        (&["--cluster-cidr", "10.0.0.0/30"], &["--cluster-cidr", "too small"]),
        (&["--service-cidr", "10.244.0.0/16"], &["overlap"]),
        (&["--config", "/none.yaml"], &["/none.yaml"]),
        (&["--config", "bad.yaml"], &["bad.yaml", "unknown field `sails`"]),
    ] {
        let mut arguments = vec!["up"];
        arguments.extend(flags);
        one_line(&machine.dhow(&arguments), parts);
    }
    for (usage, parts) in [
        (&["up", "--sails"][..], &["--sails", "dhow up --help"][..]),
        (&["sail"], &["sail", "dhow --help"]),
        (&["image", "build", "."], &["--tag", "dhow image build --help"]),
        (&["status", "-o", "chart"], &["chart", "table, json, yaml", "dhow status --help"]),
    ] {
        let told = machine.dhow(usage);
        assert_eq!(told.code, 2, "wrong usage is told by 2: {told:#?}");
        one_line(&e2e::Output { code: 1, ..told }, parts);
    }

    // Somebody else on this machine has addresses of the network that is asked for.
    shell.ok("ip link add lan0 type bridge && ip addr add 10.96.3.1/24 dev lan0");
    one_line(&machine.dhow(&["up", "--name", "n1"]), &["10.96.3.1", "lan0", "--service-cidr"]);
    shell.ok("ip link del lan0");

    // A data directory of a newer version stays as it is.
    std::fs::create_dir_all(&shell.data).unwrap();
    // By this it is known as dhow's.
    std::fs::write(shell.data.join("dhow.pid"), "").unwrap();
    let config = shell.data.join("config.json");
    std::fs::write(&config, r#"{"format": 99, "name": "n1"}"#).unwrap();
    one_line(&machine.dhow(&["up"]), &["format 99", "newer dhow"]);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), r#"{"format": 99, "name": "n1"}"#);
    std::fs::remove_file(&config).unwrap();
    assert_eq!(machine.dhow(&["down", "--purge"]).code, 0);
}

#[test]
fn a_data_directory_may_be_named_relative_to_where_one_stands() {
    let mut machine = Machine::bare("relative");
    machine.up(&["--data-dir", "data"]);
    let shell = machine.admin();
    shell.tells("dhow status --data-dir data", &["Kubernetes API"]);
    // The process is still there, and it is the one that was started.
    let pid = shell.word("cat data/dhow.pid");
    shell.is("dhow up --detach --data-dir data", &format!("dhow is up already (process {pid})"));
}

#[test]
fn commands_end_without_a_word_when_nobody_reads_on() {
    let machine = Machine::new("pipes");
    let shell = machine.admin();
    for command in ["get pods -A -o yaml", "completion bash", "describe node n1", "image ls"] {
        // The reader is gone before anything is written.
        let told = shell.ok(&format!(
            "rm -f gone; {{ until [ -e gone ]; do :; done; dhow {command}; echo $? > code; }} 2> err | \
             {{ exec <&-; touch gone; }}; cat err code"
        ));
        assert_eq!(told, "141\n", "dhow {command}");
    }
}

#[test]
fn what_is_no_image_archive_is_refused_by_name() {
    let machine = Machine::new("archives");
    let shell = machine.admin();
    shell.file("notes.txt", "ahoy\n");
    one_line(
        &machine.dhow(&["image", "load", "-i", "notes.txt"]),
        &["cannot load notes.txt", "'docker save'"],
    );
    one_line(&shell.sh("tar c notes.txt | dhow image load"), &["manifest.json"]);
    shell.is("dhow image ls | tail -n +2 | cut -d' ' -f1", "busybox:latest");
}

#[test]
fn a_signal_ends_the_container_of_a_run_that_was_to_be_removed() {
    let machine = Machine::new("interrupt");
    let shell = machine.admin();
    let line = "trap 'echo bye; exit 3' TERM; echo begun; while :; do sleep 0.1; done";
    for signal in ["INT", "TERM"] {
        let run = shell.spawn(&format!(
            "dhow run --rm --name r busybox sh -c \"{line}\" > out & echo $! > pid; wait $!; echo ended $?"
        ));
        shell.until("cat out", "begun");
        shell.ok(&format!("kill -{signal} $(cat pid)"));
        run.wait_for("ended 3");
        shell.is("cat out", "begun\nbye");
        shell.is("kubectl get pods -o name", "");
    }
    // Without --rm it runs on, and that is said.
    let run = shell.spawn(&format!(
        "dhow run --name r busybox sh -c \"{line}\" > out 2>err & echo $! > pid; wait $!; echo ended $?"
    ));
    shell.until("cat out", "begun");
    shell.ok("kill -INT $(cat pid)");
    run.wait_for("ended 130");
    shell.tells("cat err", &["runs on", "dhow rm --force r"]);
    shell.tells("dhow ps", &["running"]);
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
    // Ready is what runs, and this listens a moment later.
    shell.until(&format!("curl -sS -m 5 http://{ip}:8080/born | wc -l"), "1");
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
        // What people set in the platform's kubeconfig outlives it as well.
        let own = format!("KUBECONFIG={} kubectl config", shell.data.join("kubeconfig").display());
        shell.ok(&format!("{own} set-context --current --namespace=ns-{signal}"));
        machine.up(&[]);
        shell.is(
            &format!("{own} view --minify -o jsonpath='{{..namespace}}'"),
            &format!("ns-{signal}"),
        );
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
