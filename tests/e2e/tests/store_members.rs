//! Several members of `dhow store` with TLS: crashes, and changes of the membership, by etcdctl.

#[path = "store/member.rs"]
mod member;

use e2e::{Machine, Shell};
use member::{Member, logged, prepare};

/// An authority, and a certificate for this machine, made by openssl.
const CERTIFICATES: &str = "\
mkdir -p tls && cd tls
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
  -subj /CN=ca -keyout ca.key -out ca.crt
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=member \
  -keyout m.key -out m.csr
printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\\nextendedKeyUsage=serverAuth,clientAuth\\n' > m.ext
openssl x509 -req -in m.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
  -extfile m.ext -out m.crt
";

const TLS: [&str; 14] = [
    "--cert-file",
    "tls/m.crt",
    "--key-file",
    "tls/m.key",
    "--trusted-ca-file",
    "tls/ca.crt",
    "--client-cert-auth",
    "--peer-cert-file=tls/m.crt",
    "--peer-key-file=tls/m.key",
    "--peer-trusted-ca-file=tls/ca.crt",
    "--peer-client-cert-auth",
    "--heartbeat-interval=50",
    "--election-timeout=500",
    "--auto-compaction-retention=1h",
];

/// A cluster of the members 1, 2, 3 and whoever joins.
struct Cluster {
    shell: Shell,
    members: Vec<Option<Member>>,
}

fn client(n: usize) -> String {
    format!("https://127.0.0.1:{n}2379")
}

fn peer(n: usize) -> String {
    format!("https://127.0.0.1:{n}2380")
}

fn initial(members: &[usize]) -> String {
    let all: Vec<String> = members.iter().map(|n| format!("m{n}={}", peer(*n))).collect();
    all.join(",")
}

impl Cluster {
    fn new(shell: &Shell) -> Self {
        prepare(shell);
        shell.ok(CERTIFICATES);
        let mut cluster = Self { shell: shell.clone(), members: (0..6).map(|_| None).collect() };
        for n in 1..=3 {
            cluster.start(n, &[1, 2, 3], "new");
        }
        for n in 1..=3 {
            cluster.until_healthy(n);
        }
        cluster
    }

    fn start(&mut self, n: usize, members: &[usize], state: &str) {
        self.start_with(n, members, &["--initial-cluster-state", state]);
    }

    fn start_with(&mut self, n: usize, members: &[usize], more: &[&str]) {
        let (client, peer, initial) = (client(n), peer(n), initial(members));
        let mut flags = vec![
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &initial,
        ];
        flags.extend(more);
        flags.extend(TLS);
        self.members[n] = Some(Member::start(&self.shell, &format!("m{n}"), &flags));
    }

    fn ctl(members: &[usize], command: &str) -> String {
        let endpoints: Vec<String> = members.iter().map(|n| client(*n)).collect();
        format!(
            "etcdctl --endpoints={} --cacert=tls/ca.crt --cert=tls/m.crt --key=tls/m.key {command}",
            endpoints.join(",")
        )
    }

    /// Adds a member, as soon as those there let it in: as in etcd, they have to have heard of each
    /// other for five seconds.
    fn add(&self, members: &[usize], who: &str) -> String {
        let add = Self::ctl(members, &format!("member add {who} > out 2>&1"));
        self.shell.until(&format!("{add}; grep -c 'added to' out"), "1");
        self.shell.ok("cat out")
    }

    fn until_healthy(&self, n: usize) {
        let health = Self::ctl(&[n], "endpoint health 2>&1 | grep -o 'is healthy'");
        self.shell.until(&health, "is healthy");
    }

    fn member(&mut self, n: usize) -> &mut Member {
        self.members[n].as_mut().expect("it was started")
    }

    /// The identifier of a member, in hex.
    fn id(&self, ask: usize, n: usize) -> String {
        let list = Self::ctl(&[ask], &format!("member list | grep {} | cut -d, -f1", peer(n)));
        self.shell.word(&list)
    }

    /// The member that leads.
    fn leader(&self, members: &[usize]) -> usize {
        let find = Self::ctl(members, "endpoint status | grep ' true, false' | cut -d, -f1");
        let mut found = 0;
        e2e::wait_for(
            || {
                let at = self.shell.sh(&find).out;
                found = members.iter().copied().find(|n| at.contains(&client(*n))).unwrap_or(0);
                found > 0
            },
            std::time::Duration::from_secs(30),
            "a leader",
        );
        found
    }
}

#[test]
fn three_members_survive_the_loss_of_one_and_refuse_without_a_quorum() {
    let machine = Machine::bare("three");
    let shell = machine.admin().clone();
    let mut cluster = Cluster::new(&shell);
    let all = [1, 2, 3];
    for n in all {
        shell.is(&Cluster::ctl(&[n], &format!("put by{n} {n}")), "OK");
    }
    for n in all {
        shell.is(&Cluster::ctl(&[n], "get --prefix by --print-value-only"), "1\n2\n3");
    }
    // The leader dies. The others go on, and have what was acknowledged.
    let leader = cluster.leader(&all);
    cluster.member(leader).kill();
    let rest: Vec<usize> = all.into_iter().filter(|n| *n != leader).collect();
    shell.until(&Cluster::ctl(&rest, "put after crash"), "OK");
    for n in &rest {
        shell.is(&Cluster::ctl(&[*n], "get --prefix by --print-value-only"), "1\n2\n3");
    }
    // It comes back and catches up.
    cluster.start(leader, &all, "new");
    cluster.until_healthy(leader);
    shell.is(&Cluster::ctl(&[leader], "get after --print-value-only"), "crash");
    // The leadership goes where it is sent.
    let now = cluster.leader(&all);
    let target = all.into_iter().find(|n| *n != now).expect("another one");
    let id = cluster.id(now, target);
    shell.tells(&Cluster::ctl(&[now], &format!("move-leader {id}")), &["Leadership transferred"]);
    assert_eq!(cluster.leader(&all), target);
    // All have the same data.
    let hash = |n: usize| shell.word(&Cluster::ctl(&[n], "endpoint hashkv | cut -d, -f2"));
    assert_eq!(hash(1), hash(2));
    assert_eq!(hash(2), hash(3));

    // One of three can neither write nor say what is newest; but what it has, it tells.
    let last = 1;
    for n in [2, 3] {
        cluster.member(n).kill();
    }
    shell.until(
        &Cluster::ctl(&[last], "put x 1 --command-timeout=3s > out 2>&1; grep -c Error out"),
        "1",
    );
    shell.fails(&Cluster::ctl(&[last], "get by1 --command-timeout=2s"), &["Error"]);
    shell.is(&Cluster::ctl(&[last], "get by1 --consistency=s --print-value-only"), "1");
    cluster.start(2, &all, "new");
    shell.until(&Cluster::ctl(&[last], "put x 2"), "OK");
    // An orderly end, even of the leader, is 0.
    assert_eq!(cluster.member(1).stop(), 0);
    assert_eq!(cluster.member(2).stop(), 0);

    // The others are lost for good: the last one goes on alone, and can grow again.
    let flags = ["--initial-cluster-state", "existing", "--force-new-cluster"];
    cluster.start_with(1, &all, &flags);
    cluster.until_healthy(1);
    shell.is(&Cluster::ctl(&[1], "get x --print-value-only"), "2");
    shell.is(&Cluster::ctl(&[1], "member list | wc -l"), "1");
    assert_eq!(cluster.member(1).stop(), 0);
    cluster.start(1, &all, "existing");
    cluster.until_healthy(1);
    shell.is(&Cluster::ctl(&[1], "put x 3"), "OK");
    cluster.add(&[1], &format!("m2 --peer-urls={}", peer(2)));
    shell.ok("rm -rf m2.etcd");
    cluster.start(2, &[1, 2], "existing");
    cluster.until_healthy(2);
    shell.is(&Cluster::ctl(&[2], "get x --print-value-only"), "3");
}

#[test]
fn members_come_learn_move_and_go() {
    let machine = Machine::bare("members");
    let shell = machine.admin().clone();
    let mut cluster = Cluster::new(&shell);
    for n in 0..50 {
        shell.ok(&Cluster::ctl(&[1], &format!("put k{n} v{n}")));
    }
    // A fourth, as a learner.
    let added = cluster.add(&[1], &format!("m4 --learner --peer-urls={}", peer(4)));
    assert!(added.contains("ETCD_INITIAL_CLUSTER_STATE=\"existing\""), "{added}");
    // Whoever is not added is told so.
    cluster.start(5, &[1, 2, 3, 5], "existing");
    assert_eq!(cluster.member(5).end(), 1);
    logged(&shell, "m5", "add it with member add");
    shell.ok("rm -rf m5.etcd");

    cluster.start(4, &[1, 2, 3, 4], "existing");
    logged(&shell, "m4", "ready to serve client requests");
    let id = cluster.id(1, 4);
    shell.fails(&Cluster::ctl(&[4], "put x 1"), &["rpc not supported for learner"]);
    shell.until(
        &Cluster::ctl(
            &[1],
            &format!("member promote {id} > out 2>&1; grep -c 'promoted in cluster' out"),
        ),
        "1",
    );
    cluster.until_healthy(4);
    shell.is(&Cluster::ctl(&[4], "get k49 --print-value-only"), "v49");

    // One is removed: it ends by itself, and its old data do not come back in.
    let gone = cluster.id(1, 3);
    // It is told also when the removed one led; only a change that was refused is tried again.
    shell.until(
        &Cluster::ctl(
            &[1],
            &format!("member remove {gone} > out 2>&1; grep -c 'removed from' out"),
        ),
        "1",
    );
    cluster.member(3).end();
    logged(&shell, "m3", "removed from the cluster");
    shell.is(&Cluster::ctl(&[1], "member list | wc -l"), "3");
    shell.is(&Cluster::ctl(&[2], "put x 2"), "OK");
    cluster.start(3, &[1, 2, 3], "new");
    logged(&shell, "m3", "removed");
    cluster.member(3).kill();

    // It is replaced: empty, at the same place.
    shell.ok("rm -rf m3.etcd");
    cluster.add(&[1], &format!("m3 --peer-urls={}", peer(3)));
    cluster.start(3, &[1, 2, 3, 4], "existing");
    cluster.until_healthy(3);
    shell.is(&Cluster::ctl(&[3], "get k25 --print-value-only"), "v25");
    assert_ne!(cluster.id(1, 3), gone);

    // One that is gone for good, disk and all, is replaced as well.
    cluster.member(2).kill();
    shell.ok("rm -rf m2.etcd");
    let lost = cluster.id(1, 2);
    shell.until(
        &Cluster::ctl(
            &[1, 3, 4],
            &format!("member remove {lost} > out 2>&1; grep -c 'removed from' out"),
        ),
        "1",
    );
    cluster.add(&[1, 3, 4], &format!("m2 --peer-urls={}", peer(2)));
    cluster.start(2, &[1, 2, 3, 4], "existing");
    cluster.until_healthy(2);
    shell.is(&Cluster::ctl(&[2], "get x --print-value-only"), "2");
}
