//! `dhow store`, driven by real etcd clients: etcdctl 3.4 (`etcdctl` in `PATH`, Debian's
//! etcd-client) and the newest one (`ETCDCTL`).

#[path = "store/member.rs"]
mod member;

use e2e::{Machine, Shell};
use member::{Member, etcdctl, etcdutl, logged, prepare};

/// One member with etcd's default ports, which answers.
fn alone(shell: &Shell, flags: &[&str]) -> Member {
    prepare(shell);
    let member = Member::start(shell, "m1", flags);
    shell.until("etcdctl endpoint health 2>&1 | grep -o 'is healthy'", "is healthy");
    member
}

#[test]
fn one_member_answers_all_of_etcdctl() {
    let machine = Machine::bare("store");
    let shell = machine.admin().clone();
    let mut member = alone(&shell, &[]);
    for ready in ["enabled capabilities for version", "published", "ready to serve client requests"]
    {
        logged(&shell, "m1", ready);
    }
    let newest = etcdctl();
    for ctl in ["etcdctl", newest.as_str()] {
        let ok = |line: &str| shell.ok(&line.replace("etcdctl", ctl));
        let is = |line: &str, told: &str| shell.is(&line.replace("etcdctl", ctl), told);
        let tells = |line: &str, parts: &[&str]| shell.tells(&line.replace("etcdctl", ctl), parts);
        ok("etcdctl del --prefix ''");
        is("etcdctl put a 1", "OK");
        is("etcdctl get a --print-value-only", "1");
        is("etcdctl put a 2 --prev-kv", "OK\na\n1");
        ok("for n in 1 2 3; do etcdctl put dir/$n v$n; done");
        is("etcdctl get --prefix dir/ --keys-only | grep .", "dir/1\ndir/2\ndir/3");
        is("etcdctl get dir/1 dir/3 --print-value-only", "v1\nv2");
        is("etcdctl del --prefix dir/", "3");
        is(
            "printf 'value(\"a\") = \"2\"\n\nput a 3\n\nput a 4\n\n' | etcdctl txn | head -1",
            "SUCCESS",
        );
        is("etcdctl get a --print-value-only", "3");

        let watch = shell.spawn(&format!("{ctl} watch --prefix w/"));
        let mut n = 0;
        shell.until(&format!("{ctl} put w/1 x"), "OK");
        while !watch.told().contains("PUT") && n < 100 {
            // The watch may not have begun yet.
            ok("etcdctl put w/1 x");
            n += 1;
        }
        watch.wait_for("w/1");

        let lease = shell.word(&format!("{ctl} lease grant 600 | cut -d' ' -f2"));
        ok(&format!("etcdctl put leased x --lease={lease}"));
        tells(
            &format!("etcdctl lease timetolive {lease} --keys"),
            &["granted with TTL(600s)", "leased"],
        );
        tells("etcdctl lease list", &[&lease]);
        tells(&format!("etcdctl lease keep-alive --once {lease}"), &["keepalived with TTL(600)"]);
        tells(&format!("etcdctl lease revoke {lease}"), &["revoked"]);
        is("etcdctl get leased", "");

        tells("etcdctl lock mutex echo held", &["held"]);
        let elected = shell.spawn(&format!("{ctl} elect e one"));
        elected.wait_for("one");
        tells("timeout 5 etcdctl elect -l e | head -2", &["one"]);

        tells("etcdctl member list", &["started", "m1", "http://localhost:2380"]);
        tells("etcdctl endpoint status", &["127.0.0.1:2379", "true"]);
        tells("etcdctl endpoint hashkv", &["127.0.0.1:2379"]);
        is("etcdctl alarm list", "");
        let revision = shell
            .word(&format!("{ctl} get a -w json | grep -o '\"revision\":[0-9]*' | cut -d: -f2"));
        tells(&format!("etcdctl compact {revision}"), &["compacted revision"]);
        shell.fails(&format!("{ctl} get a --rev=1"), &["required revision has been compacted"]);
        tells("etcdctl defrag", &["Finished defragmenting"]);
    }
    shell.fails("etcdctl move-leader 1", &[]);
    shell.tells("curl -sS http://127.0.0.1:2379/health", &[r#"{"health":"true""#]);
    shell.tells("curl -sS http://127.0.0.1:2379/version", &["etcdserver"]);
    shell.tells("curl -sS http://127.0.0.1:2379/metrics", &["etcd_server_has_leader 1"]);
    shell.tells(
        "curl -sS http://127.0.0.1:2379/v3/kv/range -X POST -d '{\"key\":\"YQ==\"}'",
        &[r#""value":"Mw==""#],
    );
    assert_eq!(member.stop(), 0, "etcd ends with 0 when it is told to stop");
    // What was acknowledged is there again.
    let _member = alone(&shell, &[]);
    shell.is("etcdctl get a --print-value-only", "3");
}

#[test]
fn users_and_roles_are_asked_for() {
    let machine = Machine::bare("users");
    let shell = machine.admin().clone();
    let mut member = alone(&shell, &["--bcrypt-cost", "4"]);
    shell.ok("etcdctl user add root:secret && etcdctl user grant-role root root || \
         { etcdctl role add root && etcdctl user grant-role root root; }");
    shell.ok("etcdctl user add ann:pw && etcdctl role add app");
    shell.ok("etcdctl role grant-permission app --prefix=true readwrite app/");
    shell.ok("etcdctl user grant-role ann app");
    shell.tells("etcdctl role get app", &["app/"]);
    shell.ok("etcdctl auth enable");
    shell.fails("etcdctl get x", &["user name is empty"]);
    shell.fails("etcdctl --user=ann:wrong get app/x", &["authentication failed"]);
    shell.is("etcdctl --user=ann:pw put app/x 1", "OK");
    shell.is("etcdctl --user=ann:pw get app/x --print-value-only", "1");
    shell.fails("etcdctl --user=ann:pw put other 1", &["permission denied"]);
    shell.tells("etcdctl --user=root:secret user list", &["ann", "root"]);
    member.kill();
    let _member = Member::start(&shell, "m1", &["--bcrypt-cost", "4"]);
    shell.until("etcdctl --user=ann:pw get app/x --print-value-only", "1");
    shell.ok("etcdctl --user=root:secret auth disable");
    shell.is("etcdctl get app/x --print-value-only", "1");
}

#[test]
fn the_quota_raises_an_alarm_until_it_is_disarmed() {
    let machine = Machine::bare("quota");
    let shell = machine.admin().clone();
    let _member = alone(&shell, &["--quota-backend-bytes", "1000000"]);
    let fill = "for n in $(seq 60); do head -c 40000 /dev/zero | tr '\\0' x | etcdctl put big$n || exit 1; done";
    shell.fails(fill, &["database space exceeded"]);
    shell.tells("etcdctl alarm list", &["alarm:NOSPACE"]);
    shell.fails("etcdctl put small 1", &["database space exceeded"]);
    shell.ok("etcdctl del --prefix big");
    shell.ok(
        "etcdctl compact $(etcdctl get x -w json | grep -o '\"revision\":[0-9]*' | cut -d: -f2)",
    );
    shell.tells("etcdctl alarm disarm", &["alarm:NOSPACE"]);
    shell.is("etcdctl put small 1", "OK");
}

#[test]
fn flags_are_gos_and_wrong_ones_are_told() {
    let machine = Machine::bare("flags");
    let shell = machine.admin().clone();
    prepare(&shell);
    shell.tells("./etcd --version", &["etcd Version: 3."]);
    shell.tells("dhow store --help", &["--listen-client-urls", "ETCD_DATA_DIR", "Example"]);
    let bogus = shell.sh("./etcd --bogus");
    assert_eq!(bogus.code, 2, "{bogus:#?}");
    assert!(bogus.err.contains("flag provided but not defined: -bogus"), "{bogus:#?}");
    let required = shell.sh("./etcd --listen-client-urls http://127.0.0.1:1");
    assert_eq!(required.code, 1, "{required:#?}");
    assert!(required.err.contains("--advertise-client-urls is required"), "{required:#?}");
    shell.fails("ETCD_NAME=a ./etcd --name b", &["shadowed"]);
    shell.fails("./etcd --discovery http://example.org", &["--initial-cluster"]);
    shell.fails(
        "./etcd --name a --initial-cluster b=http://localhost:2380",
        &["couldn't find local name"],
    );

    // A file in etcd's form, and a socket beside the port.
    shell.file(
        "etcd.yaml",
        "name: filed\nlisten-client-urls: http://127.0.0.1:2379,unix://sock:0\n\
         advertise-client-urls: http://127.0.0.1:2379\nlisten-metrics-urls: http://127.0.0.1:2399\n\
         snapshot-count: 7\nlog-outputs: [stderr, own.log]\n",
    );
    let mut member = Member::start(&shell, "ignored", &["--config-file", "etcd.yaml"]);
    shell.until("etcdctl put a 1", "OK");
    shell.is("ls -d filed.etcd", "filed.etcd");
    shell.tells("curl -sS http://127.0.0.1:2399/metrics", &["etcd_server_has_leader"]);
    shell.is(
        "curl -sS -o /dev/null -w '%{http_code}' http://127.0.0.1:2399/v3/kv/range -d '{}'",
        "404",
    );
    shell.tells("curl -sS --unix-socket sock:0 http://x/health", &["true"]);
    shell.tells("cat own.log", &["--snapshot-count has no effect", r#""level":"warn""#]);
    // The port is taken.
    shell.fails(
        "./etcd --name b --listen-peer-urls http://127.0.0.1:3380",
        &["cannot listen on http://localhost:2379"],
    );
    assert_eq!(member.stop(), 0);
}

#[test]
fn snapshots_go_out_and_come_in() {
    let machine = Machine::bare("snapshot");
    let shell = machine.admin().clone();
    let (ctl, utl) = (etcdctl(), etcdutl());
    let mut member = alone(&shell, &[]);
    shell.ok("for n in $(seq 20); do etcdctl put k$n v$n; done");
    shell.ok(&format!("{ctl} snapshot save s.db"));
    shell.tells(&format!("{utl} snapshot status s.db -w table"), &["HASH", "20"]);
    let hash = "etcdctl endpoint hashkv | cut -d, -f2";
    let before = shell.word(hash);
    assert_eq!(member.stop(), 0);

    // Into a new store of ours.
    shell.ok("dhow store snapshot restore s.db --data-dir ours --name m1");
    shell.fails("dhow store snapshot restore s.db --data-dir ours --name m1", &["not empty"]);
    let mut ours = alone(&shell, &["--data-dir", "ours"]);
    shell.is("etcdctl get k7 --print-value-only", "v7");
    assert_eq!(shell.word(hash), before);
    shell.is("etcdctl put more 1", "OK");
    assert_eq!(ours.stop(), 0);

    // A directory that etcdutl has made, from our snapshot.
    shell.ok(&format!(
        "{utl} snapshot restore s.db --data-dir theirs --name m1 \
         --initial-cluster m1=http://localhost:2380"
    ));
    let mut theirs = alone(&shell, &["--data-dir", "theirs"]);
    shell.is("etcdctl get k7 --print-value-only", "v7");
    assert_eq!(shell.word(hash), before);
    shell.is("etcdctl put more 1", "OK");
    assert_eq!(theirs.stop(), 0);
    let _again = alone(&shell, &["--data-dir", "theirs"]);
    shell.is("etcdctl get more --print-value-only", "1");

    shell.ok("head -c 5000 s.db > torn.db");
    shell.fails("dhow store snapshot restore torn.db --data-dir torn", &["torn.db"]);
    shell.ok("test ! -e torn/member/store || test -z \"$(ls torn/member/store)\"");
}

#[test]
fn the_platform_serves_its_store_to_etcd_clients() {
    let mut machine = Machine::bare("door");
    let shell = machine.admin().clone();
    machine.up(&[]);
    let ctl = |command: &str| format!("eval \"$(dhow env)\"; etcdctl {command}");
    shell.tells("dhow env", &["ETCDCTL_ENDPOINTS='https://127.0.0.1:2379'", "ETCDCTL_KEY="]);
    shell.is(&ctl("put shop/colour blue"), "OK");
    shell.is(&ctl("get shop/colour --print-value-only"), "blue");
    let key = "/registry/core/namespaces/default";
    shell.is(&ctl(&format!("get {key} --keys-only | grep .")), key);
    shell.fails(&ctl(&format!("put {key} x")), &["permission denied"]);
    shell.fails(&ctl("del --prefix /"), &["permission denied"]);
    shell.ok("kubectl get namespace default");
    // Nobody else comes in: no certificate, and an administrator's of the API. What curl makes of it
    // depends on whether it reads the alert before it notices the end.
    shell.fails(
        "curl -sS --cacert \"$DHOW_DATA_DIR/pki/ca.crt\" https://127.0.0.1:2379/health",
        &["curl: ("],
    );
    shell.fails(
        "cd \"$DHOW_DATA_DIR/pki\" && curl -sS --cacert ca.crt --cert admin.crt --key admin.key https://127.0.0.1:2379/health",
        &["curl: ("],
    );
    machine.dhow(&["down"]);
    machine.up(&["--etcd-listen", "127.0.0.1:12379"]);
    shell.is(&ctl("get shop/colour --print-value-only"), "blue");
    machine.dhow(&["down"]);
    machine.up(&["--etcd-listen", "off"]);
    shell.is("dhow env | grep -c ETCDCTL || true", "0");
}
