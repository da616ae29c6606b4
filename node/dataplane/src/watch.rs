//! Notices when other programs change what the pod network is made of.
//!
//! A firewall that is loaded anew begins with `flush ruleset`; network managers take away routes
//! and addresses that they do not know; Docker sets a policy that drops what is forwarded. Each of
//! these would otherwise last until the next change of a service, or of this process.

use crate::bystanders::Admitted;
use crate::pods::{Names, PROTOCOL};
use crate::{Config, Error, addresses};
use dhow_kernel::net::watch::{self, Change, Group};
use dhow_kernel::net::{Family, wire};
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::PoisonError;
use tokio::io::unix::AsyncFd;

/// What another program did; the greater needs more to be made up for, and that includes the less.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disturbance {
    /// A filter that packets of pods pass may drop them now.
    Filter(String),
    /// Something of ours was changed.
    Ours(String),
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Ours(what) | Self::Filter(what)) = self;
        f.write_str(what)
    }
}

/// Follows other programs' changes; see [`crate::Dataplane::watch`].
#[derive(Debug)]
pub struct Watch {
    nft: AsyncFd<watch::Watch>,
    route: AsyncFd<watch::Watch>,
    mine: Mine,
}

/// What tells our objects and our own changes from others.
#[derive(Debug)]
pub(crate) struct Mine {
    /// Of the link and of the table.
    name: String,
    /// The sockets that rules, and links and routes, are written by.
    ports: [u32; 2],
    /// Held by our link.
    addresses: [Ipv4Addr; 2],
    admitted: Admitted,
    pods: Names,
}

impl Mine {
    pub(crate) fn new(config: &Config, ports: [u32; 2], admitted: Admitted, pods: Names) -> Self {
        let addresses = [addresses::machine(config.pod_cidr), config.dns_ip];
        Self { name: config.name.clone(), ports, addresses, admitted, pods }
    }
}

fn failed(cause: impl fmt::Display) -> Error {
    Error::Kernel { what: "follow what other programs change".into(), cause: cause.to_string() }
}

impl Watch {
    /// Begins in the calling thread's network namespace.
    pub(crate) fn open(mine: Mine) -> Result<Self, Error> {
        // The constructor is deprecated because a type could give up its descriptor while it is waited
        // for; these sockets stay where they are until they are dropped.
        #[allow(deprecated)]
        let open = |family, groups: &[Group]| {
            AsyncFd::new(watch::Watch::open(family, groups).map_err(failed)?).map_err(failed)
        };
        Ok(Self {
            nft: open(Family::Netfilter, &[Group::Rules])?,
            route: open(Family::Route, &[Group::Links, Group::Addresses, Group::Rules])?,
            mine,
        })
    }

    /// Waits until another program has changed something that matters here. May be given up and
    /// begun again at any time.
    ///
    /// # Errors
    /// When the kernel can no longer be asked.
    pub async fn changed(&mut self) -> Result<Disturbance, Error> {
        loop {
            let ready = tokio::select! {
                ready = self.nft.readable_mut() => ready,
                ready = self.route.readable_mut() => ready,
            };
            // Before reading: what comes after that makes it ready anew.
            ready.map_err(failed)?.clear_ready();
            if let Some(found) = self.take()? {
                return Ok(found);
            }
        }
    }

    /// What another program has changed and nobody was told of yet.
    ///
    /// # Errors
    /// When the kernel can no longer be asked.
    pub fn take(&mut self) -> Result<Option<Disturbance>, Error> {
        let Self { nft, route, mine } = self;
        let mut found = None;
        let mut note = |what: Option<Disturbance>| {
            // One of ours is the greater: its repair looks at filters too.
            if what.is_some() && !matches!(found, Some(Disturbance::Ours(_))) {
                found = what;
            }
        };
        let mut lost = nft.get_mut().read(|change| note(mine.rules(change))).map_err(failed)?;
        // A link that is made is down before it is up.
        let mut down = false;
        let read = route.get_mut().read(|change| {
            down = mine.is_up(&change).map_or(down, |up| !up);
            note(mine.links(change));
        });
        lost |= read.map_err(failed)?;
        if down {
            note(Some(Disturbance::Ours(format!("link {} was set down", mine.name))));
        }
        if lost {
            note(Some(Disturbance::Ours("more was changed than could be followed".into())));
        }
        Ok(found)
    }
}

/// `NFNL_SUBSYS_NFTABLES` in the upper byte of a message's type.
const NFTABLES: u16 = 10 << 8;
const NFT_MSG_DELTABLE: u16 = NFTABLES | 2;
const NFT_MSG_NEWCHAIN: u16 = NFTABLES | 3;
const NFT_MSG_DELRULE: u16 = NFTABLES | 8;
const NFT_MSG_NEWGEN: u16 = NFTABLES | 15;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NF_INET_FORWARD: u32 = 2;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_DELADDR: u16 = 21;
const RTM_DELROUTE: u16 = 25;
const IFLA_IFNAME: u16 = 3;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const IFF_UP: u32 = 1;

impl Mine {
    /// A change of nf_tables: anything in our table, and filters of others that may need a rule of
    /// ours or have lost it.
    fn rules(&self, change: Change<'_>) -> Option<Disturbance> {
        if change.kind == NFT_MSG_NEWGEN || self.ports.contains(&change.by) {
            return None;
        }
        // The header has four bytes. The first attribute is the table's name in every message; the
        // second is the chain's in those about rules, the third in those about chains.
        let body = change.body.get(4..)?;
        let name = |attribute| wire::find(body, attribute).map(wire::text);
        let table = name(1)?;
        if table == self.name {
            let what = if change.kind == NFT_MSG_DELTABLE { "deleted" } else { "changed" };
            return Some(Disturbance::Ours(format!("table {table} was {what}")));
        }
        let hook =
            || wire::be32_of(wire::find(wire::find(body, NFTA_CHAIN_HOOK)?, NFTA_HOOK_HOOKNUM)?);
        let chain = match change.kind {
            NFT_MSG_NEWCHAIN if hook() == Some(NF_INET_FORWARD) => name(3)?,
            NFT_MSG_DELRULE => {
                let admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
                name(2).filter(|chain| admitted.contains(&(table.clone(), chain.clone())))?
            }
            _ => return None,
        };
        Some(Disturbance::Filter(format!("chain {chain} of table {table} was changed")))
    }

    /// Whether our link is up, if that is what is told.
    fn is_up(&self, change: &Change<'_>) -> Option<bool> {
        let (header, attributes) = change.body.split_at_checked(16)?;
        let ours = change.kind == RTM_NEWLINK
            && wire::find(attributes, IFLA_IFNAME).map(wire::text).as_ref() == Some(&self.name);
        ours.then(|| wire::u32_of(&header[8..]).is_some_and(|flags| flags & IFF_UP != 0))
    }

    /// A link, address or route that was taken away.
    fn links(&self, change: Change<'_>) -> Option<Disturbance> {
        let address = |bytes: &[u8]| Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?));
        let by_others = !self.ports.contains(&change.by);
        let what = match change.kind {
            RTM_DELLINK => {
                let link = wire::text(wire::find(change.body.get(16..)?, IFLA_IFNAME)?);
                let of_pod =
                    || self.pods.lock().unwrap_or_else(PoisonError::into_inner).contains(&link);
                (link == self.name || of_pod()).then(|| format!("link {link} was deleted"))?
            }
            RTM_DELADDR => {
                let gone = address(wire::find(change.body.get(8..)?, IFA_LOCAL)?)?;
                self.addresses.contains(&gone).then(|| format!("address {gone} was deleted"))?
            }
            // The kernel itself takes routes away with links, which are dealt with above or were
            // to go.
            RTM_DELROUTE if by_others && change.by != 0 => {
                let (header, attributes) = change.body.split_at_checked(12)?;
                let gone = address(wire::find(attributes, RTA_DST)?)?;
                (header[5] == PROTOCOL).then(|| format!("the route to {gone} was deleted"))?
            }
            _ => return None,
        };
        Some(Disturbance::Ours(what))
    }
}
