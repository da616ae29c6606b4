//! What stands in the log: proposals as the data of Raft's entries, and the log's own records.

use crate::codec::{Malformed, Reader, put_bytes, put_number};
use crate::members::{Change, Members};
use bytes::Bytes;
use dhow_kv::admin::Identity;
use dhow_mvcc::Command;
use raft::eraftpb::{Entry, EntryType, HardState};

/// The bytes of the request's number in front of each proposal.
const ID: usize = 8;
/// More than the other bytes around a proposal in the log take.
const AROUND: usize = 48;

/// Something that all members shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proposal {
    /// Run a command.
    Command(Command),
    /// Change the members.
    Member(Change),
}

impl Proposal {
    /// Appends the proposal as the data of an entry. Whoever waits for its end knows it by `id`;
    /// nobody does by 0.
    pub(crate) fn encode(&self, id: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&id.to_le_bytes());
        match self {
            Self::Command(command) => {
                out.push(1);
                command.encode(out);
            }
            Self::Member(change) => {
                out.push(2);
                change.encode(out);
            }
        }
    }

    /// At least as many bytes as it takes in the log, by [`entry_size`]: what is reserved for it must
    /// be enough, since a write that then finds no space stops all writes for good.
    pub(crate) fn size_bound(&self) -> usize {
        2 * AROUND
            + match self {
                Self::Command(command) => command.size_bound(),
                Self::Member(Change::Add(member)) => urls_size(&member.peer_urls),
                Self::Member(Change::PeerUrls { peer_urls: urls, .. }) => urls_size(urls),
                Self::Member(Change::Attributes { name, client_urls, .. }) => {
                    urls_size(client_urls) + name.len()
                }
                Self::Member(_) => 0,
            }
    }

    /// Reads an entry's data: the number of the request, and what is proposed.
    pub(crate) fn decode(data: &Bytes) -> Result<(u64, Self), Malformed> {
        let id = Self::id(data);
        let mut reader = Reader::new(data.slice(data.len().min(ID)..));
        let proposal = match reader.byte()? {
            1 => {
                let command = Command::decode(&reader.rest());
                Self::Command(command.map_err(|malformed| malformed.0)?)
            }
            2 => Self::Member(Change::decode(&mut reader)?),
            _ => return Err("unknown proposal: a newer version wrote it"),
        };
        reader.end()?;
        Ok((id, proposal))
    }

    /// A command that ends leases or notes what remains of them; for others that is a look at two
    /// bytes.
    pub(crate) fn of_lease(data: &Bytes) -> Option<Command> {
        let command = data.get(ID + 1..).filter(|_| data[ID] == 1)?;
        if !Command::is_of_lease(command) {
            return None;
        }
        match Self::decode(data) {
            Ok((_, Self::Command(command))) => Some(command),
            _ => None,
        }
    }

    /// The number of the request in an entry's data.
    pub(crate) fn id(data: &[u8]) -> u64 {
        data.get(..ID).and_then(|id| id.try_into().ok()).map_or(0, u64::from_le_bytes)
    }
}

fn urls_size(urls: &[String]) -> usize {
    urls.iter().map(|url| url.len() + 10).sum::<usize>() + 20
}

/// A proposal as an entry that Raft has yet to number. `data` is what [`Proposal::encode`] wrote.
pub(crate) fn new_entry(data: Bytes) -> Entry {
    let mut entry = Entry::default();
    // Raft wants to read changes of the votes itself, in its own form. They are kept and sent in
    // ours, so that its decoder never sees bytes of others.
    let change = match data.get(ID) {
        Some(2) => match Proposal::decode(&data) {
            Ok((_, Proposal::Member(change))) => change.conf_change(),
            _ => None,
        },
        _ => None,
    };
    match change {
        Some(change) => {
            use protobuf::Message;
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            // Writing into memory cannot fail; without the bytes Raft takes it for no change.
            entry.data = change.write_to_bytes().unwrap_or_default().into();
            entry.context = data;
        }
        None => entry.data = data,
    }
    entry
}

/// The proposal's bytes in an entry; empty for one of Raft's own.
pub(crate) fn payload(entry: &Entry) -> &Bytes {
    match entry.get_entry_type() {
        EntryType::EntryNormal => &entry.data,
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => &entry.context,
    }
}

/// Appends an entry.
pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put_number(out, entry.index);
    put_number(out, entry.term);
    out.push(u8::from(entry.get_entry_type() != EntryType::EntryNormal));
    put_bytes(out, payload(entry));
}

/// What an entry takes in memory or a message, about.
pub(crate) fn entry_size(entry: &Entry) -> usize {
    AROUND + entry.data.len() + entry.context.len()
}

pub(crate) fn read_entry(reader: &mut Reader) -> Result<Entry, Malformed> {
    let (index, term) = (reader.number()?, reader.number()?);
    let mut entry = Entry { index, term, ..Entry::default() };
    let conf = reader.flag()?;
    let payload = reader.bytes()?;
    if conf {
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.context = payload;
    } else {
        entry.data = payload;
    }
    Ok(entry)
}

/// One record of the log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record {
    /// An entry. It makes all with its index or higher ones void that stand before it.
    Entry(Entry),
    /// Term, vote and what is known to be committed.
    HardState(HardState),
    /// Whose log it is. Begins each segment.
    Identity(Identity),
    /// The state so far came from elsewhere: the first one, or a snapshot's. The log goes on after
    /// this index, and all before is void.
    Restart { index: u64, term: u64 },
    /// The members at the very beginning.
    Genesis(Members),
}

/// More than a record takes that is no entry and no [`Record::Genesis`].
pub(crate) const SMALL: usize = 48;

impl Record {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Entry(entry) => {
                out.push(1);
                put_entry(out, entry);
            }
            Self::HardState(state) => {
                out.push(2);
                for number in [state.term, state.vote, state.commit] {
                    put_number(out, number);
                }
            }
            Self::Identity(identity) => {
                out.push(3);
                put_number(out, identity.cluster_id);
                put_number(out, identity.member_id);
            }
            Self::Restart { index, term } => {
                out.push(4);
                put_number(out, *index);
                put_number(out, *term);
            }
            Self::Genesis(members) => {
                out.push(5);
                members.encode(out);
            }
        }
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let record = match reader.byte()? {
            1 => Self::Entry(read_entry(&mut reader)?),
            2 => {
                let (term, vote, commit) = (reader.number()?, reader.number()?, reader.number()?);
                Self::HardState(HardState { term, vote, commit, ..HardState::default() })
            }
            3 => {
                let (cluster_id, member_id) = (reader.number()?, reader.number()?);
                Self::Identity(Identity { cluster_id, member_id })
            }
            4 => Self::Restart { index: reader.number()?, term: reader.number()? },
            5 => Self::Genesis(Members::decode(&mut reader)?),
            _ => return Err("unknown record: a newer version wrote it"),
        };
        reader.end()?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_kv::admin::Member;

    fn round(record: &Record) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(Record::decode(Bytes::from(bytes.clone())).as_ref(), Ok(record));
        for cut in 0..bytes.len() {
            assert!(Record::decode(Bytes::copy_from_slice(&bytes[..cut])).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_proposal_takes_no_more_in_the_log_than_is_reserved_for_it() {
        use dhow_kv::Op;
        use dhow_kv::admin::{Alarm, AlarmKind, AuthChange};
        let max = i64::MIN;
        let txn = |success| dhow_kv::Txn { success, ..dhow_kv::Txn::default() };
        let leased = Op::Put {
            key: "k".into(),
            value: "v".into(),
            lease: max,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        let alarm = Alarm { member: u64::MAX, kind: AlarmKind::NoSpace };
        let commands = [
            Command::Txn(txn(Vec::new())),
            Command::Txn(txn(vec![Op::put("", "")])),
            Command::Txn(txn(vec![leased; 100])),
            Command::Txn(txn(vec![Op::delete("k"), Op::Txn(txn(vec![Op::delete("k")]))])),
            Command::TxnAs { txn: txn(vec![Op::put("a", "b")]), auth_revision: u64::MAX },
            Command::Compact(max),
            Command::LeaseGrant { id: max, ttl: max },
            Command::LeaseRevoke { id: max },
            Command::AlarmRaise(alarm),
            Command::AlarmDisarm { member: u64::MAX, kind: Some(AlarmKind::NoSpace) },
            Command::Auth(AuthChange::Enable),
            Command::Auth(AuthChange::UserGrantRole { user: "u".into(), role: "r".into() }),
            Command::TokenIssue { user: "u".into(), prefix: "p".into(), auth_revision: u64::MAX },
        ];
        let urls = vec!["http://127.0.0.1:2380".to_owned(); 3];
        let id = u64::MAX;
        let member = Member { id, peer_urls: urls.clone(), ..Member::default() };
        let changes = [
            Change::Add(member.clone()),
            Change::Add(Member { learner: true, ..member }),
            Change::Remove(id),
            Change::Promote(id),
            Change::Attributes { id, name: "n".into(), client_urls: urls.clone() },
            Change::PeerUrls { id, peer_urls: urls },
        ];
        let commands = commands.into_iter().map(Proposal::Command);
        for proposal in commands.chain(changes.into_iter().map(Proposal::Member)) {
            let mut data = Vec::new();
            proposal.encode(u64::MAX, &mut data);
            let mut entry = new_entry(data.into());
            (entry.index, entry.term) = (u64::MAX, u64::MAX);
            let mut record = Vec::new();
            Record::Entry(entry.clone()).encode(&mut record);
            assert!(record.len() <= entry_size(&entry), "{proposal:?}");
            let (takes, bound) = (entry_size(&entry), proposal.size_bound());
            assert!(takes <= bound, "{takes} > {bound}: {proposal:?}");
        }
    }

    #[test]
    fn every_record_comes_back() {
        let mut state = HardState::default();
        (state.term, state.vote, state.commit) = (3, u64::MAX, 1 << 40);
        round(&Record::HardState(state));
        round(&Record::Identity(Identity { cluster_id: 1, member_id: u64::MAX }));
        round(&Record::Restart { index: 7, term: 2 });
        let member = Member { id: 9, name: "a".into(), learner: true, ..Member::default() };
        round(&Record::Genesis([member.clone()].into_iter().collect()));
        let mut data = Vec::new();
        Proposal::Command(Command::Compact(8)).encode(77, &mut data);
        let entry = new_entry(data.into());
        assert_eq!(Proposal::id(payload(&entry)), 77);
        round(&Record::Entry(entry));
        let mut data = Vec::new();
        let added = Proposal::Member(Change::Add(member));
        added.encode(78, &mut data);
        assert!(data.len() <= added.size_bound());
        let entry = new_entry(data.into());
        assert_eq!(entry.get_entry_type(), EntryType::EntryConfChangeV2);
        assert_eq!(Proposal::decode(payload(&entry)), Ok((78, added)));
        // Raft's own form is only for Raft.
        let kept = Entry { data: Bytes::new(), ..entry };
        round(&Record::Entry(kept));
    }
}
