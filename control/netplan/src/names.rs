//! Names of services and pods, after the Kubernetes DNS specification 1.1.0.

use crate::endpoints::{self, protocol};
use crate::services::cluster_ips;
use dhow_intents::{NameIntent, NameRecord, Protocol};
use k8s_openapi::api::core::v1::{Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

type Records = BTreeMap<String, Vec<NameRecord>>;

/// The name under which an address is looked up in reverse.
fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let mut name = String::with_capacity(72);
            for byte in v6.octets().iter().rev() {
                // Writing to a string cannot fail.
                let _ = write!(name, "{:x}.{:x}.", byte & 0xf, byte >> 4);
            }
            name.push_str("ip6.arpa");
            name
        }
    }
}

/// An address as one label: `10-1-2-3`, `fd00--1`.
fn dashed(address: IpAddr) -> String {
    let mut label = address.to_string().replace(['.', ':'], "-");
    // A label must not begin or end with a dash.
    if label.starts_with('-') {
        label.insert(0, '0');
    }
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

fn service_label(port: &str, protocol: Protocol) -> String {
    let protocol = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    format!("_{}._{protocol}", port.to_ascii_lowercase())
}

fn add(records: &mut Records, name: String, record: NameRecord) {
    let list = records.entry(name).or_default();
    if !list.contains(&record) {
        list.push(record);
    }
}

/// Compiles the names that a service gives rise to: its own, one for each named port, one for each
/// endpoint of a headless service, and the reverse ones. `domain` is the cluster's, without dots
/// at its ends.
///
/// A headless service without ready endpoints has no names: clients are told that it does not
/// exist, as the specification asks.
pub fn compile_names(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    domain: &str,
    revision: u64,
) -> NameIntent {
    let owner = crate::owner("svc", &service.metadata, revision);
    let base = format!("{}.{}.svc.{}", owner.name, owner.namespace, domain).to_ascii_lowercase();
    let default = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&default);
    let mut records = Records::new();
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.as_deref().unwrap_or("").trim_end_matches('.');
        if !target.is_empty() {
            add(&mut records, base, NameRecord::Alias(target.to_ascii_lowercase()));
        }
    } else if spec.cluster_ip.as_deref() == Some("None") {
        headless(&mut records, &base, spec, slices);
    } else {
        clustered(&mut records, &base, spec);
    }
    NameIntent { owner, names: records.into_iter().collect() }
}

fn clustered(records: &mut Records, base: &str, spec: &ServiceSpec) {
    let addresses = cluster_ips(spec);
    if addresses.is_empty() {
        // No address was given yet.
        return;
    }
    for address in addresses {
        add(records, base.to_owned(), NameRecord::Address(address));
        add(records, reverse(address), NameRecord::Pointer(base.to_owned()));
    }
    for port in spec.ports.iter().flatten() {
        let name = port.name.as_deref().filter(|n| !n.is_empty());
        let number = u16::try_from(port.port).ok();
        if let (Some(name), Some(protocol), Some(port)) =
            (name, protocol(port.protocol.as_deref()), number)
        {
            let record = NameRecord::Service { target: base.to_owned(), port };
            add(records, format!("{}.{base}", service_label(name, protocol)), record);
        }
    }
}

fn headless(records: &mut Records, base: &str, spec: &ServiceSpec, slices: &[Arc<EndpointSlice>]) {
    for (address, target) in endpoints::ready(spec, slices) {
        let label = target.hostname.map_or_else(|| dashed(address), |h| h.to_ascii_lowercase());
        let own = format!("{label}.{base}");
        add(records, base.to_owned(), NameRecord::Address(address));
        add(records, own.clone(), NameRecord::Address(address));
        add(records, reverse(address), NameRecord::Pointer(own.clone()));
        for port in target.ports.iter().filter(|p| !p.name.is_empty()) {
            let record = NameRecord::Service { target: own.clone(), port: port.number };
            add(records, format!("{}.{base}", service_label(&port.name, port.protocol)), record);
        }
    }
}

/// Compiles the names of a pod's addresses (`10-1-2-3.NAMESPACE.pod.DOMAIN`); `None` while it has no
/// address, and again when it has ended, because its address may be another pod's by then.
pub fn pod_names(pod: &Pod, domain: &str, revision: u64) -> Option<NameIntent> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let owner = crate::owner("pod", &pod.metadata, revision);
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut addresses: Vec<IpAddr> =
        all.chain(status.pod_ip.as_deref()).filter_map(|a| a.parse().ok()).collect();
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        return None;
    }
    let name = |a: IpAddr| format!("{}.{}.pod.{domain}", dashed(a), owner.namespace);
    let names = addresses
        .into_iter()
        .map(|a| (name(a).to_ascii_lowercase(), vec![NameRecord::Address(a)]))
        .collect();
    Some(NameIntent { owner, names })
}
