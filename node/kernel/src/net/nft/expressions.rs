//! What a rule does, expression by expression.

use super::attributes::{
    bitwise, cmp, ct, data, dynset, expression, fib, immediate, lookup, meta, nat, numgen, payload,
    reject,
};
use super::{ENTRY, verdict};
use crate::net::wire::Attributes;
use std::net::Ipv4Addr;

/// `NFT_FIB_RESULT_ADDRTYPE`, and of which address.
const ADDRESS_TYPE: u32 = 3;
const OF_SOURCE: u32 = 1;
const OF_DESTINATION: u32 = 2;
/// `NFT_REJECT_ICMP_UNREACH` with the code of a port.
const PORT_UNREACHABLE: u8 = 3;

/// Expressions of one rule. Registers are numbered 0 to 15, 4 bytes each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expressions {
    pub(super) bytes: Vec<u8>,
}

fn register(number: u32) -> u32 {
    libc::NFT_REG32_00 as u32 + number
}

impl Expressions {
    /// No expression.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        Attributes::over(&mut self.bytes).nest(ENTRY, |a| {
            a.text(expression::NAME, name).nest(expression::DATA, fill);
        });
        self
    }

    fn payload(&mut self, to: u32, base: i32, offset: u32, length: u32) -> &mut Self {
        self.push("payload", |a| {
            a.be32(payload::TO, register(to)).be32(payload::BASE, base.cast_unsigned());
            a.be32(payload::OFFSET, offset).be32(payload::LENGTH, length);
        })
    }

    /// Loads the source address.
    pub fn source(&mut self, to: u32) -> &mut Self {
        self.payload(to, libc::NFT_PAYLOAD_NETWORK_HEADER, 12, 4)
    }

    /// Loads the destination address.
    pub fn destination(&mut self, to: u32) -> &mut Self {
        self.payload(to, libc::NFT_PAYLOAD_NETWORK_HEADER, 16, 4)
    }

    /// Loads the destination port.
    pub fn destination_port(&mut self, to: u32) -> &mut Self {
        self.payload(to, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2)
    }

    fn meta(&mut self, to: u32, key: i32) -> &mut Self {
        self.push("meta", |a| {
            a.be32(meta::KEY, key.cast_unsigned()).be32(meta::TO, register(to));
        })
    }

    /// Loads the transport protocol.
    pub fn protocol(&mut self, to: u32) -> &mut Self {
        self.meta(to, libc::NFT_META_L4PROTO)
    }

    /// Loads the name of the input interface (16 bytes).
    pub fn input_name(&mut self, to: u32) -> &mut Self {
        self.meta(to, libc::NFT_META_IIFNAME)
    }

    /// Loads the name of the output interface (16 bytes).
    pub fn output_name(&mut self, to: u32) -> &mut Self {
        self.meta(to, libc::NFT_META_OIFNAME)
    }

    fn address_type(&mut self, to: u32, of: u32) -> &mut Self {
        self.push("fib", |a| {
            a.be32(fib::FLAGS, of).be32(fib::RESULT, ADDRESS_TYPE).be32(fib::TO, register(to));
        })
    }

    /// Loads the type of the destination address (2 = an address of this machine).
    pub fn destination_type(&mut self, to: u32) -> &mut Self {
        self.address_type(to, OF_DESTINATION)
    }

    /// Loads the type of the source address.
    pub fn source_type(&mut self, to: u32) -> &mut Self {
        self.address_type(to, OF_SOURCE)
    }

    /// Loads the status bits of the connection.
    pub fn connection_status(&mut self, to: u32) -> &mut Self {
        self.push("ct", |a| {
            a.be32(ct::KEY, libc::NFT_CT_STATUS as u32).be32(ct::TO, register(to));
        })
    }

    /// Goes on only if the register holds the value.
    pub fn equal(&mut self, from: u32, value: &[u8]) -> &mut Self {
        self.compare(from, libc::NFT_CMP_EQ, value)
    }

    /// Goes on only if the register does not hold the value.
    pub fn differ(&mut self, from: u32, value: &[u8]) -> &mut Self {
        self.compare(from, libc::NFT_CMP_NEQ, value)
    }

    fn compare(&mut self, from: u32, operator: i32, value: &[u8]) -> &mut Self {
        self.push("cmp", |a| {
            a.be32(cmp::FROM, register(from)).be32(cmp::OPERATOR, operator.cast_unsigned());
            a.nest(cmp::DATA, |a| {
                a.put(data::VALUE, value);
            });
        })
    }

    /// `register = (register & mask) ^ xor`.
    pub fn bits(&mut self, at: u32, mask: [u8; 4], xor: [u8; 4]) -> &mut Self {
        self.push("bitwise", |a| {
            a.be32(bitwise::FROM, register(at)).be32(bitwise::TO, register(at));
            a.be32(bitwise::LENGTH, 4);
            for (kind, value) in [(bitwise::MASK, mask), (bitwise::XOR, xor)] {
                a.nest(kind, |a| {
                    a.put(data::VALUE, &value);
                });
            }
        })
    }

    /// Goes on only if the address in the register lies (or, with `inside` false, does not lie) in
    /// the network.
    pub fn network(&mut self, at: u32, network: Ipv4Addr, prefix: u8, inside: bool) -> &mut Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let base = (u32::from(network) & mask).to_be_bytes();
        self.bits(at, mask.to_be_bytes(), [0; 4]);
        if inside { self.equal(at, &base) } else { self.differ(at, &base) }
    }

    /// Goes on only if the transport protocol is this.
    pub fn only_protocol(&mut self, number: u8) -> &mut Self {
        self.protocol(0).equal(0, &[number])
    }

    /// Sets the bits of a packet's mark.
    pub fn mark(&mut self, bits: u32) -> &mut Self {
        self.load_mark().bits(0, (!bits).to_ne_bytes(), bits.to_ne_bytes()).store_mark()
    }

    /// Goes on only if all the bits of the mark are set, and clears them.
    pub fn take_mark(&mut self, bits: u32) -> &mut Self {
        self.load_mark().bits(0, bits.to_ne_bytes(), [0; 4]).equal(0, &bits.to_ne_bytes());
        self.load_mark().bits(0, (!bits).to_ne_bytes(), [0; 4]).store_mark()
    }

    fn load_mark(&mut self) -> &mut Self {
        self.meta(0, libc::NFT_META_MARK)
    }

    fn store_mark(&mut self) -> &mut Self {
        self.push("meta", |a| {
            a.be32(meta::KEY, libc::NFT_META_MARK as u32).be32(meta::FROM, register(0));
        })
    }

    fn look_up(&mut self, set: &str, id: Option<u32>, from: u32, to: Option<u32>) -> &mut Self {
        self.push("lookup", |a| {
            a.text(lookup::SET, set).be32(lookup::FROM, register(from));
            if let Some(to) = to {
                a.be32(lookup::TO, to);
            }
            if let Some(id) = id {
                a.be32(lookup::SET_ID, id);
            }
        })
    }

    /// Follows a verdict map; goes on if nothing is found. An anonymous map is named by `id`.
    pub fn follow(&mut self, set: &str, id: Option<u32>, from: u32) -> &mut Self {
        self.look_up(set, id, from, Some(libc::NFT_REG_VERDICT as u32))
    }

    /// Goes on only if the key is in the set.
    pub fn contained(&mut self, set: &str, from: u32) -> &mut Self {
        self.look_up(set, None, from, None)
    }

    /// Loads a map's data; does not go on if nothing is found. An anonymous map is named by `id`.
    pub fn lookup(&mut self, set: &str, id: Option<u32>, from: u32, to: u32) -> &mut Self {
        self.look_up(set, id, from, Some(register(to)))
    }

    /// Loads a random number below `modulus`.
    pub fn random(&mut self, to: u32, modulus: u32) -> &mut Self {
        self.push("numgen", |a| {
            a.be32(numgen::TO, register(to)).be32(numgen::MODULUS, modulus);
            a.be32(numgen::TYPE, libc::NFT_NG_RANDOM as u32).be32(numgen::OFFSET, 0);
        })
    }

    /// Loads a constant of up to 16 bytes.
    pub fn load(&mut self, to: u32, value: &[u8]) -> &mut Self {
        self.push("immediate", |a| {
            a.be32(immediate::TO, register(to)).nest(immediate::DATA, |a| {
                a.put(data::VALUE, value);
            });
        })
    }

    /// Adds or refreshes an element of a set with time-out.
    pub fn remember(&mut self, set: &str, key: u32) -> &mut Self {
        self.push("dynset", |a| {
            a.text(dynset::SET, set).be32(dynset::OPERATION, libc::NFT_DYNSET_OP_UPDATE as u32);
            a.be32(dynset::KEY, register(key));
        })
    }

    fn nat(&mut self, kind: i32, address: u32, port: Option<u32>) -> &mut Self {
        self.push("nat", |a| {
            a.be32(nat::TYPE, kind.cast_unsigned()).be32(nat::FAMILY, libc::AF_INET as u32);
            a.be32(nat::ADDRESS, register(address));
            if let Some(port) = port {
                a.be32(nat::PORT, register(port));
            }
        })
    }

    /// Translates the destination to the address and port in two registers.
    pub fn translate(&mut self, address: u32, port: u32) -> &mut Self {
        self.nat(libc::NFT_NAT_DNAT, address, Some(port))
    }

    /// Translates the source to the address in a register.
    pub fn translate_source(&mut self, address: u32) -> &mut Self {
        self.nat(libc::NFT_NAT_SNAT, address, None)
    }

    /// Hides the source behind the output interface's address.
    pub fn masquerade(&mut self) -> &mut Self {
        self.push("masq", |_| {})
    }

    fn reject(&mut self, kind: i32, code: u8) -> &mut Self {
        self.push("reject", |a| {
            a.be32(reject::TYPE, kind.cast_unsigned()).u8(reject::CODE, code);
        })
    }

    /// Refuses TCP with a reset.
    pub fn reset(&mut self) -> &mut Self {
        self.reject(libc::NFT_REJECT_TCP_RST, 0)
    }

    /// Refuses with ICMP port unreachable.
    pub fn unreachable(&mut self) -> &mut Self {
        self.reject(libc::NFT_REJECT_ICMP_UNREACH, PORT_UNREACHABLE)
    }

    fn decide(&mut self, code: i32, chain: Option<&str>) -> &mut Self {
        self.push("immediate", |a| {
            a.be32(immediate::TO, libc::NFT_REG_VERDICT as u32);
            a.nest(immediate::DATA, |a| verdict(a, code, chain));
        })
    }

    /// Accepts in this hook.
    pub fn accept(&mut self) -> &mut Self {
        self.decide(libc::NF_ACCEPT, None)
    }

    /// Drops.
    pub fn drop(&mut self) -> &mut Self {
        self.decide(libc::NF_DROP, None)
    }

    /// Continues in another chain and comes back.
    pub fn jump(&mut self, chain: &str) -> &mut Self {
        self.decide(libc::NFT_JUMP, Some(chain))
    }

    /// Continues in another chain.
    pub fn goto(&mut self, chain: &str) -> &mut Self {
        self.decide(libc::NFT_GOTO, Some(chain))
    }
}
