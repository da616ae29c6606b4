//! rtnetlink: links, addresses, routes, neighbours (rtnetlink(7)).

use super::wire::{self, ACK, Batch, CREATE, DUMP, EXCL, REPLACE};
use super::{Error, Family, Socket};
use libc::{
    IFA_ADDRESS, IFA_LOCAL, IFLA_ADDRESS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_IFALIAS, IFLA_IFNAME,
    IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_NET_NS_FD, NDA_DST, NDA_LLADDR,
    NUD_PERMANENT, RT_SCOPE_LINK, RT_SCOPE_NOWHERE, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTA_DST,
    RTA_GATEWAY, RTA_OIF, RTA_PREFSRC, RTM_DELLINK, RTM_DELROUTE, RTM_GETADDR, RTM_GETLINK,
    RTM_GETROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE, RTM_SETLINK, RTN_UNICAST,
    RTN_UNSPEC,
};
use rustix::io::Errno;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Attributes inside others: `VETH_INFO_PEER`, `IFLA_INET_CONF` and `IFLA_INET6_ADDR_GEN_MODE`.
const VETH_PEER: u16 = 1;
const INET_CONF: u16 = 1;
const INET6_ADDR_GEN_MODE: u16 = 8;
/// `IPV4_DEVCONF_ROUTE_LOCALNET`, and `IN6_ADDR_GEN_MODE_NONE`.
const ROUTE_LOCALNET: u16 = 26;
const GEN_MODE_NONE: u8 = 1;
/// `RTNH_F_ONLINK`.
const ONLINK: u32 = 4;
const IFF_UP: u32 = libc::IFF_UP as u32;

const INET: u8 = libc::AF_INET as u8;

/// A hardware address.
pub type Mac = [u8; 6];

/// A link as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Alias: the owner's text.
    pub alias: String,
    /// Kind (`veth`, `bridge`), empty for physical ones.
    pub kind: String,
    /// Administratively up.
    pub up: bool,
    /// Hardware address.
    pub mac: Option<Mac>,
}

/// An IPv4 address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The address itself.
    pub address: Ipv4Addr,
    /// Length of its network's prefix.
    pub prefix: u8,
    /// Index of the interface that has it.
    pub link: u32,
}

/// An IPv4 route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination and prefix length.
    pub destination: (Ipv4Addr, u8),
    /// Output interface index, 0 for none.
    pub link: u32,
    /// The next machine on the way, if the destination is not on the link itself.
    pub gateway: Option<Ipv4Addr>,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
}

fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `rtmsg` about a route of the main table.
fn rtmsg(prefix: u8, protocol: u8, scope: u8, kind: u8, flags: u32) -> [u8; 12] {
    let mut header = [INET, prefix, 0, 0, RT_TABLE_MAIN, protocol, scope, kind, 0, 0, 0, 0];
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn read_link(body: &[u8]) -> Option<Link> {
    let index = wire::u32_of(body.get(4..8)?)?;
    let flags = wire::u32_of(body.get(8..12)?)?;
    let rest = body.get(16..)?;
    let text = |kind| wire::find(rest, kind).map(wire::text).unwrap_or_default();
    let kind = wire::find(rest, IFLA_LINKINFO)
        .and_then(|info| wire::find(info, IFLA_INFO_KIND))
        .map(wire::text)
        .unwrap_or_default();
    let up = flags & IFF_UP != 0;
    let mac = wire::find(rest, IFLA_ADDRESS).and_then(|v| v.try_into().ok());
    Some(Link { index, name: text(IFLA_IFNAME), alias: text(IFLA_IFALIAS), kind, up, mac })
}

/// Messages about links, addresses, routes and neighbours.
impl Batch {
    /// Creates a bridge without ports, which serves as a dummy link.
    pub fn create_bridge(&mut self, name: &str, mac: Mac) {
        self.add(
            format!("create link {name}"),
            RTM_NEWLINK,
            ACK | CREATE | EXCL,
            &ifinfo(0, 0, 0),
            |a| {
                a.text(IFLA_IFNAME, name).put(IFLA_ADDRESS, &mac).nest(IFLA_LINKINFO, |a| {
                    a.text(IFLA_INFO_KIND, "bridge");
                });
            },
        );
    }

    /// Creates a veth pair whose far end is born in another namespace.
    pub fn create_veth(
        &mut self,
        name: &str,
        mac: Mac,
        far_name: &str,
        far_mac: Mac,
        far_namespace: BorrowedFd<'_>,
    ) {
        let header = ifinfo(0, 0, 0);
        self.add(format!("create link {name}"), RTM_NEWLINK, ACK | CREATE | EXCL, &header, |a| {
            a.text(IFLA_IFNAME, name).put(IFLA_ADDRESS, &mac).nest(IFLA_LINKINFO, |a| {
                a.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |a| {
                    a.nest(VETH_PEER, |a| {
                        // Not up yet: a veth cannot open before its other end is linked to it.
                        a.raw(&ifinfo(0, 0, 0));
                        a.text(IFLA_IFNAME, far_name);
                        a.put(IFLA_ADDRESS, &far_mac);
                        a.u32(IFLA_NET_NS_FD, far_namespace.as_raw_fd().cast_unsigned());
                    });
                });
            });
        });
    }

    /// Names a link's owner, silences its IPv6 autoconfiguration, lets packets with loopback
    /// addresses be routed over it if `loopback`, and sets it up.
    pub fn dress_link(&mut self, name: &str, alias: &str, loopback: bool) {
        let label = format!("set link {name} up");
        self.add(label, RTM_SETLINK, ACK, &ifinfo(0, IFF_UP, IFF_UP), |a| {
            a.text(IFLA_IFNAME, name).text(IFLA_IFALIAS, alias).nest(IFLA_AF_SPEC, |a| {
                if loopback {
                    a.nest(libc::AF_INET as u16, |a| {
                        a.nest(INET_CONF, |a| {
                            a.u32(ROUTE_LOCALNET, 1);
                        });
                    });
                }
                a.nest(libc::AF_INET6 as u16, |a| {
                    a.u8(INET6_ADDR_GEN_MODE, GEN_MODE_NONE);
                });
            });
        });
    }

    /// Sets a link up by index.
    pub fn link_up(&mut self, index: u32) {
        self.add("set link up", RTM_SETLINK, ACK, &ifinfo(index, IFF_UP, IFF_UP), |_| {});
    }

    /// Moves a link into a group, so that a group can be deleted at once.
    pub fn group_link(&mut self, name: &str, group: u32) {
        self.add(format!("group link {name}"), RTM_SETLINK, ACK, &ifinfo(0, 0, 0), |a| {
            a.text(IFLA_IFNAME, name).u32(IFLA_GROUP, group);
        });
    }

    /// Deletes a link.
    pub fn delete_link(&mut self, name: &str) {
        self.add(format!("delete link {name}"), RTM_DELLINK, ACK, &ifinfo(0, 0, 0), |a| {
            a.text(IFLA_IFNAME, name);
        });
    }

    /// Deletes every link of a group, sharing one grace period.
    pub fn delete_group(&mut self, group: u32) {
        self.add("delete a group of links", RTM_DELLINK, ACK, &ifinfo(0, 0, 0), |a| {
            a.u32(IFLA_GROUP, group);
        });
    }

    /// Asks for a link by name.
    pub fn get_link(&mut self, name: &str) {
        self.add(format!("look up link {name}"), RTM_GETLINK, ACK, &ifinfo(0, 0, 0), |a| {
            a.text(IFLA_IFNAME, name);
        });
    }

    /// Gives a link an address; fine if it has it.
    pub fn add_address(&mut self, link: u32, address: Ipv4Addr, prefix: u8) {
        let mut header = [INET, prefix, 0, 0, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&link.to_ne_bytes());
        let label = format!("add address {address}/{prefix}");
        self.add(label, RTM_NEWADDR, ACK | CREATE | REPLACE, &header, |a| {
            a.put(IFA_LOCAL, &address.octets()).put(IFA_ADDRESS, &address.octets());
        });
    }

    /// Adds or replaces a route of the main table. With a gateway the route is `onlink`: the
    /// gateway need not be reachable by another route. `source` is what local sockets use.
    pub fn set_route(
        &mut self,
        destination: (Ipv4Addr, u8),
        link: u32,
        gateway: Option<Ipv4Addr>,
        source: Option<Ipv4Addr>,
        protocol: u8,
    ) {
        let (address, prefix) = destination;
        let header = match gateway {
            Some(_) => rtmsg(prefix, protocol, RT_SCOPE_UNIVERSE, RTN_UNICAST, ONLINK),
            None => rtmsg(prefix, protocol, RT_SCOPE_LINK, RTN_UNICAST, 0),
        };
        let label = format!("set route {address}/{prefix}");
        self.add(label, RTM_NEWROUTE, ACK | CREATE | REPLACE, &header, |a| {
            if prefix > 0 {
                a.put(RTA_DST, &address.octets());
            }
            a.u32(RTA_OIF, link);
            if let Some(gateway) = gateway {
                a.put(RTA_GATEWAY, &gateway.octets());
            }
            if let Some(source) = source {
                a.put(RTA_PREFSRC, &source.octets());
            }
        });
    }

    /// Adds or replaces a route of the main table by a gateway. Over which link the gateway is
    /// reached the kernel finds out; it refuses one that is on no network of this machine.
    pub fn set_route_via(&mut self, destination: (Ipv4Addr, u8), gateway: Ipv4Addr, protocol: u8) {
        let (address, prefix) = destination;
        let header = rtmsg(prefix, protocol, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0);
        let label = format!("set route {address}/{prefix}");
        self.add(label, RTM_NEWROUTE, ACK | CREATE | REPLACE, &header, |a| {
            a.put(RTA_DST, &address.octets()).put(RTA_GATEWAY, &gateway.octets());
        });
    }

    /// Deletes a route of the main table.
    pub fn delete_route(&mut self, destination: (Ipv4Addr, u8), protocol: u8) {
        let (address, prefix) = destination;
        let header = rtmsg(prefix, protocol, RT_SCOPE_NOWHERE, RTN_UNSPEC, 0);
        self.add(format!("delete route {address}/{prefix}"), RTM_DELROUTE, ACK, &header, |a| {
            a.put(RTA_DST, &address.octets());
        });
    }

    /// Adds a permanent neighbour entry, so that nobody has to ask for the address.
    pub fn set_neighbour(&mut self, link: u32, address: Ipv4Addr, mac: Mac) {
        let mut header = [0; 12];
        header[0] = INET;
        header[4..8].copy_from_slice(&link.to_ne_bytes());
        header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        let label = format!("set neighbour {address}");
        self.add(label, RTM_NEWNEIGH, ACK | CREATE | REPLACE, &header, |a| {
            a.put(NDA_DST, &address.octets()).put(NDA_LLADDR, &mac);
        });
    }
}

/// Questions about links and routes.
impl Socket {
    /// A link by name.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let mut batch = Batch::new();
        batch.get_link(name);
        match self.transact(&batch) {
            Ok(replies) => Ok(replies.iter().find_map(|r| read_link(&r.body))),
            Err(error) if error.is(Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a batch that contains a [`Batch::get_link`] and returns the link it found.
    pub fn transact_link(&mut self, batch: &Batch) -> Result<Link, Error> {
        let replies = self.transact(batch)?;
        replies
            .iter()
            .filter(|r| r.kind == RTM_NEWLINK)
            .find_map(|r| read_link(&r.body))
            .ok_or_else(|| Error::new("look up a link that was just made", Errno::NODEV))
    }

    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let mut batch = Batch::new();
        batch.add("list links", RTM_GETLINK, DUMP, &ifinfo(0, 0, 0), |_| {});
        Ok(self.transact(&batch)?.iter().filter_map(|r| read_link(&r.body)).collect())
    }

    /// All IPv4 addresses of the namespace's links.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let mut batch = Batch::new();
        batch.add("list addresses", RTM_GETADDR, DUMP, &[INET, 0, 0, 0, 0, 0, 0, 0], |_| {});
        let read = |body: &[u8]| {
            let (header, rest) = body.split_at_checked(8)?;
            // The local address; the other attribute is the peer's where there is one.
            let bytes = wire::find(rest, IFA_LOCAL).or_else(|| wire::find(rest, IFA_ADDRESS))?;
            let address = Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?);
            Some(Address { address, prefix: header[1], link: wire::u32_of(&header[4..8])? })
        };
        Ok(self.transact(&batch)?.iter().filter_map(|r| read(&r.body)).collect())
    }

    /// All IPv4 routes of the main table.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut batch = Batch::new();
        batch.add(
            "list routes",
            RTM_GETROUTE,
            DUMP,
            &[INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            |_| {},
        );
        let read = |body: &[u8]| {
            let (header, rest) = body.split_at_checked(12)?;
            if header[4] != RT_TABLE_MAIN {
                return None;
            }
            let address = match wire::find(rest, RTA_DST) {
                Some(bytes) => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?),
                None => Ipv4Addr::UNSPECIFIED,
            };
            let link = wire::find(rest, RTA_OIF).and_then(wire::u32_of).unwrap_or(0);
            let gateway =
                wire::find(rest, RTA_GATEWAY).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
            let (gateway, protocol) = (gateway.map(Ipv4Addr::from), header[5]);
            Some(Route { destination: (address, header[1]), link, gateway, protocol })
        };
        Ok(self.transact(&batch)?.iter().filter_map(|r| read(&r.body)).collect())
    }
}

/// Opens a route socket in the calling thread's namespace.
pub fn open() -> Result<Socket, Error> {
    Socket::open(Family::Route)
}
