//! Making, adopting after a restart, sweeping, purging: what stands in the kernel, and when.

mod lab;

use dhow_dataplane::{Dataplane, Disturbance, Error};
use dhow_intents::Protocol::{Tcp, Udp};
use dhow_intents::{MachineIntent, Owner, ServiceIntent};
use dhow_kernel::net::{Batch, route};
use lab::{Client, NAME, Pod, config, ip, machine, open, output, owner, path, service, set};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything of the network that dhow could leave behind, without what links come to by themselves
/// as time goes by: their carrier, and what IPv6 makes.
fn picture() -> [String; 4] {
    let links = output("ip", &["-br", "link"]);
    let names: Vec<&str> = links.lines().filter_map(|l| l.split_whitespace().next()).collect();
    [
        output("nft", &["list", "ruleset"]),
        names.join(" "),
        output("ip", &["-4", "route", "show", "table", "all"]).replace("linkdown ", ""),
        output("ip", &["neigh"]),
    ]
}

fn many(count: u16) -> Vec<Arc<ServiceIntent>> {
    let one = |n: u16| {
        let [high, low] = n.to_be_bytes();
        let backend = |b: u8| SocketAddrV4::new([10, 200, 200, b].into(), 8080);
        let mut intent = service(&format!("s{n}"), 0, Tcp, 80, &[backend(1), backend(2)]);
        intent.cluster_ips = vec![Ipv4Addr::new(10, 201, 100 + high, low).into()];
        Arc::new(intent)
    };
    (0..count).map(one).collect()
}

#[test]
fn an_attached_pod_carries_its_owner_and_leaves_nothing_when_detached() {
    machine(|| async {
        let plane = open().await;
        let before = picture();
        let pod = Pod::new(&plane, "a").await;
        assert_eq!(pod.address, Ipv4Addr::new(10, 200, 1, 2));
        let links = output("ip", &["-d", "link"]);
        assert!(links.contains("alias pod:shop/a@7 uid-a"), "{links}");
        let inside = pod.within(|| output("ip", &["-br", "addr"]));
        assert!(inside.contains("eth0") && inside.contains("10.200.1.2/32"), "{inside}");
        // Again is the same.
        let again = plane.attach(&pod.id, &owner("pod", "a", 8), &path(&pod.namespace), None).await;
        assert_eq!(again.unwrap(), pod.address);

        plane.detach(&pod.id).await.unwrap();
        plane.detach(&pod.id).await.unwrap();
        // The link goes in the background.
        let start = Instant::now();
        while picture() != before {
            assert!(start.elapsed() < lab::PATIENCE, "{:?}", picture());
        }
        let next = Pod::new(&plane, "b").await;
        assert_ne!(next.address, pod.address, "a freed address rests");
    });
}

#[test]
fn a_pod_whose_sandbox_is_new_keeps_its_address() {
    machine(|| async {
        let plane = open().await;
        let mut pod = Pod::new(&plane, "a").await;
        let peer = Pod::new(&plane, "b").await;
        pod.namespace = dhow_kernel::net::namespace::create().unwrap();
        let again = plane
            .attach(&pod.id, &owner("pod", "a", 9), &path(&pod.namespace), None)
            .await
            .unwrap();
        assert_eq!(again, pod.address);
        pod.serve(80);
        assert_eq!(peer.connect(pod.at(80)).unwrap().server, "a");
    });
}

#[test]
fn addresses_run_out_with_a_clear_error_and_wishes_are_checked() {
    machine(|| async {
        let mut small = config();
        small.pod_cidr = "10.200.1.0/29".parse().unwrap();
        let plane = Dataplane::open(small).await.unwrap();
        let mut pods = Vec::new();
        for n in 0..5 {
            pods.push(Pod::new(&plane, &format!("p{n}")).await);
        }
        let space = dhow_kernel::net::namespace::create().unwrap();
        let attach = |id: &'static str, wanted| {
            let (plane, space) = (plane.clone(), path(&space));
            async move { plane.attach(id, &owner("pod", id, 1), &space, wanted).await }
        };
        assert!(matches!(attach("more", None).await, Err(Error::Exhausted(_))));
        let taken = attach("more", Some(pods[0].address)).await.unwrap_err();
        assert!(taken.to_string().contains("10.200.1.2"), "{taken}");
        plane.detach(&pods[3].id).await.unwrap();
        assert_eq!(attach("more", Some(pods[3].address)).await.unwrap(), pods[3].address);
        // A namespace that does not exist leaves nothing half made.
        plane.detach("more").await.unwrap();
        let nowhere = plane
            .attach("gone", &owner("pod", "gone", 1), "/proc/self/fd/9999".as_ref(), None)
            .await
            .unwrap_err();
        assert!(nowhere.to_string().contains("gone"), "{nowhere}");
        assert_eq!(attach("again", None).await.unwrap(), pods[3].address);
    });
}

#[test]
fn a_restart_interrupts_nothing_and_sends_nothing_that_stands() {
    machine(|| async {
        let plane = open().await;
        let (client, server) = (Pod::new(&plane, "c").await, Pod::new(&plane, "s").await);
        server.serve(8080);
        let mut web = service("web", 1, Tcp, 80, &[server.at(8080)]);
        web.ports[0].node_port = 30080;
        web.affinity_seconds = 60;
        let dns = service("dns", 2, Udp, 53, &[server.at(53)]);
        plane.apply(&[Arc::new(web.clone()), Arc::new(dns)], &[]).await.unwrap();
        plane
            .map_host_port(&server.id, &owner("pod", "s", 7), Tcp, 8000, server.at(8080))
            .await
            .unwrap();
        let mut open_connection = client.connect(SocketAddrV4::new(ip(1), 80)).unwrap();
        let handles = || output("nft", &["-a", "list", "chain", "ip", NAME, "svc/shop/web/tcp/80"]);
        let before = handles();
        drop(plane);

        let plane = open().await;
        assert_eq!(open_connection.echo("x"), "x");
        client.connect(SocketAddrV4::new(ip(1), 80)).unwrap();
        Client::new(SocketAddrV4::new([10, 200, 1, 1].into(), 8000).into()).unwrap();
        assert_eq!(plane.drift().await.unwrap(), Vec::<String>::new());
        // The same again, compiled from a later revision: not one rule is touched.
        web.owner.revision = 99;
        plane.apply(&[Arc::new(web)], &[]).await.unwrap();
        assert_eq!(handles(), before);
        let again = plane
            .attach(
                &client.id,
                &owner("pod", "c", 7),
                &path(&client.namespace),
                Some(client.address),
            )
            .await
            .unwrap();
        assert_eq!(again, client.address);
        assert!(Pod::new(&plane, "new").await.address > server.address);

        // What nobody knows any more goes.
        plane.sweep(&[owner("svc", "web", 1)], std::slice::from_ref(&client.id)).await.unwrap();
        let rules = output("nft", &["list", "ruleset"]);
        assert!(rules.contains("svc/shop/web") && !rules.contains("shop/dns"), "{rules}");
        assert!(!rules.contains("pod:shop/s@") && rules.contains("pod:shop/c@"), "{rules}");
        assert_eq!(plane.drift().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn drift_is_told() {
    machine(|| async {
        let plane = open().await;
        let pod = Pod::new(&plane, "a").await;
        set(&plane, service("web", 1, Tcp, 80, &[pod.at(80)])).await;
        assert!(plane.drift().await.unwrap().is_empty());
        output("nft", &["flush", "map", "ip", NAME, "cluster_ips"]);
        output("nft", &["flush", "chain", "ip", NAME, "svc/shop/web/tcp/80"]);
        output("nft", &["add", "chain", "ip", NAME, "svc/shop/ghost/tcp/80"]);
        let drift = plane.drift().await.unwrap();
        assert_eq!(drift.len(), 3, "{drift:?}");
        assert!(drift.iter().any(|d| d.contains("ghost")));
    });
}

#[test]
fn purge_leaves_nothing_and_can_be_repeated() {
    machine(|| async {
        output("nft", &["add", "table", "ip", "bystander"]);
        output("ip", &["link", "add", "other", "type", "bridge"]);
        let before = picture();
        let plane = open().await;
        let (a, b) = (Pod::new(&plane, "a").await, Pod::new(&plane, "b").await);
        let mut web = service("web", 1, Tcp, 80, &[a.at(80), b.at(80)]);
        web.affinity_seconds = 5;
        web.ports[0].node_port = 30000;
        set(&plane, web).await;
        plane.apply(&many(20), &[]).await.unwrap();
        drop(plane);
        Dataplane::purge(NAME, config().cluster_cidr).await.unwrap();
        assert_eq!(picture(), before);
        Dataplane::purge(NAME, config().cluster_cidr).await.unwrap();
        // And everything can be made again.
        let plane = open().await;
        plane.apply(&many(2), &[]).await.unwrap();
    });
}

#[test]
fn every_rule_chain_and_element_names_its_owner() {
    machine(|| async {
        let plane = open().await;
        let pod = Pod::new(&plane, "a").await;
        let mut web = service("web", 1, Tcp, 80, &[pod.at(80), pod.at(81)]);
        web.affinity_seconds = 5;
        web.external_local = true;
        web.ports[0].node_port = 30000;
        set(&plane, web).await;
        plane.map_host_port(&pod.id, &owner("pod", "a", 7), Tcp, 8000, pod.at(80)).await.unwrap();
        let rules = output("nft", &["list", "ruleset"]);
        let block = |line: &str| {
            let opens = line.ends_with('{') || line.trim() == "}" || line.is_empty();
            opens || ["type ", "flags ", "timeout "].iter().any(|k| line.trim().starts_with(k))
        };
        for line in rules.lines().filter(|l| !block(l)) {
            assert!(line.contains("comment \"") || line.contains("size "), "{line}\n{rules}");
        }
    });
}

#[test]
fn a_thousand_services_take_one_transaction_and_one_more_takes_almost_nothing() {
    machine(|| async {
        let plane = open().await;
        let all = many(1000);
        let start = Instant::now();
        plane.apply(&all, &[]).await.unwrap();
        let first = start.elapsed();
        let start = Instant::now();
        plane.apply(&all, &[]).await.unwrap();
        let same = start.elapsed();
        let mut changes = Vec::new();
        for n in 0..20_u8 {
            let backends = [SocketAddrV4::new([10, 200, 200, n].into(), 80)];
            let intent = service("one", 1, Tcp, 80, &backends);
            let start = Instant::now();
            set(&plane, intent).await;
            changes.push(start.elapsed());
        }
        changes.sort();
        println!("1000 services {first:?}, the same again {same:?}, one change {:?}", changes[10]);
        assert!(first < Duration::from_secs(5), "{first:?}");
        assert!(changes[10] < first / 10, "a change costs {:?}, everything {first:?}", changes[10]);
        let chains: BTreeSet<String> = output("nft", &["list", "chains"])
            .lines()
            .filter(|l| l.contains("svc/"))
            .map(str::to_owned)
            .collect();
        assert_eq!(chains.len(), 1001);
        let gone: Vec<_> = all.iter().map(|i| i.owner.clone()).collect();
        plane.apply(&[], &gone).await.unwrap();
        assert_eq!(plane.drift().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_flushed_table_is_repaired() {
    machine(|| async {
        let plane = open().await;
        let (client, server) = (Pod::new(&plane, "c").await, Pod::new(&plane, "s").await);
        server.serve(8080);
        for n in 1..=3 {
            set(&plane, service(&format!("s{n}"), n, Tcp, 80, &[server.at(8080)])).await;
        }
        let pod = owner("pod", "s", 7);
        plane.map_host_port(&server.id, &pod, Tcp, 8000, server.at(8080)).await.unwrap();
        let whole = output("nft", &["-s", "list", "table", "ip", NAME]);
        output("nft", &["flush", "ruleset"]);
        // The next change notices, and everything comes back.
        plane.apply(&[], &[owner("svc", "s1", 9)]).await.unwrap();
        set(&plane, service("s1", 1, Tcp, 80, &[server.at(8080)])).await;
        for n in 1..=3 {
            client.connect(SocketAddrV4::new(ip(n), 80)).unwrap();
        }
        Client::new(SocketAddrV4::new([10, 200, 1, 1].into(), 8000).into()).unwrap();
        // The same objects; sets list their elements in no particular order.
        let pieces = |text: &str| {
            let mut all: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            all.sort();
            all
        };
        let again = output("nft", &["-s", "list", "table", "ip", NAME]);
        let commaless = |text: &str| pieces(&text.replace(',', " "));
        assert_eq!(commaless(&again), commaless(&whole));
        output("nft", &["flush", "ruleset"]);
        let third = Pod::new(&plane, "t").await;
        output("nft", &["flush", "ruleset"]);
        plane.detach(&third.id).await.unwrap();
        assert_eq!(plane.drift().await.unwrap(), Vec::<String>::new());
        output("nft", &["flush", "chain", "ip", NAME, "svc/shop/s2/tcp/80"]);
        plane.repair().await.unwrap();
        assert_eq!(plane.drift().await.unwrap(), Vec::<String>::new());
        client.connect(SocketAddrV4::new(ip(2), 80)).unwrap();
    });
}

#[test]
fn what_other_programs_change_is_noticed_and_mended() {
    machine(|| async {
        let plane = open().await;
        let (client, server) = (Pod::new(&plane, "c").await, Pod::new(&plane, "s").await);
        server.serve(8080);
        set(&plane, service("s1", 1, Tcp, 80, &[server.at(8080)])).await;
        let ways = || {
            let [.., routes, neighbours] = picture();
            let mut lines: Vec<String> =
                routes.lines().chain(neighbours.lines()).map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let before = ways();
        let mut watch = plane.watch().unwrap();
        let reaches = || {
            client.connect(SocketAddrV4::new(ip(1), 80)).unwrap();
            Client::new(SocketAddrV4::new(ip(1), 80).into()).unwrap();
        };
        let route = format!("{}/32", server.address);
        let links = output("ip", &["-o", "link"]);
        let line = links.lines().find(|line| line.contains("alias pod:shop/s@")).unwrap();
        let link = line.split([' ', '@']).nth(1).unwrap();
        let disturbances: [&[&str]; 9] = [
            &["nft", "flush", "ruleset"],
            &["nft", "delete", "table", "ip", NAME],
            &["nft", "flush", "map", "ip", NAME, "cluster_ips"],
            &["ip", "link", "delete", NAME],
            &["ip", "link", "set", NAME, "down"],
            &["ip", "address", "flush", "dev", NAME],
            &["ip", "route", "delete", "10.201.0.0/16"],
            &["ip", "route", "delete", &route],
            &["ip", "link", "delete", link],
        ];
        for command in disturbances {
            output(command[0], &command[1..]);
            let found = tokio::time::timeout(lab::PATIENCE, watch.changed()).await;
            let found = found.unwrap_or_else(|_| panic!("{command:?} is not noticed")).unwrap();
            assert!(matches!(found, Disturbance::Ours(_)), "{command:?}: {found:?}");
            plane.mend(&found).await.unwrap();
            reaches();
            assert_eq!(watch.take().unwrap(), None, "{command:?}: a repair disturbs itself");
        }
        assert_eq!(ways(), before);

        // What this process does itself is no disturbance, nor what is others' own.
        set(&plane, service("s2", 2, Tcp, 80, &[server.at(8080)])).await;
        let third = Pod::new(&plane, "t").await;
        plane.detach(&third.id).await.unwrap();
        output("nft", &["add", "table", "ip", "other"]);
        output("nft", &["add", "chain", "ip", "other", "c"]);
        output("nft", &["add", "rule", "ip", "other", "c", "accept"]);
        output("nft", &["flush", "chain", "ip", "other", "c"]);
        assert_eq!(watch.take().unwrap(), None);

        // A filter that begins to drop, and one that is filled anew.
        let chain = "{ type filter hook forward priority 0; policy drop; }";
        for command in [
            &["add", "chain", "ip", "other", "forward", chain][..],
            &["flush", "chain", "ip", "other", "forward"],
        ] {
            output("nft", command);
            let found =
                tokio::time::timeout(lab::PATIENCE, watch.changed()).await.unwrap().unwrap();
            assert!(matches!(found, Disturbance::Filter(_)), "{command:?}: {found:?}");
            plane.mend(&found).await.unwrap();
            reaches();
            assert_eq!(watch.take().unwrap(), None, "{command:?}");
        }
    });
}

#[test]
fn pods_pass_a_foreign_filter_that_drops_and_purge_leaves_it_as_it_was() {
    machine(|| async {
        output("nft", &["add", "table", "ip", "filter"]);
        let chain = "{ type filter hook forward priority 0; policy drop; }";
        output("nft", &["add", "chain", "ip", "filter", "FORWARD", chain]);
        let before = picture();
        let plane = open().await;
        let (a, b) = (Pod::new(&plane, "a").await, Pod::new(&plane, "b").await);
        a.serve(80);
        assert_eq!(b.connect(a.at(80)).unwrap().server, "a");
        drop(plane);
        let plane = open().await;
        let rules = output("nft", &["list", "chain", "ip", "filter", "FORWARD"]);
        assert_eq!(rules.matches("accept comment").count(), 2, "{rules}");
        drop(plane);
        Dataplane::purge(NAME, config().cluster_cidr).await.unwrap();
        assert_eq!(picture(), before);
    });
}

#[test]
fn packets_for_other_machines_pods_go_to_those_machines() {
    machine(|| async {
        output("ip", &["link", "add", "wan", "type", "veth", "peer", "name", "far"]);
        output("ip", &["link", "set", "far", "up"]);
        output("ip", &["address", "add", "192.0.2.1/24", "dev", "wan"]);
        output("ip", &["link", "set", "wan", "up"]);
        // Others' routes are theirs, wherever they lead.
        output("ip", &["route", "add", "10.200.9.0/24", "via", "192.0.2.9"]);
        let before = picture();
        let other = |name: &str, last: u8, pods: u8| MachineIntent {
            owner: Owner {
                kind: "node".into(),
                namespace: String::new(),
                name: name.into(),
                revision: 0,
            },
            address: Ipv4Addr::new(192, 0, 2, last),
            pods: (Ipv4Addr::new(10, 200, pods, 0), 24),
        };
        let routes = || -> Vec<String> {
            let all = output("ip", &["route", "show", "proto", "208"]);
            let others = all.lines().filter(|line| line.contains(" via "));
            others.map(|line| line.trim().to_owned()).collect()
        };
        let plane = open().await;
        plane.set_machines(&[other("b", 2, 2), other("c", 3, 3)]).await.unwrap();
        assert_eq!(
            routes(),
            ["10.200.2.0/24 via 192.0.2.2 dev wan", "10.200.3.0/24 via 192.0.2.3 dev wan"]
        );
        // One moves, one goes, and one claims the addresses of this machine.
        plane.set_machines(&[other("b", 7, 2), other("thief", 8, 1)]).await.unwrap();
        assert_eq!(routes(), ["10.200.2.0/24 via 192.0.2.7 dev wan"]);
        // One that is on no network of this machine does not hinder the others.
        let far = MachineIntent { address: Ipv4Addr::new(198, 51, 100, 1), ..other("far", 0, 4) };
        let refused = plane.set_machines(&[far, other("z", 5, 5)]).await.unwrap_err().to_string();
        assert!(refused.contains("route 10.200.4.0/24 to node:far@0"), "{refused}");
        assert_eq!(routes(), ["10.200.5.0/24 via 192.0.2.5 dev wan"]);
        drop(plane);
        Dataplane::purge(NAME, config().cluster_cidr).await.unwrap();
        assert_eq!(picture(), before);
    });
}

#[test]
fn a_network_in_which_somebody_else_has_addresses_is_refused_before_it_is_made() {
    machine(|| async {
        let lan = |address: [u8; 4], prefix| {
            let mut socket = route::open().unwrap();
            let mut batch = Batch::new();
            batch.create_bridge("lan0", [2, 0, 0, 0, 0, 1]);
            batch.get_link("lan0");
            let link = socket.transact_link(&batch).unwrap().index;
            let mut batch = Batch::new();
            batch.link_up(link);
            batch.add_address(link, address.into(), prefix);
            socket.transact(&batch).unwrap();
        };
        let gone = || {
            let mut batch = Batch::new();
            batch.delete_link("lan0");
            route::open().unwrap().transact(&batch).unwrap();
        };
        Dataplane::check(&config()).unwrap();
        for (address, prefix, own, flag) in [
            ([10, 200, 1, 77], 32, "10.200.1.0/24", "--cluster-cidr"),
            ([10, 201, 9, 1], 24, "10.201.0.0/16", "--service-cidr"),
            // Its network is larger than ours, but this machine's own address lies in ours.
            ([10, 200, 1, 77], 8, "10.200.1.0/24", "--cluster-cidr"),
        ] {
            lan(address, prefix);
            let told = Dataplane::check(&config()).unwrap_err().to_string();
            for part in ["lan0", own, flag] {
                assert!(told.contains(part), "must say {part}: {told}");
            }
            gone();
        }
        // A larger network around ours is no hindrance.
        lan([10, 1, 2, 3], 8);
        Dataplane::check(&config()).unwrap();
        gone();
        // A network that is there stays, whoever came after it.
        let _plane = open().await;
        Dataplane::check(&config()).unwrap();
        lan([10, 200, 1, 77], 32);
        Dataplane::check(&config()).unwrap();
    });
}
