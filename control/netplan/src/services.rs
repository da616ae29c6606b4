//! A Service and its endpoints as the data plane needs them.

use crate::endpoints::{self, Targets};
use dhow_intents::{Backend, ServiceIntent, ServicePort};
use k8s_openapi::api::core::v1::{Service, ServicePort as SpecPort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Seconds of session affinity when the service says none.
const AFFINITY: u32 = 10800;

/// The cluster addresses of a service; none for headless and external-name services.
pub(crate) fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let listed = spec.cluster_ips.iter().flatten();
    let mut all: Vec<IpAddr> = listed.filter_map(|a| a.parse().ok()).collect();
    if all.is_empty() {
        all.extend(spec.cluster_ip.iter().filter_map(|a| a.parse::<IpAddr>().ok()));
    }
    all
}

/// Compiles a service with its endpoint slices (all of them; the order does not matter).
///
/// Ready endpoints take traffic; when there is none, those that terminate but still serve do. Under a
/// local policy each machine judges this for its own endpoints, so the intent has both.
/// Headless and external-name services give an intent without addresses, which holds no rules.
pub fn compile_service(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    revision: u64,
) -> ServiceIntent {
    let owner = crate::owner("svc", &service.metadata, revision);
    let default = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&default);
    let cluster_ips = cluster_ips(spec);
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    let mut external_ips = Vec::new();
    if kind != "ExternalName" {
        let listed = spec.external_ips.iter().flatten();
        external_ips.extend(listed.filter_map(|a| a.parse::<IpAddr>().ok()));
    }
    if kind == "LoadBalancer" {
        let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        let ingress = status.and_then(|b| b.ingress.as_ref()).into_iter().flatten();
        // A balancer that delivers to the machines' own addresses must not be cut short.
        let direct = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
        external_ips.extend(direct.filter_map(|i| i.ip.as_ref()?.parse::<IpAddr>().ok()));
    }
    external_ips.sort();
    external_ips.dedup();
    let takes_node_ports = matches!(kind, "NodePort" | "LoadBalancer");
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let affinity_seconds = match spec.session_affinity.as_deref() {
        Some("ClientIP") => spec
            .session_affinity_config
            .as_ref()
            .and_then(|c| c.client_ip.as_ref()?.timeout_seconds)
            .and_then(|s| u32::try_from(s).ok())
            .filter(|s| *s > 0)
            .unwrap_or(AFFINITY),
        _ => 0,
    };
    let reachable = !cluster_ips.is_empty() || !external_ips.is_empty() || takes_node_ports;
    let external_local = is_local(&spec.external_traffic_policy);
    let internal_local = is_local(&spec.internal_traffic_policy);
    let ports = if reachable && kind != "ExternalName" {
        let (mut ready, mut leaving) = endpoints::ready_and_leaving(spec, slices);
        if ready.is_empty() {
            ready = std::mem::take(&mut leaving);
        }
        if !external_local && !internal_local {
            leaving.clear();
        }
        let listed = spec.ports.iter().flatten();
        listed.filter_map(|p| port(p, &ready, &leaving, takes_node_ports)).collect()
    } else {
        Vec::new()
    };
    ServiceIntent {
        owner,
        cluster_ips,
        external_ips,
        affinity_seconds,
        external_local,
        internal_local,
        ports,
    }
}

fn port(
    port: &SpecPort,
    ready: &Targets,
    leaving: &Targets,
    takes_node_ports: bool,
) -> Option<ServicePort> {
    let protocol = endpoints::protocol(port.protocol.as_deref())?;
    let name = port.name.clone().unwrap_or_default();
    let backends = |targets: &Targets| {
        let mut backends = Vec::new();
        for (address, target) in targets {
            // Endpoint slices carry resolved numbers under the names of the service's ports.
            let same = target.ports.iter().filter(|p| p.name == name && p.protocol == protocol);
            backends.extend(same.map(|p| Backend {
                address: SocketAddr::new(*address, p.number),
                node: target.node.clone(),
            }));
        }
        backends
    };
    let node_port = port.node_port.filter(|_| takes_node_ports);
    let (backends, leaving) = (backends(ready), backends(leaving));
    Some(ServicePort {
        name,
        protocol,
        port: u16::try_from(port.port).ok().filter(|n| *n != 0)?,
        node_port: node_port.and_then(|n| u16::try_from(n).ok()).unwrap_or(0),
        backends,
        leaving,
    })
}
