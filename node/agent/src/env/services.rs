//! Variables that tell a container of services, as Docker's links did
//! (`pkg/kubelet/envvars`).

use k8s_openapi::api::core::v1::Service;
use std::collections::BTreeMap;
use std::sync::Arc;

struct Port<'a> {
    name: &'a str,
    protocol: String,
    port: i32,
}

/// The variables of all services that have a cluster address.
pub fn variables(services: &[Arc<Service>]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")
        else {
            continue;
        };
        let ports: Vec<Port<'_>> = spec
            .ports
            .iter()
            .flatten()
            .map(|p| Port {
                name: p.name.as_deref().unwrap_or(""),
                protocol: p.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                port: p.port,
            })
            .collect();
        add(&mut all, service.metadata.name.as_deref().unwrap_or(""), ip, &ports);
    }
    all
}

/// The variables of the `kubernetes` service.
pub fn api(host: &str, port: u16) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let port = Port { name: "https", protocol: "tcp".into(), port: port.into() };
    add(&mut all, "kubernetes", host, &[port]);
    all
}

fn add(all: &mut BTreeMap<String, String>, name: &str, ip: &str, ports: &[Port<'_>]) {
    let Some(first) = ports.first() else { return };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let name = upper(name);
    let bracketed = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let url = |port: &Port<'_>| format!("{}://{bracketed}:{}", port.protocol, port.port);
    let mut set = |suffix: &str, value: String| all.insert(format!("{name}_{suffix}"), value);
    set("SERVICE_HOST", ip.to_owned());
    set("SERVICE_PORT", first.port.to_string());
    for port in ports.iter().filter(|p| !p.name.is_empty()) {
        set(&format!("SERVICE_PORT_{}", upper(port.name)), port.port.to_string());
    }
    set("PORT", url(first));
    for port in ports {
        let prefix = format!("PORT_{}_{}", port.port, port.protocol.to_uppercase());
        set(&prefix, url(port));
        set(&format!("{prefix}_PROTO"), port.protocol.clone());
        set(&format!("{prefix}_PORT"), port.port.to_string());
        set(&format!("{prefix}_ADDR"), ip.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_is_told_in_both_forms() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web-front"},
            "spec": {"clusterIP": "10.2.0.7", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
        }))
        .unwrap();
        let all = variables(&[Arc::new(service)]);
        assert_eq!(all["WEB_FRONT_SERVICE_HOST"], "10.2.0.7");
        assert_eq!(all["WEB_FRONT_SERVICE_PORT_HTTP"], "80");
        assert_eq!(all["WEB_FRONT_PORT"], "tcp://10.2.0.7:80");
        assert_eq!(all["WEB_FRONT_PORT_80_TCP_ADDR"], "10.2.0.7");
    }

    #[test]
    fn a_headless_service_is_not_told() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "db"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]},
        }))
        .unwrap();
        assert!(variables(&[Arc::new(service)]).is_empty());
    }
}
