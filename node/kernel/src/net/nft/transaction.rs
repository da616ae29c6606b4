//! Changes that take effect together.

use super::attributes::{chain, data, element, hook, list, rule, set, table};
use super::{
    COMMENT, ENTRY, Element, Expressions, FINGERPRINT, HEADER, Hook, SET_COMMENT, Set, Type, Value,
    Values, concatenated, message, verdict,
};
use crate::net::wire::{ACK, APPEND, Attributes, Batch, CREATE};
use crate::net::{Error, Socket};
use rustix::io::Errno;

/// Begin and end of a transaction.
const BEGIN: u16 = libc::NFNL_MSG_BATCH_BEGIN as u16;
const END: u16 = libc::NFNL_MSG_BATCH_END as u16;
/// `nfgenmsg` of both: what the transaction is for.
const BATCH_HEADER: [u8; 4] = [0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8];
/// `NF_ACCEPT` as what a base chain does with what no rule decides about.
const POLICY: u32 = libc::NF_ACCEPT as u32;
/// The type of a map's data when it is a verdict (`NFT_DATA_VERDICT`).
const VERDICT: u32 = 0xffff_ff00;
/// Private data of sets: the byte orders of their keys and data.
const KEY_ORDER: u8 = 0;
const DATA_ORDER: u8 = 1;
/// Longest comment that the nft program accepts.
const LONGEST_COMMENT: usize = 127;
/// Elements in one message: their list must stay under 64 KiB.
const ELEMENTS: usize = 200;

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
        batch.add("begin", BEGIN, 0, &BATCH_HEADER, |_| {});
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
        number: i32,
        flags: u16,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let name = self.table.clone();
        self.batch.add(label, message(number), flags, &HEADER, |a| {
            a.text(table::NAME, &name);
            fill(a);
        });
    }

    /// Creates the table if it is missing.
    pub fn table(&mut self, owner: &str) -> &mut Self {
        self.add(format!("create table {}", self.table), libc::NFT_MSG_NEWTABLE, CREATE, |a| {
            a.be32(table::FLAGS, 0).put(table::USER_DATA, &comment(owner));
        });
        self
    }

    /// Deletes the table with everything in it.
    pub fn delete_table(&mut self) -> &mut Self {
        self.add(format!("delete table {}", self.table), libc::NFT_MSG_DELTABLE, 0, |_| {});
        self
    }

    /// Creates a chain if it is missing.
    pub fn chain(&mut self, name: &str, hook: Option<Hook>, owner: &str) -> &mut Self {
        let user = comment(owner);
        self.add(format!("create chain {name}"), libc::NFT_MSG_NEWCHAIN, CREATE, |a| {
            a.text(chain::NAME, name);
            if let Some(base) = hook {
                a.nest(chain::HOOK, |a| {
                    a.be32(hook::NUMBER, base.number);
                    a.be32(hook::PRIORITY, base.priority.cast_unsigned());
                });
                a.be32(chain::POLICY, POLICY).text(chain::TYPE, base.kind);
            }
            a.put(chain::USER_DATA, &user);
        });
        self
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, name: &str) -> &mut Self {
        self.add(format!("empty chain {name}"), libc::NFT_MSG_DELRULE, 0, |a| {
            a.text(rule::CHAIN, name);
        });
        self
    }

    /// Deletes an empty chain that nothing jumps to.
    pub fn delete_chain(&mut self, name: &str) -> &mut Self {
        self.add(format!("delete chain {name}"), libc::NFT_MSG_DELCHAIN, 0, |a| {
            a.text(chain::NAME, name);
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
        self.add(format!("add a rule to chain {chain}"), libc::NFT_MSG_NEWRULE, flags, |a| {
            a.text(rule::CHAIN, chain);
            a.nest(rule::EXPRESSIONS, |a| {
                a.raw(&expressions.bytes);
            });
            a.put(rule::USER_DATA, user);
        });
        self
    }

    /// Deletes one rule.
    pub fn delete_rule(&mut self, chain: &str, handle: u64) -> &mut Self {
        self.add(format!("delete a rule of chain {chain}"), libc::NFT_MSG_DELRULE, 0, |a| {
            a.text(rule::CHAIN, chain).be64(rule::HANDLE, handle);
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
        let id = self.declare(name, set, libc::NFT_SET_ANONYMOUS | libc::NFT_SET_CONSTANT);
        self.elements(name, Some(id), elements);
        (name, id)
    }

    fn declare(&mut self, name: &str, of: &Set<'_>, mut flags: i32) -> u32 {
        self.sets += 1;
        let id = self.sets;
        let (key_type, key_size) = concatenated(of.key);
        match of.values {
            Values::None => {}
            Values::Verdict | Values::Data(_) => flags |= libc::NFT_SET_MAP,
        }
        if of.timeout.is_some() {
            // Packets add elements.
            flags |= libc::NFT_SET_TIMEOUT | libc::NFT_SET_EVAL;
        }
        // Numbers are in the machine's byte order for the nft program, everything else is not.
        let host_order = u8::from(of.key == [Type::Integer]);
        let mut user = vec![KEY_ORDER, 4, host_order, 0, 0, 0];
        if matches!(of.values, Values::Data(_)) {
            user.extend_from_slice(&[DATA_ORDER, 4, 0, 0, 0, 0]);
        }
        if !of.comment.is_empty() {
            user.extend(tagged(SET_COMMENT, of.comment));
        }
        self.add(format!("create set {name}"), libc::NFT_MSG_NEWSET, CREATE, |a| {
            a.text(set::NAME, name).be32(set::FLAGS, flags.cast_unsigned());
            a.be32(set::KEY_TYPE, key_type).be32(set::KEY_LENGTH, key_size);
            match of.values {
                Values::None => {}
                Values::Verdict => {
                    a.be32(set::DATA_TYPE, VERDICT).be32(set::DATA_LENGTH, 0);
                }
                Values::Data(types) => {
                    let (data_type, data_size) = concatenated(types);
                    a.be32(set::DATA_TYPE, data_type).be32(set::DATA_LENGTH, data_size);
                }
            }
            a.be32(set::ID, id);
            if let Some(seconds) = of.timeout {
                a.be64(set::TIMEOUT, u64::from(seconds) * 1000);
            }
            a.put(set::USER_DATA, &user);
        });
        id
    }

    /// Deletes a named set or map that no rule uses.
    pub fn delete_set(&mut self, name: &str) -> &mut Self {
        self.add(format!("delete set {name}"), libc::NFT_MSG_DELSET, 0, |a| {
            a.text(set::NAME, name);
        });
        self
    }

    /// Adds elements.
    pub fn elements(&mut self, set: &str, id: Option<u32>, elements: &[Element]) -> &mut Self {
        for chunk in elements.chunks(ELEMENTS) {
            let label = format!("add to {set} for {}", chunk[0].comment);
            self.add(label, libc::NFT_MSG_NEWSETELEM, CREATE, |a| {
                a.text(list::SET, set);
                if let Some(id) = id {
                    a.be32(list::SET_ID, id);
                }
                a.nest(list::ELEMENTS, |a| {
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
            self.add(format!("remove from {set}"), libc::NFT_MSG_DELSETELEM, 0, |a| {
                a.text(list::SET, set).nest(list::ELEMENTS, |a| {
                    for key in chunk {
                        a.nest(ENTRY, |a| {
                            a.nest(element::KEY, |a| {
                                a.put(data::VALUE, key);
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
        self.batch.add("commit", END, 0, &BATCH_HEADER, |_| {});
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

fn write_element(a: &mut Attributes<'_>, of: &Element) {
    a.nest(ENTRY, |a| {
        a.nest(element::KEY, |a| {
            a.put(data::VALUE, &of.key);
        });
        match &of.value {
            Value::None => {}
            Value::Goto(chain) => {
                a.nest(element::DATA, |a| verdict(a, libc::NFT_GOTO, Some(chain)));
            }
            Value::Data(value) => {
                a.nest(element::DATA, |a| {
                    a.put(data::VALUE, value);
                });
            }
        }
        if !of.comment.is_empty() {
            a.put(element::USER_DATA, &comment(&of.comment));
        }
    });
}

fn comment(text: &str) -> Vec<u8> {
    tagged(COMMENT, text)
}

fn tagged(kind: u8, text: &str) -> Vec<u8> {
    let mut end = text.len().min(LONGEST_COMMENT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = vec![kind, (end + 1) as u8];
    bytes.extend_from_slice(&text.as_bytes()[..end]);
    bytes.push(0);
    bytes
}
