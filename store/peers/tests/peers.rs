//! Members that talk over loopback: order, sizes, reconnection, trust, and who is turned away.

use bytes::Bytes;
use dhow_kv::admin::{Identity, Member};
use dhow_peers::tls::{Settings, Trust};
use dhow_peers::{Address, Config, Local, Peers, ask};
use dhow_server::{Introduction, Standing, Transport};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

const CLUSTER: u64 = 0xc1;

/// A member's inside: remembers what came.
#[derive(Default)]
struct Inside {
    got: Mutex<Vec<(u64, Bytes)>>,
    members: Mutex<Vec<Member>>,
    removed: Mutex<HashSet<u64>>,
    expelled: Mutex<bool>,
    lost: Mutex<HashSet<u64>>,
    changed: Notify,
}

impl Local for Inside {
    fn receive(&self, from: u64, message: Bytes) {
        self.got.lock().unwrap().push((from, message));
        self.changed.notify_waiters();
    }
    fn unreachable(&self, to: u64) {
        self.lost.lock().unwrap().insert(to);
        self.changed.notify_waiters();
    }
    fn introduction(&self) -> Introduction {
        Introduction { cluster_id: CLUSTER, members: self.members.lock().unwrap().clone() }
    }
    fn standing(&self, id: u64) -> Standing {
        if self.removed.lock().unwrap().contains(&id) {
            Standing::Removed
        } else if self.members.lock().unwrap().iter().any(|member| member.id == id) {
            Standing::Member
        } else {
            Standing::Unknown
        }
    }
    fn expelled(&self) {
        *self.expelled.lock().unwrap() = true;
        self.changed.notify_waiters();
    }
}

struct Node {
    id: u64,
    url: String,
    peers: Arc<Peers>,
    inside: Arc<Inside>,
}

impl Node {
    async fn start(id: u64, trust: Option<Arc<Trust>>) -> Self {
        let scheme = if trust.is_some() { "https" } else { "http" };
        Self::start_at(id, &format!("{scheme}://127.0.0.1:0"), trust, CLUSTER).await
    }

    async fn start_at(id: u64, url: &str, trust: Option<Arc<Trust>>, cluster: u64) -> Self {
        let address: Address = url.parse().unwrap();
        let listener = address.listen().await.unwrap();
        let url = match listener.port() {
            Some(port) => format!("{}:{port}", url.rsplit_once(':').unwrap().0),
            None => url.to_owned(),
        };
        let clock = dhow_clock::System::shared();
        let peers = Peers::new(Config { clock, urls: vec![url.clone()], trust });
        let inside = Arc::new(Inside::default());
        peers.listen(listener, address.tls).unwrap();
        let local = Arc::downgrade(&inside);
        peers.start(Identity { cluster_id: cluster, member_id: id }, local);
        Self { id, url, peers, inside }
    }

    fn member(&self) -> Member {
        Member { id: self.id, peer_urls: vec![self.url.clone()], ..Member::default() }
    }

    fn knows(&self, nodes: &[&Node]) {
        let members: Vec<Member> = nodes.iter().map(|node| node.member()).collect();
        *self.inside.members.lock().unwrap() = members.clone();
        self.peers.members(&members);
    }

    async fn until(&self, what: &str, condition: impl Fn(&Inside) -> bool) {
        let wait = async {
            loop {
                let changed = self.inside.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if condition(&self.inside) {
                    return;
                }
                changed.await;
            }
        };
        let limit = tokio::time::timeout(Duration::from_secs(20), wait);
        limit.await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
    }

    async fn got(&self, count: usize) -> Vec<(u64, Bytes)> {
        self.until("messages", |inside| inside.got.lock().unwrap().len() >= count).await;
        self.inside.got.lock().unwrap().clone()
    }

    /// Sends until one arrives: a connection that broke takes messages with it.
    async fn reaches(&self, other: &Node, text: &'static str) {
        let mut again = tokio::time::interval(Duration::from_millis(20));
        let sending = async {
            loop {
                again.tick().await;
                self.peers.send(other.id, Bytes::from_static(text.as_bytes()));
            }
        };
        let arrived = other.until(text, |inside| {
            inside.got.lock().unwrap().iter().any(|(_, message)| message == text)
        });
        tokio::select! {
            () = sending => {}
            () = arrived => {}
        }
    }
}

/// An authority and a directory for what it issues.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.crt"), certificate.pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::DnsName("localhost".try_into().unwrap()),
            SanType::DnsName(format!("{name}.example").try_into().unwrap()),
        ];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |kind: &str| self.dir.path().join(format!("{name}.{kind}"));
        replace(&path("key"), &key.serialize_pem());
        replace(&path("crt"), &certificate.pem());
        (path("crt"), path("key"))
    }

    fn settings(&self, name: &str) -> Settings {
        let (certificate, key) = self.issue(name);
        Settings {
            certificate,
            key,
            authority: Some(self.ca()),
            demand_client: true,
            ..Settings::default()
        }
    }
}

/// As a careful administrator does: the new file takes the old one's place at once.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn numbered(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_le_bytes())
}

#[tokio::test]
async fn two_members_talk_both_ways_and_in_order() {
    let (a, b) = (Node::start(1, None).await, Node::start(2, None).await);
    for node in [&a, &b] {
        node.knows(&[&a, &b]);
    }
    for n in 0..1000 {
        a.peers.send(2, numbered(n));
        b.peers.send(1, numbered(n));
    }
    for (node, from) in [(&a, 2), (&b, 1)] {
        let got = node.got(1000).await;
        let wanted: Vec<_> = (0..1000).map(|n| (from, numbered(n))).collect();
        assert_eq!(got, wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_talk_by_tls_and_names() {
    let authority = Authority::new();
    let mut nodes = Vec::new();
    for (id, host) in [(1, "127.0.0.1"), (2, "localhost"), (3, "127.0.0.1")] {
        let trust = Trust::new(authority.settings(&format!("m{id}")));
        nodes.push(Node::start_at(id, &format!("https://{host}:0"), Some(trust), CLUSTER).await);
    }
    let all: Vec<&Node> = nodes.iter().collect();
    for node in &nodes {
        node.knows(&all);
    }
    for node in &nodes {
        for other in &nodes {
            if node.id != other.id {
                node.peers.send(other.id, numbered(node.id as u32));
            }
        }
    }
    for node in &nodes {
        let mut from: Vec<u64> = node.got(2).await.iter().map(|(from, _)| *from).collect();
        from.sort_unstable();
        let others: Vec<u64> = (1..=3).filter(|id| *id != node.id).collect();
        assert_eq!(from, others);
    }
}

#[tokio::test]
async fn messages_of_all_sizes_arrive_whole() {
    let authority = Authority::new();
    let a = Node::start(1, Some(Trust::new(authority.settings("a")))).await;
    let b = Node::start(2, Some(Trust::new(authority.settings("b")))).await;
    a.knows(&[&a, &b]);
    let sizes = [0, 1, 100, 16_383, 16_384, 16_385, 1 << 20, (1 << 20) + 1, 20 << 20];
    let make = |size: usize| Bytes::from((0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    for size in sizes {
        a.peers.send(2, make(size));
    }
    for (size, (_, message)) in sizes.into_iter().zip(b.got(sizes.len()).await) {
        assert!(message == make(size), "a message of {size} bytes arrived otherwise");
    }
}

#[tokio::test]
async fn a_member_that_comes_back_is_reached_again() {
    let a = Node::start(1, None).await;
    let b = Node::start(2, None).await;
    a.knows(&[&a, &b]);
    a.reaches(&b, "before").await;
    let url = b.url.clone();
    b.peers.shutdown().await;
    a.peers.send(2, Bytes::from_static(b"lost"));
    a.until("news of the loss", |inside| inside.lost.lock().unwrap().contains(&2)).await;
    let b = Node::start_at(2, &url, None, CLUSTER).await;
    a.reaches(&b, "after").await;
}

#[tokio::test]
async fn a_member_that_moves_is_found() {
    let a = Node::start(1, None).await;
    let b = Node::start(2, None).await;
    a.knows(&[&a, &b]);
    a.reaches(&b, "here").await;
    let moved = Node::start(2, None).await;
    a.knows(&[&a, &moved]);
    a.reaches(&moved, "there").await;
}

#[tokio::test]
async fn snapshots_do_not_hold_up_messages() {
    let (a, b) = (Node::start(1, None).await, Node::start(2, None).await);
    a.knows(&[&a, &b]);
    a.reaches(&b, "first").await;
    // A member that does not read its snapshots at all: a listener that takes and stays silent.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let through = tokio::spawn(async move {
        let Ok((mut socket, _)) = silent.accept().await else { return };
        let mut bytes = vec![0; 4096];
        // The first words are read and never answered.
        let _ = socket.read(&mut bytes).await;
        std::future::pending::<()>().await;
    });
    let mut member = b.member();
    member.peer_urls = vec![b.url.clone(), url];
    a.peers.members(&[a.member(), member]);
    for _ in 0..32 {
        a.peers.send_bulk(2, Bytes::from(vec![0; 1 << 20]));
    }
    a.reaches(&b, "meanwhile").await;
    b.until("the pieces", |inside| {
        inside.got.lock().unwrap().iter().filter(|(_, m)| m.len() == 1 << 20).count() == 32
    })
    .await;
    through.abort();
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused_on_both_sides() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let a = Node::start(1, Some(Trust::new(ours.settings("a")))).await;
    let stranger = Node::start(2, Some(Trust::new(theirs.settings("b")))).await;
    for node in [&a, &stranger] {
        node.knows(&[&a, &stranger]);
    }
    a.peers.send(2, numbered(1));
    stranger.peers.send(1, numbered(1));
    a.until("a refusal", |inside| inside.lost.lock().unwrap().contains(&2)).await;
    stranger.until("a refusal", |inside| inside.lost.lock().unwrap().contains(&1)).await;
    for node in [&a, &stranger] {
        assert!(node.inside.got.lock().unwrap().is_empty());
    }
    // A client that trusts us but shows a stranger's certificate.
    let mixed = Settings { authority: Some(ours.ca()), ..theirs.settings("mixed") };
    let mixed = Node::start(3, Some(Trust::new(mixed))).await;
    mixed.knows(&[&a, &mixed]);
    mixed.peers.send(1, numbered(1));
    mixed.until("a refusal", |inside| inside.lost.lock().unwrap().contains(&1)).await;
    assert!(a.inside.got.lock().unwrap().is_empty());
}

#[tokio::test]
async fn only_allowed_names_come_in() {
    let authority = Authority::new();
    let mut settings = authority.settings("a");
    settings.allowed_names = vec!["b".into()];
    let a = Node::start(1, Some(Trust::new(settings))).await;
    let b = Node::start(2, Some(Trust::new(authority.settings("b")))).await;
    let c = Node::start(3, Some(Trust::new(authority.settings("c")))).await;
    for node in [&b, &c] {
        node.knows(&[&a, node]);
    }
    b.reaches(&a, "from an allowed one").await;
    c.peers.send(1, numbered(3));
    c.until("a refusal", |inside| inside.lost.lock().unwrap().contains(&1)).await;
    assert!(a.inside.got.lock().unwrap().iter().all(|(from, _)| *from == 2));

    let trust =
        Trust::new(Settings { allowed_hosts: vec!["b.example".into()], ..authority.settings("d") });
    let leaf = |name: &str| {
        use rustls_pki_types::pem::PemObject;
        let path = authority.issue(name).0;
        rustls_pki_types::CertificateDer::from_pem_file(path).unwrap()
    };
    assert_eq!(trust.admit(&leaf("b")), Ok(()));
    assert!(trust.admit(&leaf("c")).unwrap_err().contains("b.example"));
}

#[tokio::test]
async fn what_is_to_be_https_is_never_served_without() {
    let address: Address = "https://127.0.0.1:0".parse().unwrap();
    let missing = Settings { certificate: "/none.pem".into(), ..Settings::default() };
    for trust in [None, Some(Trust::new(missing))] {
        let listener = address.listen().await.unwrap();
        let place = format!("127.0.0.1:{}", listener.port().unwrap());
        let clock = dhow_clock::System::shared();
        let peers = Peers::new(Config { clock, urls: Vec::new(), trust });
        peers.listen(listener, address.tls).unwrap_err();
        assert!(tokio::net::TcpStream::connect(place).await.is_err());
    }
}

#[tokio::test]
async fn renewed_certificates_are_used_without_a_restart() {
    let (first, second) = (Authority::new(), Authority::new());
    let settings = first.settings("a");
    let a = Node::start(1, Some(Trust::new(settings.clone()))).await;
    let b = Node::start(2, Some(Trust::new(first.settings("b")))).await;
    b.knows(&[&a, &b]);
    b.reaches(&a, "old").await;
    // The whole authority is exchanged under the running member.
    let (certificate, key) = second.issue("a");
    let copy = |from: &Path, to: &Path| replace(to, &std::fs::read_to_string(from).unwrap());
    copy(&key, &settings.key);
    copy(&certificate, &settings.certificate);
    copy(&second.ca(), settings.authority.as_deref().unwrap());
    let c = Node::start(3, Some(Trust::new(second.settings("c")))).await;
    c.knows(&[&a, &c]);
    c.reaches(&a, "new").await;
}

#[tokio::test]
async fn removed_members_are_told_and_cut_off() {
    let (a, b) = (Node::start(1, None).await, Node::start(2, None).await);
    for node in [&a, &b] {
        node.knows(&[&a, &b]);
    }
    b.reaches(&a, "as a member").await;
    a.inside.removed.lock().unwrap().insert(2);
    a.knows(&[&a]);
    let mut again = tokio::time::interval(Duration::from_millis(20));
    let told = b.until("to be told", |inside| *inside.expelled.lock().unwrap());
    tokio::pin!(told);
    loop {
        tokio::select! {
            () = &mut told => break,
            _ = again.tick() => b.peers.send(1, Bytes::from_static(b"still there")),
        }
    }
}

#[tokio::test]
async fn other_clusters_and_other_members_are_refused() {
    let a = Node::start(1, None).await;
    let other = Node::start_at(2, "http://127.0.0.1:0", None, 0xbad).await;
    other.knows(&[&a, &other]);
    other.peers.send(1, numbered(1));
    other.until("a refusal", |inside| inside.lost.lock().unwrap().contains(&1)).await;
    // At this address is member 1 and not 7.
    let b = Node::start(3, None).await;
    let wrong = Member { id: 7, ..a.member() };
    b.peers.members(&[b.member(), wrong]);
    b.peers.send(7, numbered(1));
    b.until("a refusal", |inside| inside.lost.lock().unwrap().contains(&7)).await;
    assert!(a.inside.got.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_member_that_is_not_known_yet_gets_answers() {
    let (a, late) = (Node::start(1, None).await, Node::start(2, None).await);
    // `a` has not heard of the other; the other knows all.
    a.knows(&[&a]);
    late.knows(&[&a, &late]);
    late.reaches(&a, "a call").await;
    a.reaches(&late, "an answer").await;
}

#[tokio::test]
async fn whoever_joins_asks_any_member() {
    let authority = Authority::new();
    let a = Node::start(1, Some(Trust::new(authority.settings("a")))).await;
    a.knows(&[&a]);
    let clock = dhow_clock::System::shared();
    let trust = Trust::new(authority.settings("b"));
    let dead: Address = "https://127.0.0.1:1".parse().unwrap();
    let alive: Address = a.url.parse().unwrap();
    let told = ask(&[dead.clone(), alive.clone()], Some(&trust), &clock).await.unwrap();
    assert_eq!(told, Introduction { cluster_id: CLUSTER, members: vec![a.member()] });
    let nobody = ask(&[dead], Some(&trust), &clock).await.unwrap_err().to_string();
    assert!(nobody.contains("https://127.0.0.1:1"), "{nobody}");
    let without = ask(&[alive], None, &clock).await.unwrap_err().to_string();
    assert!(without.contains("trusted CA"), "{without}");
}

#[tokio::test]
async fn sockets_in_the_file_system_serve_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("unix://{}", dir.path().join(name).display());
    let a = Node::start_at(1, &url("a"), None, CLUSTER).await;
    let b = Node::start_at(2, &url("b"), None, CLUSTER).await;
    a.knows(&[&a, &b]);
    a.reaches(&b, "here").await;
}

#[tokio::test]
async fn noise_is_survived() {
    let a = Node::start(1, None).await;
    let place = a.url.strip_prefix("http://").unwrap();
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"dhowpeer\xff\xff\xff\xff\0\0\0\0", b"dhow"] {
        let mut socket = tokio::net::TcpStream::connect(place).await.unwrap();
        socket.write_all(noise).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
    }
    let b = Node::start(2, None).await;
    b.knows(&[&a, &b]);
    b.reaches(&a, "after the noise").await;
}
