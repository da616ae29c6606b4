//! nf_tables: tables, chains, rules, sets and maps of the `ip` family, built as one transaction.
//!
//! Numbers follow `linux/netfilter/nf_tables.h`; comments are stored the way the nft program reads
//! them, so that `nft list ruleset` shows every owner.

mod attributes;
mod expressions;
mod read;
mod transaction;

use super::wire::Attributes;
use attributes::{ENTRY, data};
pub use expressions::Expressions;
pub use transaction::Transaction;

/// `nfgenmsg` of the `ip` family.
const HEADER: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];
/// Kinds of private data of tables, chains, rules and elements: their comment; and of rules a
/// fingerprint of their chain. Readers skip kinds that they do not know.
const COMMENT: u8 = 0;
const FINGERPRINT: u8 = 0x64;
/// The kind of a set's comment.
const SET_COMMENT: u8 = 7;

/// The type of a message to nf_tables.
const fn message(number: i32) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | number as u16
}

/// Writes a verdict, which is data.
fn verdict(a: &mut Attributes<'_>, code: i32, chain: Option<&str>) {
    a.nest(data::VERDICT, |a| {
        a.be32(data::CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            a.text(data::CHAIN, chain);
        }
    });
}

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
