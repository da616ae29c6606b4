//! What clients get, over real sockets.

use dhow_intents::{NameIntent, NameRecord, Owner};
use dhow_names::{Config, Names};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

fn owner(name: &str, revision: u64) -> Owner {
    Owner { kind: "svc".into(), namespace: "shop".into(), name: name.into(), revision }
}

fn address(text: &str) -> NameRecord {
    NameRecord::Address(text.parse().unwrap())
}

fn intent(name: &str, names: &[(&str, Vec<NameRecord>)]) -> Arc<NameIntent> {
    let names = names.iter().map(|(n, r)| ((*n).to_owned(), r.clone())).collect();
    Arc::new(NameIntent { owner: owner(name, 3), names })
}

fn config(domain: &str, listen: SocketAddr, upstreams: Vec<SocketAddr>) -> Config {
    let reverse = vec!["10.96.0.0/12".into(), "fd00::/64".into()];
    Config { domain: domain.into(), listen: vec![listen], upstreams, reverse }
}

fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// A server for `cluster.local` with these upstreams and a few names.
async fn start(upstreams: Vec<SocketAddr>) -> Names {
    let names = Names::start(config("cluster.local", any(), upstreams)).await.unwrap();
    let base = "cart.shop.svc.cluster.local";
    let srv = NameRecord::Service { target: base.into(), port: 80 };
    names.set(intent(
        "cart",
        &[
            (base, vec![address("10.96.0.7")]),
            ("_http._tcp.cart.shop.svc.cluster.local", vec![srv]),
            ("7.0.96.10.in-addr.arpa", vec![NameRecord::Pointer(base.into())]),
        ],
    ));
    let three = (1..=3).map(|n| address(&format!("10.1.0.{n}"))).collect();
    names.set(intent("db", &[("db.shop.svc.cluster.local", three)]));
    names
}

/// Another server, which the first may ask.
async fn resolver() -> (Names, SocketAddr) {
    let names = Names::start(config("test", any(), vec![])).await.unwrap();
    let big = (0..60).map(|n| address(&format!("10.2.1.{n}"))).collect();
    names.set(intent("w", &[("www.example.test", vec![address("10.9.9.9")]), ("big.test", big)]));
    let at = names.addresses()[0];
    (names, at)
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn udp(to: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind(any()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(packet, to).unwrap();
    let mut buffer = vec![0; 65536];
    let length = socket.recv(&mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

fn tcp(to: SocketAddr, packets: &[Vec<u8>]) -> Vec<Message> {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for packet in packets {
        stream.write_all(&(packet.len() as u16).to_be_bytes()).unwrap();
        stream.write_all(packet).unwrap();
    }
    let mut read = || {
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        Message::from_vec(&answer).unwrap()
    };
    packets.iter().map(|_| read()).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Asks by UDP.
async fn ask(names: &Names, name: &str, kind: RecordType) -> Message {
    let to = names.addresses()[0];
    let packet = question(name, kind).to_vec().unwrap();
    Message::from_vec(&blocking(move || udp(to, &packet)).await).unwrap()
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let a = |data: &RData| match data {
        RData::A(a) => Some(a.0),
        _ => None,
    };
    message.answers.iter().filter_map(|r| a(&r.data)).collect()
}

fn is_denial(message: &Message, code: ResponseCode) -> bool {
    message.metadata.response_code == code
        && message.answers.is_empty()
        && matches!(message.authorities[0].data, RData::SOA(_))
        && message.metadata.authoritative
}

#[tokio::test]
async fn a_service_has_address_service_record_and_reverse_name() {
    let names = start(vec![]).await;
    let answer = ask(&names, "CART.shop.svc.Cluster.local.", RecordType::A).await;
    assert_eq!(addresses(&answer), [Ipv4Addr::new(10, 96, 0, 7)]);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert!((5..=30).contains(&answer.answers[0].ttl));

    let answer = ask(&names, "_http._tcp.cart.shop.svc.cluster.local.", RecordType::SRV).await;
    let RData::SRV(srv) = &answer.answers[0].data else { panic!("{answer:?}") };
    assert_eq!((srv.priority, srv.weight, srv.port), (0, 100, 80));
    assert_eq!(srv.target.to_ascii(), "cart.shop.svc.cluster.local.");
    assert_eq!(answer.additionals.len(), 1);

    let answer = ask(&names, "7.0.96.10.in-addr.arpa.", RecordType::PTR).await;
    assert!(matches!(&answer.answers[0].data, RData::PTR(p) if p.0 == srv.target));

    let answer = ask(&names, "dns-version.cluster.local.", RecordType::TXT).await;
    assert_eq!(answer.answers.len(), 1);
    assert_eq!(names.source("cart.shop.svc.cluster.local.")[0].to_string(), "svc:shop/cart@3");
}

#[tokio::test]
async fn absent_names_and_absent_types_are_told_apart() {
    let names = start(vec![]).await;
    let searched = "cart.shop.svc.cluster.local.shop.svc.cluster.local.";
    let nx = ask(&names, searched, RecordType::A).await;
    assert!(is_denial(&nx, ResponseCode::NXDomain), "{nx:?}");
    let nodata = ask(&names, "cart.shop.svc.cluster.local.", RecordType::AAAA).await;
    assert!(is_denial(&nodata, ResponseCode::NoError), "{nodata:?}");
    // A name that others end in exists.
    for name in ["shop.svc.cluster.local.", "svc.cluster.local.", "cluster.local."] {
        let answer = ask(&names, name, RecordType::A).await;
        assert!(is_denial(&answer, ResponseCode::NoError), "{name} {answer:?}");
    }
    for name in ["9.0.96.10.in-addr.arpa.", "x.cluster.local."] {
        let answer = ask(&names, name, RecordType::PTR).await;
        assert!(is_denial(&answer, ResponseCode::NXDomain), "{name}");
    }
    names.remove(&owner("cart", 9));
    let gone = ask(&names, "cart.shop.svc.cluster.local.", RecordType::A).await;
    assert!(is_denial(&gone, ResponseCode::NXDomain));
}

#[tokio::test]
async fn addresses_rotate() {
    let names = start(vec![]).await;
    let mut first = BTreeSet::new();
    for _ in 0..3 {
        let answer = ask(&names, "db.shop.svc.cluster.local.", RecordType::A).await;
        assert_eq!(addresses(&answer).len(), 3);
        first.insert(addresses(&answer)[0]);
    }
    assert_eq!(first.len(), 3);
}

#[tokio::test]
async fn a_large_answer_is_cut_for_udp_and_whole_for_tcp_and_edns() {
    let names = start(vec![]).await;
    let all = (0..60).map(|n| address(&format!("10.1.1.{n}"))).collect();
    names.set(intent("many", &[("many.shop.svc.cluster.local", all)]));
    let cut = ask(&names, "many.shop.svc.cluster.local.", RecordType::A).await;
    assert!(cut.metadata.truncation);
    assert!(!addresses(&cut).is_empty(), "a client that ignores the mark still gets some");

    let to = names.addresses()[0];
    let mut plain = question("many.shop.svc.cluster.local.", RecordType::A);
    let packet = plain.to_vec().unwrap();
    // Two questions on one connection.
    for answer in blocking(move || tcp(to, &[packet.clone(), packet])).await {
        assert!(!answer.metadata.truncation);
        assert_eq!(addresses(&answer).len(), 60);
    }
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    plain.set_edns(edns);
    let packet = plain.to_vec().unwrap();
    let bytes = blocking(move || udp(to, &packet)).await;
    assert!(bytes.len() > 512 && bytes.len() <= 1232);
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!(addresses(&answer).len(), 60);
    assert!(answer.edns.is_some());
}

#[tokio::test]
async fn other_names_are_asked_of_others() {
    let (_keep, upstream) = resolver().await;
    // The first resolver is a closed port: the next one is asked.
    let dead = UdpSocket::bind(any()).unwrap().local_addr().unwrap();
    let names = start(vec![dead, upstream]).await;
    let answer = ask(&names, "www.example.test.", RecordType::A).await;
    assert_eq!(addresses(&answer), [Ipv4Addr::new(10, 9, 9, 9)]);
    let answer = ask(&names, "nothing.example.test.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(ask(&names, "big.test.", RecordType::A).await.metadata.truncation);
    let to = names.addresses()[0];
    let packet = question("big.test.", RecordType::A).to_vec().unwrap();
    let whole = blocking(move || tcp(to, &[packet])).await;
    assert_eq!(addresses(&whole[0]).len(), 60);
}

#[tokio::test]
async fn a_resolver_that_is_silent_is_passed_over() {
    let (_keep, upstream) = resolver().await;
    let silent = UdpSocket::bind(any()).unwrap();
    let names = start(vec![silent.local_addr().unwrap(), upstream]).await;
    let answer = ask(&names, "www.example.test.", RecordType::A).await;
    assert_eq!(addresses(&answer), [Ipv4Addr::new(10, 9, 9, 9)]);
}

#[tokio::test]
async fn without_resolvers_other_names_fail_at_once() {
    let names = start(vec![]).await;
    let answer = ask(&names, "www.example.test.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(answer.queries.len(), 1);
}

#[tokio::test]
async fn an_alias_is_followed_inside_and_outside() {
    let (_keep, upstream) = resolver().await;
    let names = start(vec![upstream]).await;
    let zone = "shop.svc.cluster.local";
    for (name, target) in [
        ("in", "cart.shop.svc.cluster.local"),
        ("out", "www.example.test"),
        ("loop", "loop.shop.svc.cluster.local"),
    ] {
        let alias = vec![NameRecord::Alias(target.into())];
        names.set(intent(name, &[(&format!("{name}.{zone}"), alias)]));
    }
    let answer = ask(&names, &format!("in.{zone}."), RecordType::A).await;
    assert_eq!((answer.answers.len(), addresses(&answer)[0]), (2, Ipv4Addr::new(10, 96, 0, 7)));
    let answer = ask(&names, &format!("out.{zone}."), RecordType::A).await;
    assert_eq!((answer.answers.len(), addresses(&answer)[0]), (2, Ipv4Addr::new(10, 9, 9, 9)));
    let answer = ask(&names, &format!("out.{zone}."), RecordType::CNAME).await;
    assert_eq!(answer.answers.len(), 1);
    let answer = ask(&names, &format!("loop.{zone}."), RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn it_never_asks_itself() {
    // A port that was free a moment ago; another may have it by now, and then the next will do.
    let (names, own) = loop {
        let own = UdpSocket::bind(any()).unwrap().local_addr().unwrap();
        let listen = (Ipv4Addr::UNSPECIFIED, own.port()).into();
        match Names::start(config("cluster.local", listen, vec![own])).await {
            Ok(names) => break (names, own),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse),
        }
    };
    let packet = question("www.example.test.", RecordType::A).to_vec().unwrap();
    let answer = Message::from_vec(&blocking(move || udp(own, &packet)).await).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    drop(names);
}

#[tokio::test]
async fn an_address_may_come_later() {
    // TEST-NET-1: no machine has it.
    let absent = (Ipv4Addr::new(192, 0, 2, 77), 0).into();
    let names = Names::start(config("cluster.local", absent, vec![])).await;
    assert!(names.is_ok(), "{names:?}");
}

#[tokio::test]
async fn malformed_configuration_is_refused() {
    for (domain, reverse) in [("clus ter..local", "10.0.0.0/8"), ("cluster.local", "ten")] {
        let mut config = config(domain, any(), vec![]);
        config.reverse = vec![reverse.into()];
        let error = Names::start(config).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
}
