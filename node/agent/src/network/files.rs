//! `/etc/hosts`, `/etc/resolv.conf` and the host name of a pod. Pure.

use dhow_names::ResolvConf;
use k8s_openapi::api::core::v1::Pod;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Longest host name that the kernel takes.
const HOSTNAME_MOST: usize = 63;

/// A pod's host name, and its domain name when it has a subdomain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    /// What `hostname` prints.
    pub host: String,
    /// `HOST.SUBDOMAIN.NAMESPACE.svc.DOMAIN`; empty without a subdomain.
    pub full: String,
}

/// The host name of a pod; with the machine's network it is the machine's.
pub fn host_name(pod: &Pod, domain: &str, machine: &str) -> HostName {
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    if let Some(name) = spec.hostname_override.filter(|n| !n.is_empty()) {
        return HostName { host: name, full: String::new() };
    }
    if spec.host_network == Some(true) {
        return HostName { host: machine.to_owned(), full: String::new() };
    }
    let mut host = match spec.hostname.filter(|h| !h.is_empty()) {
        Some(name) => name,
        None => pod.metadata.name.clone().unwrap_or_default(),
    };
    if host.len() > HOSTNAME_MOST {
        host.truncate(HOSTNAME_MOST);
        host.truncate(host.trim_end_matches(['-', '.']).len());
    }
    let full = match spec.subdomain.filter(|s| !s.is_empty()) {
        Some(subdomain) => format!("{host}.{subdomain}.{namespace}.svc.{domain}"),
        None => String::new(),
    };
    if spec.set_hostname_as_fqdn == Some(true) && !full.is_empty() {
        host.clone_from(&full);
    }
    HostName { host, full }
}

/// `/etc/hosts`. `machine` is the machine's own file, for pods with the machine's network.
pub fn hosts(pod: &Pod, name: &HostName, ip: Option<&str>, machine: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut text = if spec.and_then(|s| s.host_network) == Some(true) {
        format!("# Kubernetes-managed hosts file (host network).\n{machine}")
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        if let Some(ip) = ip {
            let short = name.host.split('.').next().unwrap_or(&name.host);
            let _ = if name.full.is_empty() {
                writeln!(text, "{ip}\t{}", name.host)
            } else {
                writeln!(text, "{ip}\t{}\t{short}", name.full)
            };
        }
        text
    };
    let aliases = spec.and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            let _ = writeln!(text, "{}\t{names}", alias.ip);
        }
    }
    text
}

/// `/etc/resolv.conf` by the pod's `dnsPolicy` and `dnsConfig`.
pub fn resolv_conf(pod: &Pod, machine: &ResolvConf, dns: Ipv4Addr, domain: &str) -> String {
    let spec = pod.spec.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let mut all = match policy {
        "None" => ResolvConf::default(),
        "Default" => machine.clone(),
        "ClusterFirst" if host_network => machine.clone(),
        _ => {
            let mut searches = vec![
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.to_owned(),
            ];
            searches.extend(machine.searches.iter().filter(|s| *s != ".").cloned());
            ResolvConf {
                servers: vec![dns.to_string()],
                searches,
                options: vec!["ndots:5".to_owned()],
            }
        }
    };
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        all.servers.extend(config.nameservers.iter().flatten().cloned());
        all.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            all.options.retain(|o| o.split(':').next() != Some(name));
            all.options.push(match &option.value {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.clone(),
            });
        }
    }
    for list in [&mut all.servers, &mut all.searches] {
        let mut seen = std::collections::BTreeSet::new();
        list.retain(|item| seen.insert(item.clone()));
    }
    all.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(
            json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}),
        )
        .unwrap()
    }

    fn resolve(spec: serde_json::Value) -> String {
        let machine =
            ResolvConf::parse("# x\nnameserver 9.9.9.9\nsearch corp.example\noptions rotate\n");
        resolv_conf(&pod(spec), &machine, Ipv4Addr::new(10, 96, 0, 10), "cluster.local")
    }

    #[test]
    fn every_dns_policy_has_its_file() {
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\n\
                       nameserver 10.96.0.10\noptions ndots:5\n";
        let own = "search corp.example\nnameserver 9.9.9.9\noptions rotate\n";
        assert_eq!(resolve(json!({})), cluster);
        assert_eq!(resolve(json!({"dnsPolicy": "Default"})), own);
        assert_eq!(resolve(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true})), own);
        assert_eq!(
            resolve(json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true})),
            cluster
        );
        let none = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a.b"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        assert_eq!(resolve(none), "search a.b\nnameserver 1.1.1.1\noptions ndots:2 edns0\n");
    }

    #[test]
    fn dns_config_overrides_options() {
        let text = resolve(json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}));
        assert!(text.ends_with("options ndots:1\n"));
    }

    #[test]
    fn hosts_tells_the_pods_own_name_and_its_aliases() {
        let pod = pod(
            json!({"subdomain": "web", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
        );
        let name = host_name(&pod, "cluster.local", "n1");
        let text = hosts(&pod, &name, Some("10.1.0.5"), "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n"));
        assert!(text.contains("10.1.0.5\tweb-0.web.shop.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("1.2.3.4\ta\tb\n"));
    }

    #[test]
    fn a_long_name_is_cut_to_what_the_kernel_takes() {
        let mut long = pod(json!({}));
        long.metadata.name = Some(format!("{}-{}", "x".repeat(62), "tail"));
        assert_eq!(host_name(&long, "d", "n1").host, "x".repeat(62));
        assert_eq!(host_name(&pod(json!({"hostNetwork": true})), "d", "n1").host, "n1");
    }
}
