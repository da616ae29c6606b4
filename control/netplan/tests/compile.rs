//! What services, slices and pods compile to.

use dhow_intents::{NameIntent, NameRecord, ServiceIntent};
use dhow_netplan::{compile_names, compile_service, pod_names};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use std::sync::Arc;

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": "cart"}, "spec": spec,
    }))
    .unwrap()
}

fn web(mut more: Value) -> Service {
    let mut spec = json!({
        "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ipFamilies": ["IPv4"],
        "ports": [
            {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ],
    });
    spec.as_object_mut().unwrap().append(more.as_object_mut().unwrap());
    service(spec)
}

fn slice(endpoints: Value) -> Arc<EndpointSlice> {
    let slice = json!({
        "addressType": "IPv4", "metadata": {"name": "cart-1"}, "endpoints": endpoints,
        "ports": [
            {"name": "http", "port": 8080, "protocol": "TCP"},
            {"name": "dns", "port": 5353, "protocol": "UDP"},
        ],
    });
    Arc::new(serde_json::from_value(slice).unwrap())
}

fn backends(intent: &ServiceIntent, port: usize) -> Vec<String> {
    intent.ports[port].backends.iter().map(|b| b.address.to_string()).collect()
}

fn records<'a>(intent: &'a NameIntent, name: &str) -> &'a [NameRecord] {
    intent.names.iter().find(|(n, _)| n == name).map_or(&[], |(_, r)| r)
}

fn address(text: &str) -> NameRecord {
    NameRecord::Address(text.parse().unwrap())
}

#[test]
fn ready_endpoints_are_backends_by_port_name() {
    let slices = [
        slice(
            json!([{"addresses": ["10.1.0.9"], "conditions": {"ready": true}, "nodeName": "n1"}]),
        ),
        slice(json!([
            {"addresses": ["10.1.0.2"]},
            {"addresses": ["10.1.0.3"], "conditions": {"ready": false}},
            // Said twice, once before it was ready.
            {"addresses": ["10.1.0.9"], "conditions": {"ready": false}},
        ])),
    ];
    let intent = compile_service(&web(json!({"type": "NodePort"})), &slices, 41);
    assert_eq!(intent.owner.to_string(), "svc:shop/cart@41");
    assert_eq!(backends(&intent, 0), ["10.1.0.2:8080", "10.1.0.9:8080"]);
    assert_eq!(backends(&intent, 1), ["10.1.0.2:5353", "10.1.0.9:5353"]);
    assert_eq!(intent.ports[0].backends[1].node, "n1");
    assert_eq!((intent.ports[0].node_port, intent.ports[1].node_port), (30080, 0));
    // The order of slices does not matter.
    let [a, b] = slices;
    assert_eq!(compile_service(&web(json!({"type": "NodePort"})), &[b, a], 41), intent);
}

#[test]
fn those_that_leave_but_serve_stand_in_only_when_nobody_is_ready() {
    let leaving = json!({"addresses": ["10.1.0.4"],
        "conditions": {"ready": false, "serving": true, "terminating": true}});
    let dead = json!({"addresses": ["10.1.0.5"],
        "conditions": {"ready": false, "serving": false, "terminating": true}});
    let ready = json!({"addresses": ["10.1.0.2"], "conditions": {"ready": true}});
    let slices = |list: Value| compile_service(&web(json!({})), &[slice(list)], 1);
    assert_eq!(backends(&slices(json!([leaving, dead])), 0), ["10.1.0.4:8080"]);
    assert_eq!(backends(&slices(json!([leaving, dead, ready])), 0), ["10.1.0.2:8080"]);
    assert!(backends(&slices(json!([dead])), 0).is_empty());
}

#[test]
fn under_a_local_policy_machines_are_told_of_those_that_leave_as_well() {
    let of = |name: &str, address: &str, ready: bool| {
        json!({"addresses": [address], "nodeName": name,
            "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
    };
    let slices = [slice(json!([of("n1", "10.1.0.2", true), of("n2", "10.2.0.2", false)]))];
    for policy in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        let intent = compile_service(&web(json!({policy: "Local"})), &slices, 1);
        assert_eq!(backends(&intent, 0), ["10.1.0.2:8080"]);
        let leaving = &intent.ports[0].leaving;
        assert_eq!((leaving.len(), leaving[0].node.as_str()), (1, "n2"));
        assert_eq!(leaving[0].address.to_string(), "10.2.0.2:8080");
    }
    assert!(compile_service(&web(json!({})), &slices, 1).ports[0].leaving.is_empty());
}

#[test]
fn unready_addresses_are_published_on_demand() {
    let slices = [slice(json!([{"addresses": ["10.1.0.3"], "conditions": {"ready": false}}]))];
    let all = json!({"publishNotReadyAddresses": true});
    assert_eq!(backends(&compile_service(&web(all.clone()), &slices, 1), 0).len(), 1);
    let mut headless = web(all);
    headless.spec.as_mut().unwrap().cluster_ip = Some("None".into());
    let names = compile_names(&headless, &slices, "cluster.local", 1);
    assert_eq!(records(&names, "cart.shop.svc.cluster.local"), [address("10.1.0.3")]);
}

#[test]
fn policies_affinity_and_outside_addresses() {
    let mut service = web(json!({
        "type": "LoadBalancer", "externalIPs": ["198.51.100.7"], "sessionAffinity": "ClientIP",
        "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
    }));
    service.status = Some(
        serde_json::from_value(json!({"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "x"}]}}))
        .unwrap(),
    );
    let intent = compile_service(&service, &[], 1);
    let outside: Vec<String> = intent.external_ips.iter().map(ToString::to_string).collect();
    assert_eq!(outside, ["198.51.100.7", "203.0.113.1"]);
    assert_eq!(intent.affinity_seconds, 10800);
    assert!(intent.external_local && !intent.internal_local);
    // A type that takes no node ports keeps none, even if the field is still set.
    assert_eq!(compile_service(&web(json!({})), &[], 1).ports[0].node_port, 0);
}

#[test]
fn headless_and_external_name_services_hold_no_rules() {
    for spec in [
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "x.example", "ports": [{"port": 80}]}),
    ] {
        let intent =
            compile_service(&service(spec), &[slice(json!([{"addresses": ["10.1.0.2"]}]))], 1);
        assert!(intent.cluster_ips.is_empty() && intent.ports.is_empty(), "{intent:?}");
    }
}

#[test]
fn a_service_with_an_address_has_forward_service_and_reverse_names() {
    let names = compile_names(&web(json!({})), &[], "cluster.local", 5);
    let base = "cart.shop.svc.cluster.local";
    assert_eq!(records(&names, base), [address("10.96.0.7")]);
    let srv = |port| NameRecord::Service { target: base.into(), port };
    assert_eq!(records(&names, &format!("_http._tcp.{base}")), [srv(80)]);
    assert_eq!(records(&names, &format!("_dns._udp.{base}")), [srv(53)]);
    assert_eq!(records(&names, "7.0.96.10.in-addr.arpa"), [NameRecord::Pointer(base.into())]);
    assert_eq!(names.names.len(), 4);
}

#[test]
fn a_headless_service_names_each_ready_endpoint() {
    let mut service = web(json!({}));
    let spec = service.spec.as_mut().unwrap();
    spec.cluster_ip = Some("None".into());
    spec.cluster_ips = Some(vec!["None".into()]);
    let slices = [slice(json!([
        {"addresses": ["10.1.0.2"], "hostname": "cart-0"},
        {"addresses": ["10.1.0.3"]},
        {"addresses": ["10.1.0.4"], "conditions": {"ready": false}},
    ]))];
    let names = compile_names(&service, &slices, "cluster.local", 5);
    let base = "cart.shop.svc.cluster.local";
    assert_eq!(records(&names, base), [address("10.1.0.2"), address("10.1.0.3")]);
    assert_eq!(records(&names, &format!("cart-0.{base}")), [address("10.1.0.2")]);
    assert_eq!(records(&names, &format!("10-1-0-3.{base}")), [address("10.1.0.3")]);
    assert_eq!(
        records(&names, &format!("_http._tcp.{base}")),
        [
            NameRecord::Service { target: format!("cart-0.{base}"), port: 8080 },
            NameRecord::Service { target: format!("10-1-0-3.{base}"), port: 8080 },
        ]
    );
    assert_eq!(
        records(&names, "2.0.1.10.in-addr.arpa"),
        [NameRecord::Pointer(format!("cart-0.{base}"))]
    );
    // Without ready endpoints the name does not exist.
    assert!(compile_names(&service, &[], "cluster.local", 5).names.is_empty());
}

#[test]
fn an_external_name_is_an_alias() {
    let service = service(json!({"type": "ExternalName", "externalName": "DB.example.com."}));
    let names = compile_names(&service, &[], "cluster.local", 5);
    let alias = NameRecord::Alias("db.example.com".into());
    assert_eq!(names.names, [("cart.shop.svc.cluster.local".into(), vec![alias])]);
}

#[test]
fn families_that_a_service_does_not_have_are_left_out() {
    let mut service = web(json!({}));
    let spec = service.spec.as_mut().unwrap();
    spec.ip_families = Some(vec!["IPv6".into(), "IPv4".into()]);
    spec.cluster_ips = Some(vec!["fd00::7".into(), "10.96.0.7".into()]);
    let slices = [slice(json!([{"addresses": ["10.1.0.2"]}, {"addresses": ["fd00:1::2"]}]))];
    assert_eq!(backends(&compile_service(&service, &slices, 1), 0).len(), 2);
    let names = compile_names(&service, &slices, "cluster.local", 1);
    let found = names.names.iter().find(|(n, _)| n.ends_with("ip6.arpa")).unwrap();
    assert_eq!(found.0.split('.').count(), 34);
    assert!(found.0.starts_with("7.0.") && found.0.ends_with(".0.0.d.f.ip6.arpa"));
    service.spec.as_mut().unwrap().ip_families = Some(vec!["IPv4".into()]);
    assert_eq!(backends(&compile_service(&service, &slices, 1), 0), ["10.1.0.2:8080"]);
}

#[test]
fn a_pod_has_the_name_of_its_address_while_it_has_it() {
    let pod = |status: Value| -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "p"}, "status": status,
        }))
        .unwrap()
    };
    let running = json!({"phase": "Running", "podIP": "10.1.2.3",
        "podIPs": [{"ip": "10.1.2.3"}, {"ip": "fd00::"}]});
    let names = pod_names(&pod(running), "cluster.local", 9).unwrap();
    assert_eq!(names.owner.to_string(), "pod:shop/p@9");
    assert_eq!(
        names.names,
        [
            ("10-1-2-3.shop.pod.cluster.local".to_owned(), vec![address("10.1.2.3")]),
            ("fd00--0.shop.pod.cluster.local".to_owned(), vec![address("fd00::")]),
        ]
    );
    assert!(pod_names(&pod(json!({"phase": "Pending"})), "cluster.local", 9).is_none());
    let ended = json!({"phase": "Succeeded", "podIP": "10.1.2.3"});
    assert!(pod_names(&pod(ended), "cluster.local", 9).is_none());
}

#[test]
fn nonsense_is_left_out() {
    let service = service(json!({
        "clusterIP": "10.96.0.7",
        "ports": [{"port": 0}, {"port": 70000}, {"port": 80, "protocol": "ICMP"}, {"port": 81}],
    }));
    let odd: EndpointSlice = serde_json::from_value(json!({
        "addressType": "FQDN", "metadata": {}, "ports": [{"port": 99}, {}],
        "endpoints": [{"addresses": ["db.example"]}, {"addresses": []}, {"addresses": ["10.1.0.2"]}],
    }))
    .unwrap();
    let intent = compile_service(&service, &[Arc::new(odd)], 1);
    assert_eq!(intent.ports.len(), 1);
    assert_eq!(backends(&intent, 0), ["10.1.0.2:99"]);
}
