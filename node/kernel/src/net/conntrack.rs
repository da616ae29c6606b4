//! Connection tracking: listing IPv4 flows and forgetting single ones (ctnetlink).

use super::wire::{self, ACK, Attributes, Batch, DUMP};
use super::{Error, Socket};
use rustix::io::Errno;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Messages and attributes of `linux/netfilter/nfnetlink_conntrack.h`.
const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
const PROTOCOL: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// `nfgenmsg` of IPv4.
const HEADER: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// From.
    pub source: SocketAddrV4,
    /// To.
    pub destination: SocketAddrV4,
    /// Transport protocol number.
    pub protocol: u8,
}

/// A tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// As the first packet came in.
    pub original: Tuple,
    /// As answers come in; its source is where the flow really goes.
    pub reply: Tuple,
}

fn read_tuple(bytes: &[u8]) -> Option<Tuple> {
    let addresses = wire::find(bytes, TUPLE_ADDRESSES)?;
    let ports = wire::find(bytes, TUPLE_PROTOCOL)?;
    let address =
        |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(wire::find(addresses, kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(wire::find(ports, kind)?.get(..2)?.try_into().ok()?));
    Some(Tuple {
        source: SocketAddrV4::new(address(SOURCE)?, port(SOURCE_PORT)?),
        destination: SocketAddrV4::new(address(DESTINATION)?, port(DESTINATION_PORT)?),
        protocol: *wire::find(ports, PROTOCOL)?.first()?,
    })
}

fn write_tuple(a: &mut Attributes<'_>, tuple: &Tuple) {
    a.nest(TUPLE_ADDRESSES, |a| {
        a.put(SOURCE, &tuple.source.ip().octets());
        a.put(DESTINATION, &tuple.destination.ip().octets());
    });
    a.nest(TUPLE_PROTOCOL, |a| {
        a.u8(PROTOCOL, tuple.protocol);
        a.put(SOURCE_PORT, &tuple.source.port().to_be_bytes());
        a.put(DESTINATION_PORT, &tuple.destination.port().to_be_bytes());
    });
}

impl Socket {
    /// All IPv4 flows with ports.
    pub fn flows(&mut self) -> Result<Vec<Flow>, Error> {
        let mut batch = Batch::new();
        batch.add("list flows", GET, DUMP, &HEADER, |_| {});
        let read = |body: &[u8]| {
            let rest = body.get(HEADER.len()..)?;
            let original = read_tuple(wire::find(rest, ORIGINAL)?)?;
            Some(Flow { original, reply: read_tuple(wire::find(rest, REPLY)?)? })
        };
        Ok(self.transact(&batch)?.iter().filter_map(|r| read(&r.body)).collect())
    }

    /// Forgets flows; those that ended meanwhile are fine.
    pub fn forget_flows(&mut self, flows: &[Flow]) -> Result<(), Error> {
        for chunk in flows.chunks(256) {
            let mut batch = Batch::new();
            for flow in chunk {
                let label = format!("forget the flow to {}", flow.original.destination);
                batch.add(label, DELETE, ACK, &HEADER, |a| {
                    a.nest(ORIGINAL, |a| write_tuple(a, &flow.original));
                });
            }
            let mut failed = None;
            self.exchange(&batch, |error| {
                if !error.is(Errno::NOENT) {
                    failed = Some(error);
                }
            })?;
            failed.map_or(Ok(()), Err)?;
        }
        Ok(())
    }
}
