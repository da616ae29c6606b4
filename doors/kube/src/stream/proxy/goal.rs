//! Where a proxied request goes: the address of a pod, or of one of a service's ready endpoints.

use crate::call::Call;
use dhow_objects::selectors::LabelSelector;
use dhow_objects::{Status, kinds};
use dhow_state::ListOptions;
use serde_json::{Value, json};
use std::fmt;
use std::net::IpAddr;

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// IP address.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// It speaks TLS. Its certificate is not checked, as upstream does not either: nobody could
    /// issue one for the address of a pod.
    pub tls: bool,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

/// `[SCHEME:]NAME[:PORT]`, taken apart. `None` when it is none.
fn take_apart(text: &str) -> Option<(bool, &str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    let tls = match scheme {
        "" | "http" => false,
        "https" => true,
        _ => return None,
    };
    (!name.is_empty()).then_some((tls, name, port))
}

fn not_a_name(call: &Call, text: &str) -> Status {
    Status::bad_request(format!(
        "invalid {} request {text:?}: write [http:|https:]NAME[:PORT]",
        call.path.resource.trim_end_matches('s')
    ))
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok())
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

impl Goal {
    /// The pod that a call names. Without a port it is the first that the pod declares, else 80
    /// (443 for TLS).
    ///
    /// # Errors
    /// 400 for a malformed name or a pod without address, 404.
    pub async fn of_pod(call: &Call) -> Result<Self, Status> {
        let text = call.name()?;
        let (tls, name, asked) = take_apart(text).ok_or_else(|| not_a_name(call, text))?;
        let pod = call.door.state.get(&kinds::POD, call.namespace(), name).await?;
        let pod = pod.value();
        let ports = || items(&pod["spec"]["containers"]).flat_map(|c| items(&c["ports"]));
        let number = match asked {
            "" => ports().find_map(|p| number(&p["containerPort"])).or(Some(if tls {
                443
            } else {
                80
            })),
            asked => port(asked).or_else(|| {
                ports().find(|p| p["name"] == asked).and_then(|p| number(&p["containerPort"]))
            }),
        };
        let port = number.ok_or_else(|| not_a_name(call, text))?;
        let address = pod.pointer("/status/podIP").and_then(Value::as_str).unwrap_or_default();
        if address.is_empty() {
            return Err(Status::bad_request("address not allowed: the pod has none yet"));
        }
        Ok(Self { address: address.to_owned(), port, tls })
    }

    /// Refuses addresses that mean another machine, or this one itself, to whoever asks.
    ///
    /// # Errors
    /// 400 for loopback, link-local and unspecified addresses.
    pub fn check(&self) -> Result<(), Status> {
        let special = match self.address.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
            Ok(IpAddr::V6(ip)) => {
                ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified()
            }
            Err(_) => true,
        };
        if special {
            return Err(Status::bad_request(format!("address not allowed: {}", self.address)));
        }
        Ok(())
    }

    /// One of the ready endpoints of the service that a call names, by chance.
    ///
    /// # Errors
    /// 400 for a malformed name, 404, and 503 when the service has no such port or no ready
    /// endpoint.
    pub async fn of_service(call: &Call) -> Result<Self, Status> {
        let text = call.name()?;
        let (tls, name, asked) = take_apart(text).ok_or_else(|| not_a_name(call, text))?;
        let state = &call.door.state;
        let service = state.get(&kinds::SERVICE, call.namespace(), name).await?;
        let ports: Vec<&Value> = items(&service.value()["spec"]["ports"]).collect();
        let found = match (asked, ports.as_slice()) {
            ("", [only]) => Some(*only),
            (asked, all) => {
                let by_number = port(asked);
                let mut all = all.iter();
                all.find(|p| match by_number {
                    Some(wanted) => number(&p["port"]) == Some(wanted),
                    None => p["name"].as_str().unwrap_or_default() == asked,
                })
                .copied()
            }
        };
        let found = found.ok_or_else(|| {
            Status::unavailable(format!("no service port {asked:?} found for service {name:?}"))
        })?;
        let port_name = found["name"].as_str().unwrap_or_default();
        let selector = json!({"matchLabels": {"kubernetes.io/service-name": name}});
        let options = ListOptions {
            labels: LabelSelector::from_json(&selector).map_err(Status::internal)?,
            ..ListOptions::default()
        };
        let slices = state.list(&kinds::ENDPOINT_SLICE, Some(call.namespace()), &options).await?;
        let mut all = Vec::new();
        for slice in &slices.items {
            let slice = slice.value();
            let port = items(&slice["ports"])
                .find(|p| p["name"].as_str().unwrap_or_default() == port_name)
                .and_then(|p| number(&p["port"]));
            let Some(port) = port else { continue };
            let ready = |e: &&Value| e["conditions"]["ready"].as_bool().unwrap_or(true);
            let ready = items(&slice["endpoints"]).filter(ready);
            let addresses = ready.filter_map(|e| e["addresses"][0].as_str());
            all.extend(addresses.map(|address| (address.to_owned(), port)));
        }
        let chance = call.door.config.clock.random() as usize;
        let chosen = (!all.is_empty()).then(|| all.swap_remove(chance % all.len()));
        let (address, port) = chosen.ok_or_else(|| {
            Status::unavailable(format!("no endpoints available for service {name:?}"))
        })?;
        Ok(Self { address, port, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_refused() {
        let at = |address: &str| Goal { address: address.into(), port: 1, tls: false }.check();
        assert!(at("10.244.0.3").is_ok());
        for own in ["127.0.0.1", "169.254.169.254", "::1", "fe80::1", "0.0.0.0", "name"] {
            assert!(at(own).is_err(), "{own}");
        }
    }

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(take_apart("web"), Some((false, "web", "")));
        assert_eq!(take_apart("web:http"), Some((false, "web", "http")));
        assert_eq!(take_apart("https:web:8443"), Some((true, "web", "8443")));
        assert_eq!(take_apart("https:web:"), Some((true, "web", "")));
        assert_eq!(take_apart("ftp:web:1"), None);
        assert_eq!(take_apart(":80"), None);
        assert_eq!(take_apart("a:b:c:d"), None);
    }
}
