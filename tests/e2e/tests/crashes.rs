//! What survives: the platform killed at any moment, its launcher killed, the machine started anew,
//! the disk full.

use e2e::{Machine, Shell, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Longer than what happens at once takes on a slow machine.
const SOON: Duration = Duration::from_secs(30);

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      volumes: [{name: e, emptyDir: {medium: Memory}}]
      containers:
      - name: c
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'httpd -f -p 8080 -h /www & trap "exit 0" TERM; wait']
        volumeMounts: [{name: e, mountPath: /e}]
        readinessProbe: {httpGet: {path: /, port: 8080}, initialDelaySeconds: 1, periodSeconds: 10}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

fn number(text: &str) -> u32 {
    text.trim().parse().expect("a number")
}

/// The platform's process.
fn platform(s: &Shell) -> u32 {
    number(&std::fs::read_to_string(s.data.join("dhow.pid")).expect("a pid file"))
}

/// The platform's launcher: it holds the lock of the runtime's directory.
fn launcher(s: &Shell) -> u32 {
    let dir = s.data.join("run");
    let mine = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|b| *b == 0).skip(1);
        words.next() == Some(b"launcher")
            && words.next() == Some(dir.as_os_str().as_encoded_bytes())
    };
    processes().into_iter().find(mine).expect("a launcher")
}

fn processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("a table of processes").flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Kills at once and waits for the end.
fn kill(pid: u32) {
    // It may have ended meanwhile, with its namespace.
    let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
    wait_for(|| !alive(pid), SOON, "the end of a killed process");
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn cgroup(s: &Shell) -> String {
    let config = std::fs::read(s.data.join("config.json")).expect("a configuration");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    config["cgroup"].as_str().expect("text").to_owned()
}

/// The processes of this machine's containers.
fn contained(s: &Shell) -> BTreeSet<u32> {
    let name = cgroup(s);
    let of = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|t| t.contains(&name))
    };
    processes().into_iter().filter(of).collect()
}

/// Uid, address, restarts and identifier of every pod's container.
const RUNS: &str = "kubectl get pods --sort-by=.metadata.name -o jsonpath='{range .items[*]}\
                    {.metadata.uid} {.status.podIP} {.status.containerStatuses[0].restartCount} \
                    {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].ready}{\"\\n\"}{end}'";

fn start(s: &Shell) {
    s.apply(WEB);
    s.ok("kubectl rollout status deployment/web --timeout=60s");
    // Its service leads there a moment later.
    let ip = s.word("kubectl get service web -o jsonpath={.spec.clusterIP}");
    s.until(&format!("curl -sS -m 5 http://{ip}"), "ahoy");
}

#[test]
fn killed_platform() {
    let mut machine = Machine::new("kill");
    let s = machine.admin().clone();
    start(&s);
    s.ok("kubectl run doomed --image=busybox --image-pull-policy=IfNotPresent -- sh -c 'echo up; sleep 10000'");
    s.ok("kubectl wait --for=condition=Ready pod/doomed --timeout=30s");
    let runs = s.ok(RUNS);
    let processes = contained(&s);
    let ip = s.word("kubectl get service web -o jsonpath={.spec.clusterIP}");
    let load = s.spawn(&format!(
        "while :; do curl -sS -m 5 -o /dev/null http://{ip} && echo fine || echo LOST; sleep 0.02; done"
    ));
    load.wait_for("fine");

    // Nothing that runs notices, and traffic flows on.
    kill(platform(&s));
    s.tells(&format!("for i in $(seq 20); do curl -sS -m 5 http://{ip}; done"), &["ahoy"]);
    s.fails("kubectl get pods", &["refused"]);
    machine.up(&[]);
    assert_eq!(s.ok(RUNS), runs, "as before, at the first look");
    // (The command of an exec may take a moment to be gone.)
    wait_for(|| contained(&s) == processes, SOON, "the same processes");
    s.tells("kubectl exec deployment/web -- echo back", &["back"]);
    s.is("kubectl logs doomed", "up");
    // Also an orderly end of the process leaves them alone.
    s.ok("kill $(cat $DHOW_DATA_DIR/dhow.pid)");
    wait_for(|| s.sh("kubectl get pods").code != 0, SOON, "the end");
    // (The command of an exec may take a moment to be gone.)
    wait_for(|| contained(&s) == processes, SOON, "the same processes");
    machine.up(&[]);
    assert_eq!(s.ok(RUNS), runs);
    let told = load.told();
    assert!(!told.contains("LOST"), "{told}");
    drop(load);

    // A pod that was being deleted when it happened is gone soon after.
    s.ok("kubectl delete pod doomed --grace-period=1 --wait=false");
    kill(platform(&s));
    machine.up(&[]);
    s.ok("kubectl wait --for=delete pod/doomed --timeout=30s");

    // The launcher is the parent of all containers: without it they end, and are started again.
    kill(launcher(&s));
    s.until(
        "kubectl get pods -o jsonpath={.items[*].status.containerStatuses[0].restartCount}",
        "1 1 1 1 1 1",
    );
    s.ok("kubectl wait --for=condition=Ready pod --all --timeout=30s");
    s.until(&format!("curl -sS -m 5 http://{ip}"), "ahoy");
    s.ok("kubectl exec deployment/web -- true");

    // Somebody unmounts the namespaces while nothing runs: pods get new ones.
    kill(platform(&s));
    kill(launcher(&s));
    contained(&s).into_iter().filter(|pid| alive(*pid)).for_each(kill);
    s.ok("for m in $(grep -o \"$DHOW_DATA_DIR/run/ns/[^ ]*\" /proc/self/mountinfo); do umount -l $m; done");
    machine.up(&[]);
    s.until("kubectl get deployment web -o jsonpath={.status.availableReplicas}", "6");
    s.until(&format!("curl -sS -m 5 http://{ip}"), "ahoy");
}

/// Names of the files in a directory of the platform.
fn count(s: &Shell, dir: &str) -> usize {
    std::fs::read_dir(s.data.join(dir)).map_or(0, Iterator::count)
}

#[test]
fn killed_at_random_moments() {
    let mut machine = Machine::new("chaos");
    let s = machine.admin().clone();
    s.file(
        "pod",
        "{apiVersion: v1, kind: Pod, metadata: {name: NAME}, spec: {terminationGracePeriodSeconds: 1, \
         volumes: [{name: e, emptyDir: {medium: Memory}}], containers: [{name: c, image: busybox, \
         imagePullPolicy: IfNotPresent, command: [sleep, '10000'], volumeMounts: [{name: e, mountPath: /e}]}]}}",
    );
    // Users make and delete pods and settings all the while, and note what was acknowledged.
    let load = |user: &str| {
        s.spawn(&format!(
            "i=0; while [ ! -e stop ]; do i=$((i+1)); n={user}-$i
             sed s/NAME/$n/ pod | kubectl apply -f - >/dev/null 2>&1 && echo made $n
             kubectl create configmap $n --from-literal=i=$i >/dev/null 2>&1 && echo kept $n
             if [ $((i%3)) != 0 ]; then
               echo tried $n; kubectl delete pod $n --wait=false >/dev/null 2>&1 && echo gone $n; fi; done"
        ))
    };
    let mut users = [load("a"), load("b")];
    // From a fixed seed, so that a failure comes again more likely than not.
    let mut random: u64 = 0x2545_f491_4f6c_dd1d;
    for _ in 0..8 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_millis(200 + random % 1800));
        kill(platform(&s));
        machine.up(&[]);
    }
    s.file("stop", "");
    let mut told = String::new();
    for user in &mut users {
        user.end();
        told += &user.told();
    }
    let noted = |word: &str| -> BTreeSet<String> {
        told.lines().filter_map(|l| l.strip_prefix(word)).map(|n| n.trim().to_owned()).collect()
    };
    let listed = |kind: &str| -> BTreeSet<String> {
        let names = s.ok(&format!("kubectl get {kind} -o jsonpath='{{.items[*].metadata.name}}'"));
        names.split_whitespace().map(str::to_owned).collect()
    };
    let (made, kept, gone) = (noted("made"), noted("kept"), noted("gone"));
    let pods_wanted: BTreeSet<String> = made.difference(&noted("tried")).cloned().collect();
    assert!(made.len() > 5 && gone.len() > 2, "too little happened: {told}");
    assert!(kept.is_subset(&listed("configmaps")), "lost: {told}");
    s.until("kubectl get pods --no-headers | grep -cv Running; true", "0");
    let pods = listed("pods");
    assert!(pods_wanted.is_subset(&pods), "lost: {:?}", pods_wanted.difference(&pods));
    assert!(pods.is_disjoint(&gone), "still there: {:?}", pods.intersection(&gone));
    // Nothing leaked, nothing shared, nothing restarted.
    for (dir, each) in [
        ("run/containers", 1),
        ("run/sandboxes", 1),
        ("run/ns", 1),
        ("node/pods", 1),
        ("node/memory", 1),
        ("node/logs", 1),
    ] {
        wait_for(|| count(&s, dir) == pods.len() * each, SOON, dir);
    }
    assert_eq!(contained(&s).len(), pods.len());
    let column = |path: &str| s.ok(&format!("kubectl get pods -o jsonpath='{{.items[*].{path}}}'"));
    let addresses = column("status.podIP");
    assert_eq!(addresses.split(' ').collect::<BTreeSet<_>>().len(), pods.len(), "{addresses}");
    let restarts = column("status.containerStatuses[0].restartCount");
    assert!(restarts.split(' ').all(|r| r == "0"), "{restarts}");
    let links = s.word("ip -o link | grep -c @if");
    assert!(number(&links) as usize <= pods.len(), "{links} links");
}

/// Removes the machine's groups, as its next start would.
fn forget_groups(dir: &Path, name: &str, depth: u32) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let found = entry.file_name().to_str() == Some(name);
        if found {
            let path = entry.path();
            let _ = Command::new("find")
                .arg(path)
                .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                .status();
        } else if depth < 6 {
            forget_groups(&entry.path(), name, depth + 1);
        }
    }
}

#[test]
fn machine_started_anew() {
    let mut machine = Machine::bare("boot");
    let s = machine.admin().clone();
    // The first boot: mounts of its own, which end with it, and another boot's identifier.
    s.file("boot", "00000000-0000-4000-8000-000000000000\n");
    s.ok("unshare -m --propagation private sh -c 'mount --bind boot /proc/sys/kernel/random/boot_id && \
          exec dhow up --detach --name n1'");
    s.ok("dhow image load -i busybox.tar");
    start(&s);
    s.ok("kubectl create configmap kept --from-literal=a=b");
    s.ok(
        "kubectl run once --image=busybox --image-pull-policy=IfNotPresent --restart=Never -- true",
    );
    s.ok("kubectl wait --for=jsonpath={.status.phase}=Succeeded pod/once --timeout=30s");
    let ip = s.word("kubectl get service web -o jsonpath={.spec.clusterIP}");
    kill(platform(&s));
    kill(launcher(&s));
    contained(&s).into_iter().filter(|pid| alive(*pid)).for_each(kill);
    wait_for(|| contained(&s).is_empty(), SOON, "the end of all containers");
    s.ok("for l in $(ip -o link | grep -o ' [^ ]*[@:] ' | tr -d ' :@' | grep -v -e lo -e 0$); do ip link del $l; done; \
          nft flush ruleset; ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default; \
          ip rule add pref 0 lookup local 2>/dev/null; true");
    forget_groups(Path::new("/sys/fs/cgroup"), &cgroup(&s), 0);

    machine.up(&[]);
    // What was ready before the boot is told until the machine has looked.
    let restarts = "kubectl get pods -l app=web -o jsonpath={.items[*].status.containerStatuses[0].restartCount}";
    s.until(restarts, "1 1 1 1 1 1");
    s.until("kubectl get deployment web -o jsonpath={.status.availableReplicas}", "6");
    s.until(&format!("curl -sS -m 5 http://{ip}"), "ahoy");
    s.is("kubectl get configmap kept -o jsonpath={.data.a}", "b");
    s.is("kubectl get pod once -o jsonpath={.status.phase}", "Succeeded");
}

#[test]
fn a_machine_short_of_disk_sends_the_greediest_pod_away_and_takes_none() {
    let mut machine = Machine::bare("short");
    let s = machine.admin().clone();
    std::fs::create_dir(&s.data).expect("a directory");
    s.ok("mount -t tmpfs -o size=96m,mode=700 tmpfs $DHOW_DATA_DIR");
    machine.up(&[]);
    s.ok("dhow image load -i busybox.tar");
    let pod = |name: &str, command: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
             terminationGracePeriodSeconds: 300\n  containers:\n  - {{name: c, image: busybox, \
             imagePullPolicy: IfNotPresent, command: [sh, -c, '{command}']}}\n"
        )
    };
    s.apply(&pod("modest", "echo little > /file; sleep 10000"));
    s.apply(&pod("greedy", "cat /dev/zero > /file; sleep 10000"));
    s.until("kubectl get pod greedy -o jsonpath={.status.reason}", "Evicted");
    let taint = "kubectl get node -o jsonpath={.items[0].spec.taints[*].key}";
    let evicted = "kubectl get events --field-selector reason=Evicted";
    s.until(&format!("{evicted} -o name | wc -l"), "1");
    s.tells(
        &format!("{evicted} -o json"),
        &[
            "low on resource: ephemeral-storage",
            r#"\"code\":\"Evicted\""#,
            r#"\"code\":\"DiskFull\""#,
        ],
    );
    s.tells("kubectl describe pod greedy", &["Failed", "DisruptionTarget"]);
    // It is gone, and its file with it.
    s.until(taint, "");
    s.is("kubectl get pod modest -o jsonpath={.status.phase}", "Running");
    // While others fill the disk, nothing comes here.
    s.ok("head -c $(( $(stat -f -c '%a * %S' $DHOW_DATA_DIR) - 3000000 )) /dev/zero > $DHOW_DATA_DIR/fill");
    s.until(taint, "node.kubernetes.io/disk-pressure");
    s.apply(&pod("late", "sleep 10000"));
    s.until(
        "kubectl get events --field-selector reason=FailedScheduling,involvedObject.name=late -o name | wc -l",
        "1",
    );
    s.ok("rm $DHOW_DATA_DIR/fill");
    s.until("kubectl get pod late -o jsonpath={.status.phase}", "Running");
    s.tells("dhow down --purge", &["is empty"]);
    s.ok("umount $DHOW_DATA_DIR && rmdir $DHOW_DATA_DIR");
}

#[test]
fn full_disk() {
    let mut machine = Machine::bare("disk");
    let s = machine.admin().clone();
    std::fs::create_dir(&s.data).expect("a directory");
    s.ok("mount -t tmpfs -o size=64m,mode=700 tmpfs $DHOW_DATA_DIR");
    machine.up(&[]);
    s.ok("dhow image load -i busybox.tar");
    start(&s);
    s.ok("kubectl create configmap first --from-literal=a=b");
    s.sh("dd if=/dev/zero of=$DHOW_DATA_DIR/fill bs=64k 2>/dev/null");
    s.ok("head -c 600000 /dev/urandom | base64 -w 0 > big");
    let refusal = s.sh("for i in $(seq 40); do kubectl create configmap big-$i --from-file=big || exit 1; echo big-$i >> made; done");
    assert!(refusal.code == 1 && refusal.err.contains("space"), "{refusal:?}");
    s.fails("dhow image load -i busybox.tar", &["No space left on device"]);
    // Reading goes on, and what runs runs.
    s.is("kubectl get configmap first -o jsonpath={.data.a}", "b");
    let ip = s.word("kubectl get service web -o jsonpath={.spec.clusterIP}");
    s.tells(&format!("curl -sS -m 5 http://{ip}"), &["ahoy"]);
    s.ok("rm $DHOW_DATA_DIR/fill");
    // Space is back: it goes on by itself.
    s.ok("kubectl scale deployment web --replicas=8");
    s.ok("kubectl rollout status deployment/web --timeout=60s");
    kill(platform(&s));
    machine.up(&[]);
    s.ok("for name in first $(cat made); do kubectl get configmap $name -o name >/dev/null || exit 1; done");
    // The file system is the administrator's: purging empties it and leaves it.
    s.tells("dhow down --purge", &["is empty"]);
    s.ok("[ -z \"$(ls -A $DHOW_DATA_DIR)\" ] && umount $DHOW_DATA_DIR && rmdir $DHOW_DATA_DIR");
}
