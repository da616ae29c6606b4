//! What the kernel says.

use super::attributes::{chain, data, element, hook, list, rule, set, table};
use super::{COMMENT, Chain, Element, FINGERPRINT, HEADER, Rule, SET_COMMENT, Value, message};
use crate::net::wire::{self, Attributes, Batch, DUMP};
use crate::net::{Error, Family, Reply, Socket};
use rustix::io::Errno;

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
    user.and_then(|u| user_data(u, COMMENT)).map(wire::text).unwrap_or_default()
}

impl Element {
    /// An entry of a list of elements; `None` when it is none.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let key = wire::find(wire::find(bytes, element::KEY)?, data::VALUE)?.to_vec();
        let value = wire::find(bytes, element::DATA).map_or(Value::None, |value| {
            if let Some(value) = wire::find(value, data::VALUE) {
                Value::Data(value.to_vec())
            } else if let Some(verdict) = wire::find(value, data::VERDICT) {
                Value::Goto(wire::find(verdict, data::CHAIN).map(wire::text).unwrap_or_default())
            } else {
                Value::None
            }
        });
        Some(Self { key, value, comment: read_comment(wire::find(bytes, element::USER_DATA)) })
    }
}

impl Chain {
    /// A message about a chain; `None` when it is none.
    pub fn read(body: &[u8]) -> Option<Self> {
        let rest = body.get(HEADER.len()..)?;
        let number = |bytes: &[u8], kind| wire::find(bytes, kind).and_then(wire::be32_of);
        let hook = wire::find(rest, chain::HOOK).and_then(|hook| number(hook, hook::NUMBER));
        let forward = hook == Some(libc::NF_INET_FORWARD as u32);
        let drops = number(rest, chain::POLICY) == Some(libc::NF_DROP as u32);
        Some(Self {
            table: wire::text(wire::find(rest, chain::TABLE)?),
            name: wire::text(wire::find(rest, chain::NAME)?),
            comment: read_comment(wire::find(rest, chain::USER_DATA)),
            drops_forwarded: forward && drops,
        })
    }
}

impl Rule {
    /// A message about a rule; `None` when it is none.
    pub fn read(body: &[u8]) -> Option<Self> {
        let rest = body.get(HEADER.len()..)?;
        let long = |v: &[u8]| Some(u64::from_be_bytes(v.try_into().ok()?));
        let user = wire::find(rest, rule::USER_DATA);
        Some(Self {
            table: wire::text(wire::find(rest, rule::TABLE)?),
            chain: wire::text(wire::find(rest, rule::CHAIN)?),
            handle: wire::find(rest, rule::HANDLE).and_then(long)?,
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
        number: i32,
        fill: impl Fn(&mut Attributes<'_>),
    ) -> Result<Vec<Reply>, Error> {
        loop {
            let mut batch = Batch::new();
            batch.add(label, message(number), DUMP, &HEADER, &fill);
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
        let replies = self.nft_dump("list tables", libc::NFT_MSG_GETTABLE, |_| {})?;
        Ok(replies
            .iter()
            .filter_map(|r| wire::find(r.body.get(HEADER.len()..)?, table::NAME))
            .map(wire::text)
            .collect())
    }

    /// All chains of the `ip` family, or those of one table.
    pub fn nft_chains(&mut self, table: Option<&str>) -> Result<Vec<Chain>, Error> {
        let replies = self.nft_dump("list chains", libc::NFT_MSG_GETCHAIN, |a| {
            if let Some(table) = table {
                a.text(chain::TABLE, table);
            }
        })?;
        let read = replies.iter().filter_map(|reply| Chain::read(&reply.body));
        Ok(read.filter(|chain| table.is_none_or(|table| table == chain.table)).collect())
    }

    /// All rules of the `ip` family, or those of one table, in order.
    pub fn nft_rules(&mut self, table: Option<&str>) -> Result<Vec<Rule>, Error> {
        let replies = self.nft_dump("list rules", libc::NFT_MSG_GETRULE, |a| {
            if let Some(table) = table {
                a.text(rule::TABLE, table);
            }
        })?;
        let read = replies.iter().filter_map(|reply| Rule::read(&reply.body));
        Ok(read.filter(|rule| table.is_none_or(|table| table == rule.table)).collect())
    }

    /// The named sets and maps of a table with their owner's text.
    pub fn nft_sets(&mut self, table: &str) -> Result<Vec<(String, String)>, Error> {
        let replies = self.nft_dump("list sets", libc::NFT_MSG_GETSET, |a| {
            a.text(set::TABLE, table);
        })?;
        let read = |body: &[u8]| {
            let rest = body.get(HEADER.len()..)?;
            (wire::text(wire::find(rest, set::TABLE)?) == table).then_some(())?;
            let flags = wire::find(rest, set::FLAGS).and_then(wire::be32_of).unwrap_or(0);
            (flags & libc::NFT_SET_ANONYMOUS as u32 == 0).then_some(())?;
            let user = wire::find(rest, set::USER_DATA);
            let owner = user.and_then(|u| user_data(u, SET_COMMENT)).map(wire::text);
            Some((wire::text(wire::find(rest, set::NAME)?), owner.unwrap_or_default()))
        };
        Ok(replies.iter().filter_map(|r| read(&r.body)).collect())
    }

    /// The elements of a named set or map.
    pub fn nft_elements(&mut self, table: &str, set: &str) -> Result<Vec<Element>, Error> {
        let replies = self.nft_dump(&format!("list set {set}"), libc::NFT_MSG_GETSETELEM, |a| {
            a.text(list::TABLE, table).text(list::SET, set);
        })?;
        let mut elements = Vec::new();
        for reply in &replies {
            let Some(list) =
                reply.body.get(HEADER.len()..).and_then(|rest| wire::find(rest, list::ELEMENTS))
            else {
                continue;
            };
            elements.extend(wire::attributes(list).filter_map(|(_, e)| Element::read(e)));
        }
        Ok(elements)
    }
}
