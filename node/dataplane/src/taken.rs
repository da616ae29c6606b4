//! Addresses that somebody else on this machine has: another platform, a local network.

use crate::{Config, Error};
use dhow_kernel::net::route;
use ipnet::Ipv4Net;

/// Refuses a network whose addresses lead elsewhere on this machine already: both would break. A
/// network that was made before stays as it is, whatever came after it.
pub(crate) fn check(config: &Config) -> Result<(), Error> {
    let wrap = |e| Error::kernel("look for addresses in use", &e);
    let mut socket = route::open().map_err(wrap)?;
    let links = socket.links().map_err(wrap)?;
    if links.iter().any(|link| link.name == config.name) {
        return Ok(());
    }
    let addresses = socket.addresses().map_err(wrap)?;
    let routes = socket.routes().map_err(wrap)?;
    let used = addresses
        .into_iter()
        .map(|known| ((known.address, 32), known.link))
        .chain(routes.into_iter().map(|route| (route.destination, route.link)))
        .filter_map(|((address, prefix), link)| Some((Ipv4Net::new(address, prefix).ok()?, link)));
    for (used, link) in used {
        for (own, flag) in
            [(config.pod_cidr, "--cluster-cidr"), (config.service_cidr, "--service-cidr")]
        {
            // A larger network around ours is reached as before: the narrower route wins.
            if own.contains(&used.addr()) && used.prefix_len() >= own.prefix_len() {
                let name = links.iter().find(|l| l.index == link).map(|l| l.name.clone());
                return Err(Error::Taken { own, used, link: name.unwrap_or_default(), flag });
            }
        }
    }
    Ok(())
}
