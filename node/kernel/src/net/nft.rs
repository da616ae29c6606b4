//! nf_tables: tables, chains, rules, sets and maps of the `ip` family, built as one transaction.
//!
//! Attribute and expression numbers follow `linux/netfilter/nf_tables.h`; comments are stored the
//! way the nft program reads them, so that `nft list ruleset` shows every owner.

use super::wire::{self, ACK, APPEND, Attributes, Batch, CREATE, DUMP};
use super::{Error, Family, Reply, Socket};
use rustix::io::Errno;
use std::net::Ipv4Addr;

const SUBSYSTEM: u16 = 10 << 8;
const NEWTABLE: u16 = SUBSYSTEM;
const GETTABLE: u16 = SUBSYSTEM | 1;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const GETCHAIN: u16 = SUBSYSTEM | 4;
const DELCHAIN: u16 = SUBSYSTEM | 5;
const NEWRULE: u16 = SUBSYSTEM | 6;
const GETRULE: u16 = SUBSYSTEM | 7;
const DELRULE: u16 = SUBSYSTEM | 8;
const NEWSET: u16 = SUBSYSTEM | 9;
const GETSET: u16 = SUBSYSTEM | 10;
const DELSET: u16 = SUBSYSTEM | 11;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const GETSETELEM: u16 = SUBSYSTEM | 13;
const DELSETELEM: u16 = SUBSYSTEM | 14;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `nfgenmsg` of the `ip` family.
const HEADER: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];
/// `nfgenmsg` of a batch: the resource is the nf_tables subsystem.
const BATCH_HEADER: [u8; 4] = [0, 0, 0, 10];
/// Longest comment that the nft program accepts.
const COMMENT: usize = 127;
/// Private user data of rules: a fingerprint of their chain. Unknown kinds are skipped by readers.
const FINGERPRINT: u8 = 0x64;
/// Elements in one message: their list must stay under 64 KiB.
const ELEMENTS: usize = 200;

/// Where a base chain hooks into the packet path, with its type and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub number: u32,
    /// Lower comes first.
    pub priority: i32,
}

/// Types of keys and values as the nft program names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// `integer`, 4 bytes.
    Integer,
    /// `ipv4_addr`.
    Address,
    /// `inet_proto`.
    Protocol,
    /// `inet_service`.
    Port,
}

impl Type {
    fn number(self) -> u32 {
        match self {
            Self::Integer => 4,
            Self::Address => 7,
            Self::Protocol => 12,
            Self::Port => 13,
        }
    }
    fn size(self) -> u32 {
        match self {
            Self::Integer | Self::Address => 4,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
}

fn concatenated(types: &[Type]) -> (u32, u32) {
    let number = types.iter().fold(0, |sum, t| (sum << 6) | t.number());
    // Each part of a concatenation takes whole 32-bit registers.
    let size = if let [one] = types { one.size() } else { 4 * types.len() as u32 };
    (number, size)
}

/// What a map gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values<'a> {
    /// Nothing: it is a set.
    None,
    /// A jump.
    Verdict,
    /// Data.
    Data(&'a [Type]),
}

/// A named or anonymous set or map.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    /// Parts of the key.
    pub key: &'a [Type],
    /// What it gives.
    pub values: Values<'a>,
    /// Elements are added by packets and forgotten after so many seconds.
    pub timeout: Option<u32>,
    /// Owner's text.
    pub comment: &'a str,
}

/// What an element gives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Nothing.
    None,
    /// Go to a chain.
    Goto(String),
    /// Data.
    Data(Vec<u8>),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Key, each part padded to 4 bytes.
    pub key: Vec<u8>,
    /// Value.
    pub value: Value,
    /// Owner's text.
    pub comment: String,
}

/// A chain as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name of its table.
    pub table: String,
    /// Name.
    pub name: String,
    /// Owner's text.
    pub comment: String,
    /// It hooks into forwarding and drops what no rule decides about.
    pub drops_forwarded: bool,
}

/// A rule as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Name of its table.
    pub table: String,
    /// Name of its chain.
    pub chain: String,
    /// The kernel's number for it, unique in the table.
    pub handle: u64,
    /// Owner's text.
    pub comment: String,
    /// Fingerprint of the chain's rules as they were programmed.
    pub fingerprint: Option<u64>,
}

/// A register key from parts, each padded to 4 bytes.
pub fn key(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 * parts.len());
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Expressions of one rule. Registers are numbered 0 to 15, 4 bytes each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expressions {
    bytes: Vec<u8>,
}

fn register(number: u32) -> u32 {
    // NFT_REG32_00
    8 + number
}

impl Expressions {
    /// No expression.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        Attributes::over(&mut self.bytes).nest(1, |a| {
            a.text(1, name).nest(2, fill);
        });
        self
    }

    fn payload(&mut self, to: u32, base: u32, offset: u32, length: u32) -> &mut Self {
        self.push("payload", |a| {
            a.be32(1, register(to)).be32(2, base).be32(3, offset).be32(4, length);
        })
    }

    /// Loads the source address.
    pub fn source(&mut self, to: u32) -> &mut Self {
        self.payload(to, 1, 12, 4)
    }
    /// Loads the destination address.
    pub fn destination(&mut self, to: u32) -> &mut Self {
        self.payload(to, 1, 16, 4)
    }
    /// Loads the destination port.
    pub fn destination_port(&mut self, to: u32) -> &mut Self {
        self.payload(to, 2, 2, 2)
    }
    fn meta(&mut self, to: u32, key: u32) -> &mut Self {
        self.push("meta", |a| {
            a.be32(2, key).be32(1, register(to));
        })
    }
    /// Loads the transport protocol.
    pub fn protocol(&mut self, to: u32) -> &mut Self {
        self.meta(to, 16)
    }
    /// Loads the name of the input interface (16 bytes).
    pub fn input_name(&mut self, to: u32) -> &mut Self {
        self.meta(to, 6)
    }
    /// Loads the name of the output interface (16 bytes).
    pub fn output_name(&mut self, to: u32) -> &mut Self {
        self.meta(to, 7)
    }
    /// Loads the type of the destination address (2 = an address of this machine).
    pub fn destination_type(&mut self, to: u32) -> &mut Self {
        self.push("fib", |a| {
            a.be32(3, 2).be32(2, 3).be32(1, register(to));
        })
    }
    /// Loads the type of the source address.
    pub fn source_type(&mut self, to: u32) -> &mut Self {
        self.push("fib", |a| {
            a.be32(3, 1).be32(2, 3).be32(1, register(to));
        })
    }
    /// Loads the status bits of the connection.
    pub fn connection_status(&mut self, to: u32) -> &mut Self {
        self.push("ct", |a| {
            a.be32(2, 2).be32(1, register(to));
        })
    }
    /// Goes on only if the register holds the value.
    pub fn equal(&mut self, from: u32, value: &[u8]) -> &mut Self {
        self.compare(from, 0, value)
    }
    /// Goes on only if the register does not hold the value.
    pub fn differ(&mut self, from: u32, value: &[u8]) -> &mut Self {
        self.compare(from, 1, value)
    }
    fn compare(&mut self, from: u32, operator: u32, value: &[u8]) -> &mut Self {
        self.push("cmp", |a| {
            a.be32(1, register(from)).be32(2, operator).nest(3, |a| {
                a.put(1, value);
            });
        })
    }
    /// `register = (register & mask) ^ xor`.
    pub fn bits(&mut self, at: u32, mask: [u8; 4], xor: [u8; 4]) -> &mut Self {
        self.push("bitwise", |a| {
            a.be32(1, register(at)).be32(2, register(at)).be32(3, 4);
            a.nest(4, |a| {
                a.put(1, &mask);
            });
            a.nest(5, |a| {
                a.put(1, &xor);
            });
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
        self.meta(0, 3).bits(0, (!bits).to_ne_bytes(), bits.to_ne_bytes()).set_mark()
    }
    /// Goes on only if all the bits of the mark are set, and clears them.
    pub fn take_mark(&mut self, bits: u32) -> &mut Self {
        self.meta(0, 3).bits(0, bits.to_ne_bytes(), [0; 4]).equal(0, &bits.to_ne_bytes());
        self.meta(0, 3).bits(0, (!bits).to_ne_bytes(), [0; 4]).set_mark()
    }
    fn set_mark(&mut self) -> &mut Self {
        self.push("meta", |a| {
            a.be32(2, 3).be32(3, register(0));
        })
    }
    /// Follows a verdict map; goes on if nothing is found. An anonymous map is named by `id`.
    pub fn follow(&mut self, set: &str, id: Option<u32>, from: u32) -> &mut Self {
        self.push("lookup", |a| {
            a.text(1, set).be32(2, register(from)).be32(3, 0);
            if let Some(id) = id {
                a.be32(4, id);
            }
        })
    }
    /// Goes on only if the key is in the set.
    pub fn contained(&mut self, set: &str, from: u32) -> &mut Self {
        self.push("lookup", |a| {
            a.text(1, set).be32(2, register(from));
        })
    }
    /// Loads a map's data; does not go on if nothing is found. An anonymous map is named by `id`.
    pub fn lookup(&mut self, set: &str, id: Option<u32>, from: u32, to: u32) -> &mut Self {
        self.push("lookup", |a| {
            a.text(1, set).be32(2, register(from)).be32(3, register(to));
            if let Some(id) = id {
                a.be32(4, id);
            }
        })
    }
    /// Loads a random number below `modulus`.
    pub fn random(&mut self, to: u32, modulus: u32) -> &mut Self {
        self.push("numgen", |a| {
            a.be32(1, register(to)).be32(2, modulus).be32(3, 1).be32(4, 0);
        })
    }
    /// Loads a constant of up to 16 bytes.
    pub fn load(&mut self, to: u32, value: &[u8]) -> &mut Self {
        self.push("immediate", |a| {
            a.be32(1, register(to)).nest(2, |a| {
                a.put(1, value);
            });
        })
    }
    /// Adds or refreshes an element of a set with time-out.
    pub fn remember(&mut self, set: &str, key: u32) -> &mut Self {
        self.push("dynset", |a| {
            a.text(1, set).be32(3, 1).be32(4, register(key));
        })
    }
    /// Translates the destination to the address and port in two registers.
    pub fn translate(&mut self, address: u32, port: u32) -> &mut Self {
        self.push("nat", |a| {
            a.be32(1, 1).be32(2, libc::AF_INET as u32);
            a.be32(3, register(address)).be32(5, register(port));
        })
    }
    /// Translates the source to the address in a register.
    pub fn translate_source(&mut self, address: u32) -> &mut Self {
        self.push("nat", |a| {
            a.be32(1, 0).be32(2, libc::AF_INET as u32).be32(3, register(address));
        })
    }
    /// Hides the source behind the output interface's address.
    pub fn masquerade(&mut self) -> &mut Self {
        self.push("masq", |_| {})
    }
    /// Refuses TCP with a reset.
    pub fn reset(&mut self) -> &mut Self {
        self.push("reject", |a| {
            a.be32(1, 1).u8(2, 0);
        })
    }
    /// Refuses with ICMP port unreachable.
    pub fn unreachable(&mut self) -> &mut Self {
        self.push("reject", |a| {
            a.be32(1, 0).u8(2, 3);
        })
    }
    fn verdict(&mut self, code: i32, chain: Option<&str>) -> &mut Self {
        self.push("immediate", |a| {
            a.be32(1, 0).nest(2, |a| {
                a.nest(2, |a| {
                    a.be32(1, code.cast_unsigned());
                    if let Some(chain) = chain {
                        a.text(2, chain);
                    }
                });
            });
        })
    }
    /// Accepts in this hook.
    pub fn accept(&mut self) -> &mut Self {
        self.verdict(1, None)
    }
    /// Drops.
    pub fn drop(&mut self) -> &mut Self {
        self.verdict(0, None)
    }
    /// Continues in another chain and comes back.
    pub fn jump(&mut self, chain: &str) -> &mut Self {
        self.verdict(-3, Some(chain))
    }
    /// Continues in another chain.
    pub fn goto(&mut self, chain: &str) -> &mut Self {
        self.verdict(-4, Some(chain))
    }
}

fn comment(text: &str) -> Vec<u8> {
    tagged(0, text)
}

fn tagged(kind: u8, text: &str) -> Vec<u8> {
    let mut end = text.len().min(COMMENT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = vec![kind, (end + 1) as u8];
    bytes.extend_from_slice(&text.as_bytes()[..end]);
    bytes.push(0);
    bytes
}

fn user_data(bytes: &[u8], kind: u8) -> Option<&[u8]> {
    let mut rest = bytes;
    while let [k, length, ..] = *rest {
        let value = rest.get(2..2 + usize::from(length))?;
        if k == kind {
            return Some(value);
        }
        rest = &rest[2 + usize::from(length)..];
    }
    None
}

fn read_comment(user: Option<&[u8]>) -> String {
    user.and_then(|u| user_data(u, 0)).map(wire::text).unwrap_or_default()
}

/// Changes to one table that take effect together or not at all.
#[derive(Debug)]
pub struct Transaction {
    batch: Batch,
    table: String,
    sets: u32,
}

impl Transaction {
    /// An empty transaction on a table of the `ip` family.
    pub fn new(table: &str) -> Self {
        let mut batch = Batch::new();
        batch.add("begin", BATCH_BEGIN, 0, &BATCH_HEADER, |_| {});
        Self { batch, table: table.to_owned(), sets: 0 }
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.batch.len() == 1
    }

    /// Bytes so far.
    pub fn size(&self) -> usize {
        self.batch.bytes().len()
    }

    fn add(
        &mut self,
        label: String,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Attributes<'_>, &str),
    ) {
        let table = self.table.clone();
        self.batch.add(label, kind, flags, &HEADER, |a| {
            a.text(1, &table);
            fill(a, &table);
        });
    }

    /// Creates the table if it is missing.
    pub fn table(&mut self, owner: &str) -> &mut Self {
        self.add(format!("create table {}", self.table), NEWTABLE, CREATE, |a, _| {
            a.be32(2, 0).put(6, &comment(owner));
        });
        self
    }

    /// Deletes the table with everything in it.
    pub fn delete_table(&mut self) -> &mut Self {
        self.add(format!("delete table {}", self.table), DELTABLE, 0, |_, _| {});
        self
    }

    /// Creates a chain if it is missing.
    pub fn chain(&mut self, name: &str, hook: Option<Hook>, owner: &str) -> &mut Self {
        let user = comment(owner);
        self.add(format!("create chain {name}"), NEWCHAIN, CREATE, |a, _| {
            a.text(3, name);
            if let Some(hook) = hook {
                a.nest(4, |a| {
                    a.be32(1, hook.number).be32(2, hook.priority.cast_unsigned());
                });
                a.be32(5, 1).text(7, hook.kind);
            }
            a.put(12, &user);
        });
        self
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, name: &str) -> &mut Self {
        self.add(format!("empty chain {name}"), DELRULE, 0, |a, _| {
            a.text(2, name);
        });
        self
    }

    /// Deletes an empty chain that nothing jumps to.
    pub fn delete_chain(&mut self, name: &str) -> &mut Self {
        self.add(format!("delete chain {name}"), DELCHAIN, 0, |a, _| {
            a.text(3, name);
        });
        self
    }

    /// Appends a rule. The fingerprint says what the whole chain was made from, so that a later
    /// process can tell whether it must be made again.
    pub fn rule(
        &mut self,
        chain: &str,
        expressions: &Expressions,
        owner: &str,
        fingerprint: u64,
    ) -> &mut Self {
        let mut user = comment(owner);
        user.extend_from_slice(&[FINGERPRINT, 8]);
        user.extend_from_slice(&fingerprint.to_be_bytes());
        self.put_rule(chain, expressions, &user, CREATE | APPEND)
    }

    /// Puts a rule at the head of a chain that is somebody else's.
    pub fn rule_at_head(
        &mut self,
        chain: &str,
        expressions: &Expressions,
        owner: &str,
    ) -> &mut Self {
        self.put_rule(chain, expressions, &comment(owner), CREATE)
    }

    fn put_rule(
        &mut self,
        chain: &str,
        expressions: &Expressions,
        user: &[u8],
        flags: u16,
    ) -> &mut Self {
        self.add(format!("add a rule to chain {chain}"), NEWRULE, flags, |a, _| {
            a.text(2, chain);
            a.nest(4, |a| {
                a.raw(&expressions.bytes);
            });
            a.put(7, user);
        });
        self
    }

    /// Deletes one rule.
    pub fn delete_rule(&mut self, chain: &str, handle: u64) -> &mut Self {
        self.add(format!("delete a rule of chain {chain}"), DELRULE, 0, |a, _| {
            a.text(2, chain).be64(3, handle);
        });
        self
    }

    /// Creates a named set or map if it is missing.
    pub fn set(&mut self, name: &str, set: &Set<'_>) -> &mut Self {
        self.declare(name, set, 0);
        self
    }

    /// Creates an anonymous map for the next rule; it lives as long as the rule. Gives its name and
    /// id for [`Expressions::lookup`].
    pub fn anonymous(&mut self, set: &Set<'_>, elements: &[Element]) -> (&'static str, u32) {
        // The kernel puts a number in place of the pattern.
        let name = "__map%d";
        // NFT_SET_ANONYMOUS | NFT_SET_CONSTANT
        let id = self.declare(name, set, 3);
        self.elements(name, Some(id), elements);
        (name, id)
    }

    fn declare(&mut self, name: &str, set: &Set<'_>, mut flags: u32) -> u32 {
        self.sets += 1;
        let id = self.sets;
        let (key_type, key_size) = concatenated(set.key);
        match set.values {
            Values::None => {}
            Values::Verdict | Values::Data(_) => flags |= 8,
        }
        if set.timeout.is_some() {
            // NFT_SET_TIMEOUT | NFT_SET_EVAL: packets add elements.
            flags |= 0x30;
        }
        // Numbers are in the machine's byte order for the nft program, everything else is not.
        let host_order = u8::from(set.key == [Type::Integer]);
        let mut user = vec![0, 4, host_order, 0, 0, 0];
        if matches!(set.values, Values::Data(_)) {
            user.extend_from_slice(&[1, 4, 0, 0, 0, 0]);
        }
        if !set.comment.is_empty() {
            user.extend(tagged(7, set.comment));
        }
        self.add(format!("create set {name}"), NEWSET, CREATE, |a, _| {
            a.text(2, name).be32(3, flags).be32(4, key_type).be32(5, key_size);
            match set.values {
                Values::None => {}
                Values::Verdict => {
                    a.be32(6, 0xffff_ff00).be32(7, 0);
                }
                Values::Data(types) => {
                    let (data_type, data_size) = concatenated(types);
                    a.be32(6, data_type).be32(7, data_size);
                }
            }
            a.be32(10, id);
            if let Some(seconds) = set.timeout {
                a.be64(11, u64::from(seconds) * 1000);
            }
            a.put(13, &user);
        });
        id
    }

    /// Deletes a named set or map that no rule uses.
    pub fn delete_set(&mut self, name: &str) -> &mut Self {
        self.add(format!("delete set {name}"), DELSET, 0, |a, _| {
            a.text(2, name);
        });
        self
    }

    /// Adds elements.
    pub fn elements(&mut self, set: &str, id: Option<u32>, elements: &[Element]) -> &mut Self {
        for chunk in elements.chunks(ELEMENTS) {
            let label = format!("add to {set} for {}", chunk[0].comment);
            self.add(label, NEWSETELEM, CREATE, |a, _| {
                a.text(2, set);
                if let Some(id) = id {
                    a.be32(4, id);
                }
                a.nest(3, |a| {
                    for element in chunk {
                        write_element(a, element);
                    }
                });
            });
        }
        self
    }

    /// Removes elements by key.
    pub fn delete_elements(&mut self, set: &str, keys: &[Vec<u8>]) -> &mut Self {
        for chunk in keys.chunks(ELEMENTS) {
            self.add(format!("remove from {set}"), DELSETELEM, 0, |a, _| {
                a.text(2, set).nest(3, |a| {
                    for key in chunk {
                        a.nest(1, |a| {
                            a.nest(1, |a| {
                                a.put(1, key);
                            });
                        });
                    }
                });
            });
        }
        self
    }

    /// Sends everything. On an error nothing has changed.
    pub fn commit(mut self, socket: &mut Socket) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        // One acknowledgement is enough: refusals are reported in any case.
        self.batch.flag_last(ACK);
        self.batch.add("commit", BATCH_END, 0, &BATCH_HEADER, |_| {});
        loop {
            match socket.transact(&self.batch) {
                Ok(_) => return Ok(()),
                // Another program changed nf_tables at the same moment; nothing was applied.
                Err(error) if error.is(Errno::INTR) || error.is(Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn write_element(a: &mut Attributes<'_>, element: &Element) {
    a.nest(1, |a| {
        a.nest(1, |a| {
            a.put(1, &element.key);
        });
        match &element.value {
            Value::None => {}
            Value::Goto(chain) => {
                a.nest(2, |a| {
                    a.nest(2, |a| {
                        a.be32(1, (-4_i32).cast_unsigned()).text(2, chain);
                    });
                });
            }
            Value::Data(data) => {
                a.nest(2, |a| {
                    a.put(1, data);
                });
            }
        }
        if !element.comment.is_empty() {
            a.put(6, &comment(&element.comment));
        }
    });
}

/// What the kernel's answers say, one message at a time.
impl Element {
    /// An entry of a list of elements; `None` when it is none.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let key = wire::find(wire::find(bytes, 1)?, 1)?.to_vec();
        let value = match wire::find(bytes, 2) {
            None => Value::None,
            Some(data) => match (wire::find(data, 1), wire::find(data, 2)) {
                (Some(value), _) => Value::Data(value.to_vec()),
                (None, Some(verdict)) => {
                    Value::Goto(wire::find(verdict, 2).map(wire::text).unwrap_or_default())
                }
                (None, None) => Value::None,
            },
        };
        Some(Self { key, value, comment: read_comment(wire::find(bytes, 6)) })
    }
}

impl Chain {
    /// A message about a chain; `None` when it is none.
    pub fn read(body: &[u8]) -> Option<Self> {
        let rest = body.get(4..)?;
        let number = |bytes: Option<&[u8]>| bytes.and_then(wire::be32_of);
        let forward = wire::find(rest, 4).is_some_and(|h| number(wire::find(h, 1)) == Some(2));
        Some(Self {
            table: wire::text(wire::find(rest, 1)?),
            name: wire::text(wire::find(rest, 3)?),
            comment: read_comment(wire::find(rest, 12)),
            drops_forwarded: forward && number(wire::find(rest, 5)) == Some(0),
        })
    }
}

impl Rule {
    /// A message about a rule; `None` when it is none.
    pub fn read(body: &[u8]) -> Option<Self> {
        let rest = body.get(4..)?;
        let long = |v: &[u8]| Some(u64::from_be_bytes(v.try_into().ok()?));
        let user = wire::find(rest, 7);
        Some(Self {
            table: wire::text(wire::find(rest, 1)?),
            chain: wire::text(wire::find(rest, 2)?),
            handle: wire::find(rest, 3).and_then(long)?,
            comment: read_comment(user),
            fingerprint: user.and_then(|u| user_data(u, FINGERPRINT)).and_then(long),
        })
    }
}

/// Reading back.
impl Socket {
    /// Opens a netfilter socket in the calling thread's namespace.
    pub fn netfilter() -> Result<Self, Error> {
        Self::open(Family::Netfilter)
    }

    fn nft_dump(
        &mut self,
        label: &str,
        kind: u16,
        fill: impl Fn(&mut Attributes<'_>),
    ) -> Result<Vec<Reply>, Error> {
        loop {
            let mut batch = Batch::new();
            batch.add(label, kind, DUMP, &HEADER, &fill);
            match self.transact(&batch) {
                // The tables changed while they were read: read again.
                Err(error) if error.is(Errno::INTR) => {}
                // The table or set does not exist.
                Err(error) if error.is(Errno::NOENT) => return Ok(Vec::new()),
                other => return other,
            }
        }
    }

    /// Names of all tables of the `ip` family.
    pub fn nft_tables(&mut self) -> Result<Vec<String>, Error> {
        let replies = self.nft_dump("list tables", GETTABLE, |_| {})?;
        Ok(replies.iter().filter_map(|r| wire::find(r.body.get(4..)?, 1)).map(wire::text).collect())
    }

    /// All chains of the `ip` family, or those of one table.
    pub fn nft_chains(&mut self, table: Option<&str>) -> Result<Vec<Chain>, Error> {
        let replies = self.nft_dump("list chains", GETCHAIN, |a| {
            if let Some(table) = table {
                a.text(1, table);
            }
        })?;
        let read = replies.iter().filter_map(|reply| Chain::read(&reply.body));
        Ok(read.filter(|chain| table.is_none_or(|table| table == chain.table)).collect())
    }

    /// All rules of the `ip` family, or those of one table, in order.
    pub fn nft_rules(&mut self, table: Option<&str>) -> Result<Vec<Rule>, Error> {
        let replies = self.nft_dump("list rules", GETRULE, |a| {
            if let Some(table) = table {
                a.text(1, table);
            }
        })?;
        let read = replies.iter().filter_map(|reply| Rule::read(&reply.body));
        Ok(read.filter(|rule| table.is_none_or(|table| table == rule.table)).collect())
    }

    /// The named sets and maps of a table with their owner's text.
    pub fn nft_sets(&mut self, table: &str) -> Result<Vec<(String, String)>, Error> {
        let replies = self.nft_dump("list sets", GETSET, |a| {
            a.text(1, table);
        })?;
        let read = |body: &[u8]| {
            let rest = body.get(4..)?;
            (wire::text(wire::find(rest, 1)?) == table).then_some(())?;
            let flags = wire::find(rest, 3).and_then(wire::be32_of).unwrap_or(0);
            (flags & 1 == 0).then_some(())?;
            let owner = wire::find(rest, 13).and_then(|u| user_data(u, 7)).map(wire::text);
            Some((wire::text(wire::find(rest, 2)?), owner.unwrap_or_default()))
        };
        Ok(replies.iter().filter_map(|r| read(&r.body)).collect())
    }

    /// The elements of a named set or map.
    pub fn nft_elements(&mut self, table: &str, set: &str) -> Result<Vec<Element>, Error> {
        let replies = self.nft_dump(&format!("list set {set}"), GETSETELEM, |a| {
            a.text(1, table).text(2, set);
        })?;
        let mut elements = Vec::new();
        for reply in &replies {
            let Some(list) = reply.body.get(4..).and_then(|rest| wire::find(rest, 3)) else {
                continue;
            };
            elements.extend(wire::attributes(list).filter_map(|(_, e)| Element::read(e)));
        }
        Ok(elements)
    }
}
