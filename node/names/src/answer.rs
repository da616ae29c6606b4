//! From a question to its answer; no input or output here.

use crate::zone::Zone;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use ipnet::IpNet;
use std::net::IpAddr;

/// Seconds that clients may keep an answer: short, because backends move.
const TTL: u32 = 5;
/// UDP payload that we take and offer; larger ones tend to be lost in fragments.
const PAYLOAD: u16 = 1232;
/// UDP payload that every client takes (RFC 1035).
const SMALLEST: u16 = 512;
/// The OPT record that ends an EDNS answer.
const OPT: u16 = 11;
/// Aliases followed within the zone before giving up.
const CHAIN: usize = 8;
/// The schema of names that is followed.
const SCHEMA: &str = "1.1.0";

/// What we are responsible for.
#[derive(Debug)]
pub struct Authority {
    domain: String,
    apex: Name,
    reverse: Vec<IpNet>,
    /// Our own addresses, answered for the zone's name server.
    addresses: Vec<IpAddr>,
}

/// What is to be done about a packet.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// Send this.
    Reply(Vec<u8>),
    /// Not ours: ask others, with the packet as it is.
    Forward,
    /// An alias that leads out of our zone: ask others for the target and add what they say.
    Chase(Box<Pending>),
    /// Not a question, or not worth an answer.
    Ignore,
}

/// An answer that waits for its alias's target.
#[derive(Debug, PartialEq)]
pub struct Pending {
    /// The question to ask others.
    pub(crate) question: Query,
    answer: Message,
    limit: u16,
}

impl Pending {
    /// Completes the answer with what others said, `None` if they did not.
    pub fn complete(mut self, others: Option<Message>) -> Vec<u8> {
        match others {
            Some(others) => {
                self.answer.metadata.response_code = others.metadata.response_code;
                self.answer.add_answers(others.answers);
            }
            None => self.answer.metadata.response_code = ResponseCode::ServFail,
        }
        encode(&self.answer, self.limit)
    }
}

impl Authority {
    /// The zone of `domain` and the reverse zones of networks; `addresses` are the server's own.
    /// `None` when one of them is none.
    pub fn new(domain: &str, reverse: &[String], addresses: Vec<IpAddr>) -> Option<Self> {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        let mut apex = Name::from_ascii(&domain).ok()?;
        apex.set_fqdn(true);
        let reverse = reverse.iter().map(|n| n.parse()).collect::<Result<_, _>>().ok()?;
        Some(Self { domain, apex, reverse, addresses })
    }

    /// Whether a name without its final dot is ours to answer.
    fn is_ours(&self, name: &str) -> bool {
        if let Some(head) = name.strip_suffix(&self.domain)
            && (head.is_empty() || head.ends_with('.'))
        {
            return true;
        }
        reverse_address(name).is_some_and(|a| self.reverse.iter().any(|net| net.contains(&a)))
    }

    fn soa(&self) -> Record {
        let sub =
            |label: &str| self.apex.prepend_label(label).unwrap_or_else(|_| self.apex.clone());
        let server = sub("dns").prepend_label("ns").unwrap_or_else(|_| self.apex.clone());
        let soa = SOA::new(server, sub("hostmaster"), 1, 7200, 1800, 86400, TTL);
        Record::from_rdata(self.apex.clone(), TTL, RData::SOA(soa))
    }

    /// Records that every zone has: version, start of authority, name server.
    fn builtin(&self, name: &str) -> Option<Vec<RData>> {
        let head = name.strip_suffix(&self.domain)?;
        let server = || self.apex.prepend_label("dns").and_then(|n| n.prepend_label("ns"));
        match head {
            "" => Some(vec![self.soa().data, RData::NS(NS(server().ok()?))]),
            "dns-version." => Some(vec![RData::TXT(TXT::new(vec![SCHEMA.into()]))]),
            "dns." => Some(Vec::new()),
            "ns.dns." => Some(
                self.addresses
                    .iter()
                    .map(|a| match a {
                        IpAddr::V4(a) => RData::A(A(*a)),
                        IpAddr::V6(a) => RData::AAAA(AAAA(*a)),
                    })
                    .collect(),
            ),
            _ => None,
        }
    }

    /// Decides about a packet. `turn` rotates addresses; `udp` says that size is limited.
    pub fn decide(&self, zone: &Zone, packet: &[u8], udp: bool, turn: usize) -> Outcome {
        // The header is read by hand first: cheap, and a false count never reaches the parser.
        let Some(header) = packet.first_chunk::<12>() else { return Outcome::Ignore };
        if header[2] & 0x80 != 0 {
            // An answer: answering it could make two servers talk for ever.
            return Outcome::Ignore;
        }
        let refuse = |code| Outcome::Reply(bare(header, code));
        if (header[2] >> 3) & 0xf != 0 {
            return refuse(ResponseCode::NotImp);
        }
        if header[4..6] != [0, 1] {
            return refuse(ResponseCode::FormErr);
        }
        let Ok(request) = Message::from_vec(packet) else { return refuse(ResponseCode::FormErr) };
        let Some(query) = request.queries.first() else { return refuse(ResponseCode::FormErr) };
        let Some(name) = text(query.name()) else { return refuse(ResponseCode::FormErr) };
        if !self.is_ours(&name) {
            return Outcome::Forward;
        }

        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = true;
        metadata.recursion_available = true;
        let mut answer = Message::new(metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata = metadata;
        answer.add_query(query.clone());
        let mut limit = u16::MAX;
        if udp {
            limit = SMALLEST;
        }
        if let Some(edns) = &request.edns {
            if udp {
                limit = edns.max_payload().clamp(SMALLEST, PAYLOAD);
            }
            let mut ours = Edns::new();
            ours.set_max_payload(PAYLOAD);
            if edns.version() > 0 {
                answer.metadata.response_code = ResponseCode::BADVERS;
                answer.set_edns(ours);
                return Outcome::Reply(encode(&answer, limit));
            }
            answer.set_edns(ours);
        }
        if !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
            answer.metadata.response_code = ResponseCode::Refused;
            return Outcome::Reply(encode(&answer, limit));
        }
        match self.fill(zone, &mut answer, query, name, turn) {
            Some(question) => Outcome::Chase(Box::new(Pending { question, answer, limit })),
            None => Outcome::Reply(encode(&answer, limit)),
        }
    }

    /// Fills an answer; gives the question that others must answer, if an alias leads to them.
    fn fill(
        &self,
        zone: &Zone,
        answer: &mut Message,
        query: &Query,
        name: String,
        turn: usize,
    ) -> Option<Query> {
        let wanted = query.query_type();
        let (mut owner, mut name) = (query.name().clone(), name);
        owner.set_fqdn(true);
        for _ in 0..CHAIN {
            let node = zone.get(&name);
            let builtin = self.builtin(&name);
            if node.is_none() && builtin.is_none() {
                answer.metadata.response_code = ResponseCode::NXDomain;
                answer.add_authority(self.soa());
                return None;
            }
            let records: Vec<&RData> =
                builtin.iter().flatten().chain(node.iter().flat_map(|n| n.records())).collect();
            let mut hits: Vec<&RData> = records
                .iter()
                .copied()
                .filter(|r| wanted == RecordType::ANY || r.record_type() == wanted)
                .collect();
            if hits.is_empty() {
                let alias = records.iter().find_map(|r| match r {
                    RData::CNAME(target) => Some(target.0.clone()),
                    _ => None,
                });
                let Some(target) = alias else {
                    // The name exists, but not with this type.
                    answer.add_authority(self.soa());
                    return None;
                };
                let data = RData::CNAME(hickory_proto::rr::rdata::CNAME(target.clone()));
                answer.add_answer(Record::from_rdata(owner, TTL, data));
                let next = text(&target)?;
                if !self.is_ours(&next) {
                    return Some(Query::query(target, wanted));
                }
                (owner, name) = (target, next);
                continue;
            }
            if !hits.is_empty() {
                let shift = turn % hits.len();
                hits.rotate_left(shift);
            }
            for data in &hits {
                self.add_target(zone, answer, data);
            }
            answer.add_answers(
                hits.into_iter().map(|d| Record::from_rdata(owner.clone(), TTL, d.clone())),
            );
            return None;
        }
        answer.metadata.response_code = ResponseCode::ServFail;
        None
    }

    /// Adds the addresses of a service record's target, to save the client a question.
    fn add_target(&self, zone: &Zone, answer: &mut Message, data: &RData) {
        let RData::SRV(service) = data else { return };
        let Some(node) = text(&service.target).and_then(|name| zone.get(&name)) else { return };
        let known = answer.additionals.iter().any(|r| r.name == service.target);
        if !known {
            let addresses = node.records().filter(|r| matches!(r, RData::A(_) | RData::AAAA(_)));
            answer.add_additionals(
                addresses.map(|d| Record::from_rdata(service.target.clone(), TTL, d.clone())),
            );
        }
    }
}

/// A name in lower case without its final dot; `None` if a label holds what no name of ours does.
fn text(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            // Foreign names may hold anything: a character of no DNS name keeps them apart.
            let plain = byte.is_ascii_graphic() && *byte != b'.';
            text.push(if plain { char::from(byte.to_ascii_lowercase()) } else { ' ' });
        }
    }
    Some(text)
}

/// The address that a complete reverse name stands for.
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut parts = digits.split('.');
        let mut octets = [0_u8; 4];
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts.next().is_none().then(|| octets.into());
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut parts = digits.split('.');
    let mut value = 0_u128;
    for place in 0..32 {
        let part = parts.next()?;
        (part.len() == 1).then_some(())?;
        value |= u128::from(u8::from_str_radix(part, 16).ok()?) << (4 * place);
    }
    parts.next().is_none().then(|| std::net::Ipv6Addr::from(value).into())
}

/// Encodes with at most `limit` bytes; what does not fit is left out and the answer marked as
/// truncated.
fn encode(message: &Message, limit: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    let room = if message.edns.is_some() { limit - OPT } else { limit };
    encoder.set_max_size(room);
    let whole = message.edns.is_none();
    let mut body = message.clone();
    body.edns = None;
    if body.emit(&mut encoder).is_err() {
        let id = message.metadata.id.to_be_bytes();
        return bare(&[id[0], id[1], 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], ResponseCode::ServFail);
    }
    if !whole && let Some(edns) = &message.edns {
        let mut edns = edns.clone();
        edns.set_rcode_high(message.metadata.response_code.high());
        encoder.set_max_size(limit);
        if Record::from(&edns).emit(&mut encoder).is_ok() {
            let count = u16::from_be_bytes([bytes[10], bytes[11]]).saturating_add(1);
            bytes[10..12].copy_from_slice(&count.to_be_bytes());
        }
    }
    bytes
}

/// An answer without a body, for packets that cannot or need not be understood.
pub(crate) fn bare(header: &[u8; 12], code: ResponseCode) -> Vec<u8> {
    let mut reply = [0; 12];
    reply[..2].copy_from_slice(&header[..2]);
    // Answer; keep the operation and whether recursion was asked for.
    reply[2] = 0x80 | (header[2] & 0x79);
    reply[3] = 0x80 | code.low();
    reply.to_vec()
}

/// A packet's own failure answer with its question repeated, for what others did not answer.
pub(crate) fn failure(packet: &[u8]) -> Vec<u8> {
    let Some(header) = packet.first_chunk::<12>() else { return Vec::new() };
    let mut reply = bare(header, ResponseCode::ServFail);
    if let Some(end) = question_end(packet) {
        reply[5] = 1;
        reply.extend_from_slice(&packet[12..end]);
    }
    reply
}

/// Where the first question of a packet ends.
pub(crate) fn question_end(packet: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match *packet.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    let end = at + 5;
    (end <= packet.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_intents::{NameIntent, NameRecord, Owner};
    use proptest::prelude::*;

    fn world() -> (Authority, Zone) {
        let authority =
            Authority::new("cluster.local.", &["10.0.0.0/8".into(), "fd00::/8".into()], vec![]);
        let owner =
            Owner { kind: "svc".into(), namespace: "a".into(), name: "b".into(), revision: 1 };
        let mut zone = Zone::default();
        let names = vec![
            ("b.a.svc.cluster.local".into(), vec![NameRecord::Address([10, 0, 0, 1].into())]),
            ("c.a.svc.cluster.local".into(), vec![NameRecord::Alias("example.com".into())]),
        ];
        zone.set(&NameIntent { owner, names });
        (authority.unwrap(), zone)
    }

    fn packet(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.set_edns(Edns::new());
        message.to_vec().unwrap()
    }

    #[test]
    fn only_our_names_are_ours() {
        let (authority, _) = world();
        for name in ["cluster.local", "x.cluster.local", "4.3.2.10.in-addr.arpa"] {
            assert!(authority.is_ours(name), "{name}");
        }
        let six = format!("{}d.f.ip6.arpa", "0.".repeat(30));
        assert!(authority.is_ours(&six));
        for name in [
            "",
            "xcluster.local",
            "local",
            "4.3.2.11.in-addr.arpa",
            "2.10.in-addr.arpa",
            "d.f.ip6.arpa",
        ] {
            assert!(!authority.is_ours(name), "{name}");
        }
    }

    #[test]
    fn what_is_no_question_is_not_answered_as_one() {
        let (authority, zone) = world();
        let decide = |packet: &[u8]| authority.decide(&zone, packet, true, 0);
        assert_eq!(decide(&[]), Outcome::Ignore);
        let good = packet("b.a.svc.cluster.local.");
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert_eq!(decide(&answer), Outcome::Ignore);
        let code = |packet: &[u8]| match decide(packet) {
            Outcome::Reply(reply) => reply[3] & 0xf,
            other => panic!("{other:?}"),
        };
        let mut update = good.clone();
        update[2] |= 5 << 3;
        assert_eq!(code(&update), 4);
        let mut two = good.clone();
        two[5] = 2;
        assert_eq!(code(&two), 1);
        assert_eq!(code(&good[..good.len() - 3]), 1);
        assert_eq!(code(&good), 0);
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(packet in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (authority, zone) = world();
            let _ = authority.decide(&zone, &packet, true, 1);
            let _ = failure(&packet);
        }

        #[test]
        fn no_damaged_question_makes_it_panic(
            name in "[a-zA-Z0-9_]{1,20}(\\.[a-z]{1,9}){0,3}\\.(svc\\.)?cluster\\.local\\.",
            at in 0_usize..80, value: u8, cut in 0_usize..80, udp: bool,
        ) {
            let (authority, zone) = world();
            let mut packet = packet(&name);
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
            packet.truncate(packet.len().saturating_sub(cut / 4));
            if let Outcome::Reply(reply) = authority.decide(&zone, &packet, udp, 1) {
                prop_assert!(reply.len() >= 12 && reply[2] & 0x80 != 0);
                prop_assert!(!udp || reply.len() <= usize::from(PAYLOAD));
                prop_assert_eq!(&reply[..2], &packet[..2]);
            }
        }
    }
}
