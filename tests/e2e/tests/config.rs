//! Application configuration: `dhow config` against a real etcd, and against a platform.

#[path = "datastore/etcd.rs"]
mod etcd;

use e2e::{Machine, Shell};
use etcd::Etcd;
use serde_json::Value;

/// A machine with an etcd that `dhow config` finds by etcdctl's own variable.
fn with_etcd(name: &str) -> (Machine, Shell, Etcd) {
    let machine = Machine::bare(name);
    let shell = machine.admin().clone();
    let etcd = Etcd::start(&shell, "store", 12379, &[]);
    (machine, shell, etcd)
}

/// `dhow config` with these arguments.
fn config(line: &str) -> String {
    format!("ETCDCTL_ENDPOINTS=http://127.0.0.1:12379 dhow config {line}")
}

fn etcdctl(line: &str) -> String {
    format!("ETCDCTL_API=3 etcdctl --endpoints=127.0.0.1:12379 {line}")
}

#[test]
fn values_are_kept_told_and_brought_back() {
    let (_machine, shell, _etcd) = with_etcd("config-values");
    shell.is(&config("put shop/db/host db1"), "shop/db/host revision 2");
    shell.is(&config("get /shop/db/host"), "db1");
    // Where they lie is told in the book: any etcd client reads them.
    shell.is(&etcdctl("get --print-value-only /config/shop/db/host"), "db1");
    shell.ok(&etcdctl("put /config/shop/db/port 5432"));
    shell.tells(&config("ls shop --values"), &["KEY", "shop/db/host", "shop/db/port", "5432"]);
    let told = shell.ok(&config("get shop/db/port -o json"));
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((&told["value"], &told["revision"]), (&"5432".into(), &3.into()));
    assert_eq!(shell.pipe(&config("put shop/motd"), "ahoy\nmatey\n").code, 0);
    shell.is(&config("get shop/motd"), "ahoy\nmatey");

    // Only if nobody was faster.
    shell.fails(&config("put --create shop/db/host x"), &["is there already"]);
    shell.fails(&config("put --if-revision 1 shop/db/host x"), &["changed by somebody else"]);
    shell.ok(&config("put --if-revision 2 shop/db/host db2"));

    // History.
    shell.tells(&config("log shop/db/host"), &["5 ", "2 ", "written   db2", "created   db1"]);
    shell.ok("printf 'ahoy\\nmate\\n' > motd");
    shell.ok(&config("put shop/motd --file motd"));
    shell.tells(&config("diff shop/motd"), &["-matey", "+mate", " ahoy", "revision 4"]);
    shell.tells(&config("diff shop/db/host 2 5"), &["-db1", "+db2"]);
    shell.tells(&config("undo shop/motd"), &["its value of revision 4 again"]);
    shell.is(&config("get shop/motd"), "ahoy\nmatey");
    shell.is(&config("get shop/db/host --revision 2"), "db1");
    shell.tells(&config("undo shop/db/host --to 2"), &["its value of revision 2"]);
    shell.ok(&config("rm shop/motd"));
    shell.fails(&config("get shop/motd"), &["there is no shop/motd"]);
    shell.tells(&config("log shop/motd"), &["deleted", "created"]);
    shell.tells(&config("undo shop/motd"), &["shop/motd has its value"]);
    shell.is(&config("get shop/motd"), "ahoy\nmatey");
    // What is no text comes back byte by byte.
    shell.ok("printf '\\377\\000x' > icon");
    shell.ok(&format!("{} && {} | cmp - icon", config("put icon --file icon"), config("get icon")));
    // What is forgotten is said to be.
    shell.ok(&etcdctl("compact 9"));
    let log = shell.sh(&config("log shop/db/host"));
    assert!(log.code == 0 && log.err.contains("before revision 9 is forgotten"), "{log:#?}");
    shell.fails(&config("get shop/db/host --revision 2"), &["revision 2 is forgotten"]);

    shell.ok("head -c 2000000 /dev/zero > big");
    shell.fails(&config("put shop/big --file big"), &["shop/big", "2000000 bytes", "1.5 MiB"]);

    // What goes wrong is told in a line, and wrong usage by 2.
    for (line, part) in [
        ("get", "required"),
        ("put a/../b x", "no path"),
        ("get shop/db", "is no key"),
        ("rm nothing", "there is no nothing"),
        ("get a --revision 4000", "in the future"),
        ("ls --prefix /registry", "its own data"),
        ("get a --endpoints 127.0.0.1:9", "no member of the etcd cluster answers"),
    ] {
        let told = shell.sh(&config(line));
        assert_eq!(told.code, if line == "get" { 2 } else { 1 }, "{told:#?}");
        assert!(told.err.contains(part), "{line}: {told:#?}");
        assert!(told.code == 2 || told.err.lines().count() == 1, "{told:#?}");
    }
}

#[test]
fn trees_go_in_and_out() {
    let (_machine, shell, _etcd) = with_etcd("config-trees");
    shell.file("a.yaml", "db: {host: db1, port: 5432}\nmotd: |\n  ahoy\n  matey\n");
    shell.tells(&config("import a.yaml --to shop --dry-run"), &["+ shop/db/host"]);
    shell.is(&config("ls shop"), "KEY   REVISION   SIZE");
    shell.tells(&config("import a.yaml --to shop"), &["3 added, 0 changed, 0 removed, revision 2"]);
    shell.is(&config("import a.yaml --to shop"), "nothing to change");
    shell.ok(&config("put shop2/other stays"));
    shell.ok(&config("put shop/db/old x"));
    shell.file("b.json", r#"{"db": {"host": "db2", "port": 5432}, "motd": "ahoy\nmatey\n"}"#);
    shell.tells(
        &config("import b.json --to shop --prune"),
        &["0 added, 1 changed, 1 removed, revision 5"],
    );
    shell.is(&config("get shop2/other"), "stays");
    let json = shell.ok(&config("export shop"));
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["db"]["host"], "db2");
    // As it was, at one revision.
    shell.tells(&config("export shop --revision 2 --format yaml"), &["host: db1"]);
    shell.is(&config("export shop/db --format env"), "HOST=db2\nPORT=5432");
    shell.file("c.env", "# variables\nexport COLOUR='dark blue'\nSIZE=7\n");
    shell.ok(&config("import c.env --to env"));
    shell.is(&config("get env/COLOUR"), "dark blue");
    // More than one transaction takes, and back again.
    shell.ok("for n in $(seq 500); do echo \"K$n=v$n\"; done > many.env");
    shell.tells(&config("import many.env --to many"), &["500 added"]);
    shell.is(&config("export many --format env | sort"), &shell.ok("sort many.env"));
    shell.ok(&config("rm --recursive many"));
    shell.is(&config("ls many"), "KEY   REVISION   SIZE");
    shell.fails(&config("import none.json"), &["none.json"]);
    shell.fails(&config("import a.yaml --format json"), &["a.yaml is not understood"]);
}

#[test]
fn files_follow_their_keys() {
    let (_machine, shell, mut etcd) = with_etcd("config-render");
    shell.ok(&config("put shop/web/a 10.0.0.1"));
    shell.ok(&config("put shop/name ahoy"));
    shell.file(
        "site.j2",
        "server {{ get('shop/name') }}\n{% for w in ls('shop/web') %}backend {{ get('shop/web/' ~ w) }}\n{% endfor %}",
    );
    let render = "render site.j2 site.conf --mode 0640 --check 'grep -q ^server {}' \
                  --reload 'echo reloaded >> reloads'";
    shell.ok(&config(render));
    shell.is("cat site.conf; stat -c %a site.conf", "server ahoy\nbackend 10.0.0.1\n640");
    shell.ok(&config(render));
    shell.is("cat reloads", "reloaded");
    shell.is(&config("render site.j2"), "server ahoy\nbackend 10.0.0.1");

    // A check that fails leaves the old file and says why; a template that fails says where.
    let refused = config("render site.j2 site.conf --check 'echo too old >&2; false'");
    shell.ok(&config("put shop/name matey"));
    shell.fails(&refused, &["site.conf stays as it is", "too old"]);
    shell.is("head -1 site.conf; ls -A | grep -c dhow- || true", "server ahoy\n0");
    shell.file("bad.j2", "one\n{{ get('shop/none') }}\n");
    shell.fails(&config("render bad.j2 bad.conf"), &["bad.j2, line 2: there is no shop/none"]);

    // Made again when the keys that it uses change, and only then; also when the store was away.
    let following = shell.spawn(&format!("exec env {}", config(&format!("{render} --watch"))));
    shell.until("head -1 site.conf", "server matey");
    shell.until("wc -l < reloads", "2");
    shell.ok(&config("put other/key x"));
    shell.ok(&config("put shop/web/b 10.0.0.2"));
    shell.until("tail -1 site.conf", "backend 10.0.0.2");
    drop(etcd);
    etcd = Etcd::start(&shell, "store", 12379, &[]);
    shell.ok(&config("rm shop/web/a"));
    shell.until("cat site.conf", "server matey\nbackend 10.0.0.2");
    // A key that goes leaves the file; one that comes back makes it again.
    shell.ok(&config("rm shop/name"));
    following.wait_for("there is no shop/name");
    shell.ok(&config("put shop/name back"));
    shell.until("cat site.conf", "server back\nbackend 10.0.0.2");
    shell.until("wc -l < reloads", "5");
    drop(following);

    // Several files of one directory.
    shell.ok("mkdir conf");
    shell.file("conf/one.j2", "{{ get('shop/name') }}\n");
    shell.file("conf/one.yaml", "template: one.j2\ndest: one.conf\nreload: echo one >> told\n");
    shell.file("conf/two.yaml", "template: one.j2\ndest: two.conf\nreload: echo one >> told\n");
    shell.ok(&config("render --config conf"));
    shell.is("cat one.conf two.conf told", "back\nback\none");
    drop(etcd);
}

#[test]
fn changes_are_followed() {
    let (_machine, shell, etcd) = with_etcd("config-watch");
    let exec = "echo $DHOW_CONFIG_EVENT $DHOW_CONFIG_KEY=$DHOW_CONFIG_VALUE >> told";
    let line = config(&format!("watch shop --exec '{exec}'"));
    let watching = shell.spawn(&format!("exec env {line}"));
    // It tells from now on: what it tells shows that it has begun.
    shell
        .until(&format!("{} >/dev/null && head -c1 told 2>/dev/null", config("put shop/x 0")), "p");
    shell.ok(&config("put shop/a 1"));
    shell.ok(&config("put shopping 1"));
    shell.ok(&config("rm shop/a"));
    watching.wait_for("delete shop/a");
    shell.until("tail -2 told", "put shop/a=1\ndelete shop/a=");
    assert!(!watching.told().contains("shopping"), "{}", watching.told());
    drop(watching);
    let past = shell.spawn(&format!("exec env {}", config("watch shop --from 1 -o json")));
    past.wait_for(r#""event":"delete""#);
    drop(etcd);
}

#[test]
fn a_platform_keeps_configuration_in_its_own_store() {
    let machine = Machine::new("config-own");
    let shell = machine.admin();
    shell.is("dhow config put shop/name ahoy | cut -d' ' -f1", "shop/name");
    shell.is("dhow config get shop/name", "ahoy");
    // With what `dhow env` exports, as any etcd client.
    shell.is("eval \"$(dhow env)\" && dhow config get shop/name", "ahoy");
    shell.is(
        "eval \"$(dhow env)\" && ETCDCTL_API=3 etcdctl get --print-value-only /config/shop/name",
        "ahoy",
    );
    shell.tells("dhow config log shop/name", &["created   ahoy"]);
    let watching = shell.spawn("exec dhow config watch shop --from 1");
    shell.ok("dhow config put shop/name matey");
    watching.wait_for("put shop/name matey");
    shell.tells("dhow config diff shop/name", &["-ahoy", "+matey"]);
    shell.tells("dhow config undo shop/name", &["again"]);
    // The store forgets, the platform does not.
    let etcdctl = "eval \"$(dhow env)\" && ETCDCTL_API=3 etcdctl";
    let written = format!(
        "{etcdctl} get --prefix --keys-only /dhow/history/config/shop/name | grep -c shop/name"
    );
    shell.until(&written, "2");
    let newest = "$(dhow config log shop/name | sed -n 2p | cut -d' ' -f1)";
    shell.ok(&format!("{etcdctl} compact {newest}"));
    shell.tells(
        "dhow config log shop/name",
        &["written   ahoy", "written   matey", "created   ahoy"],
    );
    shell.tells("dhow config diff shop/name", &["-matey", "+ahoy"]);
    shell.tells("dhow config undo shop/name", &["again"]);
    shell.is("dhow config get shop/name", "matey");
    shell.ok("dhow config put shop/name ahoy");
    shell.file("name.j2", "{{ get('shop/name') }}\n");
    shell.ok("dhow config render name.j2 name.conf");
    shell.is("cat name.conf", "ahoy");
}
