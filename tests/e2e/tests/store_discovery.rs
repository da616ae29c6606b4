//! Members that find each other by DNS (`--discovery-srv`): three of etcd and three of dhow with the
//! same flags and the same dnsmasq become the same cluster, over plain connections and over TLS.

#[path = "store/load.rs"]
mod load;
#[path = "store/member.rs"]
mod member;

use load::{program, tail};
use member::etcdctl;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const MEMBERS: [&str; 3] = ["m1", "m2", "m3"];

/// A process that ends with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network of its own in which dnsmasq answers names; it is there as long as that runs.
struct Network {
    dnsmasq: Running,
    home: tempfile::TempDir,
}

impl Network {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let conf = home.path().join("resolv.conf");
        fs::write(&conf, "nameserver 127.0.0.1\n").expect("a file");
        let mut records = String::new();
        for (n, member) in MEMBERS.iter().enumerate() {
            records += &format!("host-record={member}.example.test,127.1.0.{}\n", n + 1);
            for (service, port) in
                [("etcd-server", 2380), ("etcd-server-ssl-safe", 2380), ("etcd-client", 2379)]
            {
                let target = format!("{member}.example.test,{port}");
                records += &format!("srv-host=_{service}._tcp.example.test,{target}\n");
            }
        }
        records += "srv-host=_etcd-server-lost._tcp.example.test,nowhere.example.test,2380\n";
        let rules = home.path().join("dnsmasq.conf");
        let always = "no-resolv\nno-hosts\nuser=root\npid-file\nlisten-address=127.0.0.1\nbind-interfaces\nlocal=/test/\n";
        fs::write(&rules, format!("{always}{records}")).expect("a file");
        let script = format!(
            "ip link set lo up && mount --bind {conf} /etc/resolv.conf && exec dnsmasq --keep-in-foreground --conf-file={rules}",
            conf = conf.display(),
            rules = rules.display()
        );
        let log = fs::File::create(home.path().join("dnsmasq.log")).expect("a log");
        let dnsmasq = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("unshare runs");
        let network = Self { dnsmasq: Running(dnsmasq), home };
        let answers = || {
            // Its socket is there when it has begun.
            let sockets = network.inside("cat").arg("/proc/self/net/udp").output();
            sockets.is_ok_and(|told| String::from_utf8_lossy(&told.stdout).contains(":0035 "))
        };
        e2e::wait_for(answers, PATIENCE, "dnsmasq");
        network
    }

    /// A program in the network.
    fn inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let id = self.dnsmasq.0.id().to_string();
        command.args(["--target", &id, "--net", "--mount"]).arg(program);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Starts a member with its data and its log in `folder`.
    fn member(
        &self,
        command: &[&str],
        folder: &str,
        name: &str,
        scheme: &str,
        more: &[&str],
    ) -> Running {
        let n = MEMBERS.iter().position(|member| *member == name).expect("one of them") + 1;
        let client = format!("http://127.1.0.{n}:2379");
        let peer = format!("{scheme}://127.1.0.{n}:2380");
        // Either is found: one by its address, the others by their names.
        let advertised = match n {
            1 => peer.clone(),
            _ => format!("{scheme}://{name}.example.test:2380"),
        };
        let data = self.path(folder).join(name);
        fs::create_dir_all(self.path(folder)).expect("a directory");
        let log = fs::File::options().create(true).append(true).open(self.log(folder, name));
        let log = log.expect("a log");
        let child = self
            .inside(command[0])
            .args(&command[1..])
            .args(["--name", name, "--data-dir"])
            .arg(data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &advertised])
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("one more handle"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        Running(child)
    }

    fn log(&self, folder: &str, name: &str) -> PathBuf {
        self.path(folder).join(name).with_extension("log")
    }

    /// What etcdctl, which finds the members by DNS as well, tells of them, once all have said who they
    /// are.
    fn members(&self, folder: &str) -> Value {
        let mut found = Value::Null;
        let all = || {
            let told = self
                .inside(etcdctl())
                .args([
                    "--discovery-srv=example.test",
                    "--dial-timeout=2s",
                    "member",
                    "list",
                    "-w",
                    "json",
                ])
                .output()
                .expect("etcdctl runs");
            found = serde_json::from_slice(&told.stdout).unwrap_or_default();
            let members = found["members"].as_array().map_or(&[][..], Vec::as_slice);
            members.len() == MEMBERS.len()
                && members
                    .iter()
                    .all(|member| MEMBERS.contains(&member["name"].as_str().unwrap_or("")))
                && members.iter().all(|member| member["clientURLs"].is_array())
        };
        let what = format!("the members of {folder}: {}", tail(&self.log(folder, "m1")));
        e2e::wait_for(all, PATIENCE, &what);
        // Who answers, and when.
        let header = found["header"].as_object_mut().expect("an object");
        header.retain(|name, _| name == "cluster_id");
        let members = found["members"].as_array_mut().expect("an array");
        members.sort_by_key(|member| member["ID"].as_u64());
        found
    }

    /// Waits until a member of dhow has ended by itself; what it said last.
    fn refused(&self, name: &str, more: &[&str]) -> String {
        let program = program();
        let dhow = [program.to_str().expect("a text"), "store"];
        let mut member = self.member(&dhow, "refused", name, "http", more);
        assert!(!member.0.wait().expect("it is our child").success());
        tail(&self.log("refused", name))
    }
}

/// The newest release lies beside its client.
fn etcd() -> PathBuf {
    Path::new(&etcdctl()).with_file_name("etcd")
}

#[test]
fn members_that_find_each_other_by_dns_become_the_cluster_that_etcds_become() {
    let network = Network::new();
    let (etcd, dhow) = (etcd(), program());
    let (etcd, dhow) = (etcd.to_str().expect("a text"), dhow.to_str().expect("a text"));
    let plain = ("http", &["--discovery-srv=example.test"][..]);
    let safe = (
        "https",
        &["--discovery-srv=example.test", "--discovery-srv-name=safe", "--peer-auto-tls"][..],
    );
    for (scheme, flags) in [plain, safe] {
        let cluster = |command: &[&str], kind: &str| {
            let folder = format!("{kind}-{scheme}");
            let members = MEMBERS.map(|name| network.member(command, &folder, name, scheme, flags));
            (network.members(&folder), members)
        };
        let (wanted, etcds) = cluster(&[etcd], "etcd");
        drop(etcds);
        let (found, mut dhows) = cluster(&[dhow, "store"], "dhow");
        // Names, URLs and all identifiers.
        assert_eq!(found, wanted);

        // One that has data does not look again, and says so.
        let folder = format!("dhow-{scheme}");
        let other = ["--discovery-token=t", "--discovery-endpoints=http://127.0.0.1:1"];
        for (name, flags, told) in [
            ("m1", flags, "--discovery-srv is ignored since cluster already initialized"),
            ("m2", &other[..], "discovery token is ignored since cluster already initialized"),
        ] {
            let at = MEMBERS.iter().position(|member| *member == name).expect("one of them");
            let again = |flags: &[&str]| {
                let mut all = vec!["--peer-auto-tls"];
                all.retain(|_| scheme == "https");
                all.extend(flags.iter().filter(|flag| !flag.starts_with("--peer")));
                network.member(&[dhow, "store"], &folder, name, scheme, &all)
            };
            let log = network.log(&folder, name);
            let ready = |times: usize| {
                let told = || {
                    let text = fs::read_to_string(&log).expect("a log");
                    text.matches("ready to serve client requests").count() == times
                };
                e2e::wait_for(told, PATIENCE, &format!("{name}, start {times}"));
            };
            // The others may know of it before it has said so itself.
            ready(1);
            let _ = dhows[at].0.kill();
            let _ = dhows[at].0.wait();
            dhows[at] = again(flags);
            ready(2);
            let text = fs::read_to_string(&log).expect("a log");
            assert_eq!(text.matches(told).count(), 1, "{text}");
        }
        assert_eq!(network.members(&folder), wanted);
    }
}

#[test]
fn a_member_that_dns_does_not_know_is_told_what_is_missing() {
    let network = Network::new();
    let none = network.refused("m1", &["--discovery-srv=nothing.test"]);
    assert!(none.contains("_etcd-server._tcp.nothing.test: there is no such record"), "{none}");
    assert!(none.contains("list them with --initial-cluster"), "{none}");
    let lost = ["--discovery-srv=example.test", "--discovery-srv-name=lost"];
    let lost = network.refused("m1", &lost);
    assert!(lost.contains("nowhere.example.test has no address"), "{lost}");
    let other =
        ["--discovery-srv=example.test", "--initial-advertise-peer-urls=http://127.9.9.9:1"];
    let other = network.refused("m1", &other);
    assert!(other.contains("cannot find local etcd member \\\"m1\\\" in SRV records"), "{other}");
    let both =
        network.refused("m1", &["--discovery-srv=example.test", "--initial-cluster=a=http://a:1"]);
    assert!(both.contains("Choose one of"), "{both}");
}
