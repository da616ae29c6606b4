//! Routes to the pods of other machines: by those machines' addresses, over a network that this
//! machine shares with them. They live in the cluster's range of addresses and carry our protocol
//! number, so that they are told from everybody else's.

use crate::pods::PROTOCOL;
use crate::{Config, Error};
use dhow_intents::MachineIntent;
use dhow_kernel::net::{Batch, Socket, route};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Our routes to other machines, as the kernel has them.
fn present(socket: &mut Socket, cluster: Ipv4Net) -> Result<BTreeMap<Ipv4Net, Ipv4Addr>, Error> {
    let routes = socket.routes().map_err(|e| Error::kernel("list routes", &e))?;
    let ours = routes.into_iter().filter(|route| route.protocol == PROTOCOL);
    Ok(ours
        .filter_map(|route| {
            let (address, prefix) = route.destination;
            let destination = Ipv4Net::new(address, prefix).ok()?;
            cluster.contains(&destination).then_some((destination, route.gateway?))
        })
        .collect())
}

fn delete(socket: &mut Socket, destination: Ipv4Net) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.delete_route((destination.network(), destination.prefix_len()), PROTOCOL);
    let gone = socket.transact(&batch).map(drop);
    gone.map_err(|e| Error::kernel(format!("delete the route to {destination}"), &e))
}

/// Brings the routes in line with the machines that there are. One that cannot be reached does not
/// keep the others from it; the first failure is told.
pub(crate) fn set(config: &Config, machines: &[MachineIntent]) -> Result<(), Error> {
    let mut socket = route::open().map_err(|e| Error::kernel("open the routes", &e))?;
    let wanted: BTreeMap<Ipv4Net, &MachineIntent> = machines
        .iter()
        .filter_map(|machine| Some((Ipv4Net::new(machine.pods.0, machine.pods.1).ok()?, machine)))
        .filter(|(pods, _)| config.cluster_cidr.contains(pods) && !overlap(pods, &config.pod_cidr))
        .collect();
    let present = present(&mut socket, config.cluster_cidr)?;
    let mut outcome = Ok(());
    for destination in present.keys().filter(|destination| !wanted.contains_key(*destination)) {
        outcome = outcome.and(delete(&mut socket, *destination));
    }
    for (destination, machine) in wanted {
        if present.get(&destination) == Some(&machine.address) {
            continue;
        }
        let mut batch = Batch::new();
        let target = (destination.network(), destination.prefix_len());
        batch.set_route_via(target, machine.address, PROTOCOL);
        let what = || format!("route {destination} to {} at {}", machine.owner, machine.address);
        let made = socket.transact(&batch).map(drop);
        outcome = outcome.and(made.map_err(|e| Error::kernel(what(), &e)));
    }
    outcome
}

fn overlap(one: &Ipv4Net, other: &Ipv4Net) -> bool {
    one.contains(other) || other.contains(one)
}

/// Removes all of them.
pub(crate) fn purge(cluster: Ipv4Net) -> Result<(), Error> {
    let mut socket = route::open().map_err(|e| Error::kernel("open the routes", &e))?;
    for destination in present(&mut socket, cluster)?.into_keys() {
        delete(&mut socket, destination)?;
    }
    Ok(())
}
