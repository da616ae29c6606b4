//! Services as pods, the machine and strangers see them, with real traffic between namespaces.

mod lab;

use dhow_dataplane::Dataplane;
use dhow_intents::Protocol::{Tcp, Udp};
use dhow_intents::ServiceIntent;
use lab::{Client, Pod, Stranger, ask_udp, ip, machine, open, owner, service, set};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::time::{Duration, Instant};

/// Refusals come at once; time-outs of TCP take a second at least.
const AT_ONCE: Duration = Duration::from_millis(900);

fn at(last: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(ip(last), port)
}

async fn servers(plane: &Dataplane, names: &[&str], port: u16) -> (Vec<Pod>, Vec<SocketAddrV4>) {
    let mut pods = Vec::new();
    for name in names {
        let pod = Pod::new(plane, name).await;
        pod.serve(port);
        pod.serve_udp(port);
        pods.push(pod);
    }
    let targets = pods.iter().map(|p| p.at(port)).collect();
    (pods, targets)
}

/// Asserts that a connection is refused, and promptly. A busy machine may hold up single ones.
fn assert_refused<T>(connect: impl Fn() -> std::io::Result<T>) {
    let quick = (0..10).any(|_| {
        let start = Instant::now();
        let error = connect().err().expect("it must be refused");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        start.elapsed() < AT_ONCE
    });
    assert!(quick, "ten refusals took more than {AT_ONCE:?} each");
}

#[test]
fn pods_reach_each_other_the_machine_and_services() {
    machine(|| async {
        let plane = open().await;
        let (a, b) = (Pod::new(&plane, "a").await, Pod::new(&plane, "b").await);
        a.serve(8080);
        let direct = b.connect(a.at(8080)).unwrap();
        assert_eq!((direct.server.as_str(), direct.seen_as), ("a", b.address.to_string()));

        set(&plane, service("cart", 1, Tcp, 80, &[a.at(8080)])).await;
        let mut client = b.connect(at(1, 80)).unwrap();
        assert_eq!((client.server.as_str(), &client.seen_as), ("a", &b.address.to_string()));
        assert_eq!(client.echo("hello"), "hello");
        // From the machine's own processes, whose source must be one that pods can answer.
        let client = Client::new(at(1, 80).into()).unwrap();
        assert_eq!((client.server.as_str(), client.seen_as.as_str()), ("a", "10.200.1.1"));
        // Pods reach what listens on the machine.
        lab::serve(TcpListener::bind("10.201.0.10:53").unwrap(), "dns".into());
        assert_eq!(
            b.connect(SocketAddrV4::new([10, 201, 0, 10].into(), 53)).unwrap().server,
            "dns"
        );
    });
}

#[test]
fn a_service_balances_over_its_backends() {
    machine(|| async {
        let plane = open().await;
        let client = Pod::new(&plane, "client").await;
        let (_pods, targets) = servers(&plane, &["x", "y", "z"], 8080).await;
        set(&plane, service("web", 2, Tcp, 80, &targets)).await;
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..90 {
            *seen.entry(client.connect(at(2, 80)).unwrap().server).or_default() += 1;
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(seen.values().all(|n| *n >= 10), "{seen:?}");
    });
}

#[test]
fn an_update_keeps_established_connections_and_steers_new_ones() {
    machine(|| async {
        let plane = open().await;
        let client = Pod::new(&plane, "client").await;
        let (_pods, targets) = servers(&plane, &["x", "y"], 8080).await;
        set(&plane, service("web", 1, Tcp, 80, &targets[..1])).await;
        set(&plane, service("other", 2, Tcp, 80, &targets[1..])).await;
        let mut old = client.connect(at(1, 80)).unwrap();
        assert_eq!(old.server, "x");
        set(&plane, service("web", 1, Tcp, 80, &targets[1..])).await;
        assert_eq!(old.echo("still here"), "still here");
        for _ in 0..10 {
            assert_eq!(client.connect(at(1, 80)).unwrap().server, "y");
        }
        // Removing the service does not cut what is established either.
        plane.apply(&[], &[owner("svc", "web", 99)]).await.unwrap();
        assert_eq!(old.echo("and here"), "and here");
        assert_refused(|| client.connect(at(1, 80)));
        assert_eq!(client.connect(at(2, 80)).unwrap().server, "y");
    });
}

#[test]
fn without_backends_and_on_unknown_ports_clients_are_refused_at_once() {
    machine(|| async {
        let plane = open().await;
        let (pods, targets) = servers(&plane, &["client"], 8080).await;
        let client = &pods[0];
        let mut empty = service("empty", 1, Tcp, 80, &[]);
        empty.ports[0].node_port = 30080;
        set(&plane, empty).await;
        set(&plane, service("empty-udp", 2, Udp, 53, &[])).await;
        assert_refused(|| client.connect(at(1, 80)));
        assert_refused(|| Client::new(at(1, 80).into()));
        assert_refused(|| ask_udp(&client.udp(at(2, 53))));
        let node_port = SocketAddrV4::new([10, 200, 1, 1].into(), 30080);
        assert_refused(|| client.connect(node_port));
        assert_refused(|| Client::new(node_port.into()));
        // A port that the service does not have, and an address that no service has.
        assert_refused(|| client.connect(at(1, 81)));
        assert_refused(|| client.connect(at(77, 80)));
        assert_refused(|| Client::new(at(77, 80).into()));
        // The first backend ends it, and the last one's going brings it back.
        set(&plane, service("empty", 1, Tcp, 80, &targets)).await;
        assert_eq!(client.connect(at(1, 80)).unwrap().server, "client");
        set(&plane, service("empty", 1, Tcp, 80, &[])).await;
        assert_refused(|| client.connect(at(1, 80)));
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    machine(|| async {
        let plane = open().await;
        let (pods, targets) = servers(&plane, &["a"], 8080).await;
        set(&plane, service("self", 1, Tcp, 80, &targets)).await;
        let mut client = pods[0].connect(at(1, 80)).unwrap();
        assert_eq!((client.server.as_str(), client.seen_as.as_str()), ("a", "10.200.1.1"));
        assert_eq!(client.echo("hairpin"), "hairpin");
    });
}

#[test]
fn affinity_keeps_a_client_on_its_backend_until_the_backend_goes() {
    machine(|| async {
        let plane = open().await;
        let (pods, targets) = servers(&plane, &["x", "y", "z"], 8080).await;
        let sticky = |targets: &[SocketAddrV4]| {
            let mut intent = service("sticky", 1, Tcp, 80, targets);
            intent.affinity_seconds = 600;
            intent
        };
        set(&plane, sticky(&targets)).await;
        let mut clients = Vec::new();
        for n in 0..12 {
            clients.push(Pod::new(&plane, &format!("client{n}")).await);
        }
        let server = |pod: &Pod| pod.connect(at(1, 80)).unwrap().server;
        let first: Vec<String> = clients.iter().map(server).collect();
        assert!(first.iter().collect::<BTreeSet<_>>().len() > 1, "{first:?}");
        for _ in 0..5 {
            assert_eq!(clients.iter().map(server).collect::<Vec<_>>(), first);
        }
        // One backend goes: its clients move and stay, the others do not notice.
        let gone = first[0].clone();
        let left = pods.iter().zip(&targets).filter(|(p, _)| p.id != format!("uid-{gone}"));
        let left: Vec<SocketAddrV4> = left.map(|(_, t)| *t).collect();
        set(&plane, sticky(&left)).await;
        let second: Vec<String> = clients.iter().map(server).collect();
        for (before, after) in first.iter().zip(&second) {
            assert!(*after != gone && (*before == gone || before == after), "{first:?} {second:?}");
        }
        assert_eq!(clients.iter().map(server).collect::<Vec<_>>(), second);
        // Another time-out is another memory; none is balance again.
        set(&plane, service("sticky", 1, Tcp, 80, &left)).await;
        let seen: BTreeSet<String> = (0..40).map(|_| server(&clients[0])).collect();
        assert_eq!(seen.len(), 2);
        assert!(plane.drift().await.unwrap().is_empty());
    });
}

fn outside(name: &str, targets: &[SocketAddrV4]) -> ServiceIntent {
    let mut intent = service(name, 1, Tcp, 80, targets);
    intent.ports[0].node_port = 30080;
    intent.external_ips = vec![Ipv4Addr::new(198, 51, 100, 7).into()];
    intent
}

#[test]
fn affinity_holds_for_backends_on_different_ports() {
    machine(|| async {
        let plane = open().await;
        let (x, y) = (Pod::new(&plane, "x").await, Pod::new(&plane, "y").await);
        x.serve(8080);
        y.serve(9090);
        let mut intent = service("sticky", 1, Tcp, 80, &[x.at(8080), y.at(9090)]);
        intent.affinity_seconds = 600;
        set(&plane, intent).await;
        for n in 0..8 {
            let client = Pod::new(&plane, &format!("client{n}")).await;
            let first = client.connect(at(1, 80)).unwrap().server;
            for _ in 0..4 {
                assert_eq!(client.connect(at(1, 80)).unwrap().server, first);
            }
        }
        // People can read it too.
        lab::output("nft", &["list", "ruleset"]);
    });
}

#[test]
fn strangers_come_in_by_node_ports_and_external_addresses() {
    machine(|| async {
        let plane = open().await;
        let stranger = Stranger::new();
        let (pods, targets) = servers(&plane, &["x", "y"], 8080).await;
        set(&plane, outside("web", &targets)).await;
        let doors = [
            SocketAddrV4::new([192, 0, 2, 1].into(), 30080),
            SocketAddrV4::new([198, 51, 100, 7].into(), 80),
        ];
        for door in doors {
            let mut seen = BTreeSet::new();
            for _ in 0..30 {
                let client = stranger.connect(door).unwrap();
                // Backends on this machine see who really calls.
                assert_eq!(client.seen_as, stranger.address.to_string());
                seen.insert(client.server);
            }
            assert_eq!(seen.len(), 2, "{door}");
            pods[0].connect(door).unwrap();
        }
        Client::new(doors[0].into()).unwrap();
        // The machine's own loopback leads there too, as users expect of `localhost:30080`.
        let local = Client::new(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 30080).into()).unwrap();
        assert_eq!(local.seen_as, "10.200.1.1");
        // A backend elsewhere must answer through this machine.
        stranger.serve(9000);
        let elsewhere = SocketAddrV4::new(stranger.address, 9000);
        set(&plane, outside("web", &[elsewhere])).await;
        let client = stranger.connect(doors[0]).unwrap();
        assert_eq!((client.server.as_str(), client.seen_as.as_str()), ("stranger", "192.0.2.1"));
        // Pods go out under the machine's address.
        let client = pods[0].connect(elsewhere).unwrap();
        assert_eq!(client.seen_as, "192.0.2.1");
    });
}

#[test]
fn local_policies_use_only_backends_of_this_machine() {
    machine(|| async {
        let plane = open().await;
        let stranger = Stranger::new();
        let (pods, targets) = servers(&plane, &["x", "y"], 8080).await;
        let node_port = SocketAddrV4::new([192, 0, 2, 1].into(), 30080);
        let mut intent = outside("web", &targets);
        intent.external_local = true;
        intent.ports[0].backends[1].node = "another".into();
        set(&plane, intent.clone()).await;
        for _ in 0..10 {
            let client = stranger.connect(node_port).unwrap();
            let expected = ("x", stranger.address.to_string());
            assert_eq!((client.server.as_str(), client.seen_as), expected);
        }
        let seen: BTreeSet<String> =
            (0..30).map(|_| pods[0].connect(node_port).unwrap().server).collect();
        assert_eq!(seen.len(), 2, "from inside, every backend counts");
        intent.internal_local = true;
        set(&plane, intent.clone()).await;
        for _ in 0..10 {
            assert_eq!(pods[1].connect(at(1, 80)).unwrap().server, "x");
        }
        // None is ready here: those that stop but still answer stand in, those of others do not.
        let leaving = intent.ports[0].backends.remove(0);
        let elsewhere = intent.ports[0].backends[0].clone();
        intent.ports[0].leaving = vec![leaving, elsewhere];
        set(&plane, intent.clone()).await;
        for _ in 0..10 {
            assert_eq!(pods[1].connect(at(1, 80)).unwrap().server, "x");
            assert_eq!(stranger.connect(node_port).unwrap().server, "x");
        }
        // None here: silence rather than a refusal, so that a balancer tries another machine.
        intent.ports[0].leaving.remove(0);
        set(&plane, intent).await;
        let dropped = pods[0].within(|| {
            std::net::TcpStream::connect_timeout(&at(1, 80).into(), Duration::from_millis(300))
        });
        assert_eq!(dropped.unwrap_err().kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn udp_clients_follow_when_their_backend_goes() {
    machine(|| async {
        let plane = open().await;
        let client = Pod::new(&plane, "client").await;
        let (_pods, targets) = servers(&plane, &["x", "y"], 5353).await;
        set(&plane, service("dns", 1, Udp, 53, &targets[..1])).await;
        // One socket, so one flow all the time.
        let socket = client.udp(at(1, 53));
        assert_eq!(ask_udp(&socket).unwrap(), "x");
        set(&plane, service("dns", 1, Udp, 53, &targets)).await;
        assert_eq!(ask_udp(&socket).unwrap(), "x", "a backend that stays keeps its flows");
        set(&plane, service("dns", 1, Udp, 53, &targets[1..])).await;
        assert_eq!(ask_udp(&socket).unwrap(), "y");
        plane.apply(&[], &[owner("svc", "dns", 9)]).await.unwrap();
        assert_refused(|| ask_udp(&socket));
    });
}

#[test]
fn tcp_and_udp_share_a_port_number() {
    machine(|| async {
        let plane = open().await;
        let client = Pod::new(&plane, "client").await;
        let (_pods, targets) = servers(&plane, &["x", "y"], 53).await;
        let mut intent = service("dns", 1, Tcp, 53, &targets[..1]);
        intent.ports.extend(service("dns", 1, Udp, 53, &targets[1..]).ports);
        set(&plane, intent).await;
        assert_eq!(client.connect(at(1, 53)).unwrap().server, "x");
        assert_eq!(ask_udp(&client.udp(at(1, 53))).unwrap(), "y");
    });
}

#[test]
fn a_host_port_leads_to_its_pod_while_the_pod_lives() {
    machine(|| async {
        let plane = open().await;
        let stranger = Stranger::new();
        let (pods, targets) = servers(&plane, &["x", "y"], 8080).await;
        let map = |n: usize, name: &'static str, port| {
            let (plane, id, target) = (plane.clone(), pods[n].id.clone(), targets[n]);
            async move { plane.map_host_port(&id, &owner("pod", name, 7), Tcp, port, target).await }
        };
        map(0, "x", 8000).await.unwrap();
        map(0, "x", 8000).await.unwrap();
        let error = map(1, "y", 8000).await.unwrap_err();
        assert!(error.to_string().contains("another pod"), "{error}");
        let door = SocketAddrV4::new([192, 0, 2, 1].into(), 8000);
        assert_eq!(stranger.connect(door).unwrap().server, "x");
        assert_eq!(pods[0].connect(door).unwrap().server, "x");
        assert_eq!(Client::new(door.into()).unwrap().server, "x");
        plane.detach(&pods[0].id).await.unwrap();
        assert_refused(|| stranger.connect(door));
        map(1, "y", 8000).await.unwrap();
        assert_eq!(stranger.connect(door).unwrap().server, "y");
    });
}

#[test]
fn pods_do_not_reach_the_loopback_of_the_machine() {
    machine(|| async {
        let plane = open().await;
        let pod = Pod::new(&plane, "a").await;
        lab::serve(TcpListener::bind("127.0.0.1:7000").unwrap(), "secret".into());
        // Even a pod that sends loopback addresses to its router.
        let reached = pod.within(|| {
            let run = |args: &[&str]| lab::output("ip", args);
            run(&["addr", "del", "127.0.0.1/8", "dev", "lo"]);
            run(&["route", "add", "127.0.0.1/32", "via", "169.254.1.1", "dev", "eth0", "onlink"]);
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7000);
            std::net::TcpStream::connect_timeout(&to.into(), Duration::from_millis(300))
        });
        assert!(reached.is_err(), "{reached:?}");
    });
}

#[test]
fn two_services_that_want_one_port_take_turns() {
    machine(|| async {
        let plane = open().await;
        let client = Pod::new(&plane, "client").await;
        let (_pods, targets) = servers(&plane, &["x", "y"], 8080).await;
        set(&plane, service("first", 1, Tcp, 80, &targets[..1])).await;
        set(&plane, service("second", 1, Tcp, 80, &targets[1..])).await;
        assert_eq!(client.connect(at(1, 80)).unwrap().server, "x");
        plane.apply(&[], &[owner("svc", "first", 9)]).await.unwrap();
        assert_eq!(client.connect(at(1, 80)).unwrap().server, "y");
    });
}
