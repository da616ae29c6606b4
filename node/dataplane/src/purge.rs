//! Removes every trace of a platform instance from the machine.

use crate::{Error, bystanders, pods};
use dhow_kernel::net::nft::Transaction;
use dhow_kernel::net::{Socket, route};

/// Deletes the table and all links (routes and addresses go with their links).
pub(crate) fn purge(name: &str) -> Result<(), Error> {
    let wrap = |e| Error::kernel(format!("purge the network of {name}"), &e);
    let mut nft = Socket::netfilter().map_err(wrap)?;
    if nft.nft_tables().map_err(wrap)?.iter().any(|t| t == name) {
        let mut change = Transaction::new(name);
        change.delete_table();
        change.commit(&mut nft).map_err(wrap)?;
    }
    bystanders::withdraw(&mut nft, name).map_err(wrap)?;
    let mut socket = route::open().map_err(wrap)?;
    let links: Vec<String> = socket
        .links()
        .map_err(wrap)?
        .into_iter()
        .filter(|l| {
            (l.name == name && l.kind == "bridge")
                || (l.kind == "veth" && pods::is_pod_link(name, &l.name))
        })
        .map(|l| l.name)
        .collect();
    pods::delete_links(&mut socket, &links).map_err(wrap)
}
