//! What a pod may know of itself: fields and resources (`fieldRef`, `resourceFieldRef`).

use crate::quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A pod and what the machine adds to it.
#[derive(Debug, Clone, Copy)]
pub struct PodFacts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its address; empty while it has none.
    pub pod_ip: &'a str,
    /// The machine's address.
    pub host_ip: &'a str,
    /// The machine's processors in thousandths, in place of a missing limit.
    pub cpu_millis: u64,
    /// The machine's memory in bytes.
    pub memory: u64,
    /// The machine's disk in bytes.
    pub storage: u64,
}

impl PodFacts<'_> {
    /// The pod's namespace.
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// The value of a field.
    ///
    /// # Errors
    /// A text that names the field when there is no such field.
    pub fn field(&self, path: &str) -> Result<String, String> {
        let meta = &self.pod.metadata;
        let spec = self.pod.spec.as_ref();
        let text = |value: Option<&String>| value.cloned().unwrap_or_default();
        if let Some((path, rest)) = path.split_once('[') {
            let key = rest.strip_suffix(']').unwrap_or(rest).trim_matches(['\'', '"']);
            let map = match path {
                "metadata.labels" => &meta.labels,
                "metadata.annotations" => &meta.annotations,
                _ => return Err(format!("unsupported fieldPath: {path}")),
            };
            return Ok(text(map.as_ref().and_then(|m| m.get(key))));
        }
        Ok(match path {
            "metadata.name" => text(meta.name.as_ref()),
            "metadata.namespace" => self.namespace().to_owned(),
            "metadata.uid" => text(meta.uid.as_ref()),
            "metadata.labels" => listed(meta.labels.as_ref()),
            "metadata.annotations" => listed(meta.annotations.as_ref()),
            "spec.nodeName" => text(spec.and_then(|s| s.node_name.as_ref())),
            "spec.serviceAccountName" => text(spec.and_then(|s| s.service_account_name.as_ref())),
            "status.hostIP" | "status.hostIPs" => self.host_ip.to_owned(),
            "status.podIP" | "status.podIPs" => self.pod_ip.to_owned(),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        })
    }

    /// The value of a resource of a container: the named one, or `own`.
    ///
    /// # Errors
    /// A text that names the container or resource when there is no such one.
    pub fn resource(
        &self,
        selector: &ResourceFieldSelector,
        own: Option<&Container>,
    ) -> Result<String, String> {
        let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
        let spec = self.pod.spec.as_ref();
        let all =
            spec.into_iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
        let container = match named {
            None => own,
            Some(name) => all.into_iter().find(|c| c.name == name),
        }
        .ok_or_else(|| format!("container {} not found", named.unwrap_or("")))?;
        let of = container.resources.as_ref();
        let limits = of.and_then(|r| r.limits.as_ref());
        let requests = of.and_then(|r| r.requests.as_ref());
        let (list, resource) = selector
            .resource
            .split_once('.')
            .ok_or_else(|| format!("unsupported container resource: {}", selector.resource))?;
        let list = match list {
            "limits" => limits,
            "requests" => requests,
            _ => return Err(format!("unsupported container resource: {}", selector.resource)),
        };
        let given = list.and_then(|l| l.get(resource)).and_then(|q| quantity::millis(&q.0));
        let machine = match resource {
            "cpu" => i128::from(self.cpu_millis),
            "memory" => i128::from(self.memory) * 1000,
            "ephemeral-storage" => i128::from(self.storage) * 1000,
            _ => 0,
        };
        // A missing limit is what the machine has; a missing request is 0.
        let value = match given {
            Some(value) => value,
            None if selector.resource.starts_with("limits.") => machine,
            None => 0,
        };
        let divisor =
            selector.divisor.as_ref().and_then(|d| quantity::millis(&d.0)).filter(|d| *d > 0);
        let divisor = divisor.unwrap_or(1000);
        Ok(((value + divisor - 1) / divisor).to_string())
    }
}

/// `key="value"` lines, sorted, quoted as Go does.
fn listed(map: Option<&BTreeMap<String, String>>) -> String {
    let mut lines = Vec::new();
    for (key, value) in map.into_iter().flatten() {
        lines.push(format!("{key}={}", quoted(value)));
    }
    lines.join("\n")
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_and_resources_of_a_pod() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u-1", "labels": {"b": "2", "a": "x\"y"}},
            "spec": {"nodeName": "n1", "containers": [
                {"name": "c", "resources": {"limits": {"memory": "100Mi"}, "requests": {"cpu": "250m"}}},
            ]},
        }))
        .unwrap();
        let facts = PodFacts {
            pod: &pod,
            pod_ip: "10.1.0.5",
            host_ip: "10.0.0.1",
            cpu_millis: 2000,
            memory: 1 << 30,
            storage: 0,
        };
        assert_eq!(facts.field("metadata.labels").unwrap(), "a=\"x\\\"y\"\nb=\"2\"");
        assert_eq!(facts.field("status.podIP").unwrap(), "10.1.0.5");
        assert!(facts.field("spec.nope").unwrap_err().contains("spec.nope"));
        let ask = |resource: &str, divisor: &str| {
            let selector = serde_json::from_value(
                json!({"resource": resource, "divisor": divisor, "containerName": "c"}),
            );
            facts.resource(&selector.unwrap(), None).unwrap()
        };
        assert_eq!(ask("limits.memory", "1Mi"), "100");
        assert_eq!(ask("requests.cpu", "1m"), "250");
        assert_eq!(ask("requests.cpu", "1"), "1");
        assert_eq!(ask("limits.cpu", "0"), "2");
    }
}
