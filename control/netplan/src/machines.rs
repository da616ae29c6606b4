//! Machines as others must know them: where their pods are.

use crate::owner;
use dhow_intents::MachineIntent;
use k8s_openapi::api::core::v1::Node;
use std::net::Ipv4Addr;

/// Where a machine is and which addresses its pods have; `None` while it has told neither.
pub fn compile_machine(node: &Node, revision: u64) -> Option<MachineIntent> {
    let (network, prefix) = node.spec.as_ref()?.pod_cidr.as_ref()?.split_once('/')?;
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let own = addresses.iter().find(|address| address.type_ == "InternalIP")?;
    let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    Some(MachineIntent {
        owner: owner("node", &node.metadata, revision),
        address: own.address.parse().ok()?,
        pods: (network.parse::<Ipv4Addr>().ok()?, prefix),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_machine_is_where_its_address_is_and_its_pods_in_their_range() {
        let mut node = json!({
            "metadata": {"name": "n2"},
            "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n2"}, {"type": "InternalIP", "address": "10.0.0.2"}
            ]},
        });
        let read = |node: &serde_json::Value| {
            compile_machine(&serde_json::from_value(node.clone()).unwrap(), 7)
        };
        let machine = read(&node).unwrap();
        assert_eq!(machine.owner.to_string(), "node:n2@7");
        assert_eq!(machine.address, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(machine.pods, (Ipv4Addr::new(10, 244, 1, 0), 24));
        node["spec"] = json!({"podCIDR": "fd00::/64"});
        assert_eq!(read(&node), None);
        node["spec"] = json!({});
        assert_eq!(read(&node), None);
    }
}
