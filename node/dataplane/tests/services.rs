//! Services as pods, the machine and strangers see them, with real traffic between namespaces.

mod lab;

use dhow_intents::Protocol::{Tcp, Udp};
use lab::{Client, Pod, ip, machine, open, output, service, set};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

#[test]
fn pods_reach_each_other_the_machine_and_services() {
    machine(|| async {
        let plane = open().await;
        let (a, b) = (Pod::new(&plane, "a").await, Pod::new(&plane, "b").await);
        assert_eq!(a.address, Ipv4Addr::new(10, 200, 1, 2));
        a.serve(8080);
        let direct = b.connect(a.at(8080)).unwrap();
        assert_eq!((direct.server.as_str(), direct.seen_as), ("a", b.address.to_string()));

        set(&plane, service("cart", 1, Tcp, 80, &[a.at(8080)])).await;
        let mut client = b.connect(SocketAddrV4::new(ip(1), 80)).unwrap();
        assert_eq!((client.server.as_str(), &client.seen_as), ("a", &b.address.to_string()));
        assert_eq!(client.echo("hello"), "hello");
        // From the machine's own processes, whose source must be one that pods can answer.
        let client = Client::new(SocketAddrV4::new(ip(1), 80).into()).unwrap();
        assert_eq!((client.server.as_str(), client.seen_as.as_str()), ("a", "10.200.1.1"));
        println!("{}", output("nft", &["list", "ruleset"]));
    });
}

#[test]
fn a_service_balances_over_its_backends_and_its_node_port_too() {
    machine(|| async {
        let plane = open().await;
        let client = Pod::new(&plane, "client").await;
        let mut backends = Vec::new();
        for name in ["x", "y", "z"] {
            let pod = Pod::new(&plane, name).await;
            pod.serve(8080);
            backends.push(pod);
        }
        let targets: Vec<_> = backends.iter().map(|p| p.at(8080)).collect();
        let mut intent = service("web", 2, Tcp, 80, &targets);
        intent.ports[0].node_port = 30080;
        set(&plane, intent).await;
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..90 {
            let server = client.connect(SocketAddrV4::new(ip(2), 80)).unwrap().server;
            *seen.entry(server).or_default() += 1;
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(seen.values().all(|n| *n >= 10), "{seen:?}");
        let doors: [Ipv4Addr; 3] = [[10, 200, 1, 1].into(), [127, 0, 0, 1].into(), ip(0)];
        for door in &doors[..2] {
            let servers: BTreeSet<_> = (0..40)
                .map(|_| Client::new(SocketAddrV4::new(*door, 30080).into()).unwrap().server)
                .collect();
            assert_eq!(servers.len(), 3, "{door}");
        }
        client.connect(SocketAddrV4::new(doors[0], 30080)).unwrap();
        println!("{}", output("nft", &["list", "ruleset"]));
        let _ = Udp;
    });
}
